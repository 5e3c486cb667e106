"""The picture of one run: its losses, its score, its rate, and what `monitor` saw."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab.lab._extras import needs_extra
from optlab.lab._grid import DIVERGENCE_FACTOR
from optlab.lab._history import History
from optlab.lab._report import number
from optlab.plots._common import ACCENT, LABEL_WIDTH, MARKERS, PALETTE, SMALL, ring
from optlab.plots._scale import spans_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOWS = 40
"""The part of the run that a running median is over, as one in so many."""

NARROWEST = 5
"""Updates in the smallest window worth a line of medians."""

PLACES = 400
"""Where along the run medians are taken; a tenth of the updates that have a point each."""

USUAL_RATIO = 1e-3
"""The size of updates relative to the weights that is usual where training goes well."""

MOST_GROUPS = 6
"""Up to so many groups of weights have a line each."""

SPLITS = ("training set", "validation set")

MOST_MARKERS = 60
"""Up to so many evaluations have a marker each."""


def plot_history(history: History, *, title: str | None = None) -> "Figure":
    """Draw the curves of one run against updates, a panel for each thing there is data of.

    These are the losses; the score, where it is another metric; the learning rate; and with
    `monitor` the norm of the gradients before and after clipping, and the size of the updates
    relative to the weights of each group, beside the 1e-3 that is usual. Faint lines are single
    updates, bold ones a running median. A loss that spans decades is on a logarithmic axis, which
    ends at four times the first loss. A ring marks the best evaluation; a line across all panels
    the first loss that is not finite.

    Args:
        history: of `train`, or of your own loop.
        title: above the panels, such as what `diagnose` found; long lines are wrapped.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.

    Example:
        >>> history = History(loss=np.geomspace(2.3, 0.1, 100), learning_rate=np.full(100, 0.01))
        >>> [ax.get_ylabel() for ax in plot_history(history).axes]
        ['loss', 'learning rate']
    """
    with needs_extra("plot_history"):
        from matplotlib.figure import Figure

    panels = list(_panels(history))
    heights = [height for height, _ in panels]
    figure = Figure(figsize=(9, 0.8 + sum(heights)), dpi=150, layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    bad = _first_bad(history)
    for ax, (_, draw) in zip(axes, panels, strict=True):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
        draw(ax)
        if bad is not None:
            ax.axvline(bad, color=ACCENT, linewidth=1, linestyle="--")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=SMALL + 1)
    if bad is not None:
        _label_bad(axes[0], bad, bad / max(_last(history), 1))
    axes[-1].set_xlabel("optimizer updates done")
    axes[-1].xaxis.set_major_formatter("{x:,.10g}")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    room = 0.01 * max(_last(history), 1)
    axes[-1].set_xlim(-room, max(_last(history), 1) + room)
    figure.align_ylabels()
    if title:
        lines = [textwrap.fill(line, LABEL_WIDTH) for line in title.splitlines()]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11)
    return figure


def _panels(history: History) -> Iterator[tuple[float, Any]]:
    """Yield the height in inches and the function that draws on axes, of what there is data of."""
    yield 3.2, partial(_draw_losses, history=history)
    if history.score != "loss" and history.score in {*history.train, *history.validation}:
        yield 1.8, partial(_draw_evaluations, history=history, metric=history.score)
    if history.learning_rate is not None:
        yield 1.3, partial(_draw_rate, rates=history.learning_rate)
    if norms := _gradient_norms(history.monitored):
        yield 1.6, partial(_draw_norms, norms=norms)
    if ratios := _ratios(history.monitored):
        yield 2.0, partial(_draw_ratios, ratios=ratios)


def _draw_losses(ax: "Axes", *, history: History) -> None:
    """Draw the loss of each update's batch, and that of the evaluations."""
    _draw_trace(ax, history.loss, "0.35", _batches(history.num_updates))
    _draw_evaluations(ax, history=history, metric="loss")
    curves = np.concatenate([_medians(history.loss)[1], *_of(history, "loss").values()])
    if np.isfinite(curves).any():
        _limit(ax, history.loss, curves)
    else:
        ax.set_yticks([])


def _limit(ax: "Axes", losses: np.ndarray, curves: np.ndarray) -> None:
    """Choose the axis of losses by the smooth curves, with room for most of the single updates."""
    both = np.concatenate([losses, curves])
    both, curves = both[np.isfinite(both)], curves[np.isfinite(curves)]
    top = DIVERGENCE_FACTOR * both[0] if both[0] > 0 else np.inf
    curves = np.minimum(curves, top)
    if spans_decades(curves):
        ax.set_yscale("log")
        ax.set_ylim(max(both[both > 0].min(), curves.min() / 4) / 1.2, 1.3 * min(both.max(), top))
    elif both.max() > top:
        low = curves.min()
        ax.set_ylim(low - 0.05 * (top - low), top)


def _draw_evaluations(ax: "Axes", *, history: History, metric: str) -> None:
    """Draw a metric on training and validation data, with a ring at the best score."""
    few = len(history.steps) <= MOST_MARKERS
    for split, values in _of(history, metric).items():
        index = SPLITS.index(split)
        named = metric == "loss" or split not in _of(history, "loss")
        ax.plot(
            history.steps,
            _finite(values),
            color=PALETTE[index],
            marker=MARKERS[index] if few else "none",
            markersize=3.5,
            linewidth=1.6,
            label=split if named else None,
        )
    ax.set_ylabel(metric)
    scores = _finite(history.validation.get(metric, np.zeros(0)))
    # Parameters that are not finite have an accuracy, too.
    scores = np.where(np.isfinite(history.validation.get("loss", scores)), scores, np.nan)
    if metric == history.score and np.isfinite(scores).any():
        best = np.nanargmax(scores) if history.maximize else np.nanargmin(scores)
        step = history.steps[best]
        label = f"best: {number(scores[best])} at {step:,}"
        ax.plot([step], [scores[best]], **ring("black"), clip_on=False, label=label)


def _of(history: History, metric: str) -> Mapping[str, np.ndarray]:
    """Return split → values, of the splits on which a metric was evaluated."""
    splits = dict(zip(SPLITS, (history.train, history.validation), strict=True))
    return {split: values[metric] for split, values in splits.items() if metric in values}


def _draw_rate(ax: "Axes", *, rates: np.ndarray) -> None:
    ax.plot(*_thinned(rates), color=PALETTE[0], linewidth=1.6)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("learning rate")


def _draw_norms(ax: "Axes", *, norms: Mapping[str, np.ndarray]) -> None:
    for index, (label, values) in enumerate(norms.items()):
        _draw_trace(ax, values, PALETTE[index % len(PALETTE)], label)
    medians = np.concatenate([_medians(values)[1] for values in norms.values()])
    if spans_decades(medians):
        ax.set_yscale("log", nonpositive="mask")
    ax.set_ylabel("gradient norm")


def _draw_ratios(ax: "Axes", *, ratios: Mapping[str, np.ndarray]) -> None:
    """Draw the ratio of each group; of many, the range and three of them."""
    ratios = {
        name: np.where(values > 0, _finite(values), np.nan) for name, values in ratios.items()
    }
    medians = {name: _medians(values) for name, values in ratios.items()}
    if len(ratios) > MOST_GROUPS:
        medians = _draw_range_of_groups(ax, medians)
    for index, (name, (places, values)) in enumerate(medians.items()):
        ax.plot(places, values, color=PALETTE[index], linewidth=1.6, label=name)
    label = f"usual: {USUAL_RATIO:g}"
    ax.axhline(USUAL_RATIO, color="0.4", linewidth=1, linestyle=":", label=label)
    ax.set_yscale("log", nonpositive="mask")
    ax.set_ylabel("update / weights")


def _draw_range_of_groups(
    ax: "Axes", medians: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Draw the band that all groups lie in, and return the highest, the middle and the lowest."""
    places = next(iter(medians.values()))[0]
    values = np.stack([values for _, values in medians.values()])
    low = np.where(np.isnan(values), np.inf, values).min(axis=0)
    high = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    known = np.isfinite(low)
    label = f"all {len(medians)} groups"
    ax.fill_between(
        places, low, high, where=known, color="0.5", alpha=0.2, linewidth=0, label=label
    )

    def level(name: str) -> float:
        finite = medians[name][1][np.isfinite(medians[name][1])]
        return float(np.median(finite)) if finite.size else 0.0

    order = sorted(medians, key=level, reverse=True)
    shown = (order[0], order[len(order) // 2], order[-1])
    return {name: medians[name] for name in shown}


def _gradient_norms(monitored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return label → norms: before and after clipping where there is any, of every monitor."""
    norms = {}
    for name, values in monitored.items():
        found = re.fullmatch(r"(.*/)?gradient_norm(\[\d+\])?", name)
        if not found:
            continue
        where = (found[1] or "").rstrip("/") + (found[2] or "")
        clipped = monitored.get(name.replace("gradient_norm", "clipped_norm"), values)
        if np.array_equal(clipped, values, equal_nan=True):
            norms[where or "of all gradients"] = values
            continue
        share = monitored.get(name.replace("gradient_norm", "clipped_share"), np.zeros(0))
        known = share.size and np.isfinite(share[-1])
        norms[f"{where} before clipping".strip()] = values
        after = f"after, {share[-1]:.0%} clipped" if known else "after clipping"
        norms[f"{where} {after}".strip()] = clipped
    return norms


def _ratios(monitored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return group → updates' size relative to the weights."""
    found = {name: re.fullmatch(r"(.*/)?ratio/(.+)", name) for name in monitored}
    return {(m[1] or "") + m[2]: monitored[name] for name, m in found.items() if m}


def _draw_trace(ax: "Axes", values: np.ndarray, color: str, label: str) -> None:
    """Draw the values of single updates, and where there are enough of them a running median."""
    values = _finite(values)
    window = _window(len(values))
    if window < NARROWEST:
        ax.plot(*_thinned(values), color=color, linewidth=1.2, label=label)
        return
    ax.plot(*_thinned(values), color=color, linewidth=0.7, alpha=0.35)
    ax.plot(*_medians(values), color=color, linewidth=1.6, label=label)


def _batches(count: int) -> str:
    """Name the line of the batches' losses."""
    window = _window(count)
    return "batches" if window < NARROWEST else f"batches, median of {window:,}"


def _window(count: int) -> int:
    """Return the odd number of updates that a running median is over."""
    return count // WINDOWS // 2 * 2 + 1


def _medians(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return some of the updates and the medians around them, of what is finite there."""
    values = _finite(values)
    places = np.unique(np.linspace(0, max(len(values) - 1, 0), PLACES).round().astype(int))
    places = places[: len(values)]
    reach = _window(len(values)) // 2
    around = (values[max(0, place - reach) : place + reach + 1] for place in places)
    kept = (window[np.isfinite(window)] for window in around)
    medians = np.array([np.median(window) if window.size else np.nan for window in kept])
    return places, np.where(np.isfinite(values[places]), medians, np.nan)


def _thinned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return updates and values to draw: of a long run the extremes of each short part."""
    values = _finite(values)
    if len(values) <= 10 * PLACES:
        return np.arange(len(values)), values
    shown = [0, len(values) - 1]
    for part in np.array_split(np.arange(len(values)), 5 * PLACES):
        order = part[np.argsort(values[part])]  # NaN last, where it breaks the line
        shown += [order[0], order[np.isfinite(values[part]).sum() - 1], order[-1]]
    shown = np.unique(shown)
    return shown, values[shown]


def _finite(values: np.ndarray) -> np.ndarray:
    """Return the values as float64, NaN for what is not finite."""
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _last(history: History) -> int:
    """Return the updates done by the end."""
    return max([history.num_updates, *history.steps[-1:]])


def _first_bad(history: History) -> int | None:
    """Return the updates done when a loss first was not finite; None if none was."""
    evaluated = [~np.isfinite(values) for values in _of(history, "loss").values()]
    bad = [*np.flatnonzero(~np.isfinite(history.loss))]
    bad += [step for where in evaluated for step in history.steps[where]]
    return min(bad, default=None)


def _label_bad(ax: "Axes", updates: int, position: float) -> None:
    """Write above the axes since when the loss was not finite."""
    ax.annotate(
        f"not finite after {updates:,} updates",
        (updates, 1),
        (0, 3),
        xycoords=ax.get_xaxis_transform(),
        textcoords="offset points",
        ha="left" if position < 0.5 else "right",
        va="bottom",
        color=ACCENT,
        fontsize=SMALL + 1,
    )
