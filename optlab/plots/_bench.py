"""Plots of a `Bench`: performance profiles, the areas under them, costs by task."""

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from optlab._extras import needs_extra
from optlab.plots._common import ACCENT, SMALL, new_axes, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optlab.lab import Bench

MOST_RATIO = 8.0
"""The ratio to the best optimizer of a task from which on cells have the darkest colour."""

TASK_WIDTH = 14
"""Characters per line in the names of tasks."""


def plot_bench(bench: "Bench", *, measure: str = "updates") -> "Figure":
    """Draw `plot_profile`, `plot_areas` and `plot_costs`, and return the figure.

    Args:
        bench: the result of `bench`.
        measure: "updates" or "seconds".

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
        ValueError: there is no such measure, or the seconds are of several machines.
    """
    with needs_extra("plot_bench"):
        from matplotlib.figure import Figure

    heights = (max(3.2, 0.3 * len(bench.optimizers)), 0.8 + 0.35 * len(bench.goals))
    figure = Figure(figsize=(11, sum(heights) + 1), dpi=150, layout="constrained")
    axes = figure.subplot_mosaic("AB;CC", height_ratios=heights)
    plot_profile(bench, measure=measure, ax=axes["A"])
    plot_areas(bench, measure=measure, ax=axes["B"])
    plot_costs(bench, measure=measure, ax=axes["C"])
    return figure


def plot_profile(bench: "Bench", *, measure: str = "updates", ax: "Axes | None" = None) -> "Axes":
    """Draw the share of tasks on which each optimizer is within a factor of the best.

    Args:
        bench: the result of `bench`.
        measure: "updates" or "seconds".
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
        ValueError: there is no such measure, or the seconds are of several machines.
    """
    ax = new_axes("plot_profile") if ax is None else ax
    profile = bench.profile(measure)
    for index, label in enumerate(profile.areas):
        style = style_of(index)
        marks = {"markevery": (0.03 * index % 0.2, 0.2)}
        drawstyle = {"drawstyle": "steps-post"}
        # Lines on the same shares would hide one another.
        shares = profile.fractions[label] + 0.004 * index
        ax.plot(profile.taus, shares, **style, **marks, **drawstyle, label=label)
    ax.set_xlim(profile.taus[0], profile.taus[-1])
    ax.set_ylim(-0.02, 1.08)
    ax.set_xlabel(f"τ, times the {measure} of the best optimizer of a task")
    ax.set_ylabel("share of tasks")
    ax.set_title("Tasks that reach the target", loc="left")
    ax.grid(alpha=0.25, linewidth=0.6)
    columns = -(-len(bench.optimizers) // 7)
    ax.legend(framealpha=0.8, edgecolor="none", fontsize=SMALL, ncols=columns)
    return ax


def plot_areas(bench: "Bench", *, measure: str = "updates", ax: "Axes | None" = None) -> "Axes":
    """Draw the area under the profile of each optimizer, with its 95% interval.

    Args:
        bench: the result of `bench`.
        measure: "updates" or "seconds".
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
        ValueError: there is no such measure, or the seconds are of several machines.
    """
    ax = new_axes("plot_areas") if ax is None else ax
    areas = bench.profile(measure).areas
    for index, (label, area) in enumerate(areas.items()):
        style = {**style_of(index), "linestyle": "none", "markersize": 6}
        ax.plot([area.low, area.high], [index, index], color=style["color"], linewidth=2)
        ax.plot([area.value], [index], **style, label=label)
    ax.set_yticks(range(len(areas)), list(areas))
    ax.set_ylim(len(areas) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel(f"area of the profile of {measure}, and its 95% interval")
    ax.set_title("All tasks", loc="left")
    ax.grid(axis="x", alpha=0.25, linewidth=0.6)
    return ax


def plot_costs(bench: "Bench", *, measure: str = "updates", ax: "Axes | None" = None) -> "Axes":
    """Draw a table of what it costs to reach each target, darker where others are faster.

    A cell shows the median over seeds, or a dash for a miss. The first of a task is in bold type.

    Args:
        bench: the result of `bench`.
        measure: "updates" or "seconds".
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
        ValueError: there is no such measure, or the seconds are of several machines.
    """
    ax = new_axes("plot_costs") if ax is None else ax
    order = list(bench.profile(measure).areas)
    columns = [bench.optimizers.index(label) for label in order]
    medians = np.median(bench.costs(measure), axis=-1)[:, columns]
    best = medians.min(axis=1, keepdims=True)
    ratios = np.where(np.isfinite(medians), medians / np.where(best < np.inf, best, 1), np.inf)
    shades = np.log(np.minimum(ratios, MOST_RATIO)) / np.log(MOST_RATIO)
    ax.imshow(shades, cmap="Greys", vmin=0, vmax=1.6, aspect="auto")
    for (row, column), cost in np.ndenumerate(medians):
        is_best = np.isfinite(cost) and ratios[row, column] == 1
        ax.text(
            column,
            row,
            f"{cost:.3g}" if np.isfinite(cost) else "–",
            ha="center",
            va="center",
            fontsize=SMALL,
            color=ACCENT if is_best else "black",
            weight="bold" if is_best else "normal",
        )
    names = [textwrap.fill(name, TASK_WIDTH) for name in bench.goals]
    ax.set_yticks(range(len(names)), names)
    ax.set_xticks(range(len(order)), order, rotation=30, ha="right")
    ax.set_title(f"Median {measure} to the target; – for a miss, darker for more", loc="left")
    return ax
