"""The optimizers of Keras 3 (`keras.optimizers`), with the clipping that is part of each.

    sgd       v ← μv − ηg;                     θ ← θ − ηλθ + v, or θ − ηλθ + μv − ηg (Nesterov)
    adagrad   s ← s + g²;                      θ ← θ − η (λθ + g/√(s + ε))
    rmsprop   s ← ρs + (1 − ρ)g²;              b ← μb + ηg/√(s + ε);  θ ← θ − ηλθ − b
    adam      m, v averages of g, g²;          θ ← θ − η (λθ + m̂/(√v̂ + ε/√(1 − β₂ᵗ)))
    adamw     adam, with λ
    lamb      θ ← (1 − ηλ) θ;                  θ ← θ − η ‖θ‖/‖r‖·r,  r = m̂/(√v̂ + ε), leaf by leaf
    muon      m ← μm + g, d = μm + g;          θ ← θ − η (λθ + s · orthogonal factor of d)

η is `learning_rate`, μ `momentum`, ρ `rho`, ε `epsilon`, λ `weight_decay`, which is decoupled in
every rule; m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ). The rate stands *inside* the velocities of `sgd` and
`rmsprop`, so a change of rate acts on new gradients only. AMSGrad takes the maximum of v, not of v̂.
The m and d of `muon` are sums, which have the orthogonal factor of averages while μ is constant.
The factor is made of d/(‖d‖ + 10⁻⁷) by Newton–Schulz steps, and s is `rms_rate` · √max(in, out).
All but arrays of two axes get `adam`, with a decay of their own.

Arguments have the names, order and defaults of Keras. `use_ema` is `optlab.params_ema`,
`gradient_accumulation_steps` is `optlab.accumulate`, and for `exclude_from_weight_decay` there is
`optlab.add_decayed_weights` with a mask; they and `loss_scale_factor` have no place here. Every
number may be a schedule of the count before the update. Gradients are clipped first, by at most
one of

    clipnorm          each leaf g · c/max(‖g‖, c), with its own norm
    clipvalue         each element to [−c, c]
    global_clipnorm   all leaves by the norm of the tree

What differs, where Keras fails: the variance of centered RMSProp is clamped at 0, and finite
gradients whose squares overflow count as 2⁶³ and are clipped to the bound; gradients whose norm is
not finite pass the clip unchanged (Keras makes all, or all of the leaf, NaN or 0). The ‖d‖ of
`muon` has the parameters' precision (Keras: float32, also where these are float64).

Reference: keras.io/api/optimizers, and `keras/src/optimizers`. Trajectories are checked against
Keras 3.15 on JAX.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import optax

from optlab import _checks
from optlab._types import ArrayLike, DTypeLike, Hyperparam
from optlab.dialects._adam import with_eps_hat, with_raw_maximum
from optlab.dialects._common import by_power, check, decay_rules, is_zero, step_decay_rules
from optlab.dialects._layerwise import decoupled_decay_and_trust_ratio, held_rate, step
from optlab.dialects._muon import (
    ORIGINAL_COEFFICIENTS,
    for_others,
    muon_of_matrices,
    rate_ratio,
)
from optlab.optimizers._adagrad import adagrad_rule
from optlab.optimizers._adam import adam_rule
from optlab.optimizers._momentum import momentum_rules
from optlab.optimizers._muon import momentum_by
from optlab.optimizers._rmsprop import rmsprop_rule
from optlab.rules import Leaf, Rule, accumulate, global_norm_clip, lift
from optlab.rules import learning_rate as learning_rate_rule
from optlab.rules._norms import clip_factors, times
from optlab.transforms._clipping import value_rule

__all__ = ["adagrad", "adam", "adamw", "lamb", "muon", "rmsprop", "sgd"]

_NONNEGATIVE, _DECAY, _UNIT = _checks.NONNEGATIVE, _checks.DECAY, _checks.UNIT


def sgd(
    learning_rate: Hyperparam = 0.01,
    momentum: Hyperparam = 0.0,
    nesterov: bool = False,
    weight_decay: Hyperparam | None = None,
    clipnorm: Hyperparam | None = None,
    clipvalue: Hyperparam | None = None,
    global_clipnorm: Hyperparam | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `keras.optimizers.SGD`: the rate inside the velocity.

    Args:
        learning_rate: η ≥ 0.
        momentum: μ in [0, 1]; 0 keeps no velocity.
        nesterov: whether to look ahead along the velocity; without momentum it has no part.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights. None for none.
        clipnorm: bound on the norm of each leaf.
        clipvalue: bound on each element.
        global_clipnorm: bound on the norm of all leaves.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or there is more than one bound.
    """
    who = "dialects.keras.sgd"
    check(who, learning_rate=(learning_rate, _NONNEGATIVE), momentum=(momentum, _UNIT))
    nesterov = _checks.check_flag(who, "nesterov", nesterov)
    return lift(
        *_clip_rules(who, clipnorm, clipvalue, global_clipnorm),
        learning_rate_rule(who, learning_rate),
        *([] if is_zero(momentum) else momentum_rules(who, momentum, nesterov=nesterov)),
        *step_decay_rules(who, weight_decay, times_rate=True),
    )


def adagrad(
    learning_rate: Hyperparam = 0.001,
    initial_accumulator_value: ArrayLike = 0.1,
    epsilon: Hyperparam = 1e-7,
    weight_decay: Hyperparam | None = None,
    clipnorm: Hyperparam | None = None,
    clipvalue: Hyperparam | None = None,
    global_clipnorm: Hyperparam | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `keras.optimizers.Adagrad`: ε inside the root, s from 0.1.

    Args:
        learning_rate: η ≥ 0.
        initial_accumulator_value: where s starts, ≥ 0.
        epsilon: ε ≥ 0, inside the root, in the unit of the squared gradients.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights. None for none.
        clipnorm: bound on the norm of each leaf.
        clipvalue: bound on each element.
        global_clipnorm: bound on the norm of all leaves.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or there is more than one bound.
    """
    who = "dialects.keras.adagrad"
    check(who, learning_rate=(learning_rate, _NONNEGATIVE), epsilon=(epsilon, _NONNEGATIVE))
    return lift(
        *_clip_rules(who, clipnorm, clipvalue, global_clipnorm),
        adagrad_rule(who, initial_accumulator_value, epsilon, eps_in_sqrt=True),
        *decay_rules(who, weight_decay),
        learning_rate_rule(who, learning_rate),
    )


def rmsprop(
    learning_rate: Hyperparam = 0.001,
    rho: Hyperparam = 0.9,
    momentum: Hyperparam = 0.0,
    epsilon: Hyperparam = 1e-7,
    centered: bool = False,
    weight_decay: Hyperparam | None = None,
    clipnorm: Hyperparam | None = None,
    clipvalue: Hyperparam | None = None,
    global_clipnorm: Hyperparam | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `keras.optimizers.RMSprop`: ε inside the root, the rate inside the velocity.

    Args:
        learning_rate: η ≥ 0.
        rho: ρ in [0, 1), of the average of squared gradients.
        momentum: μ in [0, 1]; 0 keeps no velocity.
        epsilon: ε ≥ 0, inside the root, in the unit of the squared gradients.
        centered: whether to divide by the standard deviation.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights. None for none.
        clipnorm: bound on the norm of each leaf.
        clipvalue: bound on each element.
        global_clipnorm: bound on the norm of all leaves.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or there is more than one bound.
    """
    who = "dialects.keras.rmsprop"
    check(
        who,
        learning_rate=(learning_rate, _NONNEGATIVE),
        rho=(rho, _DECAY),
        momentum=(momentum, _UNIT),
        epsilon=(epsilon, _NONNEGATIVE),
    )
    return lift(
        *_clip_rules(who, clipnorm, clipvalue, global_clipnorm),
        rmsprop_rule(who, rho, epsilon, eps_in_sqrt=True, centered=centered),
        learning_rate_rule(who, learning_rate),
        *([] if is_zero(momentum) else momentum_rules(who, momentum)),
        *step_decay_rules(who, weight_decay, times_rate=True),
    )


def adam(
    learning_rate: Hyperparam = 0.001,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    amsgrad: bool = False,
    weight_decay: Hyperparam | None = None,
    clipnorm: Hyperparam | None = None,
    clipvalue: Hyperparam | None = None,
    global_clipnorm: Hyperparam | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `keras.optimizers.Adam`: ε is the “epsilon hat” of Kingma & Ba.

    Args:
        learning_rate: η ≥ 0.
        beta_1: β₁ in [0, 1).
        beta_2: β₂ in [0, 1).
        epsilon: ε ≥ 0, added to √v before its bias is removed: an ε/√(1 − β₂ᵗ) beside √v̂.
        amsgrad: whether to divide by the root of the largest v so far.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights. None for none.
        clipnorm: bound on the norm of each leaf.
        clipvalue: bound on each element.
        global_clipnorm: bound on the norm of all leaves.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or there is more than one bound.

    Example:
        The first step is not α for a small gradient, as it is nearly in PyTorch:

        >>> import jax.numpy as jnp
        >>> import optlab
        >>> g = jnp.array(1e-5)
        >>> for tx in (adam(0.1), optlab.dialects.pytorch.adam(0.1, eps=1e-7)):
        ...     print(f"{tx.update(g, tx.init(g))[0]:.4f}")
        -0.0760
        -0.0990
    """
    return _adam(
        "dialects.keras.adam",
        learning_rate,
        beta_1,
        beta_2,
        epsilon,
        amsgrad,
        weight_decay,
        (clipnorm, clipvalue, global_clipnorm),
    )


def adamw(
    learning_rate: Hyperparam = 0.001,
    weight_decay: Hyperparam = 0.004,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    amsgrad: bool = False,
    clipnorm: Hyperparam | None = None,
    clipvalue: Hyperparam | None = None,
    global_clipnorm: Hyperparam | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `keras.optimizers.AdamW`.

    Args:
        learning_rate: η ≥ 0.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights.
        beta_1: β₁ in [0, 1).
        beta_2: β₂ in [0, 1).
        epsilon: ε ≥ 0, as in `adam`.
        amsgrad: whether to divide by the root of the largest v so far.
        clipnorm: bound on the norm of each leaf.
        clipvalue: bound on each element.
        global_clipnorm: bound on the norm of all leaves.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or there is more than one bound.
    """
    if weight_decay is None:
        _checks.fail("dialects.keras.adamw", "weight_decay must be a number", "weight_decay=None")
    return _adam(
        "dialects.keras.adamw",
        learning_rate,
        beta_1,
        beta_2,
        epsilon,
        amsgrad,
        weight_decay,
        (clipnorm, clipvalue, global_clipnorm),
    )


def _adam(who, learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay, clips):
    amsgrad = _checks.check_flag(who, "amsgrad", amsgrad)
    check(
        who,
        learning_rate=(learning_rate, _NONNEGATIVE),
        beta_1=(beta_1, _DECAY),
        beta_2=(beta_2, _DECAY),
        epsilon=(epsilon, _NONNEGATIVE),
    )
    direction = with_eps_hat(by_power(adam_rule(who, beta_1, beta_2, epsilon)))
    return lift(
        *_clip_rules(who, *clips),
        with_raw_maximum(direction) if amsgrad else direction,
        *decay_rules(who, weight_decay),
        learning_rate_rule(who, learning_rate),
    )


def lamb(
    learning_rate: Hyperparam = 0.001,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    weight_decay: Hyperparam | None = None,
    clipnorm: Hyperparam | None = None,
    clipvalue: Hyperparam | None = None,
    global_clipnorm: Hyperparam | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `keras.optimizers.Lamb`: every leaf is adapted, and decayed before.

    Args:
        learning_rate: η ≥ 0.
        beta_1: β₁ in [0, 1).
        beta_2: β₂ in [0, 1).
        epsilon: ε ≥ 0, outside the root.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights. None for none.
        clipnorm: bound on the norm of each leaf.
        clipvalue: bound on each element.
        global_clipnorm: bound on the norm of all leaves.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or there is more than one bound.
    """
    who = "dialects.keras.lamb"
    check(
        who,
        learning_rate=(learning_rate, _NONNEGATIVE),
        beta_1=(beta_1, _DECAY),
        beta_2=(beta_2, _DECAY),
        epsilon=(epsilon, _NONNEGATIVE),
    )
    decay = 0.0 if weight_decay is None else weight_decay
    return lift(
        *_clip_rules(who, clipnorm, clipvalue, global_clipnorm),
        held_rate(who, learning_rate),
        by_power(adam_rule(who, beta_1, beta_2, epsilon)),
        decoupled_decay_and_trust_ratio(who, decay, not is_zero(decay), True),
        step(who),
    )


def muon(
    learning_rate: Hyperparam = 0.001,
    adam_beta_1: Hyperparam = 0.9,
    adam_beta_2: Hyperparam = 0.999,
    adam_weight_decay: Hyperparam | None = 0.004,
    epsilon: Hyperparam = 1e-7,
    weight_decay: Hyperparam | None = 0.004,
    clipnorm: Hyperparam | None = None,
    clipvalue: Hyperparam | None = None,
    global_clipnorm: Hyperparam | None = None,
    exclude_layers: Sequence[str] | str | None = None,
    exclude_embeddings: bool = True,
    muon_a: float = ORIGINAL_COEFFICIENTS[0],
    muon_b: float = ORIGINAL_COEFFICIENTS[1],
    muon_c: float = ORIGINAL_COEFFICIENTS[2],
    adam_lr_ratio: Hyperparam = 1.0,
    momentum: Hyperparam = 0.95,
    ns_steps: int = 5,
    nesterov: bool = True,
    rms_rate: float | None = 0.2,
    *,
    ns_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `keras.optimizers.Muon`: arrays of two axes by Muon, all others by Adam.

    Heads are arrays of two axes, too: name them in `exclude_layers`, as in Keras. The coefficients
    and `rms_rate` take no schedule.

    Args:
        learning_rate: η ≥ 0.
        adam_beta_1: β₁ in [0, 1).
        adam_beta_2: β₂ in [0, 1).
        adam_weight_decay: λ ≥ 0 for Adam's parameters; an update takes the share ηλ. None for none.
        epsilon: ε ≥ 0 of Adam, as in `adam`.
        weight_decay: λ ≥ 0 for Muon's parameters. None for none.
        clipnorm: bound on the norm of each leaf.
        clipvalue: bound on each element.
        global_clipnorm: bound on the norm of all leaves.
        exclude_layers: regular expressions, or one; a parameter gets Adam where one of them occurs
            in its path, such as "blocks/0/head/kernel". Each must occur in some path.
        exclude_embeddings: whether one gets Adam where its path contains "embedding".
        muon_a: a of each Newton–Schulz step.
        muon_b: b of each step.
        muon_c: c of each step.
        adam_lr_ratio: ρ ≥ 0; Adam's rate is ηρ, its decay still ηλ.
        momentum: μ in [0, 1), of the sum of gradients.
        ns_steps: how many steps, ≥ 1.
        nesterov: whether to look one step ahead, in Muon's parameters.
        rms_rate: r > 0; s = r √max(in, out). None for s = 1.
        ns_dtype: type of the steps; by default that of the parameters, but at least float32.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, there is more than one bound, or an expression
            cannot be compiled.
    """
    who = "dialects.keras.muon"
    check(
        who,
        learning_rate=(learning_rate, _NONNEGATIVE),
        adam_beta_1=(adam_beta_1, _DECAY),
        adam_beta_2=(adam_beta_2, _DECAY),
        epsilon=(epsilon, _NONNEGATIVE),
        adam_lr_ratio=(adam_lr_ratio, _NONNEGATIVE),
        momentum=(momentum, _DECAY),
    )
    _checks.check_flag(who, "exclude_embeddings", exclude_embeddings)
    rate = (
        None
        if rms_rate is None
        else float(_checks.check_number(who, "rms_rate", rms_rate, _checks.POSITIVE))
    )
    if isinstance(exclude_layers, str):
        exclude_layers = (exclude_layers,)
    excluded = [_expression(who, pattern) for pattern in exclude_layers or ()]

    def owns(leaf: Leaf) -> bool:
        is_embedding = exclude_embeddings and "embedding" in leaf.path.lower()
        named = any(pattern.search(leaf.path) for pattern in excluded)
        return len(leaf.shape) == 2 and not is_embedding and not named

    rule = muon_of_matrices(
        who,
        owns,
        ns_coeffs=(muon_a, muon_b, muon_c),
        ns_steps=ns_steps,
        beta=momentum,
        eps=1e-7,
        momentum=momentum_by(accumulate, nesterov=_checks.check_flag(who, "nesterov", nesterov)),
        scale=lambda rows, columns: 1.0 if rate is None else rate * math.sqrt(max(rows, columns)),
        ns_dtype=ns_dtype,
    )

    def check_excluded(own: Sequence[Leaf], leaves: Sequence[Leaf]) -> None:
        for pattern in excluded:
            if not any(pattern.search(leaf.path) for leaf in leaves):
                there = ", ".join(leaf.path for leaf in leaves[:5])
                required = "each of exclude_layers must occur in the path of some parameter"
                got = f"{pattern.pattern!r}, which occurs in none"
                _checks.fail(who, required, got, f"there are {there}")
        if rule.check_leaves is not None:
            rule.check_leaves(own, leaves)

    # A sum is no state for PyTorch, whose buffer is an average.
    matrices = replace(rule, kind="scale_by_summed_muon", check_leaves=check_excluded)
    adam = with_eps_hat(by_power(adam_rule(who, adam_beta_1, adam_beta_2, epsilon)))
    return lift(
        *_clip_rules(who, clipnorm, clipvalue, global_clipnorm),
        matrices,
        for_others(adam, owns),
        for_others(rate_ratio(who, adam_lr_ratio), owns),
        *(replace(rule, where=owns) for rule in decay_rules(who, weight_decay)),
        *(for_others(rule, owns) for rule in decay_rules(who, adam_weight_decay)),
        learning_rate_rule(who, learning_rate),
    )


def _expression(who: str, pattern: str) -> re.Pattern[str]:
    """Return a regular expression, compiled."""
    try:
        return re.compile(pattern)
    except (re.error, TypeError):
        required = "exclude_layers must hold regular expressions"
        _checks.fail(who, required, f"{pattern!r}")


def _leaf_norm_rule(who: str, clipnorm: Hyperparam) -> Rule:
    """Return the rule that bounds the norm of each leaf, as `global_norm_clip` that of all."""

    def leaf(g, slots, max_norm, p):
        return times(g, clip_factors([g], max_norm)), slots

    rule = global_norm_clip(who, clipnorm)
    return replace(rule, across=None, once=lambda h, t: h.max_norm, leaf=leaf)


def _clip_rules(
    who: str,
    clipnorm: Hyperparam | None,
    clipvalue: Hyperparam | None,
    global_clipnorm: Hyperparam | None,
) -> list[Rule]:
    """Return the rule of the bound that is given."""
    rules = {
        "clipnorm": _leaf_norm_rule,
        "clipvalue": value_rule,
        "global_clipnorm": global_norm_clip,
    }
    bounds = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    wanted = {name: bound for name, bound in bounds.items() if bound is not None}
    if len(wanted) > 1:
        got = ", ".join(f"{name}={bound}" for name, bound in wanted.items())
        _checks.fail(who, f"at most one of {', '.join(bounds)} may be given", got)
    check(who, **{name: (bound, _checks.POSITIVE) for name, bound in wanted.items()})
    return [rules[name](who, bound) for name, bound in wanted.items()]
