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

from optlab import _checks
from optlab._types import Array
from optlab.lab._lanes import make_lanes
from optlab.lab._loop import TrainState, run_keys, step_data
from optlab.lab._task import Task

MakeOptimizer = Callable[[Array], optax.GradientTransformation]
"""A function of the learning rate, a () float that may be traced."""

DIVERGENCE_FACTOR = 4
"""A run has diverged if its loss rose to more than this many times its initial value."""


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
    """

    rates: np.ndarray
    seeds: np.ndarray
    steps: np.ndarray
    train_loss: np.ndarray
    validation: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    seconds: float

    @property
    def diverged(self) -> np.ndarray:
        """(rates, seeds) bool: which runs diverged.

        A run diverged if its loss or a metric was ever not finite, or if its final training or
        validation loss exceeds the first by more than three times the size of the first. A
        positive loss then is more than four times the first.
        """
        diverged = np.zeros(self.train_loss.shape[:-1], bool)
        for curve in (self.train_loss, *self.validation.values()):
            diverged |= ~np.isfinite(curve).all(axis=-1)
        for loss in (self.train_loss, self.validation["loss"]):
            first, last = loss[..., 0], loss[..., -1]
            with np.errstate(invalid="ignore", over="ignore"):
                diverged |= last - first > (DIVERGENCE_FACTOR - 1) * np.abs(first)
        return diverged


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


def checked_seeds(who: str, seeds: int | Sequence[int]) -> np.ndarray:
    """Return (seeds,) int: 0 … `seeds` − 1 for a number, or the listed seeds, which must differ."""
    if not isinstance(seeds, Sequence | np.ndarray):
        _checks.check_integer(who, "seeds", seeds, 1)
        return np.arange(seeds)
    if len(seeds) == 0:
        _checks.fail(who, "seeds must hold at least one", "none", "pass seeds such as [0, 1]")
    for seed in seeds:
        _checks.check_integer(who, "each of seeds", seed, 0)
    if len(set(seeds)) < len(seeds):
        _checks.fail(who, "seeds must differ", str(list(seeds)))
    return np.asarray(seeds)
