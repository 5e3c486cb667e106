"""What tells one loader from another: the shapes of its batches, and what it reads.

A loader of PyTorch has its data set, of which three items and all arrays among its attributes are
compared, and the seed of its generator. Of other loaders the first batch is compared.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from optlab import _checks
from optlab._facts import described
from optlab._types import Tree
from optlab.lab.data._arrays import layout_of

FIRST_BATCH = "loader.first_batch"
"""The fact that differs in each process where a loader shuffles without a seed."""


def contents_of(loader: Any, example: Tree) -> dict[str, Any]:
    """Return what a loader reads as facts, name → JSON.

    Args:
        loader: the loader.
        example: its first batch.
    """
    facts = {"loader.batch": described(layout_of(example))}
    data = getattr(loader, "dataset", None)
    if data is None or not hasattr(loader, "batch_sampler"):
        return facts | {FIRST_BATCH: text_of(example)}
    with _global_generators_kept():
        items = list(_items(data))
    facts["loader.dataset"] = described([type(data).__name__, *_attributes(data), *items])
    sampler = getattr(loader, "sampler", None)
    facts["loader.sampler"] = type(sampler).__name__
    generators = (getattr(owner, "generator", None) for owner in (loader, sampler))
    seeds = [generator.initial_seed() for generator in generators if generator is not None]
    return facts | ({"loader.seed": seeds[0]} if seeds else {})


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    """Set the random generators that data sets augment with back to where they were."""
    python, numpy, torch = random.getstate(), np.random.get_state(), sys.modules.get("torch")
    state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if state is not None:
            torch.set_rng_state(state)


def _attributes(data: Any) -> Iterator[Any]:
    """Yield the attributes of a data set that are numbers, texts or arrays, by name."""
    for name, value in sorted(getattr(data, "__dict__", {}).items()):
        leaves = [_plain(leaf) for leaf in jax.tree.leaves(value)]
        if leaves and all(isinstance(leaf, int | float | str | np.ndarray) for leaf in leaves):
            yield [name, leaves]


def _items(data: Any) -> Iterator[str]:
    """Yield texts of the first, the middle and the last item, where they are the same twice."""
    try:
        length = len(data)
        for index in sorted({0, length // 2, length - 1}):
            one, two = (text_of(jax.tree.map(_plain, data[index])) for _ in range(2))
            yield one if one == two else ""
    except Exception:  # the data set's own code may not take an index
        return


def _plain(leaf: Any) -> Any:
    """Return a NumPy array for what converts to one, such as a tensor."""
    is_tensor = hasattr(leaf, "__array__") and hasattr(leaf, "shape")
    try:
        return np.asarray(leaf) if is_tensor else leaf
    except Exception:  # of a type that NumPy has not, or on a device
        return str(leaf)


def text_of(batch: Tree) -> str:
    """Return a text that two batches share only if they are equal."""
    leaves = jax.tree.leaves_with_path(batch)
    return str(described({_checks.path_text(path): leaf for path, leaf in leaves}))
