"""`optlab compare`: train with several optimizers over a grid of learning rates."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from optlab import plots
from optlab.cli._errors import DIVERGED, value_errors
from optlab.cli._optimizers import clipped
from optlab.cli._options import optimizers_of, seeds_of
from optlab.cli._output import check_writable_folder, log, require, write_errors
from optlab.cli._task_errors import task_errors
from optlab.cli._tasks import make_task
from optlab.cli._train import early_stopping
from optlab.lab import Comparison, Task, Trial, compare
from optlab.lab.tasks import valley_height

WORDS = ("task", "set", "clip", "schedule", "patience")
"""Options that results.json repeats, in addition to those of a comparison alone."""


def run(options: argparse.Namespace) -> int | None:
    """Compare, print the table or the JSON, write the results and the plots.

    Returns:
        The exit status; None for that of success.
    """
    require("compare", "matplotlib", "rich")
    check_writable_folder(options.out)
    task = make_task(options)
    optimizers = {name: clipped(options, name) for name in optimizers_of(options)}
    with task_errors(options.task), value_errors():
        optimizers = that_fit(task, optimizers, all_must=bool(options.optimizers))
    options.optimizers = list(optimizers)
    steps = options.steps or task.steps
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
            seeds=seeds_of(options),
            steps=steps,
            target=options.target,
            early_stopping=early_stopping(task, options.patience),
            results=options.results,
            progress=terminal,
            callbacks=() if terminal else (_log_optimizers(len(options.rates)),),
        )
    arguments = {
        name: getattr(options, name)
        for name in (*WORDS, "rates", "optimizers", "batch_size", "target", "seeds", "seed")
    }
    results = comparison.to_json(options={**arguments, "steps": steps})
    if options.json:
        print(results)
    else:
        print(comparison.table(), "", comparison.verdict(), sep="\n")
    files = write(comparison, results, options.out, paths=options.task == "valley")
    if not options.json:
        print("", f"Wrote {files}", sep="\n")
    return DIVERGED if all(runs.lost.all() for runs in comparison.runs.values()) else None


def that_fit(task: Task, optimizers: dict[str, Any], all_must: bool) -> dict[str, Any]:
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
