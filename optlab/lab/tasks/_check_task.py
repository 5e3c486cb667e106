"""Check a task: its functions must return what `Task` documents."""

import difflib
import re
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab.data import Batches, is_stream, read_once
from optlab.lab.tasks._task import Task


def check_task(who: str, task: Any) -> Batches | None:
    """Require a task that the lab can train: its functions return what `Task` documents.

    The functions are traced without computing anything, which costs little beside a compilation. Of
    loaders the first batch is read.

    Args:
        who: the public name that errors begin with.
        task: the object to check.

    Returns:
        The task's loader as a source of batches; None if the task has none.

    Raises:
        ValueError: the object is not a `Task`, or one of its fields or results is not as required.
            Errors of the task's own functions are passed on unchanged.
    """
    if not isinstance(task, Task):
        required = "task must be an optlab.lab.Task"
        _checks.fail(who, required, f"{type(task).__name__} {task!r}", "see optlab.lab.tasks")
    _check_fields(who, task)
    params, model_state = _check_init(who, task)
    source = None
    if task.loader is not None:
        source = Batches(who, task.name, task.loader, timeout=task.timeout)
    _check_loss(who, task, params, model_state, source)
    _check_evaluate(who, task, params, model_state)
    _check_predict(who, task, params, model_state)
    return source


def batch_of(task: Task, source: Batches | None) -> Tree:
    """Return the shapes and types of a task's batches."""
    if source is not None:
        return source.layout
    return jax.eval_shape(task.batch, jax.random.key(0), jnp.int32(0))


def batch_size(task: Task, source: Batches | None) -> int | None:
    """Return the examples of a batch: the length of the first axis that its arrays share."""
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(batch_of(task, source))}
    return next(iter(lengths))[0] if len(lengths) == 1 and () not in lengths else None


def check_in_memory(who: str, task: Task) -> None:
    """Require a task whose batches come from `Task.batch`, and whose splits are arrays."""
    streams = [f"Task.splits[{name!r}]" for name, data in task.splits.items() if is_stream(data)]
    if task.loader is not None or streams:
        got = "Task.loader" if task.loader is not None else streams[0]
        remedy = "pass arrays: shuffled_batches(…) as Task.batch, and arrays as splits"
        _checks.fail(who, f"the data of task {task.name!r} must be in memory", got, remedy)


def check_predicts(who: str, task: Task) -> None:
    """Require a task that says what a model predicts, and has data to judge predictions by."""
    if task.predict is None or not task.splits:
        _checks.fail(
            who,
            "the task must be a classification, with Task.predict and Task.splits",
            f"{task.name!r} without {'Task.predict' if task.predict is None else 'splits'}",
            "tasks.nnx_classifier sets both; a task of your own sets predict=(params, "
            "model_state, data) → (logits, labels)",
        )


def _check_fields(who: str, task: Task) -> None:
    if task.loader is not None and task.batch is not None:
        _checks.fail(who, "Task must have a batch or a loader", "both", "leave one out")
    functions = ("init", "loss", "evaluate") + (("batch",) if task.loader is None else ())
    for name in functions:
        if not callable(getattr(task, name)):
            got = repr(getattr(task, name))
            remedy = "data of a loader are passed as Task.loader" if name == "batch" else ""
            _checks.fail(who, f"Task.{name} must be a function", got, remedy)
    _checks.check_number(who, "Task.timeout", task.timeout, _checks.POSITIVE)
    for name in ("predict", "observe"):
        if getattr(task, name) is not None and not callable(getattr(task, name)):
            got = repr(getattr(task, name))
            _checks.fail(who, f"Task.{name} must be a function or None", got)
    _checks.check_integer(who, "Task.steps", task.steps, 1)
    if task.eval_every is not None:
        _checks.check_integer(who, "Task.eval_every", task.eval_every, 1)
    if task.target is not None:
        _checks.check_number(who, "Task.target", task.target, _checks.FINITE)
    if task.baseline is not None:
        _checks.check_number(who, "Task.baseline", task.baseline, _checks.POSITIVE)
    _checks.check_flag(who, "Task.maximize", task.maximize)
    if not isinstance(task.splits, Mapping):
        _checks.fail(who, "Task.splits must map names to data", type(task.splits).__name__)
    if task.splits and "validation" not in task.splits:
        names = ", ".join(map(repr, task.splits))
        remedy = 'add a split "validation", on which runs are judged'
        _checks.fail(who, 'Task.splits must be empty or have "validation"', names, remedy)
    for name, data in task.splits.items():
        if not is_stream(data):
            _check_arrays(who, f"Task.splits[{name!r}] must hold", data)


def _check_init(who: str, task: Task) -> tuple[Tree, Tree]:
    """Return the shapes of the parameters and of the model's state."""

    def init(key: Array) -> tuple[Tree, Tree]:
        result = task.init(key)
        _check_pair(who, "Task.init must return (params, model_state)", result)
        _check_arrays(who, "Task.init must return", result)
        return tuple(result)

    params, model_state = jax.eval_shape(init, jax.random.key(0))
    for path, leaf in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            _checks.fail(
                who,
                "parameters must be floating point or complex",
                f"{leaf.dtype} at {_place(path)}",
                "put arrays without gradients into model_state",
            )
    return params, model_state


def _check_loss(
    who: str, task: Task, params: Tree, model_state: Tree, source: Batches | None
) -> None:
    def batch_at(key: Array, step: Array) -> Tree:
        if source is not None:
            return source.example
        batch = task.batch(key, step)
        _check_arrays(who, "Task.batch must return", batch)
        return batch

    def loss(params: Tree, model_state: Tree, key: Array, step: Array) -> tuple[Array, Tree]:
        batch = batch_at(key, step)
        result = task.loss(params, model_state, batch, key)
        _check_pair(who, "Task.loss must return (loss, model_state)", result)
        _check_arrays(who, "Task.loss must return", result)
        return tuple(result)

    key, step = jax.random.key(0), jnp.int32(0)
    value, updated = jax.eval_shape(loss, params, model_state, key, step)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        _checks.fail(
            who,
            "Task.loss must return a real floating-point scalar as the loss",
            _described(value),
            "average over the batch, as losses.mean() does" if value.shape else "",
        )
    if source is None:
        _check_pure(who, task)
    _check_same_state(who, "Task.loss", model_state, updated)
    if task.observe is not None:

        def observe(params: Tree, model_state: Tree, key: Array, step: Array) -> Tree:
            observed = task.observe(params, model_state, batch_at(key, step))
            _check_arrays(who, "Task.observe must return", observed)
            return observed

        observed = jax.eval_shape(observe, params, model_state, key, step)
        _check_same_state(who, "Task.observe", model_state, observed)


def _check_pure(who: str, task: Task) -> None:
    """Require that a batch depends on the key and the step alone.

    A batch that reads an iterator, or draws from NumPy's generator, does so once, while it is
    traced, and the run would train on that one batch for ever.
    """
    key, step = jax.random.key(0), jnp.int32(0)
    # Functions of their own, because JAX keeps what it traced of a function.
    first, second = (
        jax.make_jaxpr(lambda key, step: task.batch(key, step))(key, step) for _ in range(2)
    )
    texts = [_ADDRESS.sub("", str(traced.jaxpr)) for traced in (first, second)]
    pairs = zip(first.consts, second.consts, strict=False)
    if texts[0] != texts[1] or not all(a is b or _same_numbers(a, b) for a, b in pairs):
        _checks.fail(
            who,
            f"Task.batch of {task.name!r} must depend on its key and step alone, as it is traced "
            "once",
            "a function that returns another batch when it is called again",
            "pass what it reads from, such as a generator function or a data loader, as "
            "Task.loader",
        )


_ADDRESS = re.compile(r"0x[0-9a-f]+")


def _same_numbers(a: Any, b: Any) -> bool:
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _check_same_state(who: str, function: str, before: Tree, after: Tree) -> None:
    """Require that a function changes only the numbers of the model's state, not its structure."""
    required = f"{function} must return a model_state with the structure and types of its input"
    old, new = (
        {_place(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (before, after)
    )
    for path in [*old, *new]:
        if path not in new:
            _checks.fail(who, required, f"nothing at {path}", "return all that init makes")
        if path not in old:
            _checks.fail(who, required, f"something new at {path}", "make it in init")
        was, became = _described(old[path]), _described(new[path])
        if was != became:
            remedy = "keep its shape and type"
            _checks.fail(who, required, f"{became} for {was} at {path}", remedy)
    if jax.tree.structure(before) != jax.tree.structure(after):
        got = f"{jax.tree.structure(after)} for {jax.tree.structure(before)}"
        _checks.fail(who, required, got, "put it into the same containers")


def _check_evaluate(who: str, task: Task, params: Tree, model_state: Tree) -> None:
    def evaluate(params: Tree, model_state: Tree, data: Any) -> dict[str, Array]:
        metrics = task.evaluate(params, model_state, data)
        required = "Task.evaluate must return a mapping of metrics"
        if not isinstance(metrics, Mapping):
            _checks.fail(who, required, _kind(metrics), 'return {"loss": loss}, say')
        _check_arrays(who, "Task.evaluate must return", metrics)
        return dict(metrics)

    for name, data in (task.splits or {"": None}).items():
        if is_stream(data):
            stream = read_once(who, task.name, name, data, timeout=task.timeout)
            with closing(stream):
                data, _ = next(stream)
        metrics = jax.eval_shape(evaluate, params, model_state, data)
        _check_metric(who, metrics, "loss", 'Task.evaluate must return "loss"')
        required = f"Task.evaluate must return {task.score!r}, which is Task.score"
        _check_metric(who, metrics, task.score, required)
        for name, value in metrics.items():
            required = f"Task.evaluate must return real scalars, {name!r} among them"
            if not isinstance(value, jax.ShapeDtypeStruct):
                _checks.fail(who, required, str(value))
            if value.shape or not _is_real(value):
                _checks.fail(who, required, _described(value))


def _check_predict(who: str, task: Task, params: Tree, model_state: Tree) -> None:
    if task.predict is None:
        return

    def predict(params: Tree, model_state: Tree, data: Any) -> tuple[Array, Array]:
        result = task.predict(params, model_state, data)
        _check_arrays(who, "Task.predict must return", result)
        if not isinstance(result, tuple | list) or len(result) != 2:
            _checks.fail(who, "Task.predict must return (logits, labels)", _kind(result))
        return tuple(result)

    for data in task.splits.values():
        if is_stream(data):
            continue
        logits, labels = jax.eval_shape(predict, params, model_state, data)
        required = "Task.predict must return logits (n, classes), real floating-point numbers"
        if len(logits.shape) != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
            _checks.fail(who, required, _described(logits))
        required = "Task.predict must return labels (n,), integers, one for each row of logits"
        if labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
            got = f"{_described(labels)} for logits {_described(logits)}"
            _checks.fail(who, required, got)


def _check_metric(who: str, metrics: Mapping[str, Any], name: str, required: str) -> None:
    if name not in metrics:
        close = difflib.get_close_matches(str(name), map(str, metrics))
        got = ", ".join(map(repr, metrics)) or "nothing"
        _checks.fail(who, required, got, f"did you mean {close[0]!r}?" if close else "")


def _check_pair(who: str, required: str, value: Any) -> None:
    if not isinstance(value, tuple | list):
        remedy = "() is the model_state of a model that has none"
        _checks.fail(who, required, _kind(value), remedy)
    if len(value) != 2:
        _checks.fail(who, required, f"{len(value)} values")


def _check_arrays(who: str, required: str, tree: Any) -> None:
    """Require a pytree of arrays, or of objects that JAX accepts as arrays."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        try:
            jax.typeof(leaf)
        except TypeError:
            remedy = "hold other objects in a closure, or register their class as a pytree"
            got = f"{type(leaf).__name__} at {_place(path)}"
            _checks.fail(who, f"{required} a pytree of arrays", got, remedy)


def _is_real(leaf: jax.ShapeDtypeStruct) -> bool:
    real_kinds = (jnp.floating, jnp.integer, jnp.bool_)
    return any(jnp.issubdtype(leaf.dtype, kind) for kind in real_kinds)


def _kind(value: Any) -> str:
    return f"the array {_described(value)}" if isinstance(value, Array) else type(value).__name__


def _described(leaf: jax.ShapeDtypeStruct | Array) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _place(path: Any) -> str:
    return jax.tree_util.keystr(path) or "the root"
