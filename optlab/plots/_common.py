"""Colours, markers and axes that several plots share."""

from typing import TYPE_CHECKING, Any

import numpy as np

from optlab._extras import needs_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#555555")
"""The colours of Okabe and Ito, which can be told apart with any colour vision."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Markers of the lines, which tell them apart in print without colour."""

ACCENT = PALETTE[4]
"""The colour of the most important item of a plot."""

DIM = "0.65"
"""The grey of items in the background."""

SMALL = 8
"""Font size, in points, of labels in figures of many panels."""

CROSS_ROW = 7
"""Distance, in points, between the lines of crosses that mark diverged runs."""

LABEL_WIDTH = 90
"""Characters per line in titles and in the legend of schedules, whose labels may be long."""


def new_axes(who: str) -> "Axes":
    """Return the axes of a new figure, outside pyplot's global state."""
    with needs_extra(who):
        from matplotlib.figure import Figure

    ax = Figure(figsize=(9, 5), dpi=150, layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def style_of(index: int) -> dict[str, Any]:
    """Return the line style of the optimizer at an index; the same in all plots."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": ("-", "--", ":")[index // len(PALETTE) % 3],
        "markersize": 5,
        "linewidth": 1.6,
    }


def ring(color: str) -> dict[str, Any]:
    """Return the style of the ring around the best item."""
    return {
        "color": color,
        "marker": "o",
        "markersize": 11,
        "markerfacecolor": "none",
        "linestyle": "none",
    }


def cross(color: str) -> dict[str, Any]:
    """Return the style of the cross for a diverged item."""
    return {"color": color, "marker": "x", "markersize": 5, "linestyle": "none"}


def mark_diverged(ax: "Axes", rates: np.ndarray, color: str, points: float) -> None:
    """Draw crosses above the plot, at a distance in points from its upper edge."""
    from matplotlib.transforms import offset_copy

    above = offset_copy(ax.get_xaxis_transform(), ax.figure, y=points, units="points")
    (crosses,) = ax.plot(rates, np.ones(len(rates)), **cross(color), transform=above, clip_on=False)
    crosses.set_in_layout(False)  # the padding of the title leaves room for them
