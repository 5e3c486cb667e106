"""Skip every step that holds a NaN or an Inf, as a whole.

    u, s′ = tx(g, s, θ)
    made = g and u are finite everywhere, and so is s′ wherever s is
    u ← u if made else −0.0
    s ← s′ if made else s

A skipped step changes no bit: not the parameters, nor the moments, nor the count that schedules and
bias corrections go by. The updates and the state are checked as well as the gradients, for a rule
can make infinities of finite gradients, and an infinite moment would freeze its coordinate for
good. Both outcomes are computed and one is selected, so that no device waits for the host, and each
lane under `vmap` has its own.

Reference: Optax's `apply_if_finite`, which lets a step through after a number of failures in a row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._types import Array, Tree
from optlab.rules._state import exportable
from optlab.wrappers._common import in_layout, init_inner, settle


class SkipCounts(NamedTuple):
    """The result of `skip_counts`; of a vmapped state, one value a lane.

    Attributes:
        skipped: () int32; steps skipped so far; it stops at 2³¹ − 1.
        consecutive: () int32; steps skipped since the last one made.
        gave_up: () bool; whether `consecutive` has ever reached `max_consecutive`.
    """

    skipped: Array
    consecutive: Array
    gave_up: Array


@exportable("skip_nonfinite")
class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`.

    Attributes:
        inner: the state of the wrapped transformation, as of the last step made.
        skipped: () int32; steps skipped so far; it stops at 2³¹ − 1.
        consecutive: () int32; steps skipped since the last one made.
        gave_up: () bool; whether `consecutive` has ever reached `max_consecutive`.
    """

    inner: Any
    skipped: Array
    consecutive: Array
    gave_up: Array


def skip_nonfinite(
    tx: optax.GradientTransformation, max_consecutive: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Skip every step whose gradients, updates or new state are not finite everywhere.

    A skipped step returns updates of −0.0 and leaves the state of `tx` as it was. The wrapper
    checks the gradients, the updates, the new state of `tx` wherever the old one is finite, and the
    numbers among the extra arguments, used or not: a step with a `value` of NaN is skipped, so a
    placeholder for a value must be finite. If finite gradients complete a window of an `accumulate`
    inside, and the step made of them is skipped, that window is dropped.

    Put it around the whole chain, so that all of it is skipped together. It belongs around
    `stochastic_rounding`, as a skipped step inside advances the random bits; with `master_params`
    and `kahan_summation` it may be inside or around. Around one group of `optax.partition` it
    checks and skips that group alone. Under `shard_map` each device checks and skips its own part,
    unless gradients are averaged before; a `scan` there must start from a state made varying by
    `jax.lax.pcast`.

    The wrapper does not stop the training. Once `max_consecutive` steps in a row were skipped,
    `gave_up` is set and stays set, so that a loop that looks at it now and then will see it. Until
    the loop acts, steps are skipped and made as before.

    Args:
        tx: the transformation to protect.
        max_consecutive: skipped steps in a row that set `gave_up`, ≥ 1; None for never.

    Returns:
        A transformation with state `SkipNonfiniteState`, whose counts `skip_counts` reads.

    Raises:
        ValueError: `tx` is no transformation, or `max_consecutive` no integer ≥ 1; at init, `tx`
            holds a `dynamic_loss_scale`, which must see the steps that would be skipped; at update,
            `tx` changes the structure of its state.

    Example:
        A loop that goes back to the last good checkpoint when steps keep failing:

        >>> import jax.numpy as jnp, optax, optlab
        >>> tx = optlab.skip_nonfinite(optlab.sgd(0.5), max_consecutive=2)
        >>> params = jnp.array(1.0)
        >>> state = tx.init(params)
        >>> checkpoint = params, state
        >>> for gradient in (1.0, jnp.nan, 1.0, jnp.inf, jnp.inf, 1.0):
        ...     updates, state = tx.update(jnp.array(gradient), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(params, *optlab.skip_counts(state))
        0.5 0 0 False
        0.5 1 1 False
        0.0 1 0 False
        0.0 2 1 False
        0.0 3 2 True
        -0.5 3 0 True
        >>> if optlab.skip_counts(state).gave_up:
        ...     params, state = checkpoint
    """
    who = "skip_nonfinite"
    _checks.check_transformation(who, tx)
    if max_consecutive is not None:
        max_consecutive = _checks.check_count(who, "max_consecutive", max_consecutive, 1)
    tx = optax.with_extra_args_support(tx)

    def init(params: Tree) -> SkipNonfiniteState:
        return SkipNonfiniteState(
            inner=init_inner(who, tx, params),
            skipped=jnp.zeros((), jnp.int32),
            consecutive=jnp.zeros((), jnp.int32),
            gave_up=jnp.zeros((), bool),
        )

    def update(
        updates: Tree, state: SkipNonfiniteState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, SkipNonfiniteState]:
        _checks.check_state_kind(who, state, SkipNonfiniteState)

        def step(updates: Tree, inner: Any, params: Tree | None) -> tuple[Tree, Any]:
            new_updates, new = tx.update(updates, inner, params, **extra_args)
            return new_updates, in_layout(who, new, inner)

        made, new_updates, inner = settle(step, updates, state.inner, params, extra_args)
        consecutive = jnp.where(made, 0, optax.safe_increment(state.consecutive))
        gave_up = state.gave_up
        if max_consecutive is not None:
            gave_up |= consecutive >= max_consecutive
        new_state = SkipNonfiniteState(
            inner=inner,
            skipped=jnp.where(made, state.skipped, optax.safe_increment(state.skipped)),
            consecutive=consecutive,
            gave_up=gave_up,
        )
        return new_updates, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def skip_counts(state: Any) -> SkipCounts:
    """Return how many steps were skipped, from a state that holds a `skip_nonfinite`.

    `dynamic_loss_scale` holds one too. If one is around another, the counts are those of the outer.

    Args:
        state: the state of a transformation in which it is nested anywhere: a chain, partition or
            masked, the `opt_state` of a TrainState or of an `nnx.Optimizer`, or any tree of them.

    Returns:
        `SkipCounts(skipped, consecutive, gave_up)`, as described at `SkipNonfiniteState`.

    Raises:
        ValueError: the state holds no `skip_nonfinite`, or several side by side.

    Example:
        >>> import jax.numpy as jnp, optax, optlab
        >>> tx = optax.chain(optlab.skip_nonfinite(optlab.adam(1e-3)), optax.identity())
        >>> params = jnp.zeros(3)
        >>> updates, state = tx.update(params / 0, tx.init(params))
        >>> print(*skip_counts(state))
        1 1 False
    """
    who = "skip_counts"
    states = [node for node in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(node)]
    if not states:
        _checks.fail(
            who,
            "the state must hold a skip_nonfinite or dynamic_loss_scale",
            type(state).__name__,
            "wrap the transformation in optlab.skip_nonfinite",
        )
    if len(states) > 1:
        _checks.fail(
            who,
            "the state must hold one skip_nonfinite, or one around others",
            f"{len(states)} side by side",
            "pass a part of the state, as state.inner_states[label] of optax.partition",
        )
    # Flax NNX wraps the arrays in variables.
    return SkipCounts(
        *(jax.tree.leaves(getattr(states[0], name))[0] for name in SkipCounts._fields)
    )


def gave_up(state: Any) -> bool:
    """Return whether a `skip_nonfinite` anywhere in a state has given up, in any lane."""
    states = [node for node in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(node)]
    return any(bool(jnp.any(leaf)) for s in states for leaf in jax.tree.leaves(s.gave_up))


def _is_ours(node: Any) -> bool:
    return isinstance(node, SkipNonfiniteState)
