"""Patterns that speak of the model, its start and its data, a rule each: Curves → Finding | None.

The thresholds were chosen on the runs of `benchmarks/diagnosis.py` that it calls in sight.
"""

import numpy as np

from optlab.lab._curves import GAINS, SIGNIFICANT, TINY, Curves, noise
from optlab.lab._findings import (
    FLAT_START,
    HIGH_START,
    NO_PROGRESS,
    OVERFITTING,
    UNDERFITTING,
    Finding,
)
from optlab.lab._report import number

HIGH = 4.0
"""A start this many times the loss of guessing. Usual initializations stay below 1.5."""

FLAT_SHARE, FLAT_UPDATES = 0.04, 10
"""A flat start lasts this share of the run's rate time, and more updates than momentum takes."""

CALM = 0.2
"""While it is flat the loss does not rise by more than this share of the fall to come."""

SHARP = 2.0
"""After a flat start, from a tenth to six tenths of the fall takes at most twice the time that the
first tenth did; on a straight line five times, on an exponential eight."""

WORSE = 0.1
"""The share of its fall by which the validation loss ends above its lowest."""

GAP, GAP_RATIO = 0.1, 2.0
"""A wide gap is this share of the fall, and validation loses this many times what training does;
small tasks, fitted well, have one of 0.05, and noisy ones a ratio of 1.5."""

UNFIT = 0.4
"""The share of the initial loss that a model too small leaves."""


def high_start(c: Curves) -> Finding | None:
    """A loss that begins far above that of guessing."""
    guess = c.guess
    if guess is None or not c.loss.size or not c.start > HIGH * guess:
        return None
    return Finding(
        HIGH_START,
        f"the loss before training is {number(c.start)}, {c.start / guess:.0f} times the "
        f"{number(guess)} of guessing: the first updates only undo the initialization.",
        "smaller initial weights, in the last layer above all; standardized inputs and targets; a "
        "mean, not a sum, as the loss.",
    )


def flat_start(c: Curves) -> Finding | None:
    """Hardly any progress, then most of it at once, in rate time, in which warm-ups are short."""
    course = c.trend
    doubt = SIGNIFICANT * noise(course.values)
    if not course.fell or course.start - course.end < doubt:
        return None
    at, values = c.in_rate_time(np.append(0, course.at)), np.append(course.start, course.values)
    tenth, most = (_first_below(at, values, course.start - f * course.fall) for f in (0.1, 0.6))
    calm = values[at < tenth].max() < course.start + CALM * course.fall
    flat = tenth > max(FLAT_SHARE, float(c.in_rate_time(FLAT_UPDATES / len(c.loss))))
    if not (flat and calm and most - tenth < SHARP * tenth):
        return None
    first, then = (c.update_at(time) for time in (tenth, most))
    return Finding(
        FLAT_START,
        f"the loss stayed near {number(course.start)} for {first} updates, and then fell to "
        f"{number(course.start - 0.6 * course.fall)} within {then - first}.",
        "initialize for the activation (He for ReLU, LeCun or Glorot otherwise), normalize inputs "
        "and layers, add residual connections, or use an optimizer that rescales its steps "
        "(`adam`); check with `check_initial_loss`.",
    )


def _first_below(at: np.ndarray, values: np.ndarray, level: float) -> float:
    """Return when a curve first comes down to a level, between two points on a straight line."""
    i = int(np.argmax(values <= level))
    step = (values[i - 1] - level) / (values[i - 1] - values[i])
    return float(at[i - 1] + step * (at[i] - at[i - 1]))


def no_progress(c: Curves) -> Finding | None:
    """A loss that never left its start by more than noise."""
    course = c.trend
    change, least = abs(course.start - course.end), TINY * abs(course.start)
    before, after = number(course.start), number(course.end)
    said = f"{course.name} was {before} before the first update and is {after} after {len(c.loss)}"
    if course.is_falling(0.0) or c.batches.is_falling(0.0):
        if change > least:
            return None
        return Finding(
            NO_PROGRESS,
            f"{said}: it falls, but hardly.",
            "a rate 10 to 1000 times higher (`lr_range_test` shows where progress begins); if that "
            "is no help, see that no parameters are frozen and that units are alive.",
        )
    doubt = c.noise if course is c.batches else course.noise
    if change > max(least, SIGNIFICANT * doubt):
        return None
    return Finding(
        NO_PROGRESS,
        f"{said}, no more than noise apart.",
        "see that gradients reach the parameters and none are frozen, that units are alive (ReLUs "
        "may all be off), that labels belong to inputs (`check_overfits_small_batch`), and then "
        "other rates (`lr_range_test`).",
    )


def overfitting(c: Curves) -> Finding | None:
    """A validation loss that rises while training goes on, or a wide gap."""
    held_out, course = c.validation, c.train or c.batches
    if held_out is None or not course.fell:
        return None
    scale = held_out.fall if held_out.fell else course.fall
    said = []
    best = round(float(held_out.at[held_out.values.argmin()]) * len(c.loss))
    worse = held_out.end - held_out.lowest
    rises = worse > max(WORSE * scale, SIGNIFICANT * held_out.noise)
    if rises and course.end - course.lowest < WORSE * course.fall:
        said.append(
            f"{held_out.name} was lowest, {number(held_out.lowest)}, near update {best}, and ends "
            f"at {number(held_out.end)}, while training went on"
        )
    gap = held_out.end - course.end
    wide = gap > GAP * (held_out.start - course.end)
    apart = course.end < 0 or held_out.end > GAP_RATIO * course.end
    if c.train and wide and apart:
        between = held_out.values - np.interp(held_out.at, c.train.at, c.train.values)
        update = round(float(held_out.at[np.argmax(between > gap / 2)]) * len(c.loss))
        said.append(
            f"{held_out.name} ends at {number(held_out.end)}, {course.name} at "
            f"{number(course.end)}; half of that gap was there by update {update}"
        )
    if not said:
        return None
    stop = "stop early (`EarlyStopping` keeps the best parameters), " if rises else ""
    same = "" if held_out.fell else "; see that validation data is made as training data is"
    return Finding(
        OVERFITTING,
        f"{'; '.join(said)}.",
        f"{stop}more or augmented data, weight decay, dropout, or a smaller model{same}.",
    )


def underfitting(c: Curves) -> Finding | None:
    """No gap, and both poor."""
    course, held_out = c.trend, c.validation
    yardstick = course.start if c.baseline is None else min(c.baseline, course.start)
    if not yardstick > 0 or not course.end > UNFIT * yardstick:
        return None
    if not c.decays and course.late_gain > GAINS:
        return None
    gap = held_out.end - course.end if held_out else 0.0
    if gap > GAP * yardstick:
        return None
    said = f"{course.name} ends at {number(course.end)}, {course.end / yardstick:.0%} of "
    said += (
        f"{number(yardstick)}, that {'before training' if c.baseline is None else 'of guessing'}"
    )
    if c.train and held_out:
        said += f"; {held_out.name}, at {number(held_out.end)}, is no worse"
    return Finding(
        UNDERFITTING,
        f"{said}.",
        "a larger model, or less regularization, if inputs can tell more of the targets than this "
        "(`check_overfits_small_batch` tests the rest); other rates, too, if not yet tuned.",
    )
