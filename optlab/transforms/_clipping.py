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

import jax.numpy as jnp
import optax

from optlab._types import Hyperparam
from optlab.rules import NONNEGATIVE_OR_INFINITE, Rule, global_norm_clip, lift, number


def value_rule(who: str, max_abs: Hyperparam) -> Rule:
    """Return the rule that bounds every element."""
    return Rule(
        who,
        kind="clip_by_value",
        hyperparams={"max_abs": number(max_abs, NONNEGATIVE_OR_INFINITE)},
        leaf=lambda g, slots, h, p: (jnp.clip(g, -h.max_abs, h.max_abs), slots),
        counter="step",
    )


def clip_by_value(max_abs: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Clip every element to [−max_abs, max_abs]; NaN stays NaN.

    Args:
        max_abs: c ≥ 0, in the unit of the gradients; infinity clips nothing.

    Returns:
        A transformation whose state holds the bound.

    Raises:
        ValueError: the bound is negative or NaN.
    """
    return lift(value_rule("clip_by_value", max_abs))


def clip_by_global_norm(max_norm: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Shrink the gradients so that their global norm is at most max_norm, keeping the direction.

    Args:
        max_norm: c ≥ 0, a bound on √(Σ g²) over all leaves; infinity clips nothing.

    Returns:
        A transformation whose state holds the bound.

    Raises:
        ValueError: the bound is negative or NaN.

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
    return lift(global_norm_clip("clip_by_global_norm", max_norm))
