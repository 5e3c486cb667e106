"""`skip_nonfinite`: a step with a NaN or an Inf anywhere changes nothing, and is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optlab
from helpers import assert_same_bits, bits, random_tree, spoiled, stepping
from optlab.wrappers import SkipCounts, SkipNonfiniteState, _common

rng = np.random.default_rng(0)
TOP = np.int32(2**31 - 1)


SHAPES = {"b": (4,), "w": (6, 4)}
PARAMS = random_tree(rng, SHAPES)
PARAMS["b"][0] = -0.0
GOOD = [random_tree(rng, SHAPES) for _ in range(4)]


BAD = spoiled(GOOD[0], np.nan)


def make(max_consecutive=None):
    """A chain with all kinds of state: counts, schedules, moments, an average of the parameters."""
    tx = optax.chain(
        optlab.clip_by_global_norm(1.0),
        optlab.adamw(lambda step: 0.1 / (1 + step)),
        optlab.params_ema(0.9),
    )
    return optlab.skip_nonfinite(tx, max_consecutive)


step = jax.jit(stepping(make(2)))


def run(tx, gradients, params=PARAMS, step=None):
    """Return the parameters and the state after some steps."""
    step, state = step or jax.jit(stepping(tx)), tx.init(params)
    for g in gradients:
        params, state = step(g, params, state)
    return params, state


# What is skipped


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_step_changes_no_bit(value):
    tx = make(2)
    params, state = PARAMS, tx.init(PARAMS)
    for g in GOOD[:2]:
        before = params, state.inner
        params, state = step(spoiled(g, value), params, state)
        assert_same_bits((params, state.inner), before)
        assert (int(state.skipped), int(state.consecutive)) == (1, 1)
        state = state._replace(skipped=jnp.zeros((), jnp.int32))
        params, state = step(g, params, state)
    assert state.skipped == state.consecutive == 0


def test_a_run_goes_on_as_if_the_bad_steps_had_never_been():
    clean, clean_state = run(make(2), GOOD, step=step)
    params, state = run(make(2), [BAD, GOOD[0], BAD, GOOD[1], GOOD[2], BAD, GOOD[3]], step=step)
    assert_same_bits((params, state.inner), (clean, clean_state.inner))
    assert optax.tree_utils.tree_get(state.inner[1][0], "count") == 4
    assert (int(state.skipped), int(state.consecutive)) == (3, 0)


def test_finite_steps_are_those_of_the_wrapped_transformation():
    # Eager, where each operation is rounded for itself whatever surrounds it.
    tx = optlab.sgd(0.1, momentum=0.9)
    with jax.disable_jit():
        want, want_state = run(tx, GOOD[:2], step=stepping(tx))
        tx = optlab.skip_nonfinite(tx)
        params, state = run(tx, GOOD[:2], step=stepping(tx))
    assert_same_bits((params, state.inner), (want, want_state))


def test_updates_that_are_not_finite_are_skipped_too():
    def reciprocal(updates, params):
        return jax.tree.map(lambda u: 1 / u, updates)

    tx = optlab.skip_nonfinite(optax.chain(optax.trace(0.9), optax.stateless(reciprocal)))
    params, state = PARAMS, tx.init(PARAMS)
    one_step = jax.jit(stepping(tx))
    new_params, new_state = one_step(spoiled(GOOD[0], 0.0), params, state)
    assert_same_bits((new_params, new_state.inner), (params, state.inner))
    assert new_state.skipped == 1
    new_params, new_state = one_step(GOOD[0], params, state)
    assert new_state.skipped == 0
    assert not np.array_equal(new_params["w"], params["w"])


def test_gradients_that_are_not_finite_are_skipped_whatever_is_made_of_them():
    tx = optlab.skip_nonfinite(optax.chain(optlab.clip_by_value(0.1), optlab.sgd(1.0)))
    params, state = run(tx, [spoiled(GOOD[0], np.inf)])
    assert_same_bits(params, PARAMS)
    assert state.skipped == 1


@pytest.mark.parametrize(
    ("tx", "gradient"),
    [
        (optax.adam(0.1), 1e30),  # whose square is infinite
        (optax.adam(0.1, mu_dtype=jnp.float16), 1e6),
        (optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.float16), 1e6),
        (optax.adam(0.1, mu_dtype=jnp.bfloat16), float(jnp.finfo(jnp.float32).max)),
    ],
)
@pytest.mark.parametrize("compiled", [True, False])
def test_finite_gradients_that_make_the_state_infinite_are_skipped(tx, gradient, compiled):
    params = jnp.zeros(2)
    tx = optlab.skip_nonfinite(tx)
    one_step, state = jax.jit(stepping(tx)) if compiled else stepping(tx), tx.init(params)
    params, state = one_step(jnp.array([1.0, -1.0]), params, state)
    new_params, new_state = one_step(jnp.array([gradient, 1.0]), params, state)
    assert_same_bits((new_params, new_state.inner), (params, state.inner))
    assert new_state.skipped == 1
    after, state = one_step(jnp.array([1.0, -1.0]), new_params, new_state)
    assert state.skipped == 1
    assert np.all(np.asarray(after) != np.asarray(params))


def test_a_state_may_start_with_what_is_not_finite():
    # A best value of Inf that is lowered, one of Inf that stays, and a NaN.
    def update(updates, state, params=None):
        low, stays, odd = state
        return updates, (jnp.minimum(low, updates), stays, odd)

    tx = optax.GradientTransformation(
        lambda p: tuple(map(jnp.array, (jnp.inf,) * 2 + (0.0,))), update
    )
    tx = optlab.skip_nonfinite(tx)
    state = tx.init(PARAMS)
    state = state._replace(inner=(*state.inner[:2], jnp.array(jnp.nan)))
    _, state = tx.update(jnp.array(2.0), state)
    assert state.skipped == 0
    assert state.inner[0] == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, jnp.array(-np.inf), np.float64(np.nan)])
def test_an_extra_argument_that_is_not_finite_skips_the_step(value):
    tx = optlab.skip_nonfinite(
        optax.chain(optlab.sgd(1.0), optlab.reduce_on_plateau(0.5, patience=1))
    )
    state = tx.init(PARAMS)
    _, state = tx.update(GOOD[0], state, PARAMS, value=1.0)
    updates, new_state = tx.update(GOOD[0], state, PARAMS, value=value)
    assert_same_bits(new_state.inner, state.inner)
    assert new_state.skipped == 1
    assert not np.any(updates["w"])


def test_extra_arguments_that_are_no_numbers_are_not_judged():
    tx = optlab.skip_nonfinite(optlab.sgd(1.0))
    odd = {"value_fn": lambda p: jnp.nan, "name": "nan", "none": None, "step": 3, "key": None}
    odd["key"] = jax.random.key(0)
    _, state = tx.update(GOOD[0], tx.init(PARAMS), PARAMS, **odd)
    assert state.skipped == 0
    _, state = tx.update(GOOD[0], state, PARAMS, **odd, losses={"a": jnp.array([1.0, np.nan])})
    assert state.skipped == 1


def test_a_skipped_step_returns_negative_zeros():
    tx = optlab.skip_nonfinite(optlab.sgd(0.1))
    updates, _ = tx.update(BAD, tx.init(PARAMS), PARAMS)
    for u in jax.tree.leaves(updates):
        assert not np.any(u)
        assert np.all(np.signbit(u))


def test_zero_plus_no_update_keeps_the_sign_of_both_parts():
    for p in (np.float32(-0.0), np.float16(-0.0), np.complex64(complex(-0.0, -0.0))):
        kept = p + np.asarray(_common.no_update(jnp.asarray(p)))
        assert kept.tobytes() == p.tobytes()


# Counting, and giving up


def test_counts_and_the_flag():
    tx = make(2)
    params, state = PARAMS, tx.init(PARAMS)
    history = []
    for g in (GOOD[0], BAD, GOOD[1], BAD, BAD, BAD, GOOD[2], BAD):
        params, state = step(g, params, state)
        history.append((int(state.skipped), int(state.consecutive), bool(state.gave_up)))
    assert history == [
        (0, 0, False),
        (1, 1, False),
        (1, 0, False),
        (2, 1, False),
        (3, 2, True),
        (4, 3, True),
        (4, 0, True),
        (5, 1, True),
    ]


def test_without_a_maximum_it_never_gives_up():
    tx = make()
    one_step, params, state = jax.jit(stepping(tx)), PARAMS, tx.init(PARAMS)
    state = state._replace(consecutive=jnp.array(TOP - 1))
    for _ in range(3):
        params, state = one_step(BAD, params, state)
    assert state.consecutive == TOP
    assert not state.gave_up


def test_counters_near_their_end_saturate():
    def near_the_end(x):
        return jnp.full_like(x, TOP - 2) if x.dtype == jnp.int32 else x

    state = jax.tree.map(near_the_end, make(2).init(PARAMS))
    params = PARAMS
    for g in (BAD, BAD, BAD, GOOD[0], GOOD[1], GOOD[2]):
        params, state = step(g, params, state)
    assert state.skipped == TOP
    assert state.consecutive == 0
    assert optax.tree_utils.tree_get(state.inner[1][0], "count") == TOP
    assert _common.all_finite(params)


# Execution


def test_no_branch_makes_a_device_wait():
    def num_branches(tx):
        traced = jax.jit(tx.update).trace(GOOD[0], tx.init(PARAMS), PARAMS)
        return traced.lower(lowering_platforms=("cuda",)).as_text().count("stablehlo.case")

    own = num_branches(optlab.adamw(0.1))  # the choice of the platform, made already
    assert num_branches(optax.apply_if_finite(optlab.adamw(0.1), 3)) > own
    assert num_branches(optlab.skip_nonfinite(optlab.adamw(0.1), 3)) == own


def test_each_lane_skips_for_itself():
    tx = make(2)
    lanes = jax.tree.map(lambda *x: np.stack(x), GOOD[0], BAD, GOOD[1])
    params = jax.tree.map(lambda p: np.stack([p, p, p]), PARAMS)
    state = jax.vmap(tx.init)(params)
    params, state = jax.jit(jax.vmap(stepping(tx)))(lanes, params, state)
    np.testing.assert_array_equal(state.skipped, [0, 1, 0])
    assert_same_bits(jax.tree.map(lambda x: x[1], params), PARAMS)
    assert_same_bits(jax.tree.map(lambda x: x[1], state.inner), tx.init(PARAMS).inner)
    for lane, g in ((0, GOOD[0]), (2, GOOD[1])):
        single, _ = step(g, PARAMS, tx.init(PARAMS))
        for got, want in zip(jax.tree.leaves(params), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(got[lane], want, rtol=1e-6, atol=1e-7)


def test_a_nan_on_one_device_skips_the_step_on_all():
    mesh = jax.make_mesh((2,), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    tx = make(2)
    params, good, bad = (jax.device_put(tree, sharding) for tree in (PARAMS, GOOD[0], BAD))
    assert [bool(np.isnan(s.data).any()) for s in bad["w"].addressable_shards] == [False, True]
    state = tx.init(params)
    new_params, new_state = step(bad, params, state)
    assert_same_bits((new_params, new_state.inner), (params, state.inner))
    assert all(x.sharding.is_equivalent_to(sharding, x.ndim) for x in jax.tree.leaves(new_params))
    new_params, _ = step(good, params, state)
    want, _ = step(GOOD[0], PARAMS, tx.init(PARAMS))
    for got, leaf in zip(jax.tree.leaves(new_params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-6, atol=1e-7)


def test_donated_buffers_hold_the_old_values_after_a_bad_step():
    tx = make(2)
    donating = jax.jit(stepping(tx), donate_argnums=(1, 2))
    params, state = jax.tree.map(jnp.array, PARAMS), tx.init(PARAMS)
    for g in (GOOD[0], BAD, BAD):
        params, state = donating(g, params, state)
    want, want_state = run(tx, [GOOD[0]], step=step)
    assert_same_bits((params, state.inner), (want, want_state.inner))
    assert bool(state.gave_up)


def test_the_layout_of_the_state_never_changes():
    # Optax's Adam keeps moments in the parameters' type, and lets wider gradients widen it.
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)
    tx = optlab.skip_nonfinite(optax.adam(0.1))
    state = tx.init(params)
    _, new_state = jax.eval_shape(tx.update, GOOD[0], state, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


# Company


def test_around_parts_of_a_chain_it_protects_those():
    tx = optax.chain(optlab.skip_nonfinite(optlab.scale_by_adam()), optax.scale(-0.1))
    params, state = run(tx, [GOOD[0], BAD])
    want, want_state = run(tx, [GOOD[0]])
    assert_same_bits((params, state[0].inner), (want, want_state[0].inner))


def test_around_multi_steps_a_bad_micro_batch_does_not_count():
    tx = optlab.skip_nonfinite(optax.MultiSteps(optlab.adam(0.1), 2).gradient_transformation())
    one_step = jax.jit(stepping(tx))
    params, state = run(tx, [GOOD[0], BAD, GOOD[1]], step=one_step)
    want, want_state = run(tx, GOOD[:2], step=one_step)
    assert_same_bits((params, state.inner), (want, want_state.inner))


def test_inside_multi_steps_a_bad_window_is_skipped():
    tx = optax.MultiSteps(optlab.skip_nonfinite(optlab.adam(0.1)), 2).gradient_transformation()
    params, state = run(tx, [GOOD[0], BAD])
    for got, want in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(got, want)
    assert optax.tree_utils.tree_get(state, "skipped") == 1


def test_a_window_whose_update_is_spoiled_behind_accumulate_is_dropped():
    tx = optlab.skip_nonfinite(
        optax.chain(optlab.accumulate(optlab.sgd(1.0), 2), optax.scale(1e20))
    )
    update, state, found = jax.jit(tx.update), tx.init(jnp.zeros(())), []
    for g in (1e30, 1.0, 1.0, np.nan, 3.0, 1.0, 1.0):
        updates, state = update(jnp.array(g), state)
        found.append(float(updates))
    np.testing.assert_allclose(found, [0, 0, 0, 0, -2e20, 0, -1e20], rtol=1e-6)
    within = state.inner[0]
    assert (int(state.skipped), int(within.skipped)) == (2, 2)
    assert optax.tree_utils.tree_get(within, "count") == 2


def test_a_window_under_way_stays_when_another_group_is_not_finite():
    tx = optax.partition(
        {"slow": optlab.accumulate(optlab.sgd(1.0), 3), "fast": optax.sgd(1e10)},
        {"b": "slow", "w": "fast"},
    )
    tx = optlab.skip_nonfinite(tx)
    ones = jax.tree.map(np.ones_like, PARAMS)
    params, state = run(tx, [ones, {**ones, "w": 1e30 * ones["w"]}, ones])
    assert_same_bits(params["b"], PARAMS["b"])
    within = state.inner.inner_states["slow"].inner_state
    assert (int(within.micro_step), int(within.skipped), int(state.skipped)) == (2, 0, 1)


@pytest.mark.parametrize("outermost", [True, False])
def test_groups_skip_together_only_if_wrapped_together(outermost):
    one = optlab.adam(0.1) if outermost else optlab.skip_nonfinite(optlab.adam(0.1))
    tx = optax.partition({"one": one, "other": optlab.sgd(0.1)}, {"w": "one", "b": "other"})
    params, _ = run(optlab.skip_nonfinite(tx) if outermost else tx, [BAD])
    assert_same_bits(params["w"], PARAMS["w"])
    assert np.array_equal(params["b"], PARAMS["b"]) == outermost


def test_masked_leaves_are_judged_outside_and_not_inside():
    mask = {"w": False, "b": True}
    outside = optlab.skip_nonfinite(optax.masked(optlab.sgd(0.1), mask))
    params, state = run(outside, [BAD])
    assert_same_bits(params, PARAMS)
    inside = optax.masked(optlab.skip_nonfinite(optlab.sgd(0.1)), mask)
    params, state = run(inside, [BAD])
    assert optax.tree_utils.tree_get(state, "skipped") == 0
    assert not np.array_equal(params["b"], PARAMS["b"])


def test_extra_arguments_pass_through():
    tx = optlab.skip_nonfinite(
        optax.chain(optlab.sgd(1.0), optlab.reduce_on_plateau(0.5, patience=1))
    )
    one_step, params, state = jax.jit(stepping(tx)), PARAMS, tx.init(PARAMS)
    for g, value in ((GOOD[0], 1.0), (BAD, 1.0), (GOOD[1], 1.0)):
        params, state = one_step(g, params, state, value=value)
        scale = optlab.hyperparams(state)["scale"]
        assert scale == (0.5 if g is GOOD[1] else 1.0)


def test_hyperparameters_are_read_and_replaced_within():
    tx = optlab.skip_nonfinite(optlab.sgd(0.5))
    state = optlab.replace_hyperparams(tx.init(PARAMS), learning_rate=0.25)
    assert optlab.hyperparams(state)["learning_rate"] == 0.25
    updates, state = tx.update(BAD, state, PARAMS)
    updates, state = tx.update(GOOD[0], state, PARAMS)
    np.testing.assert_array_equal(updates["b"], -0.25 * GOOD[0]["b"])
    assert isinstance(state, SkipNonfiniteState)


def test_random_keys_in_a_state_stay_too():
    tx = optlab.skip_nonfinite(optax.add_noise(0.1, 0.5, jax.random.key(0)))
    one_step, state = jax.jit(stepping(tx)), tx.init(PARAMS)
    _, after_bad = one_step(BAD, PARAMS, state)
    assert_same_bits(after_bad.inner, state.inner)
    _, after_good = one_step(GOOD[0], PARAMS, state)
    key, new_key = state.inner.rng_key, after_good.inner.rng_key
    assert bits(key) != bits(new_key)


# Reading the counts


def test_the_counts_are_found_however_deeply_nested():
    mask = {"b": True, "w": False}
    tx = optlab.skip_nonfinite(optlab.sgd(0.1), 1)
    labels = {"b": "one", "w": "other"}
    for nested in (
        tx,
        optax.chain(optax.identity(), tx),
        optax.masked(optax.chain(tx), mask),
        optax.partition({"one": tx, "other": optlab.sgd(0.1)}, labels),
        optlab.master_params(tx),
        optlab.accumulate(tx, 1),
        optlab.skip_nonfinite(tx, 1),
    ):
        _, state = nested.update(GOOD[0], nested.init(PARAMS), PARAMS)
        counts = optlab.skip_counts({"opt_state": state, "step": 1})
        assert counts == SkipCounts(0, 0, False)
        assert isinstance(counts, SkipCounts)
    for nested in (optax.chain(tx), optlab.dynamic_loss_scale(optlab.sgd(0.1), max_consecutive=1)):
        _, state = nested.update(BAD, nested.init(PARAMS), PARAMS)
        assert optlab.skip_counts(state) == (1, 1, True)


def test_of_one_around_another_the_outer_counts():
    tx = optlab.dynamic_loss_scale(optlab.skip_nonfinite(optlab.sgd(0.1)))
    _, state = tx.update(BAD, tx.init(PARAMS), PARAMS)
    assert optlab.skip_counts(state).skipped == 1
    assert optlab.skip_counts(state.inner.inner).skipped == 0


def test_counts_of_none_and_of_several_are_errors():
    with pytest.raises(
        ValueError,
        match=r"^skip_counts: the state must hold a skip_nonfinite or .*, got tuple; wrap",
    ):
        optlab.skip_counts(optlab.adam(0.1).init(PARAMS))
    tx = optlab.skip_nonfinite(optlab.sgd(0.1))
    tx = optax.partition({"one": tx, "other": tx}, {"b": "one", "w": "other"})
    _, state = tx.update(BAD, tx.init(PARAMS), PARAMS)
    with pytest.raises(
        ValueError, match=r"^skip_counts: .* must hold one .*, got 2 side by side; pass a part of"
    ):
        optlab.skip_counts(state)
    assert optlab.skip_counts(state.inner_states["one"]).skipped == 0
    assert optlab.skip_counts(state.inner_states["other"]).skipped == 1


def test_counts_of_a_vmapped_state_are_one_a_lane():
    tx = optlab.skip_nonfinite(optlab.sgd(0.1), 1)
    state = jax.vmap(tx.init)(jnp.zeros(3))
    _, state = jax.vmap(tx.update)(jnp.array([1.0, np.nan, 1.0]), state)
    for counts, want in zip(optlab.skip_counts(state), ([0, 1, 0],) * 3, strict=True):
        np.testing.assert_array_equal(counts, want)


def test_counts_in_flax_nnx_are_arrays():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optlab.skip_nonfinite(optlab.adam(0.1), 1), wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.full((3, 2), jnp.nan))))(model)
    optimizer.update(model, grads)
    counts = optlab.skip_counts(optimizer.opt_state)
    assert all(isinstance(x, jax.Array) for x in counts)
    assert bool(counts.gave_up)
    assert counts == (1, 1, True)


# Trees and types


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
)
def test_every_type_is_judged_by_its_own_range(dtype):
    with jax.enable_x64(True):
        largest = jnp.finfo(dtype).max
        full = jnp.full((3, 5), largest, dtype)
        assert _common.all_finite({"a": jnp.zeros(()), "b": full})
        for value in (np.nan, np.inf, -np.inf):
            assert not _common.all_finite({"a": jnp.zeros(()), "b": full.at[2, 4].set(value)})
            if dtype.startswith("complex"):
                assert not _common.all_finite(full.at[2, 4].set(complex(0, value)))


def test_leaves_that_are_no_floating_point_arrays_are_no_problem():
    integers = {"i": jnp.array([1, 2]), "flag": jnp.array(True)}
    odd = {"none": None, "masked": optax.MaskedNode(), **integers}
    tx = optlab.skip_nonfinite(optax.identity())
    for tree in ({}, (), odd, {"float": 1.0, "empty": jnp.zeros((0, 2))}):
        updates, state = tx.update(tree, tx.init(tree), tree)
        assert jax.tree.structure(updates) == jax.tree.structure(tree)
        assert state.skipped == 0
    updates, state = tx.update({**odd, "w": jnp.array(jnp.nan)}, tx.init(odd), odd)
    np.testing.assert_array_equal(updates["i"], 0)
    assert state.skipped == 1


def test_gradients_of_integers_pass_through():
    params = {"w": jnp.ones(2), "i": jnp.array([1, 2])}
    g = jax.grad(lambda p: jnp.sum(p["w"] * p["i"]), allow_int=True)(params)
    tx = optlab.skip_nonfinite(optax.masked(optlab.sgd(1.0), {"w": True, "i": False}))
    for gradient, skipped in ((g, 0), ({**g, "w": g["w"] * jnp.nan}, 1)):
        updates, state = tx.update(gradient, tx.init(params), params)
        assert updates["i"].dtype == jax.dtypes.float0
        assert state.skipped == skipped


# Errors


def test_what_cannot_be_wrapped_is_refused():
    for tx in (optlab.adam, 0.1, None):
        with pytest.raises(
            ValueError, match=r"^skip_nonfinite: tx must be an optax\.GradientTransformation, got"
        ):
            optlab.skip_nonfinite(tx)


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "3"])
def test_a_maximum_is_a_positive_integer(count):
    with pytest.raises(
        ValueError, match=r"^skip_nonfinite: max_consecutive must be an integer >= 1"
    ):
        optlab.skip_nonfinite(optlab.sgd(0.1), count)


def test_a_traced_count_is_told_to_be_a_python_int():
    remedy = r"got {}=.*; pass a Python int \(inject_hyperparams: name it in static_args\)"
    tx = optlab.sgd(0.1)
    for make, name in (
        (optlab.skip_nonfinite, "max_consecutive"),
        (optlab.accumulate, "every"),
        (optlab.dynamic_loss_scale, "growth_interval"),
    ):
        who = f"^{make.__name__}: {name} must be an integer >= 1, "
        make(tx, **{name: jnp.array(2)}).init(PARAMS)
        injected = optax.inject_hyperparams(make)(tx, **{name: 2})
        with pytest.raises(ValueError, match=who + remedy.format(name)):
            jax.jit(injected.update)(GOOD[0], injected.init(PARAMS), PARAMS)
        injected = optax.inject_hyperparams(make, static_args=(name,))(tx, **{name: 2})
        injected.update(GOOD[0], injected.init(PARAMS), PARAMS)


def test_a_state_of_changing_structure_is_refused():
    tx = optax.GradientTransformation(
        lambda params: {}, lambda g, state, params=None: (g, {"n": 1})
    )
    tx = optlab.skip_nonfinite(tx)
    with pytest.raises(
        ValueError, match=r"^skip_nonfinite: tx must keep the structure of its state"
    ):
        tx.update(GOOD[0], tx.init(PARAMS))


def test_the_program_grows_with_the_number_of_arrays_and_not_with_its_square():
    def lines(arrays):
        params = {str(i): jnp.ones(2) for i in range(arrays)}
        tx = optlab.skip_nonfinite(optlab.sgd(0.1))
        compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
        return compiled.as_text().count("\n")

    few, more, most = map(lines, (10, 20, 40))
    # Exactly 2 where lines grow with the arrays; copies of all flags in each loop made it 3.3.
    assert most - more <= 2.2 * (more - few)
