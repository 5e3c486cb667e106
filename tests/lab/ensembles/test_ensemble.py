"""Ensembles: who their members are, and how good they are together."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from classes import KEY, blobs, sources
from helpers import assert_same_bits
from optlab import lab
from optlab.lab import (
    Categorical,
    LogUniform,
    Scores,
    reliability,
    scores,
    tasks,
    train,
)
from optlab.lab.ensembles import _ensemble, _members
from optlab.schedules import cosine_restarts

TASK = blobs()
TX = optlab.adam(0.05)
STEPS = 30
TEST = TASK.splits["test"]

# A float32 result of another program, after a few updates of a smooth function.
ROUNDED = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def four():
    return lab.ensemble(TASK, TX, members=4, steps=STEPS, seed=3)


@pytest.fixture(scope="module")
def report(four):
    return four.report()


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **ROUNDED), a, b)


# Members


def test_a_member_is_the_run_of_its_seed(four):
    assert len(four) == len(four.members) == 4
    assert four.labels == ("seed 3", "seed 4", "seed 5", "seed 6")
    run = train(TASK, TX, steps=STEPS, key=jax.random.key(5))
    assert_close(four.members[2].params, run.params)


def test_members_are_divided_between_devices_that_divide_them_evenly(four):
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(four.params)} == {2}
    assert [len(_members._devices(members)) for members in (1, 2, 3, 5, 10)] == [1, 2, 1, 1, 2]
    three = lab.ensemble(TASK, TX, members=3, steps=STEPS, seed=3)
    assert_close(three.params, four[:3].params)


@pytest.mark.parametrize(
    ("share", "alike"),
    [(None, set()), ("init", {"start"}), ("data", {"data", "noise"})],
)
def test_members_share_what_they_are_told_to(share, alike):
    both = lab.ensemble(sources(), optlab.sgd(1.0), members=2, steps=2, share=share)
    assert both.shared_start == (share == "init")
    first = train(sources(), optlab.sgd(1.0), steps=2, key=KEY).params
    for name, (one, other) in both.params.items():
        np.testing.assert_array_equal(one, first[name])
        assert np.array_equal(one, other) == (name in alike)


def test_members_can_be_chosen(four):
    last = four[-2:]
    assert last.labels == ("seed 5", "seed 6")
    assert_same_bits(last.members[0], four.members[2])
    assert four[[3, 0]].labels == ("seed 6", "seed 3")
    assert four[[1]].shared_start
    assert not four.shared_start
    with pytest.raises(ValueError, match="must have at least one member, got slice"):
        four[4:]
    with pytest.raises(ValueError, match=r"by a slice, or a list of places, got 2; one member is"):
        four[2]
    with pytest.raises(ValueError, match=r"^Ensemble: places .* from -4 to 3, got \[0, 7\]$"):
        four[[0, 7]]


# Predictions


def test_stacked_predictions_are_those_of_the_members(four):
    logits, labels = four.logits(TEST)
    np.testing.assert_array_equal(labels, TEST[1])
    for member, row in zip(four.members, logits, strict=True):
        np.testing.assert_allclose(row, TASK.predict(*member, TEST)[0], **ROUNDED)
    for how in ("probability", "logit"):
        expected = lab.combine_log_probs(logits, how=how)
        np.testing.assert_array_equal(four.log_probs(TEST, how=how), expected)


def test_a_report_has_the_scores_of_members_and_ensemble(four, report):
    logits, labels = four.logits(TEST)
    for place in range(4):
        got = [score[place] for score in report.members]
        np.testing.assert_allclose(got, scores(logits[place], labels), **ROUNDED)
    for how in ("probability", "logit"):
        combined = four.log_probs(TEST, how=how)
        np.testing.assert_allclose(report.combined[how], scores(combined, labels), **ROUNDED)
        validation = TASK.splits["validation"]
        temperature = lab.fit_temperature(four.log_probs(validation, how=how), validation[1])
        assert report.temperatures[how] == pytest.approx(temperature, rel=1e-5)
        calibrated = scores(combined / temperature, labels)
        np.testing.assert_allclose(report.calibrated[how], calibrated, **ROUNDED)


def test_the_gain_begins_with_the_mean_of_single_members_and_ends_with_all(four, report):
    logits, labels = four.logits(TEST)
    for how in ("probability", "logit"):
        for place, score in enumerate(report.gain[how]):
            assert score[0] == pytest.approx(report.members[place].mean(), rel=1e-4)
            assert score[-1] == pytest.approx(float(report.combined[how][place]), rel=1e-4)
        pairs = [[0, 1], [1, 2], [2, 3], [3, 0]]
        of_pairs = [lab.combine_log_probs(logits[jnp.array(pair)], how=how) for pair in pairs]
        nll = np.mean([scores(log_probs, labels).nll for log_probs in of_pairs])
        assert report.gain[how].nll[1] == pytest.approx(nll, rel=1e-4)


def test_the_diagram_of_the_members_has_the_predictions_of_all(four, report):
    logits, labels = four.logits(TEST)
    everything = reliability(logits.reshape(-1, 3), jnp.tile(labels, 4))
    for got, expected in zip(report.diagrams["members"], everything, strict=True):
        np.testing.assert_allclose(got, expected, **ROUNDED)
    of_mean = reliability(four.log_probs(TEST, how="logit"), labels)
    np.testing.assert_allclose(report.diagrams["logit"], of_mean, **ROUNDED)


def test_a_report_prints_a_row_for_each_way_to_combine(report):
    title, _, headings, *rows = str(report).splitlines()
    assert title == "blobs: 4 models (seed 3 to seed 6) on the split 'test'"
    assert headings.split() == ["error", "NLL", "Brier", "ECE"]
    temperature = f"{report.temperatures['probability']:.3g}"
    starts = ["members", "worst member", "probability mean", "logit mean"]
    starts += [f"probability mean, T = {temperature}", "logit mean, T ="]
    assert all(row.startswith(start) for row, start in zip(rows, starts, strict=True))
    assert f"{report.members.nll.max():.3g}" in rows[1].split()
    document = json.loads(report.to_json(seed=3))
    assert document["seed"] == 3
    assert document["combined"]["logit"]["nll"] == pytest.approx(report.combined["logit"].nll)


def test_temperatures_on_the_split_they_were_fitted_on_are_noted(four):
    on_validation = four.report("validation")
    assert "flatter the ensemble" in str(on_validation)
    for how in ("probability", "logit"):
        assert on_validation.calibrated[how].nll <= on_validation.combined[how].nll


def test_a_diverged_member_is_named(four):
    params = jax.tree.map(lambda x: x.at[1].set(np.nan), four.params)
    text = str(dataclasses.replace(four, params=params))
    assert "Not finite: seed 4. Leave out what diverged: ensemble[[0, 2, 3]]." in text
    assert "T =" not in text


def test_an_ensemble_that_diverged_has_no_scores(report):
    bad = Scores(*(np.full(4, x) for x in (0.9, np.nan, np.nan, np.nan)))
    rows = dataclasses.replace(report, members=bad).table().splitlines()
    assert rows[1].split() == ["members", *"––––"]
    assert rows[2].split() == ["worst", "member", *"––––"]
    assert rows[-1] == "Not finite: seed 3, seed 4, seed 5, seed 6. No member is left."


def test_a_report_of_one_model_names_it(report):
    first = Scores(*(score[:1] for score in report.members))
    title = str(dataclasses.replace(report, labels=("seed 3",), members=first))
    assert title.startswith("blobs: seed 3 on the split 'test'\n")


# Snapshots


def test_the_rate_of_snapshots_is_that_of_the_paper():
    rate = cosine_restarts(0.2, decay_steps=40)
    # Updates count from 1 in the paper; five digits of each are given.
    got = [float(rate(t - 1)) for t in (1, 2, 20, 21, 40, 41)]
    np.testing.assert_allclose(got, [0.2, 0.19969, 0.10785, 0.1, 0.000308, 0.2], rtol=1e-3)


@pytest.mark.slow  # for the compiler's usual options: two programs have the same bits
def test_snapshots_are_one_run_at_the_end_of_each_cycle():
    task, tx = sources(), optlab.sgd(cosine_restarts(0.5, decay_steps=4), momentum=0.9)
    three = lab.snapshots(task, tx, cycles=3, steps=11, key=KEY)
    assert three.labels == ("update 4", "update 8", "update 11")
    assert three.shared_start
    for member, steps in zip(three.members, (4, 8, 11), strict=True):
        assert_same_bits(member.params, train(task, tx, steps=steps, key=KEY).params)


GROUPED = optlab.groups.partition(
    jax.eval_shape(sources().init, KEY)[0],
    [("start", optlab.sgd(cosine_restarts(0.5, decay_steps=4))), (..., optlab.sgd(0.5))],
)


@pytest.mark.parametrize(
    ("tx", "got"),
    [
        (optlab.sgd(0.5), "learning_rate 0.5 before and 0.5 after"),
        (optlab.sgd(cosine_restarts(0.5, decay_steps=5)), "learning_rate 0.173 before and 0.0477"),
        (GROUPED, "0.5 before and 0.5 after"),
    ],
)
def test_snapshots_need_a_rate_that_restarts(tx, got):
    with pytest.raises(ValueError, match=r"^snapshots: the rate must restart after 4 up") as error:
        lab.snapshots(sources(), tx, cycles=3, steps=11, key=KEY)
    assert got in str(error.value)


def test_snapshots_wait_for_an_accumulated_update_to_restart_the_rate():
    rate = cosine_restarts(0.5, decay_steps=2)
    tx = optax.MultiSteps(optlab.sgd(rate), 2).gradient_transformation()
    assert len(lab.snapshots(sources(), tx, cycles=2, steps=8, key=KEY)) == 2


def test_fewer_snapshots_are_the_last_ones(four):
    report = dataclasses.replace(four, ordered=True).report()
    alone = [score[0] for score in report.gain["logit"]]
    np.testing.assert_allclose(alone, [score[3] for score in report.members], **ROUNDED)


# The best of a sweep


@pytest.fixture(scope="module")
def swept():
    space = {"learning_rate": LogUniform(0.01, 0.1)}
    return lab.sweep(TASK, optlab.adam, space, trials=3, seed=2, steps=STEPS, eval_every=10)


def test_the_best_trials_of_a_sweep_are_trained_again(swept):
    both = lab.ensemble.of(swept, best=2, task=TASK, optimizer=optlab.adam, seed=2)
    best = swept.ranked()[:2]
    assert both.labels == tuple(f"trial {trial.number}" for trial in best)
    run = train(
        TASK, optlab.adam(best[1].values["learning_rate"]), steps=STEPS, key=jax.random.key(2)
    )
    assert_close(both.members[1].params, run.params)
    metrics = TASK.evaluate(*both.members[0], TASK.splits["validation"])
    assert float(metrics["loss"]) == pytest.approx(best[0].loss, rel=1e-4)


@pytest.mark.parametrize(("scales", "shared"), [((1.0, 1.0), True), ((1.0, 2.0), False)])
def test_trials_share_their_start_where_it_does_not_depend_on_their_values(scales, shared):
    def task(scale, noise):
        return dataclasses.replace(
            TASK, init=lambda key: (jax.tree.map(lambda x: scale * x, TASK.init(key)[0]), ())
        )

    tasks = [task(scale, noise) for noise, scale in enumerate(scales)]
    assert _ensemble._share_start(tasks, 2) is shared
    assert _ensemble._share_start([tasks[1]] * 2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": 4}, "best must not exceed the number of trials that .*, got best=4 of 3 such"),
        ({"seed": 3}, "trial . must begin as in the sweep, with the validation losses .*; pass"),
        ({"task": tasks.valley()}, "the task must be a classification, .*'valley' without Task.pr"),
    ],
)
def test_other_trials_than_those_of_the_sweep_are_refused(swept, options, message):
    options = {"best": 2, "task": TASK, "optimizer": optlab.adam, "seed": 2, **options}
    with pytest.raises(ValueError, match=f"^ensemble.of: {message}"):
        lab.ensemble.of(swept, **options)


@pytest.mark.slow
def test_trials_of_different_shapes_are_refused():
    def task(width):
        return lab.tasks.digits_mlp(width=width)

    space = {"learning_rate": LogUniform(0.01, 0.1), "width": Categorical((2, 4))}
    swept = lab.sweep(task, optlab.adam, space, trials=4, search="halton", steps=4)
    with pytest.raises(ValueError, match=r"models of all trials must have the same arrays"):
        lab.ensemble.of(swept, best=4, task=task, optimizer=optlab.adam)


# Bad input


def ensemble(**options):
    return lab.ensemble(options.pop("task", TASK), **{"optimizer": TX, "steps": 1, **options})


def snapshots(**options):
    return lab.snapshots(TASK, TX, **{"steps": 12, "key": KEY, **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ensemble(members=0), "ensemble: members must be an integer >= 1"),
        (lambda: ensemble(share="order"), "ensemble: share must be one of 'init', 'data', None"),
        (lambda: ensemble(seed=-1), "ensemble: seed must be an integer >= 0"),
        (
            lambda: ensemble(optimizer=optlab.adam),
            "ensemble: optimizer must be an optax.GradientTransformation",
        ),
        (
            lambda: ensemble(task=tasks.valley()),
            "ensemble: the task must be a classification, with Task.predict and Task.splits, got "
            "'valley' without Task.predict; tasks.nnx_classifier sets both",
        ),
        (lambda: snapshots(cycles=0), "snapshots: cycles must be an integer >= 1"),
        (lambda: snapshots(key=1), "snapshots: key must be one random key"),
        (
            lambda: snapshots(cycles=5, steps=6),
            "snapshots: steps must leave updates to each of 5 cycles, got steps=6, which 3 cycles "
            "of 2 use up; pass steps=10, say",
        ),
    ],
)
def test_what_is_no_ensemble_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_a_report_needs_a_split_of_the_task(four):
    with pytest.raises(ValueError, match="split must be one of 'train', 'validation', 'test', got"):
        four.report("held-out")


def test_data_of_loaders_are_refused():
    batch = TASK.batch(KEY, 0)
    streamed = dataclasses.replace(TASK, batch=None, loader=lambda: iter([batch]))
    split = dataclasses.replace(TASK, splits={**TASK.splits, "test": lambda: iter([TEST])})
    for task, got in ((streamed, "Task.loader"), (split, r"Task.splits\['test'\]")):
        with pytest.raises(
            ValueError, match=f"^ensemble: the data of task .* in memory, got {got};"
        ):
            lab.ensemble(task, TX, members=2, steps=STEPS)
