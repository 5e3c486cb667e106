"""`optlab compare`: train with several optimizers over a grid of learning rates."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from optlab import plots
from optlab.cli._errors import look_up, value_errors
from optlab.cli._options import (
    add_batch_size,
    add_json,
    add_out_folder,
    add_seeds,
    add_steps,
    add_task,
    declare,
    file,
    names,
    number,
    optimizer_list,
    rates,
)
from optlab.cli._output import check_writable_folder, log, require, write_errors
from optlab.cli._task_errors import task_errors
from optlab.cli._tasks import make_task
from optlab.lab import Comparison, Task, Trial, compare
from optlab.lab.tasks import valley_height
from optlab.registry import BY_NAME, OPTIMIZERS


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        run,
        description="Train a model with each optimizer, at every learning rate and from every\n"
        "seed, all runs of an optimizer in one compiled program. The best rate is\n"
        "chosen on validation; the test score is only reported.",
        epilog=optimizer_list(),
    )
    add_task(parser)
    parser.add_argument(
        "--optimizers",
        type=names,
        metavar="NAMES",
        help="names of optimizers, separated by commas (default: those of "
        f"{', '.join(OPTIMIZERS)} that can train the task)",
    )
    parser.add_argument(
        "--rates",
        type=rates,
        default="1e-4:10:11",
        metavar="RATES",
        help="learning rates separated by commas, such as 1e-3,1e-2, or LOW:HIGH:COUNT for COUNT "
        "rates evenly spaced on a log scale, both ends included (default: %(default)s)",
    )
    add_seeds(parser, default=3, runs="runs at each rate")
    add_steps(parser, "optimizer updates per run (default: the task's)")
    add_batch_size(parser)
    parser.add_argument(
        "--target",
        type=number,
        metavar="SCORE",
        help="report how many updates it takes to reach this score (default: the task's)",
    )
    parser.add_argument(
        "--results",
        type=file,
        metavar="FILE",
        help="store trials in this SQLite file as they end, and continue from it (default: none)",
    )
    add_out_folder(parser, "optlab-compare", "results.json and the plots")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Compare, print the table or the JSON, write the results and the plots."""
    asked = options.optimizers or list(OPTIMIZERS)
    optimizers = {name: look_up("optimizer", name, BY_NAME).make for name in asked}
    task = make_task(options.task, batch_size=options.batch_size)
    with task_errors(options.task), value_errors():
        optimizers = _that_fit(task, optimizers, all_must=bool(options.optimizers))
    options.optimizers = list(optimizers)
    steps = options.steps or task.steps
    require("compare", "matplotlib", "rich")
    check_writable_folder(options.out)
    log(
        f"{task.name}: {len(optimizers)} optimizers × {len(options.rates)} rates × "
        f"{options.seeds} seeds, {steps} updates each"
    )
    terminal = sys.stderr.isatty()
    with task_errors(options.task), value_errors():
        comparison = compare(
            task,
            optimizers,
            rates=options.rates,
            seeds=options.seeds,
            steps=steps,
            target=options.target,
            results=options.results,
            progress=terminal,
            callbacks=() if terminal else (_log_optimizers(len(options.rates)),),
        )
    arguments = {
        name: getattr(options, name)
        for name in ("task", "optimizers", "rates", "seeds", "batch_size", "target")
    }
    results = comparison.to_json(options={**arguments, "steps": steps})
    if options.json:
        print(results)
    else:
        print(comparison.table(), "", comparison.verdict(), sep="\n")
    files = write(comparison, results, options.out, paths=options.task == "valley")
    if not options.json:
        print("", f"Wrote {files}", sep="\n")


def _that_fit(task: Task, optimizers: dict[str, Any], all_must: bool) -> dict[str, Any]:
    """Return the optimizers whose `init` takes the task's parameters, and log why others do not.

    Where `all_must`, the first that does not is an error.
    """
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    fitting = {}
    for name, make in optimizers.items():
        try:
            jax.eval_shape(make(0.1).init, params)
        except ValueError as error:
            if all_must:
                raise
            log(f"left out: {error}")
        else:
            fitting[name] = make
    return fitting


def _log_optimizers(rates: int) -> Callable[[Trial], None]:
    """Return a callback that writes a line when all trials of an optimizer have ended."""
    began, ended = time.perf_counter(), 0

    def on_trial(trial: Trial) -> None:
        nonlocal began, ended
        ended += 1
        if ended % rates == 0:
            now = time.perf_counter()
            log(f"{trial.values['optimizer']}: {now - began:.1f} s")
            began = now

    return on_trial


def write(comparison: Comparison, results: str, folder: Path, *, paths: bool) -> str:
    """Write the results and their plots, and return a description of the files.

    Args:
        comparison: what to plot.
        results: the text of results.json.
        folder: where to write.
        paths: whether the task is the valley, whose paths can be drawn.
    """
    with write_errors(folder):
        (folder / "results.json").write_text(results + "\n", encoding="utf-8")
        plots.plot_curves(comparison).figure.savefig(folder / "curves.png")
        plots.plot_sensitivity(comparison).figure.savefig(folder / "sensitivity.png")
        if paths:
            figure = plots.plot_path_panels(comparison, height=valley_height)
            figure.savefig(folder / "paths.png")
    names = ("curves.png", "sensitivity.png", "paths.png")[: 2 + paths]
    return f"{folder / 'results.json'}, {', '.join(names)}"
