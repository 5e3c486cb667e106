"""`tensorboard`: a callback that writes the curves of `train` for TensorBoard."""

import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

from optlab import _checks
from optlab._extras import needs_extra
from optlab.lab.training._train import Evaluation

_WHO = "tensorboard"


def tensorboard(folder: str | Path) -> Callable[[Evaluation], None]:
    """Return a callback of `train` that writes its curves for TensorBoard.

    The scalars are "loss" at each update, and "learning_rate", "train/…", "validation/…" and
    "monitored/…" at each evaluation. They are on disk when the callback returns. A run that
    continues from a checkpoint may write into the same folder.

    Args:
        folder: where to write; created if it does not exist. Use one folder per run.

    Raises:
        ModuleNotFoundError: if tensorboardX is not installed.
        ValueError: the folder cannot be written to.
    """
    # tensorboardX's usual writer loses numbers in two cases: if a process is killed, because it
    # writes in a thread that `flush` does not wait for; and if an earlier run began in the same
    # second, because it overwrites that run's file.
    with needs_extra(_WHO, "tensorboard"):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(Path(folder, "events")), f".{time.time_ns()}")
    except OSError as error:
        required = "folder must be one that can be written"
        _checks.fail(_WHO, required, f"{folder}: {error.strerror}")

    def add(step: int, scalars: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def write(evaluation: Evaluation) -> None:
        first = evaluation.step - len(evaluation.losses) + 1
        for update, loss in enumerate(evaluation.losses, start=first):
            add(update, {"loss": loss})
        scalars = {
            f"{group}/{name}": value
            for group in ("train", "validation", "monitored")
            for name, value in getattr(evaluation, group).items()
        }
        if evaluation.learning_rate is not None:
            scalars["learning_rate"] = evaluation.learning_rate
        add(evaluation.step, scalars)
        writer.flush()

    weakref.finalize(write, writer.close)
    return write
