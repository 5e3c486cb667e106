"""The gradient's size and noise, from gradients of a small and of a large batch.

    E‖g_B‖² = ‖G‖² + S/B

G is the gradient of the whole loss, S the trace of the covariance of one example's gradient. Two
batch sizes b < B give both, without bias:

    ‖G‖²̂ = (B·‖g_B‖² − b·‖g_b‖²) / (B − b)        Ŝ = (‖g_b‖² − ‖g_B‖²) / (1/b − 1/B)

The noise scale is S/‖G‖², in examples: a batch of that size has as much noise as gradient. A single
estimate of ‖G‖² can be negative, and a mean of quotients is far off; so average both numbers over
many steps, and divide then.

Reference: McCandlish et al., arXiv:1812.06162 (2018), appendix A.1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._tree import as_array, compute_dtype, is_traced
from optlab._types import Array, ArrayLike, Tree


class NoiseEstimate(NamedTuple):
    """What one step says of the gradient.

    Attributes:
        squared_norm: () float; ‖G‖²̂, of the gradient without noise; may be negative.
        trace: () float; Ŝ, the trace of the covariance of one example's gradient; may be negative
            unless the large batch consists of the small ones.
    """

    squared_norm: Array
    trace: Array


class NoiseScale(NamedTuple):
    """The result of `measured_noise`; of a vmapped state, one value a lane.

    Attributes:
        noise_scale: () float; the noise scale S/‖G‖² in examples; NaN while the average of ‖G‖²̂ or
            that of Ŝ is not positive, as before the first measurement.
        squared_norm: () float; the average of ‖G‖²̂, 0 before the first measurement.
        trace: () float; the average of Ŝ, 0 before the first measurement.
        measured: () int32; the number of measurements so far, at most 2³¹ − 1.
    """

    noise_scale: Array
    squared_norm: Array
    trace: Array
    measured: Array


def estimate_noise(
    small_square: ArrayLike, large_square: ArrayLike, small_batch: ArrayLike, large_batch: ArrayLike
) -> NoiseEstimate:
    """Estimate ‖G‖² and S from the squared norms of gradients of two batch sizes.

    The small batches may be the parts that the large one consists of, or others at the same
    parameters. Gradients at other parameters, such as those of successive updates, will not do.

    Args:
        small_square: ‖g_b‖², the mean over all small batches for the least noise.
        large_square: ‖g_B‖².
        small_batch: b > 0, in examples; of batches of several sizes the harmonic mean.
        large_batch: B > b, in examples.

    Returns:
        The unbiased estimates of one step. Average each over many steps before you divide.

    Raises:
        ValueError: the batch sizes are not positive, or the large one is not the larger.

    Example:
        Two batches of one example, with the gradients (3, 1) and (1, −1):

        >>> estimate = estimate_noise((10 + 2) / 2, 4, 1, 2)
        >>> print(estimate.squared_norm, estimate.trace)
        2.0 4.0
    """
    who = "estimate_noise"
    for name, batch in (("small_batch", small_batch), ("large_batch", large_batch)):
        _checks.check_number(who, name, batch, _checks.POSITIVE)
    are_known = not is_traced(small_batch) and not is_traced(large_batch)
    if are_known and np.any(np.asarray(small_batch) >= np.asarray(large_batch)):
        got = f"small_batch={small_batch}, large_batch={large_batch}"
        _checks.fail(who, "small_batch must be below large_batch", got)
    small, large, b, big = (
        jnp.asarray(x, float) for x in (small_square, large_square, small_batch, large_batch)
    )
    return of_squares(small, large, 1 / b, big)


def of_squares(small: Array, large: Array, inverse: Array, big: Array) -> NoiseEstimate:
    """Return the estimates from 1/b and B, with ‖G‖²̂ as ‖g_B‖² − Ŝ/B."""
    trace = (small - large) / (inverse - 1 / big)
    return NoiseEstimate(large - trace / big, trace)


def replica_noise(
    gradients: Tree, axis_name: str | Sequence[str], batch: ArrayLike
) -> tuple[Tree, NoiseEstimate]:
    """Average gradients over the replicas of data-parallel training, and estimate their noise.

    Call it within `jax.shard_map`, in place of `jax.lax.pmean`, and give the estimate to
    `noise_scale` as `update(gradients, state, params, noise=estimate)`. It needs the gradient of
    each replica as it is before the average. Under `jax.jit` with sharded arrays alone there is
    none, as the compiler forms the mean by itself. Within `jax.shard_map` JAX sums gradients of
    parameters that all replicas share, so take them of parameters made varying:

        params = jax.lax.pcast(params, "data", to="varying")

    The axis must be one of data: replicas that hold parts of the model say nothing of the noise.

    Args:
        gradients: of this replica, each the gradient of a mean over its examples.
        axis_name: the mesh axis, or axes, over which the batch is sharded.
        batch: examples on this replica, > 0; may differ between replicas, which are then weighted.

    Returns:
        The gradients of the whole batch, and the estimate; both are the same on all replicas.

    Raises:
        ValueError: `batch` is not positive, the call does not run over the axis, a gradient is
            already the same along one of the axes, or there is only one replica.

    Example:
        Two replicas of one example each, here as two lanes of `vmap`:

        >>> import jax, jax.numpy as jnp
        >>> gradients = jnp.array([[3.0, 1.0], [1.0, -1.0]])
        >>> replicas = jax.vmap(lambda g: replica_noise(g, "data", 1), axis_name="data")
        >>> mean, estimate = replicas(gradients)
        >>> print(mean[0], estimate.squared_norm[0], estimate.trace[0])
        [2. 0.] 2.0 4.0
    """
    who = "replica_noise"
    _checks.check_number(who, "batch", batch, _checks.POSITIVE)
    try:
        replicas = jax.lax.axis_size(axis_name)
    except NameError:
        required = "axis_name must be an axis that the call runs over"
        remedy = "call it within jax.shard_map over a mesh that has this axis"
        _checks.fail(who, required, f"axis_name={axis_name!r}", remedy)
    if replicas < 2:
        _checks.fail(who, f"the axis {axis_name!r} must have at least two replicas", f"{replicas}")
    _check_local(who, gradients, axis_name)
    number = jnp.asarray(batch, float)
    big = jax.lax.psum(number, axis_name)

    def mean(g: Array) -> Array:
        share = (number / big).astype(compute_dtype(g.dtype))
        return jax.lax.psum((share * g).astype(g.dtype), axis_name)

    averaged = jax.tree.map(lambda g: mean(as_array(g)), gradients)
    small = jax.lax.pmean(squared_norm(gradients), axis_name)
    inverse = jax.lax.pmean(1 / number, axis_name)
    return averaged, of_squares(small, squared_norm(averaged), inverse, big)


def _check_local(who: str, gradients: Tree, axis_name: Any) -> None:
    """Require gradients that differ between replicas, where JAX keeps account of that."""
    names = {axis_name} if isinstance(axis_name, str) else set(axis_name)
    if not _varying(jax.lax.axis_index(axis_name)) >= names:
        return  # within `vmap`, or `shard_map` without its check, JAX does not say
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        if shared := names - _varying(as_array(g)):
            _checks.fail(
                who,
                "gradients must be those of each replica",
                f"one that is the same along {' and '.join(sorted(shared))} at "
                f"{_checks.path_text(path)}",
                f"take them of jax.lax.pcast(params, {axis_name!r}, to='varying')",
            )


def _varying(x: Array) -> frozenset[Any]:
    """Return the mesh axes along which an array differs, as far as JAX keeps account of them."""
    aval = jax.typeof(x)
    kinds = getattr(aval, "manual_axis_type", None)  # `vma` in other versions of JAX
    return frozenset(getattr(aval, "vma", ()) if kinds is None else kinds.varying)


def squared_norm(tree: Tree) -> Array:
    """Return the sum of squares of a tree, in float32, or float64 where x64 is enabled."""
    total = jnp.zeros((), float)
    for x in map(as_array, jax.tree.leaves(tree)):
        parts = (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)
        for part in parts:
            total += jnp.sum(jnp.square(part.astype(compute_dtype(part.dtype)))).astype(float)
    return total
