"""Parameter groups of a task: the rules of `optlab.groups.partition` for the parameters it has."""

import jax
import optax

from optlab._describe import describe
from optlab._types import Tree
from optlab.groups import partition
from optlab.groups._assignment import Rules
from optlab.lab.tasks._task import Task


def grouped(
    task: Task, tx: optax.GradientTransformation, groups: Rules | None
) -> optax.GradientTransformation:
    """Return a transformation that treats a task's parameters in groups; None for no groups."""
    return tx if groups is None else partition(params_of(task), groups, optimizer=tx)


def group_table(task: Task, tx: optax.GradientTransformation) -> str:
    """Return what an optimizer does with each parameter of a task, as a table."""
    return str(describe(tx, params_of(task)))


def params_of(task: Task) -> Tree:
    """Return the shapes of a task's parameters."""
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    return params
