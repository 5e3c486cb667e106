"""The ranges that a sweep searches: the values of a hyperparameter, and their distribution.

A range maps a position u in [0, 1] to a value. Evenly distributed positions give values in the
distribution of the range:

    LogUniform     low · (high / low)ᵘ
    Uniform        low + (high − low) · u
    Integer        every integer has the same share of [0, 1]; with log, integer k has the share of
                   the log-uniform numbers from low − ½ to high + ½ that round to k
    Categorical    every choice has the same share
"""

import keyword
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np

from optlab import _checks

Scalar = float | int | bool | str | None


@dataclass(frozen=True, repr=False)
class Range:
    """Base class of `LogUniform`, `Uniform`, `Integer` and `Categorical`; use one of these.

    `LogUniform` and `Uniform` hold real numbers, `Integer` whole ones, `Categorical` any choices.

    Attributes:
        traced: True if the values are arguments of one compiled program, which trials share as
            lanes. False if they are compiled in: every value takes a compilation, and may set a
            shape or choose a branch. None if the sweep decides.
        log: whether an axis of these values is logarithmic.
        is_integer: whether the values are whole numbers.
        is_choice: whether the values are choices without an order.
    """

    traced: bool | None = field(default=None, kw_only=True)

    kind: ClassVar[str]
    is_integer: ClassVar[bool] = False
    is_choice: ClassVar[bool] = False

    def at(self, position: float) -> Scalar:
        """Return the value at a position.

        Args:
            position: in [0, 1]; 0 gives the first value and 1 the last.

        Raises:
            ValueError: the position is not in [0, 1].
        """
        raise NotImplementedError

    def position(self, value: Scalar) -> float:
        """Return the position of a value; for an integer or a choice, the middle of its share.

        `at` is the inverse.

        Raises:
            ValueError: the value is not in this range.
        """
        raise NotImplementedError

    def levels(self, n: int) -> list[Scalar]:
        """Return `n` evenly spaced values that include both ends; the middle if n is 1.

        Integers are distinct, and all are returned if there are at most n. Choices are always all
        returned.

        Args:
            n: ≥ 1.
        """
        raise NotImplementedError

    def around(self, values: Sequence[Scalar], share: float) -> "Range":
        """Return the part of this range that holds good values, for a finer search.

        For numbers it is the interval that the positions of the k values span, with this margin on
        both sides:

            max(share / 2, (largest − smallest) / (k − 1))

        The second term is how far, on average, the outermost of k values drawn evenly from an
        interval lie inside its ends. The first term is half of what one trial stands for; it
        matters if there is a single value. The result stays within this range, and includes the
        neighbours of an integer. A good value at the edge of the range stays at the edge; better
        values may then lie beyond, and a wider range should be swept. For choices, the result holds
        those among the values.

        Args:
            values: good values, at least one.
            share: the part of the range that one trial stands for, in (0, 1]; n^(−1/d) for n trials
                in a space of d numbers.

        Raises:
            ValueError: there is no value, a value is outside this range, or `share` outside (0, 1].
        """
        raise NotImplementedError

    @property
    def size(self) -> float:
        """The number of values; ∞ for real numbers."""
        return math.inf

    def to_json(self) -> dict[str, Any]:
        """Return this range as a dict of JSON's own types, which `from_json` reads."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {"kind": self.kind} | {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in entries.items()
        }

    def __repr__(self) -> str:
        """Show how to write this range, without options that have their default."""
        entries = sorted(fields(self), key=lambda entry: entry.kw_only)
        options = [(entry.name, getattr(self, entry.name), entry.default) for entry in entries]
        arguments = (f"{name}={value!r}" for name, value, default in options if value != default)
        return f"{type(self).__name__}({', '.join(arguments)})"

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Range":
        """Return the range that `to_json` described.

        Raises:
            ValueError: the document does not describe a range.
        """
        try:
            entries = dict(document)
            return _KINDS[entries.pop("kind")](**entries)
        except (KeyError, TypeError, AttributeError):
            _checks.fail(
                "Range.from_json", "document must be what to_json returned", repr(document)
            )

    def _check_traced(self) -> None:
        if self.traced is not None and not isinstance(self.traced, bool):
            got = f"traced={self.traced!r}"
            _checks.fail(type(self).__name__, "traced must be True, False or None", got)

    def _check_position(self, position: float) -> None:
        if not 0 <= position <= 1:
            who = f"{type(self).__name__}.at"
            _checks.fail(who, "position must be in [0, 1]", f"position={position!r}")

    def _fail_value(self, value: Any) -> None:
        _checks.fail(
            f"{type(self).__name__}.position", f"the value must be one of {self}", repr(value)
        )


@dataclass(frozen=True, repr=False)
class _Reals(Range):
    """Real numbers between two bounds."""

    low: float
    high: float

    domain: ClassVar[_checks.Domain]
    log: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the bounds and make them Python's floats."""
        who = type(self).__name__
        self._check_traced()
        for name in ("low", "high"):
            bound = getattr(self, name)
            _checks.check_number(who, name, bound, self.domain, dtype=np.float32)
            object.__setattr__(self, name, float(bound))
        if not np.float32(self.low) < np.float32(self.high):
            _fail_order(self, "low must be below high, in float32")

    def levels(self, n: int) -> list[Scalar]:
        return [self.at(0.5)] if n == 1 else [self.at(i / (n - 1)) for i in range(n)]

    def around(self, values: Sequence[Scalar], share: float) -> "Range":
        low, high = _around(self, values, share)
        # Two neighbouring float32 numbers are the narrowest valid range.
        return replace(self, low=low, high=high) if np.float32(low) < np.float32(high) else self

    def _check_value(self, value):
        # A value that went through a compiled program may lie outside by a float32 rounding.
        number = isinstance(value, (float, int, np.number)) and not isinstance(value, bool)
        if not number or not np.float32(self.low) <= np.float32(value) <= np.float32(self.high):
            self._fail_value(value)


@dataclass(frozen=True, repr=False)
class LogUniform(_Reals):
    """Real numbers whose logarithm is evenly distributed: rates, decays, most positive numbers.

    Args:
        low: the lowest value, > 0.
        high: the highest value, above `low`.
        traced: see `Range`.

    Raises:
        ValueError: a bound is out of its range, or is so after rounding to float32.

    Example:
        >>> rates = LogUniform(1e-4, 1e-1)
        >>> [f"{rate:.3g}" for rate in rates.levels(4)]
        ['0.0001', '0.001', '0.01', '0.1']
        >>> narrower = rates.around([0.004, 0.008, 0.016], share=1 / 16)
        >>> print(f"{narrower.low:.3g} {narrower.high:.3g}")
        0.002 0.032
    """

    kind = "log_uniform"
    log = True
    domain = _checks.POSITIVE

    def at(self, position: float) -> float:
        self._check_position(position)
        return float(_clip(self.low * (self.high / self.low) ** position, self.low, self.high))

    def position(self, value: Scalar) -> float:
        self._check_value(value)
        return _clip(math.log(value / self.low) / math.log(self.high / self.low), 0.0, 1.0)


@dataclass(frozen=True, repr=False)
class Uniform(_Reals):
    """Evenly distributed real numbers: dropout, label smoothing, momentum near 0.9.

    Args:
        low: the lowest value.
        high: the highest value, above `low`.
        traced: see `Range`.

    Raises:
        ValueError: a bound is not finite, or `low` is not below `high`, after rounding to float32.

    Example:
        >>> Uniform(0.0, 0.6).levels(3)
        [0.0, 0.3, 0.6]
    """

    kind = "uniform"
    domain = _checks.FINITE

    def at(self, position: float) -> float:
        self._check_position(position)
        return float(_clip(self.low + (self.high - self.low) * position, self.low, self.high))

    def position(self, value: Scalar) -> float:
        self._check_value(value)
        return _clip((value - self.low) / (self.high - self.low), 0.0, 1.0)


@dataclass(frozen=True, repr=False)
class Integer(Range):
    """Whole numbers, including both ends: widths, layers, accumulated batches.

    Args:
        low: the lowest value.
        high: the highest value, above `low`.
        log: whether larger numbers lie farther apart, as powers of two do; `low` must then be ≥ 1.
        traced: see `Range`.

    Raises:
        ValueError: a bound is out of its range.

    Example:
        >>> widths = Integer(16, 256, log=True)
        >>> widths.levels(5)
        [16, 32, 64, 128, 256]
        >>> Integer(1, 12).around([4, 5, 5], share=1 / 16)
        Integer(low=3, high=6)
    """

    low: int
    high: int
    log: bool = False

    kind = "integer"
    is_integer = True

    def __post_init__(self) -> None:
        """Check the bounds and make them Python's integers."""
        self._check_traced()
        if not isinstance(self.log, bool):
            _checks.fail("Integer", "log must be True or False", f"log={self.log!r}")
        for name in ("low", "high"):
            _checks.check_integer("Integer", name, getattr(self, name), 1 if self.log else -(2**31))
            object.__setattr__(self, name, int(getattr(self, name)))
        if not self.low < self.high:
            _fail_order(self, "low must be below high")

    @property
    def size(self) -> int:
        return self.high - self.low + 1

    def at(self, position: float) -> int:
        self._check_position(position)
        if self.log:
            first, last = self.low - 0.5, self.high + 0.5
            number = math.floor(first * (last / first) ** position + 0.5)
        else:
            number = math.floor(self.low + self.size * position)
        return int(_clip(number, self.low, self.high))

    def position(self, value: Scalar) -> float:
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not self.low <= value <= self.high:
            self._fail_value(value)
        if not self.log:
            return (int(value) - self.low + 0.5) / self.size
        first, last = self.low - 0.5, self.high + 0.5
        middle = (math.log(value - 0.5) + math.log(value + 0.5)) / 2
        return (middle - math.log(first)) / math.log(last / first)

    def levels(self, n: int) -> list[Scalar]:
        n = min(n, self.size)
        if n == 1:
            return [self.at(0.5)]
        spaced = np.geomspace if self.log else np.linspace
        levels = []
        for number in spaced(self.low, self.high, n):
            # Neighbouring levels may round to the same integer; the next integers are then free,
            # because a logarithmic spacing widens and n integers fit.
            levels.append(max(math.floor(number + 0.5), levels[-1] + 1 if levels else self.low))
        return levels

    def around(self, values: Sequence[Scalar], share: float) -> "Range":
        low, high = _around(self, values, share)
        return replace(
            self,
            low=max(self.low, min(low, *(value - 1 for value in values))),
            high=min(self.high, max(high, *(value + 1 for value in values))),
        )


@dataclass(frozen=True, repr=False)
class Categorical(Range):
    """Choices without an order: batch sizes, names of schedules, whether to use Nesterov.

    Args:
        choices: at least one; different numbers, strings, bools or None.
        traced: see `Range`; True is only valid for numbers and bools.

    Raises:
        ValueError: there is no choice, two choices are equal (as 1 and True are), or a choice has
            another type or is not finite.

    Example:
        >>> Categorical((16, 32, 64)).levels(2)
        [16, 32, 64]
    """

    choices: Sequence[Scalar]

    kind = "categorical"
    is_choice = True
    log: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the choices and make them a tuple of Python's scalars."""
        self._check_traced()
        if not isinstance(self.choices, (list, tuple)) or not self.choices:
            got = f"choices={self.choices!r}"
            _checks.fail("Categorical", "choices must be a tuple of at least one", got)
        choices = tuple(map(_scalar, self.choices))
        if len(set(choices)) < len(choices):
            _checks.fail("Categorical", "choices must differ", f"choices={self.choices!r}")
        for choice in choices:
            if self.traced and not isinstance(choice, (bool, int, float)):
                got = f"{choice!r} with traced=True"
                _checks.fail("Categorical", "traced choices must be numbers or bools", got)
        object.__setattr__(self, "choices", choices)

    @property
    def size(self) -> int:
        return len(self.choices)

    def at(self, position: float) -> Scalar:
        self._check_position(position)
        return self.choices[min(int(self.size * position), self.size - 1)]

    def position(self, value: Scalar) -> float:
        if value not in self.choices:
            self._fail_value(value)
        return (self.choices.index(value) + 0.5) / self.size

    def levels(self, n: int) -> list[Scalar]:
        del n
        return list(self.choices)

    def around(self, values: Sequence[Scalar], share: float) -> "Range":
        _check_around(values, share)
        positions = {self.position(value) for value in values}
        choices = tuple(choice for choice in self.choices if self.position(choice) in positions)
        return replace(self, choices=choices)


_KINDS = {kind.kind: kind for kind in (LogUniform, Uniform, Integer, Categorical)}


def checked_space(who: str, space: Any) -> dict[str, Range]:
    """Return the space as a dict, in its order.

    Args:
        who: the public name that errors begin with.
        space: name → range.

    Raises:
        ValueError: the space is empty or not a mapping, a name is not a valid argument name, or an
            entry is not a range; the error says what to write.
    """
    if not isinstance(space, Mapping):
        remedy = 'write {"learning_rate": LogUniform(1e-4, 1e-1)}, say'
        _checks.fail(who, "space must be a dict from names to ranges", _short(space), remedy)
    if not space:
        _checks.fail(who, "space must name at least one hyperparameter", "none")
    for name, entry in space.items():
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            _checks.fail(who, "names in space must be valid argument names", repr(name))
        if not isinstance(entry, Range):
            required = f"space[{name!r}] must be a LogUniform, Uniform, Integer or Categorical"
            _checks.fail(who, required, _short(entry), _remedy(entry))
    return dict(space)


def _remedy(entry: Any) -> str:
    """Say what to write in place of an entry that is common in other tools."""
    library = type(entry).__module__.split(".")[0]
    if library in ("scipy", "optuna"):
        return "write LogUniform(low, high), say, with optlab's own ranges"
    if isinstance(entry, type) and issubclass(entry, Range):
        return f"give it its arguments: {entry.__name__}(…)"
    if isinstance(entry, (bool, int, float, str)) or entry is None:
        return "leave out what does not vary, and set it in the optimizer's function"
    if not isinstance(entry, (list, tuple, set, range, np.ndarray)):
        return ""
    entries = np.ravel(entry).tolist() if isinstance(entry, np.ndarray) else list(entry)
    if not entries:
        return ""
    shortened = [*map(repr, entries[:3]), *["…"] * (len(entries) > 3)]
    choices = f"Categorical(({', '.join(shortened)}{',' * (len(entries) == 1)}))"
    if len(entries) == 2 and all(type(bound) in (int, float) for bound in entries):
        bounds = f"({entries[0]!r}, {entries[1]!r})"
        return f"write LogUniform{bounds} or Uniform{bounds} for a range, {choices} for choices"
    return f"write {choices}"


def _scalar(choice: Any) -> Scalar:
    """Return a choice as Python's own scalar type."""
    choice = choice.item() if isinstance(choice, np.generic) else choice
    if not isinstance(choice, (bool, int, float, str, type(None))):
        remedy = "name it by a string, and look it up in the optimizer's function"
        _checks.fail(
            "Categorical", "choices must be numbers, strings, bools or None", _short(choice), remedy
        )
    if isinstance(choice, float) and not math.isfinite(choice):
        _checks.fail("Categorical", "choices must be finite", repr(choice))
    return choice


def _fail_order(numbers: "_Reals | Integer", required: str) -> None:
    """Refuse bounds that are not in order; equal ones are a single value."""
    low, high = numbers.low, numbers.high
    remedy = f"for a single value, write Categorical(({low!r},))" if low == high else ""
    _checks.fail(type(numbers).__name__, required, f"low={low}, high={high}", remedy)


def _around(whole: Range, values: Sequence[Scalar], share: float) -> tuple[Scalar, Scalar]:
    """Return the values at both ends of the interval that `Range.around` defines."""
    _check_around(values, share)
    positions = [whole.position(value) for value in values]
    smallest, largest = min(positions), max(positions)
    margin = max(share / 2, (largest - smallest) / max(len(positions) - 1, 1))
    return whole.at(max(0.0, smallest - margin)), whole.at(min(1.0, largest + margin))


def _check_around(values: Sequence[Scalar], share: float) -> None:
    if not len(values):
        _checks.fail("around", "values must hold at least one", repr(values))
    _checks.check_number("around", "share", share, _checks.SHARE)


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"
