"""A card for tests: tensors on the device "hpu" that the host holds, and captures that enforce what Gaudi's forbid.

What it keeps of the contract, and raises where code under test does not:

- A tensor of the card mixes with none of the host, but for scalars; there is no float64, and no view as another dtype.
- A captured graph is the list of the operations that were called, with the tensors and Python values they were called
  with. A replay calls them again and writes the results where those of the capture stood. What a capture computed is
  nothing to be read: it is overwritten with nonsense when the capture ends.
- Within a capture nothing waits for the host (`.item()`, a copy to or from it), no shape depends on data, and nothing
  is written in place through a view.
- Exchanges of ranks go through the backend "hccl" of the process group, and are captured where lazy collectives were
  allowed before the import.
"""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

LIMIT = 96 << 30
"""Bytes of memory, as a Gaudi 2 has."""

DATA_DEPENDENT = {"nonzero", "masked_select", "unique_dim", "_unique2", "repeat_interleave", "equal"}
"""Operations whose results' shapes, or whether they are true, only the data says."""

COPIES = {"copy_", "to", "_to_copy", "_copy_from"}

_CPU = torch.device("cpu")


class CardError(RuntimeError):
    """What the card can't do, or a capture can't hold."""


class Card:
    """What the card holds and does now.

    Attributes:
        recording: the operations of the capture that is under way, or None.
        in_use, most_in_use: bytes of tensors.
        compilations: graphs that were compiled.
        mark_steps: how often what was gathered had to be run.
        lazy_collectives: exchanges may be captured.
    """

    def __init__(self) -> None:
        self.recording: list[tuple[Any, Any, Any, Any]] | None = None
        self.in_use = self.most_in_use = 0
        self.compilations = self.mark_steps = 0
        self.lazy_collectives = False

    def take(self, tensor: CardTensor, nbytes: int) -> None:
        """Counts memory for as long as the tensor lives."""
        self.in_use += nbytes
        self.most_in_use = max(self.most_in_use, self.in_use)
        weakref.finalize(tensor, self._give_back, nbytes)

    def _give_back(self, nbytes: int) -> None:
        self.in_use -= nbytes


card = Card()


class CardTensor(torch.Tensor):
    """A tensor that says it is on the card.

    Attributes:
        held: what it holds, on the host.
        is_part: it is a view of another one.
    """

    held: torch.Tensor
    is_part: bool

    @staticmethod
    def __new__(cls, held: torch.Tensor, is_part: bool = False) -> CardTensor:
        """Wraps what the host holds."""
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device("hpu", 0),
        )  # fmt: skip

    def __init__(self, held: torch.Tensor, is_part: bool = False) -> None:
        if held.dtype == torch.float64:
            raise CardError("the card has no float64")
        self.held, self.is_part = held, is_part
        if not is_part:
            card.take(self, held.numel() * held.element_size())

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    def data_ptr(self) -> int:
        raise CardError("a lazy tensor has no address")


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Does what an operation asks of the card."""
    name = func._schema.name.split("::")[1]
    _check(func, name, args, kwargs)
    results = _run(func, args, kwargs)
    if name in COPIES and _CPU in tree_leaves((args, kwargs)):
        return results
    found = _wrapped(func, args, results)
    if card.recording is not None:
        card.recording.append((func, args, kwargs, found))
    return found


def _check(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> None:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    of_host = [tensor for tensor in tensors if not isinstance(tensor, CardTensor)]
    if name not in COPIES and any(tensor.dim() for tensor in of_host):
        raise CardError(f"{func}: tensors of the card and of the host")
    if str(func) == "aten.view.dtype":
        raise CardError("nothing says that the card can look at a tensor as at one of another dtype")
    if card.recording is None:
        return
    if name in COPIES and (of_host or _CPU in tree_leaves((args, kwargs))):
        raise CardError(f"{func} within a capture copies from or to the host")
    if name in ("_local_scalar_dense", "is_nonzero", "item"):
        raise CardError(f"{func} within a capture waits for a value")
    is_selection = any(t.dtype == torch.bool for t in tree_leaves(args[1:])[:1] if isinstance(t, torch.Tensor))
    if name in DATA_DEPENDENT or (name in ("index", "index_put", "index_put_") and is_selection):
        raise CardError(f"{func} within a capture: its shape depends on the data")
    if any(tensor.is_part for tensor in _written(func, args)):
        raise CardError(f"{func} within a capture writes in place through a view")
    if func.namespace == "c10d" and not card.lazy_collectives:
        raise CardError("an exchange within a capture, and lazy collectives were not allowed before the import")


def _written(func: Any, args: Any) -> list[CardTensor]:
    """The tensors of the card that an operation changes."""
    if func.namespace == "c10d":  # whose schemas don't say it: what it is given first
        return [leaf for leaf in tree_leaves(args[:1]) if isinstance(leaf, CardTensor)]
    return [
        leaf
        for argument, given in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
        for leaf in tree_leaves(given)
        if isinstance(leaf, CardTensor)
    ]


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func.namespace == "c10d":
        groups = [torch.distributed.ProcessGroup.unbox(a) for a in args if isinstance(a, torch.ScriptObject)
                  and "ProcessGroup" in str(a._type())]  # fmt: skip
        assert all(group._get_backend(torch.device("hpu")) for group in groups), "no hccl"

    def held(leaf: Any) -> Any:
        if isinstance(leaf, CardTensor):
            return leaf.held
        return _CPU if isinstance(leaf, torch.device) else leaf

    return func(*tree_map(held, args), **tree_map(held, kwargs))


def _wrapped(func: Any, args: Any, results: Any) -> Any:
    given = {id(leaf.held): leaf for leaf in tree_leaves(args) if isinstance(leaf, CardTensor)}
    places = {leaf.held.untyped_storage().data_ptr() for leaf in given.values()}
    are_of_inference = all(leaf.is_inference() for leaf in given.values())
    may_be_views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in given:
            return given[id(leaf)]
        is_part = may_be_views and leaf.untyped_storage().data_ptr() in places
        # a view counts its versions with what it is of, and so has to be like that one
        with torch.inference_mode(torch.is_inference_mode_enabled() and not (is_part and not are_of_inference)):
            return CardTensor(leaf, is_part)

    return tree_map(wrapped, results)


class HPUGraph:
    """As `torch.hpu.HPUGraph`: what was called between the beginning and the end, to be called again."""

    def __init__(self) -> None:
        self._operations: list[tuple[Any, Any, Any, Any]] | None = None
        self.replays = 0

    def capture_begin(self, dry_run: bool = False) -> None:
        """From now on operations are recorded."""
        assert card.recording is None, "a capture is under way"
        card.recording = []

    def capture_end(self) -> None:
        """Compiles what was recorded; the results of the capture itself are lost."""
        self._operations, card.recording = card.recording, None
        card.compilations += 1
        for _, args, _, found in self._operations or []:
            before = {id(leaf) for leaf in tree_leaves(args)}
            for leaf in tree_leaves(found):
                if isinstance(leaf, CardTensor) and not leaf.is_part and id(leaf) not in before:
                    leaf.held.fill_(math.nan if leaf.held.dtype.is_floating_point else 1)

    def replay(self, asynchronous: bool = False) -> None:
        """Calls all again, over what the tensors hold now."""
        assert self._operations is not None, "nothing was captured"
        self.replays += 1
        for func, args, kwargs, found in self._operations:
            results = _run(func, args, kwargs)
            for old, new in zip(tree_leaves(found), tree_leaves(results), strict=True):
                if isinstance(old, CardTensor):
                    if old.held is not new and not old.is_part:
                        old.held.copy_(new)
                elif isinstance(new, torch.ScriptObject):
                    torch.distributed.Work.unbox(new).wait()

    def reset(self) -> None:
        """Lets go of what was captured."""
        self._operations = None


@contextmanager
def graph(captured: HPUGraph, stream: Any = None, dry_run: bool = False) -> Iterator[None]:
    """As `torch.hpu.graph`."""
    captured.capture_begin(dry_run)
    try:
        yield
    finally:
        captured.capture_end()


_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda func, *args, **kwargs: dispatch(func, args, kwargs), "HPU")

_ranges = torch.library.Library("aten", "IMPL")
for _arange in (torch.ops.aten.arange.default, torch.ops.aten.arange.start, torch.ops.aten.arange.start_step):
    # PyTorch's own makes a tensor of another size and changes that, which a wrapped one can't follow
    _ranges.impl(
        _arange._schema.name + "." * bool(_arange._schema.overload_name) + _arange._schema.overload_name,
        lambda *args, func=_arange, **kwargs: dispatch(func, args, kwargs),
        "HPU",
    )


def _load_guard() -> None:
    """Compiles and loads what PyTorch asks about the device, once for a version of it."""
    source = Path(__file__).with_name("guard.cpp")
    library = Path(__file__).parents[3] / "build" / f"gaudi_guard-{torch.__version__}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        package = Path(torch.__file__).parent
        begun = library.with_suffix(f".{os.getpid()}")
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-shared", "-fPIC", f"-I{package / 'include'}"]
        subprocess.run([*command, source, "-o", begun, f"-L{package / 'lib'}", "-lc10"], check=True)
        begun.replace(library)
    ctypes.CDLL(str(library))


_load_guard()
