"""What an update is: which way it goes, how many batches it takes, and what its rules are told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from helpers import assert_same_bits, parabola
from optlab import lab

KEY = jax.random.key(0)

WINDOWS = {
    "accumulate": lambda tx, every: optlab.accumulate(tx, every),
    "MultiSteps": lambda tx, every: optax.MultiSteps(tx, every),
}


def following(**changes):
    """Return the task of descending (x − b)², where b is the number of the batch."""
    return parabola(
        batch=lambda key, step: jnp.asarray(step, float),
        loss=lambda x, state, batch, key: (jnp.sum((x - batch) ** 2), state),
        **changes,
    )


# Complex parameters


def test_complex_parameters_descend_as_pairs_of_real_ones():
    def loss(x):
        return jnp.sum(jnp.abs(x) ** 2)

    task = parabola(
        init=lambda key: (jnp.full((3,), 2.0 + 1j), ()),
        loss=lambda x, state, batch, key: (loss(x), state),
        evaluate=lambda x, state, data: {"loss": loss(x)},
    )
    run = lab.train(task, optlab.sgd(0.1), steps=6, key=KEY)
    # The gradient of |x|² by both parts is 2x, so an update multiplies the loss by 0.8².
    np.testing.assert_allclose(run.history.loss, 15 * 0.64 ** np.arange(6), rtol=1e-5)


# Accumulated gradients


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_an_update_takes_a_whole_window_of_batches(window):
    run = lab.train(following(), window(optlab.sgd(0.1), 4), steps=3, key=KEY)
    x, losses = 2.0, []
    for first in (0, 4, 8):
        batches = np.arange(first, first + 4)
        losses.append(3 * np.mean((x - batches) ** 2))
        x -= 0.1 * np.mean(2 * (x - batches))
    np.testing.assert_allclose(run.history.loss, losses, rtol=1e-6)
    np.testing.assert_allclose(run.params, x, rtol=1e-6)
    assert run.reason == "all updates done"


@pytest.mark.parametrize(
    ("first", "later", "made"), [(1, 4, 4), (4, 1, 23)], ids=["longer", "shorter"]
)
def test_windows_that_change_in_length_are_told(first, later, made):
    window = optax.MultiSteps(optlab.sgd(0.1), lambda n: jnp.where(n < 3, first, later))
    run = lab.train(following(), window, steps=8, key=KEY)
    assert run.reason.startswith(
        f"all updates done, but optax.MultiSteps made {made} updates in place of 8, as its windows"
    )


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_windows_in_windows_are_updates_too(window):
    run = lab.train(following(), window(window(optlab.sgd(0.1), 2), 2), steps=3, key=KEY)
    assert run.reason == "all updates done"


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_schedules_and_steps_count_the_same_updates(window):
    rate = optlab.schedules.linear(0.1, 0.0, 10)
    run = lab.train(parabola(), window(optlab.sgd(rate), 3), steps=10, eval_every=5, key=KEY)
    plain = lab.train(parabola(), optlab.sgd(rate), steps=10, eval_every=5, key=KEY)
    np.testing.assert_allclose(run.history.learning_rate, plain.history.learning_rate, rtol=1e-6)
    np.testing.assert_allclose(run.history.loss, plain.history.loss, rtol=1e-5)


def test_a_sweep_counts_updates_as_train_does():
    def optimizer(learning_rate, every):
        return optlab.accumulate(optlab.sgd(learning_rate), every)

    space = {"learning_rate": lab.LogUniform(0.01, 0.1), "every": lab.Categorical((1, 3))}
    sweep = lab.sweep(following(), optimizer, space, trials=4, steps=4, search="grid")
    for trial in sweep.trials:
        run = lab.train(following(), optimizer(**trial.values), steps=4, key=KEY)
        np.testing.assert_allclose(trial.loss, run.history.validation["loss"][-1], rtol=1e-5)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_a_range_test_judges_each_rate_by_a_whole_update(window):
    plain = lab.lr_range_test(parabola(), optlab.sgd, steps=20, seeds=1, min_lr=1e-3)
    result = lab.lr_range_test(
        parabola(), lambda rate: window(optlab.sgd(rate), 2), steps=20, seeds=1, min_lr=1e-3
    )
    np.testing.assert_allclose(result.losses, plain.losses, rtol=1e-5)
    assert result.suggested_max == plain.suggested_max


def test_groups_of_which_one_accumulates_make_an_update_with_each_batch():
    tx = optax.partition(
        {"a": optlab.sgd(0.1), "b": optlab.accumulate(optlab.sgd(0.1), 2)}, {"x": "a", "y": "b"}
    )
    task = parabola(
        init=lambda key: ({"x": jnp.ones(()), "y": jnp.ones(())}, ()),
        loss=lambda p, state, batch, key: (p["x"] ** 2 + p["y"] ** 2, state),
        evaluate=lambda p, state, data: {"loss": p["x"] ** 2 + p["y"] ** 2},
    )
    params = lab.train(task, tx, steps=4, key=KEY).params
    np.testing.assert_allclose([params["x"], params["y"]], [0.8**4, 0.8**2], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:train. the loader of task:UserWarning")
@pytest.mark.parametrize("source", [pytest.param("batch", marks=pytest.mark.slow), "loader"])
def test_an_interrupted_run_goes_on_with_whole_windows(source, tmp_path):
    task = following()
    if source == "loader":
        loader = [np.full(3, number, np.float32) for number in range(24)]
        task = following(loader=loader)
        task = dataclasses.replace(task, batch=None)
    tx = optlab.accumulate(optlab.sgd(0.1), 4)
    whole = lab.train(task, tx, steps=6, eval_every=2, key=KEY)
    lab.train(task, tx, steps=2, eval_every=2, key=KEY, checkpoints=tmp_path)
    resumed = lab.train(task, tx, steps=6, eval_every=2, key=KEY, checkpoints=tmp_path)
    assert_same_bits(resumed.params, whole.params)
    assert_same_bits(resumed.history.loss, whole.history.loss)
    plain = lab.train(following(), tx, steps=6, eval_every=2, key=KEY)
    np.testing.assert_allclose(whole.params, plain.params, rtol=1e-6)


# Rules that read a value


def noisy_values():
    """Return a task with exact gradients of x², whose reported loss has the noise of a batch."""
    return parabola(
        batch=lambda key, step: jax.random.normal(jax.random.fold_in(key, step)),
        loss=lambda x, state, batch, key: (jnp.sum(x**2) + batch, state),
    )


@pytest.mark.parametrize(
    "around",
    [lambda tx: tx, lambda tx: optlab.accumulate(tx, 3), optlab.skip_nonfinite],
    ids=["alone", "accumulate", "skip_nonfinite"],
)
def test_a_plateau_is_not_seen_in_the_noise_of_batches(around):
    tx = around(optax.chain(optlab.sgd(1e-3), optlab.reduce_on_plateau(0.5, patience=2)))
    run = lab.train(noisy_values(), tx, steps=60, eval_every=10, key=KEY)
    np.testing.assert_allclose(run.history.learning_rate, 1e-3, rtol=1e-6)


@pytest.mark.parametrize("around", [lambda tx: tx, lambda tx: optlab.accumulate(tx, 3)])
def test_a_plateau_is_checked_once_an_evaluation(around):
    task = parabola(evaluate=lambda x, state, data: {"loss": jnp.ones(())})
    tx = around(optax.chain(optlab.sgd(1.0), optlab.reduce_on_plateau(0.5, patience=2)))
    run = lab.train(task, tx, steps=12, eval_every=3, key=KEY)
    # The first evaluation is the best; the second and the third complete the patience of two, and
    # the update after the third one is the first at half the rate.
    rates = [1.0] * 6 + [0.5] * 6
    np.testing.assert_array_equal(run.history.learning_rate, rates)


def test_a_sweep_tells_a_plateau_the_score_of_each_trial():
    task = parabola(evaluate=lambda x, state, data: {"loss": jnp.sum(x**2)})

    def optimizer(learning_rate):
        tx = optlab.reduce_on_plateau(0.5, patience=1, rtol=0.5)
        return optax.chain(optlab.sgd(learning_rate), tx)

    space = {"learning_rate": lab.LogUniform(0.001, 0.4)}
    sweep = lab.sweep(task, optimizer, space, trials=3, search="grid", steps=20, eval_every=2)
    for trial in sweep.trials:
        run = lab.train(task, optimizer(**trial.values), steps=20, eval_every=2, key=KEY)
        np.testing.assert_allclose(
            trial.validation["loss"][0], run.history.validation["loss"], rtol=1e-4, atol=1e-12
        )


def test_the_mode_of_a_plateau_must_be_that_of_the_score():
    task = parabola(
        evaluate=lambda x, state, data: {"loss": jnp.sum(x**2), "accuracy": -jnp.sum(x**2)},
        score="accuracy",
        maximize=True,
    )
    tx = optax.chain(optlab.sgd(0.1), optlab.reduce_on_plateau())
    with pytest.raises(ValueError, match=r"^reduce_on_plateau: mode must be 'max', as a higher"):
        lab.train(task, tx, steps=2, key=KEY)
