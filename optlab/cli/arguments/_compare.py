"""The options of `optlab compare`."""

import argparse

from optlab.cli._errors import check_known
from optlab.cli._known import COMPARED, OPTIMIZERS
from optlab.cli._options import (
    add_json,
    add_out_folder,
    add_patience,
    add_results,
    add_seed,
    add_seeds,
    add_steps,
    add_task,
    add_updates,
    check_schedule,
    check_seeds,
    check_settings,
    check_task_name,
    complete_list_with,
    declare,
    names,
    number,
    optimizer_list,
    rates,
)
from optlab.cli._output import check_place


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        check,
        description="Train a model with each optimizer, at every learning rate and from every\n"
        "seed, all runs of an optimizer in one compiled program. The best rate is\n"
        "chosen on validation; the test score is only reported. A hyperparameter in --set\n"
        "goes to those of the optimizers that have it.",
        epilog=optimizer_list(),
    )
    add_task(parser)
    action = parser.add_argument(
        "--optimizers",
        type=names,
        metavar="NAMES",
        help="names of optimizers, separated by commas (default: those of "
        f"{', '.join(COMPARED)} that can train the task)",
    )
    complete_list_with(action, OPTIMIZERS)
    parser.add_argument(
        "--rates",
        type=rates,
        default="1e-4:10:11",
        metavar="RATES",
        help="learning rates separated by commas, such as 1e-3,1e-2, or LOW:HIGH:COUNT for COUNT "
        "rates evenly spaced on a log scale, both ends included (default: %(default)s)",
    )
    add_updates(parser)
    add_seeds(parser, default=3, meaning="runs at each rate")
    add_seed(parser, "the first of the seeds")
    add_steps(parser, "optimizer updates per run (default: the task's)")
    add_patience(parser, "each run", "judge it by its best evaluation")
    parser.add_argument(
        "--target",
        type=number,
        metavar="SCORE",
        help="report how many updates it takes to reach this score (default: the task's)",
    )
    add_results(parser, "trials")
    add_out_folder(parser, "optlab-compare", "results.json and the plots")
    add_json(parser)


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not fit."""
    for name in options.optimizers or []:
        check_known("optimizer", name, OPTIMIZERS)
    check_task_name(options)
    check_settings(options)
    check_schedule(options)
    check_seeds(options)
    check_place(options.out)
