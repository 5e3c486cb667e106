"""The updates of runs, as compiled programs: of one run, or of many in lanes.

Lanes are runs that differ in the values of hyperparameters, and in their seeds. Arrays over all
runs are (lanes, seeds, …). All lanes of one seed share their initialization, their batches and
their random keys. What does not depend on the hyperparameters is computed once for all lanes.

The updates between two evaluations are one call of a program that loops over them. With batches
from the host each batch is a call of its own. Both make the same updates, bit for bit. An update
takes several batches where gradients are accumulated; its loss is then the mean of theirs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optlab._types import Array, Tree
from optlab.lab.tasks._task import Batch, Task
from optlab.lab.training import _loop
from optlab.lab.training._convolutions import with_fast_convolutions
from optlab.lab.training._loop import Judged, Keys, TrainState
from optlab.lab.training._windows import batches_per_update

LANES, SEEDS, ALL = PartitionSpec("lanes"), PartitionSpec(None, "lanes"), PartitionSpec()

MakeRun = Callable[[Tree], tuple[Task, optax.GradientTransformation]]
"""A function from one lane's values, () arrays that may be traced, to the task and optimizer."""

NEVER = Judged.of(np.zeros(0))
"""What is known of the evaluations of a run that has had none."""

Observe = Callable[[optax.OptState, Array], dict[str, Array]]
"""A function of the optimizer's state and the loss to what is recorded of an update."""

IN_FLIGHT = 8
"""Updates that wait for the device while batches from the host are read; each holds its batch."""


class Carry(NamedTuple):
    """The state that goes from update to update.

    Attributes:
        runs: one run, or runs with arrays (lanes, seeds, …).
        records: name → (size, …) array, filled from its beginning by each call of `advance`.
    """

    runs: TrainState
    records: dict[str, Array]


class Unfinished(Exception):
    """The updates ended early.

    Attributes:
        carry: the runs after the updates that were made.
        records: the records of these updates.
        waiting: the batches that the runs took since the last of these updates.
    """

    def __init__(self, carry: Carry, records: dict[str, np.ndarray], waiting: int):
        super().__init__()
        self.carry, self.records, self.waiting = carry, records, waiting


class Division(NamedTuple):
    """What of the runs each device has, as the axes of arrays that are divided.

    Attributes:
        values: of the values of each lane.
        keys: of the keys of each seed.
        carry: of the state, and of its records.
    """

    values: PartitionSpec
    keys: PartitionSpec
    carry: Carry


BY_LANES = Division(LANES, ALL, Carry(LANES, PartitionSpec(None, "lanes")))
BY_SEEDS = Division(ALL, LANES, Carry(SEEDS, PartitionSpec(None, None, "lanes")))


class Engine:
    """The compiled functions of the runs of one `make_run`.

    Args:
        make_run: values → task and optimizer.
        observe: what is recorded of every update.
        size: the most updates that one call of `advance` makes, ≥ 1.
        in_lanes: whether the runs are in lanes; `values` then has arrays (lanes,) and `keys` has
            arrays (seeds,). Otherwise there is one run with values () and keys ().
        devices: with several, the runs are divided evenly between them, and each device runs the
            program that one of them alone would run with its part.
        division: whether each device has some of the lanes, or all lanes of some seeds.
        settle: the shapes of the state, with the shardings that the compiler gives it → the
            shardings that it is to have from `begin` on; None to leave them to the compiler.
        divide: a batch of `Task.batch` → the batch with the sharding that it is to have.
        native: whether `optlab.native.step` makes the steps; lanes of one program XLA computes.

    Attributes:
        batches: the batches of an update, ≥ 1; it is known once there are runs or shapes of them.
    """

    def __init__(
        self,
        make_run: MakeRun,
        *,
        observe: Observe,
        size: int,
        in_lanes: bool,
        devices: Sequence[jax.Device] = (),
        division: Division = BY_LANES,
        settle: Callable[[Carry], Carry] | None = None,
        divide: Callable[[Batch], Batch] = lambda batch: batch,
        native: bool = False,
    ):
        self._make_run, self._observe, self._size = make_run, observe, size
        self._in_lanes, self._settle, self._divide = in_lanes, settle, divide
        self._native = native
        self.batches: int | None = None
        self.mesh = Mesh(np.array(devices), ("lanes",)) if len(devices) > 1 else None
        self._division = division
        begin, self._update = self._begin_one, self._update_one
        if in_lanes:
            begin = _over_lanes_and_seeds(begin, (0, None), (None, 0))
            axes = (0, None, 0, None, None, 0), (None, 0, 0, None, None, 0)
            self._update = _over_lanes_and_seeds(self._update, *axes)
        self._begin_all = begin
        self.begin_program = jax.jit(self._spread(self._begin, 0))
        self._shardings: Carry | None = None

    def begin(self, values: Tree, keys: Keys) -> Carry:
        """Return the runs before their first update, and room for records."""
        if self._settle is not None and self._shardings is None:
            # Compiled twice, so that no array is whole on a device that is to have a part of it.
            self._shardings = self._settle(compiled_shapes(self.begin_program, values, keys))
            self.begin_program = jax.jit(self._begin, out_shardings=self._shardings)
        carry = self.begin_program(values, keys)
        self._count_batches(values, carry)
        return carry

    def shapes(self, values: Tree, keys: Keys) -> Carry:
        """Return the shapes, types and shardings of what `begin` returns."""
        carry = jax.eval_shape(self.begin_program, values, keys)
        self._count_batches(values, carry)
        if self.mesh is None:
            if any(leaf.sharding is not None for leaf in jax.tree.leaves(carry)):
                # Types say of explicit axes how arrays are divided, but not over which devices.
                begun = self.begin_program(values, keys)
                carry = with_shardings(carry, jax.tree.map(lambda leaf: leaf.sharding, begun))
            return carry
        return with_shardings(carry, self._divided(carry))

    def _count_batches(self, values: Tree, carry: Carry) -> None:
        if self.batches is None:
            run = carry.runs
            if self._in_lanes:
                values = jax.tree.map(lambda x: x[0], values)
                shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), run)
                run = shapes
            _, tx = self._make_run(values)
            self.batches = batches_per_update(tx, run)

    def divided(self, carry: Carry) -> Carry:
        """Return a state in lanes divided over the devices as `begin` divides it."""
        return carry if self.mesh is None else jax.device_put(carry, self._divided(carry))

    def _divided(self, carry: Carry) -> Carry:
        return Carry(
            *(
                jax.tree.map(lambda leaf, spec=spec: NamedSharding(self.mesh, spec), part)
                for part, spec in zip(carry, self._division.carry, strict=True)
            )
        )

    @cached_property
    def loop_program(self) -> Any:
        """The program that makes some updates with batches of `Task.batch`."""
        return self._compiled(self._loop, 2)

    @cached_property
    def call_program(self) -> Any:
        """The program that goes on by one batch that it is given."""
        return self._compiled(self._call, 3)

    def advance(
        self,
        carry: Carry,
        values: Tree,
        keys: Keys,
        first: int,
        stop: int,
        *,
        batches: Iterator[Batch] | None = None,
        judged: Judged = NEVER,
    ) -> tuple[Carry, dict[str, np.ndarray]]:
        """Make the updates `first` … `stop` − 1; the state passed in is donated.

        Args:
            carry: the runs before the first of these updates.
            values: the values of each lane.
            keys: the keys of each seed.
            first: the first update, counted from 0.
            stop: the update to stop before, at most `size` later.
            batches: the batches of these updates, on the device; None for those of `Task.batch`.
            judged: the last evaluation, () or (lanes, seeds) each.

        Returns:
            The runs, and the records, name → (updates,) or (lanes, seeds, updates).

        Raises:
            Unfinished: the batches failed, with that error as its cause.
        """
        start, count = np.int32(first * self.batches), (stop - first) * self.batches
        if batches is None:
            carry = self.loop_program(values, keys, carry, start, np.int32(count), judged)
            return carry, _records(carry, stop - first)
        for i in range(count):
            try:
                batch = next(batches)
            except ValueError as error:
                done, waiting = divmod(i, self.batches)
                raise Unfinished(carry, _records(carry, done), waiting) from error
            carry = self.call_program(values, keys, carry, start, np.int32(i), batch, judged)
            if i % IN_FLIGHT == IN_FLIGHT - 1:
                jax.block_until_ready(carry.records)
        return carry, _records(carry, stop - first)

    def advance_all(
        self,
        runs: Sequence[tuple[Carry, Tree, Keys, Judged]],
        first: int,
        stop: int,
        batches: Iterator[Batch],
    ) -> list[tuple[Carry, dict[str, np.ndarray]]]:
        """Make the same updates of several runs, each with its values and keys, on shared batches.

        Args:
            runs: the state of each run, which is donated, its values, its keys and its last
                evaluation.
            first: as for `advance`.
            stop: as for `advance`.
            batches: as for `advance`.

        Returns:
            For each run what `advance` returns.
        """
        carries = [carry for carry, *_ in runs]
        start = np.int32(first * self.batches)
        for i in range((stop - first) * self.batches):
            batch = next(batches)
            carries = [
                self.call_program(values, keys, carry, start, np.int32(i), batch, judged)
                for carry, (_, values, keys, judged) in zip(carries, runs, strict=True)
            ]
            if i % IN_FLIGHT == IN_FLIGHT - 1:
                jax.block_until_ready(carries)
        return [(carry, _records(carry, stop - first)) for carry in carries]

    def _compiled(self, function: Callable, shared: int) -> Any:
        options = {} if self._shardings is None else {"out_shardings": self._shardings}
        return jax.jit(self._spread(function, shared), donate_argnums=2, **options)

    def _spread(self, function: Callable, shared: int) -> Callable:
        """Divide the runs of a function between the devices.

        Args:
            function: takes the values and the keys; unless it begins the runs, also the state, what
                all devices share, and the last evaluations.
            shared: the number of arguments that all devices share.
        """
        if self.mesh is None:
            return function
        values, keys, carry = self._division
        in_specs = (values, keys)
        if shared:
            in_specs += (carry, *[ALL] * shared, carry.runs)
        # No check of what is alike on all devices, because tasks may call what it cannot trace.
        options = {"in_specs": in_specs, "out_specs": carry, "check_vma": False}
        return jax.shard_map(function, mesh=self.mesh, **options)

    def _begin(self, values: Tree, keys: Keys) -> Carry:
        runs = self._begin_all(values, keys)
        observe, shape = self._observe, ()
        if self._in_lanes:
            observe, shape = jax.vmap(jax.vmap(observe)), (_length(values), _length(keys))
        observed = jax.eval_shape(observe, runs.opt_state, jnp.zeros(shape, float))
        records = {k: jnp.zeros((self._size, *x.shape), x.dtype) for k, x in observed.items()}
        return Carry(runs, records)

    def _loop(
        self,
        values: Tree,
        keys: Keys,
        carry: Carry,
        first: Array,
        count: Array,
        judged: Judged = NEVER,
    ) -> Carry:
        @with_fast_convolutions
        def body(i: Array, carry: Carry) -> Carry:
            return self._call(values, keys, carry, first, i, None, judged)

        return lax.fori_loop(0, count, body, carry)

    def _call(
        self,
        values: Tree,
        keys: Keys,
        carry: Carry,
        first: Array,
        i: Array,
        batch: Batch | None,
        judged: Judged = NEVER,
    ) -> Carry:
        """Go on by a batch: the one numbered `first` + `i`, or the one given."""
        runs, observed = self._update(values, keys, carry.runs, first + i, batch, judged)
        if self.batches == 1:
            records = {name: x.at[i].set(observed[name]) for name, x in carry.records.items()}
            return Carry(runs, records)
        update, place = i // self.batches, i % self.batches
        records = {name: x.at[update].set(observed[name]) for name, x in carry.records.items()}
        before = jnp.where(place == 0, 0, carry.records["loss"][update])
        mean = before + observed["loss"] / self.batches
        records["loss"] = carry.records["loss"].at[update].set(mean)
        return Carry(runs, records)

    def _begin_one(self, values: Tree, keys: Keys) -> TrainState:
        run = _loop.begin(*self._make_run(values), keys)
        # Numbers that are not arrays would have a weak type before the first update, and the
        # program that updates them would be compiled twice.
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), run)

    def _update_one(
        self,
        values: Tree,
        keys: Keys,
        run: TrainState,
        step: Array,
        batch: Batch | None,
        judged: Judged,
    ) -> tuple[TrainState, dict[str, Array]]:
        task, tx = self._make_run(values)
        if batch is None:
            batch = self._divide(task.batch(keys.batch, step))
        noise = jax.random.fold_in(keys.noise, step)
        run, loss = _loop.update_on(task, tx, run, batch, noise, judged, native=self._native)
        return run, self._observe(run.opt_state, loss)


def _records(carry: Carry, count: int) -> dict[str, np.ndarray]:
    """Return the first of the records, with updates as the last axis."""
    records = jax.device_get(carry.records)
    return {name: np.moveaxis(record[:count], 0, -1) for name, record in records.items()}


def compiled_shapes(program: Any, *args: Any) -> Tree:
    """Return the shapes of what a jitted function returns, with the shardings of the compiler."""
    where = program.lower(*args).compile().output_shardings
    return with_shardings(jax.eval_shape(program, *args), where)


def with_shardings(shapes: Tree, shardings: Tree) -> Tree:
    """Return the shapes and types of a tree with these shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings,
    )


def _length(tree: Tree) -> int:
    return len(jax.tree.leaves(tree)[0])


def _over_lanes_and_seeds(function: Callable, lane_axes: tuple, seed_axes: tuple) -> Callable:
    """Map over lanes, then over seeds; an axis of None marks an argument that does not vary."""
    return jax.vmap(jax.vmap(function, in_axes=seed_axes), in_axes=lane_axes)
