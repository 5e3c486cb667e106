"""Take a CNN of your own from its first loss to a test accuracy, in seven steps.

The steps suit any new model. Is the first loss that of guessing? Can the model memorize a few
images? Which rates are viable? Then follow a coarse search with short runs, a finer search around
the best, a long run with a schedule, and the diagnosis of its curves. The network is a Flax NNX
model with batch normalization and dropout. Rates and weight decays are searched as lanes of one
compiled program. Each share of dropout needs its own program, so there are few of them, and the
finer search only uses the better ones. 600 handwritten digits to train on, 598 to validate, and 599
to test, which are evaluated once, at the end. The script prints each step, and draws
range_test.png, sweep.png and history.png; it takes half a minute on a CPU:

    python examples/04_cnn_start_to_finish.py
"""

import math
from functools import partial

import jax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optlab
from optlab import lab, plots

TRIAL_STEPS, FINAL_STEPS, BATCH_SIZE = 100, 600, 32


def he_normal(key, shape, dtype, out_sharding=None):
    # Like `nnx.initializers.he_normal`, but drawn as one row, which XLA compiles much faster.
    draw = jax.random.normal(key, (math.prod(shape),), dtype)
    return draw.reshape(shape) * math.sqrt(2 / math.prod(shape[:-1]))


class CNN(nnx.Module):
    """Images (batch, 8, 8, 1) → logits (batch, 10)."""

    def __init__(self, dropout: float, rngs: nnx.Rngs):
        options = {"kernel_init": he_normal, "rngs": rngs}
        self.conv1 = nnx.Conv(1, 16, (3, 3), strides=2, **options)
        self.norm1 = nnx.BatchNorm(16, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, **options)
        self.norm2 = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(128, 10, **options)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm1(self.conv1(images)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.head(self.dropout(x.reshape(len(x), -1)))


def load_splits() -> dict[str, tuple]:
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype("float32") / 16
    train_x, rest_x, train_y, rest_y = train_test_split(
        images, labels, train_size=600, stratify=labels, random_state=0
    )
    validation_x, test_x, validation_y, test_y = train_test_split(
        rest_x, rest_y, train_size=598, stratify=rest_y, random_state=0
    )
    return {
        "train": (train_x, train_y),
        "validation": (validation_x, validation_y),
        "test": (test_x, test_y),
    }


SPLITS = load_splits()


def digits_task(dropout: float = 0.25) -> lab.Task:
    return lab.tasks.nnx_classifier(
        "digits",
        lambda rngs: CNN(dropout, rngs),
        **SPLITS,
        batch_size=BATCH_SIZE,
        steps=TRIAL_STEPS,
        eval_every=25,
    )


def optimizer(learning_rate, weight_decay, steps=TRIAL_STEPS):
    """Return AdamW that warms up for a tenth of its updates, and falls along a cosine."""
    schedule = optlab.schedules.warmup_cosine(
        learning_rate, warmup_steps=steps // 10, decay_steps=steps
    )
    return optlab.adamw(schedule, weight_decay=weight_decay)


def print_run(run: lab.Run) -> None:
    history = run.history
    print(f"{'':6}{'loss':>16}{'accuracy':>26}")
    print("update" + f"{'train':>12}{'validation':>12}" * 2)
    for i in range(0, len(history.steps), 4):
        line = f"{history.steps[i]:6}"
        for metric in ("loss", "accuracy"):
            line += f"{history.train[metric][i]:12.4f}{history.validation[metric][i]:12.4f}"
        print(line)
    print(f"Taken after update {run.step}: {run.reason}.")


def main() -> None:
    task = digits_task()
    print("1. Is the first loss that of guessing?")
    print(lab.check_initial_loss(task, num_classes=10))
    print("\n2. Can it learn a few images by heart?")
    print(lab.check_overfits_small_batch(task))

    print("\n3. Which rates are viable?")
    tested = lab.lr_range_test(task, optlab.adamw, min_lr=1e-5)
    print(tested)

    print("\n4. A coarse search, short runs")
    # A run with a warm-up bears somewhat higher rates than the test, which has none.
    highest = 2 * tested.suggested_max
    space = {
        "learning_rate": lab.LogUniform(tested.suggested_min, highest),
        "weight_decay": lab.LogUniform(1e-4, 1.0),
        "dropout": lab.Categorical((0.0, 0.3)),
    }
    coarse = lab.sweep(digits_task, optimizer, space, trials=24, search="halton", lanes=12)
    print(coarse)

    print("\n5. A finer search around the best: longer runs, each from two seeds")
    numbers = coarse.narrowed()
    del numbers["dropout"]
    task = digits_task(dropout=coarse.best.values["dropout"])
    finer = lab.sweep(
        task,
        partial(optimizer, steps=2 * TRIAL_STEPS),
        numbers,
        trials=8,
        search="halton",
        steps=2 * TRIAL_STEPS,
        seeds=2,
        lanes=8,
    )
    print(finer)

    print(f"\n6. A long run with the best: {coarse.best.values | finer.best.values}")
    run = lab.train(
        task,
        lab.monitor(optimizer(**finer.best.values, steps=FINAL_STEPS)),
        steps=FINAL_STEPS,
        key=jax.random.key(0),
        early_stopping=lab.EarlyStopping(patience=16, mode="max"),
    )
    print_run(run)

    print("\n7. What do its curves say?")
    diagnosis = lab.diagnose(run.history)
    print(diagnosis)
    print(f"\ntest accuracy: {run.test['accuracy']:.4f}")

    tested.plot().figure.savefig("range_test.png")
    coarse.plot().savefig("sweep.png")
    plots.plot_history(run.history, title=str(diagnosis)).savefig("history.png")


if __name__ == "__main__":
    main()
