"""The parser, and how errors are reported: one line on stderr, and an exit status."""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import NoReturn

from optlab import __version__
from optlab.cli._errors import TRACEBACK, UsageError

COMMANDS = {
    "compare": "train with several optimizers over a grid of learning rates and compare them",
    "lr-range": "raise the learning rate over a short run and suggest where to train",
    "sweep": "search hyperparameters: rates, decays, batch sizes, arguments of a task",
    "train": "train once, draw the curves, and say what they show",
    "plot-schedule": "draw schedules and print their values at the knots",
    "dialects": "show how the frameworks differ in one rule",
}
"""The commands, each with one line for `optlab --help`."""

OK, USAGE_ERROR, BROKEN_PIPE = 0, 2, 141
"""Exit statuses; the last one is that which shells report after SIGPIPE."""

EPILOG = f"""\
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
        parser = _parser(arguments)
        options = parser.parse_args(arguments)
        if options.run is None:
            parser.print_help(sys.stderr)
            return USAGE_ERROR
        with within or nullcontext():
            options.run(options)
            sys.stdout.flush()
    except (UsageError, ModuleNotFoundError) as error:
        _print_traceback(error)
        print("optlab:", " ".join(str(error).split()), file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        _give_up_stdout()
        return BROKEN_PIPE
    except OSError as error:
        print(f"optlab: cannot write the output: {error.strerror}", file=sys.stderr)
        _give_up_stdout()
        return USAGE_ERROR
    return OK


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser that knows the options of the commands among the arguments.

    Those of others stay unknown, because the file of a command imports JAX, which takes seconds.
    """
    parser = _Parser(
        prog="optlab",
        description="Choose and debug optimizers for JAX models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"optlab {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        own = commands.add_parser(
            name,
            help=summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name in arguments:
            import_module(f"optlab.cli._{name.replace('-', '_')}").add(own)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _print_traceback(error: Exception) -> None:
    if error.__cause__ is not None and os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exception(error.__cause__)


def _give_up_stdout() -> None:
    """Redirect stdout, because the interpreter flushes it once more at its end and would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
