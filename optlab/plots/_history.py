"""`plot_history`: the losses, the score, the rate and the monitored values of one run."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab._divergence import DIVERGENCE_FACTOR
from optlab._extras import needs_extra
from optlab._report import digits_of, number
from optlab.plots._common import ACCENT, LABEL_WIDTH, MARKERS, PALETTE, SMALL, ring
from optlab.plots._scale import spans_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optlab.lab import History

WINDOWS = 40
"""The running median's window is this fraction⁻¹ of the run."""

NARROWEST = 5
"""The smallest window, in updates, for which a running median is drawn."""

PLACES = 400
"""The number of points of the median line; runs up to ten times as long are drawn in full."""

USUAL_RATIO = 1e-3
"""The usual size of an update relative to the weights, where training goes well."""

MOST_GROUPS = 6
"""The largest number of groups of weights that are drawn as single lines."""

SPLITS = ("training set", "validation set")

EARLY = 4
"""The first of this many parts of a run may lie beyond the axis of the score."""

MOST_MARKERS = 60
"""The largest number of evaluations that are drawn with markers."""


def plot_history(history: "History", *, title: str | None = None) -> "Figure":
    """Draw the curves of one run against updates, with a panel for each quantity in the history.

    The panels are: the losses; the score, if it is another metric; the learning rate; and, if the
    history has the values of `monitor`, the norm of the gradients before and after clipping, and
    the size of the updates relative to the weights of each group, with a line at the usual 1e-3.
    Faint lines are single updates, bold lines a running median. The axis of a loss that spans
    decades is logarithmic, and ends at four times the first loss. A ring marks the best evaluation;
    a line across all panels marks the first loss that is not finite.

    Args:
        history: the curves, from `train` or from your own loop.
        title: text above the panels, such as the result of `diagnose`; long lines are wrapped.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.

    Example:
        >>> from optlab.lab import History
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


def _panels(history: "History") -> Iterator[tuple[float, Any]]:
    """Yield the height in inches and the drawing function of each panel that has data."""
    yield 3.2, partial(_draw_losses, history=history)
    if history.score != "loss" and history.score in {*history.train, *history.validation}:
        yield 2.2, partial(_draw_score, history=history)
    if history.learning_rate is not None:
        rates = _rates_by_group(history)
        yield 1.3 if len(rates) == 1 else 1.8, partial(_draw_rates, rates=rates)
    if norms := _gradient_norms(history.monitored):
        yield 1.6, partial(_draw_norms, norms=norms)
    if ratios := _ratios(history.monitored):
        yield 2.0, partial(_draw_ratios, ratios=ratios)


def _draw_losses(ax: "Axes", *, history: "History") -> None:
    """Draw the loss of each update's batch, and the loss of the evaluations."""
    _draw_trace(ax, history.loss, "0.35", _batches(history.num_updates))
    _draw_evaluations(ax, history=history, metric="loss")
    curves = np.concatenate([_medians(history.loss)[1], *_of(history, "loss").values()])
    if np.isfinite(curves).any():
        _limit(ax, history.loss, curves)
    else:
        ax.set_yticks([])


def _limit(ax: "Axes", losses: np.ndarray, curves: np.ndarray) -> None:
    """Set the limits of the loss axis by the smooth curves, with room for most single updates."""
    all_values = np.concatenate([losses, curves])
    all_values, curves = all_values[np.isfinite(all_values)], curves[np.isfinite(curves)]
    top = DIVERGENCE_FACTOR * all_values[0] if all_values[0] > 0 else np.inf
    curves = np.minimum(curves, top)
    if spans_decades(curves):
        ax.set_yscale("log")
        ax.set_ylim(
            max(all_values[all_values > 0].min(), curves.min() / 4) / 1.2,
            1.3 * min(all_values.max(), top),
        )
    elif all_values.max() > top:
        low = curves.min()
        ax.set_ylim(low - 0.05 * (top - low), top)


def _draw_evaluations(ax: "Axes", *, history: "History", metric: str) -> None:
    """Draw a metric on training and validation data, with a ring at the best score."""
    few = len(history.steps) <= MOST_MARKERS
    for split, values in _of(history, metric).items():
        index = SPLITS.index(split)
        has_label = metric == "loss" or split not in _of(history, "loss")
        ax.plot(
            history.steps,
            _finite(values),
            color=PALETTE[index],
            marker=MARKERS[index] if few else "none",
            markersize=3.5,
            linewidth=1.6,
            label=split if has_label else None,
        )
    ax.set_ylabel(metric)
    scores = _finite(history.validation.get(metric, np.zeros(0)))
    # Parameters that are not finite may still have a finite accuracy, which does not count.
    scores = np.where(np.isfinite(history.validation.get("loss", scores)), scores, np.nan)
    if metric == history.score and np.isfinite(scores).any():
        best = np.nanargmax(scores) if history.maximize else np.nanargmin(scores)
        step = history.steps[best]
        label = f"best: {number(scores[best], digits_of(scores))} at {step:,}"
        ax.plot([step], [scores[best]], **ring("black"), clip_on=False, label=label)


def _draw_score(ax: "Axes", *, history: "History") -> None:
    """Draw the score; where it starts far from the rest of the run, on an axis without the start.

    An accuracy that rises from 0.1 would leave no room to tell 0.93 from 0.97.
    """
    _draw_evaluations(ax, history=history, metric=history.score)
    curves = [_finite(values) for values in _of(history, history.score).values()]
    later = np.concatenate([values[len(values) // EARLY :] for values in curves])
    later, whole = (x[np.isfinite(x)] for x in (later, np.concatenate(curves)))
    if not later.size or np.ptp(later) > np.ptp(whole) / 2:
        return
    low, high = later.min(), later.max()
    room = 0.08 * (high - low) or 0.02 * abs(high) or 0.5
    ax.set_ylim(low - room, high + room)
    beyond = int(((whole < low - room) | (whole > high + room)).sum())
    text = f"{beyond} early {'value is' if beyond == 1 else 'values are'} beyond the axis"
    ax.annotate(text, (0.99, 0.04), xycoords="axes fraction", ha="right", fontsize=SMALL)


def _of(history: "History", metric: str) -> Mapping[str, np.ndarray]:
    """Return split → values, for the splits on which a metric was evaluated."""
    splits = dict(zip(SPLITS, (history.train, history.validation), strict=True))
    return {split: values[metric] for split, values in splits.items() if metric in values}


def _rates_by_group(history: "History") -> Mapping[str, np.ndarray]:
    """Return the rate of each group, of groups with one rate together; of many only the largest."""
    names: dict[bytes, list[str]] = {}
    for name, values in history.rates.items():
        names.setdefault(values.tobytes(), []).append(name)
    if not 1 < len(names) <= MOST_GROUPS:
        return {"": history.learning_rate}
    return {", ".join(own): history.rates[own[0]] for own in names.values()}


def _draw_rates(ax: "Axes", *, rates: Mapping[str, np.ndarray]) -> None:
    """Draw the rate of each parameter group; one without a name has no label."""
    for index, (name, values) in enumerate(rates.items()):
        ax.plot(*_thinned(values), color=PALETTE[index], linewidth=1.6, label=name or None)
    if len(rates) > 1 and spans_decades(np.concatenate(list(rates.values()))):
        ax.set_yscale("log", nonpositive="mask")
    else:
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
    """Draw the ratio of each group; if there are many, their range and three of them."""
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
    """Draw the band of all groups, and return the highest, the middle and the lowest one."""
    places = next(iter(medians.values()))[0]
    values = np.stack([values for _, values in medians.values()])
    low = np.where(np.isnan(values), np.inf, values).min(axis=0)
    high = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    has_values = np.isfinite(low)
    label = f"all {len(medians)} groups"
    ax.fill_between(
        places, low, high, where=has_values, color="0.5", alpha=0.2, linewidth=0, label=label
    )

    def level(name: str) -> float:
        finite = medians[name][1][np.isfinite(medians[name][1])]
        return float(np.median(finite)) if finite.size else 0.0

    order = sorted(medians, key=level, reverse=True)
    groups = (order[0], order[len(order) // 2], order[-1])
    return {name: medians[name] for name in groups}


def _gradient_norms(monitored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return label → norms of every monitor: before and after clipping, if any was clipped."""
    norms = {}
    for name, values in monitored.items():
        match = re.fullmatch(r"(.*/)?gradient_norm(\[\d+\])?", name)
        if not match:
            continue
        where = (match[1] or "").rstrip("/") + (match[2] or "")
        clipped = monitored.get(name.replace("gradient_norm", "clipped_norm"), values)
        if np.array_equal(clipped, values, equal_nan=True):
            norms[where or "of all gradients"] = values
            continue
        share = monitored.get(name.replace("gradient_norm", "clipped_share"), np.zeros(0))
        has_share = share.size and np.isfinite(share[-1])
        norms[f"{where} before clipping".strip()] = values
        after = f"after, {share[-1]:.0%} clipped" if has_share else "after clipping"
        norms[f"{where} {after}".strip()] = clipped
    return norms


def _ratios(monitored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return group → the updates' size relative to the weights."""
    matches = {name: re.fullmatch(r"(.*/)?ratio/(.+)", name) for name in monitored}
    return {(m[1] or "") + m[2]: monitored[name] for name, m in matches.items() if m}


def _draw_trace(ax: "Axes", values: np.ndarray, color: str, label: str) -> None:
    """Draw the values of single updates and, if there are enough, their running median."""
    values = _finite(values)
    window = _window(len(values))
    if window < NARROWEST:
        ax.plot(*_thinned(values), color=color, linewidth=1.2, label=label)
        return
    ax.plot(*_thinned(values), color=color, linewidth=0.7, alpha=0.35)
    ax.plot(*_medians(values), color=color, linewidth=1.6, label=label)


def _batches(count: int) -> str:
    """Return the label for the line of the batches' losses."""
    window = _window(count)
    return "batches" if window < NARROWEST else f"batches, median of {window:,}"


def _window(count: int) -> int:
    """Return the width of the running median's window, an odd number of updates."""
    return count // WINDOWS // 2 * 2 + 1


def _medians(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return some of the updates, and the median of the finite values around each."""
    values = _finite(values)
    places = np.unique(np.linspace(0, max(len(values) - 1, 0), PLACES).round().astype(int))
    places = places[: len(values)]
    reach = _window(len(values)) // 2
    around = (values[max(0, place - reach) : place + reach + 1] for place in places)
    finite_windows = (window[np.isfinite(window)] for window in around)
    medians = np.array([np.median(window) if window.size else np.nan for window in finite_windows])
    return places, np.where(np.isfinite(values[places]), medians, np.nan)


def _thinned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the updates and values to draw; for a long run, the extremes of short parts."""
    values = _finite(values)
    if len(values) <= 10 * PLACES:
        return np.arange(len(values)), values
    indices = [0, len(values) - 1]
    for part in np.array_split(np.arange(len(values)), 5 * PLACES):
        order = part[np.argsort(values[part])]  # NaN comes last; it breaks the line
        indices += [order[0], order[np.isfinite(values[part]).sum() - 1], order[-1]]
    indices = np.unique(indices)
    return indices, values[indices]


def _finite(values: np.ndarray) -> np.ndarray:
    """Return the values as float64, NaN for what is not finite."""
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _last(history: "History") -> int:
    """Return the number of updates done at the end."""
    return max([history.num_updates, *history.steps[-1:]])


def _first_bad(history: "History") -> int | None:
    """Return the updates done at the first loss that is not finite; None if all are finite."""
    nonfinite = [~np.isfinite(values) for values in _of(history, "loss").values()]
    bad = [*np.flatnonzero(~np.isfinite(history.loss))]
    bad += [step for where in nonfinite for step in history.steps[where]]
    return min(bad, default=None)


def _label_bad(ax: "Axes", updates: int, position: float) -> None:
    """Write above the axes after how many updates the loss was not finite."""
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
