"""Confirm the suggestion of a range test: train at constant rates around it, choose by the loss.

A range test trains at each rate for one update only. It does not see the noise that a high rate
keeps up to the end of a run, nor the directions in which a run must stay long. Runs at constant
rates do. They begin as the range test does, from the same seeds, and on the same batches.

    first     a tenth, a third, one and three times the first suggestion
    then      further on the side where the loss still falls, until the best rate lies inside
    at last   sixths, and then eighteenths, of a decade around the best rate, if the loss changes
              much from one rate to the next

The loss of a run is the mean of its validation losses in its last quarter. The chosen rate is
in the middle of those whose mean loss over seeds is within 3% of the best.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from optlab._divergence import has_diverged
from optlab._report import number
from optlab.lab.rates._suggest import RESOLUTION, Suggestion
from optlab.lab.training._runner import Curves, TrialRuns

FINEST = 18
"""The finest rates are this many to a decade."""

SPACINGS = (9, 3, 1)
"""The distances between neighbouring rates, in units of the finest: from half a decade on."""

FIRST = (-18, -9, 0, 9)
"""The places of the first rates; 0 is the first suggestion. A CPU trains four together."""

FURTHEST = 72
"""The furthest place on either side: four decades."""

STEEP = (1.15, 1.3)
"""Finer rates are tried if a neighbour's loss exceeds the best by this factor: for sixths and for
eighteenths of a decade."""

TIED = 0.03
"""Losses within this share of the best are as good."""

DONE = 1e-10
"""Losses below this share of the loss before training are as good as 0."""

EVALUATIONS, LAST = 16, 4
"""The intervals of a run between evaluations, and the number of evaluations that are averaged."""

APART, COSTS = 30.0, 3.0
"""The seeds disagree if their best rates are apart by the first factor, and the chosen rate has,
in the mean over seeds, a loss of the second factor times the seed's best."""


End = dict[str, np.ndarray]
"""Of a run at one rate the "initial" and the final "losses", (seeds,) each."""


@dataclass(frozen=True)
class Confirmation:
    """Runs at constant rates.

    Attributes:
        rates: (rates,) float, ascending.
        initial: (seeds,) float, the validation losses before training.
        losses: (rates, seeds) float, the validation losses at the end; infinite where a run
            diverged.
    """

    rates: np.ndarray
    initial: np.ndarray
    losses: np.ndarray


def confirm(
    runs: TrialRuns,
    rate: float,
    *,
    steps: int,
    lowest: float,
    highest: float,
    ended: Mapping[int, End],
    on_end: Callable[[dict[int, End]], None],
) -> Confirmation:
    """Train at rates around the first suggestion until the best lies between two others.

    Args:
        runs: the runner, whose trials have the value "rate".
        rate: the first suggestion.
        steps: updates of each run.
        lowest: the lowest rate to try.
        highest: the highest rate to try.
        ended: the runs of an earlier call, by their places.
        on_end: called with runs that have ended, by their places.
    """
    search = _Search(runs, rate, steps, (lowest, highest), ended, on_end)
    spacing = SPACINGS[0]
    search.train(FIRST)
    while new := search.beyond(spacing):
        search.train(new)
    for finer, factor in zip(SPACINGS[1:], STEEP, strict=True):
        if not search.is_steep(spacing, factor):
            break
        search.train([search.best + i * finer for i in (-2, -1, 1, 2)])
        spacing = finer
    return search.result()


def _end(curves: Curves) -> End:
    losses = np.asarray(curves.validation["loss"], np.float64)
    diverged = has_diverged([curves.train_loss, losses], losses, maximize=False)
    ends = np.where(diverged[:, None], np.inf, losses[:, -LAST:])
    return {"initial": losses[:, 0], "losses": np.nanmean(ends, axis=1)}


class _Search:
    """The runs so far, by place: the rate at place k is the first one times 10^(k/18)."""

    def __init__(
        self,
        runs: TrialRuns,
        rate: float,
        steps: int,
        limits: tuple[float, float],
        ended: Mapping[int, End],
        on_end: Callable[[dict[int, End]], None],
    ):
        self._runs, self._rate, self._steps, self._limits = runs, rate, steps, limits
        self._ended, self._on_end = ended, on_end
        self._losses: dict[int, np.ndarray] = {}
        self._initial = np.zeros(0)

    @property
    def best(self) -> int:
        """The place of the lowest mean loss; if every run diverged, the lowest place."""
        return min(self._losses, key=lambda place: (self._losses[place].mean(), place))

    def train(self, places: Sequence[int]) -> None:
        new = [k for k in places if k not in self._losses and self._is_allowed(k)]
        points = [(k, {"rate": self._at(k)}) for k in new]
        self._take({k: self._ended[k] for k in new if k in self._ended})
        with closing(self._runs.run(points, self._steps, skip=self._ended)) as running:
            for chunk in running:
                ends = {place: _end(curves) for place, curves in chunk.items()}
                self._on_end(ends)
                self._take(ends)

    def _take(self, ends: Mapping[int, End]) -> None:
        for place, end in ends.items():
            self._initial, self._losses[place] = end["initial"], end["losses"]

    def beyond(self, spacing: int) -> list[int]:
        """Return two places beyond the best one, if it is the outermost; none at the limits."""
        for direction, outermost in ((-1, min(self._losses)), (1, max(self._losses))):
            if self.best == outermost:
                places = (outermost + i * direction * spacing for i in (1, 2))
                return [k for k in places if self._is_allowed(k)]
        return []

    def is_steep(self, spacing: int, factor: float) -> bool:
        """Return whether the loss at a neighbour of the best is above it by a factor."""
        best = self._losses[self.best].mean()
        neighbours = [self._losses.get(self.best + i * spacing) for i in (-1, 1)]
        means = [x.mean() for x in neighbours if x is not None]
        # At a rate where runs diverge the loss says nothing of how far below it is best.
        return bool(
            self._initial.size
            and best > DONE * abs(self._initial.mean())
            and any(best + (factor - 1) * abs(best) < mean < np.inf for mean in means)
        )

    def result(self) -> Confirmation:
        places = sorted(self._losses)
        losses = np.stack([self._losses[k] for k in places])
        return Confirmation(np.array([self._at(k) for k in places]), self._initial, losses)

    def _at(self, place: int) -> float:
        return float(self._rate * 10 ** (place / FINEST))

    def _is_allowed(self, place: int) -> bool:
        lowest, highest = self._limits
        return abs(place) <= FURTHEST and (place == 0 or lowest <= self._at(place) <= highest)


def choose(confirmation: Confirmation) -> Suggestion | str:
    """Return the rate to train with; or, if none is reliable, the reason as a sentence."""
    rates, losses, initial = confirmation.rates, confirmation.losses, confirmation.initial
    means = losses.mean(axis=1)
    best = int(means.argmin())
    if not np.isfinite(means[best]):
        return f"a seed diverges in the runs at all constant rates from {number(rates[0])} on"
    falls = initial - losses[best]
    if falls.min() <= 0 or falls.mean() <= RESOLUTION * np.abs(initial).mean():
        return (
            f"runs at constant rates from {number(rates[0])} to {number(rates[-1])} do not lower "
            "the validation loss from every seed"
        )
    tied = means <= means[best] + max(TIED * abs(means[best]), DONE * np.abs(initial).mean())
    low = high = best
    while low > 0 and tied[low - 1]:
        low -= 1
    while high < len(rates) - 1 and tied[high + 1]:
        high += 1
    middle = np.abs(np.log(rates / np.sqrt(rates[low] * rates[high])))
    chosen = low + int(middle[low : high + 1].argmin())
    of_seeds = rates[losses.argmin(axis=0)]
    costs = losses[chosen] / np.maximum(losses.min(axis=0), DONE * np.abs(initial))
    if of_seeds.max() >= APART * of_seeds.min() and 0 < COSTS < costs.mean():
        return (
            f"the best constant rate of single seeds lies anywhere from {number(of_seeds.min())} "
            f"to {number(of_seeds.max())}, as noise decides; take more seeds or longer runs"
        )
    bounds = (*of_seeds, rates[chosen])
    return Suggestion(float(rates[chosen]), float(min(bounds)), float(max(bounds)))
