"""Beam search step by step, as `stepwise.search`: processors and criteria see all beams of all prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from anthesis.engine.beams import BeamSearch
from anthesis.hf.request import Request
from anthesis.hf.stepwise import Record, next_logits, usable
from anthesis.llm import LLM


@dataclass
class Prompt:
    """The beams of one prompt.

    Attributes:
        search: tells which candidates go on.
        scores: (W,) float32, sums of log-probabilities of its beams.
        rows: the token lists of its beams before each step, by which the way of a hypothesis is found again.
        over: it has all its hypotheses.
    """

    search: BeamSearch
    scores: torch.Tensor
    rows: list[dict[tuple[int, ...], int]] = field(default_factory=list)
    over: bool = False


@dataclass(frozen=True)
class Beams:
    """What beam search found.

    Attributes:
        sequences: (N, T) int64, prompts and completions.
        scores: (N,) float32, of the sequences.
        beam_indices: (N, T') int32, the row that each generated token came from, -1 behind the end.
        record: what was kept of the steps.
    """

    sequences: torch.Tensor
    scores: torch.Tensor
    beam_indices: torch.Tensor
    record: Record


def search(llm: LLM, request: Request, processors: LogitsProcessorList, criteria: StoppingCriteriaList) -> Beams:
    """The best sequences of each prompt, as many as were asked for.

    Args:
        llm: the model.
        request: of the call.
        processors: of the log-probabilities.
        criteria: that end candidates.
    """
    config, width, record = request.config, request.width, Record.of(request)
    device, length = request.ids.device, request.ids.shape[1]
    rows = request.rows
    prompts = [_prompt(request) for _ in request.ids]
    num_candidates = prompts[0].search.num_candidates
    running = torch.ones(len(rows), dtype=torch.bool, device=device)
    with llm.lockstep(request.prompts, max_new_tokens=request.max_new_tokens, width=width) as lockstep:
        while True:
            logits = next_logits(lockstep.logits(), request, running)
            log_probs = processors(rows, torch.log_softmax(usable(logits, llm.config.usable_vocab_size), dim=-1))
            record.add(log_probs, logits)
            summed = log_probs.view(len(prompts), width, -1) + torch.stack([p.scores for p in prompts])[:, :, None]
            best, chosen = _choose(summed.flatten(1), num_candidates, bool(config.do_sample))
            beams, tokens = chosen // log_probs.shape[-1], chosen % log_probs.shape[-1]
            parents = beams + torch.arange(len(prompts), device=device)[:, None] * width
            candidates = torch.cat([rows[parents.flatten()], tokens.reshape(-1, 1)], dim=1)
            ends = criteria(candidates, record.scores).view(len(prompts), -1)
            sources = np.arange(len(rows))
            following = np.full(len(rows), -1)
            for i, prompt in enumerate(prompts):
                if prompt.over:
                    continue
                own = slice(i * width, (i + 1) * width)
                texts = [tuple(row) for row in rows[own, length:].tolist()]
                prompt.rows.append({text: texts.index(text) for text in texts})  # the best of those that are alike
                gained = log_probs[parents[i], tokens[i]]
                went = prompt.search.advance(*(_array(a) for a in (beams[i], tokens[i], gained, ends[i])))
                if went is None:
                    prompt.over = True
                    continue
                sources[own], following[own] = went[0] + i * width, went[1]
                kept = {(int(b), int(t)): s for b, t, s in zip(beams[i], tokens[i], best[i], strict=True)}
                prompt.scores = torch.stack([kept[int(b), int(t)] for b, t in zip(*went, strict=True)])
            shown = torch.as_tensor(np.maximum(following, 0), device=device)
            rows = torch.cat([rows[torch.as_tensor(sources, device=device)], shown[:, None]], dim=1)
            running = torch.as_tensor(following >= 0, device=device)
            if not running.any():
                return _found(request, prompts, record)
            lockstep.advance(following, sources)


def _prompt(request: Request) -> Prompt:
    config = request.config
    search = BeamSearch(
        request.width,
        max_new_tokens=request.max_new_tokens,
        end_ids=frozenset(request.ends),
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
    )
    scores = torch.zeros(request.width, device=request.ids.device)
    scores[1:] = -1e9  # the beams begin alike: one of them goes on at first
    return Prompt(search, scores)


def _choose(summed: torch.Tensor, count: int, draw: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The best candidates of each prompt, or some that are drawn: their sums and places, (B, C) each."""
    if not draw:
        best = summed.topk(count)
        return best.values, best.indices
    places = torch.multinomial(torch.softmax(summed, dim=-1), count)
    return summed.gather(1, places), places


def _array(tensor: torch.Tensor) -> Any:
    return tensor.cpu().numpy()


def _found(request: Request, prompts: list[Prompt], record: Record) -> Beams:
    count = request.config.num_return_sequences
    found = [(i, *one) for i, prompt in enumerate(prompts) for one in prompt.search.hypotheses(count)]
    longest = max(len(tokens) for _, _, tokens in found)
    # a padding id of 0 is none to transformers' beam search, which then takes the first end
    fill = (request.pad or request.ends[0]) if request.ends else -1
    completions = torch.full((len(found), longest), fill)
    indices = torch.full((len(found), longest), -1, dtype=torch.int32)
    for row, (i, _, tokens) in enumerate(found):
        completions[row, : len(tokens)] = torch.as_tensor(list(tokens))
        for step in range(len(tokens)):
            indices[row, step] = prompts[i].rows[step][tuple(tokens[:step])] + i * request.width
    device = request.ids.device
    texts = request.ids.repeat_interleave(count, dim=0)
    scores = torch.tensor([score for _, score, _ in found], dtype=torch.float32, device=device)
    return Beams(torch.cat([texts, completions.to(device)], dim=1), scores, indices.to(device), record)
