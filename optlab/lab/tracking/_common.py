"""`Tracker`: what the trackers share, which is the way from runs and trials to rows of numbers."""

import array
import bisect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from optlab import _checks
from optlab.lab.sweeps._trial import Trial
from optlab.lab.training._results import Evaluation

Rows = dict[int, dict[str, float]]
"""Update → name → value."""


class Tracker(ABC):
    """A place where the numbers of runs are written, as a function and as a context manager.

    Pass it as a callback to `train`, which calls it with every `Evaluation`, or to `sweep`, which
    calls it with every `Trial`; or call it in a loop of your own with numbers by name. A number
    that was written before is not written twice: a run may go on from its checkpoint with a new
    tracker of the same place. If JAX runs in several processes, only the first one writes.
    """

    def __init__(self, who: str):
        self._who = who
        self._last = -1
        self._closed = False

    def __call__(
        self, record: Evaluation | Trial | Mapping[str, Any], *, step: int | None = None
    ) -> None:
        """Write a record.

        Args:
            record: an `Evaluation`: "loss" at each update, and "train/…", "validation/…",
                "monitored/…" and "learning_rate" at its last one. A `Trial`: its values, and
                "train/loss" and "validation/…" at each evaluation, as means over its seeds. Or
                name → number, which may be a scalar of Python, NumPy or JAX; dictionaries within
                are joined by "/".
            step: the update that the numbers of a dictionary belong to, ≥ 0; None otherwise.

        Raises:
            RuntimeError: the tracker's library failed.
            ValueError: the record or the step is of another kind, or the tracker is closed.
        """
        if self._closed:
            _checks.fail(
                self._who, "the tracker must be open", "a closed one", "make another tracker"
            )
        if isinstance(record, Mapping):
            step = _checks.check_count(self._who, "step", step, 0)
            write, argument = self._write_rows, {step: _flat(self._who, record)}
        elif not isinstance(record, Evaluation | Trial):
            _checks.fail(
                self._who,
                "a record must be an Evaluation, a Trial or a dictionary of numbers",
                repr(record),
                'pass {"loss": loss}, say, and step=step',
            )
        elif step is not None:
            kind = type(record).__name__
            required = f"step must be left out where the record is of type {kind}"
            _checks.fail(self._who, required, f"step={step!r}")
        elif isinstance(record, Trial):
            write, argument = self._write_trial, record
        else:
            write, argument = self._write_evaluation, record
        if jax.process_index() == 0:
            write(argument)

    def close(self) -> None:
        """Finish what is open. A tracker that nobody closes is finished with the process."""
        self._end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if not self._closed:
            self._closed = True
            self._finish(error)

    def _write_evaluation(self, evaluation: Evaluation) -> None:
        if evaluation.step - len(evaluation.losses) < self._last:
            self._go_back(evaluation.step)
        self._write_rows(_rows_of_evaluation(evaluation))
        self._last = evaluation.step

    def _go_back(self, step: int) -> None:
        """Prepare for a run that was at the update `_last` and continues from an earlier one."""
        if step == 0:
            _checks.fail(
                self._who,
                "a tracker must follow one run",
                f"update 0 after update {self._last}",
                "make a tracker for each run of train",
            )

    @abstractmethod
    def _write_rows(self, rows: Rows) -> None:
        """Write the numbers that are not there yet."""

    @abstractmethod
    def _write_trial(self, trial: Trial) -> None:
        """Write a trial of a sweep as a run of its own."""

    @abstractmethod
    def _finish(self, error: BaseException | None) -> None:
        """Release what is open; `error` is what ended the block of the context manager."""


class Points:
    """The numbers that were written, by name and step, in a few bytes each.

    Args:
        typecode: the type in which the tracker's library stores numbers: "f" for float32, "d" for
            float64.
    """

    def __init__(self, typecode: str):
        self._typecode = typecode
        self._curves: dict[str, tuple[array.array, array.array]] = {}

    def __contains__(self, point: tuple[str, int]) -> bool:
        return self._find(*point)[1]

    def has(self, name: str, step: int, value: float) -> bool:
        """Whether this very number was written; NaN equals NaN."""
        place, exists = self._find(name, step)
        if not exists:
            return False
        old, new = self._curves[name][1][place], array.array(self._typecode, [value])[0]
        return old == new or (old != old and new != new)

    def add(self, name: str, step: int, value: float) -> None:
        """Add a number; it replaces the one of this name and step."""
        place, exists = self._find(name, step)
        steps, values = self._curves.setdefault(
            name, (array.array("q"), array.array(self._typecode))
        )
        if exists:
            values[place] = value
        else:
            steps.insert(place, step)
            values.insert(place, value)

    def rows(self, first: int = 0) -> Rows:
        """Return the numbers from a step on."""
        rows: Rows = {}
        for name, (steps, values) in self._curves.items():
            for i in range(bisect.bisect_left(steps, first), len(steps)):
                rows.setdefault(steps[i], {})[name] = values[i]
        return dict(sorted(rows.items()))

    def forget(self, first: int) -> None:
        """Forget the numbers from a step on."""
        for steps, values in self._curves.values():
            place = bisect.bisect_left(steps, first)
            del steps[place:], values[place:]

    def _find(self, name: str, step: int) -> tuple[int, bool]:
        """Return the place of a step in its curve, and whether it is there."""
        steps = self._curves[name][0] if name in self._curves else ()
        place = bisect.bisect_left(steps, step)
        return place, place < len(steps) and steps[place] == step


@contextmanager
def failures_named(who: str, *kinds: type[Exception]) -> Iterator[None]:
    """Let the errors of a library begin with the name of the tracker.

    Raises:
        RuntimeError: in place of an error of one of these kinds.
    """
    try:
        yield
    except kinds as error:
        raise RuntimeError(f"{who}: {str(error) or type(error).__name__}") from error


def rows_of_trial(trial: Trial) -> Rows:
    """Return the curves of a trial, as means over its seeds."""
    rows: Rows = {}
    curves = {f"validation/{name}": values for name, values in trial.validation.items()}
    with np.errstate(invalid="ignore"):  # the mean of a diverged trial may be ∞ − ∞
        means = {
            name: np.mean(values, axis=0, dtype=float)
            for name, values in {"train/loss": trial.train_loss, **curves}.items()
        }
    for i, step in enumerate(trial.steps):
        # Before the first update there is no training loss.
        names = means if step else curves
        rows[int(step)] = {name: float(means[name][i]) for name in names}
    return rows


def plain(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return hyperparameters as numbers and texts."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", None) or repr(value)


def _rows_of_evaluation(evaluation: Evaluation) -> Rows:
    first = evaluation.step - len(evaluation.losses) + 1
    rows: Rows = {
        update: {"loss": float(loss)} for update, loss in enumerate(evaluation.losses, start=first)
    }
    scalars = {
        f"{group}/{name}": float(value)
        for group in ("train", "validation", "monitored")
        for name, value in getattr(evaluation, group).items()
    }
    if evaluation.learning_rate is not None:
        scalars["learning_rate"] = float(evaluation.learning_rate)
    rows.setdefault(evaluation.step, {}).update(scalars)
    return rows


def _flat(who: str, record: Mapping[Any, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of nested dictionaries by the names that lead to them, joined by "/"."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if not isinstance(name, str) or not name:
            _checks.fail(who, "names must be texts that are not empty", repr(name))
        path = prefix + name
        if isinstance(value, Mapping):
            numbers |= _flat(who, value, f"{path}/")
        else:
            numbers[path] = _number(who, path, value)
    return numbers


def _number(who: str, name: str, value: Any) -> float:
    if isinstance(value, jax.core.Tracer):
        _checks.fail(
            who,
            f"{name} must be a number that is known",
            "a traced one",
            "return it from the compiled function, and pass it on outside",
        )
    try:
        scalar = np.asarray(value)
    except (RuntimeError, TypeError, ValueError):  # a ragged list, a tensor that has a gradient
        _checks.fail(who, f"{name} must be a real scalar", repr(value))
    if scalar.shape:
        _checks.fail(
            who,
            f"{name} must be a scalar",
            f"shape {scalar.shape}",
            "pass its mean, or its numbers under names of their own",
        )
    if scalar.dtype.kind not in "biufV":  # V are the small floating-point types of JAX
        _checks.fail(who, f"{name} must be a real scalar", repr(value))
    return float(scalar)
