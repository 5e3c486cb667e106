"""What tests of the lab share: a task with everything that is not a parameter."""

import numpy as np
import pytest
from flax import nnx

from optlab.lab import tasks
from optlab.lab.tasks._models import he_normal


class Noisy(nnx.Module):
    """A model with everything that is not a parameter: batch statistics and random streams."""

    def __init__(self, *, rngs):
        # No bias before the normalization: its gradient is rounding error, which Adam makes large.
        self.hidden = nnx.Linear(4, 8, use_bias=False, kernel_init=he_normal, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)  # above 0, its random bits compile for seconds
        self.head = nnx.Linear(8, 3, kernel_init=he_normal, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


@pytest.fixture(scope="session")
def noisy_task():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(36, 4)).astype(np.float32)
    y = x[:, :3].argmax(axis=1)
    parts = [(x[part], y[part]) for part in (slice(0, 20), slice(20, 28), slice(28, 36))]
    train, validation, test = parts
    return tasks.nnx_classifier(
        "noisy",
        lambda rngs: Noisy(rngs=rngs),
        train=train,
        validation=validation,
        test=test,
        batch_size=8,
    )
