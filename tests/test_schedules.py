"""Every schedule against its float64 reference, at its knots, and at the end of the integers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import registry

CASES = [
    pytest.param(row, options, knots, id=f"{row.name}-{i}")
    for row in registry.SCHEDULES.values()
    for i, (options, knots) in enumerate(zip(row.samples, row.knots, strict=True))
]
LAST = 2**31 - 1


@pytest.mark.parametrize(("row", "options", "knots"), CASES)
def test_values_match_the_reference_for_int_numpy_traced_and_mapped_steps(row, options, knots):
    schedule = row.constructor(**options)
    steps = sorted({max(0, k + d) for k in knots for d in (-1, 0, 1, 2)} | {3, 50, LAST})
    wanted = np.array([row.reference(step, **options) for step in steps])
    # A handful of float32 roundings, relative to the largest value.
    close = {"rtol": 0, "atol": 4 * np.finfo(np.float32).eps * np.abs(wanted).max()}
    np.testing.assert_allclose([float(schedule(step)) for step in steps], wanted, **close)
    np.testing.assert_allclose([float(schedule(np.int32(s))) for s in steps], wanted, **close)
    traced = jax.jit(schedule)
    np.testing.assert_allclose([float(traced(s)) for s in steps], wanted, **close)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.array(steps)), wanted, **close)
    with jax.enable_x64(True):
        values = [float(row.constructor(**options)(step)) for step in steps]
        np.testing.assert_allclose(values, wanted, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize(("row", "options", "knots"), CASES)
def test_ends_are_exact_and_nothing_moves_after_the_end(row, options, knots):
    schedule = row.constructor(**options)
    for knot in (knots[0], knots[-1]):
        assert float(schedule(knot)) == float(np.float32(row.reference(knot, **options)))
    assert {float(schedule(knots[-1] + more)) for more in (0, 1, 1000)} == {float(schedule(LAST))}


@pytest.mark.parametrize("row", registry.SCHEDULES.values(), ids=lambda row: row.name)
def test_bad_arguments_are_refused(row):
    for options, message in row.errors:
        with pytest.raises(ValueError, match=f"^{row.name}: ") as error:
            row.constructor(**options)
        assert str(error.value).startswith(f"{row.name}: {message}")


def test_cosine_keeps_its_digits_near_the_end():
    # ½(1 + cos πt/T) in float32 has no correct digit left here: the true weight is 2.5e-12.
    schedule = optlab.schedules.cosine(1.0, 1_000_000)
    np.testing.assert_allclose(
        float(schedule(999_999)), np.sin(0.5e-6 * np.pi) ** 2, rtol=4 * np.finfo(np.float32).eps
    )


def test_values_can_be_traced_so_that_a_sweep_compiles_once():
    peaks = jnp.array([0.1, 0.2])

    def at(peak):
        return optlab.schedules.warmup_cosine(peak, 10, 100)(10)

    np.testing.assert_array_equal(jax.jit(jax.vmap(at))(peaks), peaks)


def test_a_loop_of_n_updates_ends_on_the_end_value_with_n_minus_one_steps():
    updates = 5
    tx = optlab.sgd(optlab.schedules.linear(1.0, 0.2, transition_steps=updates - 1))
    state = tx.init(jnp.zeros(()))
    rates = []
    for _ in range(updates):
        _, state = tx.update(jnp.ones(()), state)
        rates.append(float(state.hyperparams["learning_rate"]))
    np.testing.assert_allclose(rates, [1.0, 0.8, 0.6, 0.4, 0.2], rtol=1e-6)


def test_optax_optimizers_take_our_schedules_and_ours_take_theirs():
    ours, theirs = optlab.schedules.linear(1.0, 0.0, 10), optax.linear_schedule(1.0, 0.0, 10)
    grad = jnp.ones(())
    for tx in (optax.sgd(ours), optlab.sgd(ours), optlab.sgd(theirs)):
        state = tx.init(grad)
        for _ in range(4):
            update, state = tx.update(grad, state)
        np.testing.assert_allclose(update, -0.7, rtol=1e-6)
