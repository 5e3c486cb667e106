"""What all schedules share: a curve that knows its knots, and exact positions between them.

Positions are formed from integer differences, T − t rather than 1 − t/T, so that every knot is met
exactly and no digit is lost near the end of a long run. All curves are finite for every step up
to 2³¹ − 1, and those that end are constant past their last knot. Steps below 0 count as 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, ArrayLike, DTypeLike

LAST_STEP = 2**31 - 1
"""The last step that is told apart; a later step has the value of this one."""


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
        if jnp.issubdtype(step.dtype, jnp.integer):
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
    """Return ½(1 + cos(π·done)) and ½(1 − cos(π·done)).

    They are formed as sin²(½π·left) and sin²(½π·done), which keep the digits that 1 ± cos lose.
    """
    return jnp.sin(0.5 * jnp.pi * left) ** 2, jnp.sin(0.5 * jnp.pi * done) ** 2


def mix(weights: tuple[Array, Array], first: ArrayLike, second: ArrayLike) -> Array:
    """Return the mean of two values by weights that sum to 1.

    Where a weight is 0 the other value is selected. A compiler may rearrange the sum, and its
    rounding error can make a learning rate of 0 negative.
    """
    first, second = as_float(first), as_float(second)
    between = weights[0] * first + weights[1] * second
    return jnp.where(weights[1] == 0, first, jnp.where(weights[0] == 0, second, between))


def power(base: ArrayLike, exponent: ArrayLike) -> Array:
    """Return base^exponent for a base ≥ 0 and an exponent ≥ 0.

    The exponent ends where the power would overflow, so that the power stays finite. A base that is
    a Python number is rounded to the type of the result. The power would multiply that error by the
    exponent, so it is corrected.
    """
    rounded = as_float(base)
    # The logarithm of a base next to 1 is about that distance, and must not be 0.
    steepness = jnp.log(jnp.maximum(rounded, 1 + jnp.finfo(rounded.dtype).eps))
    most = jnp.where(rounded > 1, _highest_log(rounded.dtype) / steepness, LAST_STEP)
    exponent = jnp.minimum(as_float(exponent), most)
    result = rounded**exponent
    if not isinstance(base, int | float) or base == 0:
        return result
    lost = math.log(base) - math.log(float(np.asarray(base, rounded.dtype)))
    return times(result, jnp.exp(exponent * lost))


def growth(exponent: Array) -> Array:
    """Return e^exponent, finite for every exponent."""
    return jnp.exp(jnp.minimum(exponent, _highest_log(exponent.dtype)))


def times(value: ArrayLike, factor: Array) -> Array:
    """Return value·factor for finite numbers and a factor ≥ 0; finite where it would overflow."""
    value = as_float(value)
    # A little below the largest number, as the quotient and the product are rounded.
    top = float(jnp.finfo(value.dtype).max) * (1 - 4 * float(jnp.finfo(value.dtype).eps))
    return value * jnp.minimum(factor, top / jnp.maximum(jnp.abs(value), 1))


def plus(value: ArrayLike, other: Array) -> Array:
    """Return value + other for finite numbers; finite where it would overflow."""
    largest = float(jnp.finfo(other.dtype).max)
    return jnp.clip(as_float(value) + other, -largest, largest)


def _highest_log(dtype: DTypeLike) -> float:
    """Return the logarithm of a number 1% below the largest one, as powers are not exact."""
    return math.log(float(jnp.finfo(dtype).max)) - 0.01


def check_value(
    who: str, name: str, value: ArrayLike, domain: _checks.Domain = _checks.FINITE
) -> ArrayLike:
    """Require a scalar in `domain` that is so in the type of `as_float` too, and return it."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    return _checks.check_number(who, name, value, domain, dtype=dtype)
