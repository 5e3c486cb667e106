"""Where each array of a state lies on a mesh: which of its axes which axes of the mesh divide."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from optlab import _checks
from optlab._types import Tree
from optlab.rules._leaf import longest_in, path_names, without_part
from optlab.rules._state import is_rule_state

Entries = tuple[Any, ...]
"""For each axis of an array the axis of the mesh that divides it, several of them, or None."""


class Param(NamedTuple):
    """A parameter: its shape, and how the mesh divides it."""

    shape: tuple[int, ...]
    entries: Entries


class Place(NamedTuple):
    """The place of an array of the state.

    Attributes:
        entries: how the mesh divides it.
        owner: the parameter that it is for; None for a number of the whole tree.
    """

    entries: Entries
    owner: Param | None


def check_mesh(who: str, mesh: Any, axis: str, *, of_devices: bool = False) -> None:
    """Require a mesh that has the axis, and no axis that is divided by hand.

    Args:
        who: the public name that errors begin with.
        mesh: what shall be a mesh.
        axis: the name of an axis.
        of_devices: whether the shape of a mesh is not enough.
    """
    kinds = Mesh if of_devices else (Mesh, AbstractMesh)
    if not isinstance(mesh, kinds):
        remedy = 'pass jax.make_mesh((8,), ("data",)), say'
        _checks.fail(who, "mesh must be a jax.sharding.Mesh", repr(mesh), remedy)
    if axis not in mesh.axis_names:
        names = ", ".join(map(repr, mesh.axis_names)) or "none"
        _checks.fail(who, f"axis must be an axis of the mesh, which has {names}", f"axis={axis!r}")
    if AxisType.Manual in mesh.axis_types:
        required = "the axes of the mesh must be automatic or explicit"
        _checks.fail(who, required, str(mesh.axis_types), "call it outside of shard_map")


def params_on(who: str, params: Tree, mesh: Mesh | AbstractMesh) -> dict[tuple[str, ...], Param]:
    """Return the parameters by the names on their paths, with how the mesh divides each.

    Arrays that are on one device, on none yet, or whole on each device count as whole.
    """
    return {
        path_names(path): Param(np.shape(leaf), _entries_on(who, path, leaf, mesh))
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def _entries_on(who: str, path: Any, leaf: Any, mesh: Mesh | AbstractMesh) -> Entries:
    whole = (None,) * np.ndim(leaf)
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        if sharding is None or sharding.is_fully_replicated:
            return whole
        divided = True
    else:
        entries = (*sharding.spec, *whole)[: len(whole)]
        divided = any(names_of(entry) for entry in entries)
        if not divided or sharding.mesh.shape_tuple == mesh.shape_tuple:
            return tuple(entry if names_of(entry) else None for entry in entries)
    _checks.fail(
        who,
        f"params that are divided must be so by the mesh, {dict(mesh.shape)}",
        f"{sharding} at {_checks.path_text(path)}",
        "pass their mesh, or move them with jax.device_put",
    )


def names_of(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes that divide one axis of an array."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def places(
    state: Tree, params: dict[tuple[str, ...], Param], mesh: Mesh | AbstractMesh, axis: str
) -> list[tuple[Any, Any, Place]]:
    """Return path, shape and place of each array of a state, in the order of its leaves.

    Args:
        state: the state, or its shapes.
        params: the parameters, as `params_on` returns them.
        mesh: the devices.
        axis: the axis of the mesh that is to divide what is for a parameter.
    """
    size = mesh.shape[axis]
    found = []
    for path, node in jax.tree.leaves_with_path(state, is_leaf=is_rule_state):
        for below, leaf in jax.tree.leaves_with_path(node):
            of_rule = is_rule_state(node) and path_names(below[:1]) == ("hyperparams",)
            owner = None if of_rule else _owner((*path, *below), params)
            entries: Entries = (None,) * len(leaf.shape)
            if owner is not None:
                entries = divided(leaf.shape, owner, axis, size)
            found.append(((*path, *below), leaf, Place(entries, owner)))
    return found


def _owner(path: Any, params: dict[tuple[str, ...], Param]) -> Param | None:
    """Return the parameter whose path is part of a path; the longest one, and the last of them."""
    names = tuple(map(without_part, path_names(path)))
    owner = longest_in(names, params)
    return None if owner is None else params[owner]


def divided(shape: tuple[int, ...], param: Param, axis: str, size: int) -> Entries:
    """Return how a slot lies: as its parameter does, and divided over one more axis of the mesh.

    Axes that the slot shares with the parameter are divided as the parameter's are. Unless that
    uses `axis`, it divides the first axis of the slot that is whole until then and that it divides
    evenly; axes of the parameter come before those that the slot has in addition.

    Args:
        shape: of the slot.
        param: the parameter that it is for.
        axis: of the mesh.
        size: the number of devices on that axis.

    Example:
        >>> divided((8, 6), Param((8, 6), (None, None)), "data", 4)
        ('data', None)
        >>> divided((8, 6), Param((8, 6), ("model", None)), "data", 2)
        ('model', 'data')
        >>> divided((6,), Param((8, 6), (None, None)), "data", 4)
        (None,)
    """
    shared = _shared_axes(shape, param)
    entries = [None if own is None else param.entries[own] for own in shared]
    if any(axis in names_of(entry) for entry in entries):
        return tuple(entries)
    of_param = sorted(range(len(shape)), key=lambda place: shared[place] is None)
    for place in of_param:
        if entries[place] is None and shape[place] and shape[place] % size == 0:
            entries[place] = axis
            break
    return tuple(entries)


def _shared_axes(shape: tuple[int, ...], param: Param) -> list[int | None]:
    """Return for each axis of a slot the axis of its parameter that it is; None if it is none.

    A slot may have the parameter's shape, perhaps behind axes of its own (the memory of L-BFGS);
    that of a part of its layers; the shape without some axes (the factors of Adafactor); or stacks
    of other matrices (the statistics of Shampoo), of which only the stack is the parameter's.
    """
    own, extra = param.shape, len(shape) - len(param.shape)
    if extra >= 0 and shape[extra:] == own:
        return [None] * extra + list(range(len(own)))
    if extra == 0 and shape[1:] == own[1:]:
        return [None, *range(1, len(own))]
    ways = _ways(shape, own)
    # Of a square matrix a factor may be of either axis. That is no matter if both lie alike.
    if ways and len({tuple(param.entries[axis] for axis in way) for way in ways}) == 1:
        return list(ways[0])
    # The last two axes are a matrix of its own, also where one is as long as the parameter's.
    stack = 0
    while stack < min(len(shape), len(own)) - 2 and shape[stack] == own[stack]:
        stack += 1
    return [*range(stack), *[None] * (len(shape) - stack)]


def _ways(shape: tuple[int, ...], own: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the ways to leave axes out of a shape that result in the other one."""
    if not shape:
        return [()]
    return [
        (axis, *(axis + 1 + further for further in rest))
        for axis, length in enumerate(own)
        if length == shape[0]
        for rest in _ways(shape[1:], own[axis + 1 :])
    ]


def sharding_of(mesh: Mesh | AbstractMesh) -> Callable[[Entries], NamedSharding]:
    """Return the function that makes a sharding on a mesh."""
    return lambda entries: NamedSharding(mesh, PartitionSpec(*entries))


def unplaced(tree: Tree) -> Tree:
    """Return shapes and types alone, so that nothing is known of devices."""
    return jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf
        ),
        tree,
    )
