"""How a run is divided over the devices of a mesh: the batch over one axis, the rest as it comes.

Parameters and the model's state stay as `Task.init` makes them under the mesh: replicated, unless
it divides them. A slot of the optimizer lies where its parameter does, and all else is replicated.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optlab import _checks
from optlab._types import Array
from optlab.lab.tasks._task import Batch
from optlab.lab.training._engine import Carry
from optlab.lab.training._loop import TrainState


@dataclass(frozen=True)
class Sharding:
    """The division of a run over devices.

    Attributes:
        mesh: the devices; None for the default device.
        axis: the axis of the mesh over which batches are divided.
    """

    mesh: Mesh | None
    axis: str

    def context(self) -> AbstractContextManager[Any]:
        """Return the context in which the run is traced and called."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def settler(self, tx: optax.GradientTransformation) -> Callable[[Carry], Carry] | None:
        """Return a function that puts a run where it is to stay; None without a mesh."""
        if self.mesh is None:
            return None

        def place_slot(slot: Array, param: Array) -> Array:
            fits = slot.shape == param.shape
            return jax.device_put(slot, param.sharding) if fits else self._replicate(slot)

        def settle(carry: Carry) -> Carry:
            params, model_state, opt_state = carry.runs
            params, model_state = jax.tree.map(self._on_mesh, (params, model_state))
            opt_state = optax.tree_utils.tree_map_params(
                tx, place_slot, opt_state, params, transform_non_params=self._replicate
            )
            records = jax.tree.map(self._replicate, carry.records)
            return Carry(TrainState(params, model_state, opt_state), records)

        return settle

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
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(
                NamedSharding(self.mesh, self._spec(x)), x
            ),
            batch,
        )

    def check(self, who: str, task: str, batch: Batch, processes: int) -> None:
        """Require a mesh with the axis, whose size divides the examples of a batch.

        Args:
            who: the public name that errors begin with.
            task: the name of the task.
            batch: the shapes of a batch.
            processes: the number of processes that give a part of each batch, ≥ 1.
        """
        if self.mesh is None:
            return
        if not isinstance(self.mesh, Mesh):
            remedy = 'pass jax.make_mesh((8,), ("data",)), say'
            _checks.fail(who, "mesh must be a jax.sharding.Mesh", repr(self.mesh), remedy)
        names = ", ".join(map(repr, self.mesh.axis_names))
        if self.axis not in self.mesh.axis_names:
            required = f"data_axis must be an axis of the mesh, which has {names}"
            _checks.fail(who, required, f"data_axis={self.axis!r}")
        parts = self.mesh.shape[self.axis]
        for path, leaf in jax.tree.leaves_with_path(batch):
            if leaf.shape and leaf.shape[0] * processes % parts:
                required = (
                    f"the {parts} devices of axis {self.axis!r} must divide the batches of task "
                    f"{task!r}"
                )
                got = f"{leaf.shape[0] * processes} examples at {_checks.path_text(path)}"
                _checks.fail(who, required, got, f"take a multiple of {parts}")

    def _spec(self, leaf: Any) -> PartitionSpec:
        return PartitionSpec(self.axis) if leaf.ndim else PartitionSpec()

    def _replicate(self, leaf: Array) -> Array:
        return jax.device_put(leaf, NamedSharding(self.mesh, PartitionSpec()))

    def _on_mesh(self, leaf: Array) -> Array:
        is_there = leaf.sharding.device_set == set(self.mesh.devices.flat)
        return leaf if is_there else self._replicate(leaf)
