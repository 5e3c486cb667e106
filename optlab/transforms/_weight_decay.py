"""Weight decay: a pull of the parameters towards zero.

    u ← u + λ θ

λ is `weight_decay`. Behind the direction and before the learning rate this is *decoupled* decay
(AdamW): θ ← θ − α(u + λθ). In front of the optimizer it is the gradient of an L2 penalty with the
factor ½, λ/2 · ‖θ‖², as PyTorch's `weight_decay` of SGD and Adam. For SGD the two are the same; for
adaptive rules they are not, since the penalty's gradient is divided by √v like any other.

    optax.chain(optlab.add_decayed_weights(1e-2), optlab.adam(1e-3))   # L2 penalty
    optlab.adamw(1e-3, weight_decay=1e-2)                              # decoupled

Reference: Loshchilov & Hutter, ICLR (2019).
"""

from typing import NamedTuple

import optax

from optlab._hyperparams import Hyperparams, Memory, number
from optlab._lift import Rule, lift
from optlab._types import Array, Hyperparam, Mask


class AddDecayedWeightsState(NamedTuple):
    """State of `add_decayed_weights`.

    Attributes:
        count: () int32; updates made.
        hyperparams: the value in force: `weight_decay`.
        memory: what keeps it alive between updates.
    """

    count: Array
    hyperparams: dict[str, Array]
    memory: Memory


def weight_decay_rule(
    who: str,
    weight_decay: Hyperparam,
    mask: Mask | None = None,
    *,
    of_step: bool = False,
    times_rate: bool = False,
) -> Rule:
    """Return the rule, for the optimizers that decay weights.

    Args:
        who: the public name that errors begin with.
        weight_decay: λ.
        mask: which parameters are decayed.
        of_step: whether the updates are steps already, so that λθ is to be subtracted.
        times_rate: whether to multiply λ by the learning rate of a rule before this one.
    """

    def factor(h, gradients, t):
        size = h.weight_decay * h.learning_rate if times_rate else h.weight_decay
        return -size if of_step else size

    return Rule(
        state=AddDecayedWeightsState,
        hyperparams=Hyperparams(who, weight_decay=number(weight_decay)),
        prepare=factor,
        reads=("learning_rate",) if times_rate else (),
        leaf=lambda u, slots, factor, p: (u + factor * p, slots),
        needs_params=True,
        mask=mask,
    )


def add_decayed_weights(
    weight_decay: Hyperparam, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Add λθ to the updates: decoupled decay behind a direction, L2 in front of it.

    Args:
        weight_decay: λ ≥ 0.
        mask: booleans in the structure of the parameters or a prefix of it, or a function of the
            parameters returning them; False leaves a parameter undecayed.

    Returns:
        A transformation with state `AddDecayedWeightsState`; its `update` needs the parameters.

    Raises:
        ValueError: the decay is negative or not finite; at update, the parameters are missing.

    Example:
        Decay matrices but not biases or scales:

        >>> import jax
        >>> tx = add_decayed_weights(0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1,
        ...                                                                params))

    Reference:
        Loshchilov & Hutter, ICLR (2019).
    """
    return lift(weight_decay_rule("add_decayed_weights", weight_decay, mask))
