"""Where a worker begins, and into how many shards the rows are dealt, by the variables of its launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anthesis.dataset.launcher import Place, automatic_shards, launched_place
from anthesis.dataset.shard_set import ShardSet
from anthesis.errors import RequestError
from command_line import anthesis
from completing import arguments, fail_last, write_rows
from text_model import text_model

ARRAY = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7"}
TASK = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, None),
        ({"RANK": "3"}, None),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Place("torchrun", 3, 8)),
        (TASK, Place("Slurm", 2, 3)),
        ({**TASK, "RANK": "0", "WORLD_SIZE": "1"}, Place("torchrun", 0, 1)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "1"}, Place("Slurm", 0, 4)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "5"}, Place("Slurm", 2, 4)),
        ({**ARRAY, **TASK, "SLURM_ARRAY_TASK_ID": "7"}, Place("Slurm", 3 * 3 + 2, 12)),
        ({"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "1"}, Place("Slurm", 0, 1)),
        ({"JOB_COMPLETION_INDEX": "6"}, Place("Kubernetes", 6, None)),
    ],
)
def test_places(variables: dict[str, str], place: Place | None) -> None:
    assert launched_place(variables) == place


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x', which is no whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is -1 and WORLD_SIZE is"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE is 2"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "8"}, "SLURM_ARRAY_TASK_ID is 8, and the array has 4 tasks from 1 to 7"),
        ({"JOB_COMPLETION_INDEX": "9" * 30}, "JOB_COMPLETION_INDEX is '9999"),
    ],
)
def test_variables_that_make_no_sense_are_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        launched_place(variables)


def test_workers_begin_far_from_each_other() -> None:
    for world, num_shards in ((1, 5), (4, 16), (5, 7), (8, 8), (7, 3)):
        firsts = [Place("torchrun", rank, world).first_shard(num_shards) for rank in range(world)]
        assert len(set(firsts)) == min(world, num_shards)
        assert set(firsts) <= set(range(num_shards))
    assert [Place("Kubernetes", rank, None).first_shard(3) for rank in range(5)] == [0, 1, 2, 0, 1]


def test_a_launched_worker_begins_at_its_place(tmp_path: Path) -> None:
    model = str(text_model(tmp_path / "tiny"))
    data, output = write_rows(tmp_path / "data.jsonl", 16), tmp_path / "out.jsonl"
    run = arguments(model, data, output, "--num-shards", "auto")
    said = anthesis(*run, RANK="1", WORLD_SIZE="2").stderr
    assert "complete: shard 4, 0 of 8 finished\n" in said
    shards = ShardSet(output)
    assert all(state.is_finished for state in shards.states(8))
    found = shards.read()
    assert found is not None
    assert found.num_shards == 8
    # what is there goes on, whoever goes on with it
    assert anthesis(*run, RANK="1", WORLD_SIZE="5").returncode == 0
    other = arguments(model, data, tmp_path / "b.jsonl", "--num-shards", "auto")
    assert "Kubernetes is not known to say so; give a number" in fail_last(*other, JOB_COMPLETION_INDEX="1")
    with pytest.raises(RequestError, match="no launcher is known"):
        automatic_shards(None)


def test_torchrun_starts_workers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = str(text_model(tmp_path / "tiny"))
    data, output = write_rows(tmp_path / "data.jsonl", 40), tmp_path / "out.jsonl"
    run = arguments(model, data, output, "--num-shards", "auto")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--module", "anthesis", *run]
    result = subprocess.run(
        launch, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert all(state.is_finished for state in ShardSet(output).states(8))
    assert result.stderr.count("this worker: ") == 2
