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

    A run diverged if the last number of a loss curve is not finite, or is above the `limit` of its
    first finite one; or if the last score is not finite, by which it cannot be judged. Numbers that
    were not finite on the way, after which the run went on, do not count, and other metrics do not.

    Args:
        losses: curves (…, evaluations) float, such as those of training and of validation.
        scores: (…, evaluations) float, the metric by which the runs are judged.

    Returns:
        (…) bool.
    """
    signs = [~np.isfinite(scores[..., -1])]
    for curve in losses:
        wide = np.asarray(curve, np.float64)
        begin = np.isfinite(wide).argmax(axis=-1)[..., None]
        first = np.take_along_axis(wide, begin, axis=-1)[..., 0]
        last = wide[..., -1]
        signs += [~np.isfinite(last), last > limit(first)]
    return np.any(signs, axis=0)
