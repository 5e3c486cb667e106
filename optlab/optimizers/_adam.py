"""Adam: momentum divided by the root of a moving average of squared gradients, both unbiased.

    m ← β₁ m + (1 − β₁) g        m̂ = m / (1 − β₁ᵗ)
    v ← β₂ v + (1 − β₂) g²       v̂ = v / (1 − β₂ᵗ)
    u = −lr · m̂ / (√(v̂ + eps_root) + eps)

β₁ is `b1`, β₂ `b2`, lr `learning_rate`; m is `mu`, v is `nu`, both start at 0. Where β changes over
time, βᵗ stands for the product of its values so far, which keeps the correction exact. A finite
gradient beyond 2⁶³, whose square would overflow float32, counts as 2⁶³ (2⁵¹¹ in float64).

AMSGrad (`amsgrad`) divides by the root of the largest v̂ so far, `nu_max` (as Optax; PyTorch and
Keras take the largest v). NAdam (`nesterov`) looks one step ahead, in Dozat's simplified form, in
which the next β₁ is taken to be the present one:

    m̂ = β₁ m / (1 − β₁ᵗ⁺¹) + (1 − β₁) g / (1 − β₁ᵗ)

Reference: Kingma & Ba, ICLR (2015); Reddi, Kale, Kumar, ICLR (2018) for AMSGrad; Dozat, ICLR
workshop (2016) for NAdam.
"""

from __future__ import annotations

import jax.numpy as jnp

from optlab._types import DTypeLike, Hyperparam
from optlab.rules import (
    Rule,
    average,
    bounded_square,
    check_flag,
    check_float_dtype,
    decay,
    direction,
    number,
    optimizer,
    root,
    slot,
    visibly_bounded,
)


def adam_rule(
    who: str,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    amsgrad: bool = False,
) -> Rule:
    """Replace gradients by Adam's direction.

    Args:
        b1: β₁ in [0, 1), of the average of gradients.
        b2: β₂ in [0, 1), of the average of squared gradients.
        eps: ε ≥ 0 outside the root, in the unit of the gradients. With ε = 0 and ε_root = 0, a
            coordinate whose gradient has always been zero is 0/0, and one whose squares underflow
            (|g| below 1e-17 in float32) infinite.
        eps_root: ε_root ≥ 0 inside the root, in the unit of the squared gradients.
        mu_dtype: type of m; by default the parameters', but at least float32.
        nesterov: whether to look one step ahead (NAdam).
        amsgrad: whether to divide by the root of the largest v̂ so far.

    Example:
        Adam's first step is the learning rate in every coordinate, whatever the gradient's size:

        >>> import jax.numpy as jnp, optlab
        >>> tx = optlab.adam(0.01)
        >>> params = jnp.array([2.0, 5.0])
        >>> updates, state = tx.update(jnp.array([4.0, -300.0]), tx.init(params), params)
        >>> print(updates)
        [-0.01  0.01]
    """

    def once(h, t):
        of_mu, of_g = h.b1.correction, None
        if nesterov:
            next_bias = h.b1.complement + h.b1.value / h.b1.correction
            of_mu, of_g = h.b1.value / next_bias, h.b1.complement * h.b1.correction
        return h, of_mu, of_g

    def leaf(g, slots, scalars, p):
        (mu, nu, *nu_max), (h, of_mu, of_g) = slots, scalars
        bounded = visibly_bounded(g)
        mu = average(h.b1, mu, bounded)
        nu = average(h.b2, nu, bounded_square(g))
        mu_hat = of_mu * mu + of_g * bounded if nesterov else of_mu * mu
        nu_hat = h.b2.correction * nu
        if amsgrad:
            nu_hat = jnp.maximum(nu_max[0], nu_hat)
            nu_max = [nu_hat]
        return mu_hat / (root(nu_hat + h.eps_root) + h.eps), (mu, nu, *nu_max)

    def metric(slots, scalars):
        h, *_ = scalars
        nu_hat = slots.nu_max if amsgrad else h.b2.correction * slots.nu
        return 1 / (root(nu_hat + h.eps_root) + h.eps)

    check_float_dtype(who, "mu_dtype", mu_dtype)
    nesterov = check_flag(who, "nesterov", nesterov)
    amsgrad = check_flag(who, "amsgrad", amsgrad)
    return Rule(
        who,
        leaf,
        metric=metric,
        kind="scale_by_adam",
        hyperparams={
            "b1": decay(b1, bias_corrected=True),
            "b2": decay(b2, bias_corrected=True),
            "eps": number(eps),
            "eps_root": number(eps_root),
        },
        slots={"mu": slot(dtype=mu_dtype), "nu": slot()} | ({"nu_max": slot()} if amsgrad else {}),
        once=once,
    )


scale_by_adam = direction("scale_by_adam", adam_rule)
adam = optimizer("adam", adam_rule, summary="Descend with Adam.")
