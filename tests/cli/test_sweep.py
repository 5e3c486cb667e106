"""`optlab sweep`, as a shell sees it."""

import csv
import json
import re
import textwrap

import pytest

from optlab.cli._options import named, scalar
from optlab.cli._sweep import range_of
from optlab.lab import Categorical, Integer, LogUniform, Uniform

QUICK = ["sweep", "--task", "valley", "--optimizer", "sgd", "--trials", "5", "--steps", "20"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4:1e-1:log", LogUniform(1e-4, 1e-1)),
        ("1:2:log", Integer(1, 2, log=True)),
        ("0:0.6", Uniform(0, 0.6)),
        ("-1:2", Integer(-1, 2)),
        ("16,32,64", Categorical((16, 32, 64))),
        ("0.9", Categorical((0.9,))),
        ("true,False", Categorical((True, False))),
        ("none,relu", Categorical((None, "relu"))),
    ],
)
def test_a_range_is_read_as_it_is_written(text, expected):
    assert range_of(text) == expected
    assert named(range_of)(f"x={text}") == ("x", expected)


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

            def parabola(curvature=1.0, degree=2) -> Task:
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
            "sweep: space must name arguments of optimizer or task, got rate",
        ),
        (["--space", "learning_rate=2:1"], "argument --space: '2:1' is no range: Integer: low mu"),
        (["--space", "learning_rate=1:2:3"], "argument --space: '1:2:3' is no range: write LOW:H"),
        (["--space", "1e-3:1"], "argument --space: expected NAME=VALUE, got '1e-3:1'"),
        (
            ["--space", "learning_rate=1,2", "--space", "learning_rate=3,4"],
            "argument --space: names must differ, got one of them twice",
        ),
        (["--search", "bays"], "unknown search 'bays'; did you mean 'bayes'?"),
        (["--search", "bayes", "--halving", "2"], "sweep: halving must be None with search='baye"),
        (["--storage", "sqlite:///x.db"], "sweep: storage must be None unless search='bayes'"),
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
