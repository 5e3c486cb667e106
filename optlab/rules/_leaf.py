"""What is known of a leaf besides its numbers: its path, and which of its axes are a matrix."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from optlab import _checks
from optlab._types import Tree
from optlab.rules._roles import Axes, Meaning, meaning, size


@dataclass(frozen=True)
class Leaf:
    """The static facts of one leaf.

    Attributes:
        path: the names on the way to it, such as "layers/0/kernel".
        shape: of the parameter.
        dtype: of the parameter.
        axes: which axes are input, output and batch; those that were asked for, or by its names.
        names: what its names say of it.
        asked: whether its axes were asked for.
        masks: the names of those of `Rule.masks` that let the leaf through.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    axes: Axes
    names: Meaning
    asked: bool = False
    masks: frozenset[str] = frozenset()

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear map, hidden or not."""
        return bool(self.axes.input and self.axes.output)

    @property
    def is_hidden_matrix(self) -> bool:
        """Whether it is a linear map, and no embedding, head or input unless asked for."""
        return self.is_linear and (self.asked or self.names.role == "matrix")


AxesOf = Callable[[str, tuple[int, ...]], Axes | None]
"""(path, shape) → the axes of a leaf, or None for `default_axes`."""

AxesChoice = AxesOf | Mapping[str, Axes]
"""The axes of some leaves, by a function or by patterns of paths; those of the others by name."""


def leaf_facts(
    who: str,
    path: Any,
    array: Any,
    axes: AxesOf | None,
    masks: frozenset[str] = frozenset(),
) -> Leaf:
    """Return the static facts of a leaf; require that its axes are each named once."""
    name, shape = path_name(path), tuple(array.shape)
    by_name = meaning(name, shape)
    own = axes(name, shape) if axes is not None else None
    if own is None:
        return Leaf(name, shape, array.dtype, by_name.axes, by_name, masks=masks)
    own = checked_axes(who, name, shape, own)
    return Leaf(name, shape, array.dtype, own, by_name, asked=True, masks=masks)


def checked_axes(who: str, name: str, shape: tuple[int, ...], own: Any) -> Axes:
    """Require axes that exist and are named once; return them counted from the front."""
    if not isinstance(own, Axes) or not all(isinstance(part, tuple) for part in own):
        remedy = "write Axes(input=(0,), output=(1,)), say"
        required = f"axes of {name} must be an optlab.rules.Axes of tuples, or None"
        _checks.fail(who, required, repr(own), remedy)
    if own == Axes():
        return own
    ndim, split = len(shape), own.split

    def from_front(part: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis + ndim if axis < 0 else axis for axis in part)

    named = Axes(from_front(own.input), from_front(own.output), from_front(own.batch), split)
    if sorted(named.input + named.output + named.batch) != list(range(ndim)):
        _checks.fail(
            who,
            f"axes of {name} must name each axis of the shape {shape} once",
            repr(own),
            "name every axis once, as input, output or batch; Axes() for no linear map",
        )
    if bool(named.input) != bool(named.output):
        _checks.fail(
            who,
            f"axes of {name} must have both an input and an output",
            repr(own),
            "name both; Axes() for no linear map",
        )
    width = size(shape, named.output)
    if split and (min(split) < 1 or sum(split) != width):
        _checks.fail(
            who,
            f"split of {name} must hold sizes >= 1 that add up to its output, {width}",
            repr(split),
        )
    return named


def linear_maps(params: Tree) -> Tree:
    """Return a mask of kernels and embeddings, which leaves out biases and whatever is of a norm.

    An array with fewer than two axes is no linear map. Of the others the names decide, as `meaning`
    says them, so that the biases of stacked layers are left out, too.

    Example:
        >>> import jax.numpy as jnp
        >>> linear_maps({"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)})
        {'bias': False, 'kernel': True}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, array: bool(meaning(path_name(path), np.shape(array)).axes.input), params
    )


def path_name(path: Any) -> str:
    """Return a path as names joined by "/"; Flax NNX keeps an array as `value` of a variable."""
    return "/".join(path_names(path)) or "the root"


def path_names(path: Any) -> tuple[str, ...]:
    """Return the names on a path, the same for a dictionary, a dataclass and an `nnx.State`.

    Slices of a stacked array stand in a dictionary with keys such as "[0:4]", which ends the name
    of the array.
    """
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    part = names[-1] if path and isinstance(path[-1], jax.tree_util.DictKey) else ""
    if _PART.fullmatch(part):
        *above, own = path_names(path[:-1]) or ("",)
        return (*above, own + part)
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and names[-1] == "value":
        return names[:-1]
    return names


def longest_in(
    names: tuple[str, ...], known: Collection[tuple[str, ...]]
) -> tuple[str, ...] | None:
    """Return the longest known path that stands somewhere on a path; the last of several."""
    for length in range(len(names), -1, -1):
        for start in range(len(names) - length, -1, -1):
            if names[start : start + length] in known:
                return names[start : start + length]
    return None


_PART = re.compile(r"\[\d+:\d+\]")


def is_cut(node: Any) -> bool:
    """Whether a node holds slices of one array, by keys such as "[0:4]"."""
    return (
        isinstance(node, Mapping)
        and bool(node)
        and all(isinstance(key, str) and _PART.fullmatch(key) for key in node)
    )


def slices_of(node: Mapping[str, Any]) -> list[tuple[slice, Any]]:
    """Return the slices that a node holds, with their places, in their order."""
    parts = []
    for key, part in node.items():
        start, stop = map(int, key[1:-1].split(":"))
        parts.append((slice(start, stop), part))
    return sorted(parts, key=lambda item: item[0].start)


def without_part(path: str) -> str:
    """Return the path of the array of which this is the path of a slice, or the path itself."""
    return re.sub(_PART.pattern + "$", "", path)
