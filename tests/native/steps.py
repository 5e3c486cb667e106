"""What tests of steps in loops share."""

import jax
import jax.numpy as jnp
import numpy as np

from optlab import native
from optlab.native import _loops
from optlab.testing._runs import FEW_ROUNDINGS


def stepping_native(tx):
    """Return the step as `helpers.stepping` orders it."""
    step = native.step(tx)
    return lambda g, params, state: step(g, state, params)


def run(step, tx, params, grads):
    """Return parameters and state after some steps."""
    state = tx.init(params)
    for g in grads:
        params, state = step(g, params, state)
    return params, state


def assert_close(actual, desired, bound=FEW_ROUNDINGS):
    """Compare leaves relative to their largest element; non-finite elements exactly."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = (np.asarray(x).astype(np.float64) for x in (a, b))
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        if finite.any():
            largest = np.abs(b[finite]).max()
            np.testing.assert_allclose(a[finite], b[finite], rtol=0, atol=bound * largest)


def calls(function, *args):
    """Return how many calls of loops a compiled function makes."""
    return jax.jit(function).lower(*args).as_text().count(f"@{_loops._compiler.TARGET}")
