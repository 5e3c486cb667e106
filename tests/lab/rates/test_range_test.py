"""The learning-rate range test: what it runs, what it suggests, and when it declines to."""

import dataclasses
import json
import re
import shutil
import sqlite3
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from helpers import noise_of, numbers
from optlab.lab import Task, compare, lr_range_test, shuffled_batches, tasks
from optlab.lab.rates import _range_test
from optlab.lab.rates._confirm import Confirmation, choose
from optlab.lab.rates._suggest import (
    fallen,
    median_over_seeds,
    picks,
    smooth,
    stays_high,
    suggest,
    trend,
)
from optlab.lab.tasks._models import he_normal


def quadratic(curvature=2.0, deviation=0.0, loss=None):
    """Return the task of descending ½·curvature·|x|² in three dimensions, through noise on x."""

    def height(x):
        return 0.5 * curvature * jnp.sum(x**2)

    def noisy(x, state, batch, key):
        return height(x + deviation * noise_of(key, width=3)), state

    return Task(
        name="quadratic",
        init=lambda key: (1 + numbers(key, width=3), ()),
        loss=loss or noisy,
        batch=lambda key, step: (),
        evaluate=lambda x, state, data: {"loss": height(x)},
    )


@pytest.fixture(scope="module")
def noisy():
    return lr_range_test(quadratic(deviation=0.3), optlab.sgd, confirm=0)


@pytest.fixture(scope="module")
def exact():
    return lr_range_test(quadratic(), optax.sgd, min_lr=1e-4, seeds=2, confirm=0)


# The run


def test_each_loss_is_that_after_the_update_at_its_rate(exact):
    assert exact.rates[[0, -1]] == pytest.approx([1e-4, 10])
    np.testing.assert_allclose(np.diff(np.log(exact.rates)), np.log(1e5) / 99)
    factors = np.cumprod((1 - 2.0 * exact.rates) ** 2)
    running = np.isfinite(exact.losses[0])
    expected = exact.initial[:, :1] * factors[running]
    # Up to 100 products, each rounded to float32; x meets 0 near the rate ½.
    np.testing.assert_allclose(exact.losses[:, running], expected, rtol=1e-3, atol=1e-9)
    assert exact.diverged.all()
    first = np.flatnonzero(~running)[0]
    assert factors[first] > 4 > factors[first - 1]


def test_linear_mode_has_equal_steps():
    found = lr_range_test(
        quadratic(), optax.sgd, min_lr=0.01, max_lr=2, steps=50, seeds=1, mode="linear", confirm=0
    )
    np.testing.assert_allclose(found.rates, np.linspace(0.01, 2, 50))
    factors = np.cumprod((1 - 2.0 * found.rates) ** 2)
    np.testing.assert_allclose(found.losses[0, :10], found.initial[0, 0] * factors[:10], rtol=1e-4)
    assert 0.01 <= found.suggested_min <= found.suggested_max < 1


def test_a_seed_that_diverged_has_no_losses_afterwards():
    found = lr_range_test(quadratic(), optax.sgd, min_lr=1.0, max_lr=100.0, steps=30, seeds=1)
    kept = int(np.isfinite(found.losses[0]).sum())
    assert 0 < kept < 10
    assert np.isfinite(found.losses[0, :kept]).all()
    assert np.isnan(found.losses[0, kept:]).all()


def test_a_seed_that_is_nan_does_not_spoil_the_others():
    good = quadratic(deviation=0.3)
    starts_bad = np.array([bool(jax.random.bernoulli(good_key(seed), 0.3)) for seed in range(5)])
    assert 0 < starts_bad.sum() < 3

    def init(key):
        x, state = good.init(key)
        return jnp.where(jax.random.bernoulli(key, 0.3), jnp.nan, x), state

    found = lr_range_test(dataclasses.replace(good, init=init), optlab.sgd, confirm=0)
    alone = lr_range_test(good, optlab.sgd, confirm=0)
    np.testing.assert_array_equal(np.isnan(found.initial).all(axis=1), starts_bad)
    np.testing.assert_array_equal(found.losses[~starts_bad], alone.losses[~starts_bad])
    assert found.reason is None
    assert found.suggested_max == pytest.approx(alone.suggested_max, rel=1.0)
    most = lr_range_test(
        dataclasses.replace(good, init=init), optlab.sgd, seeds=[*np.flatnonzero(starts_bad)]
    )
    assert most.suggested_max is None


def good_key(seed):
    """Return the key that the task's `init` gets."""
    return jax.random.split(jax.random.key(seed), 3)[0]


def test_one_compilation_serves_all_seeds_and_steps():
    traces = []
    task = quadratic()

    def loss(*args):
        traces.append(args)
        return task.loss(*args)

    counted = dataclasses.replace(task, loss=loss)
    lr_range_test(counted, optax.sgd, seeds=7, steps=60, confirm=0)
    # To check the task, for the loss before the first update, to count the work of an update, and
    # for the program that makes it.
    assert len(traces) == 4


def test_training_afterwards_is_bitwise_the_same():
    task = quadratic(deviation=0.1)
    options = {"rates": [0.01, 0.1], "seeds": 2, "steps": 6, "eval_every": 2}
    before = compare(task, {"sgd": optlab.sgd}, **options).runs["sgd"]
    numpys = np.random.get_state()[1].copy()
    first = lr_range_test(task, optlab.sgd, steps=20, confirm=8)
    np.testing.assert_array_equal(np.random.get_state()[1], numpys)
    after = compare(task, {"sgd": optlab.sgd}, **options).runs["sgd"]
    np.testing.assert_array_equal(before.train_loss, after.train_loss)
    np.testing.assert_array_equal(before.validation["loss"], after.validation["loss"])
    again = lr_range_test(task, optlab.sgd, steps=20, confirm=8)
    np.testing.assert_array_equal(first.losses, again.losses)
    np.testing.assert_array_equal(first.confirmed_losses, again.confirmed_losses)


def test_batch_statistics_and_random_streams_are_carried():
    class Model(nnx.Module):
        def __init__(self, *, rngs):
            self.hidden = nnx.Linear(4, 8, use_bias=False, kernel_init=he_normal, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.dropout = nnx.Dropout(0.0, rngs=rngs)  # above 0, it compiles for seconds
            self.head = nnx.Linear(8, 3, kernel_init=he_normal, rngs=rngs)

        def __call__(self, x):
            return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))

    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    data = (x, x[:, :3].argmax(axis=1))
    task = tasks.nnx_classifier(
        "bn", lambda rngs: Model(rngs=rngs), train=data, validation=data, test=data, batch_size=20
    )
    found = lr_range_test(task, optlab.adam, min_lr=1e-4, steps=60, seeds=3, confirm=60)
    assert found.reason is None
    assert 1e-4 < found.suggested_min < found.suggested_max < 1


# What is suggested


@pytest.mark.parametrize("curvature", [0.5, 200.0])
@pytest.mark.parametrize("deviation", [0.0, 0.3])
def test_the_highest_rate_for_sgd_lies_below_the_stability_limit(curvature, deviation):
    found = lr_range_test(quadratic(curvature, deviation), optlab.sgd, max_lr=100.0, confirm=0)
    limit = 2 / curvature
    assert limit / 10 < found.suggested_max < limit
    assert found.max_interval[1] < limit
    assert found.suggested_min < found.suggested_max


def test_the_interval_is_the_range_of_what_single_seeds_suggest(noisy):
    task = quadratic(deviation=0.3)
    seeds = [4, 7, 2]
    together = lr_range_test(task, optlab.sgd, seeds=seeds, confirm=0)
    alone = [lr_range_test(task, optlab.sgd, seeds=[seed], confirm=0) for seed in seeds]
    for name in ("max", "min"):
        each = [getattr(one, f"suggested_{name}") for one in alone]
        assert getattr(together, f"suggested_{name}") == pytest.approx(np.median(each))
        assert getattr(together, f"{name}_interval") == pytest.approx((min(each), max(each)))
    assert noisy.max_interval[0] < noisy.suggested_max < noisy.max_interval[1]


def test_suggestions_are_read_off_the_curve():
    rates = 10.0 ** np.arange(-50, 50)
    # With 100 points the window holds seven; a straight line is its own average.
    steps = np.arange(100)
    curve = np.interp(steps, [0, 20, 60, 99], [9.0, 9.0, 1.0, 9.0])
    low, high, at_edge = suggest(rates, curve[None], np.full((1, 10), 9.0))
    # The trend's lowest is 1 + (6·8/40 + 6·8/39)/7 ≈ 1.35, so that a tenth of the fall is done at
    # 8.23, 3.8 steps down the line, and six tenths at 4.41, 23.0 steps down.
    assert low.rate == rates[24]
    assert high.rate == pytest.approx(np.sqrt(rates[43] * rates[60]), rel=1e-6)
    assert not at_edge


def test_a_loss_that_still_falls_at_the_end_is_told():
    found = lr_range_test(quadratic(), optlab.sgd, max_lr=0.1, seeds=2, confirm=20)
    assert found.at_edge
    assert 0.05 < found.suggested_max <= 0.1
    assert "still falls at the last rate; raise max_lr" in str(found)


def test_the_running_average_is_free_of_bias():
    losses = np.array([3.0, 1.0, 2.0])
    weights = [0.98**2, 0.98, 1.0]
    expected = [3.0, np.average([3, 1], weights=weights[1:]), np.average(losses, weights=weights)]
    np.testing.assert_allclose(smooth(losses), expected, rtol=1e-12)


def test_the_trend_does_not_lag_and_ends_where_a_seed_diverged():
    line = np.arange(100.0)
    line[90:] = np.nan
    np.testing.assert_allclose(trend(line[None])[0, 3:87], line[3:87])
    np.testing.assert_array_equal(np.isnan(trend(line[None])[0]), np.isnan(line))
    curves = np.array([[1.0, 1, np.nan], [2, 2, np.nan], [9, np.nan, np.nan]])
    np.testing.assert_array_equal(median_over_seeds(curves), [2, 2, np.nan])


def test_the_picks_are_fastais():
    rates = 10.0 ** np.linspace(-7, 1, 100)
    steps = np.arange(100)
    curve = np.abs(steps - 60) + 20.0 - 3.0 * (steps > 30)
    # Cut to [10:95], the longest decreasing part has 51 points, from 10 to 60, and begins,
    # as fastai counts, one before: −1 + ⌊51/3⌋ + ⌊51/6⌋ = 24.
    assert picks(rates, curve) == pytest.approx(
        # The slopes at 15 points from the end and at the end are 1, so that the window stays.
        {"valley": rates[34], "steep": rates[30], "minimum": rates[60] / 10, "slide": rates[79]}
    )
    curve[70:] = 1000.0  # over four times the best: cut to [10:66]
    assert picks(rates, curve)["minimum"] == rates[60] / 10
    # A line that bends up at 50 and is level from 79 on, where the slope is ½ once. The window goes
    # to the left while its right end, not its left end, lies there: its last left end is 79 − 15.
    bent = 10 + np.clip(steps - 50.0, 0, 29)
    assert picks(rates, bent)["slide"] == rates[64]
    rising = picks(rates, np.linspace(1.0, 2.0, 100))
    assert rising["valley"] == rates[10]
    assert rising["minimum"] == rates[10] / 10  # where fastai is silent, too
    assert picks(rates[:7], curve[:7]) == {}


def test_a_pick_where_the_loss_has_not_fallen_is_noise():
    rates = np.geomspace(1e-7, 10, 100)
    rng = np.random.default_rng(0)
    curve = np.interp(np.arange(100), [0, 50, 80, 99], [9.0, 9.0, 1.0, 15.0])
    losses, initial = curve + 0.1 * rng.normal(size=(5, 100)), 9 + 0.1 * rng.normal(size=(5, 10))
    given = {"steep": rates[20], "valley": rates[65], "minimum": rates[80] / 10, "slide": rates[99]}
    assert fallen(rates, losses, initial, given).keys() == {"valley", "minimum"}
    # One low point of the flat part, and seeds that begin at different losses, change nothing.
    losses[:, 18:23] -= 3
    shifts = np.array([[0.0], [0.0], [0.0], [0.0], [30.0]])
    given = fallen(rates, losses + shifts, initial + shifts, given)
    assert given.keys() == {"valley", "minimum"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A test that stored its runs, and the file."""
    file = tmp_path_factory.mktemp("range") / "test.sqlite"
    return file, lr_range_test(quadratic(), optlab.sgd, results=file, **STORED)


STORED = {"min_lr": 1e-4, "steps": 20, "seeds": 2, "confirm": 8}


@pytest.mark.parametrize("lost", ["trial < 0", "trial > -20", "trial > 0", "0 = 1"])
def test_runs_that_a_file_lacks_are_made_again_to_the_same_bits(stored, tmp_path, lost, trained):
    file, expected = stored
    shutil.copy(file, tmp_path / "test.sqlite")
    with closing(sqlite3.connect(tmp_path / "test.sqlite")) as connection:
        connection.execute(f"delete from rungs where {lost}")
        connection.commit()
    found = lr_range_test(quadratic(), optlab.sgd, results=tmp_path / "test.sqlite", **STORED)
    assert found.to_json() == expected.to_json()
    assert bool(trained) == (lost != "0 = 1")


@pytest.fixture
def trained(monkeypatch):
    """The numbers of updates that are made, as they are made."""
    updates = []
    count = _range_test.count_updates
    monkeypatch.setattr(
        _range_test,
        "count_updates",
        lambda *args: lambda made: (updates.append(made), count(*args)(made)),
    )
    losses = _range_test._losses
    monkeypatch.setattr(
        _range_test, "_losses", lambda *args: (updates.append(20), losses(*args))[1]
    )
    return updates


@pytest.mark.parametrize("changes", [{"seeds": 3}, {"confirm": 9}, {"max_lr": 2.0}])
def test_a_file_of_another_test_is_refused(stored, changes):
    with pytest.raises(ValueError, match=r"^lr_range_test: .* must be that of the range test in "):
        lr_range_test(quadratic(), optlab.sgd, results=stored[0], **{**STORED, **changes})


# The confirming runs


def ravine():
    """Return a noisy quadratic whose best constant rate is far below what one update shows."""
    curvatures = jnp.geomspace(1.0, 100.0, 16)

    def height(x):
        return 0.5 * jnp.sum(curvatures * x**2)

    return dataclasses.replace(
        quadratic(),
        init=lambda key: (1 + numbers(key, width=16), ()),
        loss=lambda x, state, batch, key: (height(x + 0.1 * noise_of(key, width=16)), state),
        evaluate=lambda x, state, data: {"loss": height(x)},
        steps=200,
    )


@pytest.fixture(scope="module")
def confirmed():
    return lr_range_test(ravine(), optlab.sgd)


def test_the_suggested_rate_is_about_as_good_as_the_best_of_a_fine_grid(confirmed):
    rates = [*np.geomspace(1e-4, 1e-1, 16), confirmed.suggested_max]
    runs = compare(ravine(), {"x": optlab.sgd}, rates=rates, seeds=3, eval_every=200).runs["x"]
    losses = dict(zip(runs.rates, runs.validation["loss"][:, :, -1].mean(axis=1), strict=True))
    assert losses[confirmed.suggested_max] < 1.5 * np.nanmin([*losses.values()])


def test_confirming_runs_surround_the_suggestion_and_are_those_of_compare(confirmed):
    assert confirmed.confirmed_steps == 200
    assert confirmed.confirmed_losses.shape == (len(confirmed.confirmed_rates), 3)
    assert confirmed.confirmed_rates[0] < confirmed.suggested_max < confirmed.confirmed_rates[-1]
    assert confirmed.suggested_max in confirmed.confirmed_rates
    assert confirmed.suggested_min < confirmed.suggested_max
    low, high = confirmed.max_interval
    assert low <= confirmed.suggested_max <= high
    rates = confirmed.confirmed_rates
    runs = compare(ravine(), {"x": optlab.sgd}, rates=rates, seeds=3, steps=200, eval_every=12)
    ends = runs.runs["x"].validation["loss"][:, :, -4:].mean(axis=2)
    finite = np.isfinite(confirmed.confirmed_losses)
    # The rates are traced in float32 in both, but summed in another order.
    np.testing.assert_allclose(confirmed.confirmed_losses[finite], ends[finite], rtol=1e-3)
    assert f"{len(rates)} constant rates from " in str(confirmed)


def test_accumulation_of_gradients_changes_no_suggestion_by_much():
    options = {"min_lr": 1e-3, "confirm": 100, "seeds": 2}
    plain = lr_range_test(quadratic(), optlab.sgd, **options)
    two = lr_range_test(quadratic(), lambda r: optlab.accumulate(optlab.sgd(r), 2), **options)
    # Descent on a curvature of 2 converges below the rate 1, from 0.03 on fast enough.
    assert 0.03 < plain.suggested_max < 1
    assert 0.03 < two.suggested_max < 1


def confirmation(losses, initial=1.0):
    """Return runs at the rates 1, 10, … with these losses (rates, seeds)."""
    losses = np.asarray(losses, float)
    return Confirmation(10.0 ** np.arange(len(losses)), np.full(losses.shape[1], initial), losses)


def test_the_middle_of_equally_good_rates_is_chosen():
    chosen = choose(confirmation([[0.5], [0.101], [0.1], [0.102], [np.inf]]))
    assert chosen.rate == 100
    assert choose(confirmation([[0.3], [0.2], [0.1], [np.inf]])).rate == 100


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([[0.1, np.inf], [np.inf, 0.1]], "a seed diverges in the runs at all constant rates"),
        ([[1.0, 1.0], [1.1, 0.7]], "runs at constant rates from 1 to 10 do not lower the vali"),
        (
            [[0.01, 0.3], [0.9, 0.5], [0.3, 0.01]],
            "the best constant rate of single seeds lies anywhere from 1 to 100",
        ),
    ],
)
def test_no_rate_is_suggested_where_runs_at_constant_rates_do_not_agree(losses, reason):
    assert choose(confirmation(losses)).startswith(reason)


# Where there is nothing to suggest


def declined(found):
    assert found.suggested_max is found.suggested_min is None
    assert found.max_interval is found.min_interval is None
    assert found.picks == {}
    assert f"No reliable suggestion: {found.reason}." in str(found)
    assert json.loads(found.to_json())["suggested_max"] is None
    assert found.plot().get_title(loc="left")
    return found.reason


def test_nan_from_the_start():
    nan = quadratic(loss=lambda x, state, batch, key: (jnp.nan * x.sum(), state))
    found = lr_range_test(nan, optlab.sgd, steps=20)
    assert declined(found) == "the loss is not finite before the first update, in every seed"


def test_minus_infinity_is_no_low_loss():
    def loss(x, state, batch, key):
        return jnp.where(x.sum() < 1, -jnp.inf, x.sum()), state

    found = lr_range_test(quadratic(loss=loss), optlab.sgd, steps=30, seeds=2)
    assert found.diverged.all()
    assert np.nanmin(found.losses) >= 1


@pytest.mark.parametrize("deviation", [0.0, 0.2])
def test_a_flat_loss(deviation):
    def loss(x, state, batch, key):
        return 1.0 + 0 * x.sum() + deviation * noise_of(key, width=1)[0], state

    found = lr_range_test(quadratic(loss=loss), optlab.sgd)
    assert declined(found).startswith("the loss is flat: ")


def test_noise_alone_is_seldom_taken_for_a_fall():
    rng = np.random.default_rng(0)
    rates = np.geomspace(1e-7, 10, 100)
    for sample in (rng.standard_normal, rng.standard_exponential):
        found = [suggest(rates, sample((5, 100)), sample((5, 10))) for _ in range(200)]
        assert sum(not isinstance(each, str) for each in found) <= 4


@pytest.mark.parametrize(
    ("max_lr", "reason"), [(10.0, "every run diverged, by the rate "), (1e-2, "the loss rises ")]
)
def test_a_loss_that_never_falls(max_lr, reason):
    uphill = {"optimizer": lambda rate: optax.chain(optax.scale(-1.0), optax.sgd(rate))}
    found = lr_range_test(quadratic(), **uphill, max_lr=max_lr)
    assert declined(found).startswith(reason)


def test_where_batches_hide_the_fall_constant_rates_decide():
    rng = np.random.default_rng(6)
    sizes = np.exp(0.8 * rng.normal(size=(400, 1)))
    inputs = (rng.normal(size=(400, 6)) * sizes).astype(np.float32)
    data = inputs, (inputs @ rng.normal(size=6)).astype(np.float32)

    def error(x, data):
        return jnp.mean((data[0] @ x - data[1]) ** 2)

    heavy_tailed = Task(
        name="heavy-tailed inputs",
        init=lambda key: (jnp.zeros(6), ()),
        loss=lambda x, state, batch, key: (error(x, batch), state),
        batch=shuffled_batches(tuple(x[:300] for x in data), 8),
        evaluate=lambda x, state, data: {"loss": error(x, data)},
        splits={"validation": tuple(x[300:] for x in data)},
        steps=100,
    )
    rough = lr_range_test(heavy_tailed, optlab.sgd, confirm=0)
    assert rough.suggested_max is None
    found = lr_range_test(heavy_tailed, optlab.sgd)
    assert found.in_noise
    assert "the loss fell by no more than noise" in str(found)
    at_best = found.confirmed_losses.mean(axis=1).min()
    at_suggested = found.confirmed_losses[found.confirmed_rates == found.suggested_max].mean()
    assert at_suggested <= 3 * at_best < 0.01 * found.initial.mean()


def test_runs_that_diverge_at_once():
    found = lr_range_test(quadratic(), optlab.sgd, min_lr=100.0, max_lr=1000.0)
    assert declined(found) == "the runs diverge at the first rate already, 100; lower min_lr"


# Arguments and results


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 0.0}, "lr_range_test: min_lr must be finite and > 0, got min_lr=0.0"),
        ({"max_lr": np.inf}, "lr_range_test: max_lr must be finite and > 0, got max_lr=inf"),
        ({"max_lr": "1"}, "lr_range_test: max_lr must be a number or a scalar array, got max_lr='"),
        ({"min_lr": 1e-50}, "lr_range_test: min_lr must be finite and > 0 in float32, got min_lr"),
        (
            {"min_lr": 1.0, "max_lr": 1.0},
            "lr_range_test: max_lr must be above min_lr=1, got max_lr=1",
        ),
        ({"steps": 9}, "lr_range_test: steps must be an integer >= 10, got steps=9"),
        ({"steps": 50.0}, "lr_range_test: steps must be an integer >= 10, got steps=50.0"),
        ({"confirm": -1}, "lr_range_test: confirm must be an integer >= 0, got confirm=-1"),
        ({"seeds": 0}, "lr_range_test: seeds must be an integer >= 1, got seeds=0"),
        ({"seeds": [1, 1]}, "lr_range_test: seeds must differ, got [1, 1]"),
        (
            {"mode": "log"},
            "lr_range_test: mode must be 'exponential' or 'linear', got mode='log'",
        ),
        (
            {"optimizer": optax.sgd(0.1)},
            "lr_range_test: optimizer must be a function of the rate, got GradientTransformation",
        ),
        (
            {"optimizer": lambda rate: rate},
            "lr_range_test: optimizer must return an optax.GradientTransformation, got <function",
        ),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"optimizer": optax.sgd} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        lr_range_test(quadratic(), **arguments)


def test_a_rule_that_needs_the_loss_gets_it():
    polyak = lr_range_test(
        quadratic(),
        lambda rate: optax.chain(optax.polyak_sgd(1.0), optax.scale_by_schedule(rate)),
        seeds=1,
        steps=20,
    )
    assert np.isfinite(polyak.losses[0, :10]).all()


def test_the_result_is_frozen_and_tells_what_was_found(noisy):
    with pytest.raises(dataclasses.FrozenInstanceError):
        noisy.suggested_max = 1.0
    assert noisy.losses.shape == noisy.smoothed.shape == noisy.trends.shape == (5, 100)
    assert noisy.rates.shape == noisy.median.shape == (100,)
    lines = str(noisy).splitlines()
    assert lines[0] == (
        "quadratic: learning-rate range test, 1e-07 to 10 in 100 exponential steps, 5 seeds"
    )
    assert lines[3].split()[:3] == ["suggested", "max", f"{noisy.suggested_max:.3g}"]
    assert lines[5].split()[0] == "valley"
    assert "5 of 5 seeds diverged before the last rate." in lines


def test_json_is_strict_and_gives_back_the_results(noisy):
    document = json.loads(noisy.to_json(optimizer="sgd"), parse_constant=pytest.fail)
    assert document["optimizer"] == "sgd"
    assert document["suggested_max"] == noisy.suggested_max
    assert document["max_interval"] == list(noisy.max_interval)
    assert document["picks"] == noisy.picks
    losses = np.array(document["losses"], float)
    np.testing.assert_array_equal(losses, noisy.losses)
    assert document["versions"]["jax"] == jax.__version__


def test_the_plot_marks_every_rate_on_the_axes_it_is_given(noisy, exact, tmp_path):
    ax = noisy.plot()
    assert exact.plot(ax) is ax
    ax = noisy.plot()
    ax.figure.savefig(tmp_path / "range.png")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:2] == ["single seeds", "median"]
    assert labels[2] == f"suggested max {noisy.suggested_max:.2g}"
    assert labels[-1] == "a seed diverged"
    assert {"valley", "steep", "minimum"} <= {label.split()[0] for label in labels}
    assert ax.get_xscale() == "log"
    shown = next(line for line in ax.get_lines() if line.get_label() == "median").get_ydata()
    np.testing.assert_array_equal(shown, noisy.median)
    linear = dataclasses.replace(noisy, mode="linear").plot()
    assert linear.get_xscale() == "linear"


def test_the_plot_marks_constant_rates_that_diverged(noisy):
    rates = np.array([0.01, 0.1, 1.0, 2.0])
    losses = np.array([[0.2, 0.3], [0.1, 0.1], [0.1, np.inf], [np.inf, np.inf]])
    found = dataclasses.replace(
        noisy, confirmed_rates=rates, confirmed_losses=losses, confirmed_steps=100
    )
    ax = found.plot()
    drawn = {line.get_label(): line for line in ax.get_lines()}
    lost = drawn["diverged at a constant rate"]
    np.testing.assert_array_equal(lost.get_xdata(), [1.0, 2.0])
    assert set(lost.get_ydata()) == {0.97}


# Batches whose loss is not finite


def skipping(bad):
    """Return the range test of x² where the loss of some batches is NaN, which are skipped."""
    task = Task(
        name="parabola",
        init=lambda key: (jnp.full((3,), 2.0), ()),
        batch=lambda key, step: jnp.isin(step, jnp.asarray(bad)),
        loss=lambda x, state, batch, key: (jnp.sum(x**2) * jnp.where(batch, jnp.nan, 1.0), state),
        evaluate=lambda x, state, data: {"loss": jnp.sum(x**2)},
    )

    def optimizer(rate):
        return optlab.skip_nonfinite(optlab.sgd(rate))

    return lr_range_test(task, optimizer, seeds=1, min_lr=1e-3)


def test_one_bad_batch_changes_no_suggestion():
    # Batches 3 and 40 are among those before and within the test.
    whole, other = skipping([-1]), skipping([3, 40])
    assert other.suggested_max == pytest.approx(whole.suggested_max, rel=0.3)
    assert np.isfinite(other.losses).sum() == pytest.approx(np.isfinite(whole.losses).sum(), abs=2)
    assert np.isfinite(other.initial).all()


def test_one_high_loss_is_no_divergence_and_most_of_seven_are():
    losses = np.ones((2, 100))
    losses[0, [20, 99]] = 9.0
    losses[1, 60:64] = 9.0
    high = stays_high(losses, np.full((2, 1), 4.0))
    assert not high[0].any()
    assert high[1].argmax() == 60


def test_a_lower_min_lr_is_advised_only_where_losses_are_high_at_the_low_end():
    rates, initial = np.geomspace(1e-4, 10, 100), np.tile([0.9, 1.1], (3, 5))
    rises = np.ones((3, 100))
    rises[:, 50:] = 3.0
    assert "lower min_lr" not in suggest(rates, rises, initial)
    assert "lower min_lr" in suggest(rates, np.full((3, 100), 3.0), initial)


def cliff():
    """Return a task of a slow and a steep direction; a seed diverges from the rate 1 or 2 on."""

    def height(params):
        steep, slow = params["x"]
        curvature = jax.lax.stop_gradient(params["curvature"])
        return 0.5 * curvature * steep**2 + 0.02 * slow**2

    def init(key):
        return {"x": jnp.ones(2), "curvature": 1.0 + jax.random.bernoulli(key)}, ()

    return Task(
        name="cliff",
        init=init,
        loss=lambda params, state, batch, key: (height(params), state),
        batch=lambda key, step: (),
        evaluate=lambda params, state, data: {"loss": height(params)},
        steps=100,
    )


def test_a_rate_at_which_other_seeds_diverge_is_not_suggested():
    found = lr_range_test(cliff(), optlab.sgd, seeds=[0])
    first, *_, last = found.checked
    assert first > 1 > last == found.suggested_max
    assert found.checked[first] > 0 == found.checked[last]
    assert "Of 9 more seeds failed: " in found.table()


def test_many_bad_batches_are_a_reason_to_refuse():
    result = skipping(range(0, 60, 2))
    assert result.suggested_max is None
    assert "are not finite, although training went on after them" in result.reason
