"""What a launcher tells each of the processes that it has started, in environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from anthesis.errors import RequestError

DEFAULT_PORT = 29500
"""torchrun's."""

_ATTEMPT = "TORCHELASTIC_RESTART_COUNT"


@dataclass(frozen=True)
class Launched:
    """This process among those that a launcher started.

    Attributes:
        rank: its number.
        size: how many there are.
        host: of rank 0.
        port: on which rank 0, or the launcher, offers a store where ranks find each other.
        launcher_has_store: the launcher offers it.
        attempt: how often the launcher has started them before; what an earlier start left in its store is not meant.
    """

    rank: int
    size: int
    host: str
    port: int
    launcher_has_store: bool
    attempt: int = 0


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """What torchrun, Slurm or a Kubernetes job says; None where this process was started by itself.

    torchrun and Kubeflow's PyTorchJob set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Slurm's srun sets
    SLURM_PROCID, SLURM_STEP_NUM_TASKS and the list of hosts, of which the first has rank 0. An Indexed Job of
    Kubernetes sets JOB_COMPLETION_INDEX; WORLD_SIZE and MASTER_ADDR have to be added to its template.

    Raises:
        RequestError: variables that contradict each other, or one that is missing beside the others.
    """
    found = rank_and_size(environment)
    if found is None or found[2] == 1:
        return None
    _, rank, size = found
    host = environment.get("MASTER_ADDR") or _first_host(environment)
    if not host:
        raise RequestError("MASTER_ADDR is not set, so it is unknown where rank 0 is; set it to that machine's address")
    port = _number(environment, "MASTER_PORT") if environment.get("MASTER_PORT") else DEFAULT_PORT
    if not 0 < port < 65536:
        raise RequestError(f"MASTER_PORT is {port}; ports are from 1 to 65535")
    has_store = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = _number(environment, _ATTEMPT) if _ATTEMPT in environment else 0
    return Launched(rank, size, host, port, has_store, attempt)


def rank_and_size(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """The launcher's name, which process this is, and of how many; None where it was started by itself.

    Raises:
        RequestError: variables that contradict each other, or one that is missing beside the others.
    """
    if "WORLD_SIZE" in environment:
        names = {"RANK": "torchrun", "JOB_COMPLETION_INDEX": "Kubernetes"}
        rank_name = next((name for name in names if name in environment), None)
        if rank_name is None:
            raise RequestError(
                "WORLD_SIZE is set, and neither RANK nor JOB_COMPLETION_INDEX says which of them this is"
            )
        launcher, size_name = names[rank_name], "WORLD_SIZE"
    elif "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        # SLURM_NTASKS is also set where srun is not used
        launcher, rank_name, size_name = "Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"
    else:
        return None
    rank, size = _number(environment, rank_name), _number(environment, size_name)
    if not 0 <= rank < size:
        raise RequestError(f"{rank_name} is {rank} and {size_name} is {size}; ranks are from 0 to {size - 1}")
    return launcher, rank, size


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise RequestError(f"{name} is {environment[name]!r:.60}, which is no whole number") from None


def _first_host(environment: Mapping[str, str]) -> str | None:
    """The first of Slurm's hosts: "node[03-05,9],other" begins with node03."""
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or ""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    return None if found is None else re.sub(r"\[(\d+)[^\]]*\]", r"\1", found[0])
