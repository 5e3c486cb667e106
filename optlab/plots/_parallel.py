"""`plot_parallel`: every trial of a sweep as a line through its values to its score."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab._report import digits_of, number
from optlab.plots._common import ACCENT, DIM, SMALL, new_axes
from optlab.plots._scale import (
    Scale,
    Tick,
    metric_of,
    metric_scale,
    name_of_lost,
    range_ticks,
    short,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from optlab.lab import Sweep, Trial

LOST = 0.12
"""Distance from the bad end of the score axis at which lines of diverged trials end."""

BEND = np.linspace(0.0, 1.0, 25)
"""Positions of a line's points between two axes."""

COLOURS = 0.9
"""The part of the colour map in use; its yellow end cannot be seen on white."""

TITLE_ROOM = 40
"""Points between the axes and the title, for axis names of two lines."""

LONG_NAME = 14
"""Letters of the longest name that is written on one line."""

TRIANGLE = 0.05
"""Height of the triangle at an end of the score axis that is cut."""

BAR = 0.022
"""Width of the colour bar, as a share of the distance between two axes."""


def plot_parallel(sweep: "Sweep", *, ax: "Axes | None" = None) -> "Axes":
    """Draw each trial as a line through its values, on one axis per hyperparameter, to its score.

    The last axis is the colour bar; darker is better. The best trial is highlighted, with its
    values written beside it. Trials that halving stopped are thin lines; diverged trials are grey
    and dashed. Trials with equal values are drawn slightly apart, in the order of their ranks. If
    a few bad trials would press the good ones together, the score axis is cut, which a triangle at
    its end shows.

    Args:
        sweep: the result of `sweep`.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    ax = new_axes("plot_parallel") if ax is None else ax
    scale = metric_scale(sweep, sweep.score)
    trials = sweep.ranked()[::-1]
    columns = [spread(r, [t.values[name] for t in trials]) for name, r in sweep.space.items()]
    columns.append(np.array([_end(scale, metric_of(trial, sweep.score)) for trial in trials]))
    heights = np.column_stack(columns)
    _draw_lines(ax, sweep, scale, trials, heights)
    for index, (name, values) in enumerate(sweep.space.items()):
        ticks = [(values.position(value), label) for value, label in range_ticks(values)]
        _draw_axis(ax, index, name, ticks)
    _draw_scores(ax, sweep, scale)
    ax.set_xlim(-0.03, len(sweep.space) * (1 + BAR))
    low, high = min(0.0, heights.min()), max(1.0, heights.max())
    room = TRIANGLE if scale is not None and scale.cut else 0.0
    ax.set_ylim(min(low, -room) - 0.03, max(high, 1 + room) + 0.03)
    ax.set_axis_off()
    ax.set_title(title_of(sweep), loc="left", fontsize=11, pad=TITLE_ROOM)
    return ax


def title_of(sweep: "Sweep") -> str:
    """Return the title: the search and its best result."""
    count = len(sweep.trials)
    lines = [f"{sweep.task}: {count} {'trial' if count == 1 else 'trials'}, {sweep.search} search"]
    best = sweep.ranked()[0]
    score = metric_of(best, sweep.score)
    if np.isfinite(score):
        digits = digits_of(metric_of(trial, sweep.score) for trial in sweep.trials)
        text = number(score, digits)
        lines.append(f"best: trial {best.number}, {sweep.title(sweep.score)} {text}")
    elif best.diverged:
        lines.append("all diverged")
    else:
        lines.append(f"{sweep.score} is not defined at any end")
    return "\n".join(lines)


def colour(scale: Scale, position: float | np.ndarray) -> Any:
    """Return the colour of a position on the scale of scores; darker is better."""
    from matplotlib import colormaps

    return colormaps["viridis"](COLOURS * np.abs(position - (1 - scale.bad_end)))


def _end(scale: Scale | None, score: float) -> float:
    """Return the height at which the line of a trial meets the score axis."""
    if np.isfinite(score):
        return scale.position(score)
    return 1 + LOST if scale is not None and scale.lower_is_better else -LOST


def _draw_lines(
    ax: "Axes", sweep: "Sweep", scale: Scale | None, trials: "Sequence[Trial]", heights: np.ndarray
) -> None:
    """Draw the lines from the worst trial to the best."""
    from matplotlib.collections import LineCollection

    lines = [_bent(line) for line in heights]
    is_finite = np.isfinite([metric_of(trial, sweep.score) for trial in trials])
    diverged_lines = [line for line, finite in zip(lines, is_finite, strict=True) if not finite]
    ax.add_collection(
        LineCollection(diverged_lines, colors=DIM, linewidths=0.8, linestyles="dashed", zorder=1),
        autolim=False,
    )
    if not is_finite.any():
        return
    indices = np.flatnonzero(is_finite)[:-1]
    ax.add_collection(
        LineCollection(
            [lines[i] for i in indices],
            colors=[colour(scale, heights[i, -1]) for i in indices],
            linewidths=[0.6 if trials[i].stopped else 1.3 for i in indices],
            alpha=float(np.clip(7 / np.sqrt(len(trials)), 0.3, 0.9)),
            zorder=2,
        ),
        autolim=False,
    )
    best = trials[-1]
    ax.plot(*lines[-1].T, color="white", linewidth=4.5, zorder=5)
    ax.plot(*lines[-1].T, color=ACCENT, linewidth=2.4, zorder=5, label=f"trial {best.number}")
    ax.plot(range(heights.shape[1]), heights[-1], "o", color=ACCENT, markersize=5, zorder=6)
    for x, (name, height) in enumerate(zip(sweep.space, heights[-1], strict=False)):
        _write(
            ax,
            short(best.values[name], 3),
            (x, height),
            (6, 3),
            color=ACCENT,
            ha="left",
            va="bottom",
            weight="bold",
        )


def _bent(heights: np.ndarray) -> np.ndarray:
    """Return the points (x, y) of a line that crosses every axis at a right angle."""
    rise = BEND**2 * (3 - 2 * BEND)
    x = np.arange(len(heights) - 1)[:, None] + BEND
    y = heights[:-1, None] + np.diff(heights)[:, None] * rise
    return np.column_stack([x.ravel(), y.ravel()])


def _draw_axis(ax: "Axes", x: float, name: str, ticks: Sequence[Tick], top: float = 1.0) -> None:
    """Draw a vertical axis with its name above `top`."""
    ax.plot([x, x], [0, 1], color="0.2", linewidth=1, zorder=3)
    for position, label in ticks:
        _write(ax, label, (x, position), (-4, 0), color="0.2", ha="right", va="center")
    ax.annotate(
        _in_lines(name),
        (x, top),
        (0, 7),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=SMALL + 1.5,
    )


def _in_lines(name: str) -> str:
    """Break a long name into two lines, at the space or underscore nearest to its middle."""
    breaks = [index + 1 for index, letter in enumerate(name) if letter in " _"]
    if len(name) <= LONG_NAME or not breaks:
        return name
    middle = min(breaks, key=lambda index: abs(index - len(name) / 2))
    return f"{name[:middle].rstrip()}\n{name[middle:]}"


def _draw_scores(ax: "Axes", sweep: "Sweep", scale: Scale | None) -> None:
    """Draw the score axis as a colour bar, with a triangle at an end that is cut."""
    last = len(sweep.space)
    right = last * (1 + BAR)
    diverged = [trial for trial in sweep.trials if not np.isfinite(metric_of(trial, sweep.score))]
    if diverged:
        where = (right, _end(scale, np.nan))
        _write(ax, name_of_lost(sweep), where, (4, 0), color="0.4", ha="left", va="center")
    title = sweep.title(sweep.score)
    above = LOST + 0.03 if diverged else TRIANGLE
    _draw_axis(ax, last, title, [], top=1 + above * (scale is not None and scale.lower_is_better))
    if scale is None:
        return
    edges = np.linspace(0, 1, 129)
    colours = colour(scale, (edges[:-1] + edges[1:]) / 2)[:, None]
    ax.pcolormesh([last, right], edges, colours, zorder=3)
    if scale.cut:
        end, sign = scale.bad_end, 2 * scale.bad_end - 1
        corners = [(last, end), (right, end), ((last + right) / 2, end + TRIANGLE * sign)]
        ax.fill(*zip(*corners, strict=True), color=colour(scale, end), zorder=3)
    for value, label in scale.ticks():
        _write(
            ax, label, (right, scale.position(value)), (4, 0), color="0.2", ha="left", va="center"
        )


def _write(ax: "Axes", text: str, at: tuple, offset: tuple, **style: Any) -> None:
    """Write text beside a point, with a white outline that keeps it readable across lines."""
    from matplotlib.patheffects import withStroke

    ax.annotate(
        text,
        at,
        offset,
        textcoords="offset points",
        fontsize=SMALL,
        path_effects=[withStroke(linewidth=3.5, foreground="white")],
        zorder=7,
        annotation_clip=False,
        **style,
    )
