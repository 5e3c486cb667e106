"""Wrappers in loops: the steps of XLA, no copy of the parameters, and nothing written at rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from helpers import assert_same_bits, random_tree, stepping
from native.steps import assert_close, run, stepping_native

rng = np.random.default_rng(0)
SHAPES = {"b": (40,), "w": (600, 500)}
PARAMS = jax.tree.map(jnp.asarray, random_tree(rng, SHAPES))
GRADS = [random_tree(rng, SHAPES) for _ in range(4)]
GRADS[2]["w"][3, 4] = np.nan
CLIP = optlab.clip_by_global_norm(1.0)
ADAM = optlab.adam(0.1)
WRAPPED = {
    "accumulate": optlab.accumulate(optax.chain(CLIP, ADAM), 2),
    "dynamic_loss_scale": optlab.dynamic_loss_scale(ADAM),
    "monitor": optlab.monitor(ADAM, clipping=CLIP),
    "multi_steps": optax.MultiSteps(ADAM, 2).gradient_transformation(),
    "skip_nonfinite": optlab.skip_nonfinite(ADAM),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_makes_the_steps_of_xla_without_a_copy_of_the_parameters(name):
    tx = WRAPPED[name]
    grads = GRADS[:2] if name in ("monitor", "multi_steps") else GRADS  # the third holds a NaN
    native = jax.jit(stepping_native(tx), donate_argnums=(1, 2))
    start = jax.tree.map(jnp.copy, PARAMS)
    assert_close(run(native, tx, start, grads), run(jax.jit(stepping(tx)), tx, PARAMS, grads))
    args = GRADS[0], PARAMS, tx.init(PARAMS)
    memory = native.lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.01 * sum(p.nbytes for p in PARAMS.values())


@pytest.mark.parametrize("donated", [True, False])
def test_what_a_step_leaves_alone_keeps_its_bits(donated):
    tx = optlab.accumulate(ADAM, 2)
    params = {"w": jnp.asarray([[0.0, -0.0, 1e-42, np.inf]] * 8)}
    step = jax.jit(stepping_native(tx), donate_argnums=(1, 2) if donated else ())
    before = jax.tree.map(np.array, (params, tx.init(params).inner))
    grads = {"w": jnp.ones((8, 4))}
    params, state = step(grads, jax.tree.map(jnp.copy, params), tx.init(params))
    assert_same_bits((params, state.inner), before)
    params, state = step(grads, params, state)
    assert (np.asarray(params["w"])[:, :3] != before[0]["w"][:, :3]).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_whose_squares_are_out_of_range_are_those_of_xla(size):
    tx = optax.chain(optlab.clip_by_global_norm(size), optlab.sgd(1 / size))
    grads = [jax.tree.map(lambda g: np.float32(size) * g, GRADS[0])]
    got = run(jax.jit(stepping_native(tx)), tx, PARAMS, grads)
    assert_close(got, run(jax.jit(stepping(tx)), tx, PARAMS, grads))
    moved = sum(np.sum(np.square(np.float64(got[0][k]) - PARAMS[k])) for k in PARAMS)
    assert np.sqrt(moved) == pytest.approx(1.0, rel=1e-5)  # roundings of the parameters
