"""`refresh_batch_stats`: numbers by hand, PyTorch's recording, and both module systems of Flax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from golden import record_update_bn
from helpers import assert_same_bits
from optlab.lab import Task, refresh_batch_stats, tasks

KEY = jax.random.key(0)

# Some roundings of float32; the sums over batches are in float64.
FLOAT32 = 1e-6


def layers_task(momentum=0.99, **changes):
    """Return the task of the recorded network, with running statistics of Flax NNX."""
    norms = [
        nnx.BatchNorm(width, momentum=momentum, use_fast_variance=False, rngs=nnx.Rngs(0))
        for width in record_update_bn.WIDTHS
    ]
    graph, scales, stats = nnx.split(norms, nnx.Param, ...)

    def loss(kernels, state, x, key):
        norms = nnx.merge(graph, scales, state, copy=True)
        for kernel, norm in zip(kernels, norms, strict=True):
            x = norm(x @ kernel, use_running_average=False)
        return x.mean(), nnx.split(norms, nnx.Param, ...)[2]

    kernels = [np.float32(kernel) for kernel in record_update_bn.kernels()]
    return dataclasses.replace(
        Task(
            name="layers",
            init=lambda key: (kernels, stats),
            loss=loss,
            batch=lambda key, step: jnp.zeros((4, 3)),
            evaluate=lambda params, state, data: {"loss": 0.0},
        ),
        **changes,
    )


LAYERS = layers_task()


def refreshed(batches, task=LAYERS, **options):
    """Return the statistics of the recorded network's layers, by layer and name."""
    state = refresh_batch_stats(task, *task.init(KEY), key=KEY, batches=batches, **options)
    return {
        f"{i}/{name}": np.asarray(layer[name][...]) for i, layer in state.items() for name in layer
    }


def column_task(momentum=0.9):
    """Return the task of one running mean and variance of plain arrays."""

    def loss(x, state, batch, key):
        batch = {"mean": batch.mean(), "var": batch.var()}
        new = jax.tree.map(lambda old, b: momentum * old + (1 - momentum) * b, state["norm"], batch)
        return x**2, {**state, "norm": new}

    zero = jnp.zeros(())
    return Task(
        name="column",
        init=lambda key: (zero, {"norm": {"mean": zero, "var": zero}, "var": zero, "seen": 7}),
        loss=loss,
        batch=lambda key, step: jnp.zeros(2),
        evaluate=lambda x, state, data: {"loss": x**2},
    )


COLUMN = column_task()
BY_HAND = [np.float32([1, 3]), np.float32([5, 9, 10])]


@pytest.mark.parametrize(
    ("weight", "variance", "expected"),
    [
        ("batches", "mean", (5, (1 + 14 / 3) / 2)),
        ("examples", "mean", (5.6, 3.2)),
        ("examples", "pooled", (5.6, 11.84)),
        ("batches", "pooled", (5, (1 + 14 / 3) / 2 + 9)),
    ],
)
def test_two_batches_have_the_statistics_by_hand(weight, variance, expected):
    params, state = COLUMN.init(KEY)
    options = {"weight": weight, "variance": variance, "batches": BY_HAND, "key": KEY}
    new = refresh_batch_stats(COLUMN, params, state, **options)
    got = new["norm"]["mean"], new["norm"]["var"]
    np.testing.assert_allclose(got, expected, rtol=FLOAT32)
    # A "var" without a "mean" beside it is no running statistic.
    assert_same_bits((new["var"], jnp.asarray(new["seen"])), (state["var"], jnp.asarray(7)))


def test_the_statistics_are_those_that_pytorch_recorded():
    recorded, batches = record_update_bn.load(), np.float32(record_update_bn.data())
    got = refreshed(list(batches), variance="mean")
    assert got.keys() == recorded.keys()
    size = record_update_bn.BATCH_SIZE
    for name, expected in recorded.items():
        unbiased = size / (size - 1) if name.endswith("var") else 1  # as PyTorch's is
        np.testing.assert_allclose(unbiased * got[name], expected, rtol=2e-6, atol=2e-6)


def test_the_first_layer_has_mean_and_variance_of_all_examples_whatever_the_batches():
    x = np.float32(record_update_bn.data()).reshape(-1, 3)
    hidden = x.astype(np.float64) @ record_update_bn.kernels()[0]
    for cuts in ([4, 8], [2, 4, 6, 8, 10]):
        got = refreshed(np.split(x, cuts))
        np.testing.assert_allclose(got["0/mean"], hidden.mean(0), rtol=FLOAT32)
        np.testing.assert_allclose(got["0/var"], hidden.var(0), rtol=FLOAT32)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_the_momentum_of_a_layer_does_not_show(momentum):
    batches = list(np.float32(record_update_bn.data()))
    got, expected = refreshed(batches, layers_task(momentum)), refreshed(batches)
    for name in expected:
        # The statistics of a batch pass through a product with 1 − m, and back.
        np.testing.assert_allclose(got[name], expected[name], rtol=FLOAT32, atol=FLOAT32)


class Norms(linen.Module):
    """A Linen model whose first norm trains, and whose second uses its running statistics."""

    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train, use_scale=False)(x)
        x = linen.BatchNorm(use_running_average=True, name="frozen")(x)
        return linen.BatchNorm(use_running_average=not train, name="last")(x)


def test_a_linen_model_is_refreshed_and_a_layer_that_uses_its_statistics_keeps_them():
    model = Norms()

    def init(key):
        state = model.init(key, jnp.ones((2, 3)), train=False)
        stats = jax.tree.map(lambda x: x, state["batch_stats"])
        stats["frozen"] = {"mean": jnp.full(3, 2.0), "var": jnp.full(3, 4.0)}
        return state["params"], {"batch_stats": stats}

    def loss(params, state, x, key):
        y, changed = model.apply({"params": params, **state}, x, train=True, mutable=list(state))
        return y.mean(), changed

    task = Task(
        name="linen",
        init=init,
        loss=loss,
        batch=lambda key, step: jnp.zeros((4, 3)),
        evaluate=lambda params, state, data: {"loss": 0.0},
    )
    params, state = task.init(KEY)
    x = np.float32(record_update_bn.data())
    new = refresh_batch_stats(task, params, state, key=KEY, batches=list(x))["batch_stats"]
    assert_same_bits(new["frozen"], state["batch_stats"]["frozen"])
    first = new["BatchNorm_0"]
    np.testing.assert_allclose(first["mean"], x.mean((0, 1)), rtol=1e-5)
    # Linen's fast variance, E[x²] − E[x]², loses some bits where the mean is large.
    np.testing.assert_allclose(first["var"], x.var((0, 1)), rtol=1e-5)
    # Each batch arrives with mean 0 and variance 1, and leaves the frozen layer as (x − 2)/2.
    np.testing.assert_allclose(new["last"]["mean"], np.full(3, -1), rtol=1e-5)
    np.testing.assert_allclose(new["last"]["var"], np.full(3, 0.25), rtol=1e-3)


def test_a_task_divides_its_training_data_and_streams_and_weights_stay(noisy_task):
    params, state = noisy_task.init(KEY)
    inputs, _ = noisy_task.batch.examples
    assert len(inputs) == 20 > len(noisy_task.splits["train"][0])  # the split is a part of them
    hidden = inputs @ np.asarray(params["hidden"]["kernel"][...])
    for options in ({"batch_size": 8}, {"dropout": False}):
        new = refresh_batch_stats(noisy_task, params, state, key=KEY, **options)
        np.testing.assert_allclose(new["norm"]["mean"][...], hidden.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new["norm"]["var"][...], hidden.var(0), rtol=1e-5)
        assert_same_bits(new["dropout"], state["dropout"])


class Dropped(nnx.Module):
    """Dropout before a norm, whose variance tells whether it is on."""

    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dropout(x))


def test_dropout_is_on_or_off_by_choice():
    ones = np.ones((64, 2), np.float32), np.zeros(64, np.int32)
    splits = dict.fromkeys(("train", "validation", "test"), ones)
    task = tasks.nnx_classifier("dropped", lambda rngs: Dropped(rngs), **splits, batch_size=8)
    params, state = task.init(KEY)
    on = refresh_batch_stats(task, params, state, key=KEY)["norm"]["var"][...]
    off = refresh_batch_stats(task, params, state, key=KEY, dropout=False)["norm"]["var"][...]
    # Half of the ones become 2, the others 0: a variance of 1, of 64 examples.
    np.testing.assert_allclose(on, 1, atol=0.1)
    np.testing.assert_allclose(off, 0, atol=1e-6)
    without = dataclasses.replace(task, observe=None)
    with pytest.raises(ValueError, match=r"dropout must be True for a task without Task.observe"):
        refresh_batch_stats(without, params, state, key=KEY, dropout=False)


def test_a_model_without_running_statistics_is_returned_unchanged():
    task = tasks.valley()
    assert refresh_batch_stats(task, *task.init(KEY), key=KEY) == ()


def test_a_statistic_that_is_no_moving_average_is_refused():
    def loss(x, state, batch, key):
        return x, {
            "batch_stats": {"largest": jnp.maximum(state["batch_stats"]["largest"], batch.max())}
        }

    task = dataclasses.replace(
        COLUMN,
        init=lambda key: (jnp.zeros(()), {"batch_stats": {"largest": jnp.zeros(())}}),
        loss=loss,
    )
    with pytest.raises(ValueError, match=r"\[0, 1\), got m=1 at batch_stats/largest; keep other"):
        refresh_batch_stats(task, *task.init(KEY), key=KEY, batches=BY_HAND)


def moving_task(norm, update=None, **rest):
    """Return the task of a running mean and variance, under the names and in the type of `norm`.

    `update` is (old, statistic of the batch, state) → new; without it m is 0.9.
    """
    update = update or (lambda old, new, state: 0.9 * old + 0.1 * new)

    def loss(x, state, batch, key):
        new = [batch.mean(), batch.var()]
        old, tree = jax.tree.flatten(state["norm"])
        norm = tree.unflatten([update(*pair, state) for pair in zip(old, new, strict=False)])
        return x, {**state, "norm": norm, **({"n": state["n"] + 1} if "n" in state else {})}

    return dataclasses.replace(
        COLUMN, init=lambda key: (jnp.zeros(()), {"norm": norm, **rest}), loss=loss
    )


def statistics_by_hand(task, **options):
    """Return the statistics that the two batches by hand give, in the order of their names."""
    state = refresh_batch_stats(task, *task.init(KEY), key=KEY, batches=BY_HAND, **options)
    return jax.tree.leaves(state["norm"])


PAIR = {"mean": jnp.zeros(()), "var": jnp.ones(())}


@pytest.mark.parametrize("count", [0, 300])
def test_a_cumulative_average_is_refreshed(count):
    def update(old, new, state):
        return old + (new - old) / (state["n"] + 1)

    task = moving_task(PAIR, update, n=jnp.array(count))
    # A share of 1/301 has lost eight bits of float32 to the rounding of m.
    rtol = FLOAT32 * (count + 1)
    np.testing.assert_allclose(statistics_by_hand(task), (5.6, 11.84), rtol=rtol)


@pytest.mark.parametrize(
    ("dtype", "momentum"), [(jnp.bfloat16, 0.99), (jnp.float16, 0.9), (jnp.float16, 0.999)]
)
def test_statistics_of_half_precision_pass_through_the_layers_as_float32(dtype, momentum):
    def update(old, new, state):
        return (momentum * old + (1 - momentum) * new).astype(old.dtype)

    got = statistics_by_hand(moving_task(jax.tree.map(lambda x: x.astype(dtype), PAIR), update))
    assert {x.dtype for x in got} == {jnp.dtype(dtype)}
    rounded = np.array([5.6, 11.84]).astype(dtype)
    np.testing.assert_array_equal([float(x) for x in got], rounded.astype(float))


def test_a_layer_that_rounds_its_statistics_to_half_precision_is_refused():
    def update(old, new, state):
        return (0.9 * old + 0.1 * new).astype(jnp.bfloat16)

    def strict(old, new, state):
        if old.dtype != jnp.bfloat16:
            raise TypeError("the state must keep its type")
        return update(old, new, state)

    norm = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PAIR)
    for task in (moving_task(norm, update), moving_task(norm, strict)):
        with pytest.raises(ValueError, match="as float32, got bfloat16 at norm/mean; keep the"):
            statistics_by_hand(task)


@pytest.mark.parametrize(
    "norm",
    [
        {"moving_mean": jnp.zeros(()), "moving_variance": jnp.ones(())},
        {"running_mean": jnp.zeros(()), "running_var": jnp.ones(())},
        {"mean": {"a": jnp.zeros(())}, "var": {"a": jnp.ones(())}},
    ],
)
def test_a_variance_finds_its_mean_by_the_words_of_their_names(norm):
    got = statistics_by_hand(moving_task(norm))
    np.testing.assert_allclose(got, (5.6, 11.84), rtol=FLOAT32)


def test_a_statistic_whose_name_does_not_tell_what_it_is_has_no_pooled_variance():
    norm = {"batch_stats": {"center": jnp.zeros(()), "var": jnp.ones(())}}
    with pytest.raises(ValueError, match="with a mean beside it, got norm/batch_stats/center; ren"):
        statistics_by_hand(moving_task(norm))
    got = statistics_by_hand(moving_task(norm), variance="mean")
    np.testing.assert_allclose(got, (5.6, 3.2), rtol=FLOAT32)


def test_moving_averages_of_other_names_are_named_in_a_warning():
    task = moving_task({"center": jnp.zeros(()), "spread": jnp.ones(())}, other=jnp.ones(()))
    with pytest.warns(UserWarning, match="^refresh_batch_stats: norm/center, norm/spread change"):
        assert statistics_by_hand(task) == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "size"}, "weight must be one of 'examples', 'batches', got weight='size'"),
        ({"variance": 1}, "variance must be one of 'pooled', 'mean', got variance=1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"key": 3}, "key must be one random key, got 3"),
        ({"batches": []}, "batches must hold at least one batch, got none"),
        ({"batches": [np.float32(1)]}, r"first array of a batch must have an axis.*shape \(\)"),
        ({}, 'the task must have a split "train", got no splits; pass batches='),
    ],
)
def test_what_cannot_be_refreshed_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^refresh_batch_stats: .*{message}"):
        refresh_batch_stats(COLUMN, *COLUMN.init(KEY), **{"key": KEY, **options})
