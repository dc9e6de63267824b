"""A shard that is this process's alone, for as long as it gives signs of life."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from anthesis.dataset.holder import SIGNS, give_sign, give_up
from anthesis.errors import ClaimError


class Claim:
    """Gives signs of life from a thread of its own until it is left, as a context manager.

    Left in any way but with `is_finished`, it is given up: others need not wait for the lease.

    Args:
        shard: its number.
        generation: how many processes have held it, this one included.
        path: of the claim's file, which this process made.
        ends: files whose being there says that the shard is no longer this process's, and how that came about.
        lease_s: promised in the claim.

    Attributes:
        shard, generation, path: as given.
        is_finished: the shard is whole, and nobody will claim it again.
    """

    def __init__(self, shard: int, generation: int, path: Path, ends: Mapping[Path, str], lease_s: float) -> None:
        self.shard, self.generation, self.path = shard, generation, path
        self.is_finished = False
        self._ends, self._every_s = ends, lease_s / SIGNS
        self._lost: str | None = None
        self._signed_s = time.monotonic()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._sign, name=f"claim of shard {shard}", daemon=True)

    def check(self) -> None:
        """Makes sure that the shard is still this process's.

        Raises:
            ClaimError: it is another one's, because this process was stopped for a while, or it is gone.
        """
        if time.monotonic() - self._signed_s > 2 * self._every_s:  # the thread was stopped as well
            self._look()
        if self._lost is not None:
            raise ClaimError(self._lost)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        if not self.is_finished:
            with suppress(OSError):  # gone, or the storage does not answer: the lease ends by itself
                give_up(self.path)

    def _sign(self) -> None:
        while not self._left.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        self._signed_s = time.monotonic()
        try:
            give_sign(self.path)
            self._lost = next((how for path, how in self._ends.items() if path.exists()), self._lost)
        except FileNotFoundError:
            self._lost = (
                f"{self.path} is gone: the shards were merged or removed, and what this process did is left out"
            )
        except OSError:
            pass  # a storage that does not answer takes no rows either, and that is told
