"""`native=True` in the lab: the runs are those without it, but for roundings, and made of loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab import lab, native
from optlab.lab import Task
from optlab.native import _step
from optlab.testing._runs import FEW_ROUNDINGS

TARGET = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)


def loss(w, state, batch, key):
    return jnp.mean((w - batch) ** 2), state


TASK = Task(
    name="target",
    init=lambda key: (jax.random.normal(key, TARGET.shape), ()),
    loss=loss,
    batch=lambda key, step: TARGET,
    evaluate=lambda w, state, data: {"loss": jnp.mean((w - TARGET) ** 2)},
)
RATES = (0.03, 0.3)


@pytest.fixture
def plans(monkeypatch):
    """The plans of steps that are made with loops."""
    made = []

    class Plan(_step.Plan):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(_step, "Plan", Plan)
    return made


def assert_same_losses(runs, plans):
    """Compare curves of the same runs without loops and with them."""
    (want, got), calls = runs, [len(plan.calls) for plan in plans]
    assert calls
    assert all(calls)
    # An error of a few roundings is carried from update to update; a parabola does not enlarge it.
    np.testing.assert_allclose(got, want, rtol=10 * FEW_ROUNDINGS)


def test_train_makes_its_steps_in_loops(plans):
    tx = optlab.monitor(optlab.adamw(0.1), clipping=optlab.clip_by_global_norm(1.0))
    runs = [lab.train(TASK, tx, steps=6, eval_every=3, native=x) for x in (False, True)]
    assert_same_losses([run.history.loss for run in runs], plans)
    want, got = (run.history.monitored for run in runs)
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=10 * FEW_ROUNDINGS)
    with pytest.raises(ValueError, match=r"^train: native must be True or False, got native=1"):
        lab.train(TASK, tx, steps=1, native=1)


def test_sweep_makes_its_steps_in_loops(plans, tmp_path):
    space = {"learning_rate": lab.Categorical(list(RATES))}
    options = {"trials": 2, "search": "grid", "steps": 4, "eval_every": 4}
    results = [
        lab.sweep(TASK, optlab.sgd, space, **options, native=x, results=tmp_path / str(x))
        for x in (False, True)
    ]
    assert_same_losses([[t.score for t in result.trials] for result in results], plans)
    with pytest.raises(ValueError, match="native"):
        lab.sweep(TASK, optlab.sgd, space, **options, results=tmp_path / "True")


def test_compare_makes_its_steps_in_loops(plans):
    options = {"rates": RATES, "seeds": 1, "steps": 4, "eval_every": 4}
    results = [lab.compare(TASK, {"sgd": optlab.sgd}, **options, native=x) for x in (False, True)]
    assert_same_losses([r.runs["sgd"].train_loss for r in results], plans)


def test_under_a_mesh_of_devices_xla_computes_the_step(plans):
    tx, params = optlab.adam(0.1), jnp.ones((4, 3))
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        jax.jit(native.step(tx))(params, tx.init(params), params)
    assert not plans
