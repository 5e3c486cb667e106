"""How a run is divided over the devices of a mesh: the batch over one axis, the rest as it comes.

Parameters and the model's state stay as `Task.init` makes them under the mesh: replicated, unless
it divides them. On axes that are automatic, a slot of the optimizer lies where its parameter does,
and all else is replicated. On explicit axes the types of arrays say where they lie, and the state
stays as the optimizer makes it. If asked for, slots are divided over the axis of the batch as well.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, Literal
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab.tasks._task import Batch, Task
from optlab.lab.training._engine import Carry, compiled_shapes, with_shardings
from optlab.lab.training._loop import TrainState
from optlab.sharding._state import shardings_beside


@dataclass(frozen=True)
class Sharding:
    """The division of a run over devices.

    Attributes:
        mesh: the devices; None for the default device.
        axis: the axis of the mesh over which batches are divided.
        divides_state: whether the optimizer's state is divided over it, too (ZeRO-1).
    """

    mesh: Mesh | None
    axis: str
    divides_state: bool = False

    def check(self, who: str) -> None:
        """Require a mesh that has the axis."""
        if self.mesh is None:
            if self.divides_state:
                remedy = 'pass jax.make_mesh((8,), ("data",)), say'
                _checks.fail(who, "divide_state needs a mesh", "mesh=None", remedy)
            return
        if not isinstance(self.mesh, Mesh):
            remedy = 'pass jax.make_mesh((8,), ("data",)), say'
            _checks.fail(who, "mesh must be a jax.sharding.Mesh", repr(self.mesh), remedy)
        if self.axis not in self.mesh.axis_names:
            names = ", ".join(map(repr, self.mesh.axis_names)) or "none"
            required = f"data_axis must be an axis of the mesh, which has {names}"
            _checks.fail(who, required, f"data_axis={self.axis!r}")

    def check_batch(self, who: str, task: str, batch: Batch, *, is_of_process: bool) -> None:
        """Require that the devices of the axis can divide the examples of a batch.

        Args:
            who: the public name that errors begin with.
            task: the name of the task.
            batch: the shapes of a batch.
            is_of_process: whether it is this process's part of a batch, if there are several.
        """
        if self.mesh is None:
            return
        parts = self.mesh.shape[self.axis]
        factor = self._processes() if is_of_process else 1
        for path, leaf in jax.tree.leaves_with_path(batch):
            if leaf.shape and leaf.shape[0] * factor % parts:
                required = (
                    f"the {parts} devices of axis {self.axis!r} must divide the batches of task "
                    f"{task!r}"
                )
                got = f"{leaf.shape[0] * factor} examples at {_checks.path_text(path)}"
                _checks.fail(who, required, got, f"take a multiple of {parts}")

    def context(self) -> AbstractContextManager[Any]:
        """Return the context in which the run is traced and called."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def settler(self, who: str, task: Task) -> Callable[[Carry], Carry] | None:
        """Return a function that says where a run is to stay; None without a mesh.

        Args:
            who: the public name that errors begin with.
            task: the problem.

        Returns:
            A function of the shapes of a run, with the shardings that the compiler gives them, to
            shardings.
        """
        if self.mesh is None:
            return None

        def settle(carry: Carry) -> Carry:
            params, model_state, opt_state = carry.runs
            params, model_state = self._as_asked(task, (params, model_state))
            runs = TrainState(params, model_state, opt_state)
            shardings = _shardings(Carry(runs, carry.records))
            if self.divides_state:
                opt_state = shardings_beside(who, opt_state, params, self.mesh, self.axis)
            elif self._is_explicit:
                return shardings
            else:
                opt_state = _with_params(opt_state, params, self._everywhere)
            records = jax.tree.map(lambda leaf: self._everywhere, carry.records)
            return Carry(shardings.runs._replace(opt_state=opt_state), records)

        return settle

    def place_start(self, task: Task, key: Array, start: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        """Put parameters and a model's state where `Task.init` would put them.

        Args:
            task: the problem.
            key: the key for `Task.init`.
            start: parameters and state, of which either may be None.
        """
        if self.mesh is None:
            return start
        shapes = compiled_shapes(jax.jit(task.init), key)
        places = _shardings(self._as_asked(task, shapes))
        return tuple(
            own if own is None else jax.tree.map(_placed, own, place)
            for own, place in zip(start, places, strict=True)
        )

    def on_mesh(self, tree: Tree) -> Tree:
        """Replicate the arrays that are not on the devices of the mesh yet."""
        if self.mesh is None:
            return tree
        devices = set(self.mesh.devices.flat)

        def place(leaf: Array) -> Array:
            is_there = leaf.sharding.device_set == devices
            return leaf if is_there else _placed(leaf, self._everywhere)

        return jax.tree.map(place, tree)

    def divide(self, batch: Batch) -> Batch:
        """Divide a traced batch over the axis; arrays without axes are left alone."""
        if self.mesh is None:
            return batch
        explicit = self.mesh.axis_types[self.mesh.axis_names.index(self.axis)] == AxisType.Explicit
        constrain = jax.sharding.reshard if explicit else lax.with_sharding_constraint
        return jax.tree.map(lambda x: constrain(x, self._spec(x)), batch)

    def move(self, batch: Batch) -> Batch:
        """Put a batch of the host on the device, or divide it over the axis.

        With several processes, each one gives its own part of the batch.
        """
        if self.mesh is None:
            return jax.device_put(batch)

        def move(leaf: Any) -> Array:
            sharding = NamedSharding(self.mesh, self._spec(leaf))
            if sharding.is_fully_addressable:
                return jax.device_put(leaf, sharding)
            return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

        return jax.tree.map(move, batch)

    def place(self, data: Tree) -> Tree:
        """Put examples to evaluate on the devices: divided over the axis where it divides them.

        With several processes, each one has all of them.
        """
        if self.mesh is None:
            return jax.device_put(data)
        parts = self.mesh.shape[self.axis]

        def place(leaf: Any) -> Array:
            divides = np.ndim(leaf) and np.shape(leaf)[0] % parts == 0
            spec = PartitionSpec(self.axis) if divides else PartitionSpec()
            return _placed(leaf, NamedSharding(self.mesh, spec))

        return jax.tree.map(place, data)

    @property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def _is_explicit(self) -> bool:
        return AxisType.Explicit in self.mesh.axis_types

    def _spec(self, leaf: Any) -> PartitionSpec:
        return PartitionSpec(self.axis) if leaf.ndim else PartitionSpec()

    def _processes(self) -> int:
        """Return how many parts of a batch come from different processes."""
        parts = self.mesh.shape[self.axis]
        sharding = NamedSharding(self.mesh, PartitionSpec(self.axis))
        own = {str(index) for index in sharding.addressable_devices_indices_map((parts,)).values()}
        return parts // len(own)

    def _as_asked(self, task: Task, shapes: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        """Return parameters and state with the shardings to which `Task.init` moves them.

        Inside of a compiled program `jax.device_put` moves nothing on automatic axes.
        """
        closed = jax.make_jaxpr(task.init)(jax.random.key(0))
        leaves, structure = jax.tree.flatten(shapes)
        leaves = [
            leaf if asked is None else with_shardings(leaf, asked)
            for leaf, asked in zip(leaves, _asked(closed.jaxpr), strict=True)
        ]
        return jax.tree.unflatten(structure, leaves)


def _with_params(opt_state: Tree, params: Tree, otherwise: NamedSharding) -> Tree:
    """Return for each array of an optimizer's state the sharding of the parameter that it is for.

    It is the one of the same shape whose path ends the array's own path, as in `mu['head']`: the
    states of groups have only a part of the tree.
    """
    by_path = {_names(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = _names(path)
        ends = (by_path.get(names[start:]) for start in range(len(names) + 1))
        alike = (param for param in ends if param is not None and param.shape == leaf.shape)
        param = next(alike, None)
        return otherwise if param is None else param.sharding

    return jax.tree.map_with_path(place, opt_state)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,)) for key in path)


def _asked(jaxpr: Jaxpr) -> list[NamedSharding | None]:
    """Return for each output of a program the sharding that `jax.device_put` was given for it."""
    makers = {var: (eqn, i) for eqn in jaxpr.eqns for i, var in enumerate(eqn.outvars)}

    def asked(var: Any) -> NamedSharding | None:
        if isinstance(var, Literal) or var not in makers:
            return None
        eqn, i = makers[var]
        if eqn.primitive.name == "device_put":
            where = eqn.params["devices"][i]
            return where if isinstance(where, NamedSharding) else asked(eqn.invars[i])
        inner = eqn.params.get("jaxpr") if eqn.primitive.name == "jit" else None
        return None if inner is None else _asked(inner.jaxpr)[i]

    return [asked(var) for var in jaxpr.outvars]


def _shardings(shapes: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)


def _placed(leaf: Any, sharding: NamedSharding) -> Array:
    """Return an array with this sharding; every process has all of it."""
    if sharding.is_fully_addressable or getattr(leaf, "is_fully_addressable", True) is False:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
