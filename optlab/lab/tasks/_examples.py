"""Examples to learn from, as arrays or as a loader: inputs and labels, checked and named."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any, NamedTuple

import jax
import numpy as np

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab.data import is_stream, read_once
from optlab.lab.tasks._task import Batch, shuffled_batches

Field = str | int
"""The name of a field of a batch, or its place in a tuple."""


class Fields(NamedTuple):
    """Where a batch holds its inputs and its labels.

    Attributes:
        who: the public name that errors begin with.
        task_name: the name of the task, for errors.
        inputs: the field with the inputs.
        labels: the field with the labels.
    """

    who: str
    task_name: str
    inputs: Field
    labels: Field

    def of(self, batch: Batch, what: str = "a batch") -> tuple[Tree, Array]:
        """Return inputs and labels of a batch; `what` names it in errors."""
        return self._field(batch, "inputs", what), self._field(batch, "labels", what)

    def _field(self, batch: Batch, role: str, what: str) -> Any:
        field = getattr(self, role)
        # A place in an array would be a row of it.
        if isinstance(batch, Mapping | tuple | list) or isinstance(field, str):
            by_key = isinstance(batch, Mapping) or isinstance(field, int)
            try:
                return batch[field] if by_key else getattr(batch, field)
            except (KeyError, IndexError, AttributeError):
                pass
        names = ", ".join(map(repr, _names(batch)))
        pairs = isinstance(field, int)
        _checks.fail(
            self.who,
            f"{what} of task {self.task_name!r} must "
            + ("be a tuple (inputs, labels)" if pairs else f"have a field {field!r}"),
            f"the fields {names}" if names else described(batch),
            f"name its fields: {role}={names.split(', ')[0]}, say" if names else "",
        )


def checked_fields(who: str, task_name: str, inputs: Any, labels: Any) -> Fields:
    """Require two different fields, both names or both places."""
    for role, field in (("inputs", inputs), ("labels", labels)):
        if isinstance(field, bool) or not isinstance(field, str | int):
            required = f"{role} must be the name of a field of a batch, or its place in a tuple"
            remedy = f"pass the data as train=…, and {role}='image', say"
            _checks.fail(who, required, f"{role}={described(field)}", remedy)
    if isinstance(inputs, str) != isinstance(labels, str) or inputs == labels:
        required = "inputs and labels must be two names, or two places in a tuple"
        _checks.fail(who, required, f"inputs={inputs!r}, labels={labels!r}")
    return Fields(who, task_name, inputs, labels)


def checked_splits(fields: Fields, train: Any, validation: Any, test: Any) -> dict[str, Any]:
    """Return the splits by name: loaders as they are, arrays as `fields` can read them."""
    splits = {
        "train": _checked(fields, "train", train, "it has the examples to learn from"),
        "validation": _checked(fields, "validation", validation, "runs are judged by it"),
    }
    if test is not None:
        splits["test"] = _checked(fields, "test", test)
    return splits


def data_of_task(
    who: str, splits: dict[str, Any], batch_size: int | None, *, whole_train: bool
) -> dict[str, Any]:
    """Return the fields of a `Task` that hold its data: `batch` or `loader`, and `splits`.

    Args:
        who: the public name that errors begin with.
        splits: what `checked_splits` returns.
        batch_size: examples per batch of arrays, in [1, n]; None for a loader.
        whole_train: whether all training examples are evaluated, and not only as many as there are
            in the split "validation".
    """
    train, validation = splits["train"], splits["validation"]
    rest = {name: data for name, data in splits.items() if name != "train"}
    if is_stream(train):
        if batch_size is not None:
            required = "batch_size must be left out where train is a loader"
            _checks.fail(who, required, f"batch_size={batch_size!r}", "the loader makes batches")
        return {"loader": train, "splits": rest}
    if batch_size is None:
        required = "batch_size must be an integer >= 1 where train holds arrays"
        _checks.fail(who, required, "None", "pass batch_size=32, say")
    batch = shuffled_batches(train, batch_size)
    if is_stream(validation):
        return {"batch": batch, "splits": rest}
    # A slice, because rows by their numbers would be a copy, also of what is on disk.
    step = 1 if whole_train else -(-_count(train) // _count(validation))
    part = jax.tree.map(lambda array: array[::step], train) if step > 1 else train
    return {"batch": batch, "splits": {"train": part, **rest}}


def first_inputs(fields: Fields, data: Any) -> Tree:
    """Return the shapes and types of the inputs of one example, each (1, …).

    Args:
        fields: where batches and arrays hold inputs and labels.
        data: the split "validation", of which the first batch is read if it is a loader.
    """
    if is_stream(data):
        read = read_once(fields.who, fields.task_name, "validation", data)
        with closing(read):
            data = next(read)[0]
    inputs, _ = fields.of(data)

    def one(array: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return jax.ShapeDtypeStruct((1, *array.shape[1:]), dtype)

    return jax.tree.map(one, inputs)


def _checked(fields: Fields, name: str, data: Any, purpose: str = "") -> Any:
    """Return a loader as it is, and arrays as a tuple or dictionary that `fields` can read."""
    required = f"{name} must be arrays (inputs, labels) or a loader"
    if data is None:
        _checks.fail(fields.who, required, "None", purpose)
    if is_stream(data):
        return data
    inputs, labels = fields.of(data, name)

    def array(leaf: Any) -> Any:
        return _array(fields.who, required, leaf, data)

    pair = jax.tree.map(array, inputs), array(labels)
    lengths = {len(leaf) if leaf.ndim else None for leaf in jax.tree.leaves(pair)}
    if len(lengths) != 1 or not lengths - {0, None}:
        shapes = " and ".join(map(described, pair))
        required = f"{name} must hold as many labels as inputs, and at least one"
        _checks.fail(fields.who, required, shapes)
    places = fields.inputs, fields.labels
    return pair if places == (0, 1) else dict(zip(places, pair, strict=True))


def _array(who: str, required: str, leaf: Any, data: Any) -> Any:
    """Return an array of NumPy or JAX as it is, and a tensor as an array that shares its memory."""
    if hasattr(leaf, "__array__") and not isinstance(leaf, np.ndarray | np.generic | jax.Array):
        leaf = np.asarray(leaf)
    if isinstance(leaf, np.ndarray | jax.Array) and leaf.dtype != object:
        return leaf
    remedy = "make arrays of them with np.asarray; pass a list of batches as lambda: iter(batches)"
    _checks.fail(who, required, f"a {type(data).__name__} with {described(leaf)}", remedy)


def _count(data: Tree) -> int:
    return len(jax.tree.leaves(data)[0])


def _names(batch: Any) -> list[str]:
    """Return the names of the fields of a batch; none if it has no names."""
    if isinstance(batch, Mapping):
        return list(batch)
    return list(getattr(batch, "_fields", getattr(batch, "__dataclass_fields__", ())))


def described(value: Any) -> str:
    """Return what a value is: of an array its type and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
