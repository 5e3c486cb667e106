"""`Task`: a training problem as pure functions; every tool of the lab takes one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optlab import _checks
from optlab._types import Array, Tree

Batch = Any
"""A pytree of arrays with the data of one step; () if the objective has no data."""


@dataclass(frozen=True)
class Task:
    """A model, its data and its objective, without an optimizer.

    Every function is pure and is called under `jit` and `vmap`, for many runs at once; shapes are
    those of a single run. `model_state` holds everything in the model that is not trained by
    gradients, such as batch statistics or the random streams of dropout; () if there is nothing.

    Attributes:
        name: the name in titles and reports.
        init: key → (params, model_state).
        loss: (params, model_state, batch, key) → (loss, model_state), where loss is () float, and
            the model is in training mode. `key` is new at each update.
        batch: (key, step) → batch. `key` is the key of the run and the same at every step; `step`
            counts from 0 and is traced. `shuffled_batches` makes such a function from arrays. None
            if there is a `loader`.
        evaluate: (params, model_state, data) → {"loss": () float, …other metrics}, where the model
            is in evaluation mode, and data is a part of one of `splits`, or None if there are none.
            Where a split is evaluated in parts, metrics must be means over examples.
        splits: "validation" and optionally "train" and "test" → data for `evaluate`: a pytree of
            arrays (n, …), or a loader, as `loader` is one, that is read once for each evaluation.
            Empty for an objective without data; runs are then judged by the objective itself.
        score: the metric by which runs are judged.
        maximize: whether a higher score is better.
        target: a score worth reaching; None if none is known.
        steps: updates of a usual run, ≥ 1.
        eval_every: updates between evaluations, ≥ 1; None for a thirtieth of the run.
        predict: (params, model_state, data) → (logits (n, classes) float, labels (n,) int), where
            the model is in evaluation mode, and data is one of `splits`. Ensembles need it. None if
            the task is no classification.
        observe: (params, model_state, batch) → model_state, as `loss` returns it, but with dropout
            off. `refresh_batch_stats` needs it for `dropout=False`. None if there is no such
            function.
        loader: in place of `batch`, batches from the host: anything that can be iterated over again
            and yields pytrees of NumPy arrays or PyTorch tensors, such as a Grain or PyTorch
            `DataLoader`, a `tf.data` or Hugging Face data set; or a function without arguments
            that returns an iterator, such as a generator function. All batches have the same
            shapes. Another pass begins where one ends. Runs in lanes share each batch.
        eval_batch: examples that are evaluated together, ≥ 1; math.inf for each split as a whole;
            None for as many as keep the largest array of `evaluate` small.
        timeout: seconds to wait for a batch of a loader, > 0.
        baseline: the loss of the best guess without inputs, > 0: the entropy of the classes, which
            is log C for C equally frequent ones, or the variance of the targets for a mean square.
            `tune` judges by it what a model has learned. None if it is unknown.

    Example:
        A Linen model with the usual names is a task in a few lines:

            def loss(params, stats, batch, key):
                logits, changed = model.apply(
                    {"params": params, **stats}, batch["x"], train=True, mutable=list(stats))
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
                return losses.mean(), changed

            def init(key):
                stats = model.init(key, example, train=False)
                return stats.pop("params"), stats

        A plain function of an array is a task, too:

        >>> parabola = Task(
        ...     name="parabola",
        ...     init=lambda key: (jnp.array(2.0), ()),
        ...     loss=lambda x, state, batch, key: (x**2, state),
        ...     batch=lambda key, step: (),
        ...     evaluate=lambda x, state, data: {"loss": x**2},
        ... )
        >>> parabola.steps
        300
    """

    name: str
    init: Callable[[Array], tuple[Tree, Tree]]
    loss: Callable[[Tree, Tree, Batch, Array], tuple[Array, Tree]]
    batch: Callable[[Array, Array], Batch] | None = None
    evaluate: Callable[[Tree, Tree, Any], Mapping[str, Array]] | None = None
    splits: Mapping[str, Any] = field(default_factory=dict)
    score: str = "loss"
    maximize: bool = False
    target: float | None = None
    steps: int = 300
    eval_every: int | None = None
    predict: Callable[[Tree, Tree, Any], tuple[Array, Array]] | None = None
    observe: Callable[[Tree, Tree, Batch], Tree] | None = None
    loader: Any = None
    eval_batch: float | None = None
    timeout: float = 300.0
    baseline: float | None = None


def shuffled_batches(data: Batch, batch_size: int) -> Callable[[Array, Array], Batch]:
    """Return a `Task.batch` that draws without replacement, in a new order each epoch.

    If `batch_size` does not divide the number of examples, the last few examples of the order are
    left out of that epoch. The order is computed anew at each step from the key and the epoch, so
    that no state has to be carried; sorting n numbers costs little beside an update.

    Args:
        data: a pytree of arrays, each (n, …).
        batch_size: examples per batch, in [1, n].

    Returns:
        (key, step) → a pytree like `data`, each array (batch_size, …). Its attribute `examples` is
        `data`, for what goes through all of it once.

    Raises:
        ValueError: `batch_size` is not in [1, n], or the data do not fit into the device's memory.

    Example:
        >>> batch = shuffled_batches(jnp.arange(6), batch_size=2)
        >>> epoch = [batch(jax.random.key(0), step) for step in range(3)]
        >>> sorted(int(x) for x in jnp.concatenate(epoch))
        [0, 1, 2, 3, 4, 5]
    """
    data = _on_device(data)
    (num_examples,) = {len(array) for array in jax.tree.leaves(data)}
    _checks.check_integer("shuffled_batches", "batch_size", batch_size, 1)
    if batch_size > num_examples:
        _checks.fail(
            "shuffled_batches",
            f"batch_size must not exceed the {num_examples} training examples",
            f"batch_size={batch_size}",
        )
    batches_per_epoch = num_examples // batch_size

    def batch(key: Array, step: Array) -> Batch:
        epoch, position = jnp.divmod(step, batches_per_epoch)
        order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
        rows = lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)
        return jax.tree.map(lambda array: array[rows], data)

    batch.examples = data
    return batch


def _on_device(data: Batch) -> Batch:
    try:
        return jax.tree.map(jnp.asarray, data)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
        required = "data must fit into the memory of the device"
        remedy = "pass a loader, which reads them batch by batch"
        got = f"{size / 2**30:.1f} GiB"
        raise ValueError(f"shuffled_batches: {required}, got {got}; {remedy}") from error
