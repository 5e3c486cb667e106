"""What all schedules share: a curve that knows its knots, and exact positions between them.

Positions are formed from integer differences, T − t rather than 1 − t/T, so that every knot is met
exactly and no digit is lost near the end of a long run. All curves are finite for every step up
to 2³¹ − 1, and those that end are constant past their last knot; steps below 0 count as 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from optlab import _checks
from optlab._types import Array, ArrayLike

LAST_STEP = 2**31 - 1
"""The last step that counts; later ones are taken for it."""


@dataclass(frozen=True, repr=False)
class Curve:
    """A schedule: a pure function of the step that knows where its formula changes.

    Attributes:
        text: how it was made, for people.
        function: the value at a step given as an array, ≥ 0.
        knots: steps at which the formula changes or ends, ascending, from 0; not always whole.
    """

    text: str
    function: Callable[[Array], Array]
    knots: tuple[float, ...]

    def __call__(self, step: ArrayLike) -> Array:
        """Return the value at a step: an int, a NumPy integer or a traced integer."""
        if isinstance(step, int):
            step = min(step, LAST_STEP)
        step = jnp.asarray(step)
        if jnp.issubdtype(step.dtype, jnp.integer) and step.dtype != jnp.int64:
            # Differences of unsigned steps, which Flax NNX counts in, would wrap around.
            step = jnp.minimum(step, min(LAST_STEP, jnp.iinfo(step.dtype).max)).astype(jnp.int32)
        return self.function(jnp.maximum(step, 0))

    def __repr__(self) -> str:
        return self.text


def describe(name: str, **arguments: object) -> str:
    """Return `name(argument=value, …)`."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def as_float(x: ArrayLike) -> Array:
    """Return x in the type that schedules are computed in: float32, or float64 under x64."""
    return jnp.asarray(x, float)


def remaining(step: Array, start: float, stop: float) -> Array:
    """Return the share of the way from `start` to `stop` that is left: 1 before, 0 after.

    The ends are selected: a compiler may divide by multiplying with a rounded reciprocal.
    """
    between = as_float(stop - jnp.clip(step, start, stop)) / (stop - start)
    return jnp.where(step <= start, 1.0, jnp.where(step >= stop, 0.0, jnp.clip(between, 0, 1)))


def half_cosine(share: Array) -> Array:
    """Return ½(1 + cos(π(1 − share))), for a share from 1 down to 0.

    As sin²(½π·share), which keeps the digits that 1 + cos loses, and is exact at 1 and 0.
    """
    return jnp.sin(0.5 * jnp.pi * share) ** 2


def mix(weight: Array, first: ArrayLike, second: ArrayLike) -> Array:
    """Return weight·first + (1 − weight)·second, exactly `first` at 1 and `second` at 0.

    The ends are selected: a compiler may rearrange the sum so that they are missed by a rounding,
    which can make a first learning rate of 0 negative.
    """
    first, second = as_float(first), as_float(second)
    between = weight * first + (1 - weight) * second
    return jnp.where(weight == 1, first, jnp.where(weight == 0, second, between))


def check_values(who: str, **values: ArrayLike) -> None:
    """Require finite scalars."""
    for name, value in values.items():
        _checks.check_number(who, name, value, _checks.FINITE)


def check_steps(who: str, minimum: int, **steps: int) -> None:
    """Require integer numbers of updates of at least `minimum`."""
    for name, value in steps.items():
        _checks.check_count(who, name, value, minimum)
