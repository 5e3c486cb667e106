"""Transformations that stand before or after a direction: clipping, decay, rates, averages."""

from optlab.transforms._averaging import averaged_params, params_ema
from optlab.transforms._clipping import clip_by_global_norm, clip_by_value
from optlab.transforms._learning_rate import scale_by_learning_rate
from optlab.transforms._plateau import reduce_on_plateau
from optlab.transforms._weight_decay import add_decayed_weights

__all__ = [
    "add_decayed_weights",
    "averaged_params",
    "clip_by_global_norm",
    "clip_by_value",
    "params_ema",
    "reduce_on_plateau",
    "scale_by_learning_rate",
]
