"""The options of `optlab lr-range`."""

import argparse

from optlab.cli._errors import UsageError, check_known
from optlab.cli._known import LEAST_STEPS, MODES, OPTIMIZERS
from optlab.cli._options import (
    add_json,
    add_optimizer,
    add_out_plot,
    add_results,
    add_seed,
    add_seeds,
    add_steps,
    add_task,
    add_updates,
    check_seeds,
    check_settings,
    check_task_name,
    complete_with,
    declare,
    natural,
    optimizer_list,
    rate,
)
from optlab.cli._output import check_place, check_plot_format


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        check,
        description="Raise the learning rate over a short run, from several seeds in one compiled\n"
        "program, and see where the loss falls. Then train at constant rates around\n"
        "there, and suggest the best of them. If the runs allow no reliable suggestion,\n"
        "the reason is printed instead. The numbers go beside the plot, as JSON.",
        epilog=optimizer_list(),
    )
    add_task(parser)
    add_optimizer(parser)
    parser.add_argument(
        "--min-lr",
        type=rate,
        default=1e-7,
        metavar="RATE",
        help="the first learning rate (default: %(default)s)",
    )
    parser.add_argument(
        "--max-lr",
        type=rate,
        default=10.0,
        metavar="RATE",
        help="the last learning rate (default: %(default)s)",
    )
    add_updates(parser, schedule=False)
    add_steps(parser, "optimizer updates, one at each rate (default: %(default)s)", default=100)
    add_seeds(parser, default=5)
    add_seed(parser, "the first of the seeds")
    action = parser.add_argument(
        "--mode",
        default=MODES[0],
        metavar="MODE",
        help=f"{' or '.join(MODES)} (default: %(default)s)",
    )
    complete_with(action, MODES)
    parser.add_argument(
        "--confirm",
        type=natural,
        metavar="N",
        help="updates of each run at a constant rate that confirms the suggestion; 0 for no such "
        "runs (default: the task's updates, 1000 at most)",
    )
    add_results(parser, "runs")
    add_out_plot(parser, "lr-range.png")
    add_json(parser)


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not fit."""
    check_known("optimizer", options.optimizer, OPTIMIZERS)
    check_known("mode", options.mode, MODES)
    check_task_name(options)
    check_settings(options)
    check_seeds(options)
    if options.min_lr >= options.max_lr:
        raise UsageError(
            f"--min-lr must be below --max-lr, got {options.min_lr:g} and {options.max_lr:g}"
        )
    if options.steps < LEAST_STEPS:
        raise UsageError(f"argument --steps: expected at least {LEAST_STEPS}, got {options.steps}")
    check_plot_format(options.out)
    check_place(options.out, "file")
