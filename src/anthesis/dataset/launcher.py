"""Which of how many workers this process is, as the variables of its launcher say: torchrun, Slurm, Kubernetes.

They are read as for the ranks of one model (`parallel/variables.py`), and besides those of job arrays, whose jobs know
nothing of each other, and of Indexed Jobs that don't say how large they are.

Source:
    https://slurm.schedmd.com/job_array.html (SLURM_ARRAY_TASK_...);
    https://kubernetes.io/docs/concepts/workloads/controllers/job/ (JOB_COMPLETION_INDEX).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from anthesis.errors import RequestError
from anthesis.parallel.variables import rank_and_size

_ARRAY = {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"}

SHARDS_PER_WORKER = 4
"""Several, so that quick workers and those that come later find something to do, and the last shard is a short wait."""


@dataclass(frozen=True)
class Place:
    """A process among those that its launcher started.

    Attributes:
        launcher: what people call it.
        rank: from 0.
        world: how many there are; None where the launcher does not say.
    """

    launcher: str
    rank: int
    world: int | None

    def first_shard(self, num_shards: int) -> int:
        """Where to begin, so that the workers of one launcher begin as far from each other as they can."""
        if self.world is None:
            return self.rank % num_shards
        return self.rank * num_shards // self.world


def launched_place(variables: Mapping[str, str] | None = None) -> Place | None:
    """This process's place, or None if no launcher is known to have started it.

    Args:
        variables: of the environment; None: this process's.

    Raises:
        RequestError: variables that contradict each other or are no numbers.
    """
    found = os.environ if variables is None else variables
    among = rank_and_size(found)
    task = None if among is None else Place(*among)
    if (task is None or task.launcher == "Slurm") and _ARRAY.issubset(found):
        return _in_array(found, task)
    if task is None and "JOB_COMPLETION_INDEX" in found:
        return Place("Kubernetes", _number(found, "JOB_COMPLETION_INDEX"), None)
    return task


def automatic_shards(place: Place | None) -> int:
    """How many shards `--num-shards auto` begins with: four for each worker.

    Raises:
        RequestError: nobody says how many workers there are.
    """
    if place is None or place.world is None:
        who = "no launcher is" if place is None else f"{place.launcher} is not"
        raise RequestError(
            f"--num-shards auto needs to know how many workers there are, and {who} known to say so; give a number, "
            f"some {SHARDS_PER_WORKER} for each worker"
        )
    return SHARDS_PER_WORKER * place.world


def _in_array(found: Mapping[str, str], task: Place | None) -> Place:
    """A task of a job array, whose indices may begin anywhere and leave some out; each job may have several tasks."""
    job, jobs = _number(found, "SLURM_ARRAY_TASK_ID"), _number(found, "SLURM_ARRAY_TASK_COUNT")
    first, last = (_number(found, f"SLURM_ARRAY_TASK_{name}", job) for name in ("MIN", "MAX"))
    if not first <= job <= last or jobs < 1:
        raise RequestError(
            f"SLURM_ARRAY_TASK_ID is {job}, and the array has {jobs} tasks from {first} to {last}; unset these "
            "variables, or mend them"
        )
    # even where indices were left out, no two are as near to each other as to share a place, but for rounding
    index = (job - first) * (jobs - 1) // max(1, last - first)
    if task is None or task.world is None:
        return Place("Slurm", index, jobs)
    return Place("Slurm", index * task.world + task.rank, jobs * task.world)


def _number(found: Mapping[str, str], name: str, otherwise: int = 0) -> int:
    text = found.get(name, str(otherwise))
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RequestError(f"{name} is {text!r:.60}, which is not a whole number from 0; unset it, or mend it")
    return int(text)
