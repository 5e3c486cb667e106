"""Where trials lie: a point depends on the seed and its number alone."""

import re

import numpy as np
import pytest

from optlab.lab.sweeps._search import check_search, grid, points
from optlab.lab.sweeps._space import Categorical, Integer, LogUniform, Uniform

SPACE = {
    "rate": LogUniform(1e-4, 1.0),
    "dropout": Uniform(0.0, 0.6),
    "width": Integer(1, 8, log=True),
    "rule": Categorical(("sgd", "adam", None)),
}
every_search = pytest.mark.parametrize("search", ["random", "halton"])


@every_search
def test_a_trial_depends_on_the_seed_and_its_number_alone(search):
    together = points(SPACE, search, 3, range(20))
    assert points(SPACE, search, 3, [17, 0, 5]) == [together[i] for i in (17, 0, 5)]
    assert points(SPACE, search, 3, range(40))[:20] == together
    assert points(SPACE, search, 3, []) == []
    assert points(SPACE, search, 4, range(20)) != together
    assert list(together[0]) == list(SPACE)


@every_search
def test_a_range_added_at_the_end_leaves_the_others_where_they_were(search):
    fewer = {name: SPACE[name] for name in ("rate", "dropout")}
    expected = [
        {name: point[name] for name in fewer} for point in points(SPACE, search, 0, range(9))
    ]
    assert points(fewer, search, 0, range(9)) == expected


def test_random_points_are_numpys():
    (point,) = points(SPACE, "random", 5, [11])
    positions = np.random.default_rng([5, 11]).random(4)
    assert point == {
        name: entry.at(u) for (name, entry), u in zip(SPACE.items(), positions, strict=True)
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_halton_points_fill_every_range_evenly(seed):
    space = {"a": Uniform(0.0, 1.0), "b": Uniform(0.0, 1.0), "c": Uniform(0.0, 1.0)}
    found = points(space, "halton", seed, range(27))
    # In base b, each of bᵏ equal cells holds one of any bᵏ successive points that begin at a
    # multiple of bᵏ, scrambled or not.
    halves = [int(16 * point["a"]) for point in found[:16]]
    assert sorted(halves) == list(range(16))
    thirds = [int(27 * point["b"]) for point in found]
    assert sorted(thirds) == list(range(27))
    fifths = [int(25 * point["c"]) for point in found[:25]]
    assert sorted(fifths) == list(range(25))


def test_a_grid_has_every_combination_once():
    space = {"rate": LogUniform(0.01, 1.0), "drop": Uniform(0.0, 1.0), "rule": SPACE["rule"]}
    found = grid("sweep", space, 30)
    assert len(found) == 27
    assert {tuple(point.values()) for point in found} == {
        (rate, drop, rule)
        for rate in LogUniform(0.01, 1.0).levels(3)
        for drop in (0.0, 0.5, 1.0)
        for rule in ("sgd", "adam", None)
    }
    assert found == grid("sweep", space, 29)
    assert found[0] == {"rate": 0.01, "drop": 0.0, "rule": "sgd"}


@pytest.mark.parametrize("trials", [3, 4, 6, 7, 11, 12, 20, 50, 64, 100, 200])
def test_a_grid_comes_as_close_to_the_trials_as_one_more_level_allows(trials):
    found = grid("sweep", SPACE, trials)
    assert len(found) == len({tuple(point.values()) for point in found}) <= trials
    levels = {name: len({point[name] for point in found}) for name in SPACE}
    assert levels["rule"] == 3
    for name in ("rate", "dropout", "width"):
        one_more = len(found) // levels[name] * (levels[name] + 1)
        assert one_more > trials or levels[name] == SPACE[name].size


def test_a_grid_gives_the_ranges_equally_many_levels_and_the_rest_to_the_first():
    space = {name: Uniform(0.0, 1.0) for name in "abc"}
    for trials, counts in [(1, (1, 1, 1)), (8, (2, 2, 2)), (12, (3, 2, 2)), (64, (4, 4, 4))]:
        found = grid("sweep", space, trials)
        assert tuple(len({point[name] for point in found}) for name in "abc") == counts


def test_a_grid_does_not_repeat_what_few_integers_there_are():
    found = grid("sweep", {"n": Integer(1, 3), "x": Uniform(0.0, 1.0)}, 60)
    assert len({point["n"] for point in found}) == 3
    assert len({point["x"] for point in found}) == 20
    assert len(grid("sweep", {"n": Integer(1, 3)}, 60)) == 3


def test_more_choices_than_trials_make_no_grid():
    space = {"a": Categorical((1, 2, 3)), "b": Categorical((1, 2)), "x": Uniform(0.0, 1.0)}
    message = (
        "sweep: trials must be at least 6, one for each combination of choices, got trials=5; "
        'raise trials, or use search="halton"'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        grid("sweep", space, 5)
    assert {point["x"] for point in grid("sweep", space, 6)} == {0.5}


@pytest.mark.parametrize(
    ("search", "seed", "message"),
    [
        ("hatlon", 0, "got search='hatlon'; did you mean 'halton'?"),
        ("Bayes", 0, "got search='Bayes'; did you mean 'bayes'?"),
        (
            "x",
            0,
            "sweep: search must be one of ('random', 'halton', 'grid', 'bayes'), got search='x'",
        ),
        (["grid"], 0, "got search=['grid']"),
        ("grid", -1, "sweep: seed must be an integer >= 0, got seed=-1"),
        ("grid", 1.0, "sweep: seed must be an integer >= 0, got seed=1.0"),
        ("grid", None, "sweep: seed must be an integer >= 0, got seed=None"),
    ],
)
def test_a_bad_search_or_seed_is_refused(search, seed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_search("sweep", search, seed)


@pytest.mark.parametrize("search", ["random", "halton", "grid", "bayes"])
def test_a_known_search_passes(search):
    check_search("sweep", search, 0)
