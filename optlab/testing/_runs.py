"""The trees that checks work on, and trajectories over them.

All checks of a row share one small tree, so that they share compiled functions, too.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab._types import Tree
from optlab.registry import Row

UPDATES = 1000
CHECKED_UPDATES = (1, 2, 7, UPDATES)

FEW_ROUNDINGS = 32 * float(np.finfo(np.float32).eps)
"""How far two compilations of the same arithmetic may differ, relative to a leaf's largest element.

A compiler may contract a·b + c to one rounding, and reorders nothing else. A difference of two
averages can multiply the few roundings that differ.
"""


def random_tree(
    row: Row, seed: int, *leading: int, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """Return normal numbers in the row's shapes, behind leading axes."""
    rng = np.random.default_rng(seed)
    return {
        key: rng.normal(size=leading + shape).astype(dtype) for key, shape in row.shapes.items()
    }


@functools.lru_cache
def parameters(row: Row) -> dict[str, Any]:
    """Return the parameters that the row is checked on, as JAX arrays."""
    return {key: jnp.asarray(x) for key, x in random_tree(row, 0).items()}


@functools.lru_cache
def gradients(row: Row) -> dict[str, np.ndarray]:
    """Return 1000 gradients, whose sizes differ between coordinates, by default from 1e-2 to 1e2.

    Adaptive rules must bring them to one scale.
    """
    sizes = {
        key: np.logspace(-row.spread, row.spread, max(1, int(np.prod(shape)))).reshape(shape)
        for key, shape in row.shapes.items()
    }
    return {key: g * sizes[key].astype(g.dtype) for key, g in random_tree(row, 1, UPDATES).items()}


def at(tree: Tree, index: int) -> Tree:
    """Return the tree at one place of the leading axis."""
    return jax.tree.map(lambda x: x[index], tree)


@functools.lru_cache
def gradient(row: Row) -> dict[str, Any]:
    """Return the first gradient, as JAX arrays."""
    return jax.tree.map(jnp.asarray, at(gradients(row), 0))


def largest_key(row: Row) -> str:
    """Return the key of the leaf with the most axes."""
    return max(row.shapes, key=lambda key: len(row.shapes[key]))


def smallest_key(row: Row) -> str:
    """Return the key of the leaf with the fewest axes."""
    return min(list(row.shapes)[::-1], key=lambda key: len(row.shapes[key]))


def double(tree: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a tree in float64."""
    return {key: np.asarray(x, np.float64) for key, x in tree.items()}


def make(row: Row, **options: Any) -> Any:
    """Make a row's transformation from its first sample and further options."""
    return row.make(**row.arguments(**options))


@functools.lru_cache
def compiled(row: Row) -> Any:
    """Return the first sample's transformation, with its update compiled."""
    tx = make(row)
    return optax.GradientTransformation(tx.init, jax.jit(tx.update))


@functools.lru_cache
def first_three(row: Row) -> tuple[list[Tree], Any]:
    """Return the first three compiled updates and the state after them."""
    return three_updates(row, compiled(row))


def three_updates(
    row: Row, tx: Any, params: Tree = None, grads: Tree = None
) -> tuple[list[Tree], Any]:
    """Return three updates and the state after them, one call after the other."""
    params = parameters(row) if params is None else params
    grads = gradients(row) if grads is None else grads
    state, updates = tx.init(params), []
    for i in range(3):
        g = jax.tree.map(jnp.asarray, at(grads, i))
        update, state = tx.update(g, state, params)
        updates.append(update)
    return updates, state


def trajectory(
    tx: optax.GradientTransformation,
    grads: Tree,
    params: Tree,
    outcome: Callable[[Any, Any], Any] = lambda updates, state: updates,
) -> tuple[Any, Any]:
    """Run all updates in one scan at fixed parameters; return their outcomes and the last state."""

    def body(state: Any, g: Tree) -> tuple[Any, Any]:
        u, state = tx.update(g, state, params)
        return state, outcome(u, state)

    state, outcomes = jax.lax.scan(body, tx.init(params), grads)
    return outcomes, state


def reference_trajectory(
    row: Row,
    options: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    grads: Mapping[str, np.ndarray],
    steps: Iterable[int],
    values: Callable[[int], Mapping[str, Any]] = lambda t: {},
) -> dict[int, list[np.ndarray]]:
    """Return the reference's outcomes at some steps, from 1, each a list of arrays."""
    assert row.reference is not None
    arrays = [np.asarray(p, np.float64) for p in params.values()]
    wanted, state = {}, None
    for t in range(1, max(steps) + 1):
        g = [np.asarray(g[t - 1], np.float64) for g in grads.values()]
        u, state = row.reference(g, arrays, state, t, **{**options, **values(t)})
        if t in steps:
            wanted[t] = u
    return wanted


@functools.lru_cache
def wanted_updates(row: Row, sample: int) -> dict[int, list[np.ndarray]]:
    """Return the reference's outcomes for one sample, for both precisions."""
    options = {**row.fixed, **row.arguments(**row.samples[sample])}
    return reference_trajectory(row, options, parameters(row), gradients(row), CHECKED_UPDATES)


def run_samples(row: Row, grads: Tree, params: Tree) -> tuple[list[Any], Any]:
    """Return the outcomes of all samples, and the first one's updates and states.

    One program for all samples compiles faster than one for each.
    """

    @jax.jit
    def run(grads: Tree, params: Tree) -> Any:
        first, *others = (make(row, **options) for options in row.samples)
        (outcome, *rest), _ = trajectory(
            first, grads, params, lambda u, state: (row.outcome(u, state), u, state)
        )
        of_others = [trajectory(tx, grads, params, row.outcome)[0] for tx in others]
        return [outcome, *of_others], rest

    return run(grads, params)


@functools.lru_cache
def single_runs(row: Row) -> tuple[list[Any], Any]:
    """Return `run_samples` in float32."""
    return run_samples(row, gradients(row), parameters(row))


def numbers(tree: Tree) -> list[Any]:
    """Return the leaves of a tree that are arrays of numbers."""
    return [
        leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.number)
    ]
