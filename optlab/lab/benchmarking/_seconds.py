"""The time of an update, measured alone.

A run with the chosen values is updated as in an ordinary loop, by one compiled call for each
update, and no other run of this process goes on at the same time. The first `BLOCK` updates, which
compile and warm up, do not count. Of the next blocks the fastest counts, because whatever else
the machine does can only make a block slower. A block is as long as two periods of the rules that
do some of their work at every tenth update. Evaluation does not count, nor does the reading of
batches from a loader: one batch is used again and again.
"""

import os
import platform
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from optlab._types import Array
from optlab.lab.benchmarking._file import Timed
from optlab.lab.data import Batches
from optlab.lab.tasks._task import Task
from optlab.lab.training import _loop
from optlab.lab.training._loop import TrainState

BLOCK = 20
"""The updates of a block."""

BLOCKS = 5
"""The blocks that are timed."""


def seconds_per_update(who: str, task: Task, tx: optax.GradientTransformation) -> Timed:
    """Return the seconds that an update takes, and the machine.

    Args:
        who: the public name that errors begin with.
        task: the task.
        tx: the optimizer.
    """
    keys = _loop.run_keys(jax.random.key(0))
    batch = None
    if task.loader is not None:
        batch = Batches(who, task.name, task.loader, timeout=task.timeout).example

    @partial(jax.jit, donate_argnums=0)
    def update(run: TrainState, step: Array) -> tuple[TrainState, Array]:
        if batch is None:
            return _loop.update(task, tx, keys, run, step)
        return _loop.update_on(task, tx, run, batch, jax.random.fold_in(keys.noise, step))

    run = jax.jit(lambda: _loop.begin(task, tx, keys))()
    steps = list(jnp.arange(BLOCK))
    times = []
    for _ in range(1 + BLOCKS):
        began = time.perf_counter()
        for step in steps:
            run, loss = update(run, step)
        jax.block_until_ready((run, loss))
        times.append(time.perf_counter() - began)
    return Timed(machine(), min(times[1:]) / BLOCK)


def machine() -> str:
    """Return the machine in words: the device, or the processor and its cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} × {device.device_kind}"
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    """Return the processor's name from Linux, or from Python elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
