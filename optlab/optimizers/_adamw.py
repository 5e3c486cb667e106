"""AdamW: Adam with decoupled weight decay.

    u = −lr · (m̂ / (√(v̂ + eps_root) + eps) + λ θ)

m̂ and v̂ are Adam's, λ is `weight_decay`, lr `learning_rate`. The decay is multiplied by the learning
rate in force, schedule included, as in PyTorch, Keras and Optax (the paper multiplies it by the
schedule's factor alone). λ is 0.01 by default, as in PyTorch (Optax: 1e-4, Keras: 0.004).

Reference: Loshchilov & Hutter, ICLR (2019).
"""

import optax

from optlab._lift import lift
from optlab._types import DTypeLike, Hyperparam, Mask
from optlab.optimizers._adam import adam_rule
from optlab.transforms._learning_rate import learning_rate_rule
from optlab.transforms._weight_decay import weight_decay_rule


def adamw(
    learning_rate: Hyperparam,
    *,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    nesterov: bool = False,
    amsgrad: bool = False,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Hyperparam = 0.01,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend with AdamW: θ ← θ − α(m̂ / (√v̂ + ε) + λθ).

    Args:
        learning_rate: α ≥ 0, typically 0.001.
        b1: β₁ in [0, 1), of the average of gradients.
        b2: β₂ in [0, 1), of the average of squared gradients.
        eps: ε ≥ 0, outside the root, in the unit of the gradients.
        eps_root: ε_root ≥ 0, inside the root, in the unit of the squared gradients.
        nesterov: whether to look one step ahead (NAdam).
        amsgrad: whether to divide by the root of the largest v̂ so far.
        mu_dtype: type of m; by default the parameters', but at least float32.
        weight_decay: λ ≥ 0; each update shrinks the parameters by the factor 1 − αλ.
        mask: which parameters are decayed: booleans in their structure or a prefix of it, or a
            function of the parameters returning them; None for all.

    Returns:
        The optimizer, with the states of `scale_by_adam`, `add_decayed_weights` and
        `scale_by_learning_rate`; its `update` needs the parameters.

    Raises:
        ValueError: a hyperparameter is out of its range; at update, the parameters are missing.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = adamw(0.1, weight_decay=0.5)
        >>> params = jnp.array(4.0)
        >>> print(tx.update(jnp.array(0.0), tx.init(params), params)[0])
        -0.2

    Reference:
        Loshchilov & Hutter, ICLR (2019).
    """
    return lift(
        adam_rule("adamw", b1, b2, eps, eps_root, nesterov, amsgrad, mu_dtype),
        weight_decay_rule("adamw", weight_decay, mask),
        learning_rate_rule("adamw", learning_rate),
    )
