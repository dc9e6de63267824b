"""What launchers say in environment variables, and which rank of how many that makes of a process.

The variables are those of torchrun (PyTorch, Torchrun docs), of srun and sbatch (their manual pages, output
environment variables), of Indexed Jobs (Kubernetes docs, Job) and of PyTorchJob (Kubeflow).
"""

from __future__ import annotations

import pytest

from anthesis.errors import RequestError
from anthesis.parallel.variables import Launched, launched

TORCHRUN = {
    "LOCAL_RANK": "1",
    "RANK": "3",
    "GROUP_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29511",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
BATCH = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "node[03-04]",
    "SLURM_NODELIST": "node[03-04]",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
SRUN = {
    **BATCH,
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[03-04]",
}
INDEXED_JOB = {"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "anthesis-0.anthesis"}
PYTORCH_JOB = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "anthesis-master-0",
    "MASTER_PORT": "23456",
    "PET_NNODES": "2",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, Launched(3, 4, "10.0.0.1", 29511, True)),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}, Launched(3, 4, "10.0.0.1", 29511, True, 2)),
        ({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "False"}, Launched(3, 4, "10.0.0.1", 29511, False)),
        (SRUN, Launched(2, 4, "node03", 29500, False)),
        ({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "30077"}, Launched(2, 4, "10.0.0.1", 30077, False)),
        (INDEXED_JOB, Launched(1, 2, "anthesis-0.anthesis", 29500, False)),
        (PYTORCH_JOB, Launched(1, 2, "anthesis-master-0", 23456, False)),
    ],
    ids=["torchrun", "torchrun again", "torchrun, own store", "srun", "srun, address", "Indexed Job", "PyTorchJob"],
)
def test_of_each_launcher(environment, expected):
    assert launched(environment) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[03-05,9],other", "node03"),
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu-node[7]", "gpu-node7"),
        ("rack[1-2]node[08-09]", "rack1node08"),
        ("node[1-2]-ib,login", "node1-ib"),
        ("10-0-0-[12-13]", "10-0-0-12"),
    ],
)
def test_the_first_of_slurms_nodes(nodes, first):
    """As `scontrol show hostnames` expands them."""
    found = launched({**SRUN, "SLURM_STEP_NODELIST": nodes})
    assert found is not None
    assert found.host == first


def test_the_nodes_of_a_step_come_before_those_of_its_job():
    found = launched({**SRUN, "SLURM_STEP_NODELIST": "node04"})
    assert found is not None
    assert found.host == "node04"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH,
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"},
        {"RANK": "1"},
        {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
        {"JOB_COMPLETION_INDEX": "3"},
    ],
    ids=["nothing", "sbatch without srun", "srun of one", "torchrun of one", "a RANK", "an address", "shards"],
)
def test_not_launched_for_one_model(environment):
    assert launched(environment) is None


@pytest.mark.parametrize("index", ["0", "1"])
def test_torchrun_within_another_launcher_is_what_counts(index):
    assert launched({**SRUN, **TORCHRUN}) == launched(TORCHRUN)
    assert launched({**INDEXED_JOB, **TORCHRUN, "JOB_COMPLETION_INDEX": index}) == launched(TORCHRUN)


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**TORCHRUN, "RANK": "4"}, "RANK is 4 and WORLD_SIZE is 4; ranks are from 0 to 3"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK is -1"),
        ({**TORCHRUN, "RANK": "one"}, "RANK is 'one', which is no whole number"),
        ({**TORCHRUN, "WORLD_SIZE": ""}, "WORLD_SIZE is '', which is no whole number"),
        ({**TORCHRUN, "WORLD_SIZE": "-4"}, "WORLD_SIZE is -4"),
        (without(TORCHRUN, "RANK"), "neither RANK nor JOB_COMPLETION_INDEX"),
        (without(TORCHRUN, "MASTER_ADDR"), "MASTER_ADDR is not set"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "MASTER_PORT is 'http', which is no whole number"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT is 70000; ports are from 1 to 65535"),
        ({**INDEXED_JOB, "JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX is 2 and WORLD_SIZE is 2"),
        (without(INDEXED_JOB, "MASTER_ADDR"), "MASTER_ADDR is not set"),
        ({**SRUN, "SLURM_PROCID": "4"}, "SLURM_PROCID is 4 and SLURM_STEP_NUM_TASKS is 4"),
        (without(SRUN, "SLURM_STEP_NODELIST", "SLURM_NODELIST"), "MASTER_ADDR is not set"),
    ],
)
def test_contradictions(environment, message):
    with pytest.raises(RequestError, match=message):
        launched(environment)
