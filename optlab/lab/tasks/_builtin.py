"""Built-in tasks to compare optimizers on: two networks on handwritten digits, a narrow valley.

None of them downloads anything.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from optlab import _checks
from optlab._extras import needs_extra
from optlab._types import Array, ArrayLike
from optlab.lab.tasks._nnx import nnx_model
from optlab.lab.tasks._objectives import Classification
from optlab.lab.tasks._supervised import supervised_task
from optlab.lab.tasks._task import Task

if TYPE_CHECKING:
    from flax import nnx


def digits_mlp(batch_size: int = 32, *, width: int = 128, dropout: ArrayLike | None = None) -> Task:
    """Return the task of an MLP, 64–128–64–10, on scikit-learn's 8 × 8 handwritten digits.

    The 1,797 images are split 60/20/20 into train, validation and test. The split is fixed, and
    each part has the same share of every digit. Pixels are standardized by the mean and deviation
    of the training images.

    Args:
        batch_size: examples per batch, ≥ 1.
        width: width of the first hidden layer, ≥ 2; the second is half as wide.
        dropout: the share of each hidden layer's outputs that is dropped in training, in [0, 1), a
            number or a traced array; None for no dropout.

    Raises:
        ModuleNotFoundError: Flax or scikit-learn is not installed.
        ValueError: `batch_size` is larger than the training split, or another argument is out of
            its range.
    """
    _checks.check_integer("digits_mlp", "width", width, 2)
    if dropout is not None:
        _checks.check_number("digits_mlp", "dropout", dropout, _checks.DECAY)
    with needs_extra("digits_mlp"):
        from optlab.lab.tasks._models import MLP

    splits = {name: (x.reshape(len(x), -1), y) for name, (x, y) in _digits("digits_mlp").items()}
    return _digits_task(
        "digits_mlp",
        lambda rngs: MLP(64, width, 10, dropout=dropout, rngs=rngs),
        splits,
        batch_size=batch_size,
        steps=300,
    )


def digits_cnn(batch_size: int = 32) -> Task:
    """Return the task of a small convolutional network on the digits of `digits_mlp`.

    Args:
        batch_size: examples per batch, ≥ 1.

    Raises:
        ModuleNotFoundError: Flax or scikit-learn is not installed.
        ValueError: `batch_size` is larger than the training split.
    """
    with needs_extra("digits_cnn"):
        from optlab.lab.tasks._models import CNN

    return _digits_task(
        "digits_cnn",
        lambda rngs: CNN(8, 8, 10, rngs=rngs),
        _digits("digits_cnn"),
        batch_size=batch_size,
        steps=200,
        eval_every=10,
    )


def valley() -> Task:
    """Return the task of descending f(x, y) = x² + 50y², which is fifty times steeper along y.

    It is deterministic and has no data, so that a run is judged by f itself. A seed determines the
    starting point, uniform in 4 ≤ x ≤ 5, 0.7 ≤ y ≤ 1. The coordinates after every update are
    recorded as the metrics "x" and "y".
    """

    def init(key: Array) -> tuple[Array, tuple[()]]:
        return jax.random.uniform(key, (2,), minval=START[0], maxval=START[1]), ()

    def evaluate(point: Array, model_state: tuple[()], data: None) -> dict[str, Array]:
        x, y = point
        return {"loss": valley_height(x, y), "x": x, "y": y}

    return Task(
        name="valley",
        init=init,
        loss=lambda point, model_state, batch, key: (valley_height(*point), model_state),
        batch=lambda key, step: (),
        evaluate=evaluate,
        target=0.01,
        steps=100,
        eval_every=1,
    )


START = (np.array([4.0, 0.7]), np.array([5.0, 1.0]))
"""Opposite corners of the rectangle in which `valley` starts."""


def valley_height(x: ArrayLike, y: ArrayLike) -> ArrayLike:
    """Return x² + 50y², elementwise; its minimum is 0, at the origin."""
    return x**2 + 50 * y**2


def dropout(rate: ArrayLike, *, rngs: "nnx.Rngs") -> "nnx.Module":
    """Return a Flax NNX dropout layer whose rate may be traced.

    `nnx.Dropout` is compiled anew for each rate; with this layer a sweep over `Uniform(0, 0.6)` is
    one program. Like `nnx.Dropout` it draws from the stream `rngs.dropout`, and `model.train()` and
    `model.eval()` turn it on and off.

    Args:
        rate: the share of elements dropped in training, in [0, 1), a number or a traced array.
        rngs: the model's random streams.

    Raises:
        ModuleNotFoundError: Flax is not installed.
        ValueError: the rate is not in [0, 1).
    """
    _checks.check_number("dropout", "rate", rate, _checks.DECAY)
    with needs_extra("dropout"):
        from optlab.lab.tasks._models import Dropout

    return Dropout(rate, rngs=rngs)


def _digits_task(
    who: str,
    make_model: "Callable[[nnx.Rngs], nnx.Module]",
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    **options: Any,
) -> Task:
    """Return the task of a network on digits, which evaluates all training images."""
    return supervised_task(
        who,
        who.replace("_", "-"),
        lambda example: nnx_model(who, make_model),
        Classification,
        **splits,
        target=0.95,
        whole_train=True,
        **options,
    )


def _digits(who: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the three splits: images (n, 8, 8, 1) float32, labels (n,) int32."""
    with needs_extra(who):
        from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images[..., None].astype(np.float32)
    labels = digits.target.astype(np.int32)
    rows = _stratified(labels, shares={"train": 0.6, "validation": 0.2, "test": 0.2})
    train = images[rows["train"]]
    images = (images - train.mean()) / train.std()
    return {name: (images[index], labels[index]) for name, index in rows.items()}


def _stratified(labels: np.ndarray, shares: dict[str, float]) -> dict[str, np.ndarray]:
    """Assign the rows of each class to the splits by their shares, in a fixed shuffled order."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    cuts = np.cumsum(list(shares.values()))[:-1]
    rows: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    for label in np.unique(labels):
        of_label = shuffled[labels[shuffled] == label]
        parts = np.split(of_label, np.round(cuts * len(of_label)).astype(int))
        for name, part in zip(shares, parts, strict=True):
            rows[name].append(part)
    return {name: np.concatenate(parts) for name, parts in rows.items()}
