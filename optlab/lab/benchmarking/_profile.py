"""Performance profiles, with intervals from resampled tasks and seeds.

Of optimizer i on task k let c be the median over seeds of what it costs to reach the target: of the
updates, or of the seconds. A miss costs ∞. Its ratio to the best optimizer of the task, and its
profile over K tasks, are

    r(i, k) = c(i, k) / min_j c(j, k)          ∞ where nobody reaches the target
    ρ_i(τ)  = |{k : r(i, k) ≤ τ}| / K          1 ≤ τ ≤ 4

The area of a profile is its mean over τ in [1, 4]: 1 for an optimizer that is the best on every
task, 0 for one that is four times slower than the best, or worse, on each.

For the intervals the tasks are drawn anew with replacement, and, for each optimizer on each task,
the seeds. The tasks are the same for all optimizers of a draw. They show what other tasks and seeds
of this kind may give, for one optimizer; `_ranks` says which two can be told apart.

References: Dolan, Moré, "Benchmarking optimization software with performance profiles",
Mathematical Programming 91 (2002); Dahl et al., "Benchmarking Neural Network Training Algorithms",
arXiv:2306.07179 (2023), on the range of τ and the area; Efron, "Bootstrap methods", Annals of
Statistics 7 (1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MOST = 4.0
"""The largest τ."""

DRAWS = 2000
"""How often tasks and seeds are drawn anew."""

CONFIDENCE = 0.95
"""The share of draws that an interval holds."""


class Area(NamedTuple):
    """The area under a profile, and what it may be as well.

    Attributes:
        value: the area, in [0, 1].
        low: the lower end of its interval.
        high: the upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, eq=False)
class Profile:
    """The performance profiles of optimizers.

    Attributes:
        measure: "updates" or "seconds".
        taus: (τ,) float, ascending from 1 to 4.
        fractions: optimizer → (τ,) float, the share of tasks on which it reaches the target within
            τ times what the best optimizer takes.
        low: optimizer → (τ,) float, the lower ends of 95% intervals of the fractions.
        high: optimizer → (τ,) float, their upper ends.
        areas: optimizer → the area under its profile, in [0, 1], with its 95% interval; the largest
            first.
    """

    measure: str
    taus: np.ndarray
    fractions: Mapping[str, np.ndarray]
    low: Mapping[str, np.ndarray]
    high: Mapping[str, np.ndarray]
    areas: Mapping[str, Area]


def profile_of(measure: str, labels: Sequence[str], costs: np.ndarray, taus: np.ndarray) -> Profile:
    """Return the profiles.

    Args:
        measure: "updates" or "seconds".
        labels: the optimizers.
        costs: (tasks, optimizers, seeds) float, > 0; ∞ for a miss.
        taus: (τ,) float in [1, 4].
    """
    ratios, drawn = ratios_of(np.median(costs, axis=-1)), drawn_ratios(costs)
    within = (drawn[..., None] <= taus).mean(axis=1)  # (draws, optimizers, τ)
    low, high = np.quantile(within, _ends(CONFIDENCE), axis=0)
    fractions = (ratios[..., None] <= taus).mean(axis=0)
    areas = areas_of(ratios)
    ends = np.quantile(areas_of(drawn), _ends(CONFIDENCE), axis=0)
    order = np.argsort(-areas, kind="stable")
    return Profile(
        measure,
        taus,
        dict(zip(labels, fractions, strict=True)),
        dict(zip(labels, low, strict=True)),
        dict(zip(labels, high, strict=True)),
        {labels[i]: Area(*map(float, (areas[i], *ends[:, i]))) for i in order},
    )


def ratios_of(costs: np.ndarray) -> np.ndarray:
    """Return costs (…, tasks, optimizers) over those of the best optimizer of each task.

    Example:
        >>> ratios_of(np.array([[10.0, 20.0], [np.inf, np.inf]])).tolist()
        [[1.0, 2.0], [inf, inf]]
    """
    best = costs.min(axis=-1, keepdims=True)
    return np.where(np.isfinite(costs), costs / np.where(np.isfinite(best), best, 1), np.inf)


def areas_of(ratios: np.ndarray) -> np.ndarray:
    """Return the areas (…, optimizers) of the profiles of ratios (…, tasks, optimizers).

    A task counts for the share of [1, 4] in which τ is at least its ratio.

    Example:
        >>> areas_of(np.array([[1.0, 2.5], [1.0, np.inf]])).tolist()
        [1.0, 0.25]
    """
    return np.clip((MOST - ratios) / (MOST - 1), 0, 1).mean(axis=-2)


def drawn_ratios(costs: np.ndarray) -> np.ndarray:
    """Return the ratios (draws, tasks, optimizers) of drawn tasks and seeds.

    Args:
        costs: (tasks, optimizers, seeds) float, > 0.
    """
    rng = np.random.default_rng(0)
    tasks, _, seeds = costs.shape
    chosen = rng.integers(0, seeds, (DRAWS, *costs.shape))
    medians = np.median(np.take_along_axis(costs[None], chosen, axis=-1), axis=-1)
    rows = rng.integers(0, tasks, (DRAWS, tasks))
    return ratios_of(np.take_along_axis(medians, rows[..., None], axis=1))


def _ends(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2
