"""A worker process, seen from outside: it computes while it is asked, and is stopped (SIGSTOP) all other time.

So no system has to be told to keep its threads quiet while it waits: settings that do so would slow some of them down
when it is their turn.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from peers.environments import PeerError, reason
from peers.systems import Entry

BENCHMARKS = Path(__file__).resolve().parents[1]
LIMIT_S = 3600.0
"""A worker that takes longer to load or to answer is ended."""

END_S = 10.0
"""A worker that has ended its standard output has so long to end itself."""


class Worker:
    """A process that has loaded one model.

    Args:
        entry: the system and its weights.
        python: of its environment.
        options: what `peers/worker.py` says a worker is told.
        variables: of its environment, besides ours.
        log: file that takes all it prints besides its answers.

    Raises:
        PeerError: it did not load the model; the message has the last line it printed.
    """

    def __init__(
        self, entry: Entry, python: Path, options: Mapping[str, Any], variables: Mapping[str, str], log: Path
    ) -> None:
        self._log = log
        module = "peers." + entry.system.lower().replace(".", "_") + "_worker"
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, "-m", module, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": str(BENCHMARKS), **variables},
                preexec_fn=os.setpgrp,  # it and the processes it starts are stopped, and ended, together
            )
        try:
            self.about = self._answer()
        except KeyboardInterrupt:
            self.close()
            raise

    def ask(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """The fields of `Generated`, after checking that every token is there.

        Raises:
            PeerError: it ended, took too long, or generated another number of tokens.
        """
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        answer = self._answer()
        counts = [len(ids) for ids in answer["tokens"]]
        if counts != [new_tokens] * len(prompts) or counts != [len(times) for times in answer["token_s"]]:
            raise PeerError(f"it generated {sum(counts)} tokens instead of {new_tokens * len(prompts)}")
        return answer

    def close(self) -> None:
        """Ends it."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(LIMIT_S, self._signal, [signal.SIGKILL])
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise self._ended()
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> PeerError:
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # it closed its standard output, and goes on
            code = -signal.SIGKILL
        self.close()  # with all that it may have started
        if code == -signal.SIGILL:
            return PeerError("it needs instructions that this processor does not have (SIGILL)")
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return PeerError(f"{how}: {reason(self._log.read_text(errors='replace'))}")

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # all of them are gone
            os.killpg(self._process.pid, number)
