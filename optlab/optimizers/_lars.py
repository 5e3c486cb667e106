"""LARS: in each layer a step whose norm is a fixed share of the norm of its weights.

    d = ‖g‖ + λ ‖θ‖ + eps                        or ‖g + λ θ‖ + eps with `norm_of_sum`
    r = ξ ‖θ‖ / d
    s = −lr · r · (g + λ θ)
    v ← μ v + s
    u = v                                        or μ v + s with `nesterov`

ξ is `trust_coefficient`, λ `weight_decay`, μ `momentum`, lr `learning_rate`; v is `velocity` and
starts at 0. Norms are those of one array. The ratio r is 1 where the weights or the gradient are 0.

The paper adapts all arrays. Here biases and the scales of norms take the plain step lr · g by
default, neither adapted nor decayed, as in the large-batch trainings since. Their norms start at 0
or grow from there, and say nothing of the size of a good step. `trust_ratio_mask` and
`weight_decay_mask` choose otherwise, True for all arrays.

Optax differs in d, which is that of `norm_of_sum`, and in the masks, which are True by default.
The rate stands inside the velocity, as in the paper and in Optax: a change of rate acts on new
gradients only. With `rate_in_velocity=False` it stands outside, as in PyTorch's implementations.

Reference: You, Gitman, Ginsburg, "Large batch training of convolutional networks",
arXiv:1708.03888 (2017).
"""

from __future__ import annotations

import jax.numpy as jnp

from optlab._types import Hyperparam, Mask
from optlab.optimizers._momentum import momentum_rules
from optlab.rules import (
    Rule,
    check_flag,
    direction,
    global_norm_clip,
    linear_maps,
    norm_of,
    number,
    optimizer,
    sum_of_norms,
    times_ratio,
)
from optlab.rules import learning_rate as learning_rate_rule


def lars_rule(
    who: str,
    weight_decay: Hyperparam = 0.0,
    weight_decay_mask: Mask | None = None,
    trust_coefficient: Hyperparam = 0.001,
    eps: Hyperparam = 0.0,
    trust_ratio_mask: Mask | None = None,
    *,
    norm_of_sum: bool = False,
    max_trust_ratio: Hyperparam | None = None,
) -> Rule:
    """Scale gradients and weight decay by the trust ratio of each array.

    Args:
        weight_decay: λ ≥ 0, of an L2 penalty ½λ‖θ‖².
        weight_decay_mask: which parameters are decayed: booleans in their structure or a prefix of
            it, or a function of the parameters returning them; None for `rules.linear_maps`, which
            leaves out biases and norms, True for all.
        trust_coefficient: ξ ≥ 0, the share of ‖θ‖ that a step of rate 1 has.
        eps: ≥ 0, in the unit of the gradients' norm.
        trust_ratio_mask: which parameters are adapted, as `weight_decay_mask`; the others take
            g + λθ as it is.
        norm_of_sum: whether the gradient and the decay are added before their norm is taken.
        max_trust_ratio: what r is bounded by, ≥ 0; None for no bound.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> tx = optlab.scale_by_lars(trust_coefficient=0.01)
        >>> params = {"kernel": jnp.full((2, 2), 5.0), "bias": jnp.zeros(2)}
        >>> g = {"kernel": jnp.full((2, 2), 1e-4), "bias": jnp.full(2, 0.5)}
        >>> updates, _ = tx.update(g, tx.init(params), params)
        >>> print(updates["bias"], *updates["kernel"])
        [0.5 0.5] [0.05 0.05] [0.05 0.05]
    """

    def leaf(g, slots, h, p, masks):
        decays = "weight_decay" in masks
        u = g + h.weight_decay * p if decays else g
        if "trust_ratio" not in masks:
            return u, ()
        weights, gradient = norm_of(p), norm_of(u if norm_of_sum else g)
        size, scale = weights
        rest = h.eps, jnp.ones_like(scale)
        if decays and not norm_of_sum:
            rest = sum_of_norms((h.weight_decay * size, scale), rest)
        largest = h.max_trust_ratio if bounds else None
        return times_ratio(u, weights, gradient, h.trust_coefficient, largest, rest), ()

    norm_of_sum = check_flag(who, "norm_of_sum", norm_of_sum)
    bounds = {} if max_trust_ratio is None else {"max_trust_ratio": number(max_trust_ratio)}
    masks = {"weight_decay": weight_decay_mask, "trust_ratio": trust_ratio_mask}
    return Rule(
        who,
        leaf,
        kind="scale_by_lars",
        hyperparams={
            "weight_decay": number(weight_decay),
            "trust_coefficient": number(trust_coefficient),
            "eps": number(eps),
            **bounds,
        },
        static=lambda facts: facts.masks,
        masks={name: linear_maps if mask is None else mask for name, mask in masks.items()},
        needs_params=True,
        complex="whole",
    )


def _lars(
    who: str,
    learning_rate: Hyperparam,
    weight_decay: Hyperparam = 0.0,
    weight_decay_mask: Mask | None = None,
    trust_coefficient: Hyperparam = 0.001,
    eps: Hyperparam = 0.0,
    trust_ratio_mask: Mask | None = None,
    momentum: Hyperparam | None = 0.9,
    nesterov: bool = False,
    *,
    rate_in_velocity: bool = True,
    norm_of_sum: bool = False,
    max_trust_ratio: Hyperparam | None = None,
    max_grad_norm: Hyperparam | None = None,
) -> list[Rule]:
    """Descend with LARS, by a momentum of layer-wise adapted gradients.

    Args:
        momentum: μ in [0, 1]; None keeps no velocity.
        nesterov: whether to look ahead along the velocity.
        rate_in_velocity: whether the velocity holds the rate, or is multiplied by it.
        max_grad_norm: bound on the norm of all gradients together, before anything else; None for
            no bound.

    Example:
        >>> import jax, jax.numpy as jnp, optlab
        >>> body = optlab.rules.paths_not_matching("bias", "head")
        >>> tx = optlab.lars(1.0, weight_decay_mask=body, trust_ratio_mask=body)
        >>> params = {"bias": jnp.ones(2), "head": jnp.ones((2, 3)), "kernel": jnp.ones((2, 2))}
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> jax.tree.map(lambda u: round(float(u.mean()), 4), updates)
        {'bias': -1.0, 'head': -1.0, 'kernel': -0.001}
    """
    clip = []
    if max_grad_norm is not None:
        clip = [global_norm_clip(who, max_grad_norm, "max_grad_norm")]
    rule = lars_rule(
        who,
        weight_decay,
        weight_decay_mask,
        trust_coefficient,
        eps,
        trust_ratio_mask,
        norm_of_sum=norm_of_sum,
        max_trust_ratio=max_trust_ratio,
    )
    rate = learning_rate_rule(who, learning_rate)
    velocity = momentum_rules(who, momentum, nesterov)
    inside = check_flag(who, "rate_in_velocity", rate_in_velocity)
    return [*clip, rule, *([rate, *velocity] if inside else [*velocity, rate])]


scale_by_lars = direction("scale_by_lars", lars_rule)
lars = optimizer("lars", _lars, like=(lars_rule,))
