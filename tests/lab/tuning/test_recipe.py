"""Recipes: a script that makes the run that the lab made, and says what it leaves to the user."""

import ast
import functools
import os
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.lab import tasks, train
from optlab.lab.tuning._recipe import FILL_IN, ScriptForm, recipe
from optlab.lab.tuning._result import Interval, Winner
from optlab.lab.tuning._schedules import SCHEDULES

MODULE = '''
"""A user's own module: a line through noisy points, with running statistics and noise."""

import jax
import jax.numpy as jnp
import numpy as np

import optlab
from optlab.lab import Task, shuffled_batches

X = np.linspace(-1, 1, 24, dtype=np.float32)
DATA = {"x": X, "y": 2 * X + 0.1 * np.sin(40 * X)}


def init(key):
    return {"w": jax.random.normal(key), "b": jnp.zeros(())}, {"mean": jnp.zeros(())}


def outputs(params, x):
    return params["w"] * x + params["b"]


def loss(params, state, batch, key):
    x = batch["x"] + 0.01 * jax.random.normal(key, batch["x"].shape)
    state = {"mean": 0.9 * state["mean"] + 0.1 * x.mean()}
    return jnp.mean((outputs(params, x) - state["mean"] - batch["y"]) ** 2), state


def evaluate(params, state, data):
    errors = outputs(params, data["x"]) - state["mean"] - data["y"]
    return {"loss": jnp.mean(errors**2), "mae": jnp.mean(jnp.abs(errors))}


def line(batch_size=4, scale=1.0, **options):
    data = {name: scale * array for name, array in DATA.items()}
    options = {"splits": {"validation": data, "test": data}, **options}
    return Task(
        "line", init, loss, batch=shuffled_batches(data, batch_size), evaluate=evaluate,
        eval_every=20, **options,
    )


def update(batch_size=4):
    return line(batch_size)


def batches():
    for i in range(0, 24, 6):
        yield {name: array[i : i + 6] for name, array in DATA.items()}


class Epochs:
    """A loader whose batches depend on the number of the pass."""

    def __init__(self):
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for i in range(0, 24, 12):
            yield {name: np.roll(array, self.epoch)[i : i + 12] for name, array in DATA.items()}


def streamed():
    splits = {"validation": batches}
    return Task("line", init, loss, loader=batches, splits=splits, evaluate=evaluate, eval_every=20)


def in_epochs():
    return Task("line", init, loss, loader=Epochs(), splits={"validation": DATA},
                evaluate=evaluate, eval_every=20)


def complex_numbers():
    def init(key):
        return jnp.array(1.0 + 2.0j), ()

    def loss(z, state, batch, key):
        return jnp.abs(z - (3 - 1j)) ** 2, state

    return Task("plane", init, loss, batch=lambda key, step: (),
                evaluate=lambda z, state, data: {"loss": jnp.abs(z - (3 - 1j)) ** 2})


def twice(learning_rate):
    return optlab.accumulate(optlab.sgd(learning_rate), 2)


class Rules:
    @staticmethod
    def of(learning_rate, momentum=0.0):
        return optlab.sgd(learning_rate, momentum=momentum)


tuned = line(8)
'''


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "tuned_module.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    try:
        import tuned_module

        yield tuned_module
    finally:
        sys.path.remove(str(folder))
        del sys.modules["tuned_module"]


def winner(schedule="cosine", steps=40, stop=None, seed=3, **values):
    score = Interval.of([0.5, 0.75])
    more = {"test": None, "tied": [], "candidates": 1}
    return Winner("an optimizer", schedule, values, steps, stop or steps, seed, score, **more)


def run(script, tmp_path, monkeypatch):
    """Run a script as Python does; return its names."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "recipe.py"
    path.write_text(script)
    assert all(len(line) <= 100 for line in script.splitlines())
    assert all(line == line.rstrip() for line in script.splitlines())
    return runpy.run_path(str(path))


def assert_same_run(names, task, optimizer, won, **options):
    """The script's last loss and its metrics are those of `train` with the same seed."""
    key = jax.random.key(won.seed)
    history = train(task, optimizer, steps=won.stop, key=key, **options).history
    # Programs that are compiled apart round differently; 40 updates of a small model keep that
    # below a hundredth of a percent.
    assert float(names["loss"]) == pytest.approx(float(history.loss[-1]), rel=1e-4)
    for name, values in history.validation.items():
        assert float(names["metrics"][name]) == pytest.approx(float(values[-1]), rel=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "one cycle"])
def test_a_recipe_makes_the_run_of_train(mine, tmp_path, monkeypatch, schedule):
    won = winner(schedule, learning_rate=0.05, weight_decay=0.01, batch_size=8)
    script = recipe(won, mine.line, optlab.adamw, task_source="tuned_module:line")
    rate = SCHEDULES[schedule](0.05, won.steps)
    optimizer = optlab.adamw(rate, weight_decay=0.01)
    names = run(script, tmp_path, monkeypatch)
    assert_same_run(names, mine.line(batch_size=8), optimizer, won)


def test_a_run_that_ends_early_has_the_schedule_of_the_whole(mine, tmp_path, monkeypatch):
    won = winner(steps=80, stop=40, learning_rate=0.1)
    script = recipe(won, mine.line, optlab.sgd)
    assert "The schedule is that of 80 updates; the run ends after 40," in script
    names = run(script, tmp_path, monkeypatch)
    assert_same_run(names, mine.line(), optlab.sgd(SCHEDULES["cosine"](0.1, 80)), won)


def test_complex_numbers_move_along_the_conjugate(mine, tmp_path, monkeypatch):
    won = winner(learning_rate=0.1)
    script = recipe(won, mine.complex_numbers, optlab.sgd)
    names = run(script, tmp_path, monkeypatch)
    optimizer = optlab.sgd(SCHEDULES["cosine"](0.1, won.steps))
    assert_same_run(names, mine.complex_numbers(), optimizer, won, eval_every=20)
    assert float(names["loss"]) < 0.1


@pytest.mark.parametrize("name", ["streamed", "in_epochs"])
def test_loaders_are_read_pass_after_pass(mine, tmp_path, monkeypatch, name):
    won = winner(learning_rate=0.1)
    make = getattr(mine, name)
    names = run(recipe(won, make, optlab.sgd), tmp_path, monkeypatch)
    assert_same_run(names, make(), optlab.sgd(SCHEDULES["cosine"](0.1, won.steps)), won)


def test_an_update_may_take_several_batches(mine, tmp_path, monkeypatch):
    won = winner(learning_rate=0.1)
    names = run(recipe(won, mine.line, mine.twice), tmp_path, monkeypatch)
    history = train(
        mine.line(), mine.twice(SCHEDULES["cosine"](0.1, 40)), steps=40, key=jax.random.key(3)
    ).history
    expected = float(history.validation["loss"][-1])
    assert float(names["metrics"]["loss"]) == pytest.approx(expected, rel=1e-4)


def test_large_splits_are_evaluated_in_parts_as_if_at_once(mine, tmp_path, monkeypatch):
    won = winner(learning_rate=0.1, eval_batch=7)
    script = recipe(won, mine.line, optlab.sgd)
    names = run(script, tmp_path, monkeypatch)
    whole = mine.evaluate(names["params"], names["model_state"], mine.DATA)
    assert "range(0, 24, 7)" in script
    for name, value in whole.items():
        assert names["metrics"][name] == pytest.approx(float(value), rel=1e-5)


def test_a_task_of_ones_own_needs_nothing_of_the_lab(mine):
    script = recipe(winner(learning_rate=0.1), mine.line, optlab.sgd)
    assert "from tuned_module import line as make_task\n" in script
    assert "optlab.lab" not in script
    assert FILL_IN not in script


@pytest.mark.parametrize("source", ["tuned_module:tuned", None])
def test_a_task_that_is_no_function_is_imported(mine, tmp_path, monkeypatch, source):
    won = winner(steps=1, learning_rate=0.1)
    script = recipe(won, mine.tuned, optlab.sgd, task_source=source)
    assert "from tuned_module import tuned as imported_task\n" in script
    assert run(script, tmp_path, monkeypatch)["task"] is mine.tuned


def test_arguments_of_partials_are_written(mine):
    made = functools.partial(mine.line, scale=0.5, batch_size=3)
    optimizer = functools.partial(optlab.adamw, b1=0.8, weight_decay=0.1)
    won = winner(learning_rate=0.1, batch_size=6, weight_decay=0.2)
    for source in (None, "tuned_module:line"):
        script = recipe(won, made, optimizer, task_source=source)
        assert "task = make_task(scale=0.5, batch_size=6)\n" in script
        assert "optlab.adamw(b1=0.8, weight_decay=0.2, learning_rate=learning_rate)\n" in script


def test_closures_may_say_how_a_script_writes_them(mine, tmp_path, monkeypatch):
    def make(learning_rate):
        return optax.chain(optlab.clip_by_global_norm(0.1), optlab.sgd(learning_rate, momentum=0.5))

    def task(batch_size):
        return mine.line(batch_size, scale=0.5)

    clip = functools.partial(optlab.clip_by_global_norm, 0.1)
    make.script_form = ScriptForm(functools.partial(optlab.sgd, momentum=0.5), [clip])
    task.script_form = ScriptForm(functools.partial(mine.line, scale=0.5))
    won = winner(learning_rate=0.1, batch_size=8)
    for source in (None, "tuned_module:line"):
        script = recipe(won, task, make, task_source=source)
        assert FILL_IN not in script
        assert "task = make_task(scale=0.5, batch_size=8)\n" in script
    assert_same_run(
        run(script, tmp_path, monkeypatch), task(8), make(SCHEDULES["cosine"](0.1, 40)), won
    )


def test_functions_that_have_names_of_the_script_get_others(mine, tmp_path, monkeypatch):
    won = winner(steps=1, learning_rate=0.1, momentum=0.5)
    script = recipe(won, mine.update, mine.Rules.of)
    assert "from tuned_module import update as make_task\n" in script
    assert "optimizer = Rules.of(learning_rate=learning_rate, momentum=0.5)\n" in script
    assert run(script, tmp_path, monkeypatch)["make_task"] is mine.update


def test_values_of_all_kinds_are_written(mine):
    values = {
        "batch_size": np.int64(8),
        "rate": np.float32(0.1),
        "flag": np.bool_(True),
        "text": 'a "b"',
        "none": None,
        "shape": (3, 4),
        "big": float("inf"),
        "activation": jax.nn.relu,
        "own": mine.update,
        "array": jnp.float32(0.5),
    }

    def make(learning_rate, **values):
        return optlab.sgd(learning_rate)

    # As if the function stood in the user's module.
    make.__module__, make.__qualname__, mine.make = mine.__name__, "make", make
    script = recipe(winner(learning_rate=0.1, **values), mine.tuned, make)
    written = ast.parse(script)
    (call,) = (
        node.value
        for node in ast.walk(written)
        if isinstance(node, ast.Assign) and "make_optimizer" in ast.unparse(node.value)
    )
    assert {k.arg: ast.unparse(k.value) for k in call.keywords} == {
        "learning_rate": "learning_rate",
        "batch_size": "8",
        "rate": "0.10000000149011612",
        "flag": "True",
        "text": "'a \"b\"'",
        "none": "None",
        "shape": "(3, 4)",
        "big": "float('inf')",
        "activation": "relu",
        "own": "update_",
        "array": "0.5",
    }
    assert "from jax.nn import relu\n" in script
    assert "from tuned_module import update as update_\n" in script


@pytest.mark.parametrize("what", ["task", "optimizer"])
def test_what_no_script_can_import_is_left_to_the_user(mine, tmp_path, monkeypatch, what):
    won = winner(learning_rate=0.1, batch_size=8)
    made = {"task": mine.line, "optimizer": optlab.sgd}
    if what == "task":
        made["task"] = lambda batch_size: mine.line(batch_size)
    else:
        made["optimizer"] = lambda learning_rate: optlab.sgd(learning_rate)
    script = recipe(won, made["task"], made["optimizer"])
    ast.parse(script)
    assert f"    # {FILL_IN}: a script cannot import the {what} that was tuned,\n" in script
    assert "(test_recipe.py, line " in script
    assert f"It cannot run yet: write the {what} where it says {FILL_IN}." in script
    with pytest.raises(NotImplementedError, match=f"{FILL_IN}: return the {what}"):
        run(script, tmp_path, monkeypatch)


def test_a_value_that_cannot_be_written_is_left_to_the_user(mine):
    optimizer = functools.partial(optlab.adamw, mask=lambda params: {"w": True, "b": False})
    script = recipe(
        winner(learning_rate=0.1, b1=0.8), mine.tuned, optimizer, task_source="tuned_module:tuned"
    )
    assert "def make_optimizer(learning_rate, b1):\n" in script
    assert f"write the optimizer where it says {FILL_IN}" in script
    assert "write the task and the optimizer" not in script
    # A task that no module has.
    script = recipe(winner(learning_rate=0.1, b1=0.8), mine.line(), optimizer)
    assert "write the task and the optimizer" in script


def test_a_name_that_is_no_text_of_a_docstring_does_not_break_the_script(mine):
    made = functools.partial(mine.line)
    won = winner(learning_rate=0.1)
    task = made()
    hostile = task.__class__(**{**vars(task), "name": 'a """ b \\N \n c "'})
    script = recipe(won, hostile, optlab.sgd, task_source="tuned_module:tuned")
    assert "Train the winner" in ast.get_docstring(ast.parse(script))


def test_built_in_tasks_and_rules_have_their_public_names(monkeypatch):
    # As in a process in which nobody has asked for the name yet.
    lion = optlab.lion
    monkeypatch.delitem(vars(optlab), "lion", raising=False)
    script = recipe(winner(learning_rate=0.1), tasks.valley, lion)
    assert "from optlab.lab.tasks import valley as make_task\n" in script
    assert "optlab.lion(learning_rate=learning_rate)" in script
    assert "sys" not in script


@pytest.mark.slow
def test_a_recipe_runs_from_the_folder_of_the_project(mine, tmp_path):
    script = recipe(winner(learning_rate=0.1, steps=3), mine.line, optlab.sgd)
    (tmp_path / "recipe.py").write_text(script)
    folder = os.path.dirname(mine.__file__)
    done = subprocess.run(
        [sys.executable, tmp_path / "recipe.py"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("update 0: loss ")
    assert "test {'loss': " in done.stdout
