"""The shardings of an optimizer's state, and the state that is made with them."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from optlab import _checks
from optlab._types import Tree
from optlab.rules._leaf import path_name
from optlab.sharding._specs import (
    Place,
    check_mesh,
    names_of,
    params_on,
    places,
    sharding_of,
    unplaced,
)

Placed = tuple[Any, Any, Place]
"""Path, shape and place of an array of the state."""


def state_sharding(
    tx: optax.GradientTransformation, params: Tree, mesh: Mesh | AbstractMesh, axis: str = "data"
) -> Tree:
    """Return the shardings with which each device keeps one part of an optimizer's state (ZeRO-1).

    Of n devices along `axis`, each keeps 1/n of every array that is for a parameter: a moment, a
    factor, a statistic of blocks, an average. Such an array lies like its parameter, and is divided
    over `axis` besides, along its first axis that is whole until then and that n divides. If its
    parameter is divided over `axis` already, it lies as the parameter does. Where n divides no
    axis, and for numbers of the whole tree (counts, rates, random keys), each device has all of it;
    a warning says so if that is the larger part of what a device keeps. `layout` shows all arrays.

        state = jax.jit(tx.init, out_shardings=state_sharding(tx, params, mesh))(params)

    Without it, the state that a jitted `init` makes on a mesh of automatic axes is on one device.
    A mesh of explicit axes must be in force for this line, by `jax.set_mesh`; `init` sees to that.

    Args:
        tx: any transformation of optlab or Optax: a rule, a chain, a partition, a wrapper. How an
            array belongs to a parameter is told by its path, in which that of the parameter stands.
        params: the parameters or their shapes (`jax.ShapeDtypeStruct`). Arrays, and shapes that
            have a sharding, say how they lie on the mesh; all others are whole on each device.
        mesh: the devices, with automatic or explicit axes; or only the shape of them, a
            `jax.sharding.AbstractMesh`, to plan for devices that are not there.
        axis: the axis of the mesh to divide over, mostly that over which batches are divided.

    Returns:
        A `jax.sharding.NamedSharding` for each array of `tx.init(params)`, in its structure.

    Raises:
        ValueError: `tx` is no transformation, its `init` refuses the parameters, the mesh does not
            have the axis, or the parameters are divided by another mesh.

    Reference: Rajbhandari, Rasley, Ruwase, He, "ZeRO: Memory Optimizations Toward Training
    Trillion Parameter Models", SC 2020, stage 1.

    Example:
        >>> import jax, jax.numpy as jnp, optlab
        >>> mesh = jax.sharding.AbstractMesh((4,), ("data",))
        >>> params = {"w": jnp.zeros((6, 8)), "b": jnp.zeros(3)}
        >>> adam, rate = state_sharding(optlab.adam(1e-3), params, mesh)
        >>> print(adam.mu["w"].spec, adam.mu["b"].spec, adam.count.spec)
        P(None, 'data') P(None,) P()
    """
    who = "state_sharding"
    state, found = placed(who, tx, params, mesh, axis)
    _warn_of_whole(who, found, mesh, axis)
    return _shardings(state, found, mesh)


def abstract_state(
    tx: optax.GradientTransformation, params: Tree, mesh: Mesh | AbstractMesh, axis: str = "data"
) -> Tree:
    """Describe the divided state: shapes and types of `tx.init(params)`, with their shardings.

    Nothing is computed and no memory is taken. Orbax restores a checkpoint to such a description,
    on another mesh than the one it was written from.

    Args:
        tx: as for `state_sharding`.
        params: as for `state_sharding`.
        mesh: as for `state_sharding`.
        axis: as for `state_sharding`.

    Returns:
        A `jax.ShapeDtypeStruct` for each array of the state.

    Raises:
        ValueError: as for `state_sharding`.

    Example:
        >>> import jax, jax.numpy as jnp, optlab
        >>> mesh = jax.sharding.AbstractMesh((4,), ("data",))
        >>> state = abstract_state(optlab.lion(1e-3), jnp.zeros((8, 2)), mesh)
        >>> state[0].mu.shape, state[0].mu.sharding.spec
        ((8, 2), P('data', None))
    """
    who = "abstract_state"
    state, found = placed(who, tx, params, mesh, axis)
    _warn_of_whole(who, found, mesh, axis)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        _shardings(state, found, mesh),
    )


def init(
    tx: optax.GradientTransformation, params: Tree, mesh: Mesh, axis: str = "data"
) -> optax.OptState:
    """Make the divided state of an optimizer; no device ever holds more than its part.

    It is `jax.jit(tx.init, out_shardings=state_sharding(tx, params, mesh, axis))(params)`, with the
    mesh in force.

    Args:
        tx: as for `state_sharding`.
        params: the parameters. With several processes, arrays that all of these hold, or a part.
        mesh: the devices, with automatic or explicit axes.
        axis: as for `state_sharding`.

    Returns:
        The state.

    Raises:
        ValueError: as for `state_sharding`.

    Example:
        >>> import jax, jax.numpy as jnp, optlab
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
        >>> state = init(optlab.adam(1e-3), {"w": jnp.zeros((8, 2))}, mesh)
        >>> state[0].mu["w"].sharding.spec
        P('data', None)
    """
    who = "sharding.init"
    check_mesh(who, mesh, axis, of_devices=True)
    state, found = placed(who, tx, params, mesh, axis)
    _warn_of_whole(who, found, mesh, axis)
    with jax.set_mesh(mesh):
        return jax.jit(tx.init, out_shardings=_shardings(state, found, mesh))(params)


def divide_batch(batch: Tree, mesh: Mesh, axis: str = "data") -> Tree:
    """Put a batch of the host on the devices, divided along its first axis.

    Args:
        batch: arrays (examples, …), or arrays without axes, which each device gets. With several
            processes, the part of the examples that belongs to this process: all have equally many.
        mesh: the devices.
        axis: the axis of the mesh that divides the examples.

    Returns:
        The batch, as arrays of all processes.

    Raises:
        ValueError: the mesh does not have the axis, or its devices do not divide the examples.

    Example:
        >>> import jax, numpy as np
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
        >>> divide_batch(np.ones((8, 3), np.float32), mesh).sharding.spec
        P('data',)
    """
    who = "divide_batch"
    check_mesh(who, mesh, axis, of_devices=True)
    whole = NamedSharding(mesh, PartitionSpec())
    parts = NamedSharding(mesh, PartitionSpec(axis))
    factor = processes(mesh, axis)
    check_divides(who, batch, mesh, axis, factor)

    def place(leaf: Any) -> jax.Array:
        where = parts if np.ndim(leaf) else whole
        if where.is_fully_addressable:
            return jax.device_put(leaf, where)
        return jax.make_array_from_process_local_data(where, np.asarray(leaf))

    return jax.tree.map(place, batch)


def shardings_beside(
    who: str, state: Tree, params: Tree, mesh: Mesh | AbstractMesh, axis: str
) -> Tree:
    """Return the shardings of a divided state, of which only the shapes are known.

    Args:
        who: the public name that errors begin with.
        state: the shapes of the state.
        params: the parameters or their shapes, with how they lie on the mesh.
        mesh: the devices.
        axis: of the mesh.
    """
    found = places(state, params_on(who, params, mesh), mesh, axis)
    _warn_of_whole(who, found, mesh, axis)
    return _shardings(state, found, mesh)


def processes(mesh: Mesh, axis: str) -> int:
    """Return how many parts of a batch come from different processes."""
    size = mesh.shape[axis]
    where = NamedSharding(mesh, PartitionSpec(axis))
    own = {str(index) for index in where.addressable_devices_indices_map((size,)).values()}
    return size // len(own)


def check_divides(who: str, batch: Tree, mesh: Mesh, axis: str, factor: int = 1) -> None:
    """Require that the devices of the axis divide the examples of a batch.

    Args:
        who: the public name that errors begin with.
        batch: the batch, or the part of a process.
        mesh: the devices.
        axis: of the mesh.
        factor: the number of such parts in a batch.
    """
    size = mesh.shape[axis]
    for path, leaf in jax.tree.leaves_with_path(batch):
        if np.ndim(leaf) and (not np.shape(leaf)[0] or np.shape(leaf)[0] * factor % size):
            required = f"the {size} devices of axis {axis!r} must divide the batch"
            got = f"{np.shape(leaf)[0] * factor} examples at {_checks.path_text(path)}"
            _checks.fail(who, required, got, f"take a multiple of {size}")


def placed(
    who: str,
    tx: optax.GradientTransformation,
    params: Tree,
    mesh: Mesh | AbstractMesh,
    axis: str,
) -> tuple[Tree, list[Placed]]:
    """Return the shapes of the state, and path, shape and place of each array of it."""
    _checks.check_transformation(who, tx)
    check_mesh(who, mesh, axis)
    by_path = params_on(who, params, mesh)
    state = jax.eval_shape(tx.init, unplaced(params))
    return state, places(state, by_path, mesh, axis)


def _shardings(state: Tree, found: Sequence[Placed], mesh: Mesh | AbstractMesh) -> Tree:
    make = sharding_of(mesh)
    return jax.tree.structure(state).unflatten([make(place.entries) for _, _, place in found])


def bytes_of(leaf: Any, place: Place, mesh: Mesh | AbstractMesh) -> tuple[int, int]:
    """Return the bytes of an array, and those that one device holds of it."""
    parts = math.prod(mesh.shape[name] for entry in place.entries for name in names_of(entry))
    count = math.prod(leaf.shape) * leaf.dtype.itemsize
    return count, count // parts


def _warn_of_whole(who: str, found: Sequence[Placed], mesh: Mesh | AbstractMesh, axis: str) -> None:
    """Warn if most of what a device holds of the state is whole on each device of the axis."""
    size = mesh.shape[axis]
    if size == 1:
        return
    whole: dict[str, int] = {}
    total = 0
    for path, leaf, place in found:
        if place.owner is None or not leaf.shape:
            continue
        _, count = bytes_of(leaf, place, mesh)
        total += count
        if not any(axis in names_of(entry) for entry in place.entries):
            whole[f"{path_name(path)} {leaf.shape}"] = count
    if 2 * sum(whole.values()) <= total:
        return
    largest = sorted(whole, key=whole.__getitem__, reverse=True)
    others = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
    warnings.warn(
        f"{who}: the {size} devices of axis {axis!r} do not divide {', '.join(largest[:3])}{others}"
        f": each device holds all of them, {sum(whole.values()):,} of the {total:,} bytes of state "
        "that it holds. optlab.sharding.layout shows all arrays",
        stacklevel=3,
    )
