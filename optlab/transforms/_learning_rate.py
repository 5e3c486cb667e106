"""The learning rate: the last step of every optimizer.

    u ← −lr · u

lr is `learning_rate`, a number, an array or a schedule. The rate in force is in the state, where
`optlab.hyperparams` reads it.
"""

import optax

from optlab._types import Hyperparam
from optlab.rules import learning_rate as learning_rate_rule
from optlab.rules import lift


def scale_by_learning_rate(
    learning_rate: Hyperparam, *, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by −learning_rate, which makes a direction a step of descent.

    The rate in force is kept in the state in float32 (float64 where x64 is enabled). It can be read
    there and, unless it is scheduled, replaced there without a new compilation.

    Args:
        learning_rate: α ≥ 0. A schedule is evaluated at the count before the update, so the first
            update uses `learning_rate(0)`.
        flip_sign: whether to descend; False ascends.

    Returns:
        A transformation whose state holds the rate.

    Raises:
        ValueError: the rate is negative or not finite.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> tx = scale_by_learning_rate(lambda step: 1.0 / (1.0 + step))
        >>> state = tx.init(jnp.zeros(()))
        >>> for _ in range(2):
        ...     update, state = tx.update(jnp.ones(()), state)
        >>> print(update, optlab.hyperparams(state)["learning_rate"])
        -0.5 0.5
    """
    return lift(learning_rate_rule("scale_by_learning_rate", learning_rate, flip_sign, "step"))
