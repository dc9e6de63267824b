"""Evaluations: against NumPy in float64 and transformers, windows counted by hand, and what is refused."""

from __future__ import annotations

import json
import math
import shlex
import signal
import struct
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anthesis import LLM, AnthesisError
from anthesis.errors import RequestError
from anthesis.evaluate import Evaluation, Request, evaluate
from anthesis.evaluate.score import divergence, exp, log_softmax, standard_error
from anthesis.evaluate.text import cut
from anthesis.memory import available_memory_bytes
from anthesis.models import family_of_config, trace
from command_line import Terminal, anthesis, command, fail, succeed, tiny_model
from text_model import CONFIG, text_model

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.\n",
    "def add(a, b):\n    return a + b\n",
    "Über den Wolken muss die Freiheit grenzenlos sein.\n",
    "1 2 3 4 5 6 7 8 9 10 11 12\n",
)
WINDOW = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(SENTENCES) * 3)
    return path


def run(model: Path, text: Path, **more: Any) -> Evaluation:
    return evaluate(Request(**{"model": str(model), "text": str(text), "device": "cpu", "window": WINDOW, **more}))


def windows_of(llm: LLM, text: Path, size: int = WINDOW) -> list[list[int]]:
    ids = llm.encode(text.read_text())
    return [ids[i : i + size] for i in range(0, len(ids), size)]


def true_log_probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """(T, V) from logits, in float64."""
    exact = logits.astype(np.float64)
    return exact - np.logaddexp.reduce(exact, axis=1)[:, None]


def test_perplexity_kl_and_agreement_are_those_of_numpy(model: Path, text: Path) -> None:
    found = run(model, text, weights="int4", against="fp32", cache="fp32")
    with (
        LLM(str(model), weights="int4", device="cpu", cache="fp32") as q,
        LLM(str(model), weights="fp32", device="cpu", cache="fp32") as p,
    ):
        windows = windows_of(q, text)
        losses_q, losses_p, kls, agreed = [], [], [], []
        for ids in windows:
            log_q, log_p = (true_log_probabilities(llm.logits(ids))[:-1] for llm in (q, p))
            places, following = np.arange(len(ids) - 1), ids[1:]
            losses_q.append(-log_q[places, following])
            losses_p.append(-log_p[places, following])
            kls.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
            agreed.append(log_p.argmax(axis=1) == log_q.argmax(axis=1))
    assert len(windows) > 3
    assert len(windows[-1]) < WINDOW, "the last window is to be a shorter one"
    against = found.against
    assert against is not None
    for quality, losses in ((found.quality, losses_q), (against.quality, losses_p)):
        assert quality.mean_nll == pytest.approx(np.concatenate(losses).mean(), rel=1e-9)
        assert quality.perplexity == pytest.approx(np.exp(np.concatenate(losses).mean()), rel=1e-9)
        assert quality.nll_standard_error == pytest.approx(true_error(losses), rel=1e-9)
    assert against.mean_kl == pytest.approx(np.concatenate(kls).mean(), rel=1e-9)
    assert against.kl_standard_error == pytest.approx(true_error(kls), rel=1e-9)
    assert against.max_kl == pytest.approx(np.concatenate(kls).max(), rel=1e-9)
    assert against.greedy_agreement == pytest.approx(np.concatenate(agreed).mean(), rel=1e-12)
    assert 0 < against.greedy_agreement < 1
    differences = [a - b for a, b in zip(losses_q, losses_p, strict=True)]
    assert against.perplexity_ratio == pytest.approx(np.exp(np.concatenate(differences).mean()), rel=1e-9)
    assert against.log_ratio_standard_error == pytest.approx(true_error(differences), rel=1e-9)
    assert against.model.weight_kinds == ("fp32",)
    assert found.model.weight_kinds == ("int4",)
    assert found.text.scored_tokens == sum(len(ids) - 1 for ids in windows)


def true_error(samples: list[NDArray[np.float64]]) -> float:
    """Of the mean, from what each window deviates from it, as the linear term of mean = sums / sizes has it."""
    sums, sizes = np.array([each.sum() for each in samples]), np.array([len(each) for each in samples])
    mean, n = sums.sum() / sizes.sum(), len(samples)
    influence = (sums - mean * sizes) / sizes.mean()  # whose mean is 0
    return float(influence.std() * math.sqrt(n / (n - 1)) / math.sqrt(n))


def test_perplexity_is_that_of_transformers(model: Path, text: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    truth = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).double().eval()
    losses: list[float] = []
    with LLM(str(model), load=False) as llm, torch.no_grad():
        for ids in windows_of(llm, text):
            tokens = torch.tensor([ids])
            losses += [float(truth(tokens, labels=tokens).loss)] * (len(ids) - 1)
    found = run(model, text, weights="fp32", device="reference-fp64", cache="fp32")
    assert found.quality.mean_nll == pytest.approx(np.mean(losses), rel=1e-4)
    assert found.quality.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-3)


def test_equal_weights_are_no_distance_apart(model: Path, text: Path) -> None:
    found = run(model, text, weights="native", against="fp32").against  # fp32 is what is stored
    assert found is not None
    assert (found.mean_kl, found.kl_standard_error, found.max_kl, found.greedy_agreement) == (0, 0, 0, 1)
    assert (found.perplexity_ratio, found.log_ratio_standard_error) == (1, 0)


def test_chunks_of_any_size_give_the_same(model: Path, text: Path) -> None:
    found = [run(model, text, weights="int8", against="fp32", prefill_chunk=chunk) for chunk in (None, 1, 7)]
    assert len({(each.quality, each.against) for each in found}) == 1


@pytest.mark.parametrize(
    ("ids", "size", "most", "pieces", "left_out"),
    [
        (10, 4, None, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], 0),
        (9, 4, None, [[0, 1, 2, 3], [4, 5, 6, 7]], 1),
        (8, 4, None, [[0, 1, 2, 3], [4, 5, 6, 7]], 0),
        (9, 4, 6, [[0, 1, 2, 3], [4, 5]], 3),
        (9, 4, 5, [[0, 1, 2, 3]], 5),
        (9, 4, 100, [[0, 1, 2, 3], [4, 5, 6, 7]], 1),
        (3, 512, None, [[0, 1, 2]], 0),
        (1, 4, None, [], 1),
    ],
)
def test_windows(ids: int, size: int, most: int | None, pieces: list[list[int]], left_out: int) -> None:
    windows = cut(list(range(ids)), size, most)
    assert (list(windows.pieces), windows.left_out) == (pieces, left_out)
    assert windows.scored == sum(len(piece) - 1 for piece in pieces)


def test_what_is_used_of_a_text_is_told(model: Path, text: Path) -> None:
    with LLM(str(model), load=False) as llm:
        whole = len(llm.encode(text.read_text()))
    told = run(model, text, tokens=3 * WINDOW + 1).text
    assert (told.name, told.windows, told.scored_tokens, told.window_tokens) == (text.name, 3, 3 * (WINDOW - 1), WINDOW)
    assert told.left_out_tokens == whole - 3 * WINDOW
    # 512 tokens are more than this model's context
    assert run(model, text, window=None).text.window_tokens == CONFIG["max_position_embeddings"]


def test_rows_that_pad_the_vocabulary_count_for_nothing(tmp_path: Path, text: Path) -> None:
    padded = text_model(tmp_path / "padded", vocab_size=1000)
    found = run(padded, text, weights="fp32")
    with LLM(str(padded), weights="fp32", device="cpu") as llm:
        assert llm.tokenizer is not None
        usable = llm.tokenizer.size
        assert usable < 1000
        losses: dict[int, list[float]] = {usable: [], 1000: []}
        for ids in windows_of(llm, text):
            logits = llm.logits(ids)
            for width, found_losses in losses.items():
                log = true_log_probabilities(logits[:-1, :width])
                found_losses += list(-log[np.arange(len(ids) - 1), ids[1:]])
    assert found.quality.mean_nll == pytest.approx(np.mean(losses[usable]), rel=1e-9)
    assert np.mean(losses[1000]) > np.mean(losses[usable]) + 1e-3


def test_standard_error_of_equal_windows_is_that_of_their_means() -> None:
    means = np.random.default_rng(0).normal(3, 1, 50)
    expected = means.std(ddof=1) / math.sqrt(50)
    assert standard_error(list(31 * means), [31] * 50) == pytest.approx(expected, rel=1e-12)
    assert standard_error([3.0], [31]) is None


def test_log_probabilities_of_logits_at_the_ends_of_their_range() -> None:
    logits = np.array([3e38, -3e38, 3e38, 0], np.float32)
    log = log_softmax(logits)
    np.testing.assert_allclose(log[[0, 2]], -math.log(2), rtol=1e-12)
    assert log[1] < -1e38
    assert divergence(log, log) == 0
    for bad in (np.inf, -np.inf, np.nan):
        with pytest.raises(AnthesisError, match="not finite"):
            log_softmax(np.array([0, bad], np.float32))
    with pytest.raises(AnthesisError, match="beyond all numbers"):
        exp(1000)


def test_memory_does_not_grow_with_the_text(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(SENTENCES) * 60)
    run(model, path, tokens=WINDOW)  # imports, and tables that are made once
    tracemalloc.start()
    try:
        scored = run(model, path).text.scored_tokens
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    with LLM(str(model), load=False) as llm:
        all_logits = scored * llm.config.vocab_size * 4
    assert peak < all_logits / 2, f"{peak:,} bytes; all logits together are {all_logits:,}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 1}, "window is 1; a token is predicted by those before it"),
        ({"tokens": 1}, "tokens is 1; a token is predicted by those before it"),
        ({"window": 97}, "a window of 97 tokens does not fit the context of 96"),
        ({"weights": "int8", "against": "int8"}, "the same predict the same"),
        ({"against": "native"}, "the same predict the same"),
        ({"weights": "int7"}, "int7"),
        ({"against": "nonsense"}, "nonsense"),
        ({"cache": "fp8"}, "unknown cache type"),
        ({"device": "abacus"}, "abacus"),
        ({"tp": 0}, "tp is 0"),
    ],
)
def test_requests_that_cannot_be_met(model: Path, text: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        run(model, text, **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no text in it"),
        (b" \n\t\n", "has no text in it"),
        (b"\xef\xbb\xbf", "has no text in it"),
        (b"caf\xe9 au lait", "is not UTF-8 text .* at byte 3"),
        (b"a", "has a single token"),
        (None, "can't be read: No such file"),
    ],
)
def test_texts_that_cannot_be_predicted(model: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        run(model, path)


def test_a_directory_and_a_model_without_tokenizer(model: Path, tmp_path: Path, text: Path) -> None:
    with pytest.raises(RequestError, match="a directory, pipe or device"):
        run(model, tmp_path)
    with pytest.raises(RequestError, match="has no tokenizer"):
        evaluate(Request(model=tiny_model(tmp_path), text=str(text), device="cpu"))


def test_a_byte_order_mark_is_no_part_of_the_text(model: Path, text: Path, tmp_path: Path) -> None:
    marked = tmp_path / "marked.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + text.read_bytes())
    assert run(model, marked).quality == run(model, text).quality


def test_two_models_that_do_not_fit_together(model: Path, tmp_path: Path, text: Path) -> None:
    """Of a file that is nearly all hole: each of the models alone would fit."""
    free = available_memory_bytes()
    hidden = 2048 * (1 + free // 10**11)  # rows of the embedding are limited
    raw = json.loads((model / "config.json").read_text())
    raw |= {"hidden_size": hidden, "vocab_size": int(0.8 * free) // (4 * hidden)}
    config = family_of_config(raw).read_config(raw)
    sources, header, end = family_of_config(raw).sources(config), {}, 0
    for value in trace(config).of_kind("weight"):
        size = 4 * math.prod(value.static_shape)
        header[f"model.{sources[value.name].name}"] = {
            "dtype": "F32",
            "shape": value.static_shape,
            "data_offsets": [end, end + size],
        }
        end += size
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    written = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        file.truncate(8 + len(written) + end)
    with pytest.raises(RequestError, match=r"both are loaded at once, and .* of native weights and .* of bf16"):
        run(tmp_path, text, against="bf16")


def test_the_command_writes_what_it_prints(model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    asked = ("--window", str(WINDOW), "--tokens", "70", "--weights", "int8", "--against", "fp32", "--device", "cpu")
    printed = succeed("evaluate", str(model), "--text", str(text), *asked, "-o", str(output))
    document = json.loads(output.read_text())
    found = Evaluation.from_document(document)
    assert (found.kind, found.schema_version, found.text.windows) == ("evaluate", 1, 3)
    assert found.against is not None
    cost = 100 * (found.against.perplexity_ratio - 1)
    assert f"int8 costs {cost:+.2f} ± " in printed
    assert f"{found.text.sha256[:12]}): {found.text.scored_tokens} tokens predicted in 3 windows" in printed
    assert f"perplexity {found.quality.perplexity:,.3f} ± " in printed
    again = evaluate(Request(**document["request"]))
    assert (again.quality, again.against) == (found.quality, found.against)
    command = shlex.split(found.command)
    assert command[0] == "anthesis"
    assert json.loads(succeed(*command[1:], "--json"))["quality"] == asdict(found.quality)


def test_errors_of_the_command_are_one_line(model: Path, tmp_path: Path) -> None:
    assert "can't be read" in fail("evaluate", str(model), "--text", str(tmp_path / "none.txt"))
    result = anthesis("evaluate", str(model))
    assert (result.returncode, result.stdout) == (2, "")
    assert "--text" in result.stderr


def test_ctrl_c_ends_it(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(SENTENCES) * 3000)
    asked = ("--window", "16", "--device", "reference", "-o", str(tmp_path / "result.json"))
    terminal = Terminal(command("evaluate", str(model), "--text", str(path), *asked))
    assert " left" in terminal.read_until(lambda seen: " left" in seen)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 130, terminal.output
    assert "Traceback" not in terminal.output
    assert not (tmp_path / "result.json").exists()
