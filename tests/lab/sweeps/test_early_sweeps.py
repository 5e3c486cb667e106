"""Early stopping in lanes: each run ends where `train` ends it, and others go on."""

import csv
import io
import json
import math

import jax
import numpy as np
import pytest

import optlab
from helpers import bowl
from optlab import plots
from optlab.lab import Categorical, EarlyStopping, LogUniform, compare, sweep, train
from optlab.lab.training import _lanes

RATES = (1e-6, 0.03, 0.5, 2.2, 1e30)
"""Too low, low, good, too high, and so high that the first updates overflow."""

RULE = EarlyStopping(3, min_delta=1e-3, start=4, target=0.05, divergence=20.0)
CAUSES = ["patience", None, "target", "divergence", "not finite"]
OPTIONS = {"steps": 40, "eval_every": 2, "early_stopping": RULE}
SPACE = {"learning_rate": Categorical(RATES)}


def valley():
    return bowl(splits={"validation": None, "test": None}, noise=0.01)


def swept(**options):
    options = {"trials": 5, "search": "grid", "seeds": 2, "lanes": 5, **OPTIONS, **options}
    return sweep(valley(), optlab.sgd, SPACE, **options)


@pytest.fixture(scope="module")
def together():
    return swept()


@pytest.fixture(scope="module")
def alone():
    """The runs of the second seed, each by `train`."""
    key = jax.random.key(1)
    return [train(valley(), optlab.sgd(rate), key=key, **OPTIONS) for rate in RATES]


def assert_ends_like(trial, run):
    """Require the second run of a trial to end as a run of `train` does."""
    assert trial.taken[1] == run.step
    assert trial.ended[1] == run.history.steps[-1]
    reason = trial.reasons[1]
    assert run.reason == (f"early stopping: {reason}" if reason else "all updates done")
    losses, until = run.history.validation["loss"], len(run.history.steps)
    np.testing.assert_array_equal(trial.steps[:until], run.history.steps)
    # Another program rounds otherwise: a few float32 roundings over forty updates.
    np.testing.assert_allclose(trial.validation["loss"][1, :until], losses, rtol=1e-5)
    assert np.isnan(trial.validation["loss"][1, until:]).all()


@pytest.mark.parametrize("apart", [False, True])
def test_each_run_of_a_sweep_ends_as_train_ends_it(together, alone, monkeypatch, apart):
    if apart:
        monkeypatch.setattr(_lanes, "LITTLE_WORK", 0)
    result = swept() if apart else together
    assert [trial.causes[1] for trial in result.trials] == CAUSES
    for trial, run in zip(result.trials, alone, strict=True):
        if trial.causes[1] != "not finite":  # `train` has its own word for a loss that is NaN
            assert_ends_like(trial, run)
            kept = run.history.validation["loss"][run.history.steps == run.step]
            np.testing.assert_allclose(trial.final("loss")[1:], kept, rtol=1e-5)


def test_the_score_is_that_of_the_best_evaluation_and_a_lost_run_has_none(together):
    statuses = ["ended early", "complete", "ended early", "diverged", "diverged"]
    assert [trial.status for trial in together.trials] == statuses
    for trial in together.trials[:3]:
        places = np.searchsorted(trial.steps, trial.taken)
        scores = trial.validation["loss"][[0, 1], places]
        assert trial.score == trial.loss == scores.mean(dtype=float)
    assert all(math.isnan(trial.score) for trial in together.trials[3:])
    assert together.best.values["learning_rate"] == 0.5


def test_the_table_says_where_each_trial_ended_and_why(together):
    heading, *rows = together.table().splitlines()[:6]
    assert heading.split()[-6:] == ["updates", "best", "at", "ended", "by", "status"]
    assert rows[0].split()[-3:] == ["target", "ended", "early"]
    assert "ended 8 of 10 runs: 2 by patience, 2 by target, 2 by div" in together.table()
    lines = list(csv.DictReader(io.StringIO(together.to_csv())))
    assert [line["ended_by"] for line in lines][:3] == ["target", "–", "patience"]
    trial = json.loads(together.to_json())["trials"][2]
    assert trial["reasons"][0].startswith("the value reached the target 0.05 at check")


def test_plots_end_with_the_runs(together):
    lines = plots.plot_trials(together).get_lines()
    lasts = [line.get_xdata()[np.isfinite(line.get_ydata())].max() for line in lines]
    figure = together.plot()
    (legend,) = figure.legends
    kinds = {text.get_text() for text in legend.get_texts()}
    assert {"ended early", "complete", "diverged", "best"} >= kinds >= {"ended early", "complete"}
    # The worst are drawn first, and the best twice; of one that overflows only the start.
    assert lasts == [0, 8, 10, 40, 4, 4]


def test_lanes_that_stop_make_no_more_updates(monkeypatch):
    monkeypatch.setattr(_lanes, "LITTLE_WORK", 0)
    advanced = []
    advance = _lanes.Apart.advance

    def counting(self, runs, values, first, stop, used, *rest):
        advanced.append((first, list(used)))
        return advance(self, runs, values, first, stop, used, *rest)

    monkeypatch.setattr(_lanes.Apart, "advance", counting)
    result = swept(trials=5)
    ended = [trial.num_updates for trial in result.trials]
    assert ended[1] == 40
    for first, used in advanced:
        assert used == [lane for lane, end in enumerate(ended) if end > first]


def test_a_rung_of_halving_judges_the_best_so_far_and_who_ended_takes_no_more_time(together):
    result = swept(halving=2)
    reached = [int(trial.steps[-1]) for trial in result.trials]
    assert reached == [20, 40, 40, 10, 10]  # by halving, or to the end
    assert [trial.num_updates for trial in result.trials] == [10, 40, 4, 8, 2]  # what was made
    for trial, other in zip(result.trials, together.trials, strict=True):
        assert (trial.status, trial.causes) == (other.status, other.causes)
        np.testing.assert_array_equal(trial.taken, other.taken)
        losses = other.validation["loss"][:, : len(trial.steps)]
        np.testing.assert_array_equal(trial.validation["loss"], losses)


def test_a_stopped_sweep_goes_on_to_the_same_ends(tmp_path, together):
    def interrupt(trial):
        if trial.number == 1:
            raise KeyboardInterrupt

    file = tmp_path / "results.db"
    with pytest.raises(KeyboardInterrupt):
        swept(results=file, callbacks=[interrupt])
    result = swept(results=file)
    for trial, other in zip(result.trials, together.trials, strict=True):
        np.testing.assert_array_equal(trial.validation["loss"], other.validation["loss"])
        np.testing.assert_array_equal(trial.taken, other.taken)
        assert (trial.reasons, trial.causes) == (other.reasons, other.causes)
    with pytest.raises(
        ValueError, match=r"early_stopping must be that of the sweep in .*'patience"
    ):
        swept(results=file, early_stopping=EarlyStopping(2))


@pytest.mark.slow  # Optuna takes seconds to import
def test_bayesian_search_learns_from_the_best_evaluations():
    pytest.importorskip("optuna")
    space = {"learning_rate": LogUniform(0.3, 1.0)}
    result = sweep(valley(), optlab.sgd, space, trials=3, search="bayes", **OPTIONS)
    for trial in result.trials:
        assert trial.causes == ["target"]
        assert trial.score == trial.final("loss")[0] <= 0.05


def test_a_comparison_judges_and_tests_each_run_where_it_was_best(alone):
    result = compare(valley(), {"sgd": optlab.sgd}, rates=RATES[:4], seeds=2, lanes=4, **OPTIONS)
    runs = result.runs["sgd"]
    for index, run in enumerate(alone[:4]):
        assert (runs.taken[index, 1], runs.ended[index, 1]) == (run.step, run.history.steps[-1])
        # Rounding alone, as above.
        np.testing.assert_allclose(runs.test["loss"][index, 1], run.test["loss"], rtol=1e-5)
    (row,) = result.rows()
    assert (row.rate, row.num_ended, row.best_at) == (0.5, 6, 4.0)
    assert "6 of 8 (2 by patience, 2 by target, 2 by divergence)" in result.table()
    assert result.plot() is not None
    assert json.loads(result.to_json())["optimizers"]["sgd"]["causes"][2] == ["target", "target"]


def test_an_undefined_score_does_not_count_in_lanes():
    def evaluate(x, state, data):
        loss = 0.5 * (x**2).sum()
        return {"loss": loss, "f1": jax.numpy.where(loss > 0.5, jax.numpy.nan, 1 - loss)}

    task = bowl(noise=0.0, evaluate=evaluate, score="f1", maximize=True)
    rule = EarlyStopping(2, mode="max", target=0.9)
    result = sweep(
        task, optlab.sgd, SPACE, trials=5, search="grid", **OPTIONS | {"early_stopping": rule}
    )
    assert result.trials[2].causes == ["target"]
    assert result.trials[0].causes == [None]  # never defined: it goes on to the end


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (3, "early_stopping must be an EarlyStopping, got 3"),
        (EarlyStopping(2, mode="max"), "early_stopping must have mode='min', as a lower loss is"),
        (EarlyStopping(2).update(1.0), "early_stopping must be new, got num_checks=1"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused_before_training(rule, message):
    with pytest.raises(ValueError, match=f"sweep: {message}"):
        swept(early_stopping=rule)
    with pytest.raises(ValueError, match=f"compare: {message}"):
        compare(bowl(), {"sgd": optlab.sgd}, rates=[0.1], early_stopping=rule)
