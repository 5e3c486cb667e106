"""Parameters narrower than float32: how their wrappers see them, and move them.

A wrapper keeps for each bfloat16 or float16 parameter what its type cannot hold, shows the inner
transformation float32 parameters and gradients, and turns the float32 update it gets back into one
that takes the parameter p to a target, a value of p's type:

    u = target − p, rounded to p's type; −0.0 where target = p

By Sterbenz' lemma u is exact in p's type where p/2 ≤ target ≤ 2p, and p + u is the target.
Elsewhere u is rounded, and p + u may land beside the target. It is rounded for float32 gradients
too: a wrapper around this one that widens them, as `dynamic_loss_scale` and `accumulate` do, casts
u to their first type, and p must land where it is said to. −0.0 changes no bit of p, where +0.0
would make +0.0 of −0.0; where the inner update is zero besides, nothing kept changes a bit either.

All other leaves pass to the inner transformation as they are, and back.

Reference: Sterbenz, Floating-Point Computation, Prentice-Hall (1974), theorem 4.3.1.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import as_array, is_none
from optlab._types import Array, DTypeLike, Tree
from optlab.rules._arithmetic import round_to


def is_narrow(x: Any) -> bool:
    """Whether a leaf is of a floating-point type narrower than float32."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def nearest(x: Array, dtype: DTypeLike) -> Array:
    """Round to the nearest value of a narrower type, keeping x's own; finite elements stay finite.

    An overflow would be for ever: the way back from an infinite parameter is ∞ − ∞.
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
    # Bit patterns grow with the size of a number, through all its binades. So the bits to drop are
    # the distance from the neighbour towards zero, and a carry out of them leads to the other one.
    dropped = 23 - narrow.nmant
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits >> (32 - dropped))
    rounded = jax.lax.bitcast_convert_type((pattern >> dropped) << dropped, jnp.float32)
    if narrow.minexp > jnp.finfo(x.dtype).minexp:
        # Subnormal numbers are the multiples of the smallest, a power of two: all this is exact.
        unit = float(narrow.smallest_subnormal)
        multiple = jnp.abs(x) / unit
        whole = jnp.floor(multiple)
        away = bits < ((multiple - whole) * 2.0**32).astype(jnp.uint32)
        subnormal = jnp.copysign((whole + away) * unit, x)
        rounded = jnp.where(jnp.abs(x) < float(narrow.tiny), subnormal, rounded)
    return jnp.where(jnp.isfinite(x), _clip(rounded, dtype), x)


def _clip(x: Array, dtype: DTypeLike) -> Array:
    # Not by `clip`, which takes subnormal numbers for zero on some devices.
    largest = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.abs(x) > largest, jnp.copysign(largest, x), x)


def step_to(target: Array, p: Array, param_dtype: DTypeLike, dtype: DTypeLike) -> tuple[Any, Any]:
    """Return the update that takes a narrow parameter to `target`, and where that lands.

    The latter is what `optax.apply_updates` will make of the parameter. Both are in float32 at
    least, and the update is a value of `param_dtype` and of `dtype`, that of the gradients.
    """
    wide = jnp.promote_types(jnp.float32, dtype)
    target, p = target.astype(wide), p.astype(wide)
    # The comparison also spares an infinite parameter that stays so ∞ − ∞, which is NaN.
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

    One of these wrappers inside another would find nothing to do. The class of such a state says so
    with `keeps_narrow`.
    """
    state = inner.init(jax.tree.map(lambda p: _float32(p) if is_narrow(p) else p, params))

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
    """Return `slot` of each narrow leaf, and None in place of the others."""
    return jax.tree.map(lambda p: slot(as_array(p)) if is_narrow(p) else None, params)


def _float32(x: Any) -> Array:
    # Of a parameter computed in the same `jit`, XLA may hand on digits that its type does not hold.
    return round_to(as_array(x).astype(jnp.float32), x.dtype)


def update_narrow(
    who: str,
    inner: optax.GradientTransformationExtraArgs,
    updates: Tree,
    inner_state: Any,
    params: Tree | None,
    extra_args: Mapping[str, Any],
    *,
    kept: Tree,
    see: Callable[[Array, Any], Array],
    keep: Callable[[Array, Array, DTypeLike], Any],
    aim: Callable[[Array, Array, DTypeLike, int], Array] = lambda x, p, dtype, i: nearest(x, dtype),
) -> tuple[Tree, Any, Tree]:
    """Run the inner transformation in float32, and round what comes of it to the parameters' types.

    Args:
        who: the public name that errors begin with.
        inner: the transformation.
        updates: the gradients.
        inner_state: its state.
        params: the parameters.
        extra_args: its extra arguments.
        kept: what is kept beside the narrow parameters, a tree made by `start`; None for nothing.
        see: (parameter in float32, what is kept beside it) → what the inner transformation sees.
        keep: (that plus the inner update, where the parameter lands, its type) → what is kept.
        aim: (that plus the inner update, the parameter in float32, its type, the leaf's index) →
            where to land.

    Returns:
        (the updates in the gradients' types, the inner state, what is kept).
    """
    leaves = _Leaves(who, updates, params, kept)

    def shown(param: Any, own: Any) -> Any:
        return see(_float32(param), own) if is_narrow(param) else param

    # Over trees, as a gradient of None may stand for a whole subtree of parameters.
    seen = [
        jax.tree.map(shown, param, own, is_leaf=is_none)
        for param, own in zip(leaves.params, leaves.kept, strict=True)
    ]
    gradients = list(leaves.gradients)
    for index in leaves.narrow:
        wide = jnp.promote_types(jnp.float32, gradients[index].dtype)
        gradients[index] = gradients[index].astype(wide)
    unflatten = leaves.structure.unflatten
    new, inner_state = inner.update(
        unflatten(gradients), inner_state, unflatten(seen), **extra_args
    )

    new = leaves.structure.flatten_up_to(new)
    for index in leaves.narrow:
        param, dtype = leaves.params[index], leaves.gradients[index].dtype
        moved = (seen[index] + new[index]).astype(jnp.float32)
        p = _float32(param)
        target = aim(moved, p, param.dtype, index)
        update, landed = step_to(target, p, param.dtype, dtype)
        if kept is not None:
            still = (new[index] == 0) & (update == 0)
            own = leaves.kept[index]
            leaves.kept[index] = jnp.where(still, own, keep(moved, landed, param.dtype))
        new[index] = update.astype(dtype)
    return unflatten(new), inner_state, None if kept is None else unflatten(leaves.kept)


def _check_kept(who: str, params: Tree, kept: Tree) -> None:
    """Require parameters like those that what is kept was made from."""

    def require(equal: bool, what: str, got: Any, path: Any = ()) -> None:
        if not equal:
            _checks.fail(
                who,
                f"the parameters must have the {what} that they had at init",
                f"{got} at {jax.tree_util.keystr(path) or 'the root'}",
                "call init with these parameters",
            )

    with_paths, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_none)
    owns, at_init = jax.tree.flatten(kept, is_leaf=is_none)
    require(structure == at_init, "structure", structure)
    for (path, param), own in zip(with_paths, owns, strict=True):
        dtype = getattr(param, "dtype", type(param).__name__)
        require(is_narrow(param) == (own is not None), "types", dtype, path)
        if own is not None:
            # Float32 copies fit any narrow type.
            require(own.dtype in (dtype, jnp.float32), "types", dtype, path)
            require(own.shape == param.shape, "shapes", param.shape, path)


class _Leaves:
    """The leaves of the gradients, and beside them the parameters and what is kept of them.

    Attributes:
        structure: that of the gradients, a None among them being a leaf.
        gradients: arrays where the parameters are narrow.
        params: a leaf beside each gradient that is not None.
        kept: as the parameters; None where nothing is kept.
        narrow: the indices of narrow parameters that have gradients.
    """

    def __init__(self, who: str, updates: Tree, params: Tree | None, kept: Tree):
        if params is None:
            _checks.fail(
                who,
                "update must be given the parameters",
                "params=None",
                "call update(gradients, state, params)",
            )
        check_types(who, params)
        with_paths, self.structure = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_none)
        self.gradients = [gradient for _, gradient in with_paths]
        self.params = self._beside(who, "parameters", updates, params)
        self.kept = list(self.params)
        if kept is not None:
            self.kept = self._beside(who, "state", updates, kept)
        self.narrow = []
        for index, (path, gradient) in enumerate(with_paths):
            param = self.params[index]
            if gradient is not None and is_narrow(param):
                gradient = as_array(gradient)
                _checks.check_inexact(who, "gradients", path, gradient)
                _checks.check_same_shape(who, path, gradient, param, "parameters")
                self.gradients[index] = gradient
                self.narrow.append(index)
        if kept is not None:
            _check_kept(who, params, kept)

    def _beside(self, who: str, what: str, updates: Tree, tree: Tree) -> list[Any]:
        """Return the parts of a tree in the order of the gradients."""
        remedy = "call init with the parameters that the gradients are taken of"
        try:
            parts = self.structure.flatten_up_to(tree)
        except ValueError:
            _checks.fail_structure(who, what, updates, tree, remedy)
        for gradient, part in zip(self.gradients, parts, strict=True):
            if gradient is not None and not jax.tree_util.all_leaves([part], is_leaf=is_none):
                _checks.fail_structure(who, what, updates, tree, remedy)
        return parts
