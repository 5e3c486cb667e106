"""Average the gradients of several micro-batches, and make one step of them.

    n ← n + 1, total ← total + g / every       for each finite gradient g of a window
    u = tx(total · every / n)                  on every `every`-th call, which ends the window
    u = −0.0                                   on the calls between

The mean is formed in float32 whatever the gradients' type, as a sum of shares that overflows no
sooner than the mean itself. A gradient with a NaN or an Inf is left out of its window's mean; a
window with no finite gradient makes no step. The clock stays: every `every`-th call ends a window.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import as_array, compute_dtype, is_none
from optlab._types import Array, ArrayLike, Tree
from optlab.wrappers._common import (
    all_finite,
    in_layout,
    in_types,
    init_inner,
    keep,
    no_update,
    nothing,
    wide,
)


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
        inner: the state of the wrapped transformation.
        total: Σ g/every over the finite gradients of this window, like the parameters, but at
            least float32; −0.0 where there is none.
        micro_step: () int32; calls in this window, from 0 to every − 1; 0 after the last of one.
        finite: () int32; those of them whose gradients were finite.
        skipped: () int32; micro-batches so far whose gradients took part in no step: they were not
            finite, or a wrapper around dropped their window; it stops at 2³¹ − 1.
    """

    inner: Any
    total: Tree
    micro_step: Array
    finite: Array
    skipped: Array

    def settled(self, made: Array, sound: Array, old: "AccumulateState") -> "AccumulateState":
        """Return this state, or the old one, as a wrapper around judged (`_common.settle`)."""
        at_fault = sound & (self.micro_step == 0)
        window, old_window = ((s.total, s.micro_step, s.finite) for s in (self, old))
        total, micro_step, finite = keep(made | at_fault, sound, window, old_window)
        lost = _plus(_plus(old.skipped, old.finite), 1)
        return AccumulateState(
            inner=keep(made, at_fault, self.inner, old.inner),
            total=total,
            micro_step=micro_step,
            finite=finite,
            skipped=jnp.where(made, self.skipped, jnp.where(at_fault, lost, old.skipped)),
        )


def accumulate(
    tx: optax.GradientTransformation, every: int
) -> optax.GradientTransformationExtraArgs:
    """Make one step of the mean gradient of `every` micro-batches, and no step in between.

    If each micro-batch's loss is a mean over as many examples, this is as one batch of them all.
    Everything inside `tx` counts steps, not calls: schedules, averages, `add_decayed_weights`.
    `tx` is given the mean in float32, and the extra arguments of the call that ends the window; its
    updates return in the gradients' type.

    A gradient that is not finite costs its window one micro-batch; to have the next one take its
    place write `skip_nonfinite(accumulate(tx, every))`, which drops a whole window where the step
    made of finite gradients is not finite. `dynamic_loss_scale`, `master_params`, `kahan_summation`
    and `stochastic_rounding` go around it. With bfloat16 parameters a `params_ema` within averages
    them as they are before the last rounding: put `master_params` around, or the average outside.

    Under `vmap`, where lanes may differ, `tx` runs in every call. Without `jit` it runs, and checks
    its arguments, only when a window ends.

    Args:
        tx: the transformation of the mean gradients.
        every: micro-batches in a step, ≥ 1.

    Returns:
        A transformation with state `AccumulateState`; a gradient that is None in the call that
        ends a window takes no part in the step.

    Raises:
        ValueError: `tx` is no transformation, or `every` no integer ≥ 1; at init, `tx` holds a
            `dynamic_loss_scale`, which belongs around it; at update, the gradients do not fit the
            state, or `tx` changes the structure of its state.

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
    _checks.check_count(who, "every", every, 1)
    tx = optax.with_extra_args_support(tx)

    def init(params: Tree) -> AccumulateState:
        params = jax.tree.map(as_array, params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            _checks.check_inexact(who, "parameters", path, leaf)
        return AccumulateState(
            inner=init_inner(who, tx, params),
            total=jax.tree.map(_nothing_like, params),
            micro_step=jnp.zeros((), jnp.int32),
            finite=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: Tree, state: AccumulateState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, AccumulateState]:
        _checks.check_state_kind(who, state, AccumulateState)
        updates = jax.tree.map(as_array, updates)
        _check_fit(who, updates, state.total)
        counts = all_finite(updates)

        def add(g: Array | None, total: Any) -> Any:
            if g is None:
                return total
            return jnp.where(counts, total + g.astype(total.dtype) / every, total)

        total = jax.tree.map(add, updates, state.total, is_leaf=is_none)
        finite = jnp.where(counts, optax.safe_increment(state.finite), state.finite)
        ends = state.micro_step >= every - 1

        def step() -> tuple[Tree, Any, Tree]:
            # `finite` is 0 only where `vmap` forms both outcomes.
            count = jnp.maximum(finite, 1)

            def mean_of(g: Array | None, total: Any) -> Any:
                if g is None:
                    return None
                # The factor is exactly 1 unless gradients were left out.
                return total * (every / count.astype(compute_dtype(total.dtype)))

            mean = jax.tree.map(mean_of, updates, total, is_leaf=is_none)
            new_updates, inner = tx.update(mean, state.inner, params, **extra_args)
            inner = in_layout(who, inner, state.inner)
            return in_types(new_updates, updates), inner, no_update(total)

        def wait() -> tuple[Tree, Any, Tree]:
            return no_update(updates), state.inner, total

        # Where a window ends without a finite gradient, its total is what it was at the start.
        steps = ends & (finite > 0)
        if isinstance(steps, jax.core.Tracer):
            new_updates, inner, total = jax.lax.cond(steps, step, wait)
        else:  # outside `jit`, `cond` would be compiled anew in every call
            new_updates, inner, total = step() if steps else wait()
        new_state = AccumulateState(
            inner=inner,
            total=total,
            micro_step=jnp.where(ends, 0, state.micro_step + 1),
            finite=jnp.where(ends, 0, finite),
            skipped=_plus(state.skipped, jnp.where(counts, 0, 1)),
        )
        return new_updates, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _plus(count: Array, more: ArrayLike) -> Array:
    """Return the sum of two int32 numbers ≥ 0, at most 2³¹ − 1."""
    return jnp.minimum(count, jnp.iinfo(jnp.int32).max - more) + more


def _nothing_like(param: Array) -> Array:
    dtype = wide(param.dtype)
    return jnp.full_like(param, nothing(dtype), dtype)


def _check_fit(who: str, updates: Tree, total: Tree) -> None:
    """Require gradients like the parameters given to `init`, or None."""
    remedy = "call init with the parameters that the gradients are taken of"
    with_paths, structure = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_none)
    try:
        totals = structure.flatten_up_to(total)
    except ValueError:
        _checks.fail_structure(who, "parameters", updates, total, remedy)
    for (path, g), own in zip(with_paths, totals, strict=True):
        if g is None:
            continue
        if not jax.tree_util.all_leaves([own]):
            _checks.fail_structure(who, "parameters", updates, total, remedy)
        _checks.check_inexact(who, "gradients", path, g)
        _checks.check_same_shape(who, path, g, own, "parameters")
