"""A classification of points in three overlapping clouds, for the tests of tuning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.lab import Task, shuffled_batches

STEPS = 40


def blobs(count, seed):
    """Three classes of points, which overlap somewhat."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centres = np.array([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])
    points = centres[labels] + rng.normal(size=(count, 3))
    return points.astype(np.float32), labels.astype(np.int32)


TRAIN, VALIDATION, TEST = blobs(240, 0), blobs(120, 1), blobs(120, 2)


def forward(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"] + params["b"]


def make_task(batch_size=16, *, loss=None, init=None, train=TRAIN, validation=VALIDATION):
    def usual_init(key):
        w, v = jax.random.split(key)
        return {
            "w": jax.random.normal(w, (3, 8)) * 0.8,
            "v": jax.random.normal(v, (8, 3)) * 0.5,
            "b": jnp.zeros(3),
        }

    def usual_loss(params, batch):
        x, y = batch
        return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).mean()

    def evaluate(params, state, data):
        x, y = data
        logits = forward(params, x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return {"loss": losses.mean(), "accuracy": jnp.mean(logits.argmax(-1) == y)}

    return Task(
        name="blobs",
        init=lambda key: ((init or usual_init)(key), ()),
        loss=lambda params, state, batch, key: ((loss or usual_loss)(params, batch), state),
        batch=shuffled_batches(train, batch_size),
        evaluate=evaluate,
        predict=lambda params, state, data: (forward(params, data[0]), data[1]),
        splits={"validation": validation, "test": TEST},
        score="accuracy",
        maximize=True,
        steps=STEPS,
        eval_every=10,
        baseline=float(np.log(3)),
    )


def task(batch_size=16):
    return make_task(batch_size)


def rule(learning_rate=0.1):
    """An optimizer that no list has."""
    return optax.chain(optax.clip(1.0), optax.sgd(learning_rate, momentum=0.8))


def of_summed_losses(batch_size=16):
    """A fault: the loss is the sum over the batch."""

    def summed(params, batch):
        x, y = batch
        return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).sum()

    return make_task(batch_size, loss=summed)
