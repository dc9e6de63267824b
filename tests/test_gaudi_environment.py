"""What Gaudi's software finds in the environment at its import, and the errors where that can't be right."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

from anthesis import devices
from anthesis.devices import device_of, open_device
from anthesis.errors import RequestError, UnsupportedError
from anthesis.parallel import gaudi
from anthesis.parallel.gaudi import LocalRank, chosen_mode, load_gaudi, module_of
from anthesis.parallel.launch import NAME_VARIABLE
from anthesis.parallel.layout import Layout
from anthesis.parallel.process_groups import backend_of
from anthesis.parallel.seat import Seat
from gaudi_software import installed
from rank_threads import communicators

SECOND = LocalRank(rank=1, size=2, place=1, sharers=2)
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize("mode", ["lazy", "eager"])
def test_the_mode_is_set_before_the_import(mode: str) -> None:
    with installed(mode):
        device = open_device("hpu")
        hpu = importlib.import_module("habana_frameworks.torch.hpu")
        assert hpu.ENVIRONMENT["PT_HPU_LAZY_MODE"] == {"lazy": "1", "eager": "0"}[mode]
        assert hasattr(torch.hpu, "HPUGraph") == (mode == "lazy")
        assert device.info().description == f"stand-in for GAUDI2, {mode} mode"
        assert "habana_frameworks.torch.distributed.hccl" not in sys.modules, "one rank exchanges with nobody"


def test_the_mode_is_lazy_unless_something_else_is_asked_for() -> None:
    assert chosen_mode({}) == "lazy"
    assert chosen_mode({"ANTHESIS_HPU_MODE": "eager"}) == "eager"
    assert chosen_mode({"PT_HPU_LAZY_MODE": "0"}) == "eager"
    assert chosen_mode({"PT_HPU_LAZY_MODE": "1", "ANTHESIS_HPU_MODE": "lazy"}) == "lazy"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ANTHESIS_HPU_MODE": "fast"}, "ANTHESIS_HPU_MODE is 'fast'; it must be lazy or eager"),
        ({"PT_HPU_LAZY_MODE": "2"}, r"PT_HPU_LAZY_MODE is '2'; it must be 1 \(lazy\) or 0 \(eager\)"),
        (
            {"ANTHESIS_HPU_MODE": "eager", "PT_HPU_LAZY_MODE": "1"},
            "ANTHESIS_HPU_MODE is eager, and PT_HPU_LAZY_MODE is 1, which means lazy; unset one of them",
        ),
    ],
)
def test_a_mode_that_is_none_is_refused(variables: dict[str, str], message: str) -> None:
    with installed(**variables), pytest.raises(RequestError, match=message):
        open_device("hpu")
    assert "habana_frameworks" not in sys.modules


def test_an_import_in_another_mode_is_told() -> None:
    with installed(PT_HPU_LAZY_MODE="0"):
        importlib.import_module("habana_frameworks.torch.core")
        del os.environ["PT_HPU_LAZY_MODE"]
        with pytest.raises(UnsupportedError, match=r"was imported in eager mode before .* set ANTHESIS_HPU_MODE=eager"):
            open_device("hpu")
        os.environ["ANTHESIS_HPU_MODE"] = "eager"
        assert open_device("hpu").info().name == "hpu"


def test_ranks_on_whatever_there_is_exchange_by_what_that_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "GAUDI_CARDS", (str(tmp_path / "accel[0-9]*"),))
    with installed("lazy"):
        assert backend_of(device_of("auto")) != "hccl", "the software alone is no card"
        (tmp_path / "accel0").touch()
        assert backend_of(device_of("auto")) == "hccl"
    assert device_of("reference") == "reference"


def test_a_machine_without_the_software_or_without_a_card_is_told() -> None:
    if importlib.util.find_spec("habana_frameworks") is None:
        with pytest.raises(UnsupportedError, match=r"\(habana_frameworks\) is not installed; see docs/devices.md, or"):
            open_device("hpu")
    with installed(GAUDI_STAND_IN_CARDS="0"), pytest.raises(UnsupportedError, match="finds no card"):
        open_device("hpu")


def test_software_that_breaks_at_its_import_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed():
        monkeypatch.setitem(sys.modules, "gaudi_card", None)  # which makes its import fail
        with pytest.raises(UnsupportedError, match=r"habana_frameworks.torch.core can't be imported: .*gaudi_card"):
            open_device("hpu")


def test_a_rank_says_who_it_is_at_the_import_only() -> None:
    with installed("lazy", RANK="0", WORLD_SIZE="1"):
        os.environ.pop("LOCAL_RANK", None)
        load_gaudi(SECOND)
        hccl = importlib.import_module("habana_frameworks.torch.distributed.hccl")
        assert (hccl.RANK, hccl.WORLD_SIZE, hccl.LOCAL_RANK) == (1, 2, 1)
        assert hccl.ENVIRONMENT["HLS_MODULE_ID"] == "1"
        core = importlib.import_module("habana_frameworks.torch.hpu").ENVIRONMENT
        assert core["PT_HPU_ENABLE_LAZY_COLLECTIVES"] == "true"
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ.get("LOCAL_RANK")) == ("0", "1", None)
        assert load_gaudi(SECOND) == "lazy", "another model in the same process has the same card"


def test_several_ranks_need_an_import_that_knew_of_them() -> None:
    with installed("lazy"):
        load_gaudi()
        with pytest.raises(UnsupportedError, match="open the model in a process of its own"):
            load_gaudi(SECOND)


def test_ranks_exchange_in_lazy_mode_only() -> None:
    """What they exchange by is not looked at before."""
    with installed("eager"):
        load_gaudi(SECOND)
        seat = Seat(1, Layout(2), communicators(2)[1], place=1, sharers=2)
        with pytest.raises(UnsupportedError, match="set ANTHESIS_HPU_MODE=lazy, or take --tp 1"):
            open_device("hpu", seat=seat)
        seat.communicator = None  # stages exchange between their steps
        assert open_device("hpu", seat=seat).info().name == "hpu"


def test_collectives_that_are_forbidden_are_told() -> None:
    with installed("lazy", PT_HPU_ENABLE_LAZY_COLLECTIVES="false"), pytest.raises(RequestError, match="to be true"):
        load_gaudi(SECOND)


@pytest.mark.parametrize(
    ("environment", "module"),
    [
        ({}, "1"),
        ({"HABANA_VISIBLE_MODULES": "4, 6"}, "6"),
        ({**TORCHRUN, "HABANA_VISIBLE_MODULES": "5"}, "5"),  # each rank was given one of its own
        ({**TORCHRUN, "HLS_MODULE_ID": "7"}, "7"),
        ({NAME_VARIABLE: "x", "HLS_MODULE_ID": "0"}, "1"),  # of rank 0, by which this one was started
    ],
)
def test_ranks_take_cards_in_order(environment: dict[str, str], module: str) -> None:
    assert module_of(SECOND, environment) == module


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HABANA_VISIBLE_MODULES": "4"}, "rank 1 is number 1 on its machine, .* names 1 cards: 4; take fewer ranks"),
        ({NAME_VARIABLE: "x", "HABANA_VISIBLE_MODULES": "4"}, "names 1 cards: 4"),
        ({"HLS_MODULE_ID": "3"}, "HLS_MODULE_ID is 3, one card, and 2 ranks .* HABANA_VISIBLE_MODULES, such as 0,1"),
    ],
)
def test_too_few_cards_are_told(environment: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        module_of(SECOND, environment)


def test_nothing_of_the_stand_in_stays() -> None:
    with installed("lazy"):
        open_device("hpu")
    assert importlib.util.find_spec("habana_frameworks") is None or "stand_in" not in str(
        importlib.util.find_spec("habana_frameworks")
    )
    assert gaudi._loaded.mode is None
