"""Where a run starts: at what `Task.init` makes, or at parameters that it is given."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab.tasks._task import Task


def checked_start(
    who: str, task: Task, params: Tree | None, model_state: Tree | None
) -> tuple[Tree, Tree]:
    """Require parameters and a model's state that are like those of `Task.init`.

    Args:
        who: the public name that errors begin with.
        task: the problem.
        params: the parameters to start from; None for those of `Task.init`.
        model_state: the model's state to start from, likewise.

    Returns:
        Both in the containers of `Task.init`, or None where they are None. What is on the host
        stays there, so that the run does not hold it on the device a second time.

    Raises:
        ValueError: an array is missing, or is there without need, or has another shape or type.
    """
    if params is None and model_state is None:
        return None, None
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    given = {"params": params, "model_state": model_state}
    return tuple(
        own if own is None else _like(who, name, own, like)
        for (name, own), like in zip(given.items(), shapes, strict=True)
    )


def _like(who: str, name: str, own: Tree, like: Tree) -> Tree:
    required = f"{name} must be like those of Task.init"
    if name == "model_state":
        required = f"{name} must be like that of Task.init"
    arrays, shapes = (
        {_checks.path_text(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (own, like)
    )
    differences = [f"nothing at {path}" for path in shapes if path not in arrays]
    differences += [f"something new at {path}" for path in arrays if path not in shapes]
    if differences:
        more = len(differences) - 3
        end = f" and {more} more differences" if more > 0 else ""
        remedy = "pass a tree of the same names, without what is not trained by gradients"
        _checks.fail(who, required, ", ".join(differences[:3]) + end, remedy)
    return jax.tree.unflatten(
        jax.tree.structure(like),
        [_array_like(who, required, path, arrays[path], leaf) for path, leaf in shapes.items()],
    )


def _array_like(
    who: str, required: str, path: str, own: Any, like: jax.ShapeDtypeStruct
) -> Array | np.ndarray:
    try:
        jax.typeof(own)
    except TypeError:
        _checks.fail(who, required, f"{type(own).__name__} at {path}", "pass trees of arrays")
    array = own if isinstance(own, jax.Array) else np.asarray(own, jnp.result_type(own))
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        got = f"{array.dtype}{list(array.shape)} for {like.dtype}{list(like.shape)} at {path}"
        same_shape = array.shape == like.shape
        remedy = f"convert it with .astype({str(like.dtype)!r})" if same_shape else ""
        _checks.fail(who, required, got, remedy)
    return array


def starting_from(task: Task, start: tuple[Tree, Tree] | tuple[()]) -> Task:
    """Return a task whose `init` returns these parameters and this state where they are not None.

    Args:
        task: the problem.
        start: parameters and state; () for those of the task itself.
    """
    if all(tree is None for tree in start):
        return task

    def init(key: Array) -> tuple[Tree, Tree]:
        fresh = task.init(key)
        return tuple(new if own is None else own for own, new in zip(start, fresh, strict=True))

    return replace(task, init=init)
