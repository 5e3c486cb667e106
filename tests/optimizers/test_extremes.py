"""What the checks on extreme gradients do not cover: norms, half precision, no ε, overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import registry
from optlab.testing import _extremes
from optlab.testing._extremes import BASE, HUGE, SIZE, UPDATES, measured, outcomes, sizes

ROWS = {**registry.OPTIMIZERS, **registry.TRANSFORMATIONS}
OF_CHECK = "extreme_gradients_match_reference"
READS_REFERENCE = [row for row in ROWS.values() if OF_CHECK not in row.exempt]


def by_name(rows):
    return [pytest.param(row, id=row.name) for row in rows]


@pytest.mark.parametrize("row", by_name(READS_REFERENCE))
def test_float16_gradients_whose_squares_overflow_are_rounded_once(row):
    g = BASE * np.logspace(np.log10(1200), np.log10(60_000), SIZE)
    g, p = np.float16(g), np.float16(_extremes.ordinary_parameters(row))
    got = outcomes(row, row.samples[0], g[None], p, np.float16)[0].astype(float)
    want = _extremes.wanted_outcomes(row, row.samples[0], g, p)
    # Half a unit in the last place of float16, or of its subnormal numbers, and half of the next
    # for a tie. An average of parameters is float32, but θ + u is rounded.
    rounded = p + g.astype(float) if row.name.startswith("params_") else want
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


HAS_EPS = [
    row
    for row in registry.DIRECTIONS.values()
    if "eps" in row.hyperparams and OF_CHECK not in row.exempt
]


@pytest.mark.parametrize("row", by_name(HAS_EPS))
def test_without_eps_gradients_of_all_sizes_whose_squares_stay_normal_are_alike(row):
    # (1 − β)g² is a normal number from 3.5e-18 on for β = 0.999, and so is ((1 − β)g)² from 1.1e-17
    # on for β = 0.99.
    gradients = [sizes(*[size] * UPDATES) for size in (1e-16, 1e-10, 1e10, 9e18)]
    p = _extremes.ordinary_parameters(row)
    for sample, options in enumerate(row.samples):
        options = {**options, "eps": 0.0}
        results = outcomes(row, options, np.array(gradients), p)
        wanted = [_extremes.wanted_outcomes(row, options, g, p) for g in gradients]
        pairs = dict(enumerate(zip(results, wanted, strict=True)))
        for scenario in pairs:
            _extremes.require_right(row, sample, scenario, pairs)


@pytest.mark.parametrize("scenario", HUGE)
def test_huge_gradients_again_and_again_do_not_stop_a_sum_of_squares(scenario):
    row = ROWS["adagrad"]
    for sample in range(len(row.samples)):
        got, want = measured(row, sample)[scenario]
        assert (np.abs(got) > 0.5 * np.abs(want)).all()


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_velocity_that_overflowed_is_forgotten(nesterov):
    row = registry.DIRECTIONS["scale_by_momentum"]
    g = np.ones((10, SIZE))
    g[:2] = 3e38
    got = outcomes(row, {"nesterov": nesterov}, g[None], np.zeros(SIZE))[0]
    assert np.isfinite(got[2:]).all()
