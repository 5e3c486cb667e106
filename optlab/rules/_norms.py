"""Rules with norms: the clip of the whole tree, and the ratio of two norms of a leaf.

    g ← g · min(1, c/‖g‖)
    u ← u · ξ ‖θ‖/d

A norm is a pair (‖x‖·scale, scale), as `scaled_norm` returns it, since it may be out of the range
of float32 where its parts are not. So may a ratio, which therefore acts as two factors.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from optlab._checks import NONNEGATIVE_OR_INFINITE
from optlab._tree import root, scaled_norm
from optlab._types import Array, Hyperparam
from optlab.rules._hyperparams import number
from optlab.rules._rule import Rule

Norm = tuple[Array, Array]
"""(‖x‖·scale, scale)."""


def global_norm_clip(who: str, max_norm: Hyperparam, name: str = "max_norm") -> Rule:
    """Return the rule that bounds the norm of the tree, by g · min(1, c/‖g‖).

    Args:
        who: the public name that errors begin with.
        max_norm: c ≥ 0, a bound on √(Σ g²) over all leaves; infinity clips nothing.
        name: what the public function calls it.
    """
    return Rule(
        who,
        kind="clip_by_global_norm",
        hyperparams={name: number(max_norm, NONNEGATIVE_OR_INFINITE)},
        across=lambda h, t, updates, params: clip_factors(updates, h[0]),
        leaf=lambda g, slots, factors, p: (times(g, factors), slots),
        counter="step",
    )


def clip_factors(
    updates: Sequence[Array], max_norm: Array, eps: float = 0.0
) -> tuple[Array, Array]:
    """Return two numbers whose product, taken in this order, is min(1, c/(‖g‖ + eps))."""
    # ‖g‖ = norm/scale may be out of range while norm and scale are not.
    norm, scale = scaled_norm(updates)
    if norm.dtype != max_norm.dtype:  # single-precision gradients where x64 is enabled
        norm, scale = norm.astype(max_norm.dtype), scale.astype(max_norm.dtype)
    clips = (norm + eps * scale > max_norm * scale) & jnp.isfinite(norm)
    # The quotient that is not used must not be 0/0 or ∞/∞, whose derivative is NaN.
    factor = jnp.where(clips, max_norm, 1.0) / jnp.where(clips, norm + eps * scale, 1.0)
    return jnp.where(clips, scale, 1.0), factor


def times(g: Array, factors: tuple[Array, Array]) -> Array:
    """Return g times what `clip_factors` returned."""
    scale, factor = factors
    return g * scale * factor


def norm_of(x: Array) -> Norm:
    """Return the Euclidean norm of one array, of a complex one over both parts."""
    return scaled_norm([x])


def sum_of_norms(first: Norm, second: Norm) -> Norm:
    """Return the sum of two norms, at the scale of the larger one."""
    (x, of_x), (y, of_y) = first, second
    lower = jnp.minimum(of_x, of_y)
    scale = jnp.where(y == 0, of_x, jnp.where(x == 0, of_y, lower))
    # Where x or y is 0 the scale may be the higher one, beyond 2¹²⁸ times the other.
    return x * (jnp.minimum(scale, of_x) / of_x) + y * (jnp.minimum(scale, of_y) / of_y), scale


def times_ratio(
    u: Array,
    numerator: Norm,
    denominator: Norm,
    coefficient: Array | float = 1.0,
    largest: Array | None = None,
    rest: Norm | None = None,
) -> Array:
    """Return u · min(r, largest), where r is coefficient · numerator/(denominator + rest).

    Where the numerator or the denominator is 0, r is 1.

    Args:
        u: what is scaled.
        numerator: a norm, from `norm_of`.
        denominator: another one.
        coefficient: ξ ≥ 0.
        largest: what the ratio is bounded by, ≥ 0; None for no bound.
        rest: what is added to the denominator.
    """
    (x, of_x), (y, of_y) = numerator, denominator
    vanishes = (x == 0) | (y == 0)
    x, y = jnp.where(vanishes, 1, x), jnp.where(vanishes, 1, y)
    if rest is not None:
        y, of_y = sum_of_norms((y, of_y), rest)
    # The root of the ratio is in range where the ratio is not. It is on the same side of 1, so that
    # the product on the way is in range where the result is.
    half = root(coefficient * (x / y)) * (root(of_y) / root(of_x))
    half = jnp.where(vanishes, 1, half)
    if largest is not None:
        half = jnp.minimum(half, root(largest))
    return u * half * half
