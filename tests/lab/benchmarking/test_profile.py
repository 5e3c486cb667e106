"""What is concluded from runs: choices, updates to the target, profiles, ranks, sentences."""

import math

import numpy as np
import pytest

from optlab.lab import Bench, Goal, Outcome
from optlab.lab.benchmarking._file import OneRun, Timed
from optlab.lab.benchmarking._outcome import chosen, outcome_of
from optlab.lab.benchmarking._profile import areas_of, drawn_ratios, profile_of, ratios_of
from optlab.lab.benchmarking._ranks import critical_difference, mean_ranks, told_apart
from optlab.lab.benchmarking._targets import level_held, updates_to

ACCURACY = Goal("a", "validation", "accuracy", True, 0.8, False, 30, 10)
LOSS = Goal("l", None, "loss", False, 0.1, False, 30, 10)


def run(*scores, trial=0, seed=0, diverged=False, test=None):
    """Make a run with an evaluation after every tenth update."""
    test = {} if test is None else {"accuracy": test}
    scores = np.array(scores)
    steps = 10 * np.arange(len(scores))
    return OneRun(trial, seed, {"rate": trial}, steps, scores, test, diverged)


# Targets


def test_updates_to_the_target_are_those_of_the_first_evaluation_that_met_it():
    steps = np.array([0, 10, 20, 30])
    scores = np.array([0.9, 0.5, 0.8, 0.7])
    assert updates_to(0.8, steps, scores, maximize=True) == 20  # nothing was trained before 10
    assert updates_to(0.7, steps, scores, maximize=False) == 10
    assert updates_to(0.4, steps, scores, maximize=False) == math.inf


def test_the_level_that_was_held_is_the_worst_of_the_last_quarter():
    steps = np.arange(0, 90, 10)
    scores = np.array([9.0, 1, 1, 1, 1, 9, 3, 4, 2])
    assert level_held(steps, scores, maximize=False) == 4
    assert level_held(steps, scores, maximize=True) == 2


# Outcomes


@pytest.mark.parametrize(
    ("trials", "number"),
    [
        ([run(0, 0.7, 0.9), run(0, 0.8, 0.5, trial=1)], 1),  # the first to reach it
        ([run(0, 0.8, 0.8), run(0, 0.8, 0.9, trial=1)], 1),  # the better one of two as fast
        ([run(0, 0.1, 0.3), run(0, 0.2, 0.2, trial=1)], 0),  # the better one, if none reaches it
        ([run(0, 0.9, 0.9, diverged=True), run(0, 0.1, 0.1, trial=1)], 1),
        ([run(0, 0.9, 0.9), run(0, 0.9, 0.9, trial=1)], 0),
    ],
)
def test_the_trial_that_reached_the_target_first_is_chosen(trials, number):
    assert chosen(ACCURACY, trials).trial == number


def test_a_lower_loss_is_the_better_one():
    assert chosen(LOSS, [run(1, 0.5, 0.3), run(1, 0.9, 0.2, trial=1)]).trial == 1


TRIALS = [run(0, 0.7, 0.9), run(0, 0.8, 0.9, trial=1), run(0, np.nan, np.nan, trial=2, diverged=1)]
FRESH = [run(0, 0.8, 0.9, trial=1, seed=1, test=0.85), run(0, 0.1, 0.2, trial=1, seed=2, test=0.3)]


def test_an_outcome_is_that_of_the_chosen_values_alone():
    others = [run(0, 1.0, 1.0, trial=0, seed=1)]
    runs = [*TRIALS, *FRESH, *others]
    outcome = outcome_of(ACCURACY, "x", runs, Timed("m", 0.5), trials=3, seeds=[1, 2])
    assert outcome.values == {"rate": 1}
    assert outcome.updates.tolist() == [10, math.inf]
    assert outcome.median_updates == math.inf  # half of the runs missed
    assert outcome.validation.tolist() == [0.9, 0.2]
    assert outcome.test.tolist() == [0.85, 0.3]
    assert (outcome.num_trials, outcome.num_reached, outcome.num_diverged) == (3, 2, 1)


@pytest.mark.parametrize(
    ("runs", "timed"),
    [
        (TRIALS[:2] + FRESH, Timed("m", 0.5)),
        (TRIALS + FRESH[:1], Timed("m", 0.5)),
        (TRIALS + FRESH, None),
    ],
)
def test_there_is_no_outcome_before_everything_has_ended(runs, timed):
    assert outcome_of(ACCURACY, "x", runs, timed, trials=3, seeds=[1, 2]) is None


def test_a_diverged_run_misses_a_target_that_it_had_met():
    fresh = [run(0, 0.9, 0.9, trial=1, seed=1, diverged=True, test=0.9), FRESH[1]]
    outcome = outcome_of(ACCURACY, "x", TRIALS + fresh, Timed("m", 1.0), trials=3, seeds=[1, 2])
    assert outcome.updates[0] == math.inf
    assert np.isnan([outcome.validation[0], outcome.test[0]]).all()


# Profiles

COSTS = np.array(
    [
        [[10.0] * 3, [20.0] * 3, [math.inf] * 3],
        [[40.0] * 3, [10.0] * 3, [20.0] * 3],
        [[math.inf] * 3] * 3,
    ]
)
"""Three tasks, of which nobody reaches the last, and three optimizers from three seeds."""


def test_a_profile_is_the_share_of_tasks_within_a_factor_of_the_best():
    profile = profile_of("updates", ["a", "b", "c"], COSTS, np.array([1.0, 2.0, 4.0]))
    thirds = {label: (3 * shares).round(9).tolist() for label, shares in profile.fractions.items()}
    assert thirds == {"a": [1, 1, 2], "b": [1, 2, 2], "c": [0, 1, 1]}
    # A task counts (4 − ratio) / 3: 1 and 0 for a, 2/3 and 1 for b, 0 and 2/3 for c.
    values = {label: area.value for label, area in profile.areas.items()}
    assert values == pytest.approx({"b": 5 / 9, "a": 1 / 3, "c": 2 / 9})
    assert list(values) == ["b", "a", "c"]
    for label in "abc":
        low, high = profile.low[label], profile.high[label]
        assert (low <= profile.fractions[label]).all()
        assert (profile.fractions[label] <= high).all()
        assert profile.areas[label].low <= profile.areas[label].value <= profile.areas[label].high


def test_an_area_is_the_mean_of_its_profile():
    rng = np.random.default_rng(0)
    ratios = ratios_of(rng.uniform(1, 6, (5, 4)))
    taus = np.linspace(1, 4, 3001)
    profile = (ratios[..., None] <= taus).mean(axis=0)
    # The sum over 3001 points is off by half a step of 1/3000 for each jump at most.
    np.testing.assert_allclose(areas_of(ratios), profile.mean(axis=-1), atol=1e-3)


def test_draws_take_tasks_whole_and_seeds_apart():
    alike = drawn_ratios(np.repeat([[[2.0], [3.0]], [[5.0], [4.0]]], 4, axis=2))
    assert {tuple(pair) for pair in alike.reshape(-1, 2)} == {(1.0, 1.5), (1.25, 1.0)}
    from_seeds = drawn_ratios(np.array([[[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]]]))
    assert set(from_seeds[:, 0, 0]) == {1.0, 1.5}  # of 1, 2 or 3 to min(·, 2)


# Ranks


def test_misses_share_a_rank():
    assert mean_ranks(np.array([[5.0, math.inf, math.inf]])).tolist() == [1, 2.5, 2.5]


@pytest.mark.parametrize(("optimizers", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_published_tables(optimizers, q):
    # Table 5 of Demšar (2006), α = 0.05, with three decimals.
    expected = q * (optimizers * (optimizers + 1) / 60) ** 0.5
    assert critical_difference(optimizers, 10) == pytest.approx(expected, rel=3e-4)


def test_equal_optimizers_are_hardly_ever_told_apart():
    rng = np.random.default_rng(0)
    costs = rng.uniform(size=(300, 6, 8))
    leaders = areas_of(ratios_of(costs)).argmax(axis=-1)
    told = [bool(told_apart(c, leader)) for c, leader in zip(costs, leaders, strict=True)]
    assert np.mean(told) < 0.08  # 5% are allowed for; its deviation over 300 draws is 1.3%


def test_one_that_is_always_last_is_told_from_the_one_that_is_always_first():
    costs = np.tile(np.arange(1.0, 6.0), (6, 1))
    assert told_apart(costs, 0) == [3, 4]
    assert told_apart(costs[:, :1], 0) == []


# Sentences and tables


def bench_of(updates, machines=None, **options):
    """Make a benchmark of tasks t0, t1, … from updates (tasks, optimizers, seeds)."""
    updates = np.asarray(updates, float)
    tasks, optimizers, seeds = updates.shape
    labels = [chr(ord("a") + i) for i in range(optimizers)]
    machines = machines or ["m"] * optimizers
    nan = np.full(seeds, np.nan)
    outcomes = {
        (f"t{k}", label): Outcome(
            *(f"t{k}", label, {}, 0, updates[k, i], nan, nan, 0.5, machines[i], 1, 1, 0)
        )
        for k in range(tasks)
        for i, label in enumerate(labels)
    }
    goals = {f"t{k}": Goal(f"t{k}", None, "loss", False, 0.1, False, 9, 1) for k in range(tasks)}
    space = {label: {} for label in labels}
    return Bench(goals, space, outcomes, 1, list(range(1, seeds + 1)), **options)


def test_ties_say_what_cannot_be_told_apart():
    overall, first, second, third = bench_of(
        [
            [[10, 20, 30], [25, 30, 35], [50, 60, 70]],
            [[10, 11, 12], [20, 21, 22], [30, 31, 32]],
            [[math.inf] * 3] * 3,
        ]
    ).ties
    assert overall.startswith("Over all tasks a has the largest area under its profile, 0.67 (")
    assert overall.endswith("The data cannot tell it from b and c.")
    assert first == "t0: a is first, with 20 updates; the seeds cannot tell it from b (30)."
    assert second == (
        "t1: a is first, with 11 updates, and no other comes within the range over its seeds."
    )
    assert third == "t2: no optimizer reaches the target."


def test_ties_say_what_can_be_told_apart():
    overall, *_ = bench_of([[[10, 10], [20, 20], [30, 30], [40, 40], [50, 50]]] * 6).ties
    assert overall.endswith("The data cannot tell it from b and c; they tell it from d and e.")
    overall, *_ = bench_of([[[10, 10], [20, 20]]] * 6).ties
    assert overall.endswith("and the data tell it from all others.")


def test_one_seed_tells_nothing_about_a_task():
    _, sentence = bench_of([[[10], [20]]]).ties
    assert sentence == (
        "t0: a is first, with 10 updates; with one seed there is no telling whether that is chance."
    )


def test_one_optimizer_alone_is_compared_with_none():
    overall, sentence = bench_of([[[10, 10]]]).ties
    assert overall.endswith("there is no other optimizer.")
    assert sentence.startswith("t0: a is first, with 10 updates")


def test_tables_are_in_the_order_of_the_areas():
    table = bench_of([[[30, 30], [10, 12]]], left_out=["c"]).table()
    assert table.splitlines()[1].split()[:2] == ["b", "11"]
    assert "1 of 1" in table
    assert "lie apart in 0.33 of cases" in table  # 2 of the 6 orders of two and two
    assert "left out: c." in table


def test_seconds_are_updates_times_the_seconds_of_one():
    bench = bench_of([[[10, math.inf], [20, 30]]])
    assert bench.costs("seconds").tolist() == [[[5, math.inf], [10, 15]]]
    assert bench.profile("seconds").measure == "seconds"
    lines = bench_of([[[10, 10], [20, 30]]]).table().splitlines()
    assert lines[lines.index("seconds to the target  t0") + 2].split() == ["b", "12"]  # of 12.5


def test_seconds_of_several_machines_are_not_compared():
    bench = bench_of([[[10], [20]]], machines=["m", "n"])
    assert bench.profile().areas["a"].value == 1
    with pytest.raises(ValueError, match=r"Bench\.costs: measure must be 'updates' .* m and n"):
        bench.profile("seconds")
    assert "No seconds are shown, as they are of several machines: m and n." in bench.table()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": "hours"}, "measure must be one of 'updates', 'seconds'"),
        ({"taus": [0.5]}, r"taus must be numbers in \[1, 4\]"),
        ({"taus": []}, r"taus must be numbers in \[1, 4\]"),
        ({"taus": [math.nan]}, r"taus must be numbers in \[1, 4\]"),
    ],
)
def test_wrong_arguments_of_a_profile_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bench_of([[[10], [20]]]).profile(**arguments)
