"""A model that transformers' users meet as one of theirs, and that Anthesis runs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig, GenerationMixin
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutput

from anthesis.errors import RequestError, UnsupportedError, check_counts
from anthesis.hf import beams, direct, stepwise
from anthesis.hf.in_memory import in_memory_model
from anthesis.hf.loading import check_llm_arguments, configurations
from anthesis.hf.options import check_arguments, resolve
from anthesis.hf.processors import logits_processors, stopping_criteria
from anthesis.hf.request import Extras, Request, make_request
from anthesis.hf.tokenizer import transformers_tokenizer
from anthesis.llm import LLM

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

_TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class AnthesisForCausalLM:
    """A causal language model with the interface of transformers' own; `from_pretrained` and `accelerate` make one.

    Calls may come from any thread and take turns.

    Attributes:
        llm: the model beneath.
        config: transformers' configuration of the model.
        generation_config: what `generate` takes from the model where a call does not say.
        name_or_path: where the model came from.
        main_input_name, input_modalities, output_modalities: as transformers' models say of themselves.
        training: always False; weights are only read.
    """

    main_input_name = "input_ids"
    input_modalities = "text"
    output_modalities = ("text",)
    training = False

    def __init__(self, llm: LLM, config: Any, generation_config: GenerationConfig, name_or_path: str) -> None:
        self.llm = llm
        self.config = config
        self.generation_config = generation_config
        self.name_or_path = name_or_path
        self._turn = RLock()

    @staticmethod
    def from_pretrained(name_or_path: str | Path | None = None, **llm_arguments: Any) -> AnthesisForCausalLM:
        """Loads a model.

        Args:
            name_or_path: a Hub id, a directory, a .gguf file, `random:NAME`; None: the embedded default.
            llm_arguments: of `anthesis.LLM`: weights, device, tp, threads, cache, ...

        Raises:
            AnthesisError: as `LLM`.
            UnsupportedError: an argument of transformers that has another name here.
        """
        check_llm_arguments(llm_arguments)
        llm = LLM(None if name_or_path is None else str(name_or_path), **llm_arguments)
        config, generation = configurations(llm)
        return _class_of(config)(llm, config, generation, str(llm.path or name_or_path))

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Completes prompts, as `transformers.GenerationMixin.generate` does.

        Args:
            inputs: (B, T) of integers, token ids, padded on the left; also spelled `input_ids`.
            generation_config: what to do; `kwargs` go before it.
            logits_processor: processors of your own, besides those that the configuration asks for.
            stopping_criteria: criteria of your own, besides those that the configuration asks for.
            prefix_allowed_tokens_fn: (row, its ids so far (T,) int64) -> ids that may follow.
            streamer: is given the prompt and each token as it comes.
            kwargs: `attention_mask` (B, T), `tokenizer` (for stop strings), and fields of `GenerationConfig`.

        Returns:
            (N, T') int64: prompts and completions, N = B times num_return_sequences; with return_dict_in_generate a
            `GenerateDecoderOnlyOutput` or `GenerateBeamDecoderOnlyOutput`.

        Raises:
            RequestError: a wrong argument; it is named.
            UnsupportedError: an argument that is not supported here; the message says what to do.
            ValueError: of transformers, for a value that it refuses.
        """
        extras = Extras(logits_processor or (), stopping_criteria or (), prefix_allowed_tokens_fn, streamer)
        request = self.request(inputs, generation_config, extras, **kwargs)
        with self._turn, torch.no_grad():
            if streamer is not None:
                streamer.put(request.rows.cpu())
            result = self._run(request)
            if streamer is not None:
                streamer.end()
        sequences = result if isinstance(result, torch.Tensor) else result.sequences
        if request.reaches_context and sequences.shape[1] == request.max_length:
            warnings.warn(
                f"a completion ended where the model's context of {self.llm.max_context} tokens does, before "
                "max_new_tokens or max_length",
                stacklevel=2,
            )
        return result

    def request(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        extras: Extras | None = None,
        **kwargs: Any,
    ) -> Request:
        """What a call of `generate` asks for, checked and complete.

        Args:
            inputs: (B, T) of integers, as for `generate`.
            generation_config: as for `generate`.
            extras: objects of the caller's.
            kwargs: as for `generate`.

        Raises:
            RequestError: a wrong argument; it is named.
            ValueError: of transformers, for a value that it refuses.
        """
        own, given = self.generation_config, generation_config
        extras = replace(extras or Extras(), tokenizer=kwargs.pop("tokenizer", None))
        ids = kwargs.pop("input_ids", None)
        if ids is not None and inputs is not None:
            raise RequestError("inputs and input_ids are two names of one argument; give one of them")
        mask = kwargs.pop("attention_mask", None)
        unset = {
            name: all(source is None for source in (kwargs.get(name), getattr(given, name, None), getattr(own, name)))
            for name in ("max_length", "min_length")
        }
        config, rest = resolve(own, given, kwargs)
        check_arguments("generate", rest)
        check_counts(num_beams=config.num_beams, num_return_sequences=config.num_return_sequences)
        if extras.streamer is not None and (config.num_beams or 1) > 1:
            raise RequestError("a streamer shows tokens as they come, and beam search knows them at its end; drop one")
        return make_request(
            config,
            extras,
            inputs if ids is None else ids,
            mask,
            has_default_max_length=unset["max_length"],
            has_default_min_length=unset["min_length"],
            max_positions=getattr(self.config, "max_position_embeddings", None),
            max_context=self.llm.max_context,
        )

    def _run(self, request: Request) -> Any:
        config = request.config
        how = direct.plan(self.llm, request)
        if how is not None:
            rows = direct.run(self.llm, request, how)
            return GenerateDecoderOnlyOutput(sequences=rows) if config.return_dict_in_generate else rows
        processors = logits_processors(request, self.llm.config.vocab_size)
        criteria = stopping_criteria(request, getattr(self.config, "max_position_embeddings", None))
        if request.pad is None and any(hasattr(criterion, "eos_token_id") for criterion in criteria):
            raise RequestError(
                "a row may end before others do, and there is no pad_token_id to fill it up with; give one"
            )
        if (config.num_beams or 1) > 1:
            found = beams.search(self.llm, request, processors, criteria)
            if not config.return_dict_in_generate:
                return found.sequences
            return GenerateBeamDecoderOnlyOutput(
                sequences=found.sequences,
                sequences_scores=found.scores if config.output_scores else None,
                scores=found.record.scores,
                logits=found.record.logits,
                beam_indices=found.beam_indices,
            )
        rows, record = stepwise.search(self.llm, request, processors, criteria)
        if not config.return_dict_in_generate:
            return rows
        return GenerateDecoderOnlyOutput(sequences=rows, scores=record.scores, logits=record.logits)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The logits after each token, and the loss of labels; nothing is differentiated.

        Args:
            input_ids: (B, T) of integers, token ids.
            attention_mask: (B, T) of integers, 0 for padding, whose logits are zeros.
            labels: (B, T) of integers, the ids that should stand there; -100 for those that do not count.
            return_dict: give a `CausalLMOutput`, not a tuple.
            kwargs: refused.

        Returns:
            `CausalLMOutput`: logits (B, T, V) float32, loss () float32 where there are labels.

        Raises:
            RequestError: a wrong argument; it is named.
            UnsupportedError: an argument that is not supported here; the message says what to do.
        """
        check_arguments("forward", kwargs)
        if input_ids.ndim != 2:
            raise RequestError(f"input_ids must have the shape (batch, tokens), and have {tuple(input_ids.shape)}")
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        if mask.shape != input_ids.shape:
            raise RequestError(f"attention_mask has the shape {tuple(mask.shape)}, not {tuple(input_ids.shape)}")
        logits = torch.zeros(*input_ids.shape, self.llm.config.vocab_size, device=input_ids.device)
        with self._turn:
            for row, (ids, kept) in enumerate(zip(input_ids, mask, strict=True)):
                if kept.any():
                    found = torch.from_numpy(self.llm.logits(ids[kept].tolist()))
                    logits[row, kept] = found.to(logits.device, torch.float32)
        loss = None if labels is None else _loss(logits, labels, mask)
        if return_dict:
            return CausalLMOutput(loss=loss, logits=logits)
        return (logits,) if loss is None else (loss, logits)

    __call__ = forward

    def compute_transition_scores(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The score (N, T) float32 of each generated token; see `GenerationMixin.compute_transition_scores`."""
        return GenerationMixin.compute_transition_scores(self, *args, **kwargs)

    @cached_property
    def tokenizer(self) -> Any:
        """Transformers' tokenizer of the model; it pads on the left, as `generate` needs it.

        Raises:
            RequestError: the model came without one, as those in memory do.
        """
        return transformers_tokenizer(self.llm.tokenizer, self.llm.path, self.llm.description)

    @property
    def device(self) -> torch.device:
        """Where the model computes, as torch calls it; inputs may be anywhere, and outputs are where inputs are."""
        info = self.llm.device_info
        return torch.device("cpu") if info.uses_host_memory else torch.device(info.name, 0)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; float32, in which logits come, where torch has none like it (int4 and others)."""
        kinds = self.llm.loaded.weight_kinds
        return _TORCH_DTYPES.get(kinds[0], torch.float32) if len(kinds) == 1 else torch.float32

    @property
    def hf_device_map(self) -> dict[str, torch.device] | None:
        """Tells a pipeline to leave the model where it is, on a machine with a card that it does not run on."""
        on_host = self.llm.device_info.uses_host_memory
        return {"": self.device} if on_host and torch.accelerator.is_available() else None

    def can_generate(self) -> bool:
        """True."""
        return True

    def eval(self) -> Self:
        """The model itself, which is never in training."""
        return self

    def train(self, mode: bool = True) -> Self:
        """The model itself, if it is not to be trained.

        Raises:
            UnsupportedError: it is.
        """
        if mode:
            raise UnsupportedError("Anthesis only runs models; train the transformers model, then accelerate it")
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The model itself, if that is where it is, in that dtype.

        Raises:
            UnsupportedError: another device or dtype.
        """
        for wanted in (*args, *kwargs.values()):
            if isinstance(wanted, bool):
                continue  # non_blocking, copy: how to move what does not move
            if isinstance(wanted, torch.dtype):
                here = wanted == self.dtype
            else:
                device = torch.device(wanted)
                here = (device.type, device.index or 0) == (self.device.type, self.device.index or 0)
            if not here:
                raise UnsupportedError(
                    f"this model is on {self.device} in {self.dtype} and can't be moved to {wanted}; choose device= "
                    "and weights= when it is made"
                )
        return self

    def close(self) -> None:
        """Frees weights and cache."""
        self.llm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def accelerate(model: Any, **llm_arguments: Any) -> AnthesisForCausalLM:
    """A transformers model that is in memory, run by Anthesis from now on.

    Its weights are read once and are not needed any more: `model` may be deleted, or trained on without effect here.

    Args:
        model: a `PreTrainedModel` for causal language modelling, of a family that Anthesis knows.
        llm_arguments: of `anthesis.LLM`: weights, device, threads, cache, ...; tp and pp only as 1.

    Raises:
        UnsupportedError: another kind of model, a quantised one, or several ranks.
        AnthesisError: as `LLM`.
    """
    check_llm_arguments(llm_arguments)
    llm = LLM(in_memory_model(model), **llm_arguments)
    config = copy.deepcopy(model.config)
    generation = copy.deepcopy(model.generation_config) or GenerationConfig.from_model_config(config)
    return _class_of(config)(llm, config, generation, model.name_or_path)


@cache
def _class_named(name: str) -> type[AnthesisForCausalLM]:
    doc = f"`AnthesisForCausalLM` under the name that pipelines know: they look {name} up in a list."
    return type(name, (AnthesisForCausalLM,), {"__doc__": doc, "__module__": __name__})


def _class_of(config: Any) -> type[AnthesisForCausalLM]:
    return _class_named(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__)


def _loss(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of -log p of the labels, each under the logits one place before it."""
    if labels.shape != mask.shape:
        raise RequestError(f"labels have the shape {tuple(labels.shape)}, not that of input_ids, {tuple(mask.shape)}")
    if bool(((labels[:, 1:] != -100) & ~mask[:, :-1]).any()):
        raise RequestError("labels behind padding have no logits that score them; set them to -100")
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
