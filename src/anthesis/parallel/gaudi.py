"""Gaudi's software reads the environment as it is imported, and never again: what it reads is set here, just before.

Source:
    HabanaAI/gaudi-pytorch-bridge 1.19, in python_packages/habana_frameworks/torch: hpu/__init__.py (graphs only in lazy
    mode), distributed/hccl/__init__.py (modules by rank, collectives in lazy graphs).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

from anthesis.errors import RequestError, UnsupportedError, first_line
from anthesis.parallel.launch import NAME_VARIABLE
from anthesis.parallel.variables import launched

Mode = Literal["lazy", "eager"]
"""Whether operations are gathered into graphs of Gaudi's own, or run one by one unless PyTorch compiles them."""

MODE_VARIABLE = "ANTHESIS_HPU_MODE"
LAZY_VARIABLE = "PT_HPU_LAZY_MODE"
COLLECTIVES_VARIABLE = "PT_HPU_ENABLE_LAZY_COLLECTIVES"
VISIBLE_VARIABLE = "HABANA_VISIBLE_MODULES"
MODULE_VARIABLE = "HLS_MODULE_ID"

_LAZY: Mapping[str, Mode] = {"1": "lazy", "0": "eager"}
_PACKAGE = "habana_frameworks.torch"


@dataclass(frozen=True)
class LocalRank:
    """A rank among those of a model, and on its machine.

    Attributes:
        rank: its number.
        size: how many there are.
        place: its number among the ranks on its machine.
        sharers: ranks on its machine.
    """

    rank: int
    size: int
    place: int
    sharers: int


@dataclass
class _Loaded:
    """What was settled at the import, for as long as this process lives; None: nothing yet."""

    mode: Mode | None = None
    module: str | None = None


_loaded = _Loaded()


def chosen_mode(environment: Mapping[str, str]) -> Mode:
    """The mode that the environment asks for: lazy, unless it says something else.

    Raises:
        RequestError: a variable that names no mode, or two that name different ones.
    """
    own, theirs = environment.get(MODE_VARIABLE), environment.get(LAZY_VARIABLE)
    if own not in (None, *_LAZY.values()):
        raise RequestError(f"{MODE_VARIABLE} is {own!r:.60}; it must be lazy or eager")
    if theirs is None:
        return "eager" if own == "eager" else "lazy"
    if theirs not in _LAZY:
        raise RequestError(f"{LAZY_VARIABLE} is {theirs!r:.60}; it must be 1 (lazy) or 0 (eager), or not set")
    if own not in (None, _LAZY[theirs]):
        raise RequestError(
            f"{MODE_VARIABLE} is {own}, and {LAZY_VARIABLE} is {theirs}, which means {_LAZY[theirs]}; unset one of them"
        )
    return _LAZY[theirs]


def need_gaudi() -> None:
    """Refuses the hpu device where its software is not installed, before PyTorch is imported, which takes seconds.

    Raises:
        UnsupportedError: it is not.
    """
    if find_spec("habana_frameworks") is None:
        raise UnsupportedError(
            "the hpu device can't be used: Gaudi's software (habana_frameworks) is not installed; see docs/devices.md, "
            "or take --device cpu"
        )


def load_gaudi(ranks: LocalRank | None = None) -> Mode:
    """Imports Gaudi's software, for PyTorch to have the device "hpu", and for several ranks the backend "hccl".

    Args:
        ranks: which one this is, where the model is split over several; None: it is not.

    Returns:
        The mode in which it runs.

    Raises:
        UnsupportedError: it is not installed, or can't be imported; or it was imported before, set up in another way.
        RequestError: variables of the environment that can't be right.
    """
    mode = chosen_mode(os.environ)
    several = ranks is not None and ranks.size > 1
    need_gaudi()
    is_first = _PACKAGE not in sys.modules
    if several and not is_first and _loaded.module is None:
        raise UnsupportedError(
            "habana_frameworks was imported in this process before the model was opened, or for a model of one rank, "
            "and what it has to know for several ranks it reads at its import only; open the model in a process of its "
            "own"
        )
    if is_first:
        os.environ[LAZY_VARIABLE] = next(value for value, named in _LAZY.items() if named == mode)
        _loaded.module = None
    if several and is_first:
        assert ranks is not None
        _allow_collectives(mode)
        _loaded.module = os.environ[MODULE_VARIABLE] = module_of(ranks, os.environ)
    with _launched_as(ranks if several else None):
        _import(f"{_PACKAGE}.core")
        if several:
            _import(f"{_PACKAGE}.distributed.hccl")
    _loaded.mode = _mode_of_import()
    if _loaded.mode != mode:
        raise UnsupportedError(
            f"habana_frameworks was imported in {_loaded.mode} mode before the model was opened, and {mode} mode is "
            f"asked for; import it later, or set {MODE_VARIABLE}={_loaded.mode}"
        )
    return mode


def module_of(ranks: LocalRank, environment: Mapping[str, str]) -> str:
    """The number of the card that a rank takes: of its machine's, or of those that the environment names, in order.

    Raises:
        RequestError: there are fewer cards than ranks, or one card is named for all of them.
    """
    has_started_others = launched(environment) is None
    is_ours = NAME_VARIABLE in environment or has_started_others
    given = environment.get(MODULE_VARIABLE)
    if given is not None and not is_ours:
        return given  # by a launcher that gives each rank a card of its own
    if given is not None and NAME_VARIABLE not in environment:
        raise RequestError(
            f"{MODULE_VARIABLE} is {given}, one card, and {ranks.sharers} ranks of this machine need one each; name "
            f"them in {VISIBLE_VARIABLE}, such as 0,1"
        )
    modules = [name.strip() for name in environment.get(VISIBLE_VARIABLE, "").split(",") if name.strip()]
    if not modules:
        return str(ranks.place)
    if len(modules) == 1 and not is_ours:
        return modules[0]
    if ranks.place >= len(modules):
        raise RequestError(
            f"rank {ranks.rank} is number {ranks.place} on its machine, counted from 0, and {VISIBLE_VARIABLE} names "
            f"{len(modules)} cards: {','.join(modules)}; take fewer ranks a machine, or name more"
        )
    return modules[ranks.place]


def _allow_collectives(mode: Mode) -> None:
    """Exchanges of ranks become part of lazy graphs.

    Raises:
        RequestError: the environment forbids it.
    """
    given = os.environ.setdefault(COLLECTIVES_VARIABLE, "true")
    if mode == "lazy" and given.lower() not in ("true", "1"):
        raise RequestError(
            f"{COLLECTIVES_VARIABLE} is {given!r:.60}; ranks that exchange within a graph need it to be true"
        )


@contextmanager
def _launched_as(ranks: LocalRank | None) -> Iterator[None]:
    """Variables of a launcher, as Gaudi's software wants them, during its import.

    They are not left behind: those of a launcher mean all that it has started to whoever reads them later.
    """
    if ranks is None:
        yield
        return
    told = {"RANK": ranks.rank, "WORLD_SIZE": ranks.size, "LOCAL_RANK": ranks.place}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update({name: str(number) for name, number in told.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _import(module: str) -> None:
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        raise UnsupportedError(
            f"the hpu device can't be used: {module} can't be imported: {first_line(error)}; see docs/devices.md, or "
            "take --device cpu"
        ) from error


def _mode_of_import() -> Mode:
    """Graphs are there in lazy mode only."""
    return "lazy" if hasattr(import_module(f"{_PACKAGE}.hpu"), "HPUGraph") else "eager"
