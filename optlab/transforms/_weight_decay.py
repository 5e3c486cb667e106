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

import optax

from optlab._types import Hyperparam, Mask
from optlab.rules import lift
from optlab.rules import weight_decay as weight_decay_rule


def add_decayed_weights(
    weight_decay: Hyperparam = 0.0, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Add λθ to the updates: decoupled decay behind a direction, L2 in front of it.

    Args:
        weight_decay: λ ≥ 0.
        mask: booleans in the structure of the parameters or a prefix of it, or a function of the
            parameters returning them; False leaves a parameter undecayed.

    Returns:
        A transformation whose `update` needs the parameters.

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
