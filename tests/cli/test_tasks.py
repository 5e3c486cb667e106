"""`--task module:attribute`: tasks of the user's own, and every way in which they can fail."""

import json
import logging
import re
import subprocess
import sys
from functools import partial

import pytest

from optlab import cli
from optlab.cli import _compare, _lr_range
from optlab.cli._errors import UsageError
from optlab.cli._task_errors import task_errors
from optlab.lab.tasks._check_task import check_task

OWN = """
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from optlab.lab import Task, shuffled_batches

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5], np.float32)
TRAIN, HELD_OUT = (X[:48], Y[:48]), (X[48:], Y[48:])


def mean_squared(predicted, wanted):
    return jnp.mean((predicted - wanted) ** 2)


def linear(batch_size=8) -> Task:
    def error(params, data):
        x, y = data
        return mean_squared(x @ params["w"] + params["b"], y)

    return Task(
        name=f"linear-{batch_size}",
        init=lambda key: ({"w": jnp.zeros(3), "b": jnp.zeros(())}, ()),
        loss=lambda params, state, batch, key: (error(params, batch), state),
        batch=shuffled_batches(TRAIN, batch_size),
        evaluate=lambda params, state, data: {"loss": error(params, data)},
        splits={"validation": HELD_OUT},
        steps=20,
    )


task = linear()


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.relu(x))[:, 0]


def _linen():
    model = Net()

    def init(key):
        stats = model.init(key, X[:1], train=False)
        return stats.pop("params"), stats

    def loss(params, stats, batch, key):
        x, y = batch
        variables = {"params": params, **stats}
        predicted, changed = model.apply(variables, x, train=True, mutable=list(stats))
        return mean_squared(predicted, y), changed

    def evaluate(params, stats, data):
        x, y = data
        return {"loss": mean_squared(model.apply({"params": params, **stats}, x, train=False), y)}

    return dataclasses.replace(
        task, name="linen", init=init, loss=loss, evaluate=evaluate
    )


nested = types.SimpleNamespace(linen=_linen())
print("own is imported")
"""

WRONG = """
import dataclasses

import jax
import jax.numpy as jnp
from own import TRAIN, Task, linear, task
from optlab.lab import shuffled_batches

number = 3


def needs(size):
    return task


def no_task(batch_size=8):
    linear(batch_size)


def fails():
    return linear(batch_size=1000)


def quits():
    raise SystemExit(1)


def loss_of_wrong_shapes(params, state, batch, key):
    return params["w"] @ batch[0], state


wrong_shapes = dataclasses.replace(task, loss=loss_of_wrong_shapes)
no_scalar = dataclasses.replace(
    task, loss=lambda params, state, batch, key: (params["w"], state)
)


def late(*args):
    raise ValueError("first line.\\nsecond line")


@jax.custom_vjp
def identity(x):
    return x


identity.defvjp(lambda x: (x, None), late)


def loss_without_gradient(params, state, batch, key):
    return identity(jnp.sum(params["w"] ** 2)), state


def loss_with_callback(params, state, batch, key):
    jax.debug.callback(late, params["b"])
    return jnp.sum(params["w"] ** 2), state


def loss_with_while(params, state, batch, key):
    return jax.lax.while_loop(lambda x: x < 3, lambda x: x + 1, params["b"]), state


no_gradient = dataclasses.replace(task, loss=loss_without_gradient)
callback = dataclasses.replace(task, loss=loss_with_callback)
no_reverse = dataclasses.replace(task, loss=loss_with_while)


def broken():
    raise OSError("the disk is gone")
    yield


broken_loader = dataclasses.replace(task, batch=None, loader=broken)
"""

FILES = {
    "own.py": OWN,
    "wrong.py": WRONG,
    "syntax.py": "import own\n\ndef f(:\n",
    "imports.py": "import own\nimport no_such_thing\n",
    "quits.py": "import sys\nsys.exit('bye')\n",
    "package/__init__.py": "",
    "package/tasks.py": "from own import task\n",
    "package/raising.py": "from package import tasks\n\nraise RuntimeError\n",
}


def with_lines(message):
    """Replace what stands as file:«text» by file:number, the line that has this text."""

    def number(match):
        file, text = match.groups()
        (found,) = [i for i, line in enumerate(FILES[file].splitlines(), 1) if text in line]
        return f"{file}:{found}"

    return re.sub("([a-z.]+):«(.*)»", number, message)


QUICK = {
    "compare": ["--optimizers", "sgd", "--rates", "0.1", "--seeds", "1", "--steps", "20"],
    "lr-range": ["--optimizer", "sgd", "--seeds", "1", "--steps", "10"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the files above; what they import is forgotten in the end."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def run(folder, capfd):
    """Run a command on a task; return its status, its standard output and its standard error."""

    def run(command, task, *arguments):
        status = cli.main([command, *QUICK.get(command, []), "--task", task, *arguments])
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def untrained(monkeypatch):
    """Fail where a command comes as far as training."""
    monkeypatch.setattr(_compare, "compare", lambda *args, **options: pytest.fail("trained"))
    monkeypatch.setattr(_lr_range, "lr_range_test", lambda *args, **options: pytest.fail("trained"))


# What works


@pytest.mark.parametrize("task", ["own:task", "own:nested.linen", "own:linear"])
def test_compare_trains_a_task_of_the_users_own(run, folder, task):
    status, out, err = run("compare", task)
    assert status == 0
    assert out.startswith("optimizer  best rate  validation loss")
    assert err.startswith("own is imported\n")
    results = json.loads((folder / "optlab-compare" / "results.json").read_text())
    assert results["options"]["task"] == task
    losses = results["optimizers"]["sgd"]["validation"]["loss"][0][0]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("task", ["own:task", "own:nested.linen"])
def test_lr_range_tests_a_task_of_the_users_own(run, folder, task):
    status, out, _ = run("lr-range", task)
    assert status == 0
    assert out.startswith(f"sgd on {'linen' if 'linen' in task else 'linear-8'}: learning-rate")
    assert (folder / "lr-range.png").exists()


def test_an_option_that_is_given_becomes_an_argument_and_json_stays_alone(run):
    status, out, err = run("compare", "own:linear", "--batch-size", "4", "--json")
    assert status == 0
    assert json.loads(out)["task"] == "linear-4"
    assert "own is imported" in err


def test_the_module_command_finds_the_current_folder(folder):
    command = [sys.executable, "-P", "-m", "optlab", "lr-range", *QUICK["lr-range"]]
    ended = subprocess.run(
        [*command, "--task", "package.tasks:task", "--json"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "own is imported\n")
    assert json.loads(ended.stdout)["task"] == "linear-8"


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["lr-range", "--help"]])
def test_the_help_tells_of_it(capsys, arguments):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    out = capsys.readouterr().out
    assert "module:attribute" in out.lower()
    assert ("OPTLAB_TRACEBACK=1" in out) == (arguments == ["--help"])


# What does not


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("own:", "argument --task: expected module:attribute with dots between names, such as my"),
        (":task", "argument --task: expected module:attribute"),
        ("own:task:task", "argument --task: expected module:attribute"),
        (".own:task", "argument --task: expected module:attribute"),
        ("./own.py:task", "argument --task: expected … './own.py:task'; did you mean 'own:task'?"),
        ("own.py:task", "argument --task: expected … 'own.py:task'; did you mean 'own:task'?"),
        (
            "on:task",
            "--task on:task: there is no module 'on' in FOLDER, and none is installed; d",
        ),
        ("zzz:task", "--task zzz:task: there is no module 'zzz' in FOLDER, and none is installed"),
        (
            "package.task:task",
            "--task package.task:task: the package package in FOLDER/package has no module 'task'; "
            "did you mean 'tasks'?",
        ),
        (
            "own.tasks:task",
            "--task own.tasks:task: there is no module 'own.tasks': own is no package, but FOLDER",
        ),
        (
            "syntax:task",
            "--task syntax:task: importing syntax failed at syntax.py:3 with SyntaxError: invalid",
        ),
        (
            "imports:task",
            "--task imports:task: importing imports failed at imports.py:2 with "
            "ModuleNotFoundError: No module named 'no_such_thing'; OPTLAB_TRACEBACK=1 shows the tr",
        ),
        (
            "package.raising:task",
            "--task package.raising:task: importing package.raising failed at package/raising.py:3 "
            "with RuntimeError; OPTLAB_TRACEBACK=1",
        ),
        (
            "quits:task",
            "--task quits:task: importing quits failed at quits.py:2 with SystemExit:",
        ),
        (
            "own:taks",
            "--task own:taks: own has no 'taks'; did you mean 'task'? (tasks there: linear, task)",
        ),
        ("own:nested.lin", "--task own:nested.lin: own.nested has no 'lin'; did you mean 'linen'?"),
        ("package:zzz", "--task package:zzz: package has no 'zzz' (tasks there: none)"),
        (
            "wrong:number",
            "--task wrong:number: an optlab.lab.Task, or a function that returns one, is required, "
            "got int",
        ),
        (
            "wrong:needs",
            "--task wrong:needs: the function needs an argument 'size'; give it a default\n",
        ),
        (
            "wrong:no_task",
            "--task wrong:no_task: the function must return an optlab.lab.Task, got None",
        ),
        (
            "wrong:fails",
            "--task wrong:fails: calling fails failed at own.py:«shuffled_batches(» with "
            "ValueError: shuffled_batches: batch_size must not exceed the 48 training examp",
        ),
        (
            "wrong:quits",
            "--task wrong:quits: calling quits failed at wrong.py:«SystemExit» with",
        ),
        (
            "wrong:wrong_shapes",
            "--task wrong:wrong_shapes: checking the task failed at wrong.py:«@ batch[0]» with",
        ),
        (
            "wrong:no_scalar",
            "--task wrong:no_scalar: Task.loss must return a real floating-point scalar as the",
        ),
        (
            "wrong:broken_loader",
            "--task wrong:broken_loader: the loader of task 'linear-8' must yield batches, got "
            "OSError at batch 0: the disk is gone; OPTLAB_TRACEBACK=1 shows its own error\n",
        ),
    ],
)
def test_what_cannot_be_loaded_is_one_line_and_status_2(run, folder, untrained, task, message):
    status, out, err = run("lr-range", task)
    lines = [line for line in err.splitlines(keepends=True) if line != "own is imported\n"]
    assert (status, out, len(lines)) == (2, "", 1)
    parts = with_lines(message).replace("FOLDER", str(folder)).split(" … ")
    assert lines[0].startswith(f"optlab: {parts[0]}")
    assert parts[-1] in lines[0]
    assert not list(folder.glob("*.png"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("own:task", "this is a Task, not a function with an argument 'batch_size'; leave out --b"),
        ("wrong:fails", "the function has no argument 'batch_size'; leave out --batch-size"),
    ],
)
def test_an_option_that_the_task_does_not_take(run, untrained, task, message):
    status, out, err = run("compare", task, "--batch-size", "4")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"optlab: --task {task}: {message}")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "no_gradient",
            "training failed at wrong.py:«ValueError» with ValueError: first line; ",
        ),
        ("callback", "training failed at wrong.py:«ValueError» with ValueError: first line; "),
        ("no_reverse", "training failed with ValueError: Reverse-mode differentiation does not wo"),
    ],
)
@pytest.mark.parametrize("command", QUICK)
def test_what_fails_in_training_is_one_line(run, monkeypatch, command, task, message):
    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest, so that logs go to stderr
    status, out, err = run(command, f"wrong:{task}")
    lines = err.splitlines()
    assert (status, out) == (2, "")
    assert lines[0] == "own is imported"
    assert lines[-1].startswith(f"optlab: --task wrong:{task}: {with_lines(message)}")
    assert len(lines) == (3 if command == "compare" else 2)  # compare says first what it does


BROKEN = """
import jax
import jax.numpy as jnp
from optlab.lab import Task


def load(step):
    if step > 2:
        raise OSError("the disk is gone")
    return jnp.float32(step)


task = Task(
    name="broken",
    init=lambda key: (jnp.zeros(()), ()),
    loss=lambda x, state, batch, key: ((x - batch) ** 2, state),
    batch=lambda key, step: jax.pure_callback(load, jax.ShapeDtypeStruct((), jnp.float32), step),
    evaluate=lambda x, state, data: {"loss": x**2},
)
"""


def test_a_callback_that_fails_in_a_run_is_shown_with_the_users_own_error(run, folder, monkeypatch):
    (folder / "broken.py").write_text(BROKEN)
    monkeypatch.setattr(logging.root, "handlers", [])
    status, out, err = run("train", "broken:task", "--steps", "9")
    assert (status, out) == (2, "")
    assert "training failed at broken.py:9 with OSError: the disk is gone;" in err.splitlines()[-1]


@pytest.mark.parametrize("wanted", ["1", "0"])
def test_the_whole_traceback_is_there_for_the_asking(run, untrained, monkeypatch, wanted):
    monkeypatch.setenv("OPTLAB_TRACEBACK", wanted)
    status, _, err = run("lr-range", "wrong:wrong_shapes")
    assert status == 2
    assert (', in loss_of_wrong_shapes\n    return params["w"] @ batch[0]' in err) == (
        wanted == "1"
    )
    assert err.splitlines()[-1].startswith("optlab: --task wrong:wrong_shapes: checking the task")


def test_the_code_of_an_installed_task_is_the_users_as_well(run, folder, untrained, monkeypatch):
    installed = folder / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "bought.py").write_text("def task():\n    return {}['key']\n")
    monkeypatch.syspath_prepend(installed)
    _, _, err = run("lr-range", "bought:task")
    place = "lib/site-packages/bought.py:2"
    assert err.startswith(f"optlab: --task bought:task: calling task failed at {place} with KeyE")


# Where errors end


def test_errors_with_a_built_in_task_are_left_alone():
    with pytest.raises(KeyError), task_errors("valley"):
        raise KeyError


def test_what_optlab_refuses_is_left_alone():
    refused = task_errors("own:task")(partial(check_task, "compare", "task"))
    with pytest.raises(ValueError, match=r"^compare: task must be an optlab\.lab\.Task, got str"):
        refused()


def test_a_usage_error_is_left_alone():
    with pytest.raises(UsageError, match=r"^as it is$"), task_errors("own:task"):
        raise UsageError("as it is")


def test_other_warnings_of_jax_are_shown(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    with task_errors("own:task"):
        logging.getLogger("jax.some_part").warning("beware")
        logging.getLogger("jax.some_part").info("by the way")
    assert capsys.readouterr().err == "beware\n"
    assert not logging.getLogger("jax").handlers
