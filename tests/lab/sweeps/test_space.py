"""The ranges of a search space: quantiles, positions, levels, narrowing, JSON."""

import json
import math
import re

import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from scipy import stats

from optlab.lab.sweeps._space import (
    Categorical,
    Integer,
    LogUniform,
    Range,
    Uniform,
    checked_space,
)

RANGES = [
    LogUniform(1e-5, 1.0),
    LogUniform(0.5, 0.75, traced=True),
    Uniform(-3.0, 5.0),
    Uniform(0.1, 0.1000001),
    Integer(-2, 4),
    Integer(16, 256, log=True),
    Integer(1, 2, log=True),
    Categorical(("sgd", 0.9, None, True, 7), traced=False),
    Categorical((3,)),
]
every_range = pytest.mark.parametrize("space", RANGES, ids=repr)


# Values and their positions


@every_range
def test_every_position_has_a_value_of_the_range_and_both_ends_are_reached(space):
    values = [space.at(u) for u in np.linspace(0, 1, 1001)]
    positions = [space.position(value) for value in values]
    assert positions == sorted(positions)
    assert min(positions) >= 0
    assert max(positions) <= 1
    levels = space.levels(2)
    assert values[0] == levels[0]
    assert values[-1] == levels[-1]


@every_range
def test_position_is_the_inverse_of_at(space):
    for u in np.linspace(0, 1, 101):
        value = space.at(u)
        again = space.at(space.position(value))
        if isinstance(space, (LogUniform, Uniform)):
            # The ends of Uniform(0.1, 0.1000001) cancel to 1e-7 of their size, which leaves the
            # position 1e-9; elsewhere a few roundings of float64.
            assert space.position(value) == pytest.approx(u, abs=1e-8)
            assert again == pytest.approx(value, rel=1e-14)
        else:
            assert again == value


def test_real_numbers_are_spread_as_their_name_says():
    assert LogUniform(1e-4, 1e-2).at(0.5) == pytest.approx(1e-3, rel=1e-14)
    assert LogUniform(1e-4, 1e-2).position(1e-3) == pytest.approx(0.5, rel=1e-14)
    assert Uniform(-1.0, 3.0).at(0.25) == 0.0
    assert Uniform(-1.0, 3.0).position(2.0) == 0.75


def test_every_integer_has_the_same_share():
    found = [Integer(-2, 2).at((i + 0.5) / 1000) for i in range(1000)]
    assert [found.count(value) for value in range(-2, 3)] == [200] * 5


def test_the_share_of_an_integer_is_what_rounds_to_it_from_a_logarithmic_spread():
    space = Integer(1, 9, log=True)
    found = [space.at((i + 0.5) / 10000) for i in range(10000)]
    for k in range(1, 10):
        share = math.log((k + 0.5) / (k - 0.5)) / math.log(9.5 / 0.5)
        assert found.count(k) == pytest.approx(10000 * share, abs=1)


def test_values_are_pythons_own():
    assert type(Uniform(np.float32(0), jnp.float32(1)).at(np.float64(0.5))) is float
    assert type(Integer(np.int32(1), np.int64(4)).at(np.float64(0.5))) is int
    assert type(Categorical((np.int64(3), np.bool_(True))).at(0.0)) is int
    assert Categorical([1, "a"]).choices == (1, "a")


def test_a_value_that_float32_rounded_outside_is_at_the_end():
    high = float(np.float32(0.6))
    assert high > 0.6
    assert Uniform(0.0, 0.6).position(high) == 1.0
    assert LogUniform(0.1, 0.6).position(np.float32(0.6)) == 1.0


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (LogUniform(0.1, 1.0), 1.1),
        (LogUniform(0.1, 1.0), 0.0),
        (Uniform(0.0, 1.0), math.nan),
        (Uniform(0.0, 1.0), "0.5"),
        (Uniform(0.0, 1.0), True),
        (Integer(1, 4), 5),
        (Integer(1, 4), 2.0),
        (Integer(0, 4), True),
        (Categorical(("a", "b")), "c"),
    ],
)
def test_a_value_of_another_range_has_no_position(space, value):
    message = f"{type(space).__name__}.position: the value must be one of {space}, got {value!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        space.position(value)


@every_range
@pytest.mark.parametrize("position", [-0.01, 1.01, math.nan])
def test_a_position_lies_between_0_and_1(space, position):
    with pytest.raises(ValueError, match=r"at: position must be in \[0, 1\], got position="):
        space.at(position)


# Levels


def test_levels_of_real_numbers_are_evenly_spaced_with_both_ends():
    assert Uniform(0.0, 2.0).levels(5) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert LogUniform(1e-4, 1.0).levels(5) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1], rel=1e-14)
    assert LogUniform(1e-5, 0.3).levels(7)[-1] == 0.3
    assert Uniform(0.0, 2.0).levels(1) == [1.0]


@pytest.mark.parametrize("log", [False, True])
def test_levels_of_integers_are_as_many_different_ones_as_can_be(log):
    space = Integer(1, 40, log=log)
    for n in range(1, 45):
        levels = space.levels(n)
        assert len(levels) == min(n, 40)
        assert levels == sorted(set(levels))
        if n > 1:
            assert (levels[0], levels[-1]) == (1, 40)
    assert space.levels(100) == list(range(1, 41))
    assert space.levels(3) == ([1, 6, 40] if log else [1, 21, 40])


def test_levels_of_choices_are_all():
    assert Categorical(("a", None, 3)).levels(1) == ["a", None, 3]


# Narrowing


def test_the_narrowed_range_is_wider_than_the_good_values_by_their_mean_distance():
    # 3 to 6 of (0, 10) at 4 values: a mean distance of 1.
    narrowed = Uniform(0.0, 10.0).around([5.0, 3.0, 4.5, 6.0], share=0.01)
    assert (narrowed.low, narrowed.high) == pytest.approx((2.0, 7.0))
    in_decades = LogUniform(1e-5, 1.0).around([1e-3, 1e-2], share=0.01)
    assert (in_decades.low, in_decades.high) == pytest.approx((1e-4, 1e-1))


def test_a_single_good_value_leaves_what_one_trial_stands_for():
    narrowed = Uniform(0.0, 10.0).around([4.0], share=0.2)
    assert (narrowed.low, narrowed.high) == pytest.approx((3.0, 5.0))
    same = Uniform(0.0, 10.0).around([4.0, 4.0, 4.0], share=0.2)
    assert same == narrowed


@pytest.mark.parametrize("best", [1e-4, 1e-1])
def test_a_best_value_at_the_edge_stays_at_the_edge(best):
    narrowed = LogUniform(1e-4, 1e-1).around([best], share=0.2)
    assert best in (narrowed.low, narrowed.high)
    assert LogUniform(1e-4, 1e-1).low <= narrowed.low < narrowed.high <= 0.1


@pytest.mark.parametrize("log", [False, True])
def test_good_integers_keep_their_neighbours(log):
    space = Integer(1, 100, log=log)
    for value in (2, 50, 99):
        narrowed = space.around([value], share=1e-6)
        assert (narrowed.low, narrowed.high) == (value - 1, value + 1)
    assert space.around([1], share=1e-6) == Integer(1, 2, log=log)
    assert space.around([100], share=1e-6) == Integer(99, 100, log=log)


def test_of_choices_those_among_the_good_values_are_left_in_their_order():
    space = Categorical(("a", "b", "c", None))
    assert space.around([None, "b", "b"], share=0.1) == Categorical(("b", None))


def test_a_range_does_not_become_narrower_than_a_float32():
    space = Uniform(1000.0, 1000.001)
    assert space.around([1000.0005], share=1e-6) == space


@every_range
def test_narrowing_keeps_every_good_value_and_whether_it_is_traced(space):
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = [space.at(u) for u in rng.random(rng.integers(1, 6))]
        narrowed = space.around(values, share=rng.uniform(1e-3, 1))
        assert type(narrowed) is type(space)
        assert narrowed.traced is space.traced
        for value in values:
            narrowed.position(value)
        for value in narrowed.levels(3):
            space.position(value)


@pytest.mark.parametrize(
    ("values", "share", "message"),
    [
        ([], 0.1, "around: values must hold at least one, got []"),
        ([0.5], 0.0, "around: share must be in (0, 1], got share=0.0"),
        ([0.5], 1.5, "around: share must be in (0, 1], got share=1.5"),
        ([0.5, 2.0], 0.1, "Uniform.position: the value must be one of Uniform(low=0.0, high=1.0)"),
    ],
)
def test_narrowing_needs_good_values_and_a_share(values, share, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Uniform(0.0, 1.0).around(values, share)


# JSON and errors


@every_range
def test_json_gives_back_the_range(space):
    assert Range.from_json(json.loads(json.dumps(space.to_json(), allow_nan=False))) == space


@pytest.mark.parametrize("document", [3, {}, {"kind": "normal"}, {"kind": "uniform", "low": 1}, []])
def test_json_of_something_else_is_refused(document):
    message = f"Range.from_json: document must be what to_json returned, got {document!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        Range.from_json(document)


@every_range
def test_a_range_shows_how_to_write_it(space):
    assert eval(repr(space)) == space


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogUniform(0, 1), "LogUniform: low must be finite and > 0, got low=0"),
        (lambda: LogUniform(1, 1), "LogUniform: low must be below high, in float32, got low=1.0"),
        (lambda: LogUniform(1e-50, 1), "LogUniform: low must be finite and > 0 in float32, got"),
        (lambda: LogUniform(1, 1e39), "LogUniform: high must be finite and > 0 in float32, got"),
        (lambda: Uniform(-np.inf, 1), "Uniform: low must be finite, got low=-inf"),
        (lambda: Uniform(2, 1), "Uniform: low must be below high, in float32, got low=2.0, high=1"),
        (lambda: Uniform(1, 1 + 1e-12), "Uniform: low must be below high, in float32, got low=1.0"),
        (lambda: Uniform("0", 1), "Uniform: low must be a number or a scalar array, got low='0'"),
        (lambda: Uniform(0, 1, traced=1), "Uniform: traced must be True, False or None, got trac"),
        (lambda: Integer(1.0, 4), "Integer: low must be an integer >= -2147483648, got low=1.0"),
        (lambda: Integer(4, 4), "Integer: low must be below high, got low=4, high=4"),
        (lambda: Integer(4, 4), "for a single value, write Categorical((4,))"),
        (lambda: Uniform(0.1, 0.1), "for a single value, write Categorical((0.1,))"),
        (lambda: Integer(0, 4, log=True), "Integer: low must be an integer >= 1, got low=0"),
        (lambda: Integer(0, 4, log="yes"), "Integer: log must be True or False, got log='yes'"),
        (lambda: Integer(0, 2**31), "Integer: high must be below 2**31, where int32 ends, got"),
        (lambda: Categorical("adam"), "Categorical: choices must be a tuple of at least one, got"),
        (lambda: Categorical(()), "Categorical: choices must be a tuple of at least one, got"),
        (lambda: Categorical((1, True)), "Categorical: choices must differ, got choices=(1, True)"),
        (lambda: Categorical((math.inf,)), "Categorical: choices must be finite, got inf"),
        (
            lambda: Categorical((max, min)),
            "Categorical: choices must be numbers, strings, bools or None, got <built-in function "
            "max>; name it by a string, and look it up in the optimizer's function",
        ),
        (
            lambda: Categorical((1, "a"), traced=True),
            "Categorical: traced choices must be numbers or bools, got 'a' with traced=True",
        ),
    ],
)
def test_bad_ranges_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_space_keeps_its_order():
    space = {"rate": LogUniform(1e-4, 1.0), "a": Uniform(0.0, 1.0)}
    assert list(checked_space("sweep", space)) == ["rate", "a"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            [("rate", Uniform(0, 1))],
            "sweep: space must be a dict from names to ranges, got [('rate', Uniform(low=0.0, "
            'high=1.0))]; write {"learning_rate": LogUniform(1e-4, 1e-1)}, say',
        ),
        ({}, "sweep: space must name at least one hyperparameter, got none"),
        ({"a b": Uniform(0, 1)}, "sweep: names in space must be valid argument names, got 'a b'"),
        (
            {"lambda": Uniform(0, 1)},
            "sweep: names in space must be valid argument names, got 'lamb",
        ),
        ({3: Uniform(0, 1)}, "sweep: names in space must be valid argument names, got 3"),
        (
            {"a": (1e-4, 0.1)},
            "sweep: space['a'] must be a LogUniform, Uniform, Integer or Categorical, got (0.0001, "
            "0.1); write LogUniform(0.0001, 0.1) or Uniform(0.0001, 0.1) for a range, "
            "Categorical((0.0001, 0.1)) for choices",
        ),
        ({"a": ["x", "y"]}, "got ['x', 'y']; write Categorical(('x', 'y'))"),
        ({"a": (1, 2, 3, 4)}, "got (1, 2, 3, 4); write Categorical((1, 2, 3, …))"),
        ({"a": []}, "space['a'] must be a LogUniform, Uniform, Integer or Categorical, got []"),
        ({"a": ["x"]}, "got ['x']; write Categorical(('x',))"),
        (
            {"a": np.array([[1], [2]])},
            "got array([[1], [2]]); write LogUniform(1, 2) or Uniform(1, 2) for a range, "
            "Categorical((1, 2)) for choices",
        ),
        ({"a": 0.1}, "got 0.1; leave out what does not vary, and set it in the optimizer's fun"),
        (
            {"a": Uniform},
            "got <class 'optlab.lab.sweeps._space.Uniform'>; give it its arguments: Uniform",
        ),
        ({"a": stats.loguniform(1e-4, 1)}, "; write LogUniform(low, high), say, with optlab's own"),
        (
            {"a": optuna.distributions.FloatDistribution(0, 1)},
            "; write LogUniform(low, high), say, with optlab's own ranges",
        ),
    ],
)
def test_a_bad_space_is_refused_and_told_what_to_write(space, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        checked_space("sweep", space)
