"""What works with Optax's functions works with ours: arguments, empty states, hashing."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab

PARAMS = {"w": jnp.array([3.0, 4.0])}

OTHER_THINGS = {
    "monitor": "Optax's records functions of the updates, and goes into a chain",
}
"""Functions that share a name with one of Optax's alone, with the reason."""

SHARED = [
    name
    for name in optlab.__all__
    if inspect.isfunction(getattr(optlab, name))
    and inspect.isfunction(getattr(optax, name, None))
    and name not in OTHER_THINGS
]

OTHER_NAMES = {
    "global_norm": "takes any tree, not updates alone, and calls it `tree`",
}
"""Functions whose positional arguments have other names than Optax's, with the reason."""


def positional(function):
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("name", SHARED)
def test_positional_arguments_are_optaxs_in_their_order(name):
    ours, theirs = positional(getattr(optlab, name)), positional(getattr(optax, name))
    if name in OTHER_NAMES:
        assert len(ours) == len(theirs)
        assert ours != theirs, "the exception is no longer needed"
    else:
        assert ours[: len(theirs)] == theirs


def test_functions_are_shared_at_all():
    assert {"adam", "adamw", "sgd", "lion", "rmsprop", "scale_by_adam"} <= set(SHARED)


@pytest.mark.parametrize(
    "rate", [np.array([0.5]), jnp.array([0.5]), np.float64(0.5), 0, 0.0, jnp.int32(1)]
)
def test_a_rate_may_be_any_kind_of_number(rate):
    tx = optlab.sgd(rate)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS))
    np.testing.assert_array_equal(updates["w"], -np.float32(np.squeeze(rate)) * PARAMS["w"])
    assert updates["w"].dtype == jnp.float32


def test_numbers_at_the_ends_of_their_ranges_are_taken():
    summed = optlab.sgd(1.0, 1.0)
    state = summed.init(PARAMS)
    for count in (1, 2):
        updates, state = summed.update(PARAMS, state)
        np.testing.assert_array_equal(updates["w"], -count * PARAMS["w"])
    for tx in (optlab.clip_by_global_norm(jnp.inf), optlab.clip_by_value(np.inf)):
        updates, _ = tx.update(PARAMS, tx.init(PARAMS))
        np.testing.assert_array_equal(updates["w"], PARAMS["w"])


STATELESS = {
    "clip_by_global_norm": (lambda: optlab.clip_by_global_norm(1.0), [0.6, 0.8]),
    "clip_by_value": (lambda: optlab.clip_by_value(3.5), [3.0, 3.5]),
    "scale_by_learning_rate": (lambda: optlab.scale_by_learning_rate(0.5), [-1.5, -2.0]),
    "add_decayed_weights": (lambda: optlab.add_decayed_weights(1.0), [6.0, 8.0]),
}


@pytest.mark.parametrize("state", [None, optax.EmptyState(), ()], ids=["None", "EmptyState", "()"])
@pytest.mark.parametrize("name", STATELESS)
def test_without_slots_an_empty_state_is_taken_and_returned(name, state):
    make, expected = STATELESS[name]
    tx = make()

    def body(carry, _):
        updates, carry = tx.update(PARAMS, carry, PARAMS)
        return carry, updates["w"]

    # A scan demands that the state comes back as it was.
    after, updates = jax.lax.scan(body, state, length=2)
    assert after == state
    assert type(after) is type(state)
    np.testing.assert_allclose(updates, [expected, expected], rtol=1e-6)
    chain = optax.chain(make(), optax.scale(2.0))
    updates, _ = chain.update(PARAMS, (state, optax.EmptyState()), PARAMS)
    np.testing.assert_allclose(updates["w"], 2 * np.array(expected), rtol=1e-6)


def test_an_empty_state_is_refused_where_a_schedule_must_count():
    tx = optlab.scale_by_learning_rate(lambda step: 0.1)
    with pytest.raises(ValueError, match="must be given the state that init returned"):
        tx.update(PARAMS, optax.EmptyState())
    with pytest.raises(ValueError, match="must be given the state that init returned"):
        optlab.reduce_on_plateau().update(PARAMS, None)


def test_a_transformation_is_a_value():
    tx = optlab.adam(0.1)
    assert tx == tx
    assert hash(tx) == hash(tx)
    assert {tx: 1}[tx] == 1
    assert tx != optlab.adam(0.1)

    @functools.partial(jax.jit, static_argnums=0)
    def first(tx, params):
        return tx.update(params, tx.init(params), params)[0]

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def straight(tx, x):
        return first(tx, x)

    straight.defvjp(lambda tx, x: (first(tx, x), None), lambda tx, _, g: (g,))
    expected = first(tx, PARAMS)["w"]
    np.testing.assert_allclose(expected, [-0.1, -0.1], rtol=1e-6)
    first(tx, PARAMS)
    assert first._cache_size() == 1
    np.testing.assert_array_equal(eqx.filter_jit(first)(tx, PARAMS)["w"], expected)
    through = jax.grad(lambda x: jnp.sum(straight(tx, x)))(PARAMS["w"])
    np.testing.assert_array_equal(through, [1.0, 1.0])
