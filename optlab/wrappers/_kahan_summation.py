"""Kahan summation: beside each low-precision parameter, the part of it that rounding lost.

    θ = p + c + u(g, p + c)   in float32
    p ← round(θ)
    c ← round(θ − p)

p are the parameters, in bfloat16 or float16, and c is `compensation`, in the same type. u is the
update of the wrapped transformation, which sees p + c and float32 gradients in place of p and g.
Since c is small, p and c together hold twice as many digits as p. The error of rounding c is up to
|p|·2⁻¹⁷ in bfloat16: equal updates smaller than that stop having an effect, and the sum of somewhat
larger ones is off by some percent. In float16 it is up to |p|·2⁻²³, or 2⁻²⁵ if that is more.

The update returned is round(θ) − p. Where p's type cannot hold it (never if p/2 ≤ round(θ) ≤ 2p),
p lands beside round(θ) and c is the distance from there to θ; the next update, even if its step is
skipped inside, makes up for it. round(θ) is the nearest number of p's type, p itself if it is one
of two equally near; where that would be infinite, the largest finite one.

References: Kahan, "Further remarks on reducing truncation errors", Comm. ACM 8 (1965); for training
in bfloat16, Zamirai et al., "Revisiting BFloat16 training", arXiv:2010.06192 (2020).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._types import Array, DTypeLike, Tree
from optlab.rules._state import exportable
from optlab.wrappers import _rounding


@exportable("kahan_summation")
class KahanSummationState(NamedTuple):
    """State of `kahan_summation`.

    Attributes:
        inner: state of the wrapped transformation, made from float32 parameters.
        compensation: c, like the parameters and in their types; `optax.MaskedNode()` in place of
            those that are not narrower than float32.
    """

    inner: Any
    compensation: Tree

    keeps_narrow = True


def kahan_summation(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Add updates to bfloat16 and float16 parameters by Kahan's compensated summation.

    Wrap the whole chain, so that nothing changes the updates behind it. An average by `params_ema`
    inside is one of the parameters with their compensation. Leaves that are float32 or wider take
    no compensation and pass as they are.

    Costs 2 bytes a parameter. `master_params`, which costs 4, is exact down to |p|·2⁻²⁵.

    Args:
        tx: the optimizer, any `optax.GradientTransformation`.

    Returns:
        A transformation with state `KahanSummationState`. Its `update` needs the parameters, passes
        extra arguments on, and returns an update in the type of its gradient, or of its parameter
        where that is wider.

    Raises:
        ValueError: `tx` is no transformation; at init, a parameter has less than 16 bits, or `tx`
            holds another wrapper for low precision; at update, the parameters are missing, or of
            other types or shapes than at init.

    Example:
        A weight of 1 in bfloat16 is 0.0039 from its neighbour below: ten updates of 0.001 are lost
        unless they are gathered.

        >>> import jax.numpy as jnp, optax, optlab
        >>> for tx in (optlab.sgd(0.001), optlab.kahan_summation(optlab.sgd(0.001))):
        ...     p = jnp.array(1.0, jnp.bfloat16)
        ...     state = tx.init(p)
        ...     for _ in range(10):
        ...         updates, state = tx.update(jnp.ones_like(p), state, p)
        ...         p = optax.apply_updates(p, updates)
        ...     print(p)
        1
        0.988281
        >>> print(f"{jnp.float32(p) + jnp.float32(state.compensation):.4f}")
        0.9900

    Reference:
        Kahan (1965), Zamirai et al. (2020).
    """
    who = "kahan_summation"
    inner = _rounding.checked(who, tx)

    def init(params: Tree) -> KahanSummationState:
        _rounding.check_types(who, params)
        compensation = _rounding.start(jnp.zeros_like, params)
        return KahanSummationState(_rounding.init_inner(who, inner, params), compensation)

    def near(theta: Array, p: Array, dtype: DTypeLike, index: int) -> Array:
        # Rounding may leave c half the way to p's neighbour, and without an update p must not move.
        target = _rounding.nearest(theta, dtype)
        return jnp.where(jnp.abs(theta - p) == jnp.abs(theta - target), p, target)

    def lost(theta: Array, landed: Array, dtype: DTypeLike) -> Array:
        # For an infinite parameter ∞ − ∞ is NaN, and would stay after the parameter is replaced.
        difference = jnp.where(jnp.isfinite(landed), theta - landed, 0)
        return _rounding.nearest(difference, dtype).astype(dtype)

    def update(
        updates: Tree, state: KahanSummationState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, KahanSummationState]:
        _checks.check_state_kind(who, state, KahanSummationState)
        updates, inner_state, compensation = _rounding.update_narrow(
            who,
            inner,
            updates,
            state.inner,
            params,
            extra_args,
            own=state.compensation,
            see=lambda p, c: p + c.astype(jnp.float32),
            store=lost,
            aim=near,
        )
        return updates, KahanSummationState(inner_state, compensation)

    return optax.GradientTransformationExtraArgs(init, update)
