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
# In the manner of Llama 3, Mistral and Qwen 3.
HEADERS = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|head|>' + message['role'] "
    "+ '<|end_head|>\n\n' + message['content'] | trim + '<|eot|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|end_head|>\n\n' }}{% endif %}"
)
ALTERNATING = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}{%- for message in rest %}"
    "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}"
    "{%- endif %}{%- if message.role == 'user' %}{%- if loop.last and system is defined %}{{- '[INST]' + system + "
    "'\n\n' + message.content + '[/INST]' }}{%- else %}{{- '[INST]' + message.content + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message.content | trim + eos_token }}{%- endif %}{%- endfor %}"
)
THINKING = (
    "{%- macro render(content) %}{{- content if content is string else '' }}{%- endmacro %}"
    "{%- if tools %}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{%- endif %}"
    "{%- set ns = namespace(searching=true, last=messages | length - 1) %}{%- for message in messages[::-1] %}"
    "{%- set index = (messages | length - 1) - loop.index0 %}{%- if ns.searching and message.role == 'user' and "
    "not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}"
    "{%- set ns.searching = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- set content = render(message.content) %}{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' ~ message.role ~ '\n' + content + '<|im_end|>' + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
REAL = [CHATML, HEADERS, ALTERNATING, THINKING]
TEMPLATES = [
    *REAL,
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


@pytest.mark.parametrize("template", REAL)
def test_a_long_conversation_has_room(template) -> None:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": f"{i} " + "Wörd </think>\n" * 1400} for i in range(199)]
    text = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages, True)
    if template is THINKING:  # it leaves out what comes before the last </think>
        assert text.count("<|im_start|>") == 200
    else:
        assert all(message["content"].strip() in text for message in messages)


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
        ("{{ raise_exception('\x1b[2J' * 1000) }}", r"\\x1b\[2J"),
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
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


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
WIDE = "{% set w = '😀' * 2000000 %}"
PAIRS = (
    "{% set x %}{% for i in range(99999) %}{{ '%c_' % (i + 57344) }} {% endfor %}{% endset %}{% set p = x.split() %}"
)


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
    "comparison of nested tuples": "{% set n = namespace(v=(1,), w=(1,)) %}{% for i in range(60) %}"
    "{% set n.v = (n.v, n.v) %}{% set n.w = (n.w, n.w) %}{% endfor %}{{ n.v == n.w }}",
    "arguments of a macro": "{% set n = namespace(v=(1,)) %}{% macro f() %}{% set n.v = varargs %}{% endmacro %}"
    "{% for i in range(99) %}{{ f(n.v, n.v) }}{% endfor %}{{ n.v }}",
    "a cycler": growing("(1,)", "cycler(n.v, n.v).items"),
    "groups": growing("[[1], [2]]", "[n.v, n.v] | groupby(0) | list"),
    "copies of a dictionary": PAIRS + growing("1", "namespace(p, q=n.v)"),
    "percent many": BIG + "{{ ('%(a)s' * 1000) % {'a': b} }}",
    "percent key": "{{ '%(a(b))1000000000d' % {'a(b)': 1} }}",
    "format digits": "{{ '{:>١٠٠٠٠٠٠٠٠٠}'.format(1) }}",
    "format attribute": BIG + "{% set n = namespace(x=b) %}{{ ('{0.x}' * 10000).format(n) }}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "replace nothing": BIG + "{{ b.replace('', b) }}",
    "join attribute": BIG + "{{ ([{'x': b}] * 9999) | join(attribute='x') }}",
    "indent with a text": BIG + "{{ b.replace('a', '\\n') | indent(b) }}",
    "tojson separators": BIG + "{{ range(9999) | list | tojson(separators=(b, b)) }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "characters": WIDE + "{{ w | list | length }}",
    "characters as arguments": WIDE + "{% macro f() %}{{ varargs | length }}{% endmacro %}{{ f(*w) }}",
    "words": "{{ ('a😀 ' * 4000000).split() | length }}",
    "lines": "{{ ('a😀\\n' * 4000000).splitlines() | length }}",
    "title": "{{ ('a ' * 4000000) | title }}",
    "sum of lists": "{{ ([[1]] * 90000) | sum(start=[]) | length }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "equal hashes": "{{ range(0, (2 ** 61 - 1) * 99999, 2 ** 61 - 1) | unique | list | length }}",
    "search from the right": "{{ ('a' * 4000000).rfind('a' * 1000000 + 'b' + 'a' * 1000000) }}",
    "strip": "{{ ('a' * 4000000) | trim('b' * 2000000 + 'a') }}",
    "comparisons in a row": BIG + "{% set c = b[:-1] ~ 'b' %}" + "{{b==c}}" * 6000,
    "a sort by equal texts": "{% set a = 'ab' * 99999 %}{{ ([a, a ~ ''] * 9999) | sort | length }}",
    "a long path": "{{ (['a'] * 99999) | map(attribute='0' + '.0' * 100000) | list | length }}",
    "a filtered loop": "{% for i in range(99999) if range(99999) | sum == 1 %}{% endfor %}",
    "iterators in iterators": "{% set n = namespace(g=range(2)) %}{% for i in range(99999) %}"
    "{% set n.g = n.g | map('upper') %}{% endfor %}{{ n.g | list }}{{ 1 / 0 }}",
    "pieces": "{% set x %}" + LOOPS.replace("BODY", "{{ '' }}{% if true %}{{ '' }}{% endif %}" * 20) + "{% endset %}",
    "a call block": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 15
    + "x" * 5000
    + "{% endcall %}" * 15,
    "a recursive loop": "{% for i in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a message": "{{ raise_exception([['x'] * 3000] * 3000) }}",
    "a date": "{{ strftime_now('%Y' * 1000000) }}",
    "a long number": "{{ 0x" + "f" * 40000 + " % 7 }}",
    "deep brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep ifs": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "deep loops": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "deep sums": "{{ 1" + "+1" * 20000 + " }}",
    "long compilation": "{%for i in a%}" * 19 + "{{a|e~a}}" * 5000 + "{%endfor%}" * 19,
    "long source": "x" * (1 << 21),
    "include": "{% include 'x' %}",
    "what is no Python": "{{ f(a=1, a=2) }}",
    "what Python raises": "{{ cycler() }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(monkeypatch, name: str) -> None:
    monkeypatch.setattr(chat_module, "MAX_RENDER_S", 1.0)
    begin = time.process_time()
    with pytest.raises(TokenizerError) as caught:
        ChatTemplate(BOMBS[name], {}).render(MESSAGES, True)
    assert time.process_time() - begin < 4
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError):
            ChatTemplate(BOMBS[name], {}).render(MESSAGES, True)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


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
        "{{ '{0.__class__}'.format_map({'0': 1}) }}",
        "{{ ('{0.__class__}' | attr('format'))(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{% for i in [1] %}{{ loop._iterable }}{% endfor %}",
        "{{ namespace(a=1)._Namespace__attrs }}",
        "{{ 'x'.upper.__self__ }}",
        "{{ ''.format.__wrapped__ }}",
        "{{ {}.fromkeys([1]) }}",
        "{{ 'x'.encode() }}",
        "{{ messages.__reduce__() }}",
        "{{ lipsum.__globals__ }}",
    ],
)
def test_there_is_no_way_out(template: str) -> None:
    try:
        written = ChatTemplate(template, {}).render(MESSAGES, True)
    except TokenizerError:
        return
    assert written == ""
