"""Train at every rate and from every seed at once: one compiled program per optimizer.

Arrays over a grid of runs are (rates, seeds, …); each rate is a lane.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab._divergence import has_diverged
from optlab._types import Array
from optlab.lab.tasks._task import Task
from optlab.lab.training._lanes import make_lanes
from optlab.lab.training._loop import TrainState, run_keys, step_data

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

        A run diverged if a loss or the score was ever not finite, or if its final training or
        validation loss exceeds the first by more than three times the size of the first. A
        positive loss then is more than four times the first.
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


def train_grid(
    task: Task,
    optimizers: Mapping[str, MakeOptimizer],
    *,
    rates: np.ndarray,
    seeds: Sequence[int],
    num_steps: int,
    eval_every: int,
    on_progress: Callable[[str, int], None] | None = None,
) -> Iterator[tuple[str, Runs]]:
    """Yield each optimizer's label and runs, as soon as they end.

    Args:
        task: the problem.
        optimizers: label → a function of the rate, which is traced.
        rates: (rates,) float.
        seeds: for each of them, a run with the key `jax.random.key(seed)`.
        num_steps: updates per run, ≥ 1.
        eval_every: updates between two evaluations, ≥ 1; the last interval may be shorter.
        on_progress: called with the label and the updates done, at each evaluation.
    """
    steps = np.append(np.arange(0, num_steps, eval_every), num_steps)
    lane_rates, lane_seeds = jnp.asarray(rates), jnp.asarray(seeds)
    first_losses = jax.jit(jax.vmap(partial(_first_loss, task)))(lane_seeds)
    # Evaluation does not depend on the optimizer, so that all optimizers share one compilation.
    evaluate = make_lanes(lambda rate: (task, optax.identity())).evaluate
    validation_data = task.splits["validation"] if task.splits else None

    def score(runs: TrainState, data: Any) -> Mapping[str, np.ndarray]:
        return jax.device_get(evaluate(runs._replace(opt_state=()), lane_rates, data))

    for label, make_optimizer in optimizers.items():
        began = time.perf_counter()
        lanes = make_lanes(partial(_make_run, task, make_optimizer))
        runs = lanes.begin(lane_rates, lane_seeds)
        losses = [np.broadcast_to(first_losses, (len(rates), len(seeds)))]
        metrics = [score(runs, validation_data)]
        for first, stop in pairwise(steps):
            runs, loss = lanes.advance(runs, lane_rates, lane_seeds, first, stop)
            losses.append(np.asarray(loss))
            metrics.append(score(runs, validation_data))
            if on_progress:
                on_progress(label, int(stop))
        results = Runs(
            rates=np.asarray(rates),
            seeds=np.asarray(seeds),
            steps=steps,
            train_loss=np.stack(losses, axis=-1),
            validation=jax.tree.map(lambda *values: np.stack(values, axis=-1), *metrics),
            test=score(runs, task.splits["test"]) if "test" in task.splits else {},
            seconds=time.perf_counter() - began,
            score=task.score,
        )
        yield label, results


def _make_run(
    task: Task, make_optimizer: MakeOptimizer, rate: Array
) -> tuple[Task, optax.GradientTransformation]:
    return task, make_optimizer(rate)


def _first_loss(task: Task, seed: Array) -> Array:
    keys = run_keys(jax.random.key(seed))
    params, model_state = task.init(keys.init)
    loss, _ = task.loss(params, model_state, *step_data(task, keys, jnp.int32(0)))
    return loss
