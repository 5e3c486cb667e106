"""`optlab train`: one run, with its curves and their diagnosis."""

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import optax

from optlab import groups, schedules, transforms
from optlab._describe import describe
from optlab._report import aligned, number
from optlab._types import Schedule
from optlab.cli._errors import UsageError, check_known, look_up, value_errors
from optlab.cli._expressions import evaluate
from optlab.cli._groups import add_groups, check_starts, group_rules
from optlab.cli._many_weights import (
    add_many_weights,
    average_scores,
    average_table,
    averaging,
    check_many_weights,
    cyclic,
    run_many,
)
from optlab.cli._options import (
    add_batch_size,
    add_json,
    add_optimizer,
    add_out_folder,
    add_seed,
    add_steps,
    add_task,
    count,
    declare,
    folder,
    folder_or_bucket,
    named,
    optimizer_list,
    rate,
    scalar,
)
from optlab.cli._output import check_writable_folder, log, require, write_errors
from optlab.cli._plot_schedule import SCHEDULE_FUNCTIONS
from optlab.cli._task_errors import task_errors
from optlab.cli._tasks import make_task
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
from optlab.registry import BY_NAME


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        run,
        description="Train once, evaluate on the way, draw the curves, and say what they show:\n"
        "divergence, a plateau, overfitting, and what to try; or that nothing stands out.",
        epilog=optimizer_list(),
    )
    add_task(parser)
    add_optimizer(parser)
    parser.add_argument(
        "--rate",
        default="1e-3",
        metavar="RATE",
        help="the learning rate, or a schedule of it as a call in quotes, such as "
        '"warmup_cosine(3e-3, warmup_steps=30, decay_steps=300)"; see optlab plot-schedule '
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        type=named(scalar),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another hyperparameter of the optimizer, such as weight_decay=1e-4",
    )
    parser.add_argument(
        "--clip", type=rate, metavar="NORM", help="clip gradients to this norm (default: off)"
    )
    add_steps(parser, "optimizer updates (default: the task's)")
    add_batch_size(parser)
    add_seed(parser, "seed of the run")
    parser.add_argument(
        "--patience",
        type=count,
        metavar="N",
        help="stop after N evaluations in a row without improvement, and return to the best "
        "parameters (default: train to the end)",
    )
    parser.add_argument(
        "--checkpoints",
        type=folder_or_bucket,
        metavar="FOLDER",
        help="store the run in this folder, or at an address that begins with gs://, and continue "
        "from a checkpoint in it",
    )
    parser.add_argument(
        "--keep",
        type=count,
        metavar="N",
        help="the number of checkpoints that are kept (default: 1)",
    )
    parser.add_argument(
        "--take-over",
        action="append",
        default=[],
        metavar="NAME",
        help="continue although this differs from the run of the checkpoint, such as "
        "learning_rate, with what this command says; may be repeated",
    )
    parser.add_argument(
        "--tensorboard",
        type=folder,
        metavar="FOLDER",
        help="write the curves for TensorBoard into this folder",
    )
    add_many_weights(parser)
    files = "history.json and history.png, or ensemble.json and ensemble.png"
    add_out_folder(parser, "optlab-train", files)
    add_json(parser)
    add_groups(parser)


def run(options: argparse.Namespace) -> None:
    """Train, print the scores and the diagnosis or the JSON, write the curves."""
    task = make_task(options.task, batch_size=options.batch_size)
    steps = options.steps or task.steps
    _check_checkpoints(options)
    check_many_weights(options, task, steps)
    check_starts(options, steps)
    optimizer = _optimizer(options, task, steps)
    require("train", "matplotlib", "rich")
    check_writable_folder(options.out)
    if options.ensemble or options.snapshots:
        run_many(options, task, optimizer, steps)
        return
    terminal = sys.stderr.isatty()
    callbacks = [] if terminal else [_log_evaluation]
    with task_errors(options.task), value_errors(), _refusals_of_checkpoints():
        if options.tensorboard:
            callbacks.append(tensorboard(options.tensorboard))
        result = train(
            task,
            optimizer,
            steps=steps,
            key=jax.random.key(options.seed),
            early_stopping=_early_stopping(task, options.patience),
            callbacks=callbacks,
            progress=terminal,
            checkpoints=options.checkpoints,
            keep=options.keep or 1,
            take_over=options.take_over,
        )
        ended = result.reason == "all updates done"
        averaged = average_scores(options, task, result) if options.average and ended else {}
    _show(options, task, result, averaged)


def _check_checkpoints(options: argparse.Namespace) -> None:
    for name in ("keep", "take_over"):
        if getattr(options, name) and options.checkpoints is None:
            raise UsageError(f"--{name.replace('_', '-')} needs --checkpoints")


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


def _optimizer(options: argparse.Namespace, task: Task, steps: int) -> optax.GradientTransformation:
    row = look_up("optimizer", options.optimizer, BY_NAME)
    try:
        learning_rate = _rate(options.rate)
        if options.snapshots:
            learning_rate = cyclic(learning_rate, options.snapshots, steps)
        optimizer = row.make(learning_rate, **_hyperparams(options, row.constructor))
        average = averaging(options, task, steps) if options.average else None
    except (ValueError, OverflowError, RecursionError) as error:
        raise UsageError(str(error)) from error
    clipping = transforms.clip_by_global_norm(options.clip) if options.clip else None
    watches = not (options.ensemble or options.snapshots)  # else no single updates are shown

    def around(tx: optax.GradientTransformation) -> optax.GradientTransformation:
        parts = [monitor(tx, clipping=clipping)] if watches else [clipping, tx]
        return optax.chain(*(part for part in (*parts, average) if part is not None))

    rules = group_rules(options)
    if rules is None:
        return around(optimizer)
    with task_errors(options.task), value_errors():
        tx = groups.partition(params_of(task), rules, optimizer=optimizer, around=around)
        log(str(describe(tx, params_of(task))))
    return tx


def _rate(text: str) -> float | Schedule:
    """Read a rate, or a schedule written as a call."""
    if "(" not in text:
        try:
            return rate(text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"argument --rate: {error}") from error
    result = evaluate(text, SCHEDULE_FUNCTIONS, "schedule")
    return result.learning_rate if isinstance(result, schedules.OneCycle) else result


def _hyperparams(options: argparse.Namespace, constructor: Callable[..., Any]) -> dict[str, Any]:
    hyperparams = dict(options.set)
    if len(hyperparams) < len(options.set):
        raise UsageError("argument --set: names must differ, got one of them twice")
    names = list(inspect.signature(constructor).parameters)[1:]  # the rate is the first
    for name in hyperparams:
        check_known(f"hyperparameter of {options.optimizer}", name, names)
    return hyperparams


def _early_stopping(task: Task, patience: int | None) -> EarlyStopping | None:
    return EarlyStopping(patience, mode="max" if task.maximize else "min") if patience else None


def _log_evaluation(evaluation: Evaluation) -> None:
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in evaluation.validation.items())
    log(f"{evaluation.step:>8} of {evaluation.steps}  {metrics}")


def _show(
    options: argparse.Namespace,
    task: Task,
    run_result: Run,
    averaged: Mapping[str, Mapping[str, float]],
) -> None:
    diagnosis = diagnose(run_result.history)
    arguments = {name: getattr(options, name) for name in ("task", "optimizer", "rate", "seed")}
    text = run_result.history.to_json(
        options=arguments,
        reason=run_result.reason,
        step=run_result.step,
        test=run_result.test,
        average={"how": str(options.average), **averaged} if averaged else None,
        findings=[vars(finding) for finding in diagnosis.findings],
    )
    if options.json:
        print(text)
    else:
        print(
            f"{options.optimizer} on {task.name}: {run_result.reason}",
            _scores(run_result),
            *([average_table(options.average, averaged)] if averaged else []),
            diagnosis,
            sep="\n\n",
        )
    with write_errors(options.out):
        (options.out / "history.json").write_text(text + "\n", encoding="utf-8")
        run_result.history.plot().savefig(options.out / "history.png")
    if not options.json:
        print("", f"Wrote {options.out / 'history.json'}, history.png", sep="\n")


def _scores(run_result: Run) -> str:
    """Return the metrics at the final parameters, as aligned text."""
    history = run_result.history
    at = int((history.steps == run_result.step).argmax())
    splits = {
        "train": {name: curve[at] for name, curve in history.train.items()},
        "validation": {name: curve[at] for name, curve in history.validation.items()},
        "test": run_result.test,
    }
    splits = {name: metrics for name, metrics in splits.items() if metrics}
    columns = {f"after {run_result.step} updates": list(splits)}
    for name in history.validation:
        columns[name] = [number(metrics.get(name)) for metrics in splits.values()]
    return "\n".join(aligned(columns))
