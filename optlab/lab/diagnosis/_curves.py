"""Statistics of a run's curves that do not depend on the loss's unit: levels, trends, noise.

A curve begins at level S, before the first update, and ends at level E. L is its lowest level.
Changes are measured as shares of its fall S − L, so that neither the unit nor the zero of a loss
matters.

    gain over a window    −(the Theil–Sen slope)·(the window's width) / (S − L)
    falling               Mann–Kendall's z = ΣΣ sign(xᵢ − xⱼ) over i < j / √(n(n−1)(2n+5)/18)
                          is 2.3 or more
    noise of a point      √(mean (xᵢ − (xᵢ₋₁ + xᵢ₊₁)/2)² / 1.5), blind to straight trends

Time is counted in updates or in *rate time* τ. τ is the sum of the learning rates so far, as a
share of their sum over the whole run: it measures how far the parameters could have moved.

Reference: Theil 1950, Sen 1968; Mann 1945, Kendall 1975.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optlab.lab.training._history import History

FALLING = 2.3
"""The Mann–Kendall z from which a curve counts as falling; noise exceeds it in 1% of windows."""

TINY = 0.02
"""A loss that changes by less than this share of itself does not count as falling."""

SIGNIFICANT = 4.0
"""Two levels differ if they are apart by this many standard deviations of the noise."""

LATE = 0.7
"""The end of a run begins after this share of its updates."""

GAINS = 0.03
"""A run is worth continuing if it gains more than this share of the fall at its end."""

MOST_POINTS = 50
"""The losses of single updates are averaged to at most this many points, because Theil–Sen compares
all pairs."""

LEAST_ACCURACY = 1e-3
"""A lower bound for the accuracy of guessing, which may be 0 by chance before training."""

LEAST_EVALUATIONS = 8
"""A curve of fewer evaluations is not analysed; the losses of the updates are used instead."""


@dataclass(frozen=True)
class Curve:
    """One curve; lower is better.

    Attributes:
        at: (points,) float, the share of the run's updates done at each point; ascending.
        values: (points,) float, finite.
        start: the level before the first update.
        name: how sentences refer to the curve.
    """

    at: np.ndarray
    values: np.ndarray
    start: float
    name: str

    @cached_property
    def end(self) -> float:
        """The mean over the last tenth of the points."""
        return float(self.values[-max(1, len(self.values) // 10) :].mean())

    @cached_property
    def lowest(self) -> float:
        """The lowest mean of three neighbours, which one lucky point cannot determine."""
        return float(running(self.values, 3, np.mean).min())

    @property
    def fall(self) -> float:
        """The distance from the start down to the lowest level; ≤ 0 if the curve never fell."""
        return self.start - min(self.lowest, self.end)

    @property
    def remaining(self) -> float:
        """The end as a share of the start; NaN if the start is not above 0."""
        return self.end / self.start if self.start > 0 else np.nan

    def since(self, share: float) -> "Curve":
        """Return the part of the curve after a share of the run."""
        part = self.at >= share
        return Curve(self.at[part], self.values[part], self.start, self.name)

    @property
    def fell(self) -> bool:
        """Whether the fall is large enough to measure shares of it."""
        return self.fall > TINY * abs(self.start)

    def gain(self, share: float) -> float:
        """Return the gain after a share of the run, as a share of the fall; 0 if unknown."""
        part = self.since(share)
        if not self.fell or len(part.at) < 4:
            return 0.0
        return -slope(part.at, part.values) * (1 - share) / self.fall

    def is_falling(self, share: float) -> bool:
        """Whether the curve falls, after a share of the run, by more than noise explains."""
        return -mann_kendall(self.since(share).values) >= FALLING

    @property
    def late_gain(self) -> float:
        """The gain at the end of the run; 0 if it does not exceed noise."""
        return self.gain(LATE) if self.is_falling(LATE) else 0.0

    @cached_property
    def noise(self) -> float:
        """The noise of a point in the second half of the curve."""
        return noise(self.values[len(self.values) // 2 :])

    def fluctuation(self, share: float) -> float:
        """Return the noise of a point after a share of the run, as a share of the fall."""
        part = self.since(share).values
        return noise(part) / self.fall if self.fell and len(part) >= 6 else 0.0


@dataclass(frozen=True)
class Curves:
    """The curves of one run, as the rules of `diagnose` read them.

    Attributes:
        history: the recorded curves.
        baseline: the loss of the best guess without inputs, if the user gives it.
    """

    history: History
    baseline: float | None = None

    @cached_property
    def loss(self) -> np.ndarray:
        """(updates,) float64: the losses before they are `broken`.

        In place of a single loss that is not finite, such as that of a batch whose step was
        skipped, stands a line between its neighbours.
        """
        return bridged(np.asarray(self.history.loss, np.float64)[: self.broken])

    @cached_property
    def broken(self) -> int:
        """The updates done before the losses are not finite to the end; all if they are.

        The end is a bad batch alone if the run was sound when it was evaluated after it, and had a
        finite loss since the evaluation before.
        """
        loss = np.asarray(self.history.loss, np.float64)
        finite = np.flatnonzero(np.isfinite(loss))
        begin = int(finite[-1]) + 1 if finite.size else 0
        steps = self.history.steps
        if len(steps) > 1 and steps[-1] >= len(loss) and begin > steps[-2]:
            ends = [getattr(self.history, split).get("loss") for split in ("train", "validation")]
            ends = [curve[-1] for curve in ends if curve is not None]
            if ends and np.isfinite(ends).all():
                return len(loss)
        return begin

    @cached_property
    def rates(self) -> np.ndarray | None:
        """(updates,) float64: the rate of each update; None if it is unknown."""
        rates = self.history.learning_rate
        return None if rates is None else bridged(np.asarray(rates, np.float64))

    @cached_property
    def start(self) -> float:
        """The loss before training: the evaluated one, or the median of the first three batches."""
        if self.history.steps.size and self.history.steps[0] == 0:
            for split in ("train", "validation"):
                values = getattr(self.history, split).get("loss")
                if values is not None and np.isfinite(values[0]):
                    return float(values[0])
        return float(np.median(self.loss[:3]))

    @property
    def guess(self) -> float | None:
        """The loss of guessing: the baseline, or −log of the accuracy before training."""
        accuracy = self.history.validation.get("accuracy")
        steps = self.history.steps
        is_initial = steps.size and steps[0] == 0
        if self.baseline is not None or accuracy is None or not is_initial:
            return self.baseline
        return float(-np.log(np.clip(accuracy[0], LEAST_ACCURACY, 0.5)))

    @cached_property
    def noise(self) -> float:
        """The noise of one update's loss, in the second half of the run."""
        return noise(self.loss[len(self.loss) // 2 :])

    @cached_property
    def batches(self) -> Curve:
        """The losses of the updates, averaged to at most 50 points."""
        parts = np.array_split(self.loss, min(MOST_POINTS, max(1, len(self.loss) // 5)))
        ends = np.cumsum([len(part) for part in parts])
        means = np.array([part.mean() for part in parts])
        return Curve(ends / ends[-1], means, self.start, "the loss of the batches")

    @cached_property
    def train(self) -> Curve | None:
        """The evaluations on training data; None if there are too few."""
        return self._evaluated("train")

    @cached_property
    def validation(self) -> Curve | None:
        """The evaluations on validation data; None if there are too few."""
        return self._evaluated("validation")

    @property
    def trend(self) -> Curve:
        """The curve that shows the progress of training with the least noise."""
        return self.train or self.validation or self.batches

    @cached_property
    def rate_time(self) -> np.ndarray | None:
        """(updates,) float: τ after each update; None if the rate is unknown."""
        if self.rates is None:
            return None
        rates = self.rates[: len(self.loss)]
        total = rates.sum()
        usable = np.isfinite(rates).all() and (rates >= 0).all() and total > 0
        return np.cumsum(rates) / total if usable else None

    @property
    def decays(self) -> bool:
        """Whether the final rate is below half of the highest one."""
        rates = self.rates
        return rates is not None and bool(rates[-1] < 0.5 * np.max(rates))

    def in_rate_time(self, shares: np.ndarray | float) -> np.ndarray:
        """Return τ at shares of the run; the shares themselves if the rate is unknown."""
        if self.rate_time is None:
            return np.asarray(shares, float)
        done = np.linspace(0, 1, len(self.rate_time) + 1)
        return np.interp(shares, done, np.append(0.0, self.rate_time))

    def update_at(self, time: float) -> int:
        """Return the number of updates done at a given τ; the inverse of `in_rate_time`."""
        if self.rate_time is None:
            return round(time * len(self.loss))
        return int(np.searchsorted(self.rate_time, time)) + 1

    def rate(self, update: int) -> float | None:
        """Return the rate of an update, counted from 0; None if the rate is unknown."""
        rates = self.rates
        return None if rates is None else float(rates[min(update, len(rates) - 1)])

    def monitored(self, name: str, quantile: float = 0.5) -> np.ndarray | None:
        """Return a recorded series, or a quantile over all series `name/…`; None if there is none.

        The median of two groups is the lower one, because weights near 0 have a high ratio.

        Returns:
            (updates,) float64, before the losses are `broken`.
        """
        recorded = self.history.monitored
        series = [x for key, x in recorded.items() if key == name or key.startswith(f"{name}/")]
        if not series:
            return None
        index = int(quantile * (len(series) - 1))
        whole = [bridged(np.asarray(x, np.float64)) for x in series]
        return np.sort(np.asarray(whole), axis=0)[index, : len(self.loss)]

    def _metric(self, split: str) -> str:
        history = self.history
        return "loss" if "loss" in getattr(history, split) else f"score ({history.score})"

    def _evaluated(self, split: str) -> Curve | None:
        values, steps = lower_is_better(self.history, split), self.history.steps
        if values is None:
            return None
        finite = np.isfinite(values)
        values, steps = values[finite], steps[finite]
        if len(values) < LEAST_EVALUATIONS or steps[0] != 0:
            return None
        name = f"the {'training' if split == 'train' else split} {self._metric(split)}"
        at = steps[1:] / max(len(self.loss), 1)
        return Curve(at, values[1:], float(values[0]), name)


def lower_is_better(history: History, split: str) -> np.ndarray | None:
    """Return a split's loss, or its score, at each evaluation; negated if higher is better."""
    metrics = getattr(history, split)
    if "loss" in metrics:
        return np.asarray(metrics["loss"], np.float64)
    if history.score in metrics:
        return np.asarray(metrics[history.score], np.float64) * (-1 if history.maximize else 1)
    return None


def bridged(values: np.ndarray) -> np.ndarray:
    """Return values with those that are not finite on lines between their finite neighbours.

    Values before the first finite one, and after the last, are those. Without any, nothing changes.

    Example:
        >>> bridged(np.array([np.nan, 1.0, np.inf, 3.0]))
        array([1., 1., 2., 3.])
    """
    good = np.flatnonzero(np.isfinite(values))
    if not good.size or good.size == len(values):
        return values
    return np.interp(np.arange(len(values)), good, values[good])


def running(values: np.ndarray, width: int, statistic: Callable = np.median) -> np.ndarray:
    """Return a statistic over each window of `width` neighbours; over all values if too few.

    Example:
        >>> running(np.array([1.0, 9.0, 2.0, 3.0]), 3)
        array([2., 3.])
    """
    width = min(width, len(values))
    return statistic(np.lib.stride_tricks.sliding_window_view(values, width), axis=-1)


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Theil–Sen slope: the median of the slopes between all pairs of points.

    Example:
        >>> slope(np.arange(5.0), np.array([0.0, 2.0, 4.0, 100.0, 8.0]))
        2.0
    """
    i, j = np.triu_indices(len(x), 1)
    return float(np.median((y[j] - y[i]) / (x[j] - x[i])))


def mann_kendall(values: np.ndarray) -> float:
    """Return the z of the Mann–Kendall test: > 0 for a rise, of deviation 1 for pure noise.

    Example:
        >>> round(mann_kendall(np.arange(10.0)), 2)
        4.02
    """
    n = len(values)
    if n < 2:
        return 0.0
    i, j = np.triu_indices(n, 1)
    return float(np.sign(values[j] - values[i]).sum() / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))


def noise(values: np.ndarray) -> float:
    """Return the standard deviation of the points around a locally straight line."""
    if len(values) < 3:
        return 0.0
    residuals = values[1:-1] - (values[:-2] + values[2:]) / 2
    return float(np.sqrt(np.mean(residuals**2) / 1.5))
