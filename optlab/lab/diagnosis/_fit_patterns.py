"""Patterns of the model, its initialization and its data; each rule is Curves → Finding | None.

The thresholds were chosen on the problems `OPEN` of `benchmarks/strangers.py`.
"""

import numpy as np

from optlab._report import number
from optlab.lab.diagnosis._curves import GAINS, SIGNIFICANT, TINY, Curves, noise
from optlab.lab.diagnosis._findings import (
    FLAT_START,
    HIGH_START,
    NO_PROGRESS,
    OVERFITTING,
    UNDERFITTING,
    Finding,
)

HIGH = 4.0
"""An initial loss this many times the loss of guessing is too high; usual initializations stay
below 1.5."""

FLAT_SHARE, FLAT_UPDATES = 0.04, 10
"""A flat start lasts longer than this share of the run's rate time, and longer than this many
updates, which the momentum alone may take."""

CALM = 0.2
"""During a flat start the loss rises by less than this share of the later fall."""

SHARP = 2.0
"""A flat start ends sharply: from a tenth to six tenths of the fall takes less than this many times
the time of the first tenth. A straight line takes five times, an exponential eight times."""

WORSE = 0.1
"""Overfitting: the validation loss ends above its lowest by more than this share of its fall."""

GAPS = ((0.25, 2.0), (0.05, 10.0))
"""A gap is wide if it exceeds the first number as a share of the fall, and the validation loss
exceeds the second number times the training loss, for one of these pairs. Tuned runs on small
tables have gaps of 0.2 at ratios up to 9; runs that fit all examples have gaps of 0.035 at any
ratio."""

LEVEL = 0.035
"""Both losses are alike if they are apart by less than this share of the initial loss."""

QUIET = 0.03
"""A model that cannot fit more ends quietly: evaluations on the same data fluctuate by less than
this share of the fall. Where they fluctuate more, the rate is the likelier cause."""

UNFIT, HARDLY_FIT = 0.4, 0.8
"""A model underfits if more than the first share of the loss of guessing remains at the end. Unless
`baseline` says what guessing costs, nobody knows how much can be learned, and only more than the
second share of the loss before training is poor enough to speak of: text that is learned well
leaves 0.75."""


def high_start(c: Curves) -> Finding | None:
    """The loss starts far above the loss of guessing."""
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
    """Hardly any progress at first, then most of it at once.

    Time is rate time, in which a warm-up is short and does not count as a flat start.
    """
    trend = c.trend
    doubt = SIGNIFICANT * noise(trend.values)
    if not trend.fell or trend.start - trend.end < doubt:
        return None
    at, values = c.in_rate_time(np.append(0, trend.at)), np.append(trend.start, trend.values)
    tenth, most = (_first_below(at, values, trend.start - f * trend.fall) for f in (0.1, 0.6))
    calm = values[at < tenth].max() < trend.start + CALM * trend.fall
    flat = tenth > max(FLAT_SHARE, float(c.in_rate_time(FLAT_UPDATES / len(c.loss))))
    if not (flat and calm and most - tenth < SHARP * tenth):
        return None
    first, then = (c.update_at(time) for time in (tenth, most))
    return Finding(
        FLAT_START,
        f"the loss stayed near {number(trend.start)} for {first} updates, and then fell to "
        f"{number(trend.start - 0.6 * trend.fall)} within {then - first}.",
        "initialize for the activation (He for ReLU, LeCun or Glorot otherwise), normalize inputs "
        "and layers, add residual connections, or use an optimizer that rescales its steps "
        "(`adam`); check with `check_initial_loss`.",
    )


def _first_below(at: np.ndarray, values: np.ndarray, level: float) -> float:
    """Return when a curve first falls to a level, interpolated linearly between its points."""
    i = int(np.argmax(values <= level))
    step = (values[i - 1] - level) / (values[i - 1] - values[i])
    return float(at[i - 1] + step * (at[i] - at[i - 1]))


def no_progress(c: Curves) -> Finding | None:
    """The loss never moved away from its start by more than noise."""
    trend = c.trend
    change, least = abs(trend.start - trend.end), TINY * abs(trend.start)
    before, after = number(trend.start), number(trend.end)
    sentence = (
        f"{trend.name} was {before} before the first update and is {after} after {len(c.loss)}"
    )
    if trend.is_falling(0.0) or c.batches.is_falling(0.0):
        if change > least:
            return None
        return Finding(
            NO_PROGRESS,
            f"{sentence}: it falls, but hardly.",
            "a rate 10 to 1000 times higher (`lr_range_test` shows where progress begins); if that "
            "is no help, see that no parameters are frozen and that units are alive.",
        )
    doubt = c.noise if trend is c.batches else trend.noise
    if change > max(least, SIGNIFICANT * doubt):
        return None
    return Finding(
        NO_PROGRESS,
        f"{sentence}, no more than noise apart.",
        "see that gradients reach the parameters and none are frozen, that units are alive (ReLUs "
        "may all be off), that labels belong to inputs (`check_overfits_small_batch`), and then "
        "other rates (`lr_range_test`).",
    )


def overfitting(c: Curves) -> Finding | None:
    """The validation loss rises while training goes on, or ends far above the training loss."""
    validation, training = c.validation, c.train or c.batches
    if validation is None or not training.fell:
        return None
    scale = validation.fall if validation.fell else training.fall
    sentences = []
    best = round(float(validation.at[validation.values.argmin()]) * len(c.loss))
    worse = validation.end - validation.lowest
    rises = worse > max(WORSE * scale, SIGNIFICANT * validation.noise)
    if rises and training.end - training.lowest < WORSE * training.fall:
        sentences.append(
            f"{validation.name} was lowest, {number(validation.lowest)}, near update {best}, and "
            f"ends at {number(validation.end)}, while training went on"
        )
    gap = validation.end - training.end
    wide = any(
        gap > share * (validation.start - training.end)
        and (training.end < 0 or validation.end > ratio * training.end)
        for share, ratio in GAPS
    )
    if c.train and wide:
        between = validation.values - np.interp(validation.at, c.train.at, c.train.values)
        update = round(float(validation.at[np.argmax(between > gap / 2)]) * len(c.loss))
        sentences.append(
            f"{validation.name} ends at {number(validation.end)}, {training.name} at "
            f"{number(training.end)}; half of that gap was there by update {update}"
        )
    if not sentences:
        return None
    stop = "stop early (`EarlyStopping` keeps the best parameters), " if rises else ""
    same = "" if validation.fell else "; see that validation data is made as training data is"
    return Finding(
        OVERFITTING,
        f"{'; '.join(sentences)}.",
        f"{stop}more or augmented data, weight decay, dropout, or a smaller model{same}.",
    )


def underfitting(c: Curves) -> Finding | None:
    """Both losses are poor, and there is no gap between them."""
    trend, validation = c.trend, c.validation
    yardstick = trend.start if c.baseline is None else min(c.baseline, trend.start)
    most = HARDLY_FIT if c.baseline is None else UNFIT
    if not yardstick > 0 or not trend.end > most * yardstick:
        return None
    if not c.decays and trend.late_gain > GAINS:
        return None
    if trend is not c.batches and trend.fluctuation(0.5) > QUIET:
        return None
    gap = validation.end - trend.end if validation else 0.0
    if gap > LEVEL * yardstick:
        return None
    sentence = f"{trend.name} ends at {number(trend.end)}, {trend.end / yardstick:.0%} of "
    sentence += (
        f"{number(yardstick)}, that {'before training' if c.baseline is None else 'of guessing'}"
    )
    if c.train and validation:
        sentence += f"; {validation.name}, at {number(validation.end)}, is no worse"
    return Finding(
        UNDERFITTING,
        f"{sentence}.",
        "a larger model, or less regularization, if inputs can tell more of the targets than this "
        "(`check_overfits_small_batch` tests the rest); other rates, too, if not yet tuned.",
    )
