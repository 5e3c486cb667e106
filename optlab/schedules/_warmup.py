"""Schedules that begin low: a linear warm-up in front of any other.

    warm-up          α(t) = α_init + (s(0) − α_init) t/W                t < W
                     α(t) = s(t − W)                                    t ≥ W
    warm-up–stable–decay      warm-up over W updates, the peak for S, then over D updates
                     α(t) = α_end + (α_peak − α_end) · f(x),  x = (t − W − S)/D
                     f(x) = 1 − x (linear), ½(1 + cos πx) (cosine) or 1 − √x (sqrt)

s is `schedule`, W `warmup_steps`, S `stable_steps`, D `decay_steps`, all in updates.

Reference: Goyal et al., arXiv:1706.02677 (2017) for the warm-up; Hu et al., arXiv:2404.06395
(2024) and Hägele et al., NeurIPS (2024) for warm-up–stable–decay.
"""

import jax.numpy as jnp

from optlab import _checks
from optlab._types import ArrayLike, Schedule
from optlab.schedules._curve import (
    Curve,
    as_float,
    check_value,
    describe,
    half_cosines,
    mix,
    shares,
)
from optlab.schedules._decay import cosine

_DECAYS = {
    "linear": lambda left, done: (left, done),
    "cosine": half_cosines,
    "sqrt": lambda left, done: (left / (1 + jnp.sqrt(done)), jnp.sqrt(done)),
}


def warmup(schedule: Schedule, warmup_steps: int, init_value: ArrayLike = 0.0) -> Curve:
    """Return a schedule with a linear warm-up in front of it.

    The first update uses `init_value`, the update after W others `schedule(0)`, and the given
    schedule runs on from there. With `init_value` 0 the first update does not move the parameters.

    Args:
        schedule: any function of the step, ours or Optax's.
        warmup_steps: W ≥ 0, in optimizer updates.
        init_value: at step 0.

    Raises:
        ValueError: `schedule` is not callable, or a value is out of its range.

    Example:
        >>> from optlab import schedules
        >>> schedule = warmup(schedules.inverse_sqrt(1.0), warmup_steps=4)
        >>> [float(schedule(step)) for step in (0, 2, 4, 7)]
        [0.0, 0.5, 1.0, 0.5]

    Reference:
        Goyal et al., arXiv:1706.02677 (2017).
    """
    check_schedule("warmup", schedule)
    warmup_steps = _checks.check_count("warmup", "warmup_steps", warmup_steps, 0)
    init_value = check_value("warmup", "init_value", init_value)
    return _warmup(
        describe("warmup", schedule=schedule, warmup_steps=warmup_steps, init_value=init_value),
        schedule,
        warmup_steps,
        init_value,
    )


def warmup_cosine(
    peak_value: ArrayLike,
    warmup_steps: int,
    decay_steps: int,
    init_value: ArrayLike = 0.0,
    end_value: ArrayLike = 0.0,
) -> Curve:
    """Return the schedule that rises in a straight line and falls along half a cosine.

    The update after W others is the first at the peak, the one after T others the first at
    `end_value`; with `init_value` 0 the first update does not move the parameters.

    Args:
        peak_value: at step W.
        warmup_steps: W ≥ 0, in optimizer updates.
        decay_steps: T > W, the length of the whole schedule, warm-up included.
        init_value: at step 0.
        end_value: at step T and ever after.

    Raises:
        ValueError: a value is not a finite scalar, or not 0 ≤ W < T.

    Example:
        >>> schedule = warmup_cosine(peak_value=1e-3, warmup_steps=100, decay_steps=1000)
        >>> [round(float(schedule(step)), 6) for step in (0, 50, 100, 300, 700, 1000)]
        [0.0, 0.0005, 0.001, 0.000883, 0.00025, 0.0]
    """
    who = "warmup_cosine"
    peak_value = check_value(who, "peak_value", peak_value)
    init_value = check_value(who, "init_value", init_value)
    end_value = check_value(who, "end_value", end_value)
    warmup_steps = _checks.check_count(who, "warmup_steps", warmup_steps, 0)
    decay_steps = _checks.check_count(who, "decay_steps", decay_steps, 1)
    if decay_steps <= warmup_steps:
        _checks.fail(
            who,
            "decay_steps must be more than warmup_steps",
            f"decay_steps={decay_steps}, warmup_steps={warmup_steps}",
            "decay_steps counts the whole run, warm-up included",
        )
    text = describe(
        who,
        peak_value=peak_value,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        init_value=init_value,
        end_value=end_value,
    )
    fall = cosine(peak_value, decay_steps - warmup_steps, end_value)
    return _warmup(text, fall, warmup_steps, init_value)


def wsd(
    peak_value: ArrayLike,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    init_value: ArrayLike = 0.0,
    end_value: ArrayLike = 0.0,
    shape: str = "linear",
) -> Curve:
    """Return the schedule that warms up, stays at the peak, and decays at the end.

    The updates after W to W + S others use the peak, the one after W + S + D others is the first
    at `end_value`. Runs of several lengths can branch from one trunk: while it is stable the value
    does not depend on when the decay will come.

    Args:
        peak_value: at steps W to W + S.
        warmup_steps: W ≥ 0, in optimizer updates.
        stable_steps: S ≥ 0, in optimizer updates.
        decay_steps: D ≥ 1, in optimizer updates.
        init_value: at step 0.
        end_value: at step W + S + D and ever after.
        shape: of the decay: "linear", "cosine" or "sqrt" (1 − √x, steep first).

    Raises:
        ValueError: a value is out of its range, or the shape is unknown.

    Example:
        >>> schedule = wsd(1.0, warmup_steps=10, stable_steps=70, decay_steps=20)
        >>> [float(schedule(step)) for step in (0, 5, 10, 80, 90, 100)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    Reference:
        Hu et al., arXiv:2404.06395 (2024); Hägele et al., NeurIPS (2024).
    """
    peak_value = check_value("wsd", "peak_value", peak_value)
    init_value = check_value("wsd", "init_value", init_value)
    end_value = check_value("wsd", "end_value", end_value)
    warmup_steps = _checks.check_count("wsd", "warmup_steps", warmup_steps, 0)
    stable_steps = _checks.check_count("wsd", "stable_steps", stable_steps, 0)
    decay_steps = _checks.check_count("wsd", "decay_steps", decay_steps, 1)
    whole = warmup_steps + stable_steps + decay_steps
    _checks.check_count("wsd", "warmup_steps + stable_steps + decay_steps", whole, 1)
    if not isinstance(shape, str) or shape not in _DECAYS:
        _checks.fail("wsd", f"shape must be one of {', '.join(_DECAYS)}", f"shape={shape!r}")
    text = describe(
        "wsd",
        peak_value=peak_value,
        warmup_steps=warmup_steps,
        stable_steps=stable_steps,
        decay_steps=decay_steps,
        init_value=init_value,
        end_value=end_value,
        shape=shape,
    )
    stop = stable_steps + decay_steps
    fall = Curve(
        "",
        lambda step: mix(_DECAYS[shape](*shares(step, stable_steps, stop)), peak_value, end_value),
        (0, stable_steps, stop),
    )
    return _warmup(text, fall, warmup_steps, init_value)


def check_schedule(who: str, schedule: Schedule) -> None:
    """Require a function of the step."""
    if not callable(schedule):
        _checks.fail(
            who,
            "schedule must be a function of the step",
            repr(schedule),
            "schedules.constant makes one of a number",
        )


def _warmup(text: str, schedule: Schedule, warmup_steps: int, init_value: ArrayLike) -> Curve:
    def function(step):
        after = as_float(schedule(jnp.maximum(step - warmup_steps, 0)))
        if warmup_steps == 0:
            return after
        # Behind the warm-up the weight of the first value is 0; before it, `after` is schedule(0).
        return mix(shares(step, 0, warmup_steps), init_value, after)

    knots = {0, warmup_steps, *(warmup_steps + knot for knot in getattr(schedule, "knots", ()))}
    return Curve(text, function, tuple(sorted(knots)))
