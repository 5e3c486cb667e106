"""Plots of a sweep beside its scores: learning curves of trials, importances of hyperparameters."""

from typing import TYPE_CHECKING

import numpy as np

from optlab.plots._common import ACCENT, DIM, PALETTE, SMALL, new_axes
from optlab.plots._parallel import colour
from optlab.plots._scale import log_ticks, metric_scale, spans_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from optlab.lab import Sweep

FEW_BARS = 3
"""With fewer bars of importance there is room around them, so that they stay thin."""

WORST = 0.1
"""The share of the curves' values, at the bad end, that may lie beyond the axis."""


def plot_trials(sweep: "Sweep", *, ax: "Axes | None" = None) -> "Axes":
    """Draw the score of each trial against its updates, as the mean over the seeds.

    A trial that early stopping ends ends with the last of its runs; the others hold their values.
    Darker is better, as in `plot_parallel`; the best trial is highlighted, trials that diverged or
    have no score are grey and dashed. The axis may leave out a tenth of the values at its bad end,
    and those before the first update.

    Args:
        sweep: the result of `sweep`.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    ax = new_axes("plot_trials") if ax is None else ax
    scale = metric_scale(sweep, sweep.score)
    *others, best = sweep.ranked()[::-1]
    for trial in [*others, best]:
        with np.errstate(invalid="ignore"):
            scores = np.asarray(trial.held(sweep.score), np.float64).mean(axis=0)
        is_shown = np.isfinite(scores) & (trial.steps <= trial.num_updates)
        scores = np.where(is_shown, scores, np.nan)
        if not trial.has_score or scale is None:
            style = {"color": DIM, "linewidth": 0.8, "linestyle": "--", "zorder": 1}
        elif trial is best:
            ax.plot(trial.steps, scores, color="white", linewidth=4, zorder=3)
            label = f"best, trial {trial.number}"
            style = {"color": ACCENT, "linewidth": 2.2, "zorder": 4, "label": label}
        else:
            shade = colour(scale, scale.position(trial.score))
            style = {"color": shade, "linewidth": 1, "alpha": 0.7, "zorder": 2}
        ax.plot(trial.steps, scores, marker="." if len(scores) < 3 else None, **style)
    _limit(ax, sweep)
    ax.grid(axis="y", alpha=0.25, linewidth=0.6)
    ax.set_xlabel("optimizer updates done")
    ax.set_ylabel(sweep.title(sweep.score))
    if scale is not None:
        key = "darker curves are better" if any(trial.has_score for trial in others) else None
        ax.legend(frameon=False, fontsize=SMALL, title=key, title_fontsize=SMALL)
    return ax


def _limit(ax: "Axes", sweep: "Sweep") -> None:
    """Set the limits of the scores, so that bad and early ones do not press the others together."""
    kept = [t for t in sweep.trials if not t.diverged] or sweep.trials
    scores = [np.asarray(t.validation[sweep.score], np.float64)[:, t.steps > 0] for t in kept]
    values = np.concatenate([x.ravel() for x in scores])
    values = values[np.isfinite(values)]
    if not values.size:
        ax.set_yticks([])
        return
    ends = np.quantile(values, [WORST, 1] if sweep.maximize else [0, 1 - WORST])
    if not sweep.maximize and spans_decades(ends):
        ax.set_yscale("log")
        low, high = ends[0] / 1.2, ends[1] * 1.2
        ax.set_ylim(low, high)
        ax.set_yticks(*zip(*log_ticks(low, high), strict=True))
        ax.set_yticks([], minor=True)
        return
    room = 0.06 * (ends[1] - ends[0]) or 0.05 * abs(ends[0]) or 0.5
    ax.set_ylim(ends[0] - room, ends[1] + room)


def plot_importances(sweep: "Sweep", *, ax: "Axes | None" = None) -> "Axes":
    """Draw how much each hyperparameter matters, by `Sweep.importances`, as horizontal bars.

    A hollow bar is unsure: chance might explain as much.

    Args:
        sweep: the result of `sweep`.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    ax = new_axes("plot_importances") if ax is None else ax
    found = sweep.importances()
    for place, (share, sure) in enumerate(found.values()):
        width = 0.0 if np.isnan(share) else share
        face = PALETTE[0] if sure else "none"
        ax.barh(place, width, height=0.6, facecolor=face, edgecolor=PALETTE[0], linewidth=0.8)
        text = "too few trials" if np.isnan(share) else f"{share:.2f}{'' if sure else ' unsure'}"
        ax.annotate(
            text,
            (width, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
        )
    ax.set_yticks(range(len(found)), list(found))
    room = max(FEW_BARS - len(found), 0) / 2
    ax.set_ylim(len(found) - 0.5 + room, -0.5 - room)
    ax.set_xlim(0, 1.3)
    ax.set_xticks([0, 0.5, 1])
    ax.set_xlabel("share of the ranks explained")
    return ax
