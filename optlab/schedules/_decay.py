"""Schedules that hold or lower a value: constant, linear, half a cosine.

    linear    α(t) = α₀ + (α_end − α₀) t/T
    cosine    α(t) = α_end + (α₀ − α_end) · ½(1 + cos(π t/T))

t is the step, from 0 at the first update; T is `transition_steps` or `decay_steps`, in updates.
Both are constant past T. The update that uses α_end itself is the one after T others: a loop of
n updates whose last should use it passes T = n − 1.

The weight ½(1 + cos(π t/T)) is formed as sin²(½π (T − t)/T) from the integer T − t, which keeps all
digits where the cosine form loses them to cancellation, and is exactly 1 at 0 and 0 at T.

Reference: Loshchilov & Hutter, ICLR (2017) for the cosine, without its restarts.
"""

import jax.numpy as jnp

from optlab import _checks
from optlab._types import Array, ArrayLike, Schedule


def constant(value: ArrayLike) -> Schedule:
    """Return the schedule that is `value` at every step.

    Args:
        value: a finite scalar.

    Raises:
        ValueError: the value is not a finite scalar.

    Example:
        >>> constant(0.1)(1000)
        Array(0.1, dtype=float32)
    """
    _checks.check_number("constant", "value", value, _checks.FINITE)
    return lambda step: jnp.asarray(value, float)


def linear(init_value: ArrayLike, end_value: ArrayLike, transition_steps: int) -> Schedule:
    """Return the schedule that goes from one value to another in a straight line.

    Args:
        init_value: at step 0.
        end_value: at step `transition_steps` and ever after.
        transition_steps: T ≥ 1, in optimizer updates.

    Raises:
        ValueError: a value is not a finite scalar, or T is not an integer ≥ 1.

    Example:
        >>> schedule = linear(1.0, 0.0, transition_steps=10)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 11)]
        [1.0, 0.5, 0.0, 0.0]
    """
    _check("linear", init_value=init_value, end_value=end_value)
    _checks.check_count("linear", "transition_steps", transition_steps, 1)
    return lambda step: mix(remaining(step, 0, transition_steps), init_value, end_value)


def cosine(init_value: ArrayLike, decay_steps: int, end_value: ArrayLike = 0.0) -> Schedule:
    """Return the schedule that falls from one value to another along half a cosine.

    Args:
        init_value: at step 0.
        decay_steps: T ≥ 1, in optimizer updates.
        end_value: at step `decay_steps` and ever after; a value, not Optax's fraction `alpha`.

    Raises:
        ValueError: a value is not a finite scalar, or T is not an integer ≥ 1.

    Example:
        >>> schedule = cosine(1.0, decay_steps=10, end_value=0.2)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 11)]
        [1.0, 0.6, 0.2, 0.2]

    Reference:
        Loshchilov & Hutter, ICLR (2017).
    """
    _check("cosine", init_value=init_value, end_value=end_value)
    _checks.check_count("cosine", "decay_steps", decay_steps, 1)
    return lambda step: mix(half_cosine(remaining(step, 0, decay_steps)), init_value, end_value)


def remaining(step: ArrayLike, start: int, stop: int) -> Array:
    """Return the share of the way from `start` to `stop` that is left: 1 before, 0 after."""
    left = stop - jnp.clip(jnp.asarray(step), start, stop)
    return left.astype(jnp.result_type(float)) / (stop - start)


def half_cosine(share: Array) -> Array:
    """Return ½(1 + cos(π(1 − share))), for a share from 1 down to 0."""
    return jnp.sin(0.5 * jnp.pi * share) ** 2


def mix(weight: Array, first: ArrayLike, second: ArrayLike) -> Array:
    """Return weight·first + (1 − weight)·second, exactly `first` at 1 and `second` at 0."""
    dtype = jnp.result_type(float)
    return weight * jnp.asarray(first, dtype) + (1 - weight) * jnp.asarray(second, dtype)


def _check(who: str, **values: ArrayLike) -> None:
    for name, value in values.items():
        _checks.check_number(who, name, value, _checks.FINITE)
