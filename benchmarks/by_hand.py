"""The rules as a user would write them in `jax.numpy`, for one fixed configuration.

    state = init(params)
    params, state = step(params, state, gradients)

Hyperparameters are Python floats, the count is in the state, moments are float32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.settings import (
    ADAGRAD_EPS,
    ADAGRAD_START,
    ADAM_EPS,
    AVERAGE_DECAY,
    B1,
    B2,
    LEARNING_RATE,
    MAX_NORM,
    MOMENTUM,
    RMSPROP_DECAY,
    RMSPROP_EPS,
    WEIGHT_DECAY,
)

Tree = Any
Init = Callable[[Tree], Tree]
Step = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]


def zeros(params):
    return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)


def descend(params, directions):
    """Return θ − αd in the type of the parameters."""
    return jax.tree.map(lambda p, d: (p - LEARNING_RATE * d).astype(p.dtype), params, directions)


def average(decay, old, new):
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def squares(tree):
    return jax.tree.map(jnp.square, tree)


def in_float32(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def no_state(params):
    return ()


def sgd(params, state, gradients):
    return descend(params, gradients), state


def momentum(params, velocity, gradients):
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
    return descend(params, velocity), velocity


def nesterov(params, velocity, gradients):
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
    ahead = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
    return descend(params, ahead), velocity


def start_adagrad(params):
    return jax.tree.map(lambda p: jnp.full(p.shape, ADAGRAD_START, jnp.float32), params)


def adagrad(params, sums, gradients):
    sums = jax.tree.map(lambda s, g: s + jnp.square(g), sums, gradients)
    directions = jax.tree.map(lambda g, s: g / jnp.sqrt(s + ADAGRAD_EPS), gradients, sums)
    return descend(params, directions), sums


def rmsprop(params, nu, gradients):
    nu = average(RMSPROP_DECAY, nu, squares(gradients))
    directions = jax.tree.map(lambda g, v: g / jnp.sqrt(v + RMSPROP_EPS), gradients, nu)
    return descend(params, directions), nu


def start_centered_rmsprop(params):
    return {"mu": zeros(params), "nu": zeros(params)}


def centered_rmsprop(params, state, gradients):
    mu = average(RMSPROP_DECAY, state["mu"], gradients)
    nu = average(RMSPROP_DECAY, state["nu"], squares(gradients))
    directions = jax.tree.map(
        lambda g, m, v: g / jnp.sqrt(v - jnp.square(m) + RMSPROP_EPS), gradients, mu, nu
    )
    return descend(params, directions), {"mu": mu, "nu": nu}


def start_adam(params):
    return {"count": jnp.zeros((), jnp.int32), "mu": zeros(params), "nu": zeros(params)}


def adam_moments(state, gradients):
    """Return the new state, and the bias corrections: factors 1 / (1 − β₁ᵗ) and 1 / (1 − β₂ᵗ)."""
    gradients = in_float32(gradients)
    count = state["count"] + 1
    mu = average(B1, state["mu"], gradients)
    nu = average(B2, state["nu"], squares(gradients))
    return {"count": count, "mu": mu, "nu": nu}, 1 / (1 - B1**count), 1 / (1 - B2**count)


def adam(params, state, gradients):
    state, c1, c2 = adam_moments(state, gradients)
    directions = jax.tree.map(
        lambda m, v: (c1 * m) / (jnp.sqrt(c2 * v) + ADAM_EPS), state["mu"], state["nu"]
    )
    return descend(params, directions), state


def adamw(params, state, gradients):
    state, c1, c2 = adam_moments(state, gradients)
    directions = jax.tree.map(
        lambda p, m, v: (c1 * m) / (jnp.sqrt(c2 * v) + ADAM_EPS) + WEIGHT_DECAY * p,
        params,
        state["mu"],
        state["nu"],
    )
    return descend(params, directions), state


def nadam(params, state, gradients):
    state, c1, c2 = adam_moments(state, gradients)
    # XLA's CPU kernel would compute a second power, B1 ** (count + 1), anew for every element.
    of_mu = B1 / (1 - B1 * B1 ** state["count"])
    of_gradient = (1 - B1) * c1
    directions = jax.tree.map(
        lambda g, m, v: (of_mu * m + of_gradient * g) / (jnp.sqrt(c2 * v) + ADAM_EPS),
        gradients,
        state["mu"],
        state["nu"],
    )
    return descend(params, directions), state


def start_amsgrad(params):
    return {"adam": start_adam(params), "nu_max": zeros(params)}


def amsgrad(params, state, gradients):
    moments, c1, c2 = adam_moments(state["adam"], gradients)
    nu_max = jax.tree.map(lambda a, v: jnp.maximum(a, c2 * v), state["nu_max"], moments["nu"])
    directions = jax.tree.map(
        lambda m, v: (c1 * m) / (jnp.sqrt(v) + ADAM_EPS), moments["mu"], nu_max
    )
    return descend(params, directions), {"adam": moments, "nu_max": nu_max}


def clipped(step: Step) -> Step:
    """Return the step with gradients scaled to a global norm of at most MAX_NORM."""

    def clipped_step(params, state, gradients):
        norm = jnp.sqrt(sum(jnp.sum(g) for g in jax.tree.leaves(squares(in_float32(gradients)))))
        factor = jnp.minimum(1.0, MAX_NORM / norm)
        return step(params, state, jax.tree.map(lambda g: factor * g, gradients))

    return clipped_step


def averaged(init: Init, step: Step) -> tuple[Init, Step]:
    """Return init and step with an average of the updated parameters in the state."""

    def averaged_init(params):
        return {"inner": init(params), "average": jax.tree.map(jnp.copy, in_float32(params))}

    def averaged_step(params, state, gradients):
        params, inner = step(params, state["inner"], gradients)
        return params, {"inner": inner, "average": average(AVERAGE_DECAY, state["average"], params)}

    return averaged_init, averaged_step


RULES = {
    "sgd": (no_state, sgd),
    "momentum": (zeros, momentum),
    "nesterov": (zeros, nesterov),
    "adagrad": (start_adagrad, adagrad),
    "rmsprop": (zeros, rmsprop),
    "centered-rmsprop": (start_centered_rmsprop, centered_rmsprop),
    "adam": (start_adam, adam),
    "amsgrad": (start_amsgrad, amsgrad),
    "nadam": (start_adam, nadam),
    "adamw": (start_adam, adamw),
}
"""The functions `init` and `step` of each rule."""
