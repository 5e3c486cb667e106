"""The lab: tools with which to choose and debug an optimizer for a model.

A `Task` is a training problem as pure functions; `tasks` holds some on real data, and
`tasks.nnx_classifier` makes one of your own Flax NNX model. `compare` trains it with several
optimizers, each over a grid of rates and seeds in one compiled program. `lr_range_test` raises the
rate over one short run, from several seeds, and suggests where to train. `EarlyStopping` says when
a run is done, and keeps its best parameters.
"""

from optlab.lab import tasks
from optlab.lab._compare import Comparison, compare
from optlab.lab._early_stopping import EarlyStopping
from optlab.lab._grid import Runs
from optlab.lab._range_test import RangeTest, lr_range_test
from optlab.lab._rows import Row, Spread
from optlab.lab._task import Task, shuffled_batches

__all__ = [
    "Comparison",
    "EarlyStopping",
    "RangeTest",
    "Row",
    "Runs",
    "Spread",
    "Task",
    "compare",
    "lr_range_test",
    "shuffled_batches",
    "tasks",
]
