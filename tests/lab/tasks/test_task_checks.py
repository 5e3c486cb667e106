"""What `check_task` requires of a task, and what it lets pass."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab.lab import Task, shuffled_batches, tasks
from optlab.lab.tasks._check_task import check_task


def height(params):
    return jnp.sum(params["w"] ** 2)


PLAIN = Task(
    name="plain",
    init=lambda key: ({"w": jax.random.normal(key, (3,))}, {"mean": jnp.zeros(2), "seen": 0}),
    loss=lambda params, state, batch, key: (height(params) + batch.sum(), state),
    batch=lambda key, step: jnp.ones(4) * step,
    evaluate=lambda params, state, data: {"loss": height(params), "accuracy": data.mean()},
    splits={"validation": np.ones(5), "test": np.ones(6)},
    score="accuracy",
    maximize=True,
)


def changed(**fields):
    return dataclasses.replace(PLAIN, **fields)


def loss_with_state(make_state):
    """Return a task whose loss returns `make_state(state)`."""
    return changed(loss=lambda params, state, batch, key: (height(params), make_state(state)))


def with_metrics(**metrics):
    return changed(evaluate=lambda params, state, data: metrics)


def with_loss(make_loss):
    return changed(loss=lambda params, state, batch, key: (make_loss(params), state))


@pytest.mark.parametrize("make", [tasks.digits_mlp, tasks.digits_cnn, tasks.valley])
def test_the_built_in_tasks_pass(make):
    check_task("who", make())


@pytest.mark.parametrize(
    "task",
    [
        PLAIN,
        changed(splits={}, evaluate=lambda params, state, data: {"loss": 1.0, "accuracy": 3}),
        changed(init=lambda key: [{"w": jnp.ones(3)}, {"mean": jnp.zeros(2), "seen": 0}]),
        changed(
            init=lambda key: ({"w": jnp.ones(3, jnp.complex64)}, ()),
            loss=lambda params, state, batch, key: (jnp.sum(jnp.abs(params["w"]) ** 2), state),
            evaluate=lambda params, state, data: {"loss": 0.0, "accuracy": True},
        ),
        changed(
            init=lambda key: ({"w": jnp.ones(3, jnp.bfloat16)}, key),
            loss=lambda params, state, batch, key: (height(params), key),
        ),
        loss_with_state(lambda state: {"mean": state["mean"], "seen": state["seen"] + 1}),
    ],
    ids=["plain", "python_numbers", "list", "complex", "half_precision_and_keys", "weak_types"],
)
def test_what_the_lab_can_train_passes(task):
    check_task("who", task)


def test_nothing_is_computed():
    def compute(_):
        pytest.fail("computed")

    def watched(value):
        shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return jax.pure_callback(compute, shape, value, vmap_method="sequential")

    check_task(
        "who",
        changed(
            init=lambda key: ({"w": watched(jnp.ones(3))}, ()),
            loss=lambda params, state, batch, key: (watched(height(params)), state),
            evaluate=lambda params, state, data: {"loss": 0.0, "accuracy": watched(data.mean())},
        ),
    )


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("digits-mlp", "task must be an optlab.lab.Task, got str 'digits-mlp'; see optlab.lab."),
        (changed(init=None), "Task.init must be a function, got None"),
        (changed(steps=0), "Task.steps must be an integer >= 1, got Task.steps=0"),
        (changed(eval_every=0.5), "Task.eval_every must be an integer >= 1, got"),
        (changed(target=float("nan")), "Task.target must be finite, got"),
        (changed(splits=[1]), "Task.splits must map names to data, got list"),
        (
            changed(splits={"test": np.ones(2)}),
            "Task.splits must be empty or have \"validation\", got 'test'; add a split",
        ),
        (
            changed(splits={"validation": {"x": np.array(["a"])}}),
            "Task.splits['validation'] must hold a pytree of arrays, got ndarray at ['x']",
        ),
        (
            changed(init=lambda key: jnp.ones(2)),
            "Task.init must return (params, model_state), got the array float32[2]; () is the",
        ),
        (
            changed(init=lambda key: (1.0, 2.0, 3.0)),
            "Task.init must return (params, model_state), got 3 values",
        ),
        (
            changed(init=lambda key: ({"w": jnp.ones(3)}, {"model": SimpleNamespace()})),
            "Task.init must return a pytree of arrays, got SimpleNamespace at [1]['model']; hold",
        ),
        (
            changed(init=lambda key: ({"w": [jnp.ones(3), jnp.zeros((), int)]}, ())),
            "parameters must be floating point or complex, got int32 at ['w'][1]; put arrays",
        ),
        (
            changed(batch=lambda key, step: {"name": "a"}),
            "Task.batch must return a pytree of arrays, got str at ['name']",
        ),
    ],
)
def test_fields_and_init(task, message):
    with pytest.raises(ValueError, match=f"^who: {re.escape(message)}"):
        check_task("who", task)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            changed(loss=lambda params, state, batch, key: height(params)),
            "Task.loss must return (loss, model_state), got the array float32[]; () is the model_",
        ),
        (
            with_loss(lambda params: params["w"]),
            "Task.loss must return a real floating-point scalar as the loss, got float32[3]; aver",
        ),
        (
            with_loss(lambda params: height(params)[None]),
            "Task.loss must return a real floating-point scalar as the loss, got float32[1]; aver",
        ),
        (
            with_loss(lambda params: jnp.int32(1)),
            "Task.loss must return a real floating-point scalar as the loss, got int32[]",
        ),
        (
            with_loss(lambda params: height(params) * 1j),
            "Task.loss must return a real floating-point scalar as the loss, got complex64[]",
        ),
        (loss_with_state(lambda state: {"seen": 0}), "…, got nothing at ['mean']; return all that"),
        (loss_with_state(lambda state: ()), "…, got nothing at ['mean']; return all that"),
        (
            loss_with_state(lambda state: {**state, "new": 1}),
            "…, got something new at ['new']; make it in init",
        ),
        (
            loss_with_state(lambda state: {**state, "mean": jnp.zeros((2, 1))}),
            "…, got float32[2, 1] for float32[2] at ['mean']; keep its shape and type",
        ),
        (
            loss_with_state(lambda state: {**state, "seen": state["seen"] + 0.5}),
            "…, got float32[] for int32[] at ['seen']; keep its shape and type",
        ),
        (
            changed(
                init=lambda key: ({"w": jnp.ones(3)}, (jnp.zeros(2),)),
                loss=lambda params, state, batch, key: (height(params), list(state)),
            ),
            "…, got PyTreeDef([*]) for PyTreeDef((*,)); put it into the same containers",
        ),
    ],
)
def test_the_loss(task, message):
    state = "Task.loss must return a model_state with the structure and types of its input"
    with pytest.raises(ValueError, match=f"^who: {re.escape(message.replace('…', state))}"):
        check_task("who", task)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            changed(evaluate=lambda params, state, data: height(params)),
            "Task.evaluate must return a mapping of metrics, got the array float32[]; return {",
        ),
        (with_metrics(accuracy=1.0), "Task.evaluate must return \"loss\", got 'accuracy'"),
        (with_metrics(), 'Task.evaluate must return "loss", got nothing'),
        (
            with_metrics(loss=1.0, acuracy=1.0),
            "Task.evaluate must return 'accuracy', which is Task.score, got 'acuracy', 'loss'; did "
            "you mean 'acuracy'?",
        ),
        (
            with_metrics(loss=jnp.ones(5), accuracy=1.0),
            "Task.evaluate must return real scalars, 'loss' among them, got float32[5]",
        ),
        (
            with_metrics(loss=1.0, accuracy=1j),
            "Task.evaluate must return real scalars, 'accuracy' among them, got complex64[]",
        ),
        (
            with_metrics(loss=1.0, accuracy=1.0, per_class={}),
            "Task.evaluate must return real scalars, 'per_class' among them, got {}",
        ),
        (
            with_metrics(loss=1.0, accuracy="high"),
            "Task.evaluate must return a pytree of arrays, got str at ['accuracy']; hold",
        ),
    ],
)
def test_the_evaluation(task, message):
    with pytest.raises(ValueError, match=f"^who: {re.escape(message)}"):
        check_task("who", task)


def with_prediction(*result):
    return changed(predict=lambda params, state, data: result)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (changed(predict="logits"), "Task.predict must be a function or None, got 'logits'"),
        (with_prediction(jnp.ones((5, 3))), "Task.predict must return (logits, labels), got tuple"),
        (
            with_prediction(jnp.ones(5), jnp.zeros(5, int)),
            "Task.predict must return logits (n, classes), real floating-point numbers, got float",
        ),
        (
            with_prediction(jnp.ones((5, 3)), jnp.zeros(4, int)),
            "Task.predict must return labels (n,), integers, one for each row of logits, got int32"
            "[4] for logits float32[5, 3]",
        ),
        (
            with_prediction(jnp.ones((5, 3)), jnp.zeros(5)),
            "Task.predict must return labels (n,), integers, one for each row of logits, got float",
        ),
        (changed(observe=3), "Task.observe must be a function or None, got 3"),
        (
            changed(observe=lambda params, state, batch: {"mean": state["mean"]}),
            "Task.observe must return a model_state with the structure and types of its input, got "
            "nothing at ['seen']; return all that init makes",
        ),
    ],
)
def test_predictions_and_what_is_observed(task, message):
    with pytest.raises(ValueError, match=f"^who: {re.escape(message)}"):
        check_task("who", task)


def test_every_split_is_looked_at():
    def evaluate(params, state, data):
        metrics = {"loss": height(params), "accuracy": data.mean()}
        return metrics if len(data) == 5 else {"loss": metrics["loss"]}

    with pytest.raises(ValueError, match="must return 'accuracy', which is"):
        check_task("who", changed(evaluate=evaluate))


def test_what_the_tasks_own_functions_raise_is_passed_on():
    with pytest.raises(KeyError, match="bias"):
        check_task("who", with_loss(lambda params: params["bias"]))


def test_arrays_that_do_not_fit_on_the_device_belong_into_a_loader(monkeypatch):
    def full(array):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

    monkeypatch.setattr("optlab.lab.tasks._task.jnp.asarray", full)
    with pytest.raises(ValueError, match=r"^shuffled_batches: data must fit .*; pass a loader"):
        shuffled_batches(np.zeros(8), 2)
