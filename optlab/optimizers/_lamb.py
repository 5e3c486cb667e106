"""LAMB: Adam's direction, brought in each layer to the norm of its weights.

    r = m̂ / (√(v̂ + eps_root) + eps) + λ θ
    u = −lr · ‖θ‖/‖r‖ · r

m̂ and v̂ are Adam's, λ is `weight_decay`, lr `learning_rate`. Norms are those of one array. The ratio
‖θ‖/‖r‖ is 1 where one of them is 0.

By default biases and the scales of norms take Adam's step lr · r, neither adapted nor decayed, as
in the trainings of BERT by which LAMB is known. Their norms start at 0 or grow from there, and say
nothing of the size of a good step. Optax and the paper's algorithm adapt and decay all arrays:
`mask=True, trust_ratio_mask=True`.

Bias is removed, as in the paper's first versions and everywhere today. The paper bounds ‖θ‖ by a
function φ; here `max_trust_ratio` bounds the ratio (1 is LAMBC). NVIDIA's implementation divides
all gradients by their common norm where it exceeds 1: `max_grad_norm=1.0`.

Reference: You et al., "Large batch optimization for deep learning: training BERT in 76 minutes",
ICLR (2020).
"""

from __future__ import annotations

from optlab._types import Hyperparam, Mask
from optlab.optimizers._adam import adam_rule
from optlab.rules import (
    Rule,
    direction,
    global_norm_clip,
    linear_maps,
    norm_of,
    number,
    optimizer,
    times_ratio,
)
from optlab.rules import weight_decay as weight_decay_rule


def trust_ratio_rule(
    who: str, max_trust_ratio: Hyperparam | None = None, mask: Mask | None = None
) -> Rule:
    """Return the rule u ← u · min(‖θ‖/‖u‖, max_trust_ratio) on each array."""

    def leaf(u, slots, h, p):
        largest = h.max_trust_ratio if bounds else None
        return times_ratio(u, norm_of(p), norm_of(u), largest=largest), ()

    bounds = {} if max_trust_ratio is None else {"max_trust_ratio": number(max_trust_ratio)}

    return Rule(
        who,
        leaf,
        kind="scale_by_trust_ratio",
        hyperparams=bounds,
        needs_params=True,
        complex="whole",
        mask=mask,
        counter="step",
    )


def lamb_rules(
    who: str,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-6,
    eps_root: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    mask: Mask | None = None,
    *,
    trust_ratio_mask: Mask | None = None,
    max_trust_ratio: Hyperparam | None = None,
) -> list[Rule]:
    """Replace gradients by Adam's direction, in the norm of the weights.

    Args:
        weight_decay: λ ≥ 0; the decay is part of r, and of its norm.
        mask: which parameters are decayed: booleans in their structure or a prefix of it, or a
            function of the parameters returning them; None for `rules.linear_maps`, which leaves
            out biases and norms, True for all.
        trust_ratio_mask: which parameters are adapted, as `mask`; the others take r as it is.
        max_trust_ratio: what the ratio is bounded by, ≥ 0; None for no bound.
    """
    return [
        adam_rule(who, b1, b2, eps, eps_root),
        weight_decay_rule(who, weight_decay, linear_maps if mask is None else mask),
        trust_ratio_rule(
            who, max_trust_ratio, linear_maps if trust_ratio_mask is None else trust_ratio_mask
        ),
    ]


def _lamb(
    who: str,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-6,
    eps_root: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    mask: Mask | None = None,
    *,
    trust_ratio_mask: Mask | None = None,
    max_trust_ratio: Hyperparam | None = None,
    max_grad_norm: Hyperparam | None = None,
) -> list[Rule]:
    """Descend with LAMB, by layer-wise adapted directions of Adam.

    Args:
        max_grad_norm: bound on the norm of all gradients together, before anything else; None for
            no bound.

    Example:
        A step of rate 0.01 is a hundredth of the weights, whatever the gradient:

        >>> import jax.numpy as jnp, optlab
        >>> tx = optlab.lamb(0.01)
        >>> params = jnp.full((2, 2), 5.0)
        >>> updates, _ = tx.update(jnp.full((2, 2), 3.0), tx.init(params), params)
        >>> print(*updates)
        [-0.05 -0.05] [-0.05 -0.05]
    """
    clip = []
    if max_grad_norm is not None:
        clip = [global_norm_clip(who, max_grad_norm, "max_grad_norm")]
    rules = lamb_rules(
        who,
        b1,
        b2,
        eps,
        eps_root,
        weight_decay,
        mask,
        trust_ratio_mask=trust_ratio_mask,
        max_trust_ratio=max_trust_ratio,
    )
    return [*clip, *rules]


scale_by_lamb = direction("scale_by_lamb", lamb_rules, like=(adam_rule,))
lamb = optimizer("lamb", _lamb, like=(lamb_rules, adam_rule))
