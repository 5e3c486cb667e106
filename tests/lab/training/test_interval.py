"""The default interval between evaluations, and the updates at which a run is evaluated."""

from itertools import product

import jax.numpy as jnp
import pytest

from optlab.lab import Task
from optlab.lab.training._interval import evaluation_interval, next_stop, stops


def parabola(eval_every=None):
    return Task(
        name="parabola",
        init=lambda key: (jnp.array(2.0), ()),
        loss=lambda x, state, batch, key: (x**2, state),
        batch=lambda key, step: (),
        evaluate=lambda x, state, data: {"loss": x**2},
        eval_every=eval_every,
    )


def evaluations(every, steps):
    return len(stops(every, steps))


def test_evaluation_is_at_most_a_fifth_of_a_run_and_no_shorter_interval_would_be():
    for steps, batch, examples in product([1, 2, 7, 300, 10_000], [1, 32], [0, 1, 100, 1438]):
        every = evaluation_interval(
            parabola(), steps, batch_size=batch, examples=examples, most=10**6
        )
        training = 3 * steps * batch

        def fifth(every, steps=steps, examples=examples, training=training):
            evaluating = evaluations(every, steps) * examples
            return evaluating <= (training + evaluating) / 5

        assert 1 <= every <= steps
        assert fifth(every) or every == steps
        assert every == 1 or not fifth(every - 1)


@pytest.mark.parametrize(("most", "every"), [(30, 10), (10, 30), (7, 43), (1, 300)])
def test_a_run_has_at_most_so_many_intervals(most, every):
    assert evaluation_interval(parabola(), 300, batch_size=32, examples=1, most=most) == every
    assert evaluations(every, 300) - 1 <= most


def test_cost_does_not_count_where_the_batch_size_is_unknown():
    assert evaluation_interval(parabola(), 300, batch_size=None, examples=10**9, most=30) == 10


def test_without_data_an_evaluation_costs_one_batch():
    # 0.75 · 40 = 30 evaluations, one of them at the start.
    assert evaluation_interval(parabola(), 40, batch_size=8, examples=None, most=10**6) == 2
    assert evaluation_interval(parabola(), 1, batch_size=8, examples=None, most=30) == 1


def test_the_interval_of_the_task_wins():
    task = parabola(eval_every=3)
    assert evaluation_interval(task, 300, batch_size=1, examples=10**9, most=1) == 3


@pytest.mark.parametrize(("every", "steps"), [(1, 1), (3, 10), (5, 10), (10, 10), (30, 10)])
def test_stepping_from_stop_to_stop_visits_all_stops(every, steps):
    visited = [0]
    while visited[-1] < steps:
        visited.append(next_stop(visited[-1], every, steps))
    assert visited == stops(every, steps).tolist()


def test_a_run_that_goes_on_from_between_two_stops_ends_at_the_next():
    assert next_stop(7, 5, 100) == 10
