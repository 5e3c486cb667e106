"""`noise_scale`: the estimates of a step, their averages, and where the gradients may come from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import optlab
from optlab.reference import noise_estimate
from optlab.scaling import (
    NoiseEstimate,
    estimate_noise,
    measured_noise,
    noise_scale,
    replica_noise,
)
from optlab.testing import check_transformation

# Sums of a few dozen float32 numbers, each rounded by 6e-8, and differences of two such sums that
# are up to ten times their difference.
FEW_ROUNDINGS = {"rtol": 1e-5}

PARAMS = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
rng = np.random.default_rng(0)


def gradients(number, mean=1.0):
    return [
        {k: np.float32(mean + rng.normal(size=p.shape)) for k, p in PARAMS.items()}
        for _ in range(number)
    ]


def fed(tx, trees, state=None, **options):
    """Return the state after updates with gradients; `options` have one value for each."""
    state = tx.init(PARAMS) if state is None else state
    for i, tree in enumerate(trees):
        _, state = tx.update(tree, state, PARAMS, **{k: v[i] for k, v in options.items()})
    return state


def accumulating(every=4, batch=2.0, decay=0.0):
    """Return the measurement around an accumulation, by default of the last window alone."""
    return noise_scale(optlab.accumulate(optlab.sgd(0.0), every), batch, decay=decay)


def multi_steps(every=4, batch=2.0):
    tx = optax.MultiSteps(optlab.sgd(0.0), every).gradient_transformation()
    return noise_scale(tx, batch, decay=0.0)


def assert_measured(state, trees, sizes, measured=1):
    want = noise_estimate([np.concatenate([g["w"].ravel(), g["b"]]) for g in trees], sizes)
    got = measured_noise(state)
    np.testing.assert_allclose([got.squared_norm, got.trace], want, **FEW_ROUNDINGS)
    assert got.measured == measured


def test_the_worked_example():
    # Of the sheet of facts: (3, 1) and (1, −1) have ‖G‖²̂ = 2 and Ŝ = 4.
    assert noise_estimate([[3, 1], [1, -1]], [1, 1]) == (2, 4)
    assert estimate_noise(6, 4, 1, 2) == NoiseEstimate(2, 4)


def test_the_noise_is_the_unbiased_covariance_of_the_batches():
    g = rng.normal(size=(5, 7))
    covariance = np.cov(g.T)  # divided by 5 − 1
    assert noise_estimate(g, [3] * 5)[1] == pytest.approx(3 * np.trace(covariance), rel=1e-12)


@pytest.mark.parametrize("make", [accumulating, multi_steps])
def test_a_window_is_measured_as_its_formula_says(make):
    trees = gradients(8)
    assert_measured(fed(make(), trees[:4]), trees[:4], [2] * 4)
    assert_measured(fed(make(), trees), trees[4:], [2] * 4, measured=2)


def test_weights_are_numbers_of_examples():
    trees, sizes = gradients(4), [1.0, 7.0, 0.0, 3.0]
    trees[2]["w"][:] = np.nan  # of weight 0, so left out
    state = fed(accumulating(batch=None), trees, weight=sizes)
    assert_measured(state, trees[:2] + trees[3:], [1, 7, 3])


@pytest.mark.parametrize("bad", [0, 3])
def test_a_micro_batch_that_is_lost_takes_no_part(bad):
    trees = gradients(4)
    trees[bad]["b"][:] = np.inf
    state = fed(accumulating(), trees)
    assert_measured(state, trees[:bad] + trees[bad + 1 :], [2] * 3)


def test_a_window_with_one_micro_batch_is_no_measurement():
    trees = gradients(2)
    trees[0]["b"][:] = np.nan
    assert measured_noise(fed(accumulating(every=2), trees)).measured == 0
    assert measured_noise(fed(accumulating(every=1), gradients(3))).measured == 0


def test_a_dropped_window_leaves_nothing_behind():
    # The step of a large gradient is infinite, though the gradient is finite.
    failing = optax.stateless(lambda u, p: jax.tree.map(lambda g: g / (abs(g) < 1e3), u))
    tx = optlab.skip_nonfinite(noise_scale(optlab.accumulate(failing, 2), 2.0, decay=0.0))
    trees = gradients(4)
    trees[1]["w"][:] = 1e6
    state = fed(tx, trees)
    assert optlab.skip_counts(state).skipped == 1
    assert_measured(state, trees[2:], [2, 2])


def test_updates_are_those_without_it():
    trees = gradients(8)
    tx, plain = accumulating(), optlab.accumulate(optlab.sgd(0.0), 4)
    state = fed(tx, trees)
    for ours, theirs in zip(
        jax.tree.leaves(state.inner), jax.tree.leaves(fed(plain, trees)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_complex_gradients_count_both_parts():
    tx = noise_scale(optlab.accumulate(optax.sgd(0.0), 2), 1, decay=0.0)
    params = jnp.zeros(1, complex)
    state = tx.init(params)
    for g in (3 + 1j, 1 - 1j):
        _, state = tx.update(jnp.array([g]), state, params)
    got = measured_noise(state)
    assert (got.squared_norm, got.trace, got.noise_scale) == (2, 4, 2)


# The simulation of the sheet of facts

TRUTH, DIMENSIONS, EXAMPLES, PARTS, WINDOWS = 458.0, 50, 8, 8, 4000


@functools.cache
def simulated(decay):
    """Return what is measured after each window, and every estimate of one window."""
    deviation = np.linspace(0.5, 2, DIMENSIONS)
    gradient = np.full(DIMENSIONS, np.sqrt((deviation**2).sum() / TRUTH / DIMENSIONS))
    draws = np.random.default_rng(1).normal(size=(WINDOWS, PARTS, DIMENSIONS))
    small = np.float32(gradient + deviation * draws / np.sqrt(EXAMPLES))
    tx = noise_scale(optlab.accumulate(optlab.sgd(0.0), PARTS), EXAMPLES, decay=decay)

    @jax.jit
    def run(windows):
        def window(state, parts):
            def part(state, g):
                return tx.update(g, state, g)[1], None

            state = jax.lax.scan(part, state, parts)[0]
            return state, (measured_noise(state), optlab.monitored(state))

        return jax.lax.scan(window, tx.init(windows[0, 0]), windows)[1]

    return run(small)


def test_two_averages_and_one_division_find_the_noise_scale():
    measured, record = simulated(0.999)
    # ‖G‖²̂ of one window has a deviation of 1.6 ‖G‖² (the noise of 64 examples, 458/64 ‖G‖², times
    # √(2/50), and what it does with the gradient), and the average over 2000 of them one of 4%.
    assert measured.noise_scale[-1] == pytest.approx(TRUTH, rel=0.12)
    assert measured.measured[-1] == WINDOWS
    np.testing.assert_array_equal(record["noise_scale"], measured.noise_scale)


def test_nothing_is_reported_while_the_estimate_is_not_positive():
    # The last window alone: its ‖G‖²̂ is often negative, so that means of quotients are far off.
    measured, _ = simulated(0.0)
    negative = np.asarray(measured.squared_norm) <= 0
    assert 0.1 < negative.mean() < 0.5
    np.testing.assert_array_equal(np.isnan(measured.noise_scale), negative)


def test_monitor_shows_it_beside_its_own_record():
    plain = optlab.monitor(optlab.accumulate(optlab.sgd(0.0), 2))
    tx = optlab.monitor(accumulating(every=2))
    trees = gradients(2)
    want = optlab.monitored(fed(plain, trees))
    got = optlab.monitored(fed(tx, trees))
    assert got.pop("noise_scale") == measured_noise(fed(tx, trees)).noise_scale
    assert got == want
    assert np.isnan(optlab.monitored(tx.init(PARAMS))["noise_scale"])
    both = optax.partition({"a": tx, "b": tx}, {"w": "a", "b": "b"})
    assert {"a/noise_scale", "b/noise_scale"} <= optlab.monitored(both.init(PARAMS)).keys()


# Replicas


def test_replicas_are_measured_before_their_gradients_are_averaged():
    trees, sizes = gradients(4), [1.0, 2.0, 3.0, 4.0]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    mean, estimate = jax.vmap(lambda g, n: replica_noise(g, "data", n), axis_name="data")(
        stacked, jnp.array(sizes)
    )
    want = jax.tree.map(lambda *x: np.average(np.float64(x), axis=0, weights=sizes), *trees)
    for leaf, other in zip(jax.tree.leaves(mean), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(leaf[0], other, **FEW_ROUNDINGS)
    tx = noise_scale(optlab.sgd(0.0), decay=0.0)
    state = fed(tx, trees[:1], noise=[jax.tree.map(lambda x: x[0], estimate)])
    assert_measured(state, trees, sizes)


def of_shards(vary, axes="data"):
    """Return the function of parameters and data, sharded over both devices."""
    mesh = Mesh(np.array(jax.devices()[:2]).reshape(1, 2), ("pod", "data"))

    def shard(params, x):
        own = jax.lax.pcast(params, "data", to="varying") if vary else params
        g = jax.grad(lambda p: jnp.mean(jnp.sum((p - x) ** 2, 1)) / 2)(own)
        return replica_noise(g, axes, x.shape[0])

    return jax.shard_map(shard, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), P()))


def test_replicas_of_a_mesh_have_the_noise_of_the_examples():
    x = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    mean, estimate = jax.jit(of_shards(vary=True))(jnp.zeros(3), x)
    np.testing.assert_allclose(mean, -x.mean(0), **FEW_ROUNDINGS)
    want = noise_estimate([-x[:4].mean(0), -x[4:].mean(0)], [4, 4])
    np.testing.assert_allclose([estimate.squared_norm, estimate.trace], want, **FEW_ROUNDINGS)


def test_gradients_that_are_summed_already_are_refused():
    with pytest.raises(ValueError, match=r"must be those of each replica.*pcast\(params, 'data'"):
        of_shards(vary=False)(jnp.zeros(3), jnp.zeros((8, 3)))
    with pytest.raises(ValueError, match=r"each replica, got one that is the same along pod at"):
        of_shards(vary=True, axes=("pod", "data"))(jnp.zeros(3), jnp.zeros((8, 3)))


def test_an_axis_that_the_mesh_does_not_have_is_refused():
    with pytest.raises(ValueError, match="axis that the call runs over, got axis_name='model'"):
        of_shards(vary=True, axes="model")(jnp.zeros(3), jnp.zeros((8, 3)))


# The checks of other transformations

LIFE = ["odd_trees_pass_through", "runs_under_strict_settings", "scan_equals_loop"]
LIFE += ["sharded_equals_single_device", "complex_equals_two_reals", "donation_is_safe"]


@pytest.mark.slow
def test_it_passes_the_checks_of_transformations():
    tx = noise_scale(optlab.accumulate(optlab.adam(0.1), 2), 8)
    assert len(check_transformation(tx, only=LIFE).outcomes) == len(LIFE)


# Bad input


def test_bad_arguments_are_refused():
    def raises(message):
        return pytest.raises(ValueError, match=message)

    tx = optlab.accumulate(optlab.sgd(0.0), 2)
    with raises("noise_scale: tx must be an optax.GradientTransformation, got 3"):
        noise_scale(3, 2)
    with raises("noise_scale: batch must be finite and > 0, got batch=0"):
        noise_scale(tx, 0)
    with raises(r"noise_scale: decay must be in \[0, 1\), got decay=1.0"):
        noise_scale(tx, 2, decay=1.0)
    with raises("micro-batch must be known, got batch=None and a call without weight=; pass"):
        fed(noise_scale(tx), gradients(1))
    with raises("must accumulate micro-batches, or update must be given noise=, got a state of"):
        fed(noise_scale(optlab.sgd(0.0), 2), gradients(1))
    with raises("micro-batches of MultiSteps must weigh the same, got weight=; use optlab.acc"):
        fed(multi_steps(), gradients(1), weight=[2.0])
    sums = optax.MultiSteps(optlab.sgd(0.0), 2, use_grad_mean=False).gradient_transformation()
    with raises("must form the mean of the gradients, not their sum, got use_grad_mean=False"):
        noise_scale(sums, 2)
    with raises("noise must be a NoiseEstimate, got float"):
        fed(noise_scale(optlab.sgd(0.0)), gradients(1), noise=[2.0])
    with raises("measured_noise: the state must hold one noise_scale, got 0 in a state of type"):
        measured_noise(tx.init(PARAMS))
    with raises("estimate_noise: small_batch must be below large_batch, got small_batch=4, large"):
        estimate_noise(1.0, 1.0, 4, 4)
    with raises("estimate_noise: small_batch must be finite and > 0, got small_batch=0"):
        estimate_noise(1.0, 1.0, 0, 4)
    with raises("replica_noise: the axis 'data' must have at least two replicas, got 1"):
        jax.vmap(lambda g: replica_noise(g, "data", 1), axis_name="data")(jnp.zeros((1, 3)))
