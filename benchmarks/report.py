"""Results as tables, plain or in Markdown."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.timing import Disagreement

Record = dict[str, Any]
"""One result, in types that JSON has."""

Table = list[list[str]]
"""Rows of cells; the first row holds the headings."""


@dataclass
class Section:
    """The results of one table.

    Attributes:
        part: the part of the benchmark.
        title: the title above the table.
        results: yields records while they are measured, or the reasons why they could not be.
        table: records → their table.
        compact: records → a shorter table, for Markdown; by default the same.
        records: the records so far.
    """

    part: str
    title: str
    results: Iterable[Record | Disagreement]
    table: Callable[[list[Record]], Table]
    compact: Callable[[list[Record]], Table] | None = None
    records: list[Record] = field(default_factory=list)

    def text(self, markdown: bool = False) -> str:
        """Return the title and the table."""
        make = (self.compact or self.table) if markdown else self.table
        table = make(self.records) if self.records else [["nothing measured"]]
        return f"{self.title}\n\n{(in_markdown if markdown else plain)(table)}"


def by_columns(columns: dict[str, Callable[[Record], str]], records: Sequence[Record]) -> Table:
    """Return a table with a row for each record."""
    return [[*columns], *([cell(record) for cell in columns.values()] for record in records)]


def plain(table: Table) -> str:
    """Return aligned columns, text to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = [_is_number(column[1:]) for column in zip(*table, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        for row in table
    )
    return "\n".join(line.rstrip() for line in lines)


def in_markdown(table: Table) -> str:
    """Return a table in GitHub's Markdown."""
    right = [_is_number(column[1:]) for column in zip(*table, strict=True)]
    rule = ["---:" if to_right else "---" for to_right in right]
    return "\n".join("| " + " | ".join(row) + " |" for row in [table[0], rule, *table[1:]])


def _is_number(cells: Sequence[str]) -> bool:
    return all(cell[:1].isdigit() or cell == MISSING for cell in cells)


MISSING = "–"
"""Shown in place of a missing figure."""


def spread(quantiles: dict[str, float], digits: int = 2) -> str:
    """Return a median with its quartiles."""
    low, middle, high = (f"{quantiles[q]:.{digits}f}" for q in ("25%", "50%", "75%"))
    return f"{middle} [{low}–{high}]"


def milliseconds(quantiles: dict[str, float]) -> str:
    """Return a median with its quartiles, each with three digits."""
    low, middle, high = (f"{quantiles[q]:.3g}" for q in ("25%", "50%", "75%"))
    return f"{middle} [{low}–{high}]"
