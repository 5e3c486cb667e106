"""Pytree helpers: precision, flattening, and the norm of a whole tree.

    global_norm(tree) = √(Σ |x|²)

Squares of float32 numbers overflow above 1.8e19 and vanish below 1e-19. On a CPU they are added in
float64, which holds them all. Elsewhere, and for float64 leaves, the sum is formed at three scales,
powers of two, and the one that is in range is taken.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, DTypeLike, Tree

# For float32 and float64: squares of elements times `down` (`up`) stay in range for any element
# that overflows (underflows) the plain sum, with room for 2⁶⁰ elements; below `least` a plain sum
# may have lost elements to underflow.
_RANGE = {4: (2.0**-96, 2.0**80, 2.0**-66), 8: (2.0**-600, 2.0**600, 2.0**-900)}

# The size of a small array: 64 KB in float32, which a core keeps beside it.
_SMALL = 2**14


def is_none(x: object) -> bool:
    """Whether a node is None: a place of the tree that holds no array."""
    return x is None


def is_traced(x: object) -> bool:
    """Whether a value is known only inside of a transformation of JAX, such as `jit`."""
    return isinstance(x, jax.core.Tracer)


def as_array(x: object) -> Array:
    """Return an array; leave traced and abstract ones (`jax.ShapeDtypeStruct`) as they are."""
    return x if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(x)


class Leaves(NamedTuple):
    """A tree taken apart, with a None in it as a leaf.

    Attributes:
        tree: the tree itself.
        values: its leaves.
        paths: the path of each leaf.
        structure: what puts leaves together to such a tree.
    """

    tree: Tree
    values: list[Any]
    paths: list[Any]
    structure: jax.tree_util.PyTreeDef


def leaves_of(tree: Tree) -> Leaves:
    """Take a tree apart."""
    with_paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)
    return Leaves(
        tree, [leaf for _, leaf in with_paths], [path for path, _ in with_paths], structure
    )


def aligned(
    who: str,
    what: str,
    gradients: Leaves,
    tree: Tree,
    is_absent: Callable[[Any], bool] = lambda part: False,
) -> list[Any]:
    """Return the part of another tree that belongs to each leaf of the gradients, in their order.

    It is a leaf of the same shape, but any subtree where the gradient is None.

    Args:
        who: the public name that errors begin with.
        what: the name of the other tree in errors, "parameters" or "state's mu", say.
        gradients: the leaves of the gradients.
        tree: the other tree.
        is_absent: whether a part stands for no array, and needs no shape.

    Raises:
        ValueError: the trees differ in structure, or a gradient has another shape.
    """
    remedy = "call init with the parameters that the gradients are taken of"
    try:
        parts = gradients.structure.flatten_up_to(tree)
    except ValueError:
        _checks.fail_structure(who, what, gradients.tree, tree, remedy)
    for path, gradient, part in zip(gradients.paths, gradients.values, parts, strict=True):
        if gradient is None or is_absent(part):
            continue
        if not jax.tree_util.all_leaves([part]):
            _checks.fail_structure(who, what, gradients.tree, tree, remedy)
        _checks.check_same_shape(who, path, gradient, part, what)
    return parts


@lru_cache(maxsize=256)  # an update asks for each of its leaves
def compute_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """Return the real type to compute in: float64 if any part is double, else float32."""
    double = any(jnp.finfo(dtype).bits == 64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def update_dtype(gradient: Any, param: Any) -> jnp.dtype:
    """Return the type in which an update is returned.

    It is the gradient's, or the parameter's where that is wider, so that the update of a float32
    parameter is not rounded to the type of a bfloat16 gradient.
    """
    if (
        isinstance(gradient, jax.Array)
        and gradient.dtype == getattr(param, "dtype", None)
        and gradient.dtype.itemsize <= 4  # what a wider type becomes depends on x64
    ):
        return gradient.dtype  # the usual case, which an update asks for at each leaf
    own = _dtype(gradient)
    other = _dtype(param) if hasattr(param, "dtype") else own
    kinds = (jnp.floating, jnp.complexfloating)
    alike = any(all(jnp.issubdtype(dtype, kind) for dtype in (own, other)) for kind in kinds)
    return other if alike and jnp.finfo(other).bits > jnp.finfo(own).bits else own


def _dtype(x: Any) -> jnp.dtype:
    """Return the type that a NumPy or JAX array or a Python float has as an array of JAX."""
    dtype = getattr(x, "dtype", np.dtype(float))
    return jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)


@jax.custom_jvp
def root(x: Array) -> Array:
    """Return √x for x ≥ 0, with the derivative 0 at x = 0.

    The derivative of `jnp.sqrt` is infinite at 0, which makes NaN of the derivative of an update
    whose gradient is 0. The square root of a sum of squares has the derivative 0 there.
    """
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    y = root(x)
    positive = x > 0
    slope = jnp.where(positive, 0.5 / jnp.where(positive, y, 1), 0)
    return y, slope * tangent


@jax.jit  # so that eager calls, too, find it compiled
def scaled_norm(leaves: Sequence[Array], after: Array | None = None) -> tuple[Array, Array]:
    """Return (‖leaves‖·scale, scale), with a power of two that keeps the norm in range.

    The pair stays finite and accurate where the norm itself would overflow or underflow. The
    derivative of the norm at 0 is 0.

    Args:
        leaves: the arrays.
        after: a number of the running program that is never −1, for arrays that are computed for
            this norm alone. XLA on a CPU then computes arrays of float32 or narrower numbers one
            after another, each in the memory of the one before, and begins when the number is
            known. It changes no value.
    """
    dtype = compute_dtype(*(leaf.dtype for leaf in leaves))
    parts = [
        part
        for leaf in leaves
        for part in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))
    ]
    if not parts:
        return jnp.zeros((), dtype), jnp.ones((), dtype)
    norm, scale = _norm(dtype, after, parts)
    return norm, jax.lax.stop_gradient(scale)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _norm(dtype: DTypeLike, after: Array | None, parts: Sequence[Array]) -> tuple[Array, Array]:
    at_once = partial(_norm_at_once, dtype)
    if dtype.itemsize == 8:
        return at_once(after, parts)
    return jax.lax.platform_dependent(after, parts, cpu=_norm_in_double, default=at_once)


@_norm.defjvp
def _norm_jvp(
    dtype: DTypeLike, primals: tuple[Any, Sequence[Array]], tangents: tuple[Any, Sequence[Array]]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    # d(‖x‖·s) = s Σ x dx/‖x‖. JAX never sees the float64 sum of float32 numbers here.
    norm, scale = _norm(dtype, *primals)
    positive = norm > 0
    inverse = jnp.where(positive, 1 / jnp.where(positive, norm, 1), 0)
    slopes = (
        jnp.sum(part.astype(dtype) * scale * inverse * tangent.astype(dtype))
        for part, tangent in zip(primals[1], tangents[1], strict=True)
    )
    return (norm, scale), (scale * sum(slopes), jnp.zeros_like(scale))


def _norm_in_double(after: Array | None, parts: Sequence[Array]) -> tuple[Array, Array]:
    """Form the sum in float64, whatever JAX's setting, and return the norm in float32."""
    down, up, _ = _RANGE[4]
    # If XLA could fuse the sum with what computes the elements, it would fill memory with copies of
    # the scalars in that.
    parts = _packed([jax.lax.optimization_barrier(part) for part in parts])
    with jax.enable_x64(True):
        total = jnp.zeros(()) if after is None else jnp.where(after == -1, 1.0, 0.0)
        for part in parts:
            if after is not None:
                # The choice is a barrier that makes XLA wait for the sum of the part before.
                part = jnp.where(total == -1, jnp.zeros_like(part), part)
            total += _sum_of_squares(part.astype(jnp.float64))
        norm = jnp.sqrt(total)
        scale = jnp.where(norm < 2.0**64, jnp.where(norm < 2.0**-33, up, 1.0), down)
        return (norm * scale).astype(jnp.float32), scale.astype(jnp.float32)


def _packed(parts: Sequence[Array]) -> list[Array]:
    """Join the small arrays into one, since on a CPU every sum costs a kernel to compile and call.

    Large ones stay where they are, as they would be copied, and so do those of a size that only an
    exported function's caller knows. Where there are several devices none joins: an array may be
    spread over them without its type showing it, and joining would gather it on each.
    """
    if jax.device_count("cpu") > 1:
        return list(parts)
    alone, small = [], []
    for part in parts:
        if isinstance(part.size, int) and part.size <= _SMALL:
            small.append(jax.lax.reshape(part, (part.size,)).astype(jnp.float32))
        else:
            alone.append(part)
    return [jnp.concatenate(small), *alone] if small else alone


def _norm_at_once(
    dtype: DTypeLike, after: Array | None, parts: Sequence[Array]
) -> tuple[Array, Array]:
    """Form the sum at three scales, and choose; in no order, whatever `after` is."""
    down, up, least = (jnp.asarray(x, dtype) for x in _RANGE[dtype.itemsize])
    # XLA may turn (x·c)·(x·c) into (x·x)·(c·c) for a constant c, which is what to avoid.
    factors = jax.lax.optimization_barrier((up, down))
    sums = jnp.concatenate([_three_sums(part, *factors) for part in parts])
    plain, low, high = sums.reshape(-1, 3).sum(axis=0)
    finite = jnp.isfinite(plain)
    choices = [finite & (plain >= least), finite, ~finite]
    scales = [jnp.ones_like(up), up, down]
    return jnp.sqrt(jnp.select(choices, [plain, low, high])), jnp.select(choices, scales)


@jax.jit  # so that it is traced once for each shape
def _three_sums(x: Array, up: Array, down: Array) -> Array:
    """Return Σ x², Σ (x·up)² and Σ (x·down)² as one array."""
    x = x.astype(up.dtype)
    return jnp.stack([_sum_of_squares(y) for y in (x, x * up, x * down)])


def _sum_of_squares(x: Array) -> Array:
    return jnp.sum(jnp.square(x))


def global_norm(tree: Tree) -> Array:
    """Return the Euclidean norm of all the elements of a tree, √(Σ |x|²).

    Safe against overflow and underflow of the squares, in every floating-point type: only a norm
    that is itself out of range becomes infinite or zero, and elements below the smallest normal
    number count as zero where the device takes them for it. NaN and Inf propagate.

    Args:
        tree: a pytree of arrays of any shapes; integers count as floats, None holds no elements.

    Returns:
        The norm, a float32 scalar (float64 if any leaf is double); 0 for an empty tree.

    Example:
        >>> import jax.numpy as jnp
        >>> print(global_norm({"w": jnp.array([3e30, 4e30])}))
        5e+30
    """
    leaves = [as_array(leaf) for leaf in jax.tree.leaves(tree)]
    norm, scale = scaled_norm(
        [x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32) for x in leaves]
    )
    return norm / scale
