"""What the schedules of PyTorch and of Hugging Face share: waves that go on, and their checks."""

from fractions import Fraction

import jax.numpy as jnp

from optlab import _checks
from optlab._tree import is_traced
from optlab._types import Array, ArrayLike
from optlab.schedules._curve import LAST_STEP, as_float, check_value, half_cosines


def check_rate(who: str, lr: ArrayLike, name: str = "lr") -> ArrayLike:
    """Require a learning rate: a scalar, finite and ≥ 0."""
    return check_value(who, name, lr, _checks.NONNEGATIVE)


def check_fixed(who: str, name: str, value: float, domain: _checks.Domain) -> float:
    """Require a number in `domain` that is known at construction; return it as a float."""
    if is_traced(value):
        _checks.fail(who, f"{name} must be known at construction", "a traced array")
    return float(_checks.check_number(who, name, value, domain))


def half_waves(step: Array, length: Fraction) -> tuple[Array, Array]:
    """Return ½(1 + cos(π·step/length)) and ½(1 − cos(π·step/length)), which go on for ever.

    The place within a half wave is formed from integers, so that a cosine has as many digits after
    many waves as in the first, as far as integers go.
    """
    whole, parts = length.numerator, length.denominator
    if 2 * whole * parts <= LAST_STEP:
        # In units of 1/parts of a step a half wave has `whole` of them.
        number, place = jnp.divmod(step % (2 * whole) * parts, whole)
        left, done = as_float(whole - place) / whole, as_float(place) / whole
    else:
        waves = as_float(step) * float(1 / length)
        number = jnp.floor(waves)
        left, done = 1 - (waves - number), waves - number
    high, low = half_cosines(left, done)
    falls = number % 2 == 0
    return jnp.where(falls, high, low), jnp.where(falls, low, high)
