"""When a run has diverged: one definition for all tools and plots."""

import numpy as np

DIVERGENCE_FACTOR = 4
"""A positive loss has diverged if it is more than this many times its first value."""


def limit(first: np.ndarray) -> np.ndarray:
    """Return the highest loss of a run that has not diverged.

    Args:
        first: any shape, the first losses.

    Returns:
        The first loss, plus three times its size: four times a positive one.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return first + (DIVERGENCE_FACTOR - 1) * np.abs(first)


def has_diverged(losses: list[np.ndarray], scores: np.ndarray) -> np.ndarray:
    """Return which runs diverged.

    A run diverged if a loss or the score was ever not finite, or if the last number of a loss curve
    is above the `limit` of its first. Other metrics do not count.

    Args:
        losses: curves (…, evaluations) float, such as those of training and of validation.
        scores: (…, evaluations) float, the metric by which the runs are judged.

    Returns:
        (…) bool.
    """
    signs = [~np.isfinite(curve).all(axis=-1) for curve in (scores, *losses)]
    wide = [np.asarray(curve, np.float64) for curve in losses]
    signs += [curve[..., -1] > limit(curve[..., 0]) for curve in wide]
    return np.any(signs, axis=0)
