"""`optlab sweep`: search hyperparameters; trials run as lanes of a few compiled programs."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import optax

from optlab.cli._errors import UsageError, check_known, look_up, value_errors
from optlab.cli._groups import add_groups, group_rules
from optlab.cli._options import (
    add_json,
    add_optimizer,
    add_out_folder,
    add_seed,
    add_steps,
    add_task,
    count,
    declare,
    file,
    named,
    optimizer_list,
    scalar,
)
from optlab.cli._output import check_writable_folder, log, require, write_errors
from optlab.cli._task_errors import task_errors
from optlab.cli._tasks import find_task
from optlab.lab import (
    Categorical,
    Integer,
    LogUniform,
    Range,
    Sweep,
    Task,
    Trial,
    Uniform,
    sweep,
)
from optlab.lab.sweeps._search import SEARCHES
from optlab.registry import BY_NAME

RATES = "learning_rate=1e-4:1e-1:log"
"""The default space."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        run,
        description="Search hyperparameters of an optimizer and a task for the best validation\n"
        "score, many trials in one compiled program:\n\n"
        f"  optlab sweep --space {RATES} \\\n"
        "      --space weight_decay=1e-6:1e-3:log --space batch_size=16,32,64\n\n"
        "Each name is an argument of the optimizer, or of the function that makes the\n"
        "task. A sweep with --results that was stopped, in any way, continues from there\n"
        "when it is called again. The test split is never used.",
        epilog=optimizer_list(),
    )
    add_task(parser)
    add_optimizer(parser)
    parser.add_argument(
        "--space",
        type=named(range_of),
        action="append",
        metavar="NAME=RANGE",
        help="a hyperparameter and its range, may be repeated: LOW:HIGH for numbers between, "
        "whole ones if both ends are, LOW:HIGH:log for equally many in each decade, or choices "
        f"separated by commas (default: {RATES})",
    )
    parser.add_argument(
        "--trials",
        type=count,
        default=32,
        metavar="N",
        help="the number of trials (default: %(default)s)",
    )
    parser.add_argument(
        "--search",
        default="halton",
        metavar="HOW",
        help=f"the method, one of {', '.join(SEARCHES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--halving",
        type=count,
        metavar="N",
        help="at each rung, continue only the best of every N trials (default: continue all)",
    )
    parser.add_argument(
        "--refine",
        type=count,
        metavar="N",
        help="search again with N trials, in a smaller space around the best ones",
    )
    add_steps(parser, "optimizer updates per trial (default: the task's)")
    parser.add_argument(
        "--seeds",
        type=count,
        default=1,
        metavar="N",
        help="runs of each trial, with different initializations and batches "
        "(default: %(default)s)",
    )
    add_seed(parser, "seed of the search and the runs")
    parser.add_argument(
        "--results",
        type=file,
        metavar="FILE",
        help="store results in this SQLite file as they arrive, and continue from those in it; "
        "with --refine, the results of the second search are in FILE.refined",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="with --search bayes, an Optuna storage on which several processes work together",
    )
    add_out_folder(parser, "optlab-sweep", "results.json, trials.csv and sweep.png")
    add_json(parser)
    add_groups(parser)


def run(options: argparse.Namespace) -> None:
    """Search, print the table or the JSON, write the results and the plot."""
    check_known("search", options.search, SEARCHES)
    row = look_up("optimizer", options.optimizer, BY_NAME)
    task = find_task(options.task)
    space = _space(options.space or [named(range_of)(RATES)])
    require("sweep", "matplotlib", "rich", "scipy")
    check_writable_folder(options.out)
    search = partial(_search, options, task, partial(row.constructor, **row.fixed))
    result = search(space, options.trials, options.results, options.storage)
    _show(options, result, options.out)
    if options.refine:
        with value_errors():
            narrowed = result.narrowed()
        results = options.results and options.results.with_name(f"{options.results.name}.refined")
        folder = options.out / "refined"
        check_writable_folder(folder)
        _show(options, search(narrowed, options.refine, results, None), folder)


def range_of(text: str) -> Range:
    """Read a range: LOW:HIGH, LOW:HIGH:log, or choices separated by commas."""
    parts = text.split(":")
    log_scale = len(parts) == 3 and parts[2] == "log"
    try:
        if len(parts) == 1:
            return Categorical(tuple(scalar(part) for part in text.split(",")))
        if len(parts) != 2 and not log_scale:
            raise ValueError("write LOW:HIGH, LOW:HIGH:log or choices separated by commas")
        low, high = map(scalar, parts[:2])
        if isinstance(low, int) and isinstance(high, int):
            return Integer(low, high, log=log_scale)
        return LogUniform(low, high) if log_scale else Uniform(low, high)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no range: {error}") from error


def _space(named_ranges: Sequence[tuple[str, Range]]) -> dict[str, Range]:
    space = dict(named_ranges)
    if len(space) < len(named_ranges):
        raise UsageError("argument --space: names must differ, got one of them twice")
    return space


def _search(
    options: argparse.Namespace,
    task: Task | Callable[..., Task],
    optimizer: Callable[..., optax.GradientTransformation],
    space: Mapping[str, Range],
    trials: int,
    results: Path | None,
    storage: str | None,
) -> Sweep:
    names = ("search", "halving", "steps", "seeds", "seed")
    terminal = sys.stderr.isatty()
    with task_errors(options.task), value_errors():
        return sweep(
            task,
            optimizer,
            space,
            trials=trials,
            groups=group_rules(options),
            results=results,
            storage=storage,
            progress=terminal,
            callbacks=() if terminal else (_log_trial(trials),),
            **{name: getattr(options, name) for name in names},
        )


def _log_trial(trials: int) -> Callable[[Trial], None]:
    """Return a callback that writes a line for every eighth of the trials."""
    count_ended = 0

    def on_trial(trial: Trial) -> None:
        nonlocal count_ended
        count_ended += 1
        if count_ended * 8 // trials > (count_ended - 1) * 8 // trials:
            log(f"{count_ended} of {trials} trials")

    return on_trial


def _show(options: argparse.Namespace, result: Sweep, folder: Path) -> None:
    if not result.trials:
        raise UsageError(f"all {result.missing} trials still run elsewhere; call again later")
    arguments = {name: getattr(options, name) for name in ("optimizer", "halving", "seeds", "seed")}
    text = result.to_json(options=arguments)
    if options.json:
        print(text)
    else:
        print(f"{options.optimizer} on {result}", "", sep="\n")
    with write_errors(folder):
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        (folder / "trials.csv").write_text(result.to_csv(), encoding="utf-8")
        result.plot().savefig(folder / "sweep.png")
    if not options.json:
        print(f"Wrote {folder / 'results.json'}, trials.csv, sweep.png")
