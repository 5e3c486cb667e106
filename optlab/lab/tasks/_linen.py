"""Tasks of training models of Flax Linen."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from optlab import _checks
from optlab._extras import needs_extra
from optlab._types import Array, Tree
from optlab.lab.tasks._objectives import Classification, Regression
from optlab.lab.tasks._supervised import Model, supervised_task
from optlab.lab.tasks._task import Task

if TYPE_CHECKING:
    from flax import linen as nn

Mode = Callable[[bool], dict[str, Any]]
"""A function from whether a model trains to keyword arguments of its call."""

SWITCHES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "inference": False,
    "use_running_average": False,
}
"""The usual names of what turns training mode on or off, each with its value in training."""


def linen_classifier(
    name: str,
    model: "nn.Module",
    *,
    train: Any,
    validation: Any = None,
    test: Any = None,
    batch_size: int | None = None,
    inputs: str | int = 0,
    labels: str | int = 1,
    mode: Callable[[bool], dict[str, Any]] | None = None,
    target: float | None = None,
    steps: int = 300,
    eval_every: int | None = None,
) -> Task:
    """Return the task of training a Flax Linen model to classify, judged by accuracy.

    The loss is the mean cross-entropy. All collections of variables except "params", such as
    "batch_stats", are the task's `model_state`. Dropout draws from the stream "dropout". The model
    is initialized on zeros of the shape of one validation example; of a loader, one batch is read
    to see it.

    If `train` and `validation` are arrays, training examples are evaluated as well: at most as many
    as there are in `validation`, spread evenly. They are the task's split "train".

    Args:
        name: the name in titles and reports.
        model: a module that maps inputs (batch, …) to logits (batch, classes), such as `CNN()`.
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
        mode: whether the model trains → the keyword arguments of its call, such as
            `lambda training: {"is_test": not training}`; None to know them by their names: train,
            training, is_training, deterministic, inference or use_running_average, as arguments of
            the call or as fields of the model.
        target: an accuracy worth reaching, in (0, 1].
        steps: updates of a usual run, ≥ 1.
        eval_every: updates between evaluations, ≥ 1; None for a thirtieth of the run.

    Raises:
        ModuleNotFoundError: Flax is not installed.
        ValueError: the data, the model's outputs or another argument are not as required.
    """
    return supervised_task(
        "linen_classifier",
        name,
        lambda example: linen_model("linen_classifier", model, mode, example()),
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


def linen_regressor(
    name: str,
    model: "nn.Module",
    *,
    train: Any,
    validation: Any = None,
    test: Any = None,
    batch_size: int | None = None,
    inputs: str | int = 0,
    labels: str | int = 1,
    mode: Callable[[bool], dict[str, Any]] | None = None,
    target: float | None = None,
    steps: int = 300,
    eval_every: int | None = None,
) -> Task:
    """Return the task of training a Flax Linen model to predict numbers.

    The loss, by which runs are judged, is the mean squared error; the metric "mae" is the mean
    absolute error. All else is as in `linen_classifier`.

    Args:
        name: the name in titles and reports.
        model: a module that maps inputs (batch, …) to outputs of the labels' shape.
        train: arrays (inputs (n, …), labels (n, …)) or a loader, as in `linen_classifier`.
        validation: likewise, examples on which runs are judged.
        test: likewise, examples on which the chosen runs are judged, or None.
        batch_size: examples per batch, in [1, n], if `train` is arrays; None if it is a loader.
        inputs: the field of a batch with the inputs, as in `linen_classifier`.
        labels: the field with the labels, real numbers.
        mode: whether the model trains → the keyword arguments of its call, such as
            `lambda training: {"is_test": not training}`; None to know them by their names: train,
            training, is_training, deterministic, inference or use_running_average, as arguments of
            the call or as fields of the model.
        target: a mean squared error worth reaching.
        steps: updates of a usual run, ≥ 1.
        eval_every: updates between evaluations, ≥ 1; None for a thirtieth of the run.

    Raises:
        ModuleNotFoundError: Flax is not installed.
        ValueError: the data, the model's outputs or another argument are not as required.
    """
    return supervised_task(
        "linen_regressor",
        name,
        lambda example: linen_model("linen_regressor", model, mode, example()),
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


def linen_model(who: str, model: "nn.Module", mode: Mode | None, example: Tree) -> Model:
    """Return a Flax Linen model as pure functions.

    Args:
        who: the public name that errors begin with.
        model: the module.
        mode: as in `linen_classifier`.
        example: the shapes of the inputs of one example, (1, …).
    """
    with needs_extra(who):
        from flax import errors
        from flax import linen as nn

    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        _checks.fail(who, "model must be a Flax Linen module", got, "pass CNN(), say")
    in_mode = _modes(who, model, mode)

    def init(key: Array) -> tuple[Tree, Tree]:
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
        module, options = in_mode(False)
        variables = dict(module.init(key, inputs, **options))
        return variables.pop("params", {}), variables

    def train(params: Tree, model_state: Tree, inputs: Tree, key: Array) -> tuple[Array, Tree]:
        module, options = in_mode(True)
        outputs, changed = module.apply(
            {"params": params, **model_state},
            inputs,
            **options,
            # Flax draws from "params" for streams of other names.
            rngs={"dropout": key, "params": jax.random.fold_in(key, 1)},
            mutable=list(model_state),
        )
        return outputs, {**model_state, **changed}

    def evaluate(params: Tree, model_state: Tree, inputs: Tree) -> Array:
        module, options = in_mode(False)
        try:
            return module.apply({"params": params, **model_state}, inputs, **options)
        except (errors.InvalidRngError, errors.ModifyScopeVariableError) as error:
            _checks.fail(
                who,
                "the model must neither draw random numbers nor change its state in evaluation",
                str(error).partition("\n")[0],
                "pass mode=lambda training: {…}, with what turns its training mode on and off",
            )

    return Model(init, train, evaluate)


def _modes(
    who: str, model: "nn.Module", mode: Mode | None
) -> "Callable[[bool], tuple[nn.Module, dict[str, Any]]]":
    """Return a function from whether the model trains to it and the arguments of its call."""
    if mode is not None:
        if not callable(mode):
            required = "mode must be a function, training → keyword arguments of the model's call"
            remedy = "pass lambda training: {'is_test': not training}, say"
            _checks.fail(who, required, repr(mode), remedy)
        return lambda training: (model, mode(training))
    if not callable(model):
        _checks.fail(
            who, "model must have a method __call__", f"{type(model).__name__} without one"
        )
    arguments = list(inspect.signature(type(model).__call__).parameters.values())
    arguments = arguments[2:]  # without self and inputs
    in_call = [x.name for x in arguments if x.name in SWITCHES]
    others = [
        x.name
        for x in arguments
        if x.default is x.empty
        and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)
        and x.name not in SWITCHES
    ]
    if others:
        _checks.fail(
            who,
            "the model's call must take inputs, and what turns training on or off",
            f"the argument {others[0]!r}",
            f"pass mode=lambda training: {{{others[0]!r}: …}}",
        )
    fields = [name for name in SWITCHES if name in model.__dataclass_fields__ and not in_call]

    def in_mode(training: bool) -> "tuple[nn.Module, dict[str, Any]]":
        def values(names: list[str]) -> dict[str, bool]:
            return {name: SWITCHES[name] == training for name in names}

        return (model.clone(**values(fields)) if fields else model), values(in_call)

    return in_mode
