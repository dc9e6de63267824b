"""What a rank other than rank 0 does: it opens its share of a model, and runs its part of every step, as it is told."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from anthesis.checkpoint import Checkpoint, model_fingerprint, open_checkpoint
from anthesis.devices import open_device
from anthesis.devices.device import Cache, Executable
from anthesis.engine.loaded import LoadedModel
from anthesis.memory import process_peak_memory_bytes
from anthesis.parallel.layout import Layout
from anthesis.parallel.meeting import check_launched, open_meeting
from anthesis.parallel.member import Member, Message, join_launched, join_local
from anthesis.parallel.process_groups import NoAnswerError
from anthesis.parallel.variables import launched
from anthesis.program.ir import Array


class Share:
    """This rank's share of a model."""

    def __init__(self) -> None:
        self._checkpoint: Checkpoint | None = None
        self._model: LoadedModel | None = None
        self._cache: Cache | None = None
        self._executables: dict[Any, Executable] = {}
        self._table: Array | None = None

    def do(self, member: Member, message: Message, arrays: Mapping[str, Array]) -> None:
        """Does what rank 0 says.

        Args:
            member: this rank.
            message: what to do.
            arrays: by name the inputs of a step, (R,) int32 and others as programs declare them, float32 for
                parameters.

        Raises:
            AnthesisError: it can't be done.
        """
        what = message["do"]
        if what == "run":
            self._run(member, message, arrays)
        elif what == "copy_blocks":
            self._loaded.copy_blocks(self._cache, message["sources"], message["targets"])
        elif what == "allocate":
            self._executables.clear()
            old = self._cache if message["keep"] else None
            self._cache = None
            self._cache = self._loaded.allocate(message["blocks"], old)
        elif what == "open":
            self._open_model(member, message)
        elif what == "load":
            assert self._checkpoint is not None
            with self._checkpoint as checkpoint:
                self._loaded.load(checkpoint, lambda loaded, total: None)
            member.reply({})
        elif what == "max_blocks":
            member.reply({"blocks": self._loaded.max_blocks(message["cache_memory"])})
        elif what == "peak_memory":
            member.reply({"nbytes": process_peak_memory_bytes()})
        else:
            raise AssertionError(f"rank 0 says {what!r}")

    @property
    def _loaded(self) -> LoadedModel:
        assert self._model is not None, "no model is open"
        return self._model

    def _open_model(self, member: Member, message: Message) -> None:
        request, seat = message["request"], member.seat
        if seat.cores is not None:  # for good: this process does nothing else
            os.sched_setaffinity(0, seat.cores)
        # what rank 0 has found, or downloaded, on this machine need not be looked for again
        name = message["path"] if member.connection.is_local and message["path"] else request["model"]
        opening = {what: request[what] for what in ("weights", "seed", "adapter")}
        self._checkpoint = checkpoint = open_checkpoint(name, **opening)
        config = replace(checkpoint.config, usable_vocab_size=request["usable_vocab_size"])
        device = open_device(request["device"], request["threads"], seat, invariant=request["invariant"])
        self._model = LoadedModel(checkpoint, config, device, request["cache"], seat)
        fingerprint = model_fingerprint(checkpoint.path, checkpoint.config, checkpoint.adapter)
        member.reply({"fingerprint": fingerprint})

    def _run(self, member: Member, message: Message, arrays: Mapping[str, Array]) -> None:
        seat = member.seat
        key = message["finish"], message["top_logprobs"]
        if key not in self._executables:
            self._executables[key] = self._loaded.compile(*key, self._cache)
        self._table = arrays.get("block_table", self._table)
        assert self._table is not None, "no step had a block table"
        try:
            outputs = self._executables[key].run({**arrays, "block_table": self._table})
        except RuntimeError as error:
            if getattr(seat.communicator, "failed", False):  # the rank that has ended knows why
                raise NoAnswerError(str(error)) from error
            raise
        is_last_stage = seat.layout.stage(seat.rank) == seat.layout.pp - 1
        if seat.layout.pp > 1 and outputs and is_last_stage and seat.layout.share(seat.rank) == 0:
            member.reply({}, outputs)


def leave_to_rank_zero(layout: Layout) -> None:
    """Returns on rank 0, and where no launcher has started this process together with others for one model.

    On other ranks it does what rank 0 says, for as long as rank 0's model is open, and then ends the process: what a
    command or a script does with the model is done once.

    Args:
        layout: of the ranks.

    Raises:
        SystemExit: this rank has served.
        RequestError: variables of a launcher that contradict each other, or another number of processes.
        RankError: rank 0 is not to be found, or can't be.
    """
    environment = launched()
    if environment is None:
        return
    check_launched(environment, layout)
    if environment.rank > 0:
        # rank 0 says for all what there is to say
        logging.getLogger("anthesis").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        sys.exit(join_launched(environment).serve(Share().do))
    open_meeting(environment)


if __name__ == "__main__":
    sys.exit(join_local().serve(Share().do))
