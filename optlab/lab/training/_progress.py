"""Progress bars on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from optlab import _checks
from optlab._extras import needs_extra

Show = Callable[[int, str], None]
"""A function of what is done and a text beside the bar."""


@contextmanager
def progress_bar(who: str, wanted: bool, total: int) -> Iterator[Show]:
    """Yield a function that moves a bar; it does nothing where none is wanted.

    Args:
        who: the public name that errors begin with.
        wanted: whether to show a bar, if stderr is a terminal.
        total: what there is to do, in the unit of what is done.

    Raises:
        ModuleNotFoundError: a bar is wanted, and rich is not installed.
        ValueError: `wanted` is neither True nor False.
    """
    if not _checks.check_flag(who, "progress", wanted):
        yield lambda done, text: None
        return
    with needs_extra(who):
        from rich.console import Console
        from rich.progress import Progress

    console = Console(stderr=True)
    # If stdout goes elsewhere, the bar must not redirect the output of callbacks to stderr.
    redirect = sys.stdout.isatty()
    with Progress(console=console, transient=True, redirect_stdout=redirect) as bar:
        row = bar.add_task("compiling", total=total)
        yield lambda done, text: bar.update(row, completed=done, description=text)


def count_updates(show: Show, text: str, done: int = 0) -> Callable[[int], None]:
    """Return a function that counts updates, and moves a bar by them.

    Args:
        show: moves the bar.
        text: stands beside the bar.
        done: updates before the first call.
    """

    def count(updates: int) -> None:
        nonlocal done
        done += updates
        show(done, text)

    return count
