"""The dialects against trajectories recorded from PyTorch, Keras and Optax themselves.

`tests/golden/record.py` recorded them, `python tests/golden/report.py` prints how well they agree.
"""

import functools
import itertools

import numpy as np
import pytest

from golden import problems, store
from golden.cases import CASES
from golden.replay import replay

ALL = [(framework, name) for framework, cases in CASES.items() for name in cases]

# Measured: 1.6e-14 at worst. Over 300 updates the frameworks and optlab round in other places.
FLOAT64_TOLERANCE = 1e-12
# Measured: 1.0 at worst, where the first update ends on the neighbouring float32.
FLOAT32_ULPS_PER_UPDATE = 2


@functools.cache
def recording(framework):
    return store.load(framework)


def replayed_and_recorded(framework, name, dtype):
    rule = CASES[framework][name].rule
    return replay(framework, rule, dtype)[name], recording(framework).of(name, dtype)


def cases(dtype, marks=lambda framework: ()):
    return [
        pytest.param(framework, name, marks=marks(framework), id=f"{framework}-{name}-{dtype}")
        for framework, name in ALL
    ]


def repeated(framework):
    """Mark what says nothing more of roundings than PyTorch's cases, as double checks formulas."""
    return () if framework == "pytorch" else pytest.mark.other_rows


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "name"), cases("float64"))
def test_replays_the_framework_in_double(framework, name):
    got, want = replayed_and_recorded(framework, name, "float64")
    assert store.relative_error(got, want) <= FLOAT64_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "name"), cases("float32", repeated))
def test_replays_the_framework_to_ulps(framework, name):
    got, want = replayed_and_recorded(framework, name, "float32")
    error = store.ulps(got, want, recording(framework).updates)
    assert error <= FLOAT32_ULPS_PER_UPDATE


@pytest.mark.parametrize("framework", CASES)
def test_every_case_is_recorded(framework):
    assert recording(framework).cases == tuple(CASES[framework])
    assert recording(framework).updates == store.RECORDED


@pytest.mark.parametrize("framework", CASES)
def test_no_two_cases_have_the_same_trajectory(framework):
    """An option that changed nothing would be checked by nothing."""
    leaves = {c: recording(framework).of(c, "float64") for c in CASES[framework]}
    for a, b in itertools.combinations(leaves, 2):
        assert store.relative_error(leaves[a], leaves[b]) > 1e6 * FLOAT64_TOLERANCE, (a, b)


def test_gradients_of_all_problems_at_once_are_those_of_each():
    together = problems.stacked()
    params = together.start("float32")
    for t in (1, 30, 31, 49, 50, 120, 121, 300):
        batch = together.gradient(params, t)
        for i, problem in enumerate(problems.PROBLEMS.values()):
            alone = problem.gradient({k: p[i] for k, p in params.items()}, t)
            for name, g in alone.items():
                assert g.dtype == np.float32
                np.testing.assert_array_equal(g, batch[name][i])


def test_states_are_recorded_with_the_parameters_names_and_shapes():
    states = store.load_states("pytorch")
    assert {key[1:] for key in states} == set(
        itertools.product(store.STATES_PROBLEMS, store.DTYPES, store.STATES_RECORDED)
    )
    for (_, _, dtype, update), state in states.items():
        assert list(state) == list(problems.SHAPES)
        for name, slots in state.items():
            for key, value in slots.items():
                if key == "step":
                    assert value == update
                else:
                    assert (value.shape, value.dtype) == (problems.SHAPES[name], dtype)
