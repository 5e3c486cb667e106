"""Storage of a sweep's results as they arrive.

facts    one row: the facts that identify the sweep, as JSON
rungs    (trial, step) → the trial's curves up to that evaluation, as JSON
trials   trial → the trial at its end, as JSON
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optlab.lab.sweeps._database import Database, decode, encode
from optlab.lab.sweeps._trial import Trial


class Store(Database):
    """The results of one sweep, or of one comparison; its arguments are those of `Database`."""

    application = int.from_bytes(b"opsw")
    tables = """
        create table rungs (
            trial integer not null, step integer not null, curves text not null,
            primary key (trial, step)
        );
        create table trials (
            trial integer primary key, status text not null, contents text not null
        );
    """

    def __init__(
        self, who: str, file: str | Path | None, about: Mapping[str, Any], what: str = "sweep"
    ):
        super().__init__(who, file, about, what)

    def add_rungs(self, curves: Mapping[tuple[int, int], Any]) -> None:
        """Write the curves of trials by (trial, step); rows that exist are left alone."""
        rows = [(*key, encode(value)) for key, value in curves.items()]
        with self._writing():
            self._connection.executemany("insert or ignore into rungs values (?, ?, ?)", rows)

    def rungs(self, step: int) -> dict[int, Any]:
        """Return trial → curves for the trials that were written at this step."""
        rows = self._read("select trial, curves from rungs where step = ?", step)
        return {trial: decode(curves) for trial, curves in rows}

    def add(self, trials: Iterable[Trial]) -> None:
        """Write trials that have ended; trials that exist are left alone."""
        rows = [(t.number, t.status, encode(vars(t))) for t in trials]
        with self._writing():
            self._connection.executemany("insert or ignore into trials values (?, ?, ?)", rows)

    def trials(self) -> list[Trial]:
        """Return the trials that have ended, by number."""
        rows = self._read("select contents from trials order by trial")
        return [Trial(**decode(contents)) for (contents,) in rows]
