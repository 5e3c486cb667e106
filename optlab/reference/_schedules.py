"""Schedules: a hyperparameter as a function of the number of updates already made.

    constant          value
    linear            init·(1 − t/T) + end·t/T
    polynomial        end + (init − end)(1 − t/T)^power
    cosine            end + ½(init − end)(1 + cos(πt/T))
    exponential       init·e^(−kt)
    step decay        init·factor^⌊t/every⌋
    multistep         init·factor^(number of milestones ≤ t)
    inverse root      W = 0:  value/√(t + 1)
                      W ≥ 1:  value·min(t/W, √(W/t))
    warm-up           t < W:  init + (s(0) − init)·t/W
                      t ≥ W:  s(t − W)
    warm-up, cosine   that, with s the cosine from peak to end over T − W
    triangular        min + (max − min)·a·(1 − |r/h − 1|), with t = 2hc + r, 0 ≤ r < 2h
                      a = 1, or ½^c (halving), or gamma^t (exponential)
    cosine restarts   end + ½(init − end)·peak_factor^i·(1 + cos(πr/Lᵢ)), with r the steps made in
                      cycle i, of length Lᵢ = round(T·cycle_factor^i)
    wsd               t < W:      init + (peak − init)·t/W
                      t < W + S:  peak
                      then:       end + (peak − end)·f(x), with x = (t − W − S)/D
                      f = 1 − x (linear), or ½(1 + cos(πx)) (cosine), or 1 − √x (sqrt)
    one cycle         t ≤ pT:  from peak/div_factor to peak, with x = t/(pT)
                      t > pT:  from peak to peak/final_div_factor, with x = (t − pT)/(T − pT)
                      both from a to b as b + ½(a − b)(1 + cos(πx)); at the same time momentum
                      goes from m_max to m_min, then back
    SWA               cosine, linear:  from s(t₀) at t₀ to swa at t₀ + A, with x = (t − t₀)/A
                      paper:   from s(t) at ½t₀ to swa at 0.9t₀, in a straight line
                      cyclic:  from t₀ on peak + (swa − peak)·x, with x = ((t − t₀) mod c + 1)/c
    join              sᵢ(t − bᵢ), with bᵢ the last boundary ≤ t (i = 0, b₀ = 0 before the first)
    scale             factor·s(t)
    clamp             min(max(s(t), min), max)

t is `step`, counted *before* the update: the first update uses step 0. init, peak, end, min and
max are `init_value`, `peak_value` and so on; s is `schedule`; k is `decay_rate`; p is
`peak_fraction`; (m_max, m_min) is `momentum`; W, S and h are `warmup_steps`, `stable_steps` and
`half_cycle_steps`; t₀, A and c are `start_step`, `anneal_steps` and `cycle_steps`; D is wsd's
`decay_steps`; T is `transition_steps`, `total_steps` or
`decay_steps`, counted from step 0: with a warm-up it includes the warm-up, with restarts it is the
length of the first cycle.

Conventions chosen:
- Past the end every schedule stays at its last value.
- T = 0 is a jump: the end value from step 0 on. W = 0 starts at the peak; a warm-up with cosine
  of W = T has no cosine left and jumps to the end value at step T.
- Where a value jumps, the step of the jump has the new value. The one cycle has its peak at the
  real number pT, which may lie between two steps.
- With W ≥ 1 the inverse root is the Transformer's, whose own count n is read as t: its rate
  d^(−½)·min(n^(−½), n·W^(−3/2)) has the peak value = (dW)^(−½), at step W. Its first update here
  uses t = 0, and so the value 0.
- The exponential triangle shrinks the amplitude alone, as PyTorch does, and keeps min; in the
  paper's words both bounds shrink.
- cycle_factor is taken as the exact number that its float is, and halves are rounded to even.
- The one cycle ends at peak/final_div_factor (PyTorch and Optax: at peak/div_factor divided by
  final_div_factor). The half cosines are today's; the paper draws straight lines.

References: Goyal et al., arXiv:1706.02677 (2017), the warm-up. Vaswani et al., NeurIPS (2017),
the inverse root. Loshchilov, Hutter, ICLR (2017), the cosine and its restarts. Smith, WACV (2017),
the triangles. Smith, Topin, arXiv:1708.07120 (2018), the one cycle. Hu et al., arXiv:2404.06395
(2024, MiniCPM), warm-up–stable–decay; Hägele et al., NeurIPS (2024), its linear and 1 − √ decays.
"""

import bisect
import math
from fractions import Fraction


def constant(step, *, value):
    """Return the value at every step.

    Args:
        step: updates already made, ≥ 0; not used.
        value: the value.

    Returns:
        The value, a float.
    """
    return float(value)


# Decays


def linear(step, *, init_value, end_value, transition_steps):
    """Go from one value to another in a straight line: init·(1 − t/T) + end·t/T.

    Args:
        step: updates already made, ≥ 0.
        init_value: value at step 0.
        end_value: value at step `transition_steps` and after.
        transition_steps: T, in updates, ≥ 0.

    Returns:
        The value at this step, a float.
    """
    done, left = _shares(step, transition_steps)
    return left * init_value + done * end_value  # meets both ends exactly


def polynomial(step, *, init_value, end_value, power, transition_steps):
    """Go from one value to another along a power: end + (init − end)(1 − t/T)^power.

    Args:
        step: updates already made, ≥ 0.
        init_value: value at step 0.
        end_value: value at step `transition_steps` and after.
        power: > 0; 1 is the straight line, above 1 the change comes early.
        transition_steps: T, in updates, ≥ 0.

    Returns:
        The value at this step, a float.
    """
    _, left = _shares(step, transition_steps)
    left = left**power
    return left * init_value + (1 - left) * end_value  # meets both ends exactly


def cosine(step, *, init_value, decay_steps, end_value=0.0):
    """Fall on half a cosine: end + ½(init − end)(1 + cos(πt/T)).

    Args:
        step: updates already made, ≥ 0.
        init_value: value at step 0.
        decay_steps: T, in updates, ≥ 0.
        end_value: value at step `decay_steps` and after.

    Returns:
        The value at this step, a float.
    """
    done, left = _half_cosine(*_shares(step, decay_steps))
    return left * init_value + done * end_value


def exponential(step, *, init_value, decay_rate):
    """Fall by the same ratio at every step: init·e^(−kt).

    Args:
        step: updates already made, ≥ 0.
        init_value: value at step 0.
        decay_rate: k, per update, ≥ 0; the value halves every (ln 2)/k updates.

    Returns:
        The value at this step, a float.
    """
    return init_value * math.exp(-decay_rate * step)


def step_decay(step, *, init_value, factor, every):
    """Multiply by a factor at regular steps: init·factor^⌊t/every⌋.

    Args:
        step: updates already made, ≥ 0.
        init_value: value at steps 0 to `every` − 1.
        factor: in (0, 1]; the value is multiplied by it at step `every` and at each multiple of it.
        every: in updates, ≥ 1.

    Returns:
        The value at this step, a float.
    """
    return float(init_value * factor ** (step // every))


def multistep(step, *, init_value, factor, milestones):
    """Multiply by a factor at given steps: init·factor^(number of milestones ≤ t).

    Args:
        step: updates already made, ≥ 0.
        init_value: value before the first milestone.
        factor: in (0, 1]; the value is multiplied by it at each milestone, from that step on.
        milestones: sequence of steps, ≥ 0.

    Returns:
        The value at this step, a float.
    """
    return float(init_value * factor ** sum(milestone <= step for milestone in milestones))


def inverse_sqrt(step, *, value, warmup_steps=0):
    """Fall as one over the root of the step; with a warm-up, the Transformer's schedule.

    Args:
        step: updates already made, ≥ 0.
        value: without warm-up the value at step 0, so that update number n uses value/√n; with
            warm-up the value at step W, the highest.
        warmup_steps: W, in updates, ≥ 0; from 1 on the value rises from 0 at step 0.

    Returns:
        The value at this step, a float.

    Example:
        >>> [inverse_sqrt(t, value=1.0, warmup_steps=4) for t in (0, 1, 4, 16, 64)]
        [0.0, 0.25, 1.0, 0.5, 0.25]
    """
    if warmup_steps == 0:
        return value / math.sqrt(step + 1.0)  # as a float: the integer type of step may overflow
    if step < warmup_steps:
        return value * (step / warmup_steps)
    return value * math.sqrt(warmup_steps / step)


# Warm-up


def warmup(step, *, schedule, warmup_steps, init_value=0.0):
    """Rise in a straight line to where a schedule begins, then follow it from its step 0.

    Args:
        step: updates already made, ≥ 0.
        schedule: function of the step, s; called with t − W.
        warmup_steps: W, in updates, ≥ 0.
        init_value: value at step 0, where W ≥ 1.

    Returns:
        The value at this step, a float.
    """
    if step < warmup_steps:
        return linear(
            step, init_value=init_value, end_value=schedule(0), transition_steps=warmup_steps
        )
    return float(schedule(step - warmup_steps))


def warmup_cosine(step, *, peak_value, warmup_steps, decay_steps, init_value=0.0, end_value=0.0):
    """Rise in a straight line to the peak, then fall on half a cosine.

    Args:
        step: updates already made, ≥ 0.
        peak_value: value at step `warmup_steps`.
        warmup_steps: W, in updates, ≥ 0.
        decay_steps: T, in updates, ≥ W: length of warm-up and cosine together.
        init_value: value at step 0.
        end_value: value at step `decay_steps` and after.

    Returns:
        The value at this step, a float.

    Example:
        >>> [warmup_cosine(t, peak_value=1.0, warmup_steps=2, decay_steps=6) for t in range(4)]
        [0.0, 0.5, 1.0, 0.8535533905932737]
    """
    if step < warmup_steps:
        return linear(
            step, init_value=init_value, end_value=peak_value, transition_steps=warmup_steps
        )
    return cosine(
        step - warmup_steps,
        init_value=peak_value,
        decay_steps=decay_steps - warmup_steps,
        end_value=end_value,
    )


def wsd(
    step,
    *,
    peak_value,
    warmup_steps,
    stable_steps,
    decay_steps,
    init_value=0.0,
    end_value=0.0,
    shape="linear",
):
    """Rise in a straight line to the peak, stay there, then decay: warm-up–stable–decay.

    Args:
        step: updates already made, ≥ 0.
        peak_value: value from step W to step W + S.
        warmup_steps: W, in updates, ≥ 0.
        stable_steps: S, in updates, ≥ 0.
        decay_steps: D, in updates, ≥ 0; with 0 the value jumps to the end at step W + S.
        init_value: value at step 0, where W ≥ 1.
        end_value: value at step W + S + D and after.
        shape: the decay's shape: "linear", "cosine" or "sqrt" (1 − √x, steepest at its start).

    Returns:
        The value at this step, a float.

    Example:
        >>> options = {"warmup_steps": 2, "stable_steps": 3, "decay_steps": 4, "shape": "sqrt"}
        >>> [wsd(t, peak_value=1.0, **options) for t in (0, 1, 2, 5, 6, 9)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return linear(
            step, init_value=init_value, end_value=peak_value, transition_steps=warmup_steps
        )
    decayed = step - warmup_steps - stable_steps
    if decayed < 0:
        return float(peak_value)
    done, left = _shares(decayed, decay_steps)
    done, left = {
        "linear": (done, left),
        "cosine": _half_cosine(done, left),
        "sqrt": (math.sqrt(done), left / (1 + math.sqrt(done))),  # = 1 − √done, to the last digit
    }[shape]
    return left * peak_value + done * end_value


# Cycles


def triangular(step, *, min_value, max_value, half_cycle_steps, form="constant", gamma=1.0):
    """Rise and fall in straight lines, again and again.

    Args:
        step: updates already made, ≥ 0.
        min_value: value at step 0 and at every even multiple of h.
        max_value: value at step h and, in the form "constant", at every odd multiple of it.
        half_cycle_steps: h, in updates, ≥ 1.
        form: how the height max − min changes: "constant"; "halving", by ½ after each full cycle
            of 2h steps; or "exponential", by gamma at every step.
        gamma: in (0, 1], of the form "exponential".

    Returns:
        The value at this step, a float.

    Example:
        >>> options = {"min_value": 1.0, "max_value": 3.0, "half_cycle_steps": 2}
        >>> [triangular(t, **options, form="halving") for t in range(9)]
        [1.0, 2.0, 3.0, 2.0, 1.0, 1.5, 2.0, 1.5, 1.0]
    """
    cycle, moved = divmod(step, 2 * half_cycle_steps)
    height = min(moved, 2 * half_cycle_steps - moved) / half_cycle_steps
    height *= {"constant": 1.0, "halving": 0.5**cycle, "exponential": gamma**step}[form]
    return height * max_value + (1 - height) * min_value


def cosine_restarts(
    step,
    *,
    init_value,
    decay_steps,
    end_value=0.0,
    cycle_factor=1.0,
    peak_factor=1.0,
    num_cycles=None,
):
    """Fall on half a cosine, jump back up, and so on: SGDR.

    The last step of a cycle comes near the end value; the next step is the next peak.

    Args:
        step: updates already made, ≥ 0.
        init_value: value at step 0.
        decay_steps: T, length of the first cycle, in updates, ≥ 1.
        end_value: the value every cycle falls to.
        cycle_factor: > 0; cycle i = 0, 1, … has round(T·cycle_factor^i) steps.
        peak_factor: > 0; cycle i begins at end + (init − end)·peak_factor^i.
        num_cycles: number of cycles, ≥ 1, after which the value stays `end_value`. None for no
            limit; if the cycles shrink, the value stays there once a cycle is rounded to 0 steps.

    Returns:
        The value at this step, a float.

    Example:
        >>> options = {"init_value": 1.0, "decay_steps": 2, "cycle_factor": 2, "num_cycles": 2}
        >>> [round(cosine_restarts(t, **options), 3) for t in range(8)]
        [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    cycle, moved, length = 0, step, decay_steps
    if cycle_factor == 1:
        cycle, moved = divmod(step, decay_steps)
    while moved >= length > 0:
        cycle, moved = cycle + 1, moved - length
        length = round(decay_steps * Fraction(cycle_factor) ** cycle)
    if num_cycles is not None and cycle >= num_cycles:
        return float(end_value)
    _, left = _half_cosine(*_shares(moved, length))
    left *= peak_factor**cycle
    return left * init_value + (1 - left) * end_value


def one_cycle(
    step,
    *,
    peak_value,
    total_steps,
    peak_fraction=0.3,
    div_factor=25.0,
    final_div_factor=1e4,
    momentum=(0.95, 0.85),
):
    """Raise the learning rate while momentum falls, then the reverse, all on half cosines.

    Args:
        step: updates already made, ≥ 0.
        peak_value: α_max, the learning rate at step pT.
        total_steps: T, in updates, ≥ 1.
        peak_fraction: p, in (0, 1); pT need not be a whole number.
        div_factor: > 0; the learning rate at step 0 is α_max/div_factor.
        final_div_factor: > 0; at step T and after it is α_max/final_div_factor.
        momentum: (m_max, m_min): momentum at the two ends, and at step pT.

    Returns:
        Two floats: the learning rate and the momentum at this step.

    Example:
        >>> for t in (0, 30, 100):
        ...     print(one_cycle(t, peak_value=0.5, total_steps=100))
        (0.02, 0.95)
        (0.5, 0.85)
        (5e-05, 0.95)
    """
    highest, lowest = momentum
    peak_step = peak_fraction * total_steps
    if step <= peak_step:
        done, left = _half_cosine(*_shares(step, peak_step))
        rate = left * (peak_value / div_factor) + done * peak_value
        return rate, left * highest + done * lowest
    done, left = _half_cosine(*_shares(step - peak_step, total_steps - peak_step))
    rate = left * peak_value + done * (peak_value / final_div_factor)
    return rate, left * lowest + done * highest


def swa_schedule(
    step,
    *,
    schedule,
    swa_value,
    start_step,
    anneal_steps=None,
    form="cosine",
    cycle_steps=None,
    peak_value=None,
):
    """Leave a schedule for a rate at which parameters are averaged.

    Args:
        step: updates already made, ≥ 0.
        schedule: function of the step.
        swa_value: the rate to go to.
        start_step: t₀, in updates, ≥ 1.
        anneal_steps: A, in updates, ≥ 1, of "cosine" and "linear".
        form: "cosine", "linear", "paper" or "cyclic".
        cycle_steps: c, in updates, ≥ 1, of "cyclic".
        peak_value: what a cycle comes down from, of "cyclic".

    Returns:
        The value at this step, a float.
    """
    if form == "paper":
        first, done = schedule(step), (step - start_step / 2) / (0.4 * start_step)
        done = min(max(done, 0.0), 1.0)
        return float((1 - done) * first + done * swa_value)
    if step < start_step:
        return float(schedule(step))
    if form == "cyclic":
        done = ((step - start_step) % cycle_steps + 1) / cycle_steps
        return float((1 - done) * peak_value + done * swa_value)
    done, left = _shares(step - start_step, anneal_steps)
    if form == "cosine":
        done, left = _half_cosine(done, left)
    return float(left * schedule(start_step) + done * swa_value)


# Compositions


def join(step, *, schedules, boundaries):
    """Follow one schedule after another, each from its own step 0.

    Args:
        step: updates already made, ≥ 0.
        schedules: sequence of functions of the step.
        boundaries: the step at which each schedule but the first begins, in order; one fewer than
            the schedules.

    Returns:
        The value at this step, a float.
    """
    index = bisect.bisect_right(boundaries, step)
    return float(schedules[index](step - [0, *boundaries][index]))


def scale(step, *, schedule, factor):
    """Multiply a schedule by a number.

    Args:
        step: updates already made, ≥ 0.
        schedule: function of the step.
        factor: the number.

    Returns:
        The value at this step, a float.
    """
    return float(factor * schedule(step))


def clamp(step, *, schedule, min_value, max_value):
    """Keep a schedule within two bounds.

    Args:
        step: updates already made, ≥ 0.
        schedule: function of the step.
        min_value: the lowest value allowed.
        max_value: the highest value allowed, ≥ `min_value`.

    Returns:
        The value at this step, a float.
    """
    return float(min(max(schedule(step), min_value), max_value))


def _shares(step, length):
    """Return step/length within [0, 1] and 1 − step/length; (1, 0) if the length is 0.

    Each is rounded once. The difference of the other from 1 would lose the last digits of a small
    value.
    """
    if step >= length:
        return 1.0, 0.0
    step = max(step, 0)
    return step / length, (length - step) / length


def _half_cosine(done, left):
    """Return ½(1 − cos(π·done)) and ½(1 + cos(π·done)), where left = 1 − done.

    Both are computed as squares of sines, as 1 + cos has no correct digit where it is nearly 0.
    """
    return math.sin(math.pi / 2 * done) ** 2, math.sin(math.pi / 2 * left) ** 2
