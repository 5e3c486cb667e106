"""Training on a divided state, for `test_processes.py`, and what it moves, for the documentation.

    python on_shards.py moved

prints what the compiled steps of some rules move between four devices.

    python on_shards.py RANK PROCESSES PORT RESULT [CHECKPOINTS [DIES]]

is one of several processes. It trains on four devices, which all processes together have, from the
newest checkpoint in CHECKPOINTS or from the start, and process 0 writes parameters and state into
RESULT. The last process kills itself before update DIES.
"""

import math
import os
import signal
import sys
from collections import Counter

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from optlab import sharding

STEPS, EVERY = 6, 2
"""The updates of a run, and those from one checkpoint to the next."""

DEVICES = 4
SIZE = 8
"""Examples of a batch."""

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(STEPS * SIZE, 4)).astype(np.float32)
TARGETS = INPUTS @ np.arange(4, dtype=np.float32)
PARAMS = {
    "w": RNG.normal(size=(4, 8)).astype(np.float32),
    "b": np.zeros(8, np.float32),
    "head": RNG.normal(size=(8,)).astype(np.float32),
    "mean": np.zeros((), np.float32),
}


def optimizer():
    return optax.chain(optlab.clip_by_global_norm(1.0), optlab.adamw(0.01))


def loss(params, batch):
    hidden = jax.numpy.tanh(batch["inputs"] @ params["w"] + params["b"])
    predicted = hidden @ params["head"] + params["mean"]
    return jax.numpy.mean((predicted - batch["targets"]) ** 2)


def part(step, rank, processes):
    """Return the examples of a batch that one process has."""
    size = SIZE // processes
    own = slice(step * SIZE + rank * size, step * SIZE + (rank + 1) * size)
    return {"inputs": INPUTS[own], "targets": TARGETS[own]}


def train(mesh, rank, processes, checkpoints=None, dies=None):
    """Return parameters and state after all updates."""
    tx = optimizer()
    step = sharding.step(tx, loss, PARAMS, mesh)
    params = jax.device_put(PARAMS, step.params_sharding)
    state, first, manager = sharding.init(tx, params, mesh), 0, None
    if checkpoints is not None:
        import orbax.checkpoint as ocp

        manager = ocp.CheckpointManager(checkpoints)
        if (first := manager.latest_step() or 0) > 0:
            target = sharding.abstract_state(tx, params, mesh)
            target = ocp.args.StandardRestore((params, target))
            params, state = manager.restore(first, args=target)
    for number in range(first, STEPS):
        if number == dies and rank == processes - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        batch = sharding.divide_batch(part(number, rank, processes), mesh)
        params, state, _ = step(params, state, batch)
        if manager is not None and (number + 1) % EVERY == 0:
            manager.save(number + 1, args=ocp.args.StandardSave((params, state)))
            manager.wait_until_finished()
    if manager is not None:
        manager.close()
    return params, state


def main(rank, processes, port, result, checkpoints=None, dies=None):
    rank, processes = int(rank), int(processes)
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    address = f"127.0.0.1:{port}"
    jax.distributed.initialize(address, processes, rank, coordinator_bind_address=address)
    mesh = jax.make_mesh((DEVICES,), ("data",))
    dies = None if dies is None else int(dies)
    params, state = train(mesh, rank, processes, checkpoints, dies)
    assert state[1][0].mu["w"].addressable_shards[0].data.shape == (1, 8)
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        leaves = jax.tree.leaves(whole((params, state)))
    if rank == 0:
        np.savez(result, *map(np.asarray, leaves))
    jax.distributed.shutdown()


def moved():
    """Print a line for each rule and kind of mesh."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    shapes = {"w1": (8, 16), "b1": (16,), "w2": (16, 16), "b2": (16,), "w3": (16, 4), "b3": (4,)}
    params = {name: jax.ShapeDtypeStruct(s, np.float32) for name, s in shapes.items()}
    batch = jax.ShapeDtypeStruct((SIZE, 8), np.float32)
    axes = {"w3": optlab.rules.Axes()}
    rules = {
        "SGD": optlab.sgd(0.1),
        "AdamW": optlab.adamw(0.1),
        "clip, AdamW": optax.chain(optlab.clip_by_global_norm(1.0), optlab.adamw(0.1)),
        "LAMB": optlab.lamb(0.1),
        "Adafactor": optlab.adafactor(0.1, min_dim_size_to_factor=2),
        "Muon": optlab.muon(0.1, axes=axes),
        "Shampoo": optlab.shampoo(0.1),
        "SOAP": optlab.soap(0.1),
    }
    for name, tx in rules.items():
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,))
            step = sharding.step(tx, deep_loss, params, mesh)
            where = jax.ShapeDtypeStruct(batch.shape, batch.dtype, sharding=step.batch_sharding)
            state = sharding.abstract_state(tx, params, mesh)
            placed = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                params,
                step.params_sharding,
            )
            found = sharding.collectives(step.lower(placed, state, where).compile())
            counts = Counter(one.operation for one in found)
            numbers = Counter()
            for one in found:
                numbers[one.operation] += sum(math.prod(shape) for shape in one.shapes)
            each = [f"{n} {what} of {numbers[what]:,}" for what, n in sorted(counts.items())]
            print(f"{name:<12} {kind.name:<9}", ", ".join(each), flush=True)


def deep_loss(params, batch):
    x = jax.numpy.tanh(batch @ params["w1"] + params["b1"])
    x = jax.numpy.tanh(x @ params["w2"] + params["b2"])
    return jax.numpy.mean((x @ params["w3"] + params["b3"]) ** 2)


if __name__ == "__main__":
    if sys.argv[1] == "moved":
        moved()
    else:
        main(*sys.argv[1:])
