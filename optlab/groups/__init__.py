"""Groups of parameters by the patterns of their paths: rates, decay, freezing, unfreezing."""

from optlab.groups._assignment import slices
from optlab.groups._carry_over import carry_over
from optlab.groups._modifiers import (
    discriminative,
    gradual_unfreezing,
    layerwise_decay,
    no_decay,
)
from optlab.groups._partition import PartitionState, freeze, partition
from optlab.groups._settings import Group, frozen, group
from optlab.groups._statistics import keep_statistics

__all__ = [
    "Group",
    "PartitionState",
    "carry_over",
    "discriminative",
    "freeze",
    "frozen",
    "gradual_unfreezing",
    "group",
    "keep_statistics",
    "layerwise_decay",
    "no_decay",
    "partition",
    "slices",
]
