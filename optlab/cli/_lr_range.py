"""`optlab lr-range`: raise the learning rate over a short run and suggest where to train."""

import argparse
import sys

from optlab.cli._errors import UsageError, check_known, look_up, value_errors
from optlab.cli._options import (
    add_json,
    add_optimizer,
    add_out_plot,
    add_seeds,
    add_steps,
    add_task,
    declare,
    optimizer_list,
    rate,
)
from optlab.cli._output import check_plot_format, check_writable_file, require, write_errors
from optlab.cli._task_errors import task_errors
from optlab.cli._tasks import make_task
from optlab.lab import lr_range_test
from optlab.lab.rates._range_test import LEAST_STEPS, MODES
from optlab.registry import BY_NAME


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        run,
        description="Raise the learning rate over a short run, from several seeds in one compiled\n"
        "program, and suggest a range of rates by where the loss falls. If the curves\n"
        "allow no reliable suggestion, the reason is printed instead. The numbers go beside the\n"
        "plot, as JSON.",
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
    add_steps(parser, "optimizer updates, one at each rate (default: %(default)s)", default=100)
    add_seeds(parser, default=5)
    parser.add_argument(
        "--mode",
        default=MODES[0],
        metavar="MODE",
        help=f"{' or '.join(MODES)} (default: %(default)s)",
    )
    add_out_plot(parser, "lr-range.png")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Test the range, print the suggestions or the JSON, draw the curves."""
    optimizer = look_up("optimizer", options.optimizer, BY_NAME).make
    _check(options)
    task = make_task(options.task)
    check_plot_format(options.out)
    require("lr-range", "matplotlib", "rich")
    check_writable_file(options.out)
    names = ("min_lr", "max_lr", "steps", "seeds", "mode")
    with task_errors(options.task), value_errors():
        result = lr_range_test(
            task,
            optimizer,
            progress=sys.stderr.isatty(),
            **{name: getattr(options, name) for name in names},
        )
    label = f"{options.optimizer} on {task.name}"
    text = result.to_json(optimizer=options.optimizer)
    if options.json:
        print(text)
    else:
        print(result.title(label), result.table(), sep="\n\n")
    numbers = options.out.with_suffix(".json")
    with write_errors(options.out, "file"):
        numbers.write_text(text + "\n", encoding="utf-8")
        result.plot(label=label).figure.savefig(options.out)
    if not options.json:
        print("", f"Wrote {numbers}, {options.out.name}", sep="\n")


def _check(options: argparse.Namespace) -> None:
    check_known("mode", options.mode, MODES)
    if options.min_lr >= options.max_lr:
        raise UsageError(
            f"--min-lr must be below --max-lr, got {options.min_lr:g} and {options.max_lr:g}"
        )
    if options.steps < LEAST_STEPS:
        raise UsageError(f"argument --steps: expected at least {LEAST_STEPS}, got {options.steps}")
