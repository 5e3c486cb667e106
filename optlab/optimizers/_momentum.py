"""Momentum: a velocity that gathers gradients (heavy ball), or Nesterov's look ahead.

    v ← β v + (1 − τ) g
    u = −lr · v                                  momentum
    u = −lr · (β v + (1 − τ) g)                  Nesterov

β is `momentum`, τ `dampening`, lr `learning_rate`; v is `velocity` and starts at 0. With β = 1 the
velocity is the sum of all gradients. The learning rate stands outside v, so that a change of rate
acts at once on the whole velocity (Keras keeps it inside). Dampening acts from the first update on
(PyTorch leaves the first gradient whole). `optlab.dialects` has the other frameworks' forms.

Reference: Polyak, USSR Comput. Math. Math. Phys. 4 (1964); Sutskever, Martens, Dahl, Hinton,
ICML (2013) for Nesterov's form.
"""

from __future__ import annotations

from optlab import _checks
from optlab._tree import is_traced
from optlab._types import DTypeLike, Hyperparam
from optlab.rules import (
    UNIT,
    Rule,
    accumulate,
    check_flag,
    check_float_dtype,
    decay,
    direction,
    saturated,
    slot,
)


def momentum_rules(
    who: str,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
    *,
    dampening: Hyperparam = 0.0,
) -> list[Rule]:
    """Replace gradients by their velocity.

    Behind the rule of the learning rate, the velocity holds the rate.

    Args:
        momentum: β in [0, 1], typically 0.9; None keeps no velocity at all.
        nesterov: whether to look ahead along the velocity.
        accumulator_dtype: type of v; by default the parameters', but at least float32.
        dampening: τ in [0, 1); the share of each new gradient that stays out of the velocity.

    Example:
        >>> import jax.numpy as jnp, optax, optlab
        >>> tx = optlab.sgd(0.1, momentum=0.9)
        >>> params = jnp.array([1.0, -2.0])
        >>> updates, state = tx.update(jnp.array([0.5, 1.0]), tx.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [ 0.95 -2.1 ]
    """
    check_float_dtype(who, "accumulator_dtype", accumulator_dtype)
    nesterov = check_flag(who, "nesterov", nesterov)
    if momentum is None:
        dampens = callable(dampening) or (not is_traced(dampening) and dampening != 0)
        remedy = "pass momentum=0.9, say"
        if nesterov:
            _checks.fail(who, "nesterov needs momentum", "momentum=None", remedy)
        if dampens:
            _checks.fail(who, "dampening needs momentum", "momentum=None", remedy)
        return []

    def leaf(g, slots, scalars, p):
        momentum, share = scalars
        g = share * g

        def onward(v):
            return saturated(accumulate(momentum, v, g), g)

        v = onward(slots.velocity)
        return (onward(v) if nesterov else v), (v,)

    def gain(slots, scalars):
        momentum, share = scalars
        return share / momentum.complement

    # With β = 1 the velocity of a constant gradient grows for ever.
    settles = callable(momentum) or is_traced(momentum) or momentum != 1
    rule = Rule(
        who,
        leaf,
        metric=gain if settles else None,
        kind="scale_by_momentum",
        hyperparams={"momentum": decay(momentum, UNIT), "dampening": decay(dampening)},
        slots={"velocity": slot(dtype=accumulator_dtype)},
        once=lambda h, t: (h.momentum, h.dampening.complement),
    )
    return [rule]


scale_by_momentum = direction("scale_by_momentum", momentum_rules, momentum=0.9)
