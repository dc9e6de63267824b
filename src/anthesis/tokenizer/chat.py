"""Chat templates: the Jinja programs that write a conversation as one text.

A template comes with the downloaded model, so it is somebody else's program: it runs in Jinja's immutable sandbox, and
with limits on its running time, its output, and the size of what it multiplies or adds up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any

from anthesis.errors import RequestError, TokenizerError

if TYPE_CHECKING:
    from jinja2 import Template

MAX_RENDER_S = 5.0
MAX_OUTPUT_CHARACTERS = 1 << 24

# Per rendering and not per template, which threads may share.
_deadline: ContextVar[float] = ContextVar("chat template deadline")


class ChatTemplate:
    """A model's chat template; compiled at first use.

    Args:
        source: the Jinja text.
        special_tokens: variables such as "bos_token" and "eos_token", with the tokens' text.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._compiled: Template | None = None

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """The text for a conversation.

        Args:
            messages: from first to last, each with "role" and "content".
            add_generation_prompt: end with what begins the assistant's answer.

        Raises:
            RequestError: no messages, or malformed ones.
            TokenizerError: the template is wrong, refused the messages, or met a limit.
        """
        from jinja2 import TemplateError

        _check_messages(messages)
        _deadline.set(time.monotonic() + MAX_RENDER_S)
        try:
            if self._compiled is None:
                self._compiled = _compile(self._source)
            pieces: list[str] = []
            size = 0
            for piece in self._compiled.generate(
                **self._special_tokens,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            ):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT_CHARACTERS:
                    raise TokenizerError(f"the chat template wrote more than {MAX_OUTPUT_CHARACTERS} characters")
            return "".join(pieces)
        # A template is a program: besides Jinja's errors it can raise what its operations on plain values raise.
        except (
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ) as error:
            if isinstance(error, TokenizerError):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            line = getattr(error, "lineno", None)
            where = f" in line {line}" if line else ""
            raise TokenizerError(f"the model's chat template failed{where} on these messages: {reason}") from error


def _check_messages(messages: Sequence[object]) -> None:
    """Refuses what a template would turn into a puzzling error or, worse, into text such as "None"."""
    if not messages:
        raise RequestError("a chat needs at least one message")
    for i, message in enumerate(messages):
        fields = ("role", "content")
        if not isinstance(message, Mapping) or not all(isinstance(message.get(name), str) for name in fields):
            raise RequestError(f"chat message {i} is {message!r}; it needs the strings 'role' and 'content'")


def _compile(source: str) -> Template:
    """The template, with the names that transformers offers to templates and with the limits built in."""
    from jinja2 import TemplateRuntimeError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.runtime import Context
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """`{% generation %}` marks the assistant's words for training; here it is just its contents."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class LimitedEnvironment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**"])

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            if _result_size(operator, left, right) > MAX_OUTPUT_CHARACTERS:
                raise TemplateRuntimeError(f"the result of {operator} would be too large")
            return super().call_binop(context, operator, left, right)

        def check_time(self) -> str:
            if time.monotonic() > _deadline.get():
                raise TemplateRuntimeError(f"it ran for more than {MAX_RENDER_S:g} seconds")
            return ""

    def raise_exception(message: str) -> None:
        raise TemplateRuntimeError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes for HTML, which a prompt is not.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    program = environment.parse(source)
    # Only a loop or a macro can run long, so each of their bodies begins with a look at the clock.
    for node in program.find_all((nodes.For, nodes.Macro)):
        assert isinstance(node, (nodes.For, nodes.Macro))
        clock = nodes.Call(nodes.EnvironmentAttribute("check_time"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(clock).set_lineno(node.lineno))
    program.set_environment(environment)
    return environment.from_string(program)


def _result_size(operator: str, left: Any, right: Any) -> int:
    """How large the result of a Jinja operator would be: characters, items, or bits."""
    if operator == "**":
        bits = left.bit_length() if isinstance(left, int) else 1
        return bits * right if isinstance(right, int) else 1
    if operator == "+":
        return sum(len(side) for side in (left, right) if isinstance(side, (str, list, tuple)))
    for sized, count in ((left, right), (right, left)):
        if isinstance(sized, (str, list, tuple)) and isinstance(count, int):
            return len(sized) * count
    return sum(side.bit_length() for side in (left, right) if isinstance(side, int))
