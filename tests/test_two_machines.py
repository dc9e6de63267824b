"""One model over two machines (`machines.py`): the same tokens, what is shared where, and what happens on failures."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from command_line import command, succeed, tiny_model
from machines import Machine, NotAllowedError, Started, address, two_machines, wait_until
from text_model import text_model

pytestmark = pytest.mark.slow

PORT = "29500"
PEER_TIMEOUT_S = 5
SLACK_S = 6
"""What noticing and ending may take beyond that, on machines that are busy."""

LOST = "does not answer|No route to host|Network is unreachable"
SILENT = rf"its (machine|connection) .*({LOST})"

Machines = tuple[Machine, Machine]


@pytest.fixture
def machines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machines]:
    names = getattr(request, "param", ("one", "two"))
    with ExitStack() as stack:
        try:
            found = stack.enter_context(two_machines(tmp_path, names))
        except NotAllowedError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory, with text and room for texts that take long."""
    directory = tmp_path_factory.mktemp("models") / "model"
    return str(text_model(directory, num_hidden_layers=2, max_position_embeddings=60000))


def rank(machine: Machine, number: int, of: int, words: list[str], **variables: str) -> Started:
    """A rank without any launcher but the shell."""
    place = {"RANK": str(number), "WORLD_SIZE": str(of), "MASTER_ADDR": address(1), "MASTER_PORT": PORT}
    return machine.start(words, **place, **variables)


def both(machines: Machines, words: list[str], **variables: str) -> list[Started]:
    """A rank on each."""
    return [rank(machine, number, 2, words, **variables) for number, machine in enumerate(machines)]


def torchrun(machines: Machines, per_machine: int, arguments: list[str], *options: str, **variables: str):
    """What a user types on each."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(per_machine)]
    where = ["--master-addr", address(1), "--master-port", PORT, *options, "-m", "anthesis"]
    return [
        machine.start([*run, "--node-rank", str(node), *where, *arguments], **variables)
        for node, machine in enumerate(machines)
    ]


def succeeded(started: list[Started]) -> str:
    """What rank 0's machine printed; the others print nothing."""
    codes = [each.code() for each in started]
    assert codes == [0] * len(started), "\n".join(each.stderr for each in started)
    assert [each.stdout for each in started[1:]] == [""] * (len(started) - 1)
    return started[0].stdout


def failed(started: Started, within_s: float = 120) -> str:
    """The one line that a command said as it failed."""
    code = started.code(within_s)
    (line,) = started.said()
    assert code in (1, 2), (code, line)
    return line


def token_ids(document: str) -> list[list[int]]:
    return [completion["token_ids"] for completion in json.loads(document)["completions"]]


def generate(model: str, *more: str) -> list[str]:
    return ["generate", model, "--weights", "fp32", "--threads", "1", *more]


def forever(model: str, tp: int, pp: int = 1) -> list[str]:
    """Takes a minute, which no test waits for."""
    return generate(model, "-p", "the quick", "-n", "50000", "--ignore-eos", "--tp", str(tp), "--pp", str(pp))


# --- that it works ----------------------------------------------------------------------------------------------------


def test_the_machines_are_two_and_are_taken_away(tmp_path: Path, machines: Machines) -> None:
    seen = [machine.start(["sh", "-c", "hostname; ls /dev/shm | wc -l; ls /sys/class/net"]) for machine in machines]
    assert [each.code() for each in seen] == [0, 0]
    assert [each.stdout.split()[:2] for each in seen] == [["one", "0"], ["two", "0"]]
    (tmp_path / "more").mkdir()
    sleepers = []

    def fail_with_two_more() -> None:
        with two_machines(tmp_path / "more") as others:
            sleepers.extend(machine.start(["sleep", "1000"]) for machine in others)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_with_two_more()
    assert all(sleeper.code(10) != 0 for sleeper in sleepers)


LAYOUTS = [(2, 1, 1), (1, 2, 1), (2, 2, 2)]


@pytest.mark.parametrize(("tp", "pp", "per_machine"), LAYOUTS, ids=["tp 2", "pp 2", "tp 2 in each of pp 2"])
def test_the_same_tokens_under_torchrun(machines: Machines, model: str, tp: int, pp: int, per_machine: int) -> None:
    arguments = generate(model, "-p", "the quick", "-p", "a", "-n", "40", "--json")
    expected = token_ids(succeed(*arguments))
    assert len(expected) == 2 and len(expected[0]) == 40
    found = succeeded(torchrun(machines, per_machine, [*arguments, "--tp", str(tp), "--pp", str(pp)]))
    assert token_ids(found) == expected


WITHOUT = {
    "plain": [{"RANK": str(i), "WORLD_SIZE": "2", "MASTER_ADDR": address(1), "MASTER_PORT": PORT} for i in (0, 1)],
    "srun": [{"SLURM_PROCID": str(i), "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "node[1-2]"} for i in (0, 1)],
    "Indexed Job": [{"JOB_COMPLETION_INDEX": str(i), "WORLD_SIZE": "2", "MASTER_ADDR": "node1"} for i in (0, 1)],
}


@pytest.mark.parametrize("machines", [("node1", "node2")], indirect=True, ids=[""])
@pytest.mark.parametrize(
    ("launcher", "tp", "pp"), [("plain", 2, 1), ("plain", 1, 2), ("srun", 2, 1), ("Indexed Job", 2, 1)]
)
def test_the_same_tokens_by_variables(tmp_path: Path, machines: Machines, launcher: str, tp: int, pp: int) -> None:
    arguments = generate(tiny_model(tmp_path), "--prompt-ids", "5,17,80,33", "-n", "40", "--ignore-eos", "--json")
    expected = token_ids(succeed(*arguments))
    assert len(expected[0]) == 40
    words = command(*arguments, "--tp", str(tp), "--pp", str(pp))
    started = [machine.start(words, **place) for machine, place in zip(machines, WITHOUT[launcher], strict=True)]
    assert token_ids(succeeded(started)) == expected


def test_torchruns_own_meeting_place(machines: Machines, model: str) -> None:
    """Its other way to meet, in which it chooses ranks and ports itself."""
    arguments = generate(model, "-p", "the quick", "-n", "40", "--json")
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address(1)}:{PORT}", "--rdzv-id", "7"]
    started = []
    for number, machine in enumerate(machines, start=1):
        # it does not know that it is meant where a host's name leads to the machine itself
        own = ["--rdzv-conf", f"is_host={int(number == 1)}", "--local-addr", address(number)]
        started.append(machine.start([*run, *meet, *own, "-m", "anthesis", *arguments, "--tp", "2"]))
    assert [each.code() for each in started] == [0, 0], "\n".join(each.stderr for each in started)
    (printed,) = [each.stdout for each in started if each.stdout]
    assert token_ids(printed) == token_ids(succeed(*arguments))


# two names that are equal, and processes whose numbers may be
@pytest.mark.parametrize("machines", [("one", "two"), ("node", "node")], indirect=True, ids=["names", "equal names"])
def test_memory_is_shared_within_a_machine_and_never_between(machines: Machines, model: str) -> None:
    started = torchrun(machines, 2, forever(model, 2, 2))
    one, two = machines
    wait_until(lambda: bool(started[0].stdout))
    memories = [_exchange_memory(one.rank(0)), _exchange_memory(one.rank(1))]
    memories += [_exchange_memory(two.rank(2)), _exchange_memory(two.rank(3))]
    assert [len(memory) for memory in memories] == [1, 1, 1, 1]
    assert memories[0] == memories[1] != memories[2] == memories[3]


def test_nothing_is_shared_where_a_stage_is_on_two_machines(machines: Machines, model: str) -> None:
    started = both(machines, command(*forever(model, 2)))
    wait_until(lambda: bool(started[0].stdout))
    assert [_exchange_memory(machine.rank(number)) for number, machine in enumerate(machines)] == [set(), set()]


def _exchange_memory(process: int) -> set[str]:
    """The memory for exchanges that a process has mapped: its numbers."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {" ".join(line.split()[3:5]) for line in lines if "memfd:anthesis-exchange" in line}


def test_ranks_with_a_core_each_from_their_launcher_do_not_take_turns(machines: Machines, model: str) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("needs two cores")
    words = command(*generate(model, "-p", "a", "-n", "5", "--tp", "2"))
    started = [rank(machines[0], i, 2, ["taskset", "-c", str(core), *words]) for i, core in enumerate(cores)]
    succeeded(started)
    assert [each.said() for each in started] == [[], []]


def test_a_data_set_that_is_complete_is_not_done_again(tmp_path: Path, machines: Machines, model: str) -> None:
    """And one whose ranks were killed goes on by itself where torchrun starts them anew."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "the quick brown fox {i}"}}\n' for i in range(30)))
    complete = ["complete", model, str(rows), "--weights", "fp32", "--threads", "1", "-n", "300", "--batch", "2"]
    succeed(*complete, "-o", str(tmp_path / "expected.jsonl"))
    arguments = [*complete, "-o", str(tmp_path / "out.jsonl"), "--tp", "2"]
    out = tmp_path / "out.jsonl"
    started = torchrun(machines, 1, arguments, "--max-restarts", "1")
    wait_until(lambda: out.exists() and out.stat().st_size > 0)
    os.kill(machines[1].rank(1), signal.SIGKILL)
    succeeded(started)
    assert out.read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
    assert {session["ranks"] for session in json.loads(Path(f"{out}.summary.json").read_text())["sessions"]} == {2}
    before = out.stat().st_mtime_ns
    succeeded(torchrun(machines, 1, arguments))
    assert out.stat().st_mtime_ns == before


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)], ids=["tp 2", "pp 2"])
def test_the_cable_is_pulled_in_mid_run(machines: Machines, model: str, tp: int, pp: int) -> None:
    started = both(machines, command(*forever(model, tp, pp)), ANTHESIS_PEER_TIMEOUT_S=str(PEER_TIMEOUT_S))
    wait_until(lambda: len(started[0].stdout) > 50)
    machines[1].pull_cable()
    end = time.monotonic() + PEER_TIMEOUT_S + SLACK_S
    lines = [failed(each, end - time.monotonic()) for each in started]
    assert re.search(rf"rank 1 at {address(2)} is gone: {SILENT}", lines[0])
    assert re.search(LOST, lines[1])
    assert "Traceback" not in started[0].stderr + started[1].stderr


def test_the_cable_is_pulled_under_torchrun(machines: Machines, model: str) -> None:
    started = torchrun(machines, 2, forever(model, 2, 2), ANTHESIS_PEER_TIMEOUT_S=str(PEER_TIMEOUT_S))
    wait_until(lambda: len(started[0].stdout) > 50)
    machines[1].pull_cable()
    end = time.monotonic() + PEER_TIMEOUT_S + 2 * SLACK_S
    assert [each.code(end - time.monotonic()) for each in started] == [1, 1]
    assert [bool(re.search(LOST, each.stderr)) for each in started] == [True, True]


def test_the_cable_is_pulled_between_two_requests(machines: Machines, model: str, tmp_path: Path) -> None:
    script, go = tmp_path / "script.py", tmp_path / "go"
    script.write_text(
        "import pathlib, sys, time\n"
        "from anthesis import LLM\n"
        "with LLM(sys.argv[1], tp=2, weights='fp32', threads=1) as llm:\n"
        "    print(llm.generate(['the quick'], max_new_tokens=3)[0].token_ids, flush=True)\n"
        "    while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.05)\n"
        "    print(llm.generate(['the quick'], max_new_tokens=3)[0].token_ids, flush=True)\n"
    )
    words = [sys.executable, str(script), model, str(go)]
    zero, one = both(machines, words, ANTHESIS_PEER_TIMEOUT_S=str(PEER_TIMEOUT_S))
    wait_until(lambda: "\n" in zero.stdout)
    time.sleep(PEER_TIMEOUT_S + 1)  # longer than a machine may be silent: it answers, though nobody asks
    assert not one.has_ended()
    machines[1].pull_cable()
    line = failed(one, PEER_TIMEOUT_S + SLACK_S)
    assert re.match(f"anthesis: rank 1 ends: rank 0 is gone: {SILENT}", line)
    assert (one.stdout, zero.has_ended()) == ("", False)
    go.touch()
    assert zero.code(SLACK_S) == 1
    assert re.search(f"RankError: rank 1 at {address(2)} is gone: {SILENT}", zero.stderr.splitlines()[-1])


def test_a_rank_on_the_other_machine_is_killed(machines: Machines, model: str) -> None:
    started = torchrun(machines, 2, forever(model, 2, 2))
    wait_until(lambda: len(started[0].stdout) > 50)
    os.kill(machines[1].rank(3), signal.SIGKILL)
    assert [each.code(4 * SLACK_S) for each in started] == [1, 1]
    assert f"anthesis: rank 3 at {address(2)} is gone: its connection" in started[0].stderr
    assert "Signal 9 (SIGKILL)" in started[1].stderr  # torchrun says so


# --- what can be wrong from the beginning -----------------------------------------------------------------------------


def test_another_number_of_processes(machines: Machines, model: str) -> None:
    started = both(machines, command(*generate(model, "-p", "a", "--tp", "2", "--pp", "2")))
    message = "anthesis: the launcher started 2 processes, and tp 2 x pp 2 is 4 ranks; make the two equal"
    assert [failed(each, 30) for each in started] == [message, message]


def test_other_files_under_the_same_name(machines: Machines, model: str) -> None:
    for machine, scale in zip(machines, (1, 2), strict=True):
        text_model(machine.directory / "model", intermediate_size=64 * scale)
    zero, one = both(machines, command(*generate("model", "-p", "a", "--tp", "2")))
    line = "anthesis: rank 1 finds other files under the model's name than rank 0; copy the same ones"
    assert failed(zero) == line
    assert (one.code(), one.said()) == (0, [])  # it has done as rank 0 said


def test_rank_zero_fails_before_there_is_a_model(machines: Machines, model: str) -> None:
    machines[1].directory.joinpath("there").symlink_to(model)
    zero, one = both(machines, command(*generate("there", "-p", "a", "--tp", "2")))
    assert failed(zero).startswith("anthesis: there")
    assert (one.code(30), one.stdout) == (0, "")


@pytest.mark.parametrize("missing", [0, 1])
def test_a_rank_never_comes(machines: Machines, model: str, missing: int) -> None:
    words = command(*generate(model, "-p", "a", "--tp", "2"))
    there = 1 - missing
    started = rank(machines[there], there, 2, words, ANTHESIS_START_TIMEOUT_S="4")
    line = failed(started, 30)
    assert f"rank {missing} has not come within 4 s (ANTHESIS_START_TIMEOUT_S sets that)" in line


def test_the_port_is_in_use(machines: Machines, model: str) -> None:
    listen = f"import socket, time; s = socket.create_server(('', {PORT})); print(1, flush=True); time.sleep(1000)"
    other = machines[0].start([sys.executable, "-c", listen])
    wait_until(lambda: bool(other.stdout))
    zero, one = both(machines, command(*generate(model, "-p", "a", "--tp", "2")), ANTHESIS_START_TIMEOUT_S="6")
    assert f"can't offer a store at {address(1)}:{PORT}" in failed(zero, 30)
    assert "rank 0 has" in failed(one, 40)


def test_strangers_at_the_door_are_not_waited_for(machines: Machines, model: str) -> None:
    """Whoever looks for open ports: some say nothing, some speak of other things."""
    arguments = generate(model, "-p", "the quick", "-n", "5", "--json")
    zero = rank(machines[0], 0, 2, command(*arguments, "--tp", "2"))
    listening = machines[0].start(["sh", "-c", f"until ss -Hltn | grep -q :{PORT}; do sleep 0.1; done; ss -Hltn"])
    assert listening.code() == 0
    (port,) = {line.split()[3].rsplit(":")[-1] for line in listening.stdout.splitlines()} - {PORT}
    call = (
        "import socket, time\n"
        f"silent = socket.create_connection(({address(1)!r}, {port}))\n"
        f"other = socket.create_connection(({address(1)!r}, {port}))\n"
        "other.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n' * 9)\n"
        "print(1, flush=True)\n"
        "time.sleep(1000)\n"
    )
    stranger = machines[1].start([sys.executable, "-c", call])
    wait_until(lambda: bool(stranger.stdout))
    one = rank(machines[1], 1, 2, command(*arguments, "--tp", "2"))
    assert token_ids(succeeded([zero, one])) == token_ids(succeed(*arguments))
