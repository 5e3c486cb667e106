"""Importances: what explains the ranks is found, chance and few trials are unsure."""

import math

import numpy as np

from optlab.lab import Categorical, LogUniform, Uniform
from optlab.lab.sweeps._importance import importances

SPACE = {
    "rate": LogUniform(1e-4, 1.0),
    "decay": Uniform(0.0, 1.0),
    "kind": Categorical(("a", "b", "c")),
}


def drawn(count, score, seed=0):
    rng = np.random.default_rng(seed)
    values = [{name: r.at(rng.uniform()) for name, r in SPACE.items()} for _ in range(count)]
    scores = np.array([score(v) for v in values])
    return importances(SPACE, values, scores.argsort().argsort().astype(float))


def test_the_hyperparameter_that_decides_has_nearly_all_of_it():
    found = drawn(40, lambda v: abs(math.log(v["rate"] / 0.01)))
    assert found["rate"].share > 0.8
    assert found["rate"].sure
    assert not found["decay"].sure
    assert found["decay"].share < 0.2


def test_choices_count_as_well():
    found = drawn(40, lambda v: {"a": 0, "b": 2, "c": 1}[v["kind"]] + 1e-3 * v["decay"])
    assert found["kind"].share > 0.8
    assert found["kind"].sure


def test_noise_is_rarely_sure():
    rng = np.random.default_rng(1)
    tables = [drawn(24, lambda v: rng.normal(), seed=i) for i in range(60)]
    wrong = sum(any(x.sure for x in table.values()) for table in tables)
    assert wrong <= 8  # 3 are expected at a level of 0.05; 9 or more have a chance below 0.3 %


def test_of_few_trials_nothing_is_said():
    found = drawn(7, lambda v: v["rate"])
    assert all(math.isnan(x.share) and not x.sure for x in found.values())


def test_equal_trials_and_a_single_value_have_no_importance():
    assert all(
        math.isnan(x.share)
        for x in importances(
            SPACE, [{"rate": 0.1, "decay": 0.5, "kind": "a"}] * 9, np.zeros(9)
        ).values()
    )
