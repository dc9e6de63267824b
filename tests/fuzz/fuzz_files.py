"""Coverage-guided fuzzing of every kind of file (needs `pip install atheris`; not part of the tests).

    python tests/fuzz/fuzz_files.py gguf -max_total_time=120
    python tests/fuzz/fuzz_files.py            # names the kinds

A crash is an input that breaks the promise of tests/hostile.py; libFuzzer writes it to a file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["anthesis"]):
    from hostile import KINDS, check, sample


def main() -> None:
    """Fuzzes the kind that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in KINDS:
        raise SystemExit(f"name a kind: {', '.join(KINDS)}")
    kind = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "sample").write_bytes(sample(kind))

        def one_input(data: bytes) -> None:
            check(kind, data)

        atheris.Setup([*sys.argv, corpus, "-rss_limit_mb=1500", "-max_len=65536"], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
