"""The view of a tuning procedure on a terminal, while it runs."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optlab import _checks
from optlab._extras import needs_extra
from optlab.lab.tuning._result import FAILED, PASSED, RUNNING, SKIPPED, WARNING, Tuning
from optlab.lab.tuning._texts import duration

if TYPE_CHECKING:
    from rich.table import Table as RichTable

SIGNS = {PASSED: ("✓", "green"), WARNING: ("!", "yellow"), FAILED: ("✗", "red")}
"""Verdict → its sign and its colour."""

PER_SECOND = 4
"""How often the view is drawn in a second."""


@contextmanager
def live_view(who: str, wanted: bool) -> Iterator[Callable[[Tuning, str], None]]:
    """Yield a callback that draws the steps; it does nothing where no view is wanted.

    Args:
        who: the public name that errors begin with.
        wanted: whether to draw, if stderr is a terminal.

    Raises:
        ModuleNotFoundError: a view is wanted, and rich is not installed.
    """
    if not _checks.check_flag(who, "progress", wanted) or not sys.stderr.isatty():
        yield lambda tuning, text: None
        return
    with needs_extra(who):
        from rich.console import Console
        from rich.live import Live

    console = Console(stderr=True)
    # If stdout goes elsewhere, the view must not redirect the output of callbacks to stderr.
    with Live(
        console=console,
        refresh_per_second=PER_SECOND,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as view:

        def draw(tuning: Tuning, text: str) -> None:
            view.update(_picture(tuning, text))

        yield draw


def _picture(tuning: Tuning, text: str) -> "RichTable":
    """Return what is drawn: a line for each step, and what is going on."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    table = RichTable.grid(padding=(0, 1))
    for step in tuning.steps:
        sign, colour = SIGNS.get(step.verdict, ("·" if step.verdict == SKIPPED else " ", "dim"))
        running = step.verdict == RUNNING
        what = (text or step.question) if running else step.evidence
        first = what.split(". ")[0]
        name = f"[bold]{step.name}[/bold]" if running else step.name
        table.add_row(f"[{colour}]{'▸' if running else sign}[/{colour}]", name, escape(first))
    cost = f"{duration(tuning.seconds)} of {tuning.budget}, {tuning.runs} runs"
    table.add_row("", "", f"[dim]{cost}[/dim]")
    return table
