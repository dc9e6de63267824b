"""A worker's side of the conversation: one line of JSON in, one line of JSON out, until standard input ends.

Its only argument is a JSON object: `model` (path), `weights`, `threads`, `device`. The first line it writes tells about
the loaded model. Each line it reads is a request, `{"prompts": [[ids]], "new_tokens": n}`; every prompt is completed
greedily with exactly n tokens, past any end of sequence, and the line that answers has the fields of `Generated`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

Prompts = Sequence[Sequence[int]]


@dataclass
class Generated:
    """What one request took, on `time.perf_counter()`.

    Attributes:
        total_s: of the whole request.
        token_s: for each prompt the time of each of its tokens, from the beginning of the request.
        tokens: for each prompt the ids it was completed with.
    """

    total_s: float = 0.0
    token_s: list[list[float]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)

    def add_step(self, at_s: float, tokens: Sequence[int]) -> None:
        """Notes the next token of every prompt; all of them came at once."""
        if not self.tokens:
            self.token_s, self.tokens = [[] for _ in tokens], [[] for _ in tokens]
        for times, ids, token in zip(self.token_s, self.tokens, tokens, strict=True):
            times.append(at_s)
            ids.append(int(token))


Generate = Callable[[Prompts, int], Generated]


def serve(load: Callable[[dict[str, Any]], tuple[Generate, dict[str, Any]]], packages: Sequence[str]) -> None:
    """Loads a model, tells about it, and answers requests.

    Args:
        load: from the options to what completes prompts, and what else there is to tell about the model.
        packages: whose versions are told.
    """
    # Libraries print what they like; nothing of it may come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    begin = time.perf_counter()
    generate, about = load(json.loads(sys.argv[1]))
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    _write(answers, {"load_s": time.perf_counter() - begin, "versions": versions, **about})
    for line in sys.stdin:
        request = json.loads(line)
        _write(answers, asdict(generate(request["prompts"], request["new_tokens"])))


def _write(file: Any, answer: dict[str, Any]) -> None:
    file.write(json.dumps(answer) + "\n")
    file.flush()
