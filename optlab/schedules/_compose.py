"""Schedules made of others, and epochs as updates.

join             sᵢ(t − bᵢ), with bᵢ the last boundary ≤ t
scale            factor · s(t)
clamp            min(max(s(t), low), high)
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import ArrayLike, Schedule
from optlab.schedules._curve import Curve, as_float, check_value, describe
from optlab.schedules._decay import check_ascending
from optlab.schedules._warmup import check_schedule


def join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Curve:
    """Return the schedule that runs others one after the other, each from its own step 0.

    The update after `boundaries[i]` others is the first that uses `schedules[i + 1]`, at its 0.

    Args:
        schedules: at least two, ours or Optax's.
        boundaries: steps ≥ 1, strictly ascending; as many as there are schedules, less one.

    Raises:
        ValueError: something is not a schedule, or the boundaries are out of order or too few.

    Example:
        >>> from optlab import schedules
        >>> schedule = join([schedules.constant(1.0), schedules.linear(1.0, 0.0, 10)], [5])
        >>> [float(schedule(step)) for step in (4, 5, 10, 15)]
        [1.0, 1.0, 0.5, 0.0]
    """
    schedules = tuple(schedules)
    for schedule in schedules:
        check_schedule("join", schedule)
    boundaries = check_ascending("join", "boundaries", boundaries)
    if len(boundaries) != len(schedules) - 1:
        _checks.fail(
            "join",
            "there must be one boundary less than schedules",
            f"{len(boundaries)} boundaries for {len(schedules)} schedules",
        )
    starts = (0, *boundaries)

    def function(step):
        value = as_float(schedules[0](step))
        for start, schedule in zip(boundaries, schedules[1:], strict=True):
            later = as_float(schedule(jnp.maximum(step - start, 0)))
            value = jnp.where(step < start, value, later)
        return value

    knots = set(starts)
    for start, stop, schedule in zip(starts, (*boundaries, None), schedules, strict=True):
        own = (start + knot for knot in getattr(schedule, "knots", ()))
        knots |= {knot for knot in own if stop is None or knot < stop}
    text = describe("join", schedules=list(schedules), boundaries=list(boundaries))
    return Curve(text, function, tuple(sorted(knots)))


def scale(schedule: Schedule, factor: ArrayLike) -> Curve:
    """Return a schedule multiplied by a number, update by update.

    Args:
        schedule: any function of the step.
        factor: a finite scalar.

    Raises:
        ValueError: `schedule` is not callable, or the factor is not a finite scalar.

    Example:
        >>> from optlab import schedules
        >>> float(scale(schedules.linear(1.0, 0.0, 10), 0.5)(5))
        0.25
    """
    check_schedule("scale", schedule)
    factor = check_value("scale", "factor", factor)
    return Curve(
        describe("scale", schedule=schedule, factor=factor),
        lambda step: as_float(factor) * as_float(schedule(step)),
        tuple(getattr(schedule, "knots", (0,))),
    )


def clamp(
    schedule: Schedule, min_value: ArrayLike | None = None, max_value: ArrayLike | None = None
) -> Curve:
    """Return a schedule whose values are clipped to lie between two bounds.

    Args:
        schedule: any function of the step.
        min_value: the least value; None for no bound.
        max_value: the largest value; None for no bound.

    Raises:
        ValueError: `schedule` is not callable, a bound is not a finite scalar, there is none, or
            the lower is above the upper.

    Example:
        >>> from optlab import schedules
        >>> schedule = clamp(schedules.exponential(1.0, 0.1), min_value=0.01)
        >>> float(schedule(1000)) == float(jnp.float32(0.01))
        True
    """
    check_schedule("clamp", schedule)
    bounds = {"min_value": min_value, "max_value": max_value}
    if min_value is None and max_value is None:
        _checks.fail("clamp", "min_value or max_value must be given", "neither")
    bounds = {
        name: None if value is None else check_value("clamp", name, value)
        for name, value in bounds.items()
    }
    numbers = (int, float, np.integer, np.floating)
    if isinstance(min_value, numbers) and isinstance(max_value, numbers) and min_value > max_value:
        _checks.fail(
            "clamp",
            "min_value must not exceed max_value",
            f"min_value={min_value}, max_value={max_value}",
        )
    lower, upper = (None if value is None else as_float(value) for value in bounds.values())
    return Curve(
        describe("clamp", schedule=schedule, **bounds),
        lambda step: jnp.clip(as_float(schedule(step)), lower, upper),
        tuple(getattr(schedule, "knots", (0,))),
    )


def epochs_to_steps(epochs: float, num_examples: int, batch_size: int) -> int:
    """Return the number of optimizer updates in a number of epochs.

    The last batch of an epoch counts as an update, however few examples it holds.

    Args:
        epochs: passes over the data, ≥ 0, not always whole; the result is rounded.
        num_examples: examples in the training set, ≥ 1.
        batch_size: examples an update, ≥ 1.

    Returns:
        round(epochs·⌈num_examples/batch_size⌉).

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> epochs_to_steps(10, num_examples=1000, batch_size=64)
        160
    """
    who = "epochs_to_steps"
    epochs = _checks.check_number(who, "epochs", epochs, _checks.NONNEGATIVE)
    num_examples = _checks.check_count(who, "num_examples", num_examples, 1)
    batch_size = _checks.check_count(who, "batch_size", batch_size, 1)
    return round(float(epochs) * -(-num_examples // batch_size))
