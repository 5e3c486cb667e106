"""AdamW: Adam with decoupled weight decay.

    u = −lr · (m̂ / (√(v̂ + eps_root) + eps) + λ θ)

m̂ and v̂ are Adam's, λ is `weight_decay`, lr `learning_rate`. The decay is multiplied by the learning
rate in force, schedule included, as in PyTorch, Keras and Optax (the paper multiplies it by the
schedule's factor alone). λ is 0.01 by default, as in PyTorch (Optax: 1e-4, Keras: 0.004).

Reference: Loshchilov & Hutter, ICLR (2019).
"""

from __future__ import annotations

from optlab._types import DTypeLike, Hyperparam, Mask
from optlab.optimizers._adam import adam_rule
from optlab.rules import Rule, optimizer
from optlab.rules import weight_decay as weight_decay_rule


def _adamw(
    who: str,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Hyperparam = 0.01,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
    amsgrad: bool = False,
) -> list[Rule]:
    """Descend with AdamW.

    Args:
        weight_decay: λ ≥ 0; each update shrinks the parameters by the factor 1 − αλ.
        mask: which parameters are decayed: booleans in their structure or a prefix of it, or a
            function of the parameters returning them; None for all.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> tx = optlab.adamw(0.1, weight_decay=0.5)
        >>> params = jnp.array(4.0)
        >>> print(tx.update(jnp.array(0.0), tx.init(params), params)[0])
        -0.2
    """
    return [
        adam_rule(who, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, amsgrad=amsgrad),
        weight_decay_rule(who, weight_decay, mask),
    ]


adamw = optimizer("adamw", _adamw, like=(adam_rule,))
