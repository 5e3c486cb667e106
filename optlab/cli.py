"""The `optlab` command: what the lab does, by name and from a shell.

A command is a function `_add_<command>` that declares its options and a function that runs it.
Whatever the user can get wrong is a `UsageError`: one line on stderr, exit status 2.
"""

import argparse
import difflib
import importlib
import inspect
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from optlab import __version__, plots
from optlab.lab import Comparison, Task, compare, tasks
from optlab.lab._extras import needs_extra
from optlab.registry import OPTIMIZERS

TASKS: Mapping[str, Callable[..., Task]] = {
    "digits-mlp": tasks.digits_mlp,
    "digits-cnn": tasks.digits_cnn,
    "valley": tasks.valley,
}

COMPARED = "sgd,momentum,adagrad,rmsprop,adam,adamw"
"""The optimizers compared unless others are named."""

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
        # The interpreter flushes stdout once more as it ends, and must not fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


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
        epilog="optimizers:\n"
        + "\n".join(f"  {name:<14}{row.summary}" for name, row in OPTIMIZERS.items()),
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
    _require("matplotlib", "rich")
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
    files = _write(comparison, results, options.out)
    if options.json:
        print(results)
    else:
        print(comparison.table(), "", comparison.verdict(), "", f"Wrote {files}", sep="\n")
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
    close = difflib.get_close_matches(name, known)
    hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
    raise UsageError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")


def _require(*modules: str) -> None:
    with needs_extra("compare"):
        for module in modules:
            importlib.import_module(module)


def _check_writable(folder: Path) -> None:
    with _write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write to {error.filename or str(folder)!r}: {error.strerror}; "
            "choose another folder with --out"
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
    return [name.strip() for name in text.split(",")]


def _rates(text: str) -> list[float]:
    if ":" not in text:
        return [_rate(part) for part in text.split(",")]
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
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"a rate must be above 0, got {text!r}")
    return rate


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
    return int(text)
