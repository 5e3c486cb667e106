"""The schedules of the finals: their shapes, and that their text is the schedule itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules
from optlab.lab.tuning._schedules import SCHEDULES


def rates(schedule, steps):
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 19])
def test_the_source_makes_the_same_schedule(name, steps):
    made = eval(SCHEDULES[name].source(0.1, steps), {"schedules": schedules})
    np.testing.assert_array_equal(rates(made, steps), rates(SCHEDULES[name](0.1, steps), steps))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 19, 200])
def test_a_run_of_any_length_has_rates_up_to_the_peak(name, steps):
    values = rates(SCHEDULES[name](0.1, steps), steps)
    assert np.isfinite(values).all()
    assert values.min() >= 0
    # One step of float32 above 0.1, which is not a number of that type.
    assert values.max() <= np.float32(0.1) * (1 + 1e-6)
    assert values.max() > 0


def test_schedules_have_the_shapes_that_their_names_promise():
    made = {name: rates(SCHEDULES[name](1.0, 200), 201) for name in SCHEDULES}
    assert set(made["constant"]) == {1.0}
    # float32 of a cosine is right to 1e-6.
    expected = {
        "cosine": {0: 0, 5: 0.5, 10: 1, 105: 0.5, 200: 0},
        "wsd": {0: 0, 5: 0.5, 10: 1, 160: 1, 180: 0.5, 200: 0},
        "one cycle": {0: 0.04, 199: 1e-4},
    }
    for name, points in expected.items():
        for step, value in points.items():
            assert made[name][step] == pytest.approx(value, abs=1e-6)
    assert made["one cycle"].argmax() == 60


def test_a_peak_may_be_traced():
    peaks = jnp.array([0.1, 0.2])
    for make in SCHEDULES.values():
        values = jax.vmap(lambda peak, make=make: make(peak, 20)(jnp.int32(10)))(peaks)
        assert float(values[1]) == pytest.approx(2 * float(values[0]), rel=1e-6)
