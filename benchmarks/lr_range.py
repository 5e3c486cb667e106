"""How good are the rates that a range test suggests? Train at them, and at a grid of others.

For each task and optimizer there is one range test with its defaults. Full runs from the same seeds
then train at the suggested rates and at a grid, each with a constant rate. A rate is judged by the
final validation loss, as a multiple of the best one on the grid, and by how many decades it lies
above (+) or below (−) the best rate. A rate at which a run diverges counts as CAP times, and so
does a missing suggestion.

The definition of the suggestion was chosen by its results on the three built-in tasks; the results
on the two tables (a logistic regression and a small regression network) were known, too.
Rosenbrock's valley and a quadratic of condition 1000 with noisy gradients were run after the
definition was chosen, and changed nothing; they are summed up separately. It takes about four
minutes on two CPU cores:

    python benchmarks/lr_range.py
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from optlab.lab import Task, compare, lr_range_test, shuffled_batches, tasks
from optlab.registry import OPTIMIZERS

COMPARED = ("sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw")
GRID = np.geomspace(1e-4, 10, 26)  # a fifth of a decade apart
CAP = 100.0
METHODS = ("suggested", "valley", "steep", "minimum", "minimum/10")


def tabular(name, bunch, widths, regression):
    """Return the task of a small network on a table, whose last 30% are for validation."""
    order = np.random.default_rng(0).permutation(len(bunch.data))
    x, y = bunch.data[order].astype(np.float32), bunch.target[order].astype(np.float32)
    cut = int(0.7 * len(x))
    x = (x - x[:cut].mean(axis=0)) / x[:cut].std(axis=0)
    if regression:
        y = (y - y[:cut].mean()) / y[:cut].std()
    shapes = list(zip([x.shape[1], *widths], [*widths, 1], strict=True))

    def init(key):
        keys = jax.random.split(key, len(shapes))
        kernels = [
            jax.random.normal(k, s) * (2 / s[0]) ** 0.5 for k, s in zip(keys, shapes, strict=True)
        ]
        return [(kernel, jnp.zeros(kernel.shape[1])) for kernel in kernels], ()

    def loss_of(params, data):
        inputs, targets = data
        for kernel, bias in params[:-1]:
            inputs = jax.nn.relu(inputs @ kernel + bias)
        kernel, bias = params[-1]
        outputs = (inputs @ kernel + bias)[:, 0]
        if regression:
            return jnp.mean((outputs - targets) ** 2)
        return optax.sigmoid_binary_cross_entropy(outputs, targets).mean()

    return Task(
        name=name,
        init=init,
        loss=lambda params, state, batch, key: (loss_of(params, batch), state),
        batch=shuffled_batches((x[:cut], y[:cut]), 16),
        evaluate=lambda params, state, data: {"loss": loss_of(params, data)},
        splits={"validation": (x[cut:], y[cut:])},
    )


def function(name, height, init, noise=0.0):
    """Return the task of descending a function; Gaussian noise is added to the point."""

    def loss(point, state, batch, key):
        return height(point + noise * jax.random.normal(key, point.shape)), state

    return Task(
        name=name,
        init=lambda key: (init(key), ()),
        loss=loss,
        batch=lambda key, step: (),
        evaluate=lambda point, state, data: {"loss": height(point)},
        steps=500,
    )


def rosenbrock():
    return function(
        "rosenbrock",
        lambda v: (1 - v[0]) ** 2 + 100 * (v[1] - v[0] ** 2) ** 2,
        lambda key: jax.random.uniform(key, (2,), minval=-1.5, maxval=-0.5),
    )


def noisy_quadratic():
    curvatures = jnp.asarray(np.geomspace(1, 1000, 30), jnp.float32)
    return function(
        "noisy-quadratic",
        lambda v: 0.5 * jnp.sum(curvatures * v**2),
        lambda key: jax.random.normal(key, (30,)),
        noise=0.03,
    )


BUILT_IN = {
    "digits-mlp": tasks.digits_mlp,
    "digits-cnn": tasks.digits_cnn,
    "valley": tasks.valley,
}
TABLES = {
    "cancer-logistic": lambda: tabular(
        "cancer-logistic", datasets.load_breast_cancer(), [], regression=False
    ),
    "diabetes-mlp": lambda: tabular(
        "diabetes-mlp", datasets.load_diabetes(), [32, 32], regression=True
    ),
}
UNSEEN = {"rosenbrock": rosenbrock, "noisy-quadratic": noisy_quadratic}
GROUPS = {"built-in tasks": BUILT_IN, "tables": TABLES, "unseen tasks": UNSEEN}
SMALLER = {"digits-cnn": {"rates": GRID[::2], "seeds": 2, "steps": 100}}
"""Options of tasks that take too long at full size."""


def suggestions(task, make):
    """Return method → its rate, or None if it suggests none."""
    result = lr_range_test(task, make)
    rates = {"suggested": result.suggested_max, **result.picks}
    if "minimum" in rates:
        rates["minimum/10"] = rates["minimum"] / 10
    return {method: rates.get(method) for method in METHODS}


def judge(task, make, **options):
    """Return the best rate of the grid, and method → (rate, loss ratio, decades)."""
    suggested_rates = suggestions(task, make)
    options = {"rates": GRID, "seeds": 3, "steps": task.steps, **options}
    grid = options.pop("rates")
    extra_rates = [rate for rate in suggested_rates.values() if rate is not None]
    runs = compare(
        task,
        {"x": make},
        rates=np.concatenate([grid, extra_rates]),
        eval_every=options["steps"],
        **options,
    ).runs["x"]
    final = runs.validation["loss"][..., -1].astype(float)
    final = np.where(runs.diverged.any(axis=1, keepdims=True), np.inf, final)
    losses = dict(zip(runs.rates, np.exp(np.log(final + 1e-12).mean(axis=1)), strict=True))
    best = min(grid, key=losses.get)
    judgements = {}
    for method, rate in suggested_rates.items():
        ratio = CAP if rate is None else min(losses[rate] / losses[best], CAP)
        judgements[method] = (rate, ratio, np.nan if rate is None else np.log10(rate / best))
    return best, judgements


def print_table(name, results):
    width = 15
    print(f"\n{name:12}{'best':>9}" + "".join(f"{method:>{width}}" for method in METHODS))
    for optimizer, (best, judgements) in results.items():
        cells = (
            f"{'none' if rate is None else f'{ratio:.2f} ({decades:+.1f})':>{width}}"
            for rate, ratio, decades in judgements.values()
        )
        print(f"{optimizer:12}{best:9.2g}" + "".join(cells), flush=True)


def print_summary(title, results):
    cases = [
        judgements for by_optimizer in results.values() for _, judgements in by_optimizer.values()
    ]
    if not cases:
        return
    print(
        f"\n{title}, {len(cases)} cases: loss / best (geometric mean), worst, within 2×, |decades|"
    )
    for method in METHODS:
        ratios = np.array([each[method][1] for each in cases])
        decades = np.array([each[method][2] for each in cases])
        print(
            f"  {method:12}{np.exp(np.log(ratios).mean()):7.2f}{ratios.max():8.1f}"
            f"{(ratios <= 2).sum():6} of {len(cases)}{np.nanmean(np.abs(decades)):8.2f}"
        )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    makers = BUILT_IN | TABLES | UNSEEN
    parser.add_argument("--tasks", nargs="+", choices=makers, default=list(makers))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=COMPARED)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    print(f"jax {jax.__version__} on {jax.default_backend()}")
    print("validation loss / that of the grid's best rate (decades from that rate)")
    results = {}
    for name in options.tasks:
        task = makers[name]()
        results[name] = {
            optimizer: judge(task, OPTIMIZERS[optimizer].make, **SMALLER.get(name, {}))
            for optimizer in options.optimizers
        }
        print_table(name, results[name])
    for title, group in GROUPS.items():
        print_summary(title, {n: r for n, r in results.items() if n in group})
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
