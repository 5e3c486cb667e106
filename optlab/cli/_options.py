"""Options that several commands share, and functions that read their values."""

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from optlab._paths import file_of, folder_of
from optlab.cli._output import PLOT_FORMATS
from optlab.cli._tasks import FORM, TASKS
from optlab.registry import BY_NAME

LEAST_RATE, LARGEST_RATE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def declare(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    *,
    description: str,
    epilog: str,
) -> None:
    """Say what a command does.

    Args:
        parser: the parser of the command.
        run: called with the parsed options.
        description: lines at the beginning of the command's own help, printed unchanged.
        epilog: lines at the end of the command's own help, printed unchanged.
    """
    parser.description, parser.epilog = description, epilog
    parser.set_defaults(run=run)


def optimizer_list() -> str:
    """Return the optimizers with their formulas, for the end of a help."""
    rows = (f"  {name:<14}{row.summary}" for name, row in BY_NAME.items())
    return "optimizers:\n" + "\n".join(rows)


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add --task, for `make_task`."""
    parser.add_argument(
        "--task",
        default="digits-mlp",
        metavar="NAME",
        help=f"the task to train: {', '.join(TASKS)}, or {FORM} for your own, which is a Task "
        "or a function that returns one (default: %(default)s)",
    )


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """Add --batch-size, for `make_task`."""
    parser.add_argument(
        "--batch-size", type=count, metavar="N", help="examples per batch (default: the task's)"
    )


def add_optimizer(parser: argparse.ArgumentParser) -> None:
    """Add --optimizer, a name in `BY_NAME`."""
    parser.add_argument(
        "--optimizer", default="adam", metavar="NAME", help="the optimizer (default: %(default)s)"
    )


def add_seeds(parser: argparse.ArgumentParser, default: int, runs: str = "runs") -> None:
    """Add --seeds.

    Args:
        parser: the parser to add it to.
        default: the default number of seeds.
        runs: the meaning of the number, for the help: "runs at each rate".
    """
    parser.add_argument(
        "--seeds",
        type=count,
        default=default,
        metavar="N",
        help=f"{runs}, from different initializations and batches (default: %(default)s)",
    )


def add_seed(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add --seed, a whole number; `meaning` is the beginning of its help."""
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N", help=f"{meaning} (default: %(default)s)"
    )


def add_steps(parser: argparse.ArgumentParser, meaning: str, default: int | None = None) -> None:
    """Add --steps; `meaning` is its help, including what the default None means."""
    parser.add_argument("--steps", type=count, default=default, metavar="N", help=meaning)


def add_out_folder(parser: argparse.ArgumentParser, default: str, files: str) -> None:
    """Add --out, a folder for `files`."""
    parser.add_argument(
        "--out",
        type=folder,
        default=Path(default),
        metavar="FOLDER",
        help=f"where to write {files} (default: %(default)s)",
    )


def add_out_plot(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --out, the file of a plot."""
    parser.add_argument(
        "--out",
        type=file,
        default=Path(default),
        metavar="FILE",
        help=f"the file of the plot, in {', '.join(PLOT_FORMATS)} (default: %(default)s)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the results as JSON instead of the table, and nothing else on stdout",
    )


def names(text: str) -> list[str]:
    """Read names separated by commas."""
    return _once([name.strip() for name in text.split(",")])


def rates(text: str) -> list[float]:
    """Read learning rates separated by commas, or LOW:HIGH:COUNT."""
    if ":" not in text:
        return _once([rate(part) for part in text.split(",")])
    match text.split(":"):
        case low, high, number_of if number_of.isdecimal() and 2 <= int(number_of) <= 1000:
            low, high = rate(low), rate(high)
        case _:
            raise argparse.ArgumentTypeError(
                "a range must read LOW:HIGH:COUNT with COUNT from 2 to 1000, such as 1e-4:10:11, "
                f"got {text!r}"
            )
    if low >= high:
        raise argparse.ArgumentTypeError(f"LOW must be below HIGH in LOW:HIGH:COUNT, got {text!r}")
    return np.geomspace(low, high, int(number_of)).tolist()


def rate(text: str) -> float:
    """Read a learning rate, a normal number of float32."""
    value = number(text)
    if not LEAST_RATE <= value <= LARGEST_RATE:
        raise argparse.ArgumentTypeError(
            f"a rate must be from {LEAST_RATE:.2g} to {LARGEST_RATE:.2g}, got {text!r}"
        )
    return value


def number(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number such as 1e-3, got {text!r}")
    return value


def count(text: str) -> int:
    """Read a whole number, ≥ 1 and below 2**31."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    if int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number below 2**31, got {text!r}")
    return int(text)


def natural(text: str) -> int:
    """Read a whole number, ≥ 0 and below 2**31."""
    return 0 if text == "0" else count(text)


def folder(text: str) -> Path:
    """Read a folder on this machine."""
    return Path(_place(folder_of, text))


def folder_or_bucket(text: str) -> Path | str:
    """Read a folder on this machine, or an address that begins with gs://."""
    return _place(partial(folder_of, addresses=["gs://"]), text)


def file(text: str) -> Path:
    """Read a file on this machine."""
    return Path(_place(file_of, text))


def scalar(text: str) -> float | int | bool | str | None:
    """Read a number, true, false or none; anything else is a string."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for read in (int, float):
        with suppress(ValueError):
            return read(text)
    return text


def named(read: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Return a reader of NAME=VALUE, the value read by `read`."""

    def read_named(text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier() and value):
            raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
        return name, read(value)

    return read_named


def _place(read: Callable[[str, str, str], Path | str], text: str) -> Path | str:
    """Return the place that `read` returns, but a relative path as it was written."""
    try:
        place = read("optlab", "the path", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("optlab: ")) from error
    return place if isinstance(place, str) or text.startswith("~") else Path(text)


def _once(values: list[Any]) -> list[Any]:
    for value in values:
        if values.count(value) > 1:
            raise argparse.ArgumentTypeError(f"values must differ, got {value} twice")
    return values
