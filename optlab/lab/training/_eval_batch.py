"""The number of examples that are evaluated at once, so that temporary arrays stay small.

The largest array of an evaluation grows with the number of examples. Its size is read from traces
of the evaluation, which compute and compile nothing. XLA may avoid this array, and may need several
of its size at a time, so that the limit is a measure of the memory and no exact bound.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from optlab._types import Tree

LARGEST_ARRAY = 2**25
"""The largest array in the evaluation of one run may take this many bytes (32 MiB)."""

LARGEST_ARRAY_OF_LANES = 2**28
"""The largest array in the evaluation of many runs at once may take this many bytes (256 MiB)."""

Shapes = Tree
"""A pytree of `jax.ShapeDtypeStruct`, each (examples, …)."""


def automatic_batch(
    jaxpr_on: Callable[[Shapes], Any], data: Shapes, runs: int, *, on_host: bool
) -> int:
    """Return the number of examples of `data` to evaluate at once.

    It is all of them if their arrays are small enough, and otherwise a power of two of at least 2:
    single examples would not show whether metrics are means over examples.

    Args:
        jaxpr_on: the shapes of some examples → the jaxpr of their evaluation, in all runs.
        data: the shapes of a whole split of n examples.
        runs: runs that are evaluated together, ≥ 1.
        on_host: whether the examples are moved to the device for each evaluation, so that they are
            temporary arrays as well.
    """
    (num_examples,) = {leaf.shape[0] for leaf in jax.tree.leaves(data)}
    limit = min(LARGEST_ARRAY * runs, LARGEST_ARRAY_OF_LANES)

    def sizes(count: int) -> np.ndarray:
        examples = with_examples(data, count)
        inputs = jax.tree.leaves(examples) if on_host else []
        of_inputs = [_bytes(leaf) for leaf in inputs]
        return np.array([*of_inputs, *_array_sizes(jaxpr_on(examples).jaxpr)], float)

    of_all = sizes(num_examples)
    if num_examples <= 2 or of_all.max(initial=0) <= limit:
        return num_examples
    of_two = sizes(2)
    if of_all.shape == of_two.shape:  # arrays that do not grow, such as converted weights, vanish
        per_example = (of_all - of_two).max() / (num_examples - 2)
    else:
        per_example = of_all.max() / num_examples
    if per_example * num_examples <= limit:
        return num_examples
    batch = 2
    while 2 * batch * per_example <= limit:
        batch *= 2
    return batch


def with_examples(data: Shapes, count: int) -> Shapes:
    """Return the shapes of another number of examples."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), data)


def _array_sizes(jaxpr: Any) -> Iterator[int]:
    """Yield the bytes of each array that a jaxpr computes, inner jaxprs included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield _bytes(variable.aval)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _array_sizes(getattr(inner, "jaxpr", inner))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def _bytes(array: Any) -> int:
    """Return the size of an array or an abstract one; 0 for what is no array, such as a token."""
    if not hasattr(array, "shape"):
        return 0
    return int(np.prod(array.shape, dtype=float)) * array.dtype.itemsize
