"""Average the gradients of several micro-batches, and make one step of them.

    g = Σ wᵢ·gᵢ / Σ wᵢ     over the micro-batches of a window that are not left out
    u = tx(g)              on every `every`-th call, which ends the window
    u = −0.0               on the calls between

wᵢ is `weight`, the number of tokens or examples in a micro-batch; 1 for all if it is not given.
A micro-batch is left out if its gradient holds a NaN or an Inf, or if its weight is 0. A window in
which all are left out makes no step. The clock goes on: every `every`-th call ends a window.

The mean is formed in float32 whatever the gradients' type, as

    total·every/(n·W),   total = Σ wᵢ·gᵢ/every

with n the micro-batches of the window that are not left out and W their mean weight. Without
weights this sum of shares overflows no sooner than the mean itself.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import Leaves, aligned, as_array, is_none, leaves_of
from optlab._types import Array, ArrayLike, DTypeLike, Tree
from optlab.rules._state import exportable
from optlab.wrappers._common import (
    all_finite,
    choose,
    in_layout,
    in_update_types,
    init_inner,
    is_sharded,
    keep,
    no_update,
    nothing,
    scaled,
    sharded_like,
    wide,
)
from optlab.wrappers._program import light_program


@exportable("accumulate")
class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
        inner: the state of the wrapped transformation.
        total: Σ w·g/every over the micro-batches that this window holds so far; like the
            parameters, but at least float32 or in `accumulator_dtype`; −0.0 where there is none.
            Where `micro_step` is 0 it still holds the sum of the last window; the next call drops
            that.
        micro_step: () int32; calls in this window, from 0 to every − 1; 0 once a window has ended.
        finite: () int32; n, the number of those micro-batches.
        skipped: () int32; micro-batches so far that were lost: the gradient was not finite, the
            weight was negative or not finite, or a wrapper around dropped the window; it stops at
            2³¹ − 1.
        weight: () float; W, their mean weight; 0 where there is none.
    """

    inner: Any
    total: Tree
    micro_step: Array
    finite: Array
    skipped: Array
    weight: Array

    def settled(self, made: Array, sound: Array, old: "AccumulateState") -> "AccumulateState":
        """Return this state or the old one, as a wrapper around this one decides.

        If finite gradients completed the window and the step was not made, the window is closed.
        """
        at_fault = sound & (self.micro_step == 0)
        window, old_window = ((s.total, s.micro_step, s.finite, s.weight) for s in (self, old))
        total, micro_step, finite, weight = keep(made | at_fault, sound, window, old_window)
        is_lost = at_fault & ~made
        total = jax.tree.map(partial(_unless, is_lost), no_update(total), total)
        lost = _plus(_plus(old.skipped, old.finite), 1)
        return AccumulateState(
            inner=keep(made, at_fault, self.inner, old.inner),
            total=total,
            micro_step=micro_step,
            finite=finite,
            skipped=jnp.where(made, self.skipped, jnp.where(at_fault, lost, old.skipped)),
            weight=weight,
        )


def accumulate(
    tx: optax.GradientTransformation, every: int, *, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Make one step of the mean gradient of `every` micro-batches, and no step in between.

    If the loss of each micro-batch is a mean over the same number of examples, the step is that of
    one large batch. If the numbers differ, as those of tokens do, give each call its own as
    `update(gradients, state, params, weight=num_tokens)`: the step is then made of the mean over
    all tokens. A weight is a real scalar ≥ 0. A micro-batch of weight 0 is left out, whatever its
    gradient. A weight that is negative or not finite is an error, or, where it is traced, costs the
    window that micro-batch. `tx` does not see the weights, and a wrapper around `accumulate` checks
    a gradient whatever its weight.

    Everything inside `tx` counts steps, not calls: schedules, averages, `add_decayed_weights`.
    `tx` is given the mean, in the accumulator's type but at least float32, and the other extra
    arguments of the call that ends the window. An update returns in the type of its gradient, or of
    its parameter where that is wider.

    A gradient that is not finite costs its window one micro-batch. To have the next one take its
    place write `skip_nonfinite(accumulate(tx, every))`, which drops a whole window if its gradients
    are finite but the step made of them is not. `dynamic_loss_scale`, `master_params`,
    `kahan_summation` and `stochastic_rounding` go around `accumulate`. With bfloat16 parameters a
    `params_ema` inside averages them as they are before the last rounding: put `master_params`
    around, or the average outside.

    Under `jit` a `tx` that is elementwise but for sums runs in every call, and its results are
    dropped but in the one that ends the window: a branch would copy the state. Another one runs in
    that call alone, but under `vmap`, where lanes may differ, in every call. Without `jit` `tx`
    runs, and checks its arguments, only when a window ends.

    Args:
        tx: the transformation of the mean gradients.
        every: micro-batches in a step, ≥ 1.
        accumulator_dtype: floating-point type of the accumulated gradients; None for the
            parameters' type, but at least float32. Complex gradients keep theirs. In float16 a sum
            weighted by thousands of tokens overflows; bfloat16 has the range of float32.

    Returns:
        A transformation with state `AccumulateState`. A gradient that is None in the call that
        ends a window takes no part in the step.

    Raises:
        ValueError: `tx` is no transformation, `every` no integer ≥ 1, or `accumulator_dtype` no
            floating-point type; at init, `tx` holds a `dynamic_loss_scale`, which belongs around
            it; at update, the gradients do not fit the state, the weight is no number ≥ 0, or `tx`
            changes the structure of its state.

    Example:
        8 micro-batches of 16 examples, in 2 steps of 4:

        >>> import jax, jax.numpy as jnp, optax, optlab
        >>> x = jax.random.normal(jax.random.key(0), (8, 16))
        >>> def loss(w, batch):
        ...     return jnp.mean((w * batch - 2 * batch) ** 2)
        >>> tx = optlab.accumulate(optlab.sgd(0.25), 4)
        >>> w = jnp.array(1.0)
        >>> state = tx.init(w)
        >>> for batch in x:
        ...     updates, state = tx.update(jax.grad(loss)(w, batch), state, w)
        ...     w = optax.apply_updates(w, updates)
        ...     if state.micro_step == 0:
        ...         print(f"{w:.5f}")
        1.46144
        1.67094
        >>> print(f"{1.0 - 0.25 * jax.grad(loss)(1.0, x[:4]):.5f}")
        1.46144
    """
    who = "accumulate"
    _checks.check_transformation(who, tx)
    every = _checks.check_count(who, "every", every, 1)
    _checks.check_float_dtype(who, "accumulator_dtype", accumulator_dtype)
    tx = optax.with_extra_args_support(tx)

    def init(params: Tree) -> AccumulateState:
        params = jax.tree.map(as_array, params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            _checks.check_inexact(who, "parameters", path, leaf)

        def empty(param: Array) -> Array:
            dtype = wide(param.dtype)
            if accumulator_dtype is not None and not jnp.iscomplexobj(param):
                dtype = jnp.dtype(accumulator_dtype)
            return jnp.full_like(param, nothing(dtype), dtype)

        return AccumulateState(
            inner=init_inner(who, tx, params),
            total=jax.tree.map(empty, params),
            micro_step=jnp.zeros((), jnp.int32),
            finite=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
            weight=jnp.zeros((), float),
        )

    def update(
        updates: Tree,
        state: AccumulateState,
        params: Tree | None = None,
        *,
        weight: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, AccumulateState]:
        _checks.check_state_kind(who, state, AccumulateState)
        updates = jax.tree.map(as_array, updates)
        _check_fit(who, leaves_of(updates), state.total)
        own, counts, is_lost = _weighed(who, weight, all_finite(updates), state.weight.dtype)
        finite = jnp.where(counts, optax.safe_increment(state.finite), state.finite)
        # `finite` is 0 where all are left out; the step that is formed of them is dropped.
        number = jnp.maximum(finite, 1)
        mean_weight = state.weight + (own - state.weight) / number.astype(own.dtype)
        mean_weight = jnp.where(counts, mean_weight, state.weight)

        starts = state.micro_step == 0

        def add(g: Array | None, total: Any) -> Any:
            # Emptied by the call that starts a window, since XLA would copy the total for one that
            # both uses and empties it.
            total = jax.tree.map(partial(_unless, starts), no_update(total), total)
            if g is None:
                return total
            dtype = wide(total.dtype)
            share = g.astype(dtype) / every
            if weight is not None:
                share = scaled(share, own)
            new = (total.astype(dtype) + share).astype(total.dtype)
            return jnp.where(counts, sharded_like(new, total), total)

        total = jax.tree.map(add, updates, state.total, is_leaf=is_none)
        ends = state.micro_step >= every - 1

        def step_of(
            updates: Tree, total: Tree, inner: Any, params: Tree | None
        ) -> tuple[Tree, Any]:
            def mean_of(g: Array | None, total: Any) -> Any:
                if g is None:
                    return None
                total = total.astype(wide(total.dtype))
                dtype = jnp.finfo(total.dtype).dtype
                average = jnp.where(finite > 0, mean_weight, 1).astype(dtype)
                # The factor is exactly 1 without weights, unless micro-batches were left out.
                return scaled(total, every / number.astype(dtype) / average)

            mean = jax.tree.map(mean_of, updates, total, is_leaf=is_none)
            new_updates, new = tx.update(mean, inner, params, **extra_args)
            new_updates = in_update_types(who, new_updates, updates, params)
            return new_updates, in_layout(who, new, inner)

        operands = (updates, total, state.inner, params)

        def step() -> tuple[Tree, Any]:
            return step_of(*operands)

        def wait() -> tuple[Tree, Any]:
            unchanged = in_update_types(who, no_update(updates), updates, params)
            if is_sharded((updates, state, params)):
                unchanged = jax.tree.map(sharded_like, unchanged, jax.eval_shape(step)[0])
            return unchanged, state.inner

        steps = ends & (finite > 0)
        if not isinstance(steps, jax.core.Tracer):
            # Outside `jit`, `cond` would be compiled anew in every call.
            new_updates, inner = step() if steps else wait()
        elif not is_sharded(operands) and (program := light_program(step_of, *operands)):
            # A branch would copy the state, which takes longer than a light step.
            new_updates, inner = choose(program, steps, state.inner, operands)
        else:
            new_updates, inner = jax.lax.cond(steps, step, wait)
        new_state = AccumulateState(
            inner=inner,
            total=total,
            micro_step=jnp.where(ends, 0, state.micro_step + 1),
            finite=jnp.where(ends, 0, finite),
            skipped=_plus(state.skipped, jnp.where(is_lost, 1, 0)),
            weight=jnp.where(ends, 0, mean_weight),
        )
        return new_updates, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _weighed(
    who: str, weight: ArrayLike | None, finite: Array, dtype: DTypeLike
) -> tuple[Array, Array, Array]:
    """Return the weight of a micro-batch, whether it counts, and whether it is lost.

    The weight is 1 where the micro-batch does not count.

    Args:
        who: the public name that errors begin with.
        weight: the weight, None for 1.
        finite: whether its gradient is finite, a () bool.
        dtype: the type of weights.
    """
    if weight is None:
        return jnp.ones((), dtype), finite, ~finite
    weight = _checks.check_number(who, "weight", weight, _checks.NONNEGATIVE, dtype=dtype)
    weight = jnp.asarray(weight, dtype)
    sound = finite & jnp.isfinite(weight) & (weight >= 0)
    counts = sound & (weight > 0)
    return jnp.where(counts, weight, 1), counts, ~sound & (weight != 0)


def _unless(condition: Array, otherwise: Array, x: Array) -> Array:
    return jnp.where(condition, otherwise, x)


def _plus(count: Array, more: ArrayLike) -> Array:
    """Return the sum of two int32 numbers ≥ 0, at most 2³¹ − 1."""
    return jnp.minimum(count, jnp.iinfo(jnp.int32).max - more) + more


def _check_fit(who: str, gradients: Leaves, total: Tree) -> None:
    """Require gradients like the parameters given to `init`, or None."""
    aligned(who, "parameters", gradients, total)
    for path, g in zip(gradients.paths, gradients.values, strict=True):
        if g is not None:
            _checks.check_inexact(who, "gradients", path, g)
