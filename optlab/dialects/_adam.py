"""Adam as other frameworks vary it: another AMSGrad, another place of ε, raw moments.

    v_max ← max(v_max, v);  v̂ = v_max / (1 − β₂ᵗ)        AMSGrad takes the maximum of v, not of v̂
    d = √v̂ + ε/√(1 − β₂ᵗ)                                 the “epsilon hat” of Kingma & Ba

    m ← β₁m + g                                           a sum in place of an average

v_max is the slot `raw_nu_max`.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from optlab._types import Array
from optlab.rules import (
    Rule,
    accumulate,
    average,
    bounded_square,
    root,
    slot,
    visibly_bounded,
)


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


def with_sum(rule: Rule) -> Rule:
    """Return Adam's rule with a decaying sum of the gradients in place of their average."""

    def leaf(g, slots, scalars, p):
        h, of_mu, _ = scalars
        mu = accumulate(h.b1, slots.mu, visibly_bounded(g))
        nu = average(h.b2, slots.nu, bounded_square(g))
        nu_hat = h.b2.correction * nu
        return of_mu * mu / (root(nu_hat + h.eps_root) + h.eps), (mu, nu)

    return replace(rule, leaf=leaf)


def without_correction(rule: Rule) -> Rule:
    """Return Adam's rule with moments that keep their bias."""

    def once(h: Any, t: Array) -> Any:
        one = jnp.ones_like(h.b1.value)
        b1, b2 = h.b1._replace(correction=one), h.b2._replace(correction=one)
        return rule.once(h._replace(b1=b1, b2=b2), t)

    return replace(rule, once=once)


def with_eps_hat(rule: Rule) -> Rule:
    """Return Adam's rule with ε added to √v before its bias is removed."""

    def once(h: Any, t: Array) -> Any:
        return rule.once(h._replace(eps=h.eps * jnp.sqrt(h.b2.correction)), t)

    return replace(rule, once=once)
