"""Gradient rules: from momentum to Adam, Lion, LARS, LAMB and Adafactor.

Every optimizer is θ ← θ − α·d with a direction d made from the gradient g:

    SGD         d = g
    momentum    v ← βv + (1−τ)g             d = v
      Nesterov                              d = βv + (1−τ)g
    AdaGrad     s ← s + g²                  d = g / (√s + ε)
    RMSProp     s ← βs + (1−β)g²            d = g / (√s + ε)
      ε inside                              d = g / √(s + ε)
      centered  m ← βm + (1−β)g             max(s − m², 0) in place of s
      unbiased                              s / (1 − βᵗ), m / (1 − βᵗ) in place of s, m
      momentum  b ← μb + d                  d′ = b   (Nesterov: d′ = μb + d)
    Adam        m ← β₁m + (1−β₁)g           m̂ = m / (1 − β₁ᵗ)
                v ← β₂v + (1−β₂)g²          v̂ = v / (1 − β₂ᵗ)
                                            d = m̂ / (√(v̂ + ε_root) + ε)
      AMSGrad   v̂max ← max(v̂max, v̂)         v̂max in place of v̂
      Nesterov  m̂ = β₁·m / (1 − β₁ᵗ⁺¹) + (1−β₁)·g / (1 − β₁ᵗ)
    AdamW       Adam's d + λθ
    Lion        m ← β₂m + (1−β₂)g           d = sign(β₁m + (1−β₁)g) with the m before + λθ
    LARS                                    d = ξ‖θ‖/(‖g‖ + λ‖θ‖ + ε)·(g + λθ)
    LAMB        r = Adam's d + λθ           d = ‖θ‖/‖r‖·r
    Adafactor   V ← (1−w)V + w(g² + ε)      d = U/max(1, RMS(U)/d_max), U = g/√V, w = t⁻ᶜ
      factored  R, C the means of V over columns, rows;  V = R·C/mean(R)

Squares, roots, quotients and maxima are taken per coordinate, norms over one array. v and b are
`velocity`; s is `sum_of_squares` in AdaGrad and `mean_square` in RMSProp; RMSProp's m is `mean`;
Adam's m, v and v̂max are `mu`, `nu` and `nu_max`. All start at 0, but for AdaGrad's s
(`initial_accumulator_value`) and RMSProp's s (`initial_scale`). α is `learning_rate`; β is
`momentum` or `decay`, μ is `momentum`, τ is `dampening`, β₁ and β₂ are `b1` and `b2`, ε is `eps`,
ε_root is `eps_root`, λ is `weight_decay`, ξ is `trust_coefficient`.

Conventions chosen:
- α stands outside every momentum buffer: a new rate acts at once on the whole velocity.
  (Sutskever et al. and Graves keep it inside; the two agree while α is constant.)
- Dampening acts from the first update on.
- With Nesterov θ is the point at which the gradient is taken. (Sutskever et al. follow the point
  behind it, θ̃ = θ + αβv; for constant α and β the two forms make the same path.)
- ε stands outside the root unless said otherwise. With ε = 0, a coordinate whose gradients have
  all been 0 gives 0/0: NaN, with NumPy's warning. The sheets do not treat this case separately.
- s − m² loses its digits if the gradient hardly varies, and may be rounded below 0: it is clamped.
- β₁ᵗ and β₂ᵗ stand for Πβ₁(i) and Πβ₂(i), i = 1 … t, where they follow a schedule, so that the
  weights in m̂ and v̂ always sum to 1; β₁ᵗ⁺¹ is then β₁(t)·Πβ₁(i), the next β₁ being unknown.
- The step of `nesterov` in Adam is NAdam with constant β₁ (Dozat's Algorithm 2 without its extra
  factor β₂ in v̂, as Optax has it).
- AMSGrad takes its maximum after the correction of bias, as Optax does; Reddi et al. correct none.
- Decay is decoupled: λθ is multiplied by α but never enters m or v. As in the common frameworks
  the factor is αλ; in the paper it is λ times the schedule's factor, without the base rate.

References: Polyak, USSR Comput. Math. Math. Phys. 4 (1964), momentum. Nesterov, Soviet Math.
Dokl. 27 (1983). Sutskever, Martens, Dahl, Hinton, ICML (2013). Duchi, Hazan, Singer, JMLR 12
(2011), AdaGrad. Tieleman, Hinton, Coursera lecture 6.5 (2012), RMSProp. Graves, arXiv:1308.0850
(2013), centered RMSProp. Kingma, Ba, ICLR (2015), Adam. Dozat, ICLR workshop (2016), NAdam.
Reddi, Kale, Kumar, ICLR (2018), AMSGrad. Loshchilov, Hutter, ICLR (2019), AdamW.
Chen et al., NeurIPS (2023), Lion. You, Gitman, Ginsburg, arXiv:1708.03888 (2017), LARS. You et al.,
ICLR (2020), LAMB. Shazeer, Stern, ICML (2018), Adafactor.
"""

import math

import numpy as np


def scale_by_momentum(g, state, t, *, momentum=0.9, dampening=0.0, nesterov=False):
    """Sum the past gradients with geometric weights.

    v ← βv + (1−τ)g; the direction is v, or with `nesterov` βv + (1−τ)g.

    Args:
        g: gradient, any shape.
        state: `velocity`; {} before the first update.
        t: number of this update, from 1; not used.
        momentum: β, in [0, 1).
        dampening: τ, in [0, 1]; 0 makes v a sum (heavy ball), τ = β an average.
        nesterov: look ahead along the velocity.

    Returns:
        (direction, state).
    """
    g = _float64(g)
    velocity = momentum * state.get("velocity", 0.0) + (1 - dampening) * g
    direction = momentum * velocity + (1 - dampening) * g if nesterov else velocity
    return direction, {"velocity": velocity}


def scale_by_adagrad(
    g,
    state,
    t,
    *,
    eps=1e-8,
    eps_in_sqrt=False,
    initial_accumulator_value=0.0,
    compensated=False,
):
    """Divide by the root of the sum of all squared gradients.

    s ← s + g²; the direction is g / (√s + ε), or with `eps_in_sqrt` g / √(s + ε).

    Args:
        g: gradient, any shape.
        state: `sum_of_squares`; {} before the first update.
        t: number of this update, from 1; not used.
        eps: ε, ≥ 0; where it is 0, s must be > 0 (0/0 is NaN).
        eps_in_sqrt: whether ε is added to s or to its root.
        initial_accumulator_value: s before the first update, ≥ 0.
        compensated: not used; it changes how optlab sums in few digits, not the sum itself.

    Returns:
        (direction, state).
    """
    g = _float64(g)
    s = state.get("sum_of_squares", initial_accumulator_value) + g**2
    return g / (np.sqrt(s + eps) if eps_in_sqrt else np.sqrt(s) + eps), {"sum_of_squares": s}


def scale_by_rmsprop(
    g,
    state,
    t,
    *,
    decay=0.9,
    eps=1e-8,
    eps_in_sqrt=False,
    initial_scale=0.0,
    centered=False,
    bias_correction=False,
):
    """Divide by the root of the average squared gradient, or by the standard deviation.

    s ← βs + (1−β)g²; the direction is g / (√s + ε), or with `eps_in_sqrt` g / √(s + ε).
    Centered: m ← βm + (1−β)g, and max(s − m², 0) stands in place of s. With `bias_correction`
    s/(1−βᵗ) and m/(1−βᵗ) stand in place of s and m.

    Args:
        g: gradient, any shape.
        state: `mean_square`, `mean` if centered, and `mean_log_decay` with the correction (as
            `mean_log_b2` of `scale_by_adam`); {} before the first update.
        t: number of this update, from 1; used only by the correction of bias.
        decay: β, in [0, 1).
        eps: ε, ≥ 0; where it is 0, s must be > 0 (0/0 is NaN).
        eps_in_sqrt: whether ε is added to s or to its root.
        initial_scale: s before the first update, ≥ 0.
        centered: divide by the standard deviation.
        bias_correction: correct the averages for their bias to 0.

    Returns:
        (direction, state).
    """
    g = _float64(g)
    s = decay * state.get("mean_square", initial_scale) + (1 - decay) * g**2
    new_state, weight = {"mean_square": s}, 1.0
    if bias_correction:
        mean_log = _mean_log(decay, state.get("mean_log_decay"), t)
        new_state["mean_log_decay"] = mean_log
        weight = -np.expm1(t * mean_log)  # 1 − βᵗ
    variance = s / weight
    if centered:
        m = decay * state.get("mean", 0.0) + (1 - decay) * g
        new_state["mean"] = m
        variance = np.maximum(variance - (m / weight) ** 2, 0.0)
    return g / (np.sqrt(variance + eps) if eps_in_sqrt else np.sqrt(variance) + eps), new_state


def scale_by_adam(
    g, state, t, *, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False, amsgrad=False
):
    """Divide the average gradient by the root of the average squared gradient, both unbiased.

    m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; m̂ = m/(1−β₁ᵗ); v̂ = v/(1−β₂ᵗ); the direction is
    m̂ / (√(v̂ + ε_root) + ε). AMSGrad puts the largest v̂ so far in place of v̂. Nesterov takes
    m̂ = β₁·m/(1−β₁ᵗ⁺¹) + (1−β₁)·g/(1−β₁ᵗ).

    Args:
        g: gradient, any shape.
        state: `mu`, `nu`, `mean_log_b1`, `mean_log_b2`, and `nu_max` with AMSGrad; {} before the
            first update. If a state lacks the two logarithms, those of the present β₁ and β₂ are
            used, as for constants.
        t: number of this update, from 1.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε, ≥ 0; where it and `eps_root` are 0, v̂ must be > 0 (0/0 is NaN).
        eps_root: ε_root, ≥ 0.
        nesterov: NAdam.
        amsgrad: never let the denominator shrink.

    Returns:
        (direction, state).
    """
    g = _float64(g)
    m = b1 * state.get("mu", 0.0) + (1 - b1) * g
    v = b2 * state.get("nu", 0.0) + (1 - b2) * g**2
    mean_log_b1 = _mean_log(b1, state.get("mean_log_b1"), t)
    mean_log_b2 = _mean_log(b2, state.get("mean_log_b2"), t)
    new_state = {"mu": m, "nu": v, "mean_log_b1": mean_log_b1, "mean_log_b2": mean_log_b2}

    m_correction = -np.expm1(t * mean_log_b1)  # 1 − β₁ᵗ
    if nesterov:
        next_correction = -np.expm1(t * mean_log_b1 + _log(b1))  # 1 − β₁ᵗ⁺¹
        m_hat = b1 * m / next_correction + (1 - b1) * g / m_correction
    else:
        m_hat = m / m_correction
    v_hat = v / -np.expm1(t * mean_log_b2)
    if amsgrad:
        v_hat = np.maximum(state.get("nu_max", 0.0), v_hat)
        new_state["nu_max"] = v_hat
    return m_hat / (np.sqrt(v_hat + eps_root) + eps), new_state


def scale_by_lion(g, state, t, *, b1=0.9, b2=0.99):
    """Take the sign of an average of the momentum and the gradient.

    The direction is sign(β₁m + (1−β₁)g); then m ← β₂m + (1−β₂)g. The sign of 0 is 0.

    Args:
        g: gradient, any shape.
        state: `mu`; {} before the first update.
        t: number of this update, from 1; not used.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).

    Returns:
        (direction, state).
    """
    g = _float64(g)
    mu = state.get("mu", 0.0)
    return np.sign(b1 * mu + (1 - b1) * g), {"mu": b2 * mu + (1 - b2) * g}


def scale_by_lars(
    p,
    g,
    state,
    t,
    *,
    weight_decay=0.0,
    weight_decay_mask=None,
    trust_coefficient=0.001,
    eps=0.0,
    trust_ratio_mask=None,
    norm_of_sum=False,
    max_trust_ratio=None,
):
    """Give the gradient and the decay a share of the norm of the weights.

    The direction is r(g + λθ) with r = ξ‖θ‖/(‖g‖ + λ‖θ‖ + ε), or with `norm_of_sum`
    ξ‖θ‖/(‖g + λθ‖ + ε); r is 1 where ‖θ‖ or the norm of the gradient (of the sum) is 0.

    Args:
        p: parameter θ, any shape.
        g: gradient, of the parameter's shape.
        state: not used; {}.
        t: number of this update, from 1; not used.
        weight_decay: λ, ≥ 0.
        weight_decay_mask: whether this array is decayed; None for whether it has two axes or more.
        trust_coefficient: ξ, ≥ 0.
        eps: ε, ≥ 0.
        trust_ratio_mask: whether r is not 1 throughout; None for whether there are two axes or
            more.
        norm_of_sum: take the norm of the sum in place of the sum of the norms.
        max_trust_ratio: the largest r, ≥ 0; None for no bound.

    Returns:
        (direction, state).
    """
    p, g = _float64(p), _float64(g)
    if not _applies(weight_decay_mask, p):
        weight_decay = 0.0
    total = g + weight_decay * p
    if not _applies(trust_ratio_mask, p):
        return total, {}
    weights, gradient = _norm(p), _norm(total if norm_of_sum else g)
    decay = 0.0 if norm_of_sum else weight_decay * weights
    ratio = 1.0
    if weights > 0 and gradient > 0:
        ratio = trust_coefficient * (weights / (gradient + decay + eps))
    if max_trust_ratio is not None:
        ratio = min(ratio, max_trust_ratio)
    return ratio * total, {}


def scale_by_lamb(
    p,
    g,
    state,
    t,
    *,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    eps_root=0.0,
    weight_decay=0.0,
    mask=None,
    trust_ratio_mask=None,
    max_trust_ratio=None,
):
    """Give Adam's direction, decay included, the norm of the weights.

    The direction is ‖θ‖/‖r‖·r with r = m̂/(√(v̂ + ε_root) + ε) + λθ; the ratio is 1 where one of
    the norms is 0.

    Args:
        p: parameter θ, any shape.
        g: gradient, of the parameter's shape.
        state: that of `scale_by_adam`; {} before the first update.
        t: number of this update, from 1.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε, ≥ 0.
        eps_root: ε_root, ≥ 0.
        weight_decay: λ, ≥ 0.
        mask: whether this array is decayed; None for whether it has two axes or more.
        trust_ratio_mask: whether r is scaled; None for whether there are two axes or more.
        max_trust_ratio: the largest ratio, ≥ 0; None for no bound.

    Returns:
        (direction, state).
    """
    p = _float64(p)
    r, state = scale_by_adam(g, state, t, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    if _applies(mask, p):
        r = r + weight_decay * p
    if not _applies(trust_ratio_mask, p):
        return r, state
    ratio = _norm(p) / _norm(r) if _norm(p) > 0 and _norm(r) > 0 else 1.0
    if max_trust_ratio is not None:
        ratio = min(ratio, max_trust_ratio)
    return ratio * r, state


def scale_by_adafactor(
    g,
    state,
    t,
    *,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    decay_offset=0,
    clipping_threshold=1.0,
    eps=1e-30,
    factored=True,
):
    """Divide by the root of the average squared gradient, which is kept as a row and a column.

    V ← (1−w)V + w(g² + ε) with w = t⁻ᶜ; U = g/√V; the direction is U/max(1, RMS(U)/d). Of an array
    whose two largest axes are long enough only the means of V over either axis are kept, R and C,
    and R·C/mean(R) stands in place of V.

    Args:
        g: gradient, any shape.
        state: `v`, or `v_row` and `v_col`; {} before the first update.
        t: number of this update, from 1.
        min_dim_size_to_factor: the least length of the two axes, ≥ 1.
        decay_rate: c, > 0.
        decay_offset: taken off t, which stays ≥ 1.
        clipping_threshold: d, > 0; None for no bound.
        eps: ε, > 0.
        factored: whether anything is factored.

    Returns:
        (direction, state).
    """
    g = _float64(g)
    weight = max(t - decay_offset, 1) ** -decay_rate
    square = g**2 + eps
    if factored and g.ndim >= 2 and sorted(g.shape)[-2] >= min_dim_size_to_factor:
        one, other = map(int, np.argsort(g.shape)[-2:])
        row, column = square.mean(other, keepdims=True), square.mean(one, keepdims=True)
        row = (1 - weight) * state.get("v_row", 0.0) + weight * row
        column = (1 - weight) * state.get("v_col", 0.0) + weight * column
        v, state = row / row.mean(one, keepdims=True) * column, {"v_row": row, "v_col": column}
    else:
        v = (1 - weight) * state.get("v", 0.0) + weight * square
        state = {"v": v}
    u = g / np.sqrt(v)
    if clipping_threshold is not None and u.size:
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / clipping_threshold)
    return u, state


def sgd(p, g, state, t, *, learning_rate, momentum=None, dampening=0.0, nesterov=False):
    """Step along the gradient, or along its velocity: θ ← θ − αg or θ ← θ − αv.

    Args:
        p: parameter θ, any shape.
        g: gradient, of the parameter's shape.
        state: `velocity` with momentum, else empty; {} before the first update.
        t: number of this update, from 1; not used.
        learning_rate: α, ≥ 0.
        momentum: β, in [0, 1); None for θ ← θ − αg, which ignores the two options below.
        dampening: τ, in [0, 1].
        nesterov: look ahead along the velocity.

    Returns:
        (new parameter, state).
    """
    if momentum is None:
        return _float64(p) - learning_rate * _float64(g), {}
    direction, state = scale_by_momentum(
        g, state, t, momentum=momentum, dampening=dampening, nesterov=nesterov
    )
    return _float64(p) - learning_rate * direction, state


def adagrad(
    p,
    g,
    state,
    t,
    *,
    learning_rate,
    eps=1e-8,
    eps_in_sqrt=False,
    initial_accumulator_value=0.0,
    compensated=False,
):
    """Step by AdaGrad: s ← s + g²; θ ← θ − αg/(√s + ε).

    Args:
        p: parameter θ, any shape.
        g: gradient, of the parameter's shape.
        state: that of `scale_by_adagrad`; {} before the first update.
        t: number of this update, from 1; not used.
        learning_rate: α, ≥ 0.
        eps: ε, ≥ 0.
        eps_in_sqrt: whether ε is added to s or to its root.
        initial_accumulator_value: s before the first update, ≥ 0.
        compensated: not used; it changes how optlab sums in few digits, not the sum itself.

    Returns:
        (new parameter, state).
    """
    direction, state = scale_by_adagrad(
        g,
        state,
        t,
        eps=eps,
        eps_in_sqrt=eps_in_sqrt,
        initial_accumulator_value=initial_accumulator_value,
    )
    return _float64(p) - learning_rate * direction, state


def rmsprop(
    p,
    g,
    state,
    t,
    *,
    learning_rate,
    decay=0.9,
    eps=1e-8,
    eps_in_sqrt=False,
    initial_scale=0.0,
    centered=False,
    momentum=None,
    nesterov=False,
    bias_correction=False,
):
    """Step by RMSProp: s ← βs + (1−β)g²; θ ← θ − αg/(√s + ε).

    With momentum, d being the quotient: b ← μb + d; θ ← θ − αb, or θ ← θ − α(μb + d) with
    `nesterov`.

    Args:
        p: parameter θ, any shape.
        g: gradient, of the parameter's shape.
        state: that of `scale_by_rmsprop`, and `velocity` with momentum; {} before the first
            update.
        t: number of this update, from 1; used only by the correction of bias.
        learning_rate: α, ≥ 0.
        decay: β, in [0, 1).
        eps: ε, ≥ 0.
        eps_in_sqrt: whether ε is added to s or to its root.
        initial_scale: s before the first update, ≥ 0.
        centered: divide by the standard deviation.
        momentum: μ, in [0, 1); None for none.
        nesterov: look ahead along the velocity; ignored without momentum.
        bias_correction: correct the averages for their bias to 0.

    Returns:
        (new parameter, state).
    """
    direction, new_state = scale_by_rmsprop(
        g,
        state,
        t,
        decay=decay,
        eps=eps,
        eps_in_sqrt=eps_in_sqrt,
        initial_scale=initial_scale,
        centered=centered,
        bias_correction=bias_correction,
    )
    if momentum is not None:
        direction, buffer = scale_by_momentum(
            direction, state, t, momentum=momentum, nesterov=nesterov
        )
        new_state = {**new_state, **buffer}
    return _float64(p) - learning_rate * direction, new_state


def adam(
    p,
    g,
    state,
    t,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    nesterov=False,
    amsgrad=False,
):
    """Step by Adam: θ ← θ − αm̂/(√(v̂ + ε_root) + ε).

    Args:
        p: parameter θ, any shape.
        g: gradient, of the parameter's shape.
        state: that of `scale_by_adam`; {} before the first update.
        t: number of this update, from 1.
        learning_rate: α, ≥ 0.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε, ≥ 0.
        eps_root: ε_root, ≥ 0.
        nesterov: NAdam.
        amsgrad: never let the denominator shrink.

    Returns:
        (new parameter, state).
    """
    direction, state = scale_by_adam(
        g, state, t, b1=b1, b2=b2, eps=eps, eps_root=eps_root, nesterov=nesterov, amsgrad=amsgrad
    )
    return _float64(p) - learning_rate * direction, state


def adamw(
    p,
    g,
    state,
    t,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    nesterov=False,
    amsgrad=False,
    weight_decay=0.01,
):
    """Step by AdamW: θ ← θ − α(m̂/(√(v̂ + ε_root) + ε) + λθ), θ on the right being the old one.

    Args:
        p: parameter θ, any shape.
        g: gradient of the loss without decay, of the parameter's shape.
        state: that of `scale_by_adam`; {} before the first update.
        t: number of this update, from 1.
        learning_rate: α, ≥ 0.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε, ≥ 0.
        eps_root: ε_root, ≥ 0.
        nesterov: NAdam.
        amsgrad: never let the denominator shrink.
        weight_decay: λ, ≥ 0; the penalty it stands for with SGD is λ/2‖θ‖².

    Returns:
        (new parameter, state).
    """
    p = _float64(p)
    direction, state = scale_by_adam(
        g, state, t, b1=b1, b2=b2, eps=eps, eps_root=eps_root, nesterov=nesterov, amsgrad=amsgrad
    )
    return p - learning_rate * (direction + weight_decay * p), state


def _float64(x):
    return np.asarray(x, dtype=np.float64)


def _norm(x):
    largest = np.max(np.abs(x), initial=0.0)  # so that no square leaves the range of float64
    return largest * np.sqrt(np.sum((x / largest) ** 2)) if largest > 0 else 0.0


def _applies(mask, p):
    return p.ndim >= 2 if mask is None else mask


def _log(beta):
    return math.log(beta) if beta > 0 else -math.inf


def _mean_log(beta, previous, t):
    """Return the mean of log β(1) … log β(t); Πβ(i) is exp(t·mean).

    A product, or a sum of logarithms, accumulates t rounding errors, which make 1 − βᵗ wrong by up
    to 2e-11 within a million updates (β = 0.999999). The mean of a constant stays exactly that
    constant, so that 1 − βᵗ is right to about 1e-16 at any t.
    """
    log_beta = _log(beta)
    if previous is None:
        return log_beta
    if previous in (log_beta, -math.inf):  # −∞: an earlier β was 0, so that Πβ stays 0
        return previous
    return previous + (log_beta - previous) / t
