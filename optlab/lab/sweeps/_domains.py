"""Refuse values that an optimizer or a task refuses, before anything is trained.

In a compiled program hyperparameters are traced, and nobody sees their values. So the optimizer and
the task are made here with the ends of each range, and the optimizer also with their combinations.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optlab.lab.sweeps._recipe import Recipe, Values, is_traced_if_possible, type_of
from optlab.lab.sweeps._space import Categorical, Range, Scalar

CORNERS = 256
"""The most combinations of ends with which an optimizer is made."""


def check_domains(who: str, recipe: Recipe, space: Mapping[str, Range], example: Values) -> None:
    """Require that the ends of all ranges are values that the optimizer and the task accept.

    Args:
        who: the public name that errors begin with.
        recipe: what to train.
        space: name → range.
        example: values of one trial, in the middle of their ranges.

    Raises:
        ValueError: the optimizer or the task refuses an end, or the optimizer a combination.
    """
    ends = {name: _ends(values) for name, values in space.items()}
    optimizer = recipe.optimizer_values(example)
    task = recipe.task_values(example)
    for name, values in ends.items():
        for value in values:
            if name in task:
                _try(who, _task_of(recipe), space, {name: value}, example)
            if name in optimizer:
                _try(who, recipe.make_optimizer, space, {name: value}, example)
    choices = [ends[name] for name in optimizer]
    for corner in itertools.islice(itertools.product(*choices), CORNERS):
        changed = dict(zip(optimizer, corner, strict=True))
        _try(who, recipe.make_optimizer, space, changed, example)


def _ends(values: Range) -> list[Scalar]:
    """Return the least and the largest value of a range; all choices, if they are no numbers."""
    if not isinstance(values, Categorical):
        return values.levels(2)
    if all(type(choice) in (int, float) for choice in values.choices):
        return list(dict.fromkeys((min(values.choices), max(values.choices))))
    return list(values.choices)


def _task_of(recipe: Recipe) -> Callable[[Values], Any]:
    def make(values: Values) -> Any:
        return jax.eval_shape(recipe.make_task(values).init, jax.random.key(0))

    return make


def _try(
    who: str,
    make: Callable[[Values], Any],
    space: Mapping[str, Range],
    changed: Values,
    example: Values,
) -> None:
    """Make what a trial trains with these values; say which of them are refused."""
    error = None
    for values in _as_in_trials({**example, **changed}, space):
        try:
            make(values)
        except ValueError as refusal:
            error = refusal
        except Exception:  # such as that of a function that wants a Python number, or an array
            continue
        else:
            return
    if error is not None:
        values = {**example, **changed}
        named = [name for name in values if re.search(rf"\b{name}\b", str(error))]
        guilty = named or [*changed]
        ranges = " and ".join(f"space[{name!r}]" for name in guilty)
        got = ", ".join(f"{name}={values[name]!r}" for name in guilty)
        raise ValueError(
            f"{who}: {ranges} must hold only values that are accepted, got {got}, which is refused "
            f"({error}); narrow the range"
        ) from error


def _as_in_trials(values: Values, space: Mapping[str, Range]) -> Iterator[dict[str, Any]]:
    """Yield the values as a trial gets them, arrays where they may be traced, and as they are."""
    yield {
        name: jnp.asarray(value, type_of(space[name]))
        if is_traced_if_possible(space[name])
        else value
        for name, value in values.items()
    }
    yield dict(values)
