"""The values of --space: a range of numbers, or choices, as they were typed."""

import argparse
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from optlab._domains import fail
from optlab.cli._known import Argument
from optlab.cli._options import FLAGS, scalar, value_of

FORMS = "LOW:HIGH, LOW:HIGH:log, LOW:HIGH:int, or choices separated by commas"


class Numbers(NamedTuple):
    """Numbers from low to high.

    Attributes:
        text: the range as it was typed.
        low: the least number.
        high: the largest number.
        whole: whether only whole numbers are meant.
        log: whether equally many numbers lie in each decade.
    """

    text: str
    low: float
    high: float
    whole: bool
    log: bool

    @property
    def size(self) -> float:
        """The number of values; ∞ for real numbers."""
        return self.high - self.low + 1 if self.whole else math.inf

    @property
    def example(self) -> float:
        """One of the values."""
        return self.low

    def read_for(self, argument: Argument | None) -> "Numbers":
        """Return the range as one of this argument; nothing changes."""
        return self

    def check(self, who: str, argument: Argument) -> None:
        """Require numbers that the argument may be."""
        if argument.is_flag:
            name = argument.name
            fail(
                who, f"{name} must be true or false", f"{name}={self.text}", f"write {name}=yes,no"
            )
        if argument.least is not None and not self.whole:
            whole = all(value == int(value) for value in (self.low, self.high))
            remedy = f"write {argument.name}={self.text}:int" if whole else ""
            required = f"{argument.name} must be a whole number"
            fail(who, required, f"the real numbers {argument.name}={self.text}", remedy)
        for end in (self.low, self.high):
            argument.check(who, end, self.text)


class Choices(NamedTuple):
    """Single values.

    Attributes:
        text: the choices as they were typed.
        values: what they mean.
    """

    text: str
    values: tuple[Any, ...]

    @property
    def size(self) -> float:
        """The number of values."""
        return len(self.values)

    @property
    def example(self) -> Any:
        """One of the values."""
        return self.values[0]

    def read_for(self, argument: Argument | None) -> "Choices":
        """Return the choices as values of this argument, which may be true or false."""
        values = tuple(value_of(argument, text.strip()) for text in self.text.split(","))
        return self._replace(values=values)

    def check(self, who: str, argument: Argument) -> None:
        """Require choices that the argument may be, and that differ."""
        for value, text in zip(self.values, self.text.split(","), strict=True):
            argument.check(who, value, text)
        if len(set(self.values)) < len(self.values):
            required = f"the choices of {argument.name} must differ"
            fail(who, required, f"{argument.name}={self.text}")


Typed = Numbers | Choices


def read_range(text: str) -> Typed:
    """Read LOW:HIGH with :int, :log or both behind it, or choices separated by commas.

    A range from a number to the same number is that single choice.
    """
    try:
        return _numbers(text) if ":" in text else _choices(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no range: {error}") from error


def _numbers(text: str) -> Typed:
    low_text, high_text, *kinds = text.split(":")
    if len(set(kinds)) < len(kinds) or not set(kinds) <= {"int", "log"}:
        raise ValueError(f"write {FORMS}")
    whole, log = "int" in kinds, "log" in kinds
    low, high = _bound("LOW", low_text, whole), _bound("HIGH", high_text, whole)
    if log and low <= 0:
        raise ValueError(f"with :log, LOW must be above 0, got {low_text}")
    if low > high:
        raise ValueError(f"LOW must not be above HIGH, got {low_text} and {high_text}")
    if low == high:
        return _choices(low_text)
    return Numbers(text, low, high, whole, log)


def _bound(what: str, text: str, whole: bool) -> float:
    value = scalar(text.strip())
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, got {text!r}; write {FORMS}")
    if whole and not isinstance(value, int):
        raise ValueError(f"with :int, {what} must be a whole number, got {text}")
    if abs(value) > (2**31 - 1 if whole else 3.4e38):
        raise ValueError(f"{what} must be below {'2**31' if whole else '3.4e38'}, got {text}")
    return value


def _choices(text: str) -> Choices:
    values = tuple(scalar(part.strip()) for part in text.split(","))
    for value in values:
        if value == "":
            raise ValueError("a choice is empty")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"choices must be finite, got {value}")
    kinds = [value for value in values if str(value).lower() not in FLAGS]
    if len(set(kinds)) < len(kinds):
        raise ValueError("the choices must differ")
    return Choices(text, values)


def points_in(space: Mapping[str, Typed]) -> float:
    """Return the number of points of a space; ∞ where a range holds real numbers."""
    return math.prod(entry.size for entry in space.values())
