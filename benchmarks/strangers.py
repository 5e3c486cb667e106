"""Small training problems of many kinds, on which the lab's advice is judged.

There are tables, images, photographs, signals, text, spirals and functions; networks without and
with hidden layers, with convolutions, recurrence and attention. A run takes about a second. The
rules of the lab were developed on the problems `OPEN`. The problems `SEALED`, a third of all, took
no part in that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab.lab import Task

MOST_EVALUATED = 500
"""Examples of a split that are evaluated."""


@dataclass(frozen=True)
class Problem:
    """A model and its data, or a function; from it every cause of a bad run can be provoked.

    Attributes:
        init: (key, scale) → params; `scale` multiplies the initial weights.
        loss: (params, units, batch, key) → () float. Of each hidden layer only the first `units`
            outputs are not 0, so that the width can differ between lanes of one program.
        metrics: (params, units, data) → metric → () float.
        steps: updates per run.
        train: arrays (n, …); None for a function.
        validation: arrays (n, …); None for a function.
        batch_size: examples per batch.
    """

    init: Callable
    loss: Callable
    metrics: Callable
    steps: int
    train: Any = None
    validation: Any = None
    batch_size: int = 32


def task(name: str) -> Task:
    """Return a problem as a `Task`."""
    problem = PROBLEMS[name]()
    if problem.train is None:
        batch, splits = (lambda key, step: ()), {}
    else:
        batch = drawn_batches(problem.train, problem.batch_size)
        splits = {"validation": problem.validation}
    return Task(
        name=name,
        init=lambda key: (problem.init(key, 1.0), ()),
        loss=lambda params, state, batch, key: (problem.loss(params, WIDE, batch, key), state),
        batch=batch,
        evaluate=lambda params, state, data: problem.metrics(params, WIDE, data),
        splits=splits,
        steps=problem.steps,
    )


def drawn_batches(data, size):
    """Return a `Task.batch` that draws with replacement, which is cheaper than an order."""
    data = tuple(jnp.asarray(array) for array in data)

    def batch(key, step):
        rows = jax.random.randint(jax.random.fold_in(key, step), (size,), 0, len(data[0]))
        return tuple(array[rows] for array in data)

    return batch


WIDE = 10**6
"""The number of units that cuts no layer."""


# Networks


def classified(outputs, targets):
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
    return {"loss": losses.mean(), "accuracy": jnp.mean(outputs.argmax(-1) == targets)}


def regressed(outputs, targets):
    return {"loss": jnp.mean((outputs[:, 0] - targets) ** 2)}


def matrices(shapes, key, scale):
    """Return He-normal matrices, scaled."""
    # Drawn at once, because XLA takes seconds to compile random numbers of each shape on a CPU.
    ends = np.cumsum([a * b for a, b in shapes])
    parts = jnp.split(scale * jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
    return [x.reshape(s) * (2 / s[0]) ** 0.5 for x, s in zip(parts, shapes, strict=True)]


def dense(inputs, outputs, widths):
    """Return init and apply of a network of dense layers with ReLU."""
    shapes = list(pairwise([inputs, *widths, outputs]))

    def init(key, scale):
        return [(w, jnp.zeros(w.shape[1])) for w in matrices(shapes, key, scale)]

    def apply(params, units, x):
        x = x.reshape(len(x), -1)
        for kernel, bias in params[:-1]:
            x = jax.nn.relu(x @ kernel + bias) * (jnp.arange(len(bias)) < units)
        kernel, bias = params[-1]
        return x @ kernel + bias

    return init, apply


def convolutional(shape, outputs, widths):
    """Return init and apply of convolutions over all axes but the last, each halving the axes."""
    taps = 3 ** (len(shape) - 1)
    features = widths[-1] * int(np.prod([size // 2 ** len(widths) for size in shape[:-1]]))
    shapes = [(taps * a, b) for a, b in pairwise([shape[-1], *widths])] + [(features, outputs)]

    def init(key, scale):
        return [(w, jnp.zeros(w.shape[1])) for w in matrices(shapes, key, scale)]

    def apply(params, units, x):
        for kernel, bias in params[:-1]:
            x = jax.nn.relu(_neighbours(x) @ kernel + bias) * (jnp.arange(len(bias)) < units)
            x = _halved(x)
        kernel, bias = params[-1]
        return x.reshape(len(x), -1) @ kernel + bias

    return init, apply


def _neighbours(x):
    """Put the features of each point and its neighbours side by side: (n, …, c) → (n, …, 3ᵈc)."""
    for axis in range(1, x.ndim - 1):
        wide = jnp.pad(x, [(0, 0)] * axis + [(1, 1)] + [(0, 0)] * (x.ndim - 1 - axis))
        size = x.shape[axis]
        x = jnp.concatenate([lax.slice_in_dim(wide, i, i + size, axis=axis) for i in range(3)], -1)
    return x


def _halved(x):
    """Average neighbouring points in pairs, along each axis but the first and the last."""
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis] // 2
        first, second = (
            lax.slice_in_dim(x, i, 2 * size - 1 + i, stride=2, axis=axis) for i in (0, 1)
        )
        x = (first + second) / 2
    return x


def recurrent(inputs, outputs, width):
    """Return init and apply of a network with one recurrent layer: (n, time, inputs) → outputs."""

    def init(key, scale):
        wide, around, head = matrices(
            [(inputs, width), (width, width), (width, outputs)], key, scale
        )
        return {"in": wide, "around": 0.7 * around, "bias": jnp.zeros(width), "head": head}

    def apply(params, units, x):
        alive = jnp.arange(width) < units

        def step(state, x):
            state = jnp.tanh(x @ params["in"] + state @ params["around"] + params["bias"])
            return state * alive, None

        state, _ = lax.scan(step, jnp.zeros((len(x), width)), jnp.moveaxis(x, 1, 0), unroll=4)
        return state @ params["head"]

    return init, apply


def attentive(time, inputs, outputs, width):
    """Return init and apply of one block of attention: (n, time, inputs) → outputs."""
    shapes = {
        "in": (inputs, width),
        "qkv": (width, 3 * width),
        "out": (width, width),
        "up": (width, 2 * width),
        "down": (2 * width, width),
        "head": (width, outputs),
    }

    def init(key, scale):
        *made, place = matrices([*shapes.values(), (time, width)], key, 0.7 * scale)
        return dict(zip(shapes, made, strict=True)) | {"place": place}

    def normal(x):
        return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    def apply(params, units, x):
        alive = jnp.arange(width) < units
        x = (x @ params["in"] + params["place"]) * alive
        q, k, v = jnp.split(normal(x) @ params["qkv"], 3, axis=-1)
        weights = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / width**0.5)
        x = x + weights @ v @ params["out"] * alive
        x = x + jax.nn.relu(normal(x) @ params["up"]) @ params["down"] * alive
        return normal(x[:, -1]) @ params["head"]

    return init, apply


def supervised(network, data, scores, *, steps, batch_size=32):
    """Return the problem of a network on ((train inputs, targets), (validation …))."""
    init, apply = network
    train, validation = data
    return Problem(
        init=init,
        loss=lambda params, units, batch, key: scores(apply(params, units, batch[0]), batch[1])[
            "loss"
        ],
        metrics=lambda params, units, data: scores(apply(params, units, data[0]), data[1]),
        steps=steps,
        train=train,
        validation=tuple(array[:MOST_EVALUATED] for array in validation),
        batch_size=batch_size,
    )


def split(x, y, *, classes, axis=0):
    """Shuffle, standardize, and keep 30% for validation."""
    order = np.random.default_rng(0).permutation(len(x))
    x, y = np.asarray(x, np.float32)[order], np.asarray(y)[order]
    cut = int(0.7 * len(x))
    x = (x - x[:cut].mean(axis)) / (x[:cut].std(axis) + 1e-3)
    y = y.astype(np.int32) if classes else ((y - y[:cut].mean()) / y[:cut].std()).astype(np.float32)
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


# Tables


def digits_mlp():
    from sklearn.datasets import load_digits

    data = split(*load_digits(return_X_y=True), classes=10)
    return supervised(dense(64, 10, (48, 24)), data, classified, steps=300)


def cancer_mlp():
    from sklearn.datasets import load_breast_cancer

    data = split(*load_breast_cancer(return_X_y=True), classes=2)
    return supervised(dense(30, 2, (24, 24)), data, classified, steps=250, batch_size=16)


def diabetes_linear():
    from sklearn.datasets import load_diabetes

    data = split(*load_diabetes(return_X_y=True), classes=0)
    return supervised(dense(10, 1, ()), data, regressed, steps=250, batch_size=16)


def waves():
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (2500, 4))
    y = np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * rng.normal(size=2500)
    return supervised(dense(4, 1, (48, 48)), split(x, y, classes=0), regressed, steps=300)


def friedman():
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(2000, noise=0.5, random_state=0)
    return supervised(dense(10, 1, (32, 32)), split(x, y, classes=0), regressed, steps=300)


def spirals():
    """Return the problem of three spiral arms in the plane, slightly blurred."""
    rng = np.random.default_rng(2)
    arm, t = rng.integers(0, 3, 2500), rng.uniform(0.1, 1, 2500)
    angle = 2 * np.pi * (arm / 3 + t)
    x = t[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.03 * rng.normal(size=(2500, 2))
    return supervised(dense(2, 3, (48, 48)), split(x, arm, classes=3), classified, steps=400)


# Images


def digits_cnn():
    from sklearn.datasets import load_digits

    data = load_digits()
    data = split(data.images[..., None], data.target, classes=10, axis=None)
    return supervised(convolutional((8, 8, 1), 10, (8, 16)), data, classified, steps=200)


@cache
def _patches(size, stride):
    """Return, for each of scikit-learn's photographs, its patches (n, size, size)."""
    from sklearn.datasets import load_sample_images

    return [
        np.lib.stride_tricks.sliding_window_view(image.mean(-1), (size, size))[
            ::stride, ::stride
        ].reshape(-1, size, size)
        for image in load_sample_images().images
    ]


def photo_pixel():
    """Return the problem of predicting a pixel from the 24 around it, in two photographs."""
    x = np.concatenate([patches.reshape(-1, 25) for patches in _patches(5, 9)])
    data = split(np.delete(x, 12, 1), x[:, 12], classes=0)
    return supervised(dense(24, 1, (32, 16)), data, regressed, steps=300)


def photo_which():
    """Return the problem of telling 8 × 8 pixels of a photograph of a temple from a flower's."""
    temple, flower = _patches(8, 9)
    x = np.concatenate([temple, flower])[..., None]
    y = np.repeat([0, 1], [len(temple), len(flower)])
    data = split(x, y, classes=2, axis=None)
    return supervised(convolutional((8, 8, 1), 2, (8, 16)), data, classified, steps=200)


# Signals and text


@cache
def _mnist1d():
    from mnist1d.data import get_dataset_args, make_dataset

    state = np.random.get_state()
    data = make_dataset(get_dataset_args())
    np.random.set_state(state)
    x, y = np.concatenate([data["x"], data["x_test"]]), np.concatenate([data["y"], data["y_test"]])
    return split(x, y, classes=10)


def mnist1d_mlp():
    return supervised(dense(40, 10, (64, 64)), _mnist1d(), classified, steps=400)


def mnist1d_recurrent():
    data = tuple((x.reshape(-1, 10, 4), y) for x, y in _mnist1d())
    return supervised(recurrent(4, 10, 32), data, classified, steps=300)


SYMBOLS, CONTEXT = 30, 8


@cache
def _text():
    """Return the problem of a letter after the eight before it, in Python's own help."""
    from pydoc_data.topics import topics

    text = "".join(topics.values()).lower()[:40_000]
    symbols = sorted(set(text), key=text.count)[::-1][:SYMBOLS]
    codes = np.array([symbols.index(c) if c in symbols else SYMBOLS - 1 for c in text])
    windows = np.lib.stride_tricks.sliding_window_view(codes, CONTEXT + 1)[::5]
    order = np.random.default_rng(0).permutation(len(windows))
    windows, cut = windows[order], int(0.7 * len(windows))
    x, y = np.eye(SYMBOLS, dtype=np.float32)[windows[:, :-1]], windows[:, -1].astype(np.int32)
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def text_mlp():
    network = dense(SYMBOLS * CONTEXT, SYMBOLS, (48,))
    return supervised(network, _text(), classified, steps=400)


def text_recurrent():
    return supervised(recurrent(SYMBOLS, SYMBOLS, 32), _text(), classified, steps=300)


def text_attention():
    return supervised(attentive(CONTEXT, SYMBOLS, SYMBOLS, 24), _text(), classified, steps=400)


# Functions


def function(height, init, *, noise=0.0, steps=300):
    """Return the problem of descending a function; Gaussian noise is added to the point."""

    def loss(point, units, batch, key):
        del units, batch
        return height(point + noise * jax.random.normal(key, point.shape))

    return Problem(
        init=lambda key, scale: scale * init(key),
        loss=loss,
        metrics=lambda point, units, data: {"loss": height(point)},
        steps=steps,
    )


def _quadratic(condition, size):
    curvatures = jnp.asarray(np.geomspace(1, condition, size), jnp.float32)
    return lambda point: 0.5 * jnp.sum(curvatures * point**2)


def quadratic():
    return function(_quadratic(100, 10), lambda key: jax.random.normal(key, (10,)))


def noisy_quadratic():
    return function(_quadratic(30, 20), lambda key: jax.random.normal(key, (20,)), noise=0.1)


def noisy_ravine():
    return function(_quadratic(1000, 30), lambda key: jax.random.normal(key, (30,)), noise=0.03)


OPEN = {
    "digits-mlp": digits_mlp,
    "cancer-mlp": cancer_mlp,
    "diabetes-linear": diabetes_linear,
    "waves": waves,
    "digits-cnn": digits_cnn,
    "photo-pixel": photo_pixel,
    "mnist1d-mlp": mnist1d_mlp,
    "text-mlp": text_mlp,
    "text-recurrent": text_recurrent,
    "quadratic": quadratic,
    "noisy-quadratic": noisy_quadratic,
}
"""The problems on which the lab's rules were developed."""

SEALED = {
    "friedman": friedman,
    "spirals": spirals,
    "photo-which": photo_which,
    "mnist1d-recurrent": mnist1d_recurrent,
    "text-attention": text_attention,
    "noisy-ravine": noisy_ravine,
}
"""The problems that were run once, after the rules stood."""

PROBLEMS = {**OPEN, **SEALED}
