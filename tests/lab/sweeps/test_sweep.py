"""`sweep`: each trial is the run it stands for, wherever it runs; what is searched, and found."""

import csv
import dataclasses
import functools
import io
import json
import math
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from helpers import bowl
from optlab._divergence import has_diverged
from optlab.lab import Categorical, Integer, LogUniform, Task, Uniform, sweep, tasks, train
from optlab.lab.sweeps._recipe import Recipe
from optlab.lab.sweeps._result import Sweep
from optlab.lab.sweeps._trial import COMPLETE, DIVERGED, STOPPED, Trial, rank
from optlab.lab.training._loop import seed_keys
from optlab.lab.training._runner import TrialRuns, default_lanes

RATES = {"learning_rate": LogUniform(1e-3, 10.0)}


def network(width=130, batch_size=16):
    """Return the task of a small classifier, wide enough for lanes to round apart (see below)."""
    keys = jax.random.split(jax.random.key(1), 3)
    inputs = jax.random.normal(keys[0], (48, 64))
    labels = (inputs @ jax.random.normal(keys[1], (64, 5))).argmax(-1)

    def init(key):
        first, second = jax.random.split(key)
        weights = jax.random.normal(first, (64, width)), jax.random.normal(second, (width, 5))
        return [0.1 * w for w in weights], ()

    def metrics(params, data):
        inputs, labels = data
        logits = jnp.tanh(inputs @ params[0]) @ params[1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"loss": losses.mean(), "accuracy": jnp.mean(logits.argmax(-1) == labels)}

    def batch(key, step):
        rows = jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, 32)
        return inputs[rows], labels[rows]

    return Task(
        name="network",
        init=init,
        loss=lambda params, state, batch, key: (metrics(params, batch)["loss"], state),
        batch=batch,
        evaluate=lambda params, state, data: metrics(params, data),
        splits={"validation": (inputs[32:], labels[32:])},
        score="accuracy",
        maximize=True,
        steps=9,
        eval_every=2,
    )


def counted(task, counts, *names):
    """Return a task that counts how often its functions are traced."""

    def counting(name):
        function = getattr(task, name)

        def call(*args):
            counts[name] = counts.get(name, 0) + 1
            return function(*args)

        return call

    return dataclasses.replace(task, **{name: counting(name) for name in names})


def assert_same(trial, other):
    """Require that two trials are equal bit for bit."""
    assert (trial.number, trial.values, trial.status) == (other.number, other.values, other.status)
    assert_same_curves(trial, other)
    np.testing.assert_array_equal(trial.score, other.score)


def assert_same_curves(curves, other, evaluations=None):
    np.testing.assert_array_equal(curves.steps, other.steps[:evaluations])
    np.testing.assert_array_equal(curves.train_loss, other.train_loss[:, :evaluations])
    assert curves.validation.keys() == other.validation.keys()
    for name, values in curves.validation.items():
        np.testing.assert_array_equal(values, other.validation[name][:, :evaluations])


# A trial is a run


@pytest.mark.slow
def test_a_trial_is_the_run_that_train_makes_from_the_same_key():
    space = {"learning_rate": LogUniform(1e-3, 1e-1), "batch_size": Categorical((8,))}
    task = functools.partial(network, 7)
    found = sweep(task, optlab.adamw, space, trials=2, lanes=2, seed=5, seeds=2, steps=7)
    trial = found.trials[1]
    np.testing.assert_array_equal(trial.steps, [0, 2, 4, 6, 7])
    assert trial.num_updates == 7
    assert trial.train_loss.shape == trial.validation["accuracy"].shape == (2, 5)
    assert trial.score == trial.validation["accuracy"][:, -1].mean(dtype=float)
    assert trial.loss == trial.validation["loss"][:, -1].mean(dtype=float)
    optimizer = optlab.adamw(trial.values["learning_rate"])
    history = train(network(7, 8), optimizer, steps=7, key=jax.random.key(6)).history
    means = [history.loss[i:j].mean() for i, j in ((0, 2), (2, 4), (4, 6), (6, 7))]
    # Another program rounds otherwise, and Adam's first updates make most of it: float32.
    np.testing.assert_allclose(trial.train_loss[1, 1:], means, rtol=2e-5)
    np.testing.assert_allclose(trial.train_loss[1, 0], history.loss[0], rtol=2e-5)
    np.testing.assert_allclose(trial.validation["loss"][1], history.validation["loss"], rtol=2e-5)
    accuracies = history.validation["accuracy"]
    np.testing.assert_array_equal(trial.validation["accuracy"][1], accuracies)


def test_several_runs_of_a_trial_have_the_following_seeds():
    both = sweep(bowl(), optlab.sgd, RATES, trials=3, seed=4, seeds=2).trials
    # The search has the same seed as the runs: take the second run's values from the first.
    runs = TrialRuns(
        "sweep",
        Recipe(bowl(), optlab.sgd, ("learning_rate",)),
        {"learning_rate": float},
        keys=seed_keys(jnp.array([5])),
        eval_every=4,
        lanes=default_lanes(),
        memory=np.inf,
        on_updates=lambda updates: None,
    )
    (found,) = runs.run([(trial.number, trial.values) for trial in both], 12)
    for trial in both:
        for curves, alone in (
            (trial.train_loss, found[trial.number].train_loss),
            (trial.validation["loss"], found[trial.number].validation["loss"]),
        ):
            np.testing.assert_allclose(curves[1], alone[0], rtol=1e-5)  # of other shapes, float32


# The same bits in any company


@pytest.fixture(scope="module")
def forty():
    """Trials of which many diverge, of a network whose last lane rounds otherwise (130 × 16)."""
    return sweep(network(), optlab.adamw, {"learning_rate": LogUniform(1e-3, 1.0)}, trials=40)


def sweep_network(**options):
    return sweep(network(), optlab.adamw, {"learning_rate": LogUniform(1e-3, 1.0)}, **options)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [20])
def test_a_trial_is_bitwise_the_same_in_shorter_sweeps(forty, trials):
    told = []
    found = sweep_network(trials=trials, callbacks=[told.append]).trials
    assert [trial.number for trial in found] == list(range(trials))
    assert {id(trial) for trial in told} == {id(trial) for trial in found}
    for trial, other in zip(found, forty.trials, strict=False):
        assert_same(trial, other)


def test_a_trial_is_bitwise_the_same_whoever_runs_beside_it(forty):
    runs = TrialRuns(
        "sweep",
        Recipe(network(), optlab.adamw, ("learning_rate",)),
        {"learning_rate": float},
        keys=seed_keys(jnp.array([0])),
        eval_every=2,
        lanes=default_lanes(),
        memory=np.inf,
        on_updates=lambda updates: None,
    )
    known = [(trial.number, trial.values) for trial in forty.trials]
    random = np.random.default_rng(0)
    for beside in (np.nan, np.inf, 1e-6):
        left_out = set(random.choice(40, 15, replace=False).tolist())
        spoiled = set(random.choice(40, 12, replace=False).tolist()) - left_out
        points = [(n, {"learning_rate": beside} if n in spoiled else v) for n, v in known]
        found = {n: c for part in runs.run(points, 9, skip=left_out) for n, c in part.items()}
        assert found.keys() == set(range(40)) - left_out
        for number in found.keys() - spoiled:
            assert_same_curves(found[number], forty.trials[number])


def test_trials_that_survive_halving_are_bitwise_those_of_a_sweep_without(forty):
    found = sweep_network(trials=40, halving=2)
    statuses = [trial.status for trial in found.trials]
    assert statuses.count(COMPLETE) > 5
    assert statuses.count(STOPPED) > 5
    for trial, other in zip(found.trials, forty.trials, strict=True):
        assert_same_curves(trial, other, len(trial.steps))


# Compilations


def test_a_group_is_traced_once_whatever_the_trials_rungs_and_chunks():
    seen = []
    for options in (
        {"trials": 3},
        {"trials": 24, "lanes": 5},
        {"trials": 16, "lanes": 4, "halving": 2, "steps": 33, "eval_every": 2},
    ):
        counts = {}
        task = counted(bowl(), counts, "init", "loss", "evaluate")
        sweep(task, optlab.sgd, RATES, **options)
        seen.append(counts)
    assert seen[0] == seen[1] == seen[2]
    # Each is checked, tried with traced values, and traced for the program; the work of an update
    # is counted once.
    assert (seen[0]["loss"], seen[0]["evaluate"]) == (4, 3)


def test_each_combination_of_static_values_is_traced_once():
    counts = {}

    def task(width, decoys):
        made = bowl(init=lambda key: (jnp.ones(2 * width), ()))
        made = dataclasses.replace(made, batch=lambda key, step: jnp.float32(decoys))
        return counted(made, counts, "loss")

    space = {"width": Integer(1, 2), "decoys": Categorical((0, 1)), **RATES}
    found = sweep(task, optlab.sgd, space, trials=16, lanes=3, search="grid", steps=4)
    assert len(found.trials) == 16
    assert counts["loss"] == 2 + 4 * 2  # the work of an update is counted, and then it is compiled


def test_equal_static_values_of_other_types_are_compiled_apart():
    def optimizer(learning_rate, factor):
        assert factor is None or isinstance(factor, bool | int | str)
        return optlab.sgd(learning_rate * (0.0 if factor is True else 1.0))

    space = {"factor": Categorical((True, 2, "true", None)), **RATES}
    found = sweep(bowl(), optimizer, space, trials=4, search="grid", lanes=1)
    still = [
        trial.validation["loss"][0, -1] == trial.validation["loss"][0, 0] for trial in found.trials
    ]
    assert still == [True, False, False, False]


# Who takes which value


class Chained:
    """An optimizer's function that is an instance."""

    def __call__(self, learning_rate):
        return optax.chain(optax.identity(), optax.sgd(learning_rate))


def keywords(**values):
    return optlab.sgd(**values)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda learning_rate: optax.sgd(learning_rate),
        keywords,
        functools.partial(optlab.sgd, momentum=0.5),
        optax.inject_hyperparams(optax.sgd),
        Chained(),
    ],
    ids=["lambda", "keywords", "partial", "injected", "instance"],
)
def test_any_function_of_the_values_is_an_optimizer(optimizer):
    found = sweep(bowl(noise=0.0), optimizer, RATES, trials=2, lanes=2, steps=1)
    for trial in found.trials:
        start, end = trial.validation["loss"][0]
        shrunk = start * (1 - trial.values["learning_rate"]) ** 2
        np.testing.assert_allclose(end, shrunk, rtol=1e-5)  # a few roundings of float32


def test_values_go_to_the_task_to_the_optimizer_or_to_both():
    got = {}

    def task(steepness, shared):
        got["task"] = steepness, shared
        return bowl(steepness)

    def optimizer(learning_rate, *, shared=None, unused=1):
        got["optimizer"] = learning_rate, shared, unused
        return optlab.sgd(learning_rate)

    space = {"shared": Categorical(("a",)), "steepness": Categorical((2,)), **RATES}
    sweep(task, optimizer, space, trials=1, lanes=1, steps=1)
    assert got["task"] == (2, "a")
    assert got["optimizer"][1:] == ("a", 1)


def test_keywords_take_what_nobody_names():
    got = {}

    def task(steepness, **rest):
        got["task"] = rest
        return bowl(steepness)

    def optimizer(learning_rate, **rest):
        got["optimizer"] = rest
        return optlab.sgd(learning_rate)

    space = {"steepness": Categorical((2,)), "neither": Categorical((3,)), **RATES}
    sweep(task, optimizer, space, trials=1, lanes=1, steps=1)
    assert got == {"task": {"neither": 3}, "optimizer": {"neither": 3}}


@dataclasses.dataclass(frozen=True)
class Steep(Task):
    """A task whose class is the function of its values."""

    def __init__(self, steepness):
        super().__init__(**vars(bowl(steepness)))


def test_a_class_of_tasks_is_a_function_of_values():
    space = {"steepness": Uniform(0.5, 2.0), **RATES}
    found = sweep(Steep, optlab.sgd, space, trials=3, lanes=3, steps=1)
    heights = [trial.validation["loss"][0, 0] for trial in found.trials]
    steepness = [trial.values["steepness"] for trial in found.trials]
    np.testing.assert_allclose(np.divide(heights, steepness), heights[0] / steepness[0], rtol=1e-6)


def test_a_linen_model_with_batch_statistics_is_swept():
    from flax import linen

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            return linen.Dense(1)(linen.BatchNorm(use_running_average=not train)(x))[:, 0]

    model, x = Model(), jax.random.normal(jax.random.key(0), (16, 3))

    def init(key):
        stats = model.init(key, x, train=False)
        return stats.pop("params"), stats

    def loss(params, stats, batch, key):
        out, changed = model.apply(
            {"params": params, **stats}, batch, train=True, mutable=list(stats)
        )
        return jnp.mean((out - batch[:, 0]) ** 2), changed

    def evaluate(params, stats, data):
        out = model.apply({"params": params, **stats}, data, train=False)
        return {"loss": jnp.mean((out - data[:, 0]) ** 2)}

    task = Task("linen", init, loss, lambda key, step: x[:8], evaluate, {"validation": x}, steps=6)
    options = {"trials": 4, "lanes": 2, "halving": 2, "eval_every": 1}
    found = sweep(task, optlab.adam, {"learning_rate": LogUniform(1e-3, 0.1)}, **options)
    assert found.best.loss < found.best.validation["loss"][0, 0]
    assert STOPPED in {trial.status for trial in found.trials}


# Traced or compiled in


def dropout_task(rate):
    """Return a task of a Flax NNX model, whose dropout asks whether its rate is 0."""
    x = jax.random.normal(jax.random.key(0), (32, 4))
    examples = x, (x[:, 0] > 0).astype(int)

    def make_model(rngs):
        return nnx.Sequential(nnx.Dropout(rate, rngs=rngs), nnx.Linear(4, 2, rngs=rngs))

    splits = dict.fromkeys(("train", "validation", "test"), examples)
    task = tasks.nnx_classifier("dropout", make_model, **splits, batch_size=8, steps=4)
    return dataclasses.replace(task, batch=lambda key, step: examples)


def test_a_choice_of_numbers_that_the_model_needs_in_python_is_compiled_in():
    space = {"rate": Categorical((0.0, 0.5)), "learning_rate": Categorical((0.1, 0.2))}
    options = {"trials": 4, "search": "grid", "lanes": 2, "eval_every": 2, "halving": 2}
    found = sweep(dropout_task, optlab.sgd, space, **options)
    assert [trial.values["rate"] for trial in found.trials] == [0.0, 0.0, 0.5, 0.5]
    without, dropped = (found.trials[number].train_loss[0, 1] for number in (0, 2))
    assert without != dropped
    assert [trial.status for trial in found.trials].count(STOPPED) == 2


def needs_python(learning_rate, momentum):
    return optlab.sgd(learning_rate, momentum=0.9 if momentum > 0.5 else 0.0)


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        (LogUniform(0.1, 1.0), "LogUniform\\(…, traced=False\\) to compile for every value"),
        (Uniform(0.1, 1.0), "Uniform\\(…, traced=False\\) to compile for every value"),
        (Integer(0, 1, traced=True), "Integer\\(…, traced=False\\) to compile for every value"),
        (Categorical((0.1, 0.9), traced=True), "leave out traced=True"),
    ],
)
def test_a_range_that_must_be_traced_and_cannot_is_refused(values, remedy):
    required = "sweep: momentum must be usable as a traced number, to share one compiled program"
    with pytest.raises(ValueError, match=f"{required}, got .*; .*{remedy}"):
        sweep(bowl(), needs_python, {"momentum": values, **RATES}, trials=2)


def test_a_range_is_compiled_in_where_that_is_asked_for():
    counts = {}
    space = {"momentum": Uniform(0.1, 1.0, traced=False), **RATES}
    found = sweep(counted(bowl(), counts, "loss"), needs_python, space, trials=3, lanes=1)
    assert len(found.trials) == 3
    assert counts["loss"] == 2 + 3 * 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (Integer(1, 3, traced=True), "int32"),
        (Categorical((1, 3), traced=True), "int32"),
        (Categorical((False, True), traced=True), "bool"),
        (Categorical((1, 2.5), traced=True), "float32"),
        (Categorical((1.0, 2.5)), "float32"),
        (Uniform(1.0, 3.0), "float32"),
    ],
)
def test_traced_values_have_the_type_of_their_range(values, expected):
    seen = []

    def optimizer(factor):
        if isinstance(factor, jax.core.Tracer):
            seen.append(factor.dtype)
        return optax.scale(-0.1 * factor)

    found = sweep(bowl(noise=0.0), optimizer, {"factor": values}, trials=3, lanes=3, steps=1)
    assert {str(dtype) for dtype in seen} == {expected}
    for trial in found.trials:
        start, end = trial.validation["loss"][0]
        shrunk = start * (1 - 0.1 * trial.values["factor"]) ** 2
        np.testing.assert_allclose(end, shrunk, rtol=1e-5)  # a few roundings of float32


def test_an_optimizer_is_chosen_by_name():
    def optimizer(name, learning_rate):
        return {"adam": optlab.adam, "sgd": optlab.sgd}[name](learning_rate)

    space = {"name": Categorical(("adam", "sgd")), "learning_rate": Categorical((0.1, 0.2))}
    found = sweep(bowl(noise=0.0), optimizer, space, trials=4, search="grid", lanes=2, steps=1)
    for trial in found.trials:
        start, end = (2 * loss for loss in trial.validation["loss"][0])
        rate = trial.values["learning_rate"]
        if trial.values["name"] == "sgd":
            np.testing.assert_allclose(end, start * (1 - rate) ** 2, rtol=1e-5)
    # Adam's first step is the rate in both coordinates, whatever the gradient.
    first, second = (trial.validation["loss"][0] for trial in found.trials[:2])
    assert first[0] == second[0]
    assert second[1] < first[1] < first[0]


def test_what_goes_wrong_with_any_values_is_raised_as_it_is():
    def optimizer(learning_rate):
        raise LookupError("no such optimizer")

    with pytest.raises(LookupError, match="no such optimizer"):
        sweep(bowl(), optimizer, RATES, trials=1)


@pytest.mark.parametrize("search", ["random", "halton", "grid", "bayes"])
def test_a_space_of_one_point_has_one_trial(search):
    space = {"learning_rate": Categorical((0.1,))}
    result = sweep(bowl(), optlab.sgd, space, trials=3, search=search, steps=4)
    assert [trial.values for trial in result.trials] == [{"learning_rate": 0.1}]
    assert result.missing == 0


# Halving


def line(start, slope, bad=np.inf, **changes):
    """Return the task whose loss after t updates is start + slope·t, and NaN from t = bad on."""

    def evaluate(t, state, data):
        return {"loss": jnp.where(t >= bad, jnp.nan, start + slope * t)}

    return Task(
        name="line",
        init=lambda key: (jnp.zeros(()), ()),
        loss=lambda t, state, batch, key: (-t, state),
        batch=lambda key, step: (),
        evaluate=evaluate,
        steps=32,
        **changes,
    )


def one_up(unused=None):
    """Return the optimizer that adds 1 to what a `line` counts with."""
    return optax.sgd(1.0)


LINES = {"start": Uniform(10.0, 20.0), "slope": Uniform(-0.3, 0.0), "bad": Uniform(0.0, 160.0)}


def halved_by_hand(values, *, steps, rungs, share):
    """Return trial → updates it gets and how it ends, and the trials that end best first."""

    def loss(number, t):
        return values[number]["start"] + values[number]["slope"] * t

    ends, field = {}, set(values)
    for rung in [*rungs, steps]:
        dead = {number for number in field if values[number]["bad"] <= rung}
        ends |= dict.fromkeys(dead, (rung, DIVERGED))
        order = sorted(field - dead, key=lambda number: loss(number, rung))
        kept = order[: math.ceil(len(field) / share)] if rung < steps else order
        ends |= dict.fromkeys(set(order) - set(kept), (rung, STOPPED if rung < steps else COMPLETE))
        field = set(kept)
    return ends | dict.fromkeys(field, (steps, COMPLETE)), kept


@pytest.mark.parametrize(
    ("options", "rungs"),
    [
        # The first rung is where η⁻ᵏ·32 still reaches an evaluation, and ηᵏ does not exceed n.
        ({"trials": 19, "halving": 2, "eval_every": 2}, [2, 4, 8, 16]),
        ({"trials": 6, "halving": 2, "eval_every": 2}, [8, 16]),
        ({"trials": 19, "halving": 3, "eval_every": 3}, [6, 12]),  # 3.6 and 10.7, rounded up
        ({"trials": 19, "halving": 2, "eval_every": 7}, [14, 21]),
        ({"trials": 4, "halving": 5, "eval_every": 1}, []),
        ({"trials": 4, "halving": 2, "eval_every": 40}, []),
    ],
)
def test_halving_gives_up_those_that_are_behind(options, rungs):
    found = sweep(line, one_up, LINES, lanes=4, seed=2, **options)
    values = {trial.number: trial.values for trial in found.trials}
    ends, order = halved_by_hand(values, steps=32, rungs=rungs, share=options["halving"])
    assert {t.number: (t.num_updates, t.status) for t in found.trials} == ends
    assert [trial.number for trial in found.ranked()[: len(order)]] == order
    for trial in found.trials:
        steps = [*range(0, trial.num_updates, options["eval_every"]), trial.num_updates]
        assert trial.steps.tolist() == steps
        assert np.isnan(trial.score) == (trial.status == DIVERGED)


def test_halving_saves_updates():
    values = {"start": Uniform(10.0, 20.0), "slope": Uniform(-0.3, 0.0)}
    found = sweep(line, one_up, values, trials=16, halving=4, eval_every=2, lanes=16)
    total = sum(trial.num_updates for trial in found.trials)
    assert total == 12 * 2 + 3 * 8 + 1 * 32


def test_of_equal_scores_the_lower_loss_then_the_first_survives():
    space = {"slope": Categorical((0.0, -1.0)), "start": Categorical((30.0, 20.0))}

    def task(start, slope):
        made = line(start, slope, score="size", maximize=True)
        return dataclasses.replace(
            made, evaluate=lambda t, s, data: {"size": jnp.ones(()), **made.evaluate(t, s, data)}
        )

    options = {"trials": 4, "search": "grid", "eval_every": 1, "lanes": 4, "steps": 16}
    found = sweep(task, one_up, space, halving=2, **options)
    # Losses 30, 20, 30 − t and 20 − t: trial 3 is first, then trial 1 as long as t < 10.
    assert [trial.num_updates for trial in found.trials] == [4, 8, 4, 16]
    same = sweep(
        task, one_up, {"start": Categorical((30.0,))} | {"slope": space["slope"]}, **options
    )
    assert [trial.number for trial in same.ranked()] == [1, 0]
    tied = sweep(lambda start: task(start, 0.0), one_up, {"start": Integer(7, 8)}, **options)
    assert [trial.values["start"] for trial in tied.ranked()] == [7, 8]


def test_a_grid_is_halved_as_the_points_it_has():
    found = sweep(
        line, one_up, {"slope": Categorical((-0.1, -0.2, -0.3)), "start": Categorical((1.0,))},
        trials=50, search="grid", halving=2, eval_every=1, lanes=3,
    )  # fmt: skip
    assert [trial.num_updates for trial in found.trials] == [16, 32, 32]


def test_what_a_model_carries_goes_on_from_rung_to_rung():
    def loss(x, stream, batch, key):
        noise = jax.random.normal(jax.random.fold_in(stream["key"], stream["used"]), (2,))
        return jnp.sum((x + noise) ** 2), {"key": stream["key"], "used": stream["used"] + 1}

    def init(key):
        return jnp.ones(2), {"key": key, "used": jnp.int32(0)}

    found = [
        sweep(bowl(init=init, loss=loss), optlab.adam, RATES, trials=6, lanes=4, halving=halving)
        for halving in (None, 2)
    ]
    for trial, other in zip(found[1].trials, found[0].trials, strict=True):
        assert_same_curves(trial, other, len(trial.steps))


# Divergence


def test_diverged_trials_come_last_and_have_no_score():
    found = sweep(bowl(), optlab.sgd, {"learning_rate": LogUniform(0.1, 1e4)}, trials=12)
    status = {trial.number: trial.status for trial in found.trials}
    # A step of the rate r multiplies x by 1 − r.
    high = {trial.number for trial in found.trials if trial.values["learning_rate"] > 2.5}
    assert {number for number in status if status[number] == DIVERGED} == high
    assert 0 < len(high) < 12
    assert {trial.number for trial in found.ranked()[-len(high) :]} == high
    assert all(math.isnan(found.trials[number].score) for number in high)
    assert found.best.status == COMPLETE
    assert f"{len(high)} of 12 trials diverged." in str(found)


@pytest.mark.parametrize("halving", [None, 3])
def test_a_score_that_is_not_defined_ranks_behind_scores_and_before_divergence(halving):
    def evaluate(x, state, data):
        loss = jnp.sum(x**2)
        f1 = jnp.where(loss > 1, jnp.nan, 1 / (1 + loss))
        return {"loss": loss, "f1": f1, "unjudged": jnp.float32(jnp.nan)}

    task = bowl(evaluate=evaluate, score="f1", maximize=True)
    rates = {"learning_rate": Categorical((1e-3, 1e-2, 0.5, 1e4))}
    options = {"trials": 4, "search": "grid", "eval_every": 1}
    found = sweep(task, optlab.sgd, rates, halving=halving, **options)
    order = [trial.values["learning_rate"] for trial in found.ranked()]
    assert order == [0.5, 1e-2, 1e-3, 1e4]
    assert [trial.has_score for trial in found.ranked()] == [True, False, False, False]
    assert [trial.diverged for trial in found.ranked()] == [False, False, False, True]
    assert "2 of 4 trials have no score, as f1 is not defined" in found.table()
    assert found.plot() is not None
    assert found.narrowed()["learning_rate"].choices == (0.5,)


def test_where_no_score_is_defined_the_loss_ranks_the_trials():
    def evaluate(x, state, data):
        return {"loss": jnp.sum(x**2), "f1": jnp.float32(jnp.nan)}

    task = bowl(evaluate=evaluate, score="f1", maximize=True)
    rates = {"learning_rate": Categorical((1e-3, 0.5))}
    found = sweep(task, optlab.sgd, rates, trials=2, search="grid")
    assert found.best.values["learning_rate"] == 0.5
    assert "f1 is not defined at any end" in found.plot().get_suptitle()


def curve(*values):
    return np.array([values], np.float32)


@pytest.mark.parametrize(
    ("train_loss", "loss", "diverged"),
    [
        (curve(np.nan, 1, 4), curve(1, 1, 4), False),
        (curve(np.nan, 1, 4.1), curve(1, 1, 1), True),
        (curve(np.nan, 1, 1), curve(1, 1, 4.1), True),
        (curve(np.nan, -1, 2), curve(-1, 0, 2), False),
        (curve(np.nan, -1, 2.1), curve(1, 1, 1), True),
        (curve(np.nan, np.inf, 1), curve(1, 1, 1), False),  # one bad batch
        (curve(np.nan, 1, np.inf), curve(1, 1, 1), True),
        (curve(np.nan, 1, 1), curve(1, np.nan, 1), False),
        (curve(np.nan, 1, 1), curve(np.nan, 1, 4.1), True),
        (curve(np.nan, 1, 1), curve(np.nan, np.nan, np.nan), True),
        (curve(np.nan, -1e38, 3e38), curve(1, 1, 1), True),  # further apart than float32 goes
        (curve(np.nan, 1, 1), curve(3e38, 3e38, 3e38), False),
    ],
)
def test_divergence_is_a_loss_that_ends_high_or_not_finite(train_loss, loss, diverged):
    train_loss = train_loss[:, 1:]  # there is no training loss before the first update
    for score in (np.ones_like(loss), curve(1, np.nan, 1), curve(1, 1, np.nan)):
        assert has_diverged([train_loss, loss], score, maximize=True) == [diverged]


def test_a_run_whose_score_improved_or_whose_loss_began_at_zero_did_not_diverge():
    rose, from_zero, lost = curve(1, 9), curve(1e-7, 9), curve(1, np.nan)
    up, down = curve(0.5, 0.9), curve(0.5, 0.4)
    assert has_diverged([rose], down, maximize=True) == [True]
    assert has_diverged([rose], up, maximize=True) == [False]
    assert has_diverged([rose], down, maximize=False) == [False]
    assert has_diverged([from_zero], down, maximize=True) == [False]
    assert has_diverged([lost], up, maximize=True) == [True]


@pytest.fixture(scope="module")
def all_diverged():
    space = {"learning_rate": LogUniform(1e3, 1e4), "name": Categorical(("a", None))}
    return sweep(bowl(), lambda learning_rate, name: optlab.sgd(learning_rate), space, trials=3)


def test_where_all_diverged_there_is_no_best(all_diverged):
    with pytest.raises(
        ValueError, match=r"Sweep\.best: there must be a trial that did not diverge, got none"
    ):
        _ = all_diverged.best
    with pytest.raises(ValueError, match=r"Sweep\.narrowed"):
        all_diverged.narrowed()
    assert [trial.number for trial in all_diverged.ranked()] == [0, 1, 2]
    assert str(all_diverged).endswith("3 of 3 trials diverged.")
    rows = list(csv.DictReader(io.StringIO(all_diverged.to_csv())))
    assert [row["score" if "score" in row else "loss"] for row in rows] == ["nan"] * 3
    document = json.loads(all_diverged.to_json(), parse_constant=pytest.fail)
    assert document["trials"][0]["score"] is None


def test_nan_from_the_start_is_divergence_and_spoils_nobody():
    def task(bad):
        made = bowl(noise=0.0)
        return dataclasses.replace(
            made, init=lambda key: (jnp.where(bad > 0.5, jnp.nan, made.init(key)[0]), ())
        )

    space = {"bad": Categorical((0.0, 1.0)), "learning_rate": Categorical((0.5,))}
    found = sweep(task, optlab.sgd, space, trials=2, search="grid", lanes=2, halving=2)
    assert [trial.status for trial in found.trials] == [COMPLETE, DIVERGED]
    assert [trial.num_updates for trial in found.trials] == [12, 8]
    assert np.isnan(found.trials[1].validation["loss"]).all()


# Memory and lanes


class Watched(TrialRuns):
    """Counts the lanes that chunks are run in."""

    lanes = ()

    def _run_chunk(self, group, *rest):
        Watched.lanes += (group.lanes,)
        return super()._run_chunk(group, *rest)


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr("optlab.lab.sweeps._jobs.TrialRuns", Watched)
    monkeypatch.setattr(Watched, "lanes", ())
    return Watched


@pytest.fixture(scope="module")
def usual():
    return sweep(bowl(), optlab.sgd, RATES, trials=5)


@pytest.mark.parametrize(
    ("options", "lanes"),
    [
        ({"lanes": 3}, (6,)),  # three on each of two devices
        ({"lanes": 64}, (64,)),
        ({"memory": 1}, (1,) * 5),
    ],
)
def test_fewer_lanes_find_the_same(watched, usual, options, lanes):
    found = sweep(bowl(), optlab.sgd, RATES, trials=5, **options)
    assert watched.lanes == lanes
    for trial, other in zip(found.trials, usual.trials, strict=True):
        # Of other shapes, other kernels, over a dozen updates in float32.
        np.testing.assert_allclose(
            trial.validation["loss"], other.validation["loss"], rtol=1e-4, atol=1e-6
        )


def test_fewer_lanes_run_where_more_would_not_fit(watched):
    task = bowl(init=lambda key: (jnp.ones(100_000), ()), batch=lambda key, step: jnp.zeros(()))
    # Parameters alone are 0.4 MB a lane.
    sweep(task, optlab.sgd, RATES, trials=2, lanes=8, steps=1, memory=2e6 * os.cpu_count())
    assert 1 <= max(watched.lanes) <= 5


def test_an_evaluation_that_needs_more_memory_than_training_counts(watched):
    def evaluate(x, state, data):
        return {"loss": jnp.linalg.norm(jnp.sort(data * x[0])) + jnp.sum(x**2)}

    task = bowl(evaluate=evaluate, splits={"validation": jnp.ones(250_000)})
    # 1 MB of data, and as much again for each lane, at least.
    sweep(task, optlab.sgd, RATES, trials=2, lanes=8, steps=1, memory=6e6 * os.cpu_count())
    assert 1 <= max(watched.lanes) <= 5


# What a sweep says


def made_up(scores, values, space, **changes):
    """Return a sweep of trials with these scores (None where they diverged) and values."""
    trials = [
        Trial(
            number=number,
            values=dict(zip(space, value, strict=True)),
            status=DIVERGED if score is None else COMPLETE,
            steps=np.array([0, 5]),
            train_loss=curve(np.nan, 1.0),
            validation={"loss": curve(2.0, np.nan if score is None else score)},
            score=math.nan if score is None else score,
        )
        for number, (score, value) in enumerate(zip(scores, values, strict=True))
    ]
    options = {"task": "made up", "search": "random", "split": None, "score": "loss"}
    return Sweep(
        **options | {"space": space, "maximize": False, "trials": trials, "seconds": 1.0} | changes
    )


MIXED = {
    "learning_rate": LogUniform(1e-4, 1.0),
    "layers": Integer(1, 4),
    "name": Categorical(('a "quoted", one', "b", None)),
}


@pytest.fixture(scope="module")
def mixed():
    values = [(1e-4, 2, "b"), (0.01, 4, 'a "quoted", one'), (0.02, 3, None), (0.9, 4, "b")]
    return made_up([3.0, 1.0, 1.0, None], values, MIXED)


def test_trials_are_ranked_by_score_then_number(mixed):
    assert [trial.number for trial in mixed.ranked()] == [1, 2, 0, 3]
    up = dataclasses.replace(mixed, maximize=True)
    assert [trial.number for trial in up.ranked()] == [0, 1, 2, 3]
    assert mixed.best.number == 1
    assert rank([], maximize=False) == []


def test_the_table_has_the_digits_that_tell_the_best_apart_whatever_their_size():
    values = [(rate,) for rate in (0.1, 0.2, 0.3, 0.4)]
    near = made_up([-1000.3, -999.8, -999.1, 5e4], values, RATES)
    lines = near.table().splitlines()[1:5]
    assert [line.split()[2] for line in lines] == ["-1000.3", "-999.8", "-999.1", "50000"]
    assert "loss -1000.3" in near.plot().axes[0].get_title(loc="left") + near.plot().get_suptitle()


def test_the_table_shows_the_best_and_notes_what_stands_out(mixed):
    lines = mixed.table().splitlines()
    assert lines[0].split() == [
        "trial",
        "learning_rate",
        "layers",
        "name",
        "loss",
        "updates",
        "status",
    ]
    assert [line.split()[0] for line in lines[1:5]] == ["1", "2", "0", "3"]
    assert lines[2].split() == ["2", "0.02", "3", "None", "1", "5", "complete"]
    assert lines[4].split()[-3:] == ["–", "5", "diverged"]
    assert lines[5:] == [
        "",
        "1 of 4 trials diverged.",
        "layers: the best lies at the upper end of its range; a wider one may hold a better.",
    ]
    assert mixed.table(limit=1).count("complete") == 1
    assert "\n3 more trials are not shown.\n" in mixed.table(limit=1)
    assert str(mixed).startswith("made up: random search, 4 trials\n\ntrial")
    assert mixed.title("loss") == "loss"
    assert dataclasses.replace(mixed, split="validation").title("loss") == "validation loss"
    for limit in (0, -1, 2.0):
        with pytest.raises(ValueError, match=r"Sweep\.table: limit must be an integer >= 1"):
            mixed.table(limit=limit)


@pytest.mark.parametrize(
    ("rate", "trials", "end"),
    [(1e-3, 8, "lower"), (2e-3, 8, None), (0.5, 8, None), (0.9, 8, "upper"), (1e-3, 1, None)],
)
def test_a_best_at_the_edge_is_noted_as_near_as_trials_lie(rate, trials, end):
    space = {"learning_rate": LogUniform(1e-3, 1.0)}
    found = made_up([1.0] + [2.0] * (trials - 1), [(rate,)] * trials, space)
    noted = [name for name in ("lower", "upper") if f"at the {name} end" in found.table()]
    assert noted == ([end] if end else [])


@pytest.mark.parametrize("log", [False, True])
def test_an_integer_at_its_end_is_at_the_edge(log):
    for value, noted in ((1, True), (2, False), (63, False), (64, True)):
        found = made_up([1.0] * 40, [(value,)] * 40, {"layers": Integer(1, 64, log=log)})
        if value in (2, 63) and not log:
            continue  # 1/64 apart, nearer than the trials lie
        assert ("end of its range" in found.table()) == (noted or (log and value == 63))


def test_the_csv_reads_back(mixed):
    rows = list(csv.reader(io.StringIO(mixed.to_csv())))
    assert rows[0] == ["trial", "status", "updates", "loss", "validation_loss", *MIXED]
    assert rows[1] == ["1", "complete", "5", "1.0", "1.0", "0.01", "4", 'a "quoted", one']
    assert rows[4][:5] == ["3", "diverged", "5", "nan", "nan"]
    assert [float(row[5]) for row in rows[1:]] == [0.01, 0.02, 1e-4, 0.9]


def test_the_json_is_strict_and_whole(mixed):
    document = json.loads(mixed.to_json(options={"seed": 3}), parse_constant=pytest.fail)
    assert document["options"] == {"seed": 3}
    assert document["ranking"] == [1, 2, 0, 3]
    ranges = {n: optlab.lab.Range.from_json(entry) for n, entry in document["space"].items()}
    assert ranges == MIXED
    assert document["trials"][3]["validation"] == {"loss": [[2.0, None]]}
    assert [trial["values"]["name"] for trial in document["trials"]] == [
        "b",
        'a "quoted", one',
        None,
        "b",
    ]


def test_narrowed_is_the_space_around_the_best(mixed):
    narrower = mixed.narrowed(best=2)
    share = 4 ** (-1 / 2)  # of four trials in a space of two numbers
    assert narrower == {
        "learning_rate": MIXED["learning_rate"].around([0.01, 0.02], share),
        "layers": MIXED["layers"].around([4, 3], share),
        "name": Categorical(('a "quoted", one', None)),
    }
    # Three by default, and more than there are is all that did not diverge.
    assert mixed.narrowed() == mixed.narrowed(best=3) == mixed.narrowed(best=99)
    with pytest.raises(ValueError, match=r"Sweep\.narrowed: best must be an integer >= 1"):
        mixed.narrowed(best=0)


def test_a_narrowed_space_is_searched_on(forty):
    narrower = forty.narrowed()
    whole, part = forty.space["learning_rate"], narrower["learning_rate"]
    assert whole.low <= part.low < part.high <= whole.high
    assert part != whole
    assert part.low <= forty.best.values["learning_rate"] <= part.high


# Defaults


def test_steps_and_evaluations_are_the_tasks_or_ten_or_thirty_where_rungs_lie_on_them():
    found = sweep(bowl(), optlab.sgd, RATES, trials=1, lanes=1)
    assert found.trials[0].steps.tolist() == [0, 4, 8, 12]
    found = sweep(bowl(eval_every=None), optlab.sgd, RATES, trials=1, lanes=1, steps=61)
    assert found.trials[0].steps.tolist() == [*range(0, 61, 7), 61]
    options = {"trials": 1, "lanes": 1, "steps": 61, "halving": 2}
    found = sweep(bowl(eval_every=None), optlab.sgd, RATES, **options)
    assert found.trials[0].steps.tolist() == [*range(0, 61, 3), 61]
    assert found.split is None
    assert found.search == "random"
    assert found.seconds > 0


@pytest.mark.parametrize("search", ["random", "halton"])
def test_another_seed_is_another_sweep(search):
    options = {"trials": 3, "steps": 1, "lanes": 3, "search": search}
    rates = [
        [
            trial.values["learning_rate"]
            for trial in sweep(bowl(), optlab.sgd, RATES, seed=seed, **options).trials
        ]
        for seed in (0, 1)
    ]
    assert not set(rates[0]) & set(rates[1])


def test_a_progress_bar_is_on_stderr_alone(capsys):
    sweep(bowl(), optlab.sgd, RATES, trials=5, lanes=2, halving=2, steps=4, progress=True)
    assert capsys.readouterr().out == ""


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "sweep: trials must be an integer >= 1, got trials=0"),
        ({"trials": 2.0}, "sweep: trials must be an integer >= 1"),
        ({"search": "Halton"}, "sweep: search must be one of .*; did you mean 'halton'"),
        ({"seed": -1}, "sweep: seed must be an integer >= 0"),
        ({"seed": 2**31 - 1, "seeds": 2}, "sweep: the last of seeds must be below 2\\*\\*31"),
        ({"seeds": 0}, "sweep: seeds must be an integer >= 1"),
        ({"steps": 0}, "sweep: steps must be an integer >= 1"),
        ({"eval_every": 0}, "sweep: eval_every must be an integer >= 1"),
        ({"halving": 1}, "sweep: halving must be an integer >= 2"),
        ({"halving": 2, "search": "bayes"}, "sweep: halving must be None with search='bayes'"),
        ({"lanes": 0}, "sweep: lanes must be an integer >= 1"),
        ({"memory": 0}, "sweep: memory must be finite and > 0"),
        ({"storage": "sqlite://"}, "sweep: storage must be None unless search='bayes'"),
        (
            {"storage": "sqlite://", "search": "bayes", "results": "x"},
            "sweep: results must be None with storage, got 'x'",
        ),
        ({"callbacks": print}, "sweep: callbacks must be a list of functions"),
        ({"callbacks": [1]}, "sweep: callbacks must be a list of functions"),
        ({"space": {}}, "sweep: space must name at least one hyperparameter"),
        (
            {"space": {"learning_rate": (1e-3, 1.0)}},
            "sweep: space\\['learning_rate'\\] must be a Log",
        ),
        ({"optimizer": optlab.sgd(0.1)}, "sweep: optimizer must be a function of hyperparameters"),
        ({"optimizer": "adam"}, "sweep: optimizer must be a function of hyperparameters"),
        ({"optimizer": lambda learning_rate: 1}, "sweep: optimizer must return an optax.Gradient"),
        ({"task": None}, "sweep: task must be a Task, or a function that returns one, got None"),
        ({"task": lambda: 1}, "sweep: task must return a Task, got 1"),
        (
            {"space": {"rate": LogUniform(1.0, 2.0), **RATES}},
            "sweep: space must name arguments of optimizer or task, got rate; optimizer takes "
            "learning_rate, .*momentum",
        ),
        (
            {"task": lambda width: bowl()},
            "sweep: space must have width, a required argument of task, got learning_rate;",
        ),
        (
            {"optimizer": lambda learning_rate, b1: optlab.adam(learning_rate, b1=b1)},
            "sweep: space must have b1, a required argument of optimizer",
        ),
        (
            {"space": {"learning_rate": Categorical((0.1, 0.2))}, "search": "grid", "trials": 1},
            "sweep: trials must be at least 2, one for each combination of choices, got trials=1",
        ),
        ({"task": bowl(score="nothing")}, "sweep: Task.evaluate must return 'nothing'"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"task": bowl(), "optimizer": optlab.sgd, "space": RATES, "trials": 2} | changes
    task, optimizer, space = (arguments.pop(name) for name in ("task", "optimizer", "space"))
    with pytest.raises(ValueError, match=message):
        sweep(task, optimizer, space, **arguments)


def test_a_callbacks_error_ends_the_sweep_at_once():
    calls = []

    def callback(trial):
        calls.append(trial.number)
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        sweep(bowl(), optlab.sgd, RATES, trials=64, lanes=1, callbacks=[callback])
    assert len(calls) == 1


# Bayesian search


def test_bayesian_search_learns_and_is_the_same_however_long():
    pytest.importorskip("optuna")
    options = {"search": "bayes", "lanes": 4, "steps": 6}
    found = sweep(bowl(), optlab.sgd, RATES, trials=16, **options)
    shorter = sweep(bowl(), optlab.sgd, RATES, trials=6, **options)
    assert [trial.number for trial in found.trials] == list(range(16))
    for trial, other in zip(shorter.trials, found.trials, strict=False):
        assert_same(trial, other)
    early, late = (
        np.median([abs(np.log(trial.values["learning_rate"])) for trial in part])
        for part in (found.trials[:8], found.trials[8:])
    )
    assert late < early  # a rate of 1 goes to the bottom at once


def test_a_storage_is_shared_and_continued(tmp_path):
    pytest.importorskip("optuna")
    options = {
        "search": "bayes",
        "storage": f"sqlite:///{tmp_path}/study.db",
        "lanes": 2,
        "steps": 2,
    }
    told = []
    first = sweep(bowl(), optlab.sgd, RATES, trials=3, callbacks=[told.append], **options)
    assert [trial.number for trial in first.trials] == [0, 1, 2] == [t.number for t in told]
    both = sweep(bowl(), optlab.sgd, RATES, trials=5, callbacks=[told.append], **options)
    assert len(both.trials) == len(told) == 5
    for trial, other in zip(first.trials, both.trials, strict=False):
        assert_same(trial, other)
    assert both.missing == 0
    # Another sweep has a study of its own in the same storage.
    other = sweep(bowl(), optlab.sgd, RATES, trials=2, seed=1, **options)
    assert [trial.number for trial in other.trials] == [0, 1]
    assert other.trials[0].values != both.trials[0].values


def test_a_sweep_whose_trials_others_still_run_says_so():
    found = dataclasses.replace(sweep(bowl(), optlab.sgd, RATES, trials=1), trials=[], missing=3)
    assert "3 more trials still run elsewhere." in found.table()
    for ask in (lambda: found.best, found.narrowed, found.plot):
        with pytest.raises(ValueError, match="there must be a trial, got none; call sweep again"):
            ask()


def test_halving_narrows_around_several_trials_though_one_alone_is_complete():
    space = {**RATES, "kind": Categorical(("a", "b"), traced=False)}

    def optimizer(learning_rate, kind):
        return optlab.sgd(learning_rate)

    options = {"trials": 9, "halving": 3, "steps": 9, "eval_every": 1, "search": "halton"}
    found = sweep(bowl(), optimizer, space, **options)
    assert sum(trial.status == "complete" for trial in found.trials) == 1
    best = found.ranked()[:3]
    narrower = found.narrowed()
    for trial in best:
        low, high = (getattr(narrower["learning_rate"], end) for end in ("low", "high"))
        assert low <= trial.values["learning_rate"] <= high
    assert set(narrower["kind"].choices) == {trial.values["kind"] for trial in best}


def test_numpys_integers_are_integers():
    counts = {name: np.int64(2) for name in ("trials", "steps", "seeds", "lanes", "seed")}
    assert len(sweep(bowl(), optlab.sgd, RATES, **counts).trials) == 2


# Float64


@pytest.mark.slow
def test_float64_is_swept_in_float64(tmp_path):
    script = """
        import jax.numpy as jnp, numpy as np, optlab
        from optlab.lab import Integer, LogUniform, Task, sweep
        task = Task(
            name="bowl", init=lambda key: (jnp.ones(2), ()),
            loss=lambda x, state, batch, key: (jnp.sum(x**2), state), batch=lambda key, step: (),
            evaluate=lambda x, state, data: {"loss": jnp.sum(x**2)}, steps=6, eval_every=2)
        space = {"learning_rate": LogUniform(1e-3, 0.1), "often": Integer(1, 2, traced=True)}
        make = lambda learning_rate, often: optlab.sgd(learning_rate * often)
        options = dict(trials=6, halving=2, lanes=2, results="r.db")
        found = sweep(task, make, space, **options)
        again = sweep(task, make, space, **options)
        for trial, other in zip(found.trials, again.trials, strict=True):
            assert trial.validation["loss"].dtype == trial.train_loss.dtype == np.float64
            assert other.validation["loss"].dtype == other.train_loss.dtype == np.float64
            np.testing.assert_array_equal(trial.validation["loss"], other.validation["loss"])
            rate = trial.values["learning_rate"] * trial.values["often"]
            expected = 2 * (1 - 2 * rate) ** (2 * trial.steps)
            np.testing.assert_allclose(trial.validation["loss"][0], expected, rtol=1e-13)
    """
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# Values that are refused


def adamw_of(learning_rate=0.01, b1=0.9, weight_decay=0.0):
    return optlab.adamw(learning_rate, b1=b1, weight_decay=weight_decay)


def with_dropout(dropout):
    """Return a task that refuses a dropout where it makes its model, as a layer of Flax does."""

    def init(key):
        optlab.lab.tasks.dropout(dropout, rngs=nnx.Rngs(0))
        return jnp.ones(3), ()

    return bowl(init=init)


@pytest.mark.parametrize(
    ("task", "optimizer", "space", "message"),
    [
        (None, adamw_of, {"b1": Uniform(0.9, 1.5)}, "b1=1.5, which is refused (adamw: b1 must be"),
        (None, adamw_of, {"weight_decay": Uniform(-5.5, -0.5)}, "weight_decay=-5.5, which is ref"),
        (None, adamw_of, {"learning_rate": Uniform(-1.5, 1.5)}, "learning_rate=-1.5, which is re"),
        (None, optlab.sgd, {"learning_rate": Uniform(-1.5, 1.5)}, "learning_rate=-1.5, which is"),
        (None, adamw_of, {"b1": Categorical([0.5, 1.0])}, "b1=1.0, which is refused"),
        (
            None,
            lambda learning_rate, nesterov: optlab.sgd(
                learning_rate, momentum=0.9, nesterov=nesterov
            ),
            {"learning_rate": Uniform(0.0, 1.0), "nesterov": Categorical([True, "no"])},
            "nesterov='no', which is refused (sgd: nesterov must be",
        ),
        (
            None,
            lambda warmup, decay: optlab.sgd(1 - warmup - decay),
            {"warmup": Uniform(0.0, 0.6), "decay": Uniform(0.0, 0.6)},
            "warmup=0.6, decay=0.6, which is refused",
        ),
        (
            with_dropout,
            lambda: optlab.sgd(0.1),
            {"dropout": Uniform(0.0, 1.2)},
            "dropout=1.2, which is refused (dropout: rate must be in [0, 1)",
        ),
    ],
)
def test_a_sweep_refuses_before_it_trains_what_is_refused_later(task, optimizer, space, message):
    with pytest.raises(ValueError, match=r"^sweep: space\['\w+'\].* must hold only") as error:
        sweep(task or bowl(loss=pytest.fail), optimizer, space, trials=2, steps=2)
    assert message in str(error.value)


def test_functions_that_want_python_numbers_are_no_reason_to_refuse():
    rates = {0.1: 0.1, 0.2: 0.2}
    space = {"learning_rate": Categorical((0.1, 0.2))}
    trials = sweep(bowl(), lambda learning_rate: optlab.sgd(rates[learning_rate]), space, trials=2)
    assert {trial.status for trial in trials.trials} == {COMPLETE}
