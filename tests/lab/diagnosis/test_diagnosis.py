"""Diagnosis: what curves of each kind are said to show, and the checks before training."""

import dataclasses
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optlab
from optlab.lab import (
    Diagnosis,
    History,
    Task,
    check_initial_loss,
    check_overfits_small_batch,
    diagnose,
    monitor,
    tasks,
    train,
)
from optlab.lab.diagnosis import _findings as names
from optlab.lab.diagnosis._curves import Curve, Curves, mann_kendall, noise, running, slope
from optlab.lab.diagnosis._diagnosis import RULES

UPDATES, EVERY = 400, 16
STEPS = np.arange(0, UPDATES + 1, EVERY)
TIME = np.linspace(0, 1, UPDATES + 1)
COSINE = 0.1 * np.maximum(0.5 * (1 + np.cos(np.pi * TIME[:-1])), 1e-3)
CONSTANT = np.full(UPDATES, 0.1)
EARLY = 0.1 * np.where(TIME[:-1] < 0.2, 1.0, 1e-3)


def exponential(time, start=2.5, end=0.1):
    """Return a fall by e in each stretch `time` of the run."""
    return end + (start - end) * np.exp(-TIME / time)


def history(
    level,
    *,
    seed=0,
    noise=0.1,
    rough=0.0,
    validation=None,
    rates=COSINE,
    train=True,
    bad=(),
    **monitored,
):
    """Return a run whose loss is a level (UPDATES + 1,) seen through noise in proportion to it.

    With `rough` the level itself jumps, as the loss on the same data does if the weights jump. The
    losses of the updates in `bad` are NaN.
    """
    rng = np.random.default_rng(seed)
    level = level * (1 + rough * np.random.default_rng(seed + 9).normal(size=UPDATES + 1))
    batches = level[:-1] * (1 + noise * rng.normal(size=UPDATES))
    batches[list(bad)] = np.nan
    held_out = level + 0.02 if validation is None else validation
    return History(
        loss=batches,
        steps=STEPS,
        train={"loss": level[STEPS]} if train else {},
        validation={"loss": held_out[STEPS] * (1 + 0.002 * rng.normal(size=len(STEPS)))},
        learning_rate=rates,
        monitored={name: np.broadcast_to(x, UPDATES) for name, x in monitored.items()},
    )


def said(*args, **options):
    """Return the patterns named of a history, or of the options for one."""
    given = args[0] if args else history(**options)
    return [finding.pattern for finding in diagnose(given).findings]


FINE = exponential(0.08)
SAGGING = np.where(TIME < 0.3, FINE, FINE + 1.5 * (TIME - 0.3))
CUT_OFF = exponential(0.15)[np.minimum(np.arange(UPDATES + 1), UPDATES // 5)]
RISING = 2.5 + 40 * TIME**2
SPIKE = FINE + 1.5 * np.exp(-np.maximum(np.arange(UPDATES + 1) - 200, 0) / 5) * (TIME >= 0.5)
CASES = {
    "fine": ({"level": FINE}, []),
    "fine without training data": ({"level": FINE, "train": False}, []),
    "rising": ({"level": RISING}, [names.DIVERGENCE]),
    "gains lost again": (
        {"level": np.where(TIME < 0.3, FINE, 2.3)},
        [names.RATE_TOO_HIGH],
    ),
    "thrown up at the start": (
        {"level": np.where(TIME < 0.05, 6.0, exponential(0.2, 2.5, 1.5)) - 3.5 * (TIME == 0)},
        [names.RATE_TOO_HIGH],
    ),
    "shaken": (
        {"level": FINE + 0.9 * np.where(np.arange(UPDATES + 1) // EVERY % 2, 1.0, 0.0)},
        [names.RATE_TOO_HIGH],
    ),
    "restless": ({"level": np.full(UPDATES + 1, 2.5), "rough": 0.05}, [names.RATE_TOO_HIGH]),
    "bad batches": ({"level": FINE, "bad": [0, 150, 151, 399]}, [names.NOT_FINITE]),
    "spike": ({"level": SPIKE}, [names.SPIKE]),
    "cut off at once": (
        {
            "level": exponential(0.3)[np.minimum(np.arange(UPDATES + 1), UPDATES // 25)],
            "rates": 0.1 * np.where(TIME[:-1] < 0.04, 1.0, 1e-4),
        },
        [names.DECAYED_TOO_EARLY],
    ),
    "flat first": (
        {"level": 0.1 + 2.4 / (1 + np.exp(40 * (TIME - 0.4))), "rates": CONSTANT},
        [names.FLAT_START],
    ),
    "straight down": ({"level": 2.5 - 2 * TIME, "rates": CONSTANT}, [names.STILL_IMPROVING]),
    "slow, decayed": (
        {"level": 2.5 - 1.2 * np.append(0, np.cumsum(COSINE)) / COSINE.sum()},
        [names.STILL_IMPROVING],
    ),
    "cut off": ({"level": CUT_OFF, "rates": EARLY}, [names.DECAYED_TOO_EARLY]),
    "rising validation": ({"level": FINE, "validation": SAGGING}, [names.OVERFITTING]),
    "rising validation alone": (
        {"level": FINE, "validation": SAGGING, "train": False},
        [names.OVERFITTING],
    ),
    "wide gap": ({"level": FINE, "validation": FINE + 0.9 * TIME**0.2}, [names.OVERFITTING]),
    "noise at a constant rate": (
        {"level": exponential(0.08, end=0.6), "rates": CONSTANT, "noise": 0.2, "rough": 0.12},
        [names.PLATEAU],
    ),
    "poor": ({"level": exponential(0.08, end=2.1)}, [names.UNDERFITTING]),
    "tiny updates": (
        {"level": 2.5 - 0.2 * TIME, "rates": CONSTANT, "ratio/head": 1e-7},
        [names.UPDATES_TOO_SMALL, names.STILL_IMPROVING],
    ),
    "nothing happens": ({"level": np.full(UPDATES + 1, 2.5)}, [names.NO_PROGRESS]),
    "hardly anything happens": ({"level": 2.5 - 0.01 * TIME}, [names.NO_PROGRESS]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_pattern_is_named_and_no_other(case, seed):
    options, expected = CASES[case]
    assert said(**options, seed=seed) == expected


@pytest.mark.parametrize("case", CASES)
def test_the_unit_of_the_loss_does_not_matter(case):
    options, expected = CASES[case]
    one = history(**options)
    for factor in (2.0**-30, 2.0**30):  # exact in floating point
        scaled = dataclasses.replace(
            one,
            loss=factor * one.loss,
            train={k: factor * x for k, x in one.train.items()},
            validation={k: factor * x for k, x in one.validation.items()},
        )
        assert said(scaled) == expected


@given(st.floats(-2.0, 2.0))
def test_the_zero_of_the_loss_does_not_matter_to_progress(shift):
    for case in ("straight down", "cut off", "rising validation"):
        options, expected = CASES[case]
        one = history(**options)
        moved = dataclasses.replace(
            one,
            loss=one.loss + shift,
            train={k: x + shift for k, x in one.train.items()},
            validation={k: x + shift for k, x in one.validation.items()},
        )
        assert set(expected) <= set(said(moved))


@pytest.mark.parametrize("updates", [30, 300])
def test_noise_alone_is_seldom_given_a_cause(updates):
    rng = np.random.default_rng(0)
    told = []
    for sample in (rng.standard_normal, rng.standard_exponential):
        for _ in range(100):
            loss = 2 + 0.3 * sample(updates)
            told += said(History(loss, learning_rate=np.full(updates, 0.1)))
    # That nothing happened, or that what is left is poor, is true of it.
    wrong = [name for name in told if name not in (names.NO_PROGRESS, names.UNDERFITTING)]
    assert len(wrong) <= 10  # of 200
    assert told.count(names.NO_PROGRESS) >= 150


def test_the_first_loss_that_is_not_finite_is_told_with_its_rate():
    one = history(FINE, rates=CONSTANT)
    loss = one.loss.copy()
    loss[57:] = np.nan
    (finding,) = diagnose(dataclasses.replace(one, loss=loss)).findings
    assert finding.pattern == names.DIVERGENCE
    assert finding.evidence.startswith(
        "the loss is not finite at update 58 of 400, at the rate 0.1"
    )
    (finding,) = diagnose(History([np.inf, np.nan])).findings
    assert "before anything was learned" in finding.evidence
    assert "data" in finding.advice


def test_a_validation_loss_that_ends_not_finite_is_told():
    one = history(FINE)
    validation = {"loss": np.where(STEPS >= 48, np.nan, one.validation["loss"])}
    (finding,) = diagnose(dataclasses.replace(one, validation=validation)).findings
    assert finding.pattern == names.DIVERGENCE
    assert finding.evidence.startswith("the validation loss is not finite after 48 updates")


def test_one_validation_loss_that_is_not_finite_is_no_divergence():
    one = history(FINE)
    validation = {"loss": np.where(STEPS == 48, np.nan, one.validation["loss"])}
    (finding,) = diagnose(dataclasses.replace(one, validation=validation)).findings
    assert finding.pattern == names.NOT_FINITE
    assert "at 1 of 26 evaluations, last after 48 updates" in finding.evidence


@pytest.mark.parametrize("case", CASES)
def test_bad_batches_on_the_way_hide_no_pattern_and_add_none(case):
    options, expected = CASES[case]
    # All of two updates in a row would be a part of a spike.
    found = said(**{**options, "bad": [30, 120, 310]})
    assert set(found) == {*expected, *([] if "divergence" in expected else [names.NOT_FINITE])}


def test_a_bad_number_among_rates_and_records_does_not_silence_a_rule():
    options, expected = CASES["tiny updates"]
    one = history(**options)
    ratio, rates = (np.array(x) for x in (one.monitored["ratio/head"], one.learning_rate))
    ratio[7], rates[9] = np.nan, np.inf
    spoiled = dataclasses.replace(one, monitored={"ratio/head": ratio}, learning_rate=rates)
    assert said(spoiled) == expected


def test_a_bad_last_batch_is_divergence_only_where_nothing_shows_that_the_run_is_sound():
    one = history(FINE, bad=[399])
    assert said(one) == [names.NOT_FINITE]
    assert said(dataclasses.replace(one, steps=STEPS[:0], train={}, validation={})) == [
        names.DIVERGENCE
    ]
    whole_interval = history(FINE, bad=range(384, 400))  # no loss since the evaluation before
    assert said(whole_interval) == [names.DIVERGENCE]


def test_a_run_that_skips_a_bad_batch_is_not_said_to_diverge():
    task = Task(
        name="parabola",
        init=lambda key: (jnp.full((3,), 2.0), ()),
        batch=lambda key, step: jnp.where(step == 30, jnp.nan, 1.0),
        loss=lambda x, state, batch, key: (jnp.sum(x**2) * batch, state),
        evaluate=lambda x, state, data: {"loss": jnp.sum(x**2)},
    )
    run = train(task, optlab.skip_nonfinite(optlab.sgd(0.05)), steps=60, eval_every=5)
    assert not run.diverged
    assert said(run.history) == [names.NOT_FINITE]


def test_a_warm_up_is_no_flat_start():
    slow_at_first = np.append(0, np.cumsum(np.minimum(np.arange(UPDATES) / 100, 1)))
    level = 0.1 + 2.4 * np.exp(-slow_at_first / 40)
    rates = 0.1 * np.minimum(np.arange(UPDATES) / 100, 1)
    assert names.FLAT_START not in said(level=level, rates=rates)
    # What takes as long at a constant rate is one.
    assert names.FLAT_START in said(level=level, rates=CONSTANT)


def test_a_cosine_to_the_last_update_has_not_decayed_too_early():
    for time in (0.05, 0.1, 0.2):
        assert names.DECAYED_TOO_EARLY not in said(level=exponential(time))


def test_a_spike_from_which_the_run_recovers_is_not_told():
    thrown = np.where((TIME > 0) & (TIME < 0.05), 20.0, FINE)
    assert said(level=thrown) == []
    assert said(level=np.where(FINE < 0.9, 0.9, thrown)) == [names.RATE_TOO_HIGH]


def test_a_validation_loss_that_only_rises_is_overfitting():
    (finding,) = diagnose(history(FINE, validation=2.5 + 2 * TIME)).findings
    assert finding.pattern == names.OVERFITTING
    assert "validation data is made as training data is" in finding.advice


def test_a_plateau_is_not_told_of_a_rate_that_decays_or_of_a_run_that_is_done():
    options, _ = CASES["noise at a constant rate"]
    assert said(**{**options, "rates": COSINE}) == []
    assert said(level=exponential(0.05, end=0.01), rates=CONSTANT, validation=FINE) == []
    unknown = dataclasses.replace(history(**options), learning_rate=None)
    (finding,) = diagnose(unknown).findings
    assert "if the rate is constant" in finding.evidence


def test_nothing_is_said_of_gaps_without_training_data():
    options, expected = CASES["wide gap"]
    assert said(**options) == expected
    assert said(**options, train=False) == []


def test_the_monitors_numbers_are_evidence():
    poor = exponential(0.08, end=1.5)
    # One group that moves is enough.
    assert names.UPDATES_TOO_SMALL not in said(level=poor, **{"ratio/a": 1e-7, "ratio/b": 1e-3})
    (frozen, *_) = diagnose(history(poor, **{"ratio/all": 0.0})).findings
    assert "frozen" in frozen.advice
    # Updates are small after every decay.
    late = np.where(COSINE > 0.05, 1e-3, 1e-7)
    assert names.UPDATES_TOO_SMALL not in said(level=poor, **{"ratio/all": late})


def test_large_ratios_and_clipped_steps_alone_are_no_high_rate():
    assert said(level=FINE, **{"ratio/all": 0.3}) == []
    assert said(level=FINE, clipped_share=0.97) == []
    assert names.RATE_TOO_HIGH not in said(level=exponential(0.08, end=1.5), clipped_share=0.97)


def test_nothing_is_said_at_the_best_constant_rate_of_a_function_whose_weights_go_to_0():
    run = train(tasks.valley(), monitor(optlab.sgd(0.0196)), steps=100, key=jax.random.key(0))
    assert diagnose(run.history) == Diagnosis(())


def test_a_spike_is_dated_and_no_jump_that_comes_again_is_one():
    (finding,) = diagnose(history(SPIKE)).findings
    assert "at update 201" in finding.evidence
    assert "was back after" in finding.evidence
    assert "clip" in finding.advice
    again = SPIKE + sum(np.roll(SPIKE - FINE, shift) for shift in range(25, 200, 25))
    assert names.SPIKE not in said(level=again)
    # What the run never recovers from is no spike.
    assert said(level=np.where(TIME < 0.5, FINE, 2.3)) == [names.RATE_TOO_HIGH]


def test_a_decay_is_only_stretched_where_there_is_one():
    (constant,) = diagnose(history(2.5 - 2 * TIME**0.5, rates=CONSTANT)).findings
    assert "train longer" in constant.advice
    assert "stretched" not in constant.advice
    (decayed,) = diagnose(history(2.5 - 2 * TIME**0.5)).findings
    assert "stretched to the new length" in decayed.advice


def test_a_constant_rate_whose_noise_is_in_the_batches_alone_is_no_plateau():
    options, _ = CASES["noise at a constant rate"]
    assert said(**{**options, "rough": 0.0}) == []


def test_what_is_learned_in_part_is_only_poor_if_a_baseline_says_so():
    one = history(exponential(0.08, end=1.5))
    assert said(one) == []  # the targets may hold no more than that
    (finding,) = diagnose(one, baseline=2.3).findings
    assert finding.pattern == names.UNDERFITTING


def test_a_higher_rate_is_not_advised_where_evaluations_fluctuate():
    quiet, rough = (
        diagnose(history(2.5 - 2 * TIME, rates=CONSTANT, rough=rough)).findings
        for rough in (0.0, 0.03)
    )
    assert quiet[0].pattern == rough[0].pattern == names.STILL_IMPROVING
    assert quiet[0].advice.startswith("a rate three times higher")
    assert rough[0].advice == "train longer."


def test_a_baseline_shows_a_high_start_and_what_is_poor():
    high = exponential(0.02, start=60.0, end=0.1)
    assert said(level=high) == []
    (finding,) = diagnose(history(high), baseline=2.3).findings
    assert finding.pattern == names.HIGH_START
    assert "26 times the 2.3 of guessing" in finding.evidence
    middling = exponential(0.08, start=9.0, end=1.5)
    assert said(level=middling) == []
    assert [f.pattern for f in diagnose(history(middling), baseline=2.3).findings] == [
        names.UNDERFITTING
    ]


def test_the_accuracy_before_training_is_a_baseline():
    one = history(exponential(0.02, start=60.0, end=0.1))
    accuracy = np.where(STEPS == 0, 0.1, 0.95)
    known = {**one.validation, "accuracy": accuracy}
    assert said(dataclasses.replace(one, validation=known)) == [names.HIGH_START]


def test_a_score_is_read_where_there_is_no_loss():
    one = history(FINE)
    accuracy = np.where(TIME < 0.4, 0.9 * TIME / 0.4, 0.9 - 0.8 * (TIME - 0.4))[STEPS]
    options = {"score": "accuracy", "maximize": True, "train": {}}
    up = dataclasses.replace(one, validation={"accuracy": accuracy}, **options)
    (finding,) = diagnose(up).findings
    assert finding.pattern == names.OVERFITTING
    assert "score (accuracy)" in finding.evidence
    down = dataclasses.replace(
        one, validation={"error": -accuracy}, score="error", train={}, maximize=False
    )
    assert said(down) == [names.OVERFITTING]


def test_overfitting_says_since_when():
    options, _ = CASES["rising validation"]
    (finding,) = diagnose(history(**options)).findings
    # The validation loss turns at 0.3 of 400 updates; evaluations are 16 apart.
    near = [f"near update {step}," in finding.evidence for step in (112, 128)]
    assert any(near)
    assert "EarlyStopping" in finding.advice


def test_an_honest_line_where_there_is_nothing_to_say():
    found = diagnose(history(FINE))
    assert not found
    assert str(found) == "Nothing stands out."


def test_the_findings_are_printed_with_evidence_and_advice():
    options, _ = CASES["tiny updates"]
    found = diagnose(history(**options))
    assert found
    first, second = str(found).split("\n\n")
    assert first == (
        "Updates too small: an update changes the weights by 1.0e-07 of their size, where 1e-3 is "
        "customary.\n  Try: a rate about 10000 times higher."
    )
    assert second.startswith("Still improving: the validation loss still fell at the end: the last")
    assert "\n  Try: a rate three times higher, as progress is slow throughout, where" in second
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.findings = ()


@pytest.mark.parametrize("updates", [0, 1, 2, 19])
def test_of_few_updates_nothing_is_said(updates):
    assert diagnose(History(np.linspace(3, 2, updates))) == Diagnosis(())


def test_few_evaluations_leave_the_losses_of_the_updates():
    options, expected = CASES["straight down"]
    one = history(**options)
    few = dataclasses.replace(
        one,
        steps=one.steps[[0, -1]],
        train={},
        validation={"loss": one.validation["loss"][[0, -1]]},
    )
    assert said(few) == expected
    assert said(History(one.loss)) == expected


SPECIAL = np.array([0.0, 1.0, -1.0, 2.0, 1e-30, 1e30, -1e30, np.nan, np.inf, -np.inf])


@given(
    seed=st.integers(0, 2**32 - 1),
    updates=st.sampled_from([0, 1, 3, 20, 21, 60]),
    evaluations=st.sampled_from([0, 1, 2, 8, 12]),
    special=st.sampled_from([0.0, 0.05, 0.5]),
)
@settings(max_examples=300, deadline=None)
def test_any_history_is_read_without_an_error(seed, updates, evaluations, special):
    rng = np.random.default_rng(seed)

    def draw(length):
        numbers = rng.exponential(size=length).cumsum()[::-1] * rng.choice([1.0, -1.0, 1e-6])
        return np.where(rng.random(length) < special, rng.choice(SPECIAL, length), numbers)

    def maybe(*metrics, length):
        return {name: draw(length) for name in metrics if rng.random() < 0.7}

    made = History(
        loss=draw(updates),
        steps=np.sort(rng.permutation(max(updates, 12))[:evaluations]) - rng.integers(2),
        train=maybe("loss", length=evaluations),
        validation=maybe("loss", "accuracy", length=evaluations),
        learning_rate=abs(draw(updates)) if rng.random() < 0.7 else None,
        monitored=maybe("ratio/a", "clipped_share", length=updates),
    )
    found = diagnose(made)
    assert str(found)
    assert len({finding.pattern for finding in found.findings}) == len(found.findings)


def test_every_pattern_has_a_rule_and_a_case():
    patterns = {value for name, value in vars(names).items() if name.isupper()}
    shown = {pattern for _, expected in CASES.values() for pattern in expected}
    assert patterns == shown | {names.HIGH_START}
    assert len(RULES) == len(patterns)


@pytest.mark.parametrize("baseline", [0.0, -1.0, np.nan, "log 10"])
def test_a_bad_baseline_is_refused(baseline):
    with pytest.raises(ValueError, match="diagnose: baseline must be "):
        diagnose(history(FINE), baseline=baseline)


# Statistics


def test_trends_are_tested_against_noise():
    rng = np.random.default_rng(0)
    z = np.array([mann_kendall(rng.normal(size=12)) for _ in range(2000)])
    # Of 2000 normal numbers the mean is within 0.09, the deviation within 0.06, at four errors.
    assert abs(z.mean()) < 0.09
    assert abs(z.std() - 1) < 0.06
    assert mann_kendall(np.arange(3.0)) == -mann_kendall(-np.arange(3.0)) > 0


def test_the_slope_is_that_of_most_points():
    x = np.arange(9.0)
    y = 3 * x
    y[4] = 1e6
    assert slope(x, y) == pytest.approx(3.0)


def test_noise_is_blind_to_a_straight_trend():
    assert noise(np.arange(10.0)) == 0
    rng = np.random.default_rng(0)
    # 4000 residuals, correlated: about 2% at two errors.
    assert noise(rng.normal(0, 0.5, 4000) + np.arange(4000)) == pytest.approx(0.5, rel=0.05)
    assert noise(np.ones(2)) == 0


def test_running_statistics_of_short_arrays_are_of_all():
    np.testing.assert_array_equal(running(np.array([1.0, 5.0]), 3), [3.0])


def test_rate_time_runs_with_the_rates():
    curves = Curves(History(np.ones(4), learning_rate=np.array([0.0, 1.0, 1.0, 2.0])))
    np.testing.assert_allclose(curves.rate_time, [0, 0.25, 0.5, 1])
    assert float(curves.in_rate_time(0.75)) == 0.5
    assert curves.update_at(0.5) == 3
    unknown = Curves(History(np.ones(4)))
    assert float(unknown.in_rate_time(0.75)) == 0.75
    assert unknown.update_at(0.75) == 3


def test_a_gain_is_a_share_of_the_fall():
    at = np.linspace(0.04, 1, 25)
    line = Curve(at, 5 - 2 * at, start=5.0, name="a line")
    # The lowest is the mean of the last three points, 1/25 before the end, as is the end itself.
    assert line.gain(0.7) == pytest.approx(0.6 / (5 - min(line.lowest, line.end)))
    assert line.is_falling(0.7)
    assert Curve(at, np.full(25, 5.0), 5.0, "flat").gain(0.7) == 0


# The loop's own history


def regression(broken=None):
    """Return a linear regression on noisy targets, with all splits."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5, 3.0], np.float32)

    def loss(params, data):
        inputs, targets = data
        weights = jax.lax.stop_gradient(params["w"]) if broken == "frozen" else params["w"]
        value = jnp.mean((inputs @ weights + params["b"] - targets) ** 2)
        return jnp.log(value - 1e9) if broken == "nan" else value

    splits = {"train": (x[:200], y[:200]), "validation": (x[200:], y[200:])}
    return Task(
        name="regression",
        init=lambda key: ({"w": jnp.ones(4), "b": jnp.ones(())}, ()),
        loss=lambda params, state, batch, key: (loss(params, batch), state),
        batch=lambda key, step: jax.tree.map(
            lambda array: array[jax.random.randint(jax.random.fold_in(key, step), (16,), 0, 200)],
            (jnp.asarray(x), jnp.asarray(y)),
        ),
        evaluate=lambda params, state, data: {"loss": loss(params, data)},
        splits=splits,
    )


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.05, []),
        (1e-3, [names.STILL_IMPROVING]),
        (1e-7, [names.UPDATES_TOO_SMALL]),
        (3.0, [names.DIVERGENCE]),
    ],
)
def test_what_train_records_is_read(rate, expected):
    tx = monitor(optlab.sgd(rate, momentum=0.5))
    run = train(regression(), tx, steps=240, key=jax.random.key(0))
    assert said(run.history)[:1] == expected


# Checks before training


def classifier(scale=0.0, *, classes=10, reduce=jnp.mean, shuffled=False, loss=None, by_name=False):
    """Return a network on sixteen examples, its last layer drawn with a deviation `scale`.

    By name, `evaluate` takes a dict, and thus no batch.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    y = jnp.asarray(rng.integers(0, classes, 16))

    def init(key):
        # One row: for a small last axis, XLA compiles the random bits for seconds on a CPU.
        drawn = jax.random.normal(key, (8 * 32 + 32 * classes,))
        hidden, head = drawn[:256].reshape(8, 32), drawn[256:].reshape(32, classes)
        return {"hidden": 0.5 * hidden, "head": scale * head}, ()

    def logits(params, x):
        return jnp.tanh(x @ params["hidden"]) @ params["head"]

    def losses(params, batch, key):
        x, y = batch
        y = jax.random.permutation(key, y) if shuffled else y
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)

    def evaluate(params, state, data):
        inputs, labels = (data["x"], data["y"]) if by_name else data
        right = logits(params, inputs).argmax(-1) == labels
        value = losses(params, (inputs, labels), jax.random.key(0)).mean()
        return {"loss": value, "accuracy": right.mean()}

    def value(params, state, batch, key):
        value = reduce(losses(params, batch, key))
        return (value if loss is None else loss(value)), state

    return Task(
        name="classifier",
        init=init,
        loss=value,
        batch=lambda key, step: (x, y),
        evaluate=evaluate,
        splits={"validation": {"x": x, "y": y} if by_name else (x, y)},
    )


def test_the_initial_loss_of_guessing_passes():
    check = check_initial_loss(classifier(), 10)
    assert check
    assert check.passed
    assert str(check) == (
        "Passed: the loss before training is 2.3 (5 seeds: 2.3 to 2.3), 1.00 times log 10 = 2.3."
    )


@pytest.mark.parametrize(
    ("options", "num_classes", "suspect"),
    [
        ({"scale": 5.0}, 10, "initial weights too large"),
        ({"reduce": jnp.sum}, 10, "a sum over the batch, not a mean"),
        ({}, 100, "fewer classes than were said"),
        ({"loss": lambda value: jnp.log(value - 1e3)}, 10, "log(0)"),
    ],
)
def test_a_wrong_initial_loss_fails_and_says_what_it_usually_means(options, num_classes, suspect):
    check = check_initial_loss(classifier(**options), num_classes, seeds=2)
    assert not check
    assert str(check).startswith("Failed: the loss before training is ")
    assert suspect in check.advice


def test_the_initial_loss_is_a_mean_over_seeds():
    task = classifier(scale=1.0)
    alone = [check_initial_loss(task, 10, seeds=[seed]).evidence for seed in (3, 8)]
    each = [float(evidence.split(" is ")[1].split(" ")[0]) for evidence in alone]
    both = check_initial_loss(task, 10, seeds=[3, 8]).evidence
    # All numbers are rounded to three digits.
    assert float(both.split(" is ")[1].split(" ")[0]) == pytest.approx(np.mean(each), rel=0.01)


def test_a_sound_model_memorizes_a_batch():
    check = check_overfits_small_batch(classifier(scale=0.1))
    assert check
    assert "reached 100% accuracy" in check.evidence
    assert "the best of 4" in check.evidence
    assert check.advice == ""


def test_without_accuracy_the_loss_is_looked_at():
    check = check_overfits_small_batch(classifier(scale=0.1, by_name=True))
    assert check
    assert "accuracy" not in check.evidence
    assert check_overfits_small_batch(regression(), optlab.sgd(0.1))


def test_a_bar_shows_the_updates_of_all_rates_that_are_tried(monkeypatch):
    shown = []

    @contextmanager
    def bar(who, wanted, total):
        yield lambda done, text: shown.append((done, total))

    monkeypatch.setattr("optlab.lab.diagnosis._model_checks.progress_bar", bar)
    check_overfits_small_batch(regression(), optlab.sgd(0.1), progress=True)
    assert len(shown) == 20
    assert shown[-1] == (300, 300)


@pytest.mark.parametrize(
    ("task", "tx", "suspect"),
    [
        (classifier(), optax.set_to_zero(), "no parameter changed"),
        (classifier(scale=0.1), optlab.sgd(1e-6), "a wrong rate (without `optimizer`, four"),
        (classifier(scale=0.1, shuffled=True), None, "labels shuffled against the inputs"),
        (regression("frozen"), None, "1 of 2 parameters never changed (['w'])"),
        (regression("nan"), None, "NaN or infinity in the data"),
    ],
    ids=["frozen", "rate", "shuffled", "one frozen", "nan"],
)
def test_a_model_that_cannot_memorize_fails_and_says_what_to_suspect(task, tx, suspect):
    check = check_overfits_small_batch(task, tx, steps=100)
    assert not check
    assert suspect in check.advice


def test_a_fault_of_evaluation_mode_alone_is_told():
    sound = classifier(scale=0.1)
    upside_down = dataclasses.replace(
        sound, evaluate=lambda p, s, d: {**sound.evaluate(p, s, d), "accuracy": jnp.zeros(())}
    )
    check = check_overfits_small_batch(upside_down)
    assert check
    assert "evaluation mode" in check.advice


def test_the_same_key_gives_the_same_check():
    task = classifier(scale=0.1, shuffled=True)
    first, again, other = (
        check_overfits_small_batch(task, optlab.adam(1e-2), steps=20, key=jax.random.key(seed))
        for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda task: check_initial_loss(task, 1), "num_classes must be an integer >= 2"),
        (lambda task: check_initial_loss(task, 10, seeds=0), "seeds must be an integer >= 1"),
        (lambda task: check_initial_loss(None, 10), "task must be an optlab.lab.Task"),
        (lambda task: check_overfits_small_batch(task, steps=0), "steps must be an integer >= 1"),
        (lambda task: check_overfits_small_batch(task, 0.1), "optimizer must be an optax.Gradient"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(classifier())
