"""Results as pictures. Matplotlib is imported only when they are drawn."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.contenders import BASE, PEERS
from benchmarks.report import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = "#555555 #0072B2 #E69F00 #D55E00 #56B4E9 #009E73 #CC79A7 #BBBBBB #888888"

COLOURS = dict(zip(PEERS, _COLOURS.split(), strict=True))
"""The colours of Okabe and Ito, which can be told apart with any colour vision; grey for the base
and for the limits."""

MARKERS = dict(zip(PEERS, "os^X*DvPh", strict=True))


def save_pictures(records: list[Record], folder: Path, quick: bool) -> Iterator[Path]:
    """Draw the speeds on each network, and the times to a first step.

    There is no picture of a network on which only the base was measured.

    Args:
        records: the records of all parts.
        folder: an existing folder.
        quick: whether the figures mean nothing, which the titles then say.

    Yields:
        The files that were written.
    """
    note = " (only tried out)" if quick else ""
    steps = [r for r in records if r["part"] == "step"]
    compared = [r for r in steps if r["contender"] != BASE]
    for shapes, donated in dict.fromkeys((r["shapes"], r["donated"]) for r in compared):
        kind = "donated" if donated else "not-donated"
        figure = _speeds(
            [r for r in steps if (r["shapes"], r["donated"]) == (shapes, donated)],
            f"Speed of a step on {shapes}, {kind.replace('-', ' ')}{note}",
        )
        yield _save(figure, folder / f"step-{shapes}-{kind}.png")
    compilations = [r for r in records if r["part"] == "compile"]
    if compilations:
        yield _save(_compile_times(compilations, note), folder / "compile.png")


def _speeds(records: list[Record], title: str) -> "Figure":
    """Draw a group of bars for each case; whiskers mark quartiles."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(r["case"] for r in records))
    names = [name for name in PEERS if any(r["contender"] == name for r in records)]
    names.remove(BASE)
    figure = Figure(figsize=(9, 1.2 + 0.16 * len(cases) * (len(names) + 1)), dpi=150)
    figure.set_layout_engine("constrained")
    ax = figure.subplots()
    for i, name in enumerate(names):
        speeds = {r["case"]: r["speed"] for r in records if r["contender"] == name}
        low, middle, high = (
            np.array([speed[q] for speed in speeds.values()]) for q in ("25%", "50%", "75%")
        )
        ax.barh(
            [cases.index(case) + (i - (len(names) - 1) / 2) / (len(names) + 1) for case in speeds],
            middle,
            height=1 / (len(names) + 1),
            xerr=[middle - low, high - middle],
            error_kw={"elinewidth": 0.8, "ecolor": "black"},
            color=COLOURS[name],
            label=name,
        )
    ax.axvline(1, color=COLOURS[BASE], linewidth=1)
    ax.set_yticks(range(len(cases)), cases)
    ax.set_ylim(len(cases) - 0.5, -0.5)
    ax.set_xlabel(f"times as fast as {BASE} (median of rounds and quartiles)")
    ax.set_title(title, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def _compile_times(records: list[Record], note: str) -> "Figure":
    """Draw seconds against leaves for each contender, with a panel for each case."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(r["case"] for r in records))
    figure = Figure(figsize=(4.5 * len(cases), 4), dpi=150, layout="constrained")
    for ax, case in zip(
        figure.subplots(1, len(cases), sharey=True, squeeze=False)[0], cases, strict=True
    ):
        for name in dict.fromkeys(r["contender"] for r in records):
            results = [r for r in records if (r["case"], r["contender"]) == (case, name)]
            ax.loglog(
                [r["leaves"] for r in results],
                [r["sum"]["50%"] for r in results],
                color=COLOURS[name],
                marker=MARKERS[name],
                label=name,
            )
        ax.set_xticks(sorted({r["leaves"] for r in records}))
        ax.minorticks_off()
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
        ax.set_title(f"{case}{note}", loc="left")
        ax.set_xlabel("leaves of 3500 numbers")
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds to trace, lower and compile")
    figure.axes[0].legend(frameon=False)
    return figure


def _save(figure: "Figure", path: Path) -> Path:
    figure.savefig(path)
    return path
