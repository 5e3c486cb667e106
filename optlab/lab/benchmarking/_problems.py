"""The tasks of the benchmark: small, of different kinds, and with a published target.

    name            model                             data                                  batch
    digits-mlp      64–128–64–10, ReLU                scikit-learn's 8 × 8 digits             32
    digits-cnn      two convolutions, one hidden      the same                                32
    friedman        10–64–64–1, ReLU                  Friedman's function, noise as large     32
                                                      as a fifth of it
    signals         40–64–64–10, ReLU                 ten templates, shifted and distorted    32
    characters      one block of attention, 8 × 32    the help texts of Python                64
    factorization   a 40 × 40 matrix as U Vᵀ          none: a deterministic objective         –

Nothing is downloaded. The data of the last four tasks are made with NumPy from a fixed seed, or
from the standard library. The targets stand in `TARGETS`; `reference_target` in `_targets` says by
which rule they were found.

Reference: Friedman, "Multivariate adaptive regression splines", Annals of Statistics 19 (1991), on
the function; Greydanus, Kobak, "Scaling down deep learning with MNIST-1D", ICML (2024), on the idea
of the signals.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab.tasks._builtin import digits_cnn, digits_mlp
from optlab.lab.tasks._objectives import Classification, Objective, Regression
from optlab.lab.tasks._supervised import Model, supervised_task
from optlab.lab.tasks._task import Task

TARGETS = {
    "digits-mlp": 0.95,
    "digits-cnn": 0.95,
    "friedman": 0.12,
    "signals": 0.85,
    "characters": 2.45,
    "factorization": 1e-3,
}
"""Name → the score to reach: accuracy of digits and signals, otherwise loss."""

LEVELS = 40
"""The points of a signal."""

SYMBOLS, CONTEXT = 32, 8
"""The symbols that are told apart in the text, and how many of them come before a guess."""

WIDTH = 32
"""The width of the block of attention."""


def bench_tasks(*names: str) -> tuple[Task, ...]:
    """Return built-in tasks of the benchmark, each with a target.

    Args:
        names: of "digits-mlp", "digits-cnn", "friedman", "signals", "characters" and
            "factorization"; none for all six.

    Raises:
        ModuleNotFoundError: Flax or scikit-learn is not installed, for the digits.
        ValueError: there is no such task.

    Example:
        >>> [task.name for task in bench_tasks("friedman", "factorization")]
        ['friedman', 'factorization']
    """
    for name in names:
        _checks.check_choice("bench_tasks", "each of names", name, list(PROBLEMS))
    return tuple(PROBLEMS[name]() for name in names or PROBLEMS)


def _digits_mlp() -> Task:
    task = digits_mlp()
    return dataclasses.replace(task, eval_every=5, target=TARGETS[task.name])


def _digits_cnn() -> Task:
    task = digits_cnn()
    return dataclasses.replace(task, eval_every=5, target=TARGETS[task.name])


def _friedman() -> Task:
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(4000, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y += 10 * x[:, 3] + 5 * x[:, 4] + rng.normal(size=len(x))
    y = (y - y.mean()) / y.std()
    x = (x - 0.5) * 12**0.5  # the variance of a uniform number is 1/12
    return _supervised(
        "friedman",
        _perceptron((10, 64, 64, 1)),
        Regression,
        (x.astype(np.float32), y[:, None].astype(np.float32)),
        steps=300,
    )


def _signals() -> Task:
    rng = np.random.default_rng(2)
    count = 5000
    labels = rng.integers(0, 10, count)
    templates = _smooth(rng.normal(size=(10, LEVELS)), 3)
    templates /= templates.std(axis=1, keepdims=True)
    columns = np.arange(LEVELS) + rng.integers(-4, 5, (count, 1))
    x = templates[labels[:, None], columns % LEVELS] * rng.uniform(0.5, 1.5, (count, 1))
    x += np.linspace(-1, 1, LEVELS) * rng.normal(size=(count, 1))
    x += 1.2 * _smooth(rng.normal(size=(count, LEVELS)), 1)
    return _supervised(
        "signals",
        _perceptron((LEVELS, 64, 64, 10)),
        Classification,
        ((x / x.std()).astype(np.float32), labels.astype(np.int32)),
        steps=300,
    )


def _smooth(signals: np.ndarray, times: int) -> np.ndarray:
    """Return signals (n, points), each point `times` averaged with its neighbours on a circle."""
    for _ in range(times):
        signals = (np.roll(signals, 1, axis=1) + signals + np.roll(signals, -1, axis=1)) / 3
    return signals


def _characters() -> Task:
    from pydoc_data.topics import topics

    text = "".join(text for _, text in sorted(topics.items())).lower()[:60_000]
    symbols = sorted(sorted(set(text)), key=text.count, reverse=True)[: SYMBOLS - 1]
    codes = {symbol: code for code, symbol in enumerate(symbols)}
    coded = np.array([codes.get(symbol, SYMBOLS - 1) for symbol in text], np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(coded, CONTEXT + 1)[::9]
    windows = np.random.default_rng(3).permutation(windows)
    task = _supervised(
        "characters",
        _attention(),
        Classification,
        (windows[:, :-1], windows[:, -1]),
        batch_size=64,
        steps=300,
    )
    return dataclasses.replace(task, score="loss", maximize=False)


def _factorization() -> Task:
    rng = np.random.default_rng(4)
    rank = 8
    left, right = (np.linalg.qr(rng.normal(size=(40, rank)))[0] for _ in range(2))
    matrix = left * np.geomspace(1, 0.03, rank) @ right.T
    # The relative error, for factors whose entries are near 1 like the weights of a network.
    matrix = jnp.asarray(matrix * (matrix.size / rank) ** 0.5, jnp.float32)
    square = jnp.sum(matrix**2)

    def init(key: Array) -> tuple[Tree, tuple[()]]:
        keys = jax.random.split(key)
        sizes = zip(("left", "right"), keys, matrix.shape, strict=True)
        return {name: 0.3 * jax.random.normal(k, (n, rank)) for name, k, n in sizes}, ()

    def error(params: Tree) -> Array:
        return jnp.sum((params["left"] @ params["right"].T - matrix) ** 2) / square

    return Task(
        name="factorization",
        init=init,
        loss=lambda params, state, batch, key: (error(params), state),
        batch=lambda key, step: (),
        evaluate=lambda params, state, data: {"loss": error(params)},
        target=TARGETS["factorization"],
        steps=300,
        eval_every=5,
    )


PROBLEMS: Mapping[str, Callable[[], Task]] = {
    "digits-mlp": _digits_mlp,
    "digits-cnn": _digits_cnn,
    "friedman": _friedman,
    "signals": _signals,
    "characters": _characters,
    "factorization": _factorization,
}
"""Name → a function that makes the task."""


def _supervised(
    name: str,
    model: Model,
    kind: type[Objective],
    data: tuple[np.ndarray, np.ndarray],
    *,
    steps: int,
    batch_size: int = 32,
) -> Task:
    """Return the task of a model; the last tenths of the data are for validation and for test."""
    cuts = [int(0.8 * len(data[0])), int(0.9 * len(data[0]))]
    parts = zip(*(np.split(array, cuts) for array in data), strict=True)
    train, validation, test = parts
    return supervised_task(
        "bench_tasks",
        name,
        lambda example: model,
        kind,
        train=train,
        validation=validation,
        test=test,
        batch_size=batch_size,
        target=TARGETS[name],
        steps=steps,
        eval_every=5,
    )


def _model(init: Callable[[Array], Tree], apply: Callable[[Tree, Array], Array]) -> Model:
    """Return a model without state, which is the same in training and in evaluation."""
    return Model(
        init=lambda key: (init(key), ()),
        train=lambda params, state, inputs, key: (apply(params, inputs), state),
        evaluate=lambda params, state, inputs: apply(params, inputs),
    )


def _matrices(key: Array, shapes: Sequence[tuple[int, int]], gain: float) -> list[Array]:
    """Return normal matrices with deviation √(gain / inputs)."""
    keys = jax.random.split(key, len(shapes))
    return [
        (gain / shape[0]) ** 0.5 * jax.random.normal(k, shape)
        for k, shape in zip(keys, shapes, strict=True)
    ]


def _perceptron(sizes: Sequence[int]) -> Model:
    """Return a network of dense layers with ReLU between them."""
    names = [*(f"hidden{i}" for i in range(len(sizes) - 2)), "head"]

    def init(key: Array) -> Tree:
        kernels = _matrices(key, list(pairwise(sizes)), gain=2)
        layers = [{"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])} for kernel in kernels]
        return dict(zip(names, layers, strict=True))

    def apply(params: Tree, x: Array) -> Array:
        for name in names[:-1]:
            x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
        return x @ params["head"]["kernel"] + params["head"]["bias"]

    return _model(init, apply)


def _attention() -> Model:
    """Return one block of attention and a perceptron, which guesses the symbol after the last."""
    shapes: dict[str, Any] = {
        "qkv": (WIDTH, 3 * WIDTH),
        "out": (WIDTH, WIDTH),
        "up": (WIDTH, 2 * WIDTH),
        "down": (2 * WIDTH, WIDTH),
        "head": (WIDTH, SYMBOLS),
    }

    def init(key: Array) -> Tree:
        embedding, place, *keys = jax.random.split(key, 3)
        matrices = _matrices(keys[0], list(shapes.values()), gain=1)
        return dict(zip(shapes, matrices, strict=True)) | {
            "embedding": jax.random.normal(embedding, (SYMBOLS, WIDTH)),
            "place": jax.random.normal(place, (CONTEXT, WIDTH)),
        }

    def normal(x: Array) -> Array:
        return x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    def apply(params: Tree, codes: Array) -> Array:
        x = jax.nn.one_hot(codes, SYMBOLS) @ params["embedding"] + params["place"]
        queries, keys, values = jnp.split(normal(x) @ params["qkv"], 3, axis=-1)
        weights = jax.nn.softmax(queries @ jnp.swapaxes(keys, 1, 2) / WIDTH**0.5)
        x = x + weights @ values @ params["out"]
        x = x + jax.nn.relu(normal(x) @ params["up"]) @ params["down"]
        return normal(x[:, -1]) @ params["head"]

    return _model(init, apply)
