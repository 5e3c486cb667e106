"""RMSProp: gradients divided by a moving average of their size.

    s ← β s + (1 − β) g²
    u = −lr · g / (√s + eps)                     or −lr · g / √(s + eps) with `eps_in_sqrt`

    m ← β m + (1 − β) g                          centered: s − m² stands in place of s

β is `decay`, lr `learning_rate`; s is `mean_square` and starts at `initial_scale`, m is `mean` and
starts at 0. s − m² is a variance and never negative, but its rounded value can be: it is clamped at
0. With `bias_correction` both averages are freed of their bias, as in Adam. With momentum, the
velocity of `scale_by_momentum` follows, and the learning rate stands outside of it (Optax, Keras
and TensorFlow keep it inside; see `optlab.dialects`). Optax's `eps_in_sqrt` is True by default. A
finite gradient beyond 2⁶³, whose square would overflow float32, counts as 2⁶³ (2⁵¹¹ in float64).

Reference: Tieleman & Hinton, Coursera lecture 6.5 (2012); Graves, arXiv:1308.0850 (2013) for the
centered form.
"""

from __future__ import annotations

import jax.numpy as jnp

from optlab._types import ArrayLike, Hyperparam
from optlab.optimizers._momentum import momentum_rules
from optlab.rules import (
    NONNEGATIVE,
    Rule,
    average,
    bounded,
    bounded_square,
    check_flag,
    check_number,
    direction,
    number,
    optimizer,
    root,
    slot,
    visibly_bounded,
)
from optlab.rules import decay as decay_rate


def rmsprop_rule(
    who: str,
    decay: Hyperparam = 0.9,
    eps: Hyperparam = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = False,
    centered: bool = False,
    bias_correction: bool = False,
) -> Rule:
    """Divide gradients by the root of a moving average of their squares.

    Args:
        decay: β in [0, 1), typically 0.9 or 0.99.
        eps: ε ≥ 0, in the unit of the gradients, or of their squares with `eps_in_sqrt`.
        initial_scale: where s starts, ≥ 0, in the unit of the squared gradients.
        eps_in_sqrt: whether to divide by √(s + ε).
        centered: whether to divide by the standard deviation, √(s − m²), instead.
        bias_correction: whether to divide s and m by 1 − βᵗ.
    """

    def leaf(g, slots, h, p):
        s, *m = slots
        s = average(h.decay, s, bounded_square(g))
        if centered:
            m = [average(h.decay, m[0], bounded(g))]
        return visibly_bounded(g) / size_of(h, s, *m), (s, *m)

    def size_of(h, s, *m):
        weight = h.decay.correction if bias_correction else 1
        variance = weight * s
        if centered:
            variance = jnp.maximum(variance - jnp.square(weight * m[0]), 0)
        return root(variance + h.eps) if eps_in_sqrt else root(variance) + h.eps

    start = check_number(who, "initial_scale", initial_scale, NONNEGATIVE)
    eps_in_sqrt = check_flag(who, "eps_in_sqrt", eps_in_sqrt)
    centered = check_flag(who, "centered", centered)
    bias_correction = check_flag(who, "bias_correction", bias_correction)
    return Rule(
        who,
        leaf,
        metric=lambda slots, h: 1 / size_of(h, *slots),
        kind="scale_by_rmsprop",
        hyperparams={
            "decay": decay_rate(decay, bias_corrected=bias_correction),
            "eps": number(eps),
        },
        slots={"mean_square": slot(start)} | ({"mean": slot()} if centered else {}),
    )


def _rmsprop(
    who: str,
    decay: Hyperparam = 0.9,
    eps: Hyperparam = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = False,
    centered: bool = False,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> list[Rule]:
    """Descend with RMSProp, with momentum where it is wanted.

    Args:
        momentum: of a velocity that gathers the divided gradients, in [0, 1]; None for none.
        nesterov: whether to look ahead along that velocity.
    """
    rule = rmsprop_rule(who, decay, eps, initial_scale, eps_in_sqrt, centered, bias_correction)
    return [rule, *momentum_rules(who, momentum, nesterov)]


scale_by_rmsprop = direction("scale_by_rmsprop", rmsprop_rule)
rmsprop = optimizer("rmsprop", _rmsprop, like=(rmsprop_rule,))
