"""Patterns of the learning rate; each rule is Curves → Finding | None.

The thresholds were chosen on the problems `OPEN` of `benchmarks/strangers.py`.
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
    mann_kendall,
    noise,
    running,
)
from optlab.lab.diagnosis._findings import (
    DECAYED_TOO_EARLY,
    DIVERGENCE,
    NOT_FINITE,
    PLATEAU,
    RATE_TOO_HIGH,
    SPIKE,
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

THROWN = 0.3
"""In a run that ends poor, a loss that rose above its start by this share of the start is a sign of
too high a rate. Apart from noise, a small enough rate never raises the loss."""

RECOVERED = 0.1
"""A run that ends below this share of its initial loss has recovered, however high its loss rose in
between. The first updates of RMSProp, which has no average yet, are several times too large at any
rate."""

LITTLE = 0.7
"""A third of the rate is advised where less than this share of the initial loss is left, and a
tenth elsewhere."""

LOST = 0.3
"""A rate is too high if the run loses more than this share of its fall again by the end."""

SHAKEN = 0.08
"""A rate is too high if evaluations on the same data fluctuate by more than this share of the fall.
Decayed runs stay below 0.01, runs at a good constant rate near 0.02."""

LEAST_FALL = 0.1
"""The fluctuation says something about the rate if the fall is at least this share of the start."""

RESTLESS, NOTHING = 0.01, 0.1
"""A rate is too high if evaluations on the same data differ by more than the first number, as a
share of the initial loss, while the run gains less than the second. At a rate that is too low, or
where nothing is trained, they do not differ."""

LOW_RATIO = 1e-5
"""An update-to-weight ratio far below the customary 1e-3; runs of slow progress have 1e-4. A high
ratio says nothing, because it has no bound where the weights that fit best are 0."""

LEARNED = 0.3
"""A spike comes after this share of the fall; a higher loss before that is no spike, but a rough
start."""

JUMP, JUMP_SIGNIFICANT = 0.15, 4.5
"""A spike rises above the losses before it by more than the first number, as a share of the fall,
and by more than the second number of their own deviations. Both losses of two updates do."""

BACK = 0.25
"""A spike is over when less than this share of it is left, or of the fall, if that is less."""

ONCE = 0.02
"""Of the other updates, since the loss had fallen, at most this share rises three quarters as high
as the spike; if more do, the rate is too high."""

AT_ONCE, AT_ONCE_LEAVES = 0.15, 0.1
"""A decay that has spent 95% of the sum of the rates before the first share of the run is too early
whatever the losses of its few updates say, if the second share of the initial loss remains."""

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

DISTURBED, STEADY = 0.025, 0.4
"""A decay itself lowers a loss that noise has kept up. Where the noise before the decay exceeds the
first number, as a share of the fall, the gain shows no low rate, unless the second number of the
fall came from τ = 0.3 to 0.65."""

SLOW_GAINS, SLOW_THROUGHOUT, SLOW_RATIO = 0.1, 0.35, 1e-4
"""A higher rate is advised before more updates if a run at a constant rate gains more than the
first number at its end, as a share of its fall; if a decayed one gains as much from τ = 0.3 to 0.65
as a straight line does, the second number; or if the update-to-weight ratio is below the third."""

UNSHAKEN = 0.01
"""A higher rate is advised only if evaluations on the same data fluctuate by less than this share
of the fall: at too low a rate they hardly do, at the best constant one by about 0.02."""

DONE = 0.05
"""A decayed run is not called slow if less than this share of the initial loss remains."""

SETTLED, SETTLED_SINCE = 0.02, 0.6
"""A run is on a plateau if it gained less than the first number, as a share of its fall, since the
second number, as a share of its updates."""

ROUGH, ROUGH_AT_END = 0.0125, 0.02
"""A constant rate keeps up noise that a decay would remove if evaluations on the same data
fluctuate by more than the first number, as a share of the fall, and the second, as a share of the
last level."""

SINKS = -1.3
"""The Mann–Kendall z below which a curve may still be falling. It is stricter than `FALLING`, as a
decay of a rate that still makes progress would do harm."""

NEGLIGIBLE = 0.02
"""A decay of the rate is not advised if less than this share of the initial loss remains."""

NOISY = 0.02
"""A lower rate may average out noise of the batches' losses above this share of the fall. A run
that has fitted everything has less noise."""

ANY_SHAKE = 0.01
"""A lower rate may average out a fluctuation between evaluations above this share of the last
level, or above half of this share of the fall."""


def divergence(c: Curves) -> Finding | None:
    """The loss is not finite at the end, or ends far above its start."""
    advice = (
        "lower the rate to a third or a tenth of this one (`lr_range_test` shows where training "
        "breaks), warm it up, or clip the gradients' norm."
    )
    total = len(c.history.loss)
    if total == 0:
        return None
    if c.broken < total:
        update = c.broken
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
    if values.size and not np.isfinite(values[-1]):
        good = np.flatnonzero(np.isfinite(values))
        step = c.history.steps[int(good[-1]) + 1 if good.size else 0]
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


def not_finite(c: Curves) -> Finding | None:
    """Some losses are not finite, and later ones are: single batches, not the run."""
    loss = np.asarray(c.history.loss, np.float64)
    bad = np.flatnonzero(~np.isfinite(loss))
    validation = np.asarray(c.history.validation.get("loss", []), np.float64)
    bad_checks = np.flatnonzero(~np.isfinite(validation))
    sentences = []
    if bad.size:
        sentences.append(
            f"the loss is not finite at {bad.size} of {len(loss)} updates, first at update "
            f"{bad[0] + 1}{at_rate(c, int(bad[0]))}, and the run is sound after them"
        )
    if bad_checks.size:
        sentences.append(
            f"the validation loss is not finite at {bad_checks.size} of {len(validation)} "
            f"evaluations, last after {c.history.steps[bad_checks[-1]]} updates"
        )
    if not sentences:
        return None
    return Finding(
        NOT_FINITE,
        f"{'; '.join(sentences)}.",
        "look for NaN or infinity in the data there, and for log(0), a division by 0 or an "
        "overflow in the loss; `skip_nonfinite` keeps such steps from the parameters.",
    )


def rate_too_high(c: Curves) -> Finding | None:
    """Progress is lost again, or the loss jumps."""
    signs = list(_signs_of_a_high_rate(c))
    if not signs:
        return None
    part = "a third" if c.trend.remaining < LITTLE else "a tenth"
    highest = None if c.rates is None else float(np.max(c.rates))
    low = f" ({number(highest / (3 if part == 'a third' else 10))})" if highest else ""
    return Finding(
        RATE_TOO_HIGH,
        f"{'; '.join(signs)}.",
        f"lower the rate to {part} of this one{low}, and again while that helps; or warm it up "
        "over the first updates.",
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
    least = (THROWN if poor else DIVERGENCE_FACTOR - 1) * abs(c.start)
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
    restless = evaluated.noise / abs(evaluated.start) if evaluated and evaluated.start else 0.0
    gained = evaluated.start - evaluated.end if evaluated else 0.0
    if restless > RESTLESS and gained < NOTHING * abs(evaluated.start):
        yield (
            f"between evaluations on the same data {evaluated.name} jumps up and down by "
            f"{restless:.0%} of what it was before training, and gains nothing"
        )
        return
    if shaken > SHAKEN and evaluated.fall > LEAST_FALL * abs(evaluated.start):
        yield (
            f"between evaluations on the same data {evaluated.name} jumps up and down by "
            f"{shaken:.0%} of all it has gained"
        )


def spike(c: Curves) -> Finding | None:
    """The loss jumped up in the middle of the run, once, and came back."""
    loss, width = c.loss, max(5, len(c.loss) // 20)
    fall = c.batches.start - min(c.batches.lowest, c.batches.end)
    both = running(loss, 2, np.min)  # of two updates, because one may have had a strange batch
    first, stop = max(10, len(loss) // 10), len(both) - width
    if stop - first < width or fall <= 0:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(loss, width)[first - width : stop - width]
    levels = np.median(windows, axis=1)
    jumps = both[first:stop] - levels
    i = int(jumps.argmax())
    deviation = 1.48 * float(np.median(np.abs(windows[i] - levels[i])))
    peak, before = first + i, float(levels[i])
    height = min(float(jumps[i]), fall)
    has_learned = before < c.batches.start - LEARNED * fall
    if jumps[i] < max(JUMP * fall, JUMP_SIGNIFICANT * deviation) or not has_learned:
        return None
    medians = running(loss[peak:], width)
    below = np.flatnonzero(medians < before + BACK * height)
    if not below.size or medians[-1] > before + BACK * height:
        return None
    over = peak + int(below[0]) + width // 2
    learned = int(np.argmax(running(loss, width) < before + height / 2)) + width
    high = loss > before + 0.75 * height
    if high[learned:peak].sum() + high[over:].sum() > ONCE * len(loss):
        return None
    top = float(loss[peak : peak + width].max())
    return Finding(
        SPIKE,
        f"the loss jumped from {number(before)} to {number(top)} at update {peak + 1}"
        f"{at_rate(c, peak)}, and was back after {over - peak} updates.",
        "look at the batches of these updates; clip the gradients' norm (`clip_by_global_norm`), "
        "or skip such steps. If it happens again, lower the rate.",
    )


def updates_too_small(c: Curves) -> Finding | None:
    """No group of weights moves much, in a run that ends poor."""
    ratio = c.monitored("ratio", quantile=1.0)
    if ratio is None or c.trend.remaining <= POOR:
        return None
    high = ratio[_is_high(c)]
    large = float(np.median(high if len(high) else ratio))
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


def _is_high(c: Curves) -> np.ndarray:
    """Return (updates,) bool: where the rate is at least half of its highest value."""
    if c.rates is None:
        return np.ones(len(c.loss), bool)
    rates = c.rates[: len(c.loss)]
    return rates >= 0.5 * rates.max()


def decayed_too_early(c: Curves) -> Finding | None:
    """Progress stopped when the rate decayed, and not before."""
    time = c.rate_time
    if time is None:
        return None
    spent = int(np.searchsorted(time, 0.95)) + 1
    gain = _gain_before_cut_off(c, time)
    at_once = spent <= AT_ONCE * len(c.loss) and not c.trend.remaining <= AT_ONCE_LEAVES
    if spent > EARLY * len(c.loss) or (gain < CUT_OFF and not at_once):
        return None
    highest = number(float(np.max(c.rates)))
    sentence = f"the rate fell from {highest} to {number(c.rate(spent))} in {spent} of "
    sentence += f"{len(c.loss)} updates"
    if gain >= CUT_OFF:
        sentence += f", while the loss still fell: {gain:.0%} of its fall came in the second half "
        sentence += "of the sum of the rates"
    return Finding(
        DECAYED_TOO_EARLY,
        f"{sentence}. The loss has stayed near {number(c.batches.end)} since.",
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
    slow = middle > SLOW_THROUGHOUT if c.decays else gain > SLOW_GAINS
    if gain > (ANNEALED_GAINS if c.decays else GAINS):
        sentence = (
            f"{validation.name} still fell at the end: the last {1 - LATE:.0%} of the updates "
            f"brought {gain:.0%} of its fall, to {number(validation.end)}"
        )
    elif (
        c.decays
        and trend.remaining > DONE
        and (middle > SLOW or last > CUT_SHORT)
        and (_noise_before_decay(c, trend) < DISTURBED or middle > STEADY)
    ):
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
    if slow and trend.fluctuation(0.5) < UNSHAKEN:
        advice = (
            "a rate three times higher, as progress is slow throughout, where a sweep or "
            "`lr_range_test` has not shown that it is too high; or train longer."
        )
    elif c.decays:
        advice = "train longer, with the decay stretched to the new length."
    else:
        advice = "train longer."
    return Finding(STILL_IMPROVING, f"{sentence}.", advice)


def _gains_in_rate_time(c: Curves, curve: Curve) -> tuple[float, float]:
    """Return the gains from τ = 0.3 to 0.65 and from 0.65 to the end; 0 if they are unknown."""
    if c.rate_time is None or not curve.fell:
        return 0.0, 0.0
    first, then = np.interp((0.3, 0.65), c.in_rate_time(curve.at), curve.values)
    return float(first - then) / curve.fall, float(then - curve.end) / curve.fall


def _noise_before_decay(c: Curves, curve: Curve) -> float:
    """Return the noise of a point from τ = 0.25 to 0.7, as a share of the fall."""
    time = c.in_rate_time(curve.at)
    return noise(curve.values[(time > 0.25) & (time < 0.7)]) / curve.fall if curve.fell else 0.0


def plateau(c: Curves) -> Finding | None:
    """At a constant rate, the loss varies by noise and makes no more progress."""
    rates, trend = c.rates, c.trend
    if 0 <= trend.remaining <= NEGLIGIBLE:
        return None
    if rates is not None:
        late = rates[int(SETTLED_SINCE * len(c.loss)) : len(c.loss)]
        if late.max() > 1.2 * late.min() or late.min() < 0.1 * np.max(rates):
            return None
    curves = (trend, c.validation or trend)
    is_settled = trend.gain(SETTLED_SINCE) < SETTLED and all(
        mann_kendall(x.since(SETTLED_SINCE / 2).values) > SINKS for x in curves
    )
    is_rough = (
        trend is not c.batches
        and trend.fluctuation(0.5) > ROUGH
        and trend.noise > ROUGH_AT_END * abs(trend.end)
    )
    if not (is_settled or is_rough) or trend.fall < SIGNIFICANT * trend.noise:
        return None
    shaken = trend is not c.batches and (
        trend.fluctuation(0.5) > ANY_SHAKE / 2 or trend.noise > ANY_SHAKE * abs(trend.end)
    )
    noisy = c.noise / trend.fall
    if not shaken and (trend is not c.batches or noisy < NOISY):
        return None
    sentence = f"{trend.name} has stayed near {number(trend.end)} since {SETTLED_SINCE:.0%} of "
    sentence += "the run"
    if not is_settled:
        sentence = (
            f"between evaluations on the same data {trend.name} jumps up and down by "
            f"{trend.noise / abs(trend.end):.0%} of its last level, {number(trend.end)}"
        )
    at = "if the rate is constant" if rates is None else f"the rate stays at {number(rates[-1])}"
    return Finding(
        PLATEAU,
        f"{sentence}, and {at}; from batch to batch the loss varies by {noisy:.0%} of its fall.",
        "hold the rate until here and then decay it to 0 by the end (`wsd`), or average the "
        "weights (`params_ema`).",
    )
