"""The `optlab` command: what the lab does, by name and from a shell.

A command is a function `_add_<command>` that declares its options and a function that runs it.
Whatever the user can get wrong is a `UsageError`: one line on stderr, exit status 2.
"""

import argparse
import importlib
import inspect
import io
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from optlab import __version__, plots, schedules
from optlab._expressions import evaluate, suggestions
from optlab._types import Schedule
from optlab.dialects._table import TABLES as DIALECT_TABLES
from optlab.dialects._table import table as dialect_table
from optlab.lab import Comparison, Task, compare, lr_range_test, tasks
from optlab.lab._extras import needs_extra
from optlab.lab._range_test import LEAST_STEPS, MODES
from optlab.registry import OPTIMIZERS, SCHEDULES
from optlab.schedules import OneCycle

TASKS: Mapping[str, Callable[..., Task]] = {
    "digits-mlp": tasks.digits_mlp,
    "digits-cnn": tasks.digits_cnn,
    "valley": tasks.valley,
}

COMPARED = "sgd,momentum,adagrad,rmsprop,adam,adamw"
"""The optimizers compared unless others are named."""

SCHEDULE_FUNCTIONS: Mapping[str, Callable[..., Schedule | OneCycle]] = {
    name: getattr(schedules, name) for name in (row.split(".")[0] for row in SCHEDULES)
}
"""What an expression may call, by name; a cycle, which has two rows, makes both its schedules."""

PLOT_FORMATS = (".png", ".svg", ".pdf")

LEAST_RATE, LARGEST_RATE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

OK, USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 0, 2, 130, 141
"""Exit statuses, the last two as shells report a process that SIGINT or SIGPIPE ended."""


class UsageError(Exception):
    """What was asked for cannot be done; the message says why in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the arguments; None for those of the process.

    Raises:
        SystemExit: after --help and --version, with status 0.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # “±” on a terminal that has no such letter
    try:
        options = _parser().parse_args(argv)
        status = options.run(options)
        sys.stdout.flush()
    except (UsageError, ModuleNotFoundError) as error:
        print("optlab:", " ".join(str(error).split()), file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("optlab: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
        return BROKEN_PIPE
    except OSError as error:
        print(f"optlab: cannot write the output: {error.strerror}", file=sys.stderr)
        _give_up_stdout()
        return USAGE_ERROR
    return status


def _give_up_stdout() -> None:
    """Let the interpreter, which flushes stdout once more as it ends, not fail there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parser() -> _Parser:
    parser = _Parser(
        prog="optlab",
        description="Choose and debug optimizers for JAX models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"optlab {__version__}")
    parser.set_defaults(run=lambda options: _print_help(parser))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_compare(commands)
    _add_lr_range(commands)
    _add_plot_schedule(commands)
    _add_dialects(commands)
    return parser


def _print_help(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return USAGE_ERROR


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="train with several optimizers over a grid of learning rates and compare them",
        description="Train a model with each optimizer, at every learning rate and from every\n"
        "seed, all runs of an optimizer in one compiled program. The best rate is\n"
        "chosen on validation; the test score is only reported.",
        epilog="optimizers:\n" + _optimizer_list(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--task",
        default="digits-mlp",
        metavar="NAME",
        help=f"what to train: {', '.join(TASKS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--optimizers",
        type=_names,
        default=COMPARED,
        metavar="NAMES",
        help="which, separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--rates",
        type=_rates,
        default="1e-4:10:11",
        metavar="RATES",
        help="learning rates separated by commas, such as 1e-3,1e-2, or LOW:HIGH:COUNT for COUNT "
        "rates evenly spaced on a log scale, both ends included (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=_count,
        default=3,
        metavar="N",
        help="runs at each rate, from different initializations and batches (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=_count, metavar="N", help="optimizer updates a run (default: the task's)"
    )
    parser.add_argument(
        "--batch-size", type=_count, metavar="N", help="examples a batch (default: the task's)"
    )
    parser.add_argument(
        "--target",
        type=_number,
        metavar="SCORE",
        help="report how many updates it takes to reach this score (default: the task's)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("optlab-compare"),
        metavar="FOLDER",
        help="where to write results.json and the plots (default: %(default)s)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the results as JSON instead of the table, and nothing else on stdout",
    )
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    optimizers = {name: _look_up("optimizer", name, OPTIMIZERS).make for name in options.optimizers}
    task = _make_task(options.task, options.batch_size)
    num_steps = options.steps or task.num_steps
    _require("compare", "matplotlib", "rich")
    _check_writable(options.out)
    _log(
        f"{task.name}: {len(optimizers)} optimizers × {len(options.rates)} rates × "
        f"{options.seeds} seeds, {num_steps} updates each"
    )
    with _progress(list(optimizers), num_steps) as on_progress:
        comparison = compare(
            task,
            optimizers,
            rates=options.rates,
            seeds=options.seeds,
            num_steps=num_steps,
            target=options.target,
            on_progress=on_progress,
        )
    chosen = {
        name: getattr(options, name)
        for name in ("task", "optimizers", "rates", "seeds", "batch_size", "target")
    }
    results = comparison.to_json(options={**chosen, "steps": num_steps})
    if options.json:
        print(results)
    else:
        print(comparison.table(), "", comparison.verdict(), sep="\n")
    files = _write(comparison, results, options.out)
    if not options.json:
        print("", f"Wrote {files}", sep="\n")
    return OK


def _write(comparison: Comparison, results: str, folder: Path) -> str:
    """Write the results and their plots, and say which files those are."""
    figures = {
        "curves.png": plots.plot_curves(comparison).figure,
        "sensitivity.png": plots.plot_sensitivity(comparison).figure,
    }
    if comparison.task == "valley":
        figures["paths.png"] = plots.plot_path_panels(comparison)
    with _write_errors(folder):
        (folder / "results.json").write_text(results + "\n", encoding="utf-8")
        for name, figure in figures.items():
            figure.savefig(folder / name)
    return f"{folder / 'results.json'}, {', '.join(figures)}"


def _add_lr_range(commands: Any) -> None:
    parser = commands.add_parser(
        "lr-range",
        help="raise the learning rate over a short run and suggest where to train",
        description="Raise the learning rate over a short run, from several seeds in one compiled\n"
        "program, and suggest a range of rates by where the loss falls. Says so where\n"
        "the curves allow no reliable suggestion.",
        epilog="optimizers:\n" + _optimizer_list(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--task",
        default="digits-mlp",
        metavar="NAME",
        help=f"what to train: {', '.join(TASKS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--optimizer", default="adam", metavar="NAME", help="with what (default: %(default)s)"
    )
    parser.add_argument(
        "--min-lr",
        type=_rate,
        default=1e-7,
        metavar="RATE",
        help="the first learning rate (default: %(default)s)",
    )
    parser.add_argument(
        "--max-lr",
        type=_rate,
        default=10.0,
        metavar="RATE",
        help="the last learning rate (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=_count,
        default=100,
        metavar="N",
        help="optimizer updates, one at each rate (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=_count,
        default=5,
        metavar="N",
        help="runs, from different initializations and batches (default: %(default)s)",
    )
    parser.add_argument(
        "--mode",
        default=MODES[0],
        metavar="MODE",
        help=f"{' or '.join(MODES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("lr-range.png"),
        metavar="FILE",
        help=f"where to draw, a file in {', '.join(PLOT_FORMATS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the results as JSON instead of the table, and nothing else on stdout",
    )
    parser.set_defaults(run=_lr_range)


def _lr_range(options: argparse.Namespace) -> int:
    optimizer = _look_up("optimizer", options.optimizer, OPTIMIZERS).make
    if options.mode not in MODES:
        hint = suggestions(options.mode, MODES)
        raise UsageError(f"unknown mode {options.mode!r}{hint} (known: {', '.join(MODES)})")
    if options.min_lr >= options.max_lr:
        raise UsageError(
            f"--min-lr must be below --max-lr, got {options.min_lr:g} and {options.max_lr:g}"
        )
    if options.steps < LEAST_STEPS:
        raise UsageError(f"argument --steps: expected at least {LEAST_STEPS}, got {options.steps}")
    task = _make_task(options.task, None)
    _check_plot_format(options.out)
    _require("lr-range", "matplotlib")
    _check_writable_file(options.out)
    asked = ("min_lr", "max_lr", "steps", "seeds", "mode")
    found = lr_range_test(task, optimizer, **{name: getattr(options, name) for name in asked})
    label = f"{options.optimizer} on {task.name}"
    if options.json:
        print(found.to_json(optimizer=options.optimizer))
    else:
        print(found.title(label), found.table(), sep="\n\n")
    figure = found.plot(label=label).figure
    with _write_errors(options.out, "file"):
        figure.savefig(options.out)
    if not options.json:
        print("", f"Wrote {options.out}", sep="\n")
    return OK


def _optimizer_list() -> str:
    return "\n".join(f"  {name:<14}{row.summary}" for name, row in OPTIMIZERS.items())


def _add_plot_schedule(commands: Any) -> None:
    parser = commands.add_parser(
        "plot-schedule",
        help="draw schedules and print their values at the knots",
        description="Draw schedules, one or several, each written as a call in quotes:\n\n"
        '  optlab plot-schedule "warmup_cosine(1e-3, warmup_steps=100, decay_steps=1000)"\n'
        '  optlab plot-schedule "warmup(inverse_sqrt(1e-3), 100)" "one_cycle(1e-2, 500)"\n\n'
        "and print the values at the knots, where the formula changes or ends. The value\n"
        "at step t is that of the update that comes after t others. Expressions are read,\n"
        "never run: calls of the schedules below, with numbers, strings and lists.",
        epilog="schedules:\n" + "\n".join(map(_schedule_help, SCHEDULE_FUNCTIONS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "expressions", nargs="+", metavar="SCHEDULE", help="a schedule, as a call in quotes"
    )
    parser.add_argument(
        "--steps",
        type=_count,
        metavar="N",
        help="the last step shown (default: the last knot, or 1000 where there is none)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("schedule.png"),
        metavar="FILE",
        help=f"where to draw, a file in {', '.join(PLOT_FORMATS)} (default: %(default)s)",
    )
    parser.set_defaults(run=_plot_schedule)


def _schedule_help(name: str) -> str:
    row = next(row for row in SCHEDULES.values() if row.name.split(".")[0] == name)
    parameters = inspect.signature(SCHEDULE_FUNCTIONS[name]).parameters.values()
    takes = ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)
    return f"  {name}({takes})\n      {row.summary}"


def _plot_schedule(options: argparse.Namespace) -> int:
    _check_plot_format(options.out)
    try:
        drawn = {
            text: evaluate(text, SCHEDULE_FUNCTIONS, "schedule") for text in options.expressions
        }
        steps = options.steps or _last_knot(drawn.values())
        _require("plot-schedule", "matplotlib")
        _check_writable_file(options.out)
        figure = plots.plot_schedules(drawn, steps=steps).figure
        tables = [_knot_table(text, schedule, steps) for text, schedule in drawn.items()]
    except OverflowError as error:
        raise UsageError(f"a number is too large: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(str(error)) from error
    with _write_errors(options.out, "file"):
        figure.savefig(options.out)
    print(*tables, f"Wrote {options.out}", sep="\n\n")
    return OK


def _add_dialects(commands: Any) -> None:
    parser = commands.add_parser(
        "dialects",
        help="show how the frameworks differ in one rule",
        description="Show rules as PyTorch, Keras 3, TensorFlow 1, Optax and optlab write them,\n"
        "with the names and defaults of their arguments. optlab.dialects has them all.",
        epilog=f"rules: {', '.join(DIALECT_TABLES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "rules", nargs="*", metavar="RULE", help="which rules to show (default: all)"
    )
    parser.set_defaults(run=_dialects)


def _dialects(options: argparse.Namespace) -> int:
    for name in options.rules:
        _look_up("rule", name, DIALECT_TABLES)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    tables = [dialect_table(name, width) for name in options.rules or DIALECT_TABLES]
    print("\n\n\n".join(tables))
    return OK


def _curves(schedule: Schedule | OneCycle) -> Mapping[str, Schedule]:
    if isinstance(schedule, OneCycle):
        return {"learning rate": schedule.learning_rate, "momentum": schedule.momentum}
    return {"value": schedule}


def _last_knot(drawn: Iterable[Schedule | OneCycle]) -> int:
    knots = [curve.knots[-1] for schedule in drawn for curve in _curves(schedule).values()]
    return math.ceil(max(knots)) or 1000


def _knot_table(text: str, schedule: Schedule | OneCycle, last: int) -> str:
    """Return the values at the first step, the knots and the last step, as aligned text."""
    curves = _curves(schedule)
    knots = {knot for curve in curves.values() for knot in curve.knots}
    steps = sorted({0, last, *(knot for knot in knots if knot < last)})
    columns = [["step", *(f"{step:.10g}" for step in steps)]]
    columns += [
        [name, *(f"{float(curve(step)) + 0.0:.6g}" for step in steps)]
        for name, curve in curves.items()
    ]
    widths = [max(map(len, column)) for column in columns]
    lines = [text.strip()]
    for step, *values in zip(*columns, strict=True):
        cells = (value.ljust(width) for value, width in zip(values, widths[1:], strict=True))
        lines.append("  ".join(["", step.rjust(widths[0]), *cells]).rstrip())
    beyond = [f"{knot:.10g}" for knot in sorted(knots) if knot > last]
    if beyond:
        lines.append(f"  later knots, not shown: {', '.join(beyond)}")
    return "\n".join(lines)


def _make_task(name: str, batch_size: int | None) -> Task:
    make = _look_up("task", name, TASKS)
    if batch_size is None:
        return make()
    if "batch_size" not in inspect.signature(make).parameters:
        raise UsageError(f"the task {name!r} has no batches; leave out --batch-size")
    try:
        return make(batch_size=batch_size)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _look_up(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if name in known:
        return known[name]
    hint = suggestions(name, known)
    raise UsageError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")


def _require(command: str, *modules: str) -> None:
    with needs_extra(command):
        for module in modules:
            importlib.import_module(module)


def _check_plot_format(file: Path) -> None:
    if file.suffix not in PLOT_FORMATS:
        raise UsageError(
            f"argument --out: expected a file in {', '.join(PLOT_FORMATS)}, got '{file}'"
        )


def _check_writable(folder: Path) -> None:
    with _write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def _check_writable_file(file: Path) -> None:
    if file.exists():
        with _write_errors(file, "file"), file.open("ab"):
            return
    with _write_errors(file, "file"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass


@contextmanager
def _write_errors(path: Path, what: str = "folder") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write to {error.filename or str(path)!r}: {error.strerror}; "
            f"choose another {what} with --out"
        ) from error


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _progress(labels: Sequence[str], num_steps: int) -> Iterator[Callable[[str, int], None]]:
    """Show how far the runs are: a bar on a terminal, else a line as each optimizer ends."""
    if not sys.stderr.isatty():
        yield _line_progress(num_steps)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"compiling {labels[0]}", total=len(labels) * num_steps)

        def on_progress(label: str, step: int) -> None:
            done = labels.index(label) * num_steps + step
            progress.update(bar, description=label, completed=done)

        yield on_progress


def _line_progress(num_steps: int) -> Callable[[str, int], None]:
    began = time.perf_counter()

    def on_progress(label: str, step: int) -> None:
        nonlocal began
        if step == num_steps:
            now = time.perf_counter()
            _log(f"{label}: {now - began:.1f} s")
            began = now

    return on_progress


def _names(text: str) -> list[str]:
    return _once([name.strip() for name in text.split(",")])


def _rates(text: str) -> list[float]:
    if ":" not in text:
        return _once([_rate(part) for part in text.split(",")])
    match text.split(":"):
        case low, high, count if count.isdecimal() and 2 <= int(count) <= 1000:
            low, high = _rate(low), _rate(high)
        case _:
            raise argparse.ArgumentTypeError(
                "a range must read LOW:HIGH:COUNT with COUNT from 2 to 1000, such as 1e-4:10:11, "
                f"got {text!r}"
            )
    if low >= high:
        raise argparse.ArgumentTypeError(f"LOW must be below HIGH in LOW:HIGH:COUNT, got {text!r}")
    return np.geomspace(low, high, int(count)).tolist()


def _rate(text: str) -> float:
    rate = _number(text)
    if not LEAST_RATE <= rate <= LARGEST_RATE:
        raise argparse.ArgumentTypeError(
            f"a rate must be from {LEAST_RATE:.2g} to {LARGEST_RATE:.2g}, got {text!r}"
        )
    return rate


def _once(values: list[Any]) -> list[Any]:
    for value in values:
        if values.count(value) > 1:
            raise argparse.ArgumentTypeError(f"{value} is there twice")
    return values


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number such as 1e-3, got {text!r}")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    if int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number below 2**31, got {text!r}")
    return int(text)
