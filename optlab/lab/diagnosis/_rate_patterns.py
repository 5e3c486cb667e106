"""Patterns of the learning rate; each rule is Curves → Finding | None.

The thresholds were chosen on the tasks `IN_SIGHT` of `benchmarks/diagnosis.py`.
"""

from collections.abc import Iterator

import numpy as np

from optlab._divergence import DIVERGENCE_FACTOR
from optlab._report import number
from optlab.lab.diagnosis._curves import (
    GAINS,
    LATE,
    SIGNIFICANT,
    TINY,
    Curve,
    Curves,
    running,
)
from optlab.lab.diagnosis._findings import (
    DECAYED_TOO_EARLY,
    DIVERGENCE,
    PLATEAU,
    RATE_TOO_HIGH,
    STILL_IMPROVING,
    UPDATES_TOO_SMALL,
    Finding,
    at_rate,
)

POOR = 0.3
"""A run ends poor if more than this share of the initial loss remains. Good fits leave a few
percent, noisy targets up to a third."""

STAYS = 0.8
"""A rise is lasting if at least this share of the last losses lie above a quarter of it. Of losses
that only vary by noise, half do."""

SPIKE = 0.3
"""In a run that ends poor, a loss that rose above its start by this share of the start is a sign of
too high a rate. Apart from noise, a small enough rate never raises the loss."""

RECOVERED = 0.1
"""A run that ends below this share of its initial loss has recovered, however high its loss rose in
between. The first updates of RMSProp, which has no average yet, are several times too large at any
rate."""

LOST = 0.3
"""A rate is too high if the run loses more than this share of its fall again by the end."""

SHAKEN = 0.05
"""A rate is too high if evaluations on the same data fluctuate by more than this share of the fall.
Decayed runs stay below 0.01, runs at a good constant rate near 0.02."""

LEAST_FALL = 0.1
"""The fluctuation says something about the rate if the fall is at least this share of the start."""

HIGH_RATIO, LOW_RATIO = 0.05, 1e-5
"""Update-to-weight ratios far above and far below the customary 1e-3. Rates that still train have
ratios up to 1e-2; runs of slow progress have ratios of 1e-4."""

CLIPPED = 0.9
"""If more than this share of steps is clipped, clipping, not the gradient, sets their size."""

EARLY = 0.5
"""An early decay has spent 95% of the sum of the rates before this share of the run. A cosine has
spent it after 0.68 of the run, a linear decay after 0.78."""

CUT_OFF, CUT_OFF_SIGNIFICANT = 0.06, 3.0
"""An early decay cut the run off if the second half of the rate time gained at least this share of
the fall, and this many standard deviations of the noise. The second number is low because few
updates lie in that half."""

ANNEALED_GAINS = 0.06
"""A run with a decaying rate is worth continuing if it gains more than this share of the fall at
its end. The decay itself gains up to 0.05 there, but only once."""

SLOW = 0.15
"""The rate of a decayed run was too low if the run gains more than this share of its fall from
τ = 0.3 to 0.65. Good runs gain up to 0.145."""

CUT_SHORT = 0.2
"""A decayed run was too short if it gains more than this share of its fall after τ = 0.65. Good
runs gain up to 0.19."""

SLOW_GAINS, SLOW_RATIO = 0.1, 1e-4
"""A higher rate is advised before more updates if a run still gains more than the first number at
its end, as a share of its fall, or if its update-to-weight ratio is below the second."""

DONE = 0.05
"""A decayed run is not called slow if less than this share of the initial loss remains."""

SETTLED, SETTLED_SINCE = 0.02, 0.6
"""A run is on a plateau if it gained less than the first number, as a share of its fall, since the
second number, as a share of its updates."""

NEGLIGIBLE = 0.02
"""A decay of the rate is not advised if less than this share of the initial loss remains."""

NOISY = 0.02
"""A lower rate may average out noise of the batches' losses above this share of the fall. A run
that has fitted everything has less noise."""

ANY_SHAKE = 0.005
"""A lower rate may average out a fluctuation between evaluations above this share of the fall."""


def divergence(c: Curves) -> Finding | None:
    """The loss is not finite, or ends far above its start."""
    advice = (
        "lower the rate to a third or a tenth of this one (`lr_range_test` shows where training "
        "breaks), warm it up, or clip the gradients' norm."
    )
    total = len(c.history.loss)
    if total == 0:
        return None
    if len(c.loss) < total:
        update = len(c.loss)
        sentence = f"the loss is not finite at update {update + 1} of {total}{at_rate(c, update)}"
        if update == 0:
            return Finding(
                DIVERGENCE,
                f"{sentence}, before anything was learned.",
                "look for NaN or infinity in the data, and for log(0), a division by 0 or an "
                "overflow in the loss; the rate has no part in it yet.",
            )
        return Finding(DIVERGENCE, f"{sentence}; it was {number(c.loss[-1])} before.", advice)
    values = np.asarray(c.history.validation.get("loss", []), float)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        step = c.history.steps[bad[0]]
        sentence = (
            f"the validation loss is not finite after {step} updates, though that of batches is."
        )
        return Finding(
            DIVERGENCE, sentence, f"look at the validation data; if it is sound, {advice}"
        )
    trend = c.trend
    rise = trend.end - c.start
    risen = c.loss > c.start + rise / 4
    stays = risen[-max(1, len(risen) // 10) :].mean() >= STAYS
    if rise > (DIVERGENCE_FACTOR - 1) * abs(c.start) and stays:
        update = int(risen.argmax())
        sentence = f"{trend.name} rose from {number(c.start)} to {number(trend.end)}, a quarter of "
        sentence += f"it by update {update + 1}{at_rate(c, update)}."
        return Finding(DIVERGENCE, sentence, advice)
    return None


def rate_too_high(c: Curves) -> Finding | None:
    """Progress is lost again, the loss jumps, updates are huge, or nearly all steps are clipped."""
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
    training, poor = c.train or c.batches, c.trend.remaining > POOR
    lowest = training.lowest if training is c.batches else training.values.min()
    lost = training.end - lowest
    if training.fell and lost > max(LOST * training.fall, SIGNIFICANT * training.noise):
        yield (
            f"{training.name} had fallen from {number(training.start)} to {number(lowest)} and "
            f"ends at {number(training.end)}"
        )
    medians = running(c.loss, 3)
    peak = float(medians.max())
    least = (SPIKE if poor else DIVERGENCE_FACTOR - 1) * abs(c.start)
    # The highest of many medians of three lies further out than a single level does.
    thrown = peak - c.start > max(least, 1.5 * SIGNIFICANT * c.noise)
    if thrown and c.trend.remaining > RECOVERED:
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
    """No group of weights moves much, in a run that ends poor."""
    ratio = c.monitored("ratio", quantile=1.0)
    if ratio is None or c.trend.remaining <= POOR:
        return None
    large = float(np.median(np.sort(ratio)[len(ratio) // 2 :]))
    if not large < LOW_RATIO:
        return None
    sentence = (
        f"an update changes the weights by {large:.1e} of their size, where 1e-3 is customary"
    )
    if large <= 0:
        advice = "check which parameters are frozen or masked, and whether gradients reach them."
    else:
        factor = 10 ** min(4, round(np.log10(1e-3 / large)))
        advice = f"a rate about {factor:.0f} times higher."
    return Finding(UPDATES_TOO_SMALL, f"{sentence}.", advice)


def decayed_too_early(c: Curves) -> Finding | None:
    """Progress stopped when the rate decayed, and not before."""
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
    """Return the gain of the batches' losses from τ ≈ 0.5 to the end, as a share of the fall.

    It uses the losses of single updates, because an early decay leaves few updates in between. It
    is 0 if the gain does not exceed noise.
    """
    before, after = c.loss[(time > 0.3) & (time <= 0.65)], c.loss[time > 0.9]
    fall = c.start - c.batches.end
    if len(before) < 2 or fall <= TINY * abs(c.start):
        return 0.0
    gain = before.mean() - after.mean()
    doubt = c.noise * (1 / len(before) + 1 / len(after)) ** 0.5
    return gain / fall if gain > CUT_OFF_SIGNIFICANT * doubt else 0.0


def still_improving(c: Curves) -> Finding | None:
    """The end of the run cut off progress."""
    trend, validation = c.trend, c.validation or c.trend
    gain = min(trend.late_gain, validation.late_gain)
    middle, last = _gains_in_rate_time(c, trend)
    slow = middle > SLOW or (gain > SLOW_GAINS and not c.decays)
    if gain > (ANNEALED_GAINS if c.decays else GAINS):
        sentence = (
            f"{validation.name} still fell at the end: the last {1 - LATE:.0%} of the updates "
            f"brought {gain:.0%} of its fall, to {number(validation.end)}"
        )
    elif c.decays and trend.remaining > DONE and (slow or last > CUT_SHORT):
        sentence = (
            f"{trend.name} fell all along, and stopped at {number(trend.end)} only as the rate "
            f"decayed: {middle + last:.0%} of its fall came after the first three tenths of the "
            "sum of the rates"
        )
    else:
        return None
    ratio = c.monitored("ratio")
    if ratio is not None and (usual := float(np.median(ratio))) < SLOW_RATIO:
        sentence += f"; an update changes the weights by {usual:.1e}, where 1e-3 is customary"
        slow = True
    advice = "train longer, with the decay stretched to the new length."
    if slow:
        advice = (
            "train longer; or, as progress is slow throughout, a rate 3 to 10 times higher, where "
            "a sweep or `lr_range_test` has not shown that it is too high."
        )
    return Finding(STILL_IMPROVING, f"{sentence}.", advice)


def _gains_in_rate_time(c: Curves, curve: Curve) -> tuple[float, float]:
    """Return the gains from τ = 0.3 to 0.65 and from 0.65 to the end; 0 if they are unknown."""
    if c.rate_time is None or not curve.fell:
        return 0.0, 0.0
    first, then = np.interp((0.3, 0.65), c.in_rate_time(curve.at), curve.values)
    return float(first - then) / curve.fall, float(then - curve.end) / curve.fall


def plateau(c: Curves) -> Finding | None:
    """At a constant rate, the loss varies by noise and makes no more progress."""
    rates, trend = c.history.learning_rate, c.trend
    if 0 <= trend.remaining <= NEGLIGIBLE:
        return None
    if rates is not None:
        late = np.asarray(rates, float)[int(SETTLED_SINCE * len(c.loss)) : len(c.loss)]
        if late.max() > 1.2 * late.min() or late.min() < 0.1 * np.max(rates):
            return None
    curves = (trend, c.validation or trend)
    is_settled = trend.gain(SETTLED_SINCE) < SETTLED or not all(
        x.is_falling(SETTLED_SINCE) for x in curves
    )
    if not is_settled or trend.fall < SIGNIFICANT * trend.noise:
        return None
    shaken = trend.fluctuation(0.5) if trend is not c.batches else 0.0
    noisy = c.noise / trend.fall
    if shaken < ANY_SHAKE and noisy < NOISY:
        return None
    at = "if the rate is constant" if rates is None else f"the rate stays at {number(rates[-1])}"
    return Finding(
        PLATEAU,
        f"{trend.name} has stayed near {number(trend.end)} since {SETTLED_SINCE:.0%} of the run, "
        f"and {at}; from batch to batch the loss varies by {noisy:.0%} of its fall.",
        "decay the rate from here (`cosine`, `wsd`, `step_decay`, or `reduce_on_plateau`), or "
        "average the weights (`params_ema`).",
    )
