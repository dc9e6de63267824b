"""Chat templates: the Jinja programs that write a conversation as one text.

A template comes with the downloaded model, so it is somebody else's program. It runs in the sandbox of
`anthesis.tokenizer.sandbox`, which asks the budget kept here before it lets the template take time or memory.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any

from anthesis.errors import RequestError, TokenizerError, printable

if TYPE_CHECKING:
    from jinja2 import Template

MAX_SOURCE_CHARACTERS = 3 << 14
MAX_RENDER_S = 5.0
MAX_MADE_BYTES = 100 << 20
MAX_OUTPUT_CHARACTERS = 1 << 23
MAX_DATE_FORMAT_CHARACTERS = 100


class Budget:
    """What one rendering may still take: time, and memory for all that it makes, even if it lets go of it again."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + MAX_RENDER_S
        self._bytes_left: float = MAX_MADE_BYTES

    def check_time(self) -> None:
        """Ends a rendering that takes too long.

        Raises:
            TokenizerError: it does.
        """
        if time.monotonic() > self._deadline:
            raise TokenizerError(f"the model's chat template ran for more than {MAX_RENDER_S:g} seconds")

    def allow(self, n_bytes: float, what: str) -> None:
        """Ends a rendering that has no time, or no room for so much more.

        Args:
            what: the operator, filter or method that would make so much.

        Raises:
            TokenizerError: it has none.
        """
        self.check_time()
        if n_bytes > self._bytes_left:
            raise TokenizerError(
                f"the model's chat template goes too far with {what!r:.60}: "
                f"the text and lists that it makes could take more than {MAX_MADE_BYTES >> 20} MiB"
            )

    def spend(self, n_bytes: float, what: str) -> None:
        """Takes some of the room, or ends the rendering."""
        self.allow(n_bytes, what)
        self._bytes_left -= n_bytes


# Per rendering and not per template, which threads may share.
budget: ContextVar[Budget] = ContextVar("budget of a chat template's rendering")


class ChatTemplate:
    """A model's chat template; compiled at first use.

    Attributes:
        source: the Jinja text.
        special_tokens: variables such as "bos_token" and "eos_token", with the tokens' text.

    Raises:
        TokenizerError: the source is longer than that of any model.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TokenizerError(
                f"the chat template has {len(source):,} characters; at most {MAX_SOURCE_CHARACTERS:,} are read"
            )
        self.source = source
        self.special_tokens = dict(special_tokens)
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
        _check_messages(messages)
        budget.set(Budget())
        try:
            if self._compiled is None:
                self._compiled = _compile(self.source)
            # Not a list of the pieces: a template can write millions.
            text, n_characters = io.StringIO(), 0
            for piece in self._compiled.generate(
                **self.special_tokens,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            ):
                n_characters += text.write(piece)
                if n_characters > MAX_OUTPUT_CHARACTERS:
                    raise TokenizerError(
                        f"the model's chat template wrote more than {MAX_OUTPUT_CHARACTERS} characters"
                    )
            return text.getvalue()
        except TokenizerError:
            raise
        except Exception as error:  # a template is a program, so it can raise nearly anything; so can its compilation
            reason = printable(str(error)) or type(error).__name__
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
            raise RequestError(f"chat message {i} is {message!r:.200}; it needs the strings 'role' and 'content'")


def _compile(source: str) -> Template:
    """The template, with the names that transformers offers to templates and with the limits built in."""
    from jinja2 import TemplateRuntimeError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    from anthesis.tokenizer.sandbox import LimitedEnvironment, limited_filter
    from anthesis.tokenizer.sizes import written

    class GenerationBlock(Extension):
        """`{% generation %}` marks the assistant's words for training; here it is just its contents."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateRuntimeError(written(message))

    def strftime_now(form: str) -> str:
        if len(form) > MAX_DATE_FORMAT_CHARACTERS:
            raise TemplateRuntimeError(f"it formats a date with more than {MAX_DATE_FORMAT_CHARACTERS} characters")
        return datetime.now().strftime(form)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes for HTML, which a prompt is not.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = LimitedEnvironment()
    environment.add_extension(GenerationBlock)
    environment.filters["tojson"] = limited_filter("tojson", to_json)
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.compile_limited(source)
