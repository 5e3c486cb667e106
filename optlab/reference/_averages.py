"""Averages of the parameters by their definition: the weight of every θ_i, and the sum.

    uniform   Σ θ_i/n over the n updates i = start + 1, start + 1 + every, …, up to T
    power     Σ (i^(γ+1) − (i−1)^(γ+1)) θ_i / T^(γ+1) over all updates i = 1 … T
    latest    Σ θ_i/n over the last n = k (or fewer, at first) of the updates i = every, 2·every, …

θ_i is `new_p`, the parameter after update i, T is the update now, `t`.

Conventions chosen:
- The initial parameters have no part in any of them. Where nothing has been averaged yet there is
  no average, None.
- γ is given by the relative width σ, the standard deviation of i/T under the weights where T is
  large: σ² = (γ + 1)/((γ + 2)²(γ + 3)). γ = 0 is σ = 1/√12 and the mean of all parameters.

References: Polyak, Juditsky, SIAM J. Control Optim. 30 (1992). Izmailov et al., UAI (2018), SWA.
Karras et al., CVPR (2024), powers. Kaddour, arXiv:2209.14981 (2022), LAWA.
"""

import numpy as np


def params_average(new_p, state, t, *, start=0, every=1):
    """Average the parameters after every so many updates, all with the same weight.

    Args:
        new_p: parameter θ after update t, any shape.
        state: `{}` before the first update, then what was returned.
        t: number of this update, from 1.
        start: updates that are left out at first, ≥ 0.
        every: updates from one parameter averaged to the next, ≥ 1.

    Returns:
        The average, an array of the parameter's shape, or None; and the new state.
    """
    total, number = state.get("total", 0.0), state.get("number", 0)
    if t > start and (t - start - 1) % every == 0:
        total, number = total + _float64(new_p), number + 1
    return (total / number if number else None), {"total": total, "number": number}


def params_power_ema(new_p, state, t, *, sigma_rel=None, gamma=None):
    """Average the parameters after every update with weights that grow as a power of its number.

    T^(γ+1) must be within the range of float64.

    Args:
        new_p: parameter θ after update t, any shape.
        state: `{}` before the first update, then what was returned.
        t: number of this update, from 1.
        sigma_rel: σ in (0, 1/√12], or None.
        gamma: γ ≥ 0, where σ is None.

    Returns:
        The average, an array of the parameter's shape, and the new state.
    """
    power = 1 + (power_ema_gamma(sigma_rel) if gamma is None else gamma)
    weight = float(t) ** power - (t - 1.0) ** power
    total = state.get("total", 0.0) + weight * _float64(new_p)
    return total / float(t) ** power, {"total": total}


def params_lawa(new_p, state, t, *, k=6, every):
    """Average the latest k of the parameters that are taken every so many updates.

    Args:
        new_p: parameter θ after update t, any shape.
        state: `{}` before the first update, then what was returned.
        t: number of this update, from 1.
        k: how many, ≥ 1.
        every: updates from one parameter taken to the next, ≥ 1.

    Returns:
        The average, an array of the parameter's shape, or None; and the new state.
    """
    new_p = _float64(new_p)
    recent = state.get("recent", np.empty((0, *new_p.shape)))
    if t % every == 0:
        recent = np.concatenate([recent, new_p[None]])[-k:]
    return (recent.mean(axis=0) if len(recent) else None), {"recent": recent}


def power_ema_gamma(sigma_rel):
    """Return γ ≥ 0 of a relative width, found by halving an interval.

    Args:
        sigma_rel: σ in (0, 1/√12].

    Returns:
        γ, a float.

    Example:
        >>> round(power_ema_gamma(0.05), 4), round(power_ema_gamma(0.10), 4)
        (16.9722, 6.9372)
    """
    low, high = 0.0, 1 / sigma_rel  # the width falls as γ grows, and is below 1/γ
    while low < (middle := (low + high) / 2) < high:
        too_wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > sigma_rel**2
        low, high = (middle, high) if too_wide else (low, middle)
    return low


def _float64(x):
    return np.asarray(x, dtype=np.float64)
