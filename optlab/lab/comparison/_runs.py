"""`Runs`: the runs of one optimizer over a grid of rates and seeds.

Arrays are (rates, seeds, …).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optax

from optlab._divergence import has_diverged
from optlab._types import Array
from optlab.lab.sweeps._trial import Trial

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
        test: metric → (rates, seeds) float, at the end; empty if the task has no test split.
        seconds: wall time, including compilation.
        score: the metric by which the runs are judged.
    """

    rates: np.ndarray
    seeds: np.ndarray
    steps: np.ndarray
    train_loss: np.ndarray
    validation: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    seconds: float
    score: str = "loss"

    @property
    def diverged(self) -> np.ndarray:
        """(rates, seeds) bool: which runs diverged.

        A run diverged if its final training or validation loss is not finite or exceeds the first
        one by more than three times the size of the first. A positive loss then is more than four
        times the first. A run whose final score is not finite cannot be judged, and counts as one
        that diverged.
        """
        losses = [self.train_loss, self.validation["loss"]]
        return has_diverged(losses, self.validation[self.score])

    def eligible(self) -> np.ndarray:
        """(rates,) bool: rates at which no run diverged; without any, where one did not."""
        whole = ~self.diverged.any(axis=1)
        return whole if whole.any() else ~self.diverged.all(axis=1)

    def eligible_means(self, metric: str, evaluation: int = -1) -> np.ndarray:
        """Average a validation metric over the seeds that did not diverge.

        Args:
            metric: a metric of the task.
            evaluation: the index of the evaluation; by default the last one.

        Returns:
            (rates,) float, NaN where the rate is not eligible.
        """
        converged = ~self.diverged
        values = self.validation[metric][..., evaluation]
        totals = np.where(converged, values, 0).sum(axis=1, dtype=np.float64)
        means = np.full(len(totals), np.nan)
        return np.divide(totals, converged.sum(axis=1), out=means, where=self.eligible())

    @classmethod
    def of(
        cls, trials: Sequence[Trial], *, seeds: np.ndarray, score: str, seconds: float
    ) -> "Runs":
        """Return the runs of trials that differ in the learning rate alone, in ascending order.

        Args:
            trials: at least one.
            seeds: (seeds,) int.
            score: the metric by which the runs are judged.
            seconds: wall time.
        """
        first = trials[0]
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
        )
