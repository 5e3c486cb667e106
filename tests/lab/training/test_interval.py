"""The default interval between evaluations, and the updates at which a run is evaluated."""

import dataclasses
from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from optlab.lab import Task
from optlab.lab.training import _interval
from optlab.lab.training._interval import evaluation_interval, next_stop, stops


def parabola(eval_every=None, **splits):
    return Task(
        name="parabola",
        init=lambda key: (jnp.array(2.0), ()),
        loss=lambda x, state, batch, key: (x**2, state),
        batch=lambda key, step: (),
        evaluate=lambda x, state, data: {"loss": x**2},
        splits={name: np.zeros(examples) for name, examples in splits.items()},
        eval_every=eval_every,
    )


def test_evaluation_is_at_most_a_fifth_of_a_run_and_no_shorter_interval_would_be(monkeypatch):
    monkeypatch.setattr(_interval, "FREE", 0.0)
    for steps, batch, examples in product([1, 2, 7, 300, 10_000], [1, 32], [1, 100, 1438]):
        task = parabola(train=examples - 1, validation=1, test=10**6)
        every = evaluation_interval("train", task, steps, batch_size=batch, most=10**6)
        training = 3 * steps * batch

        def fifth(every, steps=steps, examples=examples, training=training):
            evaluating = len(stops(every, steps)) * examples
            return evaluating <= (training + evaluating) / 5

        assert 1 <= every <= steps
        assert fifth(every) or every == steps
        assert every == 1 or not fifth(every - 1)


@pytest.mark.parametrize(("most", "every"), [(30, 10), (10, 30), (7, 43), (1, 300)])
def test_a_run_has_at_most_so_many_intervals(most, every):
    assert evaluation_interval("train", parabola(), 300, batch_size=32, most=most) == every


def test_little_work_is_free_and_much_is_not():
    def every(width):
        task = dataclasses.replace(
            parabola(validation=1000),
            evaluate=lambda x, state, data: {
                "loss": jnp.mean((data[:, None] * jnp.ones(width)) @ jnp.ones((width, width)))
            },
        )
        return evaluation_interval("train", task, 300, batch_size=32, most=30)

    assert every(8) == 10  # 31 evaluations of 2 · 1000 · 8² operations
    assert every(1000) == 50  # of 2e9: 7 evaluations are a fifth of the run


def test_of_a_stream_the_length_is_taken_from_the_loader_or_counted():
    class Loader:
        batch_size = 500

        def __len__(self):
            return 200

        def __iter__(self):
            return iter(())

    with_length = dataclasses.replace(parabola(), splits={"validation": Loader()})
    assert evaluation_interval("train", with_length, 300, batch_size=32, most=30) == 300
    read = []

    def batches(number):
        for i in range(number):
            read.append(i)
            yield np.zeros(100)

    def every(number):
        splits = {"validation": lambda: batches(number)}
        task = dataclasses.replace(parabola(), splits=splits)
        return evaluation_interval("train", task, 300, batch_size=32, most=30)

    assert every(10) == 50  # a thousand examples
    assert every(10**5) == 300
    assert len(read) < 100  # no further than it matters


def test_cost_does_not_count_where_the_batch_size_is_unknown():
    assert (
        evaluation_interval("train", parabola(validation=10**6), 300, batch_size=None, most=30)
        == 10
    )


def test_the_interval_of_the_task_wins():
    assert evaluation_interval("train", parabola(eval_every=3), 300, batch_size=1, most=1) == 3


@pytest.mark.parametrize(("every", "steps"), [(1, 1), (3, 10), (5, 10), (10, 10), (30, 10)])
def test_stepping_from_stop_to_stop_visits_all_stops(every, steps):
    visited = [0]
    while visited[-1] < steps:
        visited.append(next_stop(visited[-1], every, steps))
    assert visited == stops(every, steps).tolist()


def test_a_run_that_goes_on_from_between_two_stops_ends_at_the_next():
    assert next_stop(7, 5, 100) == 10
