"""Properties that must hold for any values; shapes are fixed, so each function compiles once."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import optlab
from optlab import reference

EPS = float(np.finfo(np.float32).eps)
MAX = float(np.finfo(np.float32).max)
TINY = 1e-36  # differences that flushing denormals to zero can make
SIZE = 6

# XLA flushes denormals to zero on the CPU, so they are left out where values are compared.
NORMAL = st.floats(2.0**-120, 2.0**127, width=32, allow_subnormal=False)
VALUES = st.one_of(st.just(0.0), NORMAL, NORMAL.map(lambda x: -x))


def vectors(elements=VALUES):
    return hnp.arrays(np.float32, SIZE, elements=elements)


checks = settings(max_examples=200, deadline=None, derandomize=True)
norm = jax.jit(optlab.global_norm)


@checks
@given(vectors())
def test_global_norm_never_overflows_or_underflows(x):
    want = reference.global_norm([x.astype(np.float64)])
    if want < MAX:
        np.testing.assert_allclose(norm(x), want, rtol=8 * EPS)


@checks
@given(hnp.arrays(np.float16, SIZE, elements=st.floats(-65504, 65504, width=16)))
def test_global_norm_of_half_precision_is_that_of_its_values(x):
    want = reference.global_norm([x.astype(np.float64)])
    np.testing.assert_allclose(norm(x), want, rtol=8 * EPS)


@jax.jit
def clip(g, max_norm):
    tx = optlab.clip_by_global_norm(max_norm)
    return tx.update(g, tx.init(g))[0]


@checks
@given(vectors(), st.floats(2.0**-20, 2.0**20, width=32))
def test_clipping_bounds_the_norm_and_keeps_the_direction(g, max_norm):
    want = np.asarray(reference.clip_by_global_norm([g.astype(np.float64)], max_norm)[0])
    np.testing.assert_allclose(clip(g, max_norm), want, rtol=16 * EPS, atol=TINY)


@checks
@given(vectors())
def test_clipping_leaves_what_is_within_the_bound_bitwise_unchanged(g):
    bound = reference.global_norm([g.astype(np.float64)]) * 1.001
    if bound < MAX:
        np.testing.assert_array_equal(clip(g, np.float32(bound)), g)


@jax.jit
def first_adam_update(g):
    tx = optlab.adam(0.01)
    return tx.update(g, tx.init(g))[0]


@checks
@given(vectors(st.floats(2.0**-10, 2.0**60, width=32)))
def test_adams_first_step_forgets_the_gradients_size(g):
    # ε/|g| is at most 1.03e-5.
    np.testing.assert_allclose(first_adam_update(g), np.full(SIZE, -0.01), rtol=1.1e-5)


@jax.jit
def adam_updates(gradients):
    tx = optlab.adam(0.01, eps=0.0)

    def body(state, g):
        update, state = tx.update(g, state)
        return state, update

    return jax.lax.scan(body, tx.init(gradients[0]), gradients)[1]


@checks
@given(
    hnp.arrays(np.float32, (5, SIZE), elements=st.floats(0.125, 8.0, width=32)),
    st.integers(-20, 20),
)
def test_adam_without_epsilon_is_invariant_under_powers_of_two(gradients, exponent):
    np.testing.assert_array_equal(
        adam_updates(gradients), adam_updates(gradients * np.float32(2.0**exponent))
    )


@jax.jit
def average(params, steps):
    tx = optlab.params_ema(0.9)

    def body(state, p):
        return tx.update(jnp.zeros_like(p), state, p)[1], None

    return optlab.averaged_params(jax.lax.scan(body, tx.init(params), steps)[0])


@checks
@given(hnp.arrays(np.float32, (4, SIZE), elements=st.floats(-100, 100, width=32)))
def test_the_average_stays_within_what_it_averages(path):
    result = np.asarray(average(path[0], path[1:]))
    slack = 4 * EPS * np.abs(path).max() + TINY
    assert (result <= path.max(axis=0) + slack).all()
    assert (result >= path.min(axis=0) - slack).all()
