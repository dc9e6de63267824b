"""What anthesis.hf refuses: by name, with what to do; and that it knows all that the installed transformers has."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CompileConfig, GenerationConfig, PreTrainedModel

import anthesis.hf
from anthesis.errors import RequestError, UnsupportedError
from anthesis.hf import AnthesisForCausalLM, accelerate
from anthesis.hf.options import ARGUMENTS, REFUSED, SUPPORTED, WITHOUT_EFFECT
from anthesis.hf.release import check_version
from hf_models import padded, tiny


@pytest.fixture(scope="module")
def ours() -> AnthesisForCausalLM:
    return accelerate(tiny("llama"), device="cpu", threads=1)


FIELDS = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))


def test_every_field_of_the_installed_release_is_known():
    """Fails when a release of transformers brings a field that nobody here has thought about yet."""
    known = SUPPORTED | set(REFUSED) | set(WITHOUT_EFFECT)
    assert not set(FIELDS) - known
    assert len(SUPPORTED) + len(REFUSED) + len(WITHOUT_EFFECT) == len(known), "a field is in two groups"


VALUES: dict[str, Any] = {
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {},
    "compile_config": CompileConfig(),
    "num_assistant_tokens_schedule": "constant",
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash",
}


@pytest.mark.parametrize("field", [field for field in FIELDS if field in REFUSED])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_field_that_is_not_supported_is_named(ours, field):
    value = VALUES.get(field, True if False in REFUSED[field][0] else 3)
    for asked in ({field: value}, {"generation_config": GenerationConfig(**{field: value})}):
        with pytest.raises(UnsupportedError, match=f"^{field} = .* is not supported by anthesis.hf: "):
            ours.generate(**padded([3]), max_new_tokens=1, **asked)


@pytest.mark.parametrize("field", [field for field in FIELDS if REFUSED.get(field, ((), ""))[0]])
def test_a_field_that_asks_for_nothing_is_fine(ours, field):
    for value in (None, *REFUSED[field][0]):
        assert ours.generate(**padded([3]), max_new_tokens=1, **{field: value}).shape == (1, 4)


@pytest.mark.parametrize("argument", sorted(ARGUMENTS))
def test_an_argument_that_is_not_supported_is_named(ours, argument):
    with pytest.raises(UnsupportedError, match=f"^{argument} is not supported by anthesis.hf: "):
        ours.generate(**padded([3]), max_new_tokens=1, **{argument: True})
    assert ours.generate(**padded([3]), max_new_tokens=1, **{argument: None}).shape == (1, 4)


def test_a_field_of_a_release_to_come_is_refused(ours):
    given = GenerationConfig(max_new_tokens=1)
    given.sampled_backwards = True
    with pytest.raises(RequestError, match="generation_config has sampled_backwards, which transformers does not know"):
        ours.generate(**padded([3]), generation_config=given)


IDS = torch.tensor([[5, 6, 7]])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_new_token": 3}, "generate has no argument 'max_new_token'; is it misspelt?"),
        ({"inputs": IDS, "input_ids": IDS}, "two names of one argument"),
        ({"input_ids": IDS[0]}, r"of shape \(3,\)"),
        ({"input_ids": IDS.float()}, "torch.float32"),
        ({"input_ids": [[5]]}, "no tensor"),
        ({"input_ids": IDS[:, :0]}, "hold no tokens"),
        ({"input_ids": IDS + 99}, "outside the model's vocabulary"),
        ({"input_ids": IDS, "attention_mask": IDS[:, 1:]}, r"shape of input_ids, \(1, 3\), and has \(1, 2\)"),
        ({"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 0]])}, 'padding_side = "left"'),
        ({"input_ids": IDS, "max_length": 3}, "no room for a completion"),
        ({"input_ids": IDS, "num_beams": 2, "streamer": object()}, "streamer"),
        ({"input_ids": IDS, "num_beams": -1}, "num_beams is -1"),
        ({"input_ids": IDS, "stop_strings": "x"}, "tokenizer=tokenizer"),
        ({"input_ids": IDS, "eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"input_ids": IDS, "exponential_decay_length_penalty": (1, 2.0), "eos_token_id": None}, "needs an eos_token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_argument_is_one_clear_error(ours, asked, message):
    with pytest.raises(RequestError, match=message):
        ours.generate(**{"max_new_tokens": 2, **asked} if "max_length" not in asked else asked)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"early_stopping": "soon", "num_beams": 2}, "early_stopping"),
        ({"temperature": -1.0, "do_sample": True}, "temperature"),
        ({"top_p": 3, "do_sample": True, "typical_p": 0.5}, "typical|top_p"),
        ({"repetition_penalty": -2.0}, "penalty"),
        ({"bad_words_ids": [3]}, "bad_words_ids"),
    ],
    ids=str,
)
def test_values_that_transformers_refuses(ours, asked, error):
    if "top_p" in asked:
        asked = {**asked, "top_p": -1.0}
    with pytest.raises(ValueError, match=error):
        ours.generate(**padded([3]), max_new_tokens=2, **asked)


def test_what_a_forward_pass_does_not_take_is_named(ours):
    assert ours(IDS, use_cache=False, output_attentions=False).logits.shape == (1, 3, 48)
    for argument in ("use_cache", "output_hidden_states", "past_key_values"):
        with pytest.raises(UnsupportedError, match=f"^{argument} is not supported"):
            ours(IDS, **{argument: True})
    with pytest.raises(RequestError, match="forward has no argument 'mask'"):
        ours(IDS, mask=1)


def test_rows_that_wait_for_memory_in_vain_say_so():
    with accelerate(tiny("llama"), device="cpu", threads=1, cache_memory=1 << 15) as small:
        blocks = small.llm.max_batch(64)
        refused = pytest.raises(RequestError, match="waits for memory")
        with small.llm.lockstep([[5]] * blocks, max_new_tokens=3), refused:
            small.generate(IDS, max_new_tokens=2)


def test_lengths_that_contradict_each_other_are_told(ours):
    with pytest.warns(UserWarning, match="max_new_tokens counts"):
        assert ours.generate(IDS, max_new_tokens=2, max_length=30, eos_token_id=None).shape[1] == 5
    with pytest.warns(UserWarning, match="so it ends after 20 tokens; set max_new_tokens"):
        assert ours.generate(IDS, eos_token_id=None).shape[1] == 23
    with pytest.warns(UserWarning, match="at least 9 tokens are asked for and at most 5"):
        ours.generate(IDS, max_new_tokens=2, min_length=9)


def test_without_a_prompt_a_text_begins_with_the_first_token(ours):
    assert ours.generate(max_new_tokens=2, eos_token_id=None)[0, 0] == 1
    with pytest.raises(RequestError, match="no bos_token_id"):
        ours.generate(max_new_tokens=2, bos_token_id=None)


def test_what_can_not_be_moved_or_trained_says_so(ours):
    assert ours.to("cpu") is ours.to(torch.float32) is ours.to(device=torch.device("cpu")) is ours.eval() is ours
    for wanted in ("meta", torch.float16):
        with pytest.raises(UnsupportedError, match="choose device= and weights="):
            ours.to(wanted)
    assert ours.train(False) is ours
    with pytest.raises(UnsupportedError, match="train the transformers model"):
        ours.train()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dtype": torch.bfloat16}, "weights="),
        ({"device_map": "auto"}, "device="),
        ({"weight": "int8"}, "no argument 'weight'; known are those of anthesis.LLM: weights, device, tp"),
    ],
    ids=str,
)
def test_arguments_of_loading_that_are_called_otherwise_here(asked, message):
    with pytest.raises(RequestError, match=message):
        AnthesisForCausalLM.from_pretrained("random:bloom-560m", **asked)


@pytest.mark.parametrize("found", ["4.57.6", "6.0.0"])
def test_another_transformers_is_refused(found):
    with pytest.raises(UnsupportedError, match=rf"works with transformers 5.x, and {found} is installed: pip install"):
        check_version(found, "pip install")


# --- transformers' own affairs ---------------------------------------------------------------------------------------

DOCUMENTED = ("transformers", "transformers.generation", "transformers.modeling_outputs")
"""Modules that transformers' documentation names."""


def private_uses(source: str) -> list[str]:
    """Where code names what is private to another: an attribute or a name that begins with _, or a hidden module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                found.append(f"{node.lineno}: .{node.attr}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
            found += [f"{node.lineno}: {node.module}"] * (node.module not in DOCUMENTED)
            found += [f"{node.lineno}: {alias.name}" for alias in node.names if alias.name.startswith("_")]
        elif isinstance(node, ast.Import):
            found += [f"{node.lineno}: {alias.name}" for alias in node.names if alias.name.startswith("transformers.")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("_"):
            found += [f"{node.lineno}: {node.value!r}"] * node.value.strip("_").isidentifier() * (node.value[-1] != "_")
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("_") and not node.name.endswith("__"):
            # by the name of one of theirs they would call it
            found += [f"{node.lineno}: {node.name}"] * hasattr(PreTrainedModel, node.name)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "model._prepare_generation_config()",
        "from transformers.cache_utils import DynamicCache",
        "from transformers import _LazyModule",
        "import transformers.generation.utils",
        "getattr(model, '_is_stateful')",
        "class M:\n    def _backward_compatibility_gradient_checkpointing(self): ...",
    ],
)
def test_the_check_for_private_uses_finds(source):
    assert private_uses(source)


def test_nothing_private_of_transformers_is_used():
    package = Path(anthesis.hf.__file__).parent
    for file in sorted(package.glob("*.py")):
        assert private_uses(file.read_text()) == [], file.name


def test_padding_ids_that_are_none_are_told(ours):
    with pytest.warns(UserWarning, match="pad_token_id is -7"):
        ours.generate(IDS, max_new_tokens=2, pad_token_id=-7)
