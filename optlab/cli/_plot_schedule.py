"""`optlab plot-schedule`: draw schedules and print their values at the knots."""

import argparse
import math
from collections.abc import Iterable, Mapping

from optlab import plots
from optlab._types import Schedule
from optlab.cli._errors import UsageError
from optlab.cli._expressions import evaluate
from optlab.cli._optimizers import SCHEDULE_FUNCTIONS
from optlab.cli._output import check_writable_file, require, write_errors
from optlab.schedules import OneCycle


def run(options: argparse.Namespace) -> None:
    """Read the expressions, draw them, print their tables."""
    try:
        schedules_by_text = {
            text: evaluate(text, SCHEDULE_FUNCTIONS, "schedule") for text in options.expressions
        }
        steps = options.steps or _last_knot(schedules_by_text.values())
        require("plot-schedule", "matplotlib")
        check_writable_file(options.out)
        figure = plots.plot_schedules(schedules_by_text, steps=steps).figure
        tables = [
            _knot_table(text, schedule, steps) for text, schedule in schedules_by_text.items()
        ]
    except OverflowError as error:
        raise UsageError(f"a number is too large: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(str(error)) from error
    with write_errors(options.out, "file"):
        figure.savefig(options.out)
    print(*tables, f"Wrote {options.out}", sep="\n\n")


def _curves(schedule: Schedule | OneCycle) -> Mapping[str, Schedule]:
    if isinstance(schedule, OneCycle):
        return {"learning rate": schedule.learning_rate, "momentum": schedule.momentum}
    return {"value": schedule}


def _last_knot(schedules_drawn: Iterable[Schedule | OneCycle]) -> int:
    knots = [
        curve.knots[-1] for schedule in schedules_drawn for curve in _curves(schedule).values()
    ]
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
