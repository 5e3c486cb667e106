"""The optimizers and the clipping, with PyTorch's arithmetic."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._types import Array, ArrayLike, DTypeLike, Hyperparam
from optlab.dialects._adam import with_raw_maximum
from optlab.dialects._common import (
    by_power,
    check,
    decay_rules,
    first_undampened,
    flip_sign_rules,
    is_zero,
    pair,
)
from optlab.dialects._muon import ORIGINAL_COEFFICIENTS, muon_of_matrices
from optlab.optimizers._adagrad import adagrad_rule
from optlab.optimizers._adam import adam_rule
from optlab.optimizers._momentum import momentum_rules
from optlab.optimizers._rmsprop import rmsprop_rule
from optlab.rules import AxesChoice, Leaf, Rule, global_norm_clip, lift, number
from optlab.rules import learning_rate as learning_rate_rule
from optlab.rules._norms import clip_factors
from optlab.transforms._clipping import value_rule

_NONNEGATIVE, _DECAY, _UNIT = _checks.NONNEGATIVE, _checks.DECAY, _checks.UNIT


def sgd(
    lr: Hyperparam = 1e-3,
    momentum: Hyperparam = 0.0,
    dampening: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.SGD`: the first gradient enters the velocity undampened.

    Args:
        lr: η ≥ 0, outside the velocity.
        momentum: μ in [0, 1]; 0 keeps no velocity.
        dampening: τ in [0, 1), from the second update on.
        weight_decay: λ ≥ 0 of an L2 penalty ½λ‖θ‖², added to the gradient.
        nesterov: whether to look ahead; needs momentum and no dampening.
        maximize: whether to ascend.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or Nesterov's momentum has none or is dampened.
    """
    who = "dialects.pytorch.sgd"
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        momentum=(momentum, _UNIT),
        dampening=(dampening, _DECAY),
        weight_decay=(weight_decay, _NONNEGATIVE),
    )
    nesterov = _checks.check_flag(who, "nesterov", nesterov)
    if nesterov and (is_zero(momentum) or not is_zero(dampening)):
        got = f"momentum={momentum}, dampening={dampening}"
        _checks.fail(who, "nesterov needs momentum and no dampening", got)
    velocity = [
        replace(rule, once=first_undampened)
        for rule in (
            []
            if is_zero(momentum)
            else momentum_rules(who, momentum, nesterov, dampening=dampening)
        )
    ]
    return lift(
        *flip_sign_rules(who, maximize),
        *decay_rules(who, weight_decay),
        *velocity,
        learning_rate_rule(who, lr),
    )


def adagrad(
    lr: Hyperparam = 1e-2,
    lr_decay: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    initial_accumulator_value: ArrayLike = 0.0,
    eps: Hyperparam = 1e-10,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.Adagrad`, whose rate falls with the updates too.

    Args:
        lr: η ≥ 0.
        lr_decay: ≥ 0; update t has the rate η/(1 + (t − 1)·lr_decay).
        weight_decay: λ ≥ 0 of an L2 penalty ½λ‖θ‖².
        initial_accumulator_value: where s starts, ≥ 0.
        eps: ε ≥ 0, outside the root.
        maximize: whether to ascend.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.pytorch.adagrad"
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        lr_decay=(lr_decay, _NONNEGATIVE),
        weight_decay=(weight_decay, _NONNEGATIVE),
        eps=(eps, _NONNEGATIVE),
    )
    return lift(
        *flip_sign_rules(who, maximize),
        *decay_rules(who, weight_decay),
        adagrad_rule(who, initial_accumulator_value, eps),
        learning_rate_rule(who, lr) if is_zero(lr_decay) else _falling_rate(who, lr, lr_decay),
    )


def _falling_rate(who: str, lr: Hyperparam, lr_decay: Hyperparam) -> Rule:
    """Return the rule of a rate that update t divides by 1 + (t − 1)·lr_decay."""
    rule = learning_rate_rule(who, lr)

    def once(h: Any, t: Array) -> Array:
        updates_before = (t - 1).astype(h.lr_decay.dtype)
        return -(h.learning_rate / (1 + updates_before * h.lr_decay))

    return replace(rule, hyperparams={**rule.hyperparams, "lr_decay": number(lr_decay)}, once=once)


def rmsprop(
    lr: Hyperparam = 1e-2,
    alpha: Hyperparam = 0.99,
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    momentum: Hyperparam = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.RMSprop`: ε outside the root, the rate outside the velocity.

    Args:
        lr: η ≥ 0.
        alpha: α in [0, 1), of the average of squared gradients.
        eps: ε ≥ 0, outside the root.
        weight_decay: λ ≥ 0 of an L2 penalty ½λ‖θ‖².
        momentum: μ in [0, 1]; 0 keeps no velocity.
        centered: whether to divide by the standard deviation.
        maximize: whether to ascend.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.pytorch.rmsprop"
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        alpha=(alpha, _DECAY),
        eps=(eps, _NONNEGATIVE),
        weight_decay=(weight_decay, _NONNEGATIVE),
        momentum=(momentum, _UNIT),
    )
    velocity = [] if is_zero(momentum) else momentum_rules(who, momentum)
    return lift(
        *flip_sign_rules(who, maximize),
        *decay_rules(who, weight_decay),
        rmsprop_rule(who, alpha, eps, centered=centered),
        *velocity,
        learning_rate_rule(who, lr),
    )


def adam(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.Adam`.

    Args:
        lr: η ≥ 0.
        betas: β₁ and β₂ in [0, 1).
        eps: ε ≥ 0, outside the root.
        weight_decay: λ ≥ 0 of an L2 penalty ½λ‖θ‖², which enters the averages.
        amsgrad: whether to divide by the root of the largest v so far.
        maximize: whether to ascend.
        decoupled_weight_decay: whether to decay the weights as `adamw` does.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    return _adam(
        "dialects.pytorch.adam",
        lr,
        betas,
        eps,
        weight_decay,
        amsgrad,
        maximize,
        decoupled_weight_decay,
    )


def adamw(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.AdamW`.

    Args:
        lr: η ≥ 0.
        betas: β₁ and β₂ in [0, 1).
        eps: ε ≥ 0, outside the root.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights.
        amsgrad: whether to divide by the root of the largest v so far.
        maximize: whether to ascend.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = adamw(lr=0.1, betas=(0.9, 0.95), weight_decay=0.5)
        >>> params = jnp.array([4.0, -4.0])
        >>> print(tx.update(jnp.array([3.0, 0.0]), tx.init(params), params)[0])
        [-0.3  0.2]
    """
    return _adam("dialects.pytorch.adamw", lr, betas, eps, weight_decay, amsgrad, maximize, True)


def _adam(who, lr, betas, eps, weight_decay, amsgrad, maximize, decoupled):
    amsgrad = _checks.check_flag(who, "amsgrad", amsgrad)
    decoupled = _checks.check_flag(who, "decoupled_weight_decay", decoupled)
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        eps=(eps, _NONNEGATIVE),
        weight_decay=(weight_decay, _NONNEGATIVE),
    )
    b1, b2 = pair(who, "betas", betas)
    decay = decay_rules(who, weight_decay)
    direction = by_power(adam_rule(who, b1, b2, eps))
    return lift(
        *flip_sign_rules(who, maximize),
        *([] if decoupled else decay),
        with_raw_maximum(direction) if amsgrad else direction,
        *(decay if decoupled else []),
        learning_rate_rule(who, lr),
    )


def muon(
    lr: Hyperparam = 1e-3,
    weight_decay: Hyperparam = 0.1,
    momentum: Hyperparam = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = ORIGINAL_COEFFICIENTS,
    eps: Hyperparam = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    *,
    ns_dtype: DTypeLike | None = None,
    axes: AxesChoice | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.Muon`: every parameter is a matrix, and none gets AdamW.

    PyTorch refuses parameters that have not two axes. Here a hidden matrix may have more, as a
    stack of layers or a convolution, which are treated as by `optlab.muon`.

    Args:
        lr: η ≥ 0.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights.
        momentum: μ in [0, 1), of the average of gradients.
        nesterov: whether to look one step ahead.
        ns_coefficients: a, b and c of each Newton–Schulz step.
        eps: ε ≥ 0; a matrix is divided by max(‖·‖, ε) before the first step.
        ns_steps: how many steps, ≥ 1.
        adjust_lr_fn: s for a map from `in` to `out` numbers: "original", or None, for
            √max(1, out/in); "match_rms_adamw" for 0.2 √max(in, out).
        ns_dtype: type of the steps; by default float32, or float64 for such parameters. PyTorch
            takes bfloat16, in which results depend on the processor and are off by up to 5%.
        axes: which axes of some parameters are input and output, as `optlab.muon` takes it. Of
            others the names decide; two axes are (in, out) as in Flax.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, a name is unknown, or, at `init`, a parameter is
            neither a hidden matrix by its names nor has two axes.

    Example:
        The other parameters get an optimizer of their own:

        >>> import jax, jax.numpy as jnp, optax
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
        >>> kinds = jax.tree.map(lambda p: "matrix" if p.ndim == 2 else "other", params)
        >>> tx = optax.partition({"matrix": muon(lr=0.02), "other": adamw()}, kinds)
        >>> state = tx.init(params)
    """
    who = "dialects.pytorch.muon"
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        weight_decay=(weight_decay, _NONNEGATIVE),
        momentum=(momentum, _DECAY),
        eps=(eps, _NONNEGATIVE),
    )
    if np.shape(ns_coefficients) != (3,):
        got = f"ns_coefficients={ns_coefficients!r}"
        _checks.fail(who, "ns_coefficients must be three numbers (a, b, c)", got)
    scales = {None: "keller_jordan", "original": "keller_jordan", "match_rms_adamw": "moonshot"}
    if adjust_lr_fn not in scales:
        required = "adjust_lr_fn must be 'original', 'match_rms_adamw' or None"
        _checks.fail(who, required, f"adjust_lr_fn={adjust_lr_fn!r}")
    rule = muon_of_matrices(
        who,
        axes=axes,
        ns_coeffs=ns_coefficients,
        ns_steps=ns_steps,
        beta=momentum,
        eps=eps,
        nesterov=nesterov,
        scale=scales[adjust_lr_fn],
        ns_dtype=ns_dtype,
        divisor=jnp.maximum,
    )
    return lift(
        replace(rule, check_leaves=partial(_check_matrices, who)),
        *decay_rules(who, weight_decay),
        learning_rate_rule(who, lr),
    )


def _is_matrix(leaf: Leaf) -> bool:
    return leaf.is_hidden_matrix or (len(leaf.shape) == 2 and not leaf.asked)


def _check_matrices(who: str, own: Sequence[Leaf], leaves: Sequence[Leaf]) -> None:
    """Require that all leaves are matrices."""
    others = [leaf for leaf in leaves if not _is_matrix(leaf)]
    if others:
        _checks.fail(
            who,
            "every parameter must be a matrix",
            ", ".join(f"{leaf.path} {leaf.shape}" for leaf in others[:5]),
            "give the others an optimizer of their own with optax.partition, or use optlab.muon",
        )


def clip_grad_norm(max_norm: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Clip as `torch.nn.utils.clip_grad_norm_`: g · min(1, c/(‖g‖ + 10⁻⁶)).

    Args:
        max_norm: c ≥ 0, a bound on √(Σ g²) over all leaves.

    Returns:
        The transformation, for the front of a chain.

    Raises:
        ValueError: the bound is negative or not finite.
    """
    rule = global_norm_clip("dialects.pytorch.clip_grad_norm", max_norm)
    return lift(
        replace(
            rule,
            across=lambda h, t, updates, params: clip_factors(updates, h.max_norm, eps=1e-6),
        )
    )


def clip_grad_value(clip_value: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Clip every element to [−clip_value, clip_value], as `torch.nn.utils.clip_grad_value_`.

    Args:
        clip_value: ≥ 0.

    Returns:
        The transformation, for the front of a chain.

    Raises:
        ValueError: the bound is negative or not finite.
    """
    check("dialects.pytorch.clip_grad_value", clip_value=(clip_value, _NONNEGATIVE))
    return lift(value_rule("dialects.pytorch.clip_grad_value", clip_value))
