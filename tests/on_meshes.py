"""Runs on meshes, for `test_meshes.py`: a task, its loader, and two programs.

    python on_meshes.py eight

trains on eight devices in many layouts and in lanes, compares with one device, and exits with 1 if
any differs.

    python on_meshes.py process RANK PORT FOLDER

is one of two processes that train together, which go on once from the checkpoint in FOLDER.
"""

import dataclasses
import re
import sys
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from helpers import numbers
from optlab.lab import (
    EarlyStopping,
    LogUniform,
    Task,
    compare,
    lr_range_test,
    shuffled_batches,
    sweep,
    train,
)
from optlab.lab.training._loop import run_keys
from optlab.lab.training._run import RunLoop
from optlab.lab.training._sharding import Sharding


def key():  # no constant, which would start JAX before a program says how many devices it has
    return jax.random.key(3)


RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(32, 4)).astype(np.float32)
TARGETS = INPUTS @ np.arange(4, dtype=np.float32)
SIZE = 8
"""Examples of a batch."""

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
GATHERS = re.compile(r" (all-gather|all-to-all|collective-permute)(?:-start)?\(")


def rows(i):
    return INPUTS[i * SIZE :][:SIZE], TARGETS[i * SIZE :][:SIZE]


def loader():
    return (rows(i) for i in range(4))


def task(place=lambda params: params, **changes):
    """Return the task of fitting a small network that normalizes its inputs.

    Args:
        place: puts the parameters where they are to lie.
        changes: what differs, such as a loader.
    """

    def init(key):
        params = {
            "w": numbers(key, 0, 64).reshape(4, 16) - 0.5,
            "b": jnp.zeros(16),
            "head": numbers(key, 1, 16) - 0.5,
        }
        return place(params), {"mean": jnp.zeros(4), "seen": jnp.int32(0), "key": key}

    def predict(params, inputs):
        return jnp.sum(jnp.tanh(inputs @ params["w"] + params["b"]) * params["head"], axis=-1)

    def loss(params, state, batch, key):
        inputs, targets = batch
        mean = 0.9 * state["mean"] + 0.1 * jnp.mean(inputs, axis=0)
        state = {**state, "mean": mean, "seen": state["seen"] + 1}
        return jnp.mean((predict(params, inputs - mean) - targets) ** 2), state

    def evaluate(params, state, data):
        inputs, targets = data
        return {"loss": jnp.mean((predict(params, inputs - state["mean"]) - targets) ** 2)}

    batches = {} if "loader" in changes else {"batch": shuffled_batches((INPUTS, TARGETS), SIZE)}
    # Seven examples, in batches of two and one of one: no number of devices divides them all.
    splits = {"validation": (INPUTS[:7], TARGETS[:7]), "test": (INPUTS[:5], TARGETS[:5])}
    options = {"splits": splits, "eval_batch": 2, **batches, **changes}
    return Task("small", init, loss, evaluate=evaluate, **options)


def optimizer():
    return optlab.monitor(optax.chain(optlab.clip_by_global_norm(1.0), optlab.adam(0.01)))


def run(task, **options):
    options = {"steps": 6, "early_stopping": EarlyStopping(9), "tx": optimizer(), **options}
    return train(task, options.pop("tx"), key=key(), eval_every=2, **options)


def mesh_of(shape, kind, names=("data", "model")):
    kinds = (KINDS[kind],) * len(shape)
    return jax.make_mesh(shape, names[: len(shape)], axis_types=kinds)


def numbers_of(run):
    """Return all numbers of a run that depend on its arithmetic."""
    tree = (run.params, run.model_state["mean"], run.history.loss, dict(run.history.validation))
    return jax.tree.map(np.asarray, (tree, dict(run.test), dict(run.history.monitored)))


def assert_alike(one, other):
    """Require the same run but for rounding: sums over examples in another order, 1e-7 each."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), one, other)


def update_text(task, mesh):
    """Return the compiled program that makes the updates of a run."""
    sharding = Sharding(mesh, "data")
    with sharding.context():
        options = {"eval_every": 2, "source": None, "sharding": sharding}
        loop = RunLoop("train", task, optimizer(), run_keys(key()), **options)
        carry = loop._engine.begin((), run_keys(key()))
        arguments = ((), run_keys(key()), carry, np.int32(0), np.int32(2))
        return loop._engine.loop_program.lower(*arguments).compile().as_text()


def layouts(mesh, kind):
    """Yield names and functions that put parameters somewhere on a mesh."""
    yield "whole", lambda params: params
    if "model" in mesh.axis_names:
        specs = {"w": P(None, "model"), "b": P("model"), "head": P("model")}
        places = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        yield "model", lambda params: jax.device_put(params, places)
    if kind == "auto":
        constrain = jax.lax.with_sharding_constraint
        yield "data", lambda params: {**params, "w": constrain(params["w"], P(None, "data"))}


def eight():
    jax.config.update("jax_num_cpu_devices", 8)
    expected = {name: numbers_of(run(task(**changes))) for name, changes in SOURCES.items()}
    for kind in KINDS:
        for shape in ((8,), (4, 2)):
            mesh = mesh_of(shape, kind)
            for layout, place in layouts(mesh, kind):
                for source, changes in SOURCES.items():
                    print(kind, shape, layout, source, flush=True)
                    result = run(task(place, **changes), mesh=mesh)
                    assert_alike(numbers_of(result), expected[source])
                    assert_slots_lie_with_parameters(result)
                if layout != "data":  # where the arithmetic needs whole weights
                    assert not GATHERS.findall(update_text(task(place), mesh))
    lanes_on_all_devices()


def lanes_on_all_devices():
    """Compare lanes on eight devices with the same lanes on one, bit for bit.

    Where seeds are divided, as on an accelerator, two of them on each device round otherwise than
    sixteen on one do, 1e-7 an operation, which ten updates at growing rates multiply.
    """
    for source, changes in SOURCES.items():
        print("lanes", source, flush=True)
        everywhere = lanes(task(**changes)), seeds(task(**changes))
        with patch("jax.local_devices", return_value=jax.local_devices()[:1]):
            alone = lanes(task(**changes)), seeds(task(**changes))
        jax.tree.map(np.testing.assert_array_equal, everywhere, alone)
        assert np.isfinite(alone[1]).sum() > 100
        with patch("optlab.lab.training._runner._fills_lanes_first", return_value=False):
            np.testing.assert_allclose(seeds(task(**changes)), alone[1], rtol=1e-4)


def lanes(task):
    """Return the curves of a sweep and of a comparison, two lanes a device."""
    options = {"lanes": 2, "steps": 6, "eval_every": 3, "seeds": 2}
    space = {"learning_rate": LogUniform(1e-3, 1e-1)}
    found = sweep(task, optlab.adam, space, trials=21, **options)
    rates = np.geomspace(1e-3, 1e-1, 17)
    compared = compare(task, {"adam": optlab.adam}, rates=rates, **options).runs["adam"]
    curves = [(trial.train_loss, dict(trial.validation)) for trial in found.trials]
    return curves, compared.train_loss, dict(compared.validation), dict(compared.test)


def seeds(task):
    """Return the losses of a range test from sixteen seeds."""
    return lr_range_test(task, optlab.adam, max_lr=0.1, steps=10, seeds=16, confirm=0).losses


SOURCES = {"traced": {}, "loader": {"loader": loader}}


def assert_slots_lie_with_parameters(run):
    for name, param in run.params.items():
        slots = [
            leaf
            for path, leaf in jax.tree.leaves_with_path(run.opt_state)
            if leaf.shape == param.shape and name in str(path)
        ]
        assert len(slots) == 2
        assert all(slot.sharding.is_equivalent_to(param.sharding, slot.ndim) for slot in slots)


def process(rank, port, folder):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)

    def part():
        return (tuple(x[rank * SIZE // 2 :][: SIZE // 2] for x in rows(i)) for i in range(4))

    def place(params):
        return {**params, "w": jax.device_put(params["w"], NamedSharding(mesh, P(None, "data")))}

    for kind in KINDS:
        mesh = mesh_of((4,), kind)
        for source, changes in (("traced", {}), ("loader", {"loader": part})):
            where = place if kind == "auto" else lambda params: params
            options = {"checkpoints": f"{folder}/{kind}-{source}", "mesh": mesh}
            options["divide_state"] = source == "traced"
            run(task(where, **changes), steps=4, **options)
            result = run(task(where, **changes), **options)
            whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(result.params)
            if rank == 0:
                one = numbers_of(dataclasses.replace(result, params=whole))
                leaves = {str(i): x for i, x in enumerate(jax.tree.leaves(one))}
                np.savez(f"{folder}/{kind}-{source}.npz", **leaves)
    jax.distributed.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "eight":
        eight()
    else:
        process(int(sys.argv[2]), sys.argv[3], sys.argv[4])
