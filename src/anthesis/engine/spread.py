"""A model spread over several ranks: rank 0 loads its share and runs its part of every step, and tells the others."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from anthesis.checkpoint import IN_MEMORY, Checkpoint, model_fingerprint
from anthesis.config import ModelConfig
from anthesis.cores import usable_cores
from anthesis.devices import check_device, device_of, need_device, open_device
from anthesis.devices.device import Cache, Device, Executable, InstructionTime
from anthesis.engine.loaded import LoadedModel
from anthesis.errors import AnthesisError, RequestError, UnsupportedError
from anthesis.models import trace
from anthesis.parallel.binding import bound_to
from anthesis.parallel.group import Group
from anthesis.parallel.layout import Layout
from anthesis.parallel.process_groups import backend_of
from anthesis.program.builder import Finish
from anthesis.program.ir import Array, Arrays
from anthesis.program.partition import alike_ranks
from anthesis.program.stages import choose_stages, stage
from anthesis.units import counted

logger = logging.getLogger("anthesis")


class SpreadModel(LoadedModel):
    """`LoadedModel` for rank 0 of several.

    Args:
        group: of the ranks.
        request: the arguments of `LLM` that say what the others have to open.
        checkpoint, config, device, cache: as `LoadedModel`.

    Raises:
        AnthesisError: as `LoadedModel`, on any rank; or a rank finds other files than rank 0.
    """

    def __init__(
        self,
        group: Group,
        request: dict[str, Any],
        checkpoint: Checkpoint,
        config: ModelConfig,
        device: Device,
        cache: str,
    ) -> None:
        self._group = group
        self._told: dict[str, Array] = {}
        super().__init__(checkpoint, config, device, cache, group.seat)
        fingerprint = model_fingerprint(checkpoint.path, checkpoint.config, checkpoint.adapter)
        # files of another content under the same name would give a text that nobody can explain
        path = None if checkpoint.path is None else str(checkpoint.path)
        for rank, reply in group.ask({"do": "open", "request": request, "path": path}).items():
            if reply["fingerprint"] != fingerprint:
                raise RequestError(
                    f"rank {rank} finds other files under the model's name than rank 0; copy the same ones"
                )

    def load(self, checkpoint: Checkpoint, on_weight: Callable[[int, int], None]) -> None:
        """Loads the weights of all ranks.

        Raises:
            AnthesisError: as `LoadedModel.load`, on any rank.
        """

        def on_own(loaded: int, total: int) -> None:
            self._group.check()  # large models load for minutes
            on_weight(loaded, total)

        with self._group.together():
            self._group.tell({"do": "load"})
            with bound_to(self.seat.cores):
                super().load(checkpoint, on_own)
            self._group.gather_replies()

    def max_blocks(self, cache_memory: int | None) -> int:
        """As `LoadedModel.max_blocks`; of the rank that has room for fewest."""
        replies = self._group.ask({"do": "max_blocks", "cache_memory": cache_memory})
        return min([super().max_blocks(cache_memory), *(int(reply["blocks"]) for reply in replies.values())])

    def allocate(self, num_blocks: int, old: Cache | None = None) -> Cache:
        """The cache pools of all ranks; gives rank 0's."""
        with self._group.together(), bound_to(self.seat.cores):
            self._group.tell({"do": "allocate", "blocks": num_blocks, "keep": old is not None})
            return super().allocate(num_blocks, old)

    def copy_blocks(self, cache: Cache, sources: Sequence[int], targets: Sequence[int]) -> None:
        """The same blocks in the caches of all ranks; this one is rank 0's."""
        with self._group.step(), bound_to(self.seat.cores):
            self._group.tell({"do": "copy_blocks", "sources": [*sources], "targets": [*targets]})
            super().copy_blocks(cache, sources, targets)

    def compile(self, finish: Finish, top_logprobs: int | None, cache: Cache) -> Executable:
        """The program on all ranks."""
        own = super().compile(finish, top_logprobs, cache)
        return SpreadExecutable(own, self._group, finish, top_logprobs, self._told)

    def peak_memory_bytes(self) -> tuple[int, ...]:
        """See `LoadedModel.peak_memory_bytes`."""
        replies = self._group.ask({"do": "peak_memory"})
        return *super().peak_memory_bytes(), *(int(replies[rank]["nbytes"]) for rank in sorted(replies))


class SpreadExecutable:
    """A program that all ranks run.

    Args:
        own: rank 0's part.
        group: of the ranks.
        finish: how the program ends.
        top_logprobs: as the program's.
        told: inputs that the others have from the last step, by name: block_table (S, B) int32. It is one for all
            programs of a model, as it is on the other ranks.
    """

    def __init__(
        self, own: Executable, group: Group, finish: Finish, top_logprobs: int | None, told: dict[str, Array]
    ) -> None:
        self._own, self._group, self._told = own, group, told
        self._message = {"do": "run", "finish": finish, "top_logprobs": top_logprobs}

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """One step on all ranks; arrays as `Executable.run`: token (L,) int32, logits (L, V) float32.

        Raises:
            AnthesisError: a rank has failed or ended.
        """
        with self._group.step(), bound_to(self._group.seat.cores):
            self._group.tell(self._message, self._news(inputs))
            try:
                outputs = self._own.run(inputs)
            except (RuntimeError, AnthesisError) as error:
                raise self._group.failure_behind(error) from error
            if self._group.layout.pp > 1 and self._message["finish"] != "cache":
                outputs = dict(self._group.next_outputs())
        return outputs

    def _news(self, inputs: Arrays) -> dict[str, Array]:
        """Without the block table where it is as it was, in most steps: it is by far the largest of them."""
        news = dict(inputs)
        if "block_table" in self._told and np.array_equal(self._told["block_table"], inputs["block_table"]):
            del news["block_table"]
        else:
            self._told["block_table"] = inputs["block_table"].copy()
        return news

    def measure(self, on: bool) -> list[InstructionTime]:
        """See `Executable.measure`; of rank 0."""
        return self._own.measure(on)


def start_ranks(checkpoint: Checkpoint, layout: Layout, device: str, opened: ExitStack) -> Group | None:
    """Starts the other ranks of a model; None where there are none.

    Args:
        checkpoint: of the model.
        layout: of the ranks.
        device: of each.
        opened: ends them when it is closed.

    Raises:
        RequestError: the model has too few layers, heads or other pieces; the message says how many ranks work.
        UnsupportedError: PyTorch, which several ranks need, is not installed; or the model is in memory.
    """
    if layout.size == 1:
        return None
    if checkpoint.source == IN_MEMORY:
        raise UnsupportedError(
            f"{checkpoint.description} is in the memory of this process, where {layout.size} ranks can't read it; save "
            "it (save_pretrained) and open the directory, or take one rank"
        )
    check_device(device)
    meant = device_of(device)
    need_device(meant)
    traced = trace(checkpoint.config, "argmax", checkpoint.kind_of)
    for layers in choose_stages(traced, layout.pp):
        alike_ranks(stage(traced, layers), layout.tp)
    return opened.enter_context(closing(Group(layout, backend_of(meant))))


def check_threads(threads: int | None, sharers: int) -> None:
    """Refuses more threads than the ranks that share this one's cores have cores for.

    Raises:
        RequestError: there are too few cores.
    """
    cores = usable_cores()
    if threads is not None and threads * sharers > max(cores, sharers):
        raise RequestError(
            f"{sharers} ranks of {counted(threads, 'thread')} on one machine, and this process may use {cores} cores; "
            "take fewer threads for each, or fewer ranks"
        )
    if sharers > cores:
        logger.warning("%d ranks take turns on %s; more ranks than cores are slow", sharers, counted(cores, "core"))


def open_model(
    checkpoint: Checkpoint, config: ModelConfig, request: dict[str, Any], group: Group | None
) -> LoadedModel:
    """The model on its device, of one rank or of several; its weights are yet to be loaded.

    Args:
        checkpoint: open.
        config: the checkpoint's, possibly with fewer usable tokens.
        request: model, weights, seed, adapter, device, threads, cache and invariant, as given to `LLM`.
        group: the other ranks, started.

    Raises:
        AnthesisError: the request can't be met, on any rank; or a rank did not come.
    """
    device, threads, cache, invariant = (request[name] for name in ("device", "threads", "cache", "invariant"))
    if group is None:
        return LoadedModel(checkpoint, config, open_device(device, threads, invariant=invariant), cache)
    group.meet()
    check_threads(threads, group.seat.rivals)
    with bound_to(group.seat.cores):
        own_device = open_device(device, threads, group.seat, invariant=invariant)
    # which device "auto" is has been said, once
    request = {**request, "device": own_device.info().name, "usable_vocab_size": config.usable_vocab_size}
    model = SpreadModel(group, request, checkpoint, config, own_device, cache)
    weakref.finalize(model, group.close)  # when it is dropped, and when the script ends
    return model
