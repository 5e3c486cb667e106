"""The small Flax NNX models of the built-in tasks; imported only when a task is built."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from optlab._types import Array, ArrayLike, DTypeLike


def he_normal(
    key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, out_sharding: Any = None
) -> Array:
    """Draw a kernel (…, outputs) from a normal distribution of variance 2 / inputs, for ReLU.

    Drawn as one row, because XLA compiles the random bits of a small last axis for seconds on a
    CPU.
    """
    del out_sharding
    row = jax.random.normal(key, (math.prod(shape),), dtype)
    return row.reshape(shape) * math.sqrt(2 / math.prod(shape[:-1]))


class Dropout(nnx.Module):
    """A dropout layer whose rate may be traced, so that a sweep has one program for all rates."""

    def __init__(self, rate: ArrayLike, *, rngs: nnx.Rngs):
        self.rate = nnx.Variable(jnp.asarray(rate, float))
        self.rngs = rngs.dropout.fork()
        self.deterministic = False  # `train()` and `eval()` of the model set this attribute

    def __call__(self, x: Array) -> Array:
        """Drop elements at random and scale up the others; in evaluation mode return x."""
        if self.deterministic:
            return x
        keep_share = 1 - self.rate[...]
        mask = jax.random.bernoulli(self.rngs(), keep_share, x.shape)
        return jnp.where(mask, x / keep_share, 0)


class MLP(nnx.Module):
    """Three dense layers with ReLU between them: (batch, num_inputs) → (batch, num_classes).

    Dropout follows each ReLU, unless `dropout` is None.
    """

    def __init__(
        self,
        num_inputs: int,
        width: int,
        num_classes: int,
        *,
        dropout: ArrayLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.hidden1 = nnx.Linear(num_inputs, width, kernel_init=he_normal, rngs=rngs)
        self.hidden2 = nnx.Linear(width, width // 2, kernel_init=he_normal, rngs=rngs)
        self.head = nnx.Linear(width // 2, num_classes, kernel_init=he_normal, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs) if dropout is not None else jax.nn.identity

    def __call__(self, x: Array) -> Array:
        """Return the logits."""
        x = self.dropout(nnx.relu(self.hidden1(x)))
        x = self.dropout(nnx.relu(self.hidden2(x)))
        return self.head(x)


class CNN(nnx.Module):
    """Two convolutions, each halving the image, and a dense head.

    (batch, height, width, 1) → (batch, num_classes); height and width are multiples of 4.
    """

    def __init__(self, image_size: int, channels: int, num_classes: int, *, rngs: nnx.Rngs):
        options = {"conv_general_dilated": conv_by_matmul, "kernel_init": he_normal, "rngs": rngs}
        num_features = 2 * channels * (image_size // 4) ** 2
        self.conv1 = nnx.Conv(1, channels, (3, 3), **options)
        self.conv2 = nnx.Conv(channels, 2 * channels, (3, 3), **options)
        self.head = nnx.Linear(num_features, num_classes, kernel_init=he_normal, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the logits."""
        x = halve(nnx.relu(self.conv1(x)))
        x = halve(nnx.relu(self.conv2(x)))
        return self.head(x.reshape(len(x), -1))


def conv_by_matmul(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
    """Convolve with stride 1 and padding "SAME" as one matrix product over shifted copies.

    Under `vmap` over its kernel, a convolution becomes a grouped convolution, which XLA runs many
    times slower on a CPU than the batched matrix product of this function.

    Args:
        x: (batch, height, width, inputs).
        kernel: (kernel height, kernel width, inputs, outputs), both sizes odd.
        args: strides and padding as `nnx.Conv` passes them; they must be stride 1 and "SAME".
        options: dilations and groups as `nnx.Conv` passes them; they must be 1.

    Returns:
        (batch, height, width, outputs).
    """
    del args, options
    kernel_height, kernel_width, _, num_outputs = kernel.shape
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (kernel_height // 2,) * 2, (kernel_width // 2,) * 2, (0, 0)))
    shifted = [
        padded[:, row : row + height, column : column + width]
        for row in range(kernel_height)
        for column in range(kernel_width)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, num_outputs)


def halve(x: Array) -> Array:
    """Take the maximum of each 2 × 2 square: (batch, 2h, 2w, channels) → (batch, h, w, channels).

    It is a reshape, because the gradient of a pooling window is a scatter, which is slow on a CPU.
    """
    batch, height, width, channels = x.shape
    windows = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return windows.max(axis=(2, 4))
