"""An SQLite file of results, written in transactions, that says of what run they are.

Every call commits before it returns. A process that is killed at any moment therefore loses nothing
that was written, and every row that exists is complete.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from optlab import _checks
from optlab._paths import file_of

_PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""

_UNSAID = {"native": False}
"""Facts whose usual value is not stored, as there are files that are older than they are."""


class Database:
    """A file of results; each kind of file is a class with its own tables.

    Args:
        who: the public name that errors begin with.
        file: an SQLite file on this machine, created if it does not exist; `~` is the home folder.
            None to hold everything in memory.
        about: the facts that identify the run, as JSON. The file of another run is refused.
        what: the word for such a run in errors.

    Attributes:
        application: SQLite's `application_id` of such files, so that no other program's file is
            written to.
        tables: the statements that create its tables, besides that of the facts.

    Raises:
        ValueError: the file is not on this machine or not of this kind, cannot be written, or
            belongs to another run; or, in any method, it can no longer be written.
    """

    application: ClassVar[int]
    tables: ClassVar[str]

    def __init__(self, who: str, file: str | Path | None, about: Mapping[str, Any], what: str):
        self._file = None if file is None else file_of(who, "results", file)
        self._who, self._what = who, what
        about = json.loads(json.dumps(about))
        with self._errors():
            # Transactions are begun by hand, because the module begins none for `create table`.
            self._connection = sqlite3.connect(
                ":memory:" if file is None else self._file, timeout=_PATIENCE, isolation_level=None
            )
        try:
            with self._writing():  # if two processes start together, only one creates the tables
                self._make_or_check(about)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _make_or_check(self, about: Mapping[str, Any]) -> None:
        ((application,),) = self._read("pragma application_id")
        if application == self.application:
            ((was,),) = self._read("select about from facts")
            self._check(json.loads(was), about)
            return
        if self._read("select * from sqlite_master"):
            got = f"another program's database, {str(self._file)!r}"
            required = f"results must be a new file or the file of a {self._what}"
            _checks.fail(self._who, required, got, "pass another file")
        # `executescript` would commit the open transaction.
        for statement in ("create table facts (about text not null)", *self.tables.split(";")):
            self._connection.execute(statement)
        self._connection.execute("insert into facts values (?)", [json.dumps(about)])
        self._connection.execute(f"pragma application_id = {self.application}")

    def _check(self, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for name in was | now:
            before, wanted = (about.get(name, _UNSAID.get(name)) for about in (was, now))
            if before != wanted:
                _checks.fail(
                    self._who,
                    f"{name} must be that of the {self._what} in {self._file}, {before!r}",
                    f"{wanted!r}",
                    f"pass another file, or the arguments of that {self._what}",
                )

    def _read(self, query: str, *values: Any) -> list[tuple]:
        with self._errors():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Make all writes inside the block one transaction."""
        with self._errors():
            self._connection.execute("begin immediate")
            with self._connection:
                yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            required = "results must be a file that SQLite can write"
            _checks.fail(self._who, required, f"{str(self._file)!r}: {error}")


def encode(value: Any) -> str:
    """Write JSON that preserves the types of arrays and the value of every number, also NaN."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return {"array": value.tolist(), "dtype": value.dtype.name}
        raise TypeError(f"{type(value).__name__} cannot be stored as JSON")

    return json.dumps(value, default=plain)


def decode(text: str) -> Any:
    """Undo `encode`."""

    def arrays(entry: dict[str, Any]) -> Any:
        if entry.keys() == {"array", "dtype"}:
            return np.asarray(entry["array"], entry["dtype"])
        return entry

    return json.loads(text, object_hook=arrays)
