"""Adam as PyTorch, Keras and TensorFlow 1 vary it: another AMSGrad, another place of ε.

    v_max ← max(v_max, v);  v̂ = v_max / (1 − β₂ᵗ)        AMSGrad takes the maximum of v, not of v̂
    d = √v̂ + ε/√(1 − β₂ᵗ)                                 the “epsilon hat” of Kingma & Ba

v_max is the slot `raw_nu_max`.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from optlab._types import Array
from optlab.rules import Rule, average, bounded_square, root, slot, visibly_bounded


def with_raw_maximum(rule: Rule) -> Rule:
    """Return Adam's rule with AMSGrad's maximum of v."""

    def leaf(g, slots, scalars, p):
        h, of_mu, _ = scalars
        mu = average(h.b1, slots.mu, visibly_bounded(g))
        nu = average(h.b2, slots.nu, bounded_square(g))
        nu_max = jnp.maximum(slots.raw_nu_max, nu)
        nu_hat = h.b2.correction * nu_max
        return of_mu * mu / (root(nu_hat + h.eps_root) + h.eps), (mu, nu, nu_max)

    return replace(rule, leaf=leaf, slots={**rule.slots, "raw_nu_max": slot()})


def with_eps_hat(rule: Rule) -> Rule:
    """Return Adam's rule with ε added to √v before its bias is removed."""

    def once(h: Any, t: Array) -> Any:
        return rule.once(h._replace(eps=h.eps * jnp.sqrt(h.b2.correction)), t)

    return replace(rule, once=once)
