"""Batches of any library as trees of arrays with the types that JAX computes with."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Tree
from optlab.lab.data._errors import DataError

Fail = Callable[[str, str, str], NoReturn]
"""Raises the error of what is required, what came, and what to do."""

NUMBERS = bool | int | float | complex | np.number | np.bool_

SHORT_BATCH = (
    "leave out the short last batch of a pass: drop_last=True (PyTorch), drop_remainder=True "
    "(Grain, tf.data), drop_last_batch=True (Hugging Face)"
)


def to_arrays(batch: Any, number: int, fail: Fail) -> Tree:
    """Return a batch as a tree of NumPy arrays in memory of their own.

    The arrays are copies, because a loader may write its next batch into the same memory while the
    device still reads this one: on a CPU, `jax.device_put` does not copy. JAX's arrays, which
    nobody can write to, stay as they are.

    Args:
        batch: a pytree of NumPy arrays, PyTorch or TensorFlow tensors, JAX arrays and numbers. A
            list of numbers, nested or not, is an array. Other mappings, and dataclasses that are
            not registered as pytrees, become dictionaries of their fields.
        number: the number of the batch, for errors.
        fail: raises the error of a leaf that is no array.
    """

    def convert(path: Any, node: Any) -> Tree:
        # The fields of what JAX takes for a leaf are trees of their own.
        fields = _fields(node)
        if fields is not None:
            return _map_with_path(lambda below, leaf: convert((*path, *below), leaf), fields)
        if isinstance(node, jax.Array):
            return node
        try:
            array = _to_numpy(node)
            # int64 and float64 are 32 bits wide in JAX unless x64 is enabled.
            dtype = jax.dtypes.canonicalize_dtype(array.dtype.newbyteorder("="))
            if not hasattr(jnp, dtype.name):  # text, objects, dates
                raise TypeError(f"of type {dtype}")
        except Exception as error:  # whatever the conversion of a stranger's object raises
            what = f"{type(node).__name__} at {_checks.path_text(path)} of batch {number}"
            reason = str(error).partition("\n")[0]
            fail(
                "must yield trees of arrays",
                f"{what}{f' ({reason})' if reason else ''}",
                "leave the field out of the batches, or make an array of numbers of it",
            )
        return np.array(array, dtype)

    try:
        return _map_with_path(convert, batch)
    except DataError:
        raise
    except ValueError as error:  # JAX sorts the keys of dictionaries
        reason = str(error).partition("\n")[0]
        fail("must yield pytrees", f"batch {number} ({reason})", "give dictionaries keys of text")


def _map_with_path(function: Callable[[Any, Any], Tree], tree: Any) -> Tree:
    return jax.tree.map_with_path(function, tree, is_leaf=_is_list_of_numbers)


def _is_list_of_numbers(node: Any) -> bool:
    """Say whether this is a list, of lists, …, of numbers, judged by the first number."""
    if not isinstance(node, list):
        return False
    while isinstance(node, list) and node:
        node = node[0]
    return isinstance(node, NUMBERS)


def _fields(node: Any) -> dict[str, Any] | None:
    """Return the fields of a mapping or dataclass that JAX takes for a leaf; None of others."""
    if isinstance(node, Mapping):
        return dict(node)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    return None


def _to_numpy(leaf: Any) -> np.ndarray:
    """Return an array, tensor, number or list of numbers as an array, without a copy if it can."""
    torch = sys.modules.get("torch")  # a tensor cannot come before its library is imported
    if torch is not None and isinstance(leaf, torch.Tensor):
        if leaf.dtype == torch.bfloat16:  # NumPy has no such type of its own
            return leaf.view(torch.int16).numpy(force=True).view(jnp.bfloat16)
        return leaf.numpy(force=True)
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError("its mask would be lost")
    if not isinstance(leaf, NUMBERS | list) and not hasattr(leaf, "__array__"):
        raise TypeError
    return np.asarray(leaf)


def layout_of(tree: Tree) -> Tree:
    """Return the shapes and types of a tree of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def check_layout(
    layout: Tree, tree: Tree, number: int, fail: Fail, *, shorter: bool = False
) -> None:
    """Require the structure, shapes and types of the first batch.

    Args:
        layout: what `layout_of` returns for the first batch.
        tree: another batch, as `to_arrays` returns it.
        number: the number of this batch.
        fail: raises the error.
        shorter: whether leading axes may be shorter than in the first batch.
    """
    required = "must yield batches like its first"
    if jax.tree.structure(layout) != jax.tree.structure(tree):
        got = _other_structure(layout, tree)
        fail(required, f"{got} of batch {number}", "yield the same fields in every batch")
    leaves = jax.tree.leaves(tree)
    for (path, first), leaf in zip(jax.tree.leaves_with_path(layout), leaves, strict=True):
        if leaf.dtype == first.dtype and leaf.shape == first.shape:
            continue
        is_short = (
            leaf.dtype == first.dtype
            and leaf.ndim == len(first.shape) > 0
            and leaf.shape[1:] == first.shape[1:]
            and len(leaf) < first.shape[0]
        )
        if is_short and shorter:
            continue
        got = f"{_described(leaf)} for {_described(first)} at {_checks.path_text(path)}"
        remedy = SHORT_BATCH if is_short else "give all batches the same shapes and types"
        fail(required, f"{got} of batch {number}", remedy)


def _other_structure(layout: Tree, tree: Tree) -> str:
    expected, came = (
        {_checks.path_text(path): None for path, _ in jax.tree.leaves_with_path(one)}
        for one in (layout, tree)
    )
    differences = [f"nothing at {path}" for path in expected if path not in came]
    differences += [f"something new at {path}" for path in came if path not in expected]
    if differences:
        return ", ".join(differences[:3])
    return f"{jax.tree.structure(tree)} for {jax.tree.structure(layout)}"


def _described(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
