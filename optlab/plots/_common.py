"""What the pictures have in common: colours, markers, axes."""

from typing import TYPE_CHECKING, Any

import numpy as np

from optlab.lab._extras import needs_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#555555")
"""Okabe and Ito's colours, told apart with any colour vision."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""A second way to tell lines apart, for print without colour."""

ACCENT = PALETTE[4]
"""The colour of the one thing to look at."""

DIM = "0.65"
"""The grey of what stands in the background."""

SMALL = 8
"""Points of the labels in pictures of many panels."""

CROSS_ROW = 7
"""Points between the lines of crosses that mark diverged runs."""

LABEL_WIDTH = 90
"""Characters a line in the legend of schedules, whose labels may be whole expressions."""


def new_axes(who: str) -> "Axes":
    """Return the axes of a new figure, which belongs to no global state."""
    with needs_extra(who):
        from matplotlib.figure import Figure

    ax = Figure(figsize=(9, 5), dpi=150, layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def style_of(index: int) -> dict[str, Any]:
    """The line of the optimizer that stands at `index`, alike in all plots."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": ("-", "--", ":")[index // len(PALETTE) % 3],
        "markersize": 5,
        "linewidth": 1.6,
    }


def ring(color: str) -> dict[str, Any]:
    """The marker around what is best."""
    return {
        "color": color,
        "marker": "o",
        "markersize": 11,
        "markerfacecolor": "none",
        "linestyle": "none",
    }


def cross(color: str) -> dict[str, Any]:
    """The marker of what diverged."""
    return {"color": color, "marker": "x", "markersize": 5, "linestyle": "none"}


def mark_diverged(ax: "Axes", rates: np.ndarray, color: str, points: float) -> None:
    """Put crosses above the plot, so many points from its upper edge."""
    from matplotlib.transforms import offset_copy

    above = offset_copy(ax.get_xaxis_transform(), ax.figure, y=points, units="points")
    (crosses,) = ax.plot(rates, np.ones(len(rates)), **cross(color), transform=above, clip_on=False)
    crosses.set_in_layout(False)  # the title's padding makes their room
