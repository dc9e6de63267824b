"""What --help prints: sections of options, a line for each where it has room, without frames.

Options that stand beside each other with the same help share a line.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from typer.core import TyperCommand, TyperGroup

from anthesis.cli.terminal import bold, dim

MAX_COLUMNS = 100
"""Longer lines are hard to read, however wide the terminal is."""

MAX_NAME_COLUMNS = 32
"""Longer names have their help below them."""

GAP = 2
USAGE = "Usage:"

_NO_BREAK = "\xa0"
"""A space at which no line is broken."""


@dataclass
class _Row:
    name: str
    help: str
    note: str = ""


class Command(TyperCommand):
    """A command whose help looks as this module says."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help, for `--help`."""
        formatter.write(_help(self, ctx))


class Commands(TyperGroup):
    """The command that has commands, and its help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help, for `--help`."""
        formatter.write(_help(self, ctx))


def _help(command: Any, context: Any) -> str:
    """Usage, what the command does, an example, and its sections."""
    columns = min(shutil.get_terminal_size().columns, MAX_COLUMNS)
    paragraphs = _paragraphs(command.help)
    examples = [text for text in paragraphs if text.startswith("$ ")]
    described = [text for text in paragraphs if text not in examples]
    sections = _sections(command, context)
    start = min(MAX_NAME_COLUMNS, max(len(row.name) for rows in sections.values() for row in rows)) + 2 * GAP
    begin = [_usage(command, context), described[0], *([""] if described[1:] else []), *described[1:]]
    lines = [part for text in begin for part in _wrapped(text, columns)]
    lines[0] = lines[0].replace(USAGE, bold(USAGE, sys.stdout))
    lines += [f"  {dim('$', sys.stdout)} {example.removeprefix('$ ')}" for example in examples]
    for title, rows in sections.items():
        lines += ["", *([bold(title, sys.stdout)] if title else [])]
        lines += [line for row in rows for line in _row_lines(row, start, columns)]
    if command.epilog:
        lines += ["", *_wrapped(command.epilog, columns)]
    return "\n".join(lines)


def _paragraphs(text: str | None) -> list[str]:
    """Of a docstring, as far as it is for the command line: up to a form feed."""
    shown = inspect.cleandoc(text or "").partition("\f")[0]
    return [" ".join(paragraph.split()) for paragraph in shown.split("\n\n") if paragraph.strip()]


def _usage(command: Any, context: Any) -> str:
    """The command with what must be given, and in brackets what may."""
    parts = [USAGE, context.command_path, "[OPTIONS]"]
    for param in _shown(command, context):
        name = _names(param)
        if param.param_type_name == "argument":
            parts.append(name if param.required else f"[{name}]")
        elif param.required:
            parts.append(f"{param.opts[0]} {param.metavar}")
    return " ".join([*parts, *(["COMMAND ..."] if isinstance(command, TyperGroup) else [])])


def _sections(command: Any, context: Any) -> dict[str, list[_Row]]:
    """Arguments and options by section; arguments come first in theirs."""
    params = list(_shown(command, context))
    arguments = [param for param in params if param.param_type_name == "argument"]
    options = [param for param in params if param.param_type_name == "option"]
    titles = [*(title for title in map(_title, arguments) if not title), *map(_title, options)]
    sections: dict[str, list[_Row]] = {title: [] for title in titles}
    for param in [*arguments, *options]:
        rows = sections.setdefault(_title(param), [])
        row = _Row(_names(param), param.help or "", _note(param))
        if rows and row.help and (rows[-1].help, rows[-1].note) == (row.help, row.note):
            rows[-1].name += f", {row.name}"
        else:
            rows.append(row)
    if isinstance(command, TyperGroup):
        commands = [_Row(name, _paragraphs(one.help)[0]) for name, one in command.commands.items()]
        sections = {"Commands": commands, **sections}
    return sections


def _shown(command: Any, context: Any) -> Iterator[Any]:
    """The parameters of a command. Of --help only the first page tells: who reads another one knows it."""
    for param in command.get_params(context):
        if not getattr(param, "hidden", False) and (param.name != "help" or isinstance(command, TyperGroup)):
            yield param


def _title(param: Any) -> str:
    return getattr(param, "rich_help_panel", None) or ("" if param.param_type_name == "argument" else "Options")


def _names(param: Any) -> str:
    """Such as "-n, --max-new-tokens N", or "--[no-]reuse-prefixes"."""
    if param.param_type_name == "argument":
        return str(param.metavar)
    names = sorted(param.opts, key=len)
    if param.secondary_opts:
        names = [f"--[no-]{name.removeprefix('--')}" for name in names]
    metavar = "" if param.is_flag else param.metavar or ""
    return f"{', '.join(names)} {metavar}".rstrip()


def _note(param: Any) -> str:
    """That it must be given, or what it is without; nothing of arguments, of which the usage line tells."""
    value = param.default
    if param.param_type_name == "argument" or not (param.required or param.show_default):
        return ""
    if param.required:
        return "[required]"
    if value is None or callable(value) or isinstance(value, (list, tuple)):
        return ""
    if param.is_flag:
        text = ("on" if value else "off") if param.secondary_opts else ""
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"[default:{_NO_BREAK}{text}]" if text else ""


def _row_lines(row: _Row, start: int, columns: int) -> Iterator[str]:
    """Its name, and from column `start` on its help."""
    lines = [" " * start + line for line in _wrapped(f"{row.help} {row.note}".strip(), columns - start)]
    name = " " * GAP + row.name
    if len(name) + GAP > start:
        lines.insert(0, name)
    else:
        lines[0] = name.ljust(start) + lines[0][start:]
    lines[0] = lines[0].replace(row.name, _styled_name(row.name), 1)
    if row.note:
        lines[-1] = lines[-1].replace(row.note, dim(row.note.replace(_NO_BREAK, " "), sys.stdout))
    yield from lines


def _styled_name(text: str) -> str:
    """With what is typed as it stands bold, so that it can be told from what stands for something."""
    return " ".join(bold(word, sys.stdout) if word.startswith("-") else word for word in text.split(" "))


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False) or [""]
