"""Schedules that begin low: a linear warm-up to the peak, then a decay.

    α(t) = α_init + (α_peak − α_init) t/W                              t ≤ W
    α(t) = α_end + (α_peak − α_end) · ½(1 + cos(π (t − W)/(T − W)))    W ≤ t ≤ T

W is `warmup_steps`, T `decay_steps`, both counted in updates from the start of the run.

Reference: Goyal et al., arXiv:1706.02677 (2017) for the warm-up.
"""

import jax.numpy as jnp

from optlab import _checks
from optlab._types import ArrayLike, Schedule
from optlab.schedules._decay import cosine, linear


def warmup_cosine(
    peak_value: ArrayLike,
    warmup_steps: int,
    decay_steps: int,
    init_value: ArrayLike = 0.0,
    end_value: ArrayLike = 0.0,
) -> Schedule:
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
    for name, value in {"peak_value": peak_value, "init_value": init_value}.items():
        _checks.check_number(who, name, value, _checks.FINITE)
    _checks.check_number(who, "end_value", end_value, _checks.FINITE)
    _checks.check_count(who, "warmup_steps", warmup_steps, 0)
    _checks.check_count(who, "decay_steps", decay_steps, 1)
    if decay_steps <= warmup_steps:
        _checks.fail(
            who,
            "decay_steps must be more than warmup_steps",
            f"decay_steps={decay_steps}, warmup_steps={warmup_steps}",
            "decay_steps counts the whole run, warm-up included",
        )
    fall = cosine(peak_value, decay_steps - warmup_steps, end_value)
    if warmup_steps == 0:
        return fall
    rise = linear(init_value, peak_value, warmup_steps)

    def schedule(step: ArrayLike):
        step = jnp.asarray(step)
        return jnp.where(step < warmup_steps, rise(step), fall(step - warmup_steps))

    return schedule
