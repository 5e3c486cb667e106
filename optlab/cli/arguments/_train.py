"""The options of `optlab train`."""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from optlab._domains import DECAY, Domain
from optlab.cli._errors import UsageError, check_known
from optlab.cli._known import OPTIMIZERS
from optlab.cli._options import (
    add_json,
    add_optimizer,
    add_out_folder,
    add_patience,
    add_seed,
    add_steps,
    add_task,
    add_updates,
    check_call,
    check_schedule,
    check_settings,
    check_task_name,
    count,
    declare,
    folder,
    folder_or_bucket,
    natural,
    optimizer_list,
    rate,
    runs,
    within,
)
from optlab.cli._output import check_place
from optlab.cli.arguments._groups import add_groups, check_groups

WIDTHS = Domain("in (0, 1/√12]", 0, 12**-0.5, open_low=True)

FORMS = {
    "ema": ("DECAY", within("DECAY", DECAY)),
    "uniform": ("START", natural),
    "power": ("WIDTH", within("WIDTH", WIDTHS)),
    "lawa": ("K", count),
}
"""The averages by name, each with the name and the reader of its number."""

WITHOUT = ("patience", "checkpoints", "tensorboard", "average")
"""Options of a single run, which an ensemble cannot have."""


class Average(NamedTuple):
    """The value of --average.

    Attributes:
        name: a name of `FORMS`.
        value: its number.
    """

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}:{self.value:g}"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        check,
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
    add_updates(parser)
    add_steps(parser, "optimizer updates (default: the task's)")
    add_seed(parser, "seed of the run")
    add_patience(parser, "the run", "return to the best parameters")
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
    _add_many_weights(parser)
    files = "history.json and history.png, or ensemble.json and ensemble.png"
    add_out_folder(parser, "optlab-train", files)
    add_json(parser)
    add_groups(parser)


def _add_many_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ensemble",
        type=runs,
        metavar="N",
        help="train N models from the seeds --seed, --seed + 1, … at once, and judge their "
        "combined predictions",
    )
    parser.add_argument(
        "--snapshots",
        type=runs,
        metavar="N",
        help="take N models from one run, each before the rate restarts, and judge their combined "
        "predictions; a --rate without a schedule falls on a cosine N times",
    )
    parser.add_argument(
        "--average",
        type=average,
        metavar="HOW",
        help=f"average the parameters as well, and score the average beside the last ones, or with "
        f"--patience judge and keep it in their place; one of {_forms()}: exponential, uniform "
        "from update START on, by a power of the update with this relative width, or over the last "
        "K evaluations",
    )


def average(text: str) -> Average:
    """Read NAME:NUMBER, an average."""
    name, colon, value = text.partition(":")
    if not colon or name not in FORMS:
        raise argparse.ArgumentTypeError(f"expected one of {_forms()}, got {text!r}")
    return Average(name, FORMS[name][1](value))


def _forms() -> str:
    return ", ".join(f"{name}:{value}" for name, (value, _) in FORMS.items())


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not fit."""
    check_known("optimizer", options.optimizer, OPTIMIZERS)
    check_task_name(options)
    check_settings(options)
    check_rate(options)
    check_schedule(options)
    check_groups(options)
    _check_many_weights(options)
    for name in ("keep", "take_over"):
        if getattr(options, name) and options.checkpoints is None:
            raise UsageError(f"--{name.replace('_', '-')} needs --checkpoints")
    check_place(options.out)


def check_rate(options: argparse.Namespace, names: Mapping[str, Any] | None = None) -> set[str]:
    """Require a rate, or a schedule of it, in --rate; return which names it uses.

    Args:
        options: the options.
        names: names that the schedule may use, each with a value.
    """
    if "(" in options.rate:
        if options.schedule is not None:
            raise UsageError(
                "--rate is a schedule already, and so is --schedule; leave out one of them"
            )
        return check_call("--rate", options.rate, names)
    try:
        rate(options.rate)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"argument --rate: {error}") from error
    return set()


def _check_many_weights(options: argparse.Namespace) -> None:
    if options.ensemble and options.snapshots:
        raise UsageError("--ensemble and --snapshots exclude each other; leave out one of them")
    for name in ("ensemble", "snapshots"):
        for other in WITHOUT:
            if getattr(options, name) and getattr(options, other) is not None:
                raise UsageError(
                    f"--{name} cannot go with --{other}, which is for a single run; leave it out"
                )
