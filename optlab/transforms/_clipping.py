"""Clipping: bounds on each element, or on the norm of the whole tree.

    g ← max(−c, min(g, c))              by value, c is `max_abs`
    g ← g · min(1, c/‖g‖)               by global norm, c is `max_norm`

The second keeps the direction. It multiplies every leaf by one scalar computed beforehand, so it
costs one more read of the gradients and no copy of them. ‖g‖ is formed so that neither overflow nor
underflow of the squares can zero finite gradients or let large ones through, as a plain sum of
squares does in float32 above 1.8e19 and below 1e-19. Where the norm is not finite the gradients
pass unchanged: clipping cannot repair a NaN or an Inf, and must not hide it.

Reference: Pascanu, Mikolov, Bengio, ICML (2013).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax

from optlab._hyperparams import Hyperparams, Memory, number
from optlab._lift import Rule, lift
from optlab._tree import scaled_norm
from optlab._types import Array, Hyperparam


class ClipByValueState(NamedTuple):
    """State of `clip_by_value`.

    Attributes:
        count: () int32; updates made.
        hyperparams: the value in force: `max_abs`.
        memory: what keeps it alive between updates.
    """

    count: Array
    hyperparams: dict[str, Array]
    memory: Memory


class ClipByGlobalNormState(NamedTuple):
    """State of `clip_by_global_norm`.

    Attributes:
        count: () int32; updates made.
        hyperparams: the value in force: `max_norm`.
        memory: what keeps it alive between updates.
    """

    count: Array
    hyperparams: dict[str, Array]
    memory: Memory


def value_rule(who: str, max_abs: Hyperparam) -> Rule:
    """Return the rule that bounds every element."""
    return Rule(
        state=ClipByValueState,
        hyperparams=Hyperparams(who, max_abs=number(max_abs)),
        leaf=lambda g, slots, h, p: (jnp.clip(g, -h.max_abs, h.max_abs), slots),
    )


def global_norm_rule(who: str, max_norm: Hyperparam, eps: float = 0.0) -> Rule:
    """Return the rule that bounds the norm of the tree, by g · min(1, c/(‖g‖ + eps))."""
    return Rule(
        state=ClipByGlobalNormState,
        hyperparams=Hyperparams(who, max_norm=number(max_norm)),
        prepare=lambda h, gradients, t: _factors(gradients, h.max_norm, eps),
        leaf=lambda g, slots, factors, p: (_multiply(g, factors), slots),
    )


def leaf_norm_rule(who: str, max_norm: Hyperparam) -> Rule:
    """Return the rule that bounds the norm of each leaf, as `global_norm_rule` that of all."""
    return Rule(
        state=ClipByGlobalNormState,
        hyperparams=Hyperparams(who, max_norm=number(max_norm)),
        leaf=lambda g, slots, h, p: (_multiply(g, _factors([g], h.max_norm)), slots),
    )


def _factors(gradients: Sequence[Array], max_norm: Array, eps: float = 0.0) -> tuple[Array, Array]:
    """Return two numbers by whose product to multiply, in this order."""
    # ‖g‖ = norm/scale may be out of range while norm and scale are not.
    norm, scale = scaled_norm(gradients)
    clip = (norm + eps * scale > max_norm * scale) & jnp.isfinite(norm)
    factor = max_norm / (norm + eps * scale)
    return jnp.where(clip, scale, 1.0), jnp.where(clip, factor, 1.0)


def _multiply(g: Array, factors: tuple[Array, Array]) -> Array:
    scale, factor = factors
    return g * scale * factor


def clip_by_value(max_abs: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Clip every element to [−max_abs, max_abs]; NaN stays NaN.

    Args:
        max_abs: c ≥ 0, in the unit of the gradients.

    Returns:
        A transformation with state `ClipByValueState`.

    Raises:
        ValueError: the bound is negative or not finite.
    """
    return lift(value_rule("clip_by_value", max_abs))


def clip_by_global_norm(max_norm: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Shrink the gradients so that their global norm is at most max_norm, keeping the direction.

    Args:
        max_norm: c ≥ 0, a bound on √(Σ g²) over all leaves.

    Returns:
        A transformation with state `ClipByGlobalNormState`.

    Raises:
        ValueError: the bound is negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> g = jnp.array([6.0, -8.0, 3.0, -4.0, 2.0])
        >>> tx = clip_by_global_norm(5.0)
        >>> clipped, _ = tx.update(g, tx.init(g))
        >>> [round(float(x), 4) for x in clipped]
        [2.6414, -3.5218, 1.3207, -1.7609, 0.8805]

    Reference:
        Pascanu, Mikolov, Bengio, ICML (2013).
    """
    return lift(global_norm_rule("clip_by_global_norm", max_norm))
