"""Arithmetic that rules share, on one array, careful where float32 ends.

Here g − g stands for 0 where g is finite, and for NaN where it is not.
"""

import jax
import jax.numpy as jnp
import numpy as np

from optlab._hyperparams import Decay
from optlab._types import Array, DTypeLike


def average(beta: Decay, old: Array, new: Array) -> Array:
    """Return the exponential moving average β·old + (1 − β)·new.

    It goes from the heavier of both, `old` where β ≥ ½, towards the other. Formed so, it is as
    exact as 1 − β, on which it depends how long it lasts: with β rounded to float32 beside that, it
    would settle 1.3e-5 too high at 0.999.
    """
    heavier = jax.lax.select(beta.is_short, new, old)
    return heavier + beta.weight * (new - old)


def accumulate(beta: Decay, old: Array, new: Array) -> Array:
    """Return β·old + new."""
    return beta.value * old + (new + beta.residue * old)


def bounded(g: Array) -> Array:
    """Return g with elements beyond ±2⁶³ (float64: ±2⁵¹¹) set to that bound; NaN stays.

    Beside `bounded_square` one huge gradient gives an ordinary step, and is forgotten, where an
    infinite second moment would stop its coordinate for ever.
    """
    bound = _bound(g.dtype)
    return jax.lax.clamp(-bound, g, bound)


def visibly_bounded(g: Array) -> Array:
    """Return `bounded(g)` with NaN in place of Inf, so that it is seen in the update."""
    return bounded(g) + (g - g)


def bounded_square(g: Array) -> Array:
    """Return the square of `bounded(g)`.

    Formed of g itself: of a bounded g that both the square and the update are made of, XLA would
    keep a copy in memory.
    """
    return jnp.minimum(g * g, _bound(g.dtype) ** 2)


def _bound(dtype: DTypeLike) -> np.ndarray:
    """Return a power of two whose square, freed of an average's bias, stays finite."""
    return np.asarray(2.0 ** (jnp.finfo(dtype).maxexp // 2 - 1), dtype)


def saturated(x: Array, g: Array) -> Array:
    """Return x with overflowed elements at the largest finite number, NaN where g is not finite.

    What a rule gathers from finite gradients then stays finite, and can shrink again or at least
    go on dividing; what gathers an Inf or a NaN shows it.
    """
    largest = jnp.finfo(x.dtype).max
    return jax.lax.clamp(-largest, x, largest) + (g - g)


def added(s: Array, square: Array) -> Array:
    """Return s + square, at most the largest finite number, for s and square ≥ 0."""
    largest = jnp.finfo(s.dtype).max
    s = jnp.minimum(s, largest)
    return s + jnp.minimum(square, largest - s)


def narrowed(x: Array, dtype: DTypeLike) -> Array:
    """Cast what a rule keeps; a finite element beyond a narrower type's end takes that end."""
    if jnp.iscomplexobj(x) or jnp.finfo(dtype).bits >= jnp.finfo(x.dtype).bits:
        return x.astype(dtype)
    largest = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isinf(x), x, jnp.clip(x, -largest, largest)).astype(dtype)


def round_to(x: Array, dtype: DTypeLike) -> Array:
    """Round to the values of a narrower type, to nearest and ties to even, keeping x's own type.

    A pair of casts would do, but under `jit` XLA may drop it as excess precision. Equal to the
    casts bit for bit, below the narrower type's smallest normal number too.
    """
    narrow, own = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if narrow.bits >= own.bits:
        return x
    rounded = jax.lax.reduce_precision(x, narrow.nexp, narrow.nmant)
    if narrow.minexp > own.minexp:
        # There `reduce_precision` gives zero, but a cast keeps the subnormal numbers, which are the
        # multiples of the smallest one, a power of two: all but `round` is exact.
        unit = float(narrow.smallest_subnormal)
        multiple = jax.lax.round(x / unit, jax.lax.RoundingMethod.TO_NEAREST_EVEN) * unit
        rounded = jnp.where(jnp.abs(x) < float(narrow.tiny), multiple, rounded)
    return rounded
