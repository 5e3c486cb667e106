"""The formats of results: aligned text, short numbers, a mean with its spread, strict JSON."""

import math
from collections.abc import Iterator, Mapping, Sequence
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


def number(value: float | None) -> str:
    """Write a number with three digits, and None as a dash."""
    return "–" if value is None else f"{value:.3g}"


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

    def __str__(self) -> str:
        if not self.deviation:
            return f"{self.mean:.3g}" + ("" if self.deviation is None else " ± 0")
        decimals = -math.floor(math.log10(float(f"{self.deviation:.1g}")))
        if 0 <= decimals <= 4:  # round the mean to its first uncertain digit
            return f"{self.mean:.{decimals}f} ± {self.deviation:.{decimals}f}"
        return f"{self.mean:.3g} ± {self.deviation:.1g}"


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
