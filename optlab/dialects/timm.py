"""The layer-wise optimizers of timm (`timm.optim`), which PyTorch itself does not have.

    lars      r = ξ‖θ‖/(‖g‖ + λ‖θ‖ + ε), at most η with `trust_clip`;  d = r·(g + λθ)
              v ← d at update 1, then μv + (1 − τ)d;                   θ ← θ − ηv, or θ − η(d + μv)
    lamb      g ← g·min(1, c/‖g‖) over all leaves;  m, v averages of g, g²;  r = m̂/(√v̂ + ε) + λθ
              θ ← θ − η ‖θ‖/‖r‖·r

η is `lr`, ξ `trust_coeff`, λ `weight_decay`, ε `eps`, μ `momentum`, τ `dampening`, c
`max_grad_norm`; m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ) with the present betas. Other norms are those
of one array, and a ratio is 1 where one of them is 0. `trust_clip` of `lars` puts min(r/η, 1) in
place of r (LARC), that of `lamb` bounds the ratio by 1 (LAMBC).

timm adapts the parameters of those groups alone whose decay is not 0, unless `always_adapt`. Its
users put biases and norms into a group without decay. Here `mask` says which parameters are
decayed, and so adapted: None for all, `optlab.rules.linear_maps` for timm's usual two groups.
Arguments have timm's names, order and defaults; of `lamb`, `caution` and `corrected_weight_decay`
are not there. Every number may be a schedule of the count before the update.

What differs, where timm fails: norms and ratios keep their digits where squares leave the range of
float32; finite gradients whose squares overflow count as 2⁶³; and where the norm of all gradients
is not finite they pass the clip unchanged (timm makes them NaN or 0).

Reference: `timm/optim/lars.py` and `lamb.py`. Trajectories are checked against timm 1.0.31.
"""

from dataclasses import replace

import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._types import Hyperparam, Mask
from optlab.dialects._adam import with_sum, without_correction
from optlab.dialects._common import by_power, check, first_undampened, is_zero, pair
from optlab.dialects._layerwise import decoupled_decay_and_trust_ratio, held_rate, step
from optlab.optimizers._adam import adam_rule
from optlab.optimizers._lamb import trust_ratio_rule
from optlab.optimizers._lars import lars_rule
from optlab.optimizers._momentum import momentum_rules
from optlab.rules import Rule, global_norm_clip, lift
from optlab.rules import learning_rate as learning_rate_rule
from optlab.rules import weight_decay as weight_decay_rule

__all__ = ["lamb", "lars"]

_NONNEGATIVE, _DECAY, _UNIT = _checks.NONNEGATIVE, _checks.DECAY, _checks.UNIT


def lars(
    lr: Hyperparam = 1.0,
    momentum: Hyperparam = 0.0,
    dampening: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    nesterov: bool = False,
    trust_coeff: Hyperparam = 0.001,
    eps: Hyperparam = 1e-8,
    trust_clip: bool = False,
    always_adapt: bool = False,
    *,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `timm.optim.Lars`: the rate outside the velocity.

    Args:
        lr: η ≥ 0.
        momentum: μ in [0, 1]; 0 keeps no velocity.
        dampening: τ in [0, 1), from the second update on.
        weight_decay: λ ≥ 0, added to the gradient as λθ. With 0 nothing is adapted either.
        nesterov: whether to look ahead; needs momentum and no dampening.
        trust_coeff: ξ ≥ 0.
        eps: ε ≥ 0, in the unit of the gradients' norm.
        trust_clip: whether to bound the rate r of a layer by η (LARC).
        always_adapt: whether to adapt what is not decayed, too.
        mask: which parameters are decayed; None for all.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or Nesterov's momentum has none or is dampened.
    """
    who = "dialects.timm.lars"
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        momentum=(momentum, _UNIT),
        dampening=(dampening, _DECAY),
        weight_decay=(weight_decay, _NONNEGATIVE),
        trust_coeff=(trust_coeff, _NONNEGATIVE),
        eps=(eps, _NONNEGATIVE),
    )
    if nesterov and (is_zero(momentum) or not is_zero(dampening)):
        got = f"momentum={momentum}, dampening={dampening}"
        _checks.fail(who, "nesterov needs momentum and no dampening", got)
    decayed, adapted = _masks(who, weight_decay, mask, always_adapt)
    # Where nothing is clipped the ratio has no bound.
    largest = 1.0 if _checks.check_flag(who, "trust_clip", trust_clip) else None
    rule = lars_rule(who, weight_decay, decayed, trust_coeff, eps, adapted, max_trust_ratio=largest)
    velocity = (
        [] if is_zero(momentum) else momentum_rules(who, momentum, nesterov, dampening=dampening)
    )
    return lift(
        held_rate(who, lr),
        _clipped_to_rate(rule) if trust_clip else rule,
        *(replace(own, once=first_undampened) for own in velocity),
        step(who),
    )


def _clipped_to_rate(rule: Rule) -> Rule:
    """Return LARS' rule with min(r/η, 1) in place of r."""

    def once(h, t):
        # A rate of 0 at the start of a warm-up must not make 0/0.
        rate = jnp.maximum(h.learning_rate, 1e-30)
        return h._replace(learning_rate=rate, max_trust_ratio=h.max_trust_ratio * rate)

    def leaf(g, slots, h, p, masks):
        u, slots = rule.leaf(g, slots, h, p, masks)
        return (u / h.learning_rate if "trust_ratio" in masks else u), slots

    return replace(rule, leaf=leaf, once=once, reads=("learning_rate",))


def lamb(
    lr: Hyperparam = 1e-3,
    bias_correction: bool = True,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-6,
    weight_decay: Hyperparam = 0.01,
    grad_averaging: bool = True,
    max_grad_norm: Hyperparam | None = 1.0,
    trust_clip: bool = False,
    always_adapt: bool = False,
    *,
    decoupled_decay: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `timm.optim.Lamb`: all gradients are clipped to the norm 1 first.

    Args:
        lr: η ≥ 0.
        bias_correction: whether to free m and v of their bias.
        betas: (β₁, β₂), each in [0, 1).
        eps: ε ≥ 0, outside the root.
        weight_decay: λ ≥ 0, part of r. With 0 nothing is adapted either.
        grad_averaging: whether m is an average; otherwise it is the sum β₁m + g.
        max_grad_norm: c > 0; None clips nothing.
        trust_clip: whether to bound the ratio by 1 (LAMBC).
        always_adapt: whether to adapt what is not decayed, too.
        decoupled_decay: whether θ is multiplied by 1 − ηλ first, in place of λθ in r.
        mask: which parameters are decayed; None for all.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.timm.lamb"
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        eps=(eps, _NONNEGATIVE),
        weight_decay=(weight_decay, _NONNEGATIVE),
    )
    if max_grad_norm is not None:
        check(who, max_grad_norm=(max_grad_norm, _checks.POSITIVE))
    flags = {"bias_correction": bias_correction, "grad_averaging": grad_averaging}
    flags |= {"trust_clip": trust_clip, "decoupled_decay": decoupled_decay}
    for name, flag in flags.items():
        _checks.check_flag(who, name, flag)
    adam = by_power(adam_rule(who, *pair(who, "betas", betas), eps))
    if not bias_correction:
        adam = without_correction(adam)
    if not grad_averaging:
        adam = with_sum(adam)
    clip = [] if max_grad_norm is None else [global_norm_clip(who, max_grad_norm, "max_grad_norm")]
    decayed, adapted = _masks(who, weight_decay, mask, always_adapt)
    largest = 1.0 if trust_clip else None
    if decoupled_decay:
        rule = decoupled_decay_and_trust_ratio(who, weight_decay, decayed, adapted, largest)
        return lift(held_rate(who, lr), *clip, adam, rule, step(who))
    return lift(
        *clip,
        adam,
        weight_decay_rule(who, weight_decay, decayed),
        trust_ratio_rule(who, largest, adapted),
        learning_rate_rule(who, lr),
    )


def _masks(
    who: str, weight_decay: Hyperparam, mask: Mask | None, always_adapt: bool
) -> tuple[Mask, Mask]:
    """Return which parameters are decayed, and which are adapted."""
    decayed = False if is_zero(weight_decay) else True if mask is None else mask
    always = _checks.check_flag(who, "always_adapt", always_adapt)
    return decayed, True if always else decayed
