"""Schedules that hold a value, or lower it from step to step.

    constant         α(t) = α₀
    step decay       α(t) = α₀ · factor^⌊t/every⌋
    multistep        α(t) = α₀ · factor^(number of milestones ≤ t)
    exponential      α(t) = α₀ · e^(−kt)
    linear           α(t) = α₀ + (α_end − α₀) t/T
    polynomial       α(t) = α_end + (α₀ − α_end)(1 − t/T)^power
    cosine           α(t) = α_end + (α₀ − α_end) · ½(1 + cos(π t/T))
    inverse root     α(t) = α₀/√(t + 1), or with warm-up α₀ · min(t/W, √(W/t))

t is the step, 0 at the first update; k is `decay_rate`, W `warmup_steps`, T `transition_steps` or
`decay_steps`, all in updates. A schedule that ends at T stays at α_end from there on. The first
update that uses α_end is the one after T others, so a loop of n updates reaches it in its last with
T = n − 1. A factor above 1, or a decay rate below 0, makes a value grow, as far as its type goes.

Reference: Loshchilov & Hutter, ICLR (2017) for the cosine, without its restarts; Vaswani et al.,
NeurIPS (2017) for the inverse root.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, ArrayLike
from optlab.schedules import _curve
from optlab.schedules._curve import (
    Curve,
    as_float,
    check_value,
    describe,
    growth,
    half_cosines,
    mix,
    shares,
    times,
)


def constant(value: ArrayLike) -> Curve:
    """Return the schedule that is `value` at every update.

    Args:
        value: a finite scalar.

    Raises:
        ValueError: the value is not a finite scalar.

    Example:
        >>> constant(0.1)(1000)
        Array(0.1, dtype=float32)
    """
    value = check_value("constant", "value", value)
    return Curve(describe("constant", value=value), lambda step: as_float(value), (0,))


def step_decay(init_value: ArrayLike, factor: ArrayLike, every: int) -> Curve:
    """Return the schedule that is multiplied by `factor` each time `every` updates have been made.

    The first `every` updates use `init_value`, the next ones `init_value·factor`, and so on.

    Args:
        init_value: α₀.
        factor: ≥ 0, typically 0.1 to 0.5; above 1 the value grows.
        every: updates between two changes, ≥ 1.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> schedule = step_decay(1.0, factor=0.5, every=10)
        >>> [float(schedule(step)) for step in (0, 9, 10, 20)]
        [1.0, 1.0, 0.5, 0.25]
    """
    init_value = check_value("step_decay", "init_value", init_value)
    factor = check_value("step_decay", "factor", factor, _checks.NONNEGATIVE)
    every = _checks.check_count("step_decay", "every", every, 1)
    text = describe("step_decay", init_value=init_value, factor=factor, every=every)
    return Curve(
        text,
        lambda step: times(init_value, _curve.power(factor, step // every)),
        (0, every),
    )


def multistep(init_value: ArrayLike, factor: ArrayLike, milestones: Sequence[int]) -> Curve:
    """Return the schedule that is multiplied by `factor` at given steps.

    The update after `milestones[i]` others is the first that uses `init_value·factor^(i + 1)`.

    Args:
        init_value: α₀.
        factor: ≥ 0, typically 0.1; above 1 the value grows.
        milestones: steps, ≥ 1, strictly ascending; at least one.

    Raises:
        ValueError: a value is out of its range, or the milestones are out of order.

    Example:
        >>> schedule = multistep(1.0, factor=0.1, milestones=[30, 60])
        >>> [round(float(schedule(step)), 4) for step in (29, 30, 60)]
        [1.0, 0.1, 0.01]
    """
    who = "multistep"
    init_value = check_value(who, "init_value", init_value)
    factor = check_value(who, "factor", factor, _checks.NONNEGATIVE)
    milestones = check_ascending(who, "milestones", milestones)

    def function(step):
        values = _multiples(init_value, factor, len(milestones))
        return values[jnp.searchsorted(np.asarray(milestones, np.int32), step, side="right")]

    text = describe(who, init_value=init_value, factor=factor, milestones=list(milestones))
    return Curve(text, function, (0, *milestones))


def exponential(init_value: ArrayLike, decay_rate: ArrayLike) -> Curve:
    """Return the schedule that decays by the same share at each update, α₀e^(−kt).

    The first update uses `init_value`; the value halves every ln 2/k updates, without end.

    Args:
        init_value: α₀.
        decay_rate: k, per update: a rate, not Optax's factor e^(−k); below 0 the value grows.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> float(exponential(1.0, decay_rate=0.001)(1000))  # 1/e
        0.3678794503211975
    """
    init_value = check_value("exponential", "init_value", init_value)
    decay_rate = check_value("exponential", "decay_rate", decay_rate)
    return Curve(
        describe("exponential", init_value=init_value, decay_rate=decay_rate),
        lambda step: times(init_value, growth(-as_float(decay_rate) * as_float(step))),
        (0,),
    )


def linear(init_value: ArrayLike, end_value: ArrayLike, transition_steps: int) -> Curve:
    """Return the schedule that goes from one value to another in a straight line.

    The first update uses `init_value`, the update after T others the first `end_value`.

    Args:
        init_value: at step 0.
        end_value: at step `transition_steps` and ever after.
        transition_steps: T ≥ 1, in optimizer updates.

    Raises:
        ValueError: a value is not a finite scalar, or T is not an integer ≥ 1.

    Example:
        >>> schedule = linear(1.0, 0.0, transition_steps=10)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 11)]
        [1.0, 0.5, 0.0, 0.0]
    """
    init_value = check_value("linear", "init_value", init_value)
    end_value = check_value("linear", "end_value", end_value)
    transition_steps = _checks.check_count("linear", "transition_steps", transition_steps, 1)
    text = describe(
        "linear", init_value=init_value, end_value=end_value, transition_steps=transition_steps
    )
    return Curve(
        text,
        lambda step: mix(shares(step, 0, transition_steps), init_value, end_value),
        (0, transition_steps),
    )


def polynomial(
    init_value: ArrayLike, end_value: ArrayLike, power: ArrayLike, transition_steps: int
) -> Curve:
    """Return the schedule that goes from one value to another along a power of what is left.

    The first update uses `init_value`, the update after T others the first `end_value`.

    Args:
        init_value: at step 0.
        end_value: at step `transition_steps` and ever after.
        power: > 0; 1 is a straight line, 2 decays fast first.
        transition_steps: T ≥ 1, in optimizer updates.

    Raises:
        ValueError: a value is out of its range, or T is not an integer ≥ 1.

    Example:
        >>> schedule = polynomial(1.0, 0.0, power=2, transition_steps=10)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10)]
        [1.0, 0.25, 0.0]
    """
    who = "polynomial"
    init_value = check_value(who, "init_value", init_value)
    end_value = check_value(who, "end_value", end_value)
    power = check_value(who, "power", power, _checks.POSITIVE)
    transition_steps = _checks.check_count(who, "transition_steps", transition_steps, 1)

    def function(step):
        left, _ = shares(step, 0, transition_steps)
        weight = left ** as_float(power)
        return mix((weight, 1 - weight), init_value, end_value)

    text = describe(
        who,
        init_value=init_value,
        end_value=end_value,
        power=power,
        transition_steps=transition_steps,
    )
    return Curve(text, function, (0, transition_steps))


def cosine(init_value: ArrayLike, decay_steps: int, end_value: ArrayLike = 0.0) -> Curve:
    """Return the schedule that falls from one value to another along half a cosine.

    The first update uses `init_value`, the update after T others the first `end_value`.

    Args:
        init_value: at step 0.
        decay_steps: T ≥ 1, in optimizer updates.
        end_value: at step `decay_steps` and ever after; a value, not Optax's fraction `alpha`.

    Raises:
        ValueError: a value is not a finite scalar, or T is not an integer ≥ 1.

    Example:
        >>> schedule = cosine(1.0, decay_steps=10, end_value=0.2)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 11)]
        [1.0, 0.6, 0.2, 0.2]

    Reference:
        Loshchilov & Hutter, ICLR (2017).
    """
    init_value = check_value("cosine", "init_value", init_value)
    end_value = check_value("cosine", "end_value", end_value)
    decay_steps = _checks.check_count("cosine", "decay_steps", decay_steps, 1)
    text = describe("cosine", init_value=init_value, decay_steps=decay_steps, end_value=end_value)
    return Curve(
        text,
        lambda step: mix(half_cosines(*shares(step, 0, decay_steps)), init_value, end_value),
        (0, decay_steps),
    )


def inverse_sqrt(value: ArrayLike, warmup_steps: int = 0) -> Curve:
    """Return the schedule that decays as one over the root of the number of updates.

    Without warm-up update number n = 1, 2, … uses value/√n. With warm-up it is the Transformer's:
    the first update uses 0, the one after W others `value`, and from there it is value·√(W/step).

    Args:
        value: of the first update, or with warm-up at step W.
        warmup_steps: W ≥ 0, in optimizer updates.

    Raises:
        ValueError: the value is not a finite scalar, or W is not an integer ≥ 0.

    Example:
        The Transformer's rate, of width 512 and 4000 updates of warm-up:

        >>> schedule = inverse_sqrt((512 * 4000) ** -0.5, warmup_steps=4000)
        >>> [round(float(schedule(step)), 6) for step in (0, 2000, 4000, 16000)]
        [0.0, 0.000349, 0.000699, 0.000349]

    Reference:
        Vaswani et al., NeurIPS (2017).
    """
    value = check_value("inverse_sqrt", "value", value)
    warmup_steps = _checks.check_count("inverse_sqrt", "warmup_steps", warmup_steps, 0)
    text = describe("inverse_sqrt", value=value, warmup_steps=warmup_steps)
    if warmup_steps == 0:
        return Curve(text, lambda step: as_float(value) / jnp.sqrt(as_float(step) + 1), (0,))

    def function(step):
        rise = as_float(jnp.minimum(step, warmup_steps)) / warmup_steps
        fall = jnp.sqrt(warmup_steps / as_float(jnp.maximum(step, warmup_steps)))
        return as_float(value) * rise * fall

    return Curve(text, function, (0, warmup_steps))


def _multiples(init_value: ArrayLike, factor: ArrayLike, most: int) -> Array:
    """Return init_value·factor^i for i from 0 to `most`, a (most + 1,) array of finite numbers."""
    if not all(isinstance(x, int | float | np.number) for x in (init_value, factor)):
        return jnp.stack([times(init_value, _curve.power(factor, i)) for i in range(most + 1)])
    # In double, so that each value is rounded once.
    with np.errstate(over="ignore"):
        exact = np.minimum(
            np.asarray(factor, np.float64) ** np.arange(most + 1), np.finfo(np.float64).max
        )
        largest = float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).max)
        return as_float(np.clip(np.asarray(init_value, np.float64) * exact, -largest, largest))


def check_ascending(who: str, name: str, steps: Sequence[int]) -> tuple[int, ...]:
    """Require at least one step, all integers ≥ 1, strictly ascending."""
    if not isinstance(steps, Sequence | np.ndarray):
        _checks.fail(who, f"{name} must be a sequence of steps", f"{name}={steps!r}")
    steps = tuple(steps)
    if not steps:
        _checks.fail(who, f"{name} must hold at least one step", "none")
    steps = tuple(_checks.check_count(who, f"each of {name}", step, 1) for step in steps)
    if any(later <= earlier for earlier, later in pairwise(steps)):
        _checks.fail(who, f"{name} must be strictly ascending", str(list(steps)))
    return steps
