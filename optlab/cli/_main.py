"""The parser, and how errors are reported: one line on stderr, and an exit status."""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from optlab import __version__
from optlab.cli import _compare, _dialects, _lr_range, _plot_schedule, _sweep, _train
from optlab.cli._errors import UsageError
from optlab.cli._task_errors import TRACEBACK

COMMANDS = (
    _compare,
    _lr_range,
    _sweep,
    _train,
    _plot_schedule,
    _dialects,
)

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the arguments; None for those of the process.

    Raises:
        SystemExit: after --help and --version, with status 0.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # some terminals have no “±”
    try:
        parser = _parser()
        options = parser.parse_args(argv)
        if options.run is None:
            parser.print_help(sys.stderr)
            return USAGE_ERROR
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


def _parser() -> argparse.ArgumentParser:
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
    for command in COMMANDS:
        command.add(commands)
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
