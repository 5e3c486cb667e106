"""Train on a memory-mapped file of 1 GB in a process that may not have as much memory.

The model is linear. Each batch has one row that is not 0, of length 1, and a step projects the
weights onto those that fit this row. That multiplies the square of their error by 1 − 1/32 on
average, so that all rows multiply the error by about (1 − 1/32)^512 ≈ 1e-7; a quarter of the rows
would leave 2%.

    python train_on_memory_map.py FILE

prints the largest error of the weights, and whether as much memory as the file has is refused.
"""

import resource
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from optlab.lab.data import Batches

FEATURES, SIZE, BATCHES = 32, 8192, 1024
HEADROOM = 192 * 2**20
"""Bytes above what the process has once everything is compiled."""


def write(path, truth):
    """Write the rows, of which most are a hole in the file; return rows and targets."""
    directions = np.random.default_rng(1).normal(size=(BATCHES, FEATURES)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    with open(path, "wb") as file:
        for i, direction in enumerate(directions):
            file.seek(i * SIZE * direction.nbytes)
            file.write(direction.tobytes())
        file.truncate(BATCHES * SIZE * direction.nbytes)
    targets = np.zeros(BATCHES * SIZE, np.float32)
    targets[::SIZE] = directions @ truth
    return np.memmap(path, np.float32, "r").reshape(-1, FEATURES), targets


@jax.jit
def step(weights, batch):
    residuals = batch["x"] @ weights - batch["y"]
    return weights - residuals @ batch["x"]


def limit_memory():
    """Forbid the process to have more than a little more memory of its own; return the limit."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmData" in x)
    limit = 1024 * int(line.split()[1]) + HEADROOM
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return limit


def main(path):
    truth = np.random.default_rng(0).normal(size=FEATURES).astype(np.float32)
    rows, targets = write(path, truth)
    starts = range(0, len(rows), SIZE)

    def loader():
        return ({"x": rows[i : i + SIZE], "y": targets[i : i + SIZE]} for i in starts)

    batches = Batches("train", "memory-map", loader)
    weights = step(jnp.zeros(FEATURES), batches.example)
    limit = limit_memory()
    with batches.read(stop=BATCHES, move=jax.device_put) as stream:
        for batch, _ in stream:
            weights = step(weights, batch).block_until_ready()
    try:
        np.ones(rows.nbytes, np.uint8)
        refused = False
    except MemoryError:
        refused = True
    print(float(np.abs(weights - truth).max()), refused and limit < rows.nbytes)


if __name__ == "__main__":
    main(sys.argv[1])
