"""Tasks of training models of Flax NNX."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optlab import _checks
from optlab._extras import needs_extra
from optlab._types import Array, Tree
from optlab.lab.tasks._objectives import Classification, Regression
from optlab.lab.tasks._supervised import Model, supervised_task
from optlab.lab.tasks._task import Task

if TYPE_CHECKING:
    from flax import nnx


def nnx_classifier(
    name: str,
    make_model: "Callable[[nnx.Rngs], nnx.Module]",
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
    """Return the task of training a Flax NNX model to classify, judged by accuracy.

    The loss is the mean cross-entropy. Everything in the model except its parameters (batch
    statistics, the random streams of dropout) is the task's `model_state`.

    If `train` and `validation` are arrays, training examples are evaluated as well: at most as many
    as there are in `validation`, spread evenly. They are the task's split "train".

    Args:
        name: the name in titles and reports.
        make_model: rngs → a model that maps inputs (batch, …) to logits (batch, classes), such as
            a class whose `__init__` takes `rngs` alone.
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
        ModuleNotFoundError: Flax is not installed.
        ValueError: the data, the model's outputs or another argument are not as required.
    """
    return supervised_task(
        "nnx_classifier",
        name,
        lambda example: nnx_model("nnx_classifier", make_model),
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


def nnx_regressor(
    name: str,
    make_model: "Callable[[nnx.Rngs], nnx.Module]",
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
    """Return the task of training a Flax NNX model to predict numbers.

    The loss, by which runs are judged, is the mean squared error; the metric "mae" is the mean
    absolute error. All else is as in `nnx_classifier`.

    Args:
        name: the name in titles and reports.
        make_model: rngs → a model that maps inputs (batch, …) to outputs of the labels' shape.
        train: arrays (inputs (n, …), labels (n, …)) or a loader, as in `nnx_classifier`.
        validation: likewise, examples on which runs are judged.
        test: likewise, examples on which the chosen runs are judged, or None.
        batch_size: examples per batch, in [1, n], if `train` is arrays; None if it is a loader.
        inputs: the field of a batch with the inputs, as in `nnx_classifier`.
        labels: the field with the labels, real numbers.
        target: a mean squared error worth reaching.
        steps: updates of a usual run, ≥ 1.
        eval_every: updates between evaluations, ≥ 1; None for a thirtieth of the run.

    Raises:
        ModuleNotFoundError: Flax is not installed.
        ValueError: the data, the model's outputs or another argument are not as required.
    """
    return supervised_task(
        "nnx_regressor",
        name,
        lambda example: nnx_model("nnx_regressor", make_model),
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


def nnx_model(who: str, make_model: "Callable[[nnx.Rngs], nnx.Module]") -> Model:
    """Return a Flax NNX model as pure functions.

    Args:
        who: the public name that errors begin with.
        make_model: rngs → model.
    """
    with needs_extra(who):
        from flax import nnx

    if isinstance(make_model, nnx.Module) or not callable(make_model):
        required = "make_model must be a function rngs → model"
        remedy = "pass lambda rngs: Model(…, rngs=rngs)"
        _checks.fail(who, required, f"the object {type(make_model).__name__}", remedy)
    graph = nnx.graphdef(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))))

    def parts(model: nnx.Module) -> tuple[nnx.State, nnx.State]:
        _, params, model_state = nnx.split(model, nnx.Param, ...)
        return params, model_state

    def init(key: Array) -> tuple[nnx.State, nnx.State]:
        return parts(make_model(nnx.Rngs(key)))

    def train(
        params: nnx.State, model_state: nnx.State, inputs: Tree, key: Array
    ) -> tuple[Array, nnx.State]:
        # A copy, because a variable may only be changed in the transformation that created it.
        model = nnx.merge(graph, params, model_state, copy=True)
        model.train()
        outputs = model(inputs)
        return outputs, parts(model)[1]

    def observe(params: nnx.State, model_state: nnx.State, inputs: Tree) -> nnx.State:
        model = nnx.merge(graph, params, model_state, copy=True)
        model.train()
        model.set_attributes(deterministic=True, raise_if_not_found=False)  # turns dropout off
        model(inputs)
        return parts(model)[1]

    def evaluate(params: nnx.State, model_state: nnx.State, inputs: Tree) -> Array:
        model = nnx.merge(graph, params, model_state)
        model.eval()
        return model(inputs)

    return Model(init, train, evaluate, observe)
