"""`Trial`: one point of a sweep, and its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
            evaluation; at 0 the loss of the first batch before any update.
        validation: metric → (seeds, evaluations) float, on the validation split; if the task has no
            splits, the metrics of the objective itself.
        test: metric → (seeds,) float, on the test split at the end; empty in a sweep.
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
    test: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_updates(self) -> int:
        """The number of updates done."""
        return int(self.steps[-1])

    @property
    def diverged(self) -> bool:
        """Whether the trial diverged."""
        return self.status == DIVERGED

    @property
    def stopped(self) -> bool:
        """Whether halving stopped the trial early."""
        return self.status == STOPPED

    @property
    def loss(self) -> float:
        """The validation loss at the last evaluation, as the mean over the seeds."""
        with np.errstate(invalid="ignore"):  # the mean of a diverged trial may be ∞ − ∞
            return float(self.validation["loss"][:, -1].mean(dtype=float))


def rank(trials: Sequence[Trial], *, maximize: bool) -> list[Trial]:
    """Order trials from the best: by updates done, then score, loss and number."""

    def order(trial: Trial) -> tuple:
        if trial.diverged:
            return (True, trial.number)
        score = -trial.score if maximize else trial.score
        return (False, -trial.num_updates, score, trial.loss, trial.number)

    return sorted(trials, key=order)
