"""Measure whether the best learning rate of a narrow network is the best of wide ones, too.

A network of two hidden layers learns 1,000 handwritten digits with Adam, at nine rates and at the
widths 32, 128 and 512, in the standard parametrization and in μP.

1. The coordinate check: how much each activation changes within five updates, over widths.
2. The final training loss of 200 updates for each rate and width, in the mean over eight seeds.

Log₂ of the best rate was −6, −7 and −8 at the widths 32, 128 and 512 in the standard
parametrization, and −6, −6 and −5 in μP. The rate that is best at 32 left a network of 512 with 59
times the loss of its own best rate in the standard parametrization, and with 1.4 times in μP. But
with a rate of its own, the standard network of 512 reached a seventh of the loss that μP reached
with any: log₁₀ −3.27 against −2.41. μP buys transfer, not loss; nothing of it was tuned here but
the rate.

The script prints both tables, and draws width_transfer.png. It takes two and a half minutes of CPU
time. With --quick it only shows that it runs:

    python examples/11_width_transfer.py
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import optlab
from optlab import mup, plots

Batch = tuple[jax.Array, jax.Array]


class Sizes(NamedTuple):
    """The sizes of the experiment."""

    widths: tuple[int, ...] = (32, 128, 512)
    log_rates: tuple[int, ...] = tuple(range(-11, -2))
    steps: int = 200
    seeds: int = 8
    checked_seeds: int = 3
    checked_widths: tuple[int, ...] = (64, 128, 256, 512, 1024)


QUICK = Sizes((8, 32), (-8, -6), 20, 1, 1, (64, 256))
PARAMETRIZATIONS = ("standard", "μP")
COLORS = ("#0072B2", "#E69F00", "#009E73")


def lecun_normal(key, shape, dtype, out_sharding=None):
    # Like `nnx.initializers.lecun_normal`, but not truncated, which XLA compiles much faster.
    return jax.random.normal(key, shape, dtype) / shape[0] ** 0.5


class MLP(nnx.Module):
    """Pixels (batch, 64) → logits (batch, 10), multiplied by 1/m as μP wants them."""

    def __init__(self, width: int, multiplier: float, rngs: nnx.Rngs):
        options = {"use_bias": False, "kernel_init": lecun_normal, "rngs": rngs}
        self.multiplier = multiplier
        self.stem = nnx.Linear(64, width, **options)
        self.dense = nnx.Linear(width, width, **options)
        self.head = nnx.Linear(width, 10, **options)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        first = nnx.relu(self.stem(x))
        second = nnx.relu(self.dense(first))
        return {"h1": first, "h2": second, "output": self.multiplier * self.head(second)}


class Family:
    """Networks of all widths in one parametrization, of which the base width is tuned."""

    def __init__(self, parametrization: str, base: int):
        self.is_mup, self.base = parametrization == "μP", base

    def make(self, width: int, key: jax.Array):
        """Return the parameters of a network, and its loss with the activations."""
        multiplier = self.base / width if self.is_mup else 1.0
        graph, params = nnx.split(MLP(width, multiplier, nnx.Rngs(key)))
        if self.is_mup:
            params = mup.init(params, MLP(self.base, 1.0, nnx.Rngs(jax.random.fold_in(key, 1))))

        def loss(params, batch: Batch):
            pixels, labels = batch
            activations = nnx.merge(graph, params)(pixels)
            losses = optax.softmax_cross_entropy_with_integer_labels(activations["output"], labels)
            return losses.mean(), activations

        return params, loss

    def optimizer(self, tx: optax.GradientTransformation, params):
        """Return the optimizer for these parameters."""
        if not self.is_mup:
            return tx
        base = nnx.eval_shape(lambda: MLP(self.base, 1.0, nnx.Rngs(0)))
        return mup.transfer(tx, params, base)


def digits() -> Batch:
    """Return the first 1,000 digits."""
    pixels, labels = load_digits(return_X_y=True)
    return jnp.asarray(pixels[:1000] / 16 - 0.3, jnp.float32), jnp.asarray(labels[:1000])


def final_losses(family: Family, width: int, data: Batch, sizes: Sizes) -> np.ndarray:
    """Return the training losses after the last update, (rates, seeds)."""
    rates = 2.0 ** jnp.array(sizes.log_rates)
    pixels, labels = data
    made = [family.make(width, jax.random.key(seed)) for seed in range(sizes.seeds)]
    starts = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(params for params, _ in made))
    loss = made[0][1]

    def train(rate, params, seed):
        tx = family.optimizer(optlab.adam(rate), params)

        def update(step, run):
            params, state = run
            key = jax.random.fold_in(jax.random.key(seed), step)
            rows = jax.random.choice(key, len(pixels), (64,), replace=False)
            gradients, _ = jax.grad(loss, has_aux=True)(params, (pixels[rows], labels[rows]))
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        params, _ = jax.lax.fori_loop(0, sizes.steps, update, (params, tx.init(params)))
        return loss(params, data)[0]

    over_seeds = jax.vmap(train, in_axes=(None, 0, 0))
    over_rates = jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)))
    return np.asarray(over_rates(rates, starts, jnp.arange(sizes.seeds)))


def check(sizes: Sizes) -> dict[str, mup.CoordinateCheck]:
    """Return the coordinate check of each parametrization; print it."""
    pixels, labels = digits()
    checks = {}
    for name in PARAMETRIZATIONS:
        family = Family(name, base=sizes.checked_widths[0])
        checks[name] = mup.coordinate_check(
            family.make,
            sizes.checked_widths,
            (pixels[:64], labels[:64]),
            lambda params, family=family: family.optimizer(optlab.adam(1e-2), params),
            seeds=sizes.checked_seeds,
        )
        print(f"{name}\n{checks[name]}\n", flush=True)
    return checks


def compare_rates(sizes: Sizes) -> dict[str, dict[int, np.ndarray]]:
    """Return parametrization → width → the mean losses (rates,); print their logarithms.

    The last column is what transfer costs: the loss at the rate that is best at the base width,
    over the loss at the own best rate.
    """
    data = digits()
    losses: dict[str, dict[int, np.ndarray]] = {}
    heads = "".join(f"{rate:>7}" for rate in sizes.log_rates)
    print(f"{'log2 of the rate':18}{heads}   best  at the base's best")
    for name in PARAMETRIZATIONS:
        family = Family(name, base=sizes.widths[0])
        losses[name] = {}
        of_base = None
        for width in sizes.widths:
            means = final_losses(family, width, data, sizes).mean(axis=1)
            losses[name][width] = means
            cells = "".join(f"{value:7.2f}" for value in np.log10(means))
            best = int(np.nanargmin(means))
            of_base = best if of_base is None else of_base
            cost = means[of_base] / means[best]
            print(f"{name:10}{width:>8}{cells}{sizes.log_rates[best]:>7}{cost:>8.1f} × loss")
    return losses


def draw_losses(ax: Axes, name: str, losses: dict[int, np.ndarray], sizes: Sizes) -> None:
    """Draw the losses of one parametrization over the rates, with a ring at each best one."""
    for color, (width, means) in zip(COLORS, losses.items(), strict=False):
        best = int(np.nanargmin(means))
        ax.plot(sizes.log_rates, means, "o-", color=color, markersize=4, label=f"width {width}")
        ring = {"markersize": 12, "markerfacecolor": "none", "color": color}
        ax.plot(sizes.log_rates[best], means[best], "o", **ring)
    ax.set(title=f"{name}: final training loss", xlabel="log₂ of the learning rate", yscale="log")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, title="ring: the best rate")


def draw(checks, losses, sizes: Sizes) -> Figure:
    """Draw the losses over the rates, and the coordinate checks."""
    figure = Figure(figsize=(13, 9), dpi=120, layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    for top, bottom, name in zip(*axes, PARAMETRIZATIONS, strict=True):
        draw_losses(top, name, losses[name], sizes)
        plots.plot_coordinate_check(checks[name], label=f"{name}: coordinate check", ax=bottom)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare best rates over widths.")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    sizes = QUICK if parser.parse_args().quick else Sizes()
    print("1. The coordinate check: mean absolute change after 5 updates, over widths")
    checks = check(sizes)
    print(f"2. log10 of the training loss after {sizes.steps} updates, over rates and widths")
    losses = compare_rates(sizes)
    draw(checks, losses, sizes).savefig("width_transfer.png")


if __name__ == "__main__":
    main()
