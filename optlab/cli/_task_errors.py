"""One-line errors for whatever a user's own task raises, with the place in the user's code."""

import logging
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType

import jax

from optlab import _checks
from optlab._extras import needs_extra
from optlab.cli._errors import TRACEBACK, UsageError
from optlab.lab.data._errors import Source

PLAIN = (_checks.fail.__code__, Source.fail.__code__, needs_extra.__wrapped__.__code__)
"""Functions whose errors already say everything in one line."""

OTHERS = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))
"""Folders of code that is not the user's, in addition to the folders of installed packages."""

INSTALLED = {"site-packages", "dist-packages"}


@contextmanager
def task_errors(name: str, doing: str = "training", who: str = "") -> Iterator[None]:
    """Run functions of a task within this block.

    For a user's own task, every exception becomes one line with the place in the user's code where
    it was raised, and printed text goes to stderr. Built-in tasks are run as they are. Errors of
    optlab's own checks, such as an option out of its range, are not changed.

    Args:
        name: the value of --task.
        doing: what the block does, for the message.
        who: how the message begins; by default with --task and the name.

    Raises:
        UsageError: an exception was raised.
    """
    if ":" not in name:
        yield
        return
    with redirect_stdout(sys.stderr), _callback_errors() as in_callbacks:
        try:
            yield
            jax.effects_barrier()  # callbacks in other threads may still print, or fail
        except (UsageError, BrokenPipeError):
            raise
        except (Exception, SystemExit) as exception:
            error = in_callbacks[0] if in_callbacks and _is_of_a_callback(exception) else exception
            place = _place(error, package=name.split(":")[0].split(".")[0])
            if place is None and _innermost(error).f_code in PLAIN:
                raise
            raise UsageError(
                f"{who or f'--task {name}'}: {doing} failed{f' at {place}' if place else ''} with "
                f"{_described(error)}; {TRACEBACK}=1 shows the traceback"
            ) from error


def _is_of_a_callback(exception: BaseException) -> bool:
    """Whether JAX raised an exception because a callback failed."""
    return isinstance(exception, jax.errors.JaxRuntimeError) or "CpuCallback" in str(exception)


class _Collector(logging.Handler):
    """Collects exceptions that are logged, and shows other records as they would be without it."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.errors.append(record.exc_info[1])
        elif not logging.root.handlers and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)


@contextmanager
def _callback_errors() -> Iterator[list[BaseException]]:
    """Collect the exceptions of callbacks, which JAX logs before it raises its own error."""
    logger, collector = logging.getLogger("jax"), _Collector()
    logger.addHandler(collector)
    try:
        yield collector.errors
    finally:
        logger.removeHandler(collector)


def _described(error: BaseException) -> str:
    """Return the exception's type and the first line of its message."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    first_line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    kind = type(error).__name__
    return f"{kind}: {first_line.removesuffix('.')}" if first_line else kind


def _place(error: BaseException, package: str) -> str | None:
    """Return the innermost file:line of the user's own code, or None if there is none.

    Args:
        error: an exception with its traceback.
        package: the first part of the task's module name; its code is the user's wherever it lies.
    """
    lines = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_own(frame, package)
    ]
    if isinstance(error, SyntaxError) and os.path.isfile(error.filename or ""):
        lines.append((error.filename, error.lineno))
    if not lines:
        return None
    file, line = lines[-1]
    inside = file.startswith(os.path.join(os.getcwd(), ""))
    return f"{os.path.relpath(file) if inside else file}:{line}"


def _is_own(frame: FrameType, package: str) -> bool:
    """Whether a frame's code is of the package, or at least of no other known owner."""
    if str(frame.f_globals.get("__name__")).split(".")[0] == package:
        return True
    file = Path(frame.f_code.co_filename)
    others = INSTALLED & set(file.parts) or any(map(file.is_relative_to, OTHERS))
    return file.is_absolute() and not others


def _innermost(error: BaseException) -> FrameType:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame
