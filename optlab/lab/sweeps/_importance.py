"""How much each hyperparameter of a sweep matters: the share of the trials' ranks it explains.

The trials are ranked, the best first; diverged trials share the last ranks. A curve is fitted to
the ranks r as a function of one hyperparameter alone: a parabola in the position u of a number in
its range, a mean for each choice. With k coefficients beside the constant and n trials the
importance is the adjusted share of explained variance

    1 − (1 − R²) · (n − 1) / (n − k − 1),    R² = 1 − Σ (r − fit)² / Σ (r − mean)²

cut to [0, 1]. What only shows in combination with others is not in it. It is sure if at most a
share of 0.05 / d of 1,000 random orders of the ranks, for d hyperparameters, reach this R².
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optlab.lab.sweeps._space import Range

ORDERS = 1000
"""The number of random orders that the ranks are compared with."""

FEWEST = 8
"""The least number of trials of which anything is said."""

LEVEL = 0.05
"""The share of random orders that may explain as much, over all hyperparameters together."""


class Importance(NamedTuple):
    """How much one hyperparameter matters.

    Attributes:
        share: the share of the variance of the ranks that it explains alone, in [0, 1]; NaN with
            too few trials.
        sure: whether chance hardly explains as much.
    """

    share: float
    sure: bool


def importances(
    space: Mapping[str, Range], values: Sequence[Mapping[str, Any]], ranks: np.ndarray
) -> dict[str, Importance]:
    """Return name → importance.

    Args:
        space: name → range.
        values: the values of each trial.
        ranks: (trials,) float, the rank of each trial; equal trials share their mean rank.
    """
    rng = np.random.default_rng(0)
    centred = ranks - ranks.mean()
    orders = np.stack([rng.permutation(centred) for _ in range(ORDERS)], axis=1)
    return {
        name: _importance(_features(r, [v[name] for v in values]), centred, orders, len(space))
        for name, r in space.items()
    }


def _importance(features: np.ndarray, ranks: np.ndarray, orders: np.ndarray, d: int) -> Importance:
    basis, sizes, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    basis = basis[:, sizes > 1e-6]
    n, k = basis.shape
    whole = (ranks**2).sum()
    if n < FEWEST or n <= k + 2 or not k or not whole:
        return Importance(float("nan"), False)
    explained = ((basis.T @ ranks) ** 2).sum() / whole
    by_chance = ((basis.T @ orders) ** 2).sum(axis=0) / whole
    share = 1 - (1 - explained) * (n - 1) / (n - k - 1)
    as_good = (by_chance >= explained - 1e-12).mean()
    return Importance(float(np.clip(share, 0, 1)), bool(as_good <= LEVEL / d))


def _features(values: Range, selected: Sequence[Any]) -> np.ndarray:
    """Return what a rank is fitted to: (trials, coefficients beside the constant)."""
    positions = np.array([values.position(value) for value in selected])
    if values.is_choice:
        return (positions[:, None] == np.unique(positions)).astype(float)
    return np.stack([positions, positions**2], axis=1)
