"""States stored, restored, copied, exported, searched and mapped over."""

import copy
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import optlab
from optlab.dialects import pytorch
from optlab.rules import Rule, lift, slot

PARAMS = {"b": {"x": jnp.ones(3)}, "w": jnp.arange(6.0).reshape(2, 3) - 2}

TRANSFORMATIONS = {
    "chain": lambda: optax.chain(
        optlab.clip_by_global_norm(1.0),
        optlab.adamw(lambda step: 0.1, mask={"w": True, "b": False}, amsgrad=True),
        optlab.reduce_on_plateau(mode="max"),
        optlab.params_ema(0.9),
    ),
    "partition": lambda: optax.partition(
        {"own": optlab.lion(0.1, mu_dtype=jnp.bfloat16), "none": optax.set_to_zero()},
        {"w": "own", "b": "none"},
    ),
    "masked": lambda: optax.masked(optlab.adagrad(0.1, compensated=True), {"w": True, "b": False}),
    "rmsprop": lambda: optlab.rmsprop(0.1, centered=True, momentum=0.9),
    "pytorch": lambda: pytorch.adagrad(0.1, lr_decay=0.1, maximize=True),
    "injected": lambda: optax.inject_hyperparams(optlab.adam)(learning_rate=0.1),
}


@pytest.fixture(scope="module")
def states():
    """Return the state of each transformation after an update."""

    def after_one(name):
        tx = TRANSFORMATIONS[name]()
        return jax.jit(lambda p: tx.update(p, tx.init(p), p, value=0.5)[1])(PARAMS)

    return {name: after_one(name) for name in TRANSFORMATIONS}


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_state_holds_finite_arrays_and_nothing_else(name, states):
    for state in (TRANSFORMATIONS[name]().init(PARAMS), states[name]):
        chex.assert_tree_all_finite(state)
        for leaf in jax.tree.leaves(state, is_leaf=lambda x: x is None):
            assert isinstance(leaf, jax.Array)
            assert leaf.size


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_state_can_be_copied_pickled_and_serialized_by_flax(name, states):
    state, fresh = states[name], TRANSFORMATIONS[name]().init(PARAMS)
    assert_same(copy.deepcopy(state), state)
    assert_same(pickle.loads(pickle.dumps(state)), state)
    as_dict = serialization.to_state_dict(state)
    assert_same(serialization.from_state_dict(fresh, as_dict), state)
    assert_same(serialization.from_bytes(fresh, serialization.to_bytes(state)), state)
    assert optlab.hyperparams(pickle.loads(pickle.dumps(state))) == optlab.hyperparams(state)


def test_states_can_be_saved_and_restored_by_orbax(states, tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")  # an extra
    fresh = jax.eval_shape(lambda: {n: make().init(PARAMS) for n, make in TRANSFORMATIONS.items()})
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        for target in (fresh, jax.tree.map(checkpoint.utils.to_shape_dtype_struct, states)):
            assert_same(checkpointer.restore(tmp_path / "states", target), states)


def test_updates_can_be_exported_for_sizes_that_are_not_known_yet():
    # States of Optax's own transformations cannot be serialized without a registration.
    tx = optax.chain(*(TRANSFORMATIONS[name]() for name in ("chain", "rmsprop", "pytorch")))
    (n,) = jax.export.symbolic_shape("n")
    float32 = jnp.float32
    shapes = {
        "b": {"x": jax.ShapeDtypeStruct((n,), float32)},
        "w": jax.ShapeDtypeStruct((n, 3), float32),
    }

    def update(gradients, state, params):
        return tx.update(gradients, state, params, value=0.5)

    states = jax.eval_shape(tx.init, shapes)
    exported = jax.export.export(jax.jit(update))(shapes, states, shapes)
    start = jax.export.export(jax.jit(tx.init))(shapes)
    params = {"b": {"x": jnp.ones(2)}, "w": PARAMS["w"]}
    expected = jax.jit(update)(params, tx.init(params), params)
    assert_same(start.call(params), tx.init(params))
    assert_same(exported.call(params, tx.init(params), params), expected)
    pytest.importorskip("flatbuffers")  # what JAX serializes with; the extra `test` has it
    restored = jax.export.deserialize(exported.serialize())
    assert_same(restored.call(params, tx.init(params), params), expected)


EXPORTED = {
    "adam": lambda: optlab.adam(0.1),
    "another domain of b1": lambda: pytorch.adam(0.1),
    "masked": lambda: lift(
        Rule("mine", lambda g, slots, h, p: (g, slots), slots={"mu": slot()}, mask=MASK)
    ),
    "accumulate": lambda: optlab.accumulate(optlab.sgd(0.1), 2),
    "dynamic_loss_scale": lambda: optlab.dynamic_loss_scale(optlab.sgd(0.1)),
    "kahan_summation": lambda: optlab.kahan_summation(optlab.sgd(0.1)),
    "master_params": lambda: optlab.master_params(optlab.sgd(0.1)),
    "skip_nonfinite": lambda: optlab.skip_nonfinite(optlab.sgd(0.1)),
    "stochastic_rounding": lambda: optlab.stochastic_rounding(optlab.sgd(0.1), jax.random.key(0)),
}
MASK = {"w": True, "b": False}


@pytest.mark.parametrize("name", EXPORTED)
def test_functions_of_a_state_can_be_serialized(name):
    pytest.importorskip("flatbuffers")  # what JAX serializes with; the extra `test` has it
    tx = EXPORTED[name]()
    state = tx.init(PARAMS)
    exported = jax.export.export(jax.jit(tx.update))(PARAMS, state, PARAMS)
    restored = jax.export.deserialize(exported.serialize())
    assert jax.tree.structure(restored.call(PARAMS, state, PARAMS)[1]) == jax.tree.structure(state)


def test_optax_finds_counts_and_rates(states):
    for name in ("chain", "partition", "masked", "rmsprop", "pytorch"):
        assert optax.tree.get(states[name], "count") == 1
        set_back = optax.tree.set(states[name], count=jnp.zeros((), jnp.int32))
        assert optax.tree.get(set_back, "count") == 0
    injected = states["injected"]
    np.testing.assert_allclose(optax.tree.get(injected, "learning_rate"), 0.1)
    changed = optax.tree.set(injected, learning_rate=jnp.float32(0.5))
    tx = TRANSFORMATIONS["injected"]()
    _, after = tx.update(PARAMS, changed, PARAMS)
    assert optlab.hyperparams(after)["learning_rate"] == 0.5


@pytest.mark.parametrize("name", ["chain", "masked", "rmsprop", "pytorch"])
def test_optax_maps_over_what_belongs_to_parameters(name, states):
    state = states[name]
    doubled = optax.tree_map_params(TRANSFORMATIONS[name](), lambda x: 2 * x, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(doubled), strict=True):
        factor = 2 if old.shape in ((3,), (2, 3)) else 1
        np.testing.assert_array_equal(new, factor * old)
