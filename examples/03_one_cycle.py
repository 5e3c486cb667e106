"""Train a Flax NNX CNN with a one-cycle schedule and with a constant rate, and compare them.

One cycle is two schedules of the same step: `adamw(cycle.learning_rate, b1=cycle.momentum)`. The
comparison is fair: both runs use AdamW with its other defaults, the same number of updates, the
same rates and the same seeds (a seed determines the initial weights and the batches). The rate of a
one cycle is its peak. Each method is judged at its best rate, by the mean accuracy on the
validation images; the test images are evaluated only there. If the spreads over seeds overlap, the
verdict is a tie. 1,077 handwritten digits to train on, 360 to validate, 360 to test. The script
prints both runs and draws them in one_cycle.png; it takes some 30 seconds on a CPU:

    python examples/03_one_cycle.py
"""

import math

import jax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optlab
from optlab import lab, plots
from optlab.schedules import OneCycle

NUM_UPDATES, BATCH_SIZE, NUM_SEEDS = 200, 32, 3
RATES = (0.003, 0.01, 0.03, 0.1)
B1 = 0.9  # AdamW's default, used with the constant rate
UPDATES_SHOWN = (10, 30, 60, 100, 140, 180, 200)


def he_normal(key, shape, dtype, out_sharding=None):
    # Like `nnx.initializers.he_normal`, but drawn as one row, which XLA compiles much faster.
    draw = jax.random.normal(key, (math.prod(shape),), dtype)
    return draw.reshape(shape) * math.sqrt(2 / math.prod(shape[:-1]))


class CNN(nnx.Module):
    """Images (batch, 8, 8, 1) → logits (batch, 10)."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), strides=2, kernel_init=he_normal, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, kernel_init=he_normal, rngs=rngs)
        self.head = nnx.Linear(128, 10, kernel_init=he_normal, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(self.conv2(x))
        return self.head(x.reshape(len(x), -1))


def one_cycle(peak_value):
    # The last of n updates uses the value at step n − 1.
    return optlab.schedules.one_cycle(peak_value, total_steps=NUM_UPDATES - 1)


def with_one_cycle(peak_value):
    cycle = one_cycle(peak_value)
    return optlab.adamw(cycle.learning_rate, b1=cycle.momentum)


def with_constant_rate(rate):
    return optlab.adamw(rate, b1=B1)


def digits_task() -> lab.Task:
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype("float32") / 16
    train_x, rest_x, train_y, rest_y = train_test_split(
        images, labels, test_size=720, stratify=labels, random_state=0
    )
    validation_x, test_x, validation_y, test_y = train_test_split(
        rest_x, rest_y, test_size=360, stratify=rest_y, random_state=0
    )
    return lab.tasks.nnx_classifier(
        "digits",
        CNN,
        train=(train_x, train_y),
        validation=(validation_x, validation_y),
        test=(test_x, test_y),
        batch_size=BATCH_SIZE,
    )


def print_runs(comparison: lab.Comparison, schedules: dict[str, OneCycle]) -> None:
    """Print rate and b1 of some updates, and the validation loss after each (mean of all seeds)."""
    print(f"{'':6}" + "".join(f"{label:>25}" for label in schedules))
    print("update" + f"{'rate':>10}{'b1':>7}{'loss':>8}" * len(schedules))
    for update in UPDATES_SHOWN:
        line = f"{update:6}"
        for row in comparison.rows():
            runs, (rate, b1) = comparison.runs[row.optimizer], schedules[row.optimizer]
            losses = runs.validation["loss"][runs.rates == row.rate, :, runs.steps == update]
            step = update - 1  # the update uses the schedule's value at this step
            line += f"{rate(step):10.6f}{b1(step):7.3f}{losses.mean():8.4f}"
        print(line)


def main() -> None:
    comparison = lab.compare(
        digits_task(),
        {"one cycle": with_one_cycle, "constant": with_constant_rate},
        rates=RATES,
        seeds=NUM_SEEDS,
        steps=NUM_UPDATES,
        eval_every=10,
    )
    rates = {row.optimizer: row.rate for row in comparison.rows()}
    constant = optlab.schedules.constant
    schedules = {
        "one cycle": one_cycle(rates["one cycle"]),
        "constant": OneCycle(constant(rates["constant"]), constant(B1)),
    }
    print_runs(comparison, schedules)
    print("", comparison.table(), "", comparison.verdict(), sep="\n")

    figure = Figure(figsize=(13, 5), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    plots.plot_schedules(schedules, steps=NUM_UPDATES, ax=left)
    plots.plot_curves(comparison, ax=right)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig("one_cycle.png")


if __name__ == "__main__":
    main()
