"""What a command needs in order to show and to keep its results.

All of it that can fail is asked before the work begins, so that none is lost in the end.
"""

import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optlab.cli._errors import UsageError
from optlab.lab._extras import needs_extra

PLOT_FORMATS = (".png", ".svg", ".pdf")


def require(command: str, *modules: str) -> None:
    """Require optional modules; where one is missing, name the extra that brings it."""
    with needs_extra(command):
        for module in modules:
            importlib.import_module(module)


def check_plot_format(file: Path) -> None:
    """Require a suffix by which a plot can be written."""
    if file.suffix not in PLOT_FORMATS:
        raise UsageError(
            f"argument --out: expected a file in {', '.join(PLOT_FORMATS)}, got '{file}'"
        )


def check_writable_folder(folder: Path) -> None:
    """Make a folder, and require that files can be written there."""
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_writable_file(file: Path) -> None:
    """Make a file's folder, and require that the file can be written; one there stays as it is."""
    if file.exists():
        with write_errors(file, "file"), file.open("ab"):
            return
    with write_errors(file, "file"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass


@contextmanager
def write_errors(path: Path, what: str = "folder") -> Iterator[None]:
    """Write inside this block; where that fails, ask for another `what` than `path`."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write to {error.filename or str(path)!r}: {error.strerror}; "
            f"choose another {what} with --out"
        ) from error


def log(line: str) -> None:
    """Print a line on stderr at once."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(labels: Sequence[str], num_steps: int) -> Iterator[Callable[[str, int], None]]:
    """Show how far the runs are: a bar on a terminal, else a line as each optimizer ends.

    Yields:
        A function of the label whose runs go on and the updates they have done.
    """
    if not sys.stderr.isatty():
        yield _line_progress(num_steps)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task(f"compiling {labels[0]}", total=len(labels) * num_steps)

        def on_progress(label: str, step: int) -> None:
            done = labels.index(label) * num_steps + step
            shown.update(bar, description=label, completed=done)

        yield on_progress


def _line_progress(num_steps: int) -> Callable[[str, int], None]:
    began = time.perf_counter()

    def on_progress(label: str, step: int) -> None:
        nonlocal began
        if step == num_steps:
            now = time.perf_counter()
            log(f"{label}: {now - began:.1f} s")
            began = now

    return on_progress
