"""The suggestions of a learning-rate range test, from its loss curves alone; NumPy only.

The *trend* of a seed is its loss, averaged over a window centred on each rate. Unlike a running
average it does not lag behind the rate. The *fall* of a seed is the distance from the loss before
the first update, L₀, down to the lowest value of the trend, L*. α(f) is the rate from which on at
least the share f of the fall has happened, at every rate up to the lowest point of the trend, α(1).
For each seed:

    suggested min   α(0.1), where improvement begins
    suggested max   √(α(0.6)·α(1)), halfway on a log scale from where most of the fall is done to
                    where it ends

The suggestion is the median over seeds; the interval is their range. The rate of the lowest loss
alone would be too high, because momentum still carries the loss down from better rates. A share of
the fall alone would be too low for a loss that falls over several decades.

fastai's picks are read from the median of the running averages, as fastai reads them. They look at
the curve after its first tenth, up to 5 points before it exceeds four times its best, and do not
check whether the curve has an answer at all:

    valley          the middle of the longest decreasing subsequence
    steep           the steepest fall, Δloss / Δln(rate)
    minimum         a tenth of the rate of the lowest loss
    slide           from the right, the first 15 points at whose ends the slope is alike
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from optlab._divergence import DIVERGENCE_FACTOR

SMOOTHING = 0.98
"""fastai's decay rate of the running average."""

WINDOW = 0.03
"""Half the width of the trend's window, as a share of the steps; at least one point."""

BEGUN, MOSTLY_DONE = 0.1, 0.6
"""The shares of the fall that determine the lowest and the highest suggested rate."""

STAYS = 0.75
"""The share of rates, from one of fastai's picks up to the lowest loss, that must have fallen."""

SIGNIFICANCE = 4.0
"""A fall counts if it exceeds this many standard deviations of the noise in it."""

RESOLUTION = 1e-5
"""A fall must also exceed this share of the loss, because float32 means are no more precise."""


SLIDE_WIDTH, SLIDE_THRESHOLD = 15, 0.005
"""The width of fastai's sliding window in points, and the difference of slopes that moves it."""


@dataclass(frozen=True)
class Suggestion:
    """A suggested rate, and the range of that rate over the usable seeds."""

    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, rates: np.ndarray) -> "Suggestion":
        """Summarize the rates of all seeds, (seeds,), by their median on a log scale and range."""
        median = float(np.exp(np.median(np.log(rates)))) if len(rates) > 1 else float(rates[0])
        return cls(median, float(rates.min()), float(rates.max()))

    def below(self, other: "Suggestion") -> "Suggestion":
        """Return this suggestion where it lies below the other, and a tenth of the other if not."""
        if self.rate < other.rate:
            return self
        return Suggestion(other.rate / 10, min(self.low, other.rate / 10), other.rate / 10)


def smooth(losses: np.ndarray, decay: float = SMOOTHING) -> np.ndarray:
    """Return the running averages along the last axis, corrected for their bias to 0.

        m ← decay·m + (1 − decay)·loss;   m / (1 − decayⁿ) at the n-th loss, from 1

    Example:
        A constant is its own average from the first loss on:

        >>> smooth(np.array([2.0, 2.0, 2.0])).round(6)
        array([2., 2., 2.])
    """
    average = np.zeros(losses.shape[:-1])
    smoothed = np.empty(losses.shape)
    for n in range(losses.shape[-1]):
        average = decay * average + (1 - decay) * losses[..., n]
        smoothed[..., n] = average / (1 - decay ** (n + 1))
    return smoothed


def trend(losses: np.ndarray) -> np.ndarray:
    """Return the mean of each point and its neighbours; NaN where the loss is NaN.

    Args:
        losses: (seeds, steps) float, NaN after a seed diverged.
    """
    reach = window_reach(losses.shape[-1])
    padding = [(0, 0)] * (losses.ndim - 1) + [(reach, reach)]
    is_finite = np.isfinite(losses)
    sums, counts = (
        np.lib.stride_tricks.sliding_window_view(np.pad(x, padding), 2 * reach + 1, axis=-1).sum(-1)
        for x in (np.where(is_finite, losses, 0.0), is_finite.astype(float))
    )
    return np.where(is_finite, sums / np.maximum(counts, 1), np.nan)


def stays_high(losses: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """Return from which losses on most are too high, or not finite.

    A loss counts if it is too high itself, and so is more than half of a window that begins there.

    Args:
        losses: (seeds, steps) float.
        highest: (seeds, 1) float, the highest loss of a seed that has not diverged.

    Returns:
        (seeds, steps) bool.

    Example:
        >>> losses = np.array([[1.0, 9.0, 1.0, 1.0, 1.0, 9.0, 8.0, 9.0, 9.0, 9.0]])
        >>> stays_high(losses, np.array([[4.0]])).argmax()
        np.int64(5)
    """
    width = 2 * window_reach(losses.shape[-1]) + 1
    high = ~np.isfinite(losses) | (losses > highest)
    padded = np.pad(high, [(0, 0), (0, width - 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1)
    return high & np.isfinite(losses) & (2 * windows.sum(axis=-1) > width)


def window_reach(steps: int) -> int:
    """Return how many points the trend's window reaches to each side."""
    return max(1, round(WINDOW * steps))


def median_over_seeds(curves: np.ndarray) -> np.ndarray:
    """Return the median over (seeds, steps); a seed counts as infinite after it diverged.

    The median is NaN after half of the seeds have diverged.
    """
    ordered = np.where(np.isnan(curves), np.inf, curves)
    with np.errstate(invalid="ignore"):
        median = np.median(ordered, axis=0)
    return np.where(np.isfinite(median), median, np.nan)


def suggest(
    rates: np.ndarray, losses: np.ndarray, initial: np.ndarray
) -> tuple[Suggestion, Suggestion, bool] | str:
    """Return the lowest and highest suggested rate, and whether the loss still falls at the end.

    Args:
        rates: (steps,) float, ascending.
        losses: (seeds, steps) float, after the update at each rate; NaN after a seed diverged.
        initial: (seeds, batches) float, before the first update.

    Returns:
        The suggestions; or, if none is reliable, the reason as a sentence.
    """
    sound = np.isfinite(initial).all(axis=-1)
    if 2 * sound.sum() <= len(sound):
        which = "every seed" if not sound.any() else f"{(~sound).sum()} of {len(sound)} seeds"
        return f"the loss is not finite before the first update, in {which}"
    curves = trend(losses)
    usable = sound & np.isfinite(curves[:, 0])
    if 2 * usable.sum() <= len(usable):
        return f"the runs diverge at the first rate already, {rates[0]:.3g}; lower min_lr"
    curves, initial, losses = curves[usable], initial[usable], losses[usable]
    level = initial.mean(axis=-1)
    lowest = np.nanargmin(curves, axis=-1)
    fall = level - np.nanmin(curves, axis=-1)
    doubt = _doubt(initial, window=2 * window_reach(len(rates)) + 1)
    diverged = np.isnan(losses[:, -1])
    if _mean_fall(curves, level).max() <= doubt:
        return _why_no_fall(rates, losses, curves, level, doubt)
    falling = fall > 0
    curves, level, lowest, fall = (x[falling] for x in (curves, level, lowest, fall))
    each = range(len(curves))
    begun, mostly_done, ends = (
        rates[[_fallen(curves[i], level[i] - share * fall[i], lowest[i]) for i in each]]
        for share in (BEGUN, MOSTLY_DONE, 1.0)
    )
    at_edge = not diverged.any() and np.median(lowest) >= len(rates) - 1
    return Suggestion.of(begun), Suggestion.of(np.sqrt(mostly_done * ends)), bool(at_edge)


def start_in_noise(rates: np.ndarray, losses: np.ndarray, initial: np.ndarray) -> float | None:
    """Return where to look for a good rate although the loss falls by no more than noise.

    Args:
        rates: (steps,) float, ascending.
        losses: (seeds, steps) float, after the update at each rate; NaN after a seed diverged.
        initial: (seeds, batches) float, before the first update.

    Returns:
        A tenth of the rate at which the loss becomes high: where half of the seeds have diverged,
        or else the last one. None where the losses allow no look: they are not finite before the
        first update, high at the first rate already, or flat at every rate.
    """
    curves = trend(losses)
    if not (np.isfinite(initial).all() and np.isfinite(curves[:, 0]).all()):
        return None
    doubt = _doubt(initial, window=2 * window_reach(len(rates)) + 1)
    diverged = np.isnan(losses[:, -1])
    rise = np.nanmax(curves, axis=-1).mean() - initial.mean()
    if not diverged.any() and rise <= doubt:
        return None
    running = np.isfinite(curves).sum(axis=0)
    last = np.flatnonzero(2 * running >= len(curves))[-1]
    return float(max(rates[last] / 10, rates[0]))


def _fallen(curve: np.ndarray, level: float, lowest: int) -> int:
    """Return the first index from which the curve stays at or below `level` up to `lowest`."""
    above = np.flatnonzero(curve[:lowest] > level)
    return int(above[-1]) + 1 if above.size else 0


def _mean_fall(curves: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return how far the mean over seeds has fallen at each rate; −∞ where most have diverged.

    Its highest value is the fall of all. The mean of each seed's own fall would be too large, as
    the lowest of many noisy points is low.
    """
    running = np.isfinite(curves).sum(axis=0)
    fall = np.nansum(level[:, None] - curves, axis=0) / np.maximum(running, 1)
    return np.where(2 * running >= len(curves), fall, -np.inf)


def _doubt(initial: np.ndarray, window: int) -> float:
    """Return the fall of the mean over seeds that noise and rounding can explain."""
    seeds, batches = initial.shape
    variance = initial.var(axis=-1, ddof=1).mean() * (1 / window + 1 / batches) / seeds
    return SIGNIFICANCE * variance**0.5 + RESOLUTION * np.abs(initial).mean()


def _why_no_fall(
    rates: np.ndarray, losses: np.ndarray, curves: np.ndarray, level: np.ndarray, doubt: float
) -> str:
    diverged = np.isnan(losses[:, -1])
    # A lower min_lr can help only where the losses are high at the lowest rates already.
    begin = curves[:, : max(1, len(rates) // 10)]
    is_high = np.isnan(begin).any() or begin.mean() - level.mean() > doubt
    remedy = "lower min_lr" if is_high else "take more steps, which are then closer,"
    remedy = f"check the gradients, {remedy} or take more seeds"
    if diverged.all():
        rate = rates[np.isfinite(losses).sum(axis=-1).max()]
        return (
            f"every run diverged, by the rate {rate:.3g}, before its loss fell by more than noise; "
            f"{remedy}"
        )
    if np.nanmax(curves, axis=-1).mean() - level.mean() > doubt or diverged.any():
        return f"the loss rises and never falls by more than noise; {remedy}"
    return (
        "the loss is flat: no rate changes it by more than noise; check that the parameters are "
        "trained, raise max_lr, or take more steps or seeds"
    )


def picks(rates: np.ndarray, smoothed: np.ndarray) -> Mapping[str, float]:
    """Return fastai's picks by name; empty if its cuts leave too little of the curve.

    Args:
        rates: (steps,) float, ascending.
        smoothed: (steps,) float, NaN at the end if runs diverged.
    """
    nans = np.flatnonzero(np.isnan(smoothed))
    stop = nans[0] if nans.size else len(smoothed)
    best = np.minimum.accumulate(smoothed[:stop])
    exploded = np.flatnonzero(smoothed[:stop] > DIVERGENCE_FACTOR * best)
    stop = exploded[0] + 1 if exploded.size else stop
    rates, loss = (x[len(smoothed) // 10 : max(stop - 5, 0)] for x in (rates, smoothed))
    if len(loss) < 3:
        return {}
    return {
        "valley": float(rates[_valley(loss)]),
        "steep": float(rates[np.argmin(np.diff(loss) / np.diff(np.log(rates)))]),
        "minimum": float(rates[np.argmin(loss)]) / 10,
        "slide": float(rates[_slide(loss)]),
    }


def fallen(
    rates: np.ndarray, losses: np.ndarray, initial: np.ndarray, picks: Mapping[str, float]
) -> Mapping[str, float]:
    """Return the picks at whose rates the loss has fallen by more than noise.

    It must have fallen by a tenth of the whole fall, too, and stay there at three quarters of the
    rates from the pick up to the lowest point: where the fall begins, a pick is still noise. Of the
    minimum the rate of the lowest loss counts, ten times the pick.
    """
    sound = np.isfinite(initial).all(axis=-1)
    initial, curves = initial[sound], trend(losses[sound])
    fall = _mean_fall(curves, initial.mean(axis=-1))
    doubt = _doubt(initial, window=2 * window_reach(len(rates)) + 1)
    lowest = int(fall.argmax())
    least = max(doubt, BEGUN * fall[lowest])

    def has_fallen(name: str, rate: float) -> bool:
        at = np.abs(np.log(rates / (10 * rate if name == "minimum" else rate))).argmin()
        onwards = fall[min(at, lowest) : lowest + 1]
        return bool(fall[at] > least and (onwards > least).mean() >= STAYS)

    return {name: rate for name, rate in picks.items() if has_fallen(name, rate)}


def _slide(loss: np.ndarray) -> int:
    """Return the index that fastai's `slide` picks: the left end of a window of 15 steps.

    The window moves to the left from the end while the slopes at its ends differ.
    """
    slopes = np.gradient(loss)
    right = len(loss) - 1
    left = index = right - SLIDE_WIDTH
    while left >= 0 and abs(slopes[right] - slopes[left]) > SLIDE_THRESHOLD:
        index = left
        right, left = right - 1, left - 1
    return max(index, 0)


def _valley(loss: np.ndarray) -> int:
    """Return the index that fastai's `valley` picks.

    Let e be the end and L the length of the longest decreasing subsequence, start = e − L and
    k = (e − start)/3. The index is start + ⌊k⌋ + ⌊k/2⌋.
    """
    # The length of the longest decreasing subsequence that ends at each point.
    lengths = np.ones(len(loss), int)
    for i in range(1, len(loss)):
        before = lengths[:i][loss[:i] > loss[i]]
        lengths[i] = 1 + before.max(initial=0)
    end = int(lengths.argmax())
    start = end - int(lengths[end])
    third = (end - start) / 3
    return max(0, start + int(third) + int(third / 2))
