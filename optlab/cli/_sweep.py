"""`optlab sweep`: search hyperparameters; trials run as lanes of a few compiled programs."""

import argparse
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import optax

from optlab._extras import needs_extra
from optlab.cli._errors import DIVERGED, UsageError, usage_errors, value_errors
from optlab.cli._groups import group_rules
from optlab.cli._known import OPTIMIZERS
from optlab.cli._optimizers import swept
from optlab.cli._output import Progress, check_writable_folder, log, require, write_errors
from optlab.cli._ranges import Numbers, Typed, points_in
from optlab.cli._task_errors import task_errors
from optlab.cli._tasks import find_task, flags_of, task_values, with_flags
from optlab.cli._train import early_stopping
from optlab.lab import (
    Categorical,
    EarlyStopping,
    Integer,
    LogUniform,
    Range,
    Sweep,
    Task,
    Trial,
    Uniform,
    sweep,
)

WORDS = ("optimizer", "set", "rate", "schedule", "clip", "halving", "patience", "seeds", "seed")
"""Options that results.json repeats."""

TIMEOUT = "10s"
"""How long a scheduler of dask may take to answer."""


def run(options: argparse.Namespace) -> int | None:
    """Search, print the table or the JSON, write the results and the plot.

    Returns:
        The exit status; None for that of success.
    """
    require("sweep", "matplotlib", "rich", "scipy")
    check_writable_folder(options.out)
    optimizer = swept(options)
    task = task_of(options)
    space = {name: range_of(entry) for name, entry in options.space.items()}
    trials = _trials(options)
    with _workers(options.dask) as executor:
        search = partial(_search, options, task, optimizer, executor)
        result = search(space, trials, options.results, options.storage)
        _show(options, result, options.out)
        if options.refine:
            with value_errors():
                narrowed = result.narrowed()
            results = options.results
            results = results and results.with_name(f"{results.name}.refined")
            folder = options.out / "refined"
            check_writable_folder(folder)
            _show(options, search(narrowed, options.refine, results, None), folder)
    return DIVERGED if all(trial.lost for trial in result.trials) else None


@contextmanager
def _workers(address: str | None) -> Iterator[Executor | None]:
    """Connect to a scheduler of dask, and yield its executor; None for no address."""
    if address is None:
        yield None
        return
    with needs_extra("sweep", "distributed"):
        from distributed import Client
    for name in logging.root.manager.loggerDict:
        if name.split(".")[0] == "distributed":  # what it logs of its errors becomes one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UsageError(
            f"--dask {address}: a scheduler of dask must answer there, got {reason}; "
            "`dask scheduler` starts one, and prints its address"
        ) from error
    with client:
        yield client.get_executor()


def range_of(entry: Typed) -> Range:
    """Return the range that was typed."""
    if not isinstance(entry, Numbers):
        return Categorical(entry.values)
    if entry.whole:
        return Integer(int(entry.low), int(entry.high), log=entry.log)
    kind = LogUniform if entry.log else Uniform
    return kind(entry.low, entry.high)


def _trials(options: argparse.Namespace) -> int:
    """Return the number of trials; a space of a single point needs no more than one."""
    if options.trials > 1 and points_in(options.space) == 1:
        log("one trial: the space has a single point")
        return 1
    return options.trials


def task_of(options: argparse.Namespace) -> Task | Callable[..., Task]:
    """Return the task, or the function that makes it, with --batch-size and --set."""
    task, values = find_task(options.task), task_values(options)
    if isinstance(task, Task):
        for name in values:
            word = "--batch-size" if name == "batch_size" else f"--set {name}"
            raise UsageError(
                f"--task {options.task}: this is a Task, not a function with an argument "
                f"{name!r}; leave out {word}"
            )
        return task
    if ":" in options.task:
        _check_own(options, task)
        values = with_flags(f"--task {options.task}", task, values)
    return partial(task, **values) if values else task


def _check_own(options: argparse.Namespace, make: Callable[..., Task]) -> None:
    """Require values of the kind that the defaults of the user's own function have.

    Choices for what is true or false by default are read as such.
    """
    flags = flags_of(make)
    for name in flags.keys() & options.space.keys():
        entry = options.space[name].read_for(flags[name])
        with usage_errors():
            entry.check(f"--task {options.task}", flags[name])
        options.space[name] = entry
    parameters = inspect.signature(make).parameters
    own = options.space.keys() & parameters.keys() - OPTIMIZERS[options.optimizer].arguments.keys()
    for name in sorted(own):
        default, entry = parameters[name].default, options.space[name]
        if isinstance(default, int) and isinstance(entry, Numbers) and not entry.whole:
            raise UsageError(
                f"argument --space: {name} of {options.task} is {default} by default, a whole "
                f"number, got the real numbers {name}={entry.text}; write {name}={entry.text}:int"
            )


def _search(
    options: argparse.Namespace,
    task: Task | Callable[..., Task],
    optimizer: Callable[..., optax.GradientTransformation],
    executor: Executor | None,
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
            early_stopping=_early_stopping(options, task, space),
            groups=group_rules(options),
            results=results,
            storage=storage,
            executor=executor,
            progress=terminal,
            callbacks=() if terminal else (_log_trial(trials),),
            **{name: getattr(options, name) for name in names},
        )


def _early_stopping(
    options: argparse.Namespace, task: Task | Callable[..., Task], space: Mapping[str, Range]
) -> EarlyStopping | None:
    """Return the rule of --patience; a task that is made of values says with some which is best."""
    if options.patience is None:
        return None
    if not isinstance(task, Task):
        accepted = inspect.signature(task).parameters
        task = task(**{name: values.at(0.5) for name, values in space.items() if name in accepted})
    return early_stopping(task, options.patience)


def _log_trial(trials: int) -> Callable[[Trial], None]:
    """Return a callback that writes a line for every eighth of the trials."""
    progress, count_ended = Progress(trials, lines=8), 0

    def on_trial(trial: Trial) -> None:
        nonlocal count_ended
        count_ended += 1
        if progress.shows(count_ended):
            log(f"{count_ended} of {trials} trials")

    return on_trial


def _show(options: argparse.Namespace, result: Sweep, folder: Path) -> None:
    if not result.trials:
        raise UsageError(f"all {result.missing} trials still run elsewhere; call again later")
    arguments = {name: getattr(options, name) for name in WORDS}
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
