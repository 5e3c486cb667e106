"""Width transfer (μP): tune a small model, and keep its hyperparameters in a wide one.

`transfer` multiplies the rate, the decay and ε of an optimizer for each parameter, by how much its
shape has grown since a base model; `table` shows the multipliers, `init` the parameters' sizes at
the start, and `coordinate_check` measures whether model and optimizer fit together. What the model
must do itself stands in `docs/width_transfer.md`.
"""

from optlab.mup._coordinates import CoordinateCheck, coordinate_check
from optlab.mup._init import init
from optlab.mup._transfer import Multipliers, Options, Table, by_width, table, transfer

__all__ = [
    "CoordinateCheck",
    "Multipliers",
    "Options",
    "Table",
    "by_width",
    "coordinate_check",
    "init",
    "table",
    "transfer",
]
