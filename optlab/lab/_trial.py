"""`Trial`: one point of a sweep, and its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optlab.lab._grid import DIVERGENCE_FACTOR

COMPLETE, STOPPED, DIVERGED = "complete", "stopped", "diverged"
"""How a trial ended: at its last update, stopped early by halving, or by divergence."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One point of a sweep, run from one or several seeds.

    Attributes:
        number: counted from 0; with the sweep's seed it determines the values and all randomness.
        values: name → value.
        status: "complete"; "stopped", if halving stopped it early; or "diverged".
        steps: (evaluations,) int, updates done at each evaluation.
        train_loss: (seeds, evaluations) float, the mean loss of the batches since the previous
            evaluation; NaN at 0.
        validation: metric → (seeds, evaluations) float, on the validation split; if the task has no
            splits, the metrics of the objective itself.
        score: the judged metric at the last evaluation, as the mean over the seeds; NaN if the
            trial diverged.
    """

    number: int
    values: Mapping[str, Any]
    status: str
    steps: np.ndarray
    train_loss: np.ndarray
    validation: Mapping[str, np.ndarray]
    score: float

    @property
    def num_updates(self) -> int:
        """The number of updates done."""
        return int(self.steps[-1])

    @property
    def loss(self) -> float:
        """The validation loss at the last evaluation, as the mean over the seeds."""
        with np.errstate(invalid="ignore"):  # the mean of a diverged trial may be ∞ − ∞
            return float(self.validation["loss"][:, -1].mean(dtype=float))


def has_diverged(train_loss: np.ndarray, loss: np.ndarray, scores: np.ndarray) -> bool:
    """Whether a curve (seeds, evaluations) of any seed diverged.

    A seed diverged if a loss or a score was ever not finite, or if the last training or validation
    loss exceeds the first by more than three times the size of the first.
    """
    losses = [train_loss[:, 1:], loss]  # there is no training loss before the first update
    if not all(np.isfinite(curves).all() for curves in (*losses, scores)):
        return True
    first, last = (np.array([curves[:, i] for curves in losses], float) for i in (0, -1))
    with np.errstate(over="ignore"):
        return bool((last - first > (DIVERGENCE_FACTOR - 1) * np.abs(first)).any())


def rank(trials: Sequence[Trial], *, maximize: bool) -> list[Trial]:
    """Order trials from the best: by updates done, then score, loss and number."""

    def order(trial: Trial) -> tuple:
        if trial.status == DIVERGED:
            return (True, trial.number)
        score = -trial.score if maximize else trial.score
        return (False, -trial.num_updates, score, trial.loss, trial.number)

    return sorted(trials, key=order)
