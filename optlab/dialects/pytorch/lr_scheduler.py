"""PyTorch's schedulers (`torch.optim.lr_scheduler`), each as a function of the step.

    StepLR               η · gamma^⌊t/step_size⌋
    MultiStepLR          η · gamma^(number of milestones ≤ t)
    ConstantLR           η · factor until T, then η
    LinearLR             η · (start_factor + (end_factor − start_factor) · min(t, T)/T)
    ExponentialLR        η · gammaᵗ
    PolynomialLR         η · (1 − min(t, T)/T)^power
    LambdaLR             η · lr_lambda(t)
    MultiplicativeLR     η · lr_lambda(1) · … · lr_lambda(t)
    CosineAnnealingLR    η_min + (η − η_min) · ½(1 + cos(π t/T_max)), up again past T_max
    CosineAnnealingWarmRestarts
                         the same, begun anew after T_0, T_0·T_mult, T_0·T_mult², … updates
    OneCycleLR           a = max_lr/div_factor at t = 0, max_lr at t = pN − 1 and
                         a/final_div_factor at t = N − 1, with half cosines or lines between
    CyclicLR             base_lr + (max_lr − base_lr) · height · scale, where height goes up from 0
                         to 1 in step_size_up updates, and back in step_size_down
    SequentialLR         one schedule after the other, each from its own step 0
    ChainedScheduler     η · the product of what multiplies η in each of several schedules

t is the step, which is PyTorch's `last_epoch`: the number of calls of `scheduler.step()` before,
0 at the first update. η is `lr`, T `total_iters`, η_min `eta_min`, p `pct_start`, N `total_steps`.

    schedule = StepLR(0.1, step_size=30, gamma=0.5)    # PyTorch: StepLR(optimizer, step_size=30, …)
    tx = optlab.dialects.pytorch.sgd(schedule, momentum=0.9)

Names, order and defaults are PyTorch's. The rate stands in the place of `optimizer`, except where
PyTorch's own arguments give it; a group of parameters with another rate has a schedule of its own.
`last_epoch` has no place: the count of updates is in the optimizer's state. Neither has `verbose`.
`OneCycleLR` and `CyclicLR` return a `Cycle` of the rate and the momentum. PyTorch's
`ReduceLROnPlateau` depends on the loss, so it is no schedule: it is `optlab.reduce_on_plateau`.

PyTorch forms most rates from the rate before. These are the closed forms, so the two differ by
PyTorch's roundings. What differs otherwise:

- From step N on `OneCycleLR` stays at its last rate. PyTorch goes beyond it at N, and then fails.
- `SequentialLR` begins every schedule at its own step 0 with its own rate. PyTorch goes on from the
  rate before in a `MultiplicativeLR`, multiplies a `ChainedScheduler` once too often or fails with
  it, loses its place in another `SequentialLR`, and lets a `OneCycleLR` change the others' rates.
- Past T_max a `CosineAnnealingLR` in a `ChainedScheduler` is still a factor. PyTorch begins there
  anew from 0.

Reference: pytorch.org/docs/stable/optim.html. Every scheduler is checked at each step against
recordings from PyTorch 2.13 (`tests/golden`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks, schedules
from optlab._tree import is_traced
from optlab._types import Array, ArrayLike, Schedule
from optlab.dialects._common import is_zero
from optlab.dialects._rates import check_fixed, check_rate, half_waves
from optlab.schedules._curve import (
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
from optlab.schedules._warmup import check_schedule

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "Cycle",
    "CyclicLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "SequentialLR",
    "StepLR",
]


class Cycle(NamedTuple):
    """Two schedules that share one clock.

    Attributes:
        learning_rate: the rate.
        momentum: SGD's momentum, or Adam's first beta; None with `cycle_momentum=False`.
    """

    learning_rate: Curve
    # Not `Curve | None`, which no optimizer's argument takes: whoever reads it has asked for it.
    momentum: Any


@dataclass(frozen=True, repr=False)
class _Multiple(Curve):
    """A rate times a factor that does not depend on it, so that factors can be chained.

    Attributes:
        lr: the rate.
        factor: what it is multiplied by at a step given as an array, ≥ 0.
    """

    lr: ArrayLike
    factor: Callable[[Array], Array]


def StepLR(lr: ArrayLike, step_size: int, gamma: ArrayLike = 0.1) -> Curve:
    """Return the schedule that multiplies the rate by `gamma` every `step_size` updates.

    Args:
        lr: η ≥ 0, at step 0.
        step_size: updates between two changes, ≥ 1.
        gamma: ≥ 0; above 1 the rate grows, as far as its type goes.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = StepLR(1.0, step_size=10, gamma=0.5)
        >>> [float(schedule(step)) for step in (0, 9, 10, 20)]
        [1.0, 1.0, 0.5, 0.25]
    """
    who = _who("StepLR")
    step_size = _checks.check_count(who, "step_size", step_size, 1)
    gamma = check_value(who, "gamma", gamma, _checks.NONNEGATIVE)
    return _multiple(
        "StepLR",
        lr,
        lambda step: power(gamma, step // step_size),
        (0, step_size),
        step_size=step_size,
        gamma=gamma,
    )


def MultiStepLR(lr: ArrayLike, milestones: Sequence[int], gamma: ArrayLike = 0.1) -> Curve:
    """Return the schedule that multiplies the rate by `gamma` at each milestone.

    Args:
        lr: η ≥ 0, before the first milestone.
        milestones: steps ≥ 0 in any order; one that stands there twice counts twice.
        gamma: ≥ 0; above 1 the rate grows, as far as its type goes.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = MultiStepLR(1.0, milestones=[20, 10, 20], gamma=0.5)
        >>> [float(schedule(step)) for step in (9, 10, 20)]
        [1.0, 0.5, 0.125]
    """
    who = _who("MultiStepLR")
    milestones = _steps(who, milestones)
    gamma = check_value(who, "gamma", gamma, _checks.NONNEGATIVE)
    passed = np.array(sorted(milestones), np.int32)
    return _multiple(
        "MultiStepLR",
        lr,
        lambda step: power(gamma, jnp.searchsorted(passed, step, side="right")),
        tuple(sorted({0, *milestones})),
        milestones=list(milestones),
        gamma=gamma,
    )


def ConstantLR(lr: ArrayLike, factor: ArrayLike = 1 / 3, total_iters: int = 5) -> Curve:
    """Return the schedule that is a share of the rate at first, and then the rate.

    Args:
        lr: η ≥ 0, from step T on.
        factor: in [0, 1], of the updates before.
        total_iters: T ≥ 1, in optimizer updates.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = ConstantLR(1.0, factor=0.5, total_iters=4)
        >>> [float(schedule(step)) for step in (0, 3, 4)]
        [0.5, 0.5, 1.0]
    """
    who = _who("ConstantLR")
    factor = check_value(who, "factor", factor, _checks.UNIT)
    total_iters = _checks.check_count(who, "total_iters", total_iters, 1)
    return _multiple(
        "ConstantLR",
        lr,
        lambda step: jnp.where(step < total_iters, as_float(factor), as_float(1)),
        (0, total_iters),
        factor=factor,
        total_iters=total_iters,
    )


def LinearLR(
    lr: ArrayLike,
    start_factor: ArrayLike = 1 / 3,
    end_factor: ArrayLike = 1.0,
    total_iters: int = 5,
) -> Curve:
    """Return the schedule that goes in a straight line from one share of the rate to another.

    Args:
        lr: η ≥ 0, which both factors multiply.
        start_factor: in (0, 1], at step 0.
        end_factor: in [0, 1], at step T and ever after.
        total_iters: T ≥ 1, in optimizer updates.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = LinearLR(1.0, start_factor=0.5, total_iters=4)
        >>> [float(schedule(step)) for step in (0, 2, 4, 5)]
        [0.5, 0.75, 1.0, 1.0]
    """
    who = _who("LinearLR")
    start_factor = check_value(who, "start_factor", start_factor, _checks.SHARE)
    end_factor = check_value(who, "end_factor", end_factor, _checks.UNIT)
    total_iters = _checks.check_count(who, "total_iters", total_iters, 1)
    return _multiple(
        "LinearLR",
        lr,
        lambda step: mix(shares(step, 0, total_iters), start_factor, end_factor),
        (0, total_iters),
        start_factor=start_factor,
        end_factor=end_factor,
        total_iters=total_iters,
    )


def ExponentialLR(lr: ArrayLike, gamma: ArrayLike) -> Curve:
    """Return the schedule that multiplies the rate by `gamma` after every update.

    Args:
        lr: η ≥ 0, at step 0.
        gamma: ≥ 0; above 1 the rate grows, as far as its type goes.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = ExponentialLR(1.0, gamma=0.5)
        >>> [float(schedule(step)) for step in (0, 1, 2)]
        [1.0, 0.5, 0.25]
    """
    gamma = check_value(_who("ExponentialLR"), "gamma", gamma, _checks.NONNEGATIVE)
    return _multiple("ExponentialLR", lr, lambda step: power(gamma, step), (0,), gamma=gamma)


def PolynomialLR(lr: ArrayLike, total_iters: int = 5, power: ArrayLike = 1.0) -> Curve:
    """Return the schedule that falls to 0 along a power of what is left.

    Args:
        lr: η ≥ 0, at step 0.
        total_iters: T ≥ 1, in optimizer updates.
        power: ≥ 0; 1 is a straight line, and 0 keeps the rate for ever.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = PolynomialLR(1.0, total_iters=4, power=2.0)
        >>> [float(schedule(step)) for step in (0, 2, 4)]
        [1.0, 0.25, 0.0]
    """
    who = _who("PolynomialLR")
    total_iters = _checks.check_count(who, "total_iters", total_iters, 1)
    power = check_value(who, "power", power, _checks.NONNEGATIVE)
    return _multiple(
        "PolynomialLR",
        lr,
        lambda step: shares(step, 0, total_iters)[0] ** as_float(power),
        (0, total_iters),
        total_iters=total_iters,
        power=power,
    )


def LambdaLR(lr: ArrayLike, lr_lambda: Callable[[Any], Any]) -> Curve:
    """Return the schedule that multiplies the rate by a function of the step.

    Args:
        lr: η ≥ 0.
        lr_lambda: from the step, an integer array, to a number; written with `jax.numpy` where
            Python would ask for the value of the step (`jnp.where` in place of `if`).

    Raises:
        ValueError: the rate is out of its range, or `lr_lambda` is not a function.

    Example:
        >>> schedule = LambdaLR(0.5, lambda step: 0.5 ** (step // 10))
        >>> [float(schedule(step)) for step in (0, 9, 10)]
        [0.5, 0.5, 0.25]
    """
    lr = check_rate(_who("LambdaLR"), lr)
    _check_function(_who("LambdaLR"), "lr_lambda", lr_lambda)
    return Curve(
        describe("LambdaLR", lr=lr, lr_lambda=lr_lambda),
        lambda step: times(lr, as_float(lr_lambda(_as_int(step)))),
        (0,),
    )


def MultiplicativeLR(lr: ArrayLike, lr_lambda: Callable[[Any], Any]) -> Curve:
    """Return the schedule that multiplies the rate before by a function of the step.

    A schedule keeps no rate from before: step t multiplies t factors anew, which takes time, and in
    float32 adds up t roundings. Where the function is a constant, `ExponentialLR` has neither.

    Args:
        lr: η ≥ 0, at step 0.
        lr_lambda: from the step, an integer array ≥ 1, to a factor ≥ 0; written with `jax.numpy`.

    Raises:
        ValueError: the rate is out of its range, or `lr_lambda` is not a function.

    Example:
        >>> schedule = MultiplicativeLR(1.0, lambda step: jnp.where(step > 2, 0.5, 1.0))
        >>> [float(schedule(step)) for step in (0, 2, 3, 4)]
        [1.0, 1.0, 0.5, 0.25]
    """
    _check_function(_who("MultiplicativeLR"), "lr_lambda", lr_lambda)

    def factor(step):
        def multiply(before, product):
            return times(product, as_float(lr_lambda(_as_int(before + 1))))

        return jax.lax.fori_loop(0, step, multiply, as_float(1))

    return _multiple("MultiplicativeLR", lr, factor, (0,), lr_lambda=lr_lambda)


def CosineAnnealingLR(lr: ArrayLike, T_max: int, eta_min: ArrayLike = 0.0) -> Curve:
    """Return the schedule that falls along half a cosine, and rises again along the next half.

    Args:
        lr: η ≥ 0, at steps 0, 2·T_max, …
        T_max: updates from there to `eta_min`, ≥ 1.
        eta_min: η_min ≥ 0, at steps T_max, 3·T_max, …

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = CosineAnnealingLR(1.0, T_max=10, eta_min=0.5)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 15, 20)]
        [1.0, 0.75, 0.5, 0.75, 1.0]
    """
    who = _who("CosineAnnealingLR")
    T_max = _checks.check_count(who, "T_max", T_max, 1)
    eta_min = check_rate(who, eta_min, "eta_min")
    options, knots = {"T_max": T_max, "eta_min": eta_min}, (0, T_max)

    def weights(step):
        return half_waves(step, Fraction(T_max))

    if is_zero(eta_min):
        return _multiple("CosineAnnealingLR", lr, lambda step: weights(step)[0], knots, **options)
    lr = check_rate(who, lr)
    text = describe("CosineAnnealingLR", lr=lr, **options)
    return Curve(text, lambda step: mix(weights(step), lr, eta_min), knots)


def CosineAnnealingWarmRestarts(
    lr: ArrayLike, T_0: int, T_mult: int = 1, eta_min: ArrayLike = 0.0
) -> Curve:
    """Return the schedule that falls along half a cosine again and again, from the rate each time.

    Args:
        lr: η ≥ 0, at the first step of each cycle.
        T_0: updates in the first cycle, ≥ 1.
        T_mult: how many times longer each cycle is than the one before, an integer ≥ 1.
        eta_min: η_min ≥ 0, which each cycle falls towards.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> schedule = CosineAnnealingWarmRestarts(1.0, T_0=10, T_mult=2)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 20, 30)]
        [1.0, 0.5, 1.0, 0.5, 1.0]
    """
    who = _who("CosineAnnealingWarmRestarts")
    lr = check_rate(who, lr)
    T_0 = _checks.check_count(who, "T_0", T_0, 1)
    T_mult = _checks.check_count(who, "T_mult", T_mult, 1)
    eta_min = check_rate(who, eta_min, "eta_min")
    restarts = schedules.cosine_restarts(lr, T_0, eta_min, cycle_factor=T_mult)
    text = describe("CosineAnnealingWarmRestarts", lr=lr, T_0=T_0, T_mult=T_mult, eta_min=eta_min)
    return Curve(text, restarts.function, restarts.knots)


def OneCycleLR(
    max_lr: ArrayLike,
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    cycle_momentum: bool = True,
    base_momentum: ArrayLike = 0.85,
    max_momentum: ArrayLike = 0.95,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Cycle:
    """Return the one cycle: the rate goes up once and down, and the momentum down and up.

    With N updates in all, the rate is at its peak at step pN − 1, not always whole, and at its last
    value at step N − 1, which the last update uses.

    Args:
        max_lr: the peak, ≥ 0.
        total_steps: N ≥ 1, in optimizer updates; or else `epochs·steps_per_epoch`.
        epochs: passes over the data, ≥ 1; read where there are no `total_steps`.
        steps_per_epoch: updates in each, ≥ 1; read where there are no `total_steps`.
        pct_start: p in [0, 1], the share of the updates before the peak.
        anneal_strategy: "cos" for half cosines, or "linear".
        cycle_momentum: whether there is a momentum.
        base_momentum: in [0, 1), at the peak of the rate.
        max_momentum: in [0, 1), at both ends.
        div_factor: > 0; the first rate is max_lr/div_factor.
        final_div_factor: > 0; the last rate is the *first* over this.
        three_phase: whether the rate goes back to the first as it came, until step 2pN − 2, and
            only then to the last.

    Returns:
        `learning_rate` and `momentum`.

    Raises:
        ValueError: a number is out of its range, or the number of updates is not given.

    Example:
        >>> import optlab
        >>> cycle = OneCycleLR(0.1, total_steps=100)
        >>> tx = optlab.dialects.pytorch.sgd(cycle.learning_rate, momentum=cycle.momentum)
        >>> [round(float(cycle.learning_rate(step)), 7) for step in (0, 29, 99)]
        [0.004, 0.1, 4e-07]
        >>> [round(float(cycle.momentum(step)), 7) for step in (0, 29, 99)]
        [0.95, 0.85, 0.95]
    """
    who = _who("OneCycleLR")
    max_lr = check_rate(who, max_lr, "max_lr")
    if total_steps is None:
        if epochs is None or steps_per_epoch is None:
            required = "total_steps, or epochs and steps_per_epoch, must be given"
            _checks.fail(who, required, f"epochs={epochs}, steps_per_epoch={steps_per_epoch}")
        epochs = _checks.check_count(who, "epochs", epochs, 1)
        total_steps = epochs * _checks.check_count(who, "steps_per_epoch", steps_per_epoch, 1)
    total_steps = _checks.check_count(who, "total_steps", total_steps, 1)
    pct_start = check_fixed(who, "pct_start", pct_start, _checks.UNIT)
    shape = _choose(who, "anneal_strategy", anneal_strategy, _ANNEALINGS)
    div_factor = _checks.check_number(who, "div_factor", div_factor, _checks.POSITIVE)
    final_div_factor = _checks.check_number(
        who, "final_div_factor", final_div_factor, _checks.POSITIVE
    )
    first = check_rate(who, max_lr / div_factor, "max_lr/div_factor")
    least = check_rate(who, first / final_div_factor, "max_lr/(div_factor·final_div_factor)")
    momenta = _momenta(who, cycle_momentum, base_momentum, max_momentum)
    last = total_steps - 1
    ends = [pct_start * total_steps - 1, last]
    if _checks.check_flag(who, "three_phase", three_phase):
        ends.insert(1, 2 * pct_start * total_steps - 2)
    phases = list(pairwise([0, *ends]))
    if not any(begin < stop for begin, stop in phases):
        _checks.fail(who, "total_steps must be more than 1 with this pct_start", f"{total_steps}")

    def curve(name, start, peak, middle, end):
        values = [start, peak, middle, end] if three_phase else [start, peak, end]

        def function(step):
            # The ends of the phases need not be whole.
            step = as_float(jnp.minimum(step, last))
            *before, (_, value) = (
                (stop, mix(shape(*shares(step, begin, stop)), a, b))
                for (begin, stop), (a, b) in zip(phases, pairwise(values), strict=True)
                if begin < stop
            )
            for stop, own in reversed(before):
                value = jnp.where(step <= stop, own, value)
            return value

        knots = sorted({min(max(knot, 0), last) for knot in (0, *ends)})
        return Curve(f"{text}.{name}", function, tuple(knots))

    text = describe(
        "OneCycleLR",
        max_lr=max_lr,
        total_steps=total_steps,
        pct_start=pct_start,
        anneal_strategy=anneal_strategy,
        cycle_momentum=cycle_momentum,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        three_phase=three_phase,
    )
    rate = curve("learning_rate", first, max_lr, first, least)
    if momenta is None:
        return Cycle(rate, None)
    low, high = momenta
    return Cycle(rate, curve("momentum", high, low, high, high))


def CyclicLR(
    base_lr: ArrayLike,
    max_lr: ArrayLike,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: ArrayLike = 1.0,
    scale_fn: Callable[[Any], Any] | None = None,
    scale_mode: str = "cycle",
    cycle_momentum: bool = True,
    base_momentum: ArrayLike = 0.8,
    max_momentum: ArrayLike = 0.9,
) -> Cycle:
    """Return the schedule that goes up and down between two rates for ever, and a momentum.

    The momentum goes down where the rate goes up. The height of both is multiplied by a scale.

    Args:
        base_lr: ≥ 0, at the first step of each cycle.
        max_lr: ≥ 0, at the top of a cycle with the scale 1.
        step_size_up: updates from the one to the other, ≥ 1.
        step_size_down: updates from there back, ≥ 1; None for as many.
        mode: "triangular", whose scale is 1; "triangular2", whose scale is halved with each cycle;
            or "exp_range", whose scale is gammaᵗ.
        gamma: ≥ 0, of "exp_range"; above 1 the rate grows, and the momentum falls below 0 at last.
        scale_fn: a scale in place of the mode's, of the number of the cycle (1, 2, …) or of the
            step, an integer array; written with `jax.numpy`.
        scale_mode: what `scale_fn` is a function of, "cycle" or "iterations".
        cycle_momentum: whether there is a momentum.
        base_momentum: in [0, 1), where the rate is `max_lr`.
        max_momentum: in [0, 1), where the rate is `base_lr`.

    Returns:
        `learning_rate` and `momentum`.

    Raises:
        ValueError: a number is out of its range, or a mode is unknown.

    Example:
        >>> cycle = CyclicLR(0.0, 1.0, step_size_up=2, step_size_down=4, mode="triangular2")
        >>> [float(cycle.learning_rate(step)) for step in (0, 1, 2, 4, 6, 8)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.5]
    """
    who = _who("CyclicLR")
    base_lr, max_lr = check_rate(who, base_lr, "base_lr"), check_rate(who, max_lr, "max_lr")
    up = _checks.check_count(who, "step_size_up", step_size_up, 1)
    down = up
    if step_size_down is not None:
        down = _checks.check_count(who, "step_size_down", step_size_down, 1)
    length = _checks.check_count(who, "step_size_up + step_size_down", up + down, 1)
    gamma = check_value(who, "gamma", gamma, _checks.NONNEGATIVE)
    _choose(who, "scale_mode", scale_mode, dict.fromkeys(("cycle", "iterations")))
    modes = {
        "triangular": lambda step: as_float(1),
        "triangular2": lambda step: jnp.exp2(-as_float(step // length)),
        "exp_range": lambda step: power(gamma, step),
    }
    if scale_fn is None:
        scale = _choose(who, "mode", mode, modes)
    else:
        _check_function(who, "scale_fn", scale_fn)

        def scale(step):
            by_cycle = scale_mode == "cycle"
            return as_float(scale_fn(_as_int(1 + step // length if by_cycle else step)))

    momenta = _momenta(who, cycle_momentum, base_momentum, max_momentum)

    def curve(name, bottom, top):
        def function(step):
            place = step % length
            rise, fall = shares(place, 0, up)[1], shares(place, up, length)[0]
            height = jnp.where(place <= up, rise, fall) * scale(step)
            value = plus(bottom, times(as_float(top) - as_float(bottom), height))
            return jnp.where(height == 1, as_float(top), value)

        return Curve(f"{text}.{name}", function, (0, up, length))

    text = describe(
        "CyclicLR",
        base_lr=base_lr,
        max_lr=max_lr,
        step_size_up=up,
        step_size_down=down,
        mode=mode,
        gamma=gamma,
        scale_fn=scale_fn,
        scale_mode=scale_mode,
        cycle_momentum=cycle_momentum,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
    )
    rate = curve("learning_rate", base_lr, max_lr)
    if momenta is None:
        return Cycle(rate, None)
    low, high = momenta
    return Cycle(rate, curve("momentum", high, low))


def SequentialLR(schedulers: Sequence[Schedule], milestones: Sequence[int]) -> Curve:
    """Return the schedule that runs others one after the other, each from its own step 0.

    Each schedule was made with a rate of its own, so there is no `lr` here.

    Args:
        schedulers: at least one; any functions of the step.
        milestones: steps ≥ 0, ascending; as many as there are schedules, less one. The update after
            `milestones[i]` others is the first that uses `schedulers[i + 1]`. Of schedules that
            would begin at the same step the last one does.

    Raises:
        ValueError: something is not a schedule, or the milestones are out of order or too few.

    Example:
        >>> first = ConstantLR(1.0, factor=0.5, total_iters=9)
        >>> second = ExponentialLR(1.0, gamma=0.5)
        >>> schedule = SequentialLR([first, second], milestones=[5])
        >>> [float(schedule(step)) for step in (0, 4, 5, 6)]
        [0.5, 0.5, 1.0, 0.5]
    """
    who = _who("SequentialLR")
    schedulers = tuple(schedulers)
    for schedule in schedulers:
        check_schedule(who, schedule)
    milestones = _steps(who, milestones)
    if len(milestones) != len(schedulers) - 1:
        _checks.fail(
            who,
            "there must be one milestone less than schedulers",
            f"{len(milestones)} milestones for {len(schedulers)} schedulers",
        )
    if list(milestones) != sorted(milestones):
        _checks.fail(who, "milestones must be ascending", str(list(milestones)))
    spans = zip((0, *milestones), (*milestones, None), schedulers, strict=True)
    used = [(start, schedule) for start, stop, schedule in spans if start != stop]
    starts, schedules_used = zip(*used, strict=True)
    text = describe("SequentialLR", schedulers=list(schedulers), milestones=list(milestones))
    if len(used) == 1:
        only = schedules_used[0]
        return Curve(text, lambda step: as_float(only(step)), getattr(only, "knots", (0,)))
    joined = schedules.join(schedules_used, starts[1:])
    return Curve(text, joined.function, joined.knots)


def ChainedScheduler(schedulers: Sequence[Curve]) -> Curve:
    """Return the schedule that multiplies one rate by the factors of several schedules.

    Args:
        schedulers: at least one, all made with the same `lr`, which is that of the chain: any of
            `StepLR`, `MultiStepLR`, `ConstantLR`, `LinearLR`, `ExponentialLR`, `PolynomialLR`,
            `MultiplicativeLR`, `CosineAnnealingLR` with `eta_min` 0, and chains. The others set the
            rate anew in PyTorch, whatever stands before them in a chain.

    Raises:
        ValueError: there is none, one is of another kind, or their rates differ.

    Example:
        >>> first = ConstantLR(1.0, factor=0.5, total_iters=2)
        >>> second = ExponentialLR(1.0, gamma=0.5)
        >>> schedule = ChainedScheduler([first, second])
        >>> [float(schedule(step)) for step in (0, 1, 2, 3)]
        [0.5, 0.25, 0.25, 0.125]
    """
    who = _who("ChainedScheduler")
    chain = []
    for schedule in schedulers:
        if not isinstance(schedule, _Multiple):
            _checks.fail(
                who,
                "schedulers must each multiply the rate, as StepLR or LinearLR",
                repr(schedule),
                "run schedules one after the other with SequentialLR",
            )
        chain.append(schedule)
    if not chain:
        _checks.fail(who, "there must be at least one scheduler", "none")
    rates = [schedule.lr for schedule in chain]
    known = {float(np.asarray(lr)) for lr in rates if not is_traced(lr)}
    if len(known) > 1:
        _checks.fail(who, "schedulers must have the same lr", ", ".join(map(str, sorted(known))))

    def factor(step):
        return reduce(times, (schedule.factor(step) for schedule in chain))

    knots = sorted({knot for schedule in chain for knot in schedule.knots})
    return _Multiple(
        describe("ChainedScheduler", schedulers=chain),
        lambda step: times(rates[0], factor(step)),
        tuple(knots),
        rates[0],
        factor,
    )


_ANNEALINGS = {"cos": half_cosines, "linear": lambda left, done: (left, done)}


def _who(name: str) -> str:
    return f"dialects.pytorch.lr_scheduler.{name}"


def _multiple(
    name: str,
    lr: ArrayLike,
    factor: Callable[[Array], Array],
    knots: tuple[float, ...],
    /,
    **arguments: object,
) -> _Multiple:
    """Return lr·factor(step), which says how it was made."""
    lr = check_rate(_who(name), lr)
    text = describe(name, lr=lr, **arguments)
    return _Multiple(text, lambda step: times(lr, factor(step)), knots, lr, factor)


def _steps(who: str, milestones: Sequence[int]) -> tuple[int, ...]:
    """Require a sequence of steps ≥ 0."""
    if not isinstance(milestones, Sequence | np.ndarray):
        _checks.fail(who, "milestones must be a sequence of steps", f"milestones={milestones!r}")
    return tuple(_checks.check_count(who, "each of milestones", step, 0) for step in milestones)


def _as_int(step: Array) -> Array:
    """Return a step from which a function makes a double under x64, as 1/step is one."""
    return jnp.asarray(step, int)


def _check_function(who: str, name: str, function: Callable[[Any], Any]) -> None:
    if not callable(function):
        remedy = "make a schedule for each group of parameters, where PyTorch takes a list"
        _checks.fail(who, f"{name} must be a function", f"{name}={function!r}", remedy)


def _choose(who: str, name: str, key: str, choices: dict[str, Any]) -> Any:
    """Return the choice of that name."""
    if not isinstance(key, str) or key not in choices:
        _checks.fail(who, f"{name} must be one of {', '.join(choices)}", f"{name}={key!r}")
    return choices[key]


def _momenta(
    who: str, cycle_momentum: bool, base_momentum: ArrayLike, max_momentum: ArrayLike
) -> tuple[ArrayLike, ArrayLike] | None:
    """Return the momentum at the peak of the rate and elsewhere, None where there is none."""
    if not _checks.check_flag(who, "cycle_momentum", cycle_momentum):
        return None
    low = check_value(who, "base_momentum", base_momentum, _checks.DECAY)
    return low, check_value(who, "max_momentum", max_momentum, _checks.DECAY)
