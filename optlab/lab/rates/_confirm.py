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

The best rate may lie at a cliff: three seeds converge there, and others diverge. Where a run
diverged at a rate up to half a decade above the chosen one, more seeds are trained at the chosen
rate, and then at lower ones, a sixth of a decade apart, down to the first at which none fails.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

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

CLIFF = 9
"""The chosen rate is checked if a run diverged at most this many places above it."""

STEP_BACK, STEPS_BACK = 3, 6
"""How many places lie between the rates at which more seeds are trained, and how many rates below
the chosen one are tried."""

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
        checked: rate → the share of more seeds that failed there; in the order of the checks, from
            the best rate downwards.
    """

    rates: np.ndarray
    initial: np.ndarray
    losses: np.ndarray
    checked: Mapping[float, float] = field(default_factory=dict)

    def is_clear(self, rate: float, share: float) -> bool:
        """Return whether, from every seed, a rate lowers the loss by a share of its first size."""
        losses = self.losses[np.abs(self.rates - rate).argmin()]
        return bool((self.initial - losses > share * np.abs(self.initial)).all())


@dataclass(frozen=True)
class RunsAt:
    """Runs from the same seeds at several rates.

    Attributes:
        runs: the runner, whose trials have the value "rate".
        steps: updates of each run.
        ended: the runs of an earlier call, by their places.
        on_end: called with runs that have ended, by their places.
    """

    runs: TrialRuns
    steps: int
    ended: Mapping[int, End]
    on_end: Callable[[dict[int, End]], None]

    def train(self, rates: Mapping[int, float]) -> dict[int, End]:
        """Train at rates, place → rate, and return how the runs end."""
        ends = {k: self.ended[k] for k in rates if k in self.ended}
        points = [(k, {"rate": rate}) for k, rate in rates.items()]
        with closing(self.runs.run(points, self.steps, skip=self.ended)) as running:
            for chunk in running:
                new = {place: _end(curves) for place, curves in chunk.items()}
                self.on_end(new)
                ends |= new
        return ends


def confirm(
    few: RunsAt, more: RunsAt, rate: float, *, lowest: float, highest: float
) -> Confirmation:
    """Train at rates around the first suggestion until the best lies between two others.

    Args:
        few: the runs by which the rates are judged.
        more: runs from more seeds, by which a rate close to divergence is checked.
        rate: the first suggestion.
        lowest: the lowest rate to try.
        highest: the highest rate to try.
    """
    search = _Search(few, rate, (lowest, highest))
    spacing = SPACINGS[0]
    search.train(FIRST)
    while new := search.beyond(spacing):
        search.train(new)
    for finer, factor in zip(SPACINGS[1:], STEEP, strict=True):
        if not search.is_steep(spacing, factor):
            break
        search.train([search.best + i * finer for i in (-2, -1, 1, 2)])
        spacing = finer
    search.step_back(more)
    return search.result()


def _end(curves: Curves) -> End:
    losses = np.asarray(curves.validation["loss"], np.float64)
    diverged = has_diverged([curves.train_loss, losses], losses, maximize=False)
    ends = np.where(diverged[:, None], np.inf, losses[:, -LAST:])
    return {"initial": losses[:, 0], "losses": np.nanmean(ends, axis=1)}


class _Search:
    """The runs so far, by place: the rate at place k is the first one times 10^(k/18)."""

    def __init__(self, runs: RunsAt, rate: float, limits: tuple[float, float]):
        self._runs, self._rate, self._limits = runs, rate, limits
        self._losses: dict[int, np.ndarray] = {}
        self._initial = np.zeros(0)
        self._checked: dict[float, float] = {}

    @property
    def best(self) -> int:
        """The place of the lowest mean loss; if every run diverged, the lowest place."""
        return min(self._losses, key=lambda place: (self._losses[place].mean(), place))

    def train(self, places: Sequence[int]) -> None:
        new = [k for k in places if k not in self._losses and self._is_allowed(k)]
        for place, end in self._runs.train({k: self._at(k) for k in new}).items():
            self._initial, self._losses[place] = end["initial"], end["losses"]

    def step_back(self, more: RunsAt) -> None:
        """Check the chosen rate with more seeds if it is close to divergence, and lower ones."""
        choice = choose(self.result())
        if isinstance(choice, str):
            return
        chosen = min(self._losses, key=lambda k: abs(self._at(k) - choice.rate))
        above = [k for k in self._losses if chosen < k <= chosen + CLIFF]
        if all(np.isfinite(self._losses[k]).all() for k in above):
            return
        places = (chosen - i * STEP_BACK for i in range(STEPS_BACK + 1))
        for place in filter(self._is_allowed, places):
            end = more.train({place: self._at(place)})[place]
            failed = ~np.isfinite(end["losses"]) | (end["losses"] >= end["initial"])
            self._checked[self._at(place)] = float(failed.mean())
            if not failed.any():
                self.train([place])
                return

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
        rates = np.array([self._at(k) for k in places])
        return Confirmation(rates, self._initial, losses, self._checked)

    def _at(self, place: int) -> float:
        return float(self._rate * 10 ** (place / FINEST))

    def _is_allowed(self, place: int) -> bool:
        lowest, highest = self._limits
        return abs(place) <= FURTHEST and (place == 0 or lowest <= self._at(place) <= highest)


def choose(confirmation: Confirmation) -> Suggestion | str:
    """Return the rate to train with; or, if none is reliable, the reason as a sentence.

    Where more seeds were trained, it is the last rate at which they were.
    """
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
    rate = float(rates[chosen])
    if confirmation.checked:
        rate, failed = list(confirmation.checked.items())[-1]
        if failed:
            return (
                f"at constant rates down to {number(rate)}, where these runs end well, other seeds "
                "diverge or do not lower the validation loss; take longer runs, or clip gradients"
            )
    if rate < rates[chosen]:  # seeds that are best above it say nothing of where all are safe
        of_seeds = np.minimum(of_seeds, rate)
    bounds = (*of_seeds, rate)
    return Suggestion(rate, float(min(bounds)), float(max(bounds)))
