"""What a command needs to show and write its results.

Everything that can fail is checked before the work begins, so that no result is lost at the end.
"""

import importlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optlab._extras import needs_extra
from optlab.cli._errors import UsageError

PLOT_FORMATS = (".png", ".svg", ".pdf")


def require(command: str, *modules: str) -> None:
    """Require optional modules; if one is missing, the error names the extra that installs it."""
    with needs_extra(command):
        for module in modules:
            importlib.import_module(module)


def check_plot_format(file: Path) -> None:
    """Require a suffix of a format in which a plot can be written."""
    if file.suffix not in PLOT_FORMATS:
        raise UsageError(
            f"argument --out: expected a file in {', '.join(PLOT_FORMATS)}, got '{file}'"
        )


def check_place(path: Path, what: str = "folder") -> None:
    """Require a folder or a file that can be written; what is created for a try is removed."""
    try:
        if what == "file" and path.exists():
            with path.open("ab"):
                return
        folder = path if what == "folder" else path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryDirectory(dir=folder):
            return
    except OSError as error:
        raise UsageError(
            f"cannot write to '{path}': {error.strerror}; choose another {what} with --out"
        ) from error


def check_writable_folder(folder: Path) -> None:
    """Create a folder, and require that files can be written in it."""
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_writable_file(file: Path) -> None:
    """Create a file's folder, and require that the file can be written; leave it unchanged."""
    if file.exists():
        with write_errors(file, "file"), file.open("ab"):
            return
    with write_errors(file, "file"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass


@contextmanager
def write_errors(path: Path, what: str = "folder") -> Iterator[None]:
    """Write inside this block; if that fails, the error asks for another `what` than `path`."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write to {error.filename or str(path)!r}: {error.strerror}; "
            f"choose another {what} with --out"
        ) from error


def log(line: str) -> None:
    """Print a line on stderr without delay."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Which of many reports are shown as lines, where no bar can be drawn: a few, evenly spread.

    The first report in each part of the run is shown, and the last one, so that a log stays short
    however long the run is.

    Args:
        total: the number of updates or trials of the run.
        lines: the number of parts.
    """

    def __init__(self, total: int, lines: int = 20):
        self._total, self._lines = max(total, 1), lines
        self._part = -1

    def shows(self, done: int) -> bool:
        """Whether the report of this many updates or trials is shown."""
        part = self._lines * done // self._total
        before, self._part = self._part, max(part, self._part)
        return part > before
