"""Tasks made of a library's model and data from anywhere: what they compute and refuse."""

import dataclasses
import re
import sys
from functools import cache, partial
from typing import NamedTuple

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from helpers import assert_same_bits
from optlab import lab
from optlab._identity import identity
from optlab.lab import tasks

KEY = jax.random.key(0)


@cache
def examples(count=22):
    """Inputs (count, 4) and their classes, of 3."""
    inputs = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    return inputs, inputs[:, :3].argmax(axis=1)


def part(first, stop):
    inputs, labels = examples()
    return inputs[first:stop], labels[first:stop]


ARRAYS = {"train": part(0, 12), "validation": part(12, 22)}


class LinenNet(nn.Module):
    dropout: float = 0.0
    outputs: int = 3

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(self.outputs)(nn.Dropout(self.dropout, deterministic=not train)(x))


class EquinoxNet(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear
    activation: object  # another function in each model, and so a part of the tree that differs

    def __init__(self, key, dropout=0.0, outputs=3):
        self.hidden = eqx.nn.Linear(4, 8, key=key)
        self.norm = eqx.nn.BatchNorm(8, "rows", mode="batch")
        self.dropout = eqx.nn.Dropout(dropout)
        self.head = eqx.nn.Linear(8, outputs, key=key)
        self.activation = lambda x: x

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.hidden(x), state)
        key, _ = jax.random.split(key)
        return self.head(self.dropout(self.activation(x), key=key)), state


class NnxNet(nnx.Module):
    def __init__(self, rngs, outputs=3):
        self.head = nnx.Linear(4, outputs, rngs=rngs)

    def __call__(self, x):
        return self.head(x)


def equinox_net(**options):
    return eqx.nn.make_with_state(partial(EquinoxNet, **options))


LIBRARIES = {
    "nnx": lambda outputs=3: partial(NnxNet, outputs=outputs),
    "linen": lambda outputs=3: LinenNet(outputs=outputs),
    "equinox": lambda outputs=3: equinox_net(outputs=outputs),
}


def made(library, kind, model=None, **options):
    """The task of one of the six functions."""
    outputs = 3 if kind == "classifier" else 2
    model = LIBRARIES[library](outputs) if model is None else model
    return getattr(tasks, f"{library}_{kind}")("rows", model, **options)


def classifier(model=NnxNet, **options):
    return tasks.nnx_classifier("rows", model, **{**ARRAYS, "batch_size": 4, **options})


# The same numbers as by hand


@jax.jit
def linen_by_hand(params, stats, batch, key):
    def loss(params):
        logits, changed = LinenNet(0.5).apply(
            {"params": params, **stats},
            batch[0],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return losses.mean(), changed

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_a_linen_task_is_the_model_written_by_hand():
    variables = LinenNet(0.5).init(KEY, np.zeros((1, 4), np.float32), train=False)
    by_hand = variables["params"], {"batch_stats": variables["batch_stats"]}
    task = tasks.linen_classifier("rows", LinenNet(0.5), **ARRAYS, batch_size=4)
    of_task = task.init(KEY)
    assert_same_bits(of_task, by_hand)
    step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    for i in range(2):
        batch = task.batch(KEY, i)
        noise = jax.random.fold_in(KEY, i)
        (value, stats), gradients = step(*of_task, batch, noise)
        (expected, changed), expected_gradients = linen_by_hand(*by_hand, batch, noise)
        # Two programs may round otherwise; in float32 to some 1e-7 of each number.
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), stats, changed)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradients, expected_gradients
        )
        of_task = optax.apply_updates(of_task[0], gradients), stats
        by_hand = optax.apply_updates(by_hand[0], expected_gradients), changed


@eqx.filter_jit
def equinox_by_hand(model, state, batch, key):
    def loss(model):
        keys = jax.random.split(key, len(batch[1]))
        mapped = jax.vmap(
            lambda x, key, state: model(x, state, key=key),
            in_axes=(0, 0, None),
            out_axes=(0, None),
            axis_name="rows",
        )
        logits, new = mapped(batch[0], keys, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), new

    return eqx.filter_value_and_grad(loss, has_aux=True)(model)


def test_an_equinox_task_is_the_model_written_by_hand():
    model, state = equinox_net(dropout=0.5)(KEY)
    task = tasks.equinox_classifier("rows", equinox_net(dropout=0.5), **ARRAYS, batch_size=4)
    params, model_state = task.init(KEY)
    assert_same_bits(jax.tree.leaves(params), jax.tree.leaves(eqx.filter(model, eqx.is_array)))
    step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    for i in range(2):
        batch = task.batch(KEY, i)
        noise = jax.random.fold_in(KEY, i)
        (value, model_state), gradients = step(params, model_state, batch, noise)
        (expected, state), by_hand = equinox_by_hand(model, state, batch, noise)
        # As for Linen.
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        for ours, theirs in ((gradients, by_hand), (model_state, state)):
            for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
        params = optax.apply_updates(params, gradients)
        model = eqx.apply_updates(model, by_hand)


def test_equinox_tasks_keep_one_structure_however_often_a_model_is_made():
    task = made("equinox", "classifier", **ARRAYS, batch_size=4)
    first, second = (jax.tree.structure(jax.eval_shape(task.init, KEY)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_task_made_anew_is_known_as_the_same_run(library):
    facts = [
        identity(made(library, "classifier", **ARRAYS, batch_size=4), optax.sgd(0.1), KEY, {})
        for _ in range(2)
    ]
    assert facts[0] == facts[1]
    other = made(library, "classifier", **{**ARRAYS, "train": part(1, 13)}, batch_size=4)
    assert identity(other, optax.sgd(0.1), KEY, {}) != facts[0]


@pytest.mark.parametrize("library", LIBRARIES)
def test_regression_is_judged_by_squared_and_absolute_errors(library):
    inputs, _ = examples()
    data = inputs, inputs[:, :2]
    task = made(library, "regressor", train=data, validation=data, batch_size=4)
    assert (task.score, task.maximize, task.predict) == ("loss", False, None)
    params, state = jax.jit(task.init)(KEY)
    at_zero = jax.tree.map(jnp.zeros_like, params)  # its outputs are zero, whatever the library
    loss, _ = task.loss(at_zero, state, data, KEY)
    metrics = task.evaluate(at_zero, state, data)
    # Sums of 44 numbers in float32.
    assert loss == pytest.approx(np.mean(data[1] ** 2), rel=1e-5)
    assert metrics["loss"] == pytest.approx(np.mean(data[1] ** 2), rel=1e-5)
    assert metrics["mae"] == pytest.approx(np.mean(np.abs(data[1])), rel=1e-5)


# Data from anywhere


def torch_loader(data, **options):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(*map(torch.from_numpy, data))
    return torch.utils.data.DataLoader(data, batch_size=4, **options)


def grain_loader(data, *, drop):
    rows = [{"image": x, "label": y} for x, y in zip(*data, strict=True)]
    return grain.MapDataset.source(rows).batch(4, drop_remainder=drop).to_iter_dataset()


def batches(data):
    """A generator function of dictionaries."""
    for start in range(0, len(data[0]), 4):
        yield {"image": data[0][start : start + 4], "label": data[1][start : start + 4]}


BY_NAME = {"inputs": "image", "labels": "label"}
LOADERS = {
    "nnx": lambda: {
        "train": partial(batches, ARRAYS["train"]),
        "validation": partial(batches, ARRAYS["validation"]),
        **BY_NAME,
    },
    "linen": lambda: {
        "train": torch_loader(ARRAYS["train"], drop_last=True),
        "validation": torch_loader(ARRAYS["validation"]),
    },
    "equinox": lambda: {
        "train": grain_loader(ARRAYS["train"], drop=True),
        "validation": grain_loader(ARRAYS["validation"], drop=False),
        **BY_NAME,
    },
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_task_of_loaders_learns_what_one_of_arrays_in_the_same_order_learns(library):
    of_loaders = made(library, "classifier", **LOADERS[library]())
    assert list(of_loaders.splits) == ["validation"]
    of_arrays = made(library, "classifier", **ARRAYS, batch_size=4)
    inputs, labels = map(jnp.asarray, ARRAYS["train"])

    def batch(key, step):
        rows = jax.lax.rem(4 * step, 12) + jnp.arange(4)
        return inputs[rows], labels[rows]

    of_arrays = dataclasses.replace(of_arrays, batch=batch)
    streamed, whole = (
        lab.train(task, optax.sgd(0.1), steps=4, eval_every=4) for task in (of_loaders, of_arrays)
    )
    # A call for each update or a loop of them, and parts of the split or all of it: programs that
    # may round otherwise.
    np.testing.assert_allclose(streamed.history.loss, whole.history.loss, rtol=1e-5)
    for name, values in whole.history.validation.items():
        np.testing.assert_allclose(streamed.history.validation[name], values, rtol=1e-5)


class Pair(NamedTuple):
    image: object
    label: object


def test_arrays_come_as_tuples_dictionaries_or_named_tuples_of_arrays_or_tensors():
    torch = pytest.importorskip("torch")
    inputs, labels = ARRAYS["train"]
    first = classifier().batch(KEY, 0)
    named = {"id": np.arange(12), "label": labels, "image": inputs}
    for train, fields in (
        ([inputs, labels], {}),
        ((torch.from_numpy(inputs), torch.from_numpy(labels)), {}),
        (named, BY_NAME),
        (Pair(inputs, labels), BY_NAME),
        ((labels, inputs), {"inputs": 1, "labels": 0}),
    ):
        task = classifier(train=train, validation=train, **fields)
        batch = task.batch(KEY, 0)
        got = batch if isinstance(batch, tuple) else [batch[name] for name in fields.values()]
        assert_same_bits(list(got), list(first))
        params, state = task.init(KEY)
        assert np.isfinite(task.loss(params, state, batch, KEY)[0])


def test_as_many_training_examples_are_evaluated_as_there_are_for_validation():
    inputs, labels = examples()
    train, validation = (inputs, labels), (inputs[:8], labels[:8])
    task = classifier(train=train, validation=validation)
    np.testing.assert_array_equal(task.splits["train"][0], inputs[::3])
    assert np.shares_memory(task.splits["train"][0], inputs)
    few = classifier(train=validation, validation=train)
    assert len(few.splits["train"][1]) == 8
    assert set(task.splits) == {"train", "validation"}
    assert set(classifier(test=validation).splits) == {"train", "validation", "test"}
    assert set(classifier(validation=lambda: iter([train])).splits) == {"validation"}


def test_inputs_may_be_a_tree():
    class Sum(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, inputs):
            return self.head(inputs["a"] + inputs["b"])

    inputs, labels = examples()
    data = {"a": inputs, "b": inputs}, labels
    task = classifier(Sum, train=data, validation=data)
    params, state = task.init(KEY)
    assert set(task.evaluate(params, state, task.batch(KEY, 0))) == {"loss", "accuracy"}


def test_labels_that_are_no_classes_give_nan_where_they_are_unknown_before():
    params, state = classifier().init(KEY)
    inputs, _ = part(0, 4)
    loss = jax.jit(classifier().loss)
    for label in (-1, -100, 3):
        labels = np.array([0, 1, 2, label], np.int32)
        assert np.isnan(loss(params, state, (inputs, labels), KEY)[0])
    assert np.isfinite(loss(params, state, (inputs, np.array([0, 1, 2, 0], np.int32)), KEY)[0])


# Training and evaluation mode


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = False):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=deterministic)(x))


class InField(nn.Module):
    training: bool = True

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not self.training)(x))


class Empty(nn.Module):
    pass


class Odd(nn.Module):
    @nn.compact
    def __call__(self, x, is_test=False):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=is_test)(x))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (Deterministic(), {}),
        (InField(), {}),
        (InField(training=False), {}),
        (Odd(), {"mode": lambda training: {"is_test": not training}}),
    ],
)
def test_linen_models_are_switched_by_the_usual_names_or_by_a_function(model, options):
    task = tasks.linen_classifier("rows", model, **ARRAYS, batch_size=4, **options)
    params, state = task.init(KEY)
    data = part(0, 8)
    losses = {float(task.loss(params, state, data, jax.random.key(i))[0]) for i in range(3)}
    assert len(losses) == 3
    assert float(task.evaluate(params, state, data)["loss"]) not in losses


def test_a_linen_model_that_stays_in_training_mode_is_refused():
    task = tasks.linen_classifier("rows", Odd(), **ARRAYS, batch_size=4)
    with pytest.raises(ValueError, match=r"linen_classifier: the model must neither .*pass mode="):
        jax.eval_shape(lambda: task.evaluate(*task.init(KEY), part(0, 4)))


# Bad input


def refused(message, call):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


INPUTS, LABELS = examples()
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
NEEDS_LABELS = "nnx_classifier: the labels of task 'rows' must be integers (batch,), got "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": None}, "validation must be arrays (inputs, labels) or a loader, got None"),
        ({"batch_size": None}, "batch_size must be an integer >= 1 where train holds arrays, got"),
        ({"train": lambda: iter(())}, "batch_size must be left out where train is a loader, got b"),
        (
            {"train": INPUTS},
            "train of task 'rows' must be a tuple (inputs, labels), got float32",
        ),
        ({"train": (INPUTS, LABELS[:9])}, "as many labels as inputs, and at least one, got float3"),
        ({"train": (INPUTS[:0], LABELS[:0])}, "at least one, got float32[0, 4] and int64[0]"),
        ({"train": (INPUTS, list(LABELS))}, "make arrays of them with np.asarray"),
        ({"train": [(INPUTS, LABELS)] * 2}, "pass a list of batches as lambda: iter(batches)"),
        (
            {"train": {"image": INPUTS, "label": LABELS}},
            "got the fields 'image', 'label'; name its fields: inputs='image', say",
        ),
        ({"inputs": "x", "labels": "y"}, "train of task 'rows' must have a field 'x', got a tuple"),
        ({"inputs": "x"}, "inputs and labels must be two names, or two places in a tuple, got"),
        ({"inputs": INPUTS}, "inputs must be the name of a field of a batch, or its place in a tu"),
        ({"train": (INPUTS, ONE_HOT)}, f"{NEEDS_LABELS}float32[22, 3]; pass labels.argmax(-1)"),
        ({"test": (INPUTS, LABELS[:, None])}, "got int64[22, 1]; pass labels.squeeze(-1)"),
        ({"train": (INPUTS, LABELS / 1)}, "float64[22]; convert them with labels.astype(np.int32)"),
        ({"train": (INPUTS, LABELS - 1)}, "must count classes from 0, got -1; leave out examples"),
    ],
)
def test_data_that_do_not_fit_are_refused_when_the_task_is_made(options, message):
    refused(message, lambda: classifier(**options))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: x[:, :1], "must return logits of two classes or more, got float32[4, 1]; give"),
        (lambda x: x[:, :2], "must return logits of 3 classes, as the largest label is 2, got f"),
        (lambda x: x[:, 0], "must return logits (batch, classes), floating-point numbers, for lab"),
        (lambda x: x.astype(int), "must return logits (batch, classes), floating-point numbers, "),
        (lambda x: (x, x), "must return logits (batch, classes), floating-point numbers, got a t"),
    ],
)
def test_outputs_that_are_no_logits_of_the_labels_are_refused(outputs, message):
    class Wrong(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return outputs(self.head(x))

    task = classifier(Wrong)
    refused(
        f"nnx_classifier: the model of task 'rows' {message}", lambda: lab.train(task, optax.sgd(1))
    )


def test_outputs_that_would_be_broadcast_against_the_labels_are_refused():
    data = INPUTS, INPUTS[:, 0]
    task = tasks.nnx_regressor(
        "rows", partial(NnxNet, outputs=1), train=data, validation=data, batch_size=4
    )
    message = (
        "nnx_regressor: the model of task 'rows' must return real numbers of the shape of its "
        "labels, [4], got float32[4, 1]; let it return outputs.squeeze(-1), or pass labels[:, None]"
    )
    refused(message, lambda: lab.train(task, optax.sgd(1)))


@pytest.mark.parametrize(
    ("batch", "fields", "message"),
    [
        ({"img": INPUTS, "label": LABELS}, BY_NAME, "a batch of task 'rows' must have a field 'im"),
        ({"image": INPUTS, "label": LABELS}, {}, "a batch of task 'rows' must be a tuple (inputs,"),
        ({"image": INPUTS[0], "label": LABELS[0]}, BY_NAME, "got int32[]; give the loader batches"),
    ],
)
def test_batches_of_a_loader_that_do_not_fit_are_refused(batch, fields, message):
    task = tasks.nnx_classifier(
        "rows", Identity, train=lambda: iter([batch]), validation=lambda: iter([batch]), **fields
    )
    refused(message, lambda: lab.train(task, optax.sgd(1)))


class Identity(nnx.Module):
    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return self.scale * x


def test_models_in_place_of_functions_and_functions_in_place_of_models_are_refused():
    refused(
        "nnx_classifier: make_model must be a function rngs",
        lambda: classifier(NnxNet(nnx.Rngs(0))),
    )
    net = eqx.nn.MLP(4, 3, 8, 1, key=KEY)
    refused(
        "equinox_classifier: make_model must be a function key → model, got the object MLP; pass",
        lambda: made("equinox", "classifier", net, **ARRAYS, batch_size=4),
    )
    refused(
        "equinox_classifier: make_model must return an Equinox model, or (model, state), got float",
        lambda: made("equinox", "classifier", lambda key: 1.0, **ARRAYS, batch_size=4),
    )
    refused(
        "linen_classifier: model must be a Flax Linen module, got the class LinenNet; pass CNN(),",
        lambda: made("linen", "classifier", LinenNet, **ARRAYS, batch_size=4),
    )
    refused(
        "linen_classifier: model must have a method __call__, got Empty without one",
        lambda: made("linen", "classifier", Empty(), **ARRAYS, batch_size=4),
    )
    refused(
        "mode must be a function, training → keyword arguments of the model's call, got True; pass",
        lambda: made("linen", "classifier", Odd(), **ARRAYS, batch_size=4, mode=True),
    )

    class Two(nn.Module):
        def __call__(self, x, mask):
            return x

    refused(
        "what turns training on or off, got the argument 'mask'; pass mode=lambda training: {'mask",
        lambda: made("linen", "classifier", Two(), **ARRAYS, batch_size=4),
    )


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(ModuleNotFoundError, match=r"equinox .*; run pip install equinox$"):
        made("equinox", "classifier", **ARRAYS, batch_size=4)


def test_the_baseline_is_the_loss_of_the_best_guess_without_inputs():
    inputs, _ = examples()
    labels = np.array([0, 0, 0, 1], np.int32)
    data = inputs[:4], labels
    task = made("linen", "classifier", train=data, validation=data, batch_size=2)
    assert task.baseline == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    data = inputs, inputs[:, :2]
    task = made("linen", "regressor", train=data, validation=data, batch_size=4)
    assert task.baseline == pytest.approx(inputs[:, :2].astype(float).var(axis=0).mean())
    one = dict.fromkeys(("train", "validation"), (inputs[:4], np.zeros(4, np.int32)))
    assert made("linen", "classifier", **one, batch_size=2).baseline is None
