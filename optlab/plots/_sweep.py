"""Plots of a sweep: its trials as lines, and its scores against each hyperparameter."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab import _checks
from optlab._extras import needs_extra
from optlab.plots._common import ACCENT, PALETTE, SMALL, new_axes
from optlab.plots._parallel import plot_parallel, title_of
from optlab.plots._scale import Scale, metric_of, metric_scale, range_ticks, short, spread
from optlab.plots._trials import plot_importances, plot_trials

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optlab.lab import Range, Sweep, Trial

COLUMNS = 4
"""The number of panels side by side."""

LOST_ROW = 0.1
"""Distance of the crosses of diverged trials from the bad end, as a share of the axis."""

MOST_LETTERS = 30
"""Tick labels with more letters than this in total are rotated to fit below a panel."""

MARGIN = 0.06
"""Room around the points, as a share of the axis."""


def plot_sweep(sweep: "Sweep") -> "Figure":
    """Draw a sweep: its trials, their learning curves, and a panel for each hyperparameter.

    The first part is `plot_parallel`. Below are `plot_trials` and `plot_importances`, then for each
    hyperparameter `plot_hyperparameter` of the score, with the loss below if the score is another
    metric. With a single hyperparameter `plot_parallel` is left out.

    Args:
        sweep: the result of `sweep`.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    with needs_extra("plot_sweep"):
        from matplotlib.figure import Figure

    names = list(sweep.space)
    several = len(names) > 1
    metrics = ["loss"] if sweep.score == "loss" else [sweep.score, "loss"]
    columns = min(COLUMNS, len(names))
    blocks = -(-len(names) // columns)
    lines = blocks * len(metrics)
    heights = [*[3.6] * several, 2.6, *[2.0] * lines]
    size = (max(9.0, 1.3 * (len(names) + 1), 3.1 * columns), 0.8 + sum(heights))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    if several:
        plot_parallel(sweep, ax=figure.add_subplot(rows[0]))
    else:
        figure.suptitle(title_of(sweep), x=0.01, ha="left", fontsize=11)
    grid = rows[several + 1 :].subgridspec(lines, columns)
    panels_of_all = []
    for index, name in enumerate(names):
        block, column = divmod(index, columns)
        first = block * len(metrics)
        panels = [figure.add_subplot(grid[first + row, column]) for row in range(len(metrics))]
        _draw_column(panels, sweep, name, metrics, leftmost=column == 0)
        panels_of_all += panels
    beside = rows[int(several)].subgridspec(1, 2, width_ratios=[3, 2])
    for place, draw in enumerate((plot_trials, plot_importances)):
        ax = figure.add_subplot(beside[place])
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=SMALL)
        draw(sweep, ax=ax)
    figure.align_ylabels(panels_of_all)
    _legend_below(figure, panels_of_all)
    return figure


def plot_hyperparameter(
    sweep: "Sweep", name: str, *, metric: str | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw a metric at the end of each trial against one hyperparameter.

    Trials that halving stopped are hollow points at their last score. Diverged trials are crosses
    beyond the bad end. If a few bad trials would press the good ones together, the axis is cut, and
    a triangle stands for each trial beyond it. Trials with the same choice or integer are drawn
    slightly apart.

    Args:
        sweep: the result of `sweep`.
        name: the name of the hyperparameter.
        metric: a metric of the task; None for the score.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
        ValueError: there is no such hyperparameter or metric.
    """
    who = "plot_hyperparameter"
    metric = sweep.score if metric is None else metric
    _check_one_of(who, "name", name, sweep.space)
    _check_one_of(who, "metric", metric, sweep.trials[0].validation)
    ax = new_axes(who) if ax is None else ax
    _draw_panel(ax, sweep, name, metric)
    ax.set_title(title_of(sweep), loc="left", fontsize=11, pad=18)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def _draw_column(
    panels: "Sequence[Axes]", sweep: "Sweep", name: str, metrics: Sequence[str], *, leftmost: bool
) -> None:
    """Draw the panels of one hyperparameter, without labels that a neighbouring panel has."""
    for ax, metric in zip(panels, metrics, strict=True):
        ax.spines[["top", "right"]].set_visible(False)
        _draw_panel(ax, sweep, name, metric)
        ax.tick_params(labelsize=SMALL)
        if not leftmost:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
    for ax in panels[:-1]:
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
    for ax in panels[1:]:
        for text in ax.texts:
            text.remove()


def _draw_panel(ax: "Axes", sweep: "Sweep", name: str, metric: str) -> None:
    """Draw the trials as points; the best is drawn last."""
    values = sweep.space[name]
    scale = metric_scale(sweep, metric)
    trials = sweep.ranked()[::-1]
    x = _across(values, [trial.values[name] for trial in trials])
    y = np.array([metric_of(trial, metric) for trial in trials])
    heights = np.array([_height(scale, value) for value in y])
    _scale_x(ax, values)
    _scale_y(ax, scale, with_diverged=np.isnan(y).any())
    for kind, where in _kinds(trials, y, scale).items():
        ax.plot(x[where], heights[where], **_marker(kind, scale), label=kind)
    if np.isfinite(y[-1]):
        _label_best(ax, x[-1], trials[-1].values[name])
    ax.set_xlabel(name)
    ax.set_ylabel(sweep.title(metric))
    ax.grid(axis="y", alpha=0.25, linewidth=0.6)


def _across(values: "Range", selected: Sequence[Any]) -> np.ndarray:
    """Return the horizontal positions of trials; choices lie around 0, 1, ….

    Trials with the same choice or integer lie slightly apart.
    """
    if values.is_choice:
        return spread(values, selected, mixed=True) * values.size - 0.5
    if values.is_integer and not values.log:
        return spread(values, selected, mixed=True) * values.size - 0.5 + values.low
    return np.array(selected, np.float64)


def _scale_x(ax: "Axes", values: "Range") -> None:
    """Choose the horizontal axis and its ticks."""
    ticks, labels = zip(*range_ticks(values), strict=True)
    low, high = -0.5, len(ticks) - 0.5
    if values.is_choice:
        ticks = range(len(ticks))
    elif values.log:
        ax.set_xscale("log")
        factor = (values.high / values.low) ** MARGIN
        low, high = values.low / factor, values.high * factor
    else:
        room = MARGIN * (values.high - values.low)
        room = max(0.5, room) if values.is_integer else room
        low, high = values.low - room, values.high + room
    ax.set_xlim(low, high)
    ax.set_xticks(ticks, labels)
    if sum(map(len, labels)) > MOST_LETTERS:
        ax.tick_params(axis="x", labelrotation=20)
    ax.set_xticks([], minor=True)


def _scale_y(ax: "Axes", scale: Scale | None, *, with_diverged: bool) -> None:
    """Choose the vertical axis and its ticks, with room for crosses at its bad end."""
    if scale is None:
        ax.set_ylim(-MARGIN, 1)
        ax.set_yticks([])
        return
    if scale.log:
        ax.set_yscale("log")
    room = np.array([-MARGIN, MARGIN])
    room[int(scale.bad_end)] *= 1 + with_diverged * LOST_ROW / MARGIN
    ax.set_ylim(scale.at(room[0]), scale.at(1 + room[1]))
    ax.set_yticks(*zip(*scale.ticks(), strict=True))
    ax.set_yticks([], minor=True)


def _height(scale: Scale | None, value: float) -> float:
    """Return the vertical position of a trial, which may have diverged or lie beyond the axis."""
    if scale is None:
        return 0.0
    if np.isnan(value):
        return scale.at(1 + LOST_ROW if scale.lower_is_better else -LOST_ROW)
    return scale.at(scale.bad_end) if scale.beyond(value) else value


def _kinds(
    trials: "Sequence[Trial]", y: np.ndarray, scale: Scale | None
) -> Mapping[str, np.ndarray]:
    """Return the points of each kind, name → (trials,) bool, in the order of drawing.

    The last trial is the best, unless it diverged.
    """
    diverged = np.isnan(y)
    best = ~diverged & (np.arange(len(trials)) == len(trials) - 1)
    stopped = np.array([trial.stopped for trial in trials])
    ended = np.array([trial.ended_early for trial in trials]) & ~(diverged | best)
    beyond = np.array([scale is not None and scale.beyond(value) for value in y])
    kinds = {
        "diverged": diverged,
        "beyond the axis": beyond & ~best,
        "stopped by halving": stopped & ~(diverged | beyond | best),
        "ended early": ended & ~beyond,
        "complete": ~(stopped | ended | diverged | beyond | best),
        "best": best,
    }
    return {kind: where for kind, where in kinds.items() if where.any()}


def _marker(kind: str, scale: Scale | None) -> dict[str, Any]:
    """Return the style of a kind of points."""
    style = {"linestyle": "none", "marker": "o", "markersize": 4.5, "color": PALETTE[0]}
    match kind:
        case "diverged":
            return style | {"marker": "x", "color": "0.45"}
        case "beyond the axis":
            marker = "^" if scale.lower_is_better else "v"
            return style | {"marker": marker, "markerfacecolor": "none", "color": "0.45"}
        case "stopped by halving":
            return style | {"markerfacecolor": "none", "markeredgewidth": 0.8}
        case "ended early":
            return style | {"marker": "D", "alpha": 0.8, "markeredgecolor": "none"}
        case "complete":
            return style | {"alpha": 0.8, "markeredgecolor": "white", "markeredgewidth": 0.4}
        case "best":
            return style | {
                "color": ACCENT,
                "markersize": 7,
                "markeredgecolor": "white",
                "zorder": 5,
            }


def _label_best(ax: "Axes", x: float, value: Any) -> None:
    """Mark the best trial's value, and write it above the axes."""
    ax.axvline(x, color=ACCENT, linewidth=0.8, alpha=0.6, zorder=1)
    ax.annotate(
        short(value, 3),
        (x, 1),
        (0, 3),
        xycoords=ax.get_xaxis_transform(),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color=ACCENT,
        fontsize=SMALL,
        weight="bold",
    )


def _legend_below(figure: "Figure", panels: "Sequence[Axes]") -> None:
    """Put one legend for the points of all panels below them."""
    handle_by_label = {}
    for ax in panels:
        handles, labels = ax.get_legend_handles_labels()
        handle_by_label |= dict(zip(labels, handles, strict=True))
    style = {"loc": "outside lower left", "frameon": False, "fontsize": SMALL + 1}
    figure.legend(
        handle_by_label.values(), handle_by_label.keys(), ncols=len(handle_by_label), **style
    )


def _check_one_of(who: str, argument: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        _checks.fail(who, f"{argument} must be one of {', '.join(known)}", repr(name))
