"""The metrics of a split, computed in batches of examples, as if it were evaluated at once.

A split that is small enough is one call of `Task.evaluate`. Of a larger one, batches of B examples
are evaluated one after another, and their metrics are averaged with the examples as weights. Two
programs are compiled, whatever the number of examples: one evaluates B examples together, the other
each of them on its own. The second serves a last batch of fewer than B examples, filled up with
examples whose results are not used, and so a remainder of any size.

Only means over examples can be averaged in this way. Others, such as an F1 score or the exponential
of a mean, are refused: a batch evaluated together must have the mean of its examples.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import chain, islice
from mmap import mmap
from typing import Any
from weakref import WeakKeyDictionary, ref

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.multihost_utils import process_allgather

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab.data import is_stream
from optlab.lab.tasks._task import Task
from optlab.lab.training._eval_batch import automatic_batch, with_examples

RESIDENT_SHARE = 0.25
"""Splits stay on the device while all of them take at most this share of its memory."""

IN_FLIGHT = 2
"""The number of batches that are computed while the results of earlier ones are added."""

CHECKED_EVALUATIONS = 2
"""The number of evaluations in which metrics are checked to be means over examples.

At the first one, all examples may have the same loss, as with a head that starts at zero.
"""

TOLERANCE = 0.01
"""The difference between a metric of a batch and the mean over its examples that may be rounding.

It is relative to the root mean square of the examples' values. Of a metric that is 0 or 1 for each
example, such as accuracy, one more example may differ, because rounding decides ties.
"""

ReadOnce = Callable[[str], Iterator[tuple[Tree, int]]]
"""A function from the name of a split to its batches and their numbers of examples, read once."""


class Evaluator:
    """Evaluates the splits of a task in batches that fit into memory.

    Arrays are put on the default device at their first use and stay there, except splits that are
    memory-mapped (np.memmap) or too large, of which each batch is moved on its own. Batches of a
    stream are evaluated as they come; those with fewer examples than the first are filled up.

    A split is evaluated at once if its arrays have no common first axis, if the task has no data,
    or if it has no more examples than `Task.eval_batch`. Batches of one example each cannot show
    whether metrics are means, and are not checked.

    Args:
        who: the public name that errors begin with.
        task: the problem. Its `eval_batch` is the number of examples evaluated at once, ≥ 1;
            math.inf for each split as a whole; None for a number chosen so that arrays stay small.
        over: None for one run. To evaluate runs in lanes, a function from one lane's values, () and
            traced, to its task; parameters and state are then (lanes, seeds, …).
        batches: the batches of splits that are streams; needed only if there are any.
        place: moves the examples of a batch, or of a split that is evaluated at once, to the
            devices where they are needed, such as those of a mesh.

    Example:
        >>> data = np.arange(10, dtype=np.float32)
        >>> mean = Task(
        ...     name="mean",
        ...     init=lambda key: (jnp.array(0.0), ()),
        ...     loss=lambda x, state, batch, key: (x, state),
        ...     batch=lambda key, step: (),
        ...     evaluate=lambda x, state, data: {"loss": jnp.mean((data - x) ** 2)},
        ...     splits={"validation": data},
        ... )
        >>> evaluator = Evaluator("train", mean)
        >>> evaluator(jnp.array(0.0), (), "validation")["loss"].tolist()
        28.5
    """

    def __init__(
        self,
        who: str,
        task: Task,
        *,
        over: Callable[[Tree], Task] | None = None,
        batches: ReadOnce | None = None,
        place: Callable[[Tree], Tree] = jax.device_put,
    ):
        self._who, self._splits, self._read_once, self._place = who, task.splits, batches, place
        self._eval_batch = _checked_batch(who, task.eval_batch)
        self._in_lanes = over is not None
        if over is None:
            # No wrapper, so that runs of the same task share a compilation.
            self._together = jax.jit(task.evaluate)
            self._singly = _singly_program(task.evaluate)
        else:
            self._together = jax.jit(_over_lanes(over, lambda evaluate, *args: evaluate(*args)))
            self._singly = jax.jit(_over_lanes(over, _evaluate_singly))
        self._streams = {name for name, data in task.splits.items() if is_stream(data)}
        arrays = {name: data for name, data in task.splits.items() if name not in self._streams}
        self._counts = {name: _common_length(data) for name, data in arrays.items()}
        self._on_host = _left_on_host(arrays)
        self._resident: dict[str, Tree] = {}
        self._sizes: dict[tuple[str, int], int] = {}
        self._checks_left = CHECKED_EVALUATIONS

    def is_stream(self, split: str) -> bool:
        """Return whether a split is read batch by batch."""
        return split in self._streams

    def examples(self, split: str | None) -> int | None:
        """Return the number of examples of a split.

        None if it is unknown: of a stream that was not yet read to its end, of arrays without a
        common first axis, and if there is no data.
        """
        return self._counts.get(split)

    def __call__(
        self, params: Tree, model_state: Tree, split: str | None, values: Tree = ()
    ) -> dict[str, np.ndarray]:
        """Return the metrics of a split, each () float, or (lanes, seeds) float in lanes.

        Args:
            params: of one run; in lanes arrays (lanes, seeds, …).
            model_state: as `params`.
            split: the name of a split; None if the task has no data.
            values: in lanes the values of each lane, arrays (lanes, …).

        Raises:
            ValueError: a split is evaluated in batches, and a metric is no mean over examples, or
                `Task.evaluate` fails on a batch; or a stream has no examples.
        """
        runs = ((params, values) if self._in_lanes else params), model_state
        if split in self._streams:
            with closing(self._read(split)) as parts:  # its thread ends here, also at an error
                return self._averaged(runs, split, parts)
        size = self._size(runs, split)
        if size is None:
            data = self._place(self._data(split))
            return _as_floats(_fetched(self._together(*runs, data)))
        return self._averaged(runs, split, self._parts(split, size))

    def lower(
        self, params: Tree, model_state: Tree, split: str | None, values: Tree = ()
    ) -> list[jax.stages.Lowered]:
        """Return the programs that evaluate a split, to be compiled before they are needed.

        A call finds what was compiled, and `memory_analysis` of it says what the call will need.

        Args:
            params: as in a call, but shapes suffice.
            model_state: as in a call, but shapes suffice.
            split: as in a call. There are no programs for a stream before its first batch is read.
            values: as in a call, but shapes suffice.
        """
        if split in self._streams:
            return []
        runs = ((params, values) if self._in_lanes else params), model_state
        size, data = self._size(runs, split), _shapes(self._splits.get(split))
        if size is None:
            return [self._together.trace(*runs, data).lower()]
        data = with_examples(data, size)
        return [self._traced(p, runs, split, data).lower() for p in (self._together, self._singly)]

    def _size(self, runs: tuple[Tree, Tree], split: str | None) -> int | None:
        """Return the number of examples to evaluate at once; None for the whole split."""
        count = self._counts.get(split)
        if count is None:
            return None
        if self._eval_batch is not None:
            return int(self._eval_batch) if self._eval_batch < count else None
        num_runs = math.prod(jax.tree.leaves(runs)[0].shape[:2]) if self._in_lanes else 1
        if (split, num_runs) not in self._sizes:

            def jaxpr_on(data: Tree) -> Any:
                if len(jax.tree.leaves(data)[0]) == count:
                    return self._together.trace(*runs, data).jaxpr
                return self._traced(self._together, runs, split, data).jaxpr

            self._sizes[split, num_runs] = automatic_batch(
                jaxpr_on,
                _shapes(self._splits[split]),
                num_runs,
                # One number for all splits, so that they share the programs.
                on_host=any(self._on_host.values()),
            )
        size = self._sizes[split, num_runs]
        return size if size < count else None

    def _data(self, split: str | None) -> Tree:
        """Return the data of a split, where it is to stay."""
        if split is None or self._on_host[split]:
            return self._splits.get(split)
        if split not in self._resident:
            self._resident[split] = jax.device_put(self._splits[split])
        return self._resident[split]

    def _parts(self, split: str, size: int) -> Iterator[tuple[Tree, int]]:
        """Yield batches of `size` examples of arrays; only the last few of each count.

        The last batch begins before the end of the one before it.
        """
        data, count = self._data(split), self._counts[split]
        for start in range(0, count, size):
            first = min(start, count - size)
            if self._on_host[split]:
                rows = _taken(data, slice(first, first + size))
            else:
                rows = _rows(data, first, size)
            yield self._place(rows), min(size, count - start)

    def _read(self, split: str) -> Iterator[tuple[Tree, int]]:
        """Yield the batches of a stream as `_parts` does, each as large as the first of them."""
        if self._read_once is None:
            kind = type(self._splits[split]).__name__
            _checks.fail(self._who, f"split {split!r} must be a pytree of arrays", kind)
        size = total = 0
        for batch, count in self._read_once(split):
            size = size or count
            if _common_length(batch) != count:
                required = f"the arrays of a batch of split {split!r} must share their first axis"
                _checks.fail(self._who, required, str(jax.tree.map(np.shape, batch)))
            for start in range(0, count, max(size, 1)):
                stop = min(start + size, count)
                # A copy, because a loader may use its memory again for the next batch.
                fill = np.full(size - (stop - start), start)
                rows = np.concatenate([fill, np.arange(start, stop)])
                yield self._place(_taken(batch, rows)), stop - start
            total += count
        if not total:
            _checks.fail(self._who, f"split {split!r} must have at least one example", "none")
        self._counts[split] = total

    def _averaged(
        self, runs: tuple[Tree, Tree], split: str, parts: Iterator[tuple[Tree, int]]
    ) -> dict[str, np.ndarray]:
        """Return the means over the examples of all parts that count."""
        totals: dict[str, np.ndarray] = {}
        examples = 0
        pending: deque[tuple[Mapping[str, Array], int, bool]] = deque()

        def add() -> None:
            metrics, count, is_full = pending.popleft()
            for name, value in _fetched(metrics).items():
                value = np.asarray(value, np.float64)
                with np.errstate(invalid="ignore"):  # ∞ − ∞
                    total = value * count if is_full else value[..., -count:].sum(-1)
                    totals[name] = totals.get(name, 0) + total

        head = list(islice(parts, 2))
        if len(head) == 2 and self._checks_left:
            self._check_means(runs, split, *head[0])
            self._checks_left -= 1
        size = head[0][1]
        for rows, count in chain(head, parts):
            is_full = count == size
            program = self._together if is_full else self._singly
            pending.append((program(*runs, rows), count, is_full))
            examples += count
            if len(pending) > IN_FLIGHT:
                add()
        while pending:
            add()
        return _as_floats({name: total / examples for name, total in totals.items()})

    def _check_means(self, runs: tuple[Tree, Tree], split: str, rows: Tree, size: int) -> None:
        """Require that the metrics of a batch are the means of those of its examples."""
        data = _shapes(rows)
        self._traced(self._together, runs, split, data)
        self._traced(self._singly, runs, split, data)
        if size == 1:
            return
        batch, examples = map(_fetched, (self._together(*runs, rows), self._singly(*runs, rows)))
        for name, value in batch.items():
            value, values = np.float64(value), np.float64(examples[name])
            # Without a finite number there is nothing to compare, as in a run that diverged.
            with np.errstate(invalid="ignore", over="ignore"):
                mean = values.mean(-1)
                wrong = np.isfinite(value) & ~(np.abs(value - mean) <= _tolerance(values))
            if wrong.any():
                _checks.fail(
                    self._who,
                    f"metrics of Task.evaluate must be means over examples, as split {split!r} is "
                    f"evaluated in batches of {size}",
                    f"{name!r} {value[wrong][0]:.6g} of a batch, whose examples have the mean "
                    f"{mean[wrong][0]:.6g}",
                    self._remedy("return means over examples", split),
                )

    def _traced(
        self, program: Any, runs: tuple[Tree, Tree], split: str, data: Tree
    ) -> jax.stages.Traced:
        """Trace a program on some examples of a split; name what fails there."""
        try:
            return program.trace(*runs, data)
        except Exception as error:
            size = _common_length(data)
            message = str(error).strip().partition("\n")[0]
            _checks.fail(
                self._who,
                f"Task.evaluate must accept any number of examples, as split {split!r} is "
                f"evaluated in batches of {size} and the rest of them one by one",
                f"{type(error).__name__}: {message}",
                self._remedy("use the shapes of its data, and squeeze(-1) for squeeze()", split),
            )

    def _remedy(self, first: str, split: str) -> str:
        whole = "set Task.eval_batch=math.inf to evaluate each split at once"
        if split in self._streams:
            whole = f"pass the split as arrays and {whole}"
        return f"{first}, or {whole}"


def _checked_batch(who: str, size: Any) -> int | float | None:
    """Require a value that `Task.eval_batch` may have; return it."""
    if size is not None and size != math.inf:
        _checks.check_integer(who, "Task.eval_batch, unless None or math.inf,", size, 1)
    return size


def _common_length(data: Tree) -> int | None:
    """Return the length of the first axis that all arrays share; None if there is none."""
    leaves = jax.tree.leaves(data)
    lengths = {np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in leaves}
    return lengths.pop() if len(lengths) == 1 else None


def _shapes(data: Tree) -> Tree:
    """Return the shapes of arrays and the types that they have on the device."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        array = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(array.shape, array.dtype)

    return jax.tree.map(shape, data)


def _left_on_host(splits: Mapping[str, Tree]) -> dict[str, bool]:
    """Say of each split whether it is too large for the device, or memory-mapped."""
    room = RESIDENT_SHARE * _device_memory()
    on_host = {}
    for name, data in splits.items():
        leaves = jax.tree.leaves(data)
        size = sum(getattr(leaf, "nbytes", 0) for leaf in leaves)
        on_host[name] = size > room or any(map(_is_mapped, leaves))
        if not on_host[name]:
            room -= size
    return on_host


def _is_mapped(leaf: Any) -> bool:
    """Return whether an array is a file mapped into memory, or a view of one."""
    while isinstance(leaf, np.ndarray):
        leaf = leaf.base
    return isinstance(leaf, mmap)


def _device_memory() -> float:
    """Return the bytes of memory of the device; ∞ if they are unknown."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit", math.inf)


def _taken(data: Tree, rows: slice | np.ndarray) -> Tree:
    """Return some examples of arrays on the host: a view for a slice, a copy for row numbers."""
    return jax.tree.map(lambda x: x[rows], data)


@partial(jax.jit, static_argnames="size")
def _rows(data: Tree, first: Array, size: int) -> Tree:
    """Return `size` examples; a program of its own, so that all splits share that of the model."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, size), data)


_SINGLY: WeakKeyDictionary[Callable, Callable] = WeakKeyDictionary()
"""The compiled `_evaluate_singly` of each `Task.evaluate` in use."""


def _singly_program(evaluate: Callable) -> Callable:
    """Return the compiled `_evaluate_singly`, one for all runs of a task."""
    if evaluate not in _SINGLY:
        # A weak reference, because the entry of a function lives until the function is gone.
        function = ref(evaluate)
        _SINGLY[evaluate] = jax.jit(lambda *args: _evaluate_singly(function(), *args))
    return _SINGLY[evaluate]


def _evaluate_singly(
    evaluate: Callable, params: Tree, model_state: Tree, data: Tree
) -> dict[str, Array]:
    """Return the metrics of each example, arrays (examples,)."""

    def one(example: Tree) -> dict[str, Array]:
        return dict(evaluate(params, model_state, jax.tree.map(lambda x: x[None], example)))

    return jax.vmap(one)(data)


def _over_lanes(over: Callable[[Tree], Task], function: Callable) -> Callable:
    """Map `function` of a task's `evaluate`, parameters, state and data over lanes and seeds."""

    def one(
        params_and_values: tuple[Tree, Tree], model_state: Tree, data: Tree
    ) -> dict[str, Array]:
        params, values = params_and_values
        return dict(function(over(values).evaluate, params, model_state, data))

    over_seeds = jax.vmap(one, in_axes=((0, None), 0, None))
    return jax.vmap(over_seeds, in_axes=(0, 0, None))


def _tolerance(values: np.ndarray) -> np.ndarray:
    """Return the difference from the mean of values (…, examples) that rounding may explain."""
    tolerance = TOLERANCE * np.sqrt((values**2).mean(-1))
    yes_or_no = ((values == 0) | (values == 1)).all(-1)
    return tolerance + yes_or_no / values.shape[-1]


def _fetched(metrics: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Return metrics on the host, also the parts that other processes have."""

    def fetch(leaf: Array) -> np.ndarray:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return process_allgather(leaf, tiled=True)

    return {name: fetch(leaf) for name, leaf in metrics.items()}


def _as_floats(metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    dtype = jnp.result_type(float)
    return {name: np.asarray(value).astype(dtype) for name, value in metrics.items()}
