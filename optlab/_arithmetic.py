"""Arithmetic that rules share, on one array, careful where float32 ends."""

import jax
import jax.numpy as jnp

from optlab._hyperparams import Decay
from optlab._types import Array, DTypeLike


def average(beta: Decay, old: Array, new: Array) -> Array:
    """Return the exponential moving average β·old + (1 − β)·new.

    The residue is what rounding took from β, and may be negative: `new` must be finite, or the two
    last terms are ∞ − ∞.
    """
    return beta.value * old + (beta.complement * new + beta.residue * old)


def squareable(g: Array) -> Array:
    """Return g with finite elements beyond ±2⁶³ (float64: ±2⁵¹¹) set to that bound.

    Their squares, and averages of these freed of bias, then stay finite: one huge gradient gives
    an ordinary step, and is forgotten, where an infinite second moment would stop its coordinate
    for ever. Inf and NaN stay, and are seen in the update.
    """
    bound = 2.0 ** (jnp.finfo(g.dtype).maxexp // 2 - 1)
    return jnp.where(jnp.isinf(g), g, jnp.clip(g, -bound, bound))


def saturated(x: Array, g: Array) -> Array:
    """Return x with overflowed elements at the largest finite number, where g is finite.

    What a rule gathers from finite gradients then stays finite, and can shrink again or at least
    go on dividing; what gathers an Inf or a NaN shows it.
    """
    largest = jnp.finfo(x.dtype).max
    return jnp.where(jnp.isfinite(g), jnp.clip(x, -largest, largest), x)


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
