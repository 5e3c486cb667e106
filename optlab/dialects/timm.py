"""The layer-wise optimizers of timm (`timm.optim`), which PyTorch does not have, and its Muon.

    lars      r = ξ‖θ‖/(‖g‖ + λ‖θ‖ + ε), at most η with `trust_clip`;  d = r·(g + λθ)
              v ← d at update 1, then μv + (1 − τ)d;                   θ ← θ − ηv, or θ − η(d + μv)
    lamb      g ← g·min(1, c/‖g‖) over all leaves;  m, v averages of g, g²;  r = m̂/(√v̂ + ε) + λθ
              θ ← θ − η ‖θ‖/‖r‖·r
    muon      m average of g, d = m;                                   θ ← θ − η (s·O + λθ)
              others: m, v averages of g, g²;                          θ ← θ − ηρ (m̂/(√v̂ + ε) + λθ)

η is `lr`, ξ `trust_coeff`, λ `weight_decay`, ε `eps`, μ `momentum`, τ `dampening`, c
`max_grad_norm`; m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ) with the present betas. Other norms are those
of one array, and a ratio is 1 where one of them is 0. `trust_clip` of `lars` puts min(r/η, 1) in
place of r (LARC), that of `lamb` bounds the ratio by 1 (LAMBC).

`lars` and `lamb` of timm adapt the parameters of those groups alone whose decay is not 0, unless
`always_adapt`. Its users put biases and norms into a group without decay. Here `mask` says which
parameters are decayed, and so adapted: None for all, `optlab.rules.linear_maps` for timm's usual
two groups.

The O of `muon` is the orthogonal factor of d, made of d/max(κ‖d‖, ε) by Newton–Schulz steps; κ is
`safety_factor`, ρ `fallback_lr_scale`, and s is chosen by `adjust_lr_fn`. With `nesterov`, in
`nmuon`, d is μm + (1 − μ)g, and the others get NAdamW, with β₁m + (1 − β₁)g in the place of m. As
in timm, shapes say which parameters are matrices: those whose input and output are at least 4, with
neither more than 128 times as large as the other, embeddings and heads among them. A convolution is
one matrix, whose input are all axes but that of the output; one with a single input channel, as a
depthwise one, is none, and neither are the biases of stacked layers. `axes` says otherwise.

Arguments have timm's names, order and defaults; of `lamb`, `caution` and `corrected_weight_decay`
are not there, of `muon` `conv_mode`, `normalize_spatial`, `adamw_lr`, `algo` and `scale_eps`. Every
number may be a schedule of the count before the update, but for κ and the coefficients.

What differs, where timm fails: norms and ratios keep their digits where squares leave the range of
float32; finite gradients whose squares overflow count as 2⁶³; and where the norm of all gradients
is not finite they pass the clip unchanged (timm makes them NaN or 0). Newton–Schulz steps are in
float32, unless `ns_dtype` says otherwise; timm's bfloat16 gives results that depend on the
processor.

Reference: `timm/optim/lars.py`, `lamb.py` and `muon.py`. Trajectories are checked against timm
1.0.31.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._types import Array, ArrayLike, DTypeLike, Hyperparam, Mask
from optlab.dialects._adam import with_sum, without_correction
from optlab.dialects._common import (
    by_power,
    check,
    decay_rules,
    first_undampened,
    is_zero,
    pair,
)
from optlab.dialects._layerwise import decoupled_decay_and_trust_ratio, held_rate, step
from optlab.dialects._muon import (
    TIMM_COEFFICIENTS,
    for_others,
    muon_of_matrices,
    rate_ratio,
)
from optlab.optimizers._adam import adam_rule
from optlab.optimizers._lamb import trust_ratio_rule
from optlab.optimizers._lars import lars_rule
from optlab.optimizers._momentum import momentum_rules
from optlab.optimizers._muon import Scale
from optlab.rules import AxesChoice, Leaf, Rule, global_norm_clip, lift
from optlab.rules import learning_rate as learning_rate_rule
from optlab.rules import weight_decay as weight_decay_rule
from optlab.rules._roles import size

__all__ = ["lamb", "lars", "muon", "nmuon"]

_NONNEGATIVE, _DECAY, _UNIT = _checks.NONNEGATIVE, _checks.DECAY, _checks.UNIT

_LEAST_SIDE, _LARGEST_ASPECT = 4, 128
"""The shapes that timm takes for matrices."""

_SCALES: dict[str | None, str | Scale] = {
    "match_rms_adamw": "moonshot",
    "original": "keller_jordan",
    "rms_to_rms": "scion",
    None: lambda size_in, size_out: 1.0,
}
"""What timm calls s; our own names where there are some."""


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
    nesterov = _checks.check_flag(who, "nesterov", nesterov)
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


def muon(
    lr: Hyperparam = 0.02,
    weight_decay: Hyperparam = 0.0,
    momentum: Hyperparam = 0.95,
    nesterov: bool = False,
    ns_steps: int = 5,
    ns_coefficients: str | ArrayLike = "quintic",
    eps: Hyperparam = 1e-7,
    safety_factor: float = 1.0,
    adjust_lr_fn: str | None = "match_rms_adamw",
    *,
    fallback_lr_scale: Hyperparam = 1.0,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.95),
    ns_dtype: DTypeLike | None = None,
    axes: AxesChoice | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `timm.optim.Muon`: by default without Nesterov, at AdamW's scale.

    Args:
        lr: η ≥ 0.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights.
        momentum: μ in [0, 1), of the average of gradients.
        nesterov: whether to look one step ahead, in all parameters.
        ns_steps: how many Newton–Schulz steps, ≥ 1.
        ns_coefficients: "quintic", "original", "polar_express", "polar_express_safer", a triple, or
            rows (a, b, c), of which the first are taken and the last is repeated.
        eps: ε ≥ 0, the least divisor of a matrix, and AdamW's ε.
        safety_factor: κ > 0; the norm of a matrix is multiplied by it.
        adjust_lr_fn: s for a map from `in` to `out` numbers: "match_rms_adamw" for
            0.2 √max(in, out), "original" for √max(1, out/in), "rms_to_rms" for √(out/in), None
            for 1.
        fallback_lr_scale: ρ ≥ 0; the rate of AdamW is ηρ.
        betas: (β₁, β₂) of AdamW, each in [0, 1).
        ns_dtype: type of the steps; by default float32, or float64 for such parameters.
        axes: which axes of some parameters are input and output, as `optlab.muon` takes it; these
            are matrices whatever their shape. `Axes()` sends a parameter to AdamW.
        mask: which parameters are decayed; None for all.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or a name is unknown.
    """
    who = "dialects.timm.muon"
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        weight_decay=(weight_decay, _NONNEGATIVE),
        momentum=(momentum, _DECAY),
        eps=(eps, _NONNEGATIVE),
        fallback_lr_scale=(fallback_lr_scale, _NONNEGATIVE),
    )
    kappa = _checks.check_number(who, "safety_factor", safety_factor, _checks.POSITIVE)
    if adjust_lr_fn not in _SCALES:
        required = f"adjust_lr_fn must be one of {', '.join(map(repr, _SCALES))}"
        _checks.fail(who, required, f"adjust_lr_fn={adjust_lr_fn!r}")
    if isinstance(ns_coefficients, str):
        if ns_coefficients not in TIMM_COEFFICIENTS:
            required = f"ns_coefficients must be {', '.join(TIMM_COEFFICIENTS)}, or rows (a, b, c)"
            _checks.fail(who, required, f"ns_coefficients={ns_coefficients!r}")
        ns_coefficients = TIMM_COEFFICIENTS[ns_coefficients]
    matrices = muon_of_matrices(
        who,
        _is_suitable,
        ns_coeffs=ns_coefficients,
        ns_steps=ns_steps,
        beta=momentum,
        eps=eps,
        nesterov=nesterov,
        scale=_SCALES[adjust_lr_fn],
        ns_dtype=ns_dtype,
        axes=axes,
        divisor=lambda norm, eps: jnp.maximum(kappa * norm, eps),
    )
    adam = by_power(adam_rule(who, *pair(who, "betas", betas), eps, nesterov=nesterov))
    return lift(
        matrices,
        for_others(replace(adam, once=_same_correction) if nesterov else adam, _is_suitable, axes),
        *decay_rules(who, weight_decay, mask),
        for_others(rate_ratio(who, fallback_lr_scale), _is_suitable, axes),
        learning_rate_rule(who, lr),
    )


nmuon = partial(muon, nesterov=True)
nmuon.__doc__ = "Descend as timm's `nmuon`: `muon` that looks one step ahead, with NAdamW."


def _same_correction(h: Any, t: Array) -> Any:
    """Return NAdam's scalars, with one bias correction for m and the gradient."""
    return h, h.b1.value * h.b1.correction, h.b1.complement * h.b1.correction


def _is_suitable(leaf: Leaf) -> bool:
    """Whether timm takes a leaf for a matrix, by its shape."""
    if leaf.asked or not leaf.is_linear:
        return leaf.is_linear
    if len(leaf.shape) > 2 and any(leaf.shape[axis] == 1 for axis in _first_in_pytorch(leaf)):
        return False
    sides = size(leaf.shape, leaf.axes.input), size(leaf.shape, leaf.axes.output)
    return min(sides) >= _LEAST_SIDE and max(sides) <= _LARGEST_ASPECT * min(sides)


def _first_in_pytorch(leaf: Leaf) -> tuple[int, int]:
    """Return the axes that come first in PyTorch, the channels of a convolution."""
    if leaf.names.role == "embedding":
        return 0, 1
    is_equinox = leaf.path.endswith("weight")
    return leaf.axes.output[0], leaf.axes.input[0 if is_equinox else -1]
