"""Train at every rate and from every seed at once: one compiled program per optimizer.

Arrays over a grid of runs are (rates, seeds, …). All runs of one seed are paired: they share their
initialization, their batches and their random keys, so that what differs between two of them is the
optimizer and the rate alone.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab._task import Batch, Task

MakeOptimizer = Callable[[Array], optax.GradientTransformation]
"""A function of the learning rate, a () float that may be traced."""

DIVERGENCE_FACTOR = 4
"""A run whose loss rose this many times above where it began has diverged."""


@dataclass(frozen=True)
class Runs:
    """What one optimizer did over the grid, evaluated at `steps`.

    Attributes:
        rates: (rates,) float, ascending.
        seeds: (seeds,) int.
        steps: (evaluations,) int, updates done; from 0 to the end of the run.
        train_loss: (rates, seeds, evaluations) float, the mean loss of the batches since the
            evaluation before; at 0 that of the first batch, before any update.
        validation: metric → (rates, seeds, evaluations) float, on the validation split, or of the
            objective itself where the task has no splits.
        test: metric → (rates, seeds) float, at the end; empty where the task has no such split.
        seconds: wall time, with compilation.
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

        Their loss or a metric was not finite at some time, or the final training or validation
        loss exceeds the first by more than three times its size, which is four times a positive
        one.
        """
        diverged = np.zeros(self.train_loss.shape[:-1], bool)
        for curve in (self.train_loss, *self.validation.values()):
            diverged |= ~np.isfinite(curve).all(axis=-1)
        for loss in (self.train_loss, self.validation["loss"]):
            first, last = loss[..., 0], loss[..., -1]
            with np.errstate(invalid="ignore", over="ignore"):
                diverged |= last - first > (DIVERGENCE_FACTOR - 1) * np.abs(first)
        return diverged


class _Start(NamedTuple):
    """How the runs of one seed begin; what they share."""

    params: Tree
    model_state: Tree
    loss: Array
    batch_key: Array
    noise_key: Array


class TrainState(NamedTuple):
    """What one run carries from update to update."""

    params: Tree
    model_state: Tree
    opt_state: optax.OptState


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
        optimizers: label → a function of the rate. The rate it gets is traced.
        rates: (rates,) float.
        seeds: each is the key `jax.random.key(seed)`, split in three for the initialization, for
            the batches, and, with the step folded in, for `Task.loss`.
        num_steps: updates a run, ≥ 1.
        eval_every: updates between two evaluations, ≥ 1; the last interval may be shorter.
        on_progress: called with the label and the updates done, at each evaluation.
    """
    steps = np.append(np.arange(0, num_steps, eval_every), num_steps)
    start = jax.jit(jax.vmap(partial(_start, task)))(jnp.asarray(seeds))
    evaluate = jax.jit(_over_grid(task.evaluate, rate_axes=(0, 0, None), seed_axes=(0, 0, None)))
    judged_on = task.splits["validation"] if task.splits else None

    def score(runs: TrainState, data: Any) -> Mapping[str, np.ndarray]:
        return jax.device_get(evaluate(runs.params, runs.model_state, data))

    for label, make_optimizer in optimizers.items():
        began = time.perf_counter()
        begin, advance = _compiled(task, make_optimizer)
        runs = begin(jnp.asarray(rates), start)
        losses = [np.broadcast_to(start.loss, (len(rates), len(seeds)))]
        metrics = [score(runs, judged_on)]
        for first, stop in pairwise(steps):
            runs, loss = advance(runs, jnp.asarray(rates), start, first, stop)
            losses.append(np.asarray(loss))
            metrics.append(score(runs, judged_on))
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


def checked_seeds(who: str, seeds: int | Sequence[int]) -> np.ndarray:
    """Return (seeds,) int: so many from 0, or those given, which must differ."""
    if not isinstance(seeds, Sequence | np.ndarray):
        _checks.check_count(who, "seeds", seeds, 1)
        return np.arange(seeds)
    if len(seeds) == 0:
        _checks.fail(who, "seeds must hold at least one", "none", "pass seeds such as [0, 1]")
    for seed in seeds:
        _checks.check_count(who, "each of seeds", seed, 0)
    if len(set(seeds)) < len(seeds):
        _checks.fail(who, "seeds must differ", str(list(seeds)))
    return np.asarray(seeds)


def _start(task: Task, seed: Array) -> _Start:
    init_key, batch_key, noise_key = jax.random.split(jax.random.key(seed), 3)
    params, model_state = task.init(init_key)
    loss, _ = task.loss(
        params, model_state, task.batch(batch_key, jnp.int32(0)), jax.random.fold_in(noise_key, 0)
    )
    return _Start(params, model_state, loss, batch_key, noise_key)


def train_step(
    task: Task, optimizer: optax.GradientTransformation, run: TrainState, batch: Batch, key: Array
) -> tuple[TrainState, Array]:
    """Return a single run after one update, and the loss before it."""

    def loss_of(params: Tree) -> tuple[Array, Tree]:
        return task.loss(params, run.model_state, batch, key)

    (loss, model_state), grads = jax.value_and_grad(loss_of, has_aux=True)(run.params)
    # Line searches and step sizes from the loss ask for more than the gradient.
    optimizer = optax.with_extra_args_support(optimizer)
    updates, opt_state = optimizer.update(
        grads,
        run.opt_state,
        run.params,
        value=loss,
        grad=grads,
        value_fn=lambda params: loss_of(params)[0],
    )
    return TrainState(optax.apply_updates(run.params, updates), model_state, opt_state), loss


def _compiled(task: Task, make_optimizer: MakeOptimizer) -> tuple[Callable, Callable]:
    """Return the two programs of one optimizer: begin all runs, and advance all of them.

    The first and last update are arguments of `advance`, so that one program serves every interval
    between evaluations, whatever its length.
    """

    def begin_one(rate: Array, start: _Start) -> TrainState:
        opt_state = make_optimizer(rate).init(start.params)
        return TrainState(start.params, start.model_state, opt_state)

    def update_one(
        rate: Array, run: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, Array]:
        return train_step(task, make_optimizer(rate), run, batch, key)

    begin_all = _over_grid(begin_one, rate_axes=(0, None), seed_axes=(None, 0))
    # Batches vary by seed only: made once per seed, they are shared by all rates.
    update_all = _over_grid(update_one, rate_axes=(0, 0, None, None), seed_axes=(None, 0, 0, 0))

    def advance(
        runs: TrainState, rates: Array, start: _Start, first: Array, stop: Array
    ) -> tuple[TrainState, Array]:
        def body(step: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            runs, total = carry
            batches = jax.vmap(task.batch, in_axes=(0, None))(start.batch_key, step)
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(start.noise_key, step)
            runs, losses = update_all(rates, runs, batches, keys)
            return runs, total + losses

        total = jnp.zeros((len(rates), len(start.loss)), start.loss.dtype)
        runs, total = lax.fori_loop(first, stop, body, (runs, total))
        return runs, total / (stop - first)

    return jax.jit(begin_all), jax.jit(advance, donate_argnums=0)


def _over_grid(function: Callable, rate_axes: tuple, seed_axes: tuple) -> Callable:
    """Map over rates, then seeds; None marks what does not vary."""
    return jax.vmap(jax.vmap(function, in_axes=seed_axes), in_axes=rate_axes)
