"""Results of the lab as Matplotlib axes. Matplotlib is imported where it is used.

Each function draws on the axes it is given, or on those of a new figure without global state, and
returns them: `plot_curves(comparison).figure.savefig("curves.png")`.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import ArrayLike, Schedule
from optlab.lab._compare import Comparison
from optlab.lab._extras import needs_extra
from optlab.lab._grid import DIVERGENCE_FACTOR
from optlab.lab._range_test import RangeTest
from optlab.lab._rows import eligible_means
from optlab.lab.tasks import valley_height
from optlab.schedules import OneCycle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#555555")
"""Okabe and Ito's colours, told apart with any colour vision."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""A second way to tell lines apart, for print without colour."""

DECADES_SHOWN = 8
"""How far below the initial loss a logarithmic axis reaches."""

CROSS_ROW = 7
"""Points between the lines of crosses that mark diverged runs."""

SAMPLES = 2000
"""Up to so many steps, a schedule is drawn from its value at each; beyond, from so many."""

LABEL_WIDTH = 90
"""Characters a line in the legend of schedules, whose labels may be whole expressions."""

LOG_FALL = 20
"""The axis of a range test is logarithmic where the loss falls to less than one in so many."""

LAST_STEP = 2**31 - 1
"""The last step that an optimizer counts."""


def plot_curves(
    comparison: Comparison, *, metric: str = "loss", ax: "Axes | None" = None
) -> "Axes":
    """Draw a metric against updates, for each optimizer at its best rate.

    The line is the median over the seeds that did not diverge, the band their range.

    Args:
        comparison: what `compare` found.
        metric: one that the task evaluates.
        ax: where to draw; None for a new figure.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.
    """
    ax = _new_axes("plot_curves") if ax is None else ax
    lowest, highest = _shown_range(comparison, metric)
    for index, row in enumerate(comparison.rows()):
        style = _style(index)
        if row.rate is None:
            ax.plot([], [], **style, label=f"{row.optimizer} (all diverged)")
            continue
        runs = comparison.runs[row.optimizer]
        best = np.flatnonzero(runs.rates == row.rate)[0]
        values = runs.validation[metric][best, ~runs.diverged[best]].clip(lowest, highest)
        ax.plot(
            runs.steps,
            np.median(values, axis=0),
            **style,
            markevery=(0.03 * index, 0.2),
            label=f"{row.optimizer} at {row.rate:.3g}",
        )
        ax.fill_between(
            runs.steps,
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
    comparison: Comparison, *, metric: str = "loss", ax: "Axes | None" = None
) -> "Axes":
    """Draw a metric at the end of training against the learning rate, for each optimizer.

    The line is the mean over seeds. A ring marks the best rate, a cross above the plot a rate at
    which a run diverged; the line is broken at rates that are not eligible (see `Row`).

    Args:
        comparison: what `compare` found.
        metric: one that the task evaluates.
        ax: where to draw; None for a new figure.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.
    """
    ax = _new_axes("plot_sensitivity") if ax is None else ax
    lowest, highest = _shown_range(comparison, metric)
    lines_of_crosses = 0
    for index, row in enumerate(comparison.rows()):
        style = _style(index)
        runs = comparison.runs[row.optimizer]
        means = eligible_means(runs, metric).clip(lowest, highest)
        ax.plot(runs.rates, means, **style, label=row.optimizer)
        best = runs.rates == row.rate
        ax.plot(runs.rates[best], means[best], **_ring(style["color"]))
        if row.num_diverged:
            lines_of_crosses += 1
            crossed = runs.rates[runs.diverged.any(axis=1)]
            _mark_diverged(ax, crossed, style["color"], CROSS_ROW * lines_of_crosses)
    ax.plot([], [], **_ring("black"), label=f"best {comparison.title(comparison.score)}")
    ax.plot([], [], **_cross("black"), label="a run diverged")
    every_rate = np.concatenate([runs.rates for runs in comparison.runs.values()])
    ax.set_xscale("log")
    ax.set_xlim(every_rate.min() / 1.6, every_rate.max() * 1.6)
    ax.set_xlabel("learning rate")
    ax.set_title(
        f"{comparison.task}: {comparison.title(metric)} after {runs.steps[-1]} updates",
        loc="left",
        pad=6 + CROSS_ROW * (lines_of_crosses + 0.5),
    )
    _finish(ax, comparison, metric, legend=f"mean, {_seeds(comparison)}")
    return ax


def plot_paths(
    comparison: Comparison,
    optimizers: Sequence[str] | None = None,
    *,
    height: Callable[[ArrayLike, ArrayLike], ArrayLike] = valley_height,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the paths of the first seed on the contours of a function of two variables.

    Each optimizer is shown at its best rate, with a marker at every evaluation.

    Args:
        comparison: of a task that evaluates the coordinates as metrics "x" and "y", as `valley`.
        optimizers: the labels of those to show; None for all.
        height: the function, elementwise on arrays.
        ax: where to draw; None for a new figure.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.
        ValueError: if the task has no coordinates.
    """
    if not all({"x", "y"} <= runs.validation.keys() for runs in comparison.runs.values()):
        _checks.fail(
            "plot_paths",
            "the task must evaluate coordinates as metrics x and y",
            comparison.task,
            "compare on a task such as tasks.valley()",
        )
    ax = _new_axes("plot_paths") if ax is None else ax
    for index, row in enumerate(comparison.rows()):
        if optimizers is not None and row.optimizer not in optimizers:
            continue
        style = {**_style(index), "markersize": 3, "linewidth": 1.2}
        if row.rate is None:
            ax.plot([], [], **style, label=f"{row.optimizer} (all diverged)")
            continue
        runs = comparison.runs[row.optimizer]
        best = np.flatnonzero(runs.rates == row.rate)[0]
        seed = np.flatnonzero(~runs.diverged[best])[0]
        x, y = (runs.validation[name][best, seed] for name in ("x", "y"))
        ax.plot(x, y, **style, label=f"{row.optimizer} at {row.rate:.3g}")
    any_runs = next(iter(comparison.runs.values()))
    start = np.array([any_runs.validation[name][0, 0, 0] for name in ("x", "y")])
    ax.plot(*start, **_ring("black"))
    _draw_contours(ax, height, reach=1.25 * np.abs(start))
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    ax.legend(loc="lower left", framealpha=0.9, edgecolor="none")
    return ax


def plot_path_panels(comparison: Comparison) -> "Figure":
    """Draw `plot_paths` of each optimizer in a panel of its own, and return the figure."""
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
            plot_paths(comparison, [label], ax=ax).label_outer()
    figure.suptitle(f"{comparison.task}: paths from one start, each optimizer at its best rate")
    return figure


def plot_schedules(
    schedules: Mapping[str, Schedule | OneCycle], *, steps: int, ax: "Axes | None" = None
) -> "Axes":
    """Draw the values of schedules against the updates done, with a marker at each knot.

    The momentum of a one cycle is drawn in a panel of its own below, which takes a part of the room
    of `ax`.

    Args:
        schedules: label → a schedule, ours or Optax's, or both of a one cycle.
        steps: the last step shown, in [1, 2³¹ − 1]; a run of so many updates ends just before it.
        ax: where to draw; None for a new figure.

    Returns:
        The axes of the values; those of the momentum, if any, come last in the figure.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.
        ValueError: there is no schedule, `steps` is out of range, or a value is not finite.

    Example:
        >>> from optlab import schedules
        >>> ax = plot_schedules({"cosine": schedules.cosine(0.1, decay_steps=50)}, steps=60)
        >>> ax.get_xlabel()
        'optimizer updates done'
    """
    who = "plot_schedules"
    _checks.check_count(who, "steps", steps, 1)
    if steps > LAST_STEP:
        _checks.fail(who, f"steps must be at most 2³¹ − 1 = {LAST_STEP}", f"steps={steps}")
    if not schedules:
        _checks.fail(who, "schedules must hold at least one", "none")
    cycles = {label: s for label, s in schedules.items() if isinstance(s, OneCycle)}
    values = {
        label: _sampled(who, label, s.learning_rate if label in cycles else s, steps)
        for label, s in schedules.items()
    }
    momenta = {label: _sampled(who, label, s.momentum, steps) for label, s in cycles.items()}
    wrapped = {
        label: textwrap.fill(label, LABEL_WIDTH, subsequent_indent="    ") for label in values
    }
    if ax is None:
        ax = _new_axes(who)
        lines = sum(text.count("\n") + 1 for text in wrapped.values())
        ax.figure.set_figheight(4.8 + 0.2 * lines + 1.2 * bool(cycles))
    ax.set_ylabel("learning rate" if cycles else "value")
    panels = {ax: values}
    if cycles:
        panels[_panel_below(who, ax, "momentum")] = momenta
    for panel, curves in panels.items():
        for index, label in enumerate(schedules):
            if label in curves:
                steps_shown, shown, knots = curves[label]
                style = {**_style(index), "markevery": knots, "label": wrapped[label]}
                panel.plot(steps_shown, shown, **style)
        panel.yaxis.set_major_formatter("{x:.6g}")
        panel.margins(x=0.01)
        panel.grid(alpha=0.25, linewidth=0.6)
    panel.set_xlabel("optimizer updates done")
    panel.xaxis.set_major_formatter("{x:,.10g}")
    ax.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1), frameon=False, borderaxespad=0, fontsize=9
    )
    return ax


def plot_range_test(
    result: RangeTest, *, label: str | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw the loss against the learning rate, and mark what the range test suggests.

    Faint lines are single seeds, the bold one the median of their trends; a cross above the plot is
    where a seed diverged. The suggestions stand on the median, the band behind each being its range
    over seeds.

    Args:
        result: what `lr_range_test` found.
        label: of what, for the title, such as "adam on digits-mlp"; None for the task's name.
        ax: where to draw; None for a new figure.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.
    """
    ax = _new_axes("plot_range_test") if ax is None else ax
    for index, losses in enumerate(result.losses):
        named = {"label": "single seeds"} if index == 0 else {}
        ax.plot(result.rates, losses, color="0.65", linewidth=0.7, alpha=0.7, **named)
    ax.plot(result.rates, result.median, color="black", linewidth=2.2, label="median")
    suggested = {
        "suggested max": (result.suggested_max, result.max_interval),
        "suggested min": (result.suggested_min, result.min_interval),
    }
    for index, (name, (rate, interval)) in enumerate(suggested.items()):
        if rate is not None:
            ax.axvspan(*interval, color=PALETTE[index], alpha=0.18, linewidth=0, zorder=0)
            ax.axvline(rate, color=PALETTE[index], linewidth=1, zorder=1)
            _mark_rate(ax, result, rate, name, index, size=9)
    for index, (name, rate) in enumerate(result.picks.items(), start=len(suggested)):
        _mark_rate(ax, result, rate, f"{name} (fastai)", index, size=6)
    if result.diverged.any():
        last = np.isfinite(result.losses[result.diverged]).sum(axis=-1)
        _mark_diverged(ax, result.rates[last], "0.4", CROSS_ROW)
        ax.plot([], [], **_cross("0.4"), label="a seed diverged")
    ax.set_xscale("log" if result.mode == "exponential" else "linear")
    ax.set_xlim(result.rates[[0, -1]])
    ax.set_xlabel("learning rate")
    _scale_range_losses(ax, result)
    ax.set_ylabel("training loss")
    ax.grid(alpha=0.25, linewidth=0.6)
    title = result.title(label).replace("range test, ", "range test\n")
    if result.reason is not None:
        title += "\n" + textwrap.fill(f"no reliable suggestion: {result.reason}", LABEL_WIDTH)
    ax.set_title(title, loc="left", pad=6 + 1.5 * CROSS_ROW)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, alignment="left")
    return ax


def _mark_rate(
    ax: "Axes", result: RangeTest, rate: float, label: str, index: int, *, size: float
) -> None:
    """Put a marker on the median at a rate; at its last point where the rate lies beyond."""
    known = np.isfinite(result.median)
    height = np.interp(rate, result.rates[known], result.median[known])
    style = {**_style(index), "linestyle": "none", "markersize": size, "markeredgecolor": "white"}
    ax.plot([rate], [height], **style, zorder=4, label=f"{label} {rate:.2g}")


def _scale_range_losses(ax: "Axes", result: RangeTest) -> None:
    """Choose the loss axis: logarithmic where the loss falls far; runaways leave it at the top."""
    level = np.median(result.initial)
    lowest = np.nanmin(result.trends, initial=np.inf)
    if not np.isfinite(level):
        return
    if 0 < lowest < level / LOG_FALL:
        ax.set_yscale("log")
        ax.set_ylim(lowest / 2, level * DIVERGENCE_FACTOR)
    elif np.isfinite(lowest):
        lowest = min(lowest, np.nanmin(result.losses))
        room = max(level - lowest, abs(level) / 2, np.finfo(np.float32).tiny)
        ax.set_ylim(min(lowest, level) - 0.15 * room, level + 0.8 * room)


def _sampled(
    who: str, label: str, schedule: Schedule, last: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return steps, the values there, and the indices of the knots; refuse what is not finite."""
    knots = [knot for knot in getattr(schedule, "knots", (0,)) if knot <= last]
    even = np.linspace(0, last, min(last, SAMPLES) + 1).round()
    before = [np.ceil(knot) - 1 for knot in knots if knot > 0]  # so that a jump is a vertical line
    steps = np.unique(np.concatenate([even, knots, before]))
    whole = steps == steps.round()
    values = np.empty(len(steps))
    evaluate = jax.jit(jax.vmap(lambda step: jnp.asarray(schedule(step), float)))
    values[whole] = evaluate(jnp.asarray(steps[whole], jnp.int32))
    values[~whole] = [schedule(step) for step in steps[~whole]]
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        where = f"{values[wrong[0]]} at step {steps[wrong[0]]:g} of {label}"
        _checks.fail(who, "every value must be finite", where)
    return steps, values, np.searchsorted(steps, knots).tolist()


def _panel_below(who: str, ax: "Axes", label: str) -> "Axes":
    """Give the lower third of the room of `ax` to a new panel with the same horizontal axis."""
    spec = ax.get_subplotspec()
    if spec is None:
        _checks.fail(
            who,
            "ax must be a subplot, to make room for the momentum",
            "axes placed by hand",
            "use figure.subplots(), or draw cycle.learning_rate and cycle.momentum apart",
        )
    upper, lower = spec.subgridspec(2, 1, height_ratios=(2, 1))
    ax.set_subplotspec(upper)
    ax.tick_params(labelbottom=False)
    below = ax.figure.add_subplot(lower, sharex=ax, ylabel=label)
    below.spines[["top", "right"]].set_visible(False)
    return below


def _new_axes(who: str) -> "Axes":
    with needs_extra(who):
        from matplotlib.figure import Figure

    ax = Figure(figsize=(9, 5), dpi=150, layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _style(index: int) -> dict[str, Any]:
    """The line of the optimizer that stands at `index`, alike in all plots."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": ("-", "--", ":")[index // len(PALETTE) % 3],
        "markersize": 5,
        "linewidth": 1.6,
    }


def _shown_range(comparison: Comparison, metric: str) -> tuple[float, float]:
    """Return between which values a metric is drawn; a loss around where it starts, on a log axis.

    What lies outside is drawn at the edge, so that one runaway does not flatten all else.
    """
    initial = np.concatenate(
        [runs.validation[metric][0, :, 0] for runs in comparison.runs.values()], dtype=np.float64
    )
    initial = initial[np.isfinite(initial)].mean() if np.isfinite(initial).any() else 0.0
    if metric != "loss" or initial <= 0:
        return -np.inf, np.inf
    return initial * 10.0**-DECADES_SHOWN, initial * DIVERGENCE_FACTOR


def _finish(ax: "Axes", comparison: Comparison, metric: str, *, legend: str) -> None:
    lowest, highest = _shown_range(comparison, metric)
    if np.isfinite([lowest, highest]).all():
        if all(row.rate is None for row in comparison.rows()):
            ax.set_ylim(lowest, highest)  # nothing is drawn from which Matplotlib could tell
        ax.set_yscale("log")
    ax.set_ylabel(comparison.title(metric))
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.legend(
        title=legend, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, alignment="left"
    )


def _seeds(comparison: Comparison) -> str:
    count = len(next(iter(comparison.runs.values())).seeds)
    return "one seed" if count == 1 else f"{count} seeds"


def _ring(color: str) -> dict[str, Any]:
    return {
        "color": color,
        "marker": "o",
        "markersize": 11,
        "markerfacecolor": "none",
        "linestyle": "none",
    }


def _cross(color: str) -> dict[str, Any]:
    return {"color": color, "marker": "x", "markersize": 5, "linestyle": "none"}


def _mark_diverged(ax: "Axes", rates: np.ndarray, color: str, points: float) -> None:
    """Put crosses above the plot, so many points from its upper edge."""
    from matplotlib.transforms import offset_copy

    above = offset_copy(ax.get_xaxis_transform(), ax.figure, y=points, units="points")
    (crosses,) = ax.plot(
        rates, np.ones(len(rates)), **_cross(color), transform=above, clip_on=False
    )
    crosses.set_in_layout(False)  # the title's padding makes their room


def _draw_contours(
    ax: "Axes", height: Callable[[ArrayLike, ArrayLike], ArrayLike], reach: np.ndarray
) -> None:
    """Draw level lines as far as `reach` = (x, y), each four times as high as the one inside it."""
    x, y = np.meshgrid(*(np.linspace(-r, r, 241) for r in reach))
    levels = height(*reach) / 4.0 ** np.arange(6)[::-1]
    ax.contour(x, y, height(x, y), levels, colors="0.75", linewidths=0.8, zorder=0)
    ax.set_xlim(-reach[0], reach[0])
    ax.set_ylim(-reach[1], reach[1])
