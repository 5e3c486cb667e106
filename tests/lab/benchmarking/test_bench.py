"""`bench`: what is run, what is stored, and what is refused."""

import json
import re
import sqlite3
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import lab
from optlab.lab import Bench, Categorical, LogUniform, Task, bench, shuffled_batches
from optlab.lab.benchmarking import _bench
from optlab.lab.benchmarking._problems import TARGETS
from optlab.lab.benchmarking._space import DECADES, SHARED, USUAL, space_of
from optlab.lab.benchmarking._targets import TRIALS, level_held
from optlab.registry import OPTIMIZERS

STEPS = 12


def line(name="line", target=0.2, shift=0.0, **options):
    """Return the task of a line through noisy points, which compiles quickly."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 2)).astype(np.float32)
    y = (x @ np.float32([1.0, -2.0]) + 0.1 * rng.normal(size=48) + shift).astype(np.float32)
    parts = [(x[rows], y[rows]) for rows in np.split(np.arange(48), [24, 36])]
    train, validation, test = parts

    def error(w, data):
        return jnp.mean((data[0] @ w - data[1]) ** 2)

    return Task(
        name=name,
        init=lambda key: (jax.random.normal(key, (2,)), ()),
        loss=lambda w, state, batch, key: (error(w, batch), state),
        batch=shuffled_batches(train, 8),
        evaluate=lambda w, state, data: {"loss": error(w, data)},
        splits={"validation": validation, "test": test},
        target=target,
        steps=STEPS,
        eval_every=1,
        **options,
    )


LINE = line()


def sgd(learning_rate=0.05):
    return optax.sgd(learning_rate)


def adam(learning_rate=0.05, b1=0.9):
    return optax.adam(learning_rate, b1=b1)


BUDGET = {"trials": 3, "seeds": 2}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file to which adam was added in a second call."""
    file = tmp_path_factory.mktemp("bench") / "bench.sqlite"
    bench([LINE], {"sgd": sgd}, results=file, **BUDGET)
    bench([LINE], {"adam": adam}, results=file, **BUDGET)
    return file


@pytest.fixture
def no_runs(monkeypatch):
    """Let every run fail."""

    def refuse(*_, **__):
        raise AssertionError("something was run")

    monkeypatch.setattr(_bench, "TrialRuns", refuse)
    monkeypatch.setattr(_bench, "seconds_per_update", refuse)


@pytest.fixture
def both(file, no_runs):
    """All results of the file, which need no more runs."""
    return bench([LINE], {"adam": adam, "sgd": sgd}, results=file, **BUDGET)


def same(one, other):
    """Whether two outcomes are alike, but for the seconds."""
    return all(
        np.array_equal(x, y, equal_nan=True) if isinstance(x, np.ndarray) else x == y
        for (name, x), y in zip(vars(one).items(), vars(other).values(), strict=True)
        if name not in {"seconds", "machine"}
    )


# What is run


def test_optimizers_that_are_added_later_stand_beside_those_before(file, no_runs):
    result = bench([LINE], {"adam": adam}, results=file, **BUDGET)
    assert result.optimizers == ("sgd", "adam")
    assert [outcome.num_trials for outcome in result.outcomes.values()] == [3, 3]
    assert all(outcome.seconds > 0 for outcome in result.outcomes.values())


def test_the_runs_that_count_are_those_of_train_from_fresh_seeds(both):
    outcome = both.outcomes["line", "adam"]
    run = lab.train(LINE, adam(**outcome.values), key=jax.random.key(2))
    scores = run.history.validation["loss"]
    # A last bit may differ between a run in lanes and a run alone.
    np.testing.assert_allclose(outcome.validation[1], scores[-1], rtol=1e-4)
    np.testing.assert_allclose(outcome.test[1], run.test["loss"], rtol=1e-4)
    reached = run.history.steps[(scores <= LINE.target) & (run.history.steps > 0)]
    assert outcome.updates[1] == (reached[0] if len(reached) else np.inf)


def test_values_are_those_of_the_trial_that_a_sweep_finds_fastest(both):
    space = {"learning_rate": LogUniform(5e-4, 5.0)}
    options = {"search": "halton", "trials": 3, "eval_every": 1}
    trials = lab.sweep(LINE, sgd, space, **options).trials
    met = [np.flatnonzero(trial.validation["loss"][0] <= LINE.target) for trial in trials]
    first = [indices[0] if len(indices) else np.inf for indices in met]
    outcome = both.outcomes["line", "sgd"]
    assert min(first) < np.inf
    assert outcome.values == trials[int(np.argmin(first))].values
    assert outcome.num_reached == sum(np.isfinite(first))


def test_a_stopped_benchmark_ends_with_the_same_results(file, both, tmp_path, monkeypatch):
    copy = tmp_path / "stopped.sqlite"
    copy.write_bytes(file.read_bytes())
    with sqlite3.connect(copy) as connection:
        # Rows come one transaction after another: these are the last ones of the first call.
        connection.execute("delete from runs where optimizer = 'sgd' and (trial = 2 or seed > 0)")
        connection.execute("delete from seconds where optimizer = 'sgd'")
    connection.close()
    monkeypatch.undo()
    again = bench([LINE], {"sgd": sgd}, results=copy, **BUDGET)
    assert all(same(again.outcomes[key], both.outcomes[key]) for key in both.outcomes)


def test_the_target_of_a_task_without_one_is_what_adam_held(tmp_path):
    task = line("free", target=None)
    file = tmp_path / "free.sqlite"
    result = bench([task], {"sgd": sgd}, trials=1, seeds=[7], results=file)
    space = space_of("bench", "adam", optlab.adam)
    sweep = lab.sweep(task, optlab.adam, space, trials=TRIALS, search="halton", eval_every=1)
    scores = sweep.best.validation["loss"][0]
    held = level_held(sweep.best.steps, scores, maximize=False)
    goal = result.goals["free"]
    assert goal.by_rule
    np.testing.assert_allclose(goal.target, held, rtol=1e-5)
    assert "found by the rule" in result.table()
    assert result.optimizers == ("sgd",)  # the reference is none of them
    again = bench([task], {"sgd": sgd}, trials=1, seeds=[7], results=file)
    assert again.goals == result.goals


def test_an_optimizer_that_always_diverges_misses_and_has_no_values():
    def wild(learning_rate=1e6):
        return optax.sgd(learning_rate)

    result = bench([LINE], {"wild": wild}, trials=2, seeds=1)
    (outcome,) = result.outcomes.values()
    assert outcome.values is None
    assert (outcome.num_diverged, outcome.updates.tolist()) == (2, [np.inf])
    assert "diverged" in result.table()
    assert "No optimizer reaches the target of any task." in result.ties
    assert json.loads(result.to_json())["outcomes"][0]["updates"] == [None]
    assert result.to_csv().count("\n") == 2


def test_an_optimizer_with_nothing_to_tune_has_one_trial():
    def fixed():
        return optax.sgd(0.05)

    result = bench([LINE], {"fixed": fixed}, trials=3, seeds=1)
    (outcome,) = result.outcomes.values()
    assert (outcome.num_trials, outcome.values) == (1, {})


def test_optimizers_that_lack_a_task_are_named_and_left_out(file, tmp_path):
    copy = tmp_path / "more.sqlite"
    copy.write_bytes(file.read_bytes())
    result = bench([LINE, line("other")], {"sgd": sgd}, results=copy, **BUDGET)
    assert result.optimizers == ("sgd",)
    assert result.left_out == ["adam"]
    assert "left out: adam." in result.table()


def test_callbacks_see_each_outcome(file, no_runs):
    seen = []
    bench([LINE], {"sgd": sgd, "adam": adam}, results=file, callbacks=[seen.append], **BUDGET)
    assert [(outcome.task, outcome.optimizer) for outcome in seen] == [
        ("line", "sgd"),
        ("line", "adam"),
    ]


# What is refused

OTHERS = {
    "trials": ({"trials": 4}, "trials must be that of the benchmark in .*, 3, got 4"),
    "seeds": (
        {"seeds": 3},
        r"seeds must be that of the benchmark in .*, \[1, 2\], got \[1, 2, 3\]",
    ),
    "lanes": ({"lanes": 2}, "lanes must be that of"),
    "steps": ({"steps": 9}, "steps of task 'line' must be that of the benchmark in .*, 12, got 9"),
    "target": ({"tasks": [line(target=0.3)]}, "target of task 'line' must be .*, 0.2, got 0.3"),
    "rule": ({"tasks": [line(target=None)]}, "target_of of task 'line' must be"),
    "data": ({"tasks": [line(shift=1.0)]}, "contents of task 'line' must be"),
    "space": (
        {"space": {"sgd": {"learning_rate": LogUniform(1e-3, 1.0)}}},
        "space of optimizer 'sgd' must be",
    ),
    "optimizer": (
        {"optimizers": {"sgd": lambda learning_rate=0.05: optax.sgd(learning_rate, momentum=0.5)}},
        "contents of optimizer 'sgd' must be .*give optimizers that differ different names",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_comparable_is_refused(file, no_runs, what):
    before = file.read_bytes()
    changed, message = OTHERS[what]
    arguments = {"tasks": [LINE], "optimizers": {"sgd": sgd}, **BUDGET, "results": file, **changed}
    with pytest.raises(ValueError, match=message):
        bench(arguments.pop("tasks"), arguments.pop("optimizers"), **arguments)
    assert file.read_bytes() == before


def test_other_versions_of_the_libraries_are_refused(file, no_runs, monkeypatch):
    monkeypatch.setattr(_bench, "versions", lambda *names: dict.fromkeys(names, "0.1"))
    with pytest.raises(ValueError, match=r"the version of optlab must be .* got '0.1'"):
        bench([LINE], {"sgd": sgd}, results=file, **BUDGET)


def test_the_file_of_a_sweep_is_refused(tmp_path, no_runs):
    file = tmp_path / "sweep.sqlite"
    space = {"learning_rate": LogUniform(1e-3, 1.0)}
    lab.sweep(lab.tasks.valley(), sgd, space, trials=1, steps=1, results=file)
    with pytest.raises(ValueError, match="must be a new file or the file of a benchmark"):
        bench([LINE], {"sgd": sgd}, results=file, **BUDGET)


def untraceable(learning_rate=0.1):
    return optax.sgd(float(learning_rate))


WRONG = {
    "no task": ({"tasks": []}, "tasks must be a sequence of tasks"),
    "a task alone": ({"tasks": LINE}, "tasks must be a sequence of tasks"),
    "no task but a name": ({"tasks": ["line"]}, "task must be an optlab.lab.Task, got str 'line'"),
    "one task twice": ({"tasks": [LINE, LINE]}, "different names, got 'line' twice"),
    "no optimizer": ({"optimizers": {}}, "optimizers must map at least one label"),
    "a list": ({"optimizers": [sgd]}, "optimizers must map at least one label"),
    "an optimizer that is made": (
        {"optimizers": {"sgd": optax.sgd(0.1)}},
        "optimizer 'sgd' must be a function of hyperparameters",
    ),
    "no optimizer made": (
        {"optimizers": {"x": lambda learning_rate=0.1: learning_rate}},
        "optimizer 'x': optimizer must return an optax.GradientTransformation",
    ),
    "no usual rate": (
        {"optimizers": {"x": optax.adabelief}},
        "learning_rate of optimizer 'x' must have a default, which is the middle of its range",
    ),
    "a usual rate of 0": (
        {"optimizers": {"x": partial(optax.sgd, learning_rate=0.0)}},
        "the default of learning_rate of optimizer 'x' must be finite and > 0",
    ),
    "an argument without a range": (
        {"optimizers": {"x": lambda scale, learning_rate=0.1: optax.sgd(learning_rate * scale)}},
        "optimizer 'x': space must have scale, a required argument of optimizer",
    ),
    "untraceable": (
        {"optimizers": {"x": untraceable}},
        "optimizer 'x': learning_rate must be usable as a traced number",
    ),
    "no matrix": (
        {"optimizers": {"soap": optlab.soap}},
        "optimizer 'soap' must accept the parameters of task 'line', got a refusal",
    ),
    "the label of the reference": ({"optimizers": {"(reference)": sgd}}, "labels of optimizers"),
    "a foreign label of a space": (
        {"space": {"adam": {"learning_rate": LogUniform(0.1, 1.0)}}},
        "space must have labels of optimizers, 'sgd', got 'adam'",
    ),
    "a space without labels": (
        {"space": {"learning_rate": LogUniform(0.1, 1.0)}},
        "space must map labels of optimizers to spaces",
    ),
    "a range of nothing": (
        {"space": {"sgd": {"rate": Categorical((0.1,))}}},
        "optimizer 'sgd': space must name arguments of optimizer or task, got rate",
    ),
    "trials": ({"trials": 0}, "trials must be an integer >= 1"),
    "seeds": ({"seeds": 0}, "seeds must be an integer >= 1"),
    "the seed of the trials": ({"seeds": [0, 1]}, "seeds must not hold 0, the seed of the trials"),
    "steps": ({"steps": 0}, "steps must be an integer >= 1"),
    "lanes": ({"lanes": 0}, "lanes must be an integer >= 1"),
    "memory": ({"memory": 0.0}, "memory must be finite and > 0"),
    "callbacks": ({"callbacks": print}, "callbacks must be a sequence of functions"),
    "progress": ({"progress": "yes"}, "progress must be True or False"),
    "results": ({"results": "gs://bucket/bench"}, "results must be a file on this machine"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_refused_before_anything_runs(no_runs, what, tmp_path):
    changed, message = WRONG[what]
    arguments = {"tasks": [LINE], "optimizers": {"sgd": sgd}, **changed}
    with pytest.raises(ValueError, match=f"^bench: .*{re.escape(message)}"):
        bench(arguments.pop("tasks"), arguments.pop("optimizers"), **arguments)


def test_a_task_that_adam_cannot_train_needs_a_target():
    steep = Task(
        name="steep",
        init=lambda key: (jnp.ones(()), ()),
        loss=lambda x, state, batch, key: (jnp.nan * x, state),
        batch=lambda key, step: (),
        evaluate=lambda x, state, data: {"loss": jnp.nan * x},
        steps=2,
    )
    with pytest.raises(ValueError, match="'steep' must have a target, or be one that Adam can"):
        bench([steep], {"sgd": sgd}, trials=1, seeds=1)


# The published space


def test_every_rule_has_a_usual_rate():
    for name, row in OPTIMIZERS.items():
        space = space_of("bench", name, partial(row.constructor, **row.fixed))
        rate = space.pop("learning_rate")
        np.testing.assert_allclose((rate.low * rate.high) ** 0.5, USUAL[row.constructor], rtol=1e-9)
        assert space.keys() <= SHARED.keys()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (optlab.sgd, ["learning_rate"]),  # its momentum is off
        (partial(optlab.sgd, momentum=0.9), ["learning_rate", "momentum"]),
        (optlab.adamw, ["learning_rate", "weight_decay", "b1"]),
        (optlab.muon, ["learning_rate", "weight_decay", "beta"]),
        (optax.lbfgs, []),  # it searches for its rate
        (partial(optax.adam, 0.1), ["b1"]),
    ],
)
def test_arguments_are_tuned_whose_default_is_a_number(make, names):
    assert list(space_of("bench", "x", make)) == names


def test_a_default_of_the_rate_is_the_middle_of_its_range():
    space = space_of("bench", "x", partial(optlab.adam, learning_rate=0.3))
    assert space["learning_rate"] == LogUniform(0.003, 30.0)


def test_the_page_publishes_the_space_and_the_targets():
    page = (Path(__file__).parents[3] / "docs" / "bench.md").read_text()
    rates = re.findall(r"^\| `(\w+)`.* \| ([\d.]+) \|$", page, re.MULTILINE)
    assert {name: float(rate) for name, rate in rates} == {
        make.__name__: rate for make, rate in USUAL.items()
    }
    targets = re.findall(r"^\| `([\w-]+)` \| .* \| \w+ [≥≤] ([\d.]+) \|$", page, re.MULTILINE)
    assert {name: float(target) for name, target in targets} == TARGETS
    assert f"from {SHARED['weight_decay'].low:g} to {SHARED['weight_decay'].high:g}" in (
        page.replace("1e-5", "1e-05")
    )
    assert f"from {SHARED['b1'].low:g} to {SHARED['b1'].high:g}" in page
    assert f"the usual rate / {10**DECADES} to the usual rate × {10**DECADES}" in page


# The built-in tasks


def test_built_in_tasks_have_targets_and_the_names_of_the_command_line():
    from optlab.cli.arguments._bench import TASKS

    made = lab.bench_tasks()
    assert [task.name for task in made] == list(TASKS)
    assert all(task.target is not None for task in made)


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match="bench_tasks: each of names must be one of 'digits-mlp'"):
        lab.bench_tasks("mnist")


def test_the_result_can_be_printed_and_written(both):
    assert isinstance(both, Bench)
    assert "2 optimizers on 1 tasks" in str(both)
    document = json.loads(both.to_json(options={"quick": True}))
    assert document["options"] == {"quick": True}
    assert document["goals"][0]["target"] == 0.2
    lines = both.to_csv().splitlines()
    assert len(lines) == 1 + 2 * 2
    assert lines[1].startswith("line,sgd,")
