"""The parser, and how errors are reported: one line on stderr, and an exit status.

Help, and whatever is wrong with the options themselves, is said before JAX is loaded, which takes
seconds: the files in `arguments` need none of it.
"""

import argparse
import io
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from typing import Any, NoReturn

from optlab import __version__
from optlab.cli._errors import BROKEN_PIPE, OK, TRACEBACK, USAGE_ERROR, UsageError

COMMANDS = {
    "tune": "go from a model to a tuned run in seven steps, with a report",
    "compare": "train with several optimizers over a grid of learning rates and compare them",
    "bench": "tune optimizers alike on several tasks and say what the data can tell",
    "lr-range": "raise the learning rate over a short run and suggest where to train",
    "sweep": "search hyperparameters: rates, decays, batch sizes, arguments of a task",
    "train": "train once, draw the curves, and say what they show",
    "plot-schedule": "draw schedules and print their values at the knots",
    "dialects": "show how the frameworks differ in one rule",
    "completion": "print lines that teach a shell to complete all this",
}
"""The commands, each with one line for `optlab --help`."""

EPILOG = f"""\
exit status:
  0    done
  2    the command cannot be carried out; one line on stderr says why
  3    training ended in losses or parameters that are not finite: that of
       train, or all runs of compare, sweep or bench; the results are written.
       A step of tune failed, or no run of it ended well
  130  interrupted
  141  the reader of the output has left

a task of your own:
  Every --task also takes MODULE:ATTRIBUTE, such as mypackage.mymodule:task. The
  module is imported with the current folder on the path, as python -m does, and
  may be any that you have installed. The attribute is an optlab.lab.Task, or a
  function that returns one; an option such as --batch-size, if you set it,
  becomes its argument batch_size. What the module prints goes to stderr.

environment:
  {TRACEBACK}=1 shows the whole traceback of an error in a task of your
  own; without it there is one line, with the file and the line number."""


def main(
    argv: Sequence[str] | None = None, within: AbstractContextManager[None] | None = None
) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the arguments; None for those of the process.
        within: the context in which the command runs; it is not yet there while JAX is loaded.

    Raises:
        SystemExit: after --help and --version, with status 0.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # some terminals have no “±”
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = _options(_joined(arguments))
        if options is None:
            return USAGE_ERROR
        run = import_module(f"optlab.cli.{_file(options.command)}").run
        with within or nullcontext():
            status = run(options)
            sys.stdout.flush()
    except (UsageError, ModuleNotFoundError) as error:
        _print_traceback(error)
        _complain(" ".join(str(error).split()))
        return USAGE_ERROR
    except BrokenPipeError:
        _give_up_output()
        return BROKEN_PIPE
    except OSError as error:
        _complain(f"cannot write the output: {error.strerror or error}")
        _give_up_output()
        return USAGE_ERROR
    return status or OK


def _options(arguments: Sequence[str]) -> argparse.Namespace | None:
    """Return options that are right as far as can be seen without JAX; None without a command."""
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return None
    options.check(options)
    return options


def _joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--rate -1e-3` as `--rate=-1e-3`: argparse takes it for options."""
    joined: list[str] = []
    for argument in arguments:
        before = joined[-1] if joined else ""
        if _is_negative(argument) and before.startswith("--") and "=" not in before[2:]:
            joined[-1] = f"{before}={argument}"
        else:
            joined.append(argument)
    return joined


def _is_negative(text: str) -> bool:
    try:
        float(text.split(":")[0].split(",")[0])
    except ValueError:
        return False
    return text.startswith("-")


def _file(command: str) -> str:
    return f"_{command.replace('-', '_')}"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="optlab",
        description="Choose and debug optimizers for JAX models.",
        epilog=EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"optlab {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, summary in COMMANDS.items():
        own = commands.add_parser(
            name,
            help=summary,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        import_module(f"optlab.cli.arguments.{_file(name)}").add(own)
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keep the lines of descriptions and tables, and break those that are too long."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # argparse leaves two columns free, which lines that stand as they are may take.
        return "".join(f"{_broken(indent + line, width + 2)}\n" for line in text.splitlines())


def _broken(line: str, width: int) -> str:
    """Break a line that is too long, below its last column or the arguments of a call."""
    if len(line) <= width:
        return line
    (begin,) = re.findall(r"^ *(?:\S+ {2,}|\w+\()?", line)
    return textwrap.fill(
        line,
        max(width, len(begin) + 20),
        subsequent_indent=" " * len(begin),
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line, also where its help cannot be written."""

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file or sys.stderr, flush=True)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _print_traceback(error: Exception) -> None:
    if error.__cause__ is not None and os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exception(error.__cause__)


def _complain(line: str) -> None:
    with suppress(OSError):  # nobody reads it
        print("optlab:", line, file=sys.stderr)


def _give_up_output() -> None:
    """Redirect stdout, because the interpreter flushes it once more at its end and would fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
