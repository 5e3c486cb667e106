"""What is searched: the ranges of an optimizer and a task, and how a space is moved.

    learning_rate    a thirtieth of the suggestion of the range test to three times it
    weight_decay     1e-4 to 1, for optimizers that take it
    batch_size       half the usual one, the usual one and its double, if the task takes it
    dropout          0 to 0.5, if the task takes it
    label_smoothing  0 to 0.2, if the task takes it

A range of the user's takes the place of the one here; an argument that `functools.partial` sets
stays as it is set. A trial with another batch size sees as many
examples in as many fewer or more updates.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optlab.lab.sweeps._space import Categorical, Integer, LogUniform, Range, Uniform

RATE = "learning_rate"

WITHOUT_A_TEST = (1e-4, 0.3)
"""The range of the rate if a range test makes no suggestion."""

BELOW, ABOVE = 30.0, 3.0
"""How far the range of the rate reaches to both sides of a suggestion."""

EDGE = 0.1
"""A value is at an edge if it lies within this share of the range from its end."""

MOVED = 0.5
"""A range is moved by this share of its width."""

REGULARIZATION: Mapping[str, Range] = {
    "dropout": Uniform(0.0, 0.5),
    "label_smoothing": Uniform(0.0, 0.2),
}
"""Arguments of a task that regularize, with 0 for none."""

CHOICES: Mapping[str, Range] = {
    "dropout": Categorical((0.0, 0.2, 0.4)),
    "label_smoothing": Categorical((0.0, 0.1)),
}
"""In place of these ranges, where a value must be a plain number, as in `flax.nnx.Dropout`. Each
choice has its own program to compile."""

BOUNDS = {"dropout": (0.0, 0.95), "label_smoothing": (0.0, 0.95), "weight_decay": (0.0, math.inf)}
"""How far a range of these may be moved."""


def default_of(function: Any, name: str) -> Any:
    """Return the default of an argument; None if the function has no such argument."""
    try:
        parameter = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):  # a task that is no function
        return None
    return None if parameter is None else parameter.default


def takes(function: Any, name: str) -> bool:
    """Return whether a function has an argument of this name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def is_fixed(function: Any, name: str) -> bool:
    """Return whether `functools.partial` sets this argument, which then stays as it is set."""
    return name in getattr(function, "keywords", {})


def plain_values(task: Any) -> dict[str, Any]:
    """Return the values with which a task does not regularize: 0 for those that it takes."""
    return {name: 0.0 for name in REGULARIZATION if takes(task, name)}


def space_of(
    task: Any,
    make: Callable,
    given: Mapping[str, Range],
    rate: float | None,
    plain: Collection[str] = (),
) -> dict[str, Range]:
    """Return the ranges of an optimizer and a task.

    Args:
        task: the task, or the function that makes it.
        make: the constructor of the optimizer.
        given: the user's ranges; those that neither function takes are left out.
        rate: the suggestion of the range test; None if there is none.
        plain: names of arguments of the task that must be plain numbers.
    """
    low, high = WITHOUT_A_TEST if rate is None else (rate / BELOW, rate * ABOVE)
    space: dict[str, Range] = {RATE: LogUniform(low, high)}
    if takes(make, "weight_decay") and not is_fixed(make, "weight_decay"):
        space["weight_decay"] = LogUniform(1e-4, 1.0)
    usual = default_of(task, "batch_size")
    if isinstance(usual, int) and usual > 1 and not is_fixed(task, "batch_size"):
        space["batch_size"] = Categorical((usual // 2, usual, usual * 2))
    space |= {
        name: CHOICES[name] if name in plain else values
        for name, values in REGULARIZATION.items()
        if takes(task, name) and not is_fixed(task, name)
    }
    taken = {name: v for name, v in given.items() if takes(make, name) or takes(task, name)}
    return {**space, **taken}


def at_edge(values: Range, value: Any) -> str | None:
    """Return at which end of its range a value lies, "lower" or "upper"; None if at none."""
    if isinstance(values, Categorical):
        return None
    position = values.position(value)
    if position <= EDGE:
        return "lower"
    return "upper" if position >= 1 - EDGE else None


def moved(name: str, values: Range, end: str) -> Range:
    """Return the range moved beyond one of its ends, as far as values make sense there."""
    low, high = BOUNDS.get(name, (-math.inf, math.inf))
    width = MOVED if end == "upper" else -MOVED
    if isinstance(values, LogUniform):
        factor = (values.high / values.low) ** width
        ends = values.low * factor, min(values.high * factor, high)
    elif isinstance(values, Uniform):
        shift = (values.high - values.low) * width
        ends = max(low, values.low + shift), min(high, values.high + shift)
    elif isinstance(values, Integer):
        shift = round((values.high - values.low) * width)
        ends = max(1, values.low + shift) if values.low >= 1 else values.low + shift, 0
        ends = ends[0], values.high + shift
    else:
        return values
    return replace(values, low=ends[0], high=ends[1]) if ends[0] < ends[1] else values


def refined(
    space: Mapping[str, Range], best: Sequence[Mapping[str, Any]], share: float
) -> tuple[dict[str, Range], list[str]]:
    """Return the space around the best values, and sentences about ranges that were moved.

    Args:
        space: the space that was searched.
        best: the values of good trials, the best first.
        share: the part of a range that one trial stands for, in (0, 1].
    """
    new, sentences = {}, []
    for name, values in space.items():
        # A trial of an earlier space may lie outside of one that was moved.
        inside = [v[name] for v in best if name in v and holds(values, v[name])]
        if not inside:
            new[name] = values
            continue
        new[name] = values.around(inside, share)
        end = at_edge(values, inside[0])
        beyond = moved(name, values, end) if end else values
        if _reaches_further(values, beyond, end):
            new[name] = _hull(new[name], beyond, end)
            sentences.append(
                f"The best {name}, {inside[0]:.3g}, lies at the {end} edge of what was searched, "
                f"{_ends(values)}; the search moved on to {_ends(new[name])}."
            )
    return new, sentences


def _ends(values: Range) -> str:
    return f"{values.low:.3g} to {values.high:.3g}"


def holds(values: Range, value: Any) -> bool:
    """Return whether a value lies in a range."""
    try:
        values.position(value)
    except ValueError:
        return False
    return True


def _reaches_further(values: Range, beyond: Range, end: str | None) -> bool:
    """Whether a range that was moved holds values beyond that end; some have a limit there."""
    if end is None:
        return False
    return beyond.high > values.high if end == "upper" else beyond.low < values.low


def _hull(near: Range, beyond: Range, end: str) -> Range:
    """Return the range from one end of the good values to the end that was moved."""
    if end == "upper":
        return replace(beyond, low=near.low)
    return replace(beyond, high=near.high)
