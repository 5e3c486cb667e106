"""The optimizer's state divided over the devices that share a batch (ZeRO-1), for any rule.

Devices that train one model on parts of a batch all hold the same parameters. The state of the
optimizer, mostly twice as large as they are, need not be on each of them. `state_sharding` says
which part of it each device keeps, and `step` makes the training step that works on these parts:
gradients are reduced once, and parameters are gathered once.
"""

from optlab.sharding._collectives import Collective, collectives
from optlab.sharding._layout import Layout, Slot, layout
from optlab.sharding._state import abstract_state, divide_batch, init, state_sharding
from optlab.sharding._step import ShardedStep, step

__all__ = [
    "Collective",
    "Layout",
    "ShardedStep",
    "Slot",
    "abstract_state",
    "collectives",
    "divide_batch",
    "init",
    "layout",
    "state_sharding",
    "step",
]
