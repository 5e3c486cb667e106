"""`wandb`: curves in Weights & Biases, where each update is a row that is written once.

W&B takes the rows of a run in the order of their steps, and none twice. Online, its server knows at
which step a run continues. Offline, the earlier rows are in files, which are read to find the step.
"""

import glob
import inspect
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from optlab import _checks
from optlab._extras import needs_extra
from optlab.lab.sweeps._trial import Trial
from optlab.lab.tracking._common import Rows, Tracker, failures_named, plain, rows_of_trial

_WHO = "wandb"

_HEADER = 7
"""Bytes before the first record of a .wandb file, and before each part of a record."""
_BLOCK = 32768
"""Bytes of a block of a .wandb file; no part of a record crosses the end of one."""
_FULL, _LAST = 1, 4
"""Kinds of parts that end a record."""


def wandb(**init: Any) -> Tracker:
    """Write curves to Weights & Biases: of a run, of a sweep's trials, or of your own loop.

    The W&B run begins with the first number, and ends with `close`, at the end of a `with` block,
    or with the process. Without arguments, the numbers go to the run that is active, if there is
    one; it is left open.

    To continue a run from a checkpoint, pass the same `id` (and, offline, the same `dir`): rows
    that the run has are left out. W&B cannot replace a row, so a run that goes another way from an
    earlier update needs another `id`, or W&B's `resume_from`. Offline, W&B writes blocks of 32 kB,
    so a process that is killed, rather than interrupted, loses its latest rows.

    Each trial of a sweep is a W&B run of its own, with its values in the config and its status and
    score in the summary. All are in one group; pass `group` to name it. To start and end a run
    takes W&B a second or so.

    Args:
        init: the arguments of `wandb.init`, such as `project="digits"`, `config={"width": 64}`,
            `id="digits-3"` or `mode="offline"`. A trial has its number added to `id` and `name`.

    Returns:
        A tracker: a callback of `train` and `sweep`, or a function of a dictionary and a step.

    Raises:
        ModuleNotFoundError: wandb is not installed.
        ValueError: an argument is none of `wandb.init`.
    """
    with needs_extra(_WHO, "wandb"):
        import wandb as library

    for name in init:
        if name not in inspect.signature(library.init).parameters:
            _checks.fail(_WHO, "the arguments must be those of wandb.init", name)
    return _WandB(library, init)


class _WandB(Tracker):
    def __init__(self, library: ModuleType, init: dict[str, Any]):
        super().__init__(_WHO)
        self._library, self._init = library, init
        self._run: Any = None
        self._next = 0  # rows before this step are written
        self._group = init.get("group")

    def _write_rows(self, rows: Rows) -> None:
        with self._failures_named():
            if self._run is None:
                self._start()
            for step, row in rows.items():
                if step >= self._next:
                    self._run.log(row, step=step)

    def _go_back(self, step: int) -> None:
        super()._go_back(step)
        self._next = self._run.step

    def _start(self) -> None:
        active = self._library.run
        self._is_ours = bool(self._init) or active is None
        self._run = self._new_run(**self._init) if self._is_ours else active
        if self._is_ours or self._run.resumed:
            self._next = self._run.step
        if self._is_ours and self._run.offline:
            folder, run = Path(self._run.settings.wandb_dir), glob.escape(self._run.id)
            for path in folder.glob(f"offline-run-*/run-{run}.wandb"):
                for record in _records(path):
                    if record.HasField("history"):
                        self._next = max(self._next, record.history.step.num + 1)

    def _write_trial(self, trial: Trial) -> None:
        named = {name: self._init[name] for name in ("id", "name") if self._init.get(name)}
        if self._group is None:
            made_up = f"sweep-{uuid.uuid4().hex[:8]}"
            self._group = named.get("name") or named.get("id") or made_up
        named = {"name": "trial", **named}
        options = {name: f"{text}-{trial.number}" for name, text in named.items()}
        with self._failures_named():
            run = self._new_run(**{**self._init, **options, "group": self._group})
            run.config.update(plain(trial.values), allow_val_change=True)
            for step, row in rows_of_trial(trial).items():
                if step >= run.step:
                    run.log(row, step=step)
            run.summary.update({"status": trial.status, "score": trial.score})
            run.finish()

    def _new_run(self, **init: Any) -> Any:
        # Runs of trials and of other trackers may be open at the same time.
        usual = {"reinit": "create_new"}
        if init.get("id") and not {"resume", "resume_from", "fork_from"} & init.keys():
            usual["resume"] = "allow"
        return self._library.init(**{**usual, **init})

    def _finish(self, error: BaseException | None) -> None:
        if self._run is not None and self._is_ours:
            with self._failures_named():
                self._run.finish(exit_code=0 if error is None else 1)

    def _failures_named(self) -> Any:
        return failures_named(_WHO, self._library.errors.Error)


def _records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file, which is a log in the format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, start, record = path.read_bytes(), _HEADER, b""
    while start + _HEADER <= len(data):
        left = _BLOCK - start % _BLOCK
        if left < _HEADER:  # the end of a block is empty
            start += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, start)
        start += _HEADER + length
        if start > len(data):  # a killed process left the last record short
            return
        record += data[start - length : start]
        if kind in (_FULL, _LAST):
            yield Record.FromString(record)
            record = b""
