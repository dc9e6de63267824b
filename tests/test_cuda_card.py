"""What only a card can show: graphs, one launch for each token, its memory; and what is told where there is none."""

from __future__ import annotations

import importlib.util
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anthesis import LLM, devices
from anthesis.devices.accelerator.matrices import Matrix
from anthesis.devices.accelerator.operations import Operations
from anthesis.devices.cuda import CudaDevice
from anthesis.devices.cuda.device import card_of
from anthesis.errors import RequestError, UnsupportedError
from anthesis.models import trace
from anthesis.parallel.layout import Layout
from anthesis.parallel.seat import Seat
from anthesis.program.fuse import fuse
from anthesis.quantize import WEIGHT_KINDS, quantize
from programs import BLOOM, blocks_of, config_of, random_weights, step_inputs

MODEL = "random:bloom-560m"
LAUNCHED = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}
PROMPT = [5, 17, 300, 2, 9, 11, 4]


@pytest.mark.cuda
def test_each_token_is_one_graph_launch() -> None:
    from gpu.profile import prepare, profile

    prepare()
    with LLM(MODEL, device="cuda", weights="bf16") as llm:
        for batch in (1, 5):
            found = profile(llm, len(PROMPT), batch)
            assert found.graph_launches == 1
            assert found.kernel_launches == 0
            assert found.kernels > 100


@pytest.mark.cuda
@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}], ids=["greedy", "drawn"])
def test_replayed_steps_give_the_tokens_of_steps_run_call_by_call(params: dict[str, Any]) -> None:
    """The first sequence runs most of its steps in graphs, the second all of them; nothing is captured twice."""
    with LLM(MODEL, device="cuda", weights="int8") as llm:
        first, second = (llm.generate([PROMPT], max_new_tokens=70, **params)[0].token_ids for _ in range(2))
        before = llm.loaded.device.counters()
        third = llm.generate([PROMPT], max_new_tokens=70, **params)[0].token_ids
        after = llm.loaded.device.counters()
    assert first == second == third
    assert before.captures >= 1
    assert before.capture_s > 0
    assert after.captures == before.captures


@pytest.mark.cuda
def test_a_batch_in_graphs_gives_what_each_gives_alone_where_that_is_promised() -> None:
    prompts = [PROMPT[: 1 + i % 7] for i in range(12)]
    with LLM(MODEL, device="cuda", weights="bf16", invariant=True) as llm:
        alone = [llm.generate([prompt], max_new_tokens=20)[0].token_ids for prompt in prompts]
        assert [one.token_ids for one in llm.generate(prompts, max_new_tokens=20)] == alone


@pytest.mark.cuda
def test_more_weights_than_the_card_has_room_for_are_refused_before_they_are_loaded() -> None:
    with pytest.raises(RequestError, match=r"the weights take 352\.\d GB on cuda, and .* GB are free"):
        LLM("random:bloomz-176b", device="cuda", weights="bf16")


@pytest.mark.cuda
def test_ranks_exchange_within_graphs() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two NVIDIA GPUs")
    with LLM(MODEL, device="cuda", weights="fp32") as llm:
        expected = llm.generate([PROMPT], max_new_tokens=30)[0].token_ids
    with LLM(MODEL, device="cuda", weights="fp32", tp=2) as llm:
        for _ in range(3):
            assert llm.generate([PROMPT], max_new_tokens=30)[0].token_ids == expected
        assert llm.loaded.device.counters().captures >= 1


def test_without_a_driver_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", ("/dev/no-such-driver",))
    with pytest.raises(UnsupportedError, match=r"no NVIDIA driver is there \(/dev/no-such-driver\).*--device cpu"):
        LLM(MODEL, device="cuda")


@pytest.mark.parametrize(
    ("place", "count", "environment", "card"),
    [
        (0, 1, {}, 0),
        (1, 2, {}, 1),
        (1, 1, {}, None),
        (1, 1, {"CUDA_VISIBLE_DEVICES": "0"}, None),
        (1, 1, LAUNCHED | {"CUDA_VISIBLE_DEVICES": "1"}, 0),
        (1, 2, LAUNCHED, 1),
        (2, 2, LAUNCHED | {"RANK": "2"}, None),
    ],
)
def test_each_rank_takes_a_card_of_its_own(
    place: int, count: int, environment: dict[str, str], card: int | None
) -> None:
    """A launcher may let each process see its own card only; then that is its card, whatever its number."""
    if card is not None:
        assert card_of(place, count, environment) == card
        return
    with pytest.raises(UnsupportedError, match=rf"rank {place} of this machine, counted from 0, has no card: {count} "):
        card_of(place, count, environment)


def test_a_pytorch_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch is built with CUDA")
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", (str(tmp_path),))
    with pytest.raises(UnsupportedError, match=r"this PyTorch was built without CUDA; see docs/devices\.md"):
        LLM(MODEL, device="cuda")


def test_auto_says_why_a_card_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch is built with CUDA")
    assert devices._fastest() == ("cpu", "no accelerator is there")
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", (str(tmp_path),))
    expected = "an NVIDIA driver is there, and this PyTorch was built without CUDA"
    assert devices._fastest() == ("cpu", expected)
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(devices, "GAUDI_CARDS", (str(tmp_path / "accel*"),))
    if importlib.util.find_spec("habana_frameworks") is None:
        gaudi = "a Gaudi card is there, and habana_frameworks is not installed"
        assert devices._fastest() == ("cpu", f"{gaudi}; {expected}")


def test_ranks_are_not_started_for_a_card_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", ("/dev/no-such-driver",))
    with pytest.raises(UnsupportedError, match="no NVIDIA driver is there"):
        LLM(MODEL, device="cuda", tp=2)


class Exhausted(Operations):
    """A device whose memory is full when it comes to products."""

    def multiply(self, x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore about it.")


def test_captured_steps_are_let_go_of_before_ranks_leave_their_groups(tmp_path: Path) -> None:
    """NCCL waits in the end of a group until no graph uses it."""
    seat = Seat(0, Layout())
    device = CudaDevice(torch.device("cpu"), Operations(), seat)
    program = fuse(trace(config_of(BLOOM), "argmax", lambda name, shape: "fp32"))
    weights = random_weights(program, np.float32)
    packed = {name: device.pack(quantize(array, WEIGHT_KINDS["fp32"]), frozenset()) for name, array in weights.items()}
    step = step_inputs([(0, 0, [3, 4])])
    executable: Any = device.compile(program, packed, device.allocate(program, blocks_of(step)))
    executable.run(step)
    held = weakref.ref(next(iter(executable._prepared.values())))
    gone_when_left: list[bool] = []

    class Groups:
        def close(self) -> None:
            gone_when_left.append(held() is None)

    seat.groups = Groups()  # type: ignore[assignment]
    seat.close()
    assert gone_when_left == [True]
    assert executable.run(step)["token"].shape == (2,), "it can be prepared anew"


def test_running_out_of_memory_in_a_step_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "bloom", "hidden_size": 64, "n_layer": 1, "n_head": 2, "vocab_size": 99}')
    opened = CudaDevice(torch.device("cpu"), Exhausted())
    monkeypatch.setitem(devices.OPENERS, "cuda", lambda threads, seat, invariant: opened)
    with (
        LLM(f"random:{config}", device="cuda") as llm,
        pytest.raises(RequestError, match=r"a step of 4 rows; take a smaller --batch.*Tried to allocate 20\.00 MiB\.$"),
    ):
        llm.generate([[3, 4, 5]], max_new_tokens=2)


def test_random_weights_without_room_are_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def exhausted(weight: Any, device: torch.device) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    config = tmp_path / "config.json"
    config.write_text('{"model_type": "bloom", "hidden_size": 64, "n_layer": 1, "n_head": 2, "vocab_size": 99}')
    monkeypatch.setattr("anthesis.devices.accelerator.device.random_matrix", exhausted)
    opened = CudaDevice(torch.device("cpu"), Operations())
    monkeypatch.setitem(devices.OPENERS, "cuda", lambda threads, seat, invariant: opened)
    with pytest.raises(
        RequestError, match=r"ran out of memory for a weight of 0\.00 GB; see `anthesis plan`.*2\.00 GiB"
    ):
        LLM(f"random:{config}", device="cuda")


@pytest.mark.cuda
def test_a_cache_that_grows_after_library_products_were_captured() -> None:
    """Prompts of more than 128 rows go through the library, whose workspace must not stand in the graphs' memory."""
    with LLM(MODEL, device="cuda", weights="bf16") as llm:
        for length in (300, 900):
            prompt = llm.made_up_prompt(length)
            first, second, third = (llm.generate([prompt], max_new_tokens=4)[0].token_ids for _ in range(3))
            assert first == second == third


@pytest.mark.cuda
def test_a_model_goes_on_when_another_one_is_closed() -> None:
    with LLM(MODEL, device="cuda", weights="bf16") as llm:
        prompt = llm.made_up_prompt(300)
        expected = [llm.generate([prompt], max_new_tokens=4)[0].token_ids for _ in range(3)][-1]
        with LLM(MODEL, device="cuda", weights="bf16") as other:
            for _ in range(3):
                assert other.generate([prompt], max_new_tokens=4)[0].token_ids == expected
        assert llm.generate([prompt], max_new_tokens=4)[0].token_ids == expected
