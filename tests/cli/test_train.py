"""`optlab train`, as a shell sees it."""

import json

import jax
import numpy as np
import pytest

import optlab
from optlab import lab

QUICK = ["train", "--task", "valley", "--optimizer", "sgd", "--steps", "30"]


def test_it_trains_prints_the_scores_and_what_the_curves_show(run, tmp_path):
    status, out, err = run("train", "--rate", "3e-3", "--steps", "60")
    assert status == 0
    assert err.splitlines()[0].split()[:3] == ["0", "of", "60"]
    lines = out.splitlines()
    assert lines[0] == "adam on digits-mlp: all updates done"
    assert lines[2].split() == ["after", "60", "updates", "accuracy", "loss"]
    assert [line.split()[0] for line in lines[3:6]] == ["train", "validation", "test"]
    assert 0.85 < float(lines[5].split()[1]) < 1
    assert lines[-1] == "Wrote optlab-train/history.json, history.png"
    assert (tmp_path / "optlab-train" / "history.png").stat().st_size > 10_000


def test_the_run_is_that_of_the_same_key_and_optimizer(run):
    rate = "warmup_cosine(0.02, warmup_steps=5, decay_steps=30)"
    options = ["--rate", rate, "--set", "momentum=0.5", "--seed", "3", "--clip", "2", "--json"]
    status, out, _ = run(*QUICK, *options)
    assert status == 0
    document = json.loads(out)
    tx = lab.monitor(
        optlab.sgd(
            optlab.schedules.warmup_cosine(0.02, warmup_steps=5, decay_steps=30), momentum=0.5
        ),
        clipping=optlab.clip_by_global_norm(2.0),
    )
    expected = lab.train(lab.tasks.valley(), tx, steps=30, key=jax.random.key(3)).history
    np.testing.assert_array_equal(np.float32(document["loss"]), np.float32(expected.loss))
    monitored = document["monitored"]["gradient_norm"]
    np.testing.assert_array_equal(
        np.float32(monitored), np.float32(expected.monitored["gradient_norm"])
    )
    assert document["reason"] == "all updates done"


def test_a_run_that_ends_in_nan_is_named_and_has_a_status_of_its_own(run, tmp_path):
    status, out, _ = run(*QUICK, "--rate", "1")
    assert status == 3
    assert (tmp_path / "optlab-train" / "history.png").exists()
    assert "the loss was not finite" in out or "Rate too high" in out
    assert "Try: lower the rate" in out


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoints(run, tmp_path):
    kept = ["--checkpoints", "kept", "--tensorboard", "events", "--json"]
    short = json.loads(run(*QUICK, *kept)[1])
    longer = json.loads(run(*QUICK, *kept, "--steps", "40")[1])
    whole = json.loads(run(*QUICK, "--steps", "40", "--json")[1])
    assert longer["loss"] == whole["loss"]
    assert longer["loss"][:30] == short["loss"]
    assert list((tmp_path / "events").iterdir())
    status, _, err = run(*QUICK, *kept, "--seed", "1")
    assert (status, err.count("\n")) == (2, 1)
    assert "key must be that of the checkpoint" in err


def test_another_rate_may_be_taken_over_from_a_checkpoint(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    kept = ["--checkpoints", "~/kept", "--keep", "2", "--out", "~/out", "--json"]
    first = json.loads(run(*QUICK, "--steps", "4", *kept)[1])
    assert {path.name for path in (tmp_path / "home" / "kept").iterdir()} == {"3", "4"}
    status, _, err = run(*QUICK, "--steps", "6", *kept, "--rate", "0.01")
    assert (status, err.count("\n")) == (2, 1)
    assert err.endswith(
        "; pass another folder, the options of that run, or --take-over NAME for each\n"
    )
    other = ["--rate", "0.01", "--take-over", "learning_rate"]
    status, out, _ = run(*QUICK, "--steps", "6", *kept, *other)
    assert status == 0
    assert json.loads(out)["learning_rate"] == [*first["learning_rate"], 0.01, 0.01]
    assert (tmp_path / "home" / "out" / "history.png").exists()


def test_patience_ends_the_run_and_the_best_parameters_are_scored(run):
    status, out, _ = run(*QUICK, "--rate", "1e-20", "--steps", "100", "--patience", "2")
    assert status == 0
    assert "early stopping: no improvement in 2 checks" in out.splitlines()[0]


@pytest.mark.parametrize(
    ("patience", "ends"),
    [
        ("1,start=30", "no improvement in 1 check since "),
        ("1,min_delta=9,start=30", "no improvement of more than 9 in 1 check since "),
        ("9,target=1e9", "reached the target"),
        ("9,divergence=1e-9", "worse than"),
    ],
)
def test_patience_takes_a_start_a_target_and_a_limit(run, patience, ends):
    words = ["--rate", "1e-20", "--steps", "40", "--patience", patience, "--json"]
    status, out, _ = run(*QUICK, *words)
    assert status == 0
    result = json.loads(out)
    assert ends in result["reason"]
    assert "start" not in patience or result["steps"][-1] > 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "abc"], "argument --rate: expected a finite number"),
        (["--rate", "cosine(1)"], "cosine: missing argument 'decay_steps'"),
        (["--rate", "cosin(1)"], "unknown schedule 'cosin'"),
        (["--set", "momentum"], "argument --set: expected NAME=VALUE, got 'momentum'"),
        (["--set", "momentum=2"], "sgd: momentum must be in [0, 1], got momentum=2"),
        (["--set", "b1=0.9"], "unknown hyperparameter of sgd 'b1'"),
        (
            ["--set", "momentum=0.9", "--set", "momentum=0.8"],
            "argument --set: names must differ, got momentum twice",
        ),
        (["--batch-size", "3"], "the task 'valley' has no batches; leave out --batch-size"),
        (["--keep", "2"], "--keep needs --checkpoints"),
        (["--take-over", "learning_rate"], "--take-over needs --checkpoints"),
        (["--out", "gs://b/run"], "argument --out: the path must be a folder on this machine, got"),
        (["--tensorboard", "s3://b/run"], "argument --tensorboard: the path must be a folder on"),
        (["--checkpoints", "s3://b"], "folder on this machine or an address that begins with gs:"),
        (["--patience", "0"], "argument --patience: expected a whole number >= 1"),
        (
            ["--patience", "2,target=3,divergence=1"],
            "argument --patience: target must be below divergence=1, as mode='min', got target=3",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run, options, message):
    status, out, err = run(*QUICK, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
