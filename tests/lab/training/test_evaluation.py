"""Splits evaluated in batches: the same metrics as at once, in bounded memory, two programs."""

import copy
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import assert_same_bits
from optlab.lab import Task
from optlab.lab.training import _eval_batch
from optlab.lab.training._evaluation import Evaluator

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 4)).astype(np.float32)
DATA = {"x": X, "y": X[:, :3].argmax(1)}
WEIGHTS = jnp.asarray(np.eye(4, 3) + 0.5 * RNG.normal(size=(4, 3)), float)

# Sums of some tens of terms, added in another order.
FLOAT32 = 2e-6


def take(data, *rows):
    return jax.tree.map(lambda x: x[slice(*rows)], data)


def accurate(weights, state, data):
    logits = data["x"] @ weights
    right = logits.argmax(-1) == data["y"]
    loss = jnp.mean((logits - 1) ** 2)
    return {"loss": loss, "accuracy": jnp.mean(right), "one": jnp.int32(1), "yes": jnp.bool_(True)}


class Counted:
    """A function that counts how often it is traced."""

    def __init__(self, function):
        self.function, self.traces = function, 0

    def __call__(self, *args):
        self.traces += 1
        return self.function(*args)


def linear(evaluate=accurate, splits=None, batch=None):
    task = Task(
        name="linear",
        init=lambda key: (WEIGHTS, ()),
        loss=lambda weights, state, batch, key: (jnp.sum(weights**2), state),
        batch=lambda key, step: (),
        evaluate=evaluate,
        splits={"validation": DATA} if splits is None else splits,
    )
    return in_batches(task, batch)


def in_batches(task, batch):
    task = copy.copy(task)
    object.__setattr__(task, "eval_batch", batch)
    return task


def at_once(task, split="validation", params=WEIGHTS, state=()):
    return jax.jit(task.evaluate)(params, state, task.splits[split])


def assert_metrics(got, expected):
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert isinstance(value, np.ndarray)
        assert value.dtype == jnp.result_type(float)
        np.testing.assert_allclose(value, expected[name], rtol=FLOAT32, err_msg=name)


def test_a_model_has_the_metrics_of_its_whole_splits(noisy_task):
    params, state = noisy_task.init(jax.random.key(0))
    evaluator = Evaluator("train", in_batches(noisy_task, 3))
    for split, examples in [("train", 7), ("validation", 8)]:
        expected = at_once(noisy_task, split, params, state)
        assert_metrics(evaluator(params, state, split), expected)
        assert evaluator.examples(split) == examples


def test_two_programs_serve_all_splits_and_remainders():
    evaluate = Counted(accurate)
    sizes = [23, 22, 21, 17, 16, 9]
    splits = {str(size): take(DATA, size) for size in sizes}
    evaluator = Evaluator("train", linear(evaluate, splits, 8))
    for split, data in splits.items():
        for _ in range(2):
            assert_metrics(evaluator(WEIGHTS, (), split), accurate(WEIGHTS, (), data))
    assert evaluate.traces == 2
    # Another run of the same task, say.
    Evaluator("train", linear(evaluate, splits, 8))(WEIGHTS, (), "23")
    assert evaluate.traces == 2


@pytest.mark.parametrize("batch", [None, 23, math.inf])
def test_a_split_that_fits_is_evaluated_at_once_bit_for_bit(batch):
    evaluate = Counted(accurate)
    evaluator = Evaluator("train", linear(evaluate, batch=batch))
    got = evaluator(WEIGHTS, (), "validation")
    assert evaluate.traces == 1
    expected = jax.jit(evaluate)(WEIGHTS, (), DATA)
    assert_same_bits(got, {k: v.astype(np.float32) for k, v in jax.device_get(expected).items()})
    assert evaluate.traces == 1


def test_the_number_of_examples_at_once_keeps_the_largest_array_small(monkeypatch):
    monkeypatch.setattr(_eval_batch, "LARGEST_ARRAY", 5 * 64 * 4)
    seen = []

    def evaluate(weights, state, data):
        seen.append(len(data["x"]))
        constant = jnp.zeros(10_000)  # smaller batches would not make it smaller
        wide = jax.lax.map(lambda x: jnp.tile(x, 16), data["x"])  # (n, 64)
        return {"loss": jnp.mean(wide) + constant.sum()}

    evaluator = Evaluator("train", linear(evaluate))
    metrics = evaluator(WEIGHTS, (), "validation")
    np.testing.assert_allclose(metrics["loss"], X.mean(), rtol=FLOAT32)
    # The whole split and two examples are traced only; the last is one of those evaluated singly.
    assert seen == [23, 2, 4, 1]


def test_arrays_that_do_not_grow_with_the_examples_need_no_batches(monkeypatch):
    monkeypatch.setattr(_eval_batch, "LARGEST_ARRAY", 1000 * 4)
    seen = []

    def evaluate(weights, state, data):
        seen.append(len(data["x"]))
        return {"loss": jnp.zeros(10_000).sum()}

    Evaluator("train", linear(evaluate))(WEIGHTS, (), "validation")
    assert seen == [23, 2]


def test_data_without_a_common_first_axis_is_evaluated_at_once():
    def evaluate(weights, state, data):
        return {"loss": weights.sum() if data is None else data["scale"] * data["x"].max()}

    task = linear(evaluate, {"validation": {"x": X, "scale": np.float32(2)}}, 2)
    evaluator = Evaluator("train", task)
    assert evaluator(WEIGHTS, (), "validation")["loss"] == 2 * X.max()
    assert evaluator.examples("validation") is None
    without_data = Evaluator("train", linear(evaluate, {}, 2))
    assert without_data(WEIGHTS, (), None)["loss"] == WEIGHTS.sum()
    assert without_data.examples(None) is None


def test_lanes_and_seeds_have_the_metrics_of_single_runs():
    traces = []

    def over(values):
        def evaluate(weights, state, data):
            traces.append(len(data["x"]))
            metrics = accurate(weights + state, (), data)
            return metrics | {"loss": values["factor"] * metrics["loss"]}

        return linear(evaluate)

    weights = jnp.stack([WEIGHTS + 0.1 * i for i in range(6)]).reshape(2, 3, 4, 3)
    state, values = 0.01 * weights, {"factor": jnp.array([1.0, 3.0])}
    evaluator = Evaluator("sweep", linear(batch=8), over=over)
    got = evaluator(weights, state, "validation", values)
    assert traces == [8, 1]
    expected = jax.vmap(jax.vmap(lambda w, s: accurate(w + s, (), DATA)))(weights, state)
    expected["loss"] *= values["factor"][:, None]
    assert got["accuracy"].shape == (2, 3)
    assert_metrics(got, expected)


def test_a_batch_is_split_over_the_devices_of_a_mesh():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data, everywhere = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in [("data",), ()]
    )
    seen = []

    def place(rows):
        seen.append(len(rows["x"]))
        return jax.device_put(rows, data)

    evaluator = Evaluator("train", linear(batch=8), place=place)
    got = evaluator(jax.device_put(WEIGHTS, everywhere), (), "validation")
    assert_metrics(got, accurate(WEIGHTS, (), DATA))
    assert seen == [8, 8, 8]


def test_lanes_share_the_memory(monkeypatch):
    monkeypatch.setattr(_eval_batch, "LARGEST_ARRAY_OF_LANES", 4 * 6 * 16)
    seen = []

    def evaluate(weights, state, data):
        seen.append(len(data["x"]))
        return accurate(weights, state, data)

    evaluator = Evaluator("sweep", linear(), over=lambda values: linear(evaluate))
    evaluator.lower(jnp.zeros((2, 3, 4, 3)), (), "validation")
    assert seen == [23, 2, 4, 1]


def streamed(sizes, evaluate=accurate):
    """Return an evaluator of a stream of batches of these sizes, which uses its memory again."""

    def batches(split):
        assert split == "validation"
        memory = jax.tree.map(np.empty_like, take(DATA, max(sizes, default=0)))
        first = 0
        for size in sizes:
            for to, x in zip(jax.tree.leaves(memory), jax.tree.leaves(DATA), strict=True):
                to[:size] = x[first : first + size]
            yield take(memory, size), size
            first += size
            for to in jax.tree.leaves(memory):
                to[:] = 0

    task = linear(evaluate, {"validation": lambda: None}, 2)
    return Evaluator("train", task, batches=batches)


@pytest.mark.parametrize("sizes", [[8, 8, 7], [0, 8, 3, 8, 4], [6, 17], [8, 8]])
def test_a_stream_has_the_metrics_of_its_arrays(sizes):
    evaluate = Counted(accurate)
    evaluator = streamed(sizes, evaluate)
    assert evaluator.examples("validation") is None
    expected = accurate(WEIGHTS, (), take(DATA, sum(sizes)))
    for _ in range(3):
        assert_metrics(evaluator(WEIGHTS, (), "validation"), expected)
    assert evaluator.examples("validation") == sum(sizes)
    assert evaluate.traces == 2


def test_streams_that_cannot_be_evaluated_are_refused():
    with pytest.raises(ValueError, match="train: split 'validation' must have at least one exam"):
        streamed([])(WEIGHTS, (), "validation")
    unread = linear(splits={"validation": iter(())})
    with pytest.raises(ValueError, match=r"must be a pytree of arrays, got .*iterator"):
        Evaluator("train", unread)(WEIGHTS, (), "validation")
    uneven = Evaluator("train", unread, batches=lambda _: iter([({"x": X, "y": X[1:]}, 23)]))
    with pytest.raises(ValueError, match=r"must share their first axis, got .*'x': \(23, 4\)"):
        uneven(WEIGHTS, (), "validation")


def perplexity(weights, state, data):
    loss = jnp.mean((data["x"] @ weights) ** 2)
    return {"loss": loss, "perplexity": jnp.exp(loss)}


def deviation(weights, state, data):
    losses = jnp.mean((data["x"] @ weights) ** 2, axis=-1)
    return {"loss": losses.mean(), "deviation": losses.std(ddof=1)}  # NaN for one example


@pytest.mark.parametrize("evaluate", [perplexity, deviation])
def test_metrics_that_are_no_means_over_examples_are_refused(evaluate):
    name = evaluate.__name__
    head = np.float64(evaluate(WEIGHTS, (), take(DATA, 8))[name])
    for evaluator, remedy in [
        (
            Evaluator("train", linear(evaluate, batch=8)),
            "examples, or set Task.eval_batch=math.inf",
        ),
        (streamed([8, 8], evaluate), "examples, or pass the split as arrays and set Task.eval_b"),
    ]:
        with pytest.raises(ValueError, match=remedy) as error:
            evaluator(WEIGHTS, (), "validation")
        assert "train: metrics of Task.evaluate must be means over examples" in str(error.value)
        assert f"{name!r} {head:.4f}"[:-1] in str(error.value)
    task = linear(evaluate, batch=math.inf)
    assert_metrics(Evaluator("train", task)(WEIGHTS, (), "validation"), at_once(task))


def test_metrics_that_agree_while_all_examples_are_alike_are_refused_later():
    evaluator = Evaluator("train", linear(perplexity, batch=8))
    assert evaluator(jnp.zeros((4, 3)), (), "validation")["perplexity"] == 1
    with pytest.raises(ValueError, match="must be means over examples"):
        evaluator(WEIGHTS, (), "validation")


def test_in_lanes_one_run_with_another_mean_is_enough_to_refuse():
    weights = jnp.stack([0 * WEIGHTS, WEIGHTS])[:, None]
    evaluator = Evaluator("sweep", linear(batch=8), over=lambda values: linear(perplexity))
    with pytest.raises(ValueError, match=r"sweep: metrics .* got 'perplexity'"):
        evaluator(weights, (), "validation")


def test_a_run_that_diverged_is_not_refused():
    evaluator = Evaluator("train", linear(batch=8))
    metrics = evaluator(jnp.full((4, 3), jnp.nan), (), "validation")
    assert np.isnan(metrics["loss"])
    assert np.isinf(evaluator(jnp.full((4, 3), 1e30), (), "validation")["loss"])


def test_an_example_of_another_batch_does_not_enter_the_last_one():
    # The last batch of 8 has 7 examples, and row 15 fills it up; NaN in it must be counted once.
    x = X.copy()
    x[15] = np.nan

    def finite(weights, state, data):
        return {"loss": jnp.mean(~jnp.isfinite(data["x"]).all(-1))}

    task = linear(finite, {"validation": {"x": x}}, 8)
    metrics = Evaluator("train", task)(WEIGHTS, (), "validation")
    np.testing.assert_allclose(metrics["loss"], 1 / 23, rtol=FLOAT32)


def test_metrics_that_rounding_decides_may_differ_a_little():
    def evaluate(weights, state, data):
        rounding = 0.005 if len(data["x"]) == 8 else 0.0
        return {"loss": jnp.mean(data["x"] ** 2) * (1 + rounding)}

    Evaluator("train", linear(evaluate, batch=8))(WEIGHTS, (), "validation")

    def tied(weights, state, data):
        right = data["y"] == 0
        if len(right) == 8:
            right = right.at[0].set(~right[0])
        return {"loss": jnp.mean(right)}

    Evaluator("train", linear(tied, batch=8))(WEIGHTS, (), "validation")


def test_an_evaluation_that_fails_on_one_example_is_refused_in_words():
    def squeezed(weights, state, data):
        predicted = (data["x"] @ weights[:, :1]).squeeze()
        return {"loss": jnp.mean(jnp.stack(list(predicted)))}

    required = "train: Task.evaluate must accept any number of examples, as split 'validation' is"
    with pytest.raises(ValueError, match=required) as error:
        Evaluator("train", linear(squeezed, batch=8))(WEIGHTS, (), "validation")
    assert "got TypeError: " in str(error.value)
    assert "squeeze(-1) for squeeze(), or set Task.eval_batch=math.inf" in str(error.value)
    Evaluator("train", linear(squeezed))(WEIGHTS, (), "validation")


@pytest.mark.parametrize("batch", [0, -1, 2.5, "all", math.nan])
def test_batches_of_no_number_of_examples_are_refused(batch):
    with pytest.raises(ValueError, match=r"Task\.eval_batch, unless None or math\.inf, must be"):
        Evaluator("train", linear(batch=batch))


class Mapped(np.memmap):
    """A memory-mapped array that records how many rows are taken from it."""

    taken: ClassVar = []

    def __getitem__(self, rows):
        result = super().__getitem__(rows)
        self.taken.append(len(result))
        return np.asarray(result)


@pytest.mark.parametrize("view", [lambda x: x, np.asarray], ids=["itself", "view"])
def test_a_memory_mapped_split_is_never_read_whole(tmp_path, view):
    file = tmp_path / "x.npy"
    np.save(file, X)
    mapped = np.load(file, mmap_mode="r").view(Mapped)
    evaluator = Evaluator(
        "train", linear(splits={"validation": DATA | {"x": view(mapped)}}, batch=8)
    )
    Mapped.taken.clear()
    before = {id(array) for array in jax.live_arrays()}
    got = evaluator(WEIGHTS, (), "validation")
    assert_metrics(got, accurate(WEIGHTS, (), DATA))
    new = [array for array in jax.live_arrays() if id(array) not in before]
    assert all(len(array) < len(X) for array in new if array.ndim)
    assert set(Mapped.taken) <= {8}


def test_examples_that_stay_on_the_host_count_as_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(_eval_batch, "LARGEST_ARRAY", 4 * X[0].nbytes)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    seen = []

    def evaluate(weights, state, data):
        seen.append(len(data))
        return {"loss": jnp.sum(data[:, 0]) / len(data)}

    evaluator = Evaluator("train", linear(evaluate, {"validation": mapped}))
    evaluator.lower(WEIGHTS, (), "validation")
    assert seen == [23, 2, 4, 1]


def test_memory_does_not_grow_with_the_number_of_examples():
    def temporary(examples, batch=None):
        x = np.broadcast_to(np.float32(0), (examples, 4))  # takes no memory itself
        y = np.broadcast_to(np.int32(0), (examples,))

        def evaluate(weights, state, data):
            # XLA does not avoid the array to be sorted, (n, 256).
            return {"loss": jnp.mean(jnp.sort(jnp.tile(data["x"], 64))[:, 0])}

        task = linear(evaluate, {"validation": {"x": x, "y": y}}, batch)
        programs = Evaluator("train", task).lower(WEIGHTS, (), "validation")
        return max(p.compile().memory_analysis().temp_size_in_bytes for p in programs)

    small, large = temporary(100_000), temporary(10_000_000)
    # The array before and after sorting, and what the program needs besides.
    assert small == large <= 3 * _eval_batch.LARGEST_ARRAY
    assert temporary(100_000, math.inf) > small


def test_programs_compiled_ahead_are_not_compiled_again():
    compiled = []

    def listen(event, duration, **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    evaluator = Evaluator("train", linear(lambda *args: accurate(*args), batch=8))
    shapes = jax.ShapeDtypeStruct(WEIGHTS.shape, WEIGHTS.dtype)
    Evaluator("train", linear(batch=8))(WEIGHTS, (), "validation")  # compiles the small programs
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for program in evaluator.lower(shapes, (), "validation"):
            program.compile()
        assert len(compiled) == 2
        evaluator(WEIGHTS, (), "validation")
        assert len(compiled) == 2
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
