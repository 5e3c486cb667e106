"""When a run has diverged: one definition for all tools and plots."""

import numpy as np

DIVERGENCE_FACTOR = 4
"""A positive loss is too high if it is more than this many times its first value."""

NEAR_ZERO = 1e-6
"""A first loss of less than this size is no measure of how high a later one is."""


def limit(first: np.ndarray) -> np.ndarray:
    """Return the highest loss of a run that has not diverged.

    Args:
        first: any shape, the first losses.

    Returns:
        The first loss, plus three times its size: four times a positive one.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return first + (DIVERGENCE_FACTOR - 1) * np.abs(first)


def is_lost(losses: list[np.ndarray]) -> np.ndarray:
    """Return which runs ended in losses that are not finite.

    Numbers that were not finite on the way, after which the run went on, do not count.

    Args:
        losses: curves (…, evaluations) float, such as those of training and of validation.

    Returns:
        (…) bool.
    """
    return np.any([~np.isfinite(curve[..., -1]) for curve in losses], axis=0)


def has_diverged(losses: list[np.ndarray], scores: np.ndarray, *, maximize: bool) -> np.ndarray:
    """Return which runs diverged.

    A run diverged if it is lost: the last number of a loss curve is not finite. It also diverged if
    that number is above the `limit` of the curve's first finite one, which is not near 0, and the
    score did not become better. A score that is not defined, such as F1 before any positive, says
    neither: then the losses decide.

    Args:
        losses: curves (…, evaluations) float, such as those of training and of validation.
        scores: (…, evaluations) float, the metric by which the runs are judged.
        maximize: whether a higher score is better.

    Returns:
        (…) bool.

    Example:
        A loss that begins at 1 and ends at 9, without and with progress of the score:

        >>> has_diverged([np.array([[1.0, 9.0], [1.0, 9.0]])], np.array([[0.5, 0.4], [0.5, 0.9]]),
        ...              maximize=True)
        array([ True, False])
    """
    high = np.zeros(scores.shape[:-1], bool)
    for curve in losses:
        wide = np.asarray(curve, np.float64)
        begin = np.isfinite(wide).argmax(axis=-1)[..., None]
        first = np.take_along_axis(wide, begin, axis=-1)[..., 0]
        high |= (np.abs(first) >= NEAR_ZERO) & (wide[..., -1] > limit(first))
    first, last = scores[..., 0], scores[..., -1]
    is_better = last > first if maximize else last < first
    return is_lost(losses) | (high & ~is_better)
