"""The options of `optlab plot-schedule`."""

import argparse
import inspect

from optlab.cli._errors import UsageError
from optlab.cli._expressions import evaluate
from optlab.cli._known import SCHEDULE_FORMS, SCHEDULES
from optlab.cli._options import add_out_plot, add_steps, complete_with, declare
from optlab.cli._output import check_place, check_plot_format


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        check,
        description="Draw schedules, one or several, each written as a call in quotes:\n\n"
        '  optlab plot-schedule "warmup_cosine(1e-3, warmup_steps=100, decay_steps=1000)"\n'
        '  optlab plot-schedule "warmup(inverse_sqrt(1e-3), 100)" "one_cycle(1e-2, 500)"\n\n'
        "and print the values at the knots, where the formula changes or ends. The value\n"
        "at step t is used by the update after the first t updates. Expressions are not\n"
        "run as code: they may only call the schedules below, with numbers, strings and\n"
        "lists.",
        epilog="schedules:\n" + "\n".join(map(_schedule_help, SCHEDULES)),
    )
    action = parser.add_argument(
        "expressions", nargs="+", metavar="SCHEDULE", help="a schedule, as a call in quotes"
    )
    complete_with(action, [f"{name}(" for name in SCHEDULES])
    add_steps(parser, "the last step shown (default: the last knot, or 1000 if there is none)")
    add_out_plot(parser, "schedule.png")


def check(options: argparse.Namespace) -> None:
    """Refuse what is no schedule, and a file that cannot be written."""
    check_plot_format(options.out)
    for text in options.expressions:
        try:
            evaluate(text, SCHEDULE_FORMS, "schedule")
        except OverflowError as error:
            raise UsageError(f"a number is too large: {error}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(str(error)) from error
    check_place(options.out, "file")


def _schedule_help(name: str) -> str:
    parameters = inspect.signature(SCHEDULE_FORMS[name]).parameters.values()
    signature = ", ".join(map(str, parameters))
    return f"  {name}({signature})\n      {SCHEDULES[name].summary}"
