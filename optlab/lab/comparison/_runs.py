"""`Runs`: the runs of one optimizer over a grid of rates and seeds.

Arrays are (rates, seeds, …).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax

from optlab._divergence import has_diverged, is_lost
from optlab._types import Array
from optlab.lab.sweeps._trial import Trial
from optlab.lab.training._stoppers import held, value_at

MakeOptimizer = Callable[[Array], optax.GradientTransformation]
"""A function of the learning rate, a () float that may be traced."""


@dataclass(frozen=True)
class Runs:
    """The runs of one optimizer over the grid, evaluated at `steps`.

    Attributes:
        rates: (rates,) float, ascending.
        seeds: (seeds,) int.
        steps: (evaluations,) int, updates done; from 0 to the end of the run.
        train_loss: (rates, seeds, evaluations) float, the mean loss of the batches since the
            previous evaluation; at 0 the loss of the first batch before any update.
        validation: metric → (rates, seeds, evaluations) float, on the validation split; if the task
            has no splits, the metrics of the objective itself.
        test: metric → (rates, seeds) float, at the end, or with early stopping at the best
            evaluation; empty if the task has no test split.
        seconds: wall time, including compilation.
        score: the metric by which the runs are judged.
        maximize: whether a higher score is better.
        ended: (rates, seeds) int, the updates done where early stopping ended each run, after which
            its curves are NaN; None without early stopping.
        taken: (rates, seeds) int, the updates of each run's best evaluation; None likewise.
        reasons: rate → seed → why early stopping ended the run, as `EarlyStopping.reason` says it,
            or None; empty without early stopping.
        causes: the same in a word.
    """

    rates: np.ndarray
    seeds: np.ndarray
    steps: np.ndarray
    train_loss: np.ndarray
    validation: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    seconds: float
    score: str = "loss"
    maximize: bool = False
    ended: np.ndarray | None = None
    taken: np.ndarray | None = None
    reasons: Sequence[Sequence[str | None]] = ()
    causes: Sequence[Sequence[str | None]] = ()

    @property
    def early(self) -> dict[str, Any]:
        """What early stopping did, by the names of the attributes; empty without it."""
        names = ("ended", "taken", "reasons", "causes")
        return {} if self.taken is None else {name: getattr(self, name) for name in names}

    def final(self, metric: str) -> np.ndarray:
        """Return a validation metric where the score is taken, (rates, seeds) float."""
        return value_at(self.validation[metric], self.steps, self.taken)

    def held(self, metric: str) -> np.ndarray:
        """Return a validation metric, whose runs hold it after their end; as `validation`."""
        return held(self.validation[metric], self.steps, self.ended)

    @property
    def diverged(self) -> np.ndarray:
        """(rates, seeds) bool: which runs diverged.

        A run diverged if its final training or validation loss is not finite; or if one of them
        exceeds the first one, which is not near 0, by more than three times the size of the first,
        and the score did not become better. A positive loss then is more than four times the first.
        """
        scores = np.stack([self.validation[self.score][..., 0], self.final(self.score)], axis=-1)
        return has_diverged(self._losses, scores, maximize=self.maximize)

    @property
    def lost(self) -> np.ndarray:
        """(rates, seeds) bool: which runs ended in losses that are not finite."""
        return is_lost(self._losses)

    @property
    def scored(self) -> np.ndarray:
        """(rates, seeds) bool: which runs did not diverge, and have a score that is defined."""
        return ~self.diverged & np.isfinite(self.final(self.score))

    @property
    def _losses(self) -> list[np.ndarray]:
        return [held(self.train_loss, self.steps, self.ended), self.held("loss")]

    def eligible(self) -> np.ndarray:
        """(rates,) bool: rates at which every run has a score; without any, where one has."""
        whole = self.scored.all(axis=1)
        return whole if whole.any() else self.scored.any(axis=1)

    def eligible_means(self, metric: str, *, at_start: bool = False) -> np.ndarray:
        """Average a validation metric over the runs that have a score.

        Args:
            metric: a metric of the task.
            at_start: whether it is that before training, and not that where the score is taken.

        Returns:
            (rates,) float, NaN where the rate is not eligible.
        """
        scored = self.scored
        values = self.validation[metric][..., 0] if at_start else self.final(metric)
        totals = np.where(scored, values, 0).sum(axis=1, dtype=np.float64)
        means = np.full(len(totals), np.nan)
        return np.divide(totals, scored.sum(axis=1), out=means, where=self.eligible())

    @classmethod
    def of(
        cls,
        trials: Sequence[Trial],
        *,
        seeds: np.ndarray,
        score: str,
        maximize: bool,
        seconds: float,
    ) -> "Runs":
        """Return the runs of trials that differ in the learning rate alone, in ascending order.

        Args:
            trials: at least one.
            seeds: (seeds,) int.
            score: the metric by which the runs are judged.
            maximize: whether a higher score is better.
            seconds: wall time.
        """
        first, early = trials[0], {}
        if first.taken is not None:
            early = {
                "ended": np.stack([trial.ended for trial in trials]),
                "taken": np.stack([trial.taken for trial in trials]),
                "reasons": [trial.reasons for trial in trials],
                "causes": [trial.causes for trial in trials],
            }
        return cls(
            rates=np.array([trial.values["learning_rate"] for trial in trials]),
            seeds=seeds,
            steps=first.steps,
            train_loss=np.stack([trial.train_loss for trial in trials]),
            validation={
                name: np.stack([trial.validation[name] for trial in trials])
                for name in first.validation
            },
            test={name: np.stack([trial.test[name] for trial in trials]) for name in first.test},
            seconds=seconds,
            score=score,
            maximize=maximize,
            **early,
        )
