"""The same workers as a pool of actors on Ray, for those who have a cluster: a Ray Data set of the shards' numbers.

Ray starts the workers and starts anew those that die, on any machine; who has which shard is settled by the claims on
the shared storage, as it is without Ray. So a shard that was begun goes on where it was.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anthesis.dataset.launcher import SHARDS_PER_WORKER
from anthesis.dataset.merge import Merged, merge
from anthesis.dataset.read import open_dataset
from anthesis.dataset.request import Request
from anthesis.dataset.shard_set import ShardSet
from anthesis.dataset.worker import Worker
from anthesis.errors import AnthesisError, RequestError, UnsupportedError, check_counts, first_line
from anthesis.llm import LLM, LOOKUP

ADDRESS_VARIABLE = "RAY_ADDRESS"
CONNECT_S = 10.0
_OUR_VARIABLES = "ANTHESIS_"
_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""https://docs.ray.io/en/latest/ray-security/token-auth.html"""


@dataclass(frozen=True, kw_only=True)
class RayJob:
    """What each actor is told.

    Attributes:
        request: what to do with each row.
        rows: the arguments of `open_dataset`.
        output: what the shards become.
        opening: the arguments of `LLM`.
        num_shards: None: as many as there are, or four for each actor.
        command: that asks for it, for the summaries; or None.
    """

    request: Request
    rows: dict[str, Any]
    output: Path
    opening: dict[str, Any]
    num_shards: int | None
    command: str | None = None

    def elsewhere(self) -> RayJob:
        """The same for a process that is started in another directory."""
        files = ["model", "adapter", *(["speculate"] if self.opening.get("speculate") != LOOKUP else [])]
        return replace(
            self,
            output=self.output.absolute(),
            rows={**self.rows, "name": _absolute(self.rows["name"])},
            opening={**self.opening, **{name: _absolute(self.opening.get(name)) for name in files}},
        )

    def open_worker(self) -> Worker:
        """A worker with the model open.

        Raises:
            RequestError: as `Worker`, and as `open_dataset`.
        """
        assert self.num_shards is not None
        return Worker(
            self.request,
            open_dataset(**self.rows),
            self.output,
            lambda: LLM(**self.opening, load=False),
            num_shards=self.num_shards,
            threads=self.opening.get("threads"),
            command=self.command,
        )


class ShardActor:
    """A worker in a process that Ray starts, and starts anew if it dies.

    Args:
        job: what to do.
    """

    def __init__(self, job: RayJob) -> None:
        self._worker = job.open_worker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Completes shards, and gives their numbers back.

        Args:
            batch: "shard": their numbers.

        Raises:
            AnthesisError: as `Worker.complete_shard`.
        """
        for shard in batch["shard"]:
            self._worker.complete_shard(int(shard), wait=True)
        return batch


def complete_by_ray(
    job: RayJob,
    workers: int | None = None,
    on_shard: Callable[[int, int, int], None] = lambda shard, finished, of: None,
) -> Merged:
    """Completes all shards by a pool of actors, and merges them.

    The cluster is the one that RAY_ADDRESS names; without it Ray is started on this machine, and ended afterwards.

    Args:
        job: what to do; its files must have the same names on all machines.
        workers: actors; None: one for each machine of the cluster.
        on_shard: told when a shard is finished, with the number of those that are and of all.

    Raises:
        UnsupportedError: the extra `ray` is not installed.
        RequestError: as `Worker`; no such cluster, or too small a one.
        AnthesisError: an actor's error, or Ray's.
    """
    check_counts(workers=workers)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UnsupportedError(f"--engine ray needs the extra ray ({error}): pip install 'anthesis[ray]'") from error
    job = job.elsewhere()
    with _connected(ray):
        machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        workers = len(machines) if workers is None else workers
        begun = ShardSet(job.output).read()
        total = job.num_shards
        if total is None:
            total = SHARDS_PER_WORKER * workers if begun is None else begun.num_shards
        job = replace(job, num_shards=total)
        with job.open_worker() as first:  # makes the directory, or says what is wrong before a pool is started
            left = [state.shard for state in first.shards.states(total) if not state.is_finished]
        ranks = job.opening["tp"] * job.opening["pp"]
        cores = [int(node["Resources"]["CPU"]) // ranks for node in machines]
        threads = _cores_each(cores, workers, job.opening["threads"])
        job = replace(job, opening={**job.opening, "threads": threads})
        finished = total - len(left)
        for shard in _run(ray, job, left, min(workers, max(1, len(left))), threads * ranks):
            finished += 1
            on_shard(shard, finished, total)
    return merge(job.output)


def _run(ray: Any, job: RayJob, shards: list[int], workers: int, cores: int) -> Iterator[int]:
    """The shards' numbers as they are finished."""
    if not shards:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a shard takes as long as it takes
    # a block for each shard, one at a time for each actor: an actor that dies costs what it was at and no more
    numbers = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    done = numbers.map_batches(
        ShardActor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=cores,
    )
    try:
        for row in done.iter_rows():
            yield int(row["shard"])
    except ray.exceptions.RayError as error:
        raise _cause(error) from error


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """A cluster to work on, which is left as it was found."""
    if ray.is_initialized():  # by the program that calls this
        yield
        return
    address = os.environ.get(ADDRESS_VARIABLE)
    ours = {name: value for name, value in os.environ.items() if name.startswith(_OUR_VARIABLES)}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with _variables({} if address else _of_a_cluster_of_our_own()):
        try:
            if address:
                _check_reachable(address)
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": ours},
                **({} if address else {"include_dashboard": False}),
            )
        except (OSError, ValueError, RuntimeError) as error:
            where = f"{ADDRESS_VARIABLE}={address}" if address else "this machine"
            raise RequestError(f"Ray can't be used at {where}: {first_line(error)}") from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray takes it, and ends with another code
            yield
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuses an address at which nobody is, on which Ray itself would spend minutes.

    Raises:
        OSError: nobody is there.
    """
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()


def _of_a_cluster_of_our_own() -> dict[str, str]:
    """Variables of Ray for a cluster that lives as long as this run, where they are not set."""
    variables = {"RAY_USAGE_STATS_ENABLED": "0"}  # nothing is told to anybody
    if not any(name in os.environ for name in _TOKEN_VARIABLES):
        # Else Ray makes a token in the user's home, which clusters that are started later then ask for.
        variables["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return {name: value for name, value in variables.items() if name not in os.environ}


@contextmanager
def _variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment for as long as the context."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)


def _cores_each(machines: list[int], workers: int, threads: int | None) -> int:
    """How many threads an actor's ranks have each, for each of which it is given a core.

    Args:
        machines: cores of each for one rank of each of its actors.
        workers: actors.
        threads: asked for, or None.

    Raises:
        RequestError: there are not as many.
    """
    if threads is None:
        threads = max((n for n in range(1, max(machines, default=0) + 1) if _places(machines, n) >= workers), default=1)
    if _places(machines, threads) < workers:
        raise RequestError(
            f"the cluster's machines have {', '.join(map(str, machines)) or 'no'} cores, too few for {workers} workers "
            f"of {threads} threads; give fewer --workers or --threads"
        )
    return threads


def _places(machines: list[int], cores: int) -> int:
    return sum(machine // cores for machine in machines)


def _cause(error: Any) -> AnthesisError:
    """What went wrong in an actor, as it would be said without Ray."""
    seen: Any = error
    while seen is not None:
        if isinstance(seen, AnthesisError) and type(seen).__module__ == AnthesisError.__module__:
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return AnthesisError(f"Ray: {first_line(error)}")


def _absolute(name: Any) -> Any:
    """A path from anywhere; other names as they are."""
    return str(Path(name).expanduser().absolute()) if name is not None and Path(name).expanduser().exists() else name
