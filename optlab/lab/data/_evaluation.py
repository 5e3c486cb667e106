"""One pass over a loader, for exact means over a split that does not fit into memory."""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from optlab import _checks
from optlab._types import Tree
from optlab.lab.data._arrays import check_layout, layout_of, to_arrays
from optlab.lab.data._errors import Source
from optlab.lab.data._passes import AGAIN, Passes, check_loader, is_iterator

MAX_BATCHES = 100_000
"""Batches of an evaluation after which its loader is taken for endless."""

_ENDLESS = 2**40
"""No data set has so many examples: Grain's endless ones have a length close to `sys.maxsize`."""


def read_once(
    who: str,
    task_name: str,
    split: str,
    loader: Any,
    *,
    timeout: float = 300.0,
    max_batches: int = MAX_BATCHES,
) -> Iterator[tuple[Tree, int]]:
    """Yield each batch of one pass and its number of examples, read on a thread ahead.

    All batches have the layout of the first one, but may have fewer examples: the last one usually
    has, and where several workers read, each of them may end with such a batch. A batch without
    examples is left out.

    Args:
        who: the public name that errors begin with.
        task_name: the name of the task, for errors.
        split: the name of the split, for errors.
        loader: as `Batches` takes it, but no iterator: the next evaluation must read the same
            batches.
        timeout: seconds to wait for a batch, > 0.
        max_batches: batches after which the loader is taken for endless, ≥ 1.

    Returns:
        An iterator of (batch, examples): a tree of NumPy arrays in memory of their own (JAX's
        arrays stay what they are), and the length of their leading axis, ≥ 1.

    Raises:
        DataError: the loader cannot be iterated over again, raises, blocks, is endless, has no
            example, or yields a batch that is not made of arrays with the same leading axis, or
            not like the first one.
        ValueError: `timeout` or `max_batches` is out of range.

    Example:
        >>> import numpy as np
        >>> rows = [np.ones((2, 3)), np.ones((2, 3)), np.ones((1, 3))]
        >>> [examples for batch, examples in read_once("train", "rows", "validation", rows)]
        [2, 2, 1]
    """
    source = Source(who, f"the loader of split {split!r} of task {task_name!r}")
    timeout = float(_checks.check_number(who, "timeout", timeout, _checks.POSITIVE))
    check_loader(source, loader)
    _checks.check_integer(who, "max_batches", max_batches, 1)
    if is_iterator(loader):
        got = f"an iterator ({type(loader).__name__})"
        source.fail("must be something that each evaluation can read anew", got, AGAIN)
    _refuse_endless(source, loader, max_batches)
    return _taken(source, loader, timeout, max_batches)


def _taken(
    source: Source, loader: Any, timeout: float, max_batches: int
) -> Iterator[tuple[Tree, int]]:
    passes = Passes(source, loader, numbered=False)
    with passes.ahead(lambda: _one_pass(source, passes, max_batches), timeout) as items:
        yield from items


def _one_pass(source: Source, passes: Passes, max_batches: int) -> Iterator[tuple[Tree, int]]:
    layout = None
    total = 0
    while True:
        number = passes.read
        try:
            batch = passes.next_of_pass()
        except StopIteration:
            break
        if number >= max_batches:
            _fail_endless(source, f"more than {max_batches:,} batches")
        batch = to_arrays(batch, number, source.fail)
        if layout is None:
            layout = layout_of(batch)
        check_layout(layout, batch, number, source.fail, shorter=True)
        examples = _examples(source, batch, number)
        total += examples
        if examples:
            yield batch, examples
    if not total:
        passes.check_not_empty()
        source.fail("must yield examples", f"none in {passes.read} batches")


def _examples(source: Source, batch: Tree, number: int) -> int:
    """Return the length of the leading axis that all arrays of a batch have."""
    required = "must yield batches whose arrays have the examples along their first axis"
    lengths = {}
    for path, leaf in jax.tree.leaves_with_path(batch):
        if not leaf.ndim:
            got = f"a number at {_checks.path_text(path)} of batch {number}"
            source.fail(required, got, "batch the data set, and make an array of such a field")
        lengths.setdefault(len(leaf), _checks.path_text(path))
    if len(lengths) != 1:
        got = ", ".join(f"{length} at {path}" for length, path in lengths.items()) or "no array"
        source.fail(required, f"{got} in batch {number}", "give all its arrays the same length")
    return next(iter(lengths))


def _refuse_endless(source: Source, loader: Any, max_batches: int) -> None:
    """Refuse a loader that says that it has no end, or too many batches."""
    length = _length(loader)
    if max_batches < length < _ENDLESS:
        _fail_endless(source, f"{length:,} batches")
    # `tf.data` reports an endless data set as −1. Grain's data sets know what they are made from,
    # and its sampler goes on for ever unless it is told a number of epochs.
    cardinality = getattr(loader, "cardinality", None)
    sampler = getattr(loader, "_sampler", None)
    if (
        any(_length(part) >= _ENDLESS for part in _with_parents(loader))
        or (callable(cardinality) and int(cardinality()) == -1)
        or getattr(sampler, "_num_epochs", 1) is None
    ):
        _fail_endless(source, "one that repeats for ever")


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except Exception:  # many loaders have a length that only raises
        return 0


def _with_parents(loader: Any) -> Iterator[Any]:
    """Yield a loader and, of a Grain data set, those that it is made from."""
    yield loader
    parents = getattr(loader, "parents", ())
    for parent in parents if isinstance(parents, Sequence) else ():
        yield from _with_parents(parent)


def _fail_endless(source: Source, got: str) -> NoReturn:
    remedy = "leave out .repeat(), or give it or the sampler num_epochs=1"
    source.fail("must end, to evaluate on all of it", got, remedy)


def is_stream(data: Any) -> bool:
    """Return whether the data of a split is read batch by batch: no array, nor a tree of them."""
    if callable(data) or isinstance(data, Iterator):
        return True
    if jax.tree.structure(data) != jax.tree.structure(0):
        return False
    try:
        jax.typeof(data)
    except TypeError:
        return not isinstance(data, np.ndarray | str)
    return False
