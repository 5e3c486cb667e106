"""`accumulate`: micro-batches averaged to one step, bad ones left out, the clock fixed."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optlab
from helpers import assert_same_bits, random_tree, seen, spoiled, stepping

rng = np.random.default_rng(0)
TOP = np.int32(2**31 - 1)
# An update is about ten operations of one rounding each, 6e-8, on numbers of order 1.
FEW_ROUNDINGS = {"rtol": 1e-6, "atol": 1e-6}


SHAPES = {"b": (4,), "w": (6, 4)}
PARAMS = random_tree(rng, SHAPES)
PARAMS["b"][0] = -0.0
GRADIENTS = [random_tree(rng, SHAPES) for _ in range(6)]


def mean(*trees):
    return jax.tree.map(lambda *g: np.mean(np.float64(g), axis=0).astype(np.float32), *trees)


def chain():
    return optax.chain(
        optlab.clip_by_global_norm(1.0),
        optlab.adamw(lambda step: 0.1 / (1 + step)),
        optlab.params_ema(0.9),
    )


@functools.cache
def compiled(make=chain, every=3):
    """A transformation and its compiled step."""
    tx = optlab.accumulate(make(), every)
    return tx, jax.jit(stepping(tx))


@functools.cache
def plain():
    return jax.jit(stepping(chain()))


def run(tx, step, gradients, params=PARAMS, state=None):
    state = tx.init(params) if state is None else state
    for g in gradients:
        params, state = step(g, params, state)
    return params, state


def assert_close(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **FEW_ROUNDINGS)


# The mean


def test_windows_equal_large_batches():
    tx, step = compiled()
    params, state = run(tx, step, GRADIENTS)
    want, want_state = run(chain(), plain(), [mean(*GRADIENTS[:3]), mean(*GRADIENTS[3:])])
    assert_close((params, state.inner), (want, want_state))
    assert (int(state.micro_step), int(state.finite), int(state.skipped)) == (0, 0, 0)


def test_between_steps_no_bit_of_parameters_or_inner_state_changes():
    tx, step = compiled()
    params, state = run(tx, step, GRADIENTS[:3])
    for i, g in enumerate(GRADIENTS[3:5]):
        new_params, new_state = step(g, params, state)
        assert_same_bits((new_params, new_state.inner), (params, state.inner))
        assert new_state.micro_step == i + 1
        params, state = new_params, new_state
    updates, _ = jax.eval_shape(tx.update, GRADIENTS[0], state, params)
    assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, PARAMS)


def test_a_window_of_one_is_the_transformation_itself():
    gradients = [{**g, "b": np.float32([-0.0, 0.0, 1e-30, 3e38])} for g in GRADIENTS[:3]]
    tx, step = compiled(every=1)
    params, state = run(tx, step, gradients)
    want, want_state = run(chain(), plain(), gradients)
    assert_same_bits((params, state.inner), (want, want_state))


@pytest.mark.parametrize(
    ("dtype", "gradients", "expected"),
    [
        ("float16", [6e4, 6e4, 6e4, 6.4e4], 6.1e4),  # the sum overflows
        ("float16", [6e-8, 0.0, 0.0, 0.0], 2.0**-26),  # the share underflows
        ("bfloat16", [256.0, 1.0, 1.0, 1.0], 64.75),  # 257 is none of its numbers
        ("float32", [3e38, 3e38, 3e38, 3e38], 3e38),  # the sum overflows here too
        ("float32", [3e38, -3e38, 3e38, 3e38], 1.5e38),
    ],
)
def test_the_mean_is_formed_in_float32_and_overflows_no_sooner_than_it_must(
    dtype, gradients, expected
):
    tx, step = compiled(seen, 4)
    params = {"w": jnp.zeros((), dtype)}
    _, state = run(tx, step, [{"w": jnp.asarray(g, dtype)} for g in gradients], params)
    assert state.inner["w"].dtype == jnp.float32
    np.testing.assert_allclose(state.inner["w"], expected, rtol=2e-7)


def test_double_and_complex_parameters_keep_their_precision():
    with jax.enable_x64(True):
        params = {"d": jnp.zeros(()), "c": jnp.zeros((), jnp.complex64)}
        tx = optlab.accumulate(optax.identity(), 3)
        state = tx.init(params)
        for d, c in ((0.1, 1 + 2j), (0.2, 3 - 1j), (0.4, -1 + 2j)):
            g = {"d": jnp.array(d), "c": jnp.array(c, jnp.complex64)}
            updates, state = tx.update(g, state)
        assert updates["d"].dtype == jnp.float64
        np.testing.assert_allclose(updates["d"], 0.7 / 3, rtol=1e-15)
        assert updates["c"].dtype == jnp.complex64
        np.testing.assert_allclose(updates["c"], 1 + 1j, rtol=3e-7)


# Gradients that are not finite


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_bad_micro_batch_is_left_out_of_the_mean(bad):
    tx, step = compiled()
    window = [spoiled(g) if i == bad else g for i, g in enumerate(GRADIENTS[:3])]
    params, state = run(tx, step, window)
    want, want_state = run(chain(), plain(), [mean(*(GRADIENTS[i] for i in range(3) if i != bad))])
    assert_close((params, state.inner), (want, want_state))
    assert (int(state.micro_step), int(state.finite), int(state.skipped)) == (0, 0, 1)


def test_the_mean_of_what_is_left_has_its_full_size():
    # An optimizer whose step depends on the size, unlike Adam's first.
    tx = optlab.accumulate(optlab.sgd(1.0), 2)
    state = tx.init(jnp.zeros(()))
    for g in (jnp.nan, 3.0):
        update, state = tx.update(jnp.asarray(g), state)
    assert float(update) == -3.0


def test_a_bad_micro_batch_leaves_no_trace_in_later_windows():
    tx, step = compiled()
    for value in (np.nan, np.inf):
        params, state = run(tx, step, [GRADIENTS[0], spoiled(GRADIENTS[1], value), GRADIENTS[2]])
        clean = tx.init(PARAMS)._replace(inner=state.inner)
        later = run(tx, step, GRADIENTS[3:], params, state)
        want = run(tx, step, GRADIENTS[3:], params, clean)
        assert_same_bits((later[0], later[1].inner), (want[0], want[1].inner))


def test_a_window_of_bad_micro_batches_makes_no_step_and_the_clock_goes_on():
    tx, step = compiled()
    bad = [
        spoiled(g, value) for g, value in zip(GRADIENTS, (np.nan, np.inf, -np.inf), strict=False)
    ]
    params, state = run(tx, step, bad)
    assert_same_bits((params, state.inner, state.total), (PARAMS, *tx.init(PARAMS)[:2]))
    assert (int(state.micro_step), int(state.finite), int(state.skipped)) == (0, 0, 3)
    later = run(tx, step, GRADIENTS[3:], params, state)
    want = run(tx, step, GRADIENTS[3:])
    assert_same_bits((later[0], later[1].inner), (want[0], want[1].inner))


def test_with_skip_nonfinite_around_the_next_micro_batch_takes_its_place():
    tx = optlab.skip_nonfinite(optlab.accumulate(chain(), 3))
    step = jax.jit(stepping(tx))
    params, state = run(tx, step, [GRADIENTS[0], spoiled(GRADIENTS[1]), *GRADIENTS[1:3]])
    want, want_state = run(tx, step, GRADIENTS[:3])
    assert_same_bits((params, state.inner), (want, want_state.inner))
    assert (int(state.skipped), int(state.inner.skipped)) == (1, 0)


def test_with_skip_nonfinite_within_a_bad_update_ends_its_window_like_any():
    def reciprocal(updates, params):
        return jax.tree.map(lambda u: 1 / u, updates)

    tx = optlab.accumulate(optlab.skip_nonfinite(optax.stateless(reciprocal)), 2)
    state, found = tx.init(jnp.zeros(())), []
    for g in (1.0, -1.0, 1.0, 3.0):
        updates, state = tx.update(jnp.array(g), state)
        found.append(float(updates))
    assert found == [0, 0, 0, 0.5]
    assert state.inner.skipped == 1


def skipping(make, every):
    """As `compiled`, with `skip_nonfinite` around."""
    tx = optlab.skip_nonfinite(optlab.accumulate(make(), every))
    return tx, jax.jit(stepping(tx))


@pytest.mark.parametrize("compile", [jax.jit, lambda f: f])
def test_a_window_with_an_infinite_update_is_dropped_and_later_ones_go_on(compile):
    inner = optax.chain(optax.trace(0.5), optax.sgd(1e10))
    tx = optlab.skip_nonfinite(optlab.accumulate(inner, 2))
    update, state, found = compile(tx.update), tx.init(jnp.zeros(())), []
    for g in (1.0, 1.0, 1e30, 1.0, 1.0, 1.0, 1.0, 1.0):
        updates, state = update(jnp.array(g), state)
        found.append(float(updates))
    want = [0, -1e10, 0, 0, 0, -1.5e10, 0, -1.75e10]  # as if the second window had not been
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert (int(state.inner.skipped), int(state.skipped)) == (2, 1)


def test_a_dropped_window_changes_no_bit():
    tx, step = skipping(lambda: optax.sgd(1e10, momentum=0.9), 2)
    params = {**PARAMS, "w": np.full((6, 4), -0.0, np.float32)}
    params, state = run(tx, step, [jax.tree.map(np.zeros_like, PARAMS)] * 2, params)
    huge = spoiled(GRADIENTS[0], 1e30)
    after, new_state = run(tx, step, [huge, GRADIENTS[1]], params, state)
    old, new = state.inner, new_state.inner
    assert_same_bits((after, new.inner), (params, old.inner))
    assert_same_bits(new.total, tx.init(PARAMS).inner.total)
    assert (int(new.micro_step), int(new.finite), int(new.skipped)) == (0, 0, 2)


def test_a_window_that_makes_the_state_infinite_is_dropped():
    tx, step = skipping(lambda: optax.adam(0.1), 2)
    params, state = run(tx, step, GRADIENTS[:2])
    after, new_state = run(tx, step, [spoiled(GRADIENTS[2], 1e30), GRADIENTS[3]], params, state)
    assert_same_bits((after, new_state.inner.inner), (params, state.inner.inner))
    assert new_state.inner.skipped == 2
    after, new_state = run(tx, step, GRADIENTS[4:], after, new_state)
    assert new_state.inner.skipped == 2
    assert np.all(np.asarray(after["w"]) != params["w"])


def test_the_count_of_dropped_micro_batches_saturates():
    tx, step = skipping(lambda: optax.sgd(1e10), 3)
    window = [spoiled(GRADIENTS[0], 1e30), *GRADIENTS[1:3]]
    _, state = run(tx, step, window)
    assert state.inner.skipped == 3
    state = state._replace(inner=state.inner._replace(skipped=jnp.array(TOP - 1)))
    _, state = run(tx, step, window, PARAMS, state)
    assert state.inner.skipped == TOP


def test_lanes_drop_their_own_windows():
    tx = optlab.skip_nonfinite(optlab.accumulate(optax.sgd(1e10), 2))
    state, update = jax.vmap(tx.init)(jnp.zeros(3)), jax.jit(jax.vmap(tx.update))
    for g in ([1, 1e30, 1], [1, 1, 3]):
        updates, state = update(jnp.array(g, jnp.float32), state)
    np.testing.assert_allclose(updates, [-1e10, 0, -2e10], rtol=1e-6)
    np.testing.assert_array_equal(state.inner.skipped, [0, 2, 0])


# The clock


def test_counters_near_their_end_keep_running():
    tx, step = compiled(functools.partial(optlab.adamw, 0.1))

    def near_the_end(x):
        return jnp.full_like(x, TOP - 2) if x.dtype == jnp.int32 else x

    params, state = run(tx, step, GRADIENTS[:1], state=jax.tree.map(near_the_end, tx.init(PARAMS)))
    assert state.micro_step == state.finite == 0
    for window in range(4):
        before = params
        params, state = run(tx, step, [GRADIENTS[0], spoiled(GRADIENTS[1])], params, state)
        assert_same_bits(params, before)
        params, state = run(tx, step, GRADIENTS[2:3], params, state)
        assert not np.array_equal(params["w"], before["w"])
        assert state.skipped == min(int(TOP) - 1 + window, TOP)


def test_every_kth_call_of_a_long_scan_makes_a_step():
    tx = optlab.accumulate(optlab.sgd(1.0), 7)
    g = jnp.ones(())

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (params + updates, state), updates

    run = jax.jit(lambda carry: jax.lax.scan(body, carry, length=7001))
    (_, state), updates = run((jnp.zeros(()), tx.init(jnp.zeros(()))))
    made = np.flatnonzero(updates)
    np.testing.assert_array_equal(made, np.arange(6, 7001, 7))
    np.testing.assert_allclose(np.asarray(updates)[made], -1.0, rtol=1e-6)
    assert optax.tree_utils.tree_get(state, "count") == 1000
    assert state.micro_step == 1


def test_the_rule_runs_only_when_a_window_ends():
    calls = []

    def update(updates, state, params=None):
        jax.debug.callback(lambda: calls.append(1))
        return updates, state

    tx, step = compiled(lambda: optax.GradientTransformation(lambda p: (), update))
    run(tx, step, GRADIENTS)
    run(tx, step, [spoiled(g) for g in GRADIENTS[:3]])
    jax.effects_barrier()
    assert len(calls) == 2


# Execution


def test_eager_equals_compiled():
    tx, step = compiled()
    gradients = [GRADIENTS[0], spoiled(GRADIENTS[1]), *GRADIENTS[2:4]]
    assert_close(run(tx, stepping(tx), gradients), run(tx, step, gradients))


def test_scan_equals_loop():
    tx, step = compiled()
    gradients = [GRADIENTS[0], spoiled(GRADIENTS[1]), *GRADIENTS[2:]]
    stacked = jax.tree.map(lambda *g: np.stack(g), *gradients)

    @jax.jit
    def scan(params, state):
        return jax.lax.scan(lambda c, g: (step(g, *c), None), (params, state), stacked)[0]

    assert_close(scan(PARAMS, tx.init(PARAMS)), run(tx, step, gradients))


def test_lanes_at_different_points_of_their_windows():
    tx, step = compiled()
    lanes = [run(tx, step, GRADIENTS[:i]) for i in range(4)]
    bad_lane = run(tx, step, [spoiled(GRADIENTS[0], np.inf)] * 2)
    lanes.append(bad_lane)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *lanes)
    many = jax.jit(jax.vmap(stepping(tx), in_axes=(None, 0, 0)))
    for g in (GRADIENTS[4], spoiled(GRADIENTS[5]), GRADIENTS[3]):
        stacked = many(g, *stacked)
        lanes = [step(g, *lane) for lane in lanes]
    for i, lane in enumerate(lanes):
        assert_close(jax.tree.map(lambda x, i=i: x[i], stacked), lane)


def test_sharded_equals_a_single_device():
    mesh = jax.make_mesh((2,), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    tx, step = compiled()
    gradients = [GRADIENTS[0], spoiled(GRADIENTS[1]), GRADIENTS[2]]  # a NaN on the second device
    params = jax.device_put(PARAMS, sharding)
    got, state = run(tx, step, jax.device_put(gradients, sharding), params)
    assert_close((got, state), run(tx, step, gradients))
    for leaf in jax.tree.leaves((got, state.total)):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_donation_is_safe():
    tx, step = compiled()
    donating = jax.jit(stepping(tx), donate_argnums=(1, 2))
    got = run(tx, donating, GRADIENTS[:4], jax.tree.map(jnp.array, PARAMS))
    assert_same_bits(got, run(tx, step, GRADIENTS[:4]))


def test_a_window_resumes_bitwise_from_a_pickle():
    tx, step = compiled()
    params, state = run(tx, step, GRADIENTS[:4])
    restored = pickle.loads(pickle.dumps(state))
    assert_same_bits(
        run(tx, step, GRADIENTS[4:], params, restored), run(tx, step, GRADIENTS[4:], params, state)
    )


def test_the_layout_of_the_state_never_changes():
    # Optax's Adam keeps moments in the parameters' type, and lets wider gradients widen it.
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)
    tx = optlab.accumulate(optax.adam(0.1), 2)
    state = tx.init(params)
    _, new_state = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


# Company


def test_averages_and_schedules_within_count_steps():
    tx, step = compiled()
    params, state = run(tx, step, GRADIENTS[:3])
    first = optlab.averaged_params(state)
    assert optlab.hyperparams(state)["learning_rate"] == np.float32(0.1)
    params, state = run(tx, step, GRADIENTS[3:5], params, state)
    assert_same_bits(optlab.averaged_params(state), first)
    params, state = run(tx, step, GRADIENTS[5:], params, state)
    assert optlab.hyperparams(state)["learning_rate"] == np.float32(0.05)
    assert_close(
        optlab.averaged_params(state),
        jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, first, params),
    )


def test_hyperparameters_are_read_and_replaced_within_a_window():
    tx, step = compiled(lambda: optlab.sgd(0.5), 2)
    params, state = run(tx, step, GRADIENTS[:1])
    assert optlab.hyperparams(state)["learning_rate"] == 0.5
    state = optlab.replace_hyperparams(state, learning_rate=0.25)
    params, state = run(tx, step, GRADIENTS[1:2], params, state)
    g = mean(*GRADIENTS[:2])
    assert_close(params, jax.tree.map(lambda p, g: p - 0.25 * g, PARAMS, g))
    assert optlab.hyperparams(state)["learning_rate"] == 0.25


def test_extra_arguments_are_those_of_the_call_that_ends_the_window():
    inner = optax.chain(optlab.sgd(1.0), optlab.reduce_on_plateau(0.5, patience=1))
    tx = optlab.accumulate(inner, 2)
    update, state, found = jax.jit(tx.update), tx.init(jnp.zeros(())), []
    for value in (0.0, 3.0, 0.0, 2.0, 0.0, 2.0):
        updates, state = update(jnp.ones(()), state, value=value)
        found.append(float(updates))
    assert found == [0, -1, 0, -1, 0, -0.5]


def test_in_a_chain_what_stands_before_it_sees_every_micro_batch():
    tx = optax.chain(optlab.clip_by_value(1.0), optlab.accumulate(optlab.sgd(1.0), 2))
    state = tx.init(jnp.zeros(()))
    for g in (5.0, 0.5):
        updates, state = tx.update(jnp.array(g), state)
    assert updates == -0.75


def test_groups_may_accumulate_over_different_windows():
    tx = optax.partition(
        {"slow": optlab.accumulate(optlab.sgd(1.0), 2), "fast": optlab.sgd(1.0)},
        {"w": "slow", "b": "fast"},
    )
    params, _ = run(tx, jax.jit(stepping(tx)), GRADIENTS[:1])
    assert_same_bits(params["w"], PARAMS["w"])
    assert not np.array_equal(params["b"], PARAMS["b"])


def test_master_params_around_it_lose_nothing_between_steps():
    tx = optlab.master_params(optlab.accumulate(optlab.sgd(0.001), 2))
    p = jnp.ones((), jnp.bfloat16)
    state = tx.init(p)
    for _ in range(20):
        updates, state = tx.update(jnp.ones_like(p), state, p)
        p = optax.apply_updates(p, updates)
    assert state.master == pytest.approx(0.99, abs=1e-6)
    assert float(p) == 0.98828125


# Weights


WEIGHTS = (1, 9, 0.5, 300, 7, 2)


def weighted_mean(gradients, weights):
    return jax.tree.map(
        lambda *g: np.average(np.float64(g), axis=0, weights=weights).astype(np.float32), *gradients
    )


def weighing(tx):
    def step(g, params, state, weight):
        updates, state = tx.update(g, state, params, weight=weight)
        return optax.apply_updates(params, updates), state

    return step


def test_the_step_is_made_of_the_mean_over_all_tokens():
    tx = optlab.accumulate(optax.sgd(1.0), 2)
    state = tx.init(jnp.zeros(()))
    for gradient, tokens in ((10.0, 1), (0.0, 9)):
        update, state = tx.update(jnp.array(gradient), state, weight=tokens)
    assert float(update) == -1.0


@pytest.mark.parametrize("number", [float, np.float32, jnp.array, lambda w: np.array([w])])
def test_weighted_windows_equal_large_batches(number):
    tx = optlab.accumulate(chain(), 3)
    state, params = tx.init(PARAMS), PARAMS
    for step in (weighing(tx), jax.jit(weighing(tx))):
        for g, weight in zip(GRADIENTS[:3], WEIGHTS[:3], strict=True):
            params, state = step(g, params, state, number(weight))
    large = weighted_mean(GRADIENTS[:3], WEIGHTS[:3])
    want, want_state = run(chain(), plain(), [large, large])
    assert_close((params, state.inner), (want, want_state))
    assert (float(state.weight), int(state.skipped)) == (0.0, 0)


def test_weights_of_one_change_no_bit():
    tx, step = compiled()
    params, state = run(tx, step, GRADIENTS[:5])
    others, other_state = PARAMS, tx.init(PARAMS)
    for g, weight in zip(GRADIENTS, (None, 1, 1.0, None, jnp.ones(())), strict=False):
        others, other_state = jax.jit(weighing(tx))(g, others, other_state, weight)
    assert_same_bits((params, state), (others, other_state))


def test_a_call_without_a_weight_counts_as_one_example():
    tx = optlab.accumulate(optax.sgd(1.0), 2)
    state = tx.init(jnp.zeros(()))
    _, state = tx.update(jnp.array(10.0), state)
    update, _ = tx.update(jnp.array(0.0), state, weight=9)
    assert float(update) == -1.0


def test_a_micro_batch_of_no_tokens_is_left_out_whatever_its_gradient():
    tx = optlab.accumulate(optax.sgd(1.0), 3)
    for zero in (0, jnp.zeros(())):
        state = tx.init(PARAMS)
        for g, weight in ((GRADIENTS[0], 2), (spoiled(GRADIENTS[1]), zero), (GRADIENTS[2], 6)):
            updates, state = jax.jit(tx.update)(g, state, PARAMS, weight=weight)
        want = weighted_mean((GRADIENTS[0], GRADIENTS[2]), (2, 6))
        assert_close(updates, jax.tree.map(jnp.negative, want))
        assert int(state.skipped) == 0


def test_a_window_of_no_tokens_makes_no_step():
    tx = optlab.accumulate(chain(), 2)
    state, params = tx.init(PARAMS), PARAMS
    for g in GRADIENTS[:2]:
        params, state = jax.jit(weighing(tx))(g, params, state, 0)
    assert_same_bits((params, state), (PARAMS, tx.init(PARAMS)))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-1.0, "finite and >= 0 in float32"),
        (np.nan, "finite and >= 0"),
        (np.inf, "finite and >= 0"),
        ("9", "a number or a scalar array"),
        (jnp.ones(2), "a scalar"),
        (1j, "real"),
    ],
    ids=repr,
)
def test_what_is_no_weight_is_an_error_or_costs_the_micro_batch(weight, message):
    tx = optlab.accumulate(optax.sgd(1.0), 2)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=f"^accumulate: weight must be {message[:15]}"):
        tx.update(GRADIENTS[0], state, PARAMS, weight=weight)
    if not isinstance(weight, float):
        return
    for g, w in zip(GRADIENTS[:2], (weight, 3.0), strict=True):
        updates, state = jax.jit(tx.update)(g, state, PARAMS, weight=w)
    assert_close(updates, jax.tree.map(jnp.negative, GRADIENTS[1]))
    assert int(state.skipped) == 1


def test_the_wrapped_transformation_does_not_see_the_weight():
    def update(updates, state, params=None, **extra_args):
        assert set(extra_args) == {"value"}
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = optlab.master_params(optlab.skip_nonfinite(optlab.accumulate(tx, 1)))
    updates, _ = tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS, weight=3, value=1.0)
    assert_close(updates, GRADIENTS[0])


def test_lanes_weigh_for_themselves():
    tx = optlab.accumulate(optax.sgd(1.0), 2)
    weights = jnp.array([[1.0, 9.0], [1.0, 1.0], [0.0, 0.0], [0.0, 2.0]])

    def lane(weights):
        state = tx.init(jnp.zeros(()))
        for g, weight in zip((10.0, 0.0), weights, strict=True):
            update, state = tx.update(jnp.array(g), state, weight=weight)
        return update

    np.testing.assert_array_equal(jax.jit(jax.vmap(lane))(weights), [-1.0, -5.0, 0.0, 0.0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_type_of_the_accumulated_gradients_can_be_chosen(dtype):
    keep_mean = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params=None: (updates, updates)
    )
    tx = optlab.accumulate(keep_mean, 2, accumulator_dtype=dtype)
    params = {"w": jnp.zeros(3), "z": jnp.zeros(3, jnp.complex64)}
    state = tx.init(params)
    for g, tokens in ((1.0, 100), (3.0, 300)):
        gradient = jax.tree.map(lambda p, g=g: jnp.full_like(p, g), params)
        updates, state = jax.jit(tx.update)(gradient, state, params, weight=tokens)
        assert (state.total["w"].dtype, state.total["z"].dtype) == (dtype, jnp.complex64)
    np.testing.assert_array_equal(updates["w"], 2.5)
    np.testing.assert_array_equal(updates["z"], 2.5)
    assert state.inner["w"].dtype == jnp.float32


def test_a_type_that_is_no_float_is_refused_for_accumulation():
    with pytest.raises(ValueError, match=r"^accumulate: accumulator_dtype must be a floating"):
        optlab.accumulate(optax.sgd(1.0), 2, accumulator_dtype=jnp.int32)


def test_a_wrapper_around_drops_weighted_windows_too():
    tx = optlab.skip_nonfinite(optlab.accumulate(optax.scale(1e38), 2))
    state = tx.init(jnp.ones(()))
    for g, weight in ((1e3, 1), (1e3, 5)):  # the update overflows
        update, state = jax.jit(tx.update)(jnp.array(g), state, jnp.ones(()), weight=weight)
    assert (float(state.inner.weight), int(state.inner.finite)) == (0.0, 0)
    assert (float(update), int(state.inner.skipped)) == (0.0, 2)


# Trees and errors


def test_a_gradient_of_none_takes_no_part_in_the_step():
    tx = optlab.accumulate(optlab.sgd(1.0, momentum=0.9), 2)
    state = tx.init(PARAMS)
    for g in GRADIENTS[:2]:
        updates, state = tx.update({**g, "w": None}, state, PARAMS)
        assert updates["w"] is None
    np.testing.assert_allclose(updates["b"], -mean(*GRADIENTS[:2])["b"], rtol=1e-6)
    assert_same_bits(state.total["w"], tx.init(PARAMS).total["w"])


def test_gradients_that_do_not_fit_are_refused_before_the_window_ends():
    tx = optlab.accumulate(optlab.sgd(1.0), 2)
    state = tx.init(PARAMS)
    for gradients, message in (
        ({**GRADIENTS[0], "x": 1.0}, r"same structure, got \['x'\] only in the gradients"),
        ({**GRADIENTS[0], "w": {"x": 1.0}}, r"same structure, got \['w'\]\['x'\] only in the grad"),
        ({**GRADIENTS[0], "w": 1.0}, r"gradient at \['w'\] must have the shape \(6, 4\)"),
        ({**GRADIENTS[0], "b": np.arange(4)}, r"gradients must be floating point or complex, got"),
    ):
        with pytest.raises(ValueError, match=f"^accumulate: .*{message}"):
            tx.update(gradients, state, PARAMS)


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(
        ValueError, match=r"^accumulate: tx must be an optax\.GradientTransformation, got 0\.1"
    ):
        optlab.accumulate(0.1, 2)


@pytest.mark.parametrize("every", [0, -3, 2.5, True, None, 2**31])
def test_a_window_is_a_positive_integer(every):
    with pytest.raises(ValueError, match=r"^accumulate: every must be "):
        optlab.accumulate(optlab.sgd(0.1), every)


def test_a_state_of_changing_structure_is_refused():
    tx = optax.GradientTransformation(lambda p: {}, lambda g, state, params=None: (g, {"n": 1}))
    tx = optlab.accumulate(tx, 1)
    with pytest.raises(ValueError, match=r"^accumulate: tx must keep the structure of its state"):
        tx.update(GRADIENTS[0], tx.init(PARAMS))
