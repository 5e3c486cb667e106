"""Every schedule against its float64 reference, at its knots, and at the end of the integers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import registry

CASES = [
    pytest.param((row, options), id=f"{row.name}-{i}")
    for row in registry.SCHEDULES.values()
    for i, options in enumerate(row.samples)
]
LAST = 2**31 - 1
NUM_STEPS = 20
"""All schedules are mapped over as many steps, so that they share their operations' programs."""


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A row, the arguments of a sample, and the schedule, which all tests compile but once."""
    row, options = request.param
    return row, options, row.constructor(**options)


def steps_around_knots(schedule):
    """Every knot with its neighbours, a few steps within and far past them, and the last of all."""
    near = {max(0, round(knot) + d) for knot in schedule.knots for d in (-1, 0, 1, 2)}
    return sorted(near | {3, 50, 10 * round(schedule.knots[-1]) + 1, LAST})


def test_values_match_the_reference_for_int_numpy_traced_and_mapped_steps(case):
    row, options, schedule = case
    steps = steps_around_knots(schedule)
    assert len(steps) <= NUM_STEPS
    wanted = np.array([row.reference(step, **options) for step in steps])
    # A handful of float32 roundings, relative to the largest value.
    close = {"rtol": 0, "atol": 4 * np.finfo(np.float32).eps * np.abs(wanted).max()}
    np.testing.assert_allclose([float(schedule(step)) for step in steps], wanted, **close)
    np.testing.assert_allclose([float(schedule(np.int32(s))) for s in steps], wanted, **close)
    traced = jax.jit(schedule)
    np.testing.assert_allclose([float(traced(s)) for s in steps], wanted, **close)
    for dtype in (jnp.int32, jnp.uint32):  # Flax NNX counts in the second
        many = np.resize(np.array(steps, dtype), NUM_STEPS)
        np.testing.assert_allclose(
            jax.vmap(schedule)(jnp.array(many)), np.resize(wanted, NUM_STEPS), **close
        )
    with jax.enable_x64(True):
        values = [float(row.constructor(**options)(step)) for step in steps]
        np.testing.assert_allclose(values, wanted, rtol=1e-13, atol=1e-16)


def test_whole_knots_are_exact_and_nothing_moves_after_the_end(case):
    row, options, schedule = case
    first, last = schedule.knots[0], schedule.knots[-1]
    for evaluate in (schedule, jax.jit(schedule)):
        for knot in {first, last} if not row.endless else {first}:
            assert float(evaluate(knot)) == float(np.float32(row.reference(knot, **options)))
        if not row.endless:
            assert {float(evaluate(last + more)) for more in (0, 1, 1000)} == {
                float(evaluate(LAST))
            }


def test_a_schedule_says_how_it_was_made(case):
    row, options, schedule = case
    text = repr(schedule)
    assert text.startswith(row.name.split(".")[0] + "(")
    assert all(f"{name}=" in text for name in options)


@pytest.mark.parametrize("row", registry.SCHEDULES.values(), ids=lambda row: row.name)
def test_bad_arguments_are_refused(row):
    who = row.name.split(".")[0]
    for options, message in row.errors:
        with pytest.raises(ValueError, match=f"^{who}: ") as error:
            row.constructor(**options)
        assert str(error.value).startswith(f"{who}: {message}")


def test_one_cycle_couples_rate_and_momentum_with_zero_slope_where_they_turn():
    cycle = optlab.schedules.one_cycle(peak_value=0.1, total_steps=1000)
    steps = jnp.array([0, 300, 1000])
    np.testing.assert_allclose(jax.vmap(cycle.learning_rate)(steps), [0.004, 0.1, 1e-5], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(cycle.momentum)(steps), [0.95, 0.85, 0.95], rtol=1e-6)
    rates = np.array(
        [float(cycle.learning_rate(step)) for step in (0, 1, 299, 300, 301, 999, 1000)]
    )
    # A straight line would move by 3e-4 and 1.4e-4 an update.
    assert np.abs(np.diff(rates)[[0, 2, 3, 5]]).max() < 3e-6


@pytest.mark.parametrize("row", registry.SCHEDULES.values(), ids=lambda row: row.name)
def test_narrow_and_large_steps_are_steps_too(row):
    schedule = row.constructor(**row.samples[0])
    for dtype in (np.uint8, np.int8, np.uint16):
        np.testing.assert_array_equal(schedule(dtype(100)), schedule(100))
    np.testing.assert_array_equal(schedule(2**40), schedule(LAST))
    np.testing.assert_array_equal(schedule(np.uint32(2**32 - 1)), schedule(LAST))
    np.testing.assert_array_equal(schedule(-5), schedule(0))


def test_one_cycle_drives_momentum_sgd_and_adamw():
    cycle = optlab.schedules.one_cycle(peak_value=0.1, total_steps=10)
    for tx, name in (
        (optlab.sgd(cycle.learning_rate, momentum=cycle.momentum), "momentum"),
        (optlab.adamw(cycle.learning_rate, b1=cycle.momentum), "b1"),
    ):
        params = jnp.ones(())
        state = tx.init(params)
        for step in range(11):
            _, state = tx.update(params, state, params)
            in_force = optlab.hyperparams(state)[name]
            assert float(in_force) == float(cycle.momentum(step))
        assert float(in_force) == pytest.approx(0.95)


def test_epochs_become_updates():
    to_steps = optlab.schedules.epochs_to_steps
    assert to_steps(3, num_examples=100, batch_size=32) == 12
    assert to_steps(0.5, num_examples=96, batch_size=32) == 2
    with pytest.raises(ValueError, match="epochs_to_steps: batch_size must be an integer >= 1"):
        to_steps(1, num_examples=10, batch_size=0)


def test_optax_schedules_compose_with_ours():
    theirs = optax.linear_schedule(1.0, 0.0, 10)
    schedule = optlab.schedules.clamp(optlab.schedules.warmup(theirs, 5), min_value=0.1)
    np.testing.assert_allclose([float(schedule(t)) for t in (0, 5, 10, 99)], [0.1, 1, 0.5, 0.1])


def test_cosine_keeps_its_digits_near_the_end():
    # ½(1 + cos πt/T) in float32 has no correct digit left here: the true weight is 2.5e-12.
    schedule = optlab.schedules.cosine(1.0, 1_000_000)
    np.testing.assert_allclose(
        float(schedule(999_999)), np.sin(0.5e-6 * np.pi) ** 2, rtol=4 * np.finfo(np.float32).eps
    )


def test_small_shares_and_long_powers_keep_their_digits():
    s = optlab.schedules
    np.testing.assert_allclose(float(s.warmup(s.constant(0.1), 10_000)(1)), 1e-5, rtol=3e-7)
    np.testing.assert_allclose(float(s.linear(0.0, 1.0, 10**9)(3)), 3e-9, rtol=3e-7)
    late = s.wsd(1.0, 0, 0, 10**8, shape="sqrt")(10**8 - 1)
    np.testing.assert_allclose(float(late), 5e-9, rtol=1e-6)
    # float32 rounds the base by up to 3e-8, which a plain power multiplies by the exponent.
    np.testing.assert_allclose(
        float(s.step_decay(1.0, 0.9999, 1)(50_000)), 0.9999**50_000, rtol=2e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda s: s.constant(1e39),
            "constant: value must be finite in float32, got value=1e\\+39",
        ),
        (lambda s: s.triangular(0.0, 1.0, 2**30), "triangular: 2·half_cycle_steps must be below"),
        (lambda s: s.one_cycle(1.0, 9, div_factor=1e-300), "one_cycle: peak_value/div_factor must"),
        (
            lambda s: s.one_cycle(1.0, 9, momentum=(1 - 1e-12, 0.9)),
            "one_cycle: momentum must be in",
        ),
        (lambda s: s.cosine_restarts(1.0, 1, cycle_factor=1.0000001), "cosine_restarts: cycle_fac"),
    ],
)
def test_what_would_not_be_finite_later_is_refused_at_once(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(optlab.schedules)


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
        rates.append(float(optlab.hyperparams(state)["learning_rate"]))
    np.testing.assert_allclose(rates, [1.0, 0.8, 0.6, 0.4, 0.2], rtol=1e-6)


def test_optax_optimizers_take_our_schedules_and_ours_take_theirs():
    ours, theirs = optlab.schedules.linear(1.0, 0.0, 10), optax.linear_schedule(1.0, 0.0, 10)
    grad = jnp.ones(())
    for tx in (optax.sgd(ours), optlab.sgd(ours), optlab.sgd(theirs)):
        state = tx.init(grad)
        for _ in range(4):
            update, state = tx.update(grad, state)
        np.testing.assert_allclose(update, -0.7, rtol=1e-6)


# Arguments as people write them

COUNTS = {
    "every",
    "milestones",
    "transition_steps",
    "decay_steps",
    "warmup_steps",
    "stable_steps",
    "half_cycle_steps",
    "num_cycles",
    "total_steps",
    "boundaries",
    "start_step",
    "anneal_steps",
    "cycle_steps",
}


def with_counts(options, change):
    """The arguments with every number of updates changed."""
    return {
        name: ([change(count) for count in value] if isinstance(value, list) else change(value))
        if name in COUNTS
        else value
        for name, value in options.items()
    }


PAIRS = [pytest.param(*case.values[0], id=case.id) for case in CASES]
COUNTING = [pair for pair in PAIRS if COUNTS & set(pair.values[1])]


@pytest.mark.parametrize(
    "change", [float, np.float64, np.array, jnp.float32], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(("row", "options"), COUNTING)
def test_whole_numbers_of_updates_may_be_of_any_type(row, options, change):
    schedule, same = row.constructor(**options), row.constructor(**with_counts(options, change))
    assert repr(same) == repr(schedule)
    assert same.knots == schedule.knots
    assert [float(same(step)) for step in (1, 7)] == [float(schedule(step)) for step in (1, 7)]


@pytest.mark.parametrize(("row", "options"), COUNTING)
def test_parts_of_an_update_are_refused(row, options):
    with pytest.raises(ValueError, match=r"must be an integer >= [01], got .*\.5"):
        row.constructor(**with_counts(options, lambda count: count + 0.5))


def test_epochs_of_whole_numbers_of_any_type():
    to_steps = optlab.schedules.epochs_to_steps
    steps = to_steps(np.array([3.0]), num_examples=100.0, batch_size=np.float64(32))
    assert steps == 12
    assert type(steps) is int
    with pytest.raises(ValueError, match=r"epochs_to_steps: batch_size must be an integer >= 1"):
        to_steps(1, num_examples=10, batch_size=2.5)


@pytest.mark.parametrize("form", [np.array, jnp.array], ids=["numpy", "jax"])
@pytest.mark.parametrize(("row", "options"), PAIRS)
def test_values_may_be_arrays_of_one_element(row, options, form):
    arrays = {
        name: form([value]) if isinstance(value, float) else value
        for name, value in options.items()
    }
    schedule, same = row.constructor(**options), row.constructor(**arrays)
    for step in (0, 7, 1000):
        assert same(step).shape == ()
        np.testing.assert_allclose(same(step), schedule(step), rtol=1e-5)  # arrays are float32


GROWING = {
    "step_decay": (
        optlab.schedules.step_decay(0.1, 1.1, 5),
        optax.exponential_decay(0.1, 5, 1.1, staircase=True),
    ),
    "multistep": (
        optlab.schedules.multistep(0.1, 3.0, [4, 20, 21]),
        optax.piecewise_constant_schedule(0.1, {4: 3.0, 20: 3.0, 21: 3.0}),
    ),
    "exponential": (
        optlab.schedules.exponential(0.1, -np.log(1.1)),
        optax.exponential_decay(0.1, 1, 1.1),
    ),
    "cosine_restarts": (
        optlab.schedules.cosine_restarts(0.1, 10, 0.05, peak_factor=1.5, num_cycles=3),
        optax.sgdr_schedule(
            [
                {
                    "init_value": peak,
                    "peak_value": peak,
                    "warmup_steps": 0,
                    "decay_steps": 10,
                    "end_value": 0.05,
                }
                for peak in (0.1, 0.125, 0.1625)
            ]
        ),
    ),
}


@pytest.mark.parametrize("case", GROWING)
def test_a_factor_above_one_grows_as_in_optax(case):
    ours, theirs = GROWING[case]
    for step in (0, 3, 4, 5, 9, 12, 19, 20, 21, 27):
        # Optax's powers are those of the factor rounded to float32.
        np.testing.assert_allclose(ours(step), theirs(step), rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda s, one: s.step_decay(1e3 * one, 1.1, 5),
        lambda s, one: s.step_decay(1e3, 1.1 * one, 5),
        lambda s, one: s.step_decay(-1e3, 1 + 1e-6, 1),
        lambda s, one: s.step_decay(0.0, 3e38, 1),
        lambda s, one: s.multistep(1e3, 1e30, [5, 10, 15]),
        lambda s, one: s.multistep(1e3 * one, 1e30 * one, [5, 10, 15]),
        lambda s, one: s.exponential(1e3, -0.5),
        lambda s, one: s.exponential(-1e3 * one, -3e30 * one),
        lambda s, one: s.cosine_restarts(3e38, 3, -3e38, peak_factor=10.0),
    ],
)
def test_growth_ends_before_it_overflows(make):
    steps = jnp.array([0, 5, 1000, 10**6, LAST - 1, LAST])
    for value in (np.float64(1), jnp.float32(1)):
        values = jax.vmap(make(optlab.schedules, value))(steps)
        assert jnp.isfinite(values).all()
        assert float(values[-1]) == pytest.approx(float(values[-2]), rel=1e-6) or "cosine" in repr(
            make(optlab.schedules, value)
        )


@functools.cache
def usual_values(name):
    row = registry.SCHEDULES[name]
    return [float(row.constructor(**row.samples[-1])(step)) for step in (0, 7, LAST)]


@pytest.mark.parametrize("row", registry.SCHEDULES.values(), ids=lambda row: row.name)
def test_every_schedule_runs_under_every_setting_of_jax(row, jax_setting):
    wanted = usual_values(row.name)
    with jax_setting():
        schedule = row.constructor(**row.samples[-1])
        for number in (int, np.int64, np.uint8, jnp.uint32, jnp.int32):
            assert float(schedule(number(7))) == pytest.approx(wanted[1], rel=1e-6)
        # A double has digits that a float32 does not.
        values = [float(schedule(step)) for step in (0, 7, LAST)]
        np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-16)
        assert float(jax.jit(schedule)(7)) == pytest.approx(wanted[1], rel=1e-6)
