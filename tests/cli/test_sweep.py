"""`optlab sweep`, as a shell sees it."""

import csv
import json
import re
import textwrap

import pytest

from optlab.cli._options import named, scalar
from optlab.cli._ranges import read_range
from optlab.cli._sweep import range_of
from optlab.lab import Categorical, Integer, LogUniform, Uniform

QUICK = ["sweep", "--task", "valley", "--optimizer", "sgd", "--trials", "5", "--steps", "20"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4:1e-1:log", LogUniform(1e-4, 1e-1)),
        ("1:2:log", LogUniform(1, 2)),
        ("0:1", Uniform(0, 1)),
        ("0:0.6", Uniform(0, 0.6)),
        ("-1:2:int", Integer(-1, 2)),
        ("8:64:int:log", Integer(8, 64, log=True)),
        ("8:64:log:int", Integer(8, 64, log=True)),
        ("16,32,64", Categorical((16, 32, 64))),
        ("0.9", Categorical((0.9,))),
        ("0.1:0.1", Categorical((0.1,))),
        ("1e-3:0.001:log", Categorical((1e-3,))),
        ("16:16:int", Categorical((16,))),
        ("true,False", Categorical((True, False))),
        ("none,relu", Categorical((None, "relu"))),
    ],
)
def test_a_range_is_read_as_it_is_written(text, expected):
    assert range_of(read_range(text)) == expected
    name, entry = named(read_range)(f"x={text}")
    assert (name, range_of(entry)) == ("x", expected)


def test_a_scalar_keeps_its_kind():
    values = [scalar(text) for text in ("3", "3.0", "1e-3", "True", "None", "adam")]
    assert values == [3, 3.0, 1e-3, True, None, "adam"]
    assert [type(value) for value in values[:2]] == [int, float]


def test_it_prints_a_table_and_writes_the_results(run, tmp_path):
    status, out, err = run(*QUICK)
    assert status == 0
    assert err.splitlines()[-1] == "5 of 5 trials"
    lines = out.splitlines()
    assert lines[0] == "sgd on valley: halton search, 5 trials"
    assert lines[2].split() == ["trial", "learning_rate", "loss", "updates", "status"]
    assert lines[-1] == "Wrote optlab-sweep/results.json, trials.csv, sweep.png"
    folder = tmp_path / "optlab-sweep"
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [line.split()[0] for line in lines[3:8]]
    document = json.loads((folder / "results.json").read_text())
    assert document["ranking"] == [int(row["trial"]) for row in rows]
    assert (folder / "sweep.png").stat().st_size > 10_000


def test_json_is_all_that_stands_on_stdout(run):
    status, out, _ = run(*QUICK, "--json", "--search", "random", "--seed", "3")
    assert status == 0
    document = json.loads(out)
    assert (document["search"], len(document["trials"])) == ("random", 5)
    assert document["options"]["seed"] == 3


def test_a_sweep_goes_on_from_its_results_and_refines_around_the_best(run, tmp_path):
    options = ["--results", "found.sqlite", "--refine", "4"]
    first = run(*QUICK, *options)
    again = run(*QUICK, *options)
    assert first[0] == again[0] == 0
    assert again[1] == first[1]
    assert again[2] == ""  # no trial was run again
    refined = json.loads((tmp_path / "optlab-sweep" / "refined" / "results.json").read_text())
    low, high = (refined["space"]["learning_rate"][end] for end in ("low", "high"))
    assert 1e-4 <= low < high <= 1e-1
    assert high / low < 1000
    status, _, err = run(*QUICK, *options, "--steps", "30")
    assert (status, err.count("\n")) == (2, 1)
    assert re.search(r"steps must be that of the sweep in .*found\.sqlite, 20, got 30", err)


def test_ranges_reach_the_function_that_makes_a_task_of_the_users_own(run, tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            import jax.numpy as jnp
            from optlab.lab import Task

            def parabola(curvature=1.0, degree=2, shifted=False) -> Task:
                assert isinstance(shifted, bool)

                def height(x):
                    return curvature * x**degree

                return Task(
                    name="parabola",
                    init=lambda key: (jnp.array(2.0), ()),
                    loss=lambda x, state, batch, key: (height(x), state),
                    batch=lambda key, step: (),
                    evaluate=lambda x, state, data: {"loss": height(x)},
                )
            """
        )
    )
    space = ["--space", "learning_rate=0.01,0.1", "--space", "curvature=0.5:2"]
    space += ["--space", "degree=2,4"]
    options = ["--task", "mine:parabola", "--optimizer", "sgd", "--search", "grid", "--steps", "3"]
    status, out, _ = run("sweep", *options, *space, "--trials", "8", "--json")
    assert status == 0
    trials = json.loads(out)["trials"]
    assert {trial["values"]["degree"] for trial in trials} == {2, 4}
    short = ["--task", "mine:parabola", "--trials", "2", "--steps", "1"]
    status, out, _ = run("sweep", *short, "--space", "shifted=yes,no", "--rate", "0.1", "--json")
    assert status == 0
    assert {trial["values"]["shifted"] for trial in json.loads(out)["trials"]} == {True, False}
    for command, wrong, message in (
        ("sweep", "--space=shifted=yes,maybe", "shifted must be true or false, got shifted=maybe"),
        ("sweep", "--space=shifted=0:1", "shifted must be true or false, got shifted=0:1; write"),
        ("sweep", "--space=degree=2:6", "got the real numbers degree=2:6; write degree=2:6:int"),
        ("train", "--set=shifted=maybe", "shifted must be true or false, got shifted=maybe"),
    ):
        status, failed_out, err = run(command, "--task", "mine:parabola", wrong)
        assert (status, failed_out) == (2, "")
        assert message in err
    for trial in trials:
        x = 2.0
        values = trial["values"]
        for _ in range(3):
            slope = values["curvature"] * values["degree"] * x ** (values["degree"] - 1)
            x -= values["learning_rate"] * slope
        height = values["curvature"] * x ** values["degree"]
        assert trial["validation"]["loss"][0][-1] == pytest.approx(height, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--space", "rate=1:2"],
            "argument --space: unknown hyperparameter of sgd 'rate' (known: learning_rate, momen",
        ),
        (
            ["--space", "learning_rate=2:1"],
            "argument --space: '2:1' is no range: LOW must not be above HIGH, got 2 and 1",
        ),
        (
            ["--space", "learning_rate=0:1:log"],
            "argument --space: '0:1:log' is no range: with :log, LOW must be above 0, got 0",
        ),
        (
            ["--space", "learning_rate=1:2:3"],
            "argument --space: '1:2:3' is no range: write LOW:HIGH, LOW:HIGH:log, LOW:HIGH:int, or",
        ),
        (["--space", "1e-3:1"], "argument --space: expected NAME=VALUE, got '1e-3:1'"),
        (
            ["--space", "learning_rate=1,2", "--space", "learning_rate=3,4"],
            "argument --space: names must differ, got learning_rate twice",
        ),
        (
            ["--optimizer", "adamw", "--space", "b1=0.9:1.5"],
            "argument --space: adamw: b1 must be in [0, 1), got b1=0.9:1.5",
        ),
        (
            ["--optimizer", "adamw", "--space", "weight_decay=-5.5:-0.5"],
            "argument --space: adamw: weight_decay must be finite and >= 0, got weight_decay=-5.5",
        ),
        (
            ["--space", "learning_rate=-1.5:1.5"],
            "argument --space: sgd: learning_rate must be finite and >= 0, got learning_rate=-1.5",
        ),
        (
            ["--space", "nesterov=yes,maybe"],
            "argument --space: sgd: nesterov must be true or false, got nesterov=maybe",
        ),
        (
            ["--space", "nesterov=0:1"],
            "nesterov must be true or false, got nesterov=0:1; write nesterov=yes,no",
        ),
        (
            ["--optimizer", "muon", "--space", "ns_steps=3:8"],
            "ns_steps must be a whole number, got the real numbers ns_steps=3:8; write ns_st",
        ),
        (
            ["--task", "digits-mlp", "--space", "dropout=0:1.5"],
            "argument --space: digits-mlp: dropout must be in [0, 1), got dropout=0:1.5",
        ),
        (
            ["--set", "momentum=0.9", "--space", "momentum=0,0.5"],
            "momentum is in --space and in --set; leave out one of them",
        ),
        (
            ["--rate", "0.1", "--space", "learning_rate=0.1,1"],
            "learning_rate is in --space and in --rate; leave out one of them",
        ),
        (
            ["--schedule", "cosine(0.1, 20)"],
            "argument --schedule: learning_rate must stand in it for the rate, got 'cos",
        ),
        (["--search", "bays"], "unknown search 'bays'; did you mean 'bayes'?"),
        (["--search", "bayes", "--halving", "2"], "--halving cannot go with --search bayes, which"),
        (["--storage", "sqlite:///x.db"], "--storage needs --search bayes"),
        (["--results", "gs://b/r"], "argument --results: the path must be a file on this machine"),
        (["--results", "."], "sweep: results must be a file that SQLite can write, got"),
        (["--seed", "-1"], "argument --seed: expected a whole number"),
        (["--optimizer", "adm"], "unknown optimizer 'adm'; did you mean 'adam'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run, options, message):
    status, out, err = run(*QUICK, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize("rate", ["1e-3", "1e-3:1e-3"])
def test_a_space_of_one_point_runs_one_trial(run, rate):
    status, out, err = run(*QUICK, "--space", f"learning_rate={rate}", "--json")
    assert status == 0
    assert len(json.loads(out)["trials"]) == 1
    assert err.splitlines()[0] == "one trial: the space has a single point"


def test_words_of_other_commands_have_the_same_meaning_in_a_sweep(run):
    space = ["--space", "momentum=0,0.5", "--search", "grid", "--trials", "2"]
    words = ["--rate", "0.01", "--set", "nesterov=no", "--clip", "1"]
    words += ["--schedule", "cosine(learning_rate, 20)"]
    status, out, _ = run(*QUICK, *space, *words, "--json")
    assert status == 0
    trial = next(t for t in json.loads(out)["trials"] if t["values"]["momentum"] == 0.5)
    alike = ["train", *QUICK[1:5], "--steps", "20", *words, "--set", "momentum=0.5", "--json"]
    once = json.loads(run(*alike)[1])
    assert trial["validation"]["loss"][0][-1] == pytest.approx(once["validation"]["loss"][-1])


def test_patience_ends_runs_where_it_ends_that_of_train(run):
    space = ["--space", "learning_rate=1e-20,1e-3", "--search", "grid", "--trials", "2"]
    status, out, _ = run(*QUICK, *space, "--patience", "3", "--json")
    assert status == 0
    trial = next(t for t in json.loads(out)["trials"] if t["causes"] == ["patience"])
    alike = [*QUICK[1:5], "--steps", "20", "--rate", "1e-20", "--patience", "3", "--json"]
    once = json.loads(run("train", *alike)[1])
    assert once["reason"] == f"early stopping: {trial['reasons'][0]}"
    assert json.loads(out)["options"]["patience"] == {"patience": 3}


def test_patience_follows_the_score_of_a_task_that_is_made_of_values(run):
    words = ["--task", "digits-mlp", "--space", "width=4,8", "--rate", "1e-6", "--steps", "4"]
    status, out, _ = run("sweep", *words, "--trials", "2", "--patience", "1", "--json")
    assert status == 0
    assert json.loads(out)["maximize"]
    assert all(len(trial["causes"]) == 1 for trial in json.loads(out)["trials"])


def test_a_schedule_may_take_numbers_of_the_space(run):
    space = ["--space", "learning_rate=1e-3,1e-2", "--space", "wait=1,5", "--search", "grid"]
    schedule = "warmup_cosine(learning_rate, warmup_steps=wait, decay_steps=20)"
    status, out, _ = run(*QUICK, *space, "--schedule", schedule, "--trials", "4", "--json")
    assert status == 0
    assert len({trial["score"] for trial in json.loads(out)["trials"]}) == 4


def test_trials_that_all_diverge_have_a_status_of_their_own(run, tmp_path):
    status, _, _ = run(*QUICK[:5], "--trials", "2", "--steps", "20", "--space", "learning_rate=5:9")
    assert status == 3
    assert (tmp_path / "optlab-sweep" / "sweep.png").exists()
