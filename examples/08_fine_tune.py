"""Move a network from one task to another with few examples: what to train, and at which rates.

A small CNN learns the digits 0 to 4, and then gets a new head for the digits 5 to 9, of which it
sees 10, 30 or 100 examples a class. All ways to train it make equally many updates:

- from scratch: all parameters, from random ones;
- all, one rate: all parameters, from those of the digits 0 to 4;
- head only: the head, on the frozen rest;
- head, random rest: the same on random parameters, which tells what the rest has learned;
- head, then more: the head for a third of the updates; then, at a tenth of the rate, one layer
  more after the other, from the last to the first;
- layer-wise decay: all parameters, with half the rate for each layer further from the head.

Each way gets the same search: the same rates, of which the one with the least error on validation
images counts, for each number of examples apart. There are more validation images than anybody has
beside 10 examples a class. Each seed has its own images, first parameters and order of batches, the
same for all ways.

Here nothing beats training from scratch. With 10 examples a class the network then errs on 6.8% of
the test images, and on 9.1% where all of it is moved; with 100 examples, on 2% either way. Head
only is worst: 18.5% with 10 examples, and 14.2% if the rest is random. So what tells the digits 0
to 4 apart does not help to tell the digits 5 to 9. The three ways that end with all moved
parameters trained differ by about a point. Where the first task is much larger and like the second,
the order can be another one; this script shows how to find out.

The script prints each step, and draws fine_tune.png; it takes two minutes on two CPU cores. With
--quick it only shows that it runs:

    python examples/08_fine_tune.py
"""

import argparse
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import optlab
from optlab import groups
from optlab.schedules import constant, cosine, join

EXAMPLES = (10, 30, 100)
"""Examples a class to train on."""

LAYERS = ["conv1", "conv2", "dense"]
"""The layers before the head, from input to output."""

HELD_OUT = 37
"""Images a class to validate on, and as many to test on."""

BATCH_SIZE = 32


class Sizes(NamedTuple):
    """The sizes of the experiment."""

    rates: int = 8
    seeds: int = 10
    steps: int = 240


QUICK = Sizes(rates=2, seeds=2, steps=12)


class CNN(nn.Module):
    """Images (batch, 8, 8, 1) → logits (batch, 5)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(16, name="conv1")(patches(x)))
        x = nn.relu(nn.Dense(32, name="conv2")(patches(x)))
        x = nn.relu(nn.Dense(64, name="dense")(x.reshape(len(x), -1)))
        return nn.Dense(5, name="head")(x)


def patches(x: jax.Array) -> jax.Array:
    """Return the 3 × 3 patches around every other pixel; a linear map of them is a convolution.

    XLA computes this some five times faster on a CPU than convolutions of so few pixels.
    """
    size = x.shape[1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [x[:, i : i + size : 2, j : j + size : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


class Images(NamedTuple):
    """Images and labels 0 to 4, one class after the other, so that the first 5 n have n of each."""

    x: np.ndarray
    y: np.ndarray


class Data(NamedTuple):
    """The images of one seed, or with a first axis those of all."""

    before: Images
    train: Images
    validation: Images
    test: Images


def load(seeds: int) -> Data:
    """Return the images of all seeds, each with a split of its own."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype("float32") / 16

    def of_seed(seed: int) -> Data:
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]

        def taken(digits: range, start: int, stop: int) -> Images:
            places = np.stack([shuffled[digit][start:stop] for digit in digits], axis=1).ravel()
            return Images(images[places], labels[places] % 5)

        ends = np.cumsum([0, max(EXAMPLES), HELD_OUT, HELD_OUT])
        new = [taken(range(5, 10), *bounds) for bounds in pairwise(ends)]
        return Data(taken(range(5), 0, 170), *new)

    return jax.tree.map(lambda *arrays: np.stack(arrays), *map(of_seed, range(seeds)))


def error(params: Any, images: Images) -> jax.Array:
    """Return the percentage of images that the network takes for others."""
    logits = CNN().apply({"params": params}, images.x)
    return 100 * jnp.mean(logits.argmax(-1) != images.y)


def train(
    key: jax.Array,
    params: Any,
    tx: optax.GradientTransformation,
    images: Images,
    count: jax.Array | int,
    steps: int,
) -> Any:
    """Return the parameters after some updates with batches of the first `count` images."""

    def loss(params, chosen):
        logits = CNN().apply({"params": params}, images.x[chosen])
        return optax.softmax_cross_entropy_with_integer_labels(logits, images.y[chosen]).mean()

    def update(run, key):
        params, state = run
        chosen = jax.random.randint(key, (BATCH_SIZE,), 0, count)
        updates, state = tx.update(jax.grad(loss)(params, chosen), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key, steps)
    return jax.lax.scan(update, (params, tx.init(params)), keys)[0][0]


@jax.jit
@jax.vmap
def fresh(key: jax.Array) -> Any:
    """Return random parameters for each key."""
    return CNN().init(key, jnp.zeros((1, 8, 8, 1)))["params"]


def adamw(schedule: optax.Schedule) -> optax.GradientTransformation:
    return optlab.adamw(schedule, weight_decay=0.01)


def trained_as_one(params, rate, steps):
    """Train all parameters at one rate."""
    return groups.partition(params, [groups.no_decay()], optimizer=adamw(cosine(rate, steps)))


def head_only(params, rate, steps):
    """Train the head, on the frozen rest."""
    rules = [("head", groups.group()), (..., groups.frozen()), groups.no_decay()]
    return groups.partition(params, rules, optimizer=adamw(cosine(rate, steps)))


def head_then_more(params, rate, steps):
    """Train the head, and then at a tenth of the rate one layer more after the other."""
    third, ninth = steps // 3, steps // 9
    starts = {"head": 0, "dense": third, "conv2": third + ninth, "conv1": third + 2 * ninth}
    schedule = join([constant(rate), cosine(0.1 * rate, steps - third)], [third])
    rules = [groups.gradual_unfreezing(starts), groups.no_decay()]
    return groups.partition(params, rules, optimizer=adamw(schedule))


def layerwise(params, rate, steps):
    """Train all parameters, with half the rate for each layer further from the head."""
    rules = [groups.layerwise_decay(0.5, layers=LAYERS), groups.no_decay()]
    return groups.partition(params, rules, optimizer=adamw(cosine(rate, steps)))


WAYS = {
    "from scratch": trained_as_one,
    "all, one rate": trained_as_one,
    "head only": head_only,
    "head, random rest": head_only,
    "head, then more": head_then_more,
    "layer-wise decay": layerwise,
}
FROM_RANDOM = ("from scratch", "head, random rest")
COLORS = ("#555555", "#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#009E73")


@partial(jax.jit, static_argnames="steps")
@partial(jax.vmap, in_axes=(0, 0, 0, None))
def pretrain(key, params, images, steps):
    """Return the parameters of the digits 0 to 4 for each seed."""
    tx = trained_as_one(params, 3e-3, steps)
    return train(key, params, tx, images, images.y.size, steps)


@partial(jax.jit, static_argnames=("make", "steps"))
def fine_tune(make, keys, params, data, rates, steps):
    """Return the percentages of errors on validation and test: two of (examples, rates, seeds)."""

    def one(examples, rate, key, params, data):
        params = train(key, params, make(params, rate, steps), data.train, 5 * examples, steps)
        return error(params, data.validation), error(params, data.test)

    of_seeds = jax.vmap(one, in_axes=(None, None, 0, 0, 0))
    of_rates = jax.vmap(of_seeds, in_axes=(None, 0, None, None, None))
    of_examples = jax.vmap(of_rates, in_axes=(0, None, None, None, None))
    return of_examples(jnp.array(EXAMPLES), rates, keys, params, data)


class Result(NamedTuple):
    """The best rate of a way for a number of examples, and the test errors there, by seed."""

    rate: float
    errors: np.ndarray


def at_best_rate(validation: np.ndarray, test: np.ndarray, rates: np.ndarray) -> list[Result]:
    """Return for each number of examples the result at the rate that validates best."""
    best = validation.mean(axis=-1).argmin(axis=-1)
    return [Result(rates[place], own[place]) for place, own in zip(best, test, strict=True)]


def print_table(results: dict[str, list[Result]]) -> None:
    print(f"{'examples a class':21}" + "".join(f"{n:<22}" for n in EXAMPLES).rstrip())
    for name, row in results.items():
        cells = [
            f"{one.errors.mean():4.1f} ± {one.errors.std(ddof=1):.1f} at {one.rate:.2g}"
            for one in row
        ]
        print(f"{name:19}" + "".join(f"{cell:22}" for cell in cells).rstrip())
    print("\nmore than from scratch, in points (mean over seeds ± standard error)")
    scratch, *others = results
    for name in others:
        cells = []
        for zero, one in zip(results[scratch], results[name], strict=True):
            more = one.errors - zero.errors
            cells.append(f"{more.mean():+4.1f} ± {more.std(ddof=1) / more.size**0.5:.1f}")
        print(f"{name:19}" + "".join(f"{cell:22}" for cell in cells).rstrip())


def draw(results: dict[str, list[Result]]) -> Figure:
    """Draw the error of each seed, and the mean over seeds."""
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    ax = figure.subplots()
    for place, (name, row) in enumerate(results.items()):
        shift, color = 0.13 * (place - (len(results) - 1) / 2), COLORS[place]
        for number, one in enumerate(row):
            x = np.full(len(one.errors), number + shift)
            ax.scatter(x, one.errors, s=14, color=color, alpha=0.35, linewidths=0)
            label = name if number == 0 else None
            ax.plot(x[:1], one.errors.mean(), "_", ms=13, mew=3, color=color, label=label)
    ax.set_xticks(range(len(EXAMPLES)), [f"{n} examples a class" for n in EXAMPLES])
    ax.set(ylabel="test error, percent", ylim=(0, None))
    ax.legend(frameon=False, title="mean, and each seed")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare ways to fine-tune.")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    sizes = QUICK if parser.parse_args().quick else Sizes()
    rates = np.geomspace(1e-3, 10**0.5, sizes.rates, dtype=np.float32)
    data = load(sizes.seeds)
    *for_params, for_batches = jax.random.split(jax.random.key(0), (3, sizes.seeds))
    scratch, new = map(fresh, for_params)

    print("1. What does layer-wise decay do with each parameter?")
    params = jax.tree.map(lambda p: p[0], scratch)
    print(optlab.describe(layerwise(params, 1e-3, sizes.steps), params))

    print("\n2. Learn the digits 0 to 4")
    pretrained = pretrain(for_batches, scratch, data.before, 2 * sizes.steps)
    errors = jax.vmap(error)(pretrained, data.before)
    print(f"error on these images: {errors.mean():.1f}%")

    print(f"\n3. Learn the digits 5 to 9: test error in percent, best of {sizes.rates} rates")
    moved = {**pretrained, "head": new["head"]}
    results = {}
    for name, make in WAYS.items():
        params = new if name in FROM_RANDOM else moved
        errors = fine_tune(make, for_batches, params, data, rates, sizes.steps)
        results[name] = at_best_rate(*map(np.asarray, errors), rates)
    print_table(results)
    draw(results).savefig("fine_tune.png")


if __name__ == "__main__":
    main()
