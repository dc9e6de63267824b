"""`complete --engine ray`: the same workers as actors; one of them killed; the same bytes, and nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anthesis.dataset.ray_pool import _cores_each
from anthesis.dataset.shard_set import ShardSet
from anthesis.errors import RequestError
from command_line import command, fail, succeed
from completing import arguments, count_lines, fail_last, write_rows
from text_model import text_model

RAY_TIMEOUT_S = 240

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(text_model(tmp_path_factory.mktemp("model") / "tiny"))


@contextmanager
def ray_run(*run: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The command, in a process group of its own by which what it leaves behind is found."""
    process = subprocess.Popen(
        command(*run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ray_processes() -> set[int]:
    """Of Ray, on this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if b"raylet" in words or b"gcs_server" in words or words.startswith(b"ray::"):
            found.add(int(path.name))
    return found


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home directory, in which nothing is left: no token that other clusters would then ask for."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    yield
    assert not (home / ".ray").exists()


def wait_for_none_but(before: set[int]) -> None:
    deadline = time.monotonic() + 30
    while left := ray_processes() - before:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_two_actors_one_of_them_killed(tmp_path: Path, model: str, drawn: bool) -> None:
    before = ray_processes()
    data, whole, output = write_rows(tmp_path / "data.jsonl", 400), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    more = ("--temperature", "1", "--seed", "7") if drawn else ()
    succeed(*arguments(model, data, whole, *more))
    run = arguments(model, data, output, *more, "--engine", "ray", "--workers", "2", "--batch", "1")
    with ray_run(*run, "--num-shards", "4") as process:
        victim = pid_at_work(output, process)
        os.kill(victim, signal.SIGKILL)
        _, said = process.communicate(timeout=RAY_TIMEOUT_S)
    assert process.returncode == 0, said
    assert output.read_bytes() == whole.read_bytes()
    assert "400 rows of 4 shards in" in said
    shards = ShardSet(output)
    holders = {json.loads(path.read_text())["pid"] for path in shards.path.glob("*.claim")}
    assert len(holders - {victim}) >= 2  # the other one, and the one that was started in its place
    (taken_over,) = shards.path.glob("*.2.claim")
    first = taken_over.with_name(taken_over.name.replace(".2.claim", ".1.jsonl"))
    second = taken_over.with_suffix(".jsonl")
    kept = first.read_bytes()
    assert second.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert kept.count(b"\n") >= 5
    wait_for_none_but(before)


def pid_at_work(output: Path, process: subprocess.Popen[str]) -> int:
    """The process that has done five rows of a shard, and not all."""
    shards = ShardSet(output)
    deadline = time.monotonic() + RAY_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for path in shards.path.glob("shard-*.1.jsonl"):
            if 5 <= count_lines(path) < 60:
                return int(json.loads(path.with_suffix(".claim").read_text())["pid"])
        time.sleep(0.005)
    raise AssertionError("no shard was begun")


@needs_ray
@pytest.mark.slow
def test_what_goes_wrong_in_an_actor_is_said_without_ray(tmp_path: Path, model: str) -> None:
    before = ray_processes()
    data, output = write_rows(tmp_path / "data.jsonl", 200), tmp_path / "out.jsonl"
    # only an actor finds it out, as it loads the weights
    damaged = text_model(tmp_path / "damaged")
    with (damaged / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 100)
    run = (str(damaged), data, output, "--engine", "ray", "--workers", "1", "--num-shards", "2")
    line = fail_last(*arguments(*run), code=1)
    assert "model.safetensors" in line
    with ray_run(*arguments(model, data, output, "--engine", "ray", "--workers", "3", "--threads", "999")) as process:
        _, said = process.communicate(timeout=RAY_TIMEOUT_S)
    assert process.returncode == 2, said
    assert "threads" in said.splitlines()[-1]
    wait_for_none_but(before)


@needs_ray
@pytest.mark.slow
def test_sigterm_ends_all_and_the_same_command_goes_on(tmp_path: Path, model: str) -> None:
    before = ray_processes()
    data, whole, output = write_rows(tmp_path / "data.jsonl", 400), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    succeed(*arguments(model, data, whole))
    run = arguments(model, data, output, "--engine", "ray", "--workers", "2", "--batch", "1", "--num-shards", "4")
    with ray_run(*run) as process:
        pid_at_work(output, process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=RAY_TIMEOUT_S)
    assert process.returncode == 143, said
    assert "the same command goes on" in said
    wait_for_none_but(before)
    assert not output.exists()
    with ray_run(*run) as process:
        _, said = process.communicate(timeout=RAY_TIMEOUT_S)
    assert process.returncode == 0, said
    assert output.read_bytes() == whole.read_bytes()


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_is_there_is_used_and_left(tmp_path: Path, model: str) -> None:
    before = ray_processes()
    scripts = Path(sys.executable).parent
    start = [str(scripts / "ray"), "start", "--head", "--port", "0", "--num-cpus", "2", "--include-dashboard", "false"]
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # of this cluster alone
    head = subprocess.Popen(
        [*start, "--block", "--disable-usage-stats"], env={**os.environ, **own},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert head.stdout is not None
        address = next(line.split("'")[1] for line in head.stdout if "--address=" in line)
        data, output = write_rows(tmp_path / "data.jsonl", 60), tmp_path / "out.jsonl"
        relative = Path("data.jsonl"), Path("out.jsonl")
        run = arguments(model, *relative, "--engine", "ray", "--num-shards", "3")
        result = subprocess.run(
            command(*run), cwd=tmp_path, env={**os.environ, **own, "RAY_ADDRESS": address},
            capture_output=True, text=True, timeout=RAY_TIMEOUT_S,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert count_lines(output) == 60
        assert head.poll() is None
        nowhere = fail_last(*arguments(model, data, tmp_path / "b.jsonl", "--engine", "ray"), RAY_ADDRESS="127.0.0.1:9")
        assert "Ray can't be used at RAY_ADDRESS=127.0.0.1:9" in nowhere
    finally:
        head.send_signal(signal.SIGTERM)
        head.communicate(timeout=60)
    wait_for_none_but(before)


def test_without_the_extra_it_is_named(tmp_path: Path, model: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", 3)
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')\n")
    run = arguments(model, data, tmp_path / "out.jsonl", "--engine", "ray", "--workers", "2")
    line = fail_last(*run, PYTHONPATH=str(tmp_path / "absent"))
    assert "--engine ray needs the extra ray (No module named 'ray'): pip install 'anthesis[ray]'" in line
    assert not (tmp_path / "out.jsonl.shards").exists()
    assert fail("complete", model, str(data), "-o", str(tmp_path / "o"), "--workers", "2")


@needs_ray
def test_ray_is_not_imported_unless_it_is_used(tmp_path: Path, model: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 3), tmp_path / "out.jsonl"
    code = (
        "import sys\nfrom anthesis.cli import main\ntry:\n    main()\nfinally:\n    assert 'ray' not in sys.modules\n"
        "    print('light', file=sys.stderr)"
    )
    run = [sys.executable, "-c", code, *arguments(model, data, output, "--num-shards", "2")]
    result = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stderr.endswith("light\n")


@pytest.mark.parametrize(
    ("machines", "workers", "threads", "cores"),
    [([2], 2, None, 1), ([8, 8], 2, None, 8), ([8, 4], 2, None, 4), ([16], 3, None, 5), ([4, 4], 4, 2, 2)],
)
def test_actors_share_the_cores(machines: list[int], workers: int, threads: int | None, cores: int) -> None:
    assert _cores_each(machines, workers, threads) == cores


@pytest.mark.parametrize(
    ("machines", "workers", "threads"), [([2], 3, None), ([8], 1, 9), ([3, 3], 3, 2), ([], 1, None)]
)
def test_more_actors_than_cores_are_refused(machines: list[int], workers: int, threads: int | None) -> None:
    with pytest.raises(RequestError, match="cores, too few for"):
        _cores_each(machines, workers, threads)
