"""Hugging Face's schedules (`transformers.optimization`), each as a function of the step.

    get_constant_schedule                  η
    get_constant_schedule_with_warmup      η
    get_linear_schedule_with_warmup        η · (1 − x), 0 from x = 1 on
    get_cosine_schedule_with_warmup        η · ½(1 + cos(2π · num_cycles · x))
    get_cosine_with_min_lr_schedule_with_warmup
                                           η_min + (η − η_min) · ½(1 + cos(2π · num_cycles · x))
    get_cosine_with_hard_restarts_schedule_with_warmup
                                           η · ½(1 + cos(π · frac(num_cycles · x))), 0 from x = 1 on
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate
                                           as with_min_lr, with t + 1 in the place of t
    get_polynomial_decay_schedule_with_warmup
                                           lr_end + (η − lr_end) · (1 − x)^power, then lr_end
    get_inverse_sqrt_schedule              η · √(τ/(t − W + τ))
    get_wsd_schedule                       η for S updates, then down to η_min within D

t is the step, 0 at the first update, and η is `lr`. The formulas are of the steps from W on, which
is `num_warmup_steps`. Before it the rate is η · t/W, but `get_wsd_schedule` rises from η_min.
x = (t − W)/(T − W) is the share of the updates that are done, with T = `num_training_steps`,
warm-up included. η_min is `min_lr`, or η times `min_lr_rate` or `min_lr_ratio`; τ is `timescale`, S
`num_stable_steps`, D `num_decay_steps`. Past the end of training a cosine rises again, as the
library's does.

    schedule = get_linear_schedule_with_warmup(3e-4, num_warmup_steps=100, num_training_steps=1000)
    tx = optlab.dialects.pytorch.adamw(schedule)

Names, order and defaults are the library's. The rate stands in the place of `optimizer`. What
stands behind `last_epoch` there is passed by name; `last_epoch` itself has no place, as the count
of updates is in the optimizer's state. `get_reduce_on_plateau_schedule` depends on the loss, so it
is no schedule: it is `optlab.reduce_on_plateau`.

What differs: where `num_cycles · x` is whole, a cosine restarts at once, while the library's
rounding may put that off by an update; a division by 0 there has a value here.

Reference: huggingface.co/docs/transformers/main_classes/optimizer_schedules. Every schedule is
checked at each step against recordings from transformers 5.24 (`tests/golden`).
"""

from collections.abc import Callable
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._tree import is_traced
from optlab._types import Array, ArrayLike
from optlab.dialects._rates import check_fixed, check_rate, half_waves
from optlab.schedules._curve import (
    Curve,
    as_float,
    check_value,
    describe,
    half_cosines,
    mix,
    shares,
    times,
)

__all__ = [
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "get_inverse_sqrt_schedule",
    "get_linear_schedule_with_warmup",
    "get_polynomial_decay_schedule_with_warmup",
    "get_wsd_schedule",
]

_NUM_CYCLES = _checks.Domain("in (0, 1e9]", 0, 1e9, open_low=True)

_SHAPES = {
    "linear": lambda left, done: (left, done),
    "cosine": half_cosines,
    "1-sqrt": lambda left, done: (left / (1 + jnp.sqrt(done)), jnp.sqrt(done)),
}
"""The weights of the rate and of the lowest rate, of the shares of a decay left and done."""


def get_constant_schedule(lr: ArrayLike) -> Curve:
    """Return the schedule that is the rate at every update.

    Args:
        lr: η ≥ 0.

    Raises:
        ValueError: the rate is out of its range.

    Example:
        >>> float(get_constant_schedule(0.5)(1000))
        0.5
    """
    lr = check_rate(_who("get_constant_schedule"), lr)
    return Curve(describe("get_constant_schedule", lr=lr), lambda step: as_float(lr), (0,))


def get_constant_schedule_with_warmup(lr: ArrayLike, num_warmup_steps: int) -> Curve:
    """Return the schedule that rises in a straight line to the rate and stays there.

    Args:
        lr: η ≥ 0, from step W on.
        num_warmup_steps: W ≥ 0, in optimizer updates.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = get_constant_schedule_with_warmup(1.0, num_warmup_steps=4)
        >>> [float(schedule(step)) for step in (0, 2, 4, 5)]
        [0.0, 0.5, 1.0, 1.0]
    """
    return _after_warmup(
        "get_constant_schedule_with_warmup", lr, num_warmup_steps, lambda done: as_float(lr)
    )


def get_linear_schedule_with_warmup(
    lr: ArrayLike, num_warmup_steps: int, num_training_steps: int
) -> Curve:
    """Return the schedule that rises to the rate in a straight line, and falls to 0 in another.

    Args:
        lr: η ≥ 0, at step W.
        num_warmup_steps: W ≥ 0, in optimizer updates.
        num_training_steps: T ≥ 0, in optimizer updates, warm-up included; the rate is 0 from step
            T on, and from W on where T ≤ W.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = get_linear_schedule_with_warmup(1.0, 10, 110)
        >>> [float(schedule(step)) for step in (0, 5, 10, 60, 110)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    name = "get_linear_schedule_with_warmup"
    warmup, decay = _lengths(name, num_warmup_steps, num_training_steps)

    def after(done):
        return times(lr, shares(done, 0, decay)[0] if decay else as_float(0))

    return _after_warmup(name, lr, warmup, after, decay, num_training_steps=num_training_steps)


def get_cosine_schedule_with_warmup(
    lr: ArrayLike, num_warmup_steps: int, num_training_steps: int, num_cycles: float = 0.5
) -> Curve:
    """Return the schedule that rises in a straight line to the rate, and follows a cosine to 0.

    Args:
        lr: η ≥ 0, at step W.
        num_warmup_steps: W ≥ 0, in optimizer updates.
        num_training_steps: T ≥ 0, in optimizer updates, warm-up included. The waves go on past it;
            where T ≤ W, it counts as W + 1.
        num_cycles: waves between W and T, > 0; with 0.5 the rate falls to 0 once.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = get_cosine_schedule_with_warmup(1.0, 10, 110, num_cycles=1)
        >>> [round(float(schedule(step)), 3) for step in (0, 10, 60, 110, 160)]
        [0.0, 1.0, 0.0, 1.0, 0.0]
    """
    name = "get_cosine_schedule_with_warmup"
    warmup, decay = _lengths(name, num_warmup_steps, num_training_steps)
    wave = _half_wave(name, num_cycles, decay)
    return _after_warmup(
        name,
        lr,
        warmup,
        lambda done: times(lr, half_waves(done, wave)[0]),
        decay,
        num_training_steps=num_training_steps,
        num_cycles=num_cycles,
    )


def get_cosine_with_min_lr_schedule_with_warmup(
    lr: ArrayLike,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    *,
    min_lr: ArrayLike | None = None,
    min_lr_rate: ArrayLike | None = None,
) -> Curve:
    """Return the schedule that rises to the rate, and follows a cosine to a rate that is not 0.

    Args:
        lr: η ≥ 0, at step W.
        num_warmup_steps: W ≥ 0, in optimizer updates.
        num_training_steps: T ≥ 0, in optimizer updates, warm-up included. The waves go on past it;
            where T ≤ W, it counts as W + 1.
        num_cycles: waves between W and T, > 0; with 0.5 the rate falls once.
        min_lr: η_min ≥ 0, the lowest rate.
        min_lr_rate: η_min/η ≥ 0, in place of `min_lr`.

    Raises:
        ValueError: a number is out of its range, or not one of `min_lr` and `min_lr_rate` is given.

    Example:
        >>> schedule = get_cosine_with_min_lr_schedule_with_warmup(1.0, 10, 110, min_lr=0.5)
        >>> [round(float(schedule(step)), 3) for step in (0, 10, 60, 110)]
        [0.0, 1.0, 0.75, 0.5]
    """
    name = "get_cosine_with_min_lr_schedule_with_warmup"
    warmup, decay = _lengths(name, num_warmup_steps, num_training_steps)
    wave = _half_wave(name, num_cycles, decay)
    lowest = _lowest(name, lr, min_lr, min_lr_rate)
    return _after_warmup(
        name,
        lr,
        warmup,
        lambda done: mix(half_waves(done, wave), lr, lowest()),
        decay,
        num_training_steps=num_training_steps,
        num_cycles=num_cycles,
        min_lr=min_lr,
        min_lr_rate=min_lr_rate,
    )


def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    lr: ArrayLike,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    *,
    min_lr: ArrayLike | None = None,
    min_lr_rate: ArrayLike | None = None,
    warmup_lr_rate: ArrayLike | None = None,
) -> Curve:
    """Return the same, one update ahead: the first update moves, and update T has the lowest rate.

    Before step W the rate is η · (t + 1)/W, or with `warmup_lr_rate` it rises from that share of η
    to η at step W − 1. From there on it is what `get_cosine_with_min_lr_schedule_with_warmup` has
    one step later.

    Args:
        lr: η ≥ 0, at step W − 1.
        num_warmup_steps: W ≥ 0, in optimizer updates.
        num_training_steps: T ≥ 0, in optimizer updates, warm-up included. The waves go on past it;
            where T ≤ W, it counts as W + 1.
        num_cycles: waves between W and T, > 0; with 0.5 the rate falls once.
        min_lr: η_min ≥ 0, the lowest rate.
        min_lr_rate: η_min/η ≥ 0, in place of `min_lr`.
        warmup_lr_rate: ≥ 0, the first rate over η; None for 1/W.

    Raises:
        ValueError: a number is out of its range, or not one of `min_lr` and `min_lr_rate` is given.

    Example:
        >>> schedule = get_cosine_with_min_lr_schedule_with_warmup_lr_rate(1.0, 4, 8, min_lr=0.5)
        >>> [round(float(schedule(step)), 3) for step in (0, 1, 3, 5, 7)]
        [0.25, 0.5, 1.0, 0.75, 0.5]
    """
    name = "get_cosine_with_min_lr_schedule_with_warmup_lr_rate"
    warmup, decay = _lengths(name, num_warmup_steps, num_training_steps)
    wave = _half_wave(name, num_cycles, decay)
    lowest = _lowest(name, lr, min_lr, min_lr_rate)
    rise = lambda step: times(lr, shares(step + 1, 0, warmup)[1])  # noqa: E731
    if warmup_lr_rate is not None:
        rate = check_value(_who(name), "warmup_lr_rate", warmup_lr_rate, _checks.NONNEGATIVE)
        last = max(1, warmup - 1)
        rise = lambda step: mix(shares(step, 0, last), times(lr, as_float(rate)), lr)  # noqa: E731
    return _after_warmup(
        name,
        lr,
        warmup,
        lambda done: mix(half_waves(done + 1, wave), lr, lowest()),
        decay,
        rise=rise,
        num_training_steps=num_training_steps,
        num_cycles=num_cycles,
        min_lr=min_lr,
        min_lr_rate=min_lr_rate,
        warmup_lr_rate=warmup_lr_rate,
    )


def get_cosine_with_hard_restarts_schedule_with_warmup(
    lr: ArrayLike, num_warmup_steps: int, num_training_steps: int, num_cycles: int = 1
) -> Curve:
    """Return the schedule that rises to the rate, and falls to 0 along several half cosines.

    Args:
        lr: η ≥ 0, at step W and after each restart.
        num_warmup_steps: W ≥ 0, in optimizer updates.
        num_training_steps: T ≥ 0, in optimizer updates, warm-up included; the rate is 0 from step
            T on. Where T ≤ W, it counts as W + 1.
        num_cycles: half cosines between W and T, ≥ 1.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = get_cosine_with_hard_restarts_schedule_with_warmup(1.0, 0, 100, num_cycles=2)
        >>> [round(float(schedule(step)), 3) for step in (0, 25, 50, 75, 100)]
        [1.0, 0.5, 1.0, 0.5, 0.0]
    """
    name = "get_cosine_with_hard_restarts_schedule_with_warmup"
    warmup, decay = _lengths(name, num_warmup_steps, num_training_steps)
    num_cycles = _checks.check_count(_who(name), "num_cycles", num_cycles, 1)
    updates = max(1, decay)
    product = "num_cycles·(num_training_steps − num_warmup_steps)"
    _checks.check_count(_who(name), product, num_cycles * updates, 1)

    def after(done):
        # In units of 1/num_cycles of an update a cycle has as many of them as all have updates.
        place = done * num_cycles % updates
        high, _ = half_cosines(as_float(updates - place) / updates, as_float(place) / updates)
        return times(lr, jnp.where(done < updates, high, 0))

    return _after_warmup(
        name,
        lr,
        warmup,
        after,
        decay,
        num_training_steps=num_training_steps,
        num_cycles=num_cycles,
    )


def get_polynomial_decay_schedule_with_warmup(
    lr: ArrayLike,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: ArrayLike = 1e-7,
    power: ArrayLike = 1.0,
) -> Curve:
    """Return the schedule that rises to the rate, and falls along a power of what is left.

    Args:
        lr: η, above `lr_end`, at step W.
        num_warmup_steps: W ≥ 0, in optimizer updates.
        num_training_steps: T ≥ 0, in optimizer updates, warm-up included; from W on the rate is
            `lr_end` where T ≤ W.
        lr_end: ≥ 0, at step T and ever after.
        power: ≥ 0; 1 is a straight line, and with 0 the rate falls at once after T.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = get_polynomial_decay_schedule_with_warmup(1.0, 0, 100, lr_end=0.5, power=2)
        >>> [float(schedule(step)) for step in (0, 50, 100, 101)]
        [1.0, 0.625, 0.5, 0.5]
    """
    name = "get_polynomial_decay_schedule_with_warmup"
    who = _who(name)
    warmup, decay = _lengths(name, num_warmup_steps, num_training_steps)
    lr, lr_end = check_rate(who, lr), check_rate(who, lr_end, "lr_end")
    power = check_value(who, "power", power, _checks.NONNEGATIVE)
    if not (is_traced(lr) or is_traced(lr_end)) and np.asarray(lr) <= np.asarray(lr_end):
        _checks.fail(who, "lr must be more than lr_end", f"lr={lr}, lr_end={lr_end}")

    def after(done):
        if not decay:
            return as_float(lr_end)
        weight = shares(done, 0, decay)[0] ** as_float(power)
        value = mix((weight, 1 - weight), lr, lr_end)
        return jnp.where(done > decay, as_float(lr_end), value)

    return _after_warmup(
        name,
        lr,
        warmup,
        after,
        decay,
        num_training_steps=num_training_steps,
        lr_end=lr_end,
        power=power,
    )


def get_inverse_sqrt_schedule(
    lr: ArrayLike, num_warmup_steps: int, timescale: ArrayLike | None = None
) -> Curve:
    """Return the schedule that rises to the rate, and falls as one over a root of the step.

    Args:
        lr: η ≥ 0, at step W.
        num_warmup_steps: W ≥ 0, in optimizer updates.
        timescale: τ > 0, in optimizer updates: at step W + 3τ half the rate is left. None for W, or
            for 10 000 where W is 0.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = get_inverse_sqrt_schedule(1.0, num_warmup_steps=10)
        >>> [float(schedule(step)) for step in (0, 5, 10, 40)]
        [0.0, 0.5, 1.0, 0.5]
    """
    name = "get_inverse_sqrt_schedule"
    if timescale is None:
        timescale = _checks.check_count(_who(name), "num_warmup_steps", num_warmup_steps, 0)
        timescale = timescale or 10_000
    timescale = check_value(_who(name), "timescale", timescale, _checks.POSITIVE)

    def after(done):
        scale = as_float(timescale)
        return times(lr, jnp.sqrt(scale / (as_float(done) + scale)))

    return _after_warmup(name, lr, num_warmup_steps, after, timescale=timescale)


def get_wsd_schedule(
    lr: ArrayLike,
    num_warmup_steps: int,
    num_decay_steps: int,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: ArrayLike = 0.0,
    num_cycles: float = 0.5,
) -> Curve:
    """Return the schedule that warms up, stays at the rate, and decays at the end.

    Args:
        lr: η ≥ 0, at steps W to W + S.
        num_warmup_steps: W ≥ 0, in optimizer updates.
        num_decay_steps: D ≥ 0, in optimizer updates.
        num_training_steps: W + S + D, in optimizer updates.
        num_stable_steps: S ≥ 0, in optimizer updates; in place of `num_training_steps`, and what
            counts where both are given.
        warmup_type: "linear", "cosine" or "1-sqrt" (1 − √x of what is left, steep at the end).
        decay_type: "linear", "cosine" or "1-sqrt" (1 − √x of what is done, steep at first).
        min_lr_ratio: ≥ 0, the first and the last rate over η.
        num_cycles: waves of a cosine within D updates, > 0; with 0.5 the rate falls once.

    Raises:
        ValueError: a number is out of its range, a type is unknown, or S is neither given nor what
            is left of the training.

    Example:
        >>> schedule = get_wsd_schedule(1.0, 10, 20, num_training_steps=100, min_lr_ratio=0.5)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 80, 90, 100)]
        [0.5, 0.75, 1.0, 1.0, 0.75, 0.5]
    """
    name = "get_wsd_schedule"
    who = _who(name)
    lr = check_rate(who, lr)
    warmup = _checks.check_count(who, "num_warmup_steps", num_warmup_steps, 0)
    decay = _checks.check_count(who, "num_decay_steps", num_decay_steps, 0)
    if num_stable_steps is not None:
        stable = _checks.check_count(who, "num_stable_steps", num_stable_steps, 0)
    elif num_training_steps is not None:
        shortest = warmup + decay
        training = _checks.check_count(who, "num_training_steps", num_training_steps, shortest)
        stable = training - shortest
    else:
        _checks.fail(who, "num_training_steps or num_stable_steps must be given", "neither")
    whole = warmup + stable + decay
    _checks.check_count(who, "num_warmup_steps + num_stable_steps + num_decay_steps", whole, 0)
    for argument, kind in (("warmup_type", warmup_type), ("decay_type", decay_type)):
        if not isinstance(kind, str) or kind not in _SHAPES:
            got = f"{argument}={kind!r}"
            _checks.fail(who, f"{argument} must be one of {', '.join(_SHAPES)}", got)
    ratio = check_value(who, "min_lr_ratio", min_lr_ratio, _checks.NONNEGATIVE)
    wave = _half_wave(name, num_cycles, decay)

    def lowest():
        return times(lr, as_float(ratio))

    def rise(step):
        # A decay run backwards.
        left, done = shares(step, 0, warmup)
        return mix(_SHAPES[warmup_type](done, left), lr, lowest())

    def after(done):
        stop = stable + decay
        if not decay:
            return jnp.where(done < stop, as_float(lr), lowest())
        cosine = half_waves(jnp.maximum(done - stable, 0), wave)
        weights = _SHAPES[decay_type](*shares(done, stable, stop))
        fall = mix(cosine if decay_type == "cosine" else weights, lr, lowest())
        return jnp.where(done < stop, fall, lowest())

    return _after_warmup(
        name,
        lr,
        warmup,
        after,
        stable,
        stable + decay,
        rise=rise,
        num_decay_steps=decay,
        num_stable_steps=stable,
        warmup_type=warmup_type,
        decay_type=decay_type,
        min_lr_ratio=ratio,
        num_cycles=num_cycles,
    )


def _who(name: str) -> str:
    return f"dialects.huggingface.{name}"


def _lengths(name: str, num_warmup_steps: int, num_training_steps: int) -> tuple[int, int]:
    """Return the updates of the warm-up and those after it, none where training is shorter."""
    who = _who(name)
    warmup = _checks.check_count(who, "num_warmup_steps", num_warmup_steps, 0)
    training = _checks.check_count(who, "num_training_steps", num_training_steps, 0)
    return warmup, max(0, training - warmup)


def _half_wave(name: str, num_cycles: float, updates: int) -> Fraction:
    """Return the updates in half a wave, of which `num_cycles` whole ones take all updates."""
    number = check_fixed(_who(name), "num_cycles", num_cycles, _NUM_CYCLES)
    cycles = Fraction(number)
    # 0.1 means a tenth, which has a small denominator.
    near = cycles.limit_denominator(1000)
    return max(1, updates) / (2 * (near if float(near) == number else cycles))


def _lowest(
    name: str, lr: ArrayLike, min_lr: ArrayLike | None, min_lr_rate: ArrayLike | None
) -> Callable[[], Array]:
    """Return a function that returns the lowest rate, of one of two arguments."""
    who = _who(name)
    required = "one of min_lr and min_lr_rate must be given"
    if min_lr is not None:
        if min_lr_rate is not None:
            _checks.fail(who, required, "both")
        lowest = check_rate(who, min_lr, "min_lr")
        return lambda: as_float(lowest)
    if min_lr_rate is None:
        _checks.fail(who, required, "neither")
    rate = check_value(who, "min_lr_rate", min_lr_rate, _checks.NONNEGATIVE)
    return lambda: times(lr, as_float(rate))


def _after_warmup(
    name: str,
    lr: ArrayLike,
    num_warmup_steps: int,
    after: Callable[[Array], Array],
    *knots: int,
    rise: Callable[[Array], Array] | None = None,
    **arguments: object,
) -> Curve:
    """Return the schedule that rises to the rate, and is then `after(step − num_warmup_steps)`.

    Args:
        name: the function's.
        lr: the rate.
        num_warmup_steps: updates before the rate is reached, ≥ 0.
        after: the value, given how many updates ago that was, ≥ 0.
        knots: the knots of `after`.
        rise: the value before, given the step; None for a straight line from 0.
        arguments: the function's other arguments, for the schedule's text.
    """
    who = _who(name)
    lr = check_rate(who, lr)
    warmup = _checks.check_count(who, "num_warmup_steps", num_warmup_steps, 0)

    def function(step):
        later = after(jnp.maximum(step - warmup, 0))
        if warmup == 0:
            return later
        first = rise(step) if rise else mix(shares(step, 0, warmup), 0.0, lr)
        return jnp.where(step < warmup, first, later)

    text = describe(name, lr=lr, num_warmup_steps=warmup, **arguments)
    return Curve(text, function, tuple(sorted({0, warmup, *(warmup + knot for knot in knots)})))
