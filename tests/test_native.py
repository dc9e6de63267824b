"""The native extension against what the operating system and NumPy say."""

from __future__ import annotations

import ast
import inspect
import math
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import anthesis.native
from anthesis import LLM, native
from anthesis.cores import usable_cores
from anthesis.errors import RequestError, UnsupportedError
from anthesis.models import trace
from anthesis.program.fuse import fuse
from cpu_variants import on_cpu
from programs import BLOOM, config_of, random_weights, step_inputs

MIB = 1 << 20

# What the kernel lists in /proc/cpuinfo, where it has another name for it than we.
CPUINFO_NAMES = {"neon": "asimd", "dotprod": "asimddp"}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="we know of no features there")
def test_features_are_those_the_kernel_lists() -> None:
    features = native.cpu_features()
    listed = set(re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    assert features == {name: CPUINFO_NAMES.get(name, name) in listed for name in features}
    assert {"x86_64": "amx_bf16", "aarch64": "i8mm"}[platform.machine()] in features


@pytest.mark.timed
def test_bandwidth_is_plausible() -> None:
    threads = min(2, usable_cores())
    samples = native.read_bandwidth(128 * MIB, threads, seconds=0.2)
    assert len(samples) >= 3
    assert all(math.isfinite(sample) for sample in samples)
    # NumPy reads the same memory in one thread and with nothing but plain vector loads; we must not be slower than
    # that, nor faster than any memory there is.
    numbers = np.ones(128 * MIB // 8, np.int64)
    numpy_s = min(_seconds(lambda: np.add.reduce(numbers)) for _ in range(3))
    assert 0.8 * numbers.nbytes / numpy_s < max(samples) < 5e12


def _seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@pytest.mark.timed
def test_bandwidth_takes_the_time_it_was_given() -> None:
    elapsed = _seconds(lambda: native.read_bandwidth(16 * MIB, 1, seconds=0.5))
    assert 0.5 <= elapsed < 3


@pytest.mark.parametrize("nbytes", [MIB, MIB + 1, 3 * MIB + 13])
@pytest.mark.parametrize("threads", [1, 3, 7])
def test_bandwidth_reads_every_word_of_odd_sizes(nbytes: int, threads: int) -> None:
    assert len(native.read_bandwidth(nbytes, threads, seconds=0)) == 3  # the native code checks the sum itself


@pytest.mark.timed
@pytest.mark.skipif(usable_cores() < 2, reason="a core alone hands over nothing")
def test_handovers_are_plausible_and_leave_the_threads_where_they_were() -> None:
    before = os.sched_getaffinity(0)
    first, second = sorted(before)[:2]
    (there,), (back,) = native.handovers([first, second]), native.handovers([second, first])
    assert 1e-9 < there < 1e-5 and 1e-9 < back < 1e-5
    assert native.handovers([first]) == []
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("cores", [(0, 0), (0, 1023), (0, -1)])
def test_impossible_handovers_are_refused(cores: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="can't measure handovers among the cores"):
        native.handovers(cores)


@pytest.mark.timed
@pytest.mark.skipif(native.multiply_add_peak("fp32", 1, 0) is None, reason="these kernels know no peak")
def test_no_product_is_faster_than_the_peak_and_a_good_one_comes_near() -> None:
    a = np.ones((512, 512), np.float32)

    def product_by_peak() -> float:
        peak = native.multiply_add_peak("fp32", 1, 0.02)
        return a.size * 512 / min(_seconds(lambda: a @ a) for _ in range(5)) / peak

    def int8_by_fp32() -> float:
        return native.multiply_add_peak("int8", 1, 0.02) / native.multiply_add_peak("fp32", 1, 0.02)

    with threadpool_limits(1):  # in a quiet moment
        assert any(0.6 < product_by_peak() < 1.1 for _ in range(20))
    assert any(2 < int8_by_fp32() < 8 for _ in range(20))


@pytest.mark.parametrize("arguments", [("int4", 1, 0.0), ("bf16", 0, 0.0)])
def test_impossible_peaks_are_refused(arguments: tuple[str, int, float]) -> None:
    with pytest.raises(RequestError, match="can't measure the peak of"):
        native.multiply_add_peak(*arguments)


def test_memory_is_given_back() -> None:
    native.read_bandwidth(64 * MIB, 1, seconds=0)
    before = _resident_bytes()
    for _ in range(4):
        native.read_bandwidth(64 * MIB, 1, seconds=0)
    assert _resident_bytes() - before < 32 * MIB


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _counted_during(action: Callable[[], object]) -> int:
    """How often another Python thread counts, a thousand times a second at most, while this one does something."""
    done = threading.Event()
    counts = [0]

    def count() -> None:
        while not done.is_set():
            counts[0] += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    before = counts[0]
    action()
    during = counts[0] - before
    done.set()
    counter.join()
    return during


def test_other_python_threads_run_during_a_measurement() -> None:
    assert _counted_during(lambda: native.read_bandwidth(16 * MIB, 1, seconds=0.5)) > 50


def test_other_python_threads_run_during_a_step() -> None:
    """Of a prompt, whose one step takes long enough."""
    with LLM("random:bloom-560m", device="cpu", threads=1, prefill_chunk=256) as llm:
        handle = llm.submit(llm.made_up_prompt(256), max_new_tokens=1, ignore_eos=True)
        assert _counted_during(llm.step) > 20
        assert handle.num_tokens == 1


@pytest.mark.parametrize("name", ["positions", "tokens", "segments"])
def test_arrays_of_a_step_are_taken_as_they_are_or_not_at_all(name: str) -> None:
    """A converted copy would be gone before it is read."""
    program = fuse(trace(config_of(BLOOM)))
    executable = on_cpu(program, random_weights(program), blocks=5)
    inputs = step_inputs([(0, 0, [1, 2, 3])])
    assert executable.run(inputs)["token"].shape == (3,)
    with pytest.raises(ValueError, match=f"{name} has another type or layout than the step needs"):
        executable.run(inputs | {name: inputs[name].astype(np.int64)})
    with pytest.raises((KeyError, ValueError)):
        executable.run({given: array for given, array in inputs.items() if given != name})


@pytest.mark.parametrize(("sources", "targets"), [([1], [4]), ([-1], [2]), ([4], [2])])
def test_blocks_that_are_not_there_are_not_copied(sources: list[int], targets: list[int]) -> None:
    extension = native.extension()
    pool, cache = extension.Pool(1), extension.make_cache(extension.Arena(), 4, 2, 8, True, None)
    extension.copy_blocks(pool, [cache], [1], [3])
    with pytest.raises(IndexError, match=r"no block (4|-1) in the cache"):
        extension.copy_blocks(pool, [cache], sources, targets)
    with pytest.raises(ValueError, match="every block that is copied needs one target"):
        extension.copy_blocks(pool, [cache], [1, 2], [3])


def test_ctrl_c_ends_a_measurement() -> None:
    code = (
        "import os, signal, threading\n"
        "from anthesis import native\n"
        "native.extension()\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        f"    native.read_bandwidth({16 * MIB}, 2, seconds=60)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (result.stdout, result.stderr) == ("interrupted\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000, 1, 0.1), "over 1000 bytes"),
        ((MIB, 0, 0.1), "with 0 threads"),
        ((MIB, 1, -1.0), "for -1.0 seconds"),
        ((MIB, 1, math.nan), "for nan seconds"),
        ((1 << 60, 1, 0.1), "no memory for a buffer of"),
    ],
)
def test_impossible_measurements_are_refused(arguments: tuple[int, int, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        native.read_bandwidth(*arguments)


def test_an_extension_that_was_never_built_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anthesis._native", None)
    monkeypatch.delattr(anthesis, "_native", raising=False)
    native.extension.cache_clear()
    with pytest.raises(UnsupportedError, match="pip install"):
        native.cpu_features()


def _stubbed(body: list[ast.stmt]) -> dict[str, object]:
    """By name the arguments of functions, and what a class has; properties without arguments."""
    found: dict[str, object] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _stubbed(node.body)
        elif isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in node.args.args if argument.arg != "self"]
            found[node.name] = None if node.decorator_list else names
    return found


def _built(thing: object) -> dict[str, object]:
    """The same of the extension, whose functions tell their arguments in their docstrings."""
    found: dict[str, object] = {}
    for name, value in vars(thing).items():
        if isinstance(value, type):
            found[name] = _built(value)
        elif isinstance(value, property):
            found[name] = None
        elif name == "__init__" or not name.startswith("_"):
            signature = (inspect.getdoc(value) or "").splitlines()[0]
            if name in signature:  # else nobody can make one
                found[name] = re.findall(r"(\w+): ", signature)
    return found


def test_the_stub_names_what_the_extension_has() -> None:
    stub = ast.parse((Path(native.__file__).parent / "_native.pyi").read_text())
    assert _stubbed(stub.body) == _built(native.extension())


def _control_group(proc: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (proc / name).parent.mkdir(parents=True, exist_ok=True)
        (proc / name).write_text(text)
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text(mountinfo.format(proc=proc))
    return proc


MOUNT_V2 = "30 24 0:26 / {proc}/sys rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT_V1 = "33 32 0:30 {root} {{proc}}/sys rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"sys/a/b/cpu.max": "max 100000\n"}, None),
        ({"sys/a/b/cpu.max": "100000 100000\n"}, 1),
        ({"sys/a/b/cpu.max": "199999 100000\n"}, 1),
        ({"sys/a/b/cpu.max": "20000 100000\n"}, 1),
        ({"sys/a/b/cpu.max": "max 100000\n", "sys/a/cpu.max": "100000 100000\n"}, 1),
        ({"sys/a/b/cpu.max": "99900000 100000\n"}, None),
    ],
)
def test_usable_cores_follow_a_quota_of_version_2(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    proc = _control_group(tmp_path, "0::/a/b\n", MOUNT_V2, files)
    assert usable_cores(proc) == (cores or len(os.sched_getaffinity(0)))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize("root", ["/", "/docker/c0ffee"])
@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("150000", 1)])
def test_usable_cores_follow_a_quota_of_version_1(tmp_path: Path, root: str, quota: str, cores: int | None) -> None:
    group = "/docker/c0ffee"
    inside = "sys/docker/c0ffee" if root == "/" else "sys"
    proc = _control_group(
        tmp_path,
        f"5:memory:{group}\n4:cpu,cpuacct:{group}\n0::/\n",
        MOUNT_V1.format(root=root),
        {f"{inside}/cpu.cfs_quota_us": f"{quota}\n", f"{inside}/cpu.cfs_period_us": "100000\n"},
    )
    assert usable_cores(proc) == (cores or len(os.sched_getaffinity(0)))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_usable_cores_follow_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_peak_of_unknown_kernels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHESIS_CPU_KERNELS", "mmx")
    with pytest.raises(RequestError, match="ANTHESIS_CPU_KERNELS is 'mmx'"):
        native.multiply_add_peak("fp32", 1, 0.01)
