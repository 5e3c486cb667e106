"""The seven steps, from beginning to end, on a task of a few numbers."""

import dataclasses
import json
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from blobs import STEPS, VALIDATION, forward, make_task, of_summed_losses, task
from optlab.lab import LogUniform, Uniform, tune
from optlab.lab.tuning import _finals, _rates, _refinement, _search
from optlab.lab.tuning._procedure import (
    BLOCK,
    FINALS_FROM,
    HEATS_FROM,
    MOST_CONTENDERS,
    NOISE,
    ROUNDS_FROM,
)
from optlab.lab.tuning._schedules import SCHEDULES

OPTIONS = {"budget": "60 trials", "quick": True, "optimizers": {"adamw": optlab.adamw}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "blobs"
    seen = []
    result = tune(task, **OPTIONS, folder=folder, callbacks=[lambda *change: seen.append(change)])
    return folder, result, seen


def test_seven_steps_lead_to_a_winner_with_its_interval_and_its_cost(made):
    _, result, _ = made
    verdicts = {step.name: step.verdict for step in result.steps}
    assert len(verdicts) == 7
    assert set(verdicts.values()) <= {"passed", "warning"}
    winner = result.winner
    assert winner.optimizer == "adamw"
    assert winner.score.low <= winner.score.mean <= winner.score.high
    # The classes overlap: an exact rule of Bayes has about 0.88.
    assert 0.8 < winner.score.mean < 0.95
    assert len(winner.test.values) == len(winner.score.values) == 3
    assert result.finished
    assert result.updates == sum(step.updates for step in result.steps)
    assert result.runs == sum(step.runs for step in result.steps)


def test_a_budget_of_updates_is_not_exceeded_by_more_than_a_tenth(made):
    _, result, _ = made
    assert result.updates <= 1.1 * 60 * STEPS


def test_the_folder_holds_reports_and_results(made):
    folder, result, _ = made
    names = {path.name for path in folder.iterdir()}
    assert {"results.sqlite", "report.html", "report.md"} <= names
    assert f"{result.winner.score.mean:.3g}" in (folder / "report.html").read_text()
    with closing(sqlite3.connect(folder / "results.sqlite")) as connection:
        ((trials,),) = connection.execute(
            "select count(*) from entries where key like 'trial/%'"
        ).fetchall()
    assert trials >= len(result.trials)


def test_callbacks_see_the_steps_as_they_go_on(made):
    _, _, seen = made
    running = [
        [step.name for step in tuning.steps if step.verdict == "running"] for tuning, _ in seen
    ]
    order = list(dict.fromkeys(names[0] for names in running if names))
    assert order == [step.name for step in seen[-1][0].steps]
    assert not seen[0][0].finished
    assert seen[-1][0].finished


def without_time(tuning):
    steps = [dataclasses.replace(step, seconds=0.0) for step in tuning.steps]
    document = dataclasses.asdict(dataclasses.replace(tuning, seconds=0.0, steps=steps))
    return {name: value for name, value in document.items() if name != "summary"}


OTHERS = (pytest.mark.slow, pytest.mark.other_rows)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "after", [8, pytest.param(3, marks=OTHERS), pytest.param(12, marks=OTHERS)]
)
def test_a_procedure_that_was_killed_ends_with_the_same_trials_none_of_them_made_twice(
    made, after, tmp_path
):
    _, whole, seen = made
    changes = []

    def kill(tuning, text):
        changes.append(text)
        if len(changes) == after:
            raise Killed

    assert after < len(seen)
    with pytest.raises(Killed):
        tune(task, **OPTIONS, folder=tmp_path / "t", callbacks=[kill])
    again = tune(task, **OPTIONS, folder=tmp_path / "t")
    assert again.updates <= 1.1 * 60 * STEPS
    of_whole, of_again = without_time(whole), without_time(again)
    assert json.dumps(of_again["trials"]) == json.dumps(of_whole["trials"])
    assert of_again["winner"] == of_whole["winner"]
    assert [s["verdict"] for s in of_again["steps"]] == [s["verdict"] for s in of_whole["steps"]]


@pytest.mark.slow
def test_a_procedure_that_was_killed_within_a_range_test_goes_on_within_it(tmp_path, monkeypatch):
    stored = []
    add_rungs = _rates._Runs.add_rungs

    def killing(self, curves):
        add_rungs(self, curves)
        stored.extend((self._name, *key) for key in curves)
        if killing.armed and len(stored) > 1:  # the rising run, and some at constant rates
            raise Killed

    def end_after_the_range_test(tuning, text):
        if tuning.steps[3].verdict == "running":
            assert "runs at constant rates" in tuning.steps[2].evidence
            raise Killed

    killing.armed = True
    monkeypatch.setattr(_rates._Runs, "add_rungs", killing)
    options = {"budget": "2000 trials", "optimizers": {"adam": optlab.adam}, "folder": tmp_path}
    with pytest.raises(Killed):
        tune(task, **options)
    before = len(stored)
    killing.armed = False
    with pytest.raises(Killed):
        tune(task, **options, callbacks=[end_after_the_range_test])
    assert len(stored) > before > 1
    assert len(set(stored)) == len(stored)


def test_a_procedure_that_ended_is_read_again_without_a_run(made, tmp_path):
    folder, result, _ = made
    shutil.copytree(folder, tmp_path / "copy")
    again = tune(task, **OPTIONS, folder=tmp_path / "copy")
    assert without_time(again) == without_time(result)


@pytest.mark.slow
def test_an_ensemble_of_the_winner_is_judged_on_request():
    result = tune(task, **{**OPTIONS, "budget": "90 trials"}, ensemble=3)
    finals = result.steps[-1]
    assert "An ensemble of 3 has the error" in finals.evidence
    errors = next(table for table in finals.tables if "ensemble" in table.title).columns["error"]
    # The classes overlap: an exact rule of Bayes has about 0.12.
    assert all(0 < float(error) < 0.3 for error in errors)
    with pytest.raises(ValueError, match=r"tune: .*Task.predict"):
        tune(dataclasses.replace(make_task(), predict=None), ensemble=3)


# What is refused


def test_the_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"tune: folder must be new, empty, .*notes.txt"):
        tune(task, **OPTIONS, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_folder_of_another_procedure_is_refused(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "copy")
    with pytest.raises(ValueError, match="tune: seed must be that of the tuning procedure"):
        tune(task, **OPTIONS, seed=1, folder=tmp_path / "copy")


def test_a_refused_call_changes_nothing_in_a_folder(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "copy")
    before = (tmp_path / "copy" / "report.html").read_text()
    with pytest.raises(ValueError, match="steps must be that of the tuning procedure"):
        tune(task, **OPTIONS, steps=30, folder=tmp_path / "copy")
    assert (tmp_path / "copy" / "report.html").read_text() == before


def with_stopped_gradient():
    return make_task(loss=without_gradient)


def test_what_was_found_of_a_task_is_not_said_of_one_that_was_mended(tmp_path):
    faulty = tune(with_stopped_gradient, **OPTIONS, folder=tmp_path / "t")
    assert "no parameter ever changed" in faulty.steps[1].advice
    with pytest.raises(ValueError, match="one of the same name with other functions or other data"):
        tune(task, **OPTIONS, folder=tmp_path / "t")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="tune: folder must be a folder that can be written"):
        tune(task, **OPTIONS, folder=tmp_path / "file")


def without_validation():
    return dataclasses.replace(make_task(), splits={}, predict=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "soon"}, "budget must be a time.*got 'soon'"),
        ({"budget": "0m"}, "budget must be a time.*got '0m'"),
        ({"budget": True}, "budget must be a time.*got True"),
        ({"budget": "30 updates"}, "budget must allow the checks and one run of 40"),
        ({"space": {"momentum": Uniform(0.5, 0.99)}}, "space must name arguments.*got momentum"),
        ({"space": {"b1": Uniform(0.5, 1.5)}}, r"b1 must be in \[0, 1\)"),
        ({"space": {"learning_rate": (1e-3, 1e-1)}}, "must be a LogUniform"),
        ({"optimizers": {}}, "optimizers must map names to constructors"),
        ({"optimizers": {"adamw": 3}}, "optimizers must map names to functions"),
        ({"optimizers": {"mine": lambda rate: None}}, "the constructor of mine must take"),
        ({"task": without_validation}, "'blobs' must have validation data"),
        ({"task": 3}, "task must be a Task, or a function"),
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"quick": "no"}, "quick must be True or False"),
        ({"callbacks": 3}, "callbacks must be a list of functions"),
    ],
)
def test_what_cannot_be_tuned_is_refused(options, message):
    options = {**OPTIONS, "task": task, **options}
    with pytest.raises(ValueError, match=f"tune: .*{message}|tune: {message}|{message}"):
        tune(options.pop("task"), **options)


# Faults that the first steps find


def of_probabilities(params, batch):
    x, y = batch
    logits = jax.nn.softmax(forward(params, x))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def of_shifted_labels(params, batch):
    x, y = batch
    logits = forward(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, (y + 1) % 3).mean()


def of_all_pairs(params, batch):
    x, y = batch
    logits = forward(params, x)[:, None]
    return optax.softmax_cross_entropy_with_integer_labels(
        jnp.broadcast_to(logits, (len(x), len(x), 3)), jnp.broadcast_to(y, (len(x), len(x)))
    ).mean()


def without_gradient(params, batch):
    x, y = batch
    logits = jax.lax.stop_gradient(forward(params, x))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def of_zeros(key):
    return {"w": jnp.zeros((3, 8)), "v": jnp.zeros((8, 3)), "b": jnp.zeros(3)}


def of_large_weights(key):
    w, v = jax.random.split(key)
    return {
        "w": 30 * jax.random.normal(w, (3, 8)),
        "v": 30 * jax.random.normal(v, (8, 3)),
        "b": jnp.zeros(3),
    }


@pytest.mark.parametrize(
    ("change", "step", "advice"),
    [
        ({"init": of_large_weights}, "initial loss", "The initialization is guilty"),
        ({"loss": of_probabilities}, "overfit a batch", "a softmax that is taken twice"),
        ({"loss": of_shifted_labels}, "overfit a batch", "labels that are shifted"),
        ({"loss": of_all_pairs}, "overfit a batch", "It mixes examples"),
        ({"loss": without_gradient}, "overfit a batch", "no parameter ever changed"),
        ({"init": of_zeros}, "overfit a batch", "The initialization is guilty"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_planted_fault_is_named_by_the_step_that_shows_it(change, step, advice):
    result = tune(partial(make_task, **change), **OPTIONS)
    verdicts = {one.name: one for one in result.steps}
    assert verdicts[step].verdict == "failed"
    assert advice in verdicts[step].advice
    assert result.winner is None
    assert result.steps[-1].verdict == "skipped"
    assert advice in " ".join(result.summary)


def of_one_class():
    inputs, labels = VALIDATION
    return make_task(validation=(inputs, np.zeros_like(labels)))


def of_a_bad_example():
    inputs, labels = VALIDATION
    return make_task(validation=(np.where(np.arange(120)[:, None] == 7, np.nan, inputs), labels))


@pytest.mark.parametrize(
    ("faulty", "advice"),
    [
        (of_one_class, "All 120 labels of the validation split are 0"),
        (of_a_bad_example, "look for NaN or infinity in the validation split"),
    ],
)
def test_a_validation_split_that_judges_nothing_is_named_before_training(faulty, advice):
    result = tune(faulty, **OPTIONS)
    assert result.steps[0].verdict == "failed"
    assert advice in result.steps[0].advice


def test_an_optimizer_that_ignores_its_rate_is_named():
    baked = {"baked": lambda learning_rate: optax.sgd(0.1)}
    result = tune(task, **{**OPTIONS, "optimizers": baked})
    assert "does not use what is searched" in result.steps[3].advice


@pytest.mark.slow
def test_labels_that_belong_to_no_inputs_are_named_by_the_search():
    rng = np.random.default_rng(3)

    def nonsense(count):
        return rng.normal(size=(count, 3)).astype(np.float32), rng.integers(0, 3, count)

    result = tune(partial(make_task, train=nonsense(240), validation=nonsense(240)), **OPTIONS)
    search = result.steps[3]
    assert search.verdict in ("failed", "warning")
    assert "labels that do not belong to their inputs" in search.advice


@pytest.mark.slow
def test_the_procedure_goes_on_after_a_failed_check_on_request():
    result = tune(of_summed_losses, **OPTIONS, go_on=True)
    assert result.steps[0].verdict == "failed"
    assert "the loss is a sum over the batch" in result.steps[0].advice
    assert result.winner is not None


# Numbers


def test_trials_of_different_steps_never_share_a_number():
    spans = [(0, MOST_CONTENDERS * BLOCK)]
    spans += [
        (ROUNDS_FROM * (place + 1), ROUNDS_FROM * (place + 1) + 2 * BLOCK)
        for place in range(_refinement.ROUNDS)
    ]
    spans += [(NOISE, NOISE + 1), (HEATS_FROM, HEATS_FROM + len(SCHEDULES) * BLOCK)]
    spans += [(FINALS_FROM, FINALS_FROM + _finals.FINALISTS * BLOCK)]
    assert max(_search.MANY, _refinement.TRIALS, len(_finals.FACTORS)) <= BLOCK
    assert all(end <= first for (_, end), (first, _) in pairwise(spans))


def test_more_optimizers_than_numbers_allow_are_refused():
    many = {f"sgd {place}": optlab.sgd for place in range(MOST_CONTENDERS + 1)}
    with pytest.raises(ValueError, match="tune: optimizers must name at most 100, got 101"):
        tune(task, **{**OPTIONS, "optimizers": many})


# The space


@pytest.mark.slow
def test_a_best_value_at_an_edge_moves_the_space():
    narrow = {"learning_rate": LogUniform(1e-5, 2e-5)}
    result = tune(task, **OPTIONS, space=narrow)
    assert "lies at the upper edge" in result.steps[4].evidence
    assert max(trial.values["learning_rate"] for trial in result.trials) > 2e-5
