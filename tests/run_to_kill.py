"""A run with every kind of leaf that a checkpoint must hold, for `test_train.py` to kill.

    python run_to_kill.py CHECKPOINTS RESULT SAVES SECONDS

goes on with the run in CHECKPOINTS, kills itself SECONDS after as many SAVES, and writes what the
run has come to into RESULT if it ends before.
"""

import hashlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.tree_util import keystr, tree_leaves_with_path

import optlab
from optlab.lab import EarlyStopping, Task, shuffled_batches, train
from optlab.lab.training import _train
from optlab.lab.training._loop import without_keys


class Net(nnx.Module):
    """A network with batch statistics and streams of random keys: (batch, 5) → (batch,)."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))[:, 0]


def task():
    """Return the task of fitting `Net`, and leaves of all kinds, to a linear function."""
    inputs = np.random.default_rng(0).normal(size=(96, 5)).astype(np.float32)
    targets = inputs @ np.arange(5, dtype=np.float32)
    graph = nnx.graphdef(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))

    def init(key):
        _, net, rest = nnx.split(Net(nnx.Rngs(key)), nnx.Param, ...)
        params = {
            "net": net,
            "bfloat16": jnp.ones(5, jnp.bfloat16),
            "float16": jnp.ones((), jnp.float16),
            "empty": jnp.zeros((0, 4)),
            "nothing": None,
        }
        state = {
            "net": rest,
            "key": jax.random.fold_in(key, 1),
            "seen": jnp.int32(0),
            "odd": jnp.array(False),
            "empty": jnp.zeros((3, 0), jnp.int8),
            "nothing": None,
        }
        return params, state

    def predict(params, net, x):
        return params["float16"] * net(x * params["bfloat16"])

    def loss(params, state, batch, key):
        net = nnx.merge(graph, params["net"], state["net"], copy=True)
        net.train()
        inputs, targets = batch
        draw, kept = jax.random.split(state["key"])
        noise = jax.random.normal(draw, targets.shape) + jax.random.normal(key, targets.shape)
        loss = jnp.mean((predict(params, net, inputs) - targets - 0.1 * noise) ** 2)
        rest = nnx.split(net, nnx.Param, ...)[2]
        seen = state["seen"] + 1
        return loss, {**state, "net": rest, "key": kept, "seen": seen, "odd": seen % 2 == 1}

    def evaluate(params, state, data):
        net = nnx.merge(graph, params["net"], state["net"])
        net.eval()
        inputs, targets = data
        errors = predict(params, net, inputs) - targets
        return {"loss": jnp.mean(errors**2), "worst": jnp.max(jnp.abs(errors))}

    data = {name: (inputs[i::3], targets[i::3]) for i, name in enumerate(NAMES)}
    return Task("mixture", init, loss, shuffled_batches(data["train"], 8), evaluate, data)


NAMES = ("train", "validation", "test")


def optimizer():
    """Return an optimizer of optlab in a chain of Optax that updates every third time."""
    rate = optlab.schedules.cosine(0.05, 60)
    return optax.MultiSteps(optax.chain(optlab.clip_by_global_norm(5.0), optlab.adamw(rate)), 3)


def run(checkpoints=None):
    """Train."""
    return train(
        task(),
        optimizer(),
        steps=60,
        key=jax.random.key(5),
        eval_every=5,
        early_stopping=EarlyStopping(patience=8),
        checkpoints=checkpoints,
    )


def result(run):
    """Return a fingerprint of every array of a run, by its path."""
    found = {}
    tree = without_keys((run.params, run.model_state, run.opt_state))
    for path, leaf in tree_leaves_with_path((tree, vars(run.history), run.test)):
        if not isinstance(leaf, str):
            array = np.asarray(leaf)
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            found[keystr(path)] = f"{array.dtype}{array.shape} {digest}"
    return {**found, "reason": run.reason, "step": run.step}


def kill_after(saves, seconds):
    """End this process, as `kill -9` does, so long after that save began; at once if it is 0."""

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    class Counted(_train.Checkpoints):
        left = saves

        def save(self, *args, **options):
            Counted.left -= 1
            if Counted.left == 0:
                threading.Timer(seconds, kill).start()
            super().save(*args, **options)

    _train.Checkpoints = Counted
    if saves == 0:
        threading.Timer(seconds, kill).start()


if __name__ == "__main__":
    checkpoints, written, saves, seconds = sys.argv[1:]  # "" for no checkpoints
    kill_after(int(saves), float(seconds))
    Path(written).write_text(json.dumps(result(run(checkpoints or None))))
    os._exit(0)  # without waiting for the timer
