"""What the bytes of an output depend on: request, rows, model and what computes it; and whether two agree on it."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import anthesis
from anthesis.bench.machine import this_machine, versions
from anthesis.bench.subject import Device, Machine
from anthesis.dataset.read import DataSet
from anthesis.dataset.request import Request
from anthesis.devices.device import DeviceInfo
from anthesis.engine.sampling import SamplingParams
from anthesis.errors import RequestError
from anthesis.json_text import number_or_text
from anthesis.llm import LLM
from anthesis.records import to_document

logger = logging.getLogger("anthesis")

_MADE_BY = ("model", "device", "anthesis")
"""What of it is known only once the model is open."""

_NOT_OF_A_ROW = ("seed", "logprobs", "num_beams", "length_penalty", "early_stopping", "num_return_sequences")
"""Parameters that no row has, or each its own."""


class Computed(Protocol):
    """A record of what computed some rows."""

    @property
    def device(self) -> Device:
        """Where."""

    @property
    def machine(self) -> Machine:
        """On which processor."""

    @property
    def versions(self) -> dict[str, str]:
        """Of packages, by name."""


def wanted_of(request: Request, dataset: DataSet, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the rows depend on, as far as it is known before the model is opened.

    Args:
        request: what to do with each row.
        dataset: the rows.
        before: the same of rows that are there, whose seed goes on; or None.
    """
    sampling = to_document(request.params)  # as the summary has it
    constraints = _constraints(request.params)
    for name in (*_NOT_OF_A_ROW, *constraints):
        del sampling[name]
    seed = None
    if sampling["temperature"] > 0:  # else nothing depends on it
        seed = request.seed
        if seed is None and before is not None:
            seed = before.get("seed")
        if seed is None:
            seed = secrets.randbits(63)
    return {
        "data_set": dataset.identity,
        "prompt_tokens": request.prompt_tokens,
        **sampling,
        "seed": seed,
        # only those that were given: outputs of versions without them can go on
        **{name: value for name, value in constraints.items() if value},
    }


def _constraints(params: SamplingParams) -> dict[str, Any]:
    """As a document holds them; the order of bad words and biases says nothing."""
    return {
        "min_new_tokens": params.min_new_tokens,
        "no_repeat_ngram_size": params.no_repeat_ngram_size,
        "bad_words": sorted((_held(word) for word in params.bad_words), key=repr),
        "forced_prefix": None if params.forced_prefix is None else _held(params.forced_prefix),
        "logit_bias": {str(token): number_or_text(bias) for token, bias in sorted(params.logit_bias)},
    }


def _held(word: str | tuple[int, ...]) -> str | list[int]:
    return word if isinstance(word, str) else list(word)


def made_by(llm: LLM) -> dict[str, Any]:
    """What else they depend on: the model, and what computes it.

    Raises:
        RequestError: the model can't read texts.
    """
    if llm.tokenizer is None:
        raise RequestError(f"{llm.description} has no tokenizer, so it can't read the texts of a data set")
    return {
        "model": {
            "description": llm.description,
            "sampled_sha256": llm.fingerprint,
            "weights": "+".join(llm.loaded.weight_kinds),
            "cache": llm.loaded.cache_dtype,
            "max_context": llm.max_context,
        },
        "device": {
            "name": llm.device_info.name,
            "arithmetic": llm.device_info.arithmetic,
            # sums over ranks are added in another order, stages change nothing
            **({"tp": llm.layout.tp} if llm.layout.tp > 1 else {}),
        },
        "anthesis": anthesis.__version__,
    }


def known_unopened(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What of it can be compared before the model is open."""
    return {name: value for name, value in wanted.items() if name not in _MADE_BY}


def check_same(output: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to mix the rows of two requests.

    Args:
        output: where the rows are.
        then: what they depend on.
        now: what those depend on that are to come.

    Raises:
        RequestError: it is not the same; the message names what differs.
    """
    differences = list(_differences("", then, now))
    if differences:
        raise RequestError(
            f"{output} belongs to another request: {'; '.join(differences)}. Move it away, or name another file with -o"
        )


def warn_of_another_computer(before: Computed, device: DeviceInfo) -> None:
    """Says that the last bits of the arithmetic may be other ones, which now and then change a token."""
    then = computer_of(before)
    now = _computer(this_machine().processor, device.description, versions()["numpy"])
    if then != now:
        logger.warning(
            "the rows that are there were computed on %s, and this is %s: the output may differ from a run without "
            "interruption",
            then,
            now,
        )


def computer_of(computed: Computed) -> str:
    """What may change the last bits: the processor, what a device says of itself, and NumPy's version."""
    return _computer(computed.machine.processor, computed.device.description, computed.versions.get("numpy"))


def _computer(processor: str, device: str, numpy: str | None) -> str:
    device = re.sub(r", \d+ threads?$", "", device)  # which change nothing
    return f"{device if processor in device else f'{device}, {processor}'} with NumPy {numpy}"


def _differences(name: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in {**then, **now}:
            yield from _differences(f"{name}.{key}" if name else key, then.get(key), now.get(key))
    elif then != now:
        if name.endswith("sampled_sha256"):
            yield f"the content of its {'data set' if name.startswith('data') else 'model'} is another one now"
        else:
            yield f"{name} was {then!r} and is {now!r} now"
