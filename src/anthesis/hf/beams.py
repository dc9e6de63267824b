"""Beam search step by step, as `stepwise.search`: processors and criteria see all beams of all prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from anthesis.engine.beams import BeamSearch
from anthesis.engine.group import OVER
from anthesis.hf.release import BEST_DRAW_FIRST, release
from anthesis.hf.request import Request
from anthesis.hf.stepwise import Record, usable
from anthesis.llm import LLM


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
    device, count = request.ids.device, len(request.ids)
    rows, numbers = request.rows, np.arange(count * width)
    searches = [_search(request) for _ in range(count)]
    with llm.lockstep(request.prompts, max_new_tokens=request.max_new_tokens, width=width) as lockstep:
        while True:
            logits = torch.from_numpy(lockstep.logits()).to(device, torch.float32)
            log_probs = processors(rows, torch.log_softmax(usable(logits, llm.config.usable_vocab_size), dim=-1))
            record.add(log_probs, logits)
            so_far = torch.from_numpy(np.concatenate([one.scores for one in searches])).to(device)
            summed = (log_probs + so_far[:, None]).view(count, -1)
            scores, chosen = _pick(summed, searches[0].num_candidates, bool(config.do_sample))
            beams, tokens = chosen // log_probs.shape[1], chosen % log_probs.shape[1]
            origins = (beams + torch.arange(count, device=device)[:, None] * width).flatten()
            ends = criteria(torch.cat([rows[origins], tokens.reshape(-1, 1)], dim=1), record.scores).view(count, -1)
            parents, following = numbers.copy(), np.full(len(rows), OVER)
            for i, one in enumerate(searches):
                if one.over:
                    continue
                picked = zip(beams[i].tolist(), tokens[i].tolist(), scores[i].cpu().numpy(), strict=True)
                sources, chosen_tokens = one.choose(list(picked), ends[i].tolist())
                if not one.over:
                    own = slice(i * width, (i + 1) * width)
                    parents[own], following[own] = np.array(sources) + i * width, chosen_tokens
            if (following == OVER).all():
                return _found(request, searches, record)
            shown = torch.from_numpy(np.maximum(following, 0)).to(device)
            rows = torch.cat([rows[torch.from_numpy(parents).to(device)], shown[:, None]], dim=1)
            lockstep.advance(following.tolist(), parents.tolist())


def _search(request: Request) -> BeamSearch:
    config = request.config
    return BeamSearch(
        request.width,
        max_new_tokens=request.max_new_tokens,
        end_ids=frozenset(request.ends),
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
    )


def _pick(summed: torch.Tensor, count: int, draw: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The best continuations of each prompt's beams, or some that are drawn: their sums and places, (B, C) each."""
    if not draw:
        best = summed.topk(count)
        return best.values, best.indices
    places = torch.multinomial(torch.softmax(summed, dim=-1), count)
    drawn = summed.gather(1, places)
    if release() < BEST_DRAW_FIRST:
        return drawn, places
    drawn, order = drawn.sort(dim=1, descending=True)
    return drawn, places.gather(1, order)


def _found(request: Request, searches: list[BeamSearch], record: Record) -> Beams:
    count, width, device = request.config.num_return_sequences, request.width, request.ids.device
    found = [(i, best) for i, search in enumerate(searches) for best in search.hypotheses(count)]
    longest = max(len(best.tokens) for _, best in found)
    # a padding id of 0 is none to transformers' beam search, which then takes the first end
    fill = (request.pad or request.ends[0]) if request.ends else -1
    completions = torch.full((len(found), longest), fill, device=device)
    origins = torch.full((len(found), longest), -1, dtype=torch.int32, device=device)
    for row, (i, best) in enumerate(found):
        completions[row, : len(best.tokens)] = torch.tensor(best.tokens, device=device)
        origins[row, : len(best.beams)] = torch.tensor(best.beams, device=device) + i * width
    prompts = request.ids.repeat_interleave(count, dim=0)
    scores = torch.tensor([best.score for _, best in found], device=device)
    return Beams(torch.cat([prompts, completions], dim=1), scores, origins, record)
