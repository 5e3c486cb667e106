"""`reduce_on_plateau`: when the scale is cut, and when it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab


def scales(values, checks=None, **options):
    """Feed values to one transformation in a compiled scan; return the scale of each update."""
    tx = optlab.reduce_on_plateau(**options)
    g = jnp.ones(())
    checks = jnp.ones(len(values), bool) if checks is None else jnp.asarray(checks)

    def body(state, value_and_check):
        value, check = value_and_check
        update, state = tx.update(g, state, value=value, check=check)
        return state, update

    return np.asarray(
        jax.jit(lambda v: jax.lax.scan(body, tx.init(g), (v, checks))[1])(
            jnp.asarray(values, jnp.float32)
        )
    )


def test_it_cuts_with_the_check_that_completes_patience():
    got = scales([3, 2, 2, 2, 2, 2, 1, 1], factor=0.5, patience=2)
    np.testing.assert_array_equal(got, [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25])


def test_it_equals_optax_on_positive_values():
    values = np.abs(np.random.default_rng(0).normal(size=300)).astype(np.float32) + 0.01
    options = {"factor": 0.7, "patience": 3, "rtol": 0.01, "atol": 0.001, "cooldown": 2}
    tx = optax.contrib.reduce_on_plateau(**options, min_scale=0.01)
    g = jnp.ones(())

    def body(state, value):
        update, state = tx.update(g, state, value=value)
        return state, update

    theirs = jax.jit(lambda v: jax.lax.scan(body, tx.init(g), v)[1])(values)
    np.testing.assert_allclose(scales(values, **options, min_scale=0.01), theirs, rtol=1e-6)


def test_negative_values_that_stay_the_same_do_not_count_as_better():
    np.testing.assert_array_equal(scales([-1, -1, -1], factor=0.5, patience=2), [1, 1, 0.5])
    np.testing.assert_array_equal(scales([-1, -2, -3], factor=0.5, patience=2), [1, 1, 1])


def test_nan_never_improves_and_never_becomes_the_best():
    got = scales([np.nan, 2, np.nan, np.nan, 1, np.nan], factor=0.5, patience=2)
    np.testing.assert_array_equal(got, [1, 1, 1, 0.5, 0.5, 0.5])


def test_infinities_are_values():
    # +∞ is no improvement on nothing; −∞ is the best there can be.
    np.testing.assert_array_equal(
        scales([np.inf, 1, -np.inf, 0, 0], factor=0.5, patience=2), [1, 1, 1, 1, 0.5]
    )


def test_max_mirrors_min():
    values = np.random.default_rng(1).normal(size=50)
    options = {"factor": 0.5, "patience": 2, "rtol": 0.1}
    np.testing.assert_array_equal(scales(values, **options), scales(-values, mode="max", **options))


def test_cooldown_and_the_least_scale_are_kept():
    got = scales([1] * 8, factor=0.1, patience=1, cooldown=2, min_scale=0.05)
    # A cut to 0.1 with the second check, two checks of rest, then the floor.
    np.testing.assert_allclose(got, [1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05], rtol=1e-6)


def test_updates_between_checks_change_nothing():
    every = scales([3, 2, 2, 2], factor=0.5, patience=2)
    values = np.repeat([3, 2, 2, 2], 3)
    sparse = scales(values, checks=np.arange(12) % 3 == 0, factor=0.5, patience=2)
    np.testing.assert_array_equal(sparse[::3], every)
    np.testing.assert_array_equal(sparse[1::3], every)


def test_without_a_value_the_scale_stays():
    tx = optax.chain(optlab.sgd(1.0), optlab.reduce_on_plateau(0.5, patience=1))
    g = jnp.ones(())
    state = tx.init(g)
    for _ in range(3):
        update, state = tx.update(g, state, g)
    assert float(update) == -1.0


def test_the_scale_is_read_and_reset_with_the_other_hyperparameters():
    tx = optax.chain(optlab.sgd(1.0), optlab.reduce_on_plateau(0.5, patience=1))
    g = jnp.ones(())
    state = tx.init(g)
    for _ in range(2):
        _, state = tx.update(g, state, g, value=1.0)
    assert float(optlab.hyperparams(state)["scale"]) == 0.5
    state = optlab.replace_hyperparams(state, scale=1.0, factor=0.25)
    for _ in range(1):
        update, state = tx.update(g, state, g, value=1.0)
    assert float(update) == -0.25


def test_lanes_react_apart():
    tx = optlab.reduce_on_plateau(0.5, patience=1)
    g = jnp.ones((2,))
    state = jax.vmap(tx.init)(g)
    update = jax.jit(jax.vmap(lambda g, s, v: tx.update(g, s, value=v)))
    for value in ([2.0, 2.0], [1.0, 2.0]):
        updates, state = update(g, state, jnp.array(value))
    np.testing.assert_array_equal(updates, [1.0, 0.5])


def test_a_value_that_is_no_scalar_is_an_error():
    tx = optlab.reduce_on_plateau()
    g = jnp.ones(())
    with pytest.raises(ValueError, match=r"reduce_on_plateau: value must be a scalar, got shape"):
        tx.update(g, tx.init(g), value=jnp.ones(3))
    with pytest.raises(ValueError, match="reduce_on_plateau: check must be one boolean, got bool"):
        tx.update(g, tx.init(g), value=1.0, check=jnp.ones(2, bool))


def test_the_score_of_an_evaluation_is_checked_once():
    tx = optlab.reduce_on_plateau(factor=0.5, patience=2)
    state, got = tx.init(jnp.ones(())), []
    # Three evaluations without improvement after the first one, each known for three updates.
    for step in range(12):
        extra = {"value": 100.0 - step, "score": 2.0, "evaluation": step // 3}
        update, state = tx.update(jnp.ones(()), state, **extra)
        got.append(float(update))
    np.testing.assert_array_equal(got, [1.0] * 9 + [0.5] * 3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"score": 1.0}, "evaluation must be given with score, an integer >= 0, got -1"),
        ({"score": 1.0, "evaluation": 0.5}, "evaluation must be one integer, got float32"),
        ({"score": "x", "evaluation": 1}, "score must be a number"),
        ({"score": 1.0, "evaluation": 1, "maximize": True}, "mode must be 'max', as a higher"),
    ],
)
def test_a_score_must_be_whole(extra, message):
    tx = optlab.reduce_on_plateau()
    with pytest.raises(ValueError, match=f"^reduce_on_plateau: {message}"):
        tx.update(jnp.ones(()), tx.init(jnp.ones(())), **extra)
