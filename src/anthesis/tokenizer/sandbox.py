"""The sandbox of chat templates: Jinja's own, and limits on the time and memory of a rendering.

Jinja's sandbox keeps a template from reaching Python's internals, but lets it run for ever and fill the memory. So
here everything a template can do, be it an operator, a filter, a test, a call or a literal, passes a function of this
file that looks at the clock and asks the rendering's budget for room: first for the most that the result could take,
and once it is there, for what it does take. The two rules of `anthesis.tokenizer.sizes` keep those estimates simple.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import chain
from string import Formatter
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

from jinja2 import Template, TemplateRuntimeError, Undefined, nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.ext import loopcontrols
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner
from jinja2.utils import Namespace as JinjaNamespace
from jinja2.visitor import NodeTransformer

from anthesis.tokenizer.chat import budget
from anthesis.tokenizer.sizes import (
    CALL_BYTES,
    CHARACTER_BYTES,
    ITEM_BYTES,
    MAX_NESTED_LEVELS,
    QUOTED_BYTES,
    REFERENCE_BYTES,
    check_bits,
    html_factor,
    items_bytes,
    keep,
    listed,
    nested_characters,
    text_bytes,
    written,
)

MAX_COMPARISONS = 1 << 28


# --- estimates: each takes the arguments of a method or a filter and tells the most that its result could take --------


def _nothing(*_: object, **__: object) -> int:
    return 0


def _copied_bytes(*values: object, **named: object) -> int:
    # upper() makes up to three characters of one.
    return 3 * sum(text_bytes(value) for value in chain(values, named.values()))


def _split_text_bytes(value: object) -> int:
    """Of a text that becomes a list of its characters or words on the way."""
    return ITEM_BYTES * nested_characters(value)


def _sorted_bytes(items: object, *_: object, **__: object) -> int:
    """With what it sorts by: each text in lower case."""
    return items_bytes(items) + 3 * CHARACTER_BYTES * nested_characters(items)


def _searched_bytes(value: object, sought: object = None, *_: object) -> int:
    """Of what compares each character sought with each of the text."""
    text = written(value)
    if isinstance(sought, str) and len(text) * len(sought) > MAX_COMPARISONS:
        raise TemplateRuntimeError(f"it searches {len(text)} characters for {len(sought)}, which takes too long")
    return text_bytes(text)


def _split_bytes(text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    pieces = text.count(sep) if sep else len(text) // 2
    return ITEM_BYTES * (pieces + 1) + _searched_bytes(text, sep)


def _padded_bytes(text: str, *arguments: object, **named: object) -> int:
    width = max(n for n in (8, *arguments, *named.values()) if isinstance(n, int))
    return text_bytes(text) + CHARACTER_BYTES * width * (1 + text.count("\t"))


def _replaced_bytes(value: object, old: object, new: object, count: object = None) -> int:
    text = written(value)
    return text_bytes(text) + text.count(written(old)) * text_bytes(new)


def _joined_bytes(separator: str, joined: Iterable[object]) -> int:
    items = listed(joined, "join")
    return CHARACTER_BYTES * len(separator) * len(items) + sum(map(text_bytes, items))


def _columns(indent: str | int | None) -> int:
    return len(indent) if isinstance(indent, str) else indent or 0


def _percent_bytes(text: str, values: object) -> float:
    """Of `text % values`, where each % may write all of them."""
    budget.get().allow(ITEM_BYTES * len(text), "format")
    text = text.replace("%%", "")
    if re.search(r"%[^%a-zA-Z]*\*", text):
        return math.inf  # a width that is not in the text
    widths = sum(map(int, re.findall(r"\d+(?=[.a-zA-Z%])", text)))
    return CHARACTER_BYTES * (len(text) + widths) + QUOTED_BYTES * text.count("%") * nested_characters([values])


def _format_bytes(text: str, values: object) -> float:
    """Of `text.format(values)`, where each field may write all of them."""
    budget.get().allow(ITEM_BYTES * len(text), "format")
    specs = [spec or "" for _, name, spec, _ in Formatter().parse(text) if name is not None]
    widths = sum(map(int, re.findall(r"\d+", " ".join(specs))))
    if "{" in "".join(specs):
        return math.inf  # a width that is not in the text
    return CHARACTER_BYTES * (len(text) + widths) + QUOTED_BYTES * len(specs) * nested_characters([values])


def _json_bytes(
    value: object,
    ensure_ascii: object = None,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: object = None,
) -> int:
    """Around each thing, which counts 8 characters, may be separators, and a line's indent for each of its levels."""
    around = CHARACTER_BYTES * (MAX_NESTED_LEVELS * _columns(indent) + sum(map(len, separators or ())))
    return (QUOTED_BYTES + around // 8) * nested_characters(value)


def _operation_bytes(operator: str, left: Any, right: Any) -> float:
    if operator == "+" and isinstance(left, str):
        return text_bytes(left) + text_bytes(right)
    if operator == "%" and isinstance(left, str):
        return _percent_bytes(left, right)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        check_bits((left.bit_length() - 1) * right)
    if operator == "*":
        for repeated, count in ((left, right), (right, left)):
            if isinstance(repeated, (str, list, tuple)) and isinstance(count, int):
                return max(CHARACTER_BYTES, REFERENCE_BYTES) * len(repeated) * count
    return 0


# The methods that a template may call; with estimates for those of a text. (None gives bytes, which have their own.)
TEXT_METHODS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("capitalize", "casefold", "lower", "swapcase", "title", "upper"), _copied_bytes),
    **dict.fromkeys(("partition", "removeprefix", "removesuffix"), _copied_bytes),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition"), _searched_bytes),
    **dict.fromkeys(("split", "rsplit"), _split_bytes),
    **dict.fromkeys(("center", "expandtabs", "ljust", "rjust", "zfill"), _padded_bytes),
    **dict.fromkeys(("count", "endswith", "find", "index", "startswith"), _nothing),
    **{name: _nothing for name in dir(str) if name.startswith("is")},
    "splitlines": lambda text, keepends=False: _split_bytes(text),
    "replace": _replaced_bytes,
    "join": _joined_bytes,
}
METHODS: Mapping[type, Iterable[str]] = {
    str: TEXT_METHODS,
    dict: ("copy", "get", "items", "keys", "values"),
    list: ("copy", "count", "index"),
    tuple: ("count", "index"),
    LoopContext: ("changed", "cycle"),
    Cycler: ("next", "reset"),
}
# Jinja's sandbox lets a template reach no functions and classes but its globals, and str.format as it wraps it.
CALLABLES = (FunctionType, type, Macro, BlockReference, LoopContext, Joiner, Undefined)

# Filters are left out whose cost is hard to tell; no chat template has been seen to use them.
LEFT_OUT_FILTERS = ("batch", "pprint", "slice", "striptags", "urlize", "wordwrap", "xmlattr")
# Those that are not here take no more than a list of all items, or of all characters.
FILTERS: dict[str, Callable[..., float]] = {
    **dict.fromkeys(("abs", "attr", "count", "d", "default", "first", "float", "int", "last", "length"), _nothing),
    **dict.fromkeys(("capitalize", "lower", "safe", "truncate", "upper"), _copied_bytes),
    **dict.fromkeys(("dictsort", "groupby", "unique"), _sorted_bytes),
    **dict.fromkeys(("e", "escape", "forceescape", "title", "urlencode", "wordcount"), _split_text_bytes),
    "center": lambda value, width=80: text_bytes(value) + CHARACTER_BYTES * width,
    "format": lambda value, *values, **named: _percent_bytes(written(value), (values, named)),
    # Each character may be a line.
    "indent": lambda value, width=4, *_, **__: text_bytes(value) * (ITEM_BYTES + _columns(width)),
    "join": lambda value, d="", attribute=None: _joined_bytes(written(d), value),
    "replace": _replaced_bytes,
    "round": lambda value, precision=0, method="": _operation_bytes("**", 10, precision),
    "string": text_bytes,
    "sort": lambda items, reverse=False, case_sensitive=False, attribute=None: (
        _sorted_bytes(items) * (1 + written(attribute).count(","))
    ),
    "sum": lambda items, attribute=None, start=0: 0 if isinstance(start, (int, float)) else math.inf,  # adds lists
    "tojson": _json_bytes,
    "trim": _searched_bytes,
}


def limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with the limits of its name."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # before it stands the context or the environment
    estimate = FILTERS.get(name, items_bytes)

    @wraps(function)  # with jinja_pass_arg
    def limited(*args: Any, **named: Any) -> Any:
        passed, value, rest = args[:first], args[first], args[first + 1 :]
        if isinstance(value, Iterator):
            # To know how much it is; and chains of iterators would overflow the stack.
            value = keep(listed(value, name), name)
        n_bytes = estimate(value, *rest, **named)
        budget.get().allow(n_bytes, name)
        result = function(*passed, value, *rest, **named)
        if isinstance(result, Iterator):
            budget.get().spend(n_bytes, name)
        return keep(result, name)

    return limited


def _concatenated(*values: object) -> str:
    budget.get().allow(sum(map(text_bytes, values)), "~")
    return str(keep("".join(map(str, values)), "~"))


def _timely(value: object) -> object:
    budget.get().check_time()
    return value


@pass_context  # or Jinja would call it once, when it compiles
def _round(context: Context, n_bytes: int) -> str:
    budget.get().spend(n_bytes, "for")
    return ""


# What Limits inserts into the parsed template: filters, as they are called fastest, with names no template can write.
INSERTED = {
    "~": _concatenated,
    "[]": lambda value: keep(value, "[]", REFERENCE_BYTES),
    "==": _timely,
    "*": lambda value: keep(listed(value, "*"), "*"),
    "for": _round,
}


class Limits(NodeTransformer):
    """Puts our functions around those parts of a parsed template that Jinja runs without asking its environment."""

    _pieces = 0  # of text that the visited part of the template writes

    def generic_visit(self, node: nodes.Node, *args: Any, **named: Any) -> nodes.Node:
        """The node, or one around it, after those in it."""
        budget.get().check_time()
        pieces_before = self._pieces
        super().generic_visit(node)
        if isinstance(node, nodes.Concat):
            return _inserted("~", *node.nodes)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return _inserted("[]", node)
        if isinstance(node, (nodes.List, nodes.Tuple, nodes.Dict)) and getattr(node, "ctx", "load") == "load":
            return _inserted("[]", node)
        if isinstance(node, nodes.Compare):
            node.expr = _inserted("==", node.expr)
        elif isinstance(node, nodes.For):
            pieces = 1 + self._pieces - pieces_before
            n_bytes = nodes.Const(REFERENCE_BYTES * pieces, lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(_inserted("for", n_bytes), lineno=node.lineno))
        elif isinstance(node, nodes.Output):
            self._pieces += len(node.nodes)
        elif isinstance(node, nodes.Const) and isinstance(node.value, int):
            check_bits(node.value.bit_length())
        elif isinstance(node, nodes.ScopedEvalContextModifier):
            raise TemplateRuntimeError("it uses autoescape, which is for HTML")
        elif isinstance(node, (nodes.Call, nodes.Filter, nodes.Test)) and node.dyn_args is not None:
            node.dyn_args = _inserted("*", node.dyn_args)
        if isinstance(node, nodes.Test):
            node.node = _inserted("==", node.node)
        return node


def _inserted(name: str, value: nodes.Expr, *rest: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(value, name, [*rest], [], None, None, lineno=value.lineno)


class TimedGenerator(CodeGenerator):
    """Jinja's compiler, which takes long for nested loops, with a look at the clock."""

    def visit(self, *args: Any, **named: Any) -> Any:
        """Compiles one node."""
        budget.get().check_time()
        return super().visit(*args, **named)


class Namespace(JinjaNamespace):
    """Jinja's, written without what is in it, which can be other namespaces, and so without end."""

    def __repr__(self) -> str:
        return "<Namespace>"


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with our limits; for use while `budget` is set."""

    code_generator_class = TimedGenerator
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=written, extensions=[loopcontrols])
        filters = {name: function for name, function in self.filters.items() if name not in LEFT_OUT_FILTERS}
        self.filters = {name: limited_filter(name, function) for name, function in filters.items()} | INSERTED
        self.globals["namespace"] = Namespace
        del self.globals["lipsum"]

    def compile_limited(self, source: str) -> Template:
        """The template with the limits built in."""
        program = Limits().visit(self.parse(source))
        program.set_environment(self)
        return self.from_string(program)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """What the operator makes of the two."""
        budget.get().allow(html_factor(left, right) * _operation_bytes(operator, left, right), operator)
        return keep(self.binop_table[operator](left, right), operator, REFERENCE_BYTES)

    def call(__self, __context: Context, __obj: Any, *args: Any, **named: Any) -> Any:  # noqa: N805
        """What a function, a macro or a method returns."""
        owner = __obj.__self__ if isinstance(__obj, (BuiltinMethodType, MethodType)) else None
        name = getattr(__obj, "__name__", type(__obj).__name__)
        if not any(isinstance(owner, kind) and name in names for kind, names in METHODS.items()) and not isinstance(
            __obj, CALLABLES
        ):
            raise TemplateRuntimeError(f"it calls {name}, which is unsafe")
        arguments = {key: value for key, value in named.items() if key not in ("_loop_vars", "_block_vars", "caller")}
        if __obj is Cycler or (isinstance(__obj, Macro) and (__obj.catch_varargs or __obj.catch_kwargs)):
            nested_characters((args, arguments))  # it makes lists of them
        if isinstance(owner, str):
            if name == "join":
                args = tuple(listed(items, "join") for items in args)
            budget.get().allow(html_factor(owner) * TEXT_METHODS[name](owner, *args, **arguments), name)
        else:
            copied = sum(map(items_bytes, args)) if isinstance(__obj, type) else 0
            budget.get().spend(CALL_BYTES + items_bytes(args) + items_bytes(arguments) + copied, name)
        result = super().call(__context, __obj, *args, **named)
        if isinstance(__obj, (Macro, BlockReference, LoopContext)):
            return result  # and paid for when it was put together
        return keep(result, name)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Of str.format and str.format_map, Jinja's safe ones."""
        function = super().wrap_str_format(value)
        if function is None:
            return None

        @wraps(function)
        def limited(*args: Any, **named: Any) -> str:
            text = value.__self__
            budget.get().allow(html_factor(text) * _format_bytes(text, (args, named)), "format")
            return function(*args, **named)

        return limited

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item; some filters look up many without asking us in between."""
        budget.get().check_time()
        return super().getitem(obj, argument)

    def call_test(self, *args: Any, **named: Any) -> Any:
        """What a test says that a filter asks."""
        budget.get().check_time()
        return super().call_test(*args, **named)

    def concat(self, pieces: Iterable[str]) -> str:
        """What a block, a macro or a loop wrote."""
        return _concatenated(*pieces)
