"""What wrappers share: which steps are made, and updates that change nothing.

The update that changes nothing is −0.0: p + (−0.0) is p bit for bit, where +0.0 would turn a
parameter of −0.0 into +0.0. (A device that flushes subnormal numbers to zero does so in any sum.)
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._tree import as_array, compute_dtype
from optlab._types import Array, DTypeLike, Tree


def init_inner(who: str, tx: optax.GradientTransformation, params: Tree) -> Any:
    """Return the state of the wrapped transformation, which must not need to see NaN and Inf.

    A wrapper that keeps them from it, or takes back what it made of them, would leave a loss scale
    too high for ever. The class of such a state says so with `adapts_to_nonfinite`.
    """
    state = tx.init(params)

    def adapts(node: Any) -> bool:
        return getattr(node, "adapts_to_nonfinite", False)

    for node in jax.tree.leaves(state, is_leaf=adapts):
        if adapts(node):
            _checks.fail(
                who,
                "tx must not adapt to non-finite gradients, which it would never see",
                type(node).__name__,
                f"put its wrapper around {who}",
            )
    return state


def settle(given: Tree, updates: Tree, new: Any, old: Any) -> tuple[Array, Tree, Any]:
    """Judge a step, and take it back where it is not to be made.

    It is made if no number is NaN or Inf in what was given nor in the updates, and none in the
    state has become so. (One that was so before stays allowed, as the best value of a plateau
    starts at Inf.) If not, the updates change nothing and the state is the old one; where it is not
    for what was given, windows of `accumulate` that end with this step are over all the same, or
    what they gathered would spoil every later step too.

    Args:
        given: what goes into the step: the gradients, and extra arguments that matter.
        updates: what it makes of them, in the types in which they are returned.
        new: the state after the step, in the layout of the old one.
        old: the state before it.

    Returns:
        (whether the step is made, a () bool; the updates; the state).
    """
    sound = all_finite(given)
    made = sound & all_finite(updates) & _stay_finite(new, old)
    return made, _update_if(made, updates), keep(made, sound, new, old)


def keep(made: Array, sound: Array, new: Any, old: Any) -> Any:
    """Return the new state if the step is made, else the old one, as `settle` describes.

    Leaves may be random keys too. A part of the state with a method `settled` chooses for itself.
    """

    def choose(n: Any, o: Any) -> Any:
        if _settles(n):
            return n.settled(made, sound, o)
        return jnp.where(made, n, o) if isinstance(n, jax.Array) else n

    return jax.tree.map(choose, new, old, is_leaf=_settles)


def all_finite(*trees: Tree) -> Array:
    """Return whether the trees hold no NaN and no Inf, a () bool."""
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(trees) if _is_inexact(x)]
    return reduce(jnp.logical_and, finite, jnp.array(True))


def nothing(dtype: DTypeLike) -> np.ndarray:
    """Return the scalar that changes no number of this type when added to it."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.asarray(complex(-0.0, -0.0), dtype)
    return np.asarray(-0.0 if jnp.issubdtype(dtype, jnp.inexact) else 0, dtype)


def no_update(tree: Tree) -> Tree:
    """Return updates in the structure and the types of a tree that change nothing."""
    return _map_numbers(lambda x: jnp.full_like(x, nothing(x.dtype)), tree)


def in_layout(who: str, new: Any, old: Any) -> Any:
    """Return the new state in the types of the old one, whose structure it must have."""
    if jax.tree.structure(new) != jax.tree.structure(old):
        _checks.fail(
            who,
            "tx must keep the structure of its state",
            f"{jax.tree.structure(new)} after {jax.tree.structure(old)}",
        )
    return in_types(new, old)


def in_types(tree: Tree, other: Tree) -> Tree:
    """Return a tree with its numbers as arrays of the types that they have in the other."""
    return _map_numbers(
        lambda x, o: x.astype(jnp.result_type(o)) if _is_number(o) else x, tree, other
    )


def map_inexact(function: Callable[[Array], Array], tree: Tree) -> Tree:
    """Map over the floating-point and complex arrays of a tree, and leave the rest alone."""
    return jax.tree.map(lambda x: function(as_array(x)) if _is_inexact(x) else x, tree)


def wide(dtype: DTypeLike) -> jnp.dtype:
    """Return the type itself, or float32 where it is narrower."""
    return jnp.dtype(dtype) if jnp.issubdtype(dtype, jnp.complexfloating) else compute_dtype(dtype)


def _stay_finite(new: Any, old: Any) -> Array:
    """Return whether no finite number of the old state is NaN or Inf in the new one, a () bool."""
    stay = [
        (jnp.isfinite(n) | ~jnp.isfinite(o)).all()
        for n, o in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
        if _is_inexact(n) and _is_inexact(o)
    ]
    return reduce(jnp.logical_and, stay, jnp.array(True))


def _update_if(made: Array, updates: Tree) -> Tree:
    """Return the updates, or such as change nothing."""
    return _map_numbers(lambda x: jnp.where(made, x, nothing(x.dtype)), updates)


def _settles(node: Any) -> bool:
    return hasattr(node, "settled")


def _map_numbers(function: Callable[..., Array], tree: Tree, *others: Tree) -> Tree:
    """Map over arrays of numbers; JAX's gradients of integers, float0, are none, nor are keys."""
    return jax.tree.map(
        lambda x, *o: function(as_array(x), *o) if _is_number(x) else x, tree, *others
    )


def _is_number(x: Any) -> bool:
    if isinstance(x, bool | int | float | complex):
        return True
    if not hasattr(x, "dtype"):
        return False
    return jnp.issubdtype(x.dtype, jnp.number) or jnp.issubdtype(x.dtype, jnp.bool_)


def _is_inexact(x: Any) -> bool:
    return _is_number(x) and jnp.issubdtype(jnp.result_type(x), jnp.inexact)
