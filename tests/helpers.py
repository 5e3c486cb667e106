"""What several test files need: random trees, comparisons of trees, steps, and a small task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab.lab import Task

# Trees


def random_tree(rng, shapes):
    """Return a tree of float32 normal numbers, an array for each shape of a tree of tuples."""
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def spoiled(tree, value=np.nan):
    """Return the tree with one element of `w` replaced."""
    w = np.array(tree["w"])
    w[4, 2] = value
    return {**tree, "w": w}


def bits(leaf):
    """Return all that an array or a random key consists of."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()


def assert_same_bits(a, b):
    """Require that two trees are the same to the last bit, the signs of their zeros among them."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert list(map(bits, jax.tree.leaves(a))) == list(map(bits, jax.tree.leaves(b)))


def assert_identical(a, b):
    """Require that two trees have the same types and equal values; −0 equals 0."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# Transformations


def stepping(tx):
    """Return the function that makes one step: gradients, parameters, state → the new two."""

    def step(g, params, state, **extra_args):
        updates, state = tx.update(g, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


def seen():
    """Return a transformation whose state is the last gradients it received."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params),
        lambda updates, state, params=None: (updates, updates),
    )


def one_of_each_kind(rows, but=None):
    """Return the names of rows as parameters of tests of the machinery, which treats a kind alike.

    Fast are the exemplars, a rule with slots of other shapes, one with groups inside and one with
    several arrays in a slot. The others repeat a kind, and `but` takes longer than all of them.
    """
    kinds = {name for name, row in rows.items() if row.exemplar} | {"adafactor", "muon", "shampoo"}
    repeated = (pytest.mark.slow, pytest.mark.other_rows)
    marks = {name: () if name in kinds else repeated for name in rows} | {but: repeated}
    return [pytest.param(name, marks=marks[name]) for name in rows]


# A task


def parabola(**changes):
    """Return the task of descending |x|² from 2 in three dimensions."""
    task = Task(
        name="parabola",
        init=lambda key: (jnp.full((3,), 2.0), ()),
        loss=lambda x, state, batch, key: (jnp.sum(x**2), state),
        batch=lambda key, step: (),
        evaluate=lambda x, state, data: {"loss": jnp.sum(x**2)},
    )
    return dataclasses.replace(task, **changes)


def numbers(key, step=0, width=2):
    """Return numbers of [0, 1), others for each key and step.

    Those of `jax.random` would take longer to compile than all the rest of a small task.
    """
    weyl = (width * step + jnp.arange(width)).astype(jnp.uint32) * jnp.uint32(2654435769)
    return ((jax.random.key_data(key)[-1] + weyl) >> 8).astype(jnp.float32) / 2**24


def noise_of(key, step=0, width=2):
    """Return numbers of [−2, 2), with which a product by a power of two is exact."""
    return 4 * (numbers(key, step, width) - 0.5)


def bowl(steepness=1.0, noise=0.1, width=2, **changes):
    """Return the task of descending ½·steepness·|x|² in `width` dimensions, through noise on x."""

    def height(x):
        return 0.5 * steepness * jnp.sum(x**2)

    task = Task(
        name="bowl",
        init=lambda key: (1 + numbers(key, 0, width), ()),
        loss=lambda x, state, batch, key: (height(x + noise * batch), state),
        batch=lambda key, step: noise_of(key, step, width),
        evaluate=lambda x, state, data: {"loss": height(x)},
        steps=12,
        eval_every=4,
    )
    return dataclasses.replace(task, **changes)
