"""Hyperparameters read from and replaced in the states of everything that nests transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import optlab

PARAMS = {"body": jnp.ones((3,)), "head": jnp.array([2.0, 2.0])}
GRADIENT = {"body": jnp.array([1.0, -2.0, 0.5]), "head": jnp.array([0.3, 4.0])}


def numbers(state):
    return {name: round(float(value), 6) for name, value in optlab.hyperparams(state).items()}


def test_a_chain_shows_all_its_values():
    tx = optax.chain(
        optlab.clip_by_global_norm(1.0),
        optax.trace(0.9),
        optlab.adamw(optlab.schedules.linear(0.1, 0.0, 10)),
    )
    state = tx.init(PARAMS)
    assert numbers(state) == {
        "max_norm": 1.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 0.0,
        "eps_root": 0.0,
        "weight_decay": 0.01,
        "learning_rate": 0.1,
    }
    for _ in range(3):
        _, state = jax.jit(tx.update)(GRADIENT, state, PARAMS)
    assert numbers(state)["learning_rate"] == 0.08  # what the third update used


def test_groups_are_named_where_a_name_occurs_more_than_once():
    tx = optax.chain(
        optlab.clip_by_value(5.0),
        optax.partition(
            {"slow": optlab.sgd(0.01), "fast": optlab.sgd(0.1, momentum=0.9)},
            {"body": "slow", "head": "fast"},
        ),
    )
    state = tx.init(PARAMS)
    assert numbers(state) == {
        "max_abs": 5.0,
        "fast/learning_rate": 0.1,
        "slow/learning_rate": 0.01,
        "fast/momentum": 0.9,
        "fast/dampening": 0.0,
    }
    one = optlab.replace_hyperparams(state, **{"fast/learning_rate": 0.5})
    assert numbers(one)["fast/learning_rate"] == 0.5
    assert numbers(one)["slow/learning_rate"] == 0.01
    both = optlab.replace_hyperparams(state, learning_rate=0.25, momentum=0.5)
    updates, _ = tx.update(GRADIENT, both, PARAMS)
    np.testing.assert_array_equal(updates["body"], -0.25 * GRADIENT["body"])
    np.testing.assert_array_equal(updates["head"], -0.25 * GRADIENT["head"])


def test_equal_rules_in_one_chain_are_numbered():
    tx = optax.chain(optlab.clip_by_global_norm(1.0), optlab.clip_by_global_norm(2.0))
    state = tx.init(PARAMS)
    assert numbers(state) == {"max_norm[0]": 1.0, "max_norm[1]": 2.0}
    state = optlab.replace_hyperparams(state, **{"max_norm[1]": 0.5})
    assert numbers(state) == {"max_norm[0]": 1.0, "max_norm[1]": 0.5}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.masked(tx, {"body": True, "head": False}),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.named_chain(("clip", optax.clip(1.0)), ("rate", tx)),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.flatten(tx),
    ],
    ids=["alone", "masked", "MultiSteps", "named_chain", "apply_if_finite", "flatten"],
)
def test_values_are_replaced_through_every_wrapper(wrap):
    tx = wrap(optlab.sgd(0.1))
    state = optlab.replace_hyperparams(tx.init(PARAMS), learning_rate=0.3)
    assert numbers(state) == {"learning_rate": 0.3}
    for _ in range(2):
        updates, state = tx.update(GRADIENT, state, PARAMS)
    assert numbers(state) == {"learning_rate": 0.3}
    np.testing.assert_allclose(updates["body"][2], -0.15, rtol=1e-6)


def test_linen_train_state_is_read_and_replaced_whole():
    model = linen.Dense(2)
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optlab.adam(0.1))
    state = optlab.replace_hyperparams(state, learning_rate=0.02)
    assert numbers(state)["learning_rate"] == 0.02
    stepped = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    moved = jax.tree.map(lambda new, old: new - old, stepped.params, params)
    # Adam's first step is the rate in every coordinate.
    np.testing.assert_allclose(jax.tree.leaves(moved)[0], -0.02, rtol=1e-5)
    assert numbers(stepped.opt_state)["learning_rate"] == 0.02


def test_nnx_optimizer_is_read_and_replaced_without_a_new_compilation():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optlab.adam(0.1), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))

    assert numbers(optimizer)["learning_rate"] == 0.1
    step(model, optimizer)
    before = model.kernel[...]
    optimizer.opt_state = optlab.replace_hyperparams(optimizer.opt_state, learning_rate=0.02)
    assert numbers(optimizer.opt_state)["learning_rate"] == 0.02
    step(model, optimizer)
    np.testing.assert_allclose(model.kernel[...] - before, -0.02, rtol=1e-5)
    assert len(traces) == 1


def test_a_replaced_rate_gives_bit_for_bit_the_trajectory_of_one_written_in():
    first, second = optlab.adamw(0.1), optlab.adamw(0.03)
    traces = []

    def compiled(tx):
        @jax.jit
        def step(params, state):
            traces.append(1)
            updates, state = tx.update(GRADIENT, state, params)
            return optax.apply_updates(params, updates), state

        return step

    replaced, written = compiled(first), compiled(second)
    a = (PARAMS, optlab.replace_hyperparams(first.init(PARAMS), learning_rate=0.03))
    b = (PARAMS, second.init(PARAMS))
    for _ in range(10):
        a, b = replaced(*a), written(*b)
    for x, y in zip(jax.tree.leaves(a[0]), jax.tree.leaves(b[0]), strict=True):
        np.testing.assert_array_equal(x, y)
    for rate in (0.5, 0.25, 1e-3):
        a = replaced(a[0], optlab.replace_hyperparams(a[1], learning_rate=rate))
    assert len(traces) == 2  # one for each of the two functions


def test_replacing_keeps_structure_and_types_and_works_inside_jit():
    tx = optlab.rmsprop(0.1)
    state = tx.init(PARAMS)
    replaced = jax.jit(lambda s, rate: optlab.replace_hyperparams(s, learning_rate=rate))(
        state, 0.2
    )
    assert jax.tree.structure(replaced) == jax.tree.structure(state)
    assert [x.dtype for x in jax.tree.leaves(replaced)] == [x.dtype for x in jax.tree.leaves(state)]
    assert numbers(replaced)["learning_rate"] == 0.2


def test_values_are_float64_under_x64():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: np.asarray(p, np.float64), PARAMS)
        state = optlab.replace_hyperparams(optlab.sgd(0.1).init(params), learning_rate=0.3)
        assert float(optlab.hyperparams(state)["learning_rate"]) == 0.3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.1}, "names must be those of hyperparameters in the state, got rate; there is "),
        ({"learning_rate": 0.1}, "learning_rate must not be scheduled, got a schedule"),
        ({"b1": -0.1}, "b1 must be in [0, 1), got b1=-0.1"),
        ({"b2": 1.5}, "b2 must be in [0, 1), got b2=1.5"),
        ({"eps": 1e-50}, "eps must be finite and >= 0 in float32, got eps=1e-50"),
        ({"b1": float("nan")}, "b1 must be in [0, 1), got b1=nan"),
        ({"b1": "high"}, "b1 must be a number or a scalar array, got b1='high'"),
    ],
)
def test_what_cannot_be_replaced_is_an_error(values, message):
    state = optlab.adam(optlab.schedules.cosine(0.1, 10)).init(PARAMS)
    with pytest.raises(ValueError, match=r"^replace_hyperparams: ") as error:
        optlab.replace_hyperparams(state, **values)
    assert str(error.value).startswith(f"replace_hyperparams: {message}")


def test_a_schedule_goes_on_where_jit_hides_it_and_the_state_says_so():
    state = optlab.sgd(optlab.schedules.cosine(0.1, 10)).init(PARAMS)
    replaced = jax.jit(lambda s: optlab.replace_hyperparams(s, learning_rate=9.0))(state)
    assert numbers(replaced) == {"learning_rate": 0.1}


def test_lanes_of_rates_are_read_and_replaced_together():
    rates = jnp.array([0.1, 0.2, 0.3])
    states = jax.vmap(lambda rate: optlab.sgd(rate).init(PARAMS))(rates)
    np.testing.assert_array_equal(optlab.hyperparams(states)["learning_rate"], rates)
    states = optlab.replace_hyperparams(states, learning_rate=0.5)
    np.testing.assert_array_equal(optlab.hyperparams(states)["learning_rate"], [0.5] * 3)


def test_an_unknown_name_lists_what_there_is():
    state = optlab.sgd(0.1, momentum=lambda step: 0.9).init(PARAMS)
    with pytest.raises(ValueError, match=r"there is dampening, learning_rate to replace$"):
        optlab.replace_hyperparams(state, lr=0.1)
    with pytest.raises(ValueError, match=r"there is none to replace$"):
        optlab.replace_hyperparams(optax.sgd(0.1).init(PARAMS), learning_rate=0.1)
