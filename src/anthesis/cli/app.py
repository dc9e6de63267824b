"""The commands there are, and how each of them ends: exit codes, and errors in one line.

Exit codes: 0 fine, 1 the run failed, 2 the request was wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, TextIO

import typer

from anthesis import AnthesisError, __version__
from anthesis.cli.bench import bench
from anthesis.cli.compare import compare
from anthesis.cli.complete import complete
from anthesis.cli.convert import convert
from anthesis.cli.doctor import doctor
from anthesis.cli.evaluate import evaluate
from anthesis.cli.generate import generate
from anthesis.cli.help import Command, Commands
from anthesis.cli.merge import merge
from anthesis.cli.plan import plan
from anthesis.cli.report import report
from anthesis.cli.terminal import show_messages, use_utf8
from anthesis.errors import RankError

DEBUG_VARIABLE = "ANTHESIS_DEBUG"
INTERRUPTED = 130

# Typer brings its own copy of click in later versions, so this class has no address that all of them know.
_ClickError: type[typer.BadParameter] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(
    invoke_without_command=True,
    epilog=f"Errors are one line; {DEBUG_VARIABLE}=1 shows their traceback. Exit codes: 0 fine, 1 the run failed, "
    "2 the request was wrong, 130 interrupted.",
)
def _anthesis(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", metavar="", help="Show the version and exit.")] = False,
) -> None:
    """Decoder language models with the lowest latency the machine allows, measured honestly."""
    if version:
        typer.echo(f"anthesis {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


# One line for each command; --help lists them in this order.
app.command(cls=Command)(generate)
app.command(cls=Command)(complete)
app.command(cls=Command)(merge)
app.command(cls=Command)(bench)
app.command(cls=Command)(evaluate)
app.command(cls=Command)(compare)
app.command(cls=Command)(report)
app.command(cls=Command)(plan)
app.command(cls=Command)(convert)
app.command(cls=Command)(doctor)


def main() -> None:
    """Runs the command line and exits."""
    use_utf8()
    show_messages()
    code = _run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _drop_output()
    except OSError as error:
        if code == 0:  # else something has been said already
            _show_error(error, _system_message(error))
        code = max(code, _drop_output())
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Runs a command and returns its exit code; an error that is no user's doing is raised."""
    command = typer.main.get_command(app)
    try:
        # `command.main` has ways of its own to show errors and to end
        with command.make_context("anthesis", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except _ClickError as error:
        _show_error(error, _usage_message(error))
        return error.exit_code
    except RankError as error:
        if sys.stdout.isatty():  # a text may have been on its way
            print(flush=True)
        if error.details:  # of another process, whose traceback nobody could ask for
            print(error.details, file=sys.stderr)
        _show_error(error, f"anthesis: {error}")
        return error.exit_code
    except AnthesisError as error:
        _show_error(error, f"anthesis: {error}")
        return error.exit_code
    except MemoryError as error:
        _show_error(
            error, f"anthesis: out of memory: {str(error) or 'no more could be taken'}; `anthesis plan` says what fits"
        )
        return 1
    except KeyboardInterrupt:
        _end_line()
        return INTERRUPTED
    except BrokenPipeError:
        return _drop_output()
    except OSError as error:
        _show_error(error, _system_message(error))
        return _drop_output()
    return 0


def _usage_message(error: typer.BadParameter) -> str:
    context = getattr(error, "ctx", None)  # only usage errors have one
    path = context.command_path if context else "anthesis"
    return f"{path}: {error.format_message().rstrip('.')}; see {path} --help"


def _system_message(error: OSError) -> str:
    """What the operating system refused, for instance to write to a disk that is full."""
    about = "" if error.filename is None else f"{error.filename}: "
    return f"anthesis: {about}{error.strerror or error}; {DEBUG_VARIABLE}=1 shows where"


def _show_error(error: Exception, message: str) -> None:
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        traceback.print_exception(error)
    print(" ".join(message.split()), file=sys.stderr)


def _end_line() -> None:
    """Leaves the shell's prompt a line of its own."""
    terminals: list[TextIO] = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]
    if terminals:
        print(file=terminals[0], flush=True)


def _drop_output() -> int:
    """Makes what is still to be flushed at exit go nowhere, since nobody reads it or it can't be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
