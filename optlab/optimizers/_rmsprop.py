"""RMSProp: gradients divided by a moving average of their size.

    s ← β s + (1 − β) g²
    u = −lr · g / (√s + eps)                     or −lr · g / √(s + eps) with `eps_in_sqrt`

    m ← β m + (1 − β) g                          centered: s − m² stands in place of s

β is `decay`, lr `learning_rate`; s is `mean_square` and starts at `initial_scale`, m is `mean` and
starts at 0. s − m² is a variance and never negative, but its rounded value can be: it is clamped at
0. With `bias_correction` both averages are freed of their bias, as in Adam. With momentum, the
heavy ball of `scale_by_momentum` follows, and the learning rate stands outside its velocity (Optax,
Keras and TensorFlow keep it inside; see `optlab.dialects`). Optax's `eps_in_sqrt` is True by
default. A finite gradient beyond 2⁶³, whose square would overflow float32, counts as 2⁶³ (2⁵¹¹ in
float64).

Reference: Tieleman & Hinton, Coursera lecture 6.5 (2012); Graves, arXiv:1308.0850 (2013) for the
centered form.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._arithmetic import average, bounded, bounded_square, visibly_bounded
from optlab._hyperparams import Hyperparams, Memory, number
from optlab._hyperparams import decay as decay_rate
from optlab._lift import Rule, lift, slot
from optlab._types import Array, ArrayLike, Hyperparam, Tree
from optlab.optimizers._sgd import momentum_rules
from optlab.transforms._learning_rate import learning_rate_rule


class ScaleByRmspropState(NamedTuple):
    """State of `scale_by_rmsprop`.

    Attributes:
        count: () int32; updates made.
        mean_square: s, like the parameters.
        hyperparams: the values in force: `decay` and `eps`.
        memory: what keeps them alive between updates.
        mean: m, like the parameters; None unless centered.
    """

    count: Array
    mean_square: Tree
    hyperparams: dict[str, Array]
    memory: Memory
    mean: Tree | None = None


def rmsprop_rule(
    who: str,
    decay: Hyperparam,
    eps: Hyperparam,
    eps_in_sqrt: bool,
    initial_scale: ArrayLike,
    centered: bool,
    bias_correction: bool = False,
    by_power: bool = False,
) -> Rule:
    """Return the rule, for all optimizers that go in RMSProp's direction.

    With `by_power` the bias is that of the present decay, 1 − βᵗ, where it changes.
    """

    def leaf(g, slots, h, p):
        s, *m = slots
        s = average(h.decay, s, bounded_square(g))
        if centered:
            m = [average(h.decay, m[0], bounded(g))]
        weight = h.decay.correction if bias_correction else 1
        variance = weight * s
        if centered:
            variance = jnp.maximum(variance - jnp.square(weight * m[0]), 0)
        root = jnp.sqrt(variance + h.eps) if eps_in_sqrt else jnp.sqrt(variance) + h.eps
        return visibly_bounded(g) / root, (s, *m)

    _checks.check_number(who, "initial_scale", initial_scale, _checks.NONNEGATIVE)
    return Rule(
        state=ScaleByRmspropState,
        hyperparams=Hyperparams(
            who,
            decay=decay_rate(decay, bias_corrected=bias_correction, by_power=by_power),
            eps=number(eps),
        ),
        slots={"mean_square": slot(initial_scale)} | ({"mean": slot()} if centered else {}),
        leaf=leaf,
    )


def scale_by_rmsprop(
    *,
    decay: Hyperparam = 0.9,
    eps: Hyperparam = 1e-8,
    eps_in_sqrt: bool = False,
    initial_scale: ArrayLike = 0.0,
    centered: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divide gradients by the root of a moving average of their squares: g / (√s + ε).

    Args:
        decay: β in [0, 1), typically 0.9 or 0.99.
        eps: ε ≥ 0, in the unit of the gradients, or of their squares with `eps_in_sqrt`.
        eps_in_sqrt: whether to divide by √(s + ε).
        initial_scale: where s starts, ≥ 0, in the unit of the squared gradients.
        centered: whether to divide by the standard deviation, √(s − m²), instead.
        bias_correction: whether to divide s and m by 1 − βᵗ.

    Returns:
        A transformation with state `ScaleByRmspropState`.

    Raises:
        ValueError: a hyperparameter is out of its range.

    Reference:
        Tieleman & Hinton (2012); Graves, arXiv:1308.0850 (2013).
    """
    who = "scale_by_rmsprop"
    return lift(
        rmsprop_rule(who, decay, eps, eps_in_sqrt, initial_scale, centered, bias_correction)
    )


def rmsprop(
    learning_rate: Hyperparam,
    *,
    decay: Hyperparam = 0.9,
    eps: Hyperparam = 1e-8,
    eps_in_sqrt: bool = False,
    initial_scale: ArrayLike = 0.0,
    centered: bool = False,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend with RMSProp: θ ← θ − αg / (√s + ε), with momentum where asked for.

    Args:
        learning_rate: α ≥ 0. It stands outside the velocity (Optax: inside).
        decay: β in [0, 1), typically 0.9 or 0.99.
        eps: ε ≥ 0; outside the root by default (Optax: inside).
        eps_in_sqrt: whether to divide by √(s + ε).
        initial_scale: where s starts, ≥ 0.
        centered: whether to divide by the standard deviation instead.
        momentum: of a heavy ball fed with the divided gradients, in [0, 1); None for none.
        nesterov: whether that momentum is Nesterov's.
        bias_correction: whether to divide s and m by 1 − βᵗ.

    Returns:
        The optimizer, with the states of `scale_by_rmsprop`, of `scale_by_momentum` where there is
        momentum, and of `scale_by_learning_rate`.

    Raises:
        ValueError: a hyperparameter is out of its range, or `nesterov` without momentum.

    Reference:
        Tieleman & Hinton (2012); Graves, arXiv:1308.0850 (2013).
    """
    who = "rmsprop"
    rules = [rmsprop_rule(who, decay, eps, eps_in_sqrt, initial_scale, centered, bias_correction)]
    rules += momentum_rules(who, momentum, nesterov=nesterov)
    return lift(*rules, learning_rate_rule(who, learning_rate))
