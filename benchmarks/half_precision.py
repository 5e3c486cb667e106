"""Train in bfloat16 to the end, with and without a wrapper that preserves small updates.

A network on scikit-learn's handwritten digits is trained by AdamW, with a warm-up and a cosine to
0: in float32, in plain bfloat16, and in bfloat16 with each of the three wrappers. The bfloat16 runs
store their parameters in bfloat16, and compute activations and gradients in it. The loss is
computed from float32 logits, and the moments are float32 in all runs. All runs have the same
batches and, apart from rounding, the same initial weights. Every rate is shown, and every seed
counts.

The loss and the accuracy are those of the last parameters, computed in float32, so that only the
parameters differ. Bytes are those of all arrays, divided by the number of parameters. It takes
about a minute on two CPU cores:

    python benchmarks/half_precision.py
"""

import argparse
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optlab

WIDTHS = (64, 128, 64, 10)
BATCH_SIZE = 64
RATES = (0.001, 0.003, 0.01)  # the peaks of the schedule
WEIGHT_DECAY = 0.01

KINDS = {
    "float32": (jnp.float32, lambda tx, key: tx),
    "bfloat16": (jnp.bfloat16, lambda tx, key: tx),
    "stochastic_rounding": (jnp.bfloat16, optlab.stochastic_rounding),
    "kahan_summation": (jnp.bfloat16, lambda tx, key: optlab.kahan_summation(tx)),
    "master_params": (jnp.bfloat16, lambda tx, key: optlab.master_params(tx)),
}
"""How the parameters are stored: their type, and the wrapper around the optimizer."""


def digits():
    """Return (images, labels) for training and for testing; images are standardized."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.25, random_state=0, stratify=labels
    )
    mean, deviation = train_x.mean(), train_x.std()
    standardized = (jnp.asarray((x - mean) / deviation, jnp.float32) for x in (train_x, test_x))
    train_x, test_x = standardized
    return (train_x, jnp.asarray(train_y)), (test_x, jnp.asarray(test_y))


def init(rng):
    """Return float32 parameters, He-normal, biases zero."""
    return [
        {
            "kernel": rng.normal(scale=(2 / m) ** 0.5, size=(m, n)).astype(np.float32),
            "bias": np.zeros(n, np.float32),
        }
        for m, n in itertools.pairwise(WIDTHS)
    ]


def logits(params, x):
    """Compute the logits in the type of the parameters."""
    x = x.astype(params[0]["kernel"].dtype)
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return (x @ params[-1]["kernel"] + params[-1]["bias"]).astype(jnp.float32)


def loss_of(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def evaluate(params, examples):
    """Return (mean loss, accuracy) in float32 arithmetic."""
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    x, y = examples
    return loss_of(params, x, y), jnp.mean(logits(params, x).argmax(-1) == y)


def start(updates, num_examples, seed):
    """Return what a seed determines: initial weights, rows of the batches, a key for rounding."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(num_examples, size=(updates, BATCH_SIZE))
    return init(rng), rows, jax.random.key_data(jax.random.key(seed))


def train(kind, examples, rate, params, rows, key):
    """Return the last parameters and the last optimizer state."""
    dtype, wrap = KINDS[kind]
    schedule = optlab.schedules.warmup_cosine(
        peak_value=rate, warmup_steps=len(rows) // 20, decay_steps=len(rows)
    )
    tx = wrap(optlab.adamw(schedule, weight_decay=WEIGHT_DECAY), key)
    x, y = examples

    def step(carry, batch):
        params, state = carry
        gradients = jax.grad(loss_of)(params, x[batch], y[batch])
        changes, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, changes), state), None

    params = jax.tree.map(lambda p: p.astype(dtype), params)
    return jax.lax.scan(step, (params, tx.init(params)), rows)[0]


def run(kind, updates, num_seeds):
    """Return training losses and test accuracies, both (rates, seeds), and bytes per parameter."""
    train_examples, test_examples = digits()
    starts = [start(updates, len(train_examples[0]), seed) for seed in range(num_seeds)]

    def lane(rate, own):
        params, _ = train(kind, train_examples, rate, *own)
        return evaluate(params, train_examples)[0], evaluate(params, test_examples)[1]

    lanes = jax.jit(jax.vmap(jax.vmap(lane, (None, 0)), (0, None)))
    losses, accuracies = lanes(jnp.array(RATES), jax.tree.map(lambda *x: jnp.stack(x), *starts))
    last = jax.eval_shape(lambda: train(kind, train_examples, RATES[0], *starts[0]))
    num_params = sum(p.size for p in jax.tree.leaves(last[0]))
    bytes_each = [
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / num_params for tree in last
    ]
    return np.asarray(losses), np.asarray(accuracies), bytes_each


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    network = "–".join(map(str, WIDTHS))
    print(
        f"jax {jax.__version__} on {jax.default_backend()}; {network} network on digits, "
        f"batches of {BATCH_SIZE};\n{options.updates} updates of AdamW, weight decay "
        f"{WEIGHT_DECAY}, with a cosine to 0 from the peak rate;\nmean ± standard deviation of "
        f"{options.seeds} seeds"
    )
    results = {kind: run(kind, options.updates, options.seeds) for kind in options.kinds}
    print_table(
        "bytes a parameter",
        ["weights", "state"],
        {kind: [f"{b:.2f}" for b in each] for kind, (_, _, each) in results.items()},
    )
    rates = [f"peak {rate}" for rate in RATES]
    print_table(
        "training loss",
        rates,
        {k: [mean_and_deviation(x, ".2e", ".0e") for x in r[0]] for k, r in results.items()},
    )
    print_table(
        "test accuracy",
        rates,
        {k: [mean_and_deviation(x, ".3f", ".3f") for x in r[1]] for k, r in results.items()},
    )
    print(f"\n{time.perf_counter() - began:.0f} s")


def mean_and_deviation(x, mean_format, deviation_format):
    return f"{x.mean():{mean_format}} ± {x.std(ddof=1):{deviation_format}}"


def print_table(title, columns, rows):
    print()
    for name, cells in {title: columns, **rows}.items():
        print(f"{name:20}", *(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
