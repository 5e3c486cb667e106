"""What wrappers share: which steps are made, and updates that change nothing.

The update that changes nothing is −0.0: p + (−0.0) is p bit for bit, where +0.0 would turn a
parameter of −0.0 into +0.0. (A device that flushes subnormal numbers to zero does so in any sum.)
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._jaxpr import for_loops
from optlab._tree import aligned, as_array, compute_dtype, leaves_of, update_dtype
from optlab._types import Array, DTypeLike, Tree
from optlab.wrappers._program import Program, hidden, light_program

_SMALL = 2**14
"""The most elements of an array whose flags take no memory worth a word."""


def init_inner(who: str, tx: optax.GradientTransformation, params: Tree) -> Any:
    """Return the state of the wrapped transformation, which must not react to NaN and Inf.

    A wrapper keeps them from it, or restores the state that it had before it saw them, and so would
    leave a loss scale too high for ever. A state that reacts to them is of a class with the
    attribute `adapts_to_nonfinite`.
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


def settle(
    step: Callable[[Tree, Any, Tree], tuple[Tree, Any]],
    updates: Tree,
    state: Any,
    params: Tree,
    others: Tree,
) -> tuple[Array, Tree, Any]:
    """Make a step, decide whether it stands, and undo it if not.

    A step stands if its inputs and its updates are finite and no finite number of the state became
    NaN or Inf. (A number that was not finite before may stay so: the best value of a plateau starts
    at Inf.) Otherwise the updates are −0.0 and the state is the old one. There is one exception: if
    the inputs are finite, a window of `accumulate` that this step completes is closed, as its
    gradients would spoil every later step too.

    Args:
        step: (gradients, state, parameters) → (updates in the types in which they are returned,
            state in the layout of the old one).
        updates: the gradients.
        state: the state before the step.
        params: the parameters.
        others: further inputs that must be finite.

    Returns:
        (whether the step is made, a () bool; the updates; the state).
    """
    sound = all_finite((updates, others))
    program = light_program(step, updates, state, params)
    if program is None:
        new_updates, new = step(updates, state, params)
        made = sound & all_finite(new_updates) & stay_finite(new, state)
        return made, _update_if(made, new_updates), keep(made, sound, new, state)
    seen = hidden(updates)
    (new_updates, new), known = program.run(seen, state, params)
    made = all_finite(others) & _all_finite_by_leaf(seen, new_updates, new, state)
    operands = (updates, state, params)
    new_updates, new = choose(program, made, state, operands, known, leave=_settles)
    return made, new_updates, _settled_parts(made, sound, new, state)


def keep(made: Array, sound: Array, new: Any, old: Any) -> Any:
    """Return the new state if the step is made, else the old one, as `settle` describes.

    Leaves may be random keys. A part of the state with a method `settled` decides for itself.

    Args:
        made: whether the step is made, a () bool.
        sound: whether its inputs are finite, a () bool.
        new: the state after the step, in the layout of the old one.
        old: the state before it.
    """

    def one_of(n: Any, o: Any) -> Any:
        if _settles(n):
            return n.settled(made, sound, o)
        return jnp.where(made, n, o) if isinstance(n, jax.Array) else n

    return jax.tree.map(one_of, new, old, is_leaf=_settles)


def _settled_parts(made: Array, sound: Array, new: Any, old: Any) -> Any:
    """Return a state with what each part that has a method `settled` makes of itself."""
    return jax.tree.map(
        lambda n, o: n.settled(made, sound, o) if _settles(n) else n, new, old, is_leaf=_settles
    )


def choose(
    program: Program,
    made: Array,
    state: Any,
    operands: Sequence[Any],
    known: Mapping[Any, Any] | None = None,
    leave: Callable[[Any], bool] | None = None,
) -> tuple[Tree, Any]:
    """Compute a step, and choose its results where it is made, else updates of −0.0 and the state.

    Args:
        program: operands → (updates, new state in the layout of the old one).
        made: whether the step is made, a () bool.
        state: the old state.
        operands: what the step is given.
        known: what `program.run` computed.
        leave: says which parts of the new state are left as they are.
    """
    updates, new = program.shapes
    old = [nothing(x.dtype) if _is_number(x) else None for x in jax.tree.leaves(updates)]
    parts = (jax.tree.leaves(tree, is_leaf=leave) for tree in (new, state))
    for n, o in zip(*parts, strict=True):
        is_left = leave is not None and leave(n)
        old += [None] * len(jax.tree.leaves(n)) if is_left else [o]
    return program.choose(made, old, known or {}, *operands)


def all_finite(*trees: Tree) -> Array:
    """Return whether the trees hold no NaN and no Inf, a () bool."""
    return _every([jnp.isfinite(x) for x in jax.tree.leaves(trees) if _is_inexact(x)])


def _every(flags: Sequence[Array]) -> Array:
    """Return whether all flags in some arrays are true, a () bool.

    On a CPU large arrays are looked at one after another, so that XLA keeps the flags of one at a
    time.
    """
    if for_loops.get() or jax.default_backend() != "cpu":
        return _all([x.all() for x in flags])
    is_large = [isinstance(x.size, int) and x.size > _SMALL for x in flags]
    so_far = _all([x.all() for x, large in zip(flags, is_large, strict=True) if not large])
    for x, large in zip(flags, is_large, strict=True):
        if large:
            so_far = _all([so_far, (x & so_far).all()])
    return so_far


def _all(flags: Sequence[Array]) -> Array:
    """Return whether all flags, each a () bool, are true.

    The square root, of 0 or 1, keeps this a number that XLA computes once. It copies cheap scalars
    into the loop of every array that uses them: with n flags into n loops, so that a program of 80
    arrays took a minute to compile.
    """
    every = reduce(jnp.logical_and, flags, jnp.array(True))
    return jnp.sqrt(every.astype(jnp.float32)) > 0


def nothing(dtype: DTypeLike) -> np.ndarray:
    """Return the scalar of a type that changes no number when it is added."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.asarray(complex(-0.0, -0.0), dtype)
    return np.asarray(-0.0 if jnp.issubdtype(dtype, jnp.inexact) else 0, dtype)


def no_update(tree: Tree) -> Tree:
    """Return updates that change nothing, in the structure, types and shardings of a tree."""
    return _map_numbers(lambda x: jnp.full_like(x, nothing(x.dtype)), tree)


def in_layout(who: str, new: Any, old: Any) -> Any:
    """Return the new state in the types and shardings of the old one.

    Both must be of one structure.
    """
    if jax.tree.structure(new) != jax.tree.structure(old):
        _checks.fail(
            who,
            "tx must keep the structure of its state",
            f"{jax.tree.structure(new)} after {jax.tree.structure(old)}",
        )

    def like(x: Array, o: Any) -> Array:
        return sharded_like(x.astype(jnp.result_type(o)), o) if _is_number(o) else x

    return _map_numbers(like, new, old)


def sharded_like(x: Array, other: Any) -> Array:
    """Return an array in the sharding of another of its shape, on a mesh of explicit axes.

    There two arrays that a condition chooses from must be sharded alike. On other meshes the
    compiler sees to it.
    """
    own, wanted = jax.typeof(x).sharding, jax.typeof(other).sharding
    if own.spec == wanted.spec or wanted.mesh.empty:
        return x
    return jax.sharding.reshard(x, wanted)


def is_sharded(tree: Tree) -> bool:
    """Whether an array of a tree is sharded over an explicit axis of a mesh."""
    return any(any(jax.typeof(x).sharding.spec) for x in jax.tree.leaves(tree) if _is_number(x))


def in_update_types(who: str, updates: Tree, gradients: Tree, params: Tree | None) -> Tree:
    """Return updates in the types of `update_dtype`."""
    leaves = leaves_of(gradients)
    parts = [None] * len(leaves.values)
    if params is not None:
        parts = aligned(who, "parameters", leaves, params)
    dtypes = [
        None if gradient is None else update_dtype(gradient, part)
        for gradient, part in zip(leaves.values, parts, strict=True)
    ]
    return _map_numbers(
        lambda x, dtype: x.astype(dtype), updates, leaves.structure.unflatten(dtypes)
    )


def scaled(x: Array, factor: Array) -> Array:
    """Return a real or complex array times a real scalar, in the type of the array."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(scaled(x.real, factor), scaled(x.imag, factor))
    return x * factor.astype(x.dtype)


def map_inexact(function: Callable[[Array], Array], tree: Tree) -> Tree:
    """Map over the floating-point and complex arrays of a tree, and leave the rest alone."""
    return jax.tree.map(lambda x: function(as_array(x)) if _is_inexact(x) else x, tree)


def wide(dtype: DTypeLike) -> jnp.dtype:
    """Return the type itself, or float32 where it is narrower."""
    return jnp.dtype(dtype) if jnp.issubdtype(dtype, jnp.complexfloating) else compute_dtype(dtype)


def stay_finite(new: Any, old: Any) -> Array:
    """Return whether all finite numbers of the old state are finite in the new one, a () bool."""
    stay = [
        jnp.isfinite(n) | ~jnp.isfinite(o)
        for n, o in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
        if _is_inexact(n) and _is_inexact(o)
    ]
    return _every(stay)


def _all_finite_by_leaf(gradients: Tree, updates: Tree, new: Any, old: Any) -> Array:
    """Return whether gradients and updates are finite, and what was finite in a state; () bool.

    The gradient, the update and the slots of a parameter are looked at together, in one pass over
    memory. Arrays of one shape are matched by their order: the first gradient, the first update and
    the first array of each slot, and so on. Another match would cost time alone.
    """
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    found = [[(x, None) for x in jax.tree.leaves(tree)] for tree in (gradients, updates)]
    counts = Counter(_place(x) for x, _ in found[0] if _is_inexact(x))
    numbers: Counter[Any] = Counter()
    together: dict[Any, Array] = {}
    for x, before in (*found[0], *found[1], *pairs):
        if not _is_inexact(x) or (before is not None and not _is_inexact(before)):
            continue
        finite = jnp.isfinite(x)
        if before is not None:
            finite |= ~jnp.isfinite(before)
        place = _place(x)
        key = (place, numbers[place] % max(counts[place], 1))
        numbers[place] += 1
        together[key] = together[key] & finite if key in together else finite
    return _every([*together.values()])


def _place(x: Any) -> Any:
    """Return the shape of an array and how it is divided between devices."""
    return jnp.shape(x), jax.typeof(x).sharding


def _update_if(made: Array, updates: Tree) -> Tree:
    """Return the updates, or if the step is not made, updates that change nothing."""
    return _map_numbers(lambda x: jnp.where(made, x, nothing(x.dtype)), updates)


def _settles(node: Any) -> bool:
    return hasattr(node, "settled")


def _map_numbers(function: Callable[..., Array], tree: Tree, *others: Tree) -> Tree:
    """Map over the numbers of a tree as arrays, leaving random keys and float0 as they are."""
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
