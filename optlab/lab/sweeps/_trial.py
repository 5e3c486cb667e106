"""`Trial`: one point of a sweep, and its result."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optlab._divergence import has_diverged, is_lost
from optlab.lab.training._runner import Curves
from optlab.lab.training._stoppers import held, value_at

COMPLETE, STOPPED, DIVERGED = "complete", "stopped", "diverged"
ENDED = "ended early"
"""How a trial ended: at its last update, stopped early by halving, by divergence, or as early
stopping ended all of its runs."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One point of a sweep, run from one or several seeds.

    Attributes:
        number: counted from 0; with the sweep's seed it determines the values and all randomness.
        values: name → value.
        status: "complete"; "stopped", if halving stopped it early; "ended early", if early stopping
            ended all of its runs; or "diverged".
        steps: (evaluations,) int, updates done at each evaluation.
        train_loss: (seeds, evaluations) float, the mean loss of the batches since the previous
            evaluation; at 0 the loss of the first batch before any update.
        validation: metric → (seeds, evaluations) float, on the validation split; if the task has no
            splits, the metrics of the objective itself.
        test: metric → (seeds,) float, on the test split at the end; empty in a sweep.
        score: the judged metric at the last evaluation, or with early stopping at the best one of
            each run, as the mean over the seeds; NaN if the trial diverged, or if the metric is not
            defined there, as F1 before any positive is not.
        ended: (seeds,) int, the updates done where early stopping ended each run, after which its
            curves are NaN; None without early stopping.
        taken: (seeds,) int, the updates of each run's best evaluation, where its score is taken;
            None likewise.
        reasons: why early stopping ended each run, as `EarlyStopping.reason` says it; None for a
            run that made all its updates. Empty without early stopping.
        causes: the same in a word, as `EarlyStopping.cause` says it.
    """

    number: int
    values: Mapping[str, Any]
    status: str
    steps: np.ndarray
    train_loss: np.ndarray
    validation: Mapping[str, np.ndarray]
    score: float
    test: Mapping[str, np.ndarray] = field(default_factory=dict)
    ended: np.ndarray | None = None
    taken: np.ndarray | None = None
    reasons: Sequence[str | None] = ()
    causes: Sequence[str | None] = ()

    @classmethod
    def of(
        cls,
        number: int,
        values: Mapping[str, Any],
        curves: Curves,
        status: str,
        *,
        score: str,
        maximize: bool,
    ) -> "Trial":
        """Return a trial that ends with this status, as diverged, or as ended early.

        Args:
            number: its number.
            values: name → value.
            curves: its curves.
            status: how it ended, if neither by divergence nor by early stopping of all runs.
            score: the judged metric.
            maximize: whether a higher score is better.
        """
        steps, ended = curves.steps, curves.ended
        scores = value_at(curves.validation[score], steps, curves.taken)
        curve = np.stack([curves.validation[score][..., 0], scores], axis=-1)
        losses = [held(x, steps, ended) for x in (curves.train_loss, curves.validation["loss"])]
        if has_diverged(losses, curve, maximize=maximize).any():
            status = DIVERGED
        elif curves.causes and None not in curves.causes:
            status = ENDED
        return cls(
            number,
            dict(values),
            status,
            steps=steps,
            train_loss=curves.train_loss,
            validation=curves.validation,
            score=math.nan if status == DIVERGED else float(scores.mean(dtype=float)),
            test=curves.test,
            ended=ended,
            taken=curves.taken,
            reasons=curves.reasons,
            causes=curves.causes,
        )

    @property
    def num_updates(self) -> int:
        """The number of updates done, of the longest of its runs."""
        return int(self.steps[-1] if self.ended is None else np.max(self.ended))

    def final(self, metric: str) -> np.ndarray:
        """Return a validation metric where the score is taken, (seeds,) float."""
        return value_at(self.validation[metric], self.steps, self.taken)

    def held(self, metric: str) -> np.ndarray:
        """Return a validation metric, (seeds, evaluations), whose runs hold it after their end."""
        return held(self.validation[metric], self.steps, self.ended)

    @property
    def diverged(self) -> bool:
        """Whether the trial diverged."""
        return self.status == DIVERGED

    @property
    def lost(self) -> bool:
        """Whether a run of the trial ended in losses that are not finite."""
        curves = (self.train_loss, self.validation["loss"])
        return bool(is_lost([held(x, self.steps, self.ended) for x in curves]).any())

    @property
    def has_score(self) -> bool:
        """Whether the trial can be judged: it did not diverge, and its score is defined."""
        return bool(np.isfinite(self.score))

    @property
    def stopped(self) -> bool:
        """Whether halving stopped the trial early."""
        return self.status == STOPPED

    @property
    def ended_early(self) -> bool:
        """Whether early stopping ended all runs of the trial, and none diverged."""
        return self.status == ENDED

    @property
    def loss(self) -> float:
        """The validation loss where the score is taken, as the mean over the seeds."""
        with np.errstate(invalid="ignore"):  # the mean of a diverged trial may be ∞ − ∞
            return float(self.final("loss").mean(dtype=float))


def rank(trials: Sequence[Trial], *, maximize: bool) -> list[Trial]:
    """Order trials from the best: by the updates that halving left them, score, loss and number.

    Trials whose score is not defined come after those with a score, and diverged ones after them.
    """

    def order(trial: Trial) -> tuple:
        if trial.diverged:
            return (2, trial.number)
        updates = -int(trial.steps[-1])
        if not trial.has_score:
            return (1, updates, trial.loss, trial.number)
        score = -trial.score if maximize else trial.score
        return (0, updates, score, trial.loss, trial.number)

    return sorted(trials, key=order)
