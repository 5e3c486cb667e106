"""Numbers that are not finite: when a run goes on, when it ends, and what it returns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import lab

KEY = jax.random.key(0)


def descent(bad=(), **changes):
    """Return the task of descending |x|², where the loss of some batches is NaN."""
    bad = jnp.asarray([-1, *bad])
    task = lab.Task(
        name="descent",
        init=lambda key: (jnp.full((3,), 2.0), ()),
        batch=lambda key, step: jnp.where(jnp.isin(step, bad), jnp.nan, 1.0),
        loss=lambda x, state, batch, key: (jnp.sum(x**2) * batch, state),
        evaluate=lambda x, state, data: {"loss": jnp.sum(x**2)},
    )
    return dataclasses.replace(task, **changes)


def run(task, tx, steps=40, **options):
    return lab.train(task, tx, steps=steps, eval_every=10, key=KEY, **options)


SAFE = {
    "skip_nonfinite": lambda tx: optlab.skip_nonfinite(tx),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 5),
}


# Runs


@pytest.mark.parametrize("safe", SAFE.values(), ids=SAFE)
def test_a_run_that_skips_a_bad_batch_goes_on(safe):
    result = run(descent([14, 33]), safe(optlab.sgd(0.01)))
    assert np.flatnonzero(~np.isfinite(result.history.loss)).tolist() == [14, 33]
    np.testing.assert_allclose(result.params, 2 * 0.98**38, rtol=1e-5)
    assert result.reason == (
        "all updates done, but 2 of 40 updates were skipped, as gradients were not finite"
    )
    assert not result.diverged


@pytest.mark.parametrize("native", [False, True])
def test_the_loss_is_scaled_as_the_optimizer_asks(native):
    tx = optax.chain(optlab.clip_by_global_norm(1.0), optlab.sgd(0.01))
    plain, scaled = run(descent(), tx), run(descent(), optlab.dynamic_loss_scale(tx), native=native)
    # A power of two costs no digit.
    np.testing.assert_allclose(scaled.params, plain.params, rtol=1e-6)
    np.testing.assert_allclose(scaled.history.loss, plain.history.loss, rtol=1e-6)


def test_a_run_whose_parameters_are_lost_ends_and_says_where_that_began():
    result = run(descent([14]), optlab.sgd(0.01))
    assert result.reason == "the loss was not finite at update 15"
    assert result.diverged
    assert result.history.num_updates == 20


def test_the_last_update_may_lose_the_parameters():
    task = descent(loss=lambda x, state, batch, key: (jnp.sum(jnp.abs(x)), state))
    tx = optax.stateless(lambda u, p: jax.tree.map(lambda g: g / 0, u))
    result = run(task, tx, steps=1)
    assert result.reason == "the parameters were not finite after update 1"
    assert result.diverged


def test_a_run_ends_when_the_wrapper_gives_up():
    tx = optlab.skip_nonfinite(optlab.sgd(0.01), max_consecutive=3)
    result = run(descent(range(12, 99)), tx)
    assert result.reason.startswith("skip_nonfinite gave up")
    assert "since update 13" in result.reason
    assert result.diverged
    assert np.isfinite(result.params).all()
    assert result.history.num_updates == 20


def test_a_run_in_which_no_loss_is_finite_at_the_end_has_diverged():
    result = run(descent(range(25, 99)), optlab.skip_nonfinite(optlab.sgd(0.01)))
    assert result.reason == (
        "all updates done, but 15 of 40 updates were skipped, as gradients were not finite; "
        "no loss was finite from update 26 on"
    )
    assert result.diverged


WITHOUT_BATCHES = {
    "skipped inside": (
        lambda tx: optax.MultiSteps(optlab.skip_nonfinite(tx), 2),
        "18 of 20 updates were skipped, as gradients were not finite",  # Optax keeps the NaN
    ),
    "skipped outside": (
        lambda tx: optlab.skip_nonfinite(optax.MultiSteps(tx, 2)),
        "1 batch was left out, as gradients were not finite; 1 batch waits in an open window, "
        "without an update",
    ),
    "left out": (
        lambda tx: optlab.accumulate(tx, 2),
        "1 batch was left out, as gradients were not finite",
    ),
}


@pytest.mark.parametrize(("around", "expected"), WITHOUT_BATCHES.values(), ids=WITHOUT_BATCHES)
def test_updates_and_batches_that_count_for_nothing_are_told(around, expected):
    result = run(descent([5]), around(optlab.sgd(0.01)), steps=20)
    assert result.reason == f"all updates done, but {expected}"
    assert not result.diverged


def test_a_validation_loss_that_ends_in_nan_is_told():
    task = descent(evaluate=lambda x, state, data: {"loss": jnp.log(jnp.sum(x**2) - 8)})
    result = run(task, optlab.sgd(0.01))
    assert result.reason == (
        "all updates done; the validation loss was not finite from update 20 on"
    )
    assert result.diverged


def test_checkpoints_stand_for_parameters_that_are_not_finite(tmp_path):
    for _ in range(2):  # the second run begins at the checkpoint
        result = run(descent([14]), optlab.sgd(0.01), checkpoints=tmp_path)
        assert result.step == 10
        np.testing.assert_allclose(result.params, 2 * 0.98**10, rtol=1e-5)
        assert result.reason == "the loss was not finite at update 15"
        assert result.diverged


def test_running_statistics_outlive_a_batch_that_is_skipped():
    task = descent(
        [14],
        init=lambda key: (jnp.full((3,), 2.0), {"mean": jnp.zeros(())}),
        loss=lambda x, state, batch, key: (
            jnp.sum(x**2) * batch,
            {"mean": 0.9 * state["mean"] + 0.1 * batch},
        ),
    )
    result = run(task, optlab.skip_nonfinite(optlab.sgd(0.01)))
    np.testing.assert_allclose(result.model_state["mean"], 1 - 0.9**39, rtol=1e-5)
    lost = run(task, optlab.accumulate(optlab.sgd(0.01), 2), steps=20)
    assert not lost.diverged  # a window leaves the batch out


# Metrics that are not defined


def with_f1(undefined):
    """Return a task whose score is not defined before the loss falls below a number."""

    def evaluate(x, state, data):
        loss = jnp.sum(x**2)
        return {"loss": loss, "f1": jnp.where(loss > undefined, jnp.nan, -loss)}

    return descent(evaluate=evaluate, score="f1", maximize=True)


def test_an_undefined_score_neither_stops_a_run_nor_counts():
    stopping = lab.EarlyStopping(1, mode="max")
    result = run(with_f1(undefined=6.0), optlab.sgd(0.01), early_stopping=stopping)
    assert result.reason == "all updates done"
    assert not result.diverged
    assert result.step == 40


def test_without_any_score_the_last_parameters_are_returned():
    stopping = lab.EarlyStopping(1, mode="max")
    result = run(with_f1(undefined=-1.0), optlab.sgd(0.01), early_stopping=stopping)
    assert result.step == 40
    np.testing.assert_allclose(result.params, 2 * 0.98**40, rtol=1e-5)


def test_a_plateau_does_not_judge_an_undefined_score():
    tx = optax.chain(optlab.sgd(0.01), optlab.reduce_on_plateau(0.5, patience=1, mode="max"))
    result = run(with_f1(undefined=6.0), optlab.skip_nonfinite(tx))
    np.testing.assert_allclose(result.history.learning_rate, 0.01, rtol=1e-6)


# Sweeps and comparisons


def test_a_sweep_judges_a_trial_by_what_follows_a_bad_batch():
    space = {"learning_rate": lab.LogUniform(1e-3, 1e-2), "skips": lab.Categorical((True, False))}

    def optimizer(learning_rate, skips):
        tx = optlab.sgd(learning_rate)
        return optlab.skip_nonfinite(tx) if skips else tx

    sweep = lab.sweep(descent([14]), optimizer, space, trials=4, search="grid", steps=40)
    statuses = {trial.values["skips"]: trial.status for trial in sweep.trials}
    assert statuses == {True: "complete", False: "diverged"}


def test_a_sweep_is_not_told_to_diverge_by_a_score_that_is_undefined_at_first():
    space = {"learning_rate": lab.LogUniform(9e-3, 1e-2)}
    sweep = lab.sweep(with_f1(undefined=8.0), optlab.sgd, space, trials=2, steps=40)
    assert {trial.status for trial in sweep.trials} == {"complete"}
