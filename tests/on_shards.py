"""One of several processes that train together on a divided state, for `test_processes.py`.

    python on_shards.py RANK PROCESSES PORT RESULT [CHECKPOINTS [DIES]]

trains on four devices, which all processes together have, from the newest checkpoint in CHECKPOINTS
or from the start, and process 0 writes parameters and state into RESULT. The last process kills
itself before update DIES.
"""

import os
import signal
import sys

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
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


if __name__ == "__main__":
    main(*sys.argv[1:])
