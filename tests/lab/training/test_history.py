"""`History`: arrays whose lengths agree, and strict JSON of them."""

import json

import numpy as np
import pytest

from optlab.lab import History


def test_sequences_become_arrays():
    history = History(loss=[3, 2.5], steps=[0, 2], train={"loss": [3, 2]}, learning_rate=[1, 1])
    arrays = [history.loss, history.steps, history.train["loss"], history.learning_rate]
    assert [type(array) for array in arrays] == [np.ndarray] * 4
    assert history.num_updates == 2
    assert (history.validation, history.monitored) == ({}, {})


def test_a_run_without_an_evaluation_has_a_history():
    history = History(loss=np.ones(3))
    assert history.steps.shape == (0,)
    assert history.learning_rate is None


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({"loss": 3.0}, r"loss must be \(updates,\), got shape \(\)"),
        ({"loss": np.ones((2, 3))}, r"loss must be \(updates,\), got shape \(2, 3\)"),
        ({"steps": [0, 2, 2]}, r"steps must be \(evaluations,\) and ascend, got \[0 2 2\]"),
        ({"steps": [[0], [2]]}, r"steps must be \(evaluations,\) and ascend, got \[\[0\]"),
        ({"learning_rate": [1]}, r"learning_rate must have .* each update, .*\(2,\), .* \(1,\)"),
        (
            {"monitored": {"ratio": [1, 1, 1]}},
            r"monitored\['ratio'\] must .* each update, .*\(3,\)",
        ),
        ({"train": {"loss": [1]}}, r"train\['loss'\] must .* each evaluation, .*\(3,\), .*\(1,\)"),
        ({"validation": {"loss": [1]}}, r"validation\['loss'\] must .* each evaluation"),
    ],
)
def test_lengths_that_do_not_agree_are_named(curves, message):
    with pytest.raises(ValueError, match=f"^History: {message}"):
        History(**{"loss": [1, 1], "steps": [0, 1, 2], **curves})


def test_json_is_strict_and_short():
    history = History(
        loss=np.array([0.1, np.inf], np.float32),
        steps=np.array([0, 2]),
        validation={"loss": np.array([np.nan, 0.3], np.float32)},
        monitored={"ratio/head": np.array([1e-3, 2e-3])},
    )

    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads(history.to_json(optimizer="adam"), parse_constant=refuse)
    assert document["optimizer"] == "adam"
    assert document["loss"] == [0.1, None]
    assert document["steps"] == [0, 2]
    assert document["validation"] == {"loss": [None, 0.3]}
    assert document["monitored"] == {"ratio/head": [1e-3, 2e-3]}
    assert document["learning_rate"] is None
    assert document["score"] == "loss"
    assert "jax" in document["versions"]
