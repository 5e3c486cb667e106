"""One run, as pure functions: its random keys, how it begins, and one update.

All training in the lab is built from these functions, under `jit`, in loops and in lanes, so that
the same key gives the same run everywhere.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab.tasks._task import Batch, Task
from optlab.native import step as native_step
from optlab.rules import placed_like
from optlab.rules._state import is_rule_state
from optlab.wrappers import AccumulateState, SkipNonfiniteState
from optlab.wrappers._common import stay_finite
from optlab.wrappers._loss_scale import gradients_of


class Keys(NamedTuple):
    """The random keys of one run."""

    init: Array
    batch: Array
    noise: Array


class Judged(NamedTuple):
    """The last evaluation of a run, for rules that read its score, such as `reduce_on_plateau`.

    Attributes:
        score: () float, finite; the last score that was.
        number: () int32, how many scores were finite so far; 0 before there is one.
    """

    score: Array | np.ndarray
    number: Array | np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> "Judged":
        """Return the last of some scores, (…, evaluations) float, that is finite."""
        finite = np.isfinite(scores)
        ranks = np.where(finite, np.arange(1, scores.shape[-1] + 1), 0)
        last = np.maximum(ranks.max(axis=-1, initial=0, keepdims=True) - 1, 0)
        score = np.zeros(scores.shape[:-1])
        if scores.shape[-1]:
            score = np.take_along_axis(np.where(finite, scores, 0), last, axis=-1)[..., 0]
        number = finite.sum(axis=-1).astype(np.int32)
        return cls(np.asarray(score, jnp.result_type(float)), np.asarray(number))


class TrainState(NamedTuple):
    """The state that one run carries from update to update."""

    params: Tree
    model_state: Tree
    opt_state: optax.OptState


def check_key(who: str, key: Any) -> None:
    """Require one random key, of the new or of the old style of JAX."""
    try:
        jax.random.split(key)
    except (TypeError, ValueError):
        got = f"{key.dtype}{list(key.shape)}" if isinstance(key, jax.Array) else repr(key)
        _checks.fail(who, "key must be one random key", got, "pass jax.random.key(0)")


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


def run_keys(key: Array) -> Keys:
    """Split the key of a run into keys for the initialization, the batches and `Task.loss`."""
    return Keys(*jax.random.split(key, 3))


def seed_keys(seeds: Array) -> Keys:
    """Return the keys of the runs `jax.random.key(seed)`, each (seeds,)."""
    return jax.vmap(lambda seed: run_keys(jax.random.key(seed)))(seeds)


def begin(task: Task, optimizer: optax.GradientTransformation, keys: Keys) -> TrainState:
    """Return a run before its first update."""
    params, model_state = task.init(keys.init)
    return TrainState(params, model_state, optimizer.init(params))


def step_data(task: Task, keys: Keys, step: Array) -> tuple[Batch, Array]:
    """Return the batch of an update, counted from 0, and the key for `Task.loss`."""
    return task.batch(keys.batch, step), jax.random.fold_in(keys.noise, step)


def update(
    task: Task, optimizer: optax.GradientTransformation, keys: Keys, run: TrainState, step: Array
) -> tuple[TrainState, Array]:
    """Return the run after the update numbered `step`, and the loss before it."""
    return update_on(task, optimizer, run, *step_data(task, keys, step))


def update_on(
    task: Task,
    optimizer: optax.GradientTransformation,
    run: TrainState,
    batch: Batch,
    key: Array,
    judged: Judged | None = None,
    *,
    native: bool = False,
) -> tuple[TrainState, Array]:
    """Return the run after one update on this batch, and the loss before it.

    Args:
        task: the problem.
        optimizer: the optimizer.
        run: the run before the update.
        batch: the batch.
        key: the key for `Task.loss`.
        judged: the last evaluation; None where there is none.
        native: whether `optlab.native.step` makes the step.
    """

    def loss_of(params: Tree) -> tuple[Array, Tree]:
        return task.loss(params, run.model_state, batch, key)

    loss, model_state, scaled, grads = gradients_of(loss_of, run.params, run.opt_state)
    # Line searches and step sizes that depend on the loss need more arguments than the gradient.
    extra_args = {
        "value": loss,
        "grad": grads,
        "value_fn": lambda params: loss_of(params)[0],
        **_evaluation(task, run.opt_state, judged or Judged.of(np.zeros(0))),
    }
    if native:
        step = native_step(optimizer)
        params, opt_state = step(scaled, run.opt_state, run.params, **extra_args)
    else:
        optimizer = optax.with_extra_args_support(optimizer)
        updates, opt_state = optimizer.update(scaled, run.opt_state, run.params, **extra_args)
        params = optax.apply_updates(run.params, updates)
    if outlives_bad_batches(opt_state):
        model_state = _sound(model_state, run.model_state)
    # On explicit axes of a mesh, updates are divided as a state that is divided over more of them.
    params = placed_like(params, run.params)
    return TrainState(params, model_state, opt_state), loss


def _evaluation(task: Task, opt_state: optax.OptState, judged: Judged) -> dict[str, Any]:
    """Return the arguments of an update for rules that read evaluations, if there are any."""
    nodes = jax.tree.leaves(opt_state, is_leaf=is_rule_state)
    if not any(is_rule_state(node) and "evaluation" in node._fields for node in nodes):
        return {}
    return {"score": judged.score, "evaluation": judged.number, "maximize": task.maximize}


def outlives_bad_batches(opt_state: optax.OptState) -> bool:
    """Return whether the parameters stay as they are at gradients that are not finite."""
    kinds = (SkipNonfiniteState, AccumulateState, optax.ApplyIfFiniteState, optax.MultiStepsState)

    def is_one(node: Any) -> bool:
        return isinstance(node, kinds)

    return any(map(is_one, jax.tree.leaves(opt_state, is_leaf=is_one)))


def _sound(new: Tree, old: Tree) -> Tree:
    """Return the new state of the model; the old numbers if finite ones of it became others.

    A wrapper keeps a bad batch from the parameters, but nothing keeps it from running statistics.
    """
    sound = stay_finite(without_keys(new), without_keys(old))

    def choose(n: Array, o: Array) -> Array:
        return jnp.where(sound, n, o) if jnp.issubdtype(n.dtype, jnp.inexact) else n

    return jax.tree.map(choose, new, old)


def losses_at_start(
    task: Task, keys: Keys, batches: Sequence[Batch] | int, *, share: float = 1.0
) -> np.ndarray:
    """Return the losses (seeds, batches) before the first update.

    Args:
        task: the problem.
        keys: the keys of the runs, each (seeds,).
        batches: the batches of a loader, or the number of the first batches of `Task.batch`.
        share: the part of each batch that is taken, in (0, 1].
    """
    stacked = None
    if not isinstance(batches, int):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    count = batches if isinstance(batches, int) else len(batches)

    def losses(keys: Keys, stacked: Batch | None) -> Array:
        params, model_state = task.init(keys.init)

        def loss(step: Array) -> Array:
            noise = jax.random.fold_in(keys.noise, step)
            if stacked is None:
                batch = task.batch(keys.batch, step)
            else:
                batch = jax.tree.map(lambda x: x[step], stacked)
            if share < 1:
                batch = jax.tree.map(lambda x: x[: int(share * len(x))], batch)
            return task.loss(params, model_state, batch, noise)[0]

        return lax.map(loss, jnp.arange(count))

    # Seed after seed, because kernels that differ between lanes make convolutions slow on a CPU.
    program = jax.jit(losses)
    runs = zip(*keys, strict=True)
    return np.stack([program(Keys(*run), stacked) for run in runs])


def without_keys(tree: Tree) -> Tree:
    """Return a tree in which random keys are replaced by plain arrays."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def with_keys(tree: Tree, like: Tree) -> Tree:
    """Undo `without_keys`; `like` has a key wherever the original tree had one."""

    def restore(leaf: Array, like: Array) -> Array:
        if not _is_key(like):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))

    return jax.tree.map(restore, tree, like)


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
