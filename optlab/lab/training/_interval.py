"""When a run is evaluated: at 0, every, 2·every, … and at its last update.

The default interval is known before the run, because it counts work and not time. The unit is one
example that passes forward through the model. An update on b examples costs 3b, as a backward pass
costs two forward ones, and an evaluation of n examples costs n. E evaluations are at most a fifth
of the whole run if

    E · n ≤ ¼ · 3 · steps · b
"""

import numpy as np

from optlab.lab.tasks._task import Task

UPDATE_COST = 3
"""The cost of an update on an example, in evaluations of an example."""

SHARE = 0.25
"""The cost of all evaluations, at most, as a share of the cost of all updates."""


def evaluation_interval(
    task: Task, steps: int, *, batch_size: int | None, examples: int | None, most: int
) -> int:
    """Return the updates between evaluations of a run, ≥ 1.

    It is the task's own `eval_every`, or else the shortest interval with which evaluation costs at
    most a fifth of the run. A run is evaluated at its start and at its end, whatever that costs.

    Args:
        task: the problem.
        steps: updates of the run, ≥ 1.
        batch_size: examples per update, ≥ 1; None if unknown, then cost is not considered.
        examples: examples per evaluation, over all splits except "test", ≥ 0; None if unknown or if
            the task has no data, then an evaluation counts as one batch.
        most: intervals of the run, at most, ≥ 1.

    Example:
        300 updates on 32 examples cost 28,800. A quarter of that, 7,200, is enough for 7
        evaluations of 1,000 examples: one at the start, and then one every 50 updates.

        >>> import jax.numpy as jnp
        >>> parabola = Task(
        ...     name="parabola",
        ...     init=lambda key: (jnp.array(2.0), ()),
        ...     loss=lambda x, state, batch, key: (x**2, state),
        ...     batch=lambda key, step: (),
        ...     evaluate=lambda x, state, data: {"loss": x**2},
        ... )
        >>> evaluation_interval(parabola, 300, batch_size=32, examples=1000, most=30)
        50
    """
    if task.eval_every is not None:
        return int(task.eval_every)
    intervals = most
    if batch_size is not None and examples != 0:
        cost = batch_size if examples is None else examples
        affordable = SHARE * UPDATE_COST * steps * batch_size // cost
        intervals = min(most, int(affordable) - 1)
    return -(-steps // max(intervals, 1))


def next_stop(step: int, every: int, steps: int) -> int:
    """Return the update after `step` at which a run of `steps` updates is evaluated next."""
    return min(steps, (step // every + 1) * every)


def stops(every: int, steps: int) -> np.ndarray:
    """Return all updates at which a run is evaluated: (evaluations,) int, from 0 to `steps`."""
    return np.append(np.arange(0, steps, every), steps)
