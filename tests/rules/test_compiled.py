"""What JAX and XLA make of an update: traces, compilations, memory, and every device's part of it.

Memory is XLA's own account for a CPU, of a step that returns its donated arguments in their order.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.registry import OPTIMIZERS

SIZE = 2**16
LEAVES = 3

CHAINS = {
    "clip-adamw": lambda: optax.chain(optlab.clip_by_global_norm(1.0), optlab.adamw(0.1)),
    "clip-momentum-average": lambda: optax.chain(
        optlab.clip_by_global_norm(1.0), optlab.sgd(0.1, momentum=0.9), optlab.params_ema(0.999)
    ),
    "centered": lambda: optlab.rmsprop(0.1, centered=True, eps_in_sqrt=True),
    "nadam": lambda: optlab.adam(0.1, nesterov=True),
    "amsgrad": lambda: optlab.adam(0.1, amsgrad=True),
} | {
    name: lambda row=row: row.make(0.1)
    for name, row in OPTIMIZERS.items()
    if "a_donated_step_needs_no_memory_beside_parameters_and_state" not in row.exempt
}


def stepping(tx):
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="each compiler has its own account")
@pytest.mark.parametrize("name", CHAINS)
def test_a_donated_step_needs_no_memory_beside_parameters_and_state(name):
    tx = CHAINS[name]()
    params = [jax.ShapeDtypeStruct((SIZE,), jnp.float32)] * LEAVES
    step = jax.jit(stepping(tx), donate_argnums=(0, 1))
    memory = step.lower(params, jax.eval_shape(tx.init, params), params).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.01 * 4 * SIZE * LEAVES
    assert memory.alias_size_in_bytes >= 4 * SIZE * LEAVES


def test_a_leaf_is_traced_once_for_each_shape_and_type():
    shapes = [(3,), (3,), (2, 2), (3,), (2, 2)]
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    params.append(jax.ShapeDtypeStruct((3,), jnp.bfloat16))
    tx = optlab.adamw(0.1)
    update = jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params), params)
    calls = [eqn.params["jaxpr"] for eqn in update.eqns if eqn.params.get("name") == "run"]
    assert len(calls) == len(params)
    assert len({id(call) for call in calls}) == 3


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere XLA is left to choose")
def test_scalars_are_computed_once_and_not_in_the_kernels_of_every_leaf():
    tx = optlab.adamw(0.1)

    def scalar_operations(leaves):
        params = [jax.ShapeDtypeStruct((SIZE,), jnp.float32)] * leaves
        step = jax.jit(stepping(tx)).lower(params, jax.eval_shape(tx.init, params), params)
        return len(re.findall(r"f32\[\] (?:select|subtract|divide)\(", step.compile().as_text()))

    assert scalar_operations(1) == scalar_operations(4) > 0


def test_scalars_that_are_hyperparameters_as_they_are_wait_for_no_conditional():
    params = [jnp.ones(3)]
    for tx, waits in (
        (optlab.sgd(0.1, momentum=0.9), False),
        (optlab.adagrad(0.1), False),
        (optlab.sgd(lambda step: 0.1 / (step + 1)), True),
        (optlab.adam(0.1), True),
    ):
        jaxpr = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
        assert ("platform_index" in jaxpr) == waits


def test_a_transformation_built_anew_in_every_eager_update_compiles_nothing():
    compiled = []

    def listen(event, seconds, **kwargs):
        if "backend_compile" in event:
            compiled.append(event)

    params = {"w": jnp.ones(3), "b": jnp.ones(())}
    state = CHAINS["clip-adamw"]().init(params)

    def update(rate):
        tx = optax.chain(optlab.clip_by_global_norm(1.0), optlab.adamw(rate))
        return tx.update(params, state, params)

    update(0.1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(update(0.2))
        assert not compiled
        jax.block_until_ready(jax.jit(lambda x: x * 3.125)(jnp.ones(5)))
        assert compiled  # the listener hears
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_many_leaves_outside_of_jit_share_a_few_small_programs():
    params = [jnp.full(2, 0.5)] * 45
    tx = optlab.sgd(0.1, momentum=0.7)
    before = tx.runners.together._cache_size()
    updates, _ = tx.update(params, tx.init(params), params)
    # 16 leaves, the same 16 and 16 less 3 in place of one program with all of them.
    assert tx.runners.together._cache_size() - before <= 2
    assert len(updates) == 45
    assert all(np.allclose(u, -0.05) for u in updates)


def test_leaves_on_different_devices_are_updated_where_they_are():
    devices = jax.devices()[:2]
    params = {name: jax.device_put(jnp.ones(3), d) for name, d in zip("ab", devices, strict=True)}
    tx = optlab.sgd(0.1, momentum=0.9)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
    for name, device in zip("ab", devices, strict=True):
        assert updates[name].devices() == {device}
        np.testing.assert_allclose(updates[name], -0.19, rtol=1e-6)  # 0.1 · (1 + 0.9)


def test_each_device_clips_the_gradients_of_its_own_in_a_shard_map():
    mesh = jax.make_mesh((2,), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    tx = optlab.clip_by_global_norm(1.0)

    def clip(gradients):
        return tx.update(gradients, tx.init(gradients))[0]

    gradients = jax.device_put(
        np.array([3.0, 4.0, 0.3, 0.4], np.float32), jax.sharding.NamedSharding(mesh, spec)
    )
    clipped = jax.jit(jax.shard_map(clip, mesh=mesh, in_specs=spec, out_specs=spec))(gradients)
    np.testing.assert_allclose(clipped, [0.6, 0.8, 0.3, 0.4], rtol=1e-6)
