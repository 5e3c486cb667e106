"""Derivatives through updates, as meta-learning takes them, against differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import optlab
from optlab.dialects import pytorch

RULES = {
    "nesterov": lambda lr, b1, b2, eps: optlab.sgd(lr, b1, True, dampening=b2),
    "compensated": lambda lr, b1, b2, eps: optlab.adagrad(lr, 0.0, eps, compensated=True),
    "centered": lambda lr, b1, b2, eps: optlab.rmsprop(
        lr, b2, eps, centered=True, eps_in_sqrt=True, bias_correction=True
    ),
    "nadam": lambda lr, b1, b2, eps: optlab.adam(lr, b1, b2, eps, nesterov=True),
    "amsgrad": lambda lr, b1, b2, eps: optlab.adam(lr, b1, b2, eps, amsgrad=True),
    "by-power": lambda lr, b1, b2, eps: pytorch.adam(lr, (b1, b2), eps, amsgrad=True),
    "lion": lambda lr, b1, b2, eps: optlab.lion(lr, b1, b2, weight_decay=eps),
    "clipped": lambda lr, b1, b2, eps: optax.chain(
        optlab.clip_by_global_norm(b1), optlab.sgd(lr), optlab.params_ema(b2)
    ),
}

# Learning rate, b1, b2, eps. A decay rate of 0 has no logarithm.
USUAL, WITHOUT_DECAY = np.array([0.1, 0.9, 0.95, 1e-2]), np.array([0.1, 0.0, 0.0, 1e-2])
GRADIENT = np.array([0.7, 0.5, -2.0])
START = np.array([0.3, 0.4, 0.5])


def loss_after_updates(name):
    def loss(gradient, start, numbers):
        tx = RULES[name](*numbers)

        def step(carry, factor):
            params, state = carry
            updates, state = tx.update(gradient * factor, state, params)
            return (params + updates, state), None

        factors = jnp.array([1.0, 1.3, 1.6])
        (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), factors)
        if name == "clipped":
            params = params + optlab.averaged_params(state)
        return jnp.sum((params - jnp.array([1.0, -1.0, 0.5])) ** 2)

    return loss


SLOW = {"amsgrad", "nadam"}
"""Others have the same terms: the maximum is in `by-power`, the correction in `centered`."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in RULES],
)
def test_derivatives_are_those_of_differences_also_at_zero_gradients_and_decays(name):
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree((GRADIENT, START, USUAL))
        loss = jax.jit(lambda flat: loss_after_updates(name)(*unravel(flat)))
        compiled = {
            "forward": jax.jit(jax.jacfwd(loss)),
            "reverse": jax.jit(jax.grad(loss)),
        }
        zero = ravel_pytree((np.zeros(3), START, USUAL))[0]
        no_decay = ravel_pytree((GRADIENT, START, WITHOUT_DECAY))[0]
        for point in (flat, zero, no_decay):
            step = 1e-6
            # A decay rate cannot be negative, so that at 0 the difference is one-sided, and a
            # centered variance, which then is 0, has two.
            low = np.where((np.arange(10) >= 7) & (point == 0), 0, step)
            steps = np.eye(10)
            if point is no_decay and name == "centered":
                steps = steps[:7]
            differences = [
                (loss(point + step * e) - loss(point - low * e)) / (step + low @ e) for e in steps
            ]
            for mode, derivative in compiled.items():
                result = derivative(point)
                assert np.isfinite(result).all(), (mode, result)
                if point is zero and name == "lion":
                    continue  # the sign has no derivative there
                # The roots' error at 0 gradients is of the order of the step over eps.
                np.testing.assert_allclose(
                    result[: len(steps)], differences, rtol=3e-4, atol=1e-4, err_msg=mode
                )


@pytest.mark.parametrize("size", [0.0, 1.0, 2.0, 1e30])
def test_clipping_has_finite_derivatives(size):
    direction = jnp.array([0.6, 0.8], jnp.float32)

    def clipped(g, bound):
        tx = optlab.clip_by_global_norm(bound)
        return tx.update(g, tx.init(g))[0]

    g = size * direction
    for derivative in (jax.jacfwd, jax.jacrev):
        of_gradient, of_bound = derivative(clipped, (0, 1))(g, 1.0)
        assert np.isfinite(of_gradient).all()
        # At the bound itself nothing is clipped.
        expected = np.eye(2) if size <= 1 else (np.eye(2) - np.outer(direction, direction)) / size
        np.testing.assert_allclose(of_gradient, expected, atol=1e-6 / max(size, 1))
        np.testing.assert_allclose(of_bound, direction if size > 1 else [0, 0], rtol=1e-6)
