"""`train(…, average=True)`: the average is what is judged, kept and returned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from helpers import assert_same_bits, parabola
from optlab import lab

KEY = jax.random.key(0)


AVERAGES = {
    "params_ema": lambda: optlab.params_ema(0.9),
    "params_average": lambda: optlab.params_average(start=5),
    "params_power_ema": lambda: optlab.params_power_ema(sigma_rel=0.1),
    "params_lawa": lambda: optlab.params_lawa(k=3, every=2),
}


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_the_average_is_evaluated_and_returned(average):
    # At this rate the parameters jump between both sides of the minimum, and the average does not.
    tx = optax.chain(optlab.sgd(1.0), average())
    run = lab.train(parabola(), tx, steps=50, eval_every=10, key=KEY, average=True)
    own = lab.train(parabola(), tx, steps=50, eval_every=10, key=KEY)
    assert_same_bits(run.params, optlab.averaged_params(run.opt_state, own.params))
    assert run.history.validation["loss"][-1] == jnp.sum(run.params**2)
    assert run.history.validation["loss"][0] == 12
    assert_same_bits(run.history.loss, own.history.loss)
    assert_same_bits(run.opt_state, own.opt_state)


def test_early_stopping_judges_and_keeps_the_average():
    tx = optax.chain(optlab.sgd(1.02), optlab.params_ema(0.9))
    stopping = lab.EarlyStopping(3)
    run = lab.train(parabola(), tx, steps=60, key=KEY, early_stopping=stopping, average=True)
    assert run.step > 0
    assert jnp.sum(run.params**2) == run.history.validation["loss"].min() < 12
    assert run.history.steps[run.history.validation["loss"].argmin()] == run.step


def test_running_statistics_are_those_of_the_average():
    data = np.random.default_rng(0).normal(3, 2, 64).astype(np.float32)

    def loss(w, state, batch, key):
        y = w * batch
        new = {"mean": jnp.mean(y), "var": jnp.var(y)}
        state = jax.tree.map(lambda old, own: 0.9 * old + 0.1 * own, state, new)
        return jnp.mean((y - 2 * batch) ** 2), state

    task = parabola(
        init=lambda key: (jnp.ones(()), {"mean": jnp.zeros(()), "var": jnp.ones(())}),
        loss=loss,
        batch=lab.shuffled_batches(data, 16),
        evaluate=lambda w, state, batch: {"loss": state["mean"] + 0 * jnp.mean(batch)},
        splits={"train": data, "validation": data},
    )
    tx = optax.chain(optlab.sgd(0.01), optlab.params_ema(0.9))
    run = lab.train(task, tx, steps=8, eval_every=4, key=KEY, average=True)
    # The layer sees w·x, so its statistics over all data are those of the data times the average.
    np.testing.assert_allclose(run.model_state["mean"], run.params * data.mean(), rtol=1e-5)
    np.testing.assert_allclose(run.model_state["var"], run.params**2 * data.var(), rtol=1e-5)
    last = run.history.validation["loss"][-1]
    np.testing.assert_allclose(last, run.model_state["mean"], rtol=1e-6)


def test_an_interrupted_run_goes_on_to_the_same_average(tmp_path):
    tx = optax.chain(optlab.sgd(0.1), optlab.params_ema(0.9))
    options = {"eval_every": 2, "key": KEY, "average": True}
    options["early_stopping"] = lab.EarlyStopping(30)
    whole = lab.train(parabola(), tx, steps=6, **options)
    lab.train(parabola(), tx, steps=2, **options, checkpoints=tmp_path)
    resumed = lab.train(parabola(), tx, steps=6, **options, checkpoints=tmp_path)
    assert_same_bits(resumed.params, whole.params)
    with pytest.raises(ValueError, match=r"^train: average must be that of the checkpoint"):
        lab.train(parabola(), tx, steps=8, **options | {"average": False}, checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"native must be that .*, False, got native=True;"):
        lab.train(parabola(), tx, steps=8, **options, native=True, checkpoints=tmp_path)


def test_an_average_must_be_kept():
    with pytest.raises(ValueError, match=r"^train: optimizer must keep an average if average=True"):
        lab.train(parabola(), optlab.sgd(0.1), steps=2, key=KEY, average=True)
    with pytest.raises(ValueError, match=r"^train: average must be True or False, got average=1"):
        lab.train(parabola(), optlab.sgd(0.1), steps=2, key=KEY, average=1)
