"""Scale the loss so that float16 gradients do not vanish, as far as they do not overflow.

    loss′ = scale · loss                          g′ = ∂loss′/∂θ, by the user
    g = g′ / scale                                in float32
    scale ← scale · factor                        after `growth_interval` finite steps in a row
    scale ← scale / factor, and the step skipped  if g, the update or the state is not finite

float16 ends at 65504, and holds nothing but 0 below 6e-8, where many gradients lie. The scale moves
them all up. Scales that are powers of two cost no digit. The scale stays within [`min_scale`,
`max_scale`].

Reference: Micikevicius et al., Mixed Precision Training, ICLR 2018.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._types import Array, ArrayLike, Tree
from optlab.rules._state import exportable
from optlab.wrappers._common import in_update_types, init_inner, map_inexact, wide
from optlab.wrappers._skip_nonfinite import SkipNonfiniteState, skip_nonfinite


@exportable("dynamic_loss_scale")
class DynamicLossScaleState(NamedTuple):
    """State of `dynamic_loss_scale`.

    Attributes:
        inner: the state of `skip_nonfinite` around the wrapped transformation.
        loss_scale: () float32; the factor for the next loss.
        since_change: () int32; steps made since the scale was last raised or cut, or held at a
            bound instead.
    """

    inner: SkipNonfiniteState
    loss_scale: Array
    since_change: Array

    adapts_to_nonfinite = True


def dynamic_loss_scale(
    tx: optax.GradientTransformation,
    *,
    initial_scale: ArrayLike = 2.0**15,
    growth_interval: int = 2000,
    factor: ArrayLike = 2.0,
    min_scale: ArrayLike = 1.0,
    max_scale: ArrayLike = 2.0**24,
    max_consecutive: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divide gradients of a scaled loss by the scale, and keep the scale as large as possible.

    Multiply the loss, in float32, by `loss_scale(state)` before differentiating it. `tx` is given
    gradients in float32. An update returns in the type of its gradient, or of its parameter where
    that is wider.

    This wrapper skips and counts steps as `skip_nonfinite` does, and takes the same
    `max_consecutive`. A `skip_nonfinite` inside would never see a gradient that is not finite. A
    `skip_nonfinite` or an `accumulate` around would hide the overflows that the scale must react
    to: write `dynamic_loss_scale(accumulate(tx, every))`. `master_params`, `kahan_summation` and
    `stochastic_rounding` go around both. A transformation before this one in a chain sees scaled
    gradients: put a clip, and Optax's `zero_nans` and `apply_if_finite`, inside.

    Args:
        tx: the transformation of the true gradients.
        initial_scale: the first scale, best a power of two.
        growth_interval: finite steps in a row after which the scale is multiplied, ≥ 1.
        factor: the scale is multiplied or divided by this number, > 1, best a power of two.
        min_scale: the least scale, > 0.
        max_scale: the largest scale.
        max_consecutive: skipped steps in a row that set `gave_up`, ≥ 1; None for never.

    Returns:
        A transformation with state `DynamicLossScaleState`; `loss_scale` and `skip_counts` read it.

    Raises:
        ValueError: an argument is out of its range, or for a reason given at `skip_nonfinite`.

    Example:
        >>> import jax, jax.numpy as jnp, optlab
        >>> def loss(w):  # its gradient, 2.5e-8, is 0 in float16
        ...     return 2.5e-8 * w.astype(jnp.float32)
        >>> w = jnp.array(1.0, jnp.float16)
        >>> print(jax.grad(loss)(w))
        0.0
        >>> tx = optlab.dynamic_loss_scale(optlab.sgd(1e7))
        >>> state = tx.init(w)
        >>> gradient = jax.grad(lambda w: loss(w) * optlab.loss_scale(state))(w)
        >>> updates, state = tx.update(gradient, state, w)
        >>> print(updates)
        -0.25

    Reference:
        Micikevicius et al. (2018).
    """
    who = "dynamic_loss_scale"
    _checks.check_transformation(who, tx)
    bounds = {"min_scale": min_scale, "initial_scale": initial_scale, "max_scale": max_scale}
    bounds = {
        name: _checks.check_number(who, name, value, _checks.POSITIVE, dtype=jnp.float32)
        for name, value in bounds.items()
    }
    factor = _checks.check_number(who, "factor", factor, _checks.ABOVE_ONE, dtype=jnp.float32)
    growth_interval = _checks.check_count(who, "growth_interval", growth_interval, 1)
    if max_consecutive is not None:
        max_consecutive = _checks.check_count(who, "max_consecutive", max_consecutive, 1)
    traced = any(isinstance(value, jax.core.Tracer) for value in bounds.values())
    if not traced and not min_scale <= initial_scale <= max_scale:
        _checks.fail(
            who,
            "initial_scale must be from min_scale to max_scale",
            ", ".join(f"{name}={value}" for name, value in bounds.items()),
        )
    by_reciprocal = all(map(_is_power_of_two, (factor, *bounds.values())))
    tx = optax.with_extra_args_support(tx)

    def init(params: Tree) -> DynamicLossScaleState:
        guarded = optax.GradientTransformation(partial(init_inner, who, tx), tx.update)
        return DynamicLossScaleState(
            inner=skip_nonfinite(guarded).init(params),
            loss_scale=jnp.array(bounds["initial_scale"], jnp.float32),
            since_change=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: Tree, state: DynamicLossScaleState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, DynamicLossScaleState]:
        _checks.check_state_kind(who, state, DynamicLossScaleState)

        def narrow_update(gradients: Tree, *args: Any, **extra_args: Any) -> tuple[Tree, Any]:
            # Inside `skip_nonfinite`, as an update that is finite in float32 may be Inf in float16.
            new_updates, inner = tx.update(gradients, *args, **extra_args)
            return in_update_types(who, new_updates, updates, params), inner

        guarded = skip_nonfinite(
            optax.GradientTransformationExtraArgs(tx.init, narrow_update), max_consecutive
        )
        unscale = partial(_unscale, scale=state.loss_scale, by_reciprocal=by_reciprocal)
        gradients = map_inexact(unscale, updates)
        new_updates, inner = guarded.update(gradients, state.inner, params, **extra_args)
        made = inner.consecutive == 0
        grow = made & (state.since_change >= growth_interval - 1)
        step, low, high = (
            jnp.asarray(value, jnp.float32)
            for value in (factor, bounds["min_scale"], bounds["max_scale"])
        )
        scale = jnp.where(
            made,
            jnp.where(grow, jnp.minimum(state.loss_scale * step, high), state.loss_scale),
            jnp.maximum(state.loss_scale / step, low),
        )
        new_state = DynamicLossScaleState(
            inner=inner,
            loss_scale=scale,
            since_change=jnp.where(made & ~grow, state.since_change + 1, 0),
        )
        return new_updates, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def loss_scale(state: Any) -> Array:
    """Return the factor for the next loss, from a state that holds a `dynamic_loss_scale`.

    Args:
        state: the state of a transformation in which it is nested anywhere: a chain, partition or
            masked, the `opt_state` of a TrainState or of an `nnx.Optimizer`, or any tree of them.

    Returns:
        () float32; of a vmapped state, one value a lane.

    Raises:
        ValueError: the state holds no `dynamic_loss_scale`, or several.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> tx = optlab.dynamic_loss_scale(optlab.adam(1e-3), initial_scale=1024.0)
        >>> print(loss_scale(tx.init(jnp.zeros(3))))
        1024.0
    """
    who = "loss_scale"
    states = [node for node in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(node)]
    if not states:
        _checks.fail(
            who,
            "the state must hold a dynamic_loss_scale",
            type(state).__name__,
            "wrap the transformation in optlab.dynamic_loss_scale",
        )
    if len(states) > 1:
        _checks.fail(
            who,
            "the state must hold one dynamic_loss_scale",
            f"{len(states)}",
            "wrap the whole chain in one",
        )
    # Flax NNX wraps the array in a variable.
    return jax.tree.leaves(states[0].loss_scale)[0]


class Gradients(NamedTuple):
    """What differentiating a loss gives to a training step.

    Attributes:
        value: the loss.
        aux: what else it returned.
        updates: what `update` takes, which is scaled if there is a `dynamic_loss_scale`.
        grads: the gradients of the loss itself.
    """

    value: Array
    aux: Any
    updates: Tree
    grads: Tree


def gradients_of(loss: Callable[[Tree], tuple[Array, Any]], params: Tree, state: Any) -> Gradients:
    """Differentiate a loss for an optimizer, scaled if its state holds a `dynamic_loss_scale`.

    A training step that calls the loss itself needs it: `dynamic_loss_scale` divides what it is
    given by its scale, whether or not the loss was multiplied by it.

    Args:
        loss: a function of the parameters that returns the loss and anything else.
        params: the parameters.
        state: the state of the optimizer.

    Returns:
        The gradients; those of complex numbers point uphill, so they are the conjugates of JAX's.
    """
    if not any(map(_is_ours, jax.tree.leaves(state, is_leaf=_is_ours))):
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
        grads = _uphill(grads)
        return Gradients(value, aux, grads, grads)
    scale = loss_scale(state)

    def scaled(params: Tree) -> tuple[Array, tuple[Array, Any]]:
        value, aux = loss(params)
        value = jnp.asarray(value)
        value_type = wide(value.dtype)  # the product may overflow in the loss's own
        return value.astype(value_type) * scale.astype(value_type), (value, aux)

    (_, (value, aux)), updates = jax.value_and_grad(scaled, has_aux=True)(params)
    updates = _uphill(updates)
    return Gradients(value, aux, updates, map_inexact(partial(_unscale, scale=scale), updates))


def _uphill(grads: Tree) -> Tree:
    # A real loss of complex numbers rises in the direction of the conjugate of JAX's gradient.
    return jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, grads)


def _is_ours(node: Any) -> bool:
    return isinstance(node, DynamicLossScaleState)


def _unscale(g: Array, scale: Array, by_reciprocal: bool = False) -> Array:
    """Return the gradient of a loss from that of the loss times the scale.

    Args:
        g: the gradient.
        scale: the scale.
        by_reciprocal: whether the scale is a power of two, whose reciprocal is exact. XLA computes
            a product where it is used, but keeps a quotient that two need in memory.
    """
    # In the gradient's own type the quotient would vanish again.
    g = g.astype(wide(g.dtype))
    if jnp.iscomplexobj(g):
        parts = (_unscale(part, scale, by_reciprocal) for part in (g.real, g.imag))
        return jax.lax.complex(*parts)
    scale = scale.astype(g.dtype)
    return g * (1 / scale) if by_reciprocal else g / scale


def _is_power_of_two(value: Any) -> bool:
    """Return whether a number is known to be a power of two with a normal reciprocal in float32."""
    if isinstance(value, jax.core.Tracer):
        return False
    fraction, exponent = math.frexp(float(value))
    return fraction == 0.5 and abs(exponent) <= 126
