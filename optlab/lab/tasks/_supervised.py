"""A model of any library as pure functions, and the task of training it on labelled examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from optlab._types import Array, ArrayLike, Tree
from optlab.lab.data import is_stream
from optlab.lab.tasks._examples import (
    Field,
    Fields,
    checked_fields,
    checked_splits,
    data_of_task,
    first_inputs,
)
from optlab.lab.tasks._objectives import Classification, Objective
from optlab.lab.tasks._task import Batch, Task


class Model(NamedTuple):
    """A model as pure functions.

    Attributes:
        init: key → (params, model_state).
        train: (params, model_state, inputs, key) → (outputs, model_state), in training mode.
        evaluate: (params, model_state, inputs) → outputs, in evaluation mode.
        observe: (params, model_state, inputs) → model_state, in training mode with dropout off;
            None if the library cannot turn dropout off alone.
    """

    init: Callable[[Array], tuple[Tree, Tree]]
    train: Callable[[Tree, Tree, Tree, Array], tuple[Array, Tree]]
    evaluate: Callable[[Tree, Tree, Tree], Array]
    observe: Callable[[Tree, Tree, Tree], Tree] | None = None


def supervised_task(
    who: str,
    name: str,
    make: Callable[[Callable[[], Tree]], Model],
    kind: type[Objective],
    *,
    train: Any,
    validation: Any,
    test: Any,
    batch_size: int | None,
    inputs: Field = 0,
    labels: Field = 1,
    target: float | None = None,
    steps: int = 300,
    eval_every: int | None = None,
    whole_train: bool = False,
) -> Task:
    """Return the task of training a model on examples with labels.

    Args:
        who: the public name that errors begin with.
        name: the name of the task.
        make: a function that returns the shapes of the inputs of one example, (1, …), which it
            reads where the model needs them → the model.
        kind: what the model learns.
        train: as in `nnx_classifier`, and so are all other arguments but the last.
        validation: arrays or a loader.
        test: arrays, a loader or None.
        batch_size: examples per batch of arrays.
        inputs: the field of a batch with the inputs.
        labels: the field of a batch with the labels.
        target: a score worth reaching.
        steps: updates of a usual run, ≥ 1.
        eval_every: updates between evaluations, ≥ 1, or None.
        whole_train: whether all training examples are evaluated.
    """
    fields = checked_fields(who, name, inputs, labels)
    splits = checked_splits(fields, train, validation, test)
    of_arrays = [fields.of(part)[1] for part in splits.values() if not is_stream(part)]
    objective = kind(who, name).knowing(of_arrays)
    data = data_of_task(who, splits, batch_size, whole_train=whole_train)
    model = make(lambda: first_inputs(fields, splits["validation"]))

    def loss(params: Tree, model_state: Tree, batch: Batch, key: Array) -> tuple[Array, Tree]:
        inputs, labels = fields.of(batch)
        outputs, model_state = model.train(params, model_state, inputs, key)
        return objective.losses(outputs, labels).mean(), model_state

    def observe(params: Tree, model_state: Tree, batch: Batch) -> Tree:
        return model.observe(params, model_state, fields.of(batch)[0])

    def predict(params: Tree, model_state: Tree, data: Batch) -> tuple[Array, ArrayLike]:
        inputs, labels = fields.of(data)
        return objective.logits(model.evaluate(params, model_state, inputs), labels), labels

    def evaluate(params: Tree, model_state: Tree, data: Batch) -> dict[str, Array]:
        inputs, labels = fields.of(data)
        return objective.metrics(model.evaluate(params, model_state, inputs), labels)

    return Task(
        name=name,
        init=model.init,
        loss=loss,
        evaluate=evaluate,
        score=objective.score,
        maximize=objective.maximize,
        target=target,
        steps=steps,
        eval_every=eval_every,
        predict=predict if kind is Classification else None,
        observe=None if model.observe is None else observe,
        baseline=_baseline(objective, fields, splits["train"]),
        **data,
    )


def _baseline(objective: Objective, fields: Fields, train: Any) -> float | None:
    """Return the loss of the best guess without inputs; None if it is 0 or the data are unknown."""
    if is_stream(train):
        return None
    labels = fields.of(train)[1]
    if isinstance(labels, jax.core.Tracer):
        return None
    return objective.baseline(np.asarray(labels)) or None
