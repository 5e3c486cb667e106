"""`History`: the curves of one run, which `train` records and `diagnose` reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab import _checks
from optlab._report import strict, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class History:
    """The curves of one run, as NumPy arrays, recorded by `train` or by your own loop.

    Attributes:
        loss: (updates,) float, the loss of each update's batch, before the update.
        steps: (evaluations,) int, ascending: the updates done at each evaluation; 0 is before the
            first update.
        train: metric → (evaluations,) float, on training data in evaluation mode; empty if it was
            not evaluated.
        validation: metric → (evaluations,) float, on validation data; if the task has no data, the
            metrics of the objective itself.
        learning_rate: (updates,) float, the rate of each update; with several parameter groups the
            largest one. None if it is unknown.
        rates: group → (updates,) float, the rate of each parameter group; empty where there is one.
        monitored: name → (updates,) float, the values of `monitor` at each update, such as
            "gradient_norm" and "ratio/head"; empty without `monitor`.
        score: the metric by which the run is judged.
        maximize: whether a higher score is better.

    Raises:
        ValueError: the arrays' lengths do not agree, or `steps` does not ascend.

    Example:
        >>> history = History(
        ...     loss=np.linspace(2.3, 0.1, 100),
        ...     steps=np.array([0, 50, 100]),
        ...     validation={"loss": np.array([2.3, 1.3, 0.2])},
        ... )
        >>> history.num_updates
        100
    """

    loss: np.ndarray
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    train: Mapping[str, np.ndarray] = field(default_factory=dict)
    validation: Mapping[str, np.ndarray] = field(default_factory=dict)
    learning_rate: np.ndarray | None = None
    rates: Mapping[str, np.ndarray] = field(default_factory=dict)
    monitored: Mapping[str, np.ndarray] = field(default_factory=dict)
    score: str = "loss"
    maximize: bool = False

    def __post_init__(self) -> None:
        """Turn sequences into arrays, and check that their lengths agree."""
        for name in ("loss", "steps", "learning_rate"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name)))
        for name in ("train", "validation", "rates", "monitored"):
            arrays = {key: np.asarray(value) for key, value in getattr(self, name).items()}
            object.__setattr__(self, name, arrays)
        if self.loss.ndim != 1:
            _checks.fail("History", "loss must be (updates,)", f"shape {self.loss.shape}")
        if self.steps.ndim != 1 or (np.diff(self.steps) <= 0).any():
            _checks.fail("History", "steps must be (evaluations,) and ascend", f"{self.steps}")
        per_update = {"learning_rate": self.learning_rate, **_named("rates", self.rates)}
        per_update |= _named("monitored", self.monitored)
        per_evaluation = {**_named("train", self.train), **_named("validation", self.validation)}
        _check_lengths(per_update, len(self.loss), "update")
        _check_lengths(per_evaluation, len(self.steps), "evaluation")

    @property
    def num_updates(self) -> int:
        """The number of updates done."""
        return len(self.loss)

    def plot(self, *, title: str | None = None) -> "Figure":
        """Draw the curves; see `optlab.plots.plot_history`.

        Raises:
            ModuleNotFoundError: if Matplotlib is not installed.
        """
        from optlab.plots import plot_history

        return plot_history(self, title=title)

    def to_json(self, **extra: Any) -> str:
        """Return everything as strict JSON; a number that is not finite is null.

        Args:
            extra: further entries, such as the options of the call.
        """
        document = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        document["versions"] = versions("optlab", "jax", "jaxlib", "optax", "flax", "numpy")
        return json.dumps(strict({**extra, **document}), allow_nan=False)


def _named(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}[{name!r}]": array for name, array in arrays.items()}


def _check_lengths(arrays: Mapping[str, np.ndarray | None], length: int, of_each: str) -> None:
    for name, array in arrays.items():
        if array is not None and array.shape != (length,):
            _checks.fail(
                "History",
                f"{name} must have one number for each {of_each}, the shape ({length},)",
                f"shape {array.shape}",
            )
