"""`plot_range_test`: the loss against the learning rate, with the suggested rates."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab._divergence import DIVERGENCE_FACTOR
from optlab.plots._common import (
    CROSS_ROW,
    LABEL_WIDTH,
    PALETTE,
    cross,
    mark_diverged,
    new_axes,
    style_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from optlab.lab import RangeTest

EDGE = 0.97
"""The height of markers at the upper edge, as a share of the axis."""

LOG_FALL = 20
"""The loss axis is logarithmic if the loss falls to less than this fraction⁻¹ of its start."""


def plot_range_test(
    result: "RangeTest", *, label: str | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw the loss against the learning rate, and mark the suggestions of the range test.

    Faint lines are single seeds; the bold line is the median of their trends. A cross above the
    plot marks the rate at which a seed diverged. The suggestions are markers on the median; the
    band behind each is its range over seeds. Open circles are the validation losses at the end of
    the confirming runs, in the mean over seeds; a triangle at the upper edge marks a rate at which
    one of these runs diverged.

    Args:
        result: the result of `lr_range_test`.
        label: the subject in the title, such as "adam on digits-mlp"; None for the task's name.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    ax = new_axes("plot_range_test") if ax is None else ax
    for index, losses in enumerate(result.losses):
        options = {"label": "single seeds"} if index == 0 else {}
        ax.plot(result.rates, losses, color="0.65", linewidth=0.7, alpha=0.7, **options)
    ax.plot(result.rates, result.median, color="black", linewidth=2.2, label="median")
    ends = _ends(result)
    if ends.size:
        label_of_ends = f"after {result.confirmed_steps} updates (validation)"
        style = {"marker": "o", "markerfacecolor": "white", "linewidth": 1, "color": "0.3"}
        ax.plot(result.confirmed_rates, ends, **style, zorder=3, label=label_of_ends)
        _mark_lost(ax, result.confirmed_rates[np.isnan(ends)], style)
    suggestions = {
        "suggested max": (result.suggested_max, result.max_interval),
        "suggested min": (result.suggested_min, result.min_interval),
    }
    for index, (name, (rate, interval)) in enumerate(suggestions.items()):
        if rate is not None:
            ax.axvspan(*interval, color=PALETTE[index], alpha=0.18, linewidth=0, zorder=0)
            ax.axvline(rate, color=PALETTE[index], linewidth=1, zorder=1)
            _mark_rate(ax, result, rate, name, index, size=9)
    for index, (name, rate) in enumerate(result.picks.items(), start=len(suggestions)):
        _mark_rate(ax, result, rate, f"{name} (fastai)", index, size=6)
    if result.diverged.any():
        last = np.isfinite(result.losses[result.diverged]).sum(axis=-1)
        mark_diverged(ax, result.rates[last], "0.4", CROSS_ROW)
        ax.plot([], [], **cross("0.4"), label="a seed diverged")
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


def _ends(result: "RangeTest") -> np.ndarray:
    """Return (rates,) float: the mean loss of the confirming runs, NaN where one diverged."""
    if not result.confirmed_losses.size:
        return np.zeros(0)
    means = result.confirmed_losses.mean(axis=1)
    return np.where(np.isfinite(means), means, np.nan)


def _mark_lost(ax: "Axes", rates: np.ndarray, style: dict[str, Any]) -> None:
    """Draw triangles at the upper edge at constant rates that diverged."""
    if rates.size:
        style = {**style, "marker": "^", "linestyle": "none", "transform": ax.get_xaxis_transform()}
        heights = np.full(len(rates), EDGE)
        ax.plot(rates, heights, **style, zorder=3, label="diverged at a constant rate")


def _mark_rate(
    ax: "Axes", result: "RangeTest", rate: float, label: str, index: int, *, size: float
) -> None:
    """Draw a marker on the median at a rate, or at its last point if the rate lies beyond."""
    is_finite = np.isfinite(result.median)
    height = np.interp(rate, result.rates[is_finite], result.median[is_finite])
    style = {**style_of(index), "linestyle": "none", "markersize": size, "markeredgecolor": "white"}
    ax.plot([rate], [height], **style, zorder=4, label=f"{label} {rate:.2g}")


def _scale_range_losses(ax: "Axes", result: "RangeTest") -> None:
    """Choose the loss axis; it is logarithmic if the loss falls far, and runaways leave it."""
    level = np.median(result.initial)
    lowest = np.nanmin([np.nanmin(result.trends, initial=np.inf), *_ends(result)])
    if not np.isfinite(level):
        return
    if 0 < lowest < level / LOG_FALL:
        ax.set_yscale("log")
        ax.set_ylim(lowest / 2, level * DIVERGENCE_FACTOR)
    elif np.isfinite(lowest):
        lowest = min(lowest, np.nanmin(result.losses))
        room = max(level - lowest, abs(level) / 2, np.finfo(np.float32).tiny)
        ax.set_ylim(min(lowest, level) - 0.15 * room, level + 0.8 * room)
