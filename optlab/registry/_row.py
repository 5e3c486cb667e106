"""What a row holds, and short ways to write the bad arguments that must be refused."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optax

from optlab._types import Hyperparam, Schedule

Arrays = Sequence[np.ndarray]
TreeReference = Callable[..., tuple[list[np.ndarray], Any]]
"""(gradients, parameters, state, t, **hyperparameters) → (updates, state), None before t = 1."""


NONNEGATIVE, DECAY, STEPS = "finite and >= 0", "in [0, 1)", "an integer >= 1"


@dataclass(frozen=True)
class Row:
    """A gradient transformation.

    Attributes:
        name: unique among all rows.
        summary: one line for people.
        constructor: makes the transformation; for an optimizer, from the learning rate first; for a
            wrapper, from the transformation to wrap.
        reference: the same on lists of float64 arrays.
        wraps: for a wrapper, the constructor of the optimizer it is checked around.
        fixed: arguments that make this row of the constructor, such as `momentum` of "momentum".
        samples: further arguments, so that together they reach every branch of the arithmetic.
        hyperparams: for each that may be scheduled, two valid values of which the first is the
            default or a common one.
        errors: arguments that must be refused, with the message.
        outcome: (updates, state) → what `reference` returns as its updates, where that is not them.
        needs_params: whether `update` needs the parameters.
        exempt: checks that do not hold for this row, with the reason.
    """

    name: str
    summary: str
    constructor: Callable[..., optax.GradientTransformationExtraArgs]
    reference: TreeReference
    wraps: Callable[..., optax.GradientTransformation] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ({},)
    hyperparams: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    errors: tuple[tuple[Mapping[str, Any], str], ...] = ()
    outcome: Callable[[Any, Any], Any] = lambda updates, state: updates
    needs_params: bool = False
    exempt: Mapping[str, str] = field(default_factory=dict)

    def make(self, *args: Hyperparam, **options: Any) -> optax.GradientTransformationExtraArgs:
        """Make the transformation, an optimizer from its learning rate.

        A wrapper takes the options that are its own, and leaves the rest to what it wraps.
        """
        if self.wraps is None:
            return self.constructor(*args, **{**self.fixed, **options})
        names = inspect.signature(self.constructor).parameters
        own = {name: value for name, value in options.items() if name in names}
        others = {name: value for name, value in options.items() if name not in names}
        return self.constructor(self.wraps(*args, **others), **{**self.fixed, **own})


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule.

    Attributes:
        name: that of the constructor, with a suffix behind a dot where it has several rows.
        summary: one line for people.
        constructor: makes the schedule.
        reference: (step, **arguments) → value, in float64.
        samples: arguments to check it with.
        errors: arguments that must be refused, with the message.
        endless: whether it goes on changing past its last knot.
    """

    name: str
    summary: str
    constructor: Callable[..., Schedule]
    reference: Callable[..., float]
    samples: tuple[Mapping[str, Any], ...]
    errors: tuple[tuple[Mapping[str, Any], str], ...]
    endless: bool = False


def bad(name: str, value: float, required: str, /, **others: Any) -> tuple[dict[str, Any], str]:
    """Return arguments of which one is outside its domain, and the message."""
    return {name: value, **others}, f"{name} must be {required}, got {name}={value}"


def number_errors(*names: str, **others: Any) -> tuple[tuple[dict[str, Any], str], ...]:
    """Return what each of these numbers, finite and ≥ 0, must not be."""
    values = (-0.5, float("nan"), float("inf"))
    return tuple(bad(name, value, NONNEGATIVE, **others) for name in names for value in values)


def decay_errors(*names: str, **others: Any) -> tuple[tuple[dict[str, Any], str], ...]:
    """Return what each of these decay rates must not be."""
    values = (-0.5, 1.0, float("nan"))
    return tuple(bad(name, value, DECAY, **others) for name in names for value in values)
