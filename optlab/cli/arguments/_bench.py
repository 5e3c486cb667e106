"""The options of `optlab bench`."""

import argparse
from pathlib import Path

from optlab.cli._errors import UsageError, check_known
from optlab.cli._known import COMPARED, OPTIMIZERS
from optlab.cli._options import (
    FORM,
    add_json,
    add_out_folder,
    add_steps,
    check_form,
    complete_list_with,
    declare,
    file,
    names,
    optimizer_list,
    runs,
)
from optlab.cli._output import check_place

TASKS = {
    "digits-mlp": "a perceptron on handwritten digits",
    "digits-cnn": "a convolutional network on handwritten digits",
    "friedman": "a perceptron on a noisy function of ten numbers",
    "signals": "a perceptron on ten kinds of distorted signals",
    "characters": "a block of attention that guesses the next letter of a text",
    "factorization": "a matrix as a product of two, without data",
}
"""The tasks of the benchmark, by name."""

FULL = {"tasks": list(TASKS), "optimizers": None, "trials": 12, "seeds": 5, "steps": None}
"""What is done where no option says anything else."""

QUICK = {
    "tasks": ["friedman", "factorization"],
    "optimizers": ["sgd", "adamw", "muon"],
    "trials": 4,
    "seeds": 2,
    "steps": 100,
}
"""The same with --quick."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    tasks = (f"  {name:<14}{summary}" for name, summary in TASKS.items())
    declare(
        parser,
        check,
        description="Tune each optimizer on each task with the same number of trials, choose its\n"
        "values on validation, run them from fresh seeds, and count the updates to a\n"
        "target. Performance profiles and their intervals follow, and what the data\n"
        "cannot tell apart. All runs go to one file: an optimizer that is named in a\n"
        "later call is compared without running the others again.",
        epilog="tasks:\n" + "\n".join(tasks) + "\n\n" + optimizer_list(),
    )
    action = parser.add_argument(
        "--tasks",
        type=names,
        nargs="+",
        metavar="NAMES",
        help=f"names of tasks, separated by commas or spaces; {FORM} is a task of your own "
        "(default: all that are listed below)",
    )
    complete_list_with(action, TASKS)
    action = parser.add_argument(
        "--optimizers",
        type=names,
        nargs="+",
        metavar="NAMES",
        help=f"names of optimizers, separated by commas or spaces; {FORM} is a function of your "
        "own, whose learning_rate has a default, the middle of its range (default: those of "
        f"{', '.join(COMPARED)} that can train the tasks)",
    )
    complete_list_with(action, OPTIMIZERS)
    parser.add_argument(
        "--trials",
        type=runs,
        metavar="N",
        help=f"trials of each optimizer on each task (default: {FULL['trials']})",
    )
    parser.add_argument(
        "--seeds",
        type=runs,
        metavar="N",
        help="runs with the chosen values, from fresh initializations and batches "
        f"(default: {FULL['seeds']})",
    )
    add_steps(parser, "optimizer updates per run (default: those of each task)")
    parser.add_argument(
        "--results",
        type=file,
        metavar="FILE",
        help="store runs in this SQLite file as they end, and continue from it (default: "
        "bench.sqlite in the folder of --out)",
    )
    add_out_folder(parser, "optlab-bench", "results.json, runs.csv and bench.png")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only try it out, with few tasks, optimizers, trials, seeds and updates where you do "
        "not set them, and quick.sqlite as the file: the results say nothing about optimizers",
    )
    add_json(parser)


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not fit; complete the others."""
    options.tasks = _flat("--tasks", options.tasks)
    options.optimizers = _flat("--optimizers", options.optimizers)
    for name in options.tasks or []:
        _check_name("task", "--tasks", name, TASKS)
    for name in options.optimizers or []:
        _check_name("optimizer", "--optimizers", name, OPTIMIZERS)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    check_place(options.out)
    if options.results is None:
        options.results = Path(options.out, "quick.sqlite" if options.quick else "bench.sqlite")


def _flat(option: str, lists: list[list[str]] | None) -> list[str] | None:
    """Return the names of several lists as one."""
    if lists is None:
        return None
    flat = [name for some in lists for name in some]
    for name in flat:
        if flat.count(name) > 1:
            raise UsageError(f"argument {option}: values must differ, got {name} twice")
    return flat


def _check_name(kind: str, option: str, name: str, known: dict[str, object]) -> None:
    if ":" in name:
        check_form(option, name, "task" if kind == "task" else "rule")
    else:
        check_known(kind, name, known, also=f"; {FORM} is one of your own")
