"""What all schedules share: a curve that knows its knots, and exact positions between them.

Positions are formed from integer differences, T − t rather than 1 − t/T, so that every knot is met
exactly and no digit is lost near the end of a long run. All curves are finite for every step up
to 2³¹ − 1, and those that end are constant past their last knot; steps below 0 count as 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

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
        if isinstance(step, int | np.integer):
            step = min(int(step), LAST_STEP)
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


def shares(step: Array, start: float, stop: float) -> tuple[Array, Array]:
    """Return the shares of the way from `start` to `stop` that are left and done, in [0, 1].

    Each is formed from its own difference, so that neither loses digits where it is small. The
    ends are selected: a compiler may divide by multiplying with a rounded reciprocal.
    """
    inside = jnp.clip(step, start, stop)
    before, after = step <= start, step >= stop

    def share(part: Array, at_start: float, at_stop: float) -> Array:
        between = jnp.clip(as_float(part) / (stop - start), 0, 1)
        return jnp.where(before, at_start, jnp.where(after, at_stop, between))

    return share(stop - inside, 1.0, 0.0), share(inside - start, 0.0, 1.0)


def half_cosines(left: Array, done: Array) -> tuple[Array, Array]:
    """Return ½(1 + cos(π·done)) and what it lacks to 1.

    As sin²(½π·left) and sin²(½π·done), which keep the digits that 1 ± cos lose.
    """
    return jnp.sin(0.5 * jnp.pi * left) ** 2, jnp.sin(0.5 * jnp.pi * done) ** 2


def mix(weights: tuple[Array, Array], first: ArrayLike, second: ArrayLike) -> Array:
    """Return the mean of two values by weights that sum to 1.

    Where a weight is 0 the other value is selected: a compiler may rearrange the sum so that it is
    missed by a rounding, which can make a first learning rate of 0 negative.
    """
    first, second = as_float(first), as_float(second)
    between = weights[0] * first + weights[1] * second
    return jnp.where(weights[1] == 0, first, jnp.where(weights[0] == 0, second, between))


def power(base: ArrayLike, exponent: Array) -> Array:
    """Return base^exponent for a base in [0, 1] and an exponent ≥ 0.

    What rounding takes from a Python number would be multiplied by the exponent: it is given back.
    """
    rounded = as_float(base)
    result = rounded ** as_float(exponent)
    if not isinstance(base, int | float) or base == 0:
        return result
    lost = math.log(base) - math.log(float(np.asarray(base, rounded.dtype)))
    return result * jnp.exp(as_float(exponent) * lost)


def check_values(who: str, **values: ArrayLike) -> None:
    """Require finite scalars."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    for name, value in values.items():
        _checks.check_number(who, name, value, _checks.FINITE, dtype=dtype)


def check_steps(who: str, minimum: int, **steps: int) -> None:
    """Require integer numbers of updates of at least `minimum`."""
    for name, value in steps.items():
        _checks.check_count(who, name, value, minimum)
