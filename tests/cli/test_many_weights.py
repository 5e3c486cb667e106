"""`optlab train` with many weights: ensembles, snapshots and averages, as a shell sees them."""

import json

import jax
import numpy as np
import optax
import pytest

import optlab
from classes import blobs
from optlab import lab
from optlab.cli._many_weights import cyclic

TRAIN = ["train", "--task", "classes:blobs", "--steps", "30", "--rate", "0.05"]


def test_an_ensemble_is_that_of_the_lab(run, tmp_path):
    status, out, _ = run(*TRAIN, "--ensemble", "3", "--seed", "4", "--json")
    assert status == 0
    document = json.loads(out)
    assert document["options"]["ensemble"] == 3
    assert document["labels"] == ["seed 4", "seed 5", "seed 6"]
    expected = lab.ensemble(blobs(), optlab.adam(0.05), members=3, steps=30, seed=4).report()
    np.testing.assert_array_equal(np.float32(document["members"]["nll"]), expected.members.nll)
    files = {path.name for path in (tmp_path / "optlab-train").iterdir()}
    assert files == {"ensemble.json", "ensemble.png"}


def test_snapshots_fall_on_a_cosine_unless_the_rate_is_a_schedule():
    rate = cyclic(0.05, 2, 29)
    assert [float(rate(step)) for step in (0, 15, 30)] == pytest.approx([0.05] * 3)
    assert float(rate(14)) < 0.001
    constant = optlab.schedules.constant(0.05)
    assert cyclic(constant, 2, 29) is constant


@pytest.mark.slow
def test_snapshots_are_named_by_their_updates(run):
    status, out, _ = run(*TRAIN, "--snapshots", "2")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "adam on blobs: 2 models (update 15 to update 30) on the split 'test'"
    assert lines[-1] == "Wrote optlab-train/ensemble.json, ensemble.png"


def test_an_average_is_scored_beside_the_last_parameters(run):
    status, out, _ = run(*TRAIN, "--average", "ema:0.9", "--seed", "3")
    assert status == 0
    last, average = out.split("\n\n")[1:3]
    assert last.splitlines()[0].split()[:2] == ["after", "30"]
    heading, *rows = average.splitlines()
    assert heading.split() == ["average,", "ema:0.9", "accuracy", "loss"]
    assert [row.split()[0] for row in rows] == ["train", "validation", "test"]
    tx = optax.chain(optlab.adam(0.05), optlab.params_ema(0.9))
    result = lab.train(blobs(), tx, steps=30, key=jax.random.key(3))
    params = optlab.averaged_params(result.opt_state, result.params)
    loss = blobs().evaluate(params, (), blobs().splits["test"])["loss"]
    assert rows[2].split()[2] == f"{float(loss):.3g}"


def test_with_patience_the_average_is_judged_and_kept(run, tmp_path):
    status, out, _ = run(*TRAIN, "--average", "ema:0.9", "--patience", "2", "--seed", "3")
    assert status == 0
    tx = optax.chain(optlab.adam(0.05), optlab.params_ema(0.9))
    rule = lab.EarlyStopping(2, mode="max")
    options = {"steps": 30, "key": jax.random.key(3), "early_stopping": rule, "average": True}
    result = lab.train(blobs(), tx, **options)
    heading, *rows = out.split("\n\n")[1].splitlines()
    assert heading.startswith(f"average, ema:0.9, after {result.step} updates")
    assert rows[2].split()[2] == f"{result.test['loss']:.3g}"
    record = json.loads((tmp_path / "optlab-train" / "history.json").read_text())
    assert (record["average"], record["step"]) == ({"how": "ema:0.9"}, result.step)


POWER = 6.9372
"""The exponent γ of a power average of the relative width 0.1."""


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        ("uniform:20", lambda t: t > 20),
        ("lawa:6", lambda t: t > 24),  # this task is evaluated at each update
        ("power:0.1", lambda t: t ** (POWER + 1) - (t - 1) ** (POWER + 1)),
    ],
)
def test_each_average_has_the_weights_of_its_definition(run, how, weights):
    options = ["--task", "valley", "--optimizer", "sgd", "--rate", "0.01", "--steps", "30"]
    status, out, _ = run("train", *options, "--average", how, "--json")
    assert status == 0
    document = json.loads(out)
    assert document["average"]["how"] == how
    x, weights = np.array(document["validation"]["x"][1:]), weights(np.arange(1.0, 31.0))
    # γ is given to five digits, and x is float32.
    expected = pytest.approx(np.average(x, weights=weights), rel=1e-5)
    assert document["average"]["validation"]["x"] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ensemble", "0"], "argument --ensemble: expected a whole number >= 1, got '0'"),
        (["--ensemble", "2", "--snapshots", "2"], "--ensemble and --snapshots exclude each other"),
        (["--ensemble", "2", "--checkpoints", "x"], "--ensemble cannot go with --checkpoints"),
        (["--ensemble", "2", "--patience", "2"], "--ensemble cannot go with --patience"),
        (["--snapshots", "2", "--average", "ema:0.9"], "--snapshots cannot go with --average"),
        (["--snapshots", "31"], "snapshots: steps must leave updates to each of 31 cycles"),
        (["--average", "ema"], "argument --average: expected one of ema:DECAY, uniform:START, p"),
        (["--average", "ema:x"], "argument --average: expected a finite number"),
        (["--average", "ema:1"], "argument --average: DECAY must be in [0, 1), got"),
        (["--average", "uniform:30"], "argument --average: START must be below the 30 updates"),
        (["--average", "power:0.4"], "argument --average: WIDTH must be in (0, 1/√12], got"),
        (["--average", "lawa:0"], "argument --average: expected a whole number >= 1, got '0'"),
        (
            ["--task", "valley", "--ensemble", "2"],
            "ensemble: the task must be a classification, with Task.predict and Task.splits, got",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run, options, message):
    status, out, err = run(*TRAIN, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
