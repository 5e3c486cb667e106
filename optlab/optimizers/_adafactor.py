"""Adafactor: steps relative to the weights, by second moments kept as a row and a column.

    w = t^(−c)                                   1 − w is the decay rate of update t
    R ← (1 − w) R + w · mean over columns of (g² + eps)
    C ← (1 − w) C + w · mean over rows of (g² + eps)
    V = R Cᵀ / mean(R)                           arrays that are not factored keep V itself
    U = g / √V,  then U / max(1, RMS(U)/d)
    u = −lr · max(ε₂, RMS(θ)) · U

c is `decay_rate`, t the number of this update from 1, less `decay_offset`; d is
`clipping_threshold`, ε₂ `min_scale`, lr `learning_rate`. R is `v_row`, C is `v_col`, V is `v`; all
start at 0, which the first w = 1 forgets. RMS is the root of the mean square of one array.

Without a learning rate lr is the relative step of the paper and of T5, min(1e-2, 1/√t), or with
`warmup_init` min(1e-6·t, 1/√t). Optax has no such step; there None is the rate 1. Otherwise the
arithmetic is Optax's: with `momentum` an average of u takes its place, and `weight_decay_rate`
takes the share λ of the weights in each update, whatever the rate.

An array is factored over its two largest axes, as in Optax, if both have
`min_dim_size_to_factor` elements or more. Axes that count layers or experts (see `rules.meaning`)
are never factored, and each layer has its own RMS, so that stacked layers take the steps of
separate ones. `axes` names the axes of an array: it is then factored into all its input and all its
output axes. A finite gradient beyond 2⁶³, whose square would overflow float32, counts as 2⁶³ (2⁵¹¹
in float64).

Reference: Shazeer & Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML
(2018).
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from optlab import _checks
from optlab._types import Array, DTypeLike, Hyperparam, Mask
from optlab.rules import (
    POSITIVE,
    AxesChoice,
    Decay,
    Leaf,
    Rule,
    average,
    bounded_square,
    check_flag,
    check_float_dtype,
    decay,
    direction,
    is_divided,
    norm_of,
    number,
    optimizer,
    placed_like,
    root,
    slot,
    visibly_bounded,
)
from optlab.rules import learning_rate as learning_rate_rule

Axes = tuple[int, ...]


def adafactor_rule(
    who: str,
    min_dim_size_to_factor: int = 128,
    decay_rate: Hyperparam = 0.8,
    decay_offset: Hyperparam = 0,
    clipping_threshold: Hyperparam | None = 1.0,
    eps: Hyperparam = 1e-30,
    factored: bool = True,
    *,
    axes: AxesChoice | None = None,
) -> Rule:
    """Divide gradients by the root of a factored average of their squares.

    Args:
        min_dim_size_to_factor: how many elements the two axes must have, ≥ 1.
        decay_rate: c > 0; the average at update t weighs the new square by t^(−c).
        decay_offset: updates that t does not count, ≥ 0; the number of the update with which a
            fine-tuning begins.
        clipping_threshold: d > 0, a bound on the root of the mean square of an update; None for no
            bound.
        eps: ≥ 0, in the unit of the squared gradients, added to each of them. With 0 a coordinate
            whose gradient has always been zero is 0/0.
        factored: whether to factor at all.
        axes: which axes of an array are input, output and batch: patterns of paths → `rules.Axes`,
            or a function of path and shape; of other arrays the two largest axes are factored.

    Example:
        A kernel of 256 × 512 has 768 second moments:

        >>> import jax, jax.numpy as jnp, optlab
        >>> state = optlab.scale_by_adafactor().init(jnp.zeros((256, 512)))
        >>> jax.tree.map(jnp.shape, (state.v_row, state.v_col))
        ((256,), (512,))
    """

    def once(h, t):
        t = jnp.maximum(jnp.asarray(t, float) - h.decay_offset, 1)
        w = t ** (-h.decay_rate)
        is_short = w > 0.5
        kept = Decay(1 - w, jnp.zeros_like(w), w, is_short, jnp.where(is_short, w - 1, w))
        return h, kept

    def leaf(g, slots, scalars, p, static):
        factors, batch = static
        h, kept = scalars
        square = bounded_square(g) + h.eps
        if factors is None:
            v = average(kept, slots.v, square)
            u, new = visibly_bounded(g) / root(v), (None, None, v)
        else:
            rows, columns = factors
            width, height = (_size(g.shape, along) for along in (columns, rows))
            of_rows, of_columns = _mean(square, columns, width), _mean(square, rows, height)
            # One axis of a mesh may divide both factors, but not both axes of their product.
            v_row = average(kept, placed_like(slots.v_row, of_rows), of_rows)
            v_col = average(kept, placed_like(slots.v_col, of_columns), of_columns)
            row, column = jnp.expand_dims(v_row, columns), jnp.expand_dims(v_col, rows)
            level = _mean(row, rows, height, keepdims=True)
            # Neither R·C nor its inverse need be in range; each of these two quotients is.
            u = (visibly_bounded(g) / root(row)) * (root(level) / root(column))
            new = v_row, v_col, None
        if clips:
            u = u / jnp.maximum(1, _rms(u, batch) / h.clipping_threshold)
        return u, new

    least = _checks.check_count(who, "min_dim_size_to_factor", min_dim_size_to_factor, 1)
    factored = check_flag(who, "factored", factored)
    clips = clipping_threshold is not None
    threshold = {"clipping_threshold": number(clipping_threshold, POSITIVE)} if clips else {}
    return Rule(
        who,
        leaf,
        kind="scale_by_adafactor",
        hyperparams={
            "decay_rate": number(decay_rate, POSITIVE),
            "decay_offset": number(decay_offset),
            "eps": number(eps),
            **threshold,
        },
        slots={
            "v_row": partial(_factor, kept=0),
            "v_col": partial(_factor, kept=1),
            "v": lambda p, static: slot()(p) if static[0] is None else None,
        },
        once=once,
        static=lambda facts: (_factors(facts, least) if factored else None, facts.axes.batch),
        axes=axes,
    )


def _size(shape: tuple[int, ...], axes: Axes) -> int:
    """Return how many elements some axes have together."""
    return math.prod(shape[axis] for axis in axes)


def _factors(facts: Leaf, least: int) -> tuple[Axes, Axes] | None:
    """Return the axes of the rows and those of the columns; None where nothing is factored."""
    shape, own = facts.shape, facts.axes
    if facts.asked:
        rows, columns = own.input, own.output
    else:
        free = [axis for axis in range(len(shape)) if axis not in own.batch]
        *_, second, first = [(), (), *((axis,) for axis in sorted(free, key=lambda a: shape[a]))]
        rows, columns = min(first, second), max(first, second)
    sizes = [_size(shape, rows), _size(shape, columns)]
    return (rows, columns) if rows and columns and min(sizes) >= least else None


def _factor(param: Array, static: tuple[tuple[Axes, Axes] | None, Axes], kept: int) -> Array | None:
    """Return the slot of a row or of a column: the parameter's without the axes of the other."""
    factors, _ = static
    if factors is None:
        return None
    # The sum of a parameter that is sharded explicitly has the sharding that its mean will have.
    like = jax.eval_shape(lambda p: p.sum(factors[1 - kept]), param)
    return slot()(like)


def _mean(x: Array, axes: Axes, size: int, keepdims: bool = False) -> Array:
    """Return the mean over axes that have `size` elements together; their sum may overflow."""
    return (x / size).sum(axes, keepdims=keepdims)


def _rms(x: Array, batch: Axes) -> Array:
    """Return the root of the mean square over all axes but those of a batch, which stay, as 1."""
    batch = tuple(sorted(batch))
    others = tuple(axis for axis in range(x.ndim) if axis not in batch)
    count = max(_size(x.shape, others), 1)
    if is_divided(x, batch):  # JAX cannot map the norm's choice by platform over such an axis
        largest = jnp.max(jnp.abs(x), axis=others, keepdims=True)
        largest = jnp.where(largest > 0, largest, 1)
        return largest * root(jnp.sum(jnp.square(x / largest), others, keepdims=True) / count)
    norm = norm_of
    for _ in batch:
        norm = jax.vmap(norm)
    value, scale = norm(x.transpose(*batch, *others))
    rms = value / count**0.5 / scale
    return jnp.expand_dims(rms, others)


def _relative_step(who: str, warmup_init: bool) -> Rule:
    """Return the rule u ← −min(1e-2, 1/√t)·u, or with `warmup_init` −min(1e-6·t, 1/√t)·u."""

    def once(h, t):
        t = jnp.asarray(t, float)
        return -jnp.minimum(1e-6 * t if warmup_init else 1e-2, 1 / jnp.sqrt(t))

    return Rule(
        who,
        kind="scale_by_relative_step",
        once=once,
        leaf=lambda u, slots, factor, p: (factor * u, slots),
        counter="step",
    )


def _parameter_scale(who: str, min_scale: Hyperparam, axes: AxesChoice | None) -> Rule:
    """Return the rule u ← max(ε₂, RMS(θ))·u."""

    def leaf(u, slots, h, p, batch):
        return jnp.maximum(_rms(p, batch), h.min_scale) * u, ()

    return Rule(
        who,
        leaf,
        kind="scale_by_parameter_scale",
        hyperparams={"min_scale": number(min_scale)},
        static=lambda facts: facts.axes.batch,
        axes=axes,
        needs_params=True,
        counter="step",
    )


def _averaged(who: str, momentum: Hyperparam, dtype: DTypeLike | None) -> Rule:
    """Return the rule m ← βm + (1 − β)u, u ← m."""

    def leaf(u, slots, h, p):
        m = average(h.momentum, slots.mu, u)
        return m, (m,)

    check_float_dtype(who, "dtype_momentum", dtype)
    return Rule(
        who,
        leaf,
        kind="average_updates",
        hyperparams={"momentum": decay(momentum)},
        slots={"mu": slot(dtype=dtype)},
        counter="step",
    )


def _shrinkage(who: str, weight_decay_rate: Hyperparam, mask: Mask | None) -> Rule:
    """Return the rule u ← u − λθ."""
    return Rule(
        who,
        kind="add_decayed_weights",
        hyperparams={"weight_decay_rate": number(weight_decay_rate)},
        once=lambda h, t: h.weight_decay_rate,
        leaf=lambda u, slots, share, p: (u - share * p, slots),
        needs_params=True,
        mask=mask,
        counter="step",
    )


def _adafactor(
    who: str,
    learning_rate: Hyperparam | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Hyperparam = 0.8,
    decay_offset: Hyperparam = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Hyperparam | None = 1.0,
    momentum: Hyperparam | None = None,
    dtype_momentum: DTypeLike | None = None,
    weight_decay_rate: Hyperparam | None = None,
    eps: Hyperparam = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask | None = None,
    *,
    warmup_init: bool = False,
    min_scale: Hyperparam = 1e-3,
    axes: AxesChoice | None = None,
) -> list[Rule]:
    """Descend with Adafactor, by factored second moments and steps relative to the weights.

    Args:
        learning_rate: α ≥ 0, a number, an array or a schedule of the update's number from 0; None
            for the relative step min(1e-2, 1/√t).
        multiply_by_parameter_scale: whether a step is relative to RMS(θ).
        momentum: β in [0, 1) of an average of the steps, the rate inside; None for none.
        dtype_momentum: type of that average; by default the parameters', but at least float32.
        weight_decay_rate: λ ≥ 0; each update shrinks the parameters by the factor 1 − λ, whatever
            the learning rate; None for no decay.
        weight_decay_mask: which parameters are decayed; None for all.
        warmup_init: whether the relative step begins as 1e-6·t; needs learning_rate=None.
        min_scale: ε₂ ≥ 0, what RMS(θ) counts as at least.

    Example:
        The first relative step is a hundredth of the weights, whatever the gradient:

        >>> import jax.numpy as jnp, optlab
        >>> tx = optlab.adafactor()
        >>> params = jnp.full(3, 5.0)
        >>> print(tx.update(jnp.array([8.0, 8.0, -8.0]), tx.init(params), params)[0])
        [-0.05 -0.05  0.05]
    """
    warmup_init = check_flag(who, "warmup_init", warmup_init)
    if warmup_init and learning_rate is not None:
        _checks.fail(
            who,
            "warmup_init needs the relative step, learning_rate=None",
            f"learning_rate={learning_rate}",
            "make the warm-up part of the schedule",
        )
    rules = [
        adafactor_rule(
            who,
            min_dim_size_to_factor,
            decay_rate,
            decay_offset,
            clipping_threshold,
            eps,
            factored,
            axes=axes,
        ),
        _relative_step(who, warmup_init)
        if learning_rate is None
        else learning_rate_rule(who, learning_rate),
    ]
    if check_flag(who, "multiply_by_parameter_scale", multiply_by_parameter_scale):
        rules.append(_parameter_scale(who, min_scale, axes))
    if momentum is not None:
        rules.append(_averaged(who, momentum, dtype_momentum))
    if weight_decay_rate is not None:
        rules.append(_shrinkage(who, weight_decay_rate, weight_decay_mask))
    return rules


scale_by_adafactor = direction("scale_by_adafactor", adafactor_rule)
adafactor = optimizer("adafactor", _adafactor, like=(adafactor_rule,))
