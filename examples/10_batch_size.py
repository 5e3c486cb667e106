"""Measure what a larger batch saves, how the rate must grow with it, and what the noise predicts.

A network of two hidden layers learns handwritten digits, to which noise is added in training,
until its loss on fixed examples reaches a target. SGD with momentum and Adam do so with eight batch
sizes, from 4 examples to 512, with the rate tuned at each.

It measures the steps and examples to the target at the best of a grid of rates for each batch size;
how many more steps the hyperparameters take that `optlab.scaling.scale_batch` makes of the best at
16 examples, by each of its rules; and the noise scale that `optlab.scaling.noise_scale` measures in
the run at 16 examples, with the steps that it predicts: S = S_min·(1 + B_noise/batch).

From 4 examples to 64, SGD needed about as many examples (4,300 to 5,500), and so did Adam (3,800 to
4,500); with 512 they needed 19,200 and 14,000, for 38 and 27 steps. The noise scale was 65 after a
quarter of SGD's run and 162 at its end, 108 on average, from which 49 steps were predicted for 512
examples, a third too many; Adam's was 91 and 143, 106 on average, and 40 steps were predicted, half
too many. The fit to all eight batch sizes has 165 and 188.

A rule holds where it takes at most a quarter more steps than the best of the grid. SGD's linear
rule held from 4 to 32 examples, took 1.3 to 1.6 times the steps up to 256, and missed the target at
512; its square root held from 8 to 512 and missed the target at 4. Adam's square root held
everywhere, its linear rule from 16 to 64 examples; "sde" from 16 to 128, where it ends, since
averages would last less than an update. "noise" held everywhere for SGD, and for Adam to 128 (at
most 1.3 times the steps). The best of a grid from five seeds is uncertain by a tenth or so.

The script prints the tables, and draws batch_size.png; it takes two and a half minutes of a
processor's time. With --quick it only shows that it runs, most of which is compilation:

    python examples/10_batch_size.py
"""

import argparse
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from sklearn.datasets import load_digits

import optlab
from optlab import scaling

BATCHES = (4, 8, 16, 32, 64, 128, 256, 512)
BASE = 16
NOISE = 0.5  # the deviation of what is added to a pixel; pixels are standardized
RULES = ("linear", "sqrt", "sde", "noise")
TOLERANCE = 1.25  # a rule holds where its rate takes at most a quarter more steps than the best
COLORS = {"SGD": "#0072B2", "Adam": "#D55E00"}


class Sizes(NamedTuple):
    """The sizes of the experiment.

    Attributes:
        batches: the batch sizes.
        seeds: runs of each rate.
        rates: rates of a grid, each twice the one before.
        checks: how often a run looks at its loss.
        target: the loss to reach.
        longest: a run lasts for `longest`·(1 + 100/batch) updates.
        noise_seeds: runs in which the noise is measured.
        optimizers: the names of the optimizers.
    """

    batches: tuple[int, ...] = BATCHES
    seeds: int = 5
    rates: int = 7
    checks: int = 60
    target: float = 0.2
    longest: int = 70
    noise_seeds: int = 20
    optimizers: tuple[str, ...] = ("SGD", "Adam")


QUICK = Sizes((16, 32), 1, 2, checks=5, target=1.5, longest=5, noise_seeds=2, optimizers=("Adam",))


class Optimizer(NamedTuple):
    """An optimizer whose rate is tuned, and whose hyperparameters are scaled.

    Attributes:
        make: from its hyperparameters by name; `scale_batch` knows it by this function.
        others: its hyperparameters besides the rate.
        middle: the middle of the grid of rates at `BASE` examples.
        power: the middle grows with the batch size to this power.
    """

    make: Callable[..., optax.GradientTransformation]
    others: Mapping[str, float]
    middle: float
    power: float


OPTIMIZERS = {
    "SGD": Optimizer(optlab.sgd, {"momentum": 0.9}, 0.012, 0.8),
    "Adam": Optimizer(optlab.adam, {"b1": 0.9, "b2": 0.99, "eps": 1e-8}, 0.005, 0.5),
}


# The task

PIXELS, LABELS = load_digits(return_X_y=True)
PIXELS = np.float32((PIXELS - PIXELS.mean()) / PIXELS.std())
WIDTHS = (64, 64, 64, 10)


def initial(key):
    """Return the weights of a network; an array (inputs + 1, outputs) for each layer."""
    keys = jax.random.split(key, len(WIDTHS) - 1)
    return [
        jnp.vstack([jax.random.normal(k, (n, m)) * math.sqrt(2 / n), jnp.zeros((1, m))])
        for k, (n, m) in zip(keys, pairwise(WIDTHS), strict=True)
    ]


def loss(params, pixels, labels):
    """Return the mean cross-entropy of a batch."""
    x = pixels
    for i, w in enumerate(params):
        x = (jax.nn.relu(x) if i else x) @ w[:-1] + w[-1]
    return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()


def draw_batch(key, size):
    """Return random digits, with fresh noise."""
    index_key, noise_key = jax.random.split(key)
    index = jax.random.randint(index_key, (size,), 0, len(LABELS))
    noise = NOISE * jax.random.normal(noise_key, (size, PIXELS.shape[1]))
    return jnp.asarray(PIXELS)[index] + noise, jnp.asarray(LABELS)[index]


JUDGED = draw_batch(jax.random.key(99), 500)


# Runs


def updates_of(sizes: Sizes, batch: int) -> int:
    """Return the length of a run, a multiple of the number of checks."""
    steps = sizes.longest * (1 + 100 / batch)
    return sizes.checks * math.ceil(steps / sizes.checks)


def losses_of(optimizer: Optimizer, sizes: Sizes, batch: int, lanes: Mapping[str, np.ndarray]):
    """Return the judged losses of runs, (lanes, seeds, checks), by hyperparameters (lanes,)."""
    every = updates_of(sizes, batch) // sizes.checks

    def run(hyperparameters, seed):
        init_key, batch_key = jax.random.split(jax.random.key(seed))
        tx = optimizer.make(**hyperparameters)

        def update(step, run):
            params, state = run
            examples = draw_batch(jax.random.fold_in(batch_key, step), batch)
            updates, state = tx.update(jax.grad(loss)(params, *examples), state, params)
            return optax.apply_updates(params, updates), state

        def check(run, i):
            run = jax.lax.fori_loop(i * every, (i + 1) * every, update, run)
            return run, loss(run[0], *JUDGED)

        params = initial(init_key)
        return jax.lax.scan(check, (params, tx.init(params)), jnp.arange(sizes.checks))[1]

    by_seed = jax.vmap(run, in_axes=(None, 0))
    runs = jax.jit(jax.vmap(by_seed, in_axes=(0, None)))
    return np.asarray(runs(dict(lanes), jnp.arange(sizes.seeds)))


def steps_to(target: float, losses: np.ndarray, steps: int) -> np.ndarray:
    """Return the mean steps to the target, (lanes,); Inf where a seed does not reach it.

    The loss is interpolated between the two checks around the target.
    """
    every = steps / losses.shape[-1]
    reached = losses <= target
    first = reached.argmax(-1)
    after = np.take_along_axis(losses, first[..., None], -1)[..., 0]
    before = np.take_along_axis(losses, np.maximum(first - 1, 0)[..., None], -1)[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(first > 0, (before - target) / (before - after), 1)
    needed = np.where(reached.any(-1), (first + np.clip(share, 0, 1)) * every, np.inf)
    return needed.mean(-1)


def noise_along(optimizer: Optimizer, sizes: Sizes, rate: float, steps: int) -> np.ndarray:
    """Return the noise scale after each of some steps, from micro-batches of a run at `BASE`.

    The averages of all runs are added up before they are divided, which is why a shorter memory
    than that of a single run will do.
    """
    parts = 8
    tx = optlab.accumulate(optimizer.make(learning_rate=rate, **optimizer.others), parts)
    tx = scaling.noise_scale(tx, batch=BASE // parts, decay=0.9)

    def run(seed):
        init_key, batch_key = jax.random.split(jax.random.key(seed))

        def update(run, step):
            pixels, labels = draw_batch(jax.random.fold_in(batch_key, step), BASE)

            def part(run, examples):
                params, state = run
                updates, state = tx.update(jax.grad(loss)(params, *examples), state, params)
                return (optax.apply_updates(params, updates), state), None

            batches = pixels.reshape(parts, -1, pixels.shape[-1]), labels.reshape(parts, -1)
            run = jax.lax.scan(part, run, batches)[0]
            noise = scaling.measured_noise(run[1])
            return run, (noise.trace, noise.squared_norm)

        params = initial(init_key)
        return jax.lax.scan(update, (params, tx.init(params)), jnp.arange(steps))[1]

    trace, square = jax.jit(jax.vmap(run))(jnp.arange(sizes.noise_seeds))
    return np.asarray(trace.sum(0) / square.sum(0))


# The measurement


class Result(NamedTuple):
    """What one optimizer did.

    Attributes:
        best_rates: batch size → the best rate of its grid.
        best_steps: batch size → the steps to the target at that rate.
        rule_steps: rule → batch size → the steps with what the rule makes of the base's.
        noise: the noise scale after each step of the run at `BASE`.
    """

    best_rates: dict[int, float]
    best_steps: dict[int, float]
    rule_steps: dict[str, dict[int, float]]
    noise: np.ndarray


def scaled_by(rule: str, optimizer: Optimizer, base: Mapping[str, float], batch: int, noise: float):
    """Return what a rule makes of the base's hyperparameters; None where it refuses."""
    options = {"noise_scale": noise} if rule == "noise" else {}
    try:
        return scaling.scale_batch(base, BASE, batch, rule, optimizer=optimizer.make, **options)
    except ValueError:  # κ ≥ 1/(1 − b1)
        return None


def measure(optimizer: Optimizer, sizes: Sizes) -> Result:
    """Tune the rate at each batch size, and try what the rules make of the base's."""
    result = Result({}, {}, {rule: {} for rule in RULES}, np.zeros(0))
    order = (BASE, *(batch for batch in sizes.batches if batch != BASE))
    base: dict[str, float] = {}
    for batch in order:
        half = (sizes.rates - 1) / 2
        rates = optimizer.middle * (batch / BASE) ** optimizer.power
        rates = rates * math.sqrt(2) ** np.arange(-half, half + 1)
        settings = [{"learning_rate": rate, **optimizer.others} for rate in rates]
        by_rule = {}
        if batch != BASE:
            noise = float(result.noise.mean())
            by_rule = {rule: scaled_by(rule, optimizer, base, batch, noise) for rule in RULES}
            by_rule = {rule: h for rule, h in by_rule.items() if h is not None}
        settings += by_rule.values()
        lanes = {name: np.array([h[name] for h in settings]) for name in settings[0]}
        losses = losses_of(optimizer, sizes, batch, lanes)
        steps = steps_to(sizes.target, losses, updates_of(sizes, batch))
        best = int(steps[: len(rates)].argmin())
        result.best_rates[batch], result.best_steps[batch] = float(rates[best]), float(steps[best])
        for rule, needed in zip(by_rule, steps[len(rates) :], strict=True):
            result.rule_steps[rule][batch] = float(needed)
        if batch == BASE:
            base = settings[best]
            longest = updates_of(sizes, BASE)
            along = noise_along(
                optimizer, sizes, base["learning_rate"], math.ceil(min(steps[best], longest))
            )
            result = result._replace(noise=along)
    return result


def fitted(steps: Mapping[int, float]) -> tuple[float, float]:
    """Return S_min and B of S = S_min·(1 + B/batch), the least squares of relative errors."""
    batches, needed = np.array([*steps]), np.array([*steps.values()])
    terms = np.stack([np.ones(len(batches)), 1 / batches], 1) / needed[:, None]
    least, product = np.linalg.lstsq(terms, np.ones(len(batches)), rcond=None)[0]
    return float(least), float(product / least)


def held(result: Result, rule: str) -> str:
    """Return the batch sizes around the base over which a rule holds, as words."""
    batches = sorted(result.best_steps)
    good = {BASE} | {
        batch
        for batch, needed in result.rule_steps[rule].items()
        if needed <= TOLERANCE * result.best_steps[batch]
    }
    place = batches.index(BASE)
    low = high = place
    while low > 0 and batches[low - 1] in good:
        low -= 1
    while high < len(batches) - 1 and batches[high + 1] in good:
        high += 1
    return f"{batches[low]} to {batches[high]}"


def tell(name: str, result: Result) -> None:
    """Print the tables of one optimizer."""
    batches = sorted(result.best_steps)
    least, critical = fitted(result.best_steps)
    noise = float(result.noise.mean())
    anchor = result.best_steps[BASE] / (1 + noise / BASE)
    print(f"{'batch':>6}{'best rate':>11}{'steps':>8}{'examples':>10}", end="")
    print(f"{'predicted':>11}  " + "".join(f"{rule:>8}" for rule in RULES))
    for batch in batches:
        steps = result.best_steps[batch]
        cells = [result.rule_steps[rule].get(batch) for rule in RULES]
        ratios = ["" if batch == BASE else "-" if c is None else f"{c / steps:.2f}" for c in cells]
        print(
            f"{batch:6}{result.best_rates[batch]:11.2g}{steps:8.0f}{steps * batch:10.0f}"
            f"{anchor * (1 + noise / batch):11.0f}  " + "".join(f"{ratio:>8}" for ratio in ratios)
        )
    print(
        "The last columns: steps with what a rule makes of those at 16 examples, as a multiple of"
    )
    print("the best of the grid; - where the rule refuses, inf where a run misses the target.")
    for rule in RULES:
        print(f"{name}: {rule} holds from {held(result, rule)} examples")
    quarter, half = (result.noise[len(result.noise) * i // 4] for i in (1, 2))
    print(
        f"{name}: noise scale {quarter:.0f} after a quarter of the run, {half:.0f} after half, "
        f"{result.noise[-1]:.0f} at the target, {noise:.0f} on average"
    )
    print(f"{name}: all steps fit a noise scale of {critical:.0f}, {least:.0f} steps at least")
    print()


def draw(results: Mapping[str, Result]) -> Figure:
    """Draw steps, examples and rates over the batch size."""
    figure = Figure(figsize=(15, 5), dpi=150, layout="constrained")
    steps_ax, examples_ax, rates_ax = figure.subplots(1, 3)
    for name, result in results.items():
        color, batches = COLORS[name], np.array(sorted(result.best_steps))
        steps = np.array([result.best_steps[batch] for batch in batches])
        rates = np.array([result.best_rates[batch] for batch in batches])
        noise = float(result.noise.mean())
        predicted = result.best_steps[BASE] * (1 + noise / batches) / (1 + noise / BASE)
        for ax, factor in ((steps_ax, 1), (examples_ax, batches)):
            ax.plot(batches, steps * factor, "o", color=color, label=name)
            label = f"{name}: from a noise scale of {noise:.0f}"
            ax.plot(batches, predicted * factor, "-", color=color, alpha=0.6, label=label)
            ax.axvline(noise, color=color, linestyle=":", linewidth=1)
        rates_ax.plot(batches, rates, "o", color=color, label=f"{name}: best of the grid")
        base = result.best_rates[BASE]
        rates_ax.plot(batches, base * batches / BASE, "-", color=color, alpha=0.6)
        rates_ax.plot(batches, base * np.sqrt(batches / BASE), "--", color=color, alpha=0.6)
    examples_ax.plot([], [], "k:", linewidth=1, label="the noise scale")
    rates_ax.plot([], [], "k-", alpha=0.6, label="linear")
    rates_ax.plot([], [], "k--", alpha=0.6, label="square root")
    labels = ("steps to the target", "examples to the target", "learning rate")
    for ax, label in zip(figure.axes, labels, strict=True):
        ax.set(xscale="log", yscale="log", xlabel="batch size", ylabel=label)
        ax.set_xticks(batches, [str(batch) for batch in batches])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.legend(frameon=False, loc="lower left" if ax is steps_ax else "upper left")
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a larger batch saves.")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    sizes = QUICK if parser.parse_args().quick else Sizes()
    results = {}
    for number, name in enumerate(sizes.optimizers, 1):
        print(f"{number}. {name}, to a loss of {sizes.target:g}, means of {sizes.seeds} seeds")
        results[name] = measure(OPTIMIZERS[name], sizes)
        tell(name, results[name])
    draw(results).savefig("batch_size.png")


if __name__ == "__main__":
    main()
