"""`dynamic_loss_scale`: float16 gradients that do not vanish, and the course of the scale."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from helpers import seen
from optlab.wrappers import DynamicLossScaleState

OPTIONS = {"initial_scale": 16.0, "growth_interval": 3, "min_scale": 4.0, "max_scale": 64.0}
GOOD, BAD = np.float16(1.0), np.float16(np.inf)


@functools.cache
def compiled(make=seen, **options):
    """A transformation with its update compiled."""
    tx = optlab.dynamic_loss_scale(make(), **OPTIONS | options)
    return optax.GradientTransformation(tx.init, jax.jit(tx.update))


def scales(gradients, **options):
    """The scale after each of some steps."""
    tx = compiled(**options)
    state, found = tx.init(jnp.zeros((), jnp.float16)), []
    for g in gradients:
        _, state = tx.update(g, state)
        found.append(float(optlab.loss_scale(state)))
    return found


# Why it exists


@pytest.mark.parametrize("scaled", [False, True])
def test_a_float16_model_learns_only_with_a_scaled_loss(scaled):
    rng = np.random.default_rng(0)
    x = jnp.asarray(1e-4 * rng.normal(size=(64, 4)), jnp.float16)
    wanted = jnp.array([1.0, -1.0, 0.5, -0.5], jnp.float32)
    y = x.astype(jnp.float32) @ wanted
    # Adam is indifferent to the size of gradients; ε only has to be below it.
    adam = optlab.adam(0.02, eps=1e-15)
    tx = optlab.dynamic_loss_scale(adam, growth_interval=50) if scaled else adam

    def loss(w):
        return jnp.mean(((x @ w).astype(jnp.float32) - y) ** 2)

    @jax.jit
    def train(w):
        def body(carry, _):
            w, state = carry
            scale = optlab.loss_scale(state) if scaled else 1.0
            gradient = jax.grad(lambda w: scale * loss(w))(w)
            updates, state = tx.update(gradient, state, w)
            return (optax.apply_updates(w, updates), state), gradient

        return jax.lax.scan(body, (w, tx.init(w)), length=300)

    start = jnp.zeros(4, jnp.float16)
    (w, state), gradients = train(start)
    assert gradients.dtype == w.dtype == jnp.float16
    if scaled:
        np.testing.assert_allclose(w, wanted, atol=0.03)
        assert state.loss_scale > 2.0**15
    else:
        np.testing.assert_array_equal(gradients, 0)
        np.testing.assert_array_equal(w, start)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_power_of_two_costs_no_digit(dtype):
    # From the smallest float16 to numbers that would vanish in it once divided.
    g = jnp.asarray(np.float16([6e-8, -3.1e-7, 1e-5, 0.1, -333.0, 65504.0]), dtype)
    tx = compiled(initial_scale=2.0**24, max_scale=2.0**24)
    _, state = tx.update({"w": g}, tx.init({"w": g}))
    inner = state.inner.inner["w"]
    assert inner.dtype == jnp.float32
    np.testing.assert_array_equal(inner, np.asarray(g, np.float64) / 2.0**24)


def test_double_and_complex_gradients_are_divided_exactly():
    with jax.enable_x64(True):
        g = {"d": jnp.array(1 / 3), "c": jnp.array(complex(1 / 3, -0.0), jnp.complex64)}
        tx = optlab.dynamic_loss_scale(optax.identity(), initial_scale=2.0**10)
        updates, state = tx.update(g, tx.init(g))
        assert float(updates["d"]) == 1 / 3 / 2**10
        assert complex(updates["c"]) == complex(np.float32(1 / 3) / 2**10, -0.0)
        assert np.signbit(np.imag(updates["c"]))
        assert state.loss_scale.dtype == jnp.float32


# The course of the scale


def test_it_grows_after_an_interval_of_finite_steps_and_is_cut_at_once():
    assert scales([GOOD] * 4 + [BAD] + [GOOD] * 4) == [16, 16, 32, 32, 16, 16, 16, 32, 32]


def test_a_cut_starts_the_interval_anew():
    assert scales([GOOD, GOOD, BAD, GOOD, GOOD, GOOD]) == [16, 16, 8, 8, 8, 16]


def test_it_stays_within_its_bounds():
    assert scales([BAD] * 4) == [8, 4, 4, 4]
    assert scales([GOOD] * 12)[2::3] == [32, 64, 64, 64]


def test_the_bounds_need_not_be_powers_of_the_factor():
    options = {"factor": 3.0, "min_scale": 5.0, "max_scale": 100.0, "growth_interval": 1}
    np.testing.assert_allclose(scales([GOOD, GOOD, BAD], **options), [48, 100, 100 / 3], rtol=1e-6)
    np.testing.assert_allclose(scales([BAD, BAD], **options), [16 / 3, 5], rtol=1e-6)


def test_the_interval_goes_by_its_own_count_which_never_ends():
    tx = compiled()
    state = tx.init(jnp.zeros((), jnp.float16))
    state = state._replace(since_change=jnp.array(2**31 - 3, jnp.int32))
    found = []
    for _ in range(7):
        _, state = tx.update(GOOD, state)
        found.append((float(state.loss_scale), int(state.since_change)))
    assert found == [(32, 0), (32, 1), (32, 2), (64, 0), (64, 1), (64, 2), (64, 0)]


# Skipping


def test_an_overflow_changes_nothing_but_the_scale_and_the_counts():
    tx = compiled(functools.partial(optlab.adam, 0.1))
    params = {"w": jnp.array([1.0, -0.0], jnp.float16)}
    _, state = tx.update({"w": jnp.ones(2, jnp.float16)}, tx.init(params), params)
    updates, new_state = tx.update({"w": jnp.array([1, jnp.inf], jnp.float16)}, state, params)
    assert updates["w"].dtype == jnp.float16
    assert optax.apply_updates(params, updates)["w"].tobytes() == params["w"].tobytes()
    old, new = (jax.tree.leaves(s.inner.inner) for s in (state, new_state))
    assert [x.tobytes() for x in old] == [x.tobytes() for x in new]
    assert (int(new_state.inner.skipped), int(new_state.inner.consecutive)) == (1, 1)


def test_an_update_too_large_for_its_type_is_skipped():
    tx = compiled(functools.partial(optlab.sgd, 1e6))
    params = jnp.zeros((), jnp.float16)
    updates, state = tx.update(GOOD * 2, tx.init(params), params)  # −1.25e5 in float32
    assert updates == 0
    assert state.inner.skipped == 1


def test_it_gives_up_like_skip_nonfinite():
    tx = compiled(max_consecutive=2)
    state, flags = tx.init(jnp.zeros((), jnp.float16)), []
    for g in (BAD, GOOD, BAD, BAD, GOOD):
        _, state = tx.update(g, state)
        flags.append(bool(optlab.skip_counts(state).gave_up))
    assert flags == [False, False, False, True, True]


def test_a_skip_within_sees_only_what_the_rule_makes_of_finite_gradients():
    def reciprocal(updates, params):
        return jax.tree.map(lambda u: 1 / u, updates)

    tx = compiled(lambda: optlab.skip_nonfinite(optax.stateless(reciprocal)))
    state = tx.init(jnp.zeros((), jnp.float16))
    for g in (GOOD, BAD, np.float16(0.0)):
        updates, state = tx.update(g, state)
    within = state.inner.inner
    assert (int(state.inner.skipped), int(within.skipped)) == (1, 1)
    assert state.loss_scale == 8
    assert updates == 0


# Company


def test_each_lane_has_its_own_scale():
    tx = optlab.dynamic_loss_scale(optlab.sgd(1.0), **OPTIONS)
    state = jax.vmap(tx.init)(jnp.zeros(3, jnp.float16))
    step = jax.jit(jax.vmap(tx.update))
    for lanes in ([16, np.inf, 16], [16, 16, np.nan], [16, 16, 16]):
        updates, state = step(jnp.array(lanes, jnp.float16), state)
    np.testing.assert_array_equal(optlab.loss_scale(state), [32, 8, 8])
    np.testing.assert_array_equal(updates, [-1, -2, -2])


def test_accumulate_goes_inside_where_a_bad_micro_batch_does_not_count():
    tx = compiled(lambda: optlab.accumulate(optlab.sgd(1.0), 2))
    state, found = tx.init(jnp.zeros((), jnp.float16)), []
    for g in (16.0, np.inf, 24.0, 8.0, 8.0):  # true gradients 1, ∞, 3, 1, 1
        updates, state = tx.update(np.float16(g), state)
        found.append(float(updates))
    assert found == [0, 0, -2, 0, -1]
    assert state.loss_scale == 16  # cut by the ∞, grown after three finite micro-batches


def test_a_window_whose_update_is_too_large_for_its_type_is_dropped():
    # Only behind `accumulate`, which sees float32, is the update too large: 4·(6e4 + 1)/2.
    options = {"initial_scale": 1.0, "min_scale": 2.0**-8, "growth_interval": 100}
    tx = compiled(lambda: optlab.accumulate(optlab.sgd(4.0), 2), **options)
    state, found = tx.init(jnp.zeros((), jnp.float16)), []
    for g in (6e4, 1.0, 0.5, 0.5, 1.0, 0.5):  # scaled by 1, then by ½
        updates, state = tx.update(np.float16(g), state)
        found.append(float(updates))
    assert found == [0, 0, 0, -4, 0, -6]
    assert (int(optlab.skip_counts(state).skipped), int(state.inner.inner.skipped)) == (1, 2)
    assert state.loss_scale == 0.5


def test_a_state_that_becomes_infinite_is_skipped():
    tx = compiled(lambda: optax.adam(0.1, mu_dtype=jnp.float16), initial_scale=4.0)
    params = jnp.zeros(2)
    state = tx.init(params)
    updates, new_state = tx.update(jnp.array([4e7, 4.0]), state, params)
    assert not np.any(updates)
    assert [x.tobytes() for x in jax.tree.leaves(new_state.inner.inner)] == [
        x.tobytes() for x in jax.tree.leaves(state.inner.inner)
    ]
    assert optlab.skip_counts(new_state) == (1, 1, False)


def test_master_params_go_around_it():
    tx = optlab.master_params(optlab.dynamic_loss_scale(optlab.sgd(1e-4), **OPTIONS))
    params = jnp.ones((), jnp.float16)
    state = tx.init(params)
    for g in (16.0, np.inf, 8.0):  # true gradients 1, ∞, 1
        updates, state = tx.update(np.float16(g), state, params)
        assert updates.dtype == jnp.float16
        params = optax.apply_updates(params, updates)
    assert state.master == pytest.approx(1 - 2e-4, abs=1e-7)
    assert optlab.loss_scale(state) == 8


@pytest.mark.parametrize("around", [optlab.skip_nonfinite, lambda tx: optlab.accumulate(tx, 2)])
def test_what_would_hide_an_overflow_from_it_is_refused(around):
    tx = around(optax.chain(optax.identity(), optlab.dynamic_loss_scale(optlab.sgd(1.0))))
    message = "tx must not adapt to non-finite gradients, .* got DynamicLossScaleState; put its"
    with pytest.raises(ValueError, match=message):
        tx.init(jnp.zeros(()))


def test_two_of_them_are_refused():
    tx = optlab.dynamic_loss_scale(optlab.dynamic_loss_scale(optlab.sgd(1.0)))
    with pytest.raises(ValueError, match=r"^dynamic_loss_scale: tx must not adapt"):
        tx.init(jnp.zeros(()))


def test_no_branch_makes_a_device_wait():
    params = {"w": jnp.zeros(3)}

    def num_branches(tx):
        traced = jax.jit(tx.update).trace(params, tx.init(params), params)
        return traced.lower(lowering_platforms=("cuda",)).as_text().count("stablehlo.case")

    adam = optlab.adam(0.1)  # its own are the choice of the platform, made already
    assert num_branches(optlab.dynamic_loss_scale(adam)) == num_branches(adam)


def test_the_scale_is_found_however_deeply_nested():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    scaled = optlab.dynamic_loss_scale(optlab.adam(0.1), initial_scale=8.0)
    chain = optax.chain(optax.identity(), scaled)
    labelled = optax.partition({"one": chain, "other": optlab.sgd(0.1)}, {"a": "one", "b": "other"})
    for tx in (scaled, chain, labelled, optax.masked(chain, {"a": True, "b": False})):
        state = tx.init(params)
        assert optlab.loss_scale(state) == 8
        assert optlab.loss_scale({"opt_state": state, "step": 3}) == 8
    assert optlab.hyperparams(labelled.init(params))["one/learning_rate"] == np.float32(0.1)


def test_none_and_several_scales_are_errors():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    with pytest.raises(ValueError, match=r"^loss_scale: the state must hold a dynamic_loss_scale"):
        optlab.loss_scale(optlab.adam(0.1).init(params))
    scaled = optlab.dynamic_loss_scale(optlab.adam(0.1))
    tx = optax.partition({"one": scaled, "other": scaled}, {"a": "one", "b": "other"})
    with pytest.raises(ValueError, match=r"^loss_scale: the state must hold one .*, got 2; wrap"):
        optlab.loss_scale(tx.init(params))


def test_a_pickled_state_resumes_bitwise():
    tx = compiled(functools.partial(optlab.adam, 0.1))
    params = {"w": jnp.ones(3, jnp.float16)}
    state = tx.init(params)
    gradients = [jnp.full(3, g, jnp.float16) for g in (1, np.nan, 3, 0.5, 2, np.inf, 7)]
    for g in gradients[:3]:
        _, state = tx.update({"w": g}, state, params)
    restored = pickle.loads(pickle.dumps(state))
    assert isinstance(restored, DynamicLossScaleState)
    for g in gradients[3:]:
        updates, state = tx.update({"w": g}, state, params)
        other, restored = tx.update({"w": g}, restored, params)
        for x, y in zip(
            jax.tree.leaves((updates, state)), jax.tree.leaves((other, restored)), strict=True
        ):
            assert x.tobytes() == y.tobytes()


def test_bounds_that_contradict_are_refused():
    for options in ({"min_scale": 2.0**16}, {"max_scale": 2.0**14}):
        with pytest.raises(ValueError, match=r"^dynamic_loss_scale: initial_scale must be from"):
            optlab.dynamic_loss_scale(optlab.sgd(0.1), **options)
