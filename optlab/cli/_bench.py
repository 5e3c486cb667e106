"""`optlab bench`: tune optimizers alike on several tasks, and say what the data can tell."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from optlab.cli._compare import that_fit
from optlab.cli._errors import DIVERGED, value_errors
from optlab.cli._known import COMPARED
from optlab.cli._output import (
    check_writable_file,
    check_writable_folder,
    log,
    require,
    write_errors,
)
from optlab.cli._task_errors import task_errors
from optlab.cli._tasks import find_optimizer, load_task
from optlab.lab import Bench, Outcome, Task, bench, bench_tasks
from optlab.registry import BY_NAME

WORDS = ("tasks", "optimizers", "trials", "seeds", "steps", "quick")
"""Options that results.json repeats."""


def run(options: argparse.Namespace) -> int | None:
    """Run what is missing, print the tables or the JSON, write the results and the plot.

    Returns:
        The exit status; None for that of success.
    """
    require("bench", "matplotlib", "rich", "scipy")
    check_writable_folder(options.out)
    check_writable_file(options.results)
    tasks = [_task(name) for name in options.tasks]
    with _own_errors(options), value_errors():
        optimizers = _optimizers(options, tasks)
        options.optimizers = list(optimizers)
        log(
            f"{len(tasks)} tasks × {len(optimizers)} optimizers × ({options.trials} trials + "
            f"{options.seeds} seeds); runs go to {options.results}"
        )
        terminal = sys.stderr.isatty()
        result = bench(
            tasks,
            optimizers,
            trials=options.trials,
            seeds=options.seeds,
            steps=options.steps,
            results=options.results,
            progress=terminal,
            callbacks=() if terminal else (_log_outcome(),),
        )
    text = result.to_json(options={name: getattr(options, name) for name in WORDS})
    print(text if options.json else result)
    files = _write(result, text, options)
    if not options.json:
        print("", f"Wrote {files}", sep="\n")
    outcomes = result.outcomes.values()
    return DIVERGED if all(outcome.values is None for outcome in outcomes) else None


def _task(name: str) -> Task:
    if ":" in name:
        return load_task(name, {}, f"--tasks {name}")
    (task,) = bench_tasks(name)
    return task


def _own_errors(options: argparse.Namespace) -> Any:
    """Return a context in which errors of the user's own functions take one line."""
    named = [*options.tasks, *(options.optimizers or [])]
    own = next((name for name in named if ":" in name), "")
    return task_errors(own, "training", "bench")


def _optimizers(options: argparse.Namespace, tasks: list[Task]) -> Mapping[str, Callable[..., Any]]:
    """Return the optimizers that are named, or else those that can train all tasks."""
    if options.optimizers:
        return {name: _optimizer(name) for name in options.optimizers}
    optimizers = {name: _optimizer(name) for name in COMPARED}
    for task in tasks:
        optimizers = that_fit(task, optimizers, all_must=False)
    return optimizers


def _optimizer(name: str) -> Callable[..., Any]:
    if ":" in name:
        return find_optimizer(name)
    row = BY_NAME[name]
    return partial(row.constructor, **row.fixed)


def _log_outcome() -> Callable[[Outcome], None]:
    """Return a callback that writes a line for each optimizer on each task."""
    began = time.perf_counter()

    def on_outcome(outcome: Outcome) -> None:
        nonlocal began
        now = time.perf_counter()
        reached = math.isfinite(outcome.median_updates)
        said = f"target after {outcome.median_updates:g} updates" if reached else "target missed"
        log(f"{outcome.task}, {outcome.optimizer}: {said}, {now - began:.1f} s")
        began = now

    return on_outcome


def _write(result: Bench, text: str, options: argparse.Namespace) -> str:
    """Write the results and the plot, and return a description of the files."""
    folder = options.out
    with write_errors(folder):
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        (folder / "runs.csv").write_text(result.to_csv(), encoding="utf-8")
        result.plot().savefig(folder / "bench.png")
    return f"{folder / 'results.json'}, runs.csv, bench.png"
