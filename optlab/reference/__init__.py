"""The formula sheets: every rule written once more, in NumPy float64, straight from its paper.

optlab's compiled rules are checked against these sheets, so the sheets share no code with them.
They import only NumPy and the standard library, compute in float64, and process one array at a
time; the number of the update, t = 1, 2, …, is an argument. A gradient rule takes the gradient and
its state, a plain dict of arrays and floats that is `{}` before the first update, and returns a new
array and a new dict. Nothing is changed in place. Hyperparameters are Python floats that are passed
at every update, so that a schedule is a different value at each update.

- `_optimizers`: the directions `scale_by_…`, which are multiplied by −α, and the optimizers built
  on them.
- `_preconditioned`: the same for rules on matrices.
- `_transforms`: norms, clipping, weight decay, the moving average of the parameters.
- `_noise`: the size and the noise of a gradient.
- `_proximal`: proximal steps for sparse weights, and smoothed labels.
- `_averages`: the other averages of the parameters, by the weight of each.
- `_schedules`: the rate, or the rate and momentum, as a function of the number of updates already
  made.

Example:
    Adam on f(x) = x² from x = 2, where g = 2x:

    >>> from optlab.reference import adam
    >>> x, state = 2.0, {}
    >>> for t in (1, 2, 3):
    ...     x, state = adam(x, 2 * x, state, t, learning_rate=0.01)
    ...     print(f"{x:.4f}")
    1.9900
    1.9800
    1.9700
"""

from ._averages import params_average, params_lawa, params_power_ema, power_ema_gamma
from ._muon import muon, orthogonalized, scale_by_muon
from ._noise import noise_estimate
from ._optimizers import (
    adagrad,
    adam,
    adamw,
    rmsprop,
    scale_by_adafactor,
    scale_by_adagrad,
    scale_by_adam,
    scale_by_lamb,
    scale_by_lars,
    scale_by_lion,
    scale_by_momentum,
    scale_by_rmsprop,
    sgd,
)
from ._preconditioned import scale_by_shampoo, scale_by_soap, shampoo, soap
from ._proximal import group_lasso_step, l1_step, smooth_labels
from ._schedules import (
    clamp,
    constant,
    cosine,
    cosine_restarts,
    exponential,
    inverse_sqrt,
    join,
    linear,
    multistep,
    one_cycle,
    polynomial,
    scale,
    step_decay,
    swa_schedule,
    triangular,
    warmup,
    warmup_cosine,
    wsd,
)
from ._transforms import (
    add_decayed_weights,
    clip_by_global_norm,
    clip_by_value,
    global_norm,
    params_ema,
)

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "add_decayed_weights",
    "clamp",
    "clip_by_global_norm",
    "clip_by_value",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "global_norm",
    "group_lasso_step",
    "inverse_sqrt",
    "join",
    "l1_step",
    "linear",
    "multistep",
    "muon",
    "noise_estimate",
    "one_cycle",
    "orthogonalized",
    "params_average",
    "params_ema",
    "params_lawa",
    "params_power_ema",
    "polynomial",
    "power_ema_gamma",
    "rmsprop",
    "scale",
    "scale_by_adafactor",
    "scale_by_adagrad",
    "scale_by_adam",
    "scale_by_lamb",
    "scale_by_lars",
    "scale_by_lion",
    "scale_by_momentum",
    "scale_by_muon",
    "scale_by_rmsprop",
    "scale_by_shampoo",
    "scale_by_soap",
    "sgd",
    "shampoo",
    "smooth_labels",
    "soap",
    "step_decay",
    "swa_schedule",
    "triangular",
    "warmup",
    "warmup_cosine",
    "wsd",
]
