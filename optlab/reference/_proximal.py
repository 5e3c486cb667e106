"""Proximal steps in a diagonal metric, for sparse weights; and smoothed labels.

    x = argmin ½·Σ (x − w)²/D + λ·R(x),    R = Σ|x| for l1, ‖x‖ for a group

The derivative of the sum is 0 where x ≠ 0:

    l1       (x − w)/D + λ·sign(x) = 0     → x = w − λD·sign(w), if |w| > λD, else 0
    group    (x − w)/D + λ·x/‖x‖ = 0       → x = w/(1 + λD/r) with r = ‖x‖, if ‖w/D‖ > λ, else 0

References: Duchi, Singer, JMLR 10 (2009); Yuan, Lin, J. R. Stat. Soc. B 68 (2006); Szegedy et al.,
CVPR (2016), for smoothed labels.
"""

import numpy as np


def l1_step(w, metric, strength):
    """Return the weights after a proximal step of λ·Σ|x|.

    Args:
        w: array, the weights after the optimizer's step.
        metric: D ≥ 0, a number or an array like w.
        strength: λ, ≥ 0.

    Returns:
        Array of w's shape.
    """
    w, threshold = np.asarray(w, np.float64), strength * np.asarray(metric, np.float64)
    return np.where(abs(w) > threshold, w - threshold * np.sign(w), 0.0)


def group_lasso_step(w, metric, strength):
    """Return the weights of one group after a proximal step of λ·‖x‖.

    r = ‖x‖ is found by bisection between 0 and ‖w‖.

    Args:
        w: array, the weights of the group after the optimizer's step.
        metric: D > 0, a number or an array like w.
        strength: λ, ≥ 0.

    Returns:
        Array of w's shape.
    """
    w = np.asarray(w, np.float64)
    metric = np.broadcast_to(np.asarray(metric, np.float64), w.shape)
    if np.linalg.norm(w / metric) <= strength:
        return np.zeros_like(w)
    low, high = 0.0, float(np.linalg.norm(w))
    for _ in range(200):
        r = (low + high) / 2
        longer = np.linalg.norm(w / (r + strength * metric)) > 1
        low, high = (r, high) if longer else (low, r)
    return w * high / (high + strength * metric)


def smooth_labels(one_hot, alpha):
    """Return (1 − α)·y + α/K, labels of K classes of which a share α is spread over all.

    Args:
        one_hot: (…, K) array, the labels y.
        alpha: α in [0, 1].

    Returns:
        Array of y's shape.
    """
    one_hot = np.asarray(one_hot, np.float64)
    return (1 - alpha) * one_hot + alpha / one_hot.shape[-1]
