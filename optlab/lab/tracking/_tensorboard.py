"""`tensorboard`: curves in TensorBoard's event files, where each point is written once.

A reader of event files shows every point, also one that was written twice. So the files of a folder
are read before the first point is written, and points that are there are left out.
"""

import os
import struct
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optlab import _checks, _paths
from optlab._extras import needs_extra
from optlab.lab.sweeps._trial import Trial
from optlab.lab.tracking._common import (
    Points,
    Rows,
    Tracker,
    failures_named,
    plain,
    rows_of_trial,
)

_WHO = "tensorboard"


def tensorboard(folder: str | Path) -> Tracker:
    """Write curves for TensorBoard: of a run, of the trials of a sweep, or of your own loop.

    The numbers are in the file when a call returns. A run that continues from a checkpoint may
    write into the same folder: points that are there are not written again. If such a run has other
    numbers than before, it replaces the earlier points from there on: TensorBoard then shows the
    new ones alone, although both are in the files.

    A trial of a sweep is a run in the subfolder "trial-<number>", with its values and last metrics
    in the tab HParams.

    Args:
        folder: where to write, on a local disk; created if it does not exist. Use one folder per
            run.

    Returns:
        A tracker: a callback of `train` and `sweep`, or a function of a dictionary and a step.

    Raises:
        ModuleNotFoundError: tensorboardX is not installed.
        ValueError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, tensorboard(folder) as tracker:
        ...     for step, loss in enumerate([0.5, 0.25], start=1):
        ...         tracker({"train": {"loss": loss, "accuracy": 1 - loss}}, step=step)
    """
    with needs_extra(_WHO, "tensorboard"):
        import tensorboardX.event_file_writer
        import tensorboardX.summary  # noqa: F401

    path = Path(_paths.folder_of(_WHO, "folder", folder))
    _paths.make_folder(_WHO, "folder", path)
    if not os.access(path, os.W_OK | os.X_OK):
        _fail_to_write(path, "permission denied")
    return _TensorBoard(path)


class _TensorBoard(Tracker):
    def __init__(self, folder: Path):
        super().__init__(_WHO)
        self._folder = folder
        self._events: _Events | None = None

    def _write_rows(self, rows: Rows) -> None:
        with failures_named(_WHO, OSError):
            if self._events is None:
                self._events = _Events(self._folder)
            self._events.write(rows)

    def _go_back(self, step: int) -> None:
        # The run may go another way now, also if it is another run.
        if self._events is not None:
            self._events.continue_from_here()

    def _write_trial(self, trial: Trial) -> None:
        from tensorboardX.summary import hparams

        rows = rows_of_trial(trial)
        metrics = dict.fromkeys(rows[trial.num_updates])
        values = {**plain(trial.values), "status": trial.status}
        with failures_named(_WHO, OSError):
            events = _Events(self._folder / f"trial-{trial.number:04d}")
            for summary in hparams(values, metrics):
                events.write_event(summary=summary)
            events.write(rows)
            events.close()

    def _finish(self, error: BaseException | None) -> None:
        if self._events is not None:
            self._events.close()


class _Events:
    """The event files in a folder, and a new one that is written to."""

    def __init__(self, folder: Path):
        # tensorboardX's usual writer loses numbers in two cases: if a process is killed, because
        # it writes in a thread that `flush` does not wait for; and if an earlier run began in the
        # same second, because it overwrites that run's file.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._Event, self._SessionLog, self._Summary = Event, SessionLog, Summary
        self._earlier, self._own = Points("f"), Points("f")
        folder.mkdir(exist_ok=True)
        for path in sorted(folder.glob("*.tfevents.*")):
            self._read(path)
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self.close = weakref.finalize(self, self._writer.close)

    def write(self, rows: Rows) -> None:
        """Write the points that are not in a file yet."""
        for step, row in rows.items():
            if any(
                (name, step) in self._earlier and not self._earlier.has(name, step, value)
                for name, value in row.items()
            ):
                self._replace_from(step)
            new = {
                name: value
                for name, value in row.items()
                if not self._own.has(name, step, value) and not self._earlier.has(name, step, value)
            }
            self._write_row(step, new)
            for name, value in row.items():
                self._own.add(name, step, value)
        self._writer.flush()

    def write_event(self, **content: Any) -> None:
        """Write an event; it is on disk after the next `write`."""
        self._writer.write_event(self._Event(wall_time=time.time(), **content))

    def continue_from_here(self) -> None:
        """Regard all points as those of an earlier run, which this one may repeat or replace."""
        for step, row in self._own.rows().items():
            for name, value in row.items():
                self._earlier.add(name, step, value)
        self._own = Points("f")

    def _replace_from(self, step: int) -> None:
        """Let TensorBoard drop all points from a step on, and write those of this run again."""
        start = self._SessionLog(status=self._SessionLog.START)
        self.write_event(step=step, session_log=start)
        self._earlier.forget(step)
        for later, row in self._own.rows(step).items():
            self._write_row(later, row)

    def _write_row(self, step: int, row: dict[str, float]) -> None:
        if row:
            values = [self._Summary.Value(tag=tag, simple_value=x) for tag, x in row.items()]
            self.write_event(step=step, summary=self._Summary(value=values))

    def _read(self, path: Path) -> None:
        """Add the points of a file to the earlier ones."""
        for record in _records(path):
            event = self._Event.FromString(record)
            if event.session_log.status == self._SessionLog.START:
                self._earlier.forget(event.step)
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    self._earlier.add(value.tag, event.step, value.simple_value)


def _records(path: Path) -> Iterator[bytes]:
    """Yield the records of an event file, but for a last one that a killed process left short."""
    data, start = path.read_bytes(), 0
    while start + 12 <= len(data):
        # A record has its length, a checksum of that, its bytes, and a checksum of them.
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + 12 + length
        if end + 4 > len(data):
            return
        yield data[start + 12 : end]
        start = end + 4


def _fail_to_write(folder: Path, reason: str | None) -> None:
    _checks.fail(_WHO, "folder must be one that can be written", f"{folder}: {reason}")
