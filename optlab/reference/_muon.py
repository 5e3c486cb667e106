"""Muon in NumPy float64, by singular values in place of Newton–Schulz steps."""

import math

import numpy as np

from ._optimizers import scale_by_adam

_SETS = {
    "keller_jordan": [(3.4445, -4.7750, 2.0315)],
    "you": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
    # As published with the method, for singular values from 1e-3.
    "polar_express": [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ],
}


def orthogonalized(g, ns_coeffs="keller_jordan", ns_steps=5, eps=1e-7):
    """Map the singular values σ of g/(‖g‖ + ε) by aσ + bσ³ + cσ⁵, step by step.

    Args:
        g: matrices (…, m, n).
        ns_coeffs: "keller_jordan", "you", "polar_express", or rows (a, b, c); the last is repeated.
        ns_steps: how many steps, ≥ 1.
        eps: ε, ≥ 0.

    Returns:
        Matrices of the same shape; 0 for a zero matrix.
    """
    g = np.asarray(g, np.float64)
    norm = np.sqrt(np.sum(g**2, axis=(-2, -1), keepdims=True)) + eps
    u, s, vt = np.linalg.svd(g / np.where(norm == 0, 1, norm), full_matrices=False)
    rows = _SETS[ns_coeffs] if isinstance(ns_coeffs, str) else ns_coeffs
    for step in range(ns_steps):
        a, b, c = rows[min(step, len(rows) - 1)]
        s = a * s + b * s**3 + c * s**5
    return (u * s[..., None, :]) @ vt


def scale_by_muon(
    g,
    state,
    t,
    *,
    ns_coeffs="keller_jordan",
    ns_steps=5,
    beta=0.95,
    eps=1e-7,
    nesterov=True,
    scale="moonshot",
    adam_b1=0.9,
    adam_b2=0.999,
    adam_eps=1e-8,
    adam_eps_root=0.0,
):
    """Orthogonalize the momentum of a matrix (in, out); take Adam's direction of a vector.

    m ← βm + (1−β)g; the direction is s times the orthogonal factor of βm + (1−β)g (Nesterov) or m.

    Args:
        g: gradient; the last two axes of an array with two or more are in and out.
        state: `mu`, for a vector that of `scale_by_adam`; {} before the first update.
        t: number of this update, from 1.
        ns_coeffs: as for `orthogonalized`.
        ns_steps: as for `orthogonalized`.
        beta: β, in [0, 1).
        eps: as for `orthogonalized`.
        nesterov: whether to look one step ahead.
        scale: s, "moonshot", "keller_jordan" or "scion".
        adam_b1: β₁ of Adam.
        adam_b2: β₂ of Adam.
        adam_eps: ε of Adam.
        adam_eps_root: ε_root of Adam.

    Returns:
        (direction, state).
    """
    g = np.asarray(g, np.float64)
    if g.ndim < 2:
        return scale_by_adam(
            g, state, t, b1=adam_b1, b2=adam_b2, eps=adam_eps, eps_root=adam_eps_root
        )
    mu = beta * state.get("mu", 0.0) + (1 - beta) * g
    ahead = beta * mu + (1 - beta) * g if nesterov else mu
    size_in, size_out = g.shape[-2:]
    factor = {
        "moonshot": 0.2 * math.sqrt(max(size_in, size_out)),
        "keller_jordan": math.sqrt(max(1, size_out / size_in)),
        "scion": math.sqrt(size_out / size_in),
    }[scale]
    return factor * orthogonalized(ahead, ns_coeffs, ns_steps, eps), {"mu": mu}


def muon(
    p,
    g,
    state,
    t,
    *,
    learning_rate,
    weight_decay=0.01,
    adam_learning_rate=None,
    adam_weight_decay=None,
    **hyperparams,
):
    """Step by Muon on a matrix (in, out), by AdamW on a vector: θ ← θ − α(u + λθ).

    Args:
        p: parameter θ.
        g: gradient, of the parameter's shape.
        state: that of `scale_by_muon`; {} before the first update.
        t: number of this update, from 1.
        learning_rate: α, ≥ 0.
        weight_decay: λ, ≥ 0.
        adam_learning_rate: α of AdamW; None for `learning_rate`.
        adam_weight_decay: λ of AdamW; None for `weight_decay`.
        hyperparams: those of `scale_by_muon`.

    Returns:
        (new parameter, state).
    """
    p = np.asarray(p, np.float64)
    u, state = scale_by_muon(g, state, t, **hyperparams)
    if p.ndim < 2:
        learning_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
        weight_decay = weight_decay if adam_weight_decay is None else adam_weight_decay
    return p - learning_rate * (u + weight_decay * p), state
