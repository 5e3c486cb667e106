"""Plots of a `Comparison`: curves, sensitivity to the rate, paths."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from optlab import _checks
from optlab._divergence import DIVERGENCE_FACTOR
from optlab._extras import needs_extra
from optlab._types import ArrayLike
from optlab.plots._common import CROSS_ROW, cross, mark_diverged, new_axes, ring, style_of
from optlab.plots._scale import log_ticks, spans_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optlab.lab import Comparison

DECADES_SHOWN = 8
"""Decades below the initial loss that a logarithmic axis shows."""


def plot_comparison(comparison: "Comparison", *, metric: str = "loss") -> "Figure":
    """Draw `plot_curves` above `plot_sensitivity`, and return the figure.

    Args:
        comparison: the result of `compare`.
        metric: a metric of the task.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    with needs_extra("plot_comparison"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), dpi=150, layout="constrained")
    curves, sensitivity = figure.subplots(2)
    plot_curves(comparison, metric=metric, ax=curves)
    plot_sensitivity(comparison, metric=metric, ax=sensitivity)
    return figure


def plot_curves(
    comparison: "Comparison", *, metric: str = "loss", ax: "Axes | None" = None
) -> "Axes":
    """Draw a metric against updates, for each optimizer at its best rate.

    The line is the median over the seeds that did not diverge; the band is their range. They end
    where early stopping ended the last of the runs; the others hold their values until there.

    Args:
        comparison: the result of `compare`.
        metric: a metric of the task.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    ax = new_axes("plot_curves") if ax is None else ax
    lowest, highest = _shown_range(comparison, metric)
    for index, row in enumerate(comparison.rows()):
        style = style_of(index)
        if row.rate is None:
            why = "all diverged" if row.num_diverged == row.num_runs else "no score"
            ax.plot([], [], **style, label=f"{row.optimizer} ({why})")
            continue
        runs = comparison.runs[row.optimizer]
        best = np.flatnonzero(runs.rates == row.rate)[0]
        converged = runs.scored[best]
        values = runs.held(metric)[best, converged].clip(lowest, highest)
        steps = runs.steps
        if runs.ended is not None:
            steps = steps[steps <= runs.ended[best, converged].max()]
            values = values[:, : len(steps)]
        ax.plot(
            steps,
            np.median(values, axis=0),
            **style,
            markevery=(0.03 * index, 0.2),
            label=f"{row.optimizer} at {row.rate:.3g}",
        )
        ax.fill_between(
            steps,
            values.min(axis=0),
            values.max(axis=0),
            color=style["color"],
            alpha=0.15,
            linewidth=0,
        )
    ax.set_xlabel("optimizer updates")
    ax.margins(x=0.01)
    ax.set_title(
        f"{comparison.task}: {comparison.title(metric)}, each optimizer at its best rate",
        loc="left",
    )
    _finish(ax, comparison, metric, legend=f"median and range, {_seeds(comparison)}")
    return ax


def plot_sensitivity(
    comparison: "Comparison", *, metric: str = "loss", ax: "Axes | None" = None
) -> "Axes":
    """Draw a metric at the end of training against the learning rate, for each optimizer.

    The line is the mean over seeds. A ring marks the best rate. A cross above the plot marks a rate
    at which a run diverged. The line is broken at rates that are not eligible (see `Row`).

    Args:
        comparison: the result of `compare`.
        metric: a metric of the task.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    ax = new_axes("plot_sensitivity") if ax is None else ax
    lowest, highest = _shown_range(comparison, metric)
    lines_of_crosses = 0
    for index, row in enumerate(comparison.rows()):
        style = style_of(index)
        runs = comparison.runs[row.optimizer]
        means = runs.eligible_means(metric).clip(lowest, highest)
        ax.plot(runs.rates, means, **style, label=row.optimizer)
        best = runs.rates == row.rate
        ax.plot(runs.rates[best], means[best], **ring(style["color"]))
        if row.num_diverged:
            lines_of_crosses += 1
            rates_with_divergence = runs.rates[runs.diverged.any(axis=1)]
            mark_diverged(ax, rates_with_divergence, style["color"], CROSS_ROW * lines_of_crosses)
    ax.plot([], [], **ring("black"), label=f"best {comparison.title(comparison.score)}")
    ax.plot([], [], **cross("black"), label="a run diverged")
    when = f"{runs.steps[-1]} updates"
    if runs.ended is not None:
        when = f"at most {when}, of each run at its best evaluation"
    every_rate = np.concatenate([runs.rates for runs in comparison.runs.values()])
    ax.set_xscale("log")
    ax.set_xlim(every_rate.min() / 1.6, every_rate.max() * 1.6)
    ax.set_xlabel("learning rate")
    ax.set_title(
        f"{comparison.task}: {comparison.title(metric)} after {when}",
        loc="left",
        pad=6 + CROSS_ROW * (lines_of_crosses + 0.5),
    )
    _finish(ax, comparison, metric, legend=f"mean, {_seeds(comparison)}")
    return ax


def plot_paths(
    comparison: "Comparison",
    optimizers: Sequence[str] | None = None,
    *,
    height: Callable[[ArrayLike, ArrayLike], ArrayLike],
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the paths of the first seed on the contours of a function of two variables.

    Each optimizer is shown at its best rate, with a marker at every evaluation.

    Args:
        comparison: of a task whose metrics include the coordinates as "x" and "y", like
            `lab.tasks.valley`.
        optimizers: the labels of the optimizers to show; None for all.
        height: the function, elementwise on arrays, such as `lab.tasks.valley_height`.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
        ValueError: the task has no coordinates.
    """
    if not all({"x", "y"} <= runs.validation.keys() for runs in comparison.runs.values()):
        _checks.fail(
            "plot_paths",
            "the task must evaluate coordinates as metrics x and y",
            comparison.task,
            "compare on a task such as tasks.valley()",
        )
    ax = new_axes("plot_paths") if ax is None else ax
    for index, row in enumerate(comparison.rows()):
        if optimizers is not None and row.optimizer not in optimizers:
            continue
        style = {**style_of(index), "markersize": 3, "linewidth": 1.2}
        if row.rate is None:
            why = "all diverged" if row.num_diverged == row.num_runs else "no score"
            ax.plot([], [], **style, label=f"{row.optimizer} ({why})")
            continue
        runs = comparison.runs[row.optimizer]
        best = np.flatnonzero(runs.rates == row.rate)[0]
        seed = np.flatnonzero(runs.scored[best])[0]
        x, y = (runs.validation[name][best, seed] for name in ("x", "y"))
        ax.plot(x, y, **style, label=f"{row.optimizer} at {row.rate:.3g}")
    any_runs = next(iter(comparison.runs.values()))
    start = np.array([any_runs.validation[name][0, 0, 0] for name in ("x", "y")])
    ax.plot(*start, **ring("black"))
    _draw_contours(ax, height, reach=1.25 * np.abs(start))
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    ax.legend(loc="lower left", framealpha=0.9, edgecolor="none")
    return ax


def plot_path_panels(
    comparison: "Comparison", *, height: Callable[[ArrayLike, ArrayLike], ArrayLike]
) -> "Figure":
    """Draw `plot_paths` of each optimizer in its own panel, and return the figure."""
    with needs_extra("plot_path_panels"):
        from matplotlib.figure import Figure

    columns = min(3, len(comparison.runs))
    lines = -(-len(comparison.runs) // columns)
    figure = Figure(figsize=(4 * columns, 0.6 + 2.8 * lines), dpi=150, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for ax, label in zip_longest(panels.flat, comparison.runs):
        if label is None:
            ax.remove()
        else:
            plot_paths(comparison, [label], height=height, ax=ax).label_outer()
    figure.suptitle(f"{comparison.task}: paths from one start, each optimizer at its best rate")
    return figure


def _shown_range(comparison: "Comparison", metric: str) -> tuple[float, float]:
    """Return the lowest and highest drawn value of a metric; ±∞ if there is no limit.

    A loss has limits around its initial value. Values beyond a limit are drawn on the limit, so
    that one runaway loss does not flatten the other curves.
    """
    initial = np.concatenate(
        [runs.validation[metric][0, :, 0] for runs in comparison.runs.values()], dtype=np.float64
    )
    initial = initial[np.isfinite(initial)].mean() if np.isfinite(initial).any() else 0.0
    if metric != "loss" or initial <= 0:
        return -np.inf, np.inf
    return initial * 10.0**-DECADES_SHOWN, initial * DIVERGENCE_FACTOR


def _finish(ax: "Axes", comparison: "Comparison", metric: str, *, legend: str) -> None:
    lowest, highest = _shown_range(comparison, metric)
    if np.isfinite([lowest, highest]).all():
        if all(row.rate is None for row in comparison.rows()):
            ax.set_ylim(lowest, highest)  # the plot has no data from which Matplotlib could tell
        drawn = [np.asarray(line.get_ydata(), np.float64) for line in ax.get_lines()]
        if spans_decades(np.concatenate(drawn)):
            ax.set_yscale("log")
            ax.set_yticks(*zip(*log_ticks(*ax.get_ylim()), strict=True))
            ax.set_yticks([], minor=True)
    ax.set_ylabel(comparison.title(metric))
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.legend(
        title=legend, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, alignment="left"
    )


def _seeds(comparison: "Comparison") -> str:
    count = len(next(iter(comparison.runs.values())).seeds)
    return "one seed" if count == 1 else f"{count} seeds"


def _draw_contours(
    ax: "Axes", height: Callable[[ArrayLike, ArrayLike], ArrayLike], reach: np.ndarray
) -> None:
    """Draw contours out to `reach` = (x, y); each is four times as high as the next inner one."""
    x, y = np.meshgrid(*(np.linspace(-r, r, 241) for r in reach))
    levels = height(*reach) / 4.0 ** np.arange(6)[::-1]
    ax.contour(x, y, height(x, y), levels, colors="0.75", linewidths=0.8, zorder=0)
    ax.set_xlim(-reach[0], reach[0])
    ax.set_ylim(-reach[1], reach[1])
