"""Time a step of AdamW in 28 groups: layer-wise rates, and no decay for biases and norms.

python benchmarks/parameter_groups.py [--width 768] [--rounds 15]

The parameters are those of a vision transformer with 12 layers; at the width of 768 it is ViT-B/16.
The contenders take turns: one group, optlab's partition, and `optax.partition` with an optimizer of
Optax for each group. The updates are compared before anything is timed.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optlab
from benchmarks.environment import environment
from benchmarks.report import plain
from optlab import groups

RULES = [groups.layerwise_decay(0.75), groups.no_decay()]
OPTIONS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
RATE, DECAY, FEW = 1e-3, 0.05, 5
BASE = "one group"


def parameters(width):
    """Return the parameters of the transformer, as nested dictionaries."""
    rng = np.random.default_rng(0)

    def dense(inputs, outputs):
        return {"kernel": rng.normal(size=(inputs, outputs)), "bias": np.zeros(outputs)}

    def norm():
        return {"scale": np.ones(width), "bias": np.zeros(width)}

    def block():
        return {
            "norm1": norm(),
            "attn": {"qkv": dense(width, 3 * width), "proj": dense(width, width)},
            "norm2": norm(),
            "mlp": {"fc1": dense(width, 4 * width), "fc2": dense(4 * width, width)},
        }

    params = {
        "patch_embed": {"kernel": rng.normal(size=(16, 16, 3, width)), "bias": np.zeros(width)},
        "cls_token": rng.normal(size=(1, 1, width)),
        "pos_embed": rng.normal(size=(1, 197, width)),
        "blocks": {str(number): block() for number in range(12)},
        "norm": norm(),
        "head": dense(width, 1000),
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def contenders(params):
    """Return the transformations by name."""
    adamw = optlab.adamw(RATE, weight_decay=DECAY, **OPTIONS)
    ours = groups.partition(params, RULES, optimizer=adamw)
    rows = optlab.describe(ours, params)
    of_optax = {
        row.group: optax.adamw(row.rates[0], weight_decay=row.decays[0], **OPTIONS) for row in rows
    }
    labels = jax.tree.unflatten(jax.tree.structure(params), [row.group for row in rows])
    return {
        BASE: adamw,
        "optlab.groups.partition": ours,
        "optax.partition": optax.partition(of_optax, labels),
    }, len(of_optax)


def step_of(tx):
    """Return the compiled step, which donates parameters and state."""

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def main():
    """Compare, time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    params = parameters(options.width)
    gradients = jax.tree.map(jnp.cos, params)
    txs, count = contenders(params)
    ours, theirs = (txs[n].update(gradients, txs[n].init(params), params)[0] for n in list(txs)[1:])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-9), ours, theirs)
    first, steps, runs, seconds = {}, {}, {}, {name: [] for name in txs}
    for name, tx in txs.items():
        runs[name] = jax.tree.map(jnp.copy, params), tx.init(params)
        began = time.perf_counter()
        steps[name] = step_of(tx).lower(*runs[name], gradients).compile()
        first[name] = time.perf_counter() - began
    rng = np.random.default_rng(0)
    for _ in range(options.rounds):
        for name in rng.permutation(list(txs)):
            began = time.perf_counter()
            for _ in range(FEW):
                runs[name] = steps[name](*runs[name], gradients)
            jax.block_until_ready(runs[name])
            seconds[name].append((time.perf_counter() - began) / FEW)
    rows = [["contender", f"step, time / {BASE}", f"first step, time / {BASE}"]]
    for name in txs:
        ratios = np.array(seconds[name]) / np.array(seconds[BASE])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        spread = f"{middle:.2f} [{low:.2f} to {high:.2f}]"
        rows.append([name, spread, f"{first[name] / first[BASE]:.2f}"])
    print(plain([[key, value] for key, value in environment().items()]))
    print(f"\n{count} groups, width {options.width}, {options.rounds} rounds of {FEW} steps\n")
    print(plain(rows))


if __name__ == "__main__":
    main()
