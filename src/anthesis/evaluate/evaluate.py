"""Evaluates a model, alone or beside the same model with other weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from anthesis.bench.loaded import device_of, model_of
from anthesis.bench.machine import commit, now, this_machine, versions
from anthesis.errors import RequestError
from anthesis.evaluate.request import WINDOW, Request
from anthesis.evaluate.result import Against, Evaluation, Text
from anthesis.evaluate.score import Scores, exp, score_window
from anthesis.evaluate.text import read_text, windows_of
from anthesis.llm import LLM
from anthesis.parallel.variables import launched
from anthesis.units import amount

Progress = Callable[[int, int], None]
"""Told how many windows are done, of how many."""


def evaluate(
    request: Request,
    progress: Progress = lambda done, total: None,
    load: Callable[[LLM], None] = LLM.load,
) -> Evaluation:
    """Predicts a text, and says how well that went; docs/measuring.md has the formulas.

    Args:
        request: which text, and by what.
        progress: told before the first window and after each.
        load: reads a model's weights.

    Raises:
        RequestError: a text that can't be read or is too short, a model without tokenizer, a window that does not fit
            its context, or two models that do not fit into the memory.
        AnthesisError: a model whose logits are not finite, or that is off by more than numbers can hold.
    """
    started_at = now()
    text = read_text(Path(request.text))
    if request.against is not None and request.tp * request.pp > 1 and launched() is not None:
        raise RequestError(
            "the ranks that a launcher has started serve one model, and comparing takes two; leave the launcher out: "
            "tp and pp start the ranks"
        )
    with ExitStack() as opened:
        llm = opened.enter_context(LLM(**request.opening(request.weights), load=False))
        window = request.window or min(WINDOW, llm.max_context or WINDOW)
        windows = windows_of(llm, text, window, request.tokens)
        other = None
        if request.against is not None:
            other = opened.enter_context(LLM(**request.opening(request.against), load=False))
            _check_room(request, llm, other)
            load(other)
        load(llm)
        begin = time.perf_counter()
        scores = Scores()
        progress(0, len(windows.pieces))
        for piece in windows.pieces:
            scores.windows.append(score_window(piece, llm, other))
            progress(len(scores.windows), len(windows.pieces))
        return Evaluation(
            started_at=started_at,
            request=asdict(request),
            command=request.command(),
            text=Text(
                name=text.name,
                sha256=text.sha256,
                scored_tokens=windows.scored,
                windows=len(windows.pieces),
                window_tokens=windows.size,
                left_out_tokens=windows.left_out,
            ),
            model=model_of(llm),
            device=device_of(llm),
            machine=this_machine(),
            versions={**versions(), **llm.loaded.device.versions()},
            quality=scores.quality(),
            against=None if other is None else _against(other, scores),
            took_s=time.perf_counter() - begin,
            commit=commit(),
        )


def _against(other: LLM, scores: Scores) -> Against:
    log_ratio, log_ratio_error = scores.log_ratio()
    mean_kl, kl_error = scores.mean_kl()
    return Against(
        model=model_of(other),
        quality=scores.quality("other_nll"),
        mean_kl=mean_kl,
        kl_standard_error=kl_error,
        max_kl=max(window.max_kl for window in scores.windows),
        greedy_agreement=scores.mean("agreed"),
        perplexity_ratio=exp(log_ratio),
        log_ratio_standard_error=log_ratio_error,
    )


def _check_room(request: Request, llm: LLM, other: LLM) -> None:
    """Refuses what can't be loaded at once, before any of it is read."""
    info = other.device_info
    sharers = other.loaded.seat.sharers if info.uses_host_memory else 1
    sizes = [sharers * model.loaded.weight_bytes for model in (llm, other)]
    free = info.memory_bytes
    if sum(sizes) > free:
        raise RequestError(
            f"both are loaded at once, and {amount(sizes[0], 'B')} of {request.weights} weights and "
            f"{amount(sizes[1], 'B')} of {request.against} do not fit into the {amount(free, 'B')} that are free on "
            f"{info.name}; compare kinds of fewer bits, or a smaller model"
        )
