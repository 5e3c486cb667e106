"""`report_html`: a `Tuning` as one HTML file that needs nothing else.

First what was found, how sure that is and what it cost; then the seven steps; then all trials, what
failed, and the machine. Styles and the script are those of `report.css` and `report.js`, which are
written into the file. A policy in the file itself keeps a browser from fetching anything.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import resources

from optlab.lab.tuning._result import Chart, Step, Table, Tuning, Winner
from optlab.lab.tuning._svg import draw
from optlab.lab.tuning._texts import (
    SYMBOLS,
    Trials,
    averaged,
    clock,
    count,
    duration,
    escaped,
    is_number,
    judged,
    length,
    number,
    running,
    sureness,
    winner_title,
)

MOST_TRIALS = 1000
"""Trials in the table; the best of the last stages come first."""

LONG_CELL = 40
"""Characters from which the text of a cell is broken into lines."""

RELOAD = 10
"""Seconds after which the page of a procedure that still runs reloads itself."""

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def report_html(tuning: Tuning, *, written: datetime | None = None) -> str:
    """Return a report as one HTML file without references to anything outside of it.

    Args:
        tuning: the result, or as much of it as there is while the procedure runs.
        written: when the report is written; None to leave it out.

    Example:
        >>> tuning = Tuning(
        ...     "digits", "accuracy", True, "10 minutes", 0.0, 0, 0, steps=[], trials=[],
        ...     winner=None, summary=[], failures=[], finished=False, machine="")
        >>> "<title>Tuning of digits</title>" in report_html(tuning)
        True
    """
    reload = "" if tuning.finished else f'<meta http-equiv="refresh" content="{RELOAD}">'
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Without an icon, browsers ask the server of the page for one.
        '<link rel="icon" href="data:,">',
        reload,
        f"<title>Tuning of {escaped(tuning.task)}</title>",
        f"<style>\n{_file('report.css')}</style>",
        "</head>",
        "<body>",
        *_head(tuning, written),
        "<main>",
        *_result(tuning),
        *_cost(tuning),
        *(part for i, step in enumerate(tuning.steps, 1) for part in _step(i, step)),
        *_trials(tuning),
        *_failures(tuning),
        "</main>",
        *_foot(tuning, written),
        f"<script>\n{_file('report.js')}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _file(name: str) -> str:
    return resources.files("optlab.lab.tuning").joinpath(name).read_text("utf-8")


def _head(tuning: Tuning, written: datetime | None) -> Iterator[str]:
    yield "<header>"
    yield '<p class="kicker">Tuning report</p>'
    yield f"<h1>{escaped(tuning.task)}</h1>"
    yield f'<p class="soft">{escaped(judged(tuning))}</p>'
    if not tuning.finished:
        yield f'<p class="running" role="status">{escaped(running(tuning, written))}</p>'
    yield "</header>"


def _result(tuning: Tuning) -> Iterator[str]:
    yield '<section id="result">'
    yield "<h2>What was found</h2>"
    for i, sentence in enumerate(tuning.summary):
        kind = ' class="lead"' if i == 0 else ""
        yield f"<p{kind}>{escaped(sentence)}</p>"
    winner = tuning.winner
    if winner is None:
        end = "has no winner" if tuning.finished else "has no winner yet"
        yield f'<p class="soft">The procedure {end}.</p>'
    else:
        yield from _winner(tuning, winner)
    yield "</section>"


def _winner(tuning: Tuning, winner: Winner) -> Iterator[str]:
    yield '<div class="card winner">'
    yield "<div>"
    yield f"<h3>{escaped(winner_title(winner))}</h3>"
    yield f'<p class="score">{escaped(number(winner.score.mean))}</p>'
    yield f'<p class="soft">{escaped(averaged(tuning, winner))}</p>'
    yield "<h3>How sure it is</h3>"
    for sentence in sureness(tuning, winner):
        yield f"<p>{escaped(sentence)}</p>"
    yield "</div>"
    yield "<div>"
    yield "<h3>To train with</h3>"
    rows = {"optimizer": winner.optimizer, "schedule": winner.schedule}
    rows |= {name: number(value) for name, value in winner.values.items()}
    rows |= {"updates": length(winner), "first seed": number(winner.seed)}
    yield '<table class="pairs"><tbody>'
    for name, value in rows.items():
        exact = winner.values.get(name, value)
        title = f' title="{escaped(exact)}"' if str(exact) != value else ""
        yield f'<tr><th scope="row">{escaped(name)}</th><td{title}>{escaped(value)}</td></tr>'
    yield "</tbody></table>"
    yield "</div>"
    yield "</div>"


def _cost(tuning: Tuning) -> Iterator[str]:
    yield '<section id="cost">'
    yield "<h2>What it cost</h2>"
    made = f"{count(tuning.updates, 'update')} in {count(tuning.runs, 'run')}"
    spent = f"{duration(tuning.seconds)} of a budget of {tuning.budget}"
    yield f"<p>{escaped(spent)}: {escaped(made)}.</p>"
    yield '<div class="scroll" tabindex="0" role="region" aria-label="Cost by step">'
    yield '<table class="data"><thead><tr>'
    for heading, kind in (
        ("Step", ""),
        ("Verdict", ""),
        ("Time", "number"),
        ("Share", ""),
        ("Updates", "number"),
        ("Runs", "number"),
    ):
        yield _cell(heading, "th", kind)
    yield "</tr></thead><tbody>"
    total = sum(step.seconds for step in tuning.steps)
    for i, step in enumerate(tuning.steps, 1):
        share = step.seconds / total if total > 0 else 0.0
        bar = f'<span class="share"><i style="--share:{share:.1%}"></i></span>'
        yield (
            f'<tr><th scope="row"><a href="#step-{i}">{i}. {escaped(step.name)}</a></th>'
            f"<td>{_badge(step)}</td>"
            f'<td class="number">{escaped(duration(step.seconds))}</td>'
            f"<td>{bar}</td>"
            f'<td class="number">{step.updates:,}</td><td class="number">{step.runs:,}</td></tr>'
        )
    yield "</tbody></table></div>"
    yield "</section>"


def _badge(step: Step) -> str:
    text = f"{SYMBOLS.get(step.verdict, '')} {step.verdict}".strip()
    return f'<span class="badge {escaped(step.verdict)}">{escaped(text)}</span>'


def _step(i: int, step: Step) -> Iterator[str]:
    yield f'<section id="step-{i}">'
    yield f"<header><h2>{i}. {escaped(step.name.capitalize())}</h2>{_badge(step)}</header>"
    yield f'<p class="soft">{escaped(step.question)}</p>'
    if step.evidence:
        yield f"<p>{escaped(step.evidence)}</p>"
    if step.advice:
        yield f'<p class="advice {escaped(step.verdict)}"><b>Do:</b> {escaped(step.advice)}</p>'
    if step.charts:
        yield '<div class="charts">'
        for chart in step.charts:
            yield from _figure(chart)
        yield "</div>"
    for table in step.tables:
        yield from _table(table)
    yield "</section>"


def _figure(chart: Chart) -> Iterator[str]:
    drawing = draw(chart)
    yield f'<figure class="card"><figcaption>{escaped(chart.title)}</figcaption>'
    yield drawing.svg
    for note in filter(None, (chart.note, *drawing.notes)):
        yield f'<p class="note">{escaped(note)}</p>'
    yield "</figure>"


def _table(table: Table) -> Iterator[str]:
    rows = list(zip(*table.columns.values(), strict=True))
    yield from _data(table.title, list(table.columns), rows, heading="h3")
    if table.note:
        yield f'<p class="note">{escaped(table.note)}</p>'


def _data(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    heading: str = "",
    sortable: bool = False,
    values: Mapping[tuple[int, int], float] | None = None,
) -> Iterator[str]:
    """Yield a table that scrolls in a box of its own.

    Args:
        title: what it shows.
        headings: of the columns.
        rows: the text of each cell.
        heading: the element of the title; "" if the title is to be read aloud only.
        sortable: whether the script sorts it.
        values: (row, column) → the number to sort by, where the text does not tell it.
    """
    values = values or {}
    kinds = [_kind([row[i] for row in rows]) for i in range(len(headings))]
    yield '<div class="table">'
    if heading:
        yield f"<{heading}>{escaped(title)}</{heading}>"
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(title)}">'
    yield f'<table class="data{" sortable" if sortable else ""}"><thead><tr>'
    for text, kind in zip(headings, kinds, strict=True):
        yield _cell(text, "th", kind)
    yield "</tr></thead><tbody>"
    for r, row in enumerate(rows):
        cells = (
            _cell(text, "td", kind, values.get((r, c)))
            for c, (text, kind) in enumerate(zip(row, kinds, strict=True))
        )
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div></div>"


def _kind(cells: Iterable[str]) -> str:
    """Return the class of a column: that of numbers, of long text, or none."""
    cells = list(cells)
    if any(len(cell) > LONG_CELL for cell in cells):
        return "long"
    told = [cell for cell in cells if cell not in ("", "–")]
    return "number" if told and all(map(is_number, told)) else ""


def _cell(text: str, element: str, kind: str, value: float | None = None) -> str:
    of_kind = f' class="{kind}"' if kind else ""
    scope = ' scope="col"' if element == "th" else ""
    known = "" if value is None else f' data-value="{value!r}"'
    return f"<{element}{of_kind}{scope}{known}>{escaped(text)}</{element}>"


def _trials(tuning: Tuning) -> Iterator[str]:
    if not tuning.trials:
        return
    trials = Trials.of(tuning)
    shown = min(len(trials.rows), MOST_TRIALS)
    yield '<section id="trials">'
    yield "<h2>All trials</h2>"
    yield f'<p class="soft">{escaped(trials.text(shown))}</p>'
    yield from _data(
        "All trials",
        trials.headings,
        trials.rows[:shown],
        sortable=True,
        values=trials.values,
    )
    yield "</section>"


def _failures(tuning: Tuning) -> Iterator[str]:
    yield '<section id="failures">'
    yield "<h2>What went wrong</h2>"
    if tuning.failures:
        yield "<ul>"
        for sentence in tuning.failures:
            yield f"<li>{escaped(sentence)}</li>"
        yield "</ul>"
    else:
        yield '<p class="soft">Nothing failed on the way.</p>'
    yield "</section>"


def _foot(tuning: Tuning, written: datetime | None) -> Iterator[str]:
    yield "<footer>"
    if tuning.machine:
        yield "<h2>Machine and versions</h2>"
        yield f'<p class="soft">{escaped(tuning.machine)}</p>'
    if written is not None:
        yield f'<p class="soft">Written {escaped(clock(written))}.</p>'
    yield "</footer>"
