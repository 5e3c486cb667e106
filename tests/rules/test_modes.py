"""Rules under JAX's modes: debugging, strict promotion, no `jit`, double precision."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.dialects import keras, pytorch

TRANSFORMATIONS = {
    "nesterov": lambda: optlab.sgd(0.1, 0.9, True, dampening=0.5),
    "no-decay": lambda: optlab.adam(0.1, b1=0.0, b2=0.0),
    "half-moments": lambda: optlab.adam(0.1, nesterov=True, mu_dtype=jnp.bfloat16),
    "scheduled": lambda: optlab.adamw(optlab.schedules.linear(0.0, 0.1, 5), amsgrad=True),
    "lion": lambda: optlab.lion(0.1, weight_decay=0.1),
    "adagrad": lambda: optlab.adagrad(0.1, compensated=True),
    "rmsprop": lambda: optlab.rmsprop(0.1, centered=True, bias_correction=True, momentum=0.9),
    "clipped-averaged": lambda: optax.chain(
        optlab.clip_by_value(1.0),
        optlab.clip_by_global_norm(0.1),
        optlab.sgd(0.1),
        optlab.reduce_on_plateau(patience=1),
        optlab.params_ema(0.9, warmup_power=0.7),
    ),
    "pytorch": lambda: optax.chain(pytorch.clip_grad_norm(1.0), pytorch.adagrad(0.1, 0.1)),
    "keras": lambda: keras.adam(0.1, amsgrad=True),
}

MODES = {
    "debug-nans": {"jax_debug_nans": True},
    "debug-infs": {"jax_debug_infs": True},
    "without-jit": {"jax_disable_jit": True},
    "strict-double": {"jax_enable_x64": True, "jax_numpy_dtype_promotion": "strict"},
}


@contextlib.contextmanager
def under(mode):
    before = {name: getattr(jax.config, name) for name in mode}
    for name, value in mode.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def params():
    return {
        "half": jnp.ones(2, jnp.bfloat16),
        "w": jnp.array([[-1.0, 0.0, 2.0]], jnp.float32),
        "z": jnp.array([1 + 2j, 0], jnp.complex64),
    }


def run(tx):
    """Make updates, a zero one and a replaced rate among them; return all that can be seen."""
    p = params()
    state = tx.init(p)
    for factor in (0, 1, -3):
        g = jax.tree.map(lambda x, factor=factor: x * jnp.asarray(factor, x.dtype), p)
        updates, state = tx.update(g, state, p, value=jnp.asarray(1, jnp.float32))
        p = optax.apply_updates(p, updates)
        for name in ("learning_rate", "scale"):
            with contextlib.suppress(ValueError):  # it has none, or it is scheduled
                state = optlab.replace_hyperparams(state, **{name: 0.05})
    seen = [p, optlab.hyperparams(state), optlab.global_norm(p), optlab.global_norm({})]
    with contextlib.suppress(ValueError):  # it keeps no average
        seen.append(optlab.averaged_params(state, p))
    return jax.tree.map(np.asarray, seen)


@pytest.fixture(scope="module")
def usual():
    return {name: run(make()) for name, make in TRANSFORMATIONS.items()}


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=pytest.mark.slow if mode == "debug-infs" else ()) for mode in MODES],
)
def test_the_results_are_the_same_in_every_mode(mode, usual):
    # Debugging changes no operation. Without `jit` XLA fuses nothing; in double precision
    # hyperparameters have more digits. Both show in the last digits alone.
    exact = mode in ("debug-nans", "debug-infs")
    with under(MODES[mode]):
        results = {name: run(make()) for name, make in TRANSFORMATIONS.items()}
    for name, expected in usual.items():
        for got, want in zip(
            jax.tree.leaves(results[name]), jax.tree.leaves(expected), strict=True
        ):
            if got.ndim or exact:
                assert got.dtype == want.dtype
            tolerance = 0 if exact else {2: 0.02}.get(want.dtype.itemsize, 1e-5)
            wide = [x.astype(complex) for x in (got, want)]
            np.testing.assert_allclose(*wide, rtol=tolerance, atol=tolerance, err_msg=name)
