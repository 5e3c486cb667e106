"""Schedules that rise and fall: triangles, cosine restarts, and the one cycle.

    triangular       α(t) = α_min + (α_max − α_min) · a · (1 − |r/h − 1|),  t = 2hc + r, 0 ≤ r < 2h
                     a = 1 (constant), ½^c (halving) or γ^t (exponential)
    cosine restarts  α(t) = α_end + (α₀ − α_end) · peak_factor^i · ½(1 + cos(π r/Lᵢ))
    one cycle        the rate rises on half a cosine from α_max/div_factor to α_max over 0 ≤ t ≤ pT
                     and falls on another to α_max/final_div_factor over pT ≤ t ≤ T, while momentum
                     falls from m_max to m_min and rises back

c counts the triangles done and h is `half_cycle_steps`; r is the step within cycle i of length
Lᵢ = round(decay_steps·cycle_factor^i); T is `total_steps`, p `peak_fraction`, (m_max, m_min)
`momentum`.

Reference: Smith, WACV (2017) for the triangles; Loshchilov & Hutter, ICLR (2017) for the restarts;
Smith & Topin, arXiv:1708.07120 (2018) for the one cycle.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._tree import is_traced
from optlab._types import ArrayLike
from optlab.schedules._curve import (
    LAST_STEP,
    Curve,
    as_float,
    check_value,
    describe,
    half_cosines,
    mix,
    plus,
    power,
    shares,
    times,
)

_MOST_CYCLES = 10_000
_FORMS = ("constant", "halving", "exponential")


class OneCycle(NamedTuple):
    """Two schedules that share one clock.

    Attributes:
        learning_rate: up to the peak and down to almost nothing.
        momentum: down and up again; SGD's momentum, or Adam's b1.
    """

    learning_rate: Curve
    momentum: Curve


def triangular(
    min_value: ArrayLike,
    max_value: ArrayLike,
    half_cycle_steps: int,
    form: str = "constant",
    gamma: ArrayLike = 1.0,
) -> Curve:
    """Return the schedule that goes up and down between two values for ever.

    The first update uses `min_value`, the update after h others `max_value` (less in later cycles
    of the other forms), the one after 2h others `min_value` again.

    Args:
        min_value: at steps 0, 2h, 4h, …
        max_value: at steps h, 3h, … in the constant form.
        half_cycle_steps: h ≥ 1, in optimizer updates; typically 2 to 10 epochs.
        form: "constant"; "halving", where each triangle is half as high as the one before; or
            "exponential", where the height is multiplied by γ at each step.
        gamma: γ in (0, 1], of the exponential form.

    Raises:
        ValueError: a value is out of its range, or the form is unknown.

    Example:
        >>> schedule = triangular(0.0, 1.0, half_cycle_steps=10, form="halving")
        >>> [float(schedule(step)) for step in (0, 5, 10, 20, 30)]
        [0.0, 0.5, 1.0, 0.0, 0.5]

    Reference:
        Smith, WACV (2017).
    """
    who = "triangular"
    min_value = check_value(who, "min_value", min_value)
    max_value = check_value(who, "max_value", max_value)
    half_cycle_steps = _checks.check_count(who, "half_cycle_steps", half_cycle_steps, 1)
    _checks.check_count(who, "2·half_cycle_steps", 2 * half_cycle_steps, 1)
    gamma = check_value(who, "gamma", gamma, _checks.SHARE)
    if form not in _FORMS:
        _checks.fail(who, f"form must be one of {', '.join(_FORMS)}", f"form={form!r}")

    def function(step):
        cycle, position = jnp.divmod(step, 2 * half_cycle_steps)
        distance = jnp.abs(position - half_cycle_steps)
        _, weight = shares(half_cycle_steps - distance, 0, half_cycle_steps)
        if form == "halving":
            weight *= jnp.exp2(-as_float(cycle))
        elif form == "exponential":
            weight *= power(gamma, step)
        return mix((weight, 1 - weight), max_value, min_value)

    text = describe(
        who,
        min_value=min_value,
        max_value=max_value,
        half_cycle_steps=half_cycle_steps,
        form=form,
        gamma=gamma,
    )
    return Curve(text, function, (0, half_cycle_steps, 2 * half_cycle_steps))


def cosine_restarts(
    init_value: ArrayLike,
    decay_steps: int,
    end_value: ArrayLike = 0.0,
    cycle_factor: float = 1.0,
    peak_factor: ArrayLike = 1.0,
    num_cycles: int | None = None,
) -> Curve:
    """Return the schedule that falls along half a cosine again and again (SGDR).

    The first update of a cycle uses its peak; the last one of a cycle of L updates is one step
    short of `end_value`, which is the value after the last cycle.

    Args:
        init_value: α₀, at step 0.
        decay_steps: length of the first cycle, ≥ 1, in optimizer updates.
        end_value: what each cycle falls towards.
        cycle_factor: how much longer each cycle is than the one before, ≥ 1; lengths are rounded.
        peak_factor: height of each peak above `end_value`, divided by that of the peak before, ≥ 0.
        num_cycles: how many, ≥ 1; None for ever.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> schedule = cosine_restarts(1.0, decay_steps=10, cycle_factor=2, peak_factor=0.5)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 20, 30)]
        [1.0, 0.5, 0.5, 0.25, 0.25]

    Reference:
        Loshchilov & Hutter, ICLR (2017).
    """
    who = "cosine_restarts"
    init_value = check_value(who, "init_value", init_value)
    end_value = check_value(who, "end_value", end_value)
    decay_steps = _checks.check_count(who, "decay_steps", decay_steps, 1)
    cycle_factor = _checks.check_number(who, "cycle_factor", cycle_factor, _checks.AT_LEAST_ONE)
    peak_factor = check_value(who, "peak_factor", peak_factor, _checks.NONNEGATIVE)
    if num_cycles is not None:
        num_cycles = _checks.check_count(who, "num_cycles", num_cycles, 1)
    if cycle_factor == 1:
        ends = None
        last = None if num_cycles is None else num_cycles * decay_steps
    else:
        ends = _cycle_ends(decay_steps, cycle_factor, num_cycles)
        last = None if num_cycles is None else ends[-1]

    def function(step):
        if ends is None:
            cycle, position = jnp.divmod(step, decay_steps)
            left, _ = shares(position, 0, decay_steps)
        else:
            stops = np.minimum(np.array(ends, np.int64), LAST_STEP).astype(np.int32)
            starts = np.concatenate([[0], stops[:-1]]).astype(np.int32)
            cycle = jnp.minimum(jnp.searchsorted(stops, step, side="right"), len(stops) - 1)
            lengths = np.diff([0, *ends]).astype(np.float64)
            done = as_float(step - jnp.asarray(starts)[cycle])
            left = 1 - done / as_float(lengths)[cycle]
        weight = half_cosines(left, left)[0]
        if last is not None and last <= LAST_STEP:
            weight = jnp.where(step >= last, 0, weight)
        ratio = power(peak_factor, cycle)
        # Halves, as the difference of two large numbers would overflow.
        height = times(as_float(init_value) / 2 - as_float(end_value) / 2, 2 * ratio)
        peak = jnp.where(ratio == 1, as_float(init_value), plus(end_value, height))
        return mix((weight, 1 - weight), peak, end_value)

    text = describe(
        who,
        init_value=init_value,
        decay_steps=decay_steps,
        end_value=end_value,
        cycle_factor=cycle_factor,
        peak_factor=peak_factor,
        num_cycles=num_cycles,
    )
    return Curve(text, function, (0, decay_steps) if last is None else (0, decay_steps, last))


def one_cycle(
    peak_value: ArrayLike,
    total_steps: int,
    peak_fraction: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    momentum: tuple[float, float] = (0.95, 0.85),
) -> OneCycle:
    """Return the one cycle: a learning rate and, on the same clock, the momentum that goes with it.

    Both have zero slope at the start, the peak and the end. The first update uses
    (peak/div_factor, m_max), the one after T others the first (peak/final_div_factor, m_max): a
    loop of n updates reaches it in its last with T = n − 1.

    Args:
        peak_value: α_max, the rate at step pT.
        total_steps: T ≥ 1, in optimizer updates.
        peak_fraction: p in (0, 1); pT need not be whole.
        div_factor: > 0, of the first rate; typically 3 to 25.
        final_div_factor: > 0, of the last rate; typically 1e3 to 1e4. Both divide the peak
            (PyTorch and Optax divide the first rate by the second).
        momentum: (m_max, m_min) in [0, 1); m_max at both ends, m_min at the peak.

    Returns:
        `learning_rate` and `momentum`, two schedules.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> import optlab
        >>> cycle = one_cycle(peak_value=0.1, total_steps=100)
        >>> tx = optlab.adamw(cycle.learning_rate, b1=cycle.momentum)
        >>> [round(float(cycle.learning_rate(step)), 5) for step in (0, 30, 100)]
        [0.004, 0.1, 1e-05]
        >>> [round(float(cycle.momentum(step)), 5) for step in (0, 30, 100)]
        [0.95, 0.85, 0.95]

    Reference:
        Smith & Topin, arXiv:1708.07120 (2018); the half cosines are fastai's.
    """
    who = "one_cycle"
    peak_value = check_value(who, "peak_value", peak_value)
    total_steps = _checks.check_count(who, "total_steps", total_steps, 1)
    peak_fraction = _checks.check_number(who, "peak_fraction", peak_fraction, _checks.INSIDE)
    div_factor = _checks.check_number(who, "div_factor", div_factor, _checks.POSITIVE)
    final_div_factor = _checks.check_number(
        who, "final_div_factor", final_div_factor, _checks.POSITIVE
    )
    if not isinstance(momentum, tuple | list) or len(momentum) != 2:
        _checks.fail(who, "momentum must be a pair (m_max, m_min)", f"momentum={momentum!r}")
    momentum = tuple(
        _checks.check_number(who, "momentum", value, _checks.DECAY, dtype=jnp.float32)
        for value in momentum
    )
    traced = any(is_traced(value) for value in momentum)
    if not traced and momentum[0] < momentum[1]:
        _checks.fail(who, "momentum must be (m_max, m_min)", f"momentum={momentum!r}")
    first = check_value(who, "peak_value/div_factor", peak_value / div_factor)
    last = check_value(who, "peak_value/final_div_factor", peak_value / final_div_factor)
    peak = peak_fraction * total_steps

    def coupled(name, first, top, last):
        def function(step):
            step = as_float(step)  # the peak need not be at a whole step
            rise = half_cosines(*shares(step, 0, peak))
            fall = half_cosines(*shares(step, peak, total_steps))
            return jnp.where(step <= peak, mix(rise, first, top), mix(fall, top, last))

        return Curve(f"{text}.{name}", function, (0, peak, total_steps))

    text = describe(
        who,
        peak_value=peak_value,
        total_steps=total_steps,
        peak_fraction=peak_fraction,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        momentum=momentum,
    )
    high, low = momentum
    return OneCycle(
        coupled("learning_rate", first, peak_value, last),
        coupled("momentum", high, low, high),
    )


def _cycle_ends(first: int, factor: float, num_cycles: int | None) -> list[int]:
    """Return the steps at which cycles end, as far as steps can count."""
    ends, end = [], 0
    while end <= LAST_STEP and len(ends) != num_cycles:
        if len(ends) == _MOST_CYCLES:
            _checks.fail(
                "cosine_restarts",
                f"cycle_factor must be 1 or large enough for at most {_MOST_CYCLES} cycles",
                f"cycle_factor={factor}",
                "or limit num_cycles",
            )
        end += round(first * float(factor) ** len(ends))
        ends.append(end)
    return ends
