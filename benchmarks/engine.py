"""Do the lab's runs cost more than the loops that they replace, on the models of users?

Four networks in Flax NNX, as users write them, are trained with Adam on arrays in memory: a dense
one, a convolutional one, a transformer, and a recurrent one. All contenders draw the same batches
within the compiled program, and nothing is evaluated.

    train       `lab.train`, against the plain loop: one compiled update, called from Python. The
                figure is the time of an update, once all is compiled, as a multiple of the plain
                loop's. The aim is at most 1.1.
    sweep       `lab.sweep` over learning rates, against the careful loop: one compiled update with
                the rate as an argument, one trial after another. There are two figures, both as
                multiples of the careful loop's: the time of the whole search, and that time without
                what JAX spends on tracing and compiling. The aim is at most 1.0.

Contenders take turns, and the milliseconds and ratios are those of the medians of turns. It takes
about two minutes on two CPU cores, which nothing else must use:

    python benchmarks/engine.py

It needs optlab[lab].
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optlab
from optlab import lab

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.environment import environment

RATES = {"learning_rate": lab.LogUniform(1e-5, 1e-3)}  # none of which diverges

TURNS = 10
"""Intervals of a run of `lab.train`, after the first one, which compiles."""

COMPILING = "/jax/core/compile/"
"""How the names of JAX's events begin that measure tracing, lowering and compiling."""

HEADINGS = ("loop ms", "lab ms", "ratio")


class Dense(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(64, 128, rngs=rngs)
        self.second = nnx.Linear(128, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.second(nnx.relu(self.first(x)))))


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.second(nnx.relu(self.first(x)))).mean((1, 2)))


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.before_attention = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.before_mlp = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.before_attention(x))
        return x + self.down(nnx.gelu(self.up(self.before_mlp(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.tokens = nnx.Embed(64, 64, rngs=rngs)
        self.positions = nnx.Embed(64, 64, rngs=rngs)
        self.first, self.second = Block(64, rngs), Block(64, rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        return self.head(self.second(self.first(x)).mean(axis=1))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.RNN(nnx.GRUCell(16, 64, rngs=rngs))
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.layer(x)[:, -1])


class Case(NamedTuple):
    """A model, its data, and how much of it is trained.

    Attributes:
        model: nnx.Rngs → the model.
        shape: the shape of one input.
        batch_size: examples in a batch.
        interval: updates of a turn of `train` and of the plain loop.
        trials: trials of the sweep.
        steps: updates of a trial.
    """

    model: type[nnx.Module]
    shape: tuple[int, ...]
    batch_size: int
    interval: int
    trials: int
    steps: int


CASES = {
    "dense": Case(Dense, (64,), 32, interval=300, trials=16, steps=500),
    "convolutional": Case(Convolutional, (32, 32, 3), 64, interval=10, trials=8, steps=40),
    "transformer": Case(Transformer, (64,), 16, interval=10, trials=8, steps=50),
    "recurrent": Case(Recurrent, (48, 16), 32, interval=50, trials=8, steps=150),
}


def make_task(case):
    """Return the task of a case, whose evaluation costs nothing."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 512)
    inputs = rng.normal(size=(512, *case.shape)).astype(np.float32)
    if case.model is Transformer:
        inputs = rng.integers(0, 64, (512, *case.shape))
    few = inputs[:64], labels[:64]
    task = lab.tasks.nnx_classifier(
        case.model.__name__,
        case.model,
        train=(inputs, labels),
        validation=few,
        test=few,
        batch_size=case.batch_size,
    )
    nothing = {"loss": jnp.float32(0.0)}
    return dataclasses.replace(
        task, splits={}, score="loss", maximize=False, evaluate=lambda *args: nothing, predict=None
    )


def compiled_update(task):
    """Return the update of a user's own loop, compiled once for all rates, and its start."""
    _, data_key, noise = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def start(rate):
        params, model_state = task.init(jax.random.key(0))
        return params, model_state, optlab.adam(rate).init(params)

    @jax.jit
    def update(rate, params, model_state, opt_state, step):
        batch, key = task.batch(data_key, step), jax.random.fold_in(noise, step)
        loss_of = jax.value_and_grad(task.loss, has_aux=True)
        (loss, model_state), grads = loss_of(params, model_state, batch, key)
        updates, opt_state = optlab.adam(rate).update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), model_state, opt_state), loss

    return start, update


def plain_loop(case, task):
    """Return a function that makes the updates of a turn and returns its seconds."""
    start, update = compiled_update(task)
    state = start(1e-3)

    def turn():
        nonlocal state
        began = time.perf_counter()
        for step in range(case.interval):
            state, loss = update(1e-3, *state, step)
        jax.block_until_ready(loss)
        return time.perf_counter() - began

    turn()  # compiles
    return turn


def measure_train(case, task, rounds):
    """Return the median seconds of a turn of the lab and of the plain loop."""
    turn = plain_loop(case, task)
    of_lab, of_loop = [], []
    for _ in range(rounds):
        of_loop += [turn() for _ in range(TURNS // 2)]
        marks = []
        lab.train(
            task,
            optlab.adam(1e-3),
            steps=(1 + TURNS) * case.interval,
            eval_every=case.interval,
            key=jax.random.key(0),
            callbacks=[lambda _, marks=marks: marks.append(time.perf_counter())],
        )
        of_lab += list(np.diff(marks)[-TURNS:])
        of_loop += [turn() for _ in range(TURNS // 2)]
    return np.median([of_lab, of_loop], axis=1)


class Compilations:
    """The times at which JAX traced, lowered and compiled since the last call of `seconds`."""

    def __init__(self):
        self._spans = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, seconds, **_):
        if event.startswith(COMPILING):
            now = time.time()
            self._spans.append((now - seconds, now))

    def seconds(self):
        """Return the seconds in which JAX did any of it, counted once where events overlap."""
        total, until = 0.0, 0.0
        for began, ended in sorted(self._spans):
            total += max(0.0, ended - max(began, until))
            until = max(until, ended)
        self._spans.clear()
        return total


def careful_loop(case, task, rates):
    start, update = compiled_update(task)
    for rate in rates:
        state = start(rate)
        for step in range(case.steps):
            state, loss = update(rate, *state, step)
        float(loss)


def sweep(case, task):
    options = {"trials": case.trials, "steps": case.steps, "eval_every": case.steps}
    result = lab.sweep(task, optlab.adam, RATES, **options)
    return [trial.values["learning_rate"] for trial in result.trials]


def measure_sweep(case, task, rounds, compilations):
    """Return the median seconds of searches, (lab or careful loop, whole or without compilation).

    Each search compiles anew.
    """

    def timed(search, *args):
        compilations.seconds()
        began = time.perf_counter()
        result = search(case, task, *args)
        whole = time.perf_counter() - began
        return result, (whole, whole - compilations.seconds())

    seconds = []
    for _ in range(rounds):
        rates, of_lab = timed(sweep)
        _, of_loop = timed(careful_loop, rates)
        seconds.append((of_lab, of_loop))
    return np.median(seconds, axis=0)


def table(rows):
    """Return rows of cells as lines of text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def main(arguments=None):
    """Print the ratios of each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="runs of each contender")
    parser.add_argument("--only", choices=CASES, help="measure one model")
    options = parser.parse_args(arguments)
    compilations = Compilations()
    versions = environment()
    print(", ".join(f"{name} {versions[name]}" for name in ("jax", "optlab", "cores", "device")))
    print(versions["CPU"])
    trains, sweeps = [("train", *HEADINGS)], [("sweep", *HEADINGS, "with compilation")]
    for name in [options.only] if options.only else CASES:
        case = CASES[name]
        task = make_task(case)
        of_lab, of_loop = 1000 * measure_train(case, task, options.rounds) / case.interval
        trains.append((name, f"{of_loop:.2f}", f"{of_lab:.2f}", f"{of_lab / of_loop:.2f}"))
        print(".", end="", flush=True, file=sys.stderr)
        seconds = measure_sweep(case, task, options.rounds, compilations)
        of_lab, of_loop = 1000 * seconds[:, 1] / (case.trials * case.steps)
        row = (name, f"{of_loop:.2f}", f"{of_lab:.2f}", f"{of_lab / of_loop:.2f}")
        sweeps.append((*row, f"{seconds[0, 0] / seconds[1, 0]:.2f}"))
        print(".", end="", flush=True, file=sys.stderr)
    print("\n\nmilliseconds of an update, and multiples of the loop's time")
    print("\n".join([*table(trains), "", *table(sweeps)]))


if __name__ == "__main__":
    main()
