"""Muon: momentum, orthogonalized, for the hidden matrices of a model; AdamW for the rest.

    m ← β m + (1 − β) g        d = β m + (1 − β) g with Nesterov, else m
    u = −lr · (s · orthogonal factor of d + λ θ)

The orthogonal factor of d = U S Vᵀ is about U Vᵀ, by a few Newton–Schulz steps. β is `beta`, λ
`weight_decay`, lr `learning_rate`; m is `mu` and starts at 0. s is chosen by `scale`, for a map
from `in` to `out` numbers:

    moonshot         0.2 √max(in, out)        an update of AdamW's size, whatever the shape
    keller_jordan    √max(1, out/in)
    scion            √(out/in)

With "moonshot", the default, the rate and the decay that are right for AdamW are right here, too,
and one learning rate serves all parameters. Rates for the other two are 10 to 100 times larger than
AdamW's, which `adam_learning_rate` then sets.

Which parameters are hidden matrices follows from their paths and shapes, as `optlab.rules.meaning`
says, or is set with `axes`; `optlab.describe` shows it. Embeddings, heads, biases, norms and
convolutions of images get AdamW. A convolution is flattened to (height · width · in, out), a fused
query, key and value is split, and the layers of a stack are orthogonalized one by one. A finite
gradient beyond 2⁶³ counts as 2⁶³ (2⁵¹¹ in float64).

Optax's Muon differs. Its Nesterov step mixes two bias corrections, and the difference fades as βᵗ
does. It orthogonalizes every array of two axes, embeddings and heads too, and gives the others
NAdamW. Its s is that of Keller Jordan, its ε 1e-8.

Reference: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); Liu et
al., "Muon is scalable for LLM training", arXiv 2502.16982 (2025), for the scale "moonshot"; Pethick
et al., "Training deep learning models with norm-constrained LMOs", ICML (2025), for "scion".
"""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax

from optlab import _checks
from optlab._types import Array, ArrayLike, DTypeLike, Hyperparam, Mask
from optlab.optimizers._adam import adam_rule
from optlab.rules import (
    AxesChoice,
    Decay,
    Leaf,
    Rule,
    average,
    check_flag,
    check_float_dtype,
    decay,
    direction,
    from_matrices,
    matrices,
    newton_schulz_coefficients,
    number,
    optimizer,
    orthogonalized,
    slot,
    visibly_bounded,
    with_prefix,
)
from optlab.rules import learning_rate as learning_rate_rule
from optlab.rules import weight_decay as weight_decay_rule

Scale = Callable[[int, int], float]
"""(in, out) → what the orthogonal factor is multiplied by."""

Momentum = Callable[[Decay, Array, Array], tuple[Array, Array]]
"""(β, m, gradient) → what is orthogonalized, and the new m."""

SCALES: dict[str, Scale] = {
    "moonshot": lambda size_in, size_out: 0.2 * math.sqrt(max(size_in, size_out)),
    "keller_jordan": lambda size_in, size_out: math.sqrt(max(1, size_out / size_in)),
    "scion": lambda size_in, size_out: math.sqrt(size_out / size_in),
}
"""What the orthogonal factor of a map from `in` to `out` numbers is multiplied by, by name."""


def muon_rule(
    who: str,
    ns_coeffs: str | ArrayLike = "keller_jordan",
    ns_steps: int = 5,
    beta: Hyperparam = 0.95,
    eps: Hyperparam = 1e-7,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    scale: str | Scale = "moonshot",
    ns_dtype: DTypeLike | None = None,
    ns_precision: str | jax.lax.Precision = "highest",
    axes: AxesChoice | None = None,
    divisor: Callable[[Array, Array], Array] = operator.add,
    momentum: Momentum | None = None,
) -> Rule:
    """Orthogonalize the momentum of hidden matrices.

    Args:
        ns_coeffs: the coefficients of Newton–Schulz: "keller_jordan", "you", "polar_express", or
            rows (a, b, c), of which the last is repeated.
        ns_steps: how many steps, ≥ 1.
        beta: β in [0, 1), of the average of gradients.
        eps: ε ≥ 0, added to the norm by which a matrix is divided before the first step.
        mu_dtype: type of m; by default the parameters', but at least float32.
        nesterov: whether to look one step ahead.
        scale: s by name: "moonshot", "keller_jordan" or "scion"; or a function of in and out.
        ns_dtype: type of the Newton–Schulz iteration; by default that of the arithmetic, float32 or
            float64. bfloat16 is what most implementations use; it moves the updates by up to 5%.
        ns_precision: of its products, as `jax.numpy.matmul` takes it. "default" is faster on GPUs
            and TPUs, where it rounds the factors to TensorFloat-32 or bfloat16.
        axes: which axes of some parameters are input, output and batch: patterns of paths with an
            `optlab.rules.Axes` each, or a function of path and shape. `Axes()` sends a parameter to
            AdamW.
        divisor: (norm, ε) → what a matrix is divided by before the first step.
        momentum: (β, m, g) → what is orthogonalized, and the new m; in place of `nesterov`.
    """
    check_float_dtype(who, "mu_dtype", mu_dtype)
    check_float_dtype(who, "ns_dtype", ns_dtype)
    nesterov = check_flag(who, "nesterov", nesterov)
    rows = newton_schulz_coefficients(who, ns_coeffs, ns_steps)
    if not callable(scale):
        _checks.check_choice(who, "scale", scale, tuple(SCALES))
    scale_of = scale if callable(scale) else SCALES[scale]
    momentum = momentum or momentum_by(average, nesterov=nesterov)
    try:
        precision = jax.lax.Precision(ns_precision)
    except ValueError:
        names = "'default', 'high', 'highest' or a jax.lax.Precision"
        _checks.fail(who, f"ns_precision must be {names}", f"ns_precision={ns_precision!r}")

    def leaf(g, slots, h, p, axes):
        ahead, mu = momentum(h.beta, slots.mu, visibly_bounded(g))
        factors = []
        for x in matrices(ahead, axes):
            factor = orthogonalized(x, rows, h.eps, ns_dtype, precision, divisor)
            factors.append(scale_of(*x.shape[-2:]) * factor)
        return from_matrices(factors, g.shape, axes), (mu,)

    return Rule(
        who,
        leaf,
        kind="scale_by_muon",
        hyperparams={"beta": decay(beta), "eps": number(eps)},
        slots={"mu": slot(dtype=mu_dtype)},
        static=lambda leaf: leaf.axes,
        axes=axes,
        where=is_hidden_matrix,
        check_leaves=lambda own, leaves: check_hidden_matrices(who, own, leaves),
        stacked=True,
        complex="refused",
        update_norm=scale_of,
    )


def momentum_by(gather: Callable[[Decay, Array, Array], Array], *, nesterov: bool) -> Momentum:
    """Return the momentum that gathers gradients as an `average`, or as a sum (`accumulate`).

    One step ahead lies what would be gathered if the gradient came once more.
    """

    def momentum(beta: Decay, mu: Array, g: Array) -> tuple[Array, Array]:
        mu = gather(beta, mu, g)
        return (gather(beta, mu, g) if nesterov else mu), mu

    return momentum


def is_hidden_matrix(leaf: Leaf) -> bool:
    """Whether Muon orthogonalizes a leaf."""
    return leaf.is_hidden_matrix


def _is_other(leaf: Leaf) -> bool:
    return not leaf.is_hidden_matrix


def check_hidden_matrices(who: str, own: Sequence[Leaf], leaves: Sequence[Leaf]) -> None:
    """Require hidden matrices; warn of those that look like something else."""
    if not own:
        there = ", ".join(f"{leaf.path} {leaf.shape}" for leaf in leaves[:5])
        _checks.fail(
            who,
            "there must be a hidden matrix among the parameters",
            f"{there}{', …' if len(leaves) > 5 else ''}",
            "name its axes with axes={'path': Axes(input=(0,), output=(1,))}, or use adamw",
        )
    doubts = [(leaf, reason) for leaf in own if (reason := _doubt(leaf, own))]
    if doubts:
        listed = "; ".join(f"{leaf.path} {leaf.shape}: {reason}" for leaf, reason in doubts)
        warnings.warn(
            f"{who} orthogonalizes what may be no hidden matrix: {listed}. Set "
            "axes={path: Axes()} to send it to AdamW, or name its axes if it is one; "
            "optlab.describe shows all.",
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """Return the level of the first caller outside of optlab, for the caller of this function."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("optlab"):
        frame, level = frame.f_back, level + 1
    return level


def _doubt(leaf: Leaf, own: Sequence[Leaf]) -> str:
    """Return why a leaf may be no hidden matrix, or "".

    The sizes of a hidden matrix are those of others, too: layers follow each other. The size of a
    vocabulary or of the classes is not.
    """
    if leaf.asked:
        named = {"embedding": "an embedding", "head": "a head"}.get(leaf.names.role)
        return f"its name is that of {named}" if named else ""
    if leaf.names.doubt or len(own) < 2 or len(leaf.shape) != 2:
        return leaf.names.doubt
    others = {size for other in own if other.path != leaf.path for size in _sizes(other)}
    size_in, size_out = (leaf.shape[part[0]] for part in leaf.axes[:2])
    if not others & {size_out, *leaf.axes.split}:
        return f"no other hidden matrix has its output of {size_out}, as with a head"
    if size_in not in others and size_in > 4 * size_out:
        return f"no other hidden matrix has its input of {size_in}, as with an embedding"
    return ""


def _sizes(leaf: Leaf) -> set[int]:
    """Return the sizes of a leaf's axes, of the parts of its output, and of its flat sides."""
    sides = (math.prod(leaf.shape[axis] for axis in part) for part in leaf.axes[:2])
    return {*leaf.shape, *leaf.axes.split, *sides}


def _directions(
    who: str,
    ns_coeffs: str | ArrayLike = "keller_jordan",
    ns_steps: int = 5,
    beta: Hyperparam = 0.95,
    eps: Hyperparam = 1e-7,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    scale: str | Scale = "moonshot",
    ns_dtype: DTypeLike | None = None,
    ns_precision: str | jax.lax.Precision = "highest",
    adam_b1: Hyperparam = 0.9,
    adam_b2: Hyperparam = 0.999,
    adam_eps: Hyperparam = 1e-8,
    adam_eps_root: Hyperparam = 0.0,
    axes: AxesChoice | None = None,
) -> list[Rule]:
    """Replace the gradients of hidden matrices by Muon's direction, all others by Adam's.

    Args:
        adam_b1: β₁ of Adam, for the other parameters.
        adam_b2: β₂ of Adam.
        adam_eps: ε of Adam, outside the root.
        adam_eps_root: ε_root of Adam, inside the root.
    """
    muon = muon_rule(
        who,
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        mu_dtype,
        nesterov=nesterov,
        scale=scale,
        ns_dtype=ns_dtype,
        ns_precision=ns_precision,
        axes=axes,
    )
    adam = adam_rule(who, mu_dtype=mu_dtype)
    values = {"b1": adam_b1, "b2": adam_b2, "eps": adam_eps, "eps_root": adam_eps_root}
    return [muon, for_others(adam, axes, **values)]


def for_others(rule: Rule, axes: AxesChoice | None, **values: Hyperparam) -> Rule:
    """Return a rule for the parameters that are no hidden matrices, its names behind "adam_"."""
    return replace(with_prefix("adam_", rule, **values), where=_is_other, axes=axes)


def _muon(
    who: str,
    ns_coeffs: str | ArrayLike = "keller_jordan",
    ns_steps: int = 5,
    beta: Hyperparam = 0.95,
    eps: Hyperparam = 1e-7,
    weight_decay: Hyperparam = 0.01,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    scale: str | Scale = "moonshot",
    ns_dtype: DTypeLike | None = None,
    ns_precision: str | jax.lax.Precision = "highest",
    adam_learning_rate: Hyperparam | None = None,
    adam_b1: Hyperparam = 0.9,
    adam_b2: Hyperparam = 0.999,
    adam_eps: Hyperparam = 1e-8,
    adam_eps_root: Hyperparam = 0.0,
    adam_weight_decay: Hyperparam | None = None,
    axes: AxesChoice | None = None,
) -> list[Rule]:
    """Descend with Muon on hidden matrices and with AdamW on the other parameters.

    Args:
        weight_decay: λ ≥ 0; each update shrinks the parameters by the factor 1 − αλ.
        weight_decay_mask: which parameters are decayed; None for all.
        adam_learning_rate: α of AdamW; None for `learning_rate`.
        adam_weight_decay: λ of AdamW; None for `weight_decay`.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> params = {"embed": jnp.ones((9, 4)), "mlp": {"kernel": jnp.ones((4, 8))}}
        >>> print(optlab.describe(optlab.muon(1e-3, adam_weight_decay=0.0), params))
        path        shape   rule  axes  rate   decay  state bytes
        embed       (9, 4)  adam  -     0.001  0              288
        mlp/kernel  (4, 8)  muon  0→1   0.001  0.01           128
        in all                                                416
    """
    directions = _directions(
        who,
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        mu_dtype,
        nesterov=nesterov,
        scale=scale,
        ns_dtype=ns_dtype,
        ns_precision=ns_precision,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_eps_root=adam_eps_root,
        axes=axes,
    )
    decay = weight_decay_rule(who, weight_decay, weight_decay_mask)
    if adam_weight_decay is None:
        return [*directions, decay]
    of_others = for_others(decay, axes, weight_decay=adam_weight_decay)
    return [*directions, for_hidden(decay, axes), of_others]


def for_hidden(rule: Rule, axes: AxesChoice | None) -> Rule:
    """Return a rule for the hidden matrices."""
    return replace(rule, where=is_hidden_matrix, axes=axes)


def _rates(
    who: str,
    learning_rate: Hyperparam,
    adam_learning_rate: Hyperparam | None,
    axes: AxesChoice | None,
) -> list[Rule]:
    """Return the rule of the learning rate; two where AdamW has its own."""
    rate = learning_rate_rule(who, learning_rate)
    if adam_learning_rate is None:
        return [rate]
    return [for_hidden(rate, axes), for_others(rate, axes, learning_rate=adam_learning_rate)]


scale_by_muon = direction("scale_by_muon", _directions, like=(muon_rule,))
muon = optimizer("muon", _muon, like=(muon_rule, _directions), rates=_rates)
