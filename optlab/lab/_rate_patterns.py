"""Patterns that speak of the learning rate, a rule each: Curves → Finding | None.

The thresholds were chosen on the runs of `benchmarks/diagnosis.py` that it calls in sight.
"""

from collections.abc import Iterator

import numpy as np

from optlab.lab._curves import (
    GAINS,
    LATE,
    SIGNIFICANT,
    TINY,
    Curve,
    Curves,
    running,
)
from optlab.lab._findings import (
    DECAYED_TOO_EARLY,
    DIVERGENCE,
    PLATEAU,
    RATE_TOO_HIGH,
    STILL_IMPROVING,
    UPDATES_TOO_SMALL,
    Finding,
    at_rate,
)
from optlab.lab._grid import DIVERGENCE_FACTOR
from optlab.lab._report import number

POOR = 0.3
"""A share of the initial loss that is left at the end and is poor. Good fits leave a few percent,
noisy targets up to a third."""

STAYS = 0.8
"""Of the last losses of a diverged run so many are up by a quarter of the rise; of noise, half."""

SPIKE = 0.3
"""A loss that rises above its start by this share of it, and ends poor, was thrown there: noise
apart, a small enough rate never raises it."""

RECOVERED = 0.1
"""And one that ends below this share of its start has recovered, however high it was thrown: the
first updates of RMSProp, which has no average yet, are several times too large at any rate."""

LOST = 0.3
"""The share of the fall that is lost again at the end of a run whose rate is too high."""

SHAKEN = 0.05
"""The fluctuation between evaluations on the same data, as a share of the fall. Decayed runs stay
below 0.01, those at a good constant rate near 0.02."""

LEAST_FALL = 0.1
"""And the fall must be this share of the start for its shares to say something about the rate."""

HIGH_RATIO, LOW_RATIO = 0.05, 1e-5
"""Update-to-weight ratios far from the customary 1e-3: 1e-2 at rates that still train, 1e-4 where
progress is slow."""

CLIPPED = 0.9
"""The share of clipped steps from which on the clipping, not the gradient, sets their size."""

EARLY = 0.5
"""By this share of the run an early decay has spent 95% of the sum of the rates; a cosine has by
0.68, a linear decay by 0.78."""

CUT_OFF, CUT_OFF_SIGNIFICANT = 0.06, 3.0
"""What is gained in the second half of the rate time where an early decay cut it off, as a share
of the fall, and in deviations of the noise: few updates are left to see it in."""

ANNEALED_GAINS = 0.06
"""Where the rate decays, the share of the fall gained at the end that makes it worth going on:
the decay itself gains up to 0.05 there, once and for all."""

SLOW = 0.15
"""What a decayed run whose rate was too low gains from τ = 0.3 to 0.65, as a share of the fall;
good ones gain up to 0.145."""

CUT_SHORT = 0.2
"""What a decayed run that was too short gains from τ = 0.65 on; good ones up to 0.19."""

SLOW_GAINS, SLOW_RATIO = 0.1, 1e-4
"""A run that still gains this much at the end, or with a ratio below this, asks for a higher rate
before it asks for more updates."""

DONE = 0.05
"""With less than this share of the initial loss left, a decayed run is not called slow."""

SETTLED, SETTLED_SINCE = 0.02, 0.6
"""Less gained than this share of the fall since this share of the run is a plateau."""

NEGLIGIBLE = 0.02
"""With less than this share of the initial loss left there is nothing to decay the rate for."""

NOISY = 0.02
"""Noise of the batches' losses, as a share of the fall, that a lower rate may average out; a run
that has fitted everything has less."""

ANY_SHAKE = 0.005
"""Likewise of the fluctuation between evaluations."""


def divergence(c: Curves) -> Finding | None:
    """A loss that is not finite, or ends far above where it began."""
    advice = (
        "lower the rate to a third or a tenth of this one (`lr_range_test` shows where training "
        "breaks), warm it up, or clip the gradients' norm."
    )
    total = len(c.history.loss)
    if total == 0:
        return None
    if len(c.loss) < total:
        update = len(c.loss)
        said = f"the loss is not finite at update {update + 1} of {total}{at_rate(c, update)}"
        if update == 0:
            return Finding(
                DIVERGENCE,
                f"{said}, before anything was learned.",
                "look for NaN or infinity in the data, and for log(0), a division by 0 or an "
                "overflow in the loss; the rate has no part in it yet.",
            )
        return Finding(DIVERGENCE, f"{said}; it was {number(c.loss[-1])} before.", advice)
    values = np.asarray(c.history.validation.get("loss", []), float)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        step = c.history.steps[bad[0]]
        said = f"the validation loss is not finite after {step} updates, though that of batches is."
        return Finding(DIVERGENCE, said, f"look at the validation data; if it is sound, {advice}")
    course = c.trend
    rise = course.end - c.start
    risen = c.loss > c.start + rise / 4
    stays = risen[-max(1, len(risen) // 10) :].mean() >= STAYS
    if rise > (DIVERGENCE_FACTOR - 1) * abs(c.start) and stays:
        update = int(risen.argmax())
        said = f"{course.name} rose from {number(c.start)} to {number(course.end)}, a quarter of "
        said += f"it by update {update + 1}{at_rate(c, update)}."
        return Finding(DIVERGENCE, said, advice)
    return None


def rate_too_high(c: Curves) -> Finding | None:
    """Gains lost again, a loss thrown up or shaken, huge updates, or steps that are all clipped."""
    signs = list(_signs_of_a_high_rate(c))
    if not signs:
        return None
    rate = c.rate(int(np.argmax(c.history.learning_rate))) if c.rate(0) is not None else None
    low = f" (to {number(rate / 10)}, say)" if rate else ""
    return Finding(
        RATE_TOO_HIGH,
        f"{'; '.join(signs)}.",
        f"lower the rate to a third or a tenth{low}, or warm it up over the first updates.",
    )


def _signs_of_a_high_rate(c: Curves) -> Iterator[str]:
    course, poor = c.train or c.batches, c.trend.left > POOR
    lowest = course.lowest if course is c.batches else course.values.min()
    lost = course.end - lowest
    if course.fell and lost > max(LOST * course.fall, SIGNIFICANT * course.noise):
        yield (
            f"{course.name} had fallen from {number(course.start)} to {number(lowest)} and ends "
            f"at {number(course.end)}"
        )
    medians = running(c.loss, 3)
    peak = float(medians.max())
    least = (SPIKE if poor else DIVERGENCE_FACTOR - 1) * abs(c.start)
    # The highest of many medians of three is further out than one level is.
    thrown = peak - c.start > max(least, 1.5 * SIGNIFICANT * c.noise)
    if thrown and c.trend.left > RECOVERED:
        update = int(medians.argmax()) + 1
        yield (
            f"the loss rose from {number(c.start)} to {number(peak)} by update {update}"
            f"{at_rate(c, update)}, and ends at {number(c.batches.end)}"
        )
    evaluated = c.train or c.validation
    shaken = evaluated.fluctuation(0.5) if evaluated else 0.0
    if shaken > SHAKEN and evaluated.fall > LEAST_FALL * abs(evaluated.start):
        yield (
            f"between evaluations on the same data {evaluated.name} jumps up and down by "
            f"{shaken:.0%} of all it has gained"
        )
    ratio = c.monitored("ratio")
    if ratio is not None and (late := float(np.median(ratio[len(ratio) // 2 :]))) > HIGH_RATIO:
        yield f"an update changes the weights by {late:.1%}, where 0.1% is customary"
    clipped = c.monitored("clipped_share")
    if poor and clipped is not None and clipped[-1] > CLIPPED:
        yield f"{clipped[-1]:.0%} of the steps were clipped"


def updates_too_small(c: Curves) -> Finding | None:
    """Weights of which not one group moves much, in a run that ends poor."""
    ratio = c.monitored("ratio", quantile=1.0)
    if ratio is None or c.trend.left <= POOR:
        return None
    large = float(np.median(np.sort(ratio)[len(ratio) // 2 :]))
    if not large < LOW_RATIO:
        return None
    said = f"an update changes the weights by {large:.1e} of their size, where 1e-3 is customary"
    if large <= 0:
        advice = "check which parameters are frozen or masked, and whether gradients reach them."
    else:
        factor = 10 ** min(4, round(np.log10(1e-3 / large)))
        advice = f"a rate about {factor:.0f} times higher."
    return Finding(UPDATES_TOO_SMALL, f"{said}.", advice)


def decayed_too_early(c: Curves) -> Finding | None:
    """Progress that stopped with the rate, and not before."""
    time = c.rate_time
    if time is None:
        return None
    spent = int(np.searchsorted(time, 0.95)) + 1
    gain = _gain_before_cut_off(c, time)
    if spent > EARLY * len(c.loss) or gain < CUT_OFF:
        return None
    highest = number(float(np.max(c.history.learning_rate)))
    return Finding(
        DECAYED_TOO_EARLY,
        f"the rate fell from {highest} to {number(c.rate(spent))} in {spent} of {len(c.loss)} "
        f"updates, while the loss still fell: {gain:.0%} of its fall came in the second half of "
        f"the sum of the rates. It has stayed near {number(c.batches.end)} since.",
        "decay over the whole run (`cosine`, `linear` to its last update), or hold the rate until "
        "the loss stops falling.",
    )


def _gain_before_cut_off(c: Curves, time: np.ndarray) -> float:
    """Return what the batches gained from τ about 0.5 to the end, as a share of the fall.

    From the losses of single updates, as an early decay leaves few in between; 0 if it is noise.
    """
    before, after = c.loss[(time > 0.3) & (time <= 0.65)], c.loss[time > 0.9]
    fall = c.start - c.batches.end
    if len(before) < 2 or fall <= TINY * abs(c.start):
        return 0.0
    gain = before.mean() - after.mean()
    doubt = c.noise * (1 / len(before) + 1 / len(after)) ** 0.5
    return gain / fall if gain > CUT_OFF_SIGNIFICANT * doubt else 0.0


def still_improving(c: Curves) -> Finding | None:
    """Progress that the end of the run cut off."""
    course, held_out = c.trend, c.validation or c.trend
    gain = min(course.late_gain, held_out.late_gain)
    middle, last = _gains_in_rate_time(c, course)
    slow = middle > SLOW or (gain > SLOW_GAINS and not c.decays)
    if gain > (ANNEALED_GAINS if c.decays else GAINS):
        said = (
            f"{held_out.name} still fell at the end: the last {1 - LATE:.0%} of the updates brought"
            f" {gain:.0%} of its fall, to {number(held_out.end)}"
        )
    elif c.decays and course.left > DONE and (slow or last > CUT_SHORT):
        said = (
            f"{course.name} fell all along, and stopped at {number(course.end)} only as the rate "
            f"decayed: {middle + last:.0%} of its fall came after the first three tenths of the "
            "sum of the rates"
        )
    else:
        return None
    ratio = c.monitored("ratio")
    if ratio is not None and (usual := float(np.median(ratio))) < SLOW_RATIO:
        said += f"; an update changes the weights by {usual:.1e}, where 1e-3 is customary"
        slow = True
    advice = "train longer, with the decay stretched to the new length."
    if slow:
        advice = (
            "train longer; or, as progress is slow throughout, a rate 3 to 10 times higher, where "
            "a sweep or `lr_range_test` has not shown that it is too high."
        )
    return Finding(STILL_IMPROVING, f"{said}.", advice)


def _gains_in_rate_time(c: Curves, course: Curve) -> tuple[float, float]:
    """Return the gains from τ = 0.3 to 0.65, and on to the end; 0 where they are unknown."""
    if c.rate_time is None or not course.fell:
        return 0.0, 0.0
    first, then = np.interp((0.3, 0.65), c.in_rate_time(course.at), course.values)
    return float(first - then) / course.fall, float(then - course.end) / course.fall


def plateau(c: Curves) -> Finding | None:
    """Noise, and no more progress, at a rate that stays where it is."""
    rates, course = c.history.learning_rate, c.trend
    if 0 <= course.left <= NEGLIGIBLE:
        return None
    if rates is not None:
        late = np.asarray(rates, float)[int(SETTLED_SINCE * len(c.loss)) : len(c.loss)]
        if late.max() > 1.2 * late.min() or late.min() < 0.1 * np.max(rates):
            return None
    both = (course, c.validation or course)
    settled = course.gain(SETTLED_SINCE) < SETTLED or not all(
        x.is_falling(SETTLED_SINCE) for x in both
    )
    if not settled or course.fall < SIGNIFICANT * course.noise:
        return None
    shaken = course.fluctuation(0.5) if course is not c.batches else 0.0
    noisy = c.noise / course.fall
    if shaken < ANY_SHAKE and noisy < NOISY:
        return None
    at = "if the rate is constant" if rates is None else f"the rate stays at {number(rates[-1])}"
    return Finding(
        PLATEAU,
        f"{course.name} has stayed near {number(course.end)} since {SETTLED_SINCE:.0%} of the run, "
        f"and {at}; from batch to batch the loss varies by {noisy:.0%} of its fall.",
        "decay the rate from here (`cosine`, `wsd`, `step_decay`, or `reduce_on_plateau`), or "
        "average the weights (`params_ema`).",
    )
