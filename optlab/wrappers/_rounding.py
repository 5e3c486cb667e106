"""Parameters narrower than float32: how their wrappers see them, and move them.

A wrapper stores beside each bfloat16 or float16 parameter the digits that its type cannot hold. It
shows the inner transformation float32 parameters and gradients, and turns the float32 update that
comes back into one that takes the parameter p to a target, a value of p's type:

    u = target − p, rounded to p's type; −0.0 where target = p

By Sterbenz' lemma u is exact in p's type where p/2 ≤ target ≤ 2p, and p + u is the target.
Elsewhere u is rounded, and p + u may land beside the target. u is rounded to p's type even if it is
returned in float32: `dynamic_loss_scale` and `accumulate`, which may be around this wrapper, cast u
back to the type that the gradient had before them, and p must land at the same number. −0.0 changes
no bit of p, where +0.0 would turn −0.0 into +0.0. If the inner update is zero too, no bit of the
wrapper's own state changes either.

All other leaves pass to the inner transformation and back unchanged.

Reference: Sterbenz, Floating-Point Computation, Prentice-Hall (1974), theorem 4.3.1.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import aligned, as_array, is_none, leaves_of, update_dtype
from optlab._types import Array, DTypeLike, Tree
from optlab.rules._arithmetic import round_to
from optlab.wrappers._common import sharded_like, wide


def is_narrow(x: Any) -> bool:
    """Whether a leaf is of a floating-point type narrower than float32."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def nearest(x: Array, dtype: DTypeLike) -> Array:
    """Round to the nearest value of a narrower type, keeping x's own; finite elements stay finite.

    An infinite parameter would stay so: the update back to a finite number is −∞, and ∞ − ∞ is NaN.
    """
    return jnp.where(jnp.isinf(x), x, _clip(round_to(x, dtype), dtype))


def stochastic(x: Array, bits: Array, dtype: DTypeLike) -> Array:
    """Round to one of the two neighbouring values of a narrower type, without bias.

    Each neighbour has the probability (distance to the other)/(distance between them), to 2⁻³².
    Finite elements stay finite: those beyond the largest finite number become that number.

    Args:
        x: float32.
        bits: uint32 of x's shape, uniform.
        dtype: bfloat16 or float16.

    Returns:
        The rounded elements, in float32.
    """
    narrow = jnp.finfo(dtype)
    # The bit pattern of a float, read as an integer, grows with its size. So the bits to drop are
    # the distance from the neighbour towards zero, and a carry out of them gives the other one.
    dropped = 23 - narrow.nmant
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits >> (32 - dropped))
    rounded = jax.lax.bitcast_convert_type((pattern >> dropped) << dropped, jnp.float32)
    if narrow.minexp > jnp.finfo(x.dtype).minexp:
        # Subnormal numbers are the multiples of the smallest one, a power of two, so all is exact.
        unit = float(narrow.smallest_subnormal)
        multiple = jnp.abs(x) / unit
        whole = jnp.floor(multiple)
        away = bits < ((multiple - whole) * 2.0**32).astype(jnp.uint32)
        subnormal = jnp.copysign((whole + away) * unit, x)
        rounded = jnp.where(jnp.abs(x) < float(narrow.tiny), subnormal, rounded)
    return jnp.where(jnp.isfinite(x), _clip(rounded, dtype), x)


def _clip(x: Array, dtype: DTypeLike) -> Array:
    # `clip` turns subnormal numbers into zero on some devices.
    largest = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.abs(x) > largest, jnp.copysign(largest, x), x)


def step_to(target: Array, p: Array, param_dtype: DTypeLike, dtype: DTypeLike) -> tuple[Any, Any]:
    """Return the update that takes a narrow parameter to `target`, and the number it lands at.

    That number is what `optax.apply_updates` will make of the parameter. Both are float32 or wider,
    and the update is a value of `param_dtype` and of `dtype`, the type in which it is returned.
    """
    target, p = target.astype(wide(dtype)), p.astype(wide(dtype))
    # The comparison also keeps an infinite parameter that stays infinite from ∞ − ∞, which is NaN.
    update = jnp.where(target == p, -0.0, target - p)
    # Rounded before the cast, which XLA may leave out where the update is used in the same `jit`.
    update = nearest(update, param_dtype)
    if dtype != param_dtype:
        update = nearest(update, dtype)
    return update, round_to(p + update, param_dtype).astype(jnp.float32)


def checked(who: str, tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Require a transformation, and return it with room for extra arguments."""
    _checks.check_transformation(who, tx)
    return optax.with_extra_args_support(tx)


def check_types(who: str, params: Tree) -> None:
    """Require that narrow parameters are of a type that can be rounded to."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if is_narrow(leaf) and leaf.dtype not in (jnp.bfloat16, jnp.float16):
            _checks.fail(
                who,
                "parameters must be bfloat16, float16 or at least float32",
                f"{leaf.dtype} at {jax.tree_util.keystr(path) or 'the root'}",
            )


def init_inner(who: str, inner: optax.GradientTransformation, params: Tree) -> Any:
    """Return the state of the inner transformation, made from float32 copies of the narrow leaves.

    Of these wrappers none may be inside another, where it would see no narrow leaf. Their states
    are of classes with the attribute `keeps_narrow`.
    """
    state = inner.init(jax.tree.map(lambda p: float32(p) if is_narrow(p) else p, params))

    def idle(node: Any) -> bool:
        return getattr(node, "keeps_narrow", False)

    for node in jax.tree.leaves(state, is_leaf=idle):
        if idle(node):
            _checks.fail(
                who,
                "tx must not hold another wrapper for low precision, which would only see float32",
                type(node).__name__,
                "use one of them, or one for each group of optax.partition",
            )
    return state


def start(slot: Callable[[Array], Array], params: Tree) -> Tree:
    """Return `slot` of each narrow leaf, and `optax.MaskedNode()` in place of the others."""
    return jax.tree.map(lambda p: slot(as_array(p)) if is_narrow(p) else optax.MaskedNode(), params)


def is_absent(part: Any) -> bool:
    """Whether a part of a tree made by `start` holds no array."""
    return part is None or isinstance(part, optax.MaskedNode)


def float32(x: Any) -> Any:
    """Return a narrow leaf in float32, an abstract one if it is abstract.

    XLA may compute a parameter with more digits than its type holds, where the parameter comes from
    the same `jit`. These are dropped.
    """
    if isinstance(x, jax.ShapeDtypeStruct):
        return x.update(dtype=jnp.float32)
    return round_to(as_array(x).astype(jnp.float32), x.dtype)


def update_narrow(
    who: str,
    inner: optax.GradientTransformationExtraArgs,
    updates: Tree,
    inner_state: Any,
    params: Tree | None,
    extra_args: Mapping[str, Any],
    *,
    own: Tree,
    see: Callable[[Array, Any], Array],
    store: Callable[[Array, Array, DTypeLike], Any],
    aim: Callable[[Array, Array, DTypeLike, int], Array] = lambda x, p, dtype, i: nearest(x, dtype),
) -> tuple[Tree, Any, Tree]:
    """Run the inner transformation in float32, and round the new parameters to their types.

    Args:
        who: the public name that errors begin with.
        inner: the transformation.
        updates: the gradients.
        inner_state: its state.
        params: the parameters.
        extra_args: its extra arguments.
        own: the wrapper's own tree beside the parameters, made by `start`; None if it has none.
        see: (parameter in float32, its leaf of `own`) → what the inner transformation sees.
        store: (the number seen plus the inner update, the number at which the parameter lands, its
            type) → its new leaf of `own`.
        aim: (the number seen plus the inner update, the parameter in float32, its type, the leaf's
            index) → the number to land at.

    Returns:
        (the updates in the types of `update_dtype`, the inner state, the new `own`).
    """
    if params is None:
        _checks.fail(
            who,
            "update must be given the parameters",
            "params=None",
            "call update(gradients, state, params)",
        )
    check_types(who, params)
    gradients = leaves_of(updates)
    parameters = aligned(who, "parameters", gradients, params)
    owns = list(parameters)
    if own is not None:
        _check_own(who, params, own)
        owns = aligned(who, "state", gradients, own, is_absent)

    def shown(param: Any, own: Any) -> Any:
        return see(float32(param), own) if is_narrow(param) else param

    # Over trees, as a gradient of None may stand for a whole subtree of parameters.
    seen = [
        jax.tree.map(shown, param, own, is_leaf=is_none)
        for param, own in zip(parameters, owns, strict=True)
    ]
    narrow = [
        index
        for index, gradient in enumerate(gradients.values)
        if gradient is not None and is_narrow(parameters[index])
    ]
    wide_gradients = list(gradients.values)
    for index in narrow:
        gradient = as_array(wide_gradients[index])
        _checks.check_inexact(who, "gradients", gradients.paths[index], gradient)
        wide_gradients[index] = gradient.astype(wide(gradient.dtype))
    unflatten = gradients.structure.unflatten
    new, inner_state = inner.update(
        unflatten(wide_gradients), inner_state, unflatten(seen), **extra_args
    )

    new = gradients.structure.flatten_up_to(new)
    for index in narrow:
        param, step = parameters[index], new[index].astype(jnp.float32)
        dtype = update_dtype(gradients.values[index], param)
        moved = seen[index] + step
        p = sharded_like(float32(param), moved)
        target = aim(moved, p, param.dtype, index)
        update, landed = step_to(target, p, param.dtype, dtype)
        if own is not None:
            still, old = (step == 0) & (update == 0), owns[index]
            changed = sharded_like(store(moved, landed, param.dtype), old)
            owns[index] = jnp.where(sharded_like(still, old), old, changed)
        new[index] = update.astype(dtype)
    return unflatten(new), inner_state, None if own is None else unflatten(owns)


def _check_own(who: str, params: Tree, own: Tree) -> None:
    """Require parameters like those that `own` was made from."""

    def require(equal: bool, what: str, got: Any, path: Any = ()) -> None:
        if not equal:
            _checks.fail(
                who,
                f"the parameters must have the {what} that they had at init",
                f"{got} at {jax.tree_util.keystr(path) or 'the root'}",
                "call init with these parameters",
            )

    with_paths, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_absent)
    owns, at_init = jax.tree.flatten(own, is_leaf=is_absent)
    require(structure == at_init, "structure", structure)
    for (path, param), leaf in zip(with_paths, owns, strict=True):
        dtype = getattr(param, "dtype", type(param).__name__)
        require(is_narrow(param) == (not is_absent(leaf)), "types", dtype, path)
        if not is_absent(leaf):
            # Float32 copies fit any narrow type.
            require(leaf.dtype in (dtype, jnp.float32), "types", dtype, path)
            require(leaf.shape == param.shape, "shapes", param.shape, path)
