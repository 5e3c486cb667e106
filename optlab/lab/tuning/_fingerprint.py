"""A task as a short text that changes with its functions and its data.

What an earlier call found out about a task says nothing of one whose loss was mended since. The
functions are known by what they compute, as JAX traces it, and the data by their bytes. Data of a
loader are not read.
"""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.lab.data import Batches, is_stream
from optlab.lab.tasks._check_task import batch_of
from optlab.lab.tasks._task import Task
from optlab.lab.training._loop import without_keys

_ADDRESS = re.compile(r"0x[0-9a-f]+")


def fingerprint(task: Task, source: Batches | None) -> str:
    """Return the text, 16 hexadecimal digits.

    Args:
        task: a task that `check_task` accepts.
        source: its loader, if it has one.
    """
    digest = hashlib.sha256()

    def add(function: Any, *arguments: Any) -> None:
        # A function of its own, because JAX keeps what it traced of a function.
        traced = jax.make_jaxpr(lambda *values: function(*values))(*arguments)
        digest.update(_ADDRESS.sub("", str(traced.jaxpr)).encode())
        _add_arrays(digest, traced.consts)

    key, step = jax.random.key(0), jnp.int32(0)
    params, model_state = jax.eval_shape(task.init, key)
    add(task.init, key)
    add(jax.grad(task.loss, has_aux=True), params, model_state, batch_of(task, source), key)
    if source is None:
        add(task.batch, key, step)
    for name, data in sorted((task.splits or {"": None}).items()):
        if not is_stream(data):
            add(task.evaluate, params, model_state, jax.tree.map(_shape, data))
            digest.update(name.encode())
            _add_arrays(digest, data)
    return digest.hexdigest()[:16]


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))


def _add_arrays(digest: Any, tree: Any) -> None:
    for leaf in jax.tree.leaves(without_keys(jax.tree.map(jnp.asarray, tree))):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
