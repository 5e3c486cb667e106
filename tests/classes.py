"""A classification that compiles in no time, for tests of what combines predictions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from helpers import noise_of
from optlab.lab import Task, shuffled_batches


def blobs(**changes):
    """Return the task of three overlapping clouds in the plane, for one hidden layer of four."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(3, dtype=np.int32), 50)
    centres = np.array([[0, 0], [1.5, 0], [0, 1.5]])
    inputs = (centres[labels] + rng.normal(size=(150, 2))).astype(np.float32)
    cuts = {"train": slice(0, 60), "validation": slice(60, 105), "test": slice(105, 150)}
    splits = {name: (inputs[rows], labels[rows]) for name, rows in cuts.items()}

    def init(key):
        numbers = noise_of(key, width=20) / 2
        return {"hidden": numbers[:8].reshape(2, 4), "head": numbers[8:].reshape(4, 3)}, ()

    def predict(params, state, data):
        inputs, labels = data
        return jnp.tanh(inputs @ params["hidden"]) @ params["head"], jnp.asarray(labels)

    def loss(params, state, batch, key):
        logits, labels = predict(params, state, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), state

    def evaluate(params, state, data):
        logits, labels = predict(params, state, data)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"loss": losses.mean(), "accuracy": jnp.mean(logits.argmax(-1) == labels)}

    return dataclasses.replace(
        Task(
            name="blobs",
            init=init,
            loss=loss,
            batch=shuffled_batches(splits["train"], 12),
            evaluate=evaluate,
            splits=splits,
            score="accuracy",
            maximize=True,
            predict=predict,
        ),
        **changes,
    )


def sources(**changes):
    """Return a task whose parameters after updates of `sgd(1)` tell what they came from.

    "start" is that of the initialization; "data" and "noise" have moved with the batches and with
    the keys of the loss.
    """

    def init(key):
        return {"start": noise_of(key), "data": jnp.zeros(2), "noise": jnp.zeros(2)}, ()

    def loss(params, state, batch, key):
        moved = params["data"] @ batch + params["noise"] @ noise_of(key)
        return moved + 0 * params["start"].sum(), state

    rows = np.ones((2, 2), np.float32), np.zeros(2, np.int32)
    return dataclasses.replace(
        blobs(),
        init=init,
        loss=loss,
        batch=lambda key, step: noise_of(key, step),
        evaluate=lambda params, state, data: {"loss": 0.0, "accuracy": 1.0},
        splits={"validation": rows},
        predict=lambda params, state, data: (data[0] * params["start"], jnp.asarray(data[1])),
        **changes,
    )


KEY = jax.random.key(0)
