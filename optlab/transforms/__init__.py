"""Transformations that stand before or after a direction: clipping, decay, rates, averages."""

from optlab.transforms._averaging import ParamsEmaState, averaged_params, params_ema
from optlab.transforms._clipping import (
    ClipByGlobalNormState,
    ClipByValueState,
    clip_by_global_norm,
    clip_by_value,
)
from optlab.transforms._learning_rate import ScaleByLearningRateState, scale_by_learning_rate
from optlab.transforms._plateau import ReduceOnPlateauState, reduce_on_plateau
from optlab.transforms._weight_decay import AddDecayedWeightsState, add_decayed_weights

__all__ = [
    "AddDecayedWeightsState",
    "ClipByGlobalNormState",
    "ClipByValueState",
    "ParamsEmaState",
    "ReduceOnPlateauState",
    "ScaleByLearningRateState",
    "add_decayed_weights",
    "averaged_params",
    "clip_by_global_norm",
    "clip_by_value",
    "params_ema",
    "reduce_on_plateau",
    "scale_by_learning_rate",
]
