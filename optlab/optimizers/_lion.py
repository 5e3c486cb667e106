"""Lion: the sign of a momentum, a step of one size in every coordinate.

    u = −lr · (sign(β₁ m + (1 − β₁) g) + λ θ)
    m ← β₂ m + (1 − β₂) g

β₁ is `b1`, β₂ `b2`, λ `weight_decay`, lr `learning_rate`; m is `mu` and starts at 0. The sign of 0
is 0. The decay is decoupled and multiplied by the learning rate in force. It is 0 by default
(Optax: 1e-3); the paper takes a rate 3 to 10 times smaller than AdamW's and a decay as many times
larger. A finite gradient beyond 2⁶³ counts as 2⁶³ (2⁵¹¹ in float64).

Reference: Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS (2023).
"""

from __future__ import annotations

import jax.numpy as jnp

from optlab._types import DTypeLike, Hyperparam, Mask
from optlab.rules import (
    Rule,
    average,
    check_float_dtype,
    decay,
    direction,
    optimizer,
    slot,
    visibly_bounded,
)
from optlab.rules import weight_decay as weight_decay_rule


def lion_rule(
    who: str,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.99,
    mu_dtype: DTypeLike | None = None,
) -> Rule:
    """Replace gradients by the sign of their momentum.

    Args:
        b1: β₁ in [0, 1), of the average whose sign is taken.
        b2: β₂ in [0, 1), of the momentum that is kept.
        mu_dtype: type of m; by default the parameters', but at least float32.
    """

    def leaf(g, slots, h, p):
        # The sign of NaN is NaN, of Inf ±1: g − g shows an infinity, too.
        direction = jnp.sign(average(h.b1, slots.mu, g)) + (g - g)
        return direction, (average(h.b2, slots.mu, visibly_bounded(g)),)

    check_float_dtype(who, "mu_dtype", mu_dtype)
    return Rule(
        who,
        leaf,
        kind="scale_by_lion",
        hyperparams={"b1": decay(b1), "b2": decay(b2)},
        slots={"mu": slot(dtype=mu_dtype)},
    )


def _lion(
    who: str,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.99,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Hyperparam = 0.0,
    mask: Mask | None = None,
) -> list[Rule]:
    """Descend with Lion, by the sign of a momentum and with decoupled weight decay.

    Args:
        weight_decay: λ ≥ 0; each update shrinks the parameters by the factor 1 − αλ.
        mask: which parameters are decayed; None for all.
    """
    return [lion_rule(who, b1, b2, mu_dtype), weight_decay_rule(who, weight_decay, mask)]


scale_by_lion = direction("scale_by_lion", lion_rule)
lion = optimizer("lion", _lion, like=(lion_rule,))
