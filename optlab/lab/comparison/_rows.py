"""From the runs of one optimizer to a row: the best rate, its scores, how much the rate matters."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optlab._report import Spread
from optlab.lab.comparison._runs import Runs

NEAR_BEST = 0.9
"""A rate is near the best if it reaches this share of the best rate's progress."""


@dataclass(frozen=True)
class Row:
    """The summary of one optimizer: one line of the table.

    The best rate has the best mean validation score at the end of training; of equal scores, the
    one with the lower loss counts as better. Test scores are not used. A run has a score if it did
    not diverge and the metric is defined at its end, as F1 before any positive is not. If there are
    rates at which every run has a score, only these are eligible; otherwise every rate is at which
    some run has one.

    Attributes:
        optimizer: the optimizer's label.
        rate: the best rate. If no run has a score, it is None, and so are all attributes below
            except the two counts and the two flags.
        at_edge: whether the best rate is the first or last of several; a wider grid may then hold a
            better one.
        validation: the validation score at the best rate, over the runs that have a score.
        test: the test score at the best rate, over the same runs; None also if the task has no test
            split.
        updates_to_target: the updates until the first evaluation that met the target, as the median
            over the same runs; None if half of them or more never met it, or without a target.
        decades: the width, in log₁₀(rate), of the interval around the best rate in which the mean
            validation score keeps 90% of the best rate's progress from the initial score,
            interpolated between rates. The interval ends before the first rate that is not
            eligible. None for a single rate, or if there was no progress.
        decades_at_least: whether that interval reaches an end of the grid; its true width may then
            be larger.
        num_diverged: the number of runs that diverged, over all rates and seeds.
        num_runs: the number of runs, rates × seeds.
        num_ended: the number of runs that early stopping ended, over all rates and seeds; None
            without early stopping.
        causes: cause → how many runs it ended, as `EarlyStopping.cause` says it.
        best_at: the updates at the best evaluation of the runs at the best rate, as their median;
            None without early stopping, or if no run has a score.
    """

    optimizer: str
    rate: float | None
    at_edge: bool
    validation: Spread | None
    test: Spread | None
    updates_to_target: float | None
    decades: float | None
    decades_at_least: bool
    num_diverged: int
    num_runs: int
    num_ended: int | None = None
    causes: Mapping[str, int] = field(default_factory=dict)
    best_at: float | None = None


def summarize(
    optimizer: str, runs: Runs, *, score: str, maximize: bool, target: float | None
) -> Row:
    """Return the row of one optimizer.

    Args:
        optimizer: the optimizer's label.
        runs: the optimizer's runs over the grid.
        score: the metric by which runs are judged.
        maximize: whether a higher score is better.
        target: the score to reach; None if there is none.
    """
    counts: dict[str, Any] = {"num_diverged": int(runs.diverged.sum())}
    counts["num_runs"] = runs.diverged.size
    if runs.taken is not None:
        causes = Counter(cause for of_rate in runs.causes for cause in of_rate if cause)
        counts |= {"num_ended": causes.total(), "causes": dict(causes.most_common())}
    best = best_rate(runs, score=score, maximize=maximize)
    if best is None:
        return Row(optimizer, None, False, None, None, None, None, False, **counts)
    scored = runs.scored[best]
    if runs.taken is not None:
        counts["best_at"] = float(np.median(runs.taken[best, scored]))
    scores = runs.validation[score]
    last = len(runs.rates) - 1
    decades, at_least = decades_near_best(
        runs.rates,
        runs.eligible_means(score),
        float(runs.eligible_means(score, at_start=True)[best]),
        best,
    )
    return Row(
        optimizer=optimizer,
        rate=float(runs.rates[best]),
        at_edge=last > 0 and best in (0, last),
        validation=Spread.of(runs.final(score)[best, scored]),
        test=Spread.of(runs.test[score][best, scored]) if runs.test else None,
        updates_to_target=updates_to_target(
            runs.steps, scores[best, scored], target=target, maximize=maximize
        ),
        decades=decades,
        decades_at_least=at_least,
        **counts,
    )


def best_rate(runs: Runs, *, score: str, maximize: bool) -> int | None:
    """Return the index of the best rate, as `Row` defines it; None if no run has a score."""
    sign = 1 if maximize else -1
    gain = sign * runs.eligible_means(score)
    loss = runs.eligible_means("loss")
    candidates = np.flatnonzero(runs.eligible())
    return int(max(candidates, key=lambda i: (gain[i], -loss[i]))) if len(candidates) else None


def updates_to_target(
    steps: np.ndarray, scores: np.ndarray, *, target: float | None, maximize: bool
) -> float | None:
    """Return the updates until the score first met the target, as the median over runs.

    Args:
        steps: (evaluations,) int, updates done.
        scores: (runs, evaluations) float, at least one run.
        target: the score to reach; None if there is none.
        maximize: whether a higher score is better.

    Returns:
        The median; None without a target, or if half of the runs or more never met it.

    Example:
        >>> scores = np.array([[0.1, 0.8, 0.9], [0.1, 0.9, 0.7], [0.1, 0.2, 0.3]])
        >>> updates_to_target(np.array([0, 10, 20]), scores, target=0.9, maximize=True)
        20.0
    """
    if target is None:
        return None
    met = scores >= target if maximize else scores <= target
    first = np.where(met.any(axis=1), steps[met.argmax(axis=1)], np.inf)
    median = float(np.median(first))
    return median if np.isfinite(median) else None


def decades_near_best(
    rates: np.ndarray, scores: np.ndarray, initial: float, best: int
) -> tuple[float | None, bool]:
    """Return the width that `Row.decades` defines, and whether the end of the grid cuts it off.

    Args:
        rates: (rates,) float, ascending.
        scores: (rates,) float, higher or lower is better; NaN where not eligible.
        initial: the score before training.
        best: the index of the best rate.

    Example:
        Progress 0.8, 1.0 and 0.8 at rates a decade apart falls to 0.9 half a decade to each side:

        >>> decades_near_best(np.array([0.01, 0.1, 1.0]), np.array([0.8, 1.0, 0.8]), 0.0, 1)
        (1.0, False)
    """
    span = scores[best] - initial
    if len(rates) == 1 or span == 0:
        return None, False
    progress = (scores - initial) / span
    low, low_is_edge = _reach(np.log10(rates), progress, best, direction=-1)
    high, high_is_edge = _reach(np.log10(rates), progress, best, direction=1)
    return high - low, low_is_edge or high_is_edge


def _reach(
    decades: np.ndarray, progress: np.ndarray, best: int, *, direction: int
) -> tuple[float, bool]:
    """Return where rates stop being near the best, and whether the grid ends before they do.

    Args:
        decades: (rates,) float, log₁₀ of the rates.
        progress: (rates,) float, 1 at the best; NaN where not eligible.
        best: the index of the best rate.
        direction: 1 towards higher rates, −1 towards lower ones.
    """
    here = best
    for beyond in range(best + direction, len(decades) if direction > 0 else -1, direction):
        if np.isnan(progress[beyond]):
            return float(decades[here]), False
        if progress[beyond] < NEAR_BEST:
            fraction = (progress[here] - NEAR_BEST) / (progress[here] - progress[beyond])
            return float(decades[here] + fraction * (decades[beyond] - decades[here])), False
        here = beyond
    return float(decades[here]), True
