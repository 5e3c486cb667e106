"""Training problems: what a `Task` is, how a model of yours becomes one, and some on real data.

A model of Flax NNX, Flax Linen or Equinox and its data become a task in one call: `nnx_classifier`,
`linen_regressor` and so on. The data are arrays or a loader. None of the built-in tasks downloads
anything.
"""

from optlab.lab.tasks._builtin import digits_cnn, digits_mlp, dropout, valley, valley_height
from optlab.lab.tasks._equinox import equinox_classifier, equinox_regressor
from optlab.lab.tasks._linen import linen_classifier, linen_regressor
from optlab.lab.tasks._nnx import nnx_classifier, nnx_regressor
from optlab.lab.tasks._task import shuffled_batches

__all__ = [
    "digits_cnn",
    "digits_mlp",
    "dropout",
    "equinox_classifier",
    "equinox_regressor",
    "linen_classifier",
    "linen_regressor",
    "nnx_classifier",
    "nnx_regressor",
    "shuffled_batches",
    "valley",
    "valley_height",
]
