"""Scales and ticks, the same in all plots of a quantity."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optlab.lab import Range, Sweep, Trial


MOST_TICKS = 6
"""The largest number of ticks on an axis, whose labels must fit into a small panel."""

DECADES = 1.0
"""A loss that spans more decades than these is drawn on a logarithmic axis."""

REACH = 3.0
"""A score axis reaches from the best trial at most this many times as far as the median trial."""

SAME = 1e-6
"""Scores are drawn as equal if they differ by less than this share of their size."""

STEP = 0.012
"""Distance between trials with the same value, if there is room."""

SHARE = 0.3
"""The part of a choice's share of the axis, to either side, over which its trials spread."""

GOLDEN = (5**0.5 - 1) / 2
"""The golden ratio, whose multiples modulo 1 lie far from one another."""

Tick = tuple[Any, str]


@dataclass(frozen=True)
class Scale:
    """The axis of a metric over the trials of a sweep.

    Attributes:
        low: the lowest value shown.
        high: the highest value shown.
        log: whether the axis is logarithmic.
        lower_is_better: whether `low` is the good end.
        cut: whether some trials lie beyond the bad end.
    """

    low: float
    high: float
    log: bool
    lower_is_better: bool
    cut: bool

    def position(self, value: float) -> float:
        """Return the position of a value, 0 at `low` and 1 at `high`; clipped to [0, 1]."""
        low, value, high = _maybe_log([self.low, value, self.high], self.log)
        return float(np.clip((value - low) / (high - low), 0.0, 1.0))

    def at(self, position: float) -> float:
        """Return the value at a position, which may lie outside [0, 1]."""
        low, high = _maybe_log([self.low, self.high], self.log)
        value = low + (high - low) * position
        return float(10.0**value if self.log else value)

    @property
    def bad_end(self) -> float:
        """The position of the bad end."""
        return float(self.lower_is_better)

    def beyond(self, value: float) -> bool:
        """Whether a value lies beyond the bad end."""
        return value > self.high if self.lower_is_better else value < self.low

    def ticks(self) -> list[Tick]:
        """Return the values and labels of the ticks."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)


def metric_scale(sweep: "Sweep", metric: str) -> Scale | None:
    """Return the axis on which a metric of all trials is drawn; None if no trial has a value.

    The axis of a loss that spans decades is logarithmic. The axis is cut at its bad end if a few
    bad trials would press the good ones together.
    """
    values = np.array([metric_of(trial, metric) for trial in sweep.trials])
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    lower_is_better = metric == "loss" or (metric == sweep.score and not sweep.maximize)
    whole = Scale(
        low=float(values.min()),
        high=float(values.max()),
        log=lower_is_better and spans_decades(values),
        lower_is_better=lower_is_better,
        cut=False,
    )
    if whole.high - whole.low <= SAME * max(abs(whole.low), abs(whole.high)):
        room = 0.05 * abs(whole.low) or 0.5
        return replace(whole, low=whole.low - room, high=whole.high + room)
    median = whole.position(np.median(values))
    reach = REACH * abs(median - (1 - whole.bad_end))
    if metric not in ("loss", sweep.score) or not 0 < reach < 1:
        return whole
    if lower_is_better:
        return replace(whole, high=whole.at(reach), cut=True)
    return replace(whole, low=whole.at(1 - reach), cut=True)


def metric_of(trial: "Trial", metric: str) -> float:
    """Return a metric where a trial's score is taken, its mean over seeds; NaN if it diverged."""
    if trial.diverged:
        return math.nan
    return float(np.asarray(trial.final(metric), np.float64).mean())


def name_of_lost(sweep: "Sweep") -> str:
    """Return what to call the trials without a score: diverged, if all of them did."""
    lost = [trial for trial in sweep.trials if not trial.has_score]
    return "diverged" if all(trial.diverged for trial in lost) else "no score"


def spans_decades(values: Sequence[float]) -> bool:
    """Whether the finite values are positive and span enough decades for a logarithmic axis."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return bool(
        values.size
        and values.min() > 0
        and math.log10(values.max()) - math.log10(values.min()) > DECADES
    )


def range_ticks(values: "Range") -> list[Tick]:
    """Return the values of a range to label; for choices all of them."""
    if values.is_choice:
        return [(choice, str(choice)) for choice in values.choices]
    if values.is_integer and (values.log or values.size <= MOST_TICKS):
        return [(level, str(level)) for level in values.levels(MOST_TICKS - 1 + (not values.log))]
    if values.log:
        return log_ticks(values.low, values.high)
    ticks = linear_ticks(values.low, values.high, integer=values.is_integer)
    return [(int(x), text) for x, text in ticks] if values.is_integer else ticks


def spread(values: "Range", selected: Sequence[Any], *, mixed: bool = False) -> np.ndarray:
    """Return the position of each value, with equal values moved slightly apart.

    The last value is not moved. Equal values keep their order, so that lines to another axis cross
    less; if `mixed`, neighbours in the order are moved far apart, so that points of similar height
    do not overlap.
    """
    positions = np.array([values.position(value) for value in selected])
    room = SHARE / values.size if values.size < np.inf else STEP
    room = room if values.is_choice else min(room, 3 * STEP)
    indices_by_position = defaultdict(list)
    for index, position in enumerate(positions[:-1]):
        indices_by_position[position].append(index)
    for indices in indices_by_position.values():
        reach = min(room, STEP * (len(indices) - 1) / 2)
        offsets = np.linspace(-reach, reach, len(indices))
        if mixed:
            offsets = offsets[np.argsort(np.arange(len(indices)) * GOLDEN % 1)]
        positions[indices] += offsets
    return positions


def log_ticks(low: float, high: float) -> list[Tick]:
    """Return round numbers in [low, high], as many as fit; powers of ten if there are enough."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = range(first, last + 1)
    every = -(-len(decades) // MOST_TICKS)
    choices = [
        [m * 10.0**d for d in decades if d % step == 0 for m in mantissas]
        for mantissas, step in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), every))
    ]
    for candidates in choices:
        inside = [x for x in candidates if low * (1 - 1e-9) <= x <= high * (1 + 1e-9)]
        if 3 <= len(inside) <= MOST_TICKS:
            return [(min(max(x, low), high), short(x)) for x in inside]
    return linear_ticks(low, high)


def linear_ticks(low: float, high: float, *, integer: bool = False) -> list[Tick]:
    """Return round numbers in [low, high]."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(MOST_TICKS - 1, integer=integer).tick_values(low, high)
    room = 1e-9 * (high - low)
    inside = [x for x in ticks if low - room <= x <= high + room]
    return [(min(max(x, low), high), short(x)) for x in inside]


def short(value: Any, digits: int = 6) -> str:
    """Write a value briefly; a number as 0.001, 1e-5 or 3e8."""
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def _maybe_log(values: Sequence[float], log: bool) -> Sequence[float]:
    return np.log10(values) if log else values
