"""Checkpoints: which run they belong to, that they are sound and whole, and where they may be."""

import dataclasses
import functools
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optlab
from helpers import assert_same_bits
from optlab import groups
from optlab._facts import DIGESTED_BYTES, described
from optlab._identity import identity, transformation
from optlab._paths import file_of, folder_of, make_folder
from optlab.lab import Task, shuffled_batches, train
from optlab.lab.training._checkpoints import Checkpoints, soundness

KEY = jax.random.key(3)
S = optlab.schedules
SCALE = 2.0


# Which optimizer


def threshold_mask(dimensions):
    return lambda params: jax.tree.map(lambda x: x.ndim > dimensions, params)


def doubled(limit):
    """Return a transformation of the user's own."""

    def update(updates, state, params=None):
        return jax.tree.map(lambda x: jnp.clip(SCALE * x, -limit, limit), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class Halving:
    """A schedule that is an object."""

    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start * 0.5**step


def in_groups(rate, head="b"):
    rules = [(head, groups.group(optlab.sgd(rate), name="head")), ("c", optlab.sgd(0.1))]
    rules += [] if "w" in head else [("w", optlab.adam(0.1))]
    return groups.partition({"w": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}, rules)


MASK = {"w": True, "b": False}

OPTIMIZERS = {
    "a rate": (optlab.sgd(0.1), optlab.sgd(0.2), "learning_rate"),
    "a rate for a schedule": (optlab.sgd(0.1), optlab.sgd(S.cosine(0.1, 20)), "learning_rate"),
    "a schedule": (optlab.sgd(S.cosine(0.1, 20)), optlab.sgd(S.cosine(0.1, 40)), "learning_rate"),
    "a formula": (
        optlab.sgd(lambda step: 0.1 * 0.9**step),
        optlab.sgd(lambda step: 0.1 * 0.8**step),
        "learning_rate",
    ),
    "an object": (optlab.sgd(Halving(0.1)), optlab.sgd(Halving(0.2)), "learning_rate"),
    "a partial": (
        optlab.sgd(functools.partial(pow, 0.9)),
        optlab.sgd(functools.partial(pow, 0.8)),
        "learning_rate",
    ),
    "a decay": (optlab.adamw(0.1), optlab.adamw(0.1, weight_decay=0.1), "weight_decay"),
    "an option": (
        optlab.sgd(0.1, momentum=0.9),
        optlab.sgd(0.1, momentum=0.9, nesterov=True),
        "scale_by_momentum.nesterov",
    ),
    "a mask": (
        optlab.adamw(0.1, mask=threshold_mask(0)),
        optlab.adamw(0.1, mask=threshold_mask(1)),
        "add_decayed_weights.mask",
    ),
    "a mask's code": (
        optlab.adamw(0.1, mask=lambda params: jax.tree.map(lambda x: x.ndim > 0, params)),
        optlab.adamw(0.1, mask=lambda params: jax.tree.map(lambda x: x.ndim >= 0, params)),
        "add_decayed_weights.mask",
    ),
    "a mask that is a tree": (
        optax.masked(optlab.sgd(0.1), MASK),
        optax.masked(optlab.sgd(0.1), {**MASK, "b": True}),
        "masked.mask",
    ),
    "Optax's rate": (optax.sgd(0.1), optax.sgd(0.2), "scale.step_size"),
    "Optax's schedule": (
        optax.sgd(optax.cosine_decay_schedule(0.1, 20)),
        optax.sgd(optax.cosine_decay_schedule(0.1, 40)),
        "cosine_decay_schedule.decay_steps",
    ),
    "Optax's mask": (
        optax.adamw(0.1, mask=threshold_mask(0)),
        optax.adamw(0.1, mask=threshold_mask(1)),
        "masked.mask",
    ),
    "an injected rate": (
        optax.inject_hyperparams(optax.adam)(0.1),
        optax.inject_hyperparams(optax.adam)(0.2),
        "learning_rate",
    ),
    "steps between updates": (
        optax.MultiSteps(optlab.sgd(0.1), 2),
        optax.MultiSteps(optlab.sgd(0.1), 4),
        "MultiSteps.every_k_schedule",
    ),
    "labels": (
        optax.partition({"x": optlab.sgd(0.1), "y": optlab.sgd(0.2)}, {"w": "x", "b": "y"}),
        optax.partition({"x": optlab.sgd(0.1), "y": optlab.sgd(0.2)}, {"w": "y", "b": "x"}),
        "partition.param_labels",
    ),
    "a group": (in_groups(0.1), in_groups(0.2), "head/learning_rate"),
    "members of groups": (in_groups(0.1), in_groups(0.1, head="w|b"), "groups"),
    "a number of one's own": (doubled(1.0), doubled(2.0), "doubled.limit"),
    "no state but a clip": (
        optax.sgd(0.1),
        optax.chain(optax.clip(1.0), optax.sgd(0.1)),
        "tx",
    ),
}


@pytest.mark.parametrize(("one", "other", "name"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_differ_in_the_fact_that_was_changed(one, other, name):
    facts, others = transformation(one), transformation(other)
    differ = {n for n in facts | others if facts.get(n) != others.get(n)}
    assert name in differ
    if name not in ("tx", "groups"):
        assert differ == {name}


def test_a_schedule_is_known_by_what_it_closes_over():
    def joined(factor):
        return S.join([S.cosine(0.1, 5), lambda step: factor * step], [5])

    first, second, third = (described(joined(factor)) for factor in (1, 2, 2))
    assert first != second == third
    assert " at 0x" not in first


def test_a_global_number_that_a_function_reads_is_a_fact(monkeypatch):
    before = transformation(doubled(1.0))
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    after = transformation(doubled(1.0))
    assert {name for name in before if before[name] != after[name]} == {"doubled.SCALE"}


def test_a_rate_is_the_number_in_the_state_whatever_its_type():
    rates = [0.1, np.float64(0.1), np.float32(0.1), jnp.float32(0.1), jnp.array([0.1])]
    assert {transformation(optlab.sgd(rate))["learning_rate"] for rate in rates} == {0.1}


def facts_of_all():
    """Return the facts of all optimizers above, and of a run, as JSON."""
    facts = {
        name: [transformation(one), transformation(other)]
        for name, (one, other, _) in OPTIMIZERS.items()
    }
    return json.dumps([facts, identity(linear(), optlab.sgd(0.1), KEY, {"grid": {"b", "a"}})])


def test_facts_are_the_same_in_another_process():
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    path = os.pathsep.join([*folders, *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", "import test_checkpoints as t; print(t.facts_of_all())"],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.strip() == facts_of_all(), ended.stderr


# Which task


X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def linear(data=X, batch_size=4, scale=1.0, loss=None, **changes):
    """Return the task of making a sum of columns 0."""
    records = []

    def default(w, state, batch, key):
        records.append(batch)
        return scale * jnp.sum((batch @ w) ** 2), state

    return Task(
        **{
            "name": "linear",
            "init": lambda key: (jnp.ones(3), ()),
            "loss": loss or default,
            "batch": shuffled_batches(data, batch_size),
            "evaluate": lambda w, state, data: {"loss": jnp.sum((data @ w) ** 2)},
            "splits": {"validation": X},
            **changes,
        }
    )


def changed_row(row):
    data = X.copy()
    data[row] += 1
    return data


def changes(task):
    one, other = (identity(t, optlab.sgd(0.1), KEY, {}) for t in (linear(), task))
    return {name for name in one | other if one.get(name) != other.get(name)}


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (linear(), set()),
        (linear(batch_size=3), {"batch_size"}),
        (linear(data=changed_row(5)), {"data"}),
        (linear(splits={"validation": changed_row(5)}), {"splits['validation']"}),
        (linear(scale=2.0), {"loss.scale"}),
        (linear(name="quadratic"), {"task"}),
        (linear(score="error"), {"score"}),
    ],
    ids=["the same", "batch size", "data", "split", "a number of the loss", "name", "score"],
)
def test_tasks_differ_in_the_fact_that_was_changed(task, names):
    assert changes(task) == names


def test_the_code_of_a_loss_and_what_it_records_are_no_facts():
    def edited(loss_of, scale, records):
        def loss(w, state, batch, key):
            return loss_of(scale, records, batch @ w), state

        return linear(loss=loss)

    one = edited(lambda scale, records, x: jnp.sum(x**2) * scale, 1.0, [])
    other = edited(lambda scale, records, x: scale * jnp.sum(x * x), 1.0, [1, 2])
    facts = [identity(task, optlab.sgd(0.1), KEY, {}) for task in (one, other)]
    assert facts[0] == facts[1]
    assert facts[0]["loss.scale"] == 1.0


def test_a_batch_of_ones_own_is_known_by_its_shapes_and_variables():
    def batch_of(size):
        return lambda key, step: jax.random.normal(jax.random.fold_in(key, step), (size, 3))

    facts = identity(linear(batch=batch_of(5)), optlab.sgd(0.1), KEY, {})
    assert facts["batch"] == "float32[5, 3]"
    assert facts["batch.size"] == 5
    assert changes(linear(batch=batch_of(5))) == {"batch", "batch.size", "batch_size", "data"}


def test_a_loader_is_known_by_what_it_says_of_itself():
    class Loader:
        batch_size, drop_last = 32, True

    facts = identity(linear(batch=None, loader=Loader()), optlab.sgd(0.1), KEY, {})
    assert facts["batch_size"] == 32
    assert facts["drop_last"] is True


def test_functions_that_yield_data_are_known_by_what_they_close_over_but_not_by_their_records():
    def data_of(scale, records):
        def rows():
            records.append(len(records))
            yield scale * X

        return rows

    def task(scale, records):
        rows = data_of(scale, records)
        return linear(batch=None, loader=rows, splits={"validation": rows})

    facts, longer, other = (
        identity(task(*made), optlab.sgd(0.1), KEY, {}) for made in ((1, []), (1, [0]), (2, []))
    )
    assert facts == longer
    assert facts["loader"] == "rows"
    differ = {name for name in facts if facts[name] != other[name]}
    assert differ == {"loader.scale", "splits['validation'].scale"}


def test_devices_are_no_facts():
    def task(place):
        def init(key):
            return jax.device_put(jnp.ones(3), place), ()

        return linear(init=init)

    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    places = (None, jax.devices()[1], NamedSharding(mesh, PartitionSpec()))
    some, *others = (identity(task(place), optlab.sgd(0.1), KEY, {}) for place in places)
    assert all(other == some for other in others)


def test_of_a_large_array_rows_all_over_it_are_digested():
    rows = 2 * DIGESTED_BYTES // 40  # of ten numbers: every second one is digested
    large = np.ones((rows, 10), np.float32)
    text = described(large)
    assert text == described(jnp.asarray(large)) == described(np.asfortranarray(large))
    large[-1, 3] = 0
    assert described(large) != text
    flat = np.ones(DIGESTED_BYTES, np.float32)[None]
    text = described(flat)
    flat[0, -1] = 0
    assert described(flat) != text


def test_objects_have_no_addresses_and_cycles_end():
    cycle = []
    cycle.append(cycle)
    facts = described([object(), cycle, np.array([object()]), len, jnp.float32, float("nan")])
    assert facts == "[object, […], object[1], len, float32, nan]"


# Whole and sound


LIKE = {"w": jnp.zeros(3), "key": jax.random.key(0), "empty": jnp.zeros((0, 2))}


def state_at(step):
    return {**LIKE, "w": jnp.full(3, float(step)), "key": jax.random.key(step)}


@pytest.fixture
def open_in(tmp_path):
    """A function that opens the checkpoints of the test's run, and closes those before."""
    opened = []

    def open_(facts=None, **options):
        for checkpoints in opened:
            checkpoints.close()
        opened.append(Checkpoints("train", tmp_path / "run", facts or {}, **options))
        return opened[-1]

    yield open_
    opened[-1].close()


def save(checkpoints, *steps, **options):
    for step in steps:
        checkpoints.save(step, state_at(step), {}, **{"sound": True, **options})


def test_all_that_was_saved_comes_back(open_in):
    extra = {"place": b"\0\xff", "way": {"lanes": 3, "fast": True}, "nothing": None}
    curves = {"loss": np.arange(4.0), "train/loss": np.zeros(0, np.float32)}
    assert open_in().save(4, state_at(4), curves, sound=True, extra=extra)
    restored = open_in().restore(LIKE)
    assert restored.step == 4
    assert_same_bits(restored.state, state_at(4))
    assert restored.extra == extra
    assert restored.taken_over == {}
    assert [*restored.curves] == [*curves]
    for name, curve in curves.items():
        np.testing.assert_array_equal(restored.curves[name], curve, strict=True)


def test_there_is_nothing_to_restore_in_a_new_folder(open_in):
    assert open_in().restore(LIKE) is None


def test_as_many_are_kept_as_asked_for_and_none_that_is_not_sound(open_in):
    checkpoints = open_in(keep=2)
    save(checkpoints, 1, 2, 3)
    assert not checkpoints.save(4, state_at(4), {}, sound=False)
    assert checkpoints.steps == [2, 3]
    assert open_in(keep=2).restore(LIKE).step == 3


@pytest.mark.parametrize("keep", [0, 1.5])
def test_less_than_one_cannot_be_kept(open_in, keep, tmp_path):
    with pytest.raises(ValueError, match=f"^train: keep must be an integer >= 1, got keep={keep}"):
        Checkpoints("train", tmp_path, {}, keep=keep)
    open_in()


def test_who_goes_on_from_an_earlier_update_loses_the_later_ones_with_the_next_checkpoint(open_in):
    save(open_in(keep=4), 1, 2, 3)
    checkpoints = open_in(keep=4)
    assert float(checkpoints.restore(LIKE, step=1).state["w"][0]) == 1
    assert checkpoints.steps == [1, 2, 3]
    save(checkpoints, 2)
    assert checkpoints.steps == [1, 2]
    with pytest.raises(ValueError, match=r"^train: the update to go on from .*, 1, 2, got 3$"):
        checkpoints.restore(LIKE, step=3)


@pytest.mark.parametrize(
    ("state", "sound"),
    [
        ({"w": jnp.ones(2), "best": jnp.array(jnp.inf), "count": jnp.int32(1)}, True),
        ({"w": jnp.array([1, jnp.nan]), "best": jnp.array(1.0), "count": jnp.int32(1)}, False),
        ({"w": jnp.array([1, -jnp.inf]), "best": jnp.array(1.0), "count": jnp.int32(1)}, False),
    ],
)
def test_sound_is_what_was_finite_at_the_start_and_still_is(state, sound):
    at_start = {"w": jnp.zeros(2), "best": jnp.array(jnp.inf), "count": jnp.int32(0)}
    assert soundness(at_start)(state) is sound


def test_without_floating_point_numbers_all_is_sound():
    assert soundness({"count": jnp.int32(0)})({"count": jnp.int32(1)})


@pytest.mark.parametrize(
    ("handler", "method"),
    [
        (ocp.StandardCheckpointHandler, "async_save"),
        (ocp.StandardCheckpointHandler, "finalize"),
        (ocp.JsonCheckpointHandler, "finalize"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_an_interruption_while_one_is_written_leaves_the_last_one(
    open_in, monkeypatch, handler, method
):
    checkpoints = open_in()
    save(checkpoints, 1)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(handler, method, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 2)
    gc.collect()  # what Orbax did not await is collected here, where the warning is expected
    checkpoints = open_in()
    assert checkpoints.steps == [1]
    assert_same_bits(checkpoints.restore(LIKE).state, state_at(1))
    save(checkpoints, 2)
    assert checkpoints.steps == [2]


@pytest.mark.parametrize(("signals", "steps"), [(1, [2]), (2, [1])])
def test_a_signal_waits_until_one_is_written_but_not_a_second_one(
    open_in, monkeypatch, signals, steps
):
    checkpoints = open_in()
    save(checkpoints, 1)
    finalize = ocp.JsonCheckpointHandler.finalize

    def interrupted(*args):
        for _ in range(signals):
            signal.raise_signal(signal.SIGINT)
        finalize(*args)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.JsonCheckpointHandler, "finalize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert open_in().steps == steps


def test_a_damaged_one_says_from_where_to_go_on_without_it(open_in, tmp_path):
    save(open_in(keep=2), 1, 2)
    path = tmp_path / "run" / "2" / "state" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        ValueError, match=r"run/2 must be .* whole .*; remove it to go on from .* 1$"
    ):
        open_in(keep=2).restore(LIKE)


def test_one_of_another_format_is_refused(open_in, tmp_path):
    save(open_in(), 1)
    path = tmp_path / "run" / "1" / "about" / "metadata"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(ValueError, match=r"^train: .*run/1 must be of format 2, got 99; pass"):
        open_in().restore(LIKE)


@pytest.mark.parametrize("spec", [PartitionSpec("d"), PartitionSpec()], ids=["split", "copied"])
def test_it_is_restored_to_the_devices_of_the_run(open_in, spec):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    here = jax.device_put(jnp.arange(4.0), jax.devices()[0])
    there = jax.device_put(here, NamedSharding(mesh, spec))
    open_in().save(1, {"w": here}, {}, sound=True)
    restored = open_in().restore({"w": jnp.zeros_like(there)}).state["w"]
    assert restored.sharding.is_equivalent_to(there.sharding, 1)
    np.testing.assert_array_equal(restored, here)
    checkpoints = open_in()
    checkpoints.save(2, {"w": restored}, {}, sound=True)
    again = open_in().restore({"w": jnp.zeros_like(here)}).state["w"]
    assert again.sharding == here.sharding
    np.testing.assert_array_equal(again, here)


# Refused, or taken over


def test_all_that_differs_is_named(open_in):
    save(open_in({"task": "a", "learning_rate": 0.1, "loss.scale": 1}), 1)
    checkpoints = open_in({"task": "a", "learning_rate": 0.2, "loss.scale": 2, "loss.new": None})
    with pytest.raises(ValueError, match=r"^train: learning_rate must be .*, 0.1, got") as caught:
        checkpoints.restore(LIKE)
    assert "learning_rate=0.2 (and others: loss.scale, loss.new); pass" in str(caught.value)
    with pytest.raises(ValueError, match=r"loss.scale must be that .* 1, got loss.scale=2 \("):
        checkpoints.restore(LIKE, take_over={"learning_rate"})
    with pytest.raises(ValueError, match=r"loss.new must be .*, not there, got loss.new=None; "):
        checkpoints.restore(LIKE, take_over=["learning_rate", "loss.scale"])
    restored = checkpoints.restore(LIKE, take_over=["learning_rate", "loss"])
    assert restored.taken_over["learning_rate"] == (0.1, 0.2)
    assert checkpoints.restore(LIKE, take_over=True).taken_over == restored.taken_over
    with pytest.raises(ValueError, match="learning_rate must be that"):
        checkpoints.restore(LIKE, take_over="rate")


def test_what_was_taken_over_is_that_of_the_next_checkpoint(open_in):
    save(open_in({"learning_rate": 0.1}), 1)
    checkpoints = open_in({"learning_rate": 0.2})
    checkpoints.restore(LIKE, take_over="learning_rate")
    save(checkpoints, 2)
    assert open_in({"learning_rate": 0.2}).restore(LIKE).step == 2


def test_another_layout_is_never_taken_over(open_in):
    save(open_in(), 1)
    with pytest.raises(ValueError, match=r"^train: state\['w'\] must be as .*float32\[3\], got fl"):
        open_in().restore({**LIKE, "w": jnp.zeros(4)}, take_over=True)


def adamw(**options):
    return optlab.adamw(**{"learning_rate": 0.1, **options})


def injected(**options):
    return optax.chain(optax.inject_hyperparams(optax.adamw)(**{"learning_rate": 0.1, **options}))


@pytest.mark.parametrize("make", [adamw, injected])
def test_a_hyperparameter_that_is_taken_over_is_in_force_and_others_stay(open_in, make):
    def of(state):
        if make is adamw:
            return {name: float(x) for name, x in optlab.hyperparams(state).items()}
        return {name: float(x) for name, x in state[0].hyperparams.items()}

    params = jnp.ones(3)
    first, second = make(weight_decay=0.01), make(weight_decay=0.5)
    state = first.init(params)
    if make is adamw:
        state = optlab.replace_hyperparams(state, learning_rate=0.025)
    else:
        state[0].hyperparams["learning_rate"] = jnp.float32(0.025)
    _, state = jax.jit(first.update)(jnp.ones(3), state, params)
    open_in(transformation(first)).save(1, {"opt": state}, {}, sound=True)
    checkpoints = open_in(transformation(second))
    like = {"opt": second.init(params)}
    with pytest.raises(ValueError, match=r"^train: weight_decay must be .* 0.01, got weight_dec"):
        checkpoints.restore(like)
    restored = checkpoints.restore(like, take_over="weight_decay").state["opt"]
    assert of(restored)["weight_decay"] == 0.5
    # Replaced while the first run went on, and not changed by the arguments of the second.
    assert of(restored)["learning_rate"] == np.float32(0.025)
    updates, after = jax.jit(second.update)(jnp.zeros(3), restored, params)
    assert of(after)["weight_decay"] == 0.5
    assert of(after)["learning_rate"] == np.float32(0.025)
    # The moments are those of the first run: after a gradient of 1 and one of 0.
    unchanged, _ = jax.jit(first.update)(jnp.zeros(3), state, params)
    np.testing.assert_allclose(updates - unchanged, -0.025 * 0.49, rtol=1e-5)  # a few roundings


def test_a_schedule_takes_over_from_a_constant(open_in):
    first, second = optlab.sgd(0.1), optlab.sgd(S.cosine(0.4, 40))
    open_in(transformation(first)).save(1, {"opt": first.init(jnp.ones(3))}, {}, sound=True)
    like = {"opt": second.init(jnp.ones(3))}
    restored = open_in(transformation(second)).restore(like, take_over="learning_rate")
    assert_same_bits(restored.state, like)


# `train`


def exploding():
    """Return a task whose loss is NaN at update 5 alone."""

    def loss(x, state, batch, key):
        return jnp.sum(x**2) * jnp.where(batch == 5, jnp.nan, 1.0), state

    return Task(
        name="exploding",
        init=lambda key: (jnp.ones(3), ()),
        loss=loss,
        batch=lambda key, step: step,
        evaluate=lambda x, state, data: {"loss": jnp.sum(x**2)},
    )


def test_parameters_that_are_not_finite_never_replace_sound_ones(tmp_path):
    options = {"steps": 8, "key": KEY, "eval_every": 2, "checkpoints": tmp_path}
    for _ in range(2):  # the second goes on from update 4, and comes to the same end
        run = train(exploding(), optlab.sgd(0.1), **options)
        assert run.reason == "the loss was not finite at update 6"
        assert [path.name for path in tmp_path.iterdir()] == ["4"]
    healed = dataclasses.replace(exploding(), batch=lambda key, step: 0 * step)
    run = train(healed, optlab.sgd(0.1), **options)
    assert run.reason == "all updates done"
    np.testing.assert_allclose(run.params, 0.8**8, rtol=1e-6)  # eight roundings


# Paths


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert folder_of("train", "checkpoints", "~/runs") == tmp_path / "runs"
    assert folder_of("train", "checkpoints", Path("~")) == tmp_path
    assert file_of("sweep", "results", "runs/a.db") == tmp_path / "runs" / "a.db"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (3, "folder must be a folder, got 3; pass a str or pathlib.Path"),
        ("", "folder must be a folder, got ''; pass"),
        (b"runs", "folder must be a folder, got b'runs'; pass"),
        ("a\0b", r"folder must be a folder, got 'a\\x00b'; pass"),
        ("s3://b/run", "folder must be a folder on this machine or an .*gs://, got 's3://b/run'$"),
        (Path("gs://b/run"), "folder must .*, got 'gs:/b/run'; an address has two slashes, which"),
        ("~nobody-of-this-name/run", "folder must be .*, got '~nobody-.*', whose home folder is"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(path, message):
    with pytest.raises(ValueError, match=f"^train: {message}"):
        folder_of("train", "folder", path, ["gs://"])


def test_an_address_is_no_file():
    with pytest.raises(
        ValueError, match=r"^sweep: results must be a file on this machine, got 'gs:"
    ):
        file_of("sweep", "results", "gs://bucket/results.db")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"^train: folder must be .* written, got .*file/run: Not a"
    ):
        make_folder("train", "folder", tmp_path / "file" / "run")


@pytest.mark.parametrize("module", ["gcsfs", "s3fs"])
def test_a_bucket_without_its_library_is_refused_in_a_line(monkeypatch, tmp_path, module):
    monkeypatch.chdir(tmp_path)
    for name in ("gcsfs", "s3fs", "tensorflow"):
        monkeypatch.setitem(sys.modules, name, None)
    address = {"gcsfs": "gs://bucket/run", "s3fs": "s3://bucket/run"}[module]
    with pytest.raises(ValueError, match=f"^train: checkpoints must be .*{address}") as caught:
        Checkpoints("train", address, {})
    assert "\n" not in str(caught.value)
    if module == "gcsfs":
        assert "Please install gcsfs" in str(caught.value)
    assert [*tmp_path.iterdir()] == []
