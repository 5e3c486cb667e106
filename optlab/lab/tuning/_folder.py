"""The folder of a tuning procedure.

results.sqlite  all trials, decisions and steps, as they end; what a later call goes on from
report.html     the report, one file without any other
report.md       the same as text
recipe.py       a script that trains the winner without the lab
"""

import os
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from optlab import _checks
from optlab._paths import folder_of, make_folder
from optlab.lab.tuning._html import report_html
from optlab.lab.tuning._markdown import report_markdown
from optlab.lab.tuning._result import Tuning

RESULTS, HTML, MARKDOWN, RECIPE = "results.sqlite", "report.html", "report.md", "recipe.py"

EVERY = 10.0
"""Seconds between reports while a step runs."""


class Folder:
    """The folder of one procedure; it is created if it does not exist.

    Args:
        who: the public name that errors begin with.
        folder: the folder.

    Raises:
        ValueError: it cannot be written, or holds other files and no results of a procedure.
    """

    def __init__(self, who: str, folder: Any):
        self._who = who
        self.path = Path(folder_of(who, "folder", folder))
        make_folder(who, "folder", self.path)
        others = sorted(entry.name for entry in self.path.iterdir())
        if others and RESULTS not in others:
            names = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            required = "folder must be new, empty, or that of a tuning procedure"
            _checks.fail(who, required, f"{self.path} with {names}", "pass another folder")
        self._written, self._state = -EVERY, ()
        try:  # what cannot be written is refused before anything is trained
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            required = "folder must be one that can be written"
            _checks.fail(who, required, f"{self.path}: {error.strerror}")

    @property
    def results(self) -> Path:
        """The file of results."""
        return self.path / RESULTS

    def report(self, tuning: Tuning, text: str = "") -> None:
        """Write the reports, if a step has ended or the last ones are some seconds old."""
        del text
        state = tuple(step.verdict for step in tuning.steps), tuning.finished
        now = time.monotonic()
        if state == self._state and now < self._written + EVERY:
            return
        self._written, self._state = now, state
        written = datetime.now().astimezone()
        self._write(HTML, report_html(tuning, written=written))
        self._write(MARKDOWN, report_markdown(tuning, written=written))

    def write_recipe(self, make: Callable[[], str]) -> None:
        """Write the recipe."""
        self._write(RECIPE, make())

    def _write(self, name: str, text: str) -> None:
        """Replace a file at once, so that whoever reads it sees a whole one."""
        whole, part = self.path / name, self.path / f".{name}.part"
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, whole)
        except OSError as error:
            required = f"folder must be one in which {name} can be written"
            _checks.fail(self._who, required, f"{self.path}: {error.strerror}")
