"""Norms, clipping, weight decay, and the average of the parameters.

    global norm     ‖g‖ = √Σ gᵢ², over all entries of all arrays
    clip by norm    g ← g·min(1, c/‖g‖)
    clip by value   gᵢ ← min(max(gᵢ, −c), c)
    decay           u ← u + λθ
    average         θ̄ ← aθ̄ + (1−a)θ, with a = decay, or a = min(decay, w(t)) with a warm-up w(t)

c is `max_norm` or `max_abs`, λ is `weight_decay`, θ is `p` or, after the update, `new_p`, θ̄ is
`average`, κ is `warmup_power`.

Conventions chosen:
- Clipping by norm multiplies every array by one number and so keeps the direction. A norm of 0,
  or one that does not exceed c, changes nothing.
- λθ is the gradient of λ/2‖θ‖².
- θ̄ starts as a copy of the initial parameters. The warm-up w(t) = 1 − t^(−κ) is 0 at t = 1, so
  that θ̄ is then θ itself and the initial parameters leave no trace. With κ = 1 and decay = 1, θ̄ is
  the plain mean of all θ (Polyak, Juditsky); with decay < 1, that mean until 1 − 1/t reaches the
  decay. κ = 2/3 is timm's. diffusers' is w(1) = 0 and then (1 + s)/(10 + s) with s = t − 1.

References: Pascanu, Mikolov, Bengio, ICML (2013), clipping by norm. Loshchilov, Hutter, ICLR
(2019), decoupled decay. Polyak, Juditsky, SIAM J. Control Optim. 30 (1992), averaging.
"""

import math

import numpy as np


def global_norm(arrays):
    """Return ‖g‖ = √Σ gᵢ² over all entries of all arrays.

    `math.hypot` scales by the largest entry, so that no square overflows or underflows, and
    compensates the rounding errors of the sum: the result is right to within 1 ulp.

    Args:
        arrays: list of arrays, of any shapes; may be empty (norm 0).

    Returns:
        The norm, a float: NaN if any entry is NaN, else ∞ if any is infinite.

    Example:
        >>> global_norm([[3.0, 0.0], [-4.0]])
        5.0
    """
    entries = [x for array in arrays for x in _float64(array).ravel().tolist()]
    if any(map(math.isnan, entries)):  # hypot lets ∞ win over NaN
        return math.nan
    return math.hypot(*entries)


def clip_by_global_norm(arrays, max_norm):
    """Shrink all arrays by one factor to a norm of at most c: g·min(1, c/‖g‖).

    Args:
        arrays: list of finite arrays, of any shapes.
        max_norm: c, ≥ 0.

    Returns:
        List of arrays, of the same shapes.
    """
    norm = global_norm(arrays)
    factor = 1.0 if norm <= max_norm else max_norm / norm
    return [_float64(array) * factor for array in arrays]


def clip_by_value(g, max_abs):
    """Limit every entry separately to [−c, c]: min(max(gᵢ, −c), c).

    Args:
        g: array, any shape.
        max_abs: c, ≥ 0.

    Returns:
        Array of g's shape.
    """
    return np.clip(_float64(g), -max_abs, max_abs)


def add_decayed_weights(u, p, *, weight_decay):
    """Add the decay term to a direction: u + λθ.

    Applied before an optimizer's own arithmetic (u is the gradient) it is the L2 penalty λ/2‖θ‖²;
    applied after it (u is the direction) it is decoupled decay. For SGD without momentum the two
    are the same.

    Args:
        u: gradient or direction, any shape, not yet multiplied by −α.
        p: parameter θ, of u's shape.
        weight_decay: λ, ≥ 0.

    Returns:
        Array of u's shape.
    """
    return _float64(u) + weight_decay * _float64(p)


def params_ema(new_p, average, t, *, decay, warmup_power=None, warmup=None):
    """Average the parameters after every update: θ̄ ← aθ̄ + (1−a)θ.

    a = decay, or with a warm-up a = min(decay, w(t)).

    Args:
        new_p: parameter θ after update t, any shape.
        average: θ̄ so far; before the first update the initial parameter.
        t: number of this update, from 1; used only by the warm-up.
        decay: largest a, in [0, 1].
        warmup_power: κ, > 0, for w(t) = 1 − t^(−κ).
        warmup: "timm", "diffusers" or w itself, a function of t; neither for no warm-up.

    Returns:
        The new average, an array of the parameter's shape.
    """
    bound, s = math.inf, t - 1
    if warmup_power is not None:
        bound = 1 - float(t) ** -warmup_power
    elif warmup == "timm":
        bound = 1 - (1 + s) ** (-2 / 3)
    elif warmup == "diffusers":
        bound = (1 + s) / (10 + s) if s else 0.0
    elif warmup is not None:
        bound = float(warmup(t))
    a = min(decay, bound)
    return a * _float64(average) + (1 - a) * _float64(new_p)


def _float64(x):
    return np.asarray(x, dtype=np.float64)
