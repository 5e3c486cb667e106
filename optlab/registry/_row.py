"""What a row holds: a rule's functions, its reference, and what its checks must know."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optax

from optlab._types import Hyperparam, Schedule

Arrays = Sequence[np.ndarray]
TreeReference = Callable[..., tuple[list[np.ndarray], Any]]
"""(gradients, parameters, state, t, **hyperparameters) → (updates, state), None before t = 1."""


NONNEGATIVE, DECAY, STEPS = "finite and >= 0", "in [0, 1)", "an integer >= 1"

SHAPES: Mapping[str, tuple[int, ...]] = {"s": (), "w": (4, 3)}
"""The leaves that a rule is checked on, unless its row names others."""


@dataclass(frozen=True, eq=False)
class Row:
    """A gradient transformation, with what is needed to check it.

    Attributes:
        name: unique among all rows.
        summary: one line for people.
        constructor: makes the transformation; for an optimizer, from the learning rate first; for a
            wrapper, from the transformation to wrap.
        reference: the same on lists of float64 arrays; None where there is none.
        direction: for an optimizer, the function of its direction alone.
        direction_reference: the reference of the direction, for one array.
        direction_needs_params: whether the direction needs the parameters; its reference then
            takes one before the gradient.
        wraps: for a wrapper, the constructor of the optimizer it is checked around.
        fixed: arguments that make this row of the constructor, such as `momentum` of "momentum".
        samples: further arguments, so that together they reach every branch of the arithmetic.
        hyperparams: for each that may be scheduled, two valid values of which the first is the
            default or a common one. Values outside its domain must be refused.
        errors: further arguments that must be refused, with the message.
        outcome: (updates, state) → what `reference` returns as its updates, where that is not them.
        needs_params: whether `update` needs the parameters.
        own: whether the transformation is lifted from rules, so that it keeps optlab's promises
            about errors and hyperparameters.
        exemplar: whether the checks of the lift run on it in the fast suite; all rows take part in
            the slow one.
        rtol: the largest difference to the reference in float32, relative to a leaf's largest
            outcome.
        drift: the same over a million updates, for each sample of the row, or of its direction
            where it has one; the default is 1e-5.
        shapes: the shapes of the leaves to check on.
        elementwise: whether an element of an update depends on no other element of its leaf, so
            that its error is relative to itself; otherwise to the largest of the leaf.
        gain: how much larger than gradient/ε an update can be where both are small; what underflows
            may be missing from an update as many times.
        spread: the sizes of a leaf's gradients differ from 10⁻ᵛ to 10ᵛ between coordinates.
        squares: whether gradients beyond 2⁶³ count as 2⁶³, as their squares overflow.
        exempt: checks that do not hold for this row, with the reason.
    """

    name: str
    summary: str
    constructor: Callable[..., optax.GradientTransformation]
    reference: TreeReference | None = None
    direction: Callable[..., optax.GradientTransformation] | None = None
    direction_reference: Callable[..., Any] | None = None
    direction_needs_params: bool = False
    wraps: Callable[..., optax.GradientTransformation] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ({},)
    hyperparams: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    errors: tuple[tuple[Mapping[str, Any], str], ...] = ()
    outcome: Callable[[Any, Any], Any] = lambda updates, state: updates
    needs_params: bool = False
    own: bool = True
    exemplar: bool = False
    rtol: float = 2e-6
    drift: tuple[float, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: SHAPES)
    elementwise: bool = True
    gain: float = 1.0
    spread: float = 2.0
    squares: bool = False
    exempt: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_optimizer(self) -> bool:
        """Whether the transformation is made from a learning rate."""
        return (
            self.wraps is not None
            or "learning_rate" in inspect.signature(self.constructor).parameters
        )

    def make(self, *args: Hyperparam, **options: Any) -> Any:
        """Make the transformation, an optimizer from its learning rate.

        A wrapper takes the options that are its own, and leaves the rest to what it wraps.
        """
        if self.wraps is None:
            return self.constructor(*args, **{**self.fixed, **options})
        names = inspect.signature(self.constructor).parameters
        own = {name: value for name, value in options.items() if name in names}
        others = {name: value for name, value in options.items() if name not in names}
        return self.constructor(self.wraps(*args, **others), **{**self.fixed, **own})

    def arguments(self, **options: Any) -> dict[str, Any]:
        """Return arguments of `make`: those of the first sample, and a learning rate of 0.1."""
        rate = {"learning_rate": 0.1} if self.is_optimizer else {}
        return {**rate, **self.samples[0], **options}

    def of_direction(self) -> "Row | None":
        """Return a row of the optimizer's direction; None if it has none of its own."""
        if self.direction is None or self.direction_reference is None:
            return None
        names = set(inspect.signature(self.direction).parameters)

        def mine(options: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in options.items() if name in names}

        samples: list[dict[str, Any]] = []
        for sample in self.samples:
            if mine(sample) not in samples:
                samples.append(mine(sample))
        return replace(
            self,
            name=self.direction.__name__,
            summary=f"the direction of {self.name}",
            constructor=self.direction,
            reference=of_direction(self.direction_reference, self.direction_needs_params),
            direction=None,
            fixed=mine(self.fixed),
            samples=tuple(samples),
            hyperparams=mine(self.hyperparams),
            errors=tuple(
                (options, message) for options, message in self.errors if set(options) <= names
            ),
            needs_params=self.direction_needs_params,
            exemplar=False,
        )


def of_direction(rule: Callable[..., Any], needs_params: bool = False) -> TreeReference:
    """Return the reference of a direction on lists of arrays, from that on one array."""

    def tree_reference(gradients: Arrays, params: Arrays, state: Any, t: int, **hyperparams: Any):
        state = state or [{}] * len(gradients)
        arrays = zip(params, gradients, strict=True) if needs_params else ((g,) for g in gradients)
        pairs = [rule(*own, s, t, **hyperparams) for own, s in zip(arrays, state, strict=True)]
        return [u for u, _ in pairs], [s for _, s in pairs]

    return tree_reference


def of_descent(rule: Callable[..., Any]) -> TreeReference:
    """Return the reference −α(u + λθ) of an optimizer, from that of its direction u on one array.

    λ is `weight_decay`, 0 where the optimizer has none.
    """

    def tree_reference(
        gradients: Arrays,
        params: Arrays,
        state: Any,
        t: int,
        learning_rate: float,
        weight_decay: float = 0.0,
        **hyperparams: Any,
    ):
        directions, state = of_direction(rule)(gradients, params, state, t, **hyperparams)
        pairs = zip(directions, params, strict=True)
        return [-learning_rate * (u + weight_decay * p) for u, p in pairs], state

    return tree_reference


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
