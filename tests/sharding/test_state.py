"""Where the arrays of a state lie: of every row, beside divided parameters, and restored."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from helpers import assert_identical, random_tree
from optlab import registry, sharding
from optlab.groups import group, partition, slices

SHAPES = {"b": (8,), "layers": (4, 8, 12), "w": (8, 12)}
ROWS = {
    name: row
    for rows in (
        registry.OPTIMIZERS,
        registry.DIRECTIONS,
        registry.TRANSFORMATIONS,
        registry.WRAPPERS,
        registry.PASSED_ON,
    )
    for name, row in rows.items()
}
FOUR = AbstractMesh((4,), ("data",))
BOTH = AbstractMesh((2, 2), ("data", "model"))
KINDS = pytest.mark.parametrize(
    "kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"]
)


def shapes_of(tree, where=None):
    return {name: jax.ShapeDtypeStruct(s, jnp.float32, sharding=where) for name, s in tree.items()}


def mesh_of(kind, size=2):
    devices = jax.devices()[:size]
    return jax.make_mesh((size,), ("data",), axis_types=(kind,), devices=devices)


def made(row):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Muon wonders whether layers are a stack
        tx = row.make(**row.arguments())
        return tx, sharding.layout(tx, shapes_of(SHAPES), FOUR)


@pytest.mark.parametrize("name", ROWS)
def test_each_array_of_a_parameter_is_divided_once(name):
    tx, layout = made(ROWS[name])
    of_params = [slot for slot in layout if {*SHAPES} & {*slot.path.split("/")} and slot.shape]
    # Adafactor keeps an empty slot for what it does not factor, which is no array.
    assert [slot for slot in of_params if [*slot.spec].count("data") != 1] == []
    for slot in of_params:
        assert slot.bytes == 4 * slot.device_bytes
    others = [slot for slot in layout if slot not in of_params]
    assert all(slot.bytes == slot.device_bytes <= 64 for slot in others)
    assert len(layout) == len(jax.tree.leaves(jax.eval_shape(tx.init, shapes_of(SHAPES))))


@pytest.mark.parametrize("name", [name for name in ROWS if name != "lbfgs"])
def test_an_update_on_explicit_axes_leaves_each_array_where_it_lay(name):
    # L-BFGS is Optax's, and its products of divided arrays need automatic axes.
    tx, mesh = made(ROWS[name])[0], mesh_of(AxisType.Explicit)
    params = shapes_of(SHAPES, NamedSharding(mesh, P()))
    with warnings.catch_warnings(), jax.set_mesh(mesh):
        warnings.simplefilter("ignore")
        state = sharding.abstract_state(tx, params, mesh)
        train = sharding.step(tx, sum_of_squares, params, mesh)
        new_params, new, _ = jax.eval_shape(train, params, state, ())
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for old, now in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert (now.shape, now.dtype) == (old.shape, old.dtype)
        assert padded(now) == padded(old)
    assert all(padded(leaf) == (None,) * leaf.ndim for leaf in jax.tree.leaves(new_params))


def sum_of_squares(params, batch):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def padded(leaf):
    spec = () if leaf.sharding is None else tuple(leaf.sharding.spec)
    return spec + (None,) * (len(leaf.shape) - len(spec))


@KINDS
def test_a_jitted_init_makes_each_device_its_part(kind):
    mesh, rng = mesh_of(kind), np.random.default_rng(0)
    params = random_tree(rng, SHAPES)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optlab.adafactor(0.1, min_dim_size_to_factor=4),
        optax.trace(0.9),
        optlab.params_ema(0.9),
    )
    where = sharding.state_sharding(tx, params, mesh)
    state = sharding.init(tx, params, mesh)
    with jax.set_mesh(mesh):
        assert_identical(jax.jit(tx.init, out_shardings=where)(params), state)
    assert_identical(state, tx.init(params))
    for leaf, sharding_of_leaf in zip(jax.tree.leaves(state), jax.tree.leaves(where), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding_of_leaf, leaf.ndim)
    trace = state[2].trace["layers"]
    assert {shard.data.shape for shard in trace.addressable_shards} == {(2, 8, 12)}


def specs(tx, shapes, param_specs, mesh=BOTH):
    params = {
        name: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, param_specs.get(name, P()))
        )
        for name, shape in shapes.items()
    }
    layout = sharding.layout(tx, params, mesh)
    return {slot.path.removeprefix("0/"): tuple(slot.spec) for slot in layout if slot.shape}


def test_a_slot_lies_like_its_parameter_and_is_divided_besides():
    shapes = {"w": (8, 6), "v": (8, 6), "b": (6,), "odd": (3, 5)}
    given = {"w": P("model"), "v": P(None, ("data", "model")), "b": P("model")}
    found = specs(optlab.lion(0.1), shapes, given)
    assert found["mu/w"] == ("model", "data")
    assert found["mu/v"] == (None, ("data", "model"))  # divided over the axis already
    assert found["mu/b"] == ("model",)
    assert found["mu/odd"] == (None, None)


def test_factors_lie_like_the_axes_that_they_keep():
    tx = optlab.adafactor(0.1, min_dim_size_to_factor=2)
    found = specs(tx, {"w": (8, 6)}, {"w": P(None, "model")})
    assert (found["v_row/w"], found["v_col/w"]) == (("data",), ("model",))
    # A factor of a square matrix may be that of either axis: nothing is known of it.
    found = specs(tx, {"w": (8, 8)}, {"w": P(None, "model")})
    assert (found["v_row/w"], found["v_col/w"]) == (("data",), ("data",))


def test_statistics_of_matrices_lie_like_the_stack_of_their_parameter():
    found = specs(optlab.shampoo(0.1), {"layers": (4, 8, 6)}, {"layers": P("model", None, None)})
    assert found["left_statistic/layers"] == ("model", "data", None)
    assert found["right_statistic/layers"] == ("model", "data", None)


def test_a_memory_is_divided_along_the_axes_of_its_parameter():
    found = specs(optlab.params_lawa(6, every=1), {"w": (8, 6)}, {"w": P(None, "model")})
    assert found["recent/w"] == (None, "data", "model")


def test_slots_of_groups_and_of_slices_of_an_array_are_found():
    params = shapes_of({"layers": (6, 8, 12), "w": (8, 12)})
    groups = [(slices("layers", 0, 2), group(lr_mult=0.1)), (..., group())]
    tx = partition(params, groups, optimizer=optlab.lion(0.3))
    layout = sharding.layout(tx, params, FOUR)
    arrays = {slot.shape: tuple(slot.spec) for slot in layout if len(slot.shape) > 1}
    assert arrays == {
        (2, 8, 12): (None, "data", None),
        (4, 8, 12): (None, "data", None),
        (8, 12): ("data", None),
    }


def test_a_lone_array_and_a_parameter_named_as_a_field_are_no_numbers_of_the_tree():
    tx = optlab.lion(0.1)
    lone = sharding.layout(tx, jax.ShapeDtypeStruct((4,), jnp.float32), FOUR)
    assert {slot.path: tuple(slot.spec) for slot in lone if slot.shape} == {
        "0/mu": ("data",),
        "0/hyperparams": (None,),
        "1/hyperparams": (None,),
        "2/hyperparams": (None,),
    }
    named = sharding.layout(tx, shapes_of({"hyperparams": (4,)}), FOUR)
    assert [tuple(slot.spec) for slot in named if slot.path == "0/mu/hyperparams"] == [("data",)]
    assert [tuple(slot.spec) for slot in named if slot.path == "0/hyperparams"] == [(None,)]


def test_the_state_of_a_module_of_flax_nnx_is_divided():
    params = nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param)
    mesh = mesh_of(AxisType.Auto)
    state = sharding.init(optlab.lion(0.1), params, mesh)
    specs_of = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state) if leaf.ndim == 2}
    assert specs_of == {"P('data', None)"}


def test_optax_and_injected_hyperparameters_are_divided():
    tx = optax.inject_hyperparams(optax.adamw)(learning_rate=0.1)
    layout = sharding.layout(tx, shapes_of(SHAPES), FOUR)
    assert all("data" in slot.spec for slot in layout if slot.shape)


# What is said, and what is refused


def test_a_state_that_stays_mostly_whole_is_said_to():
    with pytest.warns(
        UserWarning, match=r"^state_sharding: the 4 .* do not divide 0/mu/w \(3, 5\)"
    ):
        where = sharding.state_sharding(optlab.lion(0.1), shapes_of({"w": (3, 5), "b": (4,)}), FOUR)
    assert where[0].mu["w"].is_fully_replicated
    with pytest.warns(
        UserWarning, match=r"and 1 more: each device holds all of them, 48 of the 48"
    ):
        sharding.abstract_state(optlab.lion(0.1), shapes_of(dict.fromkeys("abcd", (3,))), FOUR)
    # One device divides nothing, which is no news; a small bias is none either.
    sharding.state_sharding(optlab.lion(0.1), shapes_of({"w": (3,)}), AbstractMesh((1,), ("data",)))
    sharding.state_sharding(optlab.lion(0.1), shapes_of({"w": (8, 8), "b": (3,)}), FOUR)


REFUSED = {
    "no mesh": ({"mesh": 2}, "mesh must be a jax.sharding.Mesh, got 2; pass jax.make_mesh"),
    "no axis": (
        {"axis": "batch"},
        "axis must be an axis of the mesh, which has 'data', got axis='batch'",
    ),
    "by hand": (
        {"mesh": AbstractMesh((2,), ("data",), axis_types=(AxisType.Manual,))},
        "the axes of the mesh must be automatic or explicit",
    ),
    "no transformation": ({"tx": 3}, "tx must be an optax.GradientTransformation, got 3"),
    "another mesh": (
        {"params": shapes_of({"w": (8,)}, NamedSharding(BOTH, P("model")))},
        "params that are divided must be so by the mesh, {'data': 4}, got NamedSharding",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_divided_is_refused(case):
    changes, message = REFUSED[case]
    arguments = {"tx": optlab.lion(0.1), "params": shapes_of(SHAPES), "mesh": FOUR} | changes
    with pytest.raises(ValueError, match="^state_sharding: " + re.escape(message)):
        sharding.state_sharding(**arguments)


def test_init_needs_devices_and_a_batch_what_they_divide():
    with pytest.raises(ValueError, match=r"^sharding\.init: mesh must be a jax\.sharding\.Mesh"):
        sharding.init(optlab.lion(0.1), shapes_of(SHAPES), FOUR)
    mesh = mesh_of(AxisType.Auto)
    with pytest.raises(
        ValueError,
        match=r"^divide_batch: the 2 devices of axis 'data' must divide the batch, got 3 examples "
        r"at \['x'\]; take a multiple of 2",
    ):
        sharding.divide_batch({"x": np.ones((3, 2))}, mesh)
    batch = sharding.divide_batch({"x": np.ones((4, 2)), "scale": 2.0}, mesh)
    assert batch["x"].sharding.spec == P("data")
    assert batch["scale"].sharding.is_fully_replicated


# Checkpoints


def test_a_checkpoint_is_restored_on_another_mesh(tmp_path):
    import orbax.checkpoint as ocp

    tx, params = optlab.adam(0.1), random_tree(np.random.default_rng(0), SHAPES)
    meshes = [mesh_of(AxisType.Auto), mesh_of(AxisType.Explicit), mesh_of(AxisType.Auto, 1)]
    state = sharding.init(tx, params, meshes[0])
    filled = jax.tree.map(lambda x: x + 1, state[0].mu)
    state = (state[0]._replace(mu=filled), *state[1:])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        for mesh in meshes:
            target = sharding.abstract_state(tx, params, mesh)
            restored = checkpointer.restore(tmp_path / "state", target)
            assert_identical(restored, state)
            for leaf, want in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
                assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
