"""The formats of the lab's results: aligned text, short numbers, strict JSON."""

from collections.abc import Iterator, Mapping, Sequence
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
