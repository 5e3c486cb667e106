"""What the user can get wrong, and names that nothing has."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from optlab._expressions import suggestions

Value = TypeVar("Value")


REFUSAL = re.compile(r"[A-Za-z_.]+: .*, got ", re.DOTALL)
"""How the errors of optlab's own checks read."""


class UsageError(Exception):
    """What was asked for cannot be done; the message says why in one line."""


def look_up(kind: str, name: str, known: Mapping[str, Value]) -> Value:
    """Return what has this name; see `check_known`."""
    check_known(kind, name, known)
    return known[name]


def check_known(kind: str, name: str, known: Iterable[str], also: str = "") -> None:
    """Require one of the names known.

    Args:
        kind: what they name, for the message: "optimizer".
        name: as the user wrote it.
        known: the names there are.
        also: what else could have been given, for the message.

    Raises:
        UsageError: there is no such name; the message has those that are close, and all.
    """
    names = list(known)
    if name not in names:
        hint = suggestions(name, names)
        raise UsageError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)}{also})")


@contextmanager
def value_errors() -> Iterator[None]:
    """Turn what optlab refuses within this block into what the user can get wrong."""
    try:
        yield
    except ValueError as error:
        if not REFUSAL.match(str(error)):
            raise
        raise UsageError(str(error)) from error
