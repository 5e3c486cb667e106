"""The formats of results: aligned text, short numbers, a mean with its spread, strict JSON."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np


def aligned(columns: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, starting with the headings."""
    cells = [[name, *column] for name, column in columns.items()]
    widths = [max(map(len, column)) for column in cells]
    for line in zip(*cells, strict=True):
        yield "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with some digits, without an exponent up to a million; None as a dash.

    Example:
        >>> number(0.12345), number(-1000.4), number(-1000.4, 6), number(1.5e6)
        ('0.123', '-1000', '-1000.4', '1.5e+06')
    """
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < LARGE else text


LARGE = 1e6
"""From here on numbers are written with an exponent."""

MOST_DIGITS = 7
"""The digits that a float32 has."""

STEPS = 20
"""The digits of a column tell this many steps of the middle half of its numbers apart."""


def digits_of(values: Iterable[float]) -> int:
    """Return how many digits tell numbers apart, from 3 to 7; a few far ones have no say.

    Example:
        >>> digits_of([0.91, 0.97]), digits_of([-1000.3, -999.8])
        (3, 6)
    """
    finite = np.asarray([x for x in values if x is not None and math.isfinite(x)], np.float64)
    if not finite.size:
        return 3
    low, high = np.quantile(finite, [0.25, 0.75], method="nearest")
    span = float(high - low or np.ptp(finite))
    if not 0 < span < math.inf:
        return 3
    size = max(abs(low), abs(high))
    digits = 1 + math.floor(math.log10(size)) - math.floor(math.log10(span / STEPS))
    return min(max(3, digits), MOST_DIGITS)


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of a score over the seeds that did not diverge.

    Attributes:
        mean: the mean.
        deviation: the sample standard deviation; None for a single seed.
    """

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Summarize the values (seeds,), at least one."""
        values = np.asarray(values, np.float64)
        return cls(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)

    def overlaps(self, other: "Spread") -> bool:
        """Whether the two intervals mean ± deviation overlap."""
        reach = (self.deviation or 0.0) + (other.deviation or 0.0)
        return abs(self.mean - other.mean) <= reach

    def text(self, digits: int = 3) -> str:
        """Write the mean and the deviation; the mean with these digits where nothing limits it."""
        if not self.deviation:
            return number(self.mean, digits) + ("" if self.deviation is None else " ± 0")
        decimals = -math.floor(math.log10(float(f"{self.deviation:.1g}")))
        if 0 <= decimals <= 4:  # round the mean to its first uncertain digit
            return f"{self.mean:.{decimals}f} ± {self.deviation:.{decimals}f}"
        return f"{number(self.mean)} ± {number(self.deviation, 1)}"

    def __str__(self) -> str:
        return self.text()


def versions(*packages: str) -> dict[str, str | None]:
    """Return the installed version of each package; None if it is not installed."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {package: version(package) for package in packages}


def strict(value: Any) -> Any:
    """Turn arrays into lists, float32 into its shortest decimals, and NaN or ∞ into None."""
    match value:
        case Mapping():
            return {str(key): strict(entry) for key, entry in value.items()}
        case list() | tuple():
            return [strict(entry) for entry in value]
        case np.ndarray():
            return strict(value.tolist() if value.dtype != np.float32 else _decimals(value))
        case float():
            return value if np.isfinite(value) else None
        case _:
            return value


def _decimals(array: np.ndarray) -> list:
    return np.array([float(str(x)) for x in array.ravel()], object).reshape(array.shape).tolist()
