"""Around a transformation: which steps it makes, in what precision, and what is recorded of it."""

from optlab.wrappers._accumulate import AccumulateState, accumulate
from optlab.wrappers._kahan_summation import KahanSummationState, kahan_summation
from optlab.wrappers._loss_scale import DynamicLossScaleState, dynamic_loss_scale, loss_scale
from optlab.wrappers._master_params import MasterParamsState, master_params
from optlab.wrappers._monitor import MonitorState, monitor, monitored
from optlab.wrappers._skip_nonfinite import (
    SkipCounts,
    SkipNonfiniteState,
    skip_counts,
    skip_nonfinite,
)
from optlab.wrappers._stochastic_rounding import StochasticRoundingState, stochastic_rounding

__all__ = [
    "AccumulateState",
    "DynamicLossScaleState",
    "KahanSummationState",
    "MasterParamsState",
    "MonitorState",
    "SkipCounts",
    "SkipNonfiniteState",
    "StochasticRoundingState",
    "accumulate",
    "dynamic_loss_scale",
    "kahan_summation",
    "loss_scale",
    "master_params",
    "monitor",
    "monitored",
    "skip_counts",
    "skip_nonfinite",
    "stochastic_rounding",
]
