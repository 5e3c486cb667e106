"""Parameters in bfloat16 and float16: small updates are kept, and nothing overflows or cancels."""

import functools
import pickle
import re
import runpy
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import optlab
from helpers import assert_identical, assert_same_bits
from optlab import registry
from optlab.rules._arithmetic import round_to
from optlab.wrappers import _rounding

HALF = (jnp.bfloat16, jnp.float16)
KEY = jax.random.key(7)
WRAPPERS = {
    "master_params": optlab.master_params,
    "kahan_summation": optlab.kahan_summation,
    "stochastic_rounding": functools.partial(optlab.stochastic_rounding, key=KEY),
}
half_types = pytest.mark.parametrize("dtype", HALF, ids=lambda dtype: np.dtype(dtype).name)
# Where programs are long, one of the two types: the other is the same code with another rounding.
bfloat16 = pytest.mark.parametrize("dtype", [jnp.bfloat16], ids=["bfloat16"])
mostly_bfloat16 = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(jnp.bfloat16, id="bfloat16"),
        pytest.param(jnp.float16, id="float16", marks=pytest.mark.slow),
    ],
)
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
keepers = pytest.mark.parametrize(
    "wrap", [optlab.master_params, optlab.kahan_summation], ids=lambda wrap: wrap.__name__
)

RATE = 2.0**-10
"""A product with it is exact, so that no compiler can round a sum with it otherwise."""


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def random_tree(seed, dtype, wide_dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        "layer": Layer(
            jnp.asarray(scale * rng.normal(size=(4, 3)), dtype),
            jnp.asarray(scale * rng.normal(size=4), wide_dtype),
        ),
        "list": [jnp.asarray(scale * rng.normal(), dtype), jnp.zeros((0, 2), dtype)],
    }


def random_gradients(updates, dtype, wide_dtype=jnp.float32):
    trees = [random_tree(100 + i, dtype, wide_dtype) for i in range(updates)]
    return jax.tree.map(lambda *g: jnp.stack(g), *trees)


@functools.cache
def compiled_steps(tx):
    def body(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(gradients, params, state):
        state = tx.init(params) if state is None else state
        return jax.lax.scan(body, (params, state), gradients)[0]

    return run


def steps(tx, gradients, params, state=None):
    """Make all updates in one compiled scan; return the parameters and the state."""
    return compiled_steps(tx)(gradients, params, state)


def as_float64(x):
    return np.asarray(x).astype(np.float64)


def bits_of(x):
    return np.asarray(x, np.float32).view(np.uint32)


# Rounding


def finite_values(dtype, normal=False):
    """All finite values of a 16-bit type in order, in float32."""
    values = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    values = np.sort(values[np.isfinite(values)])
    return values[abs(values) >= float(jnp.finfo(dtype).tiny)] if normal else values


def neighbourhoods(dtype):
    """Every finite value, every midpoint of two, and the float32 numbers next to these."""
    values = finite_values(dtype)
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    centres = np.concatenate([values, middles]).view(np.uint32)
    around = np.concatenate([centres + np.uint32(d % 2**32) for d in (-2, -1, 0, 1, 2)])
    numbers = np.concatenate([around.view(np.float32), [np.inf, -np.inf, 1e9, -1e9, 3.4e38]])
    return numbers[~np.isnan(numbers)].astype(np.float32)


@half_types
@pytest.mark.parametrize("mode", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_rounding_equals_a_cast_bit_for_bit(dtype, mode):
    x = neighbourhoods(dtype)
    with np.errstate(over="ignore"):
        wanted = x.astype(dtype).astype(np.float32)
    got = mode(lambda x: round_to(x, dtype))(jnp.asarray(x))
    np.testing.assert_array_equal(bits_of(got), bits_of(wanted))


def test_reduce_precision_alone_would_lose_the_subnormal_numbers_of_float16():
    x = jnp.float32(2.0**-20)
    assert float(jax.lax.reduce_precision(x, 5, 10)) == 0
    assert float(round_to(x, jnp.float16)) == 2.0**-20


def eighths(dtype, normal=False):
    """For each pair of neighbours, the numbers 0 to 7 eighths of the way from one to the next.

    The way leads away from zero, and to the one beyond the largest number too.
    """
    values = np.unique(abs(finite_values(dtype, normal))).astype(np.float64)
    step = np.append(np.diff(values), values[-1] - values[-2])
    between = values[:, None] + step[:, None] * np.arange(8) / 8
    # Past the largest bfloat16 number float32 ends too.
    return values, values + step, np.minimum(between, np.finfo(np.float32).max).astype(np.float32)


@half_types
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("mode", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_stochastic_rounding_is_unbiased_between_any_two_neighbours(dtype, sign, mode):
    """With eight equally likely draws, a number k eighths of the way goes up in k of them."""
    # Arithmetic may take bfloat16's subnormal numbers, which are float32's, for zero.
    lower, upper, x = eighths(dtype, normal=dtype == jnp.bfloat16)
    draws = (np.arange(8, dtype=np.uint32) << 29) + np.uint32(2**28)
    rounded = mode(lambda x, bits: _rounding.stochastic(x, bits, dtype))
    went_up = np.zeros(x.shape, int)
    for draw in draws:
        got = sign * np.asarray(rounded(jnp.asarray(sign * x), jnp.full(x.shape, draw)))
        assert np.all((got == lower[:, None]) | (got == np.minimum(upper, lower[-1])[:, None]))
        went_up += got > lower[:, None]
    np.testing.assert_array_equal(went_up[:-1], np.broadcast_to(np.arange(8), x[:-1].shape))
    assert not went_up[-1].any()  # past the largest finite number there is none to go to


@half_types
def test_stochastic_rounding_never_moves_what_the_type_holds(dtype):
    x = finite_values(dtype)
    for draw in (0, 2**31, 2**32 - 1):
        bits = np.full(x.shape, draw, np.uint32)
        got = jax.jit(lambda x, bits: _rounding.stochastic(x, bits, dtype))(x, bits)
        np.testing.assert_array_equal(got, x)


@half_types
def test_the_smallest_fractions_of_a_step_count(dtype):
    """One unit in the last place of float32 goes up with that probability, and not otherwise."""
    x = np.nextafter(np.float32(1), np.float32(2))
    dropped = 23 - jnp.finfo(dtype).nmant
    bits = jnp.array([0, (2**dropped - 2), (2**dropped - 1)], jnp.uint32) << (32 - dropped)
    got = _rounding.stochastic(jnp.full(3, x), bits, dtype)
    np.testing.assert_array_equal(got, [1, 1, 1 + float(jnp.finfo(dtype).eps)])


def test_the_smallest_fractions_of_a_subnormal_step_count():
    x = jnp.full(3, 2.0**-24 * (1 + 2.0**-23), jnp.float32)
    bits = jnp.array([0, 2**9 - 1, 2**9], jnp.uint32)  # 2⁻²³ of 2³²
    got = _rounding.stochastic(x, bits, jnp.float16)
    np.testing.assert_array_equal(as_float64(got) * 2.0**24, [2, 2, 1])


@half_types
def test_rounding_keeps_the_finite_finite_and_passes_the_rest(dtype):
    largest = float(jnp.finfo(dtype).max)
    x = jnp.array([1e38, -3.4e38, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    wanted = np.clip([1e38, -3.4e38, np.inf, -np.inf, np.nan], -largest, largest)
    wanted[2:] = [np.inf, -np.inf, np.nan]
    bits = jnp.full(x.shape, 2**32 - 1, jnp.uint32)
    for got in (_rounding.nearest(x, dtype), _rounding.stochastic(x, bits, dtype)):
        np.testing.assert_allclose(got, wanted, rtol=float(jnp.finfo(dtype).eps))
        assert np.isfinite(got[:2]).all()


# Small updates


ULP = {jnp.bfloat16: 2.0**-7, jnp.float16: 2.0**-10}
"""The distance from 1 to the next number."""


@functools.cache
def after_small_updates(wrapper, dtype, lanes=1):
    """Move a weight of 1 by 10,000 updates of 1e-5 on average; return it, and its exact value."""
    sizes = np.random.default_rng(0).uniform(0, 2, (10_000, 1)).astype(np.float32)
    wrap = WRAPPERS.get(wrapper, lambda tx: tx)
    tx = wrap(optlab.sgd(1e-5))
    gradients = jnp.broadcast_to(-jnp.asarray(sizes, dtype), (10_000, lanes))
    params, state = steps(tx, gradients, jnp.ones(lanes, dtype))
    return params, state, 1 + 1e-5 * as_float64(jnp.asarray(sizes, dtype)).sum()


@half_types
def test_ten_thousand_small_updates_leave_a_plain_weight_where_it_was(dtype):
    params, _, exact = after_small_updates("none", dtype)
    assert float(params[0]) == 1
    assert exact == pytest.approx(1.1, abs=0.001)


@half_types
def test_ten_thousand_small_updates_move_a_weight_with_a_master_copy(dtype):
    params, state, exact = after_small_updates("master_params", dtype)
    assert float(state.master[0]) == pytest.approx(exact, abs=1e-5)  # 10,000 roundings of 2⁻²⁴
    assert abs(float(params[0]) - exact) <= ULP[dtype] / 2 + 1e-5


@half_types
def test_ten_thousand_small_updates_move_a_weight_with_kahans_summation(dtype):
    params, state, exact = after_small_updates("kahan_summation", dtype)
    theta = float(params[0]) + float(state.compensation[0])
    assert abs(float(params[0]) - exact) <= ULP[dtype]
    # Measured 0.44 and 0.012 steps: the compensation is rounded to 8 and 11 digits.
    assert abs(theta - exact) <= ULP[dtype] * (0.6 if dtype == jnp.bfloat16 else 0.02)


@half_types
def test_ten_thousand_small_updates_move_weights_right_on_average_if_rounded_at_random(dtype):
    params, _, exact = after_small_updates("stochastic_rounding", dtype, lanes=1024)
    # Each update moves a weight by one step with probability p = size/step: variance p(1 − p).
    deviation = np.sqrt((exact - 1) / ULP[dtype]) * ULP[dtype]
    assert abs(as_float64(params).mean() - exact) <= 4 * deviation / np.sqrt(1024)
    assert 0.85 * deviation <= as_float64(params).std() <= 1.05 * deviation


def test_kahan_in_bfloat16_resolves_what_its_docstring_says():
    for size, moved in ((2.0**-16, True), (2.0**-19, False)):
        gradients = jnp.full((2000, 1), -size, jnp.float32)
        tx = optlab.kahan_summation(optlab.sgd(1.0))
        p, state = steps(tx, gradients, jnp.ones(1, jnp.bfloat16))
        theta = float(p[0]) + float(state.compensation[0])
        assert (theta == pytest.approx(1 + 2000 * size, rel=1e-3)) == moved


@keepers
@half_types
def test_far_moves_land_where_they_should_at_last(wrap, dtype):
    """Signs change, sizes jump: updates the type cannot hold are caught up with."""
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.normal(size=4000) * 10.0 ** rng.uniform(-3, 3, 4000), dtype)
    g = jnp.asarray(rng.normal(size=4000) * 10.0 ** rng.uniform(-3, 3, 4000), dtype)
    tx = wrap(optlab.sgd(1.0))
    theta = p.astype(jnp.float32) - g.astype(jnp.float32)
    p, state = steps(tx, g[None], p)
    eps = float(jnp.finfo(dtype).eps)
    if wrap is optlab.master_params:
        assert_identical(state.master, theta)
    else:
        both = as_float64(p) + as_float64(state.compensation)
        # c is rounded to its type; what it is rounded from is as large as the update's rounding.
        error = abs(both - as_float64(theta)) - 2.0**-25
        assert np.all(error <= eps**2 * (abs(as_float64(g)) + abs(as_float64(theta))))
    p, state = steps(tx, jnp.zeros_like(g)[None], p, state)
    wanted = theta.astype(dtype)
    if wrap is optlab.kahan_summation:  # of two equally near it stays at the one it is
        both = as_float64(p) + as_float64(state.compensation)
        equally_near = abs(both - as_float64(p)) == abs(both - as_float64(wanted))
        p = jnp.where(equally_near, wanted, p)
    assert_identical(p, wanted)


# Numbers


def eager_steps(tx, gradients, params):
    """The same, each operation compiled alone, so that all round alike."""
    state = tx.init(params)
    for i in range(len(jax.tree.leaves(gradients)[0])):
        updates, state = tx.update(jax.tree.map(lambda g, i=i: g[i], gradients), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@bfloat16
@pytest.mark.parametrize(
    ("tx", "run", "updates"),
    [
        (optlab.sgd(RATE, momentum=0.5), steps, 200),
        (optlab.adam(0.01), eager_steps, 5),
        (optax.adam(0.01), eager_steps, 5),
    ],
    ids=["sgd", "adam", "optax_adam"],
)
def test_master_parameters_are_those_of_a_float32_run(tx, run, updates, dtype):
    p = random_tree(0, dtype)
    gradients = random_gradients(updates, dtype)
    params, state = run(optlab.master_params(tx), gradients, p)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (gradients, p))
    wanted, inner = run(tx, *wide)
    master = jax.tree.map(
        lambda p, m: p if isinstance(m, optax.MaskedNode) else m, params, state.master
    )
    assert_identical(master, wanted)
    assert_identical(state.inner, inner)
    assert_identical(params, jax.tree.map(lambda m, p: m.astype(p.dtype), wanted, p))


@wrappers
@bfloat16
def test_compiled_updates_equal_eager_ones_bit_for_bit(wrap, dtype):
    tx = wrap(optlab.sgd(RATE, momentum=0.5))
    params, gradients = random_tree(0, dtype, scale=0.01), random_gradients(8, dtype)
    assert_identical(steps(tx, gradients, params), eager_steps(tx, gradients, params))


@wrappers
@mostly_bfloat16
def test_two_updates_in_one_compilation_equal_two_compilations(wrap, dtype):
    """Within one XLA may hand on more digits of the parameters than their type holds."""
    tx = wrap(optlab.sgd(1.0))
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-2, 2, (2, 4096))  # many beyond Sterbenz' lemma
    p, g = (jnp.asarray(x, dtype) for x in sizes * rng.normal(size=sizes.shape))

    def step(params, state):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    once = jax.jit(step)
    twice = jax.jit(lambda params, state: step(*step(params, state)))
    assert_identical(twice(p, tx.init(p)), once(*once(p, tx.init(p))))


@half_types
def test_kahans_compensation_survives_compilation(dtype):
    tx = optlab.kahan_summation(optlab.sgd(1.0))
    p, g = jnp.ones(2, dtype), jnp.full(2, -(2.0**-13), dtype)

    @jax.jit
    def step(p, state):
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    p, state = step(p, tx.init(p))
    np.testing.assert_array_equal(as_float64(p), 1)
    np.testing.assert_array_equal(as_float64(state.compensation), 2.0**-13)


@half_types
def test_a_rounded_run_repeats_with_its_key_and_differs_with_another(dtype):
    gradients = jnp.full((50, 100), 1e-3, jnp.float32)
    params = jnp.ones(100, dtype)
    keys = (KEY, jax.random.key_data(KEY), jax.random.PRNGKey(7), jax.random.key(8))
    runs = [
        steps(optlab.stochastic_rounding(optlab.sgd(1.0), key), gradients, params) for key in keys
    ]
    assert_identical(runs[0], runs[1])
    assert_identical(runs[0], runs[2])
    assert not np.array_equal(runs[0][0], runs[3][0])


def test_leaves_and_updates_are_rounded_independently():
    tx = optlab.stochastic_rounding(optlab.sgd(1.0), KEY)
    params = {name: jnp.ones(10_000, jnp.bfloat16) for name in "ab"}
    g = jax.tree.map(lambda p: jnp.full(p.shape, -(2.0**-8), jnp.float32), params)  # half a step
    state = tx.init(params)
    first, state = tx.update(g, state, params)
    second, _ = tx.update(g, state, params)
    up = [as_float64(u) > 0 for u in (first["a"], first["b"], second["a"], second["b"])]
    for mean in [x.mean() for x in up] + [(up[0] == x).mean() for x in up[1:]]:
        assert mean == pytest.approx(0.5, abs=0.02)  # four standard deviations


@half_types
def test_the_mean_over_many_draws_is_the_float32_result(dtype):
    """Of subnormal, negative and ordinary weights, with each update's probability its own."""
    rng = np.random.default_rng(0)
    sizes = [1e-7, 3e-6, 1e-4, 0.02, 1.0, 300.0] if dtype == jnp.float16 else [1e-30, 1e-3, 1e20]
    p = jnp.asarray(np.repeat(sizes, 8) * rng.normal(size=8 * len(sizes)), dtype)
    g = p.astype(jnp.float32) * jnp.asarray(rng.uniform(-0.01, 0.01, p.shape), jnp.float32)

    def moved(key):
        tx = optlab.stochastic_rounding(optlab.sgd(1.0), key)
        return optax.apply_updates(p, tx.update(g, tx.init(p), p)[0]).astype(jnp.float32)

    draws = as_float64(jax.jit(jax.vmap(moved))(jax.random.split(KEY, 20_000)))
    theta = as_float64(p.astype(jnp.float32) - g)
    lower, upper = draws.min(0), draws.max(0)
    assert np.all((lower <= theta) & (theta <= upper) | (upper == lower))
    spread = np.maximum(upper - lower, abs(theta) * 2.0**-24)
    # A mean of 20,000 draws of which each is one of two has a deviation of at most 0.0036 of them.
    assert np.all(abs(draws.mean(0) - theta) <= 5 * 0.0036 * spread)


@wrappers
def test_leaves_of_float32_and_wider_are_bitwise_as_without(wrap):
    with jax.enable_x64(True):
        dtypes = (jnp.float32, jnp.float64, jnp.complex64)
        wide = {np.dtype(dtype).name: jnp.arange(1, 5).astype(dtype) for dtype in dtypes}
        params = {"wide": wide, "half": jnp.ones(4, jnp.bfloat16)}
        gradients = jax.tree.map(lambda p: jnp.stack([p * 0.37, p * -0.11]), params)
        tx = optlab.adamw(0.01)
        wanted, got = (steps(t, gradients, params)[0] for t in (tx, wrap(tx)))
        assert_identical(got["wide"], wanted["wide"])
        wanted, got = (steps(t, gradients["wide"], wide)[0] for t in (tx, wrap(tx)))
        assert_identical(got, wanted)


@wrappers
def test_a_low_precision_gradient_of_a_float32_leaf_passes_as_it_is(wrap):
    p, g = jnp.ones(3), jnp.full(3, 0.3, jnp.bfloat16)
    plain, wrapped = optlab.sgd(0.1), wrap(optlab.sgd(0.1))
    assert_identical(wrapped.update(g, wrapped.init(p), p)[0], plain.update(g, plain.init(p), p)[0])


@wrappers
@bfloat16
def test_zero_gradients_change_nothing(wrap, dtype):
    for tx in (optlab.adam(0.1), optax.adam(0.1)):
        params = random_tree(0, dtype)
        gradients = jax.tree.map(lambda g: jnp.zeros_like(g), random_gradients(3, dtype))
        assert_identical(steps(wrap(tx), gradients, params)[0], params)


@wrappers
@mostly_bfloat16
def test_updates_keep_the_wider_type_and_land_on_the_parameters_grid(wrap, dtype):
    tx = wrap(optlab.sgd(0.01))
    p = random_tree(0, dtype)
    for gradient_dtype in (*HALF, jnp.float32):
        g = random_tree(1, gradient_dtype, gradient_dtype)
        updates, state = tx.update(g, tx.init(p), p)
        for update, param in zip(jax.tree.leaves(updates), jax.tree.leaves(p), strict=True):
            is_wider = jnp.finfo(param.dtype).bits > jnp.finfo(gradient_dtype).bits
            assert update.dtype == (param.dtype if is_wider else gradient_dtype)
        new_p = optax.apply_updates(p, updates)
        assert [x.dtype for x in jax.tree.leaves(new_p)] == [x.dtype for x in jax.tree.leaves(p)]
        if wrap is optlab.master_params and gradient_dtype == jnp.float32:
            kernel = state.master["layer"].kernel.astype(dtype)
            assert_identical(new_p["layer"].kernel, kernel)


@wrappers
@half_types
def test_moments_inside_are_float32_of_optaxs_own_optimizers_too(wrap, dtype):
    params = jnp.ones(3, dtype)
    for tx in (optlab.adam(0.1), optax.adam(0.1), optax.sgd(0.1, momentum=0.9)):
        _, state = wrap(tx).update(params, wrap(tx).init(params), params)
        assert {x.dtype for x in jax.tree.leaves(state.inner) if x.ndim} == {jnp.dtype("float32")}


@wrappers
def test_a_parameter_stays_finite_when_the_update_is_not_small(wrap):
    """Beyond float16's largest number, and from one end of its range to the other."""
    tx = wrap(optlab.sgd(1.0))
    p = jnp.array([60000.0, -60000.0, 60000.0], jnp.float16)
    g = jnp.array([-60000.0, -60000.0, 60000.0], jnp.float16)
    p, state = steps(tx, jnp.stack([g, g]), p)
    np.testing.assert_array_equal(np.isfinite(as_float64(p)), True)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state))


@wrappers
@half_types
def test_nan_and_infinity_are_not_hidden_and_do_not_spread(wrap, dtype):
    p, g = jnp.ones(3, dtype), jnp.array([jnp.nan, jnp.inf, 0.5], dtype)
    p, _ = steps(wrap(optlab.sgd(1.0)), jnp.stack([g, g]), p)
    np.testing.assert_array_equal(as_float64(p), [np.nan, -np.inf, 0])


def test_kahan_recovers_where_an_infinite_parameter_is_replaced():
    tx = optlab.kahan_summation(optlab.sgd(1.0))
    p = jnp.ones(1, jnp.float16)
    p, state = steps(tx, jnp.full((1, 1), -jnp.inf, jnp.float16), p)
    assert np.isinf(p)
    p, _ = steps(tx, jnp.full((1, 1), 0.5, jnp.float16), jnp.ones_like(p), state)
    assert float(p[0]) == 0.5


# Steps that are skipped, and wrappers around


ALL_STEPS = {
    "skip_nonfinite": optlab.skip_nonfinite,
    "dynamic_loss_scale": functools.partial(optlab.dynamic_loss_scale, initial_scale=1.0),
    "accumulate": functools.partial(optlab.accumulate, every=1),
}
"""Wrappers that make every finite step, and leave its gradients as they are."""

guards = pytest.mark.parametrize("guard", ALL_STEPS.values(), ids=list(ALL_STEPS))


def kept_beside(state):
    """What a state holds of the parameters' digits, wherever it is nested."""
    found = [optax.tree_utils.tree_get(state, name) for name in ("master", "compensation")]
    return [x for x in found if x is not None]


@pytest.mark.slow
@wrappers
@bfloat16
@pytest.mark.parametrize(
    ("guard", "gradient"),
    [
        *((guard, jnp.nan) for guard in ALL_STEPS.values()),
        (functools.partial(optlab.accumulate, every=2), jnp.nan),
        (functools.partial(optlab.accumulate, every=2), 1.0),
    ],
    ids=[*ALL_STEPS, "every_2", "waiting"],
)
def test_a_step_skipped_inside_changes_no_bit(wrap, guard, gradient, dtype):
    """Of any parameter, nor of what is kept of it, nor of a velocity."""
    values = finite_values(dtype, normal=dtype == jnp.bfloat16)
    p = jnp.asarray(np.concatenate([[0.0, -0.0], values]), dtype)
    tx = wrap(guard(optlab.sgd(1.0, momentum=0.5)))
    # Steps of less than one in a hundred, which leave something to keep.
    sizes = np.random.default_rng(0).uniform(-(2.0**-7), 2.0**-7, (4, *p.shape))
    p, state = steps(tx, p * jnp.asarray(sizes, dtype), p)
    assert np.signbit(as_float64(p[:2])).tolist() == [False, True]
    new_p, new_state = steps(tx, jnp.full((1, *p.shape), gradient, dtype), p, state)
    assert_same_bits(new_p, p)
    assert_same_bits(kept_beside(new_state), kept_beside(state))
    velocities = [optax.tree_utils.tree_get(s, "velocity") for s in (new_state, state)]
    assert velocities[0].shape == p.shape
    assert_same_bits(*velocities)
    updates, _ = tx.update(jnp.full_like(p, gradient), state, p)  # and not compiled
    assert_same_bits(optax.apply_updates(p, updates), p)


def test_a_skipped_step_leaves_a_compensation_that_float32_cannot_add():
    tx = optlab.kahan_summation(optlab.skip_nonfinite(optlab.sgd(1.0)))
    p = jnp.ones(1, jnp.bfloat16)
    p, state = steps(tx, jnp.full((1, 1), -(2.0**-20), jnp.bfloat16), p)
    replaced = 1024 * p
    after, new_state = steps(tx, jnp.full((1, 1), jnp.nan, jnp.bfloat16), replaced, state)
    assert_same_bits((after, new_state.compensation), (replaced, state.compensation))
    assert float(state.compensation[0]) == 2.0**-20


@pytest.mark.slow
@wrappers
@bfloat16
@guards
def test_inside_of_another_wrapper_is_bitwise_as_around_it(wrap, guard, dtype):
    """These hand float32 gradients on, and cast the updates to the gradients' first type."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-2, 2, (4, 4096))  # many beyond Sterbenz' lemma
    p, *gradients = (jnp.asarray(x, dtype) for x in sizes * rng.normal(size=sizes.shape))
    # From one end of float16 to the other, by more than it holds.
    p, gradients = p.at[0].set(60000.0), jnp.stack(gradients).at[0, 0].set(60000.0)
    gradients = gradients.at[1, 0].set(60000.0)
    sgd = optlab.sgd(2.0)
    around, inside = (steps(tx, gradients, p) for tx in (wrap(guard(sgd)), guard(wrap(sgd))))
    assert np.isfinite(as_float64(inside[0])).all()
    assert_same_bits(inside[0], around[0])
    assert_same_bits(kept_beside(inside[1]), kept_beside(around[1]))


@bfloat16
@guards
@pytest.mark.parametrize("place", ["inside", "around"])
def test_kahans_summation_keeps_its_digits_inside_and_around(guard, place, dtype):
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.normal(size=200), dtype)
    gradients = jnp.asarray(rng.normal(size=(2000, 200)), dtype)
    exact = as_float64(p) - 2.0**-7 * as_float64(gradients).sum(0)
    kahan, sgd = optlab.kahan_summation, optlab.sgd(2.0**-7)
    p, state = steps(guard(kahan(sgd)) if place == "inside" else kahan(guard(sgd)), gradients, p)
    error = as_float64(p) + as_float64(kept_beside(state)[0]) - exact
    # Measured 6.7e-5 and 5.2e-7.
    assert np.sqrt(np.mean(error**2)) <= (1e-4 if dtype == jnp.bfloat16 else 1e-6)


def test_random_bits_are_used_up_by_steps_skipped_inside_but_not_around():
    p, g = jnp.ones(1000, jnp.bfloat16), jnp.full(1000, 2.0**-9, jnp.bfloat16)
    rounding, skip, sgd = WRAPPERS["stochastic_rounding"], optlab.skip_nonfinite, optlab.sgd(1.0)
    plain, _ = steps(rounding(sgd), g[None], p)
    for tx, same in ((skip(rounding(sgd)), True), (rounding(skip(sgd)), False)):
        late, _ = steps(tx, jnp.stack([jnp.full_like(g, jnp.nan), g]), p)
        assert np.array_equal(late, plain) == same


def test_groups_round_by_the_same_bits_unless_each_has_its_key():
    p = {"a": jnp.ones(1000, jnp.bfloat16), "b": jnp.ones(1000, jnp.bfloat16)}
    g = jax.tree.map(lambda p: jnp.full_like(p, 2.0**-9), p)

    def rounded(*keys):
        rules = {
            name: optlab.stochastic_rounding(optlab.sgd(1.0), key)
            for name, key in zip("ab", keys, strict=True)
        }
        tx = optax.partition(rules, {"a": "a", "b": "b"})
        return tx.update(g, tx.init(p), p)[0]

    same, own = rounded(KEY, KEY), rounded(*jax.random.split(KEY))
    assert np.array_equal(same["a"], same["b"])
    assert not np.array_equal(own["a"], own["b"])


# State


def bytes_of(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_what_is_kept_costs_the_bytes_that_the_docstrings_say():
    params = {"half": jnp.ones(1000, jnp.bfloat16), "float32": jnp.ones(1000)}
    plain = bytes_of(optlab.sgd(0.1).init(params))
    costs = {name: bytes_of(wrap(optlab.sgd(0.1)).init(params)) for name, wrap in WRAPPERS.items()}
    assert costs == {
        "master_params": plain + 4000,
        "kahan_summation": plain + 2000,
        "stochastic_rounding": plain + 12,  # a number and a key
    }


@wrappers
def test_abstract_init_has_the_concrete_layout_and_nothing_changes_it(wrap):
    tx = wrap(optlab.adam(0.1))
    params = random_tree(0, jnp.bfloat16)
    abstract, state = jax.eval_shape(tx.init, params), tx.init(params)
    _, after = tx.update(params, state, params)
    layouts = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (abstract, state, after)]
    assert layouts[0] == layouts[1] == layouts[2]


@wrappers
def test_a_pickled_state_resumes_bitwise(wrap):
    tx = wrap(optlab.sgd(RATE, momentum=0.5))
    params, gradients = random_tree(0, jnp.bfloat16), random_gradients(20, jnp.bfloat16)
    early, late = (jax.tree.map(lambda g, s=s: g[s], gradients) for s in (slice(10), slice(10, 20)))
    halfway = pickle.loads(pickle.dumps(steps(tx, early, params)))
    anew = wrap(optlab.sgd(RATE, momentum=0.5))
    assert_identical(steps(anew, late, *halfway), steps(tx, gradients, params))


@wrappers
def test_donation_is_safe(wrap):
    """Also where the state inside holds on to the parameters it is given."""
    keeps = optax.GradientTransformation(lambda params: params, lambda u, s, p=None: (u, s))
    tx = wrap(optax.chain(optlab.sgd(RATE, momentum=0.5), keeps))
    params, g = (random_tree(seed, jnp.float16, jnp.float16) for seed in (0, 1))
    wanted = jax.jit(tx.update)(g, tx.init(params), params)
    copy = jax.tree.map(jnp.copy, params)
    assert_identical(jax.jit(tx.update, donate_argnums=(1, 2))(g, tx.init(copy), copy), wanted)
    assert not any(x.is_deleted() for x in (KEY, *jax.tree.leaves(params)))


@wrappers
def test_lanes_of_vmap_equal_single_runs(wrap):
    tx = wrap(optlab.sgd(RATE))
    lanes = [random_tree(seed, jnp.bfloat16) for seed in range(3)]
    params = jax.tree.map(lambda *p: jnp.stack(p), *lanes)
    updates, states = jax.jit(jax.vmap(tx.update))(params, jax.vmap(tx.init)(params), params)
    for i, lane in enumerate(lanes):
        single = tx.update(lane, tx.init(lane), lane)
        assert_identical(jax.tree.map(lambda x, i=i: x[i], (updates, states)), single)


@wrappers
def test_sharded_equals_single_device(wrap):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    tx = wrap(optlab.sgd(RATE, momentum=0.5))
    p, g = (jnp.asarray(np.random.default_rng(i).normal(size=(8, 3)), "bfloat16") for i in (0, 1))
    wanted = jax.jit(tx.update)(g, tx.init(p), p)
    p, g = jax.device_put((p, g), sharding)
    state = tx.init(p)
    got = jax.jit(tx.update)(g, state, p)
    assert_identical(got, wanted)
    arrays = [x for x in jax.tree.leaves((state, got)) if x.shape == p.shape]
    assert all(x.sharding.is_equivalent_to(sharding, 2) for x in arrays)


@wrappers
def test_lowers_for_every_platform(wrap):
    tx = wrap(optlab.adam(0.1))
    params = jax.eval_shape(lambda: random_tree(0, jnp.float16))
    platforms = ("cpu", "cuda", "rocm", "tpu")
    exported = jax.export.export(jax.jit(tx.update), platforms=platforms)(
        params, jax.eval_shape(tx.init, params), params
    )
    assert exported.platforms == platforms


def test_the_count_saturates():
    tx = optlab.stochastic_rounding(optlab.sgd(0.1), KEY)
    p = jnp.ones(2, jnp.bfloat16)
    state = tx.init(p)._replace(draw=jnp.int32(2**31 - 1))
    assert int(tx.update(p, state, p)[1].draw) == 2**31 - 1


# Trees and other transformations


@wrappers
def test_odd_trees_pass_through(wrap):
    half = jnp.ones(2, jnp.bfloat16)
    trees = (
        {},
        (),
        {"empty": jnp.zeros((0, 3), jnp.float16), "full": half},
        {"none": None, "full": half},
        {"masked": optax.MaskedNode(), "full": half},
        {"complex": jnp.ones(2, jnp.complex64), "full": half},
        half[0],
        np.ones(2, jnp.bfloat16),
        [1.0, np.float64(2.0), half],
        Layer(half, [half, {}]),
    )
    tx = wrap(optlab.adam(0.1))
    for tree in trees:
        state = tx.init(tree)
        updates, new_state = tx.update(tree, state, tree)
        assert jax.tree.structure(updates) == jax.tree.structure(tree)
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))


@wrappers
def test_a_none_gradient_leaves_its_parameters_alone(wrap):
    tx = wrap(optlab.adam(0.1))
    params = random_tree(0, jnp.bfloat16)
    state = tx.init(params)
    # None in place of one leaf, and of a subtree of them.
    g = {"layer": None, "list": [params["list"][0], None]}
    updates, new_state = tx.update(g, state, params)
    assert updates["layer"] is None
    assert updates["list"][1] is None
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    kernels = [
        (old, new)
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True)
        if old.shape == (4, 3)
    ]
    assert kernels
    assert_identical(*zip(*kernels, strict=True))


@wrappers
def test_masked_and_partitioned_around_and_inside(wrap):
    params = random_tree(0, jnp.bfloat16)
    g = random_tree(1, jnp.bfloat16)
    labels = {"layer": "train", "list": "freeze"}
    rest = {"freeze": optax.set_to_zero()}
    mask = {"layer": True, "list": False}
    for tx in (
        optax.partition({"train": wrap(optlab.sgd(0.5)), **rest}, labels),
        wrap(optax.partition({"train": optlab.sgd(0.5), **rest}, labels)),
        optax.masked(wrap(optlab.sgd(0.5)), mask),
        wrap(optax.chain(optax.clip(10.0), optax.masked(optlab.sgd(0.5), mask))),
    ):
        updates, state = tx.update(g, tx.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
        kernel = as_float64(updates["layer"].kernel)
        np.testing.assert_allclose(kernel, -0.5 * as_float64(g["layer"].kernel), atol=0.02)


@wrappers
def test_hyperparameters_inside_are_found_and_replaced(wrap):
    params = random_tree(0, jnp.bfloat16)
    tx = wrap(optax.chain(optlab.clip_by_global_norm(1.0), optlab.adam(0.1)))
    state = tx.init(params)
    assert float(optlab.hyperparams(state)["learning_rate"]) == np.float32(0.1)
    state = optlab.replace_hyperparams(state, learning_rate=0.0)
    updates, _ = tx.update(params, state, params)
    assert all(not jnp.any(u) for u in jax.tree.leaves(updates))


def test_an_average_inside_is_one_of_the_master_parameters():
    tx = optlab.master_params(optax.chain(optlab.sgd(1.0), optlab.params_ema(0.5)))
    p = jnp.ones(2, jnp.bfloat16)
    p, state = steps(tx, jnp.full((1, 2), -(2.0**-12), jnp.bfloat16), p)
    np.testing.assert_array_equal(as_float64(p), 1)
    np.testing.assert_array_equal(optlab.averaged_params(state), 1 + 2.0**-13)


@wrappers
def test_extra_arguments_reach_the_inner_transformation(wrap):
    tx = wrap(optax.chain(optlab.sgd(1.0), optlab.reduce_on_plateau(patience=1, factor=0.5)))
    params = jnp.ones(2, jnp.bfloat16)
    state = tx.init(params)
    for _ in range(4):
        _, state = tx.update(params, state, params, value=1.0)
    assert float(optlab.hyperparams(state)["scale"]) < 1
    without = wrap(optlab.sgd(1.0))
    without.update(params, without.init(params), params, value=1.0)


@wrappers
def test_parameters_replaced_outside_count_unless_there_is_a_master(wrap):
    tx = wrap(optlab.sgd(1.0))
    params = jnp.ones(2, jnp.bfloat16)
    updates, _ = tx.update(jnp.zeros_like(params), tx.init(params), 2 * params)
    wanted = 1.0 if wrap is optlab.master_params else 2.0
    np.testing.assert_array_equal(as_float64(optax.apply_updates(2 * params, updates)), wanted)


@wrappers
def test_wrapped_optimizers_train_a_flax_model_in_bfloat16(wrap):
    model = nnx.Linear(3, 2, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, wrap(optlab.adam(0.02)), wrt=nnx.Param)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.bfloat16)

    @nnx.jit
    def step(model, optimizer):
        def loss_of(model):
            return jnp.mean(jnp.square(model(x) - x[:, :2]).astype(jnp.float32))

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(100)]
    assert losses[-1] < 0.05 * losses[0]
    assert model.kernel[...].dtype == jnp.bfloat16


@pytest.mark.slow
def test_the_benchmark_runs(capsys):
    path = Path(__file__).parents[2] / "benchmarks" / "half_precision.py"
    kinds = ["bfloat16", "master_params"]
    main = runpy.run_path(str(path))["main"]
    main(["--updates", "20", "--seeds", "2", "--kinds", *kinds])
    text = capsys.readouterr().out
    costs = re.findall(r"^(\S+) +(\d+)\.\d\d +(\d+)\.\d\d$", text, re.MULTILINE)
    assert costs == [("bfloat16", "2", "8"), ("master_params", "2", "12")]
    losses, accuracies = (
        np.array(re.findall(r" (\d\S+) ±", table), float)
        for table in text.split("training loss")[1].split("test accuracy")
    )
    # Twenty updates at the lowest of the three rates leave guessing, log 10 = 2.3, behind.
    assert len(losses) == len(accuracies) == 6
    assert (losses < 2.2).all()
    assert (accuracies > 0.2).all()


# Mistakes


P = jnp.ones(2, jnp.bfloat16)


@pytest.mark.parametrize("name", WRAPPERS)
def test_mistakes_are_told(name):
    wrap = WRAPPERS[name]
    tx = wrap(optlab.sgd(0.1))
    tree, state = {"a": P}, tx.init({"a": P})
    mistakes = [
        (lambda: wrap(optlab.sgd), "tx must be an optax.GradientTransformation, got <function sgd"),
        (lambda: tx.update(tree, state), "update must be given the parameters, got params=None; "),
        (lambda: tx.update(tree, optax.EmptyState(), tree), "update must be given the state that"),
        (lambda: tx.update({"b": P}, state, tree), "gradients and parameters must be trees of the"),
        (lambda: tx.update({"a": P[:1]}, state, tree), r"the gradient at \['a'\] must have the sh"),
        (lambda: tx.update({"a": jnp.ones(2, int)}, state, tree), "gradients must be floating poi"),
        (lambda: tx.init(jnp.ones(2, "float8_e4m3fn")), "parameters must be bfloat16, float16 or "),
    ]
    if name != "stochastic_rounding":
        wide = {"a": jnp.ones(2)}
        message = r"the parameters must have the types that they had at init, got "
        mistakes += [
            (lambda: tx.update(wide, state, wide), message + r"float32 at \['a'\]"),
            (lambda: tx.update(tree, tx.init(wide), tree), message + r"bfloat16 at \['a'\]"),
        ]
        other, message = (
            {"a": jnp.ones(3, P.dtype)},
            r"the parameters must have the shapes that they",
        )
        mistakes += [
            (
                lambda: tx.update(other, state, other),
                message + r" had at init, got \(3,\) at \['a'\]",
            ),
            (lambda: tx.update({"a": None}, state, other), message),
            (
                lambda: tx.update({"a": None}, state, {"a": {"b": P}}),
                "the parameters must have the structure that they had at init, got ",
            ),
        ]
    if name == "kahan_summation":
        half = {"a": jnp.ones(2, jnp.float16)}
        message = (
            r"the parameters must have the types that they had at init, got float16 at \['a'\]"
        )
        mistakes += [(lambda: tx.update(half, state, half), message)]
    for nested in WRAPPERS.values():
        both = wrap(optax.chain(optlab.clip_by_global_norm(1.0), nested(optlab.sgd(0.1))))
        message = (
            "tx must not hold another wrapper for low precision, which would only see float32, "
        )
        mistakes += [(lambda both=both: both.init(tree), message)]
    for mistake, message in mistakes:
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            mistake()


def test_master_copies_fit_any_narrow_type():
    tx = optlab.master_params(optlab.sgd(RATE))
    p = jnp.asarray(np.random.default_rng(0).normal(size=20), jnp.bfloat16)
    state = tx.init(p)
    other = p.astype(jnp.float16)
    updates, new_state = tx.update(other, state, other)
    layouts = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (new_state, state)]
    assert layouts[0] == layouts[1]
    wanted = new_state.master.astype(jnp.float16)
    assert_identical(optax.apply_updates(other, updates), wanted)


@pytest.mark.parametrize("key", [0, None, 1.5, jnp.ones(2), jnp.ones(3, jnp.uint32), "key"])
def test_a_bad_key_is_an_error(key):
    message = "^stochastic_rounding: key must be a random key, got key="
    with pytest.raises(ValueError, match=message):
        optlab.stochastic_rounding(optlab.sgd(0.1), key)


@pytest.mark.parametrize("keys", [jax.random.split(KEY), jax.random.split(jax.random.PRNGKey(0))])
def test_several_keys_are_an_error_outside_of_vmap(keys):
    with pytest.raises(ValueError, match=r"key must be a single key, got shape \(2,"):
        optlab.stochastic_rounding(optlab.sgd(0.1), keys)


def test_another_generators_key_is_used_as_such():
    key = jax.random.key(0, impl="rbg")
    tx = optlab.stochastic_rounding(optlab.sgd(1.0), key)
    state = tx.init(P)
    assert state.key.shape == (4,)
    tx.update(P, state, P)


# Rules on their own


@pytest.mark.parametrize("row", registry.OPTIMIZERS.values(), ids=lambda row: row.name)
@half_types
def test_optimizers_stand_zero_and_large_gradients_in_half_precision(row, dtype):
    """Squares of 256 and more overflow float16, and an ε of 1e-8 is zero in it."""
    tx = row.make(0.01)

    def as_tree(numbers):
        vector = jnp.array(numbers, dtype)
        return {"v": vector, "w": vector.reshape(2, 2)}

    p, g = as_tree([1.0, 0.5, 0.0, 2.0]), as_tree([0.0, 300.0, 60000.0, -1e-7])
    state = tx.init(p)
    for _ in range(2):
        updates, state = tx.update(g, state, p)
        assert all(u.dtype == dtype for u in updates.values())
        assert all(bool(jnp.isfinite(u).all()) for u in updates.values())
        assert {x.dtype for x in jax.tree.leaves(state)} <= {np.dtype("f4"), np.dtype("i4")}
    assert float(updates["v"][1]) < 0


@half_types
def test_norms_of_large_gradients_clip_in_half_precision(dtype):
    g = jnp.array([300.0, -400.0], dtype)
    tx = optlab.clip_by_global_norm(5.0)
    clipped, _ = tx.update(g, tx.init(g))
    assert clipped.dtype == dtype
    np.testing.assert_array_equal(as_float64(clipped), [3, -4])
