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
