"""Chat templates, against transformers, and what a template is kept from doing."""

import json
import time
import tracemalloc
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

import anthesis.tokenizer.chat as chat_module
from anthesis.errors import RequestError, TokenizerError
from anthesis.tokenizer import Tokenizer, open_tokenizer
from anthesis.tokenizer.chat import ChatTemplate
from trained_tokenizers import train_byte_level

CHATML = (
    "{% for message in messages %}\n"
    "    {%- if loop.first and message['role'] != 'system' %}{{ bos_token }}{% endif %}\n"
    "{{ '<s>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
TEMPLATES = [
    CHATML,
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}{% break %}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "{% set x = namespace(n=0) %}{% for m in messages %}{% set x.n = x.n + m.content | length %}{% endfor %}{{ x.n }}",
    "{% macro f(m, n) %}{% if n %}{{ m.role * 2 ~ f(m, n - 1) }}{% endif %}{% endmacro %}{{ f(messages[0], 3) }}",
    "{{ messages[0].content.strip().split('l')[0] ~ 2 ** 10 }}{{ tools is none }}{{ messages | tojson(indent=2) }}",
    "{{ strftime_now('%Y') }}",
]
MESSAGES = [
    {"role": "user", "content": " Hello <b> 'wörld' "},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "日本語"},
]


def directory_with(directory: Path, config: dict, template_file: str | None = None) -> Path:
    backend = train_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    backend.save(str(directory / "tokenizer.json"))
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(base | config))
    if template_file is not None:
        (directory / "chat_template.jinja").write_text(template_file)
    return directory


def opened(directory: Path, *args) -> Tokenizer:
    tokenizer = open_tokenizer(directory_with(directory, *args))
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_and_encodes_as_transformers(tmp_path, template, add_generation_prompt) -> None:
    from transformers import AutoTokenizer

    ours = opened(tmp_path, {"chat_template": template})
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    how = {"add_generation_prompt": add_generation_prompt}
    text = theirs.apply_chat_template(MESSAGES, tokenize=False, **how)
    assert ours.apply_chat_template(MESSAGES, **how) == text
    ids = theirs.apply_chat_template(MESSAGES, tokenize=True, return_dict=False, **how)
    assert ours.encode_chat(MESSAGES, **how) == ids
    assert text


def test_special_tokens_of_the_template_are_not_added_twice(tmp_path) -> None:
    tokenizer = opened(tmp_path, {"chat_template": CHATML})
    bos, user = tokenizer.encode("<s>"), MESSAGES[:1]
    assert tokenizer.encode_chat(user)[:2] == bos * 2
    assert tokenizer.apply_chat_template(user).startswith("<s><s>user\n Hello <b>")


def test_the_file_wins_over_the_configuration(tmp_path) -> None:
    assert opened(tmp_path, {"chat_template": "old"}, "new").apply_chat_template(MESSAGES) == "new"


def test_of_named_templates_the_default_is_taken(tmp_path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert opened(tmp_path, {"chat_template": named}).apply_chat_template(MESSAGES) == "plain"


def test_without_a_template_a_chat_is_refused(tmp_path) -> None:
    tokenizer = opened(tmp_path, {})
    assert not tokenizer.has_chat_template
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer.encode_chat(MESSAGES)


@pytest.mark.parametrize("messages", [[], ["hi"], [{"role": "user"}], [{"role": "user", "content": None}]])
def test_malformed_messages_are_refused(messages) -> None:
    with pytest.raises(RequestError, match="chat"):
        ChatTemplate(CHATML, {"eos_token": ""}).render(messages, True)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{% for %}", "in line 1"),
        ("{{ messages[0].nothing.at.all }}", "no attribute 'nothing'"),
        ("{{ messages + 1 }}", "concatenate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 'x' * 10 ** 9 }}", "could take more than 100 MiB"),
        ("{{ [0] * 99999999999 }}", "could take more than 100 MiB"),
        ("{{ 9 ** 99999999 }}", "too large"),
        (
            "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
            "could take more than 100 MiB",
        ),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_failing_template_is_one_clear_error(template, reason) -> None:
    with pytest.raises(TokenizerError, match=reason) as caught:
        ChatTemplate(template, {}).render(MESSAGES, True)
    assert "\n" not in str(caught.value)


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"


@pytest.mark.parametrize("body", ["", "{% if false %}{% endif %}", "{% set x = j %}"])
def test_a_template_that_never_ends_is_ended(monkeypatch, body) -> None:
    monkeypatch.setattr(chat_module, "MAX_RENDER_S", 0.2)
    start = time.monotonic()
    with pytest.raises(TokenizerError, match=r"more than 0\.2 seconds"):
        ChatTemplate(LOOPS.replace("BODY", body), {}).render(MESSAGES, True)
    assert time.monotonic() - start < 3


def test_a_template_that_writes_without_end_is_ended() -> None:
    with pytest.raises(TokenizerError, match=r"wrote more than|could take more than"):
        ChatTemplate(LOOPS.replace("BODY", "x" * 1000), {}).render(MESSAGES, True)


def test_the_messages_are_not_changed() -> None:
    message = {"role": "user", "content": "hi"}
    with pytest.raises(TokenizerError, match="unsafe"):
        ChatTemplate("{{ messages[0].update({'content': 'x'}) }}", {}).render([message], True)
    assert message == {"role": "user", "content": "hi"}


GROW = "{% set n = namespace(v=START) %}{% for i in range(99999) %}{% set n.v = STEP %}{% endfor %}{{ n.v }}"
BIG = "{% set b = 'ab' * 2000000 %}"


def growing(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


BOMBS = {
    "concatenation": growing("'x'", "n.v ~ n.v"),
    "lists": growing("[1]", "n.v + n.v"),
    "nested lists": growing("[1]", "[n.v, n.v]"),
    "deep lists": growing("[1]", "[n.v]"),
    "a product of lists": "{% set a = [1] * 5000 %}{% set b = [a] * 5000 %}{{ b }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "nested format width": "{{ '{:>{w}}'.format(1, w=1000000000) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "zfill": "{{ 'x'.zfill(1000000000) }}",
    "expandtabs": "{{ ('\\t' * 1000).expandtabs(1000000) }}",
    "replace": BIG + "{{ b.replace('a', b) }}",
    "join": BIG + "{{ b.join('abcdefgh' * 1000) }}",
    "translate": BIG + "{{ b.translate({97: b}) }}",
    "center filter": "{{ 'x' | center(1000000000) }}",
    "indent filter": "{{ 'x\\nx' | indent(1000000000) }}",
    "join filter": BIG + "{{ range(9999) | join(b) }}",
    "tojson indent": "{{ [1, [2]] | tojson(indent=1000000000) }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "set block": "{% set n = namespace(v='x') %}{% for i in range(99) %}{% set x %}{{ n.v }}{{ n.v }}{% endset %}"
    "{% set n.v = x %}{% endfor %}",
    "macro": "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n - 1) }}{% else %}{{ x }}{% endif %}{% endmacro %}"
    "{{ f('x', 60) }}",
    "many strings": growing("[]", "n.v + ['%d' % i ~ 'x' * 100000]"),
    "power": "{{ (-9) ** 99999999 }}",
    "deep brackets": "{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}",
    "deep ifs": "{% if 1 %}" * 12000 + "{% endif %}" * 12000,
    "long source": "x" * (1 << 21),
    "include": "{% include 'x' %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(name: str) -> None:
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(TokenizerError):
        ChatTemplate(BOMBS[name], {}).render(MESSAGES, True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - begin < 20  # tracing makes it several times slower; the limit is 5 s of wall time
    assert peak < 200 << 20


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ [''] | map(attribute='__class__') | first }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ (messages | map('upper')).gi_frame }}",
        "{% macro f() %}{% endmacro %}{{ f._func }}",
        "{{ self._TemplateReference__context }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__subclasses__() }}",
    ],
)
def test_there_is_no_way_out(template: str) -> None:
    try:
        written = ChatTemplate(template, {}).render(MESSAGES, True)
    except TokenizerError:
        return
    assert written == ""
