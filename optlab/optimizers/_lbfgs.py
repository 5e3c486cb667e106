"""L-BFGS: steps by the curvature that the last few gradients show, with a line search.

    P ≈ the inverse Hessian, of the last `memory_size` differences of parameters and gradients
    u = −lr · η · P g                            η by the line search

This is Optax's own `lbfgs` under the same name, with its zoom line search. It is for whole batches:
a few hundred updates reach the digits of float32 on a smooth loss. The line search reads the loss
at other parameters, so `update` must be given three arguments more, as `optlab.lab` gives them:

    tx.update(grads, state, params, value=loss, grad=grads, value_fn=loss_of_params)

On minibatches value_fn must be the loss on the same batch, with the same random key. Curvature
across batches is noise. It has none of optlab's promises about hyperparameters in the state, types
and huge numbers.

Reference: Nocedal & Wright, "Numerical Optimization", 2nd ed. (2006), algorithms 7.4 and 3.5.
"""

from typing import Any

import optax

from optlab import _checks
from optlab._types import Hyperparam, Tree

_WHO = "lbfgs"
_ZOOM = optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")


def scale_by_lbfgs(
    memory_size: int = 10, scale_init_precond: bool = True
) -> optax.GradientTransformation:
    """Replace gradients by P g, as `optax.scale_by_lbfgs`.

    Args:
        memory_size: how many differences are kept, ≥ 1; the state has twice as many copies of the
            parameters.
        scale_init_precond: whether P starts from the scale of the last difference.

    Returns:
        Optax's transformation.

    Raises:
        ValueError: memory_size is below 1, or scale_init_precond neither True nor False.
    """
    who = f"scale_by_{_WHO}"
    memory_size = _checks.check_count(who, "memory_size", memory_size, 1)
    scale_init_precond = _checks.check_flag(who, "scale_init_precond", scale_init_precond)
    return optax.scale_by_lbfgs(memory_size, scale_init_precond)


def lbfgs(
    learning_rate: Hyperparam | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: optax.GradientTransformation | None = _ZOOM,
) -> optax.GradientTransformationExtraArgs:
    """Descend with L-BFGS and a zoom line search, as `optax.lbfgs`.

    Args:
        learning_rate: α ≥ 0, by which the direction is scaled before the line search, whose first
            guess is then α; None for 1.
        memory_size: how many differences are kept, ≥ 1; the state has twice as many copies of the
            parameters.
        scale_init_precond: whether P starts from the scale of the last difference.
        linesearch: what finds η; by default Optax's zoom line search, which computes the loss and
            its gradient at most 20 times in an update. None for η = 1.

    Returns:
        The optimizer. With a line search `update` needs `value`, `grad` and `value_fn`.

    Raises:
        ValueError: memory_size is below 1, or scale_init_precond neither True nor False; at update,
            an argument for the line search is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optlab
        >>> tx = optlab.lbfgs()
        >>> def loss_of(x):
        ...     return jnp.sum(jnp.array([1.0, 50.0]) * (x - 3.0) ** 2)
        >>> @jax.jit
        ... def step(x, state):
        ...     loss, g = jax.value_and_grad(loss_of)(x)
        ...     u, state = tx.update(g, state, x, value=loss, grad=g, value_fn=loss_of)
        ...     return optax.apply_updates(x, u), state
        >>> x = jnp.zeros(2)
        >>> state = tx.init(x)
        >>> for _ in range(8):
        ...     x, state = step(x, state)
        >>> bool(jnp.abs(x - 3.0).max() < 1e-4)
        True
    """
    memory_size = _checks.check_count(_WHO, "memory_size", memory_size, 1)
    scale_init_precond = _checks.check_flag(_WHO, "scale_init_precond", scale_init_precond)
    rate: Any = learning_rate  # Optax's type has no NumPy arrays
    tx = optax.lbfgs(rate, memory_size, scale_init_precond, linesearch)
    needed = () if linesearch is None else ("value", "grad", "value_fn")

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        missing = [name for name in needed if name not in extra_args]
        if missing:
            _checks.fail(
                _WHO,
                "update must be given value, grad and value_fn for the line search",
                f"no {', '.join(missing)}",
                "call update(grads, state, params, value=loss, grad=grads, value_fn=loss_of)",
            )
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)
