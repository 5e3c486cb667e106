"""Optax's optimizers, directions and clipping, written with our rules.

Each function is decorated with the one of Optax for which it stands, and receives that function's
arguments behind a name for errors.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import _tree
from optlab._types import Array, Hyperparam, Mask, Tree
from optlab.dialects._common import by_power
from optlab.dialects.optax._stand_in import Part, are_numeric, scheduled, stands_in
from optlab.optimizers._adagrad import adagrad_rule
from optlab.optimizers._adam import adam_rule
from optlab.optimizers._lion import lion_rule
from optlab.optimizers._momentum import momentum_rules
from optlab.optimizers._rmsprop import rmsprop_rule
from optlab.rules import Rule, global_norm_clip, norm_of, number, scaled_norm, times_ratio
from optlab.rules import learning_rate as learning_rate_rule
from optlab.rules import weight_decay as weight_decay_rule
from optlab.transforms._clipping import value_rule

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "add_decayed_weights",
    "amsgrad",
    "clip",
    "clip_by_global_norm",
    "global_norm",
    "lamb",
    "lars",
    "lion",
    "nadam",
    "nadamw",
    "rmsprop",
    "scale_by_adam",
    "scale_by_amsgrad",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "sgd",
    "trace",
]

NOTHING = Part()
"""What stands for `optax.identity`."""


def _adam(who: str, fields: Mapping[str, str], *args: Any, **options: Any) -> Part:
    return Part(by_power(adam_rule(who, *args, **options)), fields, by_parts=False)


_MOMENTS = {"mu": "mu", "nu": "nu"}


def _rss(who: str, eps: Hyperparam) -> Part:
    """Return the part of AdaGrad; where s is 0, Optax's update is 0 even with ε = 0."""
    rule = adagrad_rule(who, 0.0, eps, eps_in_sqrt=True)

    def leaf(g, slots, h, p):
        update, (s,) = rule.leaf(g, slots, h, p)
        return jnp.where(s > 0, update, 0 * g), (s,)

    return Part(replace(rule, leaf=leaf), {"sum_of_squares": "sum_of_squares"}, by_parts=False)


def _rms(
    who: str,
    decay: Hyperparam,
    eps: Hyperparam,
    eps_in_sqrt: bool,
    bias_correction: bool,
    centered: bool,
) -> Part:
    rule = rmsprop_rule(who, decay, eps, 0.0, eps_in_sqrt, centered, bias_correction)
    fields = {"mean_square": "nu"} | ({"mean": "mu"} if centered else {})
    return Part(by_power(rule), fields, by_parts=False)


def _trace(who: str, decay: Hyperparam, nesterov: bool, accumulator_dtype: Any = None) -> Part:
    (rule,) = momentum_rules(who, decay, nesterov, accumulator_dtype)
    return Part(rule, {"velocity": "trace"})


def _rate(who: str, learning_rate: Hyperparam, flip_sign: bool = True) -> Part:
    return scheduled(lambda value: learning_rate_rule(who, value, flip_sign), learning_rate)


def _decay(who: str, weight_decay: Hyperparam, mask: Mask | None) -> Part:
    if isinstance(weight_decay, int | float) and weight_decay == 0:
        return Part(mask=mask)
    return scheduled(lambda value: weight_decay_rule(who, value), weight_decay, mask=mask)


def _trust_ratio(
    who: str, trust_coefficient: Hyperparam, eps: Hyperparam, mask: Mask | None = None
) -> Part:
    """Return the part u ← u · ξ‖θ‖/(‖u‖ + ε) on each array."""

    def leaf(u, slots, h, p):
        size, scale = norm_of(u)
        rest = h.eps, jnp.ones_like(scale)
        return times_ratio(u, norm_of(p), (size, scale), h.trust_coefficient, rest=rest), ()

    rule = Rule(
        who,
        leaf,
        hyperparams={"trust_coefficient": number(trust_coefficient), "eps": number(eps)},
        needs_params=True,
        complex="whole",
        counter="step",
    )
    return Part(rule, mask=mask)


def _clip_rule(who: str, max_norm: Hyperparam) -> Rule:
    """Return the rule g if ‖g‖ < c, else g/‖g‖·c: Optax's where ‖g‖ is not finite, too."""

    def across(h: Any, t: Array, updates: Sequence[Array], params: Any) -> tuple[Array, Array]:
        norm, scale = scaled_norm(updates)  # ‖g‖ = norm/scale
        below = norm < h.max_norm * scale
        factor = h.max_norm / jnp.where(below, 1.0, norm)
        return jnp.where(below, 1.0, scale), jnp.where(below, 1.0, factor)

    return replace(global_norm_clip(who, max_norm), across=across)


# Optimizers


@stands_in(optax.sgd)
def sgd(who, learning_rate, momentum, nesterov, accumulator_dtype):
    """Descend as `optax.sgd`: v ← μv + g;  θ ← θ − ηv, or θ − η(g + μv) (Nesterov)."""
    velocity = NOTHING
    if momentum is not None:
        velocity = _trace(who, momentum, nesterov, accumulator_dtype)
    return [velocity, _rate(who, learning_rate)]


@stands_in(optax.adagrad)
def adagrad(who, learning_rate, initial_accumulator_value, eps):
    """Descend as `optax.adagrad`: s ← s + g², from 0.1;  θ ← θ − ηg/√(s + ε)."""
    return [_rss(who, eps), _rate(who, learning_rate)]


@stands_in(optax.rmsprop)
def rmsprop(
    who,
    learning_rate,
    decay,
    eps,
    initial_scale,
    eps_in_sqrt,
    centered,
    momentum,
    nesterov,
    bias_correction,
):
    """Descend as `optax.rmsprop`: s ← βs + (1 − β)g²;  b ← μb − ηg/√(s + ε);  θ ← θ + b."""
    velocity = NOTHING if momentum is None else _trace(who, momentum, nesterov)
    direction = _rms(who, decay, eps, eps_in_sqrt, bias_correction, centered)
    return [direction, _rate(who, learning_rate), velocity]


@stands_in(optax.adam)
def adam(who, learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov):
    """Descend as `optax.adam`: θ ← θ − η m̂/(√(v̂ + ε_root) + ε)."""
    direction = _adam(who, _MOMENTS, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return [direction, _rate(who, learning_rate)]


@stands_in(optax.adamw)
def adamw(who, learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov):
    """Descend as `optax.adamw`: θ ← θ − η (m̂/(√(v̂ + ε_root) + ε) + λθ), λ = 1e-4."""
    direction = _adam(who, _MOMENTS, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return [direction, _decay(who, weight_decay, mask), _rate(who, learning_rate)]


nadam = functools.partial(adam, nesterov=True)
nadam.__doc__ = "Descend as `optax.nadam`: `adam` that looks one step ahead."
nadamw = functools.partial(adamw, nesterov=True)
nadamw.__doc__ = "Descend as `optax.nadamw`: `adamw` that looks one step ahead."


@stands_in(optax.amsgrad)
def amsgrad(
    who, learning_rate, b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu
):
    """Descend as `optax.amsgrad`: Adam with the largest v̂ so far."""
    if not (bias_correction_mu and bias_correction_nu):
        return None
    fields = _MOMENTS | {"nu_max": "nu_max"}
    direction = _adam(who, fields, b1, b2, eps, eps_root, mu_dtype, amsgrad=True)
    return [direction, _rate(who, learning_rate)]


@stands_in(optax.lion)
def lion(who, learning_rate, b1, b2, mu_dtype, weight_decay, mask):
    """Descend as `optax.lion`: θ ← θ − η (sign(β₁m + (1 − β₁)g) + λθ), λ = 1e-3."""
    direction = Part(lion_rule(who, b1, b2, mu_dtype), {"mu": "mu"}, by_parts=False)
    return [direction, _decay(who, weight_decay, mask), _rate(who, learning_rate)]


@stands_in(optax.lars)
def lars(
    who,
    learning_rate,
    weight_decay,
    weight_decay_mask,
    trust_coefficient,
    eps,
    trust_ratio_mask,
    momentum,
    nesterov,
):
    """Descend as `optax.lars`: v ← μv − ηr·(g + λθ), r = ξ‖θ‖/(‖g + λθ‖ + ε);  θ ← θ + v."""
    return [
        _decay(who, weight_decay, weight_decay_mask),
        _trust_ratio(who, trust_coefficient, eps, trust_ratio_mask),
        _rate(who, learning_rate),
        _trace(who, momentum, nesterov),
    ]


@stands_in(optax.lamb)
def lamb(who, learning_rate, b1, b2, eps, eps_root, weight_decay, mask):
    """Descend as `optax.lamb`: r = m̂/(√(v̂ + ε_root) + ε) + λθ;  θ ← θ − η ‖θ‖/‖r‖·r."""
    return [
        _adam(who, _MOMENTS, b1, b2, eps, eps_root),
        _decay(who, weight_decay, mask),
        _trust_ratio(who, 1.0, 0.0),
        _rate(who, learning_rate),
    ]


# Directions


@stands_in(optax.scale_by_rss)
def scale_by_rss(who, initial_accumulator_value, eps):
    """Divide as `optax.scale_by_rss`: s ← s + g²;  g/√(s + ε)."""
    return _rss(who, eps)


@stands_in(optax.scale_by_rms)
def scale_by_rms(who, decay, eps, initial_scale, eps_in_sqrt, bias_correction):
    """Divide as `optax.scale_by_rms`: s ← βs + (1 − β)g²;  g/√(s + ε)."""
    return _rms(who, decay, eps, eps_in_sqrt, bias_correction, False)


@stands_in(optax.scale_by_stddev)
def scale_by_stddev(who, decay, eps, initial_scale, eps_in_sqrt, bias_correction):
    """Divide as `optax.scale_by_stddev`: s, m averages of g², g;  g/√(s − m² + ε)."""
    return _rms(who, decay, eps, eps_in_sqrt, bias_correction, True)


@stands_in(optax.scale_by_adam)
def scale_by_adam(who, b1, b2, eps, eps_root, mu_dtype, nesterov):
    """Make the direction of `optax.scale_by_adam`: m̂/(√(v̂ + ε_root) + ε)."""
    return _adam(who, _MOMENTS, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


@stands_in(optax.scale_by_amsgrad)
def scale_by_amsgrad(who, b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu):
    """Make the direction of `optax.scale_by_amsgrad`: Adam's with the largest v̂ so far."""
    if not (bias_correction_mu and bias_correction_nu):
        return None
    fields = _MOMENTS | {"nu_max": "nu_max"}
    return _adam(who, fields, b1, b2, eps, eps_root, mu_dtype, amsgrad=True)


@stands_in(optax.scale_by_lion)
def scale_by_lion(who, b1, b2, mu_dtype, mode, smooth_beta):
    """Make the direction of `optax.scale_by_lion`: sign(β₁m + (1 − β₁)g)."""
    if mode != "hard":
        return None
    return Part(lion_rule(who, b1, b2, mu_dtype), {"mu": "mu"}, by_parts=False)


@stands_in(optax.scale_by_trust_ratio)
def scale_by_trust_ratio(who, min_norm, trust_coefficient, eps):
    """Scale as `optax.scale_by_trust_ratio`: u · ξ‖θ‖/(‖u‖ + ε), leaf by leaf."""
    return None if min_norm else _trust_ratio(who, trust_coefficient, eps)


@stands_in(optax.trace)
def trace(who, decay, nesterov, accumulator_dtype):
    """Make the velocity of `optax.trace`: v ← μv + g."""
    return _trace(who, decay, nesterov, accumulator_dtype)


# Before and behind a direction


@stands_in(optax.scale_by_learning_rate)
def scale_by_learning_rate(who, learning_rate, flip_sign):
    """Multiply by −η, or by η without `flip_sign`, as `optax.scale_by_learning_rate`."""
    return _rate(who, learning_rate, flip_sign)


@stands_in(optax.add_decayed_weights)
def add_decayed_weights(who, weight_decay, mask):
    """Add λθ as `optax.add_decayed_weights`."""
    return _decay(who, weight_decay, mask)


@stands_in(optax.clip)
def clip(who, max_delta):
    """Clip every element to [−max_delta, max_delta], as `optax.clip`."""
    return Part(value_rule(who, max_delta), by_parts=False)


@stands_in(optax.clip_by_global_norm)
def clip_by_global_norm(who, max_norm):
    """Clip as `optax.clip_by_global_norm`: g if ‖g‖ < c, else g/‖g‖·c."""
    return Part(_clip_rule(who, max_norm))


def global_norm(updates: Tree) -> Array:
    """Return √(Σ |x|²) as `optax.global_norm`, in the type of the leaves.

    Args:
        updates: a tree of arrays.

    Returns:
        A scalar; finite wherever the norm is.
    """
    leaves = jax.tree.leaves(updates)
    if not leaves or not are_numeric(leaves, jnp.inexact):
        return optax.tree.norm(updates)
    dtype = jnp.finfo(jnp.result_type(*leaves)).dtype
    return _tree.global_norm(updates).astype(dtype)
