"""Tasks: models of Flax with their state, shuffled batches, and the built-in ones."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optlab.lab import shuffled_batches, tasks
from optlab.lab.tasks._models import conv_by_matmul


def test_batch_statistics_and_random_streams_are_model_state(noisy_task):
    params, state = noisy_task.init(jax.random.key(0))
    batch = noisy_task.batch(jax.random.key(1), 0)
    _, changed = noisy_task.loss(params, state, batch, jax.random.key(2))
    assert jax.tree.structure(changed) == jax.tree.structure(state)
    assert not np.array_equal(changed["norm"]["mean"][...], state["norm"]["mean"][...])
    assert "rngs" in state["dropout"]


def test_an_epoch_of_shuffled_batches_repeats_nothing_and_the_next_one_differs():
    batch = jax.jit(shuffled_batches({"x": np.arange(10)}, batch_size=3))
    drawn = [batch(jax.random.key(0), step)["x"] for step in range(6)]
    first, second = np.concatenate(drawn[:3]), np.concatenate(drawn[3:])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 9
    assert not np.array_equal(first, second)
    assert not np.array_equal(drawn[0], batch(jax.random.key(1), 0)["x"])


def test_shuffled_batches_refuse_more_than_there_is():
    with pytest.raises(ValueError, match="must not exceed the 10 training examples, got batch_si"):
        shuffled_batches(np.arange(10), batch_size=11)


def test_digits_are_split_without_overlap_and_with_the_same_share_of_each_class():
    splits = tasks.digits_mlp().splits
    images = np.concatenate([x for x, _ in splits.values()])
    assert images.shape == (1797, 64)
    assert {name: len(y) for name, (_, y) in splits.items()} == pytest.approx(
        {"train": 1078, "validation": 360, "test": 359}, abs=2
    )
    shares = [np.bincount(y) / len(y) for _, y in splits.values()]
    np.testing.assert_allclose(shares, np.broadcast_to(shares[0], (3, 10)), atol=0.005)
    assert splits["train"][0].mean() == pytest.approx(0, abs=1e-4)
    assert splits["train"][0].std() == pytest.approx(1, abs=1e-4)


def test_dropout_drops_its_share_in_training_alone_at_a_traced_rate_too():
    ones = jnp.ones(4000)

    @jax.jit
    def dropped(rate):
        return tasks.dropout(rate, rngs=nnx.Rngs(0))(ones)

    y = np.asarray(dropped(0.25))
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    # Five standard deviations of a share of 4000.
    assert np.mean(y == 0) == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 4000) ** 0.5)
    layer = tasks.dropout(0.25, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer(ones), y)
    assert not np.array_equal(layer(ones), y)
    layer.eval()
    np.testing.assert_array_equal(layer(ones), ones)
    with pytest.raises(ValueError, match=re.escape("dropout: rate must be in [0, 1), got rate=1")):
        tasks.dropout(1.0, rngs=nnx.Rngs(0))


def test_the_network_on_digits_has_the_width_asked_for():
    params, _ = jax.eval_shape(tasks.digits_mlp(width=6, dropout=0.1).init, jax.random.key(0))
    shapes = {leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2}
    assert shapes == {(64, 6), (6, 3), (3, 10)}
    with pytest.raises(ValueError, match="digits_mlp: width must be an integer >= 2, got width=1"):
        tasks.digits_mlp(width=1)


def test_convolution_by_matrix_product_is_a_convolution():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 5, 3, 4)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(conv_by_matmul(x, kernel), expected, rtol=1e-4, atol=1e-4)


def test_the_convolutional_task_takes_images():
    task = tasks.digits_cnn(batch_size=4)
    key = jax.random.key(0)
    params, state = jax.eval_shape(task.init, key)
    batch = jax.eval_shape(task.batch, key, 0)
    loss, _ = jax.eval_shape(task.loss, params, state, batch, key)
    assert batch[0].shape == (4, 8, 8, 1)
    assert loss.shape == ()


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(ModuleNotFoundError, match=r'flax .*; run pip install "optlab\[lab\]"'):
        tasks.digits_mlp()
