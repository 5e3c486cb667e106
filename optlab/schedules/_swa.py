"""Schedules for averages of the parameters: down to a rate that stays high, or round about it.

    SWALR        α(t) = s(t)                                        t < t₀
                 α(t) = s(t₀) + (α_swa − s(t₀)) · f((t − t₀)/A)     t₀ ≤ t ≤ t₀ + A
                 α(t) = α_swa                                       later
                 f(x) = ½(1 − cos πx) (cosine) or x (linear)
    the paper's  α(t) = s(t) + (α_swa − s(t)) · x,  x = (t − ½t₀)/(0.9t₀ − ½t₀) within [0, 1]
    cyclic       α(t) = s(t)                                        t < t₀
                 α(t) = (1 − x) α_peak + x α_swa,  x = ((t − t₀) mod c + 1)/c

s is `schedule`, t₀ `start_step`, A `anneal_steps`, c `cycle_steps`, all in updates. In the paper's
runs s is constant, and parameters are averaged from t₀ on. The last update of a cycle uses α_swa,
and the parameters after it are those to average: `params_average(t₀ + c − 1, c)` does.

Reference: Izmailov et al., UAI (2018), and its published code; PyTorch's SWALR.
"""

import jax.numpy as jnp

from optlab import _checks
from optlab._types import Array, ArrayLike, Schedule
from optlab.schedules._curve import (
    Curve,
    as_float,
    check_value,
    describe,
    half_cosines,
    mix,
    shares,
)
from optlab.schedules._warmup import check_schedule

_NEEDS = {
    "cosine": ("anneal_steps",),
    "linear": ("anneal_steps",),
    "paper": (),
    "cyclic": ("cycle_steps", "peak_value"),
}
"""The arguments that each form takes beyond those that all take."""


def swa_schedule(
    schedule: Schedule,
    swa_value: ArrayLike,
    start_step: int,
    anneal_steps: int | None = None,
    form: str = "cosine",
    cycle_steps: int | None = None,
    peak_value: ArrayLike | None = None,
) -> Curve:
    """Return a schedule that another one leaves for a rate at which parameters are averaged.

    Parameters that are averaged (`params_average`) need a rate that stays high: an average takes
    the place of the decay to zero.

    Args:
        schedule: any function of the step, ours or Optax's; `constant(0.1)` in the paper.
        swa_value: α_swa ≥ 0; in the paper half of the first rate for a constant one.
        start_step: t₀ ≥ 1, in optimizer updates. The update after t₀ others is the first that is
            not the schedule's in the forms "cosine", "linear" (where it still has its value) and
            "cyclic"; for "paper" it is the first to average, and the rate is α_swa from 0.9 t₀ on.
        anneal_steps: A ≥ 1, the updates in which "cosine" and "linear" go to α_swa.
        form: "cosine" or "linear", as PyTorch's SWALR; "paper", in a straight line before the
            start; "cyclic", down from `peak_value` again and again.
        cycle_steps: c ≥ 1, the updates of a cycle of "cyclic".
        peak_value: ≥ 0, what a cycle goes down from; its first update is one step of c below.

    Raises:
        ValueError: `schedule` is not callable, a value is out of its range, the form is unknown, or
            an argument that it needs is missing or one of another form is given.

    Example:
        >>> from optlab import schedules
        >>> schedule = swa_schedule(schedules.constant(0.1), 0.02, start_step=10, anneal_steps=4)
        >>> [round(float(schedule(step)), 4) for step in (10, 11, 12, 13, 14, 99)]
        [0.1, 0.0883, 0.06, 0.0317, 0.02, 0.02]
        >>> schedule = swa_schedule(
        ...     schedules.constant(0.1), 0.01, 10, form="cyclic", cycle_steps=3, peak_value=0.04
        ... )
        >>> [round(float(schedule(step)), 4) for step in (9, 10, 11, 12, 13)]
        [0.1, 0.03, 0.02, 0.01, 0.03]

    Reference:
        Izmailov et al., UAI (2018).
    """
    who = "swa_schedule"
    check_schedule(who, schedule)
    swa_value = check_value(who, "swa_value", swa_value, _checks.NONNEGATIVE)
    start_step = _checks.check_count(who, "start_step", start_step, 1)
    if not isinstance(form, str) or form not in _NEEDS:
        _checks.fail(who, f"form must be one of {', '.join(_NEEDS)}", f"form={form!r}")
    of_form = {"anneal_steps": anneal_steps, "cycle_steps": cycle_steps, "peak_value": peak_value}
    for name, value in of_form.items():
        if (name in _NEEDS[form]) != (value is not None):
            must = "be given for" if value is None else "be left out of"
            _checks.fail(who, f"{name} must {must} the form {form}", f"{name}={value}")
    for name in ("anneal_steps", "cycle_steps"):
        if of_form[name] is not None:
            of_form[name] = _checks.check_count(who, name, of_form[name], 1)
    if peak_value is not None:
        peak_value = check_value(who, "peak_value", peak_value, _checks.NONNEGATIVE)
        of_form["peak_value"] = peak_value
    given = {name: value for name, value in of_form.items() if value is not None}

    stop = start_step + given.get("anneal_steps", 0)
    last = _checks.check_count(who, "start_step + anneal_steps", stop, 1)

    def anneal(step: Array) -> Array:
        left, done = shares(step, start_step, last)
        weights = half_cosines(left, done) if form == "cosine" else (left, done)
        # The schedule stands still where it is left.
        return mix(weights, as_float(schedule(jnp.minimum(step, start_step))), swa_value)

    def before(step: Array) -> Array:
        weights = shares(as_float(step), 0.5 * start_step, 0.9 * start_step)
        return mix(weights, as_float(schedule(step)), swa_value)

    def cycle(step: Array) -> Array:
        position = jnp.maximum(step - start_step, 0) % given["cycle_steps"] + 1
        down = mix(shares(position, 0, given["cycle_steps"]), given["peak_value"], swa_value)
        return jnp.where(step < start_step, as_float(schedule(step)), down)

    function, own = {
        "cosine": (anneal, (start_step, last)),
        "linear": (anneal, (start_step, last)),
        "paper": (before, (0.5 * start_step, 0.9 * start_step)),
        "cyclic": (cycle, (start_step,)),
    }[form]
    knots = {0, *own, *(knot for knot in getattr(schedule, "knots", ()) if knot < max(own))}
    text = describe(
        who, schedule=schedule, swa_value=swa_value, start_step=start_step, form=form, **given
    )
    return Curve(text, function, tuple(sorted(knots)))
