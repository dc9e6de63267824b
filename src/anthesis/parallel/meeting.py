"""How ranks that a launcher has started find rank 0: through the launcher's store, on one machine or several."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

from anthesis.errors import RankError, RequestError
from anthesis.parallel.communicator import peer_timeout_s, torch_distributed
from anthesis.parallel.connection import Connection
from anthesis.parallel.layout import Layout
from anthesis.parallel.shared_memory import connect_locally
from anthesis.parallel.variables import Launched

START_S = 120.0
"""Ranks that have not come by then have failed to start: most of it is for machines that begin one after the other."""

_KEY = "anthesis/rank-0"


def check_launched(environment: Launched, layout: Layout) -> None:
    """Checks that a launcher's processes are the ranks of this model.

    Raises:
        RequestError: they are another number, or have served another model before, and ended with it.
    """
    if environment.size != layout.size:
        raise RequestError(
            f"the launcher started {environment.size} processes, and {layout} is {layout.size} ranks; "
            "make the two equal"
        )
    if _STORES:
        raise RequestError(
            "the ranks that the launcher started ended with their first model; a second needs a new launch"
        )


def offer_meeting(environment: Launched, name: str, port: int) -> None:
    """Tells the other ranks, through the store, how to reach rank 0: on its machine, and from others."""
    store = _store(environment, environment.rank == 0)
    store.set(_KEY, f"{name} {environment.host} {port}")
    _STORES.append(store)


def find_rank_zero(environment: Launched) -> tuple[Connection, str]:
    """Connects to rank 0; gives also the token by which it knows its own.

    Raises:
        RankError: it is not to be found.
    """
    try:
        store = _store(environment, False)
        name, host, port = store.get(_KEY).decode().split(" ")
    except RuntimeError as error:
        raise RankError(
            f"rank 0 did not come to {environment.host}:{environment.port} within {START_S:g} s: "
            f"{str(error).splitlines()[0]:.200}"
        ) from error
    connected = connect_locally(name)
    if connected is None:
        try:
            connected = socket.create_connection((host, int(port)), timeout=peer_timeout_s())
        except OSError as error:
            raise RankError(f"rank 0 can't be reached at {host}:{port}: {error.strerror or error}") from error
        connected.settimeout(None)
    return Connection(connected), name


_STORES: list[Any] = []
"""The store by which this process met other ranks; where it offers it, it has to do so as long as it runs."""


def _store(environment: Launched, is_first: bool) -> Any:
    distributed = torch_distributed()
    offers = is_first and not environment.launcher_has_store
    return distributed.TCPStore(
        environment.host,
        environment.port,
        is_master=offers,
        wait_for_workers=False,
        timeout=timedelta(seconds=START_S),
    )
