"""Where float32 loses digits: bias corrections, averages over long times, norms, clipping."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab._tree import _norm_at_once, _norm_in_double, scaled_norm
from optlab.rules._hyperparams import Hyperparams, decay

EPS = float(np.finfo(np.float32).eps)


def corrections(beta, updates):
    """Return 1/(1 − Πβ) after each update, as a compiled loop forms it."""
    hyper = Hyperparams("test", {"beta": decay(beta, bias_corrected=True)})

    def body(stored, count):
        in_force, stored = hyper.step(count, stored)
        return stored, in_force.beta.correction

    return jax.jit(lambda: jax.lax.scan(body, hyper.init(), jnp.arange(updates))[1])()


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 0.9999, 0.99999])
def test_bias_correction_is_right_to_four_roundings_at_every_update(beta):
    got = np.asarray(corrections(beta, 100_000), np.float64)
    t = np.arange(1, 100_001)
    exact = np.ones(len(t)) if beta == 0 else -np.expm1(t * np.log(beta))
    # Three are XLA's expm1's own (3.3e-7); 1 − float32(0.999)ᵗ errs by 2e-5.
    assert np.abs(got * exact - 1).max() <= 4 * EPS


def test_bias_correction_is_exact_when_the_decay_moves():
    def schedule(step):
        return 0.85 + 0.1 * jnp.cos(step / 300.0)

    got = np.asarray(corrections(schedule, 20_000), np.float64)
    betas = np.asarray(jax.vmap(schedule)(jnp.arange(20_000)), np.float64)
    exact = -np.expm1(np.cumsum(np.log(betas)))
    assert np.abs(got * exact - 1).max() <= 4 * EPS


def test_a_replaced_decay_corrects_from_its_own_value():
    hyper = Hyperparams("test", {"beta": decay(0.999, bias_corrected=True)})
    replaced = hyper.init().at[0].set(0.5)
    in_force, stored = hyper.step(jnp.array(0), replaced)
    assert float(in_force.beta.correction) == 2.0
    in_force, _ = hyper.step(jnp.array(1), stored)
    assert float(in_force.beta.correction) == np.float32(4 / 3)


@pytest.mark.parametrize(("b2", "naive_error"), [(0.999, 1e-5), (0.9999, 1e-4)])
def test_second_moments_settle_without_the_bias_of_a_rounded_decay(b2, naive_error):
    # float32(0.999) differs from 0.999 by 1.3e-8, which a plain average multiplies by 1000.
    g = np.random.default_rng(0).normal(size=(40_000, 8)).astype(np.float32)
    tx = optlab.scale_by_adam(b2=b2)

    def body(carry, g):
        state, naive = carry
        return (tx.update(g, state)[1], b2 * naive + (1 - b2) * g * g), None

    start = (tx.init(g[0]), jnp.zeros_like(g[0]))
    (state, naive), _ = jax.jit(lambda g: jax.lax.scan(body, start, g))(g)
    weights = (1 - b2) * b2 ** np.arange(len(g) - 1, -1, -1.0)
    exact = weights @ g.astype(np.float64) ** 2
    # Measured 1.7e-6 and 3.7e-6, the random sum of 1/(1 − β) roundings.
    assert np.abs(np.asarray(state.nu) / exact - 1).max() <= 5e-6
    assert np.abs(np.asarray(naive) / exact - 1).max() > naive_error


@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e-20, 1.0, 1e19, 1e30, 3e38])
def test_clipping_and_its_norm_survive_squares_out_of_range(size):
    g = {"a": jnp.full((3,), size, jnp.float32), "b": jnp.full((1,), -size, jnp.float32)}
    max_norm = size / 2  # a quarter of the norm, 2·size, which overflows for the last
    tx = optlab.clip_by_global_norm(max_norm)
    clipped, _ = jax.jit(tx.update)(g, tx.init(g))
    np.testing.assert_allclose(clipped["a"], size / 4, rtol=4 * EPS)
    np.testing.assert_allclose(clipped["b"], -size / 4, rtol=4 * EPS)
    if size < 1e38:
        np.testing.assert_allclose(optlab.global_norm(g), 2 * size, rtol=4 * EPS)


@pytest.mark.parametrize("x64", [False, True])
def test_integers_in_a_norm_count_as_floats(x64):
    tree = {"n": np.array([3, -4]), "flag": np.array([True, False]), "w": np.zeros(2, np.float32)}
    with jax.enable_x64(x64):
        norm, of_integers = optlab.global_norm(tree), optlab.global_norm([3, 4])
        assert norm.dtype == of_integers.dtype == jnp.float32
        np.testing.assert_allclose(norm, 26**0.5, rtol=EPS)
        np.testing.assert_allclose(optax.tree.norm(tree["n"]), of_integers, rtol=EPS)


def test_half_precision_norms_do_not_overflow():
    for dtype, value in ((jnp.float16, 60000.0), (jnp.bfloat16, 3e38)):
        x = jnp.full((4,), value, dtype)
        assert float(optlab.global_norm(x)) == pytest.approx(2 * float(x[0]), rel=4 * EPS) or (
            dtype == jnp.bfloat16 and np.isinf(optlab.global_norm(x))
        )
        tx = optlab.clip_by_global_norm(1.0)
        np.testing.assert_array_equal(np.asarray(tx.update(x, tx.init(x))[0], np.float32), 0.5)


def test_a_norm_of_zero_with_a_bound_of_zero_is_no_nan():
    tx = optlab.clip_by_global_norm(0.0)
    for value in (0.0, 1.0):
        g = jnp.full((3,), value)
        np.testing.assert_array_equal(tx.update(g, tx.init(g))[0], np.zeros(3))


def test_infinite_gradients_pass_the_norm_clip_unchanged():
    g = jnp.array([1.0, jnp.inf, -2.0])
    tx = optlab.clip_by_global_norm(1.0)
    np.testing.assert_array_equal(tx.update(g, tx.init(g))[0], g)
    assert np.isinf(optlab.global_norm(g))
    assert np.isnan(optlab.global_norm(g.at[0].set(jnp.nan)))


@pytest.mark.parametrize("size", [0.0, 1e-36, 1e-30, 1e-20, 1.0, 1e19, 1e30, 3e38])
def test_the_form_of_the_norm_for_gpus_equals_the_one_for_cpus(size):
    leaves = [jnp.full((5,), size, jnp.float32), jnp.full((1,), -size, jnp.float32)]
    at_once, in_double = (
        jax.jit(form)(None, leaves)
        for form in (partial(_norm_at_once, jnp.dtype("float32")), _norm_in_double)
    )
    assert at_once[1] == in_double[1]
    np.testing.assert_allclose(at_once[0], in_double[0], rtol=2 * EPS)  # sums in another order
    np.testing.assert_allclose(
        np.float64(in_double[0]) / np.float64(in_double[1]), size * 6**0.5, rtol=EPS
    )


@pytest.mark.parametrize("after", [None, 0])
def test_a_norm_of_float32_numbers_is_rounded_once(after):
    x = np.random.default_rng(0).normal(size=1_000_003).astype(np.float32)
    leaves = [x[:3], x[3:500_000], x[500_000:]]
    norm, scale = scaled_norm(leaves, after if after is None else jnp.int32(after))
    assert scale == 1
    assert norm == np.float32(np.linalg.norm(x.astype(np.float64)))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 4e18, 1e22, 1e30, 5e37])
def test_derivatives_of_a_norm_are_in_range_where_its_squares_are_not(size):
    x = jnp.array([3.0, 4.0]) * size
    # A curvature is a difference of two products, each of some ten roundings.
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(derivative(optlab.global_norm)(x), [0.6, 0.8], rtol=1e-5)
    curvature = np.array([[0.128, -0.096], [-0.096, 0.072]]) / size
    found = jax.hessian(optlab.global_norm)(x)
    np.testing.assert_allclose(found, curvature, rtol=1e-5, atol=1e-38)  # subnormal numbers are 0


def test_bfloat16_average_follows_the_rounded_parameters_under_jit():
    # 1 + 2⁻¹⁰ rounds to 1 in bfloat16: the parameters stay, and so must their average.
    tx = optlab.params_ema(0.5)
    p = jnp.ones((2,), jnp.bfloat16)
    u = jnp.full((2,), 2.0**-10, jnp.bfloat16)
    _, state = jax.jit(tx.update)(u, tx.init(p), p)
    np.testing.assert_array_equal(optlab.averaged_params(state), np.ones(2, np.float32))
    assert optlab.averaged_params(state).dtype == jnp.float32


def test_low_precision_moments_when_asked():
    p = jnp.ones((3,))
    for tx, slot in (
        (optlab.scale_by_adam(mu_dtype=jnp.bfloat16), "mu"),
        (optlab.scale_by_momentum(accumulator_dtype=jnp.bfloat16), "velocity"),
    ):
        state = tx.init(p)
        for _ in range(2):
            update, state = tx.update(p, state)
            assert getattr(state, slot).dtype == jnp.bfloat16
            assert update.dtype == jnp.float32
    assert state.hyperparams.dtype == jnp.float32


def test_a_moment_beyond_its_narrow_type_ends_at_its_largest_number():
    # 0.1·1e6 is beyond the range of float16. An infinite moment would never come back.
    p = jnp.ones(3)
    tx = optlab.scale_by_adam(mu_dtype=jnp.float16)
    _, state = tx.update(1e6 * p, tx.init(p))
    np.testing.assert_array_equal(state.mu, jnp.finfo(jnp.float16).max)


def test_gradients_flow_to_a_hyperparameter():
    """Also where the state was made with the same value, as in a hypergradient's first step."""
    p = jnp.ones(3)
    state = optlab.sgd(0.1).init(p)
    for rate in (0.1, 0.2):
        slope = jax.grad(lambda lr: optlab.sgd(lr).update(p, state, p)[0].sum())(rate)
        assert float(slope) == -3.0


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_long_memory_replaced_by_a_short_one_keeps_the_new_gradient(beta):
    tx = optlab.scale_by_momentum(0.9)
    state = tx.init(jnp.zeros(()))._replace(velocity=jnp.float32(1e4))
    state = optlab.replace_hyperparams(state, momentum=beta)
    velocity, _ = tx.update(jnp.float32(1e-4), state)
    np.testing.assert_allclose(velocity, np.float32(beta) * 1e4 + 1e-4, rtol=4 * EPS)


def test_narrow_gradients_are_not_copied_into_float32_for_their_norm():
    def norm(leaves):
        norm = optlab.global_norm(leaves)
        return norm, [leaf.astype(jnp.float32) / norm for leaf in leaves]

    leaves = [jax.ShapeDtypeStruct((2**16,), jnp.bfloat16)] * 3
    assert jax.jit(norm).lower(leaves).compile().memory_analysis().temp_size_in_bytes < 2**16
