"""The learning rate: the last step of every optimizer.

    u ← −lr · u

lr is `learning_rate`, a number, an array or a schedule. The rate in force is in the state, as
`state.hyperparams["learning_rate"]`. PyTorch's AdaGrad divides it by 1 + (t − 1)·`lr_decay`.
"""

from typing import NamedTuple

import optax

from optlab._hyperparams import Hyperparams, Memory, number
from optlab._lift import Rule, lift
from optlab._types import Array, Hyperparam


class ScaleByLearningRateState(NamedTuple):
    """State of `scale_by_learning_rate`.

    Attributes:
        count: () int32; updates made.
        hyperparams: the value in force: `learning_rate`; `lr_decay` where there is one.
        memory: what keeps them alive between updates.
    """

    count: Array
    hyperparams: dict[str, Array]
    memory: Memory


def learning_rate_rule(
    who: str,
    learning_rate: Hyperparam,
    flip_sign: bool = True,
    *,
    lr_decay: Hyperparam | None = None,
) -> Rule:
    """Return the rule, with which every optimizer ends.

    With `lr_decay` the rate of update t is learning_rate / (1 + (t − 1)·lr_decay).
    """
    decay = {} if lr_decay is None else {"lr_decay": number(lr_decay)}

    def factor(h, gradients, t):
        rate = h.learning_rate
        if lr_decay is not None:
            rate = rate / (1 + (t - 1) * h.lr_decay)
        return -rate if flip_sign else rate

    return Rule(
        state=ScaleByLearningRateState,
        hyperparams=Hyperparams(who, learning_rate=number(learning_rate), **decay),
        prepare=factor,
        leaf=lambda u, slots, factor, p: (factor * u, slots),
    )


def scale_by_learning_rate(
    learning_rate: Hyperparam, *, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by −learning_rate, which makes a direction a step of descent.

    The rate in force is kept in the state in float32 (float64 where x64 is enabled), so it can be
    read there and, unless it is scheduled, replaced there. With a value of the same type,
    `jnp.float32(3e-4)` rather than `3e-4`, that needs no new compilation.

    Args:
        learning_rate: α ≥ 0. A schedule is evaluated at the count before the update, so the first
            update uses `learning_rate(0)`.
        flip_sign: whether to descend; False ascends.

    Returns:
        A transformation with state `ScaleByLearningRateState`.

    Raises:
        ValueError: the rate is negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_learning_rate(lambda step: 1.0 / (1.0 + step))
        >>> state = tx.init(jnp.zeros(()))
        >>> for _ in range(2):
        ...     update, state = tx.update(jnp.ones(()), state)
        >>> print(update, state.hyperparams["learning_rate"])
        -0.5 0.5
    """
    return lift(learning_rate_rule("scale_by_learning_rate", learning_rate, flip_sign))
