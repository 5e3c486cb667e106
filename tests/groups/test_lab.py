"""Groups in the lab: training and sweeps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab import groups, lab
from optlab.plots import plot_history

TASK = lab.Task(
    name="bowls",
    init=lambda key: ({name: jnp.full(2, 3.0) for name in ("body", "head", "norm")}, ()),
    loss=lambda params, state, batch, key: (sum(jnp.sum(x**2) for x in params.values()), state),
    batch=lambda key, step: (),
    evaluate=lambda params, state, data: {"loss": sum(jnp.sum(x**2) for x in params.values())},
    steps=6,
    eval_every=3,
)
RULES = [
    ("body", groups.frozen()),
    ("head", groups.group(lr_mult=0.5)),
    (..., groups.group()),
]


def test_train_takes_groups_and_records_a_rate_for_each():
    tx = optlab.sgd(optlab.schedules.linear(0.2, 0.1, 10))
    run = lab.train(TASK, tx, steps=6, key=jax.random.key(0), groups=RULES)
    np.testing.assert_array_equal(run.params["body"], 3.0)
    rates = run.history.rates
    # Rates are float32, a few units in the last place from the line.
    np.testing.assert_allclose(rates["rest"], 0.2 - 0.01 * np.arange(6), rtol=1e-6)
    np.testing.assert_array_equal(2 * rates["head"], rates["rest"])
    np.testing.assert_array_equal(run.history.learning_rate, rates["rest"])
    assert set(json.loads(run.history.to_json())["rates"]) == {"head", "rest"}
    figure = plot_history(run.history)
    assert [line.get_label() for line in figure.axes[1].get_lines()] == ["head", "rest"]
    with pytest.raises(ValueError, match="got 'tail', which matches none"):
        lab.train(TASK, tx, steps=6, key=jax.random.key(0), groups=[("tail", groups.frozen())])


def test_sweeps_search_under_groups(tmp_path):
    space = {"learning_rate": lab.LogUniform(1e-3, 0.4)}
    options = {"trials": 3, "steps": 4, "results": tmp_path / "sweep.db"}
    result = lab.sweep(TASK, optlab.sgd, space, groups=RULES, **options)
    for trial in result.trials:
        rate = trial.values["learning_rate"]
        want = 18 * (1 + (1 - rate) ** 8 + (1 - 2 * rate) ** 8)
        assert trial.score == pytest.approx(want, rel=1e-5)  # powers of float32, 8 roundings each
    with pytest.raises(ValueError, match="groups"):
        lab.sweep(TASK, optlab.sgd, space, **options)
