"""The options of `optlab tune`."""

import argparse
import re

from optlab.cli._errors import UsageError, check_known
from optlab.cli._known import OPTIMIZERS
from optlab.cli._options import (
    FORM,
    add_json,
    add_out_folder,
    add_seed,
    add_steps,
    add_task,
    add_updates,
    arguments_of,
    check_form,
    check_settings,
    check_task_name,
    complete_list_with,
    declare,
    named,
    names,
    runs,
)
from optlab.cli._output import check_place
from optlab.cli._ranges import Typed, read_range
from optlab.cli.arguments._sweep import check_range

BUDGET = re.compile(r"(\d+(\.\d*)?|\.\d+) ?(s|m|h|updates|trials)?")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        check,
        description="Go from a model to a tuned run in seven steps: the loss before training,\n"
        "memorizing a batch, learning rates, a coarse search, a refinement, the learning\n"
        "curves, and finals with schedules over several seeds.\n\n"
        "  optlab tune --task mypackage.mymodule:task --budget 10m\n\n"
        "The folder holds report.html, report.md, recipe.py, which trains the winner, and\n"
        "all runs. The same command goes on from there, if it was stopped in any way. The\n"
        "test split is used once, for the winner.",
        epilog="A step that fails ends the procedure; its advice says what to do.",
    )
    add_task(parser)
    parser.add_argument(
        "--budget",
        type=budget,
        default="10m",
        metavar="TIME",
        help="what all steps may cost: 90s, 10m or 2h of wall time, '20000 updates' over all runs, "
        "or '40 trials', which are that many whole runs; a number alone is in minutes "
        "(default: %(default)s)",
    )
    action = parser.add_argument(
        "--optimizers",
        type=names,
        metavar="NAMES",
        help=f"names of optimizers, separated by commas; {FORM} is a function of your own that "
        "takes learning_rate (default: adamw, and SGD with Nesterov's momentum)",
    )
    complete_list_with(action, OPTIMIZERS)
    action = parser.add_argument(
        "--space",
        type=named(read_range),
        action="append",
        default=[],
        metavar="NAME=RANGE",
        help="a hyperparameter and its range, as for optlab sweep, in place of the range that is "
        "chosen, or beside it; may be repeated",
    )
    action.completer = _names_in_a_space
    add_updates(parser, schedule=False)
    add_steps(parser, "optimizer updates of a whole run (default: the task's)")
    add_seed(parser, "seed of the search, and the first of the runs")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="be content with one optimizer, and with fewer and shorter runs",
    )
    parser.add_argument(
        "--go-on", action="store_true", help="go on after a check before the training that failed"
    )
    parser.add_argument(
        "--ensemble",
        type=runs,
        default=0,
        metavar="N",
        help="judge a deep ensemble of N models of the winner, 3 to 5 say (default: none)",
    )
    add_out_folder(parser, "optlab-tune", "the reports, the recipe and all results")
    add_json(parser)


def budget(text: str) -> str:
    """Read a budget; a number alone is in minutes."""
    form = BUDGET.fullmatch(text.strip())
    if form is None or not float(form[1]) > 0:
        raise argparse.ArgumentTypeError(
            f"expected a time above 0, such as 90s, 10m or 2h, or '20000 updates' or '40 trials', "
            f"got {text!r}"
        )
    return text.strip() if form[3] else f"{form[1]}m"


def _names_in_a_space(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    return [f"{name}=" for name in arguments_of(parsed_args)]


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not fit; make the space a mapping."""
    for name in options.optimizers or []:
        if ":" in name:
            check_form("--optimizers", name, "rule")
        else:
            check_known("optimizer", name, OPTIMIZERS, also=f"; {FORM} is one of your own")
    own = [name for name in options.optimizers or [] if ":" in name]
    if own and options.clip is not None:
        raise UsageError(f"--clip does not reach {own[0]}; clip in that function")
    check_task_name(options)
    options.in_schedules = set()
    check_settings(options)
    space: dict[str, Typed] = dict(options.space)
    for name in space:
        if [other for other, _ in options.space].count(name) > 1:
            raise UsageError(f"argument --space: names must differ, got {name} twice")
    known = arguments_of(options)
    options.space = {name: entry.read_for(known.get(name)) for name, entry in space.items()}
    for name, entry in options.space.items():
        check_range(options, name, entry)
    check_place(options.out)
