"""Master parameters: a float32 copy of each low-precision parameter, which the updates go to.

    θ ← θ + u(g, θ)   in float32
    p ← round(θ)

p are the parameters of the model, in bfloat16 or float16, θ is `master`. u is the update of the
wrapped transformation, which sees θ and float32 gradients in place of p and g. A bfloat16 parameter
moves only if its update is above |p|·2⁻⁹ (float16: |p|·2⁻¹²); smaller updates gather in θ.

The update returned is round(θ) − p. It takes p to round(θ) if p's type can hold it (always where
p/2 ≤ round(θ) ≤ 2p). Else p lands close to round(θ), and the next update takes it there, even if
its step is skipped inside. θ alone decides where p is: a parameter that is changed from outside is
put back by the next update. round(θ) is the nearest number of p's type, or the largest finite one
where that would be infinite.

Reference: Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.1.
"""

from typing import Any, NamedTuple

import optax

from optlab import _checks
from optlab._types import Tree
from optlab.rules._state import exportable
from optlab.wrappers import _rounding


@exportable("master_params")
class MasterParamsState(NamedTuple):
    """State of `master_params`.

    Attributes:
        inner: state of the wrapped transformation, made from the master parameters.
        master: θ, float32, like the parameters; `optax.MaskedNode()` in place of those that are not
            narrower than float32.
    """

    inner: Any
    master: Tree

    keeps_narrow = True


def master_params(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Keep float32 master copies of bfloat16 and float16 parameters, so that no update is lost.

    The master parameters are those of a float32 run on the same gradients. Wrap the whole chain, so
    that nothing changes the updates behind it. An average by `params_ema` inside is one of the
    master parameters. Leaves that are float32 or wider take no copy and pass as they are.

    Costs 4 bytes a parameter. `kahan_summation` costs 2, `stochastic_rounding` none.

    Args:
        tx: the optimizer, any `optax.GradientTransformation`.

    Returns:
        A transformation with state `MasterParamsState`. Its `update` needs the parameters, passes
        extra arguments on, and returns an update in the type of its gradient, or of its parameter
        where that is wider.

    Raises:
        ValueError: `tx` is no transformation; at init, a parameter has less than 16 bits, or `tx`
            holds another wrapper for low precision; at update, the parameters are missing, of other
            shapes than at init, or float32 where they were narrower or the other way round.

    Example:
        A weight of 1 in bfloat16 is 0.0039 from its neighbour below: ten updates of 0.001 are lost
        unless a master copy gathers them.

        >>> import jax.numpy as jnp, optax, optlab
        >>> for tx in (optlab.sgd(0.001), optlab.master_params(optlab.sgd(0.001))):
        ...     p = jnp.array(1.0, jnp.bfloat16)
        ...     state = tx.init(p)
        ...     for _ in range(10):
        ...         updates, state = tx.update(jnp.ones_like(p), state, p)
        ...         p = optax.apply_updates(p, updates)
        ...     print(p)
        1
        0.988281
        >>> print(f"{state.master:.4f}")
        0.9900

    Reference:
        Micikevicius et al. (2018).
    """
    who = "master_params"
    inner = _rounding.checked(who, tx)

    def init(params: Tree) -> MasterParamsState:
        _rounding.check_types(who, params)
        master = _rounding.start(_rounding.float32, params)
        # Copies of its own, as the inner state may keep the parameters that it is given, and a
        # state with one buffer in two places cannot be donated.
        return MasterParamsState(_rounding.init_inner(who, inner, params), master)

    def update(
        updates: Tree, state: MasterParamsState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, MasterParamsState]:
        _checks.check_state_kind(who, state, MasterParamsState)
        updates, inner_state, master = _rounding.update_narrow(
            who,
            inner,
            updates,
            state.inner,
            params,
            extra_args,
            own=state.master,
            see=lambda p, master: master,
            store=lambda moved, landed, dtype: moved,
        )
        return updates, MasterParamsState(inner_state, master)

    return optax.GradientTransformationExtraArgs(init, update)
