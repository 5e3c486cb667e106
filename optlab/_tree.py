"""Pytree helpers: precision, flattening, and the norm of a whole tree.

    global_norm(tree) = √(Σ |x|²)

The sum is accumulated in float32 (float64 where a leaf is float64). Squares overflow it above
1.8e19 and vanish below 1e-19, so where the plain sum is out of range it is formed again from the
elements times a power of two, which is exact.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from optlab._types import Array, DTypeLike, Tree

# For float32 and float64: squares of elements times `down` (`up`) stay in range for any element
# that overflows (underflows) the plain sum, with room for 2⁶⁰ elements; below `least` a plain sum
# may have lost elements to underflow.
_RANGE = {4: (2.0**-96, 2.0**80, 2.0**-66), 8: (2.0**-600, 2.0**600, 2.0**-900)}


def is_none(x: object) -> bool:
    """Whether a node is None: a place of the tree that holds no array."""
    return x is None


def as_array(x: object) -> Array:
    """Return an array, leaving abstract ones (under `jax.eval_shape`) alone."""
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def compute_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """Return the real type to compute in: float64 if any part is double, else float32."""
    double = any(jnp.finfo(dtype).bits == 64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def round_to(x: Array, dtype: DTypeLike) -> Array:
    """Round to the values of a narrower type, keeping x's own type.

    A pair of casts would do, but under `jit` XLA may drop it as excess precision.
    """
    info = jnp.finfo(dtype)
    if info.bits >= jnp.finfo(x.dtype).bits:
        return x
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def scaled_norm(leaves: Sequence[Array]) -> tuple[Array, Array]:
    """Return (‖leaves‖·scale, scale), with a power of two that keeps the norm in range.

    The pair stays finite and accurate where the norm itself would overflow or underflow.
    """
    dtype = compute_dtype(*(leaf.dtype for leaf in leaves))
    down, up, least = _RANGE[dtype.itemsize]

    def sum_of_squares(scale: float) -> Array:
        total = jnp.zeros((), dtype)
        for leaf in leaves:
            parts = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
            for part in parts:
                total += jnp.sum(jnp.square(part.astype(dtype) * scale))
        return total

    plain = sum_of_squares(1.0)

    def rescaled() -> tuple[Array, Array]:
        overflowed = ~jnp.isfinite(plain)
        total = jnp.where(overflowed, sum_of_squares(down), sum_of_squares(up))
        in_range = (plain >= least) & ~overflowed
        scale = jnp.where(in_range, 1.0, jnp.where(overflowed, down, up)).astype(dtype)
        return jnp.sqrt(jnp.where(in_range, plain, total)), scale

    def branched() -> tuple[Array, Array]:
        in_range = (plain >= least) & jnp.isfinite(plain)
        return jax.lax.cond(in_range, lambda: (jnp.sqrt(plain), jnp.ones((), dtype)), rescaled)

    # A branch would make a GPU wait for the host; there the three sums share one read instead.
    return jax.lax.platform_dependent(cuda=rescaled, rocm=rescaled, default=branched)


def global_norm(tree: Tree) -> Array:
    """Return the Euclidean norm of all the elements of a tree, √(Σ |x|²).

    Safe against overflow and underflow of the squares, in every floating-point type: only a norm
    that is itself out of range becomes infinite or zero. NaN and Inf propagate.

    Args:
        tree: a pytree of floating-point or complex arrays of any shapes; None holds no elements.

    Returns:
        The norm, a float32 scalar (float64 if any leaf is double); 0 for an empty tree.

    Example:
        >>> import jax.numpy as jnp
        >>> print(global_norm({"w": jnp.array([3e30, 4e30])}))
        5e+30
    """
    norm, scale = scaled_norm([jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)])
    return norm / scale
