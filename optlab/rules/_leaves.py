"""The leaves of one tree, and the leaves of other trees beside them."""

import math
from collections.abc import Iterable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._tree import aligned, as_array, is_none, is_traced, leaves_of
from optlab._types import Mask, Tree
from optlab.rules._leaf import path_names
from optlab.rules._patterns import sees_a_part

_REMEDY = "call init with the parameters that the gradients are taken of"


class Leaves:
    """The leaves of the gradients (at init: of the parameters), to which other trees are aligned.

    Attributes:
        structure: the tree's, in which a None is a leaf.
        paths: of all leaves.
        arrays: all leaves, None where there is none.
        present: the indices of the leaves that are not None.
    """

    def __init__(self, who: str, what: str, tree: Tree):
        self._who, self._what, self._all = who, what, leaves_of(tree)
        self._tree, self.arrays, self.paths, self.structure = self._all
        self.arrays: list[Any] = list(self.arrays)
        self.present = [index for index, leaf in enumerate(self.arrays) if leaf is not None]

    def check(self) -> None:
        """Require floating-point or complex arrays, or numbers, which become arrays."""
        for index in self.present:
            leaf = self.arrays[index]
            if not _is_array_like(leaf):
                _checks.fail(
                    self._who,
                    f"{self._what} must be arrays",
                    f"{type(leaf).__name__} at {_checks.path_text(self.paths[index])}",
                    "leave this leaf out, with eqx.filter(model, eqx.is_inexact_array) or "
                    "optax.masked",
                )
            self.arrays[index] = as_array(leaf)
            _checks.check_inexact(self._who, self._what, self.paths[index], self.arrays[index])

    def refuse_complex(self, touched: list[bool]) -> None:
        """Require that the leaves that a rule touches are real."""
        for index in self.present:
            if not touched[index]:
                continue
            dtype = getattr(self.arrays[index], "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
                _checks.fail(
                    self._who,
                    f"{self._what} must be real",
                    f"{dtype} at {_checks.path_text(self.paths[index])}",
                    "leave this leaf out with optax.masked or optax.partition",
                )

    def describe(self, index: int) -> str:
        """Return a leaf's path, shape and type, for errors."""
        leaf = self.arrays[index]
        return f"{_checks.path_text(self.paths[index])} of shape {leaf.shape} and type {leaf.dtype}"

    def beside(self, what: str, tree: Tree) -> list[Any]:
        """Return the parts of another tree in the order of the leaves."""
        try:
            return self.structure.flatten_up_to(tree)
        except (ValueError, TypeError):
            self._fail_structure(what, tree)

    def align(self, what: str, tree: Tree | None, touched: list[bool] | None = None) -> list[Any]:
        """Return the leaves of a tree of arrays of the same shapes; Nones if there is no tree.

        Leaves that are not touched may be absent, as `MaskedNode`.
        """
        if tree is None:
            return [None] * len(self.arrays)
        parts = aligned(self._who, what, self._all, tree, _is_masked)
        for index in self.present:
            if not _is_masked(parts[index]):
                parts[index] = as_array(parts[index])
            elif touched is None or touched[index]:
                self._fail_structure(what, tree)
        return parts

    def slot(self, index: int, what: str, expected: Any, slot: Any) -> Any:
        """Return a slot of one leaf, checked, in the structure that `init` gives it.

        Flax NNX may have put other containers in the place of tuples and dicts. Names on paths
        then decide.
        """
        slot = _in_structure_of(expected, slot)
        same = jax.tree.structure(expected) == jax.tree.structure(slot)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(slot)]
        wanted = [leaf.shape for leaf in jax.tree.leaves(expected)]
        if not same or shapes != wanted:
            path, shape = _checks.path_text(self.paths[index]), self.arrays[index].shape
            _checks.fail(
                self._who,
                f"the {what} at {path} must have the shapes {wanted} for gradients of {shape}",
                f"{shapes}",
                _REMEDY,
            )
        return slot

    def mask(self, mask: Mask | None, params: Tree | None) -> list[bool]:
        """Return for each leaf whether a mask lets it through.

        A mask is a tree of booleans in the structure of the leaves or a prefix of it, or a function
        that returns one. A tree whose class can be called, as an Equinox module, is a tree. Where
        the containers differ (a dict beside a FrozenDict, a dataclass or an `nnx.State`), the names
        on the paths decide.
        """
        if mask is None:
            return [True] * len(self.arrays)
        if callable(mask) and jax.tree_util.all_leaves([mask]):
            mask = mask(self._tree if params is None else params)
        if not self.present:  # Optax also calls init with trees of no leaves.
            return [True] * len(self.arrays)
        try:
            full = jax.tree.map(
                lambda own, part: jax.tree.map(lambda _: own, part, is_leaf=is_none),
                mask,
                self._tree,
            )
            flags = self.structure.flatten_up_to(full)
        except (ValueError, TypeError):
            flags = self._mask_by_name(mask)
        for index in self.present:
            flags[index] = self._flag(index, flags[index])
        return flags

    def _mask_by_name(self, mask: Tree) -> list[Any]:
        """Return the booleans of a mask that has the same names in other containers."""
        by_name = {path_names(path): own for path, own in jax.tree_util.tree_leaves_with_path(mask)}
        used, flags = set(), []
        for path in self.paths:
            names = path_names(path)
            heads = [names[:size] for size in range(len(names), -1, -1) if names[:size] in by_name]
            if not heads:
                self._fail_mask(mask)
            used.add(heads[0])
            flags.append(by_name[heads[0]])
        if used != set(by_name) and not sees_a_part():
            self._fail_mask(mask)
        return flags

    def _flag(self, index: int, flag: Any) -> bool:
        """Return an element of a mask as a bool."""
        if is_traced(flag):
            _checks.fail(
                self._who,
                "mask must hold booleans that are known outside of jit",
                f"a traced array at {_checks.path_text(self.paths[index])}",
                "make it of shapes and paths, not of values",
            )
        if isinstance(flag, bool | np.bool_) or (
            getattr(flag, "shape", None) == () and jnp.issubdtype(flag.dtype, jnp.bool_)
        ):
            return bool(flag)
        _checks.fail(
            self._who,
            "mask must hold booleans",
            f"{flag!r} at {_checks.path_text(self.paths[index])}",
        )

    def _fail_mask(self, mask: Tree) -> NoReturn:
        remedy = "give the mask as a function of the parameters, such as one of their shapes"
        _checks.fail_structure(self._who, "mask", self._tree, mask, remedy)

    def _fail_structure(self, what: str, tree: Tree) -> NoReturn:
        _checks.fail_structure(self._who, what, self._tree, tree, _REMEDY)


def _is_masked(part: Any) -> bool:
    return isinstance(part, optax.MaskedNode)


def _in_structure_of(expected: Any, slot: Any) -> Any:
    """Return a slot in another structure that has the same names, or as it is if it has not."""
    if jax.tree.structure(expected) == jax.tree.structure(slot):
        return slot
    leaves = {path_names(path): x for path, x in jax.tree_util.tree_leaves_with_path(slot)}
    wanted, structure = jax.tree_util.tree_flatten_with_path(expected)
    names = [path_names(path) for path, _ in wanted]
    if set(names) != set(leaves):
        return slot
    return structure.unflatten([leaves[name] for name in names])


def _is_array_like(leaf: Any) -> bool:
    """Whether a leaf is an array, the description of one, or a number."""
    if isinstance(leaf, bool | int | float | complex):
        return True
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def places_of(arrays: Iterable[Any]) -> tuple[bool, bool]:
    """Return whether all arrays lie on the same devices, and whether that is a single one.

    None counts as nowhere, a traced array as somewhere else.
    """
    shardings = []
    for array in arrays:
        if array is not None:
            if is_traced(array):
                return False, False
            shardings.append(array.sharding)
    if not shardings:
        return True, True
    first = shardings[0]
    if all(own is first or own == first for own in shardings):
        return True, isinstance(first, jax.sharding.SingleDeviceSharding)
    devices = first.device_set
    return all(own.device_set == devices for own in shardings), False


def placed_alike(gradient: Any, parameter: Any, slots: Any) -> tuple[Any, Any, Any]:
    """Return arrays of one leaf with one sharding, where a mesh with explicit axes demands it.

    A slot may be sharded where its parameter is not (ZeRO). Arithmetic on both takes place where
    the slots are, so that these need not move.
    """
    leaves, structure = jax.tree.flatten((gradient, parameter, slots))
    alike = [i for i, leaf in enumerate(leaves) if leaf.shape == gradient.shape]
    specs = {i: _spec(leaves[i]) for i in alike}
    if len(set(specs.values())) <= 1:
        return gradient, parameter, slots
    first_slot = 1 if parameter is None else 2
    common = _joint_spec([specs[i] for i in alike if i >= first_slot] or list(specs.values()))
    for i in alike:
        leaves[i] = _resharded(leaves[i], common)
    return structure.unflatten(leaves)


def _joint_spec(specs: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the mesh axes that shard each axis of an array in any spec; the first ones go first.

    No mesh axis is used twice.
    """
    joint: list[Any] = [None] * len(specs[0])
    used: set[str] = set()
    for spec in specs:
        for axis, names in enumerate(spec):
            own = set(_names(names))
            if own and joint[axis] is None and not own & used:
                joint[axis] = names
                used |= own
    return tuple(joint)


def placed_like(arrays: Any, others: Any) -> Any:
    """Return arrays that lie on the axes of an explicit mesh as others of the same shapes do."""
    return jax.tree.map(lambda x, like: _resharded(x, _spec(like)), arrays, others)


def whole(arrays: Any, kept: tuple[int, ...] = ()) -> Any:
    """Return arrays that no explicit mesh axis shards, but along the axes in `kept`.

    `kept` are axes of the first array. The leading axes of one of another shape are sharded like
    these, where they are as long.
    """
    first = jax.tree.leaves(arrays)[0]
    sizes = tuple(first.shape[axis] for axis in kept)
    shards = tuple(_spec(first)[axis] for axis in kept)

    def unsharded(array: Any) -> Any:
        spec: list[Any] = [None] * array.ndim
        own = kept if array.shape == first.shape else tuple(range(len(sizes)))
        if tuple(array.shape[axis] for axis in own if axis < array.ndim) == sizes:
            for axis, names in zip(own, shards, strict=True):
                spec[axis] = names
        return _resharded(array, tuple(spec), jax.typeof(first).sharding.mesh)

    return jax.tree.map(unsharded, arrays)


def spread(stacked: Any, kept: tuple[int, ...]) -> Any:
    """Return stacks whose first axis is shared out among the devices of an explicit mesh.

    Where the devices do not divide it, zeros fill it up. The other axes are whole, but for those in
    `kept`, along which the arrays stay sharded.
    """
    first = jax.tree.leaves(stacked)[0]
    mesh = jax.typeof(first).sharding.mesh
    explicit = [
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == jax.sharding.AxisType.Explicit
    ]
    stacked = whole(stacked, (0, *kept))
    used = {name for entry in _spec(jax.tree.leaves(stacked)[0]) for name in _names(entry)}
    free = tuple(name for name in explicit if name not in used)
    count = math.prod(mesh.shape[name] for name in free)
    if not free or count == 1:
        return stacked
    missing = -first.shape[0] % count

    def share(array: Any) -> Any:
        spec = _spec(array)
        if missing:
            filling = jnp.zeros_like(array, shape=(missing, *array.shape[1:]))
            array = jnp.concatenate([array, _resharded(filling, spec)])
        return _resharded(array, (free, *spec[1:]), mesh)

    return jax.tree.map(share, stacked)


def gathered(results: Any, before: Any, count: int) -> Any:
    """Return the first results of stacks that were `spread`, each placed as its array before."""
    return jax.tree.map(
        lambda x, array: _resharded(x, (None, *_spec(array)))[:count], results, before
    )


def is_divided(array: Any, axes: tuple[int, ...]) -> bool:
    """Whether an axis of a mesh divides an array along one of these axes, by the array's type.

    Only axes of the mesh that are explicit stand in a type.
    """
    spec = _spec(array)
    return any(_names(spec[axis]) for axis in axes)


def _names(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes that shard one axis of an array."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _resharded(array: Any, spec: tuple[Any, ...], mesh: Any = None) -> Any:
    if _spec(array) == spec:
        return array
    mesh = mesh or jax.typeof(array).sharding.mesh
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    return jax.sharding.reshard(array, sharding)


def _spec(array: Any) -> tuple[Any, ...]:
    """Return the mesh axes along which each axis of an array is sharded explicitly."""
    spec = tuple(jax.typeof(array).sharding.spec)
    return spec + (None,) * (array.ndim - len(spec))
