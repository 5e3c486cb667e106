"""What is known of a leaf besides its numbers: its path, and which of its axes are a matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from optlab import _checks
from optlab._types import Tree


class Axes(NamedTuple):
    """Which axes of an array are the input, the output and the batch of a linear map.

    Attributes:
        input: the axes that are summed over when the map is applied.
        output: the axes that the result has.
        batch: the axes that count independent maps, as of stacked layers or of experts.
    """

    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()


@dataclass(frozen=True)
class Leaf:
    """The static facts of one leaf.

    Attributes:
        path: the names on the way to it, such as "layers/0/kernel".
        shape: of the parameter.
        dtype: of the parameter.
        axes: which axes are input, output and batch.
        masks: the names of those of `Rule.masks` that let the leaf through.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    axes: Axes
    masks: frozenset[str] = frozenset()


AxesOf = Callable[[str, tuple[int, ...]], Axes | None]
"""(path, shape) → the axes of a leaf, or None for `default_axes`."""


def default_axes(path: str, shape: tuple[int, ...]) -> Axes:
    """Return the axes by Flax's convention: the last is the output, all others are the input.

    That holds for a dense kernel (in, out) and for a convolution's (height, width, in, out). An
    array with fewer than two axes has none. No axis is taken for a batch: name the batch axes of
    stacked layers yourself.
    """
    if len(shape) < 2:
        return Axes()
    return Axes(input=tuple(range(len(shape) - 1)), output=(len(shape) - 1,))


def leaf_facts(
    who: str,
    path: Any,
    array: Any,
    axes: AxesOf | None,
    masks: frozenset[str] = frozenset(),
) -> Leaf:
    """Return the static facts of a leaf; require that its axes are each named once."""
    name, shape = path_name(path), tuple(array.shape)
    own = axes(name, shape) if axes is not None else None
    if own is None:
        own = default_axes(name, shape)
    else:
        if not isinstance(own, Axes) or not all(isinstance(part, tuple) for part in own):
            remedy = "write Axes(input=(0,), output=(1,)), say"
            required = f"axes of {name} must be an optlab.rules.Axes of tuples, or None"
            _checks.fail(who, required, repr(own), remedy)
        own = Axes(*(tuple(_positive(axis, len(shape)) for axis in part) for part in own))
        if sorted(sum(own, ())) != list(range(len(shape))):
            _checks.fail(
                who,
                f"axes of {name} must name each axis of the shape {shape} once",
                repr(own),
                "add the missing axes to input, output or batch",
            )
    return Leaf(name, shape, array.dtype, own, masks)


def _positive(axis: int, ndim: int) -> int:
    return axis + ndim if axis < 0 else axis


def matrices(params: Tree) -> Tree:
    """Return a mask of the arrays with two axes or more.

    These are kernels and embeddings, but neither biases nor the scales of norms. Where layers are
    stacked, their biases have two axes, too: name what you mean by its path then.
    """
    return jax.tree.map(lambda array: np.ndim(array) >= 2, params)


def path_name(path: Any) -> str:
    """Return a path as names joined by "/"; Flax NNX keeps an array as `value` of a variable."""
    return "/".join(path_names(path)) or "the root"


def path_names(path: Any) -> tuple[str, ...]:
    """Return the names on a path, the same for a dictionary, a dataclass and an `nnx.State`."""
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and names[-1] == "value":
        return names[:-1]
    return names


def describe_axes(params: Tree, axes: AxesOf | None = None) -> str:
    """Return a table of the axes that a rule on matrices will use, one line for each leaf.

    Args:
        params: the parameters, or their shapes.
        axes: as `lift` takes it; None for `default_axes`.

    Example:
        >>> import jax.numpy as jnp
        >>> print(describe_axes({"dense": jnp.zeros((3, 4)), "stack": jnp.zeros((2, 3, 4))},
        ...     lambda path, shape: Axes((1,), (2,), (0,)) if path == "stack" else None))
        path   shape      input  output  batch
        dense  (3, 4)     0      1       -
        stack  (2, 3, 4)  1      2       0
    """
    rows: list[tuple[str, ...]] = [("path", "shape", "input", "output", "batch")]
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        leaf = leaf_facts("describe_axes", path, array, axes)
        cells = (" ".join(map(str, part)) or "-" for part in leaf.axes)
        rows.append((leaf.path, str(leaf.shape), *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
