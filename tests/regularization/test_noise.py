"""Noise on the weights, and smoothed labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optlab import reference as ref
from optlab.regularization import weight_noise


def quadratic(params):
    return 3 * jnp.sum(params["w"] ** 2) + jnp.sum(params["b"]), params


def test_the_gradient_is_that_at_the_noisy_weights():
    params = {"w": jnp.arange(4.0), "b": jnp.ones(2)}
    noisy = weight_noise(quadratic, 0.5, where=lambda path: path == "w")
    key = jax.random.key(0)
    (value, seen), gradient = jax.value_and_grad(noisy, has_aux=True)(params, noise_key=key)
    np.testing.assert_array_equal(seen["b"], params["b"])
    assert np.all(seen["w"] != params["w"])
    np.testing.assert_allclose(gradient["w"], 6 * seen["w"])
    assert value == quadratic(seen)[0]


def test_on_average_the_loss_grows_with_its_curvature():
    w = jnp.ones(100)
    noisy = weight_noise(lambda w: jnp.mean(w**2), 0.5)
    keys = jax.random.split(jax.random.key(0), 200)
    losses = jax.vmap(lambda key: noisy(w, noise_key=key))(keys)
    # E (1 + σε)² = 1 + σ², from 20,000 draws of deviation 1.06: 0.0075.
    assert losses.mean() == pytest.approx(1.25, abs=0.03)


def test_integers_and_none_receive_no_noise():
    params = {"w": jnp.ones(2), "count": jnp.array(3), "none": None}
    seen = weight_noise(lambda p: p, 1.0)(params, noise_key=jax.random.key(0))
    assert (int(seen["count"]), seen["none"]) == (3, None)


def test_names_are_those_of_groups_in_a_state_of_flax():
    names = []
    state = nnx.State({"dense": nnx.State({"kernel": nnx.Param(jnp.ones(2))})})
    noisy = weight_noise(lambda p: p, 1.0, where=lambda name: bool(names.append(name)))
    noisy(state, noise_key=jax.random.key(0))
    assert names == ["dense/kernel"]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="weight_noise: loss must be a function, got 3"):
        weight_noise(3, 0.1)
    with pytest.raises(ValueError, match="weight_noise: where must be a function, got 'w'"):
        weight_noise(quadratic, 0.1, where="w")
    with pytest.raises(ValueError, match="deviation must be finite and >= 0, got deviation=-1"):
        weight_noise(quadratic, -1)
    with pytest.raises(ValueError, match="must be given a random key, got noise_key=None; pass"):
        weight_noise(quadratic, 0.1)({"w": jnp.ones(1)})


def test_labels_are_smoothed_as_the_reference_says():
    one_hot = np.eye(4)[[2, 0]]
    smooth = optax.smooth_labels(jnp.asarray(one_hot), 0.1)
    np.testing.assert_allclose(smooth, ref.smooth_labels(one_hot, 0.1), rtol=1e-6)
    np.testing.assert_allclose(smooth[0], [0.025, 0.025, 0.925, 0.025], rtol=1e-6)
