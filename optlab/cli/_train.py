"""`optlab train`: one run, with its curves and their diagnosis."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import optax

from optlab import groups
from optlab._describe import describe
from optlab._report import aligned, number
from optlab.cli._errors import DIVERGED, UsageError, value_errors
from optlab.cli._groups import group_rules
from optlab.cli._many_weights import (
    average_scores,
    average_table,
    averaging,
    check_average,
    cyclic,
    run_many,
)
from optlab.cli._optimizers import clipping, maker, rate_of
from optlab.cli._output import Progress, check_writable_folder, log, require, write_errors
from optlab.cli._task_errors import task_errors
from optlab.cli._tasks import make_task
from optlab.cli.arguments._groups import check_starts
from optlab.cli.arguments._train import Average
from optlab.lab import (
    EarlyStopping,
    Evaluation,
    Run,
    Task,
    diagnose,
    monitor,
    tensorboard,
    train,
)
from optlab.lab.training._checkpoints import REMEDY
from optlab.lab.training._grouping import params_of

WORDS = ("task", "optimizer", "rate", "schedule", "set", "clip", "batch_size", "seed")
"""Options that history.json repeats."""


def run(options: argparse.Namespace) -> int | None:
    """Train, print the scores and the diagnosis or the JSON, write the curves.

    Returns:
        The exit status; None for that of success.
    """
    require("train", "matplotlib", "rich")
    check_writable_folder(options.out)
    make_optimizer = _optimizer_of(options)
    task = make_task(options)
    steps = options.steps or task.steps
    check_average(options, task, steps)
    check_starts(options, steps)
    optimizer = make_optimizer(task, steps)
    if options.ensemble or options.snapshots:
        run_many(options, task, optimizer, steps)
        return None
    judges_average = bool(options.average and options.patience)
    terminal = sys.stderr.isatty()
    callbacks = [] if terminal else [_log_evaluations(steps)]
    with task_errors(options.task), value_errors(), _refusals_of_checkpoints():
        if options.tensorboard:
            callbacks.append(tensorboard(options.tensorboard))
        result = train(
            task,
            optimizer,
            steps=steps,
            key=jax.random.key(options.seed),
            early_stopping=early_stopping(task, options.patience),
            average=judges_average,
            callbacks=callbacks,
            progress=terminal,
            checkpoints=options.checkpoints,
            keep=options.keep or 1,
            take_over=options.take_over,
        )
        ended = result.reason.startswith("all updates done") and not result.diverged
        beside = options.average and not options.patience
        averaged = average_scores(options, task, result) if beside and ended else {}
    _show(options, task, result, averaged)
    return DIVERGED if result.diverged else None


@contextmanager
def _refusals_of_checkpoints() -> Iterator[None]:
    """Say in this block with options what may be done about a checkpoint of another run."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        if not message.endswith(REMEDY):
            raise
        remedy = "pass another folder, the options of that run, or --take-over NAME for each"
        raise UsageError(message.removesuffix(REMEDY) + remedy) from error


def _optimizer_of(
    options: argparse.Namespace,
) -> Callable[[Task, int], optax.GradientTransformation]:
    """Return the function from a task and updates to the optimizer.

    All that can be wrong without a task is refused at once.
    """
    make = maker(options, options.optimizer)
    try:
        rate = rate_of(options)
        make(rate)
    except (ValueError, OverflowError) as error:
        raise UsageError(str(error)) from error
    watches = not (options.ensemble or options.snapshots)  # else no single updates are shown

    def make_for(task: Task, steps: int) -> optax.GradientTransformation:
        try:
            optimizer = make(cyclic(rate, options.snapshots, steps) if options.snapshots else rate)
            average = averaging(options, task, steps) if options.average else None
        except ValueError as error:
            raise UsageError(str(error)) from error

        def around(tx: optax.GradientTransformation) -> optax.GradientTransformation:
            clip = clipping(options)
            parts = [monitor(tx, clipping=clip)] if watches else [clip, tx]
            return optax.chain(*(part for part in (*parts, average) if part is not None))

        rules = group_rules(options)
        if rules is None:
            return around(optimizer)
        with task_errors(options.task), value_errors():
            tx = groups.partition(params_of(task), rules, optimizer=optimizer, around=around)
            log(str(describe(tx, params_of(task))))
        return tx

    return make_for


def early_stopping(task: Task, patience: Mapping[str, Any] | None) -> EarlyStopping | None:
    """Return the rule of --patience for a task; None without it."""
    if patience is None:
        return None
    try:
        return EarlyStopping(**patience, mode="max" if task.maximize else "min")
    except ValueError as error:
        reason = str(error).removeprefix("EarlyStopping: ")
        raise UsageError(f"argument --patience: {reason}") from error


def _log_evaluations(steps: int) -> Callable[[Evaluation], None]:
    """Return a callback that writes a line for some of the evaluations."""
    progress = Progress(steps)

    def on_evaluation(evaluation: Evaluation) -> None:
        if progress.shows(evaluation.step):
            metrics = evaluation.validation.items()
            text = "  ".join(f"{name} {value:.4g}" for name, value in metrics)
            log(f"{evaluation.step:>8} of {evaluation.steps}  {text}")

    return on_evaluation


def _show(
    options: argparse.Namespace,
    task: Task,
    run_result: Run,
    averaged: Mapping[str, Mapping[str, float]],
) -> None:
    diagnosis = diagnose(run_result.history)
    arguments = {name: getattr(options, name) for name in WORDS}
    text = run_result.history.to_json(
        options=arguments,
        reason=run_result.reason,
        step=run_result.step,
        test=run_result.test,
        average=_average_record(options, averaged),
        findings=[vars(finding) for finding in diagnosis.findings],
    )
    if options.json:
        print(text)
    else:
        print(
            f"{options.optimizer} on {task.name}: {run_result.reason}",
            _scores(run_result, options.average if options.patience else None),
            *([average_table(options.average, averaged)] if averaged else []),
            diagnosis,
            sep="\n\n",
        )
    with write_errors(options.out):
        (options.out / "history.json").write_text(text + "\n", encoding="utf-8")
        figure = run_result.history.plot(title=title_of(options, task))
        figure.savefig(options.out / "history.png")
    if not options.json:
        print("", f"Wrote {options.out / 'history.json'}, history.png", sep="\n")


def _average_record(
    options: argparse.Namespace, averaged: Mapping[str, Mapping[str, float]]
) -> dict[str, Any] | None:
    """Return what history.json says of an average: how, and its scores where they stand beside."""
    if averaged:
        return {"how": str(options.average), **averaged}
    return {"how": str(options.average)} if options.average and options.patience else None


def _scores(run_result: Run, average: Average | None) -> str:
    """Return the metrics at the final parameters, or at their average, as aligned text."""
    history = run_result.history
    at = int((history.steps == run_result.step).argmax())
    splits = {
        "train": {name: curve[at] for name, curve in history.train.items()},
        "validation": {name: curve[at] for name, curve in history.validation.items()},
        "test": run_result.test,
    }
    splits = {name: metrics for name, metrics in splits.items() if metrics}
    of = "" if average is None else f"average, {average}, "
    columns = {f"{of}after {run_result.step} updates": list(splits)}
    for name in history.validation:
        columns[name] = [number(metrics.get(name)) for metrics in splits.values()]
    return "\n".join(aligned(columns))


def title_of(options: argparse.Namespace, task: Task) -> str:
    """Return what a plot says of a run: task, optimizer, hyperparameters, rate and seed."""
    parts = [f"{name} {text}" for name, text in options.set]
    parts += [f"clip {options.clip:g}"] if options.clip is not None else []
    course = "" if options.schedule is None else f" in {options.schedule}"
    parts += [f"rate {options.rate}{course}", f"seed {options.seed}"]
    return f"{options.optimizer} on {task.name}: {', '.join(parts)}"
