"""`BenchFile`: the results of a benchmark as they arrive, in one SQLite file.

    facts       one row: the facts that all results share, as JSON
    tasks       task → its facts: what it is, its updates, its target
    optimizers  optimizer → its facts: what it is, its space
    runs        (task, optimizer, trial, seed) → the run
    seconds     (task, optimizer) → seconds per update, and on which machine

Tasks and optimizers may be added to a file at any time. One that is already there must have the
same facts as before.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from optlab import _checks
from optlab.lab.sweeps._database import Database, decode, encode

_TABLES = """
create table tasks (task text primary key, facts text not null);
create table optimizers (optimizer text primary key, facts text not null);
create table runs (
    task text not null, optimizer text not null, trial integer not null, seed integer not null,
    contents text not null,
    primary key (task, optimizer, trial, seed)
);
create table seconds (
    task text not null, optimizer text not null, machine text not null, seconds real not null,
    primary key (task, optimizer)
);
"""


class OneRun(NamedTuple):
    """One run of an optimizer on a task.

    Attributes:
        trial: the number of the point in the space.
        seed: the seed of the initialization, the batches and the noise.
        values: the values of the hyperparameters, by name.
        steps: (evaluations,) int, updates done.
        scores: (evaluations,) float, the judged metric on validation.
        test: metric → float, on the test split at the end; empty if it was not evaluated.
        diverged: whether the run diverged.
    """

    trial: int
    seed: int
    values: Mapping[str, Any]
    steps: np.ndarray
    scores: np.ndarray
    test: Mapping[str, float]
    diverged: bool


class Timed(NamedTuple):
    """The time of an update.

    Attributes:
        machine: the machine, in words.
        seconds: seconds per update.
    """

    machine: str
    seconds: float


class BenchFile(Database):
    """The results of a benchmark.

    Args:
        who: the public name that errors begin with.
        file: as for `Database`.
        about: the facts that all results share.

    Raises:
        ValueError: as `Database` does.
    """

    application = int.from_bytes(b"opbe")
    tables = _TABLES

    def __init__(self, who: str, file: str | Path | None, about: Mapping[str, Any]):
        super().__init__(who, file, about, "benchmark")

    def check_task(self, task: str, facts: Mapping[str, Any]) -> None:
        """Write the facts of a task, or require those that are there."""
        self._add_or_check("task", task, facts)

    def check_optimizer(self, optimizer: str, facts: Mapping[str, Any]) -> None:
        """Write the facts of an optimizer, or require those that are there."""
        self._add_or_check("optimizer", optimizer, facts)

    def facts(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return name → facts, in the order in which they came; `kind` is "task" or "optimizer"."""
        rows = self._read(f"select {kind}, facts from {kind}s order by rowid")
        return {name: json.loads(facts) for name, facts in rows}

    def set_target(self, task: str, target: float) -> None:
        """Write the target of a task that sets none itself."""
        facts = self.facts("task")[task] | {"target": target}
        with self._writing():
            self._connection.execute(
                "update tasks set facts = ? where task = ?", [json.dumps(facts), task]
            )

    def add(self, task: str, optimizer: str, runs: Iterable[OneRun]) -> None:
        """Write runs; those that exist are left alone."""
        rows = [(task, optimizer, run.trial, run.seed, encode(run._asdict())) for run in runs]
        with self._writing():
            self._connection.executemany("insert or ignore into runs values (?, ?, ?, ?, ?)", rows)

    def runs(self, task: str, optimizer: str) -> list[OneRun]:
        """Return the runs of an optimizer on a task, by trial and seed."""
        query = "select contents from runs where task = ? and optimizer = ? order by trial, seed"
        rows = self._read(query, task, optimizer)
        return [OneRun(**decode(contents)) for (contents,) in rows]

    def add_seconds(self, task: str, optimizer: str, timed: Timed) -> None:
        """Write the time of an update; one that exists is left alone."""
        with self._writing():
            self._connection.execute(
                "insert or ignore into seconds values (?, ?, ?, ?)", [task, optimizer, *timed]
            )

    def seconds(self, task: str, optimizer: str) -> Timed | None:
        """Return the time of an update; None if it was not measured."""
        query = "select machine, seconds from seconds where task = ? and optimizer = ?"
        rows = self._read(query, task, optimizer)
        return Timed(*rows[0]) if rows else None

    def _add_or_check(self, kind: str, name: str, facts: Mapping[str, Any]) -> None:
        facts = json.loads(json.dumps(facts))
        with self._writing():
            was = self.facts(kind).get(name)
            if was is None:
                row = [name, json.dumps(facts)]
                self._connection.execute(f"insert into {kind}s values (?, ?)", row)
                return
        for fact in was | facts:
            # A target that the rule found stands in the file alone.
            found = fact == "target" and facts.get(fact) is None and was["target_of"] == "rule"
            if was.get(fact) != facts.get(fact) and not found:
                _checks.fail(
                    self._who,
                    f"{fact} of {kind} {name!r} must be that of the benchmark in {self._file}, "
                    f"{was.get(fact)!r}",
                    repr(facts.get(fact)),
                    f"pass another file, or give {kind}s that differ different names",
                )
