"""PyTorch's process groups, for what does not go through memory that ranks share: other machines, other stages, cards.

The backend is all that differs between processors (gloo), NVIDIA cards (NCCL) and Gaudi (HCCL).
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anthesis.errors import AnthesisError, UnsupportedError, first_line
from anthesis.parallel.communicator import TIMEOUT_VARIABLE, peer_timeout_s
from anthesis.program.ir import Array

if TYPE_CHECKING:
    from anthesis.parallel.gaudi import LocalRank

PROCESSORS = "gloo"
"""The backend for the host's arrays."""

_OF_CARDS: Mapping[str, str] = {"cuda": "nccl", "hpu": "hccl"}


def _load_gaudi(ranks: LocalRank) -> None:
    from anthesis.parallel.gaudi import load_gaudi

    load_gaudi(ranks)


_LOADED_BY: Mapping[str, Callable[[LocalRank], None]] = {"hccl": _load_gaudi}
"""What has to be loaded before PyTorch has a backend, told which rank this is."""

_STEP = timedelta(days=1)
"""Longer than any step: a stage waits for as long as others compute, and who has ended is noticed elsewhere."""

_INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915


def backend_of(device: str) -> str:
    """The backend by which ranks on a device exchange.

    Args:
        device: its name, as in `--device`.
    """
    return _OF_CARDS.get(device, PROCESSORS)


class ProcessGroups:
    """One group of all ranks, and one of each stage.

    Args:
        size: ranks in all.
        host: where rank 0 is reached.
        port: of its store; None on rank 0, which chooses one.
        backend: "gloo" for processors, "nccl" for NVIDIA cards, "hccl" for Gaudi.
        ranks: which one this is, which Gaudi's software has to know before there is a backend.

    Raises:
        UnsupportedError: PyTorch is not installed, or lacks the backend; or this process uses its default group
            already.
        RequestError: variables of the environment that Gaudi's software reads can't be right.
    """

    def __init__(
        self, size: int, host: str, port: int | None, backend: str = PROCESSORS, ranks: LocalRank | None = None
    ) -> None:
        self._distributed = distributed = torch_distributed()
        load = _LOADED_BY.get(backend)
        if load is not None and ranks is not None:
            load(ranks)
        if not distributed.is_backend_available(backend):
            raise UnsupportedError(
                f"this PyTorch has no {backend}, by which ranks on such devices exchange; install a build that has"
            )
        self._card = card = next((device for device, of_card in _OF_CARDS.items() if of_card == backend), None)
        # what ranks choose, and the rows of stages, are arrays of the host on every device
        self._backend = backend if card is None else f"cpu:{PROCESSORS},{card}:{backend}"
        if distributed.is_initialized():
            raise UnsupportedError(
                "this process has a default group of torch.distributed already, and ranks on several machines need it; "
                "call torch.distributed.destroy_process_group() first, or run the model in a process of its own"
            )
        self._size = size
        self._sockets: set[int] = set()
        self._groups: list[Any] = []
        self._store = distributed.TCPStore(
            host, port or 0, is_master=port is None, wait_for_workers=False, timeout=timedelta(seconds=peer_timeout_s())
        )

    @property
    def port(self) -> int:
        """Of the store, on rank 0."""
        return int(self._store.port)

    def connect(self, teams: list[list[int]], rank: int, address: str) -> TorchCommunicator | None:
        """Joins all ranks; gives what this rank's stage exchanges by.

        Args:
            teams: the ranks of each stage, the same list on all ranks; empty where they have something better.
            rank: this one.
            address: of this machine, as the others reach it.

        Returns:
            None where the stage has something better, or one rank only.

        Raises:
            AnthesisError: another rank does not answer.
        """
        if _INTERFACE_VARIABLE not in os.environ and (interface := _interface(address)):
            os.environ[_INTERFACE_VARIABLE] = interface  # else it is that of the host's name, which may lead anywhere
        before = _connections()
        try:
            self._distributed.init_process_group(
                self._backend, store=self._store, rank=rank, world_size=self._size, timeout=_STEP
            )
            self._groups = groups = [self._distributed.new_group(team, timeout=_STEP) for team in teams]
        except RuntimeError as error:
            raise no_answer(error) from error
        self._sockets = set(_connections()) - set(before)
        own = next((i for i, team in enumerate(teams) if rank in team and len(team) > 1), None)
        return None if own is None else TorchCommunicator(groups[own], teams[own].index(rank), len(teams[own]))

    def send(self, x: NDArray[np.float32], to: int) -> None:
        """Sends rows (R, E) float32 to another rank.

        Raises:
            AnthesisError: it does not answer.
        """
        try:
            self._distributed.send(_tensor(x), to)
        except RuntimeError as error:
            raise no_answer(error) from error

    def receive(self, into: NDArray[np.float32], source: int) -> None:
        """Receives what another rank sends into an array of the same shape, (R, E) float32.

        Raises:
            AnthesisError: it does not answer.
        """
        try:
            self._distributed.recv(_tensor(into), source)
        except RuntimeError as error:
            raise no_answer(error) from error

    def fail(self) -> None:
        """Makes exchanges fail, those in progress too, by any thread: who waits in one can't be told in another way."""
        for inode, fd in _connections().items():
            if inode in self._sockets:
                with suppress(OSError), socket.socket(fileno=os.dup(fd)) as found:
                    found.shutdown(socket.SHUT_RDWR)
        if self._card is None:
            return
        import torch

        def abort(group: Any) -> None:
            with suppress(RuntimeError, AttributeError, ValueError):  # this rank is not in it; it has no abort
                group._get_backend(torch.device(self._card)).abort()

        # An exchange of cards waits on the card, where no socket is looked at. Kernels end at once; the call returns
        # when no captured graph uses the group any more, which nobody here can wait for.
        for group in self._groups:
            threading.Thread(target=abort, args=(group,), name="anthesis-abort", daemon=True).start()

    def close(self) -> None:
        """Leaves the groups."""
        if self._distributed.is_initialized():
            self._distributed.destroy_process_group()


class TorchCommunicator:
    """Exchanges through a process group of PyTorch.

    Sums of the host's arrays are added in rank order by each rank for itself, so that they have the bits that shared
    memory gives: a library's reduction adds in an order of its own, which changes with its version and with the number
    of bytes. Sums of a card's tensors are left to its library, which can be captured in a graph.

    Args:
        group: PyTorch's, of the ranks of a stage.
        rank: this one's number in it.
        size: ranks W.
    """

    def __init__(self, group: Any, rank: int, size: int) -> None:
        self._group, self.rank, self.size = group, rank, size
        self._distributed = distributed = torch_distributed()
        # PyTorch 2.13 has given it another name
        self._gather_tensors = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor

    def all_reduce(self, x: Any) -> None:
        """See `Communicator.all_reduce`; `x` (N,) float32, an array, or a tensor of any shape on the group's device.

        Raises:
            AnthesisError: another rank does not answer.
        """
        if isinstance(x, np.ndarray):
            x[...] = reduce(np.add, self._gather(x))
            return
        try:
            self._distributed.all_reduce(x, group=self._group)
        except RuntimeError as error:
            raise no_answer(error) from error

    def all_gather(self, mine: NDArray[np.uint8]) -> list[bytes]:
        """See `Communicator.all_gather`; `mine` (N,) uint8.

        Raises:
            AnthesisError: another rank does not answer.
        """
        sizes = [int(size[0]) for size in self._gather(np.array([mine.size], np.int64))]
        padded = np.zeros(max(sizes), np.uint8)
        padded[: mine.size] = mine
        return [part[:size].tobytes() for part, size in zip(self._gather(padded), sizes, strict=True)]

    def gather_tensors(self, mine: Any) -> Any:
        """What each rank brings, in rank order: a tensor of a card, of any shape and dtype, gives (W, ...).

        Raises:
            AnthesisError: another rank does not answer.
        """
        gathered = mine.new_empty(self.size * mine.numel())  # in one dimension, on which all libraries agree
        try:
            self._gather_tensors(gathered, mine.reshape(-1), group=self._group)
        except RuntimeError as error:
            raise no_answer(error) from error
        return gathered.view(self.size, *mine.shape)

    def _gather(self, mine: Array) -> list[Array]:
        parts = [np.empty_like(mine) for _ in range(self.size)]
        try:
            self._distributed.all_gather([_tensor(part) for part in parts], _tensor(mine), group=self._group)
        except RuntimeError as error:
            raise no_answer(error) from error
        return parts


def torch_distributed() -> Any:
    """PyTorch's distributed package.

    Raises:
        UnsupportedError: it is not installed.
    """
    # its C++ parts warn of names that have no reverse look-up, and show their stack where a connection ends
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        import torch.distributed
    except ImportError as error:
        raise UnsupportedError(
            "several ranks need PyTorch, which starts them and joins machines; install the extra: "
            "pip install 'anthesis[torch]'"
        ) from error
    return torch.distributed


class NoAnswerError(AnthesisError):
    """An exchange with another machine has failed; the rank that did not answer knows more, if it still runs."""


def no_answer(error: Exception) -> NoAnswerError:
    """What a failed exchange with another machine is told as."""
    return NoAnswerError(
        f"another rank has ended, or its machine does not answer for {peer_timeout_s():g} s "
        f"({TIMEOUT_VARIABLE} sets that): {first_line(error)}"
    )


def _connections() -> dict[int, int]:
    """The TCP connections of this process: by inode a file descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile, or no socket
            status = os.stat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    is_tcp = one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM
                    if is_tcp and not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        found[status.st_ino] = int(name)
    return found


def _interface(address: str) -> str | None:
    """The name of the network interface with this IPv4 address, or None.

    Source:
        Linux, netdevice(7), SIOCGIFADDR.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


def _tensor(array: Array) -> Any:
    import torch

    return torch.from_numpy(array)
