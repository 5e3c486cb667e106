"""Training problems: what a `Task` is, how a model of yours becomes one, and some on real data.

None of the built-in tasks downloads anything. `nnx_classifier` makes a task from your own Flax NNX
model.
"""

from optlab.lab.tasks._builtin import (
    digits_cnn,
    digits_mlp,
    dropout,
    nnx_classifier,
    valley,
    valley_height,
)
from optlab.lab.tasks._task import shuffled_batches

__all__ = [
    "digits_cnn",
    "digits_mlp",
    "dropout",
    "nnx_classifier",
    "shuffled_batches",
    "valley",
    "valley_height",
]
