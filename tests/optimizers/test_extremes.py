"""Gradients at both ends of the floating-point numbers, against the float64 references.

Of a rule that takes squares (those with an `eps`) the reference gets gradients bounded by 2⁶³, as
which larger ones count. What is smaller than the smallest normal number may be taken for zero, as
XLA does on CPUs: so much may be missing from a gradient or a state, and a quotient by eps of it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import registry

ROWS = {**registry.OPTIMIZERS, **registry.TRANSFORMATIONS}
SQUARING = {name for name, row in ROWS.items() if "eps" in row.hyperparams}
LARGEST = 2.0**63
TINY = float(np.finfo(np.float32).tiny)
UPDATES = 6
SHAPES = {"b": (2,), "w": (2, 3)}
SIZE = 8

CASES = {
    f"{row.name}-{i}": (
        row,
        {
            **({"learning_rate": 0.1} if row.name in registry.OPTIMIZERS else {}),
            **row.samples[0],
            **options,
        },
    )
    for row in ROWS.values()
    for i, options in enumerate(row.samples)
}

_rng = np.random.default_rng(0)
BASE = _rng.uniform(0.25, 1, (UPDATES, SIZE)) * _rng.choice([-1, 1], (UPDATES, SIZE))


def sizes(*of_updates):
    """Gradients of these sizes, each one for all coordinates or one for each."""
    return np.array([row * size for row, size in zip(BASE, of_updates, strict=True)], np.float32)


EXTREMES = np.array([1e-40, 1.5 * TINY, 1e-30, 1e-10, 1, 1e19, 1e30, 1.5e38])
SCENARIOS = {
    "denormal": sizes(*[1e-40] * 6),
    "at_the_smallest_normal_number": sizes(*[1.5 * TINY] * 6),
    "tiny": sizes(*[1e-30] * 6),
    "tiny_then_ordinary": sizes(*[1e-30] * 3, 1, 1, 1),
    "ordinary_then_tiny": sizes(1, 1, 1, *[1e-30] * 3),
    "zero_then_tiny": sizes(0, 0, 0, *[1e-30] * 3),
    "with_squares_that_vanish": sizes(*[1e-20] * 6),
    "with_squares_in_range": sizes(*[np.logspace(-18, 18, SIZE)] * 6),
    "around_the_bound_of_squares": sizes(1, LARGEST * np.linspace(0.9, 4, SIZE), 1, 1, 1, 1),
    "mixed_once": sizes(1, EXTREMES, 1, 1, 1, 1),
    "mixed_twice": sizes(EXTREMES, 1, 1, EXTREMES[::-1], 1, 1),
    "small_ones_mixed": sizes(*[np.minimum(EXTREMES, 1)] * 6),
}
HUGE = {f"{size:g}": sizes(*[size] * 6) for size in (1e20, 1e30, 1e37)}


def tree(vector, dtype=np.float32):
    vector = vector.astype(dtype)
    return {"b": vector[..., :2], "w": vector[..., 2:].reshape(*vector.shape[:-1], 2, 3)}


def flat(leaves):
    return np.concatenate(
        [
            np.asarray(x).reshape(*x.shape[: -len(s)], -1)
            for x, s in zip(leaves, SHAPES.values(), strict=True)
        ],
        axis=-1,
    )


def ordinary_parameters(row):
    # An optimizer's reference returns a difference of parameters, which only 0 leaves whole.
    return np.full(SIZE, 0.0 if row.name in registry.OPTIMIZERS else 0.75)


def outcomes(row, options, gradients, parameters, dtype=np.float32):
    """Run the updates of all scenarios, (scenarios, updates, SIZE), in one compilation."""
    tx = row.make(**options)
    parameters = np.broadcast_to(parameters, (len(gradients), SIZE))

    def run(gradients, params):
        def body(state, g):
            update, state = tx.update(g, state, params)
            return state, row.outcome(update, state)

        return jax.lax.scan(body, tx.init(params), gradients)[1]

    got = jax.jit(jax.vmap(run))(tree(gradients, dtype), tree(parameters, dtype))
    return flat(jax.tree.leaves(got))


def wanted_outcomes(row, options, gradients, parameters):
    """The reference's for one scenario, (updates, SIZE)."""
    fixed, wanted, state = {**row.fixed, **options}, [], None
    p = list(tree(parameters, float).values())
    for t, g in enumerate(np.asarray(gradients, float), 1):
        if row.name in SQUARING:
            g = np.clip(g, -LARGEST, LARGEST)
        outcome, state = row.reference(list(tree(g, float).values()), p, state, t, **fixed)
        wanted.append(flat(outcome))
    return np.array(wanted)


def what_may_vanish(row, options):
    """What an outcome may lack where gradients and state below TINY count as zero."""
    eps = options.get("eps", row.hyperparams["eps"][0]) if row.name in SQUARING else 1
    return 16 * TINY / min(eps or 1, 1)


@functools.cache
def measured(name):
    """All scenarios of a case: the outcomes, and the wanted ones."""
    row, options = CASES[name]
    every, p = {**SCENARIOS, **HUGE}, ordinary_parameters(row)
    got = outcomes(row, options, np.array(list(every.values())), p)
    return {
        scenario: (got[i], wanted_outcomes(row, options, g, p))
        for i, (scenario, g) in enumerate(every.items())
    }


def assert_right(row, options, got, want, rtol=1.5e-6):
    """Close relative to the outcome or the one before it, of which it may be the difference.

    Measured are 8e-7, the roundings of two terms that cancel.
    """
    size = np.maximum(np.abs(want), np.abs(np.concatenate([want[:1], want[:-1]])))
    assert np.isfinite(got).all()
    assert (np.abs(got - want) <= rtol * size + what_may_vanish(row, options)).all()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", CASES)
def test_extreme_gradients_give_the_references_outcomes(name, scenario):
    assert_right(*CASES[name], *measured(name)[scenario])


@pytest.mark.parametrize("scenario", HUGE)
@pytest.mark.parametrize("name", [name for name in CASES if "adagrad" not in name])
def test_huge_gradients_again_and_again_give_the_references_outcomes(name, scenario):
    assert_right(*CASES[name], *measured(name)[scenario])


@pytest.mark.parametrize("name", [name for name, (row, _) in CASES.items() if row.needs_params])
def test_extreme_parameters_give_the_references_outcomes(name):
    row, options = CASES[name]
    gradients = np.repeat([SCENARIOS["tiny_then_ordinary"], SCENARIOS["mixed_once"]], 2, axis=0)
    parameters = np.float32([EXTREMES, EXTREMES[::-1]] * 2)
    got = outcomes(row, options, gradients, parameters)
    for outcome, g, p in zip(got, gradients, parameters, strict=True):
        assert_right(row, options, outcome, wanted_outcomes(row, options, g, p))


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("-0")])
def test_float16_gradients_whose_squares_overflow_are_rounded_once(name):
    row, options = CASES[name]
    g = BASE * np.logspace(np.log10(1200), np.log10(60_000), SIZE)
    g, p = np.float16(g), np.float16(ordinary_parameters(row))
    got = outcomes(row, options, g[None], p, np.float16)[0].astype(float)
    want = wanted_outcomes(row, options, g, p)
    # Half a unit in the last place of float16, or of its subnormal numbers, and half of the next
    # for a tie. An average of parameters is float32, but θ + u is rounded.
    rounded = p + g.astype(float) if row.name == "params_ema" else want
    close = 1.01 * 2**-11 * np.maximum.accumulate(np.abs(rounded)) + 2**-24
    overflows = np.isinf(got)
    assert (np.abs(got - want) <= close)[~overflows].all()
    assert (np.abs(want) > 65_500)[overflows].all()


@pytest.mark.parametrize("max_norm", [1e-20, 1.0, 1e30])
@pytest.mark.parametrize("size", [1e-36, 1e-20, 1e20, 3e38])
def test_norms_of_a_million_elements_are_clipped(size, max_norm):
    """Also where the norm itself, 2¹⁰ times the size, is beyond float32's range."""
    g = {"w": jnp.full((2**10, 2**10), size, jnp.float32)}
    tx = ROWS["clip_by_global_norm"].make(max_norm)
    clipped = jax.jit(tx.update)(g, tx.init(g))[0]["w"]
    want = min(size, max_norm / 2**10)
    np.testing.assert_allclose(clipped, want, rtol=1e-6)


# Where float32 ends


WITHOUT_EPS = [
    name for name, (row, _) in CASES.items() if row.name in SQUARING - set(registry.OPTIMIZERS)
]


@pytest.mark.parametrize("name", WITHOUT_EPS)
def test_without_eps_gradients_of_all_sizes_whose_squares_stay_normal_are_alike(name):
    row, options = CASES[name]
    options = {**options, "eps": 0.0}
    # (1 − β)g² is a normal number from 3.5e-18 on for β = 0.999, and so is ((1 − β)g)² from 1.1e-17
    # on for β = 0.99.
    gradients = [sizes(*[size] * UPDATES) for size in (1e-16, 1e-10, 1e10, 9e18)]
    p = ordinary_parameters(row)
    for g, got in zip(gradients, outcomes(row, options, np.array(gradients), p), strict=True):
        assert_right(row, options, got, wanted_outcomes(row, options, g, p))


@pytest.mark.parametrize("scenario", HUGE)
@pytest.mark.parametrize("name", [name for name in CASES if "adagrad" in name])
def test_huge_gradients_again_and_again_do_not_stop_a_sum_of_squares(name, scenario):
    got, want = measured(name)[scenario]
    assert (np.abs(got) > 0.5 * np.abs(want)).all()


@pytest.mark.parametrize("name", ["scale_by_momentum-0", "scale_by_momentum-1"])
def test_a_velocity_that_overflowed_is_forgotten(name):
    row, options = CASES[name]
    g = np.ones((10, SIZE))
    g[:2] = 3e38
    got = outcomes(row, options, g[None], np.zeros(SIZE))[0]
    assert np.isfinite(got[2:]).all()
