"""`train` on several devices: the run of one, where its arrays lie, and what moves between them."""

import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import on_meshes
import optlab
from on_meshes import GATHERS, KINDS, SOURCES, assert_alike, layouts, mesh_of, numbers_of, run, task
from optlab.groups import group
from optlab.lab import EarlyStopping, compare, train

BOTH_KINDS = pytest.mark.parametrize("kind", KINDS)
MOSTLY_AUTO = pytest.mark.parametrize(
    "kind", ["auto", pytest.param("explicit", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def alone():
    """The runs of one device, by their source of batches."""
    return {name: run(task(**changes)) for name, changes in SOURCES.items()}


def divided(mesh):
    """Return a function that divides one parameter over the devices."""
    return lambda params: {
        **params,
        "w": jax.device_put(params["w"], NamedSharding(mesh, P(None, "data"))),
    }


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("explicit", "traced"),
        ("auto", "loader"),
        pytest.param("auto", "traced", marks=pytest.mark.slow),
        pytest.param("explicit", "loader", marks=pytest.mark.slow),
    ],
)
def test_a_run_on_two_devices_is_that_of_one(alone, kind, source):
    result = run(task(**SOURCES[source]), mesh=mesh_of((2,), kind))
    assert_alike(numbers_of(result), numbers_of(alone[source]))
    assert result.model_state["seen"] == 6
    on_meshes.assert_slots_lie_with_parameters(result)
    assert all(
        leaf.sharding.is_fully_replicated and len(leaf.devices()) == 2
        for leaf in jax.tree.leaves((result.params, result.model_state))
    )


@pytest.mark.parametrize(
    "place",
    [
        lambda mesh, w: jax.device_put(w, NamedSharding(mesh, P(None, "data"))),
        pytest.param(lambda mesh, w: jax.jit(divided(mesh))({"w": w})["w"], marks=pytest.mark.slow),
        pytest.param(
            lambda mesh, w: jax.lax.with_sharding_constraint(
                w, NamedSharding(mesh, P(None, "data"))
            ),
            marks=pytest.mark.slow,
        ),
        lambda mesh, w: jax.lax.with_sharding_constraint(w, P(None, "data")),
    ],
    ids=["device_put", "device_put in jit", "constraint", "constraint of a spec"],
)
def test_parameters_and_slots_stay_divided_as_the_task_divides_them(alone, place):
    mesh = mesh_of((2,), "auto")
    result = run(task(lambda params: {**params, "w": place(mesh, params["w"])}), mesh=mesh)
    assert result.params["w"].sharding.spec == P(None, "data")
    assert result.params["b"].sharding.is_fully_replicated
    on_meshes.assert_slots_lie_with_parameters(result)
    assert_alike(numbers_of(result), numbers_of(alone["traced"]))


def test_slots_of_groups_lie_with_their_parameters(alone):
    mesh = mesh_of((2,), "auto")
    labels = {"w": "of w", "b": "others", "head": "others"}
    tx = optax.partition({"of w": optlab.adam(0.01), "others": optlab.sgd(0.01, 0.9)}, labels)
    for options in (
        {"tx": tx},
        {"tx": optlab.adam(0.01), "groups": {"w": group(), "b|head": group()}},
    ):
        one = run(task(), **options)
        two = run(task(divided(mesh)), mesh=mesh, **options)
        assert_alike(numbers_of(two), numbers_of(one))
        slots = [x for x in jax.tree.leaves(two.opt_state) if x.shape == two.params["w"].shape]
        assert [slot.sharding.spec for slot in slots] == [P(None, "data")] * 2


def test_a_module_that_names_axes_is_divided_by_them():
    mesh = mesh_of((2,), "auto")

    def init(key):
        by_axis = nnx.with_partitioning(nnx.initializers.ones, (None, "data"))
        layer = nnx.Linear(4, 16, kernel_init=by_axis, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(layer, nnx.Param)), ()

    def loss(params, state, batch, key):
        return jnp.mean((batch[0] @ params["kernel"] + params["bias"]) ** 2), state

    layer = (
        task(init=init)
        if False
        else on_meshes.Task(
            "layer",
            init,
            loss,
            batch=task().batch,
            evaluate=lambda params, state, data: {"loss": jnp.sum(params["bias"])},
        )
    )
    result = train(layer, optlab.adam(0.01), steps=2, key=on_meshes.key(), mesh=mesh)
    assert result.params["kernel"].sharding.spec == P(None, "data")


@pytest.mark.parametrize(
    ("rule", "cause", "ended"),
    [
        ({"start": 3, "target": 1.0}, "reached the target", 4),
        ({"start": 3, "divergence": -1.0}, "was worse than", 4),
    ],
)
def test_early_stopping_ends_a_divided_run_that_goes_on(tmp_path, alone, rule, cause, ended):
    losses = alone["traced"].history.validation["loss"]
    assert losses[0] > losses[1] > losses[2]  # evaluated at 0, 2 and 4
    limits = {name: float(losses[1]) for name in ("target", "divergence") if name in rule}
    if "divergence" in rule:
        limits["divergence"] = float(losses[2]) / 2
    options = {"early_stopping": EarlyStopping(9, **rule | limits), "checkpoints": tmp_path}
    mesh = mesh_of((2,), "auto")
    run(task(), mesh=mesh, **options | {"steps": 2})
    result = run(task(), mesh=mesh, **options)
    assert cause in result.reason
    assert result.history.steps[-1] == ended
    assert result.step == ended
    assert len(result.params["w"].devices()) == 2


def test_a_run_goes_on_with_another_number_of_devices(tmp_path, alone):
    for steps, mesh in ((2, None), (4, mesh_of((2,), "auto")), (5, mesh_of((2,), "explicit"))):
        run(task(), steps=steps, mesh=mesh, checkpoints=tmp_path)
    result = run(task(), checkpoints=tmp_path)
    assert len(result.params["w"].devices()) == 1
    np.testing.assert_allclose(result.params["w"], alone["traced"].params["w"], rtol=2e-5)
    np.testing.assert_allclose(result.history.loss, alone["traced"].history.loss, rtol=2e-5)


def test_a_divided_run_goes_on_on_one_device(tmp_path, alone):
    def placed_on(mesh):
        def place(params):
            return params if mesh is None else divided(mesh)(params)

        return task(place)

    mesh = mesh_of((2,), "auto")
    run(placed_on(mesh), steps=4, mesh=mesh, checkpoints=tmp_path)
    result = run(placed_on(None), checkpoints=tmp_path)
    assert_alike(numbers_of(result), numbers_of(alone["traced"]))


@MOSTLY_AUTO
def test_a_run_goes_on_with_a_divided_state_and_ends_like_that_of_one(tmp_path, alone, kind):
    mesh = mesh_of((2,), kind)
    run(task(), steps=2, checkpoints=tmp_path)
    result = run(task(), mesh=mesh, divide_state=True, checkpoints=tmp_path)
    assert_alike(numbers_of(result), numbers_of(alone["traced"]))
    slots = [leaf for leaf in jax.tree.leaves(result.opt_state) if leaf.shape == (4, 16)]
    assert [slot.sharding.spec for slot in slots] == [P("data", None)] * 2
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(result.params))


@MOSTLY_AUTO
def test_given_parameters_lie_where_those_of_the_task_would(kind):
    mesh = mesh_of((2,), kind)
    place = divided(mesh) if kind == "auto" else lambda params: params
    start = jax.tree.map(lambda x: np.asarray(x) / 2, task().init(on_meshes.key())[0])
    one, two = run(task(), params=start), run(task(place), params=start, mesh=mesh)
    assert_alike(numbers_of(one), numbers_of(two))
    assert two.params["w"].sharding.spec == P(None, "data" if kind == "auto" else None)
    on_meshes.assert_slots_lie_with_parameters(two)


@BOTH_KINDS
def test_callbacks_act_on_several_devices_without_another_compilation(kind):
    compiled = []

    def listen(event, duration, **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    def act(evaluation):
        seen.append((evaluation.params["w"].shape, evaluation.model_state["key"].dtype))
        counts.append(len(compiled))
        if evaluation.step == 2:
            evaluation.replace_hyperparams(learning_rate=0.02)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        seen, counts = [], []
        result = run(task(), mesh=mesh_of((2,), kind), callbacks=[act])
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    np.testing.assert_array_equal(result.history.learning_rate, np.float32([0.01] * 2 + [0.02] * 4))
    assert seen == [((4, 16), on_meshes.key().dtype)] * 4
    assert counts[2] == counts[3]


@BOTH_KINDS
def test_no_update_gathers_what_its_arithmetic_does_not_need(kind):
    text = on_meshes.update_text(task(), mesh_of((2,), kind))
    assert "all-reduce" in text
    assert not GATHERS.findall(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": 2}, "mesh must be a jax.sharding.Mesh, got 2; pass jax.make_mesh"),
        (
            {"mesh": mesh_of((2,), "auto").abstract_mesh},
            "mesh must be a jax.sharding.Mesh, got A",
        ),
        (
            {"mesh": mesh_of((2,), "auto"), "data_axis": "batch"},
            "data_axis must be an axis of the mesh, which has 'data', got data_axis='batch'",
        ),
        ({"divide_state": True}, "divide_state needs a mesh, got mesh=None; pass jax.make_mesh"),
        ({"divide_state": "zero"}, "divide_state must be True or False, got divide_state='zero'"),
    ],
)
def test_what_is_no_mesh_or_has_not_the_axis_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^train: {message}"):
        run(task(), **options)


@pytest.mark.parametrize("source", SOURCES)
def test_batches_that_the_devices_cannot_divide_are_refused(monkeypatch, source):
    monkeypatch.setattr(on_meshes, "SIZE", 3)
    with pytest.raises(
        ValueError,
        match=r"^train: the 2 devices of axis 'data' must divide .*"
        r"'small', got 3 examples at \[0\]; take a multiple of 2",
    ):
        run(task(**SOURCES[source]), mesh=mesh_of((2,), "auto"))


@MOSTLY_AUTO
def test_trials_of_a_task_that_divides_itself_are_those_of_one_device(kind):
    options = {"rates": [0.01, 0.03], "steps": 4, "eval_every": 2, "seeds": 1}
    place = dict(layouts(mesh_of((1, 2), kind), kind))["model"]
    divided, alone = (
        compare(task(where), {"adam": optlab.adam}, **options).runs["adam"]
        for where in (place, lambda params: params)
    )
    assert_alike(divided.train_loss, alone.train_loss)
    assert_alike(dict(divided.validation), dict(alone.validation))


def test_early_stopping_ends_trials_of_a_task_that_divides_itself():
    place = dict(layouts(mesh_of((1, 2), "explicit"), "explicit"))["model"]
    rule = EarlyStopping(9, start=2, target=1e9)  # reached at the first check that counts
    options = {"rates": [0.01], "steps": 6, "eval_every": 2, "seeds": 1, "early_stopping": rule}
    runs = compare(task(place), {"adam": optlab.adam}, **options).runs["adam"]
    assert (runs.ended, runs.taken, runs.causes) == (2, 2, [["target"]])
    assert np.isnan(runs.validation["loss"][0, 0, 2:]).all()
    assert np.isfinite(runs.test["loss"]).all()


# Programs of their own


@pytest.mark.slow
@pytest.mark.other_rows  # the fast tests have two devices
def test_runs_on_eight_devices_are_those_of_one():
    ended = subprocess.run(
        [sys.executable, on_meshes.__file__, "eight"], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_two_processes_train_the_same_run_as_one(tmp_path, alone):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [
        subprocess.Popen(
            [sys.executable, on_meshes.__file__, "process", str(rank), port, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [one.communicate(timeout=300)[0] for one in both]
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [0, 0], said
    for kind in KINDS:
        for source in SOURCES:
            stored = np.load(tmp_path / f"{kind}-{source}.npz")
            expected = jax.tree.leaves(numbers_of(alone[source]))
            assert_alike([stored[str(i)] for i in range(len(expected))], expected)
    # One process can go on with their checkpoint.
    options = {"checkpoints": tmp_path / "auto-traced", "take_over": ["init"]}
    result = run(task(), steps=8, **options)
    assert result.reason == "all updates done"
    np.testing.assert_allclose(result.history.loss[:6], alone["traced"].history.loss, rtol=2e-5)
