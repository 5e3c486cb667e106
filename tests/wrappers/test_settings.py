"""What every wrapper does: abstract and sharded inputs, checkpoints, types, JAX's settings."""

import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optlab

KEY = jax.random.key(0)
WRAPPERS = {
    "skip_nonfinite": optlab.skip_nonfinite,
    "dynamic_loss_scale": optlab.dynamic_loss_scale,
    "accumulate": lambda tx: optlab.accumulate(tx, 2),
    "accumulate-bfloat16": lambda tx: optlab.accumulate(tx, 2, accumulator_dtype=jnp.bfloat16),
    "master_params": optlab.master_params,
    "kahan_summation": optlab.kahan_summation,
    "stochastic_rounding": lambda tx: optlab.stochastic_rounding(tx, KEY),
    "nested": lambda tx: optlab.master_params(
        optlab.dynamic_loss_scale(optlab.accumulate(tx, 2), initial_scale=4.0)
    ),
}
EVERY = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
IN_BOTH_WAYS = pytest.mark.parametrize(
    "compile",
    [
        pytest.param(jax.jit, id="jit"),
        # It compiles each operation by itself.
        pytest.param(lambda f: f, id="eager", marks=pytest.mark.slow),
    ],
)
PARAMS = {
    "narrow": jnp.full((4, 2), 1.5, jnp.bfloat16),
    "wide": jnp.full((3,), 0.5),
    "none": None,
}


def gradients(dtype):
    return jax.tree.map(lambda p: jnp.full(p.shape, 0.25, dtype), PARAMS)


def momentum():
    """A transformation in float32, with a slot, that mixes no types."""

    def update(updates, state, params=None):
        state = jax.tree.map(lambda m, g: 0.5 * m + g.astype(jnp.float32), state, updates)
        return jax.tree.map(lambda m: -0.125 * m, state), state

    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params), update
    )


def layout(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def matrices(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == 2]


def specs(tree):
    """How the matrices of a tree are sharded; None where nothing is said."""
    return [None if x.sharding is None else x.sharding.spec for x in matrices(tree)]


# Types


@EVERY
@IN_BOTH_WAYS
def test_updates_of_float32_parameters_are_float32(wrap, compile):
    for dtype in (jnp.float16, jnp.float32):
        tx = wrap(momentum())
        state = tx.init(PARAMS)
        update = compile(tx.update)
        for _ in range(2):
            updates, state = update(gradients(dtype), state, PARAMS)
            assert updates["wide"].dtype == jnp.float32
    assert updates["none"] is None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optlab.dynamic_loss_scale(tx, initial_scale=1.0),
        lambda tx: optlab.accumulate(tx, 2),
    ],
    ids=["dynamic_loss_scale", "accumulate"],
)
def test_the_update_of_a_wide_parameter_is_not_rounded_to_its_gradients_type(wrap):
    params = jnp.ones(())
    for given, dtype in ((params, jnp.float32), (None, jnp.bfloat16)):
        tx = wrap(optax.sgd(1 / 3))
        state = tx.init(params)
        for _ in range(2):
            update, state = tx.update(jnp.ones((), jnp.bfloat16), state, given)
        assert update.dtype == dtype
        assert float(update) == -float(jnp.asarray(1 / 3, dtype))


# Abstract and sharded parameters


@EVERY
def test_a_state_can_be_made_of_abstract_parameters(wrap):
    tx = wrap(optax.adam(0.1))
    state, wanted = tx.init(jax.eval_shape(lambda: PARAMS)), tx.init(PARAMS)
    assert layout(state) == layout(wanted)
    concrete = jax.tree.map(lambda s, w: s if isinstance(s, jax.Array) else w, state, wanted)
    for ours, theirs in zip(jax.tree.leaves(concrete), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@EVERY
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_init_keeps_shardings_where_optax_does(wrap, kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        params = jax.device_put(PARAMS["narrow"], sharding)
        abstract = jax.ShapeDtypeStruct(params.shape, params.dtype, sharding=sharding)

        def ways(tx):
            """The shardings that the moments have when a state is made in each way."""
            states = (
                tx.init(params),
                jax.jit(tx.init)(params),
                tx.init(abstract),
                jax.eval_shape(tx.init, abstract),
            )
            return [set(map(str, specs(state))) for state in states]

        normal = {"P('data',)": "P('data', None)"}  # the same, as traced arrays say it
        ours, theirs = ways(wrap(optax.adam(0.1))), ways(optax.adam(0.1))
        for own, wanted in zip(ours, theirs, strict=True):
            own, wanted = ({normal.get(x, x) for x in found} for found in (own, wanted))
            # Copies of parameters are sharded even where the compiler chooses how zeros are.
            assert wanted <= own <= wanted | {"P('data', None)"}


@EVERY
@IN_BOTH_WAYS
def test_a_state_sharded_unlike_the_parameters_stays_so(wrap, compile):
    """The first stage of ZeRO: gradients and parameters are on every device, the state is not."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        everywhere = NamedSharding(mesh, PartitionSpec())
        params = jax.device_put(PARAMS["narrow"], everywhere)
        tx = wrap(momentum())
        apart = NamedSharding(mesh, PartitionSpec("data"))
        alone = tx.init(params)
        state = jax.tree.map(
            lambda x: jax.device_put(x, apart if x.ndim == 2 else everywhere), alone
        )
        update = compile(tx.update)
        for _ in range(2):
            updates, state = update(params, state, params)
            unsharded, alone = update(params, alone, params)
            assert all(
                jax.typeof(x).sharding.spec == PartitionSpec("data", None) for x in matrices(state)
            )
            np.testing.assert_allclose(
                np.asarray(updates, np.float32), np.asarray(unsharded, np.float32), rtol=1e-6
            )


@EVERY
def test_no_sharded_array_is_gathered(wrap):
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            sharding = NamedSharding(mesh, PartitionSpec("data"))
            params = jax.device_put(PARAMS["narrow"], sharding)
            tx = wrap(momentum())
            compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
            for operation in ("all-gather", "all-to-all", "collective-permute"):
                assert operation not in compiled.as_text()


# Settings of JAX


@EVERY
def test_every_wrapper_runs_under_every_setting_of_jax(wrap, jax_setting):
    def run(update):
        state = tx.init(PARAMS)
        for _ in range(2):
            updates, state = update(gradients(jnp.bfloat16), state, PARAMS)
        return updates, state

    tx = wrap(momentum())
    wanted = run(tx.update)
    with jax_setting():
        tx = wrap(momentum())
        # Without `jit` they run on the wrappers' rows, in `runs_under_strict_settings`.
        ours = run(jax.jit(tx.update))
        assert jax.tree.structure(ours) == jax.tree.structure(wanted)
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))


# Checkpoints and other readers of states


@EVERY
def test_states_go_through_checkpoints(wrap, tmp_path):
    tx = wrap(optax.adam(0.1))
    _, state = tx.update(gradients(jnp.float32), tx.init(PARAMS), PARAMS)
    fresh = tx.init(PARAMS)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        from_orbax = checkpointer.restore(tmp_path / "state", fresh)
    for restored in (
        from_orbax,
        pickle.loads(pickle.dumps(state)),
        flax.serialization.from_state_dict(fresh, flax.serialization.to_state_dict(state)),
        flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state)),
    ):
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@EVERY
def test_optax_reads_and_maps_the_states(wrap):
    tx = wrap(optax.adam(0.1))
    state = tx.init(PARAMS)
    assert int(optax.tree.get(state, "count")) == 0
    marked = optax.tree_map_params(tx, lambda x: jnp.full_like(x, 7), state)
    assert jax.tree.structure(marked) == jax.tree.structure(state)
    assert all((x == 7).all() for x in matrices(marked))
    assert int(optax.tree.get(marked, "count")) == 0


# Arguments as people write them


@pytest.mark.parametrize("number", [float, np.float64, np.array, jnp.array])
def test_whole_numbers_of_steps_may_be_of_any_type(number):
    for wrap in (
        lambda n: optlab.accumulate(optax.sgd(0.1), n),
        lambda n: optlab.skip_nonfinite(optax.sgd(0.1), n),
        lambda n: optlab.dynamic_loss_scale(optax.sgd(0.1), growth_interval=n, max_consecutive=n),
    ):
        params = jnp.ones(())
        ours, wanted = (
            jax.jit(tx.update)(params, tx.init(params), params) for tx in (wrap(number(2)), wrap(2))
        )
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
            assert (x.dtype, float(x)) == (y.dtype, float(y))


def test_scales_may_be_arrays_of_one_element():
    tx = optlab.dynamic_loss_scale(
        optax.sgd(0.1), initial_scale=np.array([4.0]), factor=jnp.array([4.0]), growth_interval=1
    )
    params = jnp.ones(())
    _, state = tx.update(params, tx.init(params), params)
    assert state.loss_scale.shape == ()
    assert float(state.loss_scale) == 16.0
