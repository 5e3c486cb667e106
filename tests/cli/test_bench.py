"""`optlab bench`: tasks and rules by name or of the user's own, and files that grow."""

import json
import sys

import pytest

from optlab.cli.arguments._bench import FULL, QUICK

MINE = """
import jax
import jax.numpy as jnp
import optax

from optlab.lab import Task

parabola = Task(
    name="parabola",
    init=lambda key: (jax.random.uniform(key, (), minval=1.0, maxval=2.0), ()),
    loss=lambda x, state, batch, key: (x**2, state),
    batch=lambda key, step: (),
    evaluate=lambda x, state, data: {"loss": x**2},
    target=0.1,
    steps=20,
)


def rule(learning_rate=0.1):
    return optax.sgd(learning_rate)


def rate_unknown(learning_rate):
    return optax.sgd(learning_rate)


def broken(learning_rate=0.1):
    raise TypeError("no such thing")


number = 3
"""

SMALL = ("--tasks", "mine:parabola", "--trials", 2, "--seeds", 2)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.usefixtures("mine")
def test_a_rule_that_is_named_later_is_compared_with_those_before(run, tmp_path):
    status, _, err = run("bench", *SMALL, "--optimizers", "sgd,adam")
    assert status == 0, err
    assert "1 tasks × 2 optimizers × (2 trials + 2 seeds)" in err
    assert "parabola, adam: target" in err
    status, out, _ = run("bench", *SMALL, "--optimizers", "mine:rule")
    assert status == 0
    assert "3 optimizers on 1 tasks" in out
    assert all(f"\n{label} " in out for label in ("sgd", "adam", "mine:rule"))
    folder = tmp_path / "optlab-bench"
    names = {file.name for file in folder.iterdir()}
    assert names == {"bench.sqlite", "results.json", "runs.csv", "bench.png"}
    assert (folder / "runs.csv").read_text().count("\n") == 1 + 3 * 2
    status, out, _ = run("bench", *SMALL, "--optimizers", "sgd", "adam", "--json")
    assert status == 0
    assert json.loads(out) == json.loads((folder / "results.json").read_text())
    assert json.loads(out)["options"]["optimizers"] == ["sgd", "adam"]
    status, _, err = run("bench", *SMALL, "--optimizers", "sgd", "--seeds", 3)
    assert status == 2
    assert "optlab: bench: seeds must be that of the benchmark in" in err


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("--optimizers", "mine:rul"), "mine has no 'rul'; did you mean 'rule'? (functions there"),
        (
            ("--optimizers", "mine:number"),
            "a function of hyperparameters that returns an optimizer",
        ),
        (("--optimizers", "mine:rate_unknown"), "learning_rate of optimizer 'mine:rate_unknown'"),
        (("--optimizers", "mine:broken"), "training failed at mine.py:28 with TypeError: no such"),
        (("--optimizers", "min:rule"), "--optimizers min:rule: there is no module 'min' in"),
        (("--tasks", "mine:rule", "--optimizers", "sgd"), "--tasks mine:rule: the function must"),
        (("--optimizers", "muon"), "muon"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(run, names, message):
    status, out, err = run("bench", *SMALL, *names)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("optlab: ")


@pytest.mark.usefixtures("mine")
def test_rules_that_cannot_train_the_tasks_are_left_out_unless_they_are_named(run, monkeypatch):
    monkeypatch.setattr("optlab.cli._bench.COMPARED", ["sgd", "muon"])
    status, out, err = run("bench", *SMALL, "--out", "o")
    assert status == 0, err
    assert "left out: muon: " in err
    assert "1 optimizers on 1 tasks" in out


def test_quick_takes_less_of_everything_and_another_file():
    assert QUICK.keys() == FULL.keys()
    assert set(QUICK["tasks"]) < set(FULL["tasks"])
    assert all(QUICK[name] < FULL[name] for name in ("trials", "seeds"))


@pytest.mark.slow
def test_quick_runs_on_built_in_tasks(run, tmp_path):
    status, out, err = run("bench", "--quick")
    assert status == 0, err
    assert "3 optimizers on 2 tasks: 4 trials each, and 2 seeds" in out
    assert "muon" in out
    assert (tmp_path / "optlab-bench" / "quick.sqlite").exists()
