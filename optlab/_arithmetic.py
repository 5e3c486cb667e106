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


def round_to(x: Array, dtype: DTypeLike) -> Array:
    """Round to the values of a narrower type, keeping x's own type.

    A pair of casts would do, but under `jit` XLA may drop it as excess precision.
    """
    info = jnp.finfo(dtype)
    if info.bits >= jnp.finfo(x.dtype).bits:
        return x
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)
