"""Arithmetic that rules share, on one array, careful at the ends of float32.

In this file g − g stands for 0 where g is finite, and for NaN where g is not.
"""

import jax
import jax.numpy as jnp
import numpy as np

from optlab._types import Array, DTypeLike
from optlab.rules._hyperparams import Decay
from optlab.rules._leaves import placed_like


def average(beta: Decay, old: Array, new: Array) -> Array:
    """Return the exponential moving average β·old + (1 − β)·new.

    The result is computed as a step from the operand with the larger weight (`old` where β ≥ ½)
    towards the other. Its error is then that of 1 − β, which sets the averaging time. With a
    rounded β in its place, β = 0.999 would settle 1.3e-5 too high.

    Args:
        beta: β, as a rule receives a hyperparameter that was declared with `decay`.
        old: the average so far.
        new: the next element, of the same shape.
    """
    new = placed_like(new, old)  # `select` takes arrays of one sharding alone
    heavier = jax.lax.select(beta.is_short, new, old)
    return heavier + beta.weight * (new - old)


def accumulate(beta: Decay, old: Array, new: Array) -> Array:
    """Return β·old + new, with all the digits of β."""
    return beta.value * old + (new + beta.residue * old)


def bounded(g: Array) -> Array:
    """Return g with elements beyond ±2⁶³ (float64: ±2⁵¹¹) set to that bound; NaN stays NaN.

    Use it together with `bounded_square`: a huge gradient then takes an ordinary step and decays
    away. An infinite second moment would freeze its coordinate for good.
    """
    bound = _bound(g.dtype)
    return jax.lax.clamp(-bound, g, bound)


def visibly_bounded(g: Array) -> Array:
    """Return `bounded(g)` with NaN in place of ±Inf, so that the update shows the infinity."""
    return bounded(g) + (g - g)


def bounded_square(g: Array) -> Array:
    """Return the square of `bounded(g)`.

    The square is formed from g itself. XLA would store a copy of `bounded(g)` if both the square
    and the update were made from it.
    """
    return jnp.minimum(g * g, _bound(g.dtype) ** 2)


def _bound(dtype: DTypeLike) -> np.ndarray:
    """Return a power of two whose square stays finite when an average divides it by 1 − β."""
    return np.asarray(2.0 ** (jnp.finfo(dtype).maxexp // 2 - 1), dtype)


def saturated(x: Array, g: Array) -> Array:
    """Return x with overflowed elements at the largest finite number, NaN where g is not finite.

    A sum of finite gradients then stays finite and can shrink again. A sum that holds an Inf or a
    NaN shows it.
    """
    largest = jnp.finfo(x.dtype).max
    return jax.lax.clamp(-largest, x, largest) + (g - g)


def added(s: Array, square: Array) -> Array:
    """Return s + square, at most the largest finite number, for s and square ≥ 0."""
    largest = jnp.finfo(s.dtype).max
    s = jnp.minimum(s, largest)
    return s + jnp.minimum(square, largest - s)


def narrowed(x: Array, dtype: DTypeLike) -> Array:
    """Cast a slot to its own type; a finite element beyond the range of a narrower type is clipped.

    Types that are not floating point are cast as they are.
    """
    if x.dtype == dtype:
        return x
    if not _is_floating(x.dtype) or not _is_floating(dtype):
        return x.astype(dtype)
    if jnp.finfo(dtype).bits >= jnp.finfo(x.dtype).bits:
        return x.astype(dtype)
    largest = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isinf(x), x, jnp.clip(x, -largest, largest)).astype(dtype)


def _is_floating(dtype: DTypeLike) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def round_to(x: Array, dtype: DTypeLike) -> Array:
    """Round to the values of a narrower type, to nearest and ties to even, keeping x's own type.

    XLA may drop a pair of casts under `jit` as excess precision; it does not drop this. The result
    equals that of the casts bit for bit, also below the narrower type's smallest normal number.
    """
    narrow, own = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if narrow.bits >= own.bits:
        return x
    rounded = jax.lax.reduce_precision(x, narrow.nexp, narrow.nmant)
    if narrow.minexp > own.minexp:
        # `reduce_precision` flushes subnormal numbers of the narrow type to zero; a cast keeps
        # them. They are the multiples of the smallest one, a power of two, so that only `round`
        # rounds here.
        unit = float(narrow.smallest_subnormal)
        multiple = jax.lax.round(x / unit, jax.lax.RoundingMethod.TO_NEAREST_EVEN) * unit
        rounded = jnp.where(jnp.abs(x) < float(narrow.tiny), multiple, rounded)
    return rounded
