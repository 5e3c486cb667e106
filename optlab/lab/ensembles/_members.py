"""Train several runs of one task and one optimizer as one compiled program, on all devices.

The runs are independent of each other. Where several devices divide them evenly, each device trains
its own runs, and nothing is sent between devices.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optlab._types import Array, Tree
from optlab.lab.tasks._task import Task
from optlab.lab.training import _loop
from optlab.lab.training._loop import Keys, TrainState
from optlab.lab.training._run import learning_rates
from optlab.lab.training._windows import batches_per_update

Rates = Mapping[str, float]
"""The learning rates of an update, by the group of parameters; empty where they are unknown."""


def train_together(
    task: Task, tx: optax.GradientTransformation, keys: Keys, steps: int
) -> TrainState:
    """Return the runs of some keys after their updates.

    Args:
        task: the problem.
        tx: the optimizer of all runs.
        keys: each (members,); a run is the one that `train` makes from these keys.
        steps: updates, ≥ 1.

    Returns:
        Arrays (members, …), divided between the devices that trained them.
    """
    one = jax.eval_shape(partial(_loop.begin, task, tx), jax.tree.map(lambda key: key[0], keys))
    batches = steps * batches_per_update(tx, one)

    def train_all(keys: Keys) -> TrainState:
        runs = jax.vmap(partial(_loop.begin, task, tx))(keys)
        update = jax.vmap(partial(_loop.update, task, tx), in_axes=(0, 0, None))
        return lax.fori_loop(0, batches, lambda step, runs: update(keys, runs, step)[0], runs)

    devices = _devices(len(keys.init))
    if len(devices) == 1:
        return jax.jit(train_all)(keys)
    mesh, members = Mesh(np.array(devices), ("members",)), PartitionSpec("members")
    keys = jax.device_put(keys, NamedSharding(mesh, members))
    # No check of what is alike on all devices: nothing is, and tasks may call what it cannot trace.
    options = {"mesh": mesh, "in_specs": members, "out_specs": members, "check_vma": False}
    return jax.jit(jax.shard_map(train_all, **options))(keys)


def train_in_parts(
    task: Task,
    tx: optax.GradientTransformation,
    keys: Keys,
    stops: Sequence[int],
    check: Callable[[int, Rates, Rates], None],
) -> list[tuple[Tree, Tree]]:
    """Return the parameters and the model's state of one run after several numbers of updates.

    Args:
        task: the problem.
        tx: the optimizer.
        keys: the keys of the run.
        stops: the numbers of updates, ascending; the run ends at the last.
        check: called after each of them but the last with their number, the rates there, and those
            of the first later update before the next stop that has others; of the last one before
            it if none has. An optimizer that accumulates gradients keeps its rates for some.
    """
    begin = jax.jit(partial(_loop.begin, task, tx))
    batches = batches_per_update(tx, jax.eval_shape(begin, keys))

    def advance(run: TrainState, first: Array, stop: Array) -> TrainState:
        def body(step: Array, run: TrainState) -> TrainState:
            return _loop.update(task, tx, keys, run, step)[0]

        return lax.fori_loop(first * batches, stop * batches, body, run)

    advance = jax.jit(advance)
    run, first, parts = begin(keys), 0, []
    for stop in stops:
        if parts:
            end, before = first, _rates(run)
            after = before
            while before and after == before and first < stop:
                run, first = advance(run, first, first + 1), first + 1
                after = _rates(run)
            check(end, before, after)
        run = advance(run, first, stop)
        parts.append((run.params, run.model_state))
        first = stop
    return parts


def _rates(run: TrainState) -> Rates:
    """Return the learning rates of a run's last update."""
    return {group: float(rate) for group, rate in learning_rates(run.opt_state).items()}


def stack(trees: Sequence[Tree]) -> Tree:
    """Stack trees of the same structure, whose arrays get a first axis of members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _devices(members: int) -> list[jax.Device]:
    """Return the most local devices that divide the members evenly."""
    devices = jax.local_devices()
    number = max(n for n in range(1, len(devices) + 1) if members % n == 0)
    return devices[:number]
