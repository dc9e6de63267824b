"""`anthesis generate`: prompts in, text out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from anthesis.cli import options
from anthesis.cli.document import check_output, print_json, write_json
from anthesis.cli.launched import leave_to_rank_zero
from anthesis.cli.loading import load
from anthesis.cli.prompts import Prompt, check_seed, check_texts, check_tokenizer, read_prompts
from anthesis.cli.summary import completions_document, summary_lines
from anthesis.cli.terminal import dim, tell
from anthesis.errors import RequestError

if TYPE_CHECKING:
    from anthesis import LLM, Completion

HEADING_CHARACTERS = 72


def generate(
    model: options.Model = None,
    prompt: options.Prompts = None,
    prompt_ids: options.PromptIds = None,
    prompt_tokens: options.PromptTokens = None,
    chat: options.Chat = False,
    max_new_tokens: options.MaxNewTokens = 100,
    min_new_tokens: options.MinNewTokens = 0,
    ignore_eos: options.IgnoreEos = False,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    no_repeat_ngram_size: options.NoRepeatNgramSize = None,
    bad_words: options.BadWords = None,
    forced_prefix: options.ForcedPrefix = None,
    logit_bias: options.LogitBias = None,
    stop: options.Stop = None,
    num_beams: options.NumBeams = 1,
    length_penalty: options.LengthPenalty = 1.0,
    early_stopping: options.EarlyStoppingFlag = False,
    num_return_sequences: options.NumReturnSequences = 1,
    logprobs: options.Logprobs = None,
    seed: options.Seed = None,
    weights: options.Weights = "native",
    device: options.Device = "auto",
    tp: options.Tp = 1,
    pp: options.Pp = 1,
    threads: options.Threads = None,
    max_context: options.MaxContext = None,
    cache: options.Cache = "auto",
    cache_memory: options.CacheMemory = None,
    prefill_chunk: options.PrefillChunk = None,
    reuse_prefixes: options.ReusePrefixes = True,
    speculate: options.Speculate = None,
    invariant: options.Invariant = False,
    adapter: options.Adapter = None,
    batch: options.Batch = None,
    json: options.Json = False,
    output: options.OutputFile = None,
) -> None:
    """Complete prompts, several together. A model without tokenizer prints token ids.

    $ anthesis generate -p "DeepSpeed is a machine learning framework" -n 50
    \f
    Raises:
        RequestError: flags that don't go together; and as `LLM` and `LLM.generate`.
    """
    leave_to_rank_zero(tp, pp)
    if logprobs is not None and not json and output is None:
        raise RequestError("--logprobs has nowhere to go; add --json or -o FILE, which hold them")
    sampling: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "ignore_eos": ignore_eos,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": options.stop_texts(stop),
        "logprobs": logprobs,
        "min_new_tokens": min_new_tokens,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "bad_words": tuple(bad_words or ()),
        "forced_prefix": forced_prefix,
        "logit_bias": options.logit_biases(logit_bias),
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
        "num_return_sequences": num_return_sequences,
    }
    from anthesis.engine.blocks import check_batch
    from anthesis.engine.sampling import SamplingParams
    from anthesis.llm import LLM

    SamplingParams.given(**sampling)  # what is wrong with them is better said before a model is loaded
    if num_beams > 1 and speculate is not None:
        raise RequestError("--speculate has no effect on a beam search, which drafts nothing; leave one of them out")
    check_batch(batch)
    if output is not None:
        check_output(output)
    prompts = read_prompts(prompt or [], prompt_ids or [], prompt_tokens, model)
    llm = LLM(
        model,
        weights=weights,
        device=device,
        tp=tp,
        pp=pp,
        threads=threads,
        max_context=max_context,
        cache=cache,
        cache_memory=cache_memory,
        prefill_chunk=prefill_chunk,
        reuse_prefixes=reuse_prefixes,
        speculate=speculate,
        invariant=invariant,
        adapter=adapter,
        seed=seed or 0,
        load=False,
    )
    with llm:
        check_tokenizer(llm, prompts, chat)
        check_texts(llm, {"--bad-words": bad_words, "--forced-prefix": forced_prefix})
        check_seed(llm, seed, temperature)
        load(llm)
        if prompt_tokens is not None:
            prompts = [llm.made_up_prompt(prompt_tokens)]
        request = {**sampling, "seed": seed, "chat": chat}
        is_one = len(prompts) == num_beams == num_return_sequences == 1
        if json or not is_one or llm.tokenizer is None:
            completions = llm.generate(prompts, **request, batch=batch)
            if not json:
                _print_completions(prompts, completions, num_return_sequences)
        else:
            completions = [_stream(llm, prompts[0], request)]
        if json or output is not None:
            asked = {**request, "reuse_prefixes": reuse_prefixes, "speculate": speculate}
            document = completions_document(llm, asked, prompts, completions)
            if json:
                print_json(document)
            if output is not None:
                write_json(document, output)
        if not json:
            sys.stdout.flush()
        for line in summary_lines(llm, completions, speculate):
            tell(line)


def _stream(llm: LLM, prompt: Prompt, request: dict[str, Any]) -> Completion:
    """Prints a completion as it comes: on a terminal behind its prompt, so that it reads as one text."""
    with llm.stream(prompt, **request) as stream:
        if isinstance(prompt, str) and not request["chat"] and sys.stdout.isatty():
            print(dim(prompt, sys.stdout), end="", flush=True)
        for piece in stream:
            print(piece, end="", flush=True)
        print(flush=True)
        return stream.completion


def _print_completions(prompts: list[Prompt], completions: list[Completion], per_prompt: int) -> None:
    """Prints completions below their prompts, where there are several, and with their numbers, where a prompt has."""
    for i, completion in enumerate(completions):
        number, of_prompt = divmod(i, per_prompt)
        if len(prompts) > 1 and of_prompt == 0:
            print(dim(f"[{number + 1}/{len(prompts)}] {_heading(prompts[number])}", sys.stdout))
        if per_prompt > 1:
            score = "" if completion.score is None else f" score {completion.score:.4f}"
            print(dim(f"({of_prompt + 1}/{per_prompt}){score}", sys.stdout))
        print(_ids(completion.token_ids) if completion.text is None else completion.text)


def _heading(prompt: Prompt) -> str:
    text = " ".join(prompt.split()) if isinstance(prompt, str) else _ids(prompt)
    return text if len(text) <= HEADING_CHARACTERS else text[: HEADING_CHARACTERS - 1] + "…"


def _ids(ids: list[int]) -> str:
    return ",".join(map(str, ids))
