"""What the command line knows without JAX is what the functions say."""

import inspect
import subprocess
import sys

import pytest

import known
from optlab.cli._known import TASKS
from optlab.lab import tasks


def test_the_file_of_names_and_limits_is_up_to_date():
    assert known.FILE.read_text() == known.text(), "run python tests/known.py"


@pytest.mark.parametrize("name", TASKS)
def test_the_arguments_of_built_in_tasks_are_known(name):
    parameters = inspect.signature(getattr(tasks, name.replace("-", "_"))).parameters
    arguments = TASKS[name].arguments
    assert {key: p.default for key, p in parameters.items()} == {
        key: argument.default for key, argument in arguments.items()
    }


def test_the_largest_batch_is_the_training_split():
    (images, _) = tasks.digits_mlp().splits["train"]
    assert TASKS["digits-mlp"].arguments["batch_size"].most == len(images)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--help"],
        ["sweep", "--space", "b1=0.9:1.5"],
        ["train", "--optimizer", "adamm"],
        ["compare", "--set", "nesterov=maybe"],
        ["train", "--rate", "cosine(1)"],
        ["lr-range", "--out", "plot.txt"],
    ],
    ids=" ".join,
)
def test_help_and_complaints_need_no_jax(arguments):
    script = "import sys; from optlab.cli import main\n"
    script += f"try:\n    status = main({arguments})\nexcept SystemExit:\n    status = 0\n"
    script += "assert not {'jax', 'optax', 'matplotlib'} & set(sys.modules) and status in (0, 2)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
