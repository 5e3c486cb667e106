"""An array seen as matrices, (…, input, output), for rules on matrices."""

from collections.abc import Sequence
from itertools import accumulate

import jax.numpy as jnp

from optlab._types import Array
from optlab.rules._roles import Axes, size


def matrices(x: Array, axes: Axes) -> list[Array]:
    """Return the matrices of an array: stacks of shape (batch axes …, input, output).

    A convolution's kernel (3, 3, 8, 16) gives one of (72, 16). Maps that stand side by side in the
    output and have one size are a stack of their own, (batch axes …, maps, input, output); with
    different sizes there is one stack for each.

    Args:
        x: the array.
        axes: which of its axes are input, output and batch.
    """
    batch = [x.shape[axis] for axis in axes.batch]
    rows, columns = size(x.shape, axes.input), size(x.shape, axes.output)
    x = jnp.transpose(x, (*axes.batch, *axes.input, *axes.output))
    x = x.reshape(*batch, rows, columns)
    if len(set(axes.split)) > 1:
        return jnp.split(x, list(accumulate(axes.split))[:-1], axis=-1)
    if len(axes.split) > 1:
        x = x.reshape(*batch, rows, len(axes.split), axes.split[0])
        x = jnp.moveaxis(x, -2, -3)
    return [x]


def from_matrices(stacks: Sequence[Array], shape: tuple[int, ...], axes: Axes) -> Array:
    """Return the array of a shape whose `matrices` are these."""
    batch = [shape[axis] for axis in axes.batch]
    if len(set(axes.split)) > 1:
        x = jnp.concatenate(stacks, axis=-1)
    else:
        (x,) = stacks
        if len(axes.split) > 1:
            x = jnp.moveaxis(x, -3, -2)
    order = (*axes.batch, *axes.input, *axes.output)
    x = x.reshape(*batch, *(shape[axis] for axis in (*axes.input, *axes.output)))
    return jnp.transpose(x, [order.index(axis) for axis in range(len(shape))])
