"""`compare`: grids of runs, and what is concluded from them."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.lab import Comparison, Runs, Task, compare, tasks
from optlab.lab.comparison._rows import best_rate, decades_near_best, summarize, updates_to_target

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}


@pytest.fixture(scope="module")
def noisy(noisy_task):
    return compare(
        noisy_task, OPTIMIZERS, rates=[0.01, 0.1], seeds=2, steps=7, eval_every=3, target=0.5
    )


@pytest.fixture(scope="module")
def valley():
    return compare(tasks.valley(), OPTIMIZERS, rates=[0.001, 0.01, 1.0], seeds=2, steps=12)


@pytest.fixture(scope="module")
def hopeless():
    return compare(tasks.valley(), {"sgd": optax.sgd}, rates=[1.0, 10.0], seeds=2, steps=60)


def test_lbfgs_is_compared_like_any_optimizer():
    rows = compare(
        tasks.valley(), {"lbfgs": optlab.lbfgs, "adam": optlab.adam}, rates=[1.0], steps=8
    ).rows()
    lbfgs, adam = (row.validation.mean for row in rows)
    assert lbfgs < 1e-2 * adam


def test_a_line_search_sees_the_loss_of_its_batch_and_key():
    task = Task(
        name="random",
        init=lambda key: (jnp.zeros(2), ()),
        loss=lambda x, state, batch, key: (jnp.sum(x - batch) + jax.random.normal(key), state),
        batch=lambda key, step: jax.random.normal(jax.random.fold_in(key, step), (2,)),
        evaluate=lambda x, state, data: {"loss": jnp.abs(x).max()},
    )

    def moves_by_what_differs(rate):
        def update(g, state, params, *, value, grad, value_fn):
            return params + (value_fn(params) - value), state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    runs = compare(task, {"x": moves_by_what_differs}, rates=[0.1, 0.2], steps=3).runs["x"]
    np.testing.assert_allclose(runs.validation["loss"], 0, atol=1e-5)  # roundings of losses near 1
    assert np.ptp(runs.train_loss) > 0.1


def runs_of(scores, *, test=None, losses=None, rates=None):
    """Make two evaluations, at 0 and 10 updates, of runs ending in `scores` (rates, seeds)."""
    final = np.asarray(scores, np.float32)
    losses = np.ones_like(final) if losses is None else np.asarray(losses, np.float32)

    def curve(end, start):
        return np.stack([np.full_like(end, start), end], axis=-1)

    return Runs(
        rates=10.0 ** np.arange(-len(final), 0) if rates is None else np.asarray(rates),
        seeds=np.arange(final.shape[1]),
        steps=np.array([0, 10]),
        train_loss=curve(losses, 1.0),
        validation={"loss": curve(losses, 1.0), "accuracy": curve(final, 0.1)},
        test={} if test is None else {"accuracy": np.asarray(test, np.float32)},
        seconds=0.0,
    )


def comparison_of(**runs):
    return Comparison("made-up", "validation", "accuracy", True, None, runs)


def row_of(runs, **options):
    return summarize("x", runs, **{"score": "accuracy", "maximize": True, "target": None} | options)


# Grids of runs


def test_lanes_equal_the_same_runs_done_one_by_one(noisy_task, noisy):
    runs = noisy.runs["adam"]
    grad = jax.jit(jax.value_and_grad(noisy_task.loss, has_aux=True))
    init, batch_of = jax.jit(noisy_task.init), jax.jit(noisy_task.batch)
    evaluate = jax.jit(noisy_task.evaluate)

    @jax.jit
    def update(rate, params, opt_state, grads):
        updates, opt_state = optax.adam(rate).update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for i, j in np.ndindex(2, 2):
        rate, seed = runs.rates[i], runs.seeds[j]
        init_key, batch_key, noise_key = jax.random.split(jax.random.key(seed), 3)
        params, state = init(init_key)
        opt_state = optax.adam(rate).init(params)
        losses = []
        for step in range(7):
            key = jax.random.fold_in(noise_key, step)
            (loss, state), grads = grad(params, state, batch_of(batch_key, step), key)
            params, opt_state = update(rate, params, opt_state, grads)
            losses.append(float(loss))
        means = [losses[0], np.mean(losses[:3]), np.mean(losses[3:6]), losses[6]]
        final = evaluate(params, state, noisy_task.splits["validation"])["loss"]
        # Batched and single matrix products round differently, and Adam divides by √v.
        np.testing.assert_allclose(runs.train_loss[i, j], means, rtol=1e-4)
        np.testing.assert_allclose(runs.validation["loss"][i, j, -1], final, rtol=1e-4)


def test_the_last_interval_may_be_shorter(noisy):
    assert noisy.runs["sgd"].steps.tolist() == [0, 3, 6, 7]


def test_a_model_with_state_is_scored_on_the_test_split(noisy):
    assert noisy.rows()[1].test is not None


def test_runs_of_one_seed_share_initialization_and_batches(noisy_task):
    frozen = {"a": lambda rate: optax.set_to_zero(), "b": lambda rate: optax.set_to_zero()}
    comparison = compare(noisy_task, frozen, rates=[0.1, 1.0], seeds=2, steps=4, eval_every=1)
    a, b = (comparison.runs[label].train_loss for label in "ab")
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a[0], a[1])
    assert not np.array_equal(a[:, 0], a[:, 1])


def test_all_rates_seeds_and_intervals_share_one_compilation_per_optimizer(valley):
    traces = []
    task = tasks.valley()

    def loss(*args):
        traces.append(args)
        return task.loss(*args)

    counted = dataclasses.replace(task, loss=loss)
    compare(counted, OPTIMIZERS, rates=[1e-3, 1e-2, 1e-1], seeds=2, steps=7, eval_every=2)
    # One to check the task; for each optimizer one to count its work, and one for its program.
    assert len(traces) == 1 + 2 * len(OPTIMIZERS)


def test_valley_paths_of_sgd_follow_the_closed_form(valley):
    runs = valley.runs["sgd"]
    for name, curvature in (("x", 2.0), ("y", 100.0)):
        start = runs.validation[name][..., :1]
        factor = 1 - curvature * runs.rates[:2, None, None]
        expected = start[:2] * factor**runs.steps
        # 12 multiplications, each rounded to float32, and y meets 0 at the rate 0.01.
        np.testing.assert_allclose(runs.validation[name][:2], expected, rtol=1e-5, atol=1e-6)


def test_results_are_the_same_every_time(valley):
    again = compare(tasks.valley(), OPTIMIZERS, rates=[0.001, 0.01, 1.0], seeds=2, steps=12)
    for label, runs in valley.runs.items():
        np.testing.assert_array_equal(runs.train_loss, again.runs[label].train_loss)


def test_optimizers_that_need_the_loss_get_it(valley):
    polyak = {"polyak": lambda rate: optax.polyak_sgd(max_learning_rate=1.0, scaling=rate)}
    (row,) = compare(tasks.valley(), polyak, rates=[1.0], seeds=1, steps=20).rows()
    assert row.num_diverged == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": [0.1, -0.1]}, "compare: each of rates must be finite and > 0, got"),
        ({"rates": [np.nan]}, "compare: each of rates must be finite and > 0, got"),
        ({"rates": [1e-50]}, "compare: each of rates must be finite and > 0 in"),
        ({"seeds": [0.5]}, "compare: each of seeds must be an integer >= 0, got"),
        ({"seeds": [1, 1]}, "compare: seeds must differ, got [1, 1]"),
        ({"rates": []}, "compare: rates must hold at least one, got none"),
        ({"seeds": 0}, "compare: seeds must be an integer >= 1, got seeds=0"),
        ({"seeds": []}, "compare: seeds must hold at least one, got none"),
        ({"steps": 0}, "compare: steps must be an integer >= 1, got steps=0"),
        ({"eval_every": 0}, "compare: eval_every must be an integer >= 1, got eval_every=0"),
        ({"optimizers": {}}, "compare: optimizers must name at least one, got none"),
    ],
)
def test_compare_refuses(options, message):
    arguments = {"optimizers": OPTIMIZERS, "rates": [0.1]} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(tasks.valley(), **arguments)


# Divergence


def test_a_diverged_run_is_counted_and_changes_nothing_else(valley):
    sgd = valley.rows()[0]
    assert (sgd.num_diverged, sgd.num_runs, sgd.rate) == (2, 6, 0.01)
    tame = compare(
        tasks.valley(), {"sgd": optax.sgd}, rates=[0.001, 0.01], seeds=2, steps=12
    ).rows()[0]
    assert sgd.validation.mean == pytest.approx(tame.validation.mean, rel=1e-6)
    assert not sgd.at_edge
    assert tame.at_edge


def test_a_loss_that_rose_fourfold_has_diverged():
    runs = runs_of([[0.5, 0.5, 0.5]], losses=[[3.9, 4.1, np.inf]])
    assert runs.diverged.tolist() == [[False, True, True]]


def test_a_rate_that_lost_a_run_is_not_eligible_while_another_lost_none():
    runs = runs_of([[0.5, 0.5], [0.99, 0.9]], losses=[[1, 1], [np.nan, 1]])
    assert best_rate(runs, score="accuracy", maximize=True) == 0


def test_where_every_rate_lost_a_run_the_rest_decide():
    runs = runs_of([[0.5, 0.9], [0.8, 0.99]], losses=[[1, np.nan], [1, np.nan]])
    row = row_of(runs)
    assert row.rate == runs.rates[1]
    assert row.validation.mean == pytest.approx(0.8)
    assert row.validation.deviation is None


def test_where_every_run_diverged_the_row_says_so(hopeless):
    (row,) = hopeless.rows()
    assert row.rate is None
    assert row.num_diverged == row.num_runs == 4
    assert "all diverged" in hopeless.table()
    assert hopeless.verdict() == "Every run diverged: try lower rates."


def test_a_run_without_a_score_is_not_diverged_and_does_not_decide():
    runs = runs_of([[0.5, 0.6], [0.9, np.nan], [np.nan, np.nan]])
    runs = dataclasses.replace(runs, score="accuracy", maximize=True)
    assert not runs.diverged.any()
    assert row_of(runs).rate == runs.rates[0]
    comparison = comparison_of(a=dataclasses.replace(runs, rates=runs.rates * 2))
    assert "all diverged" not in comparison.table()
    nothing = comparison_of(a=dataclasses.replace(runs_of([[np.nan]]), score="accuracy"))
    assert "no score" in nothing.table()
    assert nothing.verdict() == "No run has a score: accuracy is not defined at the end of any."


# From runs to rows


def test_the_rate_is_chosen_on_validation_and_test_is_only_reported():
    drift = Task(
        name="drift",  # x ends at rate × 4; validation wants 1 and test wants 2
        init=lambda key: (jnp.array(0.0), ()),
        loss=lambda x, state, batch, key: (-x, state),
        batch=lambda key, step: (),
        evaluate=lambda x, state, data: {"loss": (x - data) ** 2},
        splits={"validation": 1.0, "test": 2.0},
    )
    rates = [0.125, 0.25, 0.5]
    (row,) = compare(drift, {"sgd": optax.sgd}, rates=rates, seeds=1, steps=4).rows()
    assert row.rate == 0.25
    assert row.validation.mean == 0.0
    assert row.test.mean == 1.0


def test_equal_scores_are_decided_by_the_loss():
    runs = runs_of([[0.9], [0.9], [0.9]], losses=[[0.5], [0.3], [0.4]])
    assert best_rate(runs, score="accuracy", maximize=True) == 1


def test_updates_to_target_is_the_median_over_seeds_or_none():
    steps = np.array([0, 5, 10])
    losses = np.array([[9, 2, 1], [9, 3, 2], [9, 9, 9]])
    options = {"maximize": False}
    assert updates_to_target(steps, losses, target=2, **options) == 10
    assert updates_to_target(steps, losses, target=0, **options) is None
    assert updates_to_target(steps, losses, target=None, **options) is None


@pytest.mark.parametrize(
    ("scores", "best", "expected"),
    [
        ([0.0, 1.0, 0.0], 1, (0.2, False)),  # a tenth of a decade to each side
        ([0.8, 1.0, 0.95], 1, (1.5, True)),  # to the right it reaches the end of the grid
        ([np.nan, 1.0, 0.8], 1, (0.5, False)),  # nothing is known beyond a diverged rate
        ([0.95, 0.2, 0.95, 1.0, 0.8], 3, (2.0, False)),  # a second optimum does not count
    ],
)
def test_decades_near_best(scores, best, expected):
    scores = np.array(scores)
    rates = 10.0 ** np.arange(len(scores))
    if scores[0] == 0.95:  # from 0.95 down to 0.2, 0.9 is met a fifteenth of a decade away
        expected = (1 + 0.05 / 0.75 + 0.5, False)
    width, cut_off = decades_near_best(rates, scores, 0.0, best)
    assert (pytest.approx(width), cut_off) == expected


def test_decades_of_a_loss_count_progress_downwards():
    width, _ = decades_near_best(np.array([0.1, 1.0, 10.0]), np.array([3.0, 1.0, 3.0]), 11.0, 1)
    assert width == pytest.approx(1.0)


def test_decades_are_unknown_for_a_single_rate_or_without_progress():
    assert decades_near_best(np.array([0.1]), np.array([1.0]), 0.0, 0) == (None, False)
    assert decades_near_best(np.array([0.1, 1]), np.array([1.0, 1.0]), 1.0, 0) == (None, False)


def test_verdict_names_ties_where_spreads_overlap():
    comparison = comparison_of(
        good=runs_of([[0.90, 0.94]], test=[[0.8, 0.8]]),
        near=runs_of([[0.88, 0.92]]),
        poor=runs_of([[0.50, 0.52]]),
    )
    assert comparison.verdict() == (
        "good at 0.1 leads: validation accuracy 0.92 ± 0.03, test 0.8 ± 0; "
        "tied with near at 0.1 (their spreads over seeds overlap)."
    )


def test_verdict_without_ties_and_with_one_seed():
    clear = comparison_of(good=runs_of([[0.90, 0.91]]), poor=runs_of([[0.50, 0.52]]))
    assert clear.verdict().endswith("; no other comes within the spread over seeds.")
    single = comparison_of(good=runs_of([[0.9]]), poor=runs_of([[0.5]]))
    assert single.verdict().endswith("With one seed there is no telling whether that is chance.")


def test_table_tells_edges_and_leaves_out_what_was_not_asked(valley):
    table = valley.table()
    assert "adam: the best rate is the highest tried" in table
    assert "updates to 0.01" in table
    assert "test" not in table
    single = comparison_of(x=runs_of([[0.9]])).table()
    assert single == (
        "optimizer  best rate  validation accuracy  diverged\n"
        "x          0.1        0.9                  0 of 1"
    )


def test_json_is_strict_and_gives_back_the_results(valley, hopeless):
    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    document = json.loads(valley.to_json(options={"seeds": 2}), parse_constant=refuse)
    sgd = document["optimizers"]["sgd"]
    assert document["options"] == {"seeds": 2}
    assert document["versions"]["jax"] == jax.__version__
    assert sgd["rate"] == 0.01
    assert np.shape(sgd["train_loss"]) == valley.runs["sgd"].train_loss.shape
    kept = np.float32(sgd["validation"]["x"][0])
    np.testing.assert_array_equal(kept, valley.runs["sgd"].validation["x"][0])
    diverged = json.loads(hopeless.to_json(), parse_constant=refuse)["optimizers"]["sgd"]
    assert diverged["rate"] is None
    assert diverged["train_loss"][1][0][-1] is None
