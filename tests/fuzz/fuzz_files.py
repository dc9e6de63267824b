"""Coverage-guided fuzzing of every kind of file (needs `pip install atheris`; not part of the tests).

    python tests/fuzz/fuzz_files.py gguf -max_total_time=120
    python tests/fuzz/fuzz_files.py                            # every kind in turn, 60 s each

A crash is an input that breaks the promise of tests/hostile.py; libFuzzer writes it to a file. It starts from a valid
file and, where there are any, the lies of tests/lies.py. At the end it prints how many inputs were tried.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

NUM_LIES = 100

# Past the loader of an editable install, whose modules atheris can't instrument: it would see no branch of them.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
sys.path[:0] = [str(Path(__file__).resolve().parents[up] / name) for up, name in ((1, ""), (2, "src"))]

with atheris.instrument_imports(include=["anthesis"]):
    from hostile import KINDS, check, sample
    from lies import LIES


def main() -> None:
    """Fuzzes the kind that the command line names, or all of them."""
    if len(sys.argv) < 2:
        for kind in KINDS:
            subprocess.run([sys.executable, __file__, kind, "-max_total_time=60"], check=True)
        return
    if sys.argv[1] not in KINDS:
        raise SystemExit(f"name a kind: {', '.join(KINDS)}")
    kind = sys.argv.pop(1)
    with atheris.instrument_imports(include=["anthesis"]):
        check(kind, sample(kind))  # imports what is imported at first use, and fills what is cached
    with tempfile.TemporaryDirectory() as corpus:
        seeds = [sample(kind), *(LIES[kind](Random(i)) for i in range(NUM_LIES if kind in LIES else 0))]
        for i, data in enumerate(seeds):
            (Path(corpus) / str(i)).write_bytes(data)

        def one_input(data: bytes) -> None:
            check(kind, data)

        options = ["-rss_limit_mb=1500", "-max_len=65536", "-print_final_stats=1"]
        atheris.Setup([*sys.argv, corpus, *options], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
