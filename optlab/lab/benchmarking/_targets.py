"""When a run reaches the target, and the target of a task that has none.

A target must not depend on the optimizers of a benchmark: another one that is added later would
then move it, and the results before it could not be kept. A task that sets no `Task.target`
therefore gets it by a fixed rule. Adam, with the published space, is tuned on `TRIALS` Halton
points from one seed. Of the best of these runs the target is the level that it held to its end:
the worst validation score in its last quarter. The same task, number of updates and versions give
the same target in every file.
"""

import numpy as np

TRIALS = 8
"""The trials of the reference."""

HELD = 0.25
"""The share of a run, at its end, over which the reference held the target."""


def level_held(steps: np.ndarray, scores: np.ndarray, *, maximize: bool) -> float:
    """Return the worst score in the last quarter of a run.

    Args:
        steps: (evaluations,) int, updates done, ascending.
        scores: (evaluations,) float, finite.
        maximize: whether a higher score is better.

    Example:
        >>> level_held(np.arange(5), np.array([0.1, 0.5, 0.9, 0.8, 0.85]), maximize=True)
        0.8
    """
    last = scores[steps >= (1 - HELD) * steps[-1]]
    return float(last.min() if maximize else last.max())


def updates_to(target: float, steps: np.ndarray, scores: np.ndarray, *, maximize: bool) -> float:
    """Return the updates until the first evaluation that met the target; ∞ if none did.

    The evaluation before the first update does not count.

    Args:
        target: the score to reach.
        steps: (evaluations,) int, updates done, from 0.
        scores: (evaluations,) float.
        maximize: whether a higher score is better.

    Example:
        >>> updates_to(0.8, np.array([0, 10, 20]), np.array([0.1, 0.7, 0.9]), maximize=True)
        20.0
    """
    met = scores >= target if maximize else scores <= target
    reached = steps[met & (steps > 0)]
    return float(reached[0]) if len(reached) else np.inf
