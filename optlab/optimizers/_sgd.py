"""Stochastic gradient descent, plain, with momentum (heavy ball), or with Nesterov's.

    u = −lr · g                                  plain

    v ← β v + (1 − τ) g
    u = −lr · v                                  momentum
    u = −lr · (β v + (1 − τ) g)                  Nesterov

β is `momentum`, τ `dampening`, lr `learning_rate`; v is `velocity` and starts at 0. The learning
rate stands outside v, so that a change of rate acts at once on the whole velocity (Keras keeps it
inside). Dampening acts from the first update on (PyTorch leaves the first gradient whole).
`optlab.dialects` has the other frameworks' forms.

Reference: Polyak, USSR Comput. Math. Math. Phys. 4 (1964); Sutskever, Martens, Dahl, Hinton,
ICML (2013) for Nesterov's form.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._arithmetic import accumulate, saturated
from optlab._hyperparams import Hyperparams, Memory, decay
from optlab._lift import Rule, lift, slot
from optlab._types import Array, DTypeLike, Hyperparam, Tree
from optlab.transforms._learning_rate import learning_rate_rule


class ScaleByMomentumState(NamedTuple):
    """State of `scale_by_momentum`.

    Attributes:
        count: () int32; updates made.
        velocity: v, like the parameters.
        hyperparams: the values in force: `momentum` and `dampening`.
        memory: what keeps them alive between updates.
    """

    count: Array
    velocity: Tree
    hyperparams: dict[str, Array]
    memory: Memory


def _momentum_rule(
    who: str,
    momentum: Hyperparam,
    dampening: Hyperparam,
    nesterov: bool,
    accumulator_dtype: DTypeLike | None,
    first_undampened: bool,
) -> Rule:
    def weights(h, gradients, t):
        share = h.dampening.complement
        if first_undampened:  # as PyTorch, which has no dampening without momentum either
            share = jnp.where((t == 1) | (h.momentum.value == 0), 1, share)
        return h.momentum, share

    def leaf(g, slots, weights, p):
        (v,), (momentum, share) = slots, weights
        g = share * g

        def onward(v):
            return saturated(accumulate(momentum, v, g), g)

        v = onward(v)
        return (onward(v) if nesterov else v), (v,)

    _checks.check_float_dtype(who, "accumulator_dtype", accumulator_dtype)
    return Rule(
        state=ScaleByMomentumState,
        hyperparams=Hyperparams(who, momentum=decay(momentum), dampening=decay(dampening)),
        slots={"velocity": slot(dtype=accumulator_dtype)},
        prepare=weights,
        leaf=leaf,
    )


def momentum_rules(
    who: str,
    momentum: Hyperparam | None,
    *,
    nesterov: bool,
    dampening: Hyperparam = 0.0,
    accumulator_dtype: DTypeLike | None = None,
    first_undampened: bool = False,
) -> list[Rule]:
    """Return momentum's rule, or none where `momentum` is None, for optimizers that offer it.

    Behind `learning_rate_rule` it keeps the rate inside the velocity.
    """
    if momentum is not None:
        return [
            _momentum_rule(who, momentum, dampening, nesterov, accumulator_dtype, first_undampened)
        ]
    if nesterov:
        _checks.fail(who, "nesterov needs momentum", "momentum=None", "pass momentum=0.9, say")
    _checks.check_float_dtype(who, "accumulator_dtype", accumulator_dtype)
    known = not isinstance(dampening, jax.core.Tracer)
    if callable(dampening) or (known and dampening != 0):
        _checks.fail(who, "dampening needs momentum", "momentum=None", "pass momentum=0.9, say")
    return []


def scale_by_momentum(
    momentum: Hyperparam = 0.9,
    *,
    dampening: Hyperparam = 0.0,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace gradients by their velocity: v ← βv + (1 − τ)g.

    Args:
        momentum: β in [0, 1).
        dampening: τ in [0, 1); the share of each new gradient that is left out.
        nesterov: whether to return βv + (1 − τ)g with the new v, instead of v.
        accumulator_dtype: type of v; by default the parameters', but at least float32.

    Returns:
        A transformation with state `ScaleByMomentumState`.

    Raises:
        ValueError: a hyperparameter is out of its range.

    Reference:
        Polyak (1964); Sutskever et al., ICML (2013).
    """
    rules = momentum_rules(
        "scale_by_momentum",
        momentum,
        nesterov=nesterov,
        dampening=dampening,
        accumulator_dtype=accumulator_dtype,
    )
    return lift(*rules)


def sgd(
    learning_rate: Hyperparam,
    *,
    momentum: Hyperparam | None = None,
    dampening: Hyperparam = 0.0,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend along the gradient, θ ← θ − αg, or along its velocity.

    Args:
        learning_rate: α ≥ 0; a typical rate with momentum 0.9 is a tenth of the rate without.
        momentum: β in [0, 1), typically 0.9; None keeps no velocity at all.
        dampening: τ in [0, 1); the share of each new gradient kept out of the velocity.
        nesterov: whether to look ahead along the velocity.
        accumulator_dtype: type of the velocity; by default the parameters', but at least float32.

    Returns:
        The optimizer. Its state is that of `scale_by_learning_rate`, after that of
        `scale_by_momentum` where there is momentum.

    Raises:
        ValueError: a hyperparameter is out of its range, or `nesterov` or `dampening` is asked for
            without momentum.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = sgd(0.1, momentum=0.9)
        >>> params = jnp.array([1.0, -2.0])
        >>> updates, state = tx.update(jnp.array([0.5, 1.0]), tx.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [ 0.95 -2.1 ]

    Reference:
        Polyak (1964); Sutskever et al., ICML (2013).
    """
    rules = momentum_rules(
        "sgd",
        momentum,
        nesterov=nesterov,
        dampening=dampening,
        accumulator_dtype=accumulator_dtype,
    )
    return lift(*rules, learning_rate_rule("sgd", learning_rate))
