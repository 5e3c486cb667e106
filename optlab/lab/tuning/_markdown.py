"""`report_markdown`: a `Tuning` as text and tables that GitHub renders, in the order of the HTML.

Of a chart with few values the values are a table; of a larger one a table says where each series
begins, lies and ends.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import numpy as np

from optlab.lab.tuning._result import Chart, Series, Step, Tuning, Winner
from optlab.lab.tuning._svg import choice_text, choices_of, floats, is_choice
from optlab.lab.tuning._texts import (
    SYMBOLS,
    Trials,
    averaged,
    clock,
    count,
    duration,
    is_number,
    judged,
    length,
    number,
    running,
    sureness,
    winner_title,
)

MOST_ROWS = 12
"""The places on the x axis of a chart whose values are all shown."""

MOST_COLUMNS = 6
"""The series of such a chart."""

MOST_TRIALS = 100
"""Trials in the table, which nobody can sort."""

# An underscore inside a word, as in weight_decay, means nothing to GitHub.
_SPECIAL = re.compile(r"([\\`*\[\]|~$])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])")


def report_markdown(tuning: Tuning, *, written: datetime | None = None) -> str:
    """Return a report as Markdown, with the tables of GitHub.

    Args:
        tuning: the result, or as much of it as there is while the procedure runs.
        written: when the report is written; None to leave it out.

    Example:
        >>> tuning = Tuning(
        ...     "digits", "accuracy", True, "10 minutes", 0.0, 0, 0, steps=[], trials=[],
        ...     winner=None, summary=[], failures=[], finished=False, machine="")
        >>> report_markdown(tuning).splitlines()[0]
        '# Tuning of digits'
    """
    blocks = [
        f"# Tuning of {safe(tuning.task)}",
        safe(judged(tuning)),
        *([] if tuning.finished else [f"**{safe(running(tuning, written))}**"]),
        *_result(tuning),
        *_cost(tuning),
        *(block for i, step in enumerate(tuning.steps, 1) for block in _step(i, step)),
        *_trials(tuning),
        "## What went wrong",
        "\n".join(f"- {safe(sentence)}" for sentence in tuning.failures)
        or "Nothing failed on the way.",
    ]
    if tuning.machine:
        blocks += ["## Machine and versions", safe(tuning.machine)]
    if written is not None:
        blocks.append(f"Written {safe(clock(written))}.")
    return "\n\n".join(blocks) + "\n"


def safe(text: object) -> str:
    r"""Return text in which nothing is markup, on one line.

    Example:
        >>> print(safe("weight_decay of <b>*mine*</b>"))
        weight_decay of &lt;b>\*mine\*&lt;/b>
        >>> print(safe("1. not a list"))
        1\. not a list
    """
    line = _inside(text)
    line = re.sub(r"^(\d+)([.)])(?=\s)", r"\1\\\2", line)
    return re.sub(r"^([#>+-])", r"\\\1", line)


def _inside(text: object) -> str:
    """Return text in which nothing is markup unless it begins a line."""
    line = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    line = _SPECIAL.sub(lambda match: "\\" + match[0], line.replace("&", "&amp;"))
    return line.replace("<", "&lt;")


def _result(tuning: Tuning) -> Iterator[str]:
    yield "## What was found"
    yield from map(safe, tuning.summary)
    winner = tuning.winner
    if winner is None:
        yield f"The procedure has no winner{'' if tuning.finished else ' yet'}."
    else:
        yield from _winner(tuning, winner)


def _winner(tuning: Tuning, winner: Winner) -> Iterator[str]:
    score = f"**{safe(number(winner.score.mean))}**, {safe(averaged(tuning, winner))}"
    yield f"**{safe(winner_title(winner))}**: {score}."
    rows = [("optimizer", winner.optimizer), ("schedule", winner.schedule)]
    rows += [(name, number(value)) for name, value in winner.values.items()]
    rows += [("updates", length(winner)), ("first seed", number(winner.seed))]
    yield _table(["to train with", "value"], rows)
    yield "### How sure it is"
    yield from map(safe, sureness(tuning, winner))


def _cost(tuning: Tuning) -> Iterator[str]:
    yield "## What it cost"
    made = f"{count(tuning.updates, 'update')} in {count(tuning.runs, 'run')}"
    yield safe(f"{duration(tuning.seconds)} of a budget of {tuning.budget}: {made}.")
    if tuning.steps:
        yield _table(
            ["", "step", "verdict", "time", "updates", "runs"],
            [
                (
                    str(i),
                    step.name,
                    f"{SYMBOLS.get(step.verdict, '')} {step.verdict}",
                    duration(step.seconds),
                    f"{step.updates:,}",
                    f"{step.runs:,}",
                )
                for i, step in enumerate(tuning.steps, 1)
            ],
        )


def _step(i: int, step: Step) -> Iterator[str]:
    yield f"## {i}. {safe(step.name.capitalize())}: {safe(step.verdict)}"
    yield f"*{safe(step.question)}*"
    if step.evidence:
        yield safe(step.evidence)
    if step.advice:
        yield f"**Do:** {safe(step.advice)}"
    for chart in step.charts:
        yield from _chart(chart)
    for table in step.tables:
        yield f"### {safe(table.title)}"
        yield _table(table.columns, zip(*table.columns.values(), strict=True))
        if table.note:
            yield safe(table.note)


def _chart(chart: Chart) -> Iterator[str]:
    yield f"### {safe(chart.title)}"
    filled = [series for series in chart.series if len(series.x)]
    if not filled:
        yield "No values yet."
    elif _is_small(filled):
        yield _table(*_all_values(chart, filled))
    else:
        yield f"{safe(chart.y_label)} against {safe(chart.x_label)}; the HTML report draws it."
        yield _table(*_outline(chart, filled))
    lines = [f"{label} at {number(value)}" for label, value in chart.levels.items()]
    lines += [f"{label} at {chart.x_label} {number(x)}" for label, x in chart.marks.items()]
    if lines:
        yield safe("; ".join(lines) + ".")
    if chart.note:
        yield safe(chart.note)


def _is_small(series: Sequence[Series]) -> bool:
    """Return whether each series has one value at each of a few places."""
    places = {choice_text(x) for entry in series for x in entry.x}
    is_function = all(len(set(map(choice_text, s.x))) == len(s.x) for s in series)
    return is_function and len(places) <= MOST_ROWS and len(series) <= MOST_COLUMNS


def _all_values(chart: Chart, series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of all values, a row for each place on the x axis."""
    values = list(dict.fromkeys(x for entry in series for x in entry.x))
    if is_choice(values):
        values = choices_of(values)
    else:
        values.sort(key=lambda x: floats([x])[0])
    columns = [
        dict(zip(map(choice_text, entry.x), _with_ends(entry), strict=True)) for entry in series
    ]
    places = list(dict.fromkeys(map(choice_text, values)))
    rows = [[place, *(cells.get(place, "") for cells in columns)] for place in places]
    return [chart.x_label, *(entry.name or chart.y_label for entry in series)], rows


def _with_ends(series: Series) -> list[str]:
    cells = [number(y) for y in floats(series.y)]
    if not len(series.low):
        return cells
    ends = zip(floats(series.low), floats(series.high), strict=True)
    return [
        f"{cell} ({number(low)} to {number(high)})" if math.isfinite(low) else cell
        for cell, (low, high) in zip(cells, ends, strict=True)
    ]


def _outline(chart: Chart, series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of where series begin, lie and end."""
    rows = []
    for entry in series:
        y = floats(entry.y)
        sound = y[np.isfinite(y)]
        ends = (sound[0], sound.min(), sound.max(), sound[-1]) if len(sound) else [math.nan] * 4
        name = entry.name or chart.y_label
        rows.append([name, f"{len(sound):,}", *(number(float(value)) for value in ends)])
    return ["series", "values", "first", "lowest", "highest", "last"], rows


def _trials(tuning: Tuning) -> Iterator[str]:
    if not tuning.trials:
        return
    trials = Trials.of(tuning)
    rows = trials.rows[:MOST_TRIALS]
    yield "## All trials"
    yield safe(trials.text(len(rows)))
    yield _table(trials.headings, rows)


def _table(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; columns of numbers are aligned to the right."""
    headings, rows = list(headings), list(rows)
    told = [[row[i] for row in rows if row[i] not in ("", "–")] for i in range(len(headings))]
    rules = ["---:" if cells and all(map(is_number, cells)) else "---" for cells in told]
    lines = [map(_inside, headings), rules, *(map(_inside, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
