"""Errors that the user can correct, such as unknown names."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from optlab.cli._expressions import suggestions

Value = TypeVar("Value")

OK, USAGE_ERROR, DIVERGED, BROKEN_PIPE = 0, 2, 3, 141
"""Exit statuses; the last one is that which shells report after SIGPIPE."""

TRACEBACK = "OPTLAB_TRACEBACK"
"""The environment variable that asks for whole tracebacks."""

REFUSAL = re.compile(r"[A-Za-z_.\-]+: .*, got ", re.DOTALL)
"""The form of the errors of optlab's own checks."""


class UsageError(Exception):
    """A request that cannot be carried out; the message gives the reason in one line."""


def look_up(kind: str, name: str, known: Mapping[str, Value]) -> Value:
    """Return the entry of this name in `known`; see `check_known`."""
    check_known(kind, name, known)
    return known[name]


def check_known(kind: str, name: str, known: Iterable[str], also: str = "") -> None:
    """Require one of the known names.

    Args:
        kind: the kind of thing they name, for the message: "optimizer".
        name: the name that the user wrote.
        known: the known names.
        also: other valid values, for the message.

    Raises:
        UsageError: the name is not known; the message lists similar names, and all known ones.
    """
    names = list(known)
    if name not in names:
        hint = suggestions(name, names)
        raise UsageError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)}{also})")


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn every ValueError in this block into a `UsageError`."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextmanager
def value_errors() -> Iterator[None]:
    """Turn errors of optlab's own checks in this block into a `UsageError`."""
    try:
        yield
    except ValueError as error:
        if not REFUSAL.match(str(error)):
            raise
        raise in_a_shell(error) from error


def in_a_shell(error: ValueError) -> UsageError:
    """Return an error of optlab's own checks in the words of a shell."""
    shown = f"{TRACEBACK}=1 shows its own error"
    return UsageError(str(error).replace("its own error stands above", shown))
