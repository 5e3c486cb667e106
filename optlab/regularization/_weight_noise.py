"""Weight noise: the loss and its gradient at weights with fresh noise, the step from those without.

    g = ∇L(θ + σ·ε),    ε normal

σ is `deviation`. On average over the noise this is the gradient of L + ½σ²·tr ∇²L + …, which is
smaller where the loss is flat.

Reference: Murray, Edwards, IEEE Trans. Neural Networks 5 (1994); Graves, NeurIPS (2011).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optlab import _checks
from optlab._tree import as_array, is_none
from optlab._types import Array, ArrayLike, Tree
from optlab.rules._leaf import path_name


def weight_noise(
    loss: Callable[..., Any], deviation: ArrayLike, *, where: Callable[[str], bool] | None = None
) -> Callable[..., Any]:
    """Return a loss that adds normal noise to the parameters, for its value and its gradient.

    It changes the loss and not the optimizer, because the gradient itself must be taken at the
    weights with noise. Use the loss without it for validation.

    Of a model of Flax NNX pass `nnx.state(model, nnx.Param)` as parameters, and not the model:
    noise would reach the statistics of its norms, too, and what it counts would be lost.

    Args:
        loss: (parameters, *others) → the loss, or a pair of it and other things.
        deviation: σ ≥ 0, in the unit of the parameters.
        where: (path, such as "dense/kernel") → whether the parameter receives noise; None for all.
            Leaves that are no floating-point or complex numbers never do.

    Returns:
        (parameters, *others, noise_key) → what `loss` returns. `noise_key` is a random key, a
        keyword argument; take a new one for each update.

    Raises:
        ValueError: `loss` or `where` is no function, σ is negative or not finite; in a call, there
            is no key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> noisy = weight_noise(lambda w, x: jnp.sum(w * x), 0.1)
        >>> value, gradient = jax.value_and_grad(noisy)(jnp.ones(2), jnp.array([3.0, 4.0]),
        ...                                             noise_key=jax.random.key(0))
        >>> print(gradient)
        [3. 4.]
    """
    who = "weight_noise"
    for name, function in (("loss", loss), ("where", where)):
        if not callable(function) and (name == "loss" or function is not None):
            _checks.fail(who, f"{name} must be a function", repr(function))
    deviation = _checks.check_number(who, "deviation", deviation, _checks.NONNEGATIVE)

    def noisy(params: Tree, *args: Any, noise_key: Any = None, **kwargs: Any) -> Any:
        if noise_key is None:
            got = "noise_key=None"
            _checks.fail(who, "the loss must be given a random key", got, "pass noise_key=key")
        leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_none)
        noised = []
        for index, (path, leaf) in enumerate(leaves):
            if leaf is not None and (where is None or where(path_name(path))):
                leaf = _with_noise(as_array(leaf), deviation, jax.random.fold_in(noise_key, index))
            noised.append(leaf)
        return loss(structure.unflatten(noised), *args, **kwargs)

    return noisy


def _with_noise(param: Array, deviation: ArrayLike, key: Array) -> Array:
    if not jnp.issubdtype(param.dtype, jnp.inexact):
        return param
    draw = jax.random.normal(key, param.shape, param.dtype)
    return param + (deviation * draw).astype(param.dtype)
