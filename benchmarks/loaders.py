"""How much of a slow loader is hidden behind the updates when its batches are read ahead?

A jitted update of a dense network takes as long as the loader takes for a batch, in two ways:

    waits       the loader sleeps, as it does for a disk or a network, and uses no core
    computes    the loader does arithmetic in NumPy, as it does to decode and augment, and needs a
                core of its own beside those of XLA

and three loops make the updates:

    plain       for batch in loader: make an update, and read its loss
    dispatch    the same, but the losses are read at the end, so that JAX may compute an update
                while the loop waits for the next batch
    ahead       `Batches.read`, which the lab's runs stand on, and each loss is read

XLA computes on one core, so that the loader has another one: where both need all cores, reading
ahead cannot hide one behind the other. The figures are throughputs as shares of that of the slower
part alone, the loader or the update: 1 is the best that any loop can do, and a loop that does one
after the other has 0.5. All loops are measured side by side, in random order in each round; the
table has the medians of the rounds' shares with quartiles. It takes a minute on two CPU cores,
which nothing else must use:

    python benchmarks/loaders.py
"""

import argparse
import os
import time

os.environ.setdefault("NPROC", "1")  # the threads with which XLA computes

import jax
import jax.numpy as jnp
import numpy as np

from optlab.lab.data import Batches

WIDTH, BATCH = 512, 256
UPDATES = 40
"""Updates of a sample."""


@jax.jit
def update(params, batch):
    """Make an update of a network of three layers, as by SGD; return parameters and loss."""

    def loss_of(params):
        h = batch["x"]
        for kernel in params:
            h = jnp.tanh(h @ kernel)
        return jnp.mean((h - batch["y"]) ** 2)

    loss, gradients = jax.value_and_grad(loss_of)(params)
    return [p - 0.1 * g for p, g in zip(params, gradients, strict=True)], loss


class Waiting:
    """A loader that sleeps for each batch."""

    def __init__(self, seconds, batch):
        self.seconds, self.batch = seconds, batch

    def work(self):
        time.sleep(self.seconds)

    def __iter__(self):
        for _ in range(UPDATES):
            self.work()
            yield {name: array.copy() for name, array in self.batch.items()}


class Computing(Waiting):
    """A loader that takes sines of as many numbers as fill the time on an idle machine."""

    def __init__(self, seconds, batch):
        super().__init__(seconds, batch)
        self.numbers = np.linspace(0, 1, 50_000)
        once = min(timed(lambda: np.sin(self.numbers)) for _ in range(20))
        self.times = max(1, round(seconds / once))

    def work(self):
        for _ in range(self.times):
            np.sin(self.numbers)


def timed(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def loader_alone(loader, params):
    for _ in loader:
        pass


def update_alone(loader, params):
    for _ in range(UPDATES):
        params, loss = update(params, loader.batch)
        float(loss)


def plain(loader, params):
    for batch in loader:
        params, loss = update(params, batch)
        float(loss)


def dispatch(loader, params):
    losses = []
    for batch in loader:
        params, loss = update(params, batch)
        losses.append(loss)
    jax.block_until_ready(losses)


def ahead(loader, params):
    batches = loader.batches
    with batches.read(stop=UPDATES, move=jax.device_put) as stream:
        for batch, _ in stream:
            params, loss = update(params, batch)
            float(loss)


PARTS = (loader_alone, update_alone)
LOOPS = (plain, dispatch, ahead)


def measure(loader, params, rounds):
    """Return name of the loop → its shares, one a round."""
    rng = np.random.default_rng(0)
    shares = {loop.__name__: [] for loop in LOOPS}
    for _ in range(rounds):
        contenders = rng.permutation([*PARTS, *LOOPS])
        seconds = {}
        for contender in contenders:
            # Making `Batches` reads a batch, which is part of starting a run, not of its updates.
            loader.batches = Batches("benchmark", "dense", loader) if contender is ahead else None
            seconds[contender] = timed(lambda contender=contender: contender(loader, params))
        slower = max(seconds[part] for part in PARTS)
        for loop in LOOPS:
            shares[loop.__name__].append(slower / seconds[loop])
    return shares


def main():
    """Print the shares of each loop with each loader."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    params = [
        jnp.asarray(rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5, jnp.float32) for _ in range(3)
    ]
    batch = {name: rng.normal(size=(BATCH, WIDTH)).astype(np.float32) for name in ("x", "y")}
    jax.block_until_ready(update(params, batch))
    loader = Waiting(0.0, batch)
    seconds = np.median([timed(lambda: update_alone(loader, params)) for _ in range(5)]) / UPDATES
    print(f"an update takes {1000 * seconds:.1f} ms")
    print("loader      " + "".join(f"{loop.__name__:>20}" for loop in LOOPS))
    for name, kind in (("waits", Waiting), ("computes", Computing)):
        shares = measure(kind(seconds, batch), params, rounds)
        cells = []
        for values in shares.values():
            low, middle, high = np.percentile(values, (25, 50, 75))
            cells.append(f"{middle:.2f} [{low:.2f}–{high:.2f}]")
        print(f"{name:12}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
