"""The options of `optlab sweep`."""

import argparse
import inspect
import re
from typing import Any

from optlab.cli._errors import UsageError, check_known, value_errors
from optlab.cli._known import OPTIMIZERS, SEARCHES
from optlab.cli._options import (
    RATE,
    add_json,
    add_optimizer,
    add_out_folder,
    add_patience,
    add_results,
    add_seed,
    add_steps,
    add_task,
    add_updates,
    arguments_of,
    check_argument_name,
    check_schedule,
    check_seeds,
    check_settings,
    check_task_name,
    complete_with,
    declare,
    named,
    optimizer_list,
    owners_of,
    runs,
    several,
)
from optlab.cli._output import check_place
from optlab.cli._ranges import Typed, read_range
from optlab.cli.arguments._groups import add_groups, check_groups
from optlab.cli.arguments._train import check_rate

RATES = f"{RATE}=1e-4:1e-1:log"
"""The range of the learning rate, unless something else is said of it."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        check,
        description="Search hyperparameters of an optimizer and a task for the best validation\n"
        "score, many trials in one compiled program:\n\n"
        f"  optlab sweep --space {RATES} \\\n"
        "      --space weight_decay=1e-6:1e-3:log --space batch_size=16,32,64\n\n"
        "Each name is an argument of the optimizer, or of the function that makes the\n"
        "task. A sweep with --results that was stopped, in any way, continues from there\n"
        "when it is called again. The test split is never used.",
        epilog=optimizer_list(),
    )
    add_task(parser)
    add_optimizer(parser)
    action = parser.add_argument(
        "--space",
        type=named(read_range),
        action="append",
        metavar="NAME=RANGE",
        help="a hyperparameter and its range, may be repeated: LOW:HIGH for real numbers, "
        "LOW:HIGH:log for equally many in each decade, LOW:HIGH:int for whole numbers (also "
        "LOW:HIGH:int:log), or choices separated by commas, such as 16,32,64 or yes,no "
        f"(default, also where no range and no --rate is given of it: {RATES})",
    )
    action.completer = _names_in_a_space
    parser.add_argument(
        "--rate",
        metavar="RATE",
        help="in place of a range, the learning rate of all trials, or a schedule of it in which "
        "names of --space may stand for numbers",
    )
    add_updates(parser)
    parser.add_argument(
        "--trials",
        type=runs,
        default=32,
        metavar="N",
        help="the number of trials (default: %(default)s)",
    )
    action = parser.add_argument(
        "--search",
        default="halton",
        metavar="HOW",
        help=f"the method, one of {', '.join(SEARCHES)} (default: %(default)s)",
    )
    complete_with(action, SEARCHES)
    parser.add_argument(
        "--halving",
        type=several,
        metavar="N",
        help="at each rung, continue only the best of every N trials (default: continue all)",
    )
    parser.add_argument(
        "--refine",
        type=runs,
        metavar="N",
        help="search again with N trials, in a smaller space around the best ones",
    )
    add_steps(parser, "optimizer updates per trial (default: the task's)")
    add_patience(parser, "each run of a trial", "judge it by its best evaluation")
    parser.add_argument(
        "--seeds",
        type=runs,
        default=1,
        metavar="N",
        help="runs of each trial, with different initializations and batches "
        "(default: %(default)s)",
    )
    add_seed(parser, "seed of the search, and the first of the runs")
    add_results(parser, "trials", "; with --refine, those of the second search are in FILE.refined")
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="with --search bayes, an Optuna storage on which several processes work together",
    )
    parser.add_argument(
        "--dask",
        type=scheduler,
        metavar="ADDRESS",
        help="run the trials on the workers of this dask.distributed scheduler, such as "
        "tcp://10.0.0.5:8786; they need optlab, and the module of --task",
    )
    add_out_folder(parser, "optlab-sweep", "results.json, trials.csv and sweep.png")
    add_json(parser)
    add_groups(parser)


def scheduler(text: str) -> str:
    """Read the address of a scheduler of dask."""
    if not re.fullmatch(r"((tcp|tls|ucx|wss?)://)?(\[[0-9a-fA-F:.]+\]|[^\s/:]+):\d+", text):
        raise argparse.ArgumentTypeError(
            f"expected the address of a scheduler, such as tcp://10.0.0.5:8786, got {text!r}"
        )
    return text


def _names_in_a_space(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    return [f"{name}=" for name in arguments_of(parsed_args)]


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not fit; complete the space."""
    check_known("search", options.search, SEARCHES)
    check_known("optimizer", options.optimizer, OPTIMIZERS)
    check_task_name(options)
    check_settings(options)
    options.space = _space(options)
    names = {name: entry.example for name, entry in options.space.items()}
    options.in_schedules = check_schedule(options, names)
    if options.rate is not None:
        options.in_schedules |= check_rate(options, names)
    for name, entry in options.space.items():
        check_range(options, name, entry)
    check_groups(options)
    _check_search(options)
    check_place(options.out)


def _space(options: argparse.Namespace) -> dict[str, Typed]:
    """Return the space, name → range, with the default range of the rate where there is none."""
    named_ranges = options.space or []
    space = dict(named_ranges)
    for name in space:
        if [other for other, _ in named_ranges].count(name) > 1:
            raise UsageError(f"argument --space: names must differ, got {name} twice")
    known = arguments_of(options)
    space = {name: entry.read_for(known.get(name)) for name, entry in space.items()}
    if options.rate is not None and RATE in space:
        raise UsageError(f"{RATE} is in --space and in --rate; leave out one of them")
    if options.rate is not None and not space:
        raise UsageError("argument --space: with --rate, another hyperparameter must be given")
    argument = known[RATE]
    needs_rate = argument is not None and argument.default is inspect.Parameter.empty
    if options.rate is None and RATE not in space and (needs_rate or not space):
        name, entry = named(read_range)(RATES)
        space = {name: entry, **space}
    return space


def check_range(options: argparse.Namespace, name: str, entry: Typed) -> None:
    """Refuse a range of a name that is set elsewhere or that nothing has, and refused values."""
    if name in dict(options.set):
        raise UsageError(f"{name} is in --space and in --set; leave out one of them")
    if name == "batch_size" and options.batch_size is not None:
        raise UsageError("batch_size is in --space and in --batch-size; leave out one of them")
    owners = owners_of(options, name)
    if not owners and name not in options.in_schedules:
        check_argument_name("argument --space", options, name, arguments_of(options))
    for who, argument in owners:
        try:
            with value_errors():
                entry.check(who, argument)
        except UsageError as error:
            raise UsageError(f"argument --space: {error}") from error


def _check_search(options: argparse.Namespace) -> None:
    """Refuse ways of a search that exclude each other, in the words of the command line."""
    if options.storage is not None and options.search != "bayes":
        raise UsageError("--storage needs --search bayes")
    if options.storage is not None and options.results is not None:
        raise UsageError(
            "--storage and --results exclude each other, as the storage keeps the results; "
            "leave out one of them"
        )
    if options.search == "bayes" and options.halving is not None:
        raise UsageError("--halving cannot go with --search bayes, which learns from whole runs")
    if options.dask is not None and options.search == "bayes":
        raise UsageError(
            "--dask cannot go with --search bayes, which learns from one batch of trials before it "
            "asks for the next; start the command on each machine, with one --storage"
        )
    check_seeds(options)
