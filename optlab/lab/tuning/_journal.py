"""The file of a tuning procedure: every trial, every decision and every step, as they end.

    facts      one row: the facts that identify the procedure
    entries    key → contents, as JSON; what is written stays
    used       one row: seconds, updates and runs used so far

A procedure that is called again reads what is there and goes on from it. A decision, such as how
many trials a step makes, is written before it is carried out, because it depends on the time that
was left.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optlab import _checks
from optlab.lab.sweeps._database import Database, decode, encode
from optlab.lab.tuning._budget import Meter

CONTENTS = "contents"
"""The fact that changes with the functions and the data of the task."""


class Journal(Database):
    """The file of one procedure.

    Args:
        who: the public name that errors begin with.
        file: an SQLite file, created if it does not exist; None to hold everything in memory.
        about: the facts that identify the procedure.
    """

    application = int.from_bytes(b"optu")
    tables = """
        create table entries (key text primary key, contents text not null);
        create table used (seconds real not null, updates integer not null, runs integer not null);
        insert into used values (0, 0, 0)
    """

    def __init__(self, who: str, file: str | Path | None, about: Mapping[str, Any]):
        super().__init__(who, file, about, "tuning procedure")

    def _check(self, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if was.get("task") == now.get("task") and was.get(CONTENTS) != now.get(CONTENTS):
            required = f"the task must be the one with which {self._file} was begun"
            got = "one of the same name with other functions or other data"
            remedy = "pass a new folder: what was found out says nothing of a task that was changed"
            _checks.fail(self._who, required, got, remedy)
        super()._check(was, now)

    @property
    def used(self) -> tuple[float, int, int]:
        """The seconds, updates and runs that were used."""
        ((seconds, updates, runs),) = self._read("select seconds, updates, runs from used")
        return seconds, updates, runs

    def get(self, key: str) -> Any:
        """Return an entry; None if there is none."""
        rows = self._read("select contents from entries where key = ?", key)
        return decode(rows[0][0]) if rows else None

    def entries(self, prefix: str) -> dict[str, Any]:
        """Return the entries whose keys begin with a prefix, key → contents, by the rest."""
        query = "select key, contents from entries where substr(key, 1, ?) = ? order by rowid"
        rows = self._read(query, len(prefix), prefix)
        return {key.removeprefix(prefix): decode(contents) for key, contents in rows}

    def put(self, entries: Mapping[str, Any], meter: Meter) -> None:
        """Write entries, and what was used so far; entries that exist are left alone."""
        rows = [(key, encode(value)) for key, value in entries.items()]
        with self._writing():
            self._connection.executemany("insert or ignore into entries values (?, ?)", rows)
            used = (meter.seconds, meter.updates, meter.runs)
            self._connection.execute("update used set seconds = ?, updates = ?, runs = ?", used)

    def once(self, key: str, make: Callable[[], Any], meter: Meter) -> Any:
        """Return an entry, made and written now if there is none."""
        entry = self.get(key)
        if entry is None:
            self.put({key: make()}, meter)
            entry = self.get(key)
        return entry
