"""Soups and barriers: means of weights, by hand where it can be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from classes import KEY, blobs
from helpers import assert_same_bits, bowl
from optlab import lab
from optlab.lab import barrier, refresh_batch_stats, soup, train


def height(x):
    return jnp.sum(x**2)


LINE = bowl(evaluate=lambda x, state, data: {"loss": height(x)}, noise=0.0)
"""A task whose validation loss is |x|², so that soups can be made by hand."""


def models(*points):
    return [(jnp.array(point, jnp.float32), ()) for point in points]


def test_a_uniform_soup_is_the_mean_of_all():
    result = soup(LINE, models((3, 0), (0, 3), (0, -9)), different_starts=False)
    assert result.params.tolist() == [1, -2]
    assert (result.chosen, result.score, result.scores) == ((0, 1, 2), 5, (9, 9, 81))


def test_a_greedy_soup_keeps_what_lowers_the_loss_strictly():
    # In the order of their losses 1, 4, 4, 9: the first two average to (0.5, 1), which is worse.
    # The third leads to (0, 0.5), and the last to the same loss, so that it is left out.
    points = (1, 0), (0, -2), (-2, 0), (3, 0)
    result = soup(LINE, models(*points), how="greedy", different_starts=False)
    assert result.scores == (1, 4, 4, 9)
    assert result.chosen == (0, 2)
    assert result.params.tolist() == [-0.5, 0]
    assert result.score == 0.25


def test_a_greedy_soup_where_higher_is_better_keeps_what_raises_the_score():
    higher = dataclasses.replace(
        LINE,
        evaluate=lambda x, state, data: {"loss": height(x), "gain": -height(x)},
        score="gain",
        maximize=True,
    )
    result = soup(higher, models((1, 0), (3, 3), (-0.5, 0)), how="greedy", different_starts=False)
    assert (result.chosen, result.score) == ((2, 0), -0.0625)


def test_a_greedy_soup_leaves_out_what_diverged():
    result = soup(LINE, models((np.nan, 0), (2, 0), (1, 0)), how="greedy", different_starts=False)
    assert (result.chosen, result.score) == ((2,), 1)


def test_half_precision_is_averaged_in_float32():
    # In bfloat16 the sum of the first two would round to 256; the mean would be 84.5.
    half = [(jnp.array([256.0, x], jnp.bfloat16), ()) for x in (256, 1, -2)]
    task = dataclasses.replace(LINE, init=lambda key: (jnp.zeros(2, jnp.bfloat16), ()))
    result = soup(task, half, different_starts=False)
    assert result.params.dtype == jnp.bfloat16
    assert result.params.tolist() == [256, 85]


def test_batch_statistics_are_refreshed_for_the_mean(noisy_task):
    runs = [train(noisy_task, optlab.sgd(0.1), steps=3, key=jax.random.key(i)) for i in (0, 1)]
    result = soup(noisy_task, runs, different_starts=True, seed=5)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, runs[0].params, runs[1].params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), result.params, mean)
    state = refresh_batch_stats(
        noisy_task, result.params, runs[0].model_state, key=jax.random.key(5)
    )
    assert_same_bits(result.model_state, state)


# Barriers


def test_a_barrier_is_the_height_above_the_straight_line():
    task = dataclasses.replace(LINE, evaluate=lambda x, state, data: {"loss": height(x**2 - 1)})
    # (x² − 1)² of −1, −0.25, 0.5, 1.25, 2: the line between the ends rises from 0 to 9.
    result = barrier(task, *models((-1, 1), (2, 1)), points=5)
    np.testing.assert_allclose(result.positions, [0, 0.25, 0.5, 0.75, 1])
    losses = [(x**2 - 1) ** 2 for x in (-1, -0.25, 0.5, 1.25, 2)]
    np.testing.assert_allclose(result.losses, losses, rtol=1e-6)
    assert result.height == 0
    assert barrier(task, *models((-1, 1), (1, 1)), points=3).height == 1


def test_there_is_no_barrier_from_a_model_to_itself(noisy_task):
    run = train(noisy_task, optlab.sgd(0.1), steps=3, key=KEY)
    state = refresh_batch_stats(noisy_task, run.params, run.model_state, key=KEY)
    refreshed = run.params, state
    result = barrier(noisy_task, refreshed, refreshed, points=3, seed=0)
    # The point between has the statistics of another order of the examples: rounding.
    np.testing.assert_allclose(result.losses, result.losses[0], rtol=1e-5)


def test_runs_from_different_initializations_are_refused_and_the_barrier_is_shown():
    task = blobs()
    both = lab.ensemble(task, optlab.adam(0.05), members=2, steps=30)
    between = barrier(task, *both.members, points=5)
    for said in (None, False):
        with pytest.raises(ValueError, match=r"^soup: models must have begun from the") as error:
            soup(task, both, different_starts=said)
        assert f"from seed 0 to seed 1 the {between};" in str(error.value)
    assert soup(task, both, different_starts=True).chosen == (0, 1)
    with pytest.raises(ValueError, match=r"^soup: a model must have the arrays .* in model 0"):
        soup(LINE, both, different_starts=True)
    alike = dataclasses.replace(both, shared_start=True)
    assert soup(task, alike).params.keys() == both.params.keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: soup(LINE, models((1, 0))),
            "soup: different_starts must say whether .*, got different_starts=None for a list of m",
        ),
        (lambda: soup(LINE, models((1, 0)), how="best"), "soup: how must be one of 'uniform', 'gr"),
        (lambda: soup(LINE, [], different_starts=False), "soup: models must be an Ensemble, or"),
        (lambda: soup(LINE, models(1), different_starts=False), "soup: a model must have the arr"),
        (lambda: soup(LINE, [3], different_starts=False), "soup: a model must be a run of train"),
        (lambda: barrier(LINE, *models((1, 0), (0, 1)), points=2), "barrier: points must be an i"),
    ],
)
def test_what_cannot_be_averaged_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
