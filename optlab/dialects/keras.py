"""The optimizers of Keras 3 (`keras.optimizers`), with the clipping that is part of each.

    sgd       v ← μv − ηg;                     θ ← θ − ηλθ + v, or θ − ηλθ + μv − ηg (Nesterov)
    adagrad   s ← s + g²;                      θ ← θ − η (λθ + g/√(s + ε))
    rmsprop   s ← ρs + (1 − ρ)g²;              b ← μb + ηg/√(s + ε);  θ ← θ − ηλθ − b
    adam      m, v averages of g, g²;          θ ← θ − η (λθ + m̂/(√v̂ + ε/√(1 − β₂ᵗ)))
    adamw     adam, with λ
    lamb      θ ← (1 − ηλ) θ;                  θ ← θ − η ‖θ‖/‖r‖·r,  r = m̂/(√v̂ + ε), leaf by leaf

η is `learning_rate`, μ `momentum`, ρ `rho`, ε `epsilon`, λ `weight_decay`, which is decoupled in
every rule; m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ). The rate stands *inside* the velocities of `sgd` and
`rmsprop`, so a change of rate acts on new gradients only. AMSGrad takes the maximum of v, not of v̂.

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
not finite pass the clip unchanged (Keras makes all, or all of the leaf, NaN or 0).

Reference: keras.io/api/optimizers, and `keras/src/optimizers`. Trajectories are checked against
Keras 3.15 on JAX.
"""

from dataclasses import replace

import optax

from optlab import _checks
from optlab._types import ArrayLike, Hyperparam
from optlab.dialects._adam import with_eps_hat, with_raw_maximum
from optlab.dialects._common import by_power, check, decay_rules, is_zero, step_decay_rules
from optlab.dialects._layerwise import decoupled_decay_and_trust_ratio, held_rate, step
from optlab.optimizers._adagrad import adagrad_rule
from optlab.optimizers._adam import adam_rule
from optlab.optimizers._momentum import momentum_rules
from optlab.optimizers._rmsprop import rmsprop_rule
from optlab.rules import Rule, global_norm_clip, lift
from optlab.rules import learning_rate as learning_rate_rule
from optlab.rules._norms import clip_factors, times
from optlab.transforms._clipping import value_rule

__all__ = ["adagrad", "adam", "adamw", "lamb", "rmsprop", "sgd"]

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
    decays = not is_zero(weight_decay)
    return lift(
        *_clip_rules(who, clipnorm, clipvalue, global_clipnorm),
        held_rate(who, learning_rate),
        by_power(adam_rule(who, beta_1, beta_2, epsilon)),
        decoupled_decay_and_trust_ratio(who, weight_decay if decays else 0.0, decays, True),
        step(who),
    )


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
