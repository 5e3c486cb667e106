"""`train`: one run, what it records, when it ends, and that nothing of it is lost."""

import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
import run_to_kill
from helpers import assert_same_bits, noise_of
from optlab.lab import EarlyStopping, Task, compare, tasks, train
from optlab.lab.training._loop import run_keys
from optlab.lab.training._run import RunLoop
from optlab.lab.training._sharding import Sharding

KEY = jax.random.key(3)


def noisy(**changes):
    """Return the task of descending |x|² where batches and the model see it through noise."""

    def loss(x, state, batch, key):
        return jnp.sum((x + batch + 0.125 * noise_of(key, width=3)) ** 2), state

    return dataclasses.replace(
        Task(
            name="noisy",
            init=lambda key: (noise_of(key, width=3), ()),
            loss=loss,
            batch=lambda key, step: 0.125 * noise_of(key, step, width=3),
            evaluate=lambda x, state, data: {"loss": jnp.sum(x**2)},
        ),
        **changes,
    )


def quiet(**changes):
    """Return the task of descending |x|² in three dimensions, which draws no random numbers."""
    return noisy(
        **{
            "name": "quiet",
            "init": lambda key: (jnp.arange(1.0, 4.0), ()),
            "batch": lambda key, step: (),
            "loss": lambda x, state, batch, key: (jnp.sum(x**2), state),
            **changes,
        }
    )


def scripted(scores, losses=None, *, maximize=False):
    """Return a task whose one parameter, like its state, is the number of updates of `sgd(1)`.

    Args:
        scores: its score after each number of updates.
        losses: its loss before each of them.
        maximize: whether a higher score is better.
    """
    losses = jnp.zeros(len(scores)) if losses is None else jnp.asarray(losses)

    def loss(x, count, batch, key):
        return losses[count] - (x - jax.lax.stop_gradient(x)), count + 1

    return Task(
        name="scripted",
        init=lambda key: (jnp.float32(0), jnp.int32(0)),
        loss=loss,
        batch=lambda key, step: (),
        evaluate=lambda x, count, data: {"loss": 0.0, "score": jnp.asarray(scores)[count]},
        score="score",
        maximize=maximize,
    )


def fixed(**options):
    """Train for six updates, `quiet` where no task is given, evaluated after every two."""
    task, tx = options.pop("task", quiet()), options.pop("tx", sgd())
    return train(task, tx, **{"steps": 6, "key": KEY, "eval_every": 2, **options})


def plain_loop(task, tx, steps, key, eval_every):
    """Return what a loop of its own of jitted updates comes to."""

    @jax.jit
    def update(params, state, opt_state, step):
        def loss_of(params):
            return task.loss(params, state, task.batch(batches, step), noise_key(step))

        (loss, state_after), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state_after, opt_state, loss

    def noise_key(step):
        return jax.random.fold_in(noise, step)

    init, batches, noise = jax.random.split(key, 3)
    params, state = task.init(init)
    opt_state = jax.jit(tx.init)(params)
    evaluate = jax.jit(task.evaluate)
    data = task.splits.get("validation")
    losses, metrics = [], [evaluate(params, state, data)]
    for step in range(steps):
        params, state, opt_state, loss = update(params, state, opt_state, step)
        losses.append(loss)
        if (step + 1) % eval_every == 0 or step + 1 == steps:
            metrics.append(evaluate(params, state, data))
    return (params, state, opt_state), np.array(losses), metrics


# The run


@pytest.mark.parametrize(
    ("task", "tx", "window"),
    [
        (noisy(), optlab.adam(optlab.schedules.cosine(0.1, 11)), 1),
        (tasks.valley(), optax.sgd(0.005, momentum=0.9), 1),
        pytest.param(run_to_kill.task(), run_to_kill.optimizer(), 3, marks=pytest.mark.slow),
    ],
    ids=["noisy-adam", "valley-optax", "batch_norm_and_dropout-every_third"],
)
def test_a_run_is_a_plain_loop_bit_for_bit(task, tx, window):
    run = train(task, tx, steps=11, key=KEY, eval_every=4)
    end, losses, metrics = plain_loop(task, tx, 11 * window, KEY, 4 * window)
    assert_same_bits((run.params, run.model_state, run.opt_state), end)
    # The mean over a window of three rounds three times, and NumPy's may do otherwise, 6e-8 each.
    means = losses.reshape(11, window).mean(axis=1)
    np.testing.assert_allclose(run.history.loss, means, rtol=0 if window == 1 else 4e-7)
    assert run.history.steps.tolist() == [0, 4, 8, 11]
    for name, curve in run.history.validation.items():
        np.testing.assert_array_equal(curve, [m[name] for m in metrics])
    assert run.reason == "all updates done"
    assert run.step == 11


def test_a_run_is_that_of_its_seed_in_compare():
    grid = compare(tasks.valley(), {"sgd": optlab.sgd}, rates=[0.005], seeds=2, steps=6)
    lanes = grid.runs["sgd"].validation["loss"]
    for seed in (0, 1):
        run = train(tasks.valley(), optlab.sgd(0.005), steps=6, key=jax.random.key(seed))
        np.testing.assert_allclose(run.history.validation["loss"], lanes[0, seed], rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "eval_every", "evaluations"),
    [
        (1, 1, [0, 1]),
        (3, 10, [0, 3]),
        (7, 3, [0, 3, 6, 7]),
        (np.int64(6), np.int64(3), [0, 3, 6]),
        (60, None, [*range(0, 61, 2)]),
    ],
)
def test_updates_are_traced_once_whatever_the_intervals(steps, eval_every, evaluations):
    traces = []

    def counted(name):
        function = getattr(quiet(), name)

        def call(*args):
            traces.append(name)
            return function(*args)

        return call

    task = quiet(**{name: counted(name) for name in ("init", "loss", "evaluate")})
    run = train(task, optlab.sgd(0.1), steps=steps, key=KEY, eval_every=eval_every)
    assert run.history.steps.tolist() == evaluations
    assert run.history.num_updates == steps
    # Once to check the task, once to compile.
    assert sorted(traces) == sorted(["evaluate", "init", "loss"] * 2)


def test_more_intervals_compile_nothing_more():
    compiled = []

    def listen(event, duration, **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    def compilations(steps):
        compiled.clear()
        train(quiet(), optlab.sgd(0.1), steps=steps, key=KEY, eval_every=2)
        return len(compiled)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        compilations(2)  # of what JAX does outside of our programs, once
        assert compilations(3) == compilations(11) > 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_python_numbers_are_parameters_and_compile_once():
    traces = []

    def loss(x, state, batch, key):
        traces.append(x)
        return x**2, state

    task = tasks.valley()
    task = dataclasses.replace(
        task, init=lambda key: (2.0, 3), loss=loss, evaluate=lambda x, state, data: {"loss": x**2}
    )
    run = train(task, optlab.sgd(0.25), steps=4, key=KEY)
    assert len(traces) == 2
    assert run.params == 0.125
    assert run.model_state == 3


def test_the_state_before_an_interval_gives_its_memory_to_the_one_after():
    options = {"eval_every": 2, "source": None, "sharding": Sharding(None, "data")}
    loop = RunLoop("train", quiet(), optlab.adam(0.1), run_keys(KEY), **options)
    start = loop.start(None)
    loop.go_on(start, 4)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start.state.run))


def test_arrays_that_a_task_holds_are_left_alone():
    held = jnp.ones(3)
    task = quiet(init=lambda key: (held, held), loss=lambda x, s, b, key: (jnp.sum(x * s), s))
    first, second = (train(task, optlab.sgd(0.1), steps=2, key=KEY) for _ in range(2))
    np.testing.assert_array_equal(held, 1)
    assert_same_bits(first.params, second.params)


def test_the_key_itself_may_be_part_of_a_models_state():
    def loss(x, key, batch, _):
        key, now = jax.random.split(key)
        return jnp.sum((x + jax.random.normal(now, x.shape)) ** 2), key

    task = quiet(init=lambda key: (jnp.ones(3), key), loss=loss)
    run = fixed(task=task)
    assert_same_bits((run.params, run.model_state), plain_loop(task, sgd(), 6, KEY, 2)[0][:2])


def sgd():
    return optlab.sgd(0.1, momentum=0.9)


def test_a_legacy_key_gives_the_run_of_the_new_one():
    new, legacy, plain = (
        fixed(task=noisy(), key=key)
        for key in (KEY, jax.random.PRNGKey(3), np.array([0, 3], np.uint32))
    )
    assert_same_bits(new.params, legacy.params)
    assert_same_bits(new.params, plain.params)


def test_evaluations_are_those_the_task_asks_for_or_thirty():
    assert train(quiet(eval_every=5), sgd(), steps=7, key=KEY).history.steps.tolist() == [0, 5, 7]
    assert train(quiet(), sgd(), steps=61, key=KEY).history.steps.tolist()[:3] == [0, 3, 6]


def test_splits_are_looked_at_by_name_and_the_test_split_at_the_end():
    splits = {"train": jnp.array(1.0), "validation": np.array(2.0), "test": 3.0}
    task = quiet(splits=splits, evaluate=lambda x, state, data: {"loss": jnp.sum(x**2) * data})
    run = fixed(task=task)
    np.testing.assert_array_equal(2 * run.history.train["loss"], run.history.validation["loss"])
    assert run.test == {"loss": pytest.approx(3 * run.history.train["loss"][-1], rel=1e-6)}
    assert fixed().history.train == fixed().test == {}


def test_metrics_and_losses_of_any_type_are_recorded_as_floats():
    def evaluate(x, state, data):
        loss = jnp.sum(x**2)
        return {"loss": loss.astype(jnp.bfloat16), "rows": jnp.int32(7), "small": loss < 1}

    def loss(x, state, batch, key):
        return jnp.sum(x**2), state

    task = quiet(init=lambda key: (jnp.ones(3, jnp.bfloat16), ()), loss=loss, evaluate=evaluate)
    history = fixed(task=task).history
    curves = [history.loss, *history.validation.values()]
    assert {curve.dtype for curve in curves} == {np.dtype(np.float32)}
    assert history.validation["rows"].tolist() == [7, 7, 7, 7]
    assert json.loads(history.to_json())["loss"][0] == 3


def test_a_line_search_gets_the_losses_it_asks_for():
    task = quiet(loss=lambda x, state, batch, key: (jnp.sum((x - 1) ** 2), state))
    run = train(task, optax.lbfgs(), steps=4, key=KEY)
    # A quadratic of one curvature is solved by its first line search, to its own tolerance.
    np.testing.assert_allclose(run.params, 1, atol=1e-3)


# The learning rate


def test_the_rate_of_each_update_is_recorded():
    schedule = optlab.schedules.cosine(0.1, 6)
    rates = fixed(tx=optlab.adam(schedule)).history.learning_rate
    np.testing.assert_allclose(rates, [schedule(step) for step in range(6)], rtol=1e-6)
    assert fixed(tx=optax.sgd(0.1)).history.learning_rate is None


def test_of_several_groups_the_largest_rate_is_recorded():
    rules = {"body": optlab.sgd(0.1), "head": optlab.sgd(0.2), "stem": optlab.sgd(0.0)}
    tx = optax.partition(rules, {name: name for name in rules})
    task = quiet(
        init=lambda key: (dict.fromkeys(rules, jnp.float32(1)), ()),
        loss=lambda p, state, batch, key: (sum(x**2 for x in p.values()), state),
        evaluate=lambda p, state, data: {"loss": sum(x**2 for x in p.values())},
    )
    assert fixed(task=task, tx=tx).history.learning_rate.tolist() == [np.float32(0.2)] * 6


def test_the_rate_includes_the_scale_of_a_plateau():
    tx = optax.chain(optlab.sgd(0.5), optlab.reduce_on_plateau(factor=0.5, patience=1))
    task = quiet(loss=lambda x, state, batch, key: (1.0 + 0 * jnp.sum(x), state))
    rates = fixed(task=task, tx=tx).history.learning_rate
    assert rates[0] == 0.5
    assert 0.25 in rates


# The end


def test_a_loss_that_is_not_finite_ends_the_run_at_its_interval():
    losses = [0.5, 0.4, 0.3, np.inf, 0.1, np.nan, 0.0, 0.0, 0.0]
    run = train(scripted(np.ones(9), losses), optax.sgd(1.0), steps=8, key=KEY, eval_every=3)
    assert run.reason == "the loss was not finite at update 4"
    assert run.history.loss.tolist()[:5] == np.float32(losses[:5]).tolist()
    assert run.history.steps.tolist() == [0, 3, 6]
    assert run.step == 6
    assert run.params == run.model_state == 6


@pytest.mark.parametrize("maximize", [False, True])
def test_early_stopping_returns_the_best_parameters_and_their_state(maximize):
    scores = np.array([5, 9, 3, 9, 4, 9, 3.5, 9, 2, 9, 1.0])
    stopper = EarlyStopping(2, mode="max" if maximize else "min")
    task = scripted(-scores if maximize else scores, maximize=maximize)
    for early_stopping in (stopper, stopper):  # one that was used is not changed by it
        run = train(
            task, optax.sgd(1.0), steps=10, key=KEY, eval_every=2, early_stopping=early_stopping
        )
        assert run.history.steps.tolist() == [0, 2, 4, 6]
        assert run.reason == (
            f"early stopping: no improvement in 2 checks since check 2 (best {'-' * maximize}3)"
        )
        assert run.params == run.model_state == run.step == 2


def test_the_best_of_a_run_that_is_not_stopped_is_returned():
    run = train(
        scripted([3.0, 1.0, 2.0, 2.0]),
        optax.sgd(1.0),
        steps=3,
        key=KEY,
        eval_every=1,
        early_stopping=EarlyStopping(9),
    )
    assert run.reason == "all updates done"
    assert run.params == run.model_state == run.step == 1
    assert len(run.history.loss) == 3


@pytest.mark.parametrize(
    ("scores", "losses", "reason"),
    [
        ([3, 2, 1, np.nan, np.nan], np.zeros(5), "all updates done"),  # not defined there
        ([3, 2, 1, 1.5, 1.5], [0, 0, 0, np.nan, 0], "the loss was not finite at update 4"),
    ],
)
def test_the_best_is_returned_where_nan_ends_the_run(scores, losses, reason):
    run = train(
        scripted(np.array(scores, float), losses),
        optax.sgd(1.0),
        steps=4,
        key=KEY,
        eval_every=1,
        early_stopping=EarlyStopping(2),
    )
    assert run.params == run.model_state == run.step == 2
    assert run.reason == reason


@pytest.mark.parametrize(
    ("stop_on_nonfinite", "reason", "step"),
    [(False, "early stopping: no finite value in 3 checks", 2), (True, "all updates done", 4)],
)
def test_without_any_finite_score_the_last_parameters_are_returned(stop_on_nonfinite, reason, step):
    run = train(
        scripted(np.full(5, np.nan)),
        optax.sgd(1.0),
        steps=4,
        key=KEY,
        eval_every=1,
        early_stopping=EarlyStopping(3, stop_on_nonfinite=stop_on_nonfinite),
    )
    assert run.reason == reason
    assert run.params == run.model_state == run.step == step


@pytest.mark.parametrize(
    ("rule", "reason", "step"),
    [
        ({"start": 5}, "no improvement in 2 checks since check 1 (best 6)", 5),
        ({"start": 3, "target": 7.5}, "the value reached the target 7.5 at check 2 (7)", 4),
        ({"start": 3, "divergence": 7.5}, "the value was worse than 7.5 at check 1 (8)", 3),
    ],
)
def test_a_run_that_goes_on_stops_where_a_whole_one_does(tmp_path, rule, reason, step):
    task = scripted([1.0, 9, 2, 8, 7, 6, 6.5, 6.6, 5])
    options = {"key": KEY, "eval_every": 1, "early_stopping": EarlyStopping(2, **rule)}
    whole = train(task, optax.sgd(1.0), steps=8, **options)
    train(task, optax.sgd(1.0), steps=2, checkpoints=tmp_path, **options)
    resumed = train(task, optax.sgd(1.0), steps=8, checkpoints=tmp_path, **options)
    assert whole.reason == resumed.reason == f"early stopping: {reason}"
    assert whole.params == resumed.params == whole.step == resumed.step
    assert whole.history.steps.tolist() == resumed.history.steps.tolist()
    assert whole.step == (step if "divergence" not in rule else whole.history.steps[-1])


def test_early_stopping_stops_where_the_loss_itself_is_not_finite():
    task = scripted([3, 2, 1, np.nan, 0])
    evaluate = task.evaluate
    task = dataclasses.replace(
        task, score="loss", evaluate=lambda *args: {"loss": evaluate(*args)["score"]}
    )
    options = {"steps": 4, "key": KEY, "eval_every": 1, "early_stopping": EarlyStopping(2)}
    run = train(task, optax.sgd(1.0), **options)
    assert run.reason.startswith("early stopping: the value was not finite (nan) at check 4")
    assert run.step == 2


def test_best_parameters_of_ones_own_are_replaced_by_those_of_the_run():
    own = EarlyStopping(2, best_params={"of": jnp.ones(7), "another": 1.0})
    task = scripted([3.0, 1.0, 2.0, 2.0])
    run = train(task, optax.sgd(1.0), steps=3, key=KEY, eval_every=1, early_stopping=own)
    assert run.params == 1
    np.testing.assert_array_equal(own.best_params["of"], 1)


# Callbacks


def test_callbacks_are_told_in_order_at_the_start_and_after_each_interval():
    told = []
    run = train(
        quiet(),
        optlab.sgd(optlab.schedules.cosine(0.1, 5)),
        steps=5,
        key=KEY,
        eval_every=2,
        callbacks=[lambda e: told.append(("first", e)), lambda e: told.append(("second", e))],
    )
    assert [(name, e.step) for name, e in told] == [
        (name, step) for step in (0, 2, 4, 5) for name in ("first", "second")
    ]
    evaluations = [e for name, e in told if name == "first"]
    history = run.history
    assert [len(e.losses) for e in evaluations] == [0, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([e.losses for e in evaluations]), history.loss)
    assert [e.validation["loss"] for e in evaluations] == history.validation["loss"].tolist()
    assert [e.learning_rate for e in evaluations] == [None, *history.learning_rate[[1, 3, 4]]]
    assert {e.steps for e in evaluations} == {5}
    assert evaluations[0].train == evaluations[0].monitored == {}
    seconds = [e.seconds for e in evaluations]
    assert 0 < seconds[0] < seconds[-1]


def test_what_a_callback_raises_ends_the_run_and_loses_nothing(tmp_path):
    seen = []

    def full(evaluation):
        seen.append(evaluation.step)
        if seen in ([0], [0, 0, 2, 4]):
            raise OSError("no space left on device")

    for _ in range(2):
        with pytest.raises(OSError, match="no space left"):
            fixed(callbacks=[full], checkpoints=tmp_path)
    run = fixed(callbacks=[full], checkpoints=tmp_path)
    # Those of 0 and 4 once more, as not all callbacks may have been told of them.
    assert seen == [0, 0, 2, 4, 4, 6]
    assert run_to_kill.result(run) == run_to_kill.result(fixed())


def acting(at, act):
    """Return a callback that acts at one update."""
    return lambda evaluation: act(evaluation) if evaluation.step == at else None


def test_a_callback_sees_the_run_as_it_is_in_memory_of_its_own():
    seen = []

    def look(evaluation):
        seen.append((evaluation.params, evaluation.model_state, evaluation.opt_state))

    run = fixed(task=leaves_of_all_kinds(), callbacks=[look])
    assert len(seen) == 4
    assert_same_bits(seen[-1], (run.params, run.model_state, run.opt_state))
    assert not np.array_equal(seen[0][0]["complex"], seen[1][0]["complex"])  # not deleted either


def test_an_evaluation_cannot_be_used_once_its_callbacks_have_ended():
    evaluations = []
    fixed(callbacks=[evaluations.append])
    for use in (lambda e: e.params, lambda e: e.stop(), lambda e: e.replace_hyperparams()):
        with pytest.raises(ValueError, match=r"while a callback is called, got .* update 2, "):
            use(evaluations[1])
    assert evaluations[1].step == 2
    assert evaluations[1].validation["loss"] > 0


def test_a_callback_may_stop_the_run():
    told = []
    callbacks = [acting(4, lambda e: e.stop("enough")), lambda e: told.append(e.step)]
    run = fixed(callbacks=callbacks)
    assert (run.reason, run.step, told) == ("enough", 4, [0, 2, 4])
    assert_same_bits(run.params, fixed(steps=4).params)
    assert fixed(callbacks=[lambda e: e.stop()]).reason == "a callback stopped the run"


def test_a_run_that_a_callback_stopped_goes_on_without_it(tmp_path):
    fixed(callbacks=[lambda e: e.stop()], checkpoints=tmp_path)
    stopped = fixed(callbacks=[acting(4, lambda e: e.stop())], checkpoints=tmp_path)
    again = fixed(callbacks=[acting(4, lambda e: e.stop("again"))], checkpoints=tmp_path)
    assert (stopped.step, again.step, again.reason) == (4, 4, "again")
    last = fixed(checkpoints=tmp_path)
    assert run_to_kill.result(last) == run_to_kill.result(fixed())


def test_the_reason_of_a_callback_must_be_a_text():
    with pytest.raises(ValueError, match=r"^Evaluation\.stop: reason must be a text, got 3"):
        fixed(callbacks=[lambda e: e.stop(3)])


def test_a_rate_that_a_callback_replaces_is_in_force_from_the_next_update_on():
    run = fixed(callbacks=[acting(2, lambda e: e.replace_hyperparams(learning_rate=0.05))])
    np.testing.assert_array_equal(run.history.learning_rate, np.float32([0.1] * 2 + [0.05] * 4))


def test_a_rate_that_a_callback_replaced_is_in_force_after_an_interruption(tmp_path):
    def halve(evaluation):
        if evaluation.step == 2:
            evaluation.replace_hyperparams(learning_rate=evaluation.learning_rate / 2)

    def fail(evaluation):
        if evaluation.step == failing[0]:
            raise OSError("no space left on device")

    # At the update itself, where the checkpoint does not have it yet, and at the next one.
    failing = [2]
    whole = run_to_kill.result(fixed(callbacks=[halve]))
    for failing[0] in (2, 4):
        with pytest.raises(OSError, match="no space left"):
            fixed(callbacks=[halve, fail], checkpoints=tmp_path)
    assert run_to_kill.result(fixed(callbacks=[halve], checkpoints=tmp_path)) == whole


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1.0}, "names must be those of hyperparameters in the state, got rate"),
        ({"learning_rate": -1.0}, "learning_rate must be finite and >= 0, got learning_rate=-1.0"),
    ],
)
def test_what_a_callback_cannot_replace_is_named(values, message):
    with pytest.raises(ValueError, match=f"^replace_hyperparams: {message}"):
        fixed(callbacks=[lambda e: e.replace_hyperparams(**values)])


# Where a run starts


def test_a_run_starts_from_parameters_that_it_is_given():
    first = fixed()
    given = np.asarray(first.params)
    run = fixed(params=given)
    np.testing.assert_array_equal(given, first.params)
    start = quiet(init=lambda key: (jnp.asarray(given), ()))
    assert_same_bits(run.params, fixed(task=start).params)


def test_of_parameters_and_state_each_may_be_given_alone():
    task = noisy(
        init=lambda key: ({"x": noise_of(key, width=3)}, {"n": jnp.int32(0), "key": key}),
        loss=lambda p, s, batch, key: (jnp.sum((p["x"] + batch) ** 2), {**s, "n": s["n"] + 1}),
        evaluate=lambda p, s, data: {"loss": jnp.sum(p["x"] ** 2)},
    )
    params, state = {"x": jnp.ones(3)}, {"n": jnp.int32(10), "key": jax.random.key(7)}
    drawn, with_params, with_state = (
        fixed(task=task, **start) for start in ({}, {"params": params}, {"model_state": state})
    )
    assert_same_bits(with_state.params, drawn.params)
    assert with_state.model_state["n"] == 16
    assert_same_bits(with_state.model_state["key"], state["key"])
    assert_same_bits(with_params.model_state, drawn.model_state)
    assert with_params.history.validation["loss"][0] == 3


def test_parameters_are_no_constants_of_the_programs():
    large = np.zeros((1000, 1000), np.float32)
    task = quiet(
        init=lambda key: (jnp.ones((1000, 1000)), ()),
        evaluate=lambda x, state, data: {"loss": x[0, 0]},
        loss=lambda x, state, batch, key: (x[0, 0], state),
    )
    options = {"eval_every": 2, "source": None, "sharding": Sharding(None, "data")}
    loop = RunLoop("train", task, sgd(), run_keys(KEY), **options)
    loop.start(None, (large, None))
    text = loop._engine.begin_program.lower((large, None), run_keys(KEY)).as_text()
    assert len(text) < 10_000


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            {"params": jnp.ones(4)},
            r"params must .* Task.init, got float32\[4\] for float32\[3\]",
        ),
        ({"params": jnp.ones(3, jnp.bfloat16)}, r"params .* got bfloat16\[3\] .*; convert it with"),
        (
            {"params": {"x": jnp.ones(3)}},
            r"params .* nothing at the root, something new at \['x'",
        ),
        ({"params": "weights.npz"}, "params .* got str at the root; pass trees of arrays"),
        (
            {"model_state": jnp.ones(3)},
            "model_state .* that of Task.init, got something new at",
        ),
    ],
)
def test_a_start_that_is_not_like_that_of_the_task_is_refused(start, message):
    with pytest.raises(ValueError, match=f"^train: {message}"):
        fixed(**start)


def test_a_run_from_other_parameters_is_another_run(tmp_path):
    fixed(params=jnp.ones(3), checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"^train: params must be that of .*, got params=.*float"):
        fixed(params=jnp.zeros(3), checkpoints=tmp_path)
    fixed(params=np.ones(3), checkpoints=tmp_path)


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_stderr_alone(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    fixed(progress=True, callbacks=[lambda evaluation: print(evaluation.step)])
    assert sys.stdout.getvalue() == "0\n2\n4\n6\n"
    assert "100%" in sys.stderr.getvalue()
    assert "loss" in sys.stderr.getvalue()


def test_progress_says_nothing_where_there_is_no_terminal(capsys):
    fixed(progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip() == ""


# Checkpoints


def leaves_of_all_kinds():
    """Return the task of shrinking arrays of several types, and some without any number."""

    def init(key):
        params = {
            "half": jnp.ones(3, jnp.float16),
            "brain": jnp.ones((), jnp.bfloat16),
            "complex": jnp.ones(2, jnp.complex64),
            "empty": jnp.zeros((0, 2)),
            "nothing": None,
        }
        return params, {"eighth": jnp.ones(2, jnp.float8_e4m3fn), "keys": jax.random.split(key, 2)}

    def loss(params, state, batch, key):
        total = sum(jnp.sum(jnp.abs(x) ** 2).astype(jnp.float32) for x in jax.tree.leaves(params))
        return total, {**state, "keys": jax.vmap(jax.random.fold_in)(state["keys"], jnp.arange(2))}

    return quiet(
        init=init, loss=loss, evaluate=lambda p, state, data: {"loss": loss(p, state, (), KEY)[0]}
    )


@pytest.mark.parametrize(
    ("task", "tx"),
    [
        (noisy(), optax.sgd(0.1)),
        pytest.param(quiet(init=lambda key: (jnp.float32(1), ())), sgd(), marks=pytest.mark.slow),
        (leaves_of_all_kinds(), sgd()),
    ],
    ids=["bare_array-stateless", "scalar", "leaves_of_all_kinds"],
)
def test_a_run_that_goes_on_is_bit_for_bit_one_that_never_stopped(tmp_path, task, tx):
    stopper = EarlyStopping(5)
    fixed(task=task, tx=tx, steps=4, checkpoints=tmp_path, early_stopping=stopper)
    run = fixed(task=task, tx=tx, steps=8, checkpoints=tmp_path, early_stopping=stopper)
    straight = fixed(task=task, tx=tx, steps=8, early_stopping=stopper)
    assert run_to_kill.result(run) == run_to_kill.result(straight)
    assert_same_bits((run.params, run.model_state), (straight.params, straight.model_state))


def test_a_run_that_is_done_is_returned_again(tmp_path):
    first = fixed(checkpoints=tmp_path, early_stopping=EarlyStopping(1, min_delta=9.0))
    assert first.reason.startswith("early stopping")
    told = []
    again = fixed(
        checkpoints=tmp_path,
        early_stopping=EarlyStopping(1, min_delta=9.0),
        callbacks=[lambda evaluation: told.append(evaluation.step)],
    )
    assert run_to_kill.result(again) == run_to_kill.result(first)
    assert told == [first.history.steps[-1]]


def test_the_newest_checkpoint_alone_is_kept_beside_what_else_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("rate 0.1")
    fixed(checkpoints="runs")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["6", "notes.txt"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    fixed(checkpoints=folder, early_stopping=EarlyStopping(5))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": jax.random.key(4)}, r"key must be that .*, \[0, 3\], got key=\[0, 4\]; pass"),
        ({"task": quiet(name="loud")}, "task must be that .*'quiet', got task='loud'; pass"),
        (
            {"tx": optlab.sgd(0.2, momentum=0.9)},
            "learning_rate must .*, 0.1, got .*_rate=0.2; pass",
        ),
        ({"tx": optax.sgd(0.1)}, "tx must .*'scale_by_momentum, .*', got tx='chain, .*, scale'"),
        (
            {"tx": optlab.sgd(optlab.schedules.cosine(0.1, 9), momentum=0.9)},
            r"learning_rate must .* 0.1, got learning_rate='cosine\(init_value=0.1, decay_steps=9",
        ),
        (
            {"task": quiet(init=lambda key: (jnp.ones(4), ()))},
            r"state.run.params must be as .*, float32\[3\], got float32\[4\]; pass another folder",
        ),
        ({"early_stopping": None}, "early_stopping must be that .*'patience': 5.* got .*=None"),
        ({"early_stopping": EarlyStopping(6)}, "early_stopping must .* got .*'patience': 6"),
        ({"steps": 4}, "steps must be at least the 6 updates of .*, got steps=4; raise steps"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_left_as_it_is(finished, changes, message):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"^train: {message}"):
        fixed(**{"checkpoints": finished, "early_stopping": EarlyStopping(5), **changes})
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damaged", ["about/metadata", "state/_METADATA"])
def test_a_damaged_checkpoint_is_refused_in_a_line(tmp_path, damaged):
    fixed(steps=1, checkpoints=tmp_path)
    path = tmp_path / "1" / damaged
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"^train: the checkpoint .*1 must be a whole") as caught:
        fixed(checkpoints=tmp_path)
    assert str(caught.value).endswith("; remove it to start again")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_folder_that_only_looks_like_a_checkpoint_is_refused_and_kept(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "photo.jpg").write_text("…")
    with pytest.raises(ValueError, match=r"^train: the checkpoint .*7 must be a whole one"):
        fixed(checkpoints=tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["7", "photo.jpg"]


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_that_never_was(tmp_path):
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start(checkpoints, result, saves=-1, seconds=0.0):
        command = [sys.executable, "-W", "error", run_to_kill.__file__, checkpoints, result]
        return subprocess.run(
            [*map(str, command), str(saves), str(seconds)],
            env={**os.environ, **cache},
            capture_output=True,
            text=True,
        )

    def fingerprint(path):
        return json.loads(path.read_text())

    never = start("", tmp_path / "never")
    assert (never.returncode, never.stderr) == (0, "")
    # Now while it compiles or trains, now while it saves, which takes some 0.1 s.
    draw = random.Random()
    moments = [(0, draw.uniform(0.2, 2)), *((k, draw.uniform(0, 0.1)) for k in (1, 2, 2))]
    for saves, seconds in moments:
        killed = start(tmp_path / "kept", tmp_path / "result", saves, seconds)
        assert (killed.returncode, killed.stderr) == (-signal.SIGKILL, ""), (saves, seconds)
    last = start(tmp_path / "kept", tmp_path / "result")
    assert (last.returncode, last.stderr) == (0, "")
    assert fingerprint(tmp_path / "result") == fingerprint(tmp_path / "never"), moments
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["60"]


def test_a_checkpoint_to_go_on_from_must_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"^train: resume_at must be left out where there is no"):
        fixed(checkpoints=tmp_path, resume_at=4)
    fixed(checkpoints=tmp_path, keep=2)
    with pytest.raises(ValueError, match=r"must be one of a checkpoint in .*, 4, 6, got 2"):
        fixed(checkpoints=tmp_path, resume_at=2)
    again = fixed(checkpoints=tmp_path, resume_at=4)
    assert run_to_kill.result(again) == run_to_kill.result(fixed())


# A process of its own


QUIET = """
import sys, threading
import jax, jax.numpy as jnp, numpy as np
import optlab
from optlab.lab import Task, train, tensorboard

assert not {"orbax", "rich", "tensorboardX"} & set(sys.modules), "imported before it is asked for"
task = Task(
    name="parabola",
    init=lambda key: (jax.random.normal(key, (3,)), ()),
    loss=lambda x, state, batch, key: (jnp.sum(x**2), state),
    batch=lambda key, step: (),
    evaluate=lambda x, state, data: {"loss": jnp.sum(x**2)},
)
folder = sys.argv[1]

def run(steps, **options):
    tx = optlab.adam(0.1)
    return train(task, tx, steps=steps, key=jax.random.key(0), eval_every=2, **options)

logged = {"checkpoints": folder + "/kept", "callbacks": [tensorboard(folder + "/logs")]}
run(4, **logged)
resumed, straight = run(8, **logged), run(8)
for a, b in zip(jax.tree.leaves((resumed.params, resumed.opt_state, vars(resumed.history))),
                jax.tree.leaves((straight.params, straight.opt_state, vars(straight.history)))):
    np.testing.assert_array_equal(a, b)
assert resumed.params.dtype == resumed.history.loss.dtype == np.float64
assert not [thread for thread in threading.enumerate() if not thread.daemon][1:]
"""


def test_float64_runs_are_kept_whole_and_nothing_is_said_on_stderr(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUIET, str(tmp_path)],
        env={**os.environ, "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
    )
    assert (ended.stderr, ended.stdout, ended.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("orbax.checkpoint", "checkpoints", lambda folder: fixed(checkpoints=folder)),
        ("rich.progress", "lab", lambda folder: fixed(progress=True)),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(monkeypatch, tmp_path, module, extra, use):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f'{module} is .*pip install "optlab.{extra}."'):
        use(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# Arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tx": optlab.sgd},
            "optimizer must be an optax.GradientTransformation, got <function sgd.*; pass",
        ),
        ({"steps": 0}, "steps must be an integer >= 1, got steps=0"),
        ({"steps": 2.0}, "steps must be an integer >= 1, got steps=2.0"),
        ({"eval_every": 0}, "eval_every must be an integer >= 1, got eval_every=0"),
        ({"key": 3}, r"key must be one random key, got 3; pass jax.random.key\(0\)"),
        ({"key": jnp.zeros(2)}, r"key must be one random key, got float32\[2\]; pass"),
        ({"key": jax.random.split(KEY, 3)}, r"key must be one random key, got key<fry>\[3\]; pass"),
        ({"early_stopping": 3}, "early_stopping must be an EarlyStopping, got 3"),
        (
            {"early_stopping": EarlyStopping(mode="max")},
            "early_stopping must have mode='min', as a lower loss is better, got mode='max'",
        ),
        (
            {"early_stopping": EarlyStopping().update(1.0)},
            "early_stopping must be new, got num_checks=1; pass EarlyStopping",
        ),
        ({"callbacks": print}, "callbacks must be a sequence of functions, got <built-in"),
        ({"callbacks": [None]}, r"callbacks must be a sequence of functions, got \[None\]"),
        ({"checkpoints": 3}, "checkpoints must be a folder, got 3"),
        ({"keep": 3}, "keep must be left out without checkpoints, got keep=3; pass a folder"),
        ({"resume_at": 3}, "resume_at must be left out without checkpoints, got resume_at=3"),
        ({"take_over": ["key"]}, r"take_over must be left out .*, got take_over=\['key'\]"),
        ({"take_over": 3}, "take_over must be True, False or a list of names, got take_over=3"),
        ({"resume_at": "last"}, "resume_at must be an integer >= 0, got resume_at='last'"),
        ({"checkpoints": __file__}, "checkpoints must be a folder that can be written, got .*py: "),
        ({"checkpoints": "/proc/run"}, "checkpoints must be a folder that .*, got /proc/run: No "),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=f"^train: {message}"):
        fixed(**changes)


def test_early_stopping_may_start_late_and_stop_at_a_target(tmp_path):
    scores = [1.0, 9.0, 8.0, 7.0, 4.0, 3.0]
    losses = jnp.asarray(scores)
    task = quiet(
        init=lambda key: (jnp.zeros(()), ()),
        loss=lambda x, state, batch, key: (-x, state),
        evaluate=lambda x, state, data: {"loss": losses[jnp.clip(x / 2, 0, 5).astype(int)]},
    )
    options = {"steps": 12, "eval_every": 2, "key": KEY}
    options["early_stopping"] = EarlyStopping(1, start=4, target=4.0)
    run = train(task, optlab.sgd(1.0), **options)
    assert run.reason == "early stopping: the value reached the target 4 at check 3 (4)"
    assert (run.step, float(run.params)) == (8, 8.0)
    train(task, optlab.sgd(1.0), **options | {"steps": 6}, checkpoints=tmp_path)
    resumed = train(task, optlab.sgd(1.0), **options, checkpoints=tmp_path)
    assert (resumed.step, resumed.reason) == (run.step, run.reason)
