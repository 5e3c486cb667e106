"""The curves of a run as statistics, free of the loss's unit: levels, tested trends, noise.

A curve begins at S, before the first update, and ends at E. What it does is measured in shares of
its fall S − L, L being its lowest level, so that neither the unit of a loss nor its zero matters.

    gain over a window    −(the Theil–Sen slope)·(the window's width) / (S − L)
    falling               Mann–Kendall's z = ΣΣ sign(xᵢ − xⱼ) over i < j / √(n(n−1)(2n+5)/18)
                          is 2.3 or more
    noise of a point      √(mean (xᵢ − (xᵢ₋₁ + xᵢ₊₁)/2)² / 1.5), blind to straight trends

Time is counted in updates, or where that says more in *rate time* τ, the sum of the learning rates
so far as a share of that of the whole run: as far as the parameters have been free to go.

Reference: Theil 1950, Sen 1968; Mann 1945, Kendall 1975.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optlab.lab._history import History

FALLING = 2.3
"""The Mann–Kendall z that noise alone exceeds in about one window of a hundred."""

TINY = 0.02
"""A change of a loss, as a share of it, too small to be called a fall."""

SIGNIFICANT = 4.0
"""A level must differ from another by so many standard deviations of the noise in it."""

LATE = 0.7
"""The share of the run from which on "the end" is looked at."""

GAINS = 0.03
"""The share of the fall gained at the end that makes it worth going on."""

MOST_POINTS = 50
"""Points to which the losses of single updates are averaged; Theil–Sen compares all pairs."""

LEAST_ACCURACY = 1e-3
"""The accuracy of guessing, if it is 0 by chance before training."""

LEAST_EVALUATIONS = 8
"""Fewer evaluations have no shape to read; the losses of the updates must do then."""


@dataclass(frozen=True)
class Curve:
    """One curve, lower being better.

    Attributes:
        at: (points,) float, the share of the run's updates done; ascending.
        values: (points,) float, finite.
        start: the level before the first update.
        name: for sentences.
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
        """The lowest mean of three neighbours, so that no single point of luck counts."""
        return float(running(self.values, 3, np.mean).min())

    @property
    def fall(self) -> float:
        """From the start to the lowest level; ≤ 0 where it never fell."""
        return self.start - min(self.lowest, self.end)

    @property
    def left(self) -> float:
        """The share of the start that is left at the end; NaN where the start is not above 0."""
        return self.end / self.start if self.start > 0 else np.nan

    def since(self, share: float) -> "Curve":
        """Return the part from a share of the run on."""
        kept = self.at >= share
        return Curve(self.at[kept], self.values[kept], self.start, self.name)

    @property
    def fell(self) -> bool:
        """Whether there is a fall to take shares of."""
        return self.fall > TINY * abs(self.start)

    def gain(self, share: float) -> float:
        """Return the gain, as a share of the fall, from a share of the run on; 0 if unknown."""
        part = self.since(share)
        if not self.fell or len(part.at) < 4:
            return 0.0
        return -slope(part.at, part.values) * (1 - share) / self.fall

    def is_falling(self, share: float) -> bool:
        """Whether it falls from a share of the run on by more than noise explains."""
        return -mann_kendall(self.since(share).values) >= FALLING

    @property
    def late_gain(self) -> float:
        """The gain over the end of the run; 0 where it does not exceed noise."""
        return self.gain(LATE) if self.is_falling(LATE) else 0.0

    @cached_property
    def noise(self) -> float:
        """The noise of a point in the second half."""
        return noise(self.values[len(self.values) // 2 :])

    def fluctuation(self, share: float) -> float:
        """Return the noise of a point from a share of the run on, as a share of the fall."""
        part = self.since(share).values
        return noise(part) / self.fall if self.fell and len(part) >= 6 else 0.0


@dataclass(frozen=True)
class Curves:
    """All that the rules look at.

    Attributes:
        history: as it was recorded.
        baseline: the loss of the best guess that knows no inputs, where the user gives it.
    """

    history: History
    baseline: float | None = None

    @cached_property
    def loss(self) -> np.ndarray:
        """(updates,) float64: the losses before the first that is not finite."""
        loss = np.asarray(self.history.loss, np.float64)
        bad = np.flatnonzero(~np.isfinite(loss))
        return loss[: bad[0]] if bad.size else loss

    @cached_property
    def start(self) -> float:
        """The loss before training: as evaluated, or else the median of the first batches'."""
        if self.history.steps.size and self.history.steps[0] == 0:
            for split in ("train", "validation"):
                values = getattr(self.history, split).get("loss")
                if values is not None and np.isfinite(values[0]):
                    return float(values[0])
        return float(np.median(self.loss[:3]))

    @property
    def guess(self) -> float | None:
        """The baseline, or −log of the accuracy before training, what guessing with it loses."""
        accuracy = self.history.validation.get("accuracy")
        known = accuracy is not None and self.history.steps.size and self.history.steps[0] == 0
        if self.baseline is not None or not known:
            return self.baseline
        return float(-np.log(np.clip(accuracy[0], LEAST_ACCURACY, 0.5)))

    @cached_property
    def noise(self) -> float:
        """The noise of one update's loss, over the second half of the run."""
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
        """The evaluations on training data, if they are enough to be read."""
        return self._evaluated("train")

    @cached_property
    def validation(self) -> Curve | None:
        """The evaluations on validation data, if they are enough to be read."""
        return self._evaluated("validation")

    @property
    def trend(self) -> Curve:
        """Where the course of training is read: the curve with the least noise there is."""
        return self.train or self.validation or self.batches

    @cached_property
    def rate_time(self) -> np.ndarray | None:
        """(updates,) float: τ after each update; None where the rate is not known."""
        rates = self.history.learning_rate
        if rates is None:
            return None
        rates = np.asarray(rates, np.float64)[: len(self.loss)]
        total = rates.sum()
        usable = np.isfinite(rates).all() and (rates >= 0).all() and total > 0
        return np.cumsum(rates) / total if usable else None

    @property
    def decays(self) -> bool:
        """Whether the rate ends well below its highest."""
        rates = self.history.learning_rate
        return rates is not None and bool(rates[-1] < 0.5 * np.max(rates))

    def in_rate_time(self, shares: np.ndarray | float) -> np.ndarray:
        """Return τ at shares of the run; these themselves where the rate is not known."""
        if self.rate_time is None:
            return np.asarray(shares, float)
        done = np.linspace(0, 1, len(self.rate_time) + 1)
        return np.interp(shares, done, np.append(0.0, self.rate_time))

    def update_at(self, time: float) -> int:
        """Return the updates done by a τ, the inverse of `in_rate_time`."""
        if self.rate_time is None:
            return round(time * len(self.loss))
        return int(np.searchsorted(self.rate_time, time)) + 1

    def rate(self, update: int) -> float | None:
        """Return the rate of an update, numbered from 0; None where it is not known."""
        rates = self.history.learning_rate
        return None if rates is None else float(rates[min(update, len(rates) - 1)])

    def monitored(self, name: str, quantile: float = 0.5) -> np.ndarray | None:
        """Return what was recorded under a name, or a quantile of all `name/…`; None if nothing.

        Of two groups the median is the lower one: the ratio of weights that are near 0 is high.

        Returns:
            (updates,) float64, as far as the loss is finite.
        """
        known = self.history.monitored
        found = [x for key, x in known.items() if key == name or key.startswith(f"{name}/")]
        if not found:
            return None
        index = int(quantile * (len(found) - 1))
        return np.sort(np.asarray(found, np.float64), axis=0)[index, : len(self.loss)]

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
    """Return the loss at each evaluation of a split, or its score; negated if more is better."""
    metrics = getattr(history, split)
    if "loss" in metrics:
        return np.asarray(metrics["loss"], np.float64)
    if history.score in metrics:
        return np.asarray(metrics[history.score], np.float64) * (-1 if history.maximize else 1)
    return None


def running(values: np.ndarray, width: int, statistic: Callable = np.median) -> np.ndarray:
    """Return a statistic of each `width` neighbours; of all where there are fewer.

    Example:
        >>> running(np.array([1.0, 9.0, 2.0, 3.0]), 3)
        array([2., 3.])
    """
    width = min(width, len(values))
    return statistic(np.lib.stride_tricks.sliding_window_view(values, width), axis=-1)


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Theil–Sen slope: the median over all pairs of points.

    Example:
        >>> slope(np.arange(5.0), np.array([0.0, 2.0, 4.0, 100.0, 8.0]))
        2.0
    """
    i, j = np.triu_indices(len(x), 1)
    return float(np.median((y[j] - y[i]) / (x[j] - x[i])))


def mann_kendall(values: np.ndarray) -> float:
    """Return the z of the Mann–Kendall test: > 0 for a rise, of deviation 1 under pure noise.

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
    """Return the deviation of a point from its neighbours, as of independent noise on a line."""
    if len(values) < 3:
        return 0.0
    residuals = values[1:-1] - (values[:-2] + values[2:]) / 2
    return float(np.sqrt(np.mean(residuals**2) / 1.5))
