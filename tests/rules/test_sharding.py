"""States of sharded parameters: as descriptions, on meshes of both kinds, and what moves."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from optlab import _tree, rules

TRANSFORMATIONS = {
    "momentum": lambda: optlab.sgd(0.1, 0.9, nesterov=True),
    "adagrad": lambda: optlab.adagrad(0.1, compensated=True),
    "rmsprop": lambda: optlab.rmsprop(0.1, centered=True, momentum=0.9),
    "adamw": lambda: optlab.adamw(0.1, mask={"w": True, "b": False}, amsgrad=True),
    "lion": lambda: optlab.lion(0.1, mu_dtype=jnp.bfloat16),
    "clipped-averaged": lambda: optax.chain(
        optlab.clip_by_global_norm(0.1), optlab.adam(0.1), optlab.params_ema(0.9)
    ),
    "masked": lambda: optax.masked(optlab.adam(0.1), {"w": True, "b": False}),
}

GATHERS = re.compile(r" (all-gather|all-to-all|collective-permute)(?:-start)?\(")


def mesh_of(kind):
    return jax.make_mesh((2,), ("d",), axis_types=(kind,))


def placed(mesh, spec):
    tree = {"w": jnp.arange(16.0).reshape(4, 4) - 7, "b": jnp.ones((4,))}
    return jax.device_put(tree, {"w": NamedSharding(mesh, spec), "b": NamedSharding(mesh, P())})


def matrices_at(mesh, spec, state):
    def place(x):
        return jax.device_put(x, NamedSharding(mesh, spec)) if np.shape(x) == (4, 4) else x

    return jax.tree.map(place, state)


def described(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def init_all(params):
    return {name: make().init(params) for name, make in TRANSFORMATIONS.items()}


def update_all(gradients, states, params):
    """Update with every transformation, in one program, which compiles in a fraction of the time.

    Returns:
        The updates and the states, by name.
    """
    results = {
        name: make().update(gradients, states[name], params)
        for name, make in TRANSFORMATIONS.items()
    }
    return tuple({name: own[i] for name, own in results.items()} for i in (0, 1))


KINDS = pytest.mark.parametrize(
    "kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"]
)


@KINDS
def test_a_state_can_be_described_with_its_shardings(kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params = placed(mesh, P("d"))
        state = init_all(params)
        abstract = init_all(described(params))
        traced = jax.eval_shape(init_all, described(params))
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for real, one, other in zip(*map(jax.tree.leaves, (state, abstract, traced)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype) == (real.shape, real.dtype)
        if real.ndim > 1:
            assert one.sharding.is_equivalent_to(NamedSharding(mesh, P("d")), 2)
            assert real.sharding.is_equivalent_to(NamedSharding(mesh, P("d")), 2)


@pytest.fixture(scope="module")
def whole_updates():
    """Return the updates of parameters that are not sharded."""
    whole = placed(mesh_of(AxisType.Explicit), P())
    return jax.jit(update_all)(whole, init_all(whole), whole)[0]


@pytest.mark.parametrize(
    ("of_params", "of_state"),
    [
        (P(), P("d")),
        (P("d"), P(None, "d")),
        pytest.param(P("d"), P(), marks=pytest.mark.slow),
    ],
    ids=["zero", "state along another axis", "state whole"],
)
def test_a_state_keeps_its_sharding_on_an_explicit_mesh(of_params, of_state, whole_updates):
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = placed(mesh, of_params)
        states = matrices_at(mesh, of_state, init_all(params))
        updates, new = jax.jit(update_all)(params, states, params)
    jax.tree.map(assert_placed_alike, states, new)
    for got, want in zip(jax.tree.leaves(updates), jax.tree.leaves(whole_updates), strict=True):
        # The order of the sum of squares in clipping differs between placements.
        np.testing.assert_allclose(got, want, rtol=1e-6)


def assert_placed_alike(old, new):
    assert jax.typeof(new) == jax.typeof(old)
    assert new.sharding.is_equivalent_to(old.sharding, new.ndim)


def test_slots_that_are_sharded_unlike_each_other_stay_where_they_are():
    tx, mesh = optlab.scale_by_adam(), mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = placed(mesh, P())
        state = tx.init(params)
        state = state._replace(mu=matrices_at(mesh, P("d"), state.mu))
        _, new = jax.jit(tx.update)(params, state, params)
    jax.tree.map(assert_placed_alike, state, new)


def test_a_state_keeps_its_sharding_in_eager_updates():
    tx, mesh = TRANSFORMATIONS["lion"](), mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = placed(mesh, P())
        state = matrices_at(mesh, P("d"), tx.init(params))
        _, new = tx.update(params, state, params)
    jax.tree.map(assert_placed_alike, state, new)


@KINDS
def test_no_array_is_gathered(kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params = placed(mesh, P("d"))
        compiled = jax.jit(update_all).lower(params, init_all(params), params).compile()
    assert not GATHERS.findall(compiled.as_text())


def factored_rule(who):
    def leaf(g, slots, h, p):
        row = slots.row + jnp.mean(g * g, axis=1)
        column = slots.column + jnp.mean(g * g, axis=0)
        return g / jnp.sqrt(row[:, None] * column[None, :] + 1), (row, column)

    slots = {"row": lambda p: jnp.zeros(p.shape[0]), "column": lambda p: jnp.zeros(p.shape[1])}
    return rules.Rule(who, leaf, slots=slots)


def test_slots_of_other_shapes_keep_their_sharding():
    tx, mesh = rules.lift(factored_rule("factored")), mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        g = jax.device_put(jnp.ones((4, 6)), NamedSharding(mesh, P("d")))
        state = tx.init(g)
        state = state._replace(row=jax.device_put(state.row, NamedSharding(mesh, P("d"))))
        updates, new = jax.jit(tx.update)(g, state)
        _, again = jax.jit(tx.update)(g, new)
    assert updates.sharding.spec == P("d", None)
    assert new.row.sharding.spec == again.row.sharding.spec == P("d")
    assert new.column.sharding.spec == again.column.sharding.spec == P(None)


def test_stacked_leaves_keep_their_sharding():
    def leaf(g, slots, h, p):
        mu = slots.mu + g
        return mu @ jnp.ones((4, 4)), (mu,)

    rule = rules.Rule("batched", leaf, slots={"mu": rules.slot()}, stacked=True)
    tx, mesh = rules.lift(rule), mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        matrix = jax.device_put(jnp.ones((4, 4)), NamedSharding(mesh, P("d")))
        g = {"a": matrix, "b": 2 * matrix, "c": jax.device_put(matrix, NamedSharding(mesh, P()))}
        state = tx.init(g)
        updates, new = jax.jit(tx.update)(g, state)
    for name in g:
        assert new.mu[name].sharding.is_equivalent_to(g[name].sharding, 2)
        np.testing.assert_array_equal(updates[name], 4 * np.asarray(g[name]))


def test_small_arrays_are_joined_on_a_single_device_alone(monkeypatch):
    parts = [jnp.ones((3,)), jnp.ones((2, 2)), jnp.ones((_tree._SMALL + 1,))]
    assert [part.shape for part in _tree._packed(parts)] == [p.shape for p in parts]
    monkeypatch.setattr(jax, "device_count", lambda backend: 1)
    joined = _tree._packed(parts)
    assert [part.shape for part in joined] == [(7,), parts[2].shape]


def test_an_array_whose_size_is_not_known_joins_no_other(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda backend: 1)
    (n,) = jax.export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct((n,), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32)]
    packed = jax.eval_shape(lambda *x: _tree._packed(x), *shapes)
    assert [part.shape for part in packed] == [(3,), (n,)]


def squared_rule():
    """Return a rule of g gᵀ g by matrix, with a slot for g gᵀ."""

    def leaf(g, slots, h, p, axes):
        (x,) = rules.matrices(g, axes)
        square = x @ jnp.swapaxes(x, -1, -2)
        return rules.from_matrices([square @ x], g.shape, axes), (slots.square + square,)

    def start(p, axes):
        stack = rules.matrices(jnp.zeros(p.shape), axes)[0].shape
        return jnp.zeros((*stack[:-1], stack[-2]))

    return rules.Rule(
        "squared", leaf, slots={"square": start}, static=lambda leaf: leaf.axes, stacked=True
    )


@pytest.mark.parametrize("spec", [P("d"), P(None, "d"), P(None, None, "d"), P()], ids=str)
def test_products_of_a_sharded_matrix_with_itself_equal_those_on_one_device(spec):
    tx = rules.lift(squared_rule())
    rng = np.random.default_rng(0)
    g = {name: rng.normal(size=(4, 4)).astype(np.float32) for name in ("w1", "w2", "w3")}
    g["layers"] = {"kernel": rng.normal(size=(2, 4, 6)).astype(np.float32)}
    alone, state_alone = tx.update(g, tx.init(g))
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        placements = jax.tree.map(lambda x: NamedSharding(mesh, P(*spec[: x.ndim])), g)
        placed = jax.device_put(g, placements)
        updates, state = jax.jit(tx.update)(placed, tx.init(placed))
    # The products are the same; only the order of their sums may differ.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-4),
        (updates, state.square),
        (alone, state_alone.square),
    )
    for leaf, before in zip(jax.tree.leaves(updates), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding.is_equivalent_to(before.sharding, leaf.ndim)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_a_stack_that_is_sharded_along_its_batch_moves_nothing(kind):
    tx, mesh = rules.lift(squared_rule()), mesh_of(kind)
    with jax.set_mesh(mesh):
        g = {"layers": jax.device_put(jnp.ones((2, 4, 6)), NamedSharding(mesh, P("d")))}
        state = tx.init(g)
        square = jax.device_put(state.square["layers"], NamedSharding(mesh, P("d")))
        state = state._replace(square={"layers": square})
        text = jax.jit(tx.update).lower(g, state).compile().as_text()
    assert not re.search(r" (all-|collective-|reduce-scatter)", text)
