"""Transformations that stand before or after a direction: clipping, decay, rates, averages."""

from optlab.transforms._averaged_params import averaged_params
from optlab.transforms._averaging import params_average, params_ema, params_lawa
from optlab.transforms._clipping import clip_by_global_norm, clip_by_value
from optlab.transforms._learning_rate import scale_by_learning_rate
from optlab.transforms._plateau import reduce_on_plateau
from optlab.transforms._power_average import params_power_ema
from optlab.transforms._reconstruction import (
    PowerEmaSnapshot,
    power_ema_snapshot,
    reconstruct,
    reconstruction_error,
)
from optlab.transforms._weight_decay import add_decayed_weights

__all__ = [
    "PowerEmaSnapshot",
    "add_decayed_weights",
    "averaged_params",
    "clip_by_global_norm",
    "clip_by_value",
    "params_average",
    "params_ema",
    "params_lawa",
    "params_power_ema",
    "power_ema_snapshot",
    "reconstruct",
    "reconstruction_error",
    "reduce_on_plateau",
    "scale_by_learning_rate",
]
