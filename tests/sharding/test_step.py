"""The training step on a divided state: its result, what its program moves, what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from helpers import random_tree
from optlab import sharding
from optlab.rules import Axes

SHAPES = {"w1": (4, 8), "b1": (8,), "w2": (8, 8), "b2": (8,), "w3": (8, 3), "b3": (3,)}
KINDS = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}
RNG = np.random.default_rng(0)
PARAMS = random_tree(RNG, SHAPES)
BATCH = random_tree(RNG, {"inputs": (8, 4), "targets": (8, 3)})


def loss(params, batch):
    x = jnp.tanh(batch["inputs"] @ params["w1"] + params["b1"])
    x = jnp.tanh(x @ params["w2"] + params["b2"])
    return jnp.mean((x @ params["w3"] + params["b3"] - batch["targets"]) ** 2)


def mesh_of(kind, shape=(2,), names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(KINDS[kind],) * len(shape))


def started(tx, mesh, loss=loss, **options):
    """Return the step, the parameters, the state and the batch, on the mesh."""
    train = sharding.step(tx, loss, PARAMS, mesh, **options)
    # Copies, because what is donated must not be what other tests take.
    params = jax.device_put(jax.tree.map(np.copy, PARAMS), train.params_sharding)
    return train, params, sharding.init(tx, params, mesh), sharding.divide_batch(BATCH, mesh)


def alone(tx, steps):
    """Return the parameters that one device has after some steps, and the last loss."""

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params, BATCH)
        options = {"value": value, "grad": grads, "value_fn": lambda params: loss(params, BATCH)}
        update = optax.with_extra_args_support(tx).update
        updates, state = update(grads, state, params, **options)
        return optax.apply_updates(params, updates), state, value

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        params, state, value = step(params, state)
    return params, value


def assert_trains_as_one(tx, kind, steps=3):
    train, params, state, batch = started(tx, mesh_of(kind))
    for _ in range(steps):
        params, state, value = train(params, state, batch)
    wanted, wanted_value = alone(tx, steps)
    # Sums over examples in another order, 1e-7 each, go through few steps of size 0.01.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), params, wanted
    )
    np.testing.assert_allclose(value, wanted_value, rtol=2e-6)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    for leaf, where in zip(
        jax.tree.leaves(state), jax.tree.leaves(train.state_sharding), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
    return train.lower(params, state, batch).compile()


def sizes(operations):
    return sorted(int(np.prod(shape)) for one in operations for shape in one.shapes)


RULES = {
    "optlab": lambda: optlab.adamw(0.01),
    "Optax": lambda: optax.adam(0.01),
    "clipped": lambda: optax.chain(optlab.clip_by_global_norm(0.1), optlab.lion(0.01)),
}


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("optlab", "auto"),
        ("Optax", "explicit"),
        pytest.param("clipped", "explicit", marks=pytest.mark.slow),
        pytest.param("clipped", "auto", marks=pytest.mark.slow),
        pytest.param("optlab", "explicit", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_reduced_once_and_parameters_gathered_once(rule, kind):
    found = sharding.collectives(assert_trains_as_one(RULES[rule](), kind))
    assert {one.operation for one in found} == {"all-reduce", "all-gather"}
    reduced = [one for one in found if one.operation == "all-reduce"]
    gathered = [one for one in found if one.operation == "all-gather"]
    arrays = sorted(int(np.prod(shape)) for shape in SHAPES.values())
    # The loss is reduced as well, and of norms a number for each array.
    assert [size for size in sizes(reduced) if size > 1] == arrays
    assert len(reduced) == 1 or rule == "clipped"
    # The three numbers of the last bias are not divided.
    assert sizes(gathered) == [size for size in arrays if size != 3]


def test_the_loss_is_scaled_as_the_optimizer_asks():
    tx = optlab.sgd(0.1)
    train, params, state, batch = started(optlab.dynamic_loss_scale(tx), mesh_of("explicit"))
    params, _, value = train(params, state, batch)
    wanted, wanted_value = alone(tx, 1)
    # One step from sums in another order, 1e-7 each.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), params, wanted
    )
    np.testing.assert_allclose(value, wanted_value, rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tx", "kind"),
    [
        (optlab.muon(0.01, axes={"w3": Axes()}), "auto"),
        (optlab.muon(0.01, axes={"w3": Axes()}), "explicit"),
        (optlab.adafactor(0.01, min_dim_size_to_factor=2), "explicit"),
        (optlab.lamb(0.01), "explicit"),
        (optlab.lbfgs(), "auto"),
    ],
    ids=["muon-auto", "muon-explicit", "adafactor", "lamb", "lbfgs"],
)
def test_rules_that_look_at_more_than_a_number_train_as_on_one_device(tx, kind):
    assert_trains_as_one(tx, kind, steps=2)


def test_parameters_that_are_divided_stay_so_beside_a_divided_state():
    mesh = mesh_of("auto", (1, 2), ("data", "model"))
    specs = dict.fromkeys(SHAPES, P()) | {"w2": P(None, "model")}
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, specs[name]))
        for name, shape in SHAPES.items()
    }
    train = sharding.step(optlab.sgd(0.1, 0.9), loss, shapes, mesh, donate=False)
    params = jax.device_put(jax.tree.map(np.copy, PARAMS), train.params_sharding)
    state = sharding.init(optlab.sgd(0.1, 0.9), params, mesh)
    assert state[0].velocity["w2"].sharding.spec == P("data", "model")
    before = params["w2"]
    params, state, _ = train(params, state, BATCH)
    np.testing.assert_array_equal(before, PARAMS["w2"])
    wanted, _ = alone(optlab.sgd(0.1, 0.9), 1)
    # Sums in another order, 1e-7 each.
    np.testing.assert_allclose(params["w2"], wanted["w2"], rtol=2e-5, atol=2e-6)
    assert params["w2"].sharding.is_equivalent_to(NamedSharding(mesh, P(None, "model")), 2)


def test_a_loss_may_take_a_key_and_return_more_and_the_step_may_be_scanned():
    def noisy(params, batch, key):
        noise = jax.random.uniform(key)
        return loss(params, batch) + noise, {"noise": noise}

    mesh = mesh_of("auto")
    train, params, state, batch = started(optlab.sgd(0.1), mesh, noisy, has_aux=True)

    def body(carry, key):
        params, state, value, aux = train(*carry, batch, key)
        return (params, state), (value, aux["noise"])

    keys = jax.random.split(jax.random.key(0), 2)
    scan = jax.jit(lambda carry: jax.lax.scan(body, carry, keys))
    scanned, noise = scan((params, state))[1]
    _, _, value, aux = train(params, state, batch, keys[0])
    np.testing.assert_allclose(value, scanned[0], rtol=1e-6)  # two programs round in two orders
    assert aux["noise"] == noise[0]


# What is refused


def refusals(train, params, state, batch):
    """Yield arguments and the message."""
    yield (
        (params, state, {**batch, "inputs": np.ones((3, 4))}),
        "the 2 devices of axis 'data' must divide the batch, got 3 examples at ['inputs']; take a "
        "multiple of 2",
    )
    yield (params, state, jax.tree.map(lambda x: x[:0], BATCH)), "the 2 devices of axis 'data' must"
    yield (
        (params, state, jax.device_put(BATCH, jax.devices()[0])),
        "batch must be on the devices of the mesh of the step, got ['inputs'] on SingleDevice",
    )
    yield (
        (params | {"w1": jnp.ones((2, 2))}, state, batch),
        "params must have the structure and shapes of those that the step was made for, got (2, 2) "
        "at ['w1']",
    )
    yield ({}, state, batch), "params must have the structure and shapes of those that the step"
    yield (params, (), batch), "state must be that of the transformation that the step was made for"
    eager = optlab.lion(0.1).init(PARAMS)
    eager = jax.device_put(eager, NamedSharding(mesh_of("auto"), P()))
    yield (
        (params, eager, batch),
        "state must lie on the mesh as state_sharding of the step says, [0].mu['b1'] as P('data',)",
    )
    elsewhere = jax.device_put(np.copy(PARAMS["w1"]), NamedSharding(mesh_of("auto"), P("data")))
    yield (
        (params | {"w1": elsewhere}, state, batch),
        "params must lie on the mesh as params_sharding of the step says, ['w1'] as P(None, None), "
        "got P('data',); jax.device_put them to step.params_sharding",
    )


def test_arguments_that_do_not_fit_are_refused_before_anything_is_compiled():
    made = started(optlab.lion(0.1), mesh_of("auto"))
    for arguments, message in refusals(*made):
        with pytest.raises(ValueError, match="^sharding.step: " + re.escape(message)):
            made[0](*arguments)


def test_a_step_needs_a_transformation_a_function_and_axes_of_one_kind():
    mesh = mesh_of("auto")
    mixed = jax.make_mesh((1, 2), ("data", "model"), axis_types=tuple(KINDS.values()))
    for arguments, message in (
        ((3, loss, PARAMS, mesh), "tx must be an optax.GradientTransformation"),
        ((optlab.lion(0.1), 3, PARAMS, mesh), "loss must be a function, got 3"),
        ((optlab.lion(0.1), loss, PARAMS, mesh, "x"), "axis must be an axis of the mesh"),
        ((optlab.lion(0.1), loss, PARAMS, mixed), "the axes of the mesh must be all automatic or"),
    ):
        with pytest.raises(ValueError, match=f"^sharding.step: {message}"):
            sharding.step(*arguments)


def test_collectives_are_read_of_programs_that_start_and_end_them():
    text = """
      %ar = (f32[2,3]{1,0}, /*index=1*/f32[]) all-reduce-start(%a, %b), channel_id=1
      %done = (f32[2,3]{1,0}, f32[]) all-reduce-done(%ar)
      %ag = (f32[4]{0:T(128)}, f32[8]{0:T(128)}) all-gather-start(%c), dimensions={0}
      %cp = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%d)
      ROOT %rs = f32[1,3]{1,0} reduce-scatter(%e), dimensions={0}
    """
    assert sharding.collectives(text) == (
        ("all-reduce", ((2, 3), ())),
        ("all-gather", ((8,),)),
        ("collective-permute", ((4,),)),
        ("reduce-scatter", ((1, 3),)),
    )
