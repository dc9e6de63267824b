"""Greedy search and sampling step by step: the scores of all rows come out, processors and criteria see them.

Rows, padding and the order of things are those of transformers, so that what runs on them there runs here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from anthesis.engine.group import OVER
from anthesis.hf.request import Request
from anthesis.llm import LLM


@dataclass
class Record:
    """What is kept of each step, where it was asked for.

    Attributes:
        scores: (N, V) float32 of each step, as the processors left them; None: not asked for.
        logits: (N, V) float32 of each step, as the model gave them; None: not asked for.
    """

    scores: tuple[torch.Tensor, ...] | None
    logits: tuple[torch.Tensor, ...] | None

    @staticmethod
    def of(request: Request) -> Record:
        """An empty one that keeps what the request asks for."""
        config = request.config
        kept = config.return_dict_in_generate
        return Record(() if kept and config.output_scores else None, () if kept and config.output_logits else None)

    def add(self, scores: torch.Tensor, logits: torch.Tensor) -> None:
        """Keeps those of a step.

        Args:
            scores: (N, V) float32.
            logits: (N, V) float32.
        """
        if self.scores is not None:
            self.scores += (scores.clone(),)
        if self.logits is not None:
            self.logits += (logits.clone(),)


def search(
    llm: LLM, request: Request, processors: LogitsProcessorList, criteria: StoppingCriteriaList
) -> tuple[torch.Tensor, Record]:
    """Takes the best token of each row at each step, or draws one.

    Args:
        llm: the model.
        request: of the call.
        processors: of the scores.
        criteria: that end rows.

    Returns:
        (N, T) int64, prompts and completions, and what was kept of the steps.
    """
    rows, record, streamer = request.rows, Record.of(request), request.extras.streamer
    # where nothing tells an end, transformers goes on with rows that are over until all are
    ends_rows = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
    running = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    with llm.lockstep(request.prompts, max_new_tokens=request.max_new_tokens, width=request.width) as lockstep:
        while True:
            logits = torch.from_numpy(lockstep.logits()).to(rows.device, torch.float32)
            scores = processors(rows, usable(logits, llm.config.usable_vocab_size))
            record.add(scores, logits)
            if request.config.do_sample:
                tokens = torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[:, 0]
            else:
                tokens = scores.argmax(dim=-1)
            if ends_rows:
                assert request.pad is not None
                tokens = torch.where(running, tokens, request.pad)
            rows = torch.cat([rows, tokens[:, None]], dim=1)
            running = running & ~criteria(rows, record.scores)
            if streamer is not None:
                streamer.put(tokens.cpu())
            if not running.any():
                return rows, record
            alive = running if ends_rows else torch.ones_like(running)
            lockstep.advance(torch.where(alive, tokens, OVER).tolist())


def usable(logits: torch.Tensor, size: int) -> torch.Tensor:
    """A copy in which ids that stand for nothing, rows that pad the embedding, never come.

    Args:
        logits: (N, V) float32.
        size: usable ids.

    Returns:
        (N, V) float32.
    """
    scores = logits.clone()
    scores[:, size:] = -torch.inf
    return scores
