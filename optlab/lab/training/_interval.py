"""When a run is evaluated: at 0, every, 2·every, … and at its last update.

The default interval is known before the run, because it counts work and not time. The unit is one
example that passes forward through the model. An update on b examples costs 3b, as a backward pass
costs two forward ones, and an evaluation of n examples costs n. E evaluations are at most a fifth
of the whole run if

    E · n ≤ ¼ · 3 · steps · b

Evaluations that take less than a second or so in all, by their floating-point operations, are not
limited: they cost less than the compilation of the run.
"""

import math
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab._types import Tree
from optlab.lab.data import is_stream, read_once
from optlab.lab.tasks._task import Task
from optlab.lab.training._work import work_of

UPDATE_COST = 3
"""The cost of an update on an example, in evaluations of an example."""

SHARE = 0.25
"""The cost of all evaluations, at most, as a share of the cost of all updates."""

FREE = 5e9
"""Floating-point operations of all evaluations together that are not limited."""

FEW = 10
"""The most intervals if a split is a stream of unknown length, and so is the cost of an update."""


def evaluation_interval(
    who: str, task: Task, steps: int, *, batch_size: int | None, most: int
) -> int:
    """Return the updates between evaluations of a run, ≥ 1.

    It is the task's own `eval_every`, or else the shortest interval with which evaluation costs at
    most a fifth of the run. A run is evaluated at its start and at its end, whatever that costs. A
    stream that does not know its length is read to count its examples.

    Args:
        who: the public name that errors begin with.
        task: the problem.
        steps: updates of the run, ≥ 1.
        batch_size: examples per update, ≥ 1; None if unknown, then cost is not considered.
        most: intervals of the run, at most, ≥ 1.
    """
    if task.eval_every is not None:
        return int(task.eval_every)
    splits = {name: data for name, data in task.splits.items() if name != "test"}
    limit = math.inf if batch_size is None else SHARE * UPDATE_COST * steps * batch_size
    counts = [_examples(who, task, name, limit) for name in splits]
    if None in counts:
        intervals = min(most, FEW)
    elif not counts or batch_size is None or _flops(task, splits) * (most + 1) <= FREE:
        intervals = most
    else:
        intervals = min(most, affordable(steps, batch_size, sum(counts)) - 1)
    return -(-steps // max(intervals, 1))


def affordable(steps: int, batch_size: int, examples: int) -> int:
    """Return how many evaluations cost a fifth of a run at most.

    Args:
        steps: updates of the run.
        batch_size: examples per update.
        examples: examples per evaluation, ≥ 1.

    Example:
        300 updates on 32 examples cost 28,800. A quarter of that, 7,200, is enough for 7
        evaluations of 1,000 examples.

        >>> affordable(300, 32, 1000)
        7
    """
    return int(SHARE * UPDATE_COST * steps * batch_size // max(examples, 1))


def _examples(who: str, task: Task, split: str, limit: float) -> int | None:
    """Return the number of examples of a split; None if it is unknown.

    Args:
        who: the public name that errors begin with.
        task: the problem.
        split: the name of the split.
        limit: the number from which on they need not be counted; ∞ not to count.
    """
    data = task.splits[split]
    if is_stream(data):
        length = getattr(data, "__len__", None)
        size = getattr(data, "batch_size", None)
        if length and isinstance(size, int):
            return length() * size
        return None if limit == math.inf else _counted(who, task, split, limit)
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    return next(iter(lengths))[0] if len(lengths) == 1 and () not in lengths else 1


def _counted(who: str, task: Task, split: str, limit: float) -> int:
    count = 0
    with closing(
        read_once(who, task.name, split, task.splits[split], timeout=task.timeout)
    ) as batches:
        for _, examples in batches:
            count += examples
            if count > limit:
                break
    return count


def _flops(task: Task, splits: Mapping[str, Any]) -> float:
    """Return the floating-point operations of one evaluation."""
    params, model_state = jax.eval_shape(task.init, jax.random.key(0))
    if any(map(is_stream, splits.values())):
        return math.inf
    data = map(_shapes, splits.values())
    return sum(work_of(task.evaluate, params, model_state, part).flops for part in data)


def _shapes(data: Tree) -> Tree:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)), data
    )


def next_stop(step: int, every: int, steps: int) -> int:
    """Return the update after `step` at which a run of `steps` updates is evaluated next."""
    return min(steps, (step // every + 1) * every)


def stops(every: int, steps: int) -> np.ndarray:
    """Return all updates at which a run is evaluated: (evaluations,) int, from 0 to `steps`."""
    return np.append(np.arange(0, steps, every), steps)
