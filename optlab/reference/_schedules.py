"""Schedules: a hyperparameter as a function of the number of updates already made.

    constant         value
    linear           init + (end − init)·t/T
    cosine           end + ½(init − end)(1 + cos(πt/T))
    warm-up, cosine  t < W:  init + (peak − init)·t/W
                     t ≥ W:  end + ½(peak − end)(1 + cos(π(t − W)/(T − W)))

t is `step`, counted *before* the update: the first update uses step 0. init, peak and end are
`init_value`, `peak_value` and `end_value`; W is `warmup_steps`; T is `transition_steps` or
`decay_steps`, counted from step 0, so that with a warm-up it includes the warm-up.

Conventions chosen:
- Past the end every schedule stays at its last value.
- T = 0 is a jump: the end value from step 0 on. W = 0 starts at the peak; W = T has no cosine left
  and jumps to the end value at step T.

References: Loshchilov, Hutter, ICLR (2017), the cosine.
"""

import math


def constant(step, *, value):
    """Return the value at every step.

    Args:
        step: updates already made, ≥ 0; not used.
        value: the value.

    Returns:
        The value, a float.
    """
    return float(value)


def linear(step, *, init_value, end_value, transition_steps):
    """Go from one value to another in a straight line: init + (end − init)·t/T.

    Args:
        step: updates already made, ≥ 0.
        init_value: value at step 0.
        end_value: value at step `transition_steps` and after.
        transition_steps: T, in updates, ≥ 0.

    Returns:
        The value at this step, a float.
    """
    x = _fraction(step, transition_steps)
    return (1 - x) * init_value + x * end_value  # meets both ends exactly


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
    x = _fraction(step, decay_steps)
    return end_value + 0.5 * (init_value - end_value) * (1 + math.cos(math.pi * x))


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


def _fraction(step, length):
    """Return step/length within [0, 1]; 1 where the length is 0."""
    return 1.0 if step >= length else max(step / length, 0.0)
