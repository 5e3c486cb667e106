"""Tasks of training models of Equinox."""

import inspect
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optlab import _checks
from optlab._extras import needs_extra
from optlab._types import Array, Tree
from optlab.lab.tasks._objectives import Classification, Regression
from optlab.lab.tasks._supervised import Model, supervised_task
from optlab.lab.tasks._task import Task

if TYPE_CHECKING:
    import equinox as eqx

    Made = eqx.Module | tuple[eqx.Module, eqx.nn.State]


def equinox_classifier(
    name: str,
    make_model: "Callable[[Array], Made]",
    *,
    train: Any,
    validation: Any = None,
    test: Any = None,
    batch_size: int | None = None,
    inputs: str | int = 0,
    labels: str | int = 1,
    target: float | None = None,
    steps: int = 300,
    eval_every: int | None = None,
) -> Task:
    """Return the task of training an Equinox model to classify, judged by accuracy.

    The loss is the mean cross-entropy. The model is mapped over the examples of a batch, along
    the axis that its `BatchNorm` layers name, or else "batch". Its floating-point arrays are the
    parameters; its other arrays and its state are the task's `model_state`.
    `eqx.nn.inference_mode` turns its evaluation mode on.

    If `train` and `validation` are arrays, training examples are evaluated as well: at most as many
    as there are in `validation`, spread evenly. They are the task's split "train".

    Args:
        name: the name in titles and reports.
        make_model: key → a model that maps the inputs of one example (…) to logits (classes,); or
            (model, state), as `eqx.nn.make_with_state` returns them, of a model that maps inputs
            and state to logits and state. If its call has an argument `key`, it gets one.
        train: examples to learn from: arrays (inputs (n, …), labels (n,)), from which batches are
            drawn in a new order each epoch; or a loader that yields such pairs as batches, anything
            that `Task.loader` takes.
        validation: examples on which runs are judged: arrays, or a loader that is read once for
            each evaluation.
        test: examples on which the chosen runs are judged: arrays, a loader, or None.
        batch_size: examples per batch, in [1, n], if `train` is arrays; None if it is a loader.
        inputs: the field of a batch with the inputs: a name, if batches and arrays come as
            dictionaries or dataclasses, or a place in a tuple. What is there may be a tree.
        labels: the field with the labels, integers from 0 on.
        target: an accuracy worth reaching, in (0, 1].
        steps: updates of a usual run, ≥ 1.
        eval_every: updates between evaluations, ≥ 1; None for a thirtieth of the run.

    Raises:
        ModuleNotFoundError: Equinox is not installed.
        ValueError: the data, the model's outputs or another argument are not as required.
    """
    return supervised_task(
        "equinox_classifier",
        name,
        lambda example: equinox_model("equinox_classifier", make_model),
        Classification,
        train=train,
        validation=validation,
        test=test,
        batch_size=batch_size,
        inputs=inputs,
        labels=labels,
        target=target,
        steps=steps,
        eval_every=eval_every,
    )


def equinox_regressor(
    name: str,
    make_model: "Callable[[Array], Made]",
    *,
    train: Any,
    validation: Any = None,
    test: Any = None,
    batch_size: int | None = None,
    inputs: str | int = 0,
    labels: str | int = 1,
    target: float | None = None,
    steps: int = 300,
    eval_every: int | None = None,
) -> Task:
    """Return the task of training an Equinox model to predict numbers.

    The loss, by which runs are judged, is the mean squared error; the metric "mae" is the mean
    absolute error. All else is as in `equinox_classifier`.

    Args:
        name: the name in titles and reports.
        make_model: key → a model of one example, or (model, state), as in `equinox_classifier`; its
            outputs have the shape of the labels of one example.
        train: arrays (inputs (n, …), labels (n, …)) or a loader, as in `equinox_classifier`.
        validation: likewise, examples on which runs are judged.
        test: likewise, examples on which the chosen runs are judged, or None.
        batch_size: examples per batch, in [1, n], if `train` is arrays; None if it is a loader.
        inputs: the field of a batch with the inputs, as in `equinox_classifier`.
        labels: the field with the labels, real numbers.
        target: a mean squared error worth reaching.
        steps: updates of a usual run, ≥ 1.
        eval_every: updates between evaluations, ≥ 1; None for a thirtieth of the run.

    Raises:
        ModuleNotFoundError: Equinox is not installed.
        ValueError: the data, the model's outputs or another argument are not as required.
    """
    return supervised_task(
        "equinox_regressor",
        name,
        lambda example: equinox_model("equinox_regressor", make_model),
        Regression,
        train=train,
        validation=validation,
        test=test,
        batch_size=batch_size,
        inputs=inputs,
        labels=labels,
        target=target,
        steps=steps,
        eval_every=eval_every,
    )


def equinox_model(who: str, make_model: "Callable[[Array], Made]") -> Model:
    """Return an Equinox model as pure functions of batches.

    Args:
        who: the public name that errors begin with.
        make_model: key → model, or (model, state).
    """
    with needs_extra(who, package="equinox"):
        import equinox as eqx

    if isinstance(make_model, eqx.Module) or not callable(make_model):
        required = "make_model must be a function key → model"
        remedy = "pass lambda key: Model(…, key=key)"
        _checks.fail(who, required, f"the object {type(make_model).__name__}", remedy)

    def made(key: Array) -> "tuple[eqx.Module, eqx.nn.State | None]":
        result = make_model(key)
        model, state = result if isinstance(result, tuple) else (result, None)
        if not isinstance(model, eqx.Module) or not callable(model):
            required = "make_model must return an Equinox model, or (model, state)"
            _checks.fail(who, required, type(model).__name__)
        return model, state

    # Each model that is made may hold other objects in its structure, such as functions, and those
    # that mark parts of its state. The structure of the first one serves for all.
    like, state_like = eqx.filter_eval_shape(made, jax.random.key(0))
    params_like, rest = eqx.partition(like, _is_inexact)
    buffers_like, static = eqx.partition(rest, _is_shape)
    structures = [jax.tree.structure(part) for part in (params_like, buffers_like, state_like)]
    takes_key = "key" in inspect.signature(like.__call__).parameters
    axis = _axis(who, like, eqx.nn.BatchNorm)

    def init(key: Array) -> tuple[Tree, Tree]:
        model, state = made(key)
        params, others = eqx.partition(model, eqx.is_inexact_array)
        buffers = jax.tree.leaves(eqx.filter(others, eqx.is_array))
        # Of no weak type, because Equinox refuses a state that changes its type.
        state = [jnp.asarray(leaf, leaf.dtype) for leaf in jax.tree.leaves(state)]
        params = jax.tree.unflatten(structures[0], jax.tree.leaves(params))
        return params, {"buffers": buffers, "state": state}

    def call(
        params: Tree, model_state: Tree, inputs: Tree, key: Array, training: bool
    ) -> tuple[Array, Tree]:
        buffers = jax.tree.unflatten(structures[1], model_state["buffers"])
        state = jax.tree.unflatten(structures[2], model_state["state"])
        model = eqx.combine(params, buffers, static)
        model = eqx.nn.inference_mode(model, not training)
        keys = _divided_like(inputs, jax.random.split(key, len(jax.tree.leaves(inputs)[0])))

        def one(inputs: Tree, key: Array, state: Any) -> tuple[Array, Any]:
            options = {"key": key} if takes_key else {}
            if state is None:
                return model(inputs, **options), None
            return model(inputs, state, **options)

        mapped = jax.vmap(one, in_axes=(0, 0, None), out_axes=(0, None), axis_name=axis)
        outputs, state = mapped(inputs, keys, state)
        return outputs, {**model_state, "state": jax.tree.leaves(state)}

    def train(params: Tree, model_state: Tree, inputs: Tree, key: Array) -> tuple[Array, Tree]:
        return call(params, model_state, inputs, key, True)

    def evaluate(params: Tree, model_state: Tree, inputs: Tree) -> Array:
        # No layer looks at the key in evaluation mode, but a model may split it for its layers.
        return call(params, model_state, inputs, jax.random.key(0), False)[0]

    return Model(init, train, evaluate)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _is_inexact(leaf: Any) -> bool:
    return _is_shape(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _divided_like(inputs: Tree, keys: Array) -> Array:
    """Divide keys (batch,) over the axes of a mesh that the inputs are explicitly divided over."""
    spec = jax.typeof(jax.tree.leaves(inputs)[0]).sharding.spec
    if not spec or spec[0] is None:
        return keys
    return jax.sharding.reshard(keys, PartitionSpec(spec[0]))


def _axis(who: str, model: "eqx.Module", batch_norm: type) -> Hashable:
    """Return the name of the axis of examples, over which the model's layers normalize."""
    layers = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, batch_norm))
    names = {layer.axis_name for layer in layers if isinstance(layer, batch_norm)}
    if len(names) > 1:
        required = "all BatchNorm layers of a model must have the same axis_name"
        _checks.fail(who, required, ", ".join(sorted(map(repr, names))))
    return next(iter(names), "batch")
