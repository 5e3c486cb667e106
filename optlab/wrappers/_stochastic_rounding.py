"""Stochastic rounding: each low-precision parameter up or down at random, right on average.

    θ = p + u(g, p)   in float32
    p ← ⌈θ⌉ with probability (θ − ⌊θ⌋)/(⌈θ⌉ − ⌊θ⌋), else ⌊θ⌋

p are the parameters, in bfloat16 or float16; ⌊θ⌋ and ⌈θ⌉ are the numbers of their type next to θ,
and p = θ where θ is such a number. u is the update of the wrapped transformation, which sees p and
g in float32. So E[p] = θ: an update too small for p's type seldom moves p, but then by a whole step
of its type. The price is noise: after n updates, a standard deviation of up to ½√n such steps.

The random bits of update t and leaf i are drawn with the key fold_in(fold_in(key, t), i), with t
from 0 and i in the order of the leaves, of which a None among the gradients is one. So the same key
gives the same run, also after an interruption.

The update returned is the rounded θ minus p. Where p's type cannot hold it (never if it leaves p
between half and twice its size) it is rounded to nearest. Where ⌈θ⌉ would be infinite, p becomes
the largest finite number.

References: Gupta et al., "Deep learning with limited numerical precision", ICML 2015; of optimizers
in bfloat16, Zamirai et al., "Revisiting BFloat16 training", arXiv:2010.06192 (2020).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._types import Array, DTypeLike, Tree
from optlab.rules._state import exportable
from optlab.wrappers import _rounding


@exportable("stochastic_rounding")
class StochasticRoundingState(NamedTuple):
    """State of `stochastic_rounding`.

    Attributes:
        inner: state of the wrapped transformation, made from float32 parameters.
        draw: () int32; number of updates made, by which the next random bits are drawn.
        key: the data of the random key, which stays the same; (2,) uint32 for JAX's default kind.
    """

    inner: Any
    draw: Array
    key: Array

    keeps_narrow = True


def stochastic_rounding(
    tx: optax.GradientTransformation, key: Array
) -> optax.GradientTransformationExtraArgs:
    """Round updated bfloat16 and float16 parameters up or down at random, right on average.

    Wrap the whole chain, so that nothing changes the updates behind it. Leaves that are float32 or
    wider pass as they are. Steps that are skipped inside count: where they must leave no trace in
    the random bits, put `skip_nonfinite` around.

    Costs no memory beyond a key. `kahan_summation` and `master_params`, which cost some, lose as
    little and add no noise.

    Args:
        tx: the optimizer, any `optax.GradientTransformation`.
        key: a random key, `jax.random.key(0)` or of the older kind, `jax.random.PRNGKey(0)`. With
            one key, two groups of `optax.partition` round their leaves of the same place and shape
            by the same bits: give each its own, from `jax.random.split`. To run lanes with
            different bits under `jax.vmap`, map over it too.

    Returns:
        A transformation with state `StochasticRoundingState`. Its `update` needs the parameters,
        passes extra arguments on, and returns an update in the type of its gradient, or of its
        parameter where that is wider.

    Raises:
        ValueError: `tx` is no transformation or `key` no key; at init, a parameter has less than 16
            bits, or `tx` holds another wrapper for low precision; at update, the parameters are
            missing.

    Example:
        A weight of 1 in bfloat16 is 0.0039 from its neighbour below: ten updates of 0.001 are lost
        unless some of them, at random, move it to that neighbour.

        >>> import jax, jax.numpy as jnp, optax, optlab
        >>> plain = optlab.sgd(0.001)
        >>> for tx in (plain, optlab.stochastic_rounding(plain, jax.random.key(0))):
        ...     p = jnp.ones(10_000, jnp.bfloat16)
        ...     state = tx.init(p)
        ...     for _ in range(10):
        ...         updates, state = tx.update(jnp.ones_like(p), state, p)
        ...         p = optax.apply_updates(p, updates)
        ...     print(f"{jnp.mean(p, dtype=jnp.float32):.3f}")
        1.000
        0.990

    Reference:
        Gupta et al. (2015), Zamirai et al. (2020).
    """
    who = "stochastic_rounding"
    inner = _rounding.checked(who, tx)
    key_data, implementation = _key_data(who, key)

    def init(params: Tree) -> StochasticRoundingState:
        _rounding.check_types(who, params)
        return StochasticRoundingState(
            inner=_rounding.init_inner(who, inner, params),
            draw=jnp.zeros((), jnp.int32),
            # A copy, so that donating the state leaves the caller's key.
            key=jnp.array(key_data, copy=True),
        )

    def update(
        updates: Tree, state: StochasticRoundingState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, StochasticRoundingState]:
        _checks.check_state_kind(who, state, StochasticRoundingState)
        # Typed keys cannot be pickled, and many tools for trees of arrays fail on them.
        key = jax.random.wrap_key_data(state.key, impl=implementation)
        key = jax.random.fold_in(key, state.draw)

        def rounded(theta: Array, p: Array, dtype: DTypeLike, index: int) -> Array:
            leaf_key, sharding = jax.random.fold_in(key, index), jax.typeof(theta).sharding
            bits = jax.random.bits(
                leaf_key,
                theta.shape,
                jnp.uint32,
                out_sharding=sharding if any(sharding.spec) else None,
            )
            return _rounding.stochastic(theta, bits, dtype)

        updates, inner_state, _ = _rounding.update_narrow(
            who,
            inner,
            updates,
            state.inner,
            params,
            extra_args,
            own=None,
            see=lambda p, _: p,
            store=lambda theta, landed, dtype: None,
            aim=rounded,
        )
        draw = optax.safe_increment(state.draw)
        return updates, StochasticRoundingState(inner_state, draw, state.key)

    return optax.GradientTransformationExtraArgs(init, update)


def _key_data(who: str, key: Any) -> tuple[Array, Any]:
    """Return the data of a key of either kind, and the generator it is for."""
    if jnp.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        data, implementation = jax.random.key_data(key), jax.random.key_impl(key)
    else:
        data, implementation = key, None
    one = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=implementation)))
    if getattr(data, "dtype", None) != one.dtype or jnp.shape(data)[-len(one.shape) :] != one.shape:
        _checks.fail(who, "key must be a random key", f"key={key!r}", "pass jax.random.key(0), say")
    if jnp.shape(data) != one.shape:
        _checks.fail(
            who,
            "key must be a single key",
            f"shape {jnp.shape(key)}",
            "map over several with jax.vmap",
        )
    return data, implementation
