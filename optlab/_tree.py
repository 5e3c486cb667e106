"""Pytree helpers: precision, flattening, and the norm of a whole tree.

    global_norm(tree) = √(Σ |x|²)

The sum is accumulated in float32 (float64 where a leaf is float64). Squares overflow it above
1.8e19 and vanish below 1e-19, so where the plain sum is out of range it is formed again from the
elements times a power of two, which is exact.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

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


def as_array(x: object) -> Array:
    """Return an array; arrays, traced ones and descriptions of arrays stay as they are."""
    return x if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(x)


def compute_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """Return the real type to compute in: float64 if any part is double, else float32."""
    double = any(jnp.finfo(dtype).bits == 64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if double else jnp.float32)


@jax.jit  # so that eager calls, too, find it compiled
def scaled_norm(leaves: Sequence[Array]) -> tuple[Array, Array]:
    """Return (‖leaves‖·scale, scale), with a power of two that keeps the norm in range.

    The pair stays finite and accurate where the norm itself would overflow or underflow.
    """
    dtype = compute_dtype(*(leaf.dtype for leaf in leaves))
    parts = [
        part
        for leaf in leaves
        for part in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))
    ]
    if not parts:
        return jnp.zeros((), dtype), jnp.ones((), dtype)
    # A branch would make a GPU wait for the host; there the three sums share one read instead.
    return jax.lax.platform_dependent(
        *parts, cpu=partial(_norm_by_branch, dtype), default=partial(_norm_at_once, dtype)
    )


def _norm_by_branch(dtype: DTypeLike, *parts: Array) -> tuple[Array, Array]:
    """Form the sum anew where the plain one is out of range."""
    # The casts of narrow types are the norm's own behind a barrier. XLA would keep shared ones.
    parts = _packed(jax.lax.optimization_barrier(parts), dtype)
    down, up, least = _scales(dtype)
    sums = [_sum_of_squares(part.astype(dtype)) for part in parts]
    plain = sum(sums)

    def anew() -> tuple[Array, Array]:
        # All scales are the same, but if XLA knew, it would fill memory with them to share them.
        scales = [jnp.where(jnp.isfinite(plain + own), up, down) for own in sums]
        total = sum(
            _sum_of_squares(part.astype(dtype) * scale)
            for part, scale in zip(parts, scales, strict=True)
        )
        return total, jnp.where(jnp.isfinite(plain), up, down)

    in_range = jnp.isfinite(plain) & (plain >= least)
    total, scale = jax.lax.cond(in_range, lambda: (plain, jnp.ones_like(plain)), anew)
    return _root(total), scale


def _packed(parts: Sequence[Array], dtype: DTypeLike) -> list[Array]:
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
            small.append(jax.lax.reshape(part, (part.size,)).astype(dtype))
        else:
            alone.append(part)
    return [jnp.concatenate(small), *alone] if small else alone


def _norm_at_once(dtype: DTypeLike, *parts: Array) -> tuple[Array, Array]:
    """Form the sum at three scales, and choose."""
    down, up, least = _scales(dtype)
    sums = jnp.concatenate([_three_sums(part, dtype) for part in parts])
    plain, low, high = sums.reshape(-1, 3).sum(axis=0)
    finite = jnp.isfinite(plain)
    choices = [finite & (plain >= least), finite, ~finite]
    scales = [jnp.ones_like(up), up, down]
    return _root(jnp.select(choices, [plain, low, high])), jnp.select(choices, scales)


@partial(jax.jit, static_argnums=1)  # so that it is traced once for each shape
def _three_sums(x: Array, dtype: DTypeLike) -> Array:
    """Return Σ x², Σ (x·up)² and Σ (x·down)² as one array."""
    # XLA may turn (x·c)·(x·c) into (x·x)·(c·c) for a constant c, which is what to avoid.
    down, up, _ = jax.lax.optimization_barrier(_scales(dtype))
    x = x.astype(dtype)
    return jnp.stack([_sum_of_squares(y) for y in (x, x * up, x * down)])


def _root(total: Array) -> Array:
    """Return √total, with a finite derivative at 0, where that of a norm is taken to be 0."""
    positive = total > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1)), total)


def _sum_of_squares(x: Array) -> Array:
    return jnp.sum(jnp.square(x))


def _scales(dtype: DTypeLike) -> tuple[Array, Array, Array]:
    return tuple(jnp.asarray(x, dtype) for x in _RANGE[dtype.itemsize])


def global_norm(tree: Tree) -> Array:
    """Return the Euclidean norm of all the elements of a tree, √(Σ |x|²).

    Safe against overflow and underflow of the squares, in every floating-point type: only a norm
    that is itself out of range becomes infinite or zero, and elements below the smallest normal
    number count as zero where the device takes them for it. NaN and Inf propagate.

    Args:
        tree: a pytree of floating-point or complex arrays of any shapes; None holds no elements.

    Returns:
        The norm, a float32 scalar (float64 if any leaf is double); 0 for an empty tree.

    Raises:
        ValueError: a leaf is an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> print(global_norm({"w": jnp.array([3e30, 4e30])}))
        5e+30
    """
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaves.append(as_array(leaf))
        _checks.check_inexact("global_norm", "leaves", path, leaves[-1])
    norm, scale = scaled_norm(leaves)
    return norm / scale
