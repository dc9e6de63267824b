"""Models over several processes end as they should: by themselves, at once, all of them, with nothing left behind."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from anthesis.parallel.connection import ClosedError, Connection
from command_line import TIMEOUT_S, command
from rank_processes import END_S, START_S, Ranks, generating, processes, script, wait_until
from test_light_install import RUN_CLI
from text_model import text_model

LONG = ("-n", "60000")
SHORT = ("-n", "40")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In fp32, for up to four ranks and two stages; it generates for minutes."""
    directory = tmp_path_factory.mktemp("model") / "text"
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 64, "intermediate_size": 128}
    return text_model(directory, num_hidden_layers=2, max_position_embeddings=100_000, **heads)


def last_line(run: Ranks) -> str:
    return run.err.splitlines()[-1]


def check_failed(run: Ranks, rank: int) -> None:
    """It says in its last line which rank ended and how, and keeps the logs that it names, and no others."""
    assert run.end() == 1
    assert re.match(rf"anthesis: rank {rank} (has ended|did not start): it was killed by SIGKILL", last_line(run))
    assert "Traceback" not in run.err
    assert run.logs() == run.named_logs()


# --- killed -----------------------------------------------------------------------------------------------------------


def kill(run: Ranks, rank: int, after_s: float) -> bool:
    """Kills a rank some time after it was started; returns whether there was any text before."""
    pid = run.wait_for(rank)
    with pytest.raises(AssertionError, match="not within"):  # it must not end before
        wait_until(lambda: run.process.poll() is not None, after_s, "nothing")
    run.look()
    generates = bool(run.out)
    os.kill(pid, signal.SIGKILL)
    if rank > 0:
        check_failed(run, rank)
    else:
        assert run.end() == -signal.SIGKILL
        wait_until(lambda: not run.logs(), 1, "nobody was told of the logs")
    return generates


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_while_generating(tmp_path: Path, model: Path, rank: int) -> None:
    with generating(tmp_path, model, "--tp", "2", *LONG) as run:
        run.wait_for_text()
        assert kill(run, rank, 0.1)
        sockets, memory = run.held
        assert sockets >= 1 and memory == 1  # else this test looks at nothing


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_20_moments(tmp_path: Path, model: Path) -> None:
    """While the launcher starts, while ranks import, meet and load, and while they generate."""
    rng = random.Random(1)
    layouts = [("--tp", "2"), ("--tp", "3"), ("--pp", "2"), ("--tp", "2", "--pp", "2")]
    ranks = [2, 3, 2, 4]
    generated = 0
    for i in range(20):
        rank = 0 if i % 5 == 4 else rng.randrange(1, ranks[i % 4])
        # another rank begins to run when the launcher has, some seconds after rank 0
        after_s = rng.uniform(0, 10 if rank == 0 else 5)
        with generating(tmp_path, model, *layouts[i % 4], *LONG) as run:
            generated += kill(run, rank, after_s)
    assert 3 <= generated <= 17


PLACES = ["join_local", "_sit", "_listen", "_look", "_join_memory", "_place", "_open_model", "load", "allocate", "_run"]


@pytest.mark.parametrize("place", [pytest.param(p, marks=[] if p == "load" else pytest.mark.slow) for p in PLACES])
def test_killed_between(tmp_path: Path, model: Path, place: str) -> None:
    """At every step of the start, where the others wait for it."""
    with generating(tmp_path, model, "--tp", "2", *LONG, at_call=f"1:{place}:1:SIGKILL") as run:
        wait_until(lambda: run.process.poll() is not None, START_S, "it has ended")
        check_failed(run, 1)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["_sit", "_connect", "connect", "_place", "_open_model", "send", "receive"])
def test_killed_between_with_stages(tmp_path: Path, model: Path, place: str) -> None:
    """Where the others wait for it in PyTorch's process groups, which have a patience of their own."""
    with generating(tmp_path, model, "--pp", "2", *LONG, at_call=f"1:{place}:1:SIGKILL") as run:
        run.wait_for(1)
        wait_until(lambda: run.pid(1) is None, START_S, "the rank has ended")
        check_failed(run, 1)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2])
def test_killed_before_the_others_have_come(tmp_path: Path, model: Path, rank: int) -> None:
    """The other one is still to be started, or would wait for the dead one."""
    with generating(tmp_path, model, "--tp", "3", *LONG, at_call=f"{rank}:__init__:1:SIGKILL") as run:
        wait_until(lambda: run.process.poll() is not None, START_S, "it has ended")
        check_failed(run, rank)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "place", "what"),
    [
        ("--tp", "meet", "SIGKILL"),
        ("--tp", "_accept_all", "SIGTERM"),
        ("--tp", "_accept_all", "raise"),
        ("--tp", "seat_all", "raise"),
        ("--tp", "load", "SIGKILL"),
        ("--tp", "submit", "raise"),
        ("--pp", "while_all_run", "SIGKILL"),
        ("--pp", "while_all_run", "raise"),
        ("--pp", "load", "raise"),
        ("--pp", "send", "SIGKILL"),
        ("--pp", "next_outputs", "raise"),
    ],
)
def test_rank_0_ends_between(tmp_path: Path, model: Path, layout: str, place: str, what: str) -> None:
    """Where the others wait for it: for its connection, in an exchange, in PyTorch's process groups."""
    with generating(tmp_path, model, layout, "2", *LONG, at_call=f"0:{place}:1:{what}") as run:
        wait_until(lambda: run.process.poll() is not None, START_S, "it has ended")
        assert run.end() == (1 if what == "raise" else -signal.Signals[what])
        assert ("ZeroDivisionError: made by a test" in run.err) == (what == "raise")
        wait_until(lambda: not run.logs(), 1, "nobody was told of the logs")


def test_the_launcher_killed_before_it_has_started_ranks(tmp_path: Path, model: Path) -> None:
    with generating(tmp_path, model, "--tp", "2", *LONG) as run:
        os.kill(run.wait_for("launcher"), signal.SIGKILL)
        assert run.end() == 1
        assert last_line(run) == "anthesis: rank 1 did not start: the launcher failed"
        assert not run.logs()


@pytest.mark.slow
def test_the_launcher_killed_later(tmp_path: Path, model: Path) -> None:
    """It is not needed any more."""
    with generating(tmp_path, model, "--tp", "2", *LONG) as run:
        run.wait_for_text()
        os.kill(run.wait_for("launcher"), signal.SIGKILL)
        run.wait_for_text(len(run.out) + 200)
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == 130


# --- failed -----------------------------------------------------------------------------------------------------------


def test_an_error_of_one_rank_is_told_in_one_line(tmp_path: Path, model: Path) -> None:
    """A number that only rank 1 reads is damaged."""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in model.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.gate_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][-1, 3] = np.nan
    save_file(tensors, damaged / "model.safetensors")
    with generating(tmp_path, damaged, "--tp", "2", *SHORT) as run:
        assert run.end(START_S) == 1
        assert run.err.count("\n") == 1
        assert name in run.err and "damaged" in run.err
        assert (run.out, run.logs()) == ("", [])


@pytest.mark.parametrize(
    ("layout", "rank"),
    [
        (("--tp", "2", "--json"), 1),
        pytest.param(("--tp", "3"), 2, marks=pytest.mark.slow),
        pytest.param(("--pp", "2"), 1, marks=pytest.mark.slow),
        pytest.param(("--tp", "2", "--pp", "2"), 3, marks=pytest.mark.slow),
        pytest.param(("--tp", "2", "--pp", "2"), 1, marks=pytest.mark.slow),
    ],
)
def test_an_exception_of_one_rank_is_shown(tmp_path: Path, model: Path, layout: tuple[str, ...], rank: int) -> None:
    with generating(tmp_path, model, *layout, *LONG, at_call=f"{rank}:_run:20:raise") as run:
        wait_until(lambda: run.process.poll() is not None, START_S, "it has ended")
        assert run.end() == 1
        assert last_line(run) == f"anthesis: rank {rank} failed: made by a test"
        assert run.err.count("Traceback") == 1
        assert "in _run\n" in run.err and "ZeroDivisionError: made by a test\n" in run.err
        assert run.logs() == []
        if "--json" in layout:
            assert run.out == ""


# --- ended from outside -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [("--tp", "2"), pytest.param(("--pp", "2"), marks=pytest.mark.slow)])
def test_ctrl_c(tmp_path: Path, model: Path, layout: tuple[str, ...]) -> None:
    with generating(tmp_path, model, *layout, *LONG) as run:
        run.wait_for_text()
        run.look()
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == 130
        assert "Traceback" not in run.err and run.err.count("\n") <= 1
        assert run.logs() == []


@pytest.mark.slow
@pytest.mark.parametrize("layout", [("--tp", "2"), ("--pp", "2")])
def test_ctrl_c_twice_does_not_wait_for_a_rank_that_hangs(tmp_path: Path, model: Path, layout: tuple[str, ...]) -> None:
    with generating(tmp_path, model, *layout, *LONG) as run:
        run.wait_for_text()
        os.kill(run.wait_for(1), signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(AssertionError, match="not within"):
                wait_until(lambda: run.process.poll() is not None, 1, "it waits")
            os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == 130
        assert "Traceback" not in run.err


@pytest.mark.slow
@pytest.mark.parametrize("layout", [("--tp", "2"), ("--pp", "2")])
def test_ctrl_c_at_the_start(tmp_path: Path, model: Path, layout: tuple[str, ...]) -> None:
    for after_s in (0, 0.3, 1, 2, 3):
        with generating(tmp_path, model, *layout, *LONG) as run:
            run.wait_for("launcher")
            with pytest.raises(AssertionError, match="not within"):
                wait_until(lambda run=run: run.process.poll() is not None, after_s, "nothing")
            os.killpg(run.process.pid, signal.SIGINT)
            assert run.end(4) == 130
            assert "Traceback" not in run.err and run.err.count("\n") <= 1
            assert run.logs() == []


def test_terminated(tmp_path: Path, model: Path) -> None:
    with generating(tmp_path, model, "--tp", "2", *LONG) as run:
        run.wait_for_text()
        run.process.terminate()
        assert run.end() == -signal.SIGTERM
        wait_until(lambda: not run.logs(), 1, "nobody was told of the logs")


# --- fine -------------------------------------------------------------------------------------------------------------


def alone(directory: Path, model: Path, *arguments: str) -> str:
    with generating(directory, model, *arguments) as run:
        assert run.end(TIMEOUT_S) == 0, run.err
        return run.out


@pytest.mark.parametrize(
    "layout",
    [
        ("--tp", "2"),
        pytest.param(("--tp", "4"), marks=pytest.mark.slow),
        pytest.param(("--tp", "2", "--pp", "2"), marks=pytest.mark.slow),
    ],
)
def test_only_rank_0_says_anything(tmp_path: Path, model: Path, layout: tuple[str, ...]) -> None:
    """And what it says is what a single process says; four ranks share two cores where there are no more."""
    with generating(tmp_path, model, *layout, "-n", "300") as run:
        run.wait_for(1)
        (logs,) = run.logs()
        wait_until(lambda: list(logs.glob("*/attempt_0/0/stderr.log")), START_S, "its log is there")
        assert run.end(TIMEOUT_S) == 0, run.err
        assert run.out == alone(tmp_path, model, "-n", "300")
        assert len(run.out) > 300
        lines = [line for line in run.err.splitlines() if "ranks take turns" not in line]
        assert len(lines) == 2 and lines[0].startswith("300 tokens (length)")
        assert run.logs() == []


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_stopped_and_continued(tmp_path: Path, model: Path, rank: int) -> None:
    with generating(tmp_path, model, "--tp", "2", "-n", "1500") as run:
        run.wait_for_text()
        pid = run.wait_for(rank)
        os.kill(pid, signal.SIGSTOP)
        said = len(run.out)
        with pytest.raises(AssertionError, match="not within"):
            wait_until(lambda: len(run.out) > said + 50, 2, "it waits")
        os.kill(pid, signal.SIGCONT)
        assert run.end(TIMEOUT_S) == 0, run.err
        assert run.out == alone(tmp_path, model, "-n", "1500")


# --- scripts ----------------------------------------------------------------------------------------------------------

OPEN = """
import os, signal, sys, threading, time
from pathlib import Path
from anthesis import LLM
from anthesis.errors import RankError

def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

def ranks():
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_text().split("\\0")
            if "ANTHESIS_TEST_RUN=" + os.environ["ANTHESIS_TEST_RUN"] in variables:
                if b"engine.serve" in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        except OSError:
            pass
    return found

def gone(within_s=5):
    end = time.monotonic() + within_s
    while ranks() or children():
        assert time.monotonic() < end, (ranks(), children())
        time.sleep(0.01)

prompts, model = [[5, 6, 7], [8, 9]], sys.argv[1]
def tokens(llm):
    return [completion.token_ids for completion in llm.generate(prompts, max_new_tokens=20, ignore_eos=True)]
"""


def check_script(directory: Path, model: Path, code: str, code_expected: int = 0) -> Ranks:
    with script(directory, OPEN + code, str(model)) as run:
        assert run.end(TIMEOUT_S) == code_expected, run.err
        assert run.logs() == run.named_logs()
        return run


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        pytest.param("llm = LLM(model, tp=2)\nassert len(ranks()) == 1\nllm.close()\ngone(0.1)", 0, id="close"),
        pytest.param("with LLM(model, tp=2) as llm:\n    tokens(llm)\ngone(0.1)", 0, id="with", marks=pytest.mark.slow),
        pytest.param("llm = LLM(model, tp=2)\ntokens(llm)", 0, id="not closed"),
        pytest.param("llm = LLM(model, pp=2)\ntokens(llm)", 0, id="stages not closed", marks=pytest.mark.slow),
        pytest.param("llm = LLM(model, tp=2)\ntokens(llm)\n1 / 0", 1, id="raises", marks=pytest.mark.slow),
        pytest.param("llm = LLM(model, tp=2)\ndel llm\ngone()\nprint('gone')", 0, id="dropped", marks=pytest.mark.slow),
        pytest.param("llm = LLM(model, tp=2)\ntokens(llm)\nos._exit(7)", 7, id="exits", marks=pytest.mark.slow),
    ],
)
def test_ranks_end_with_the_script(tmp_path: Path, model: Path, code: str, exit_code: int) -> None:
    run = check_script(tmp_path, model, code, exit_code)
    if exit_code != 1:
        assert run.err.count("\n") <= 1, run.err
    else:
        assert run.err.count("Traceback") == 1 and "ZeroDivisionError" in run.err


@pytest.mark.slow
def test_two_models_side_by_side(tmp_path: Path, model: Path) -> None:
    code = """
with LLM(model) as one:
    expected = tokens(one)
with LLM(model, tp=2) as first, LLM(model, tp=2) as second:
    assert len(ranks()) == 2
    assert tokens(first) == tokens(second) == tokens(first) == expected
    first.close()
    assert tokens(second) == expected
gone(0.1)
"""
    check_script(tmp_path, model, code)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp=2", "pp=2"])
def test_after_a_rank_was_killed(tmp_path: Path, model: Path, layout: str) -> None:
    code = f"""
with LLM(model) as one:
    expected = tokens(one)
llm = LLM(model, {layout})
assert tokens(llm) == expected
os.kill(ranks()[0], signal.SIGKILL)
for _ in range(2):
    begin = time.monotonic()
    try:
        tokens(llm)
        assert False
    except RankError as error:
        assert "rank 1 has ended: it was killed by SIGKILL; its log is " in str(error)
        print(error, file=sys.stderr)
    assert time.monotonic() - begin < 10
llm.close()
llm.close()
gone(0.1)
with LLM(model, {layout}) as llm:
    assert tokens(llm) == expected
gone(0.1)
"""
    check_script(tmp_path, model, code)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp=2", "pp=2"])
def test_interrupted_in_a_step(tmp_path: Path, model: Path, layout: str) -> None:
    """What comes afterwards is right: no rank is left in another step."""
    code = f"""
with LLM(model) as one:
    expected = tokens(one)
for after in (0.1, 0.1013, 0.1031):
    with LLM(model, {layout}) as llm:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            llm.generate([[5, 6, 7]], max_new_tokens=50000, ignore_eos=True)
            assert False
        except KeyboardInterrupt:
            pass
        assert tokens(llm) == expected
    gone(0.1)
"""
    check_script(tmp_path, model, code)


def test_interrupted_while_loading(tmp_path: Path, model: Path) -> None:
    """The other ranks may have loaded all or nothing."""
    code = """
def interrupt(loaded, total):
    raise KeyboardInterrupt
with LLM(model, tp=2, load=False) as llm:
    for on_weight in (interrupt, lambda loaded, total: None):
        try:
            llm.load(on_weight)
            assert False
        except KeyboardInterrupt:
            pass
        except RankError as error:
            print(error)
gone(0.1)
"""
    (line,) = check_script(tmp_path, model, code).out.splitlines()
    assert line == "what the ranks did together was broken off midway; open a new LLM"


@pytest.mark.slow
def test_programs_take_turns(tmp_path: Path, model: Path) -> None:
    """Greedy and sampling steps run different programs, which agree with all ranks on where the cache is."""
    code = """
import random
def mixed(llm, seed):
    rng, found = random.Random(seed), []
    for number in range(150):
        ids = [rng.randrange(3, 90) for _ in range(rng.choice([3, 3, 62, 80, 130]))]
        sampling = {"temperature": rng.choice([0, 1]), "max_new_tokens": rng.randrange(2, 12)}
        found.append(llm.submit(ids, seed=number, ignore_eos=True, **sampling))
        for _ in range(rng.choice([0, 0, 1, 2, 3, 15])):
            llm.step()
    while not all(handle.finished for handle in found):
        llm.step()
    return [handle.completion.token_ids for handle in found]
with LLM(model) as one, LLM(model, tp=2) as two:
    for seed in range(12):
        assert mixed(two, seed) == mixed(one, seed)
"""
    check_script(tmp_path, model, code)


def test_opened_in_a_thread_that_has_ended(tmp_path: Path, model: Path) -> None:
    code = """
opened = []
def open_model():
    opened.append(LLM(model, tp=2))
thread = threading.Thread(target=open_model)
thread.start()
thread.join()
expected = tokens(opened[0])
time.sleep(1)
assert tokens(opened[0]) == expected
opened[0].close()
gone(0.1)
"""
    check_script(tmp_path, model, code)


@pytest.mark.parametrize("layout", ["tp=2", pytest.param("pp=2", marks=pytest.mark.slow)])
def test_a_forked_process_leaves_the_ranks_alone(tmp_path: Path, model: Path, layout: str) -> None:
    code = f"""
with LLM(model, {layout}) as llm:
    expected = tokens(llm)
    child = os.fork()
    if child == 0:
        try:
            tokens(llm)
        except RankError as error:
            print(error)
        llm.close()
        os._exit(3)  # as multiprocessing does: PyTorch can not end its threads in a forked process
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert tokens(llm) == expected
gone(0.1)
"""
    (line,) = check_script(tmp_path, model, code).out.splitlines()
    assert line.startswith("this process was forked after the model was opened")


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"\xff\xff",
        b"1",
        b"[1, []]",
        b"[[], []]",
        b"[{}, 1]",
        b"[{}, [1]]",
        b"[{}, []], []",
        b'[{}, [["tokens", "|O", [1]]]]',
        b'[{}, [["tokens", "<i4", "x"]]]',
        b'[{}, [["tokens", "<i4", [-1]]]]',
        b'[{}, [["tokens", "<i4", [1e9]]]]',
        b'[{}, [["tokens", "<i4", [99999999999]]]]',
        b"[" * 100_000,
    ],
)
def test_what_is_no_message(text: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(struct.pack("<I", len(text)) + text)
        with pytest.raises(ClosedError, match="the other rank sent"):
            Connection(ours).receive()
        ours.close()


def test_without_pytorch(tmp_path: Path, model: Path) -> None:
    (tmp_path / "program.py").write_text("import sys\nsys.modules['torch'] = None\n" + RUN_CLI)
    run = [*command()[:1], str(tmp_path / "program.py"), "generate", str(model), "-p", "x", "--tp", "2"]
    with Ranks(tmp_path, run) as found:
        assert found.end(START_S) == 2
        assert found.err.count("\n") == 1 and "pip install 'anthesis[torch]'" in found.err
        assert (found.out, found.logs()) == ("", [])


def test_the_search_for_what_is_left_finds_it(tmp_path: Path, model: Path) -> None:
    with script(tmp_path, "import time\ntime.sleep(60)") as run:
        wait_until(lambda: processes(run.mark), 5, "it runs")
        with pytest.raises(AssertionError, match=f"has not ended within {END_S / 10:g}"):
            run.end(END_S / 10)
