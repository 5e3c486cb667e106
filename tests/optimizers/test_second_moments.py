"""Shampoo and SOAP: identities, the authors' arithmetic, failures, blocks, and when they work."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from golden import record_soap
from optlab import rules

# SOAP, as its authors have it


@pytest.mark.parametrize("case", record_soap.CASES)
def test_soap_follows_another_implementation(case):
    options = dict(record_soap.CASES[case])
    b1, b2 = options.pop("betas", (0.95, 0.95))
    recorded = record_soap.load()
    with jax.enable_x64(True):
        tx = optlab.scale_by_soap(b1, b2, **options)
        params = {name: jnp.asarray(p) for name, p in record_soap.start().items()}

        def body(carry, inputs):
            params, state = carry
            g, rate = inputs
            u, state = tx.update(g, state)
            # There, decay comes after the step.
            params = jax.tree.map(
                lambda p, u: (p - rate * u) * (1 - rate * record_soap.DECAY), params, u
            )
            return (params, state), params

        rates = np.full(record_soap.UPDATES, record_soap.RATE)
        rates[0] = 0  # the idle update
        inputs = record_soap.gradients(), rates
        _, after = jax.jit(lambda x: jax.lax.scan(body, (params, tx.init(params)), x))(inputs)
    for name, got in after.items():
        np.testing.assert_allclose(got, recorded[f"{case}/{name}"], rtol=0, atol=1e-12)


def test_soap_works_the_example_worked_by_hand():
    gradients = [[[2, 0], [0, 1]], [[1, 1], [0, 1]], [[0, 1], [1, 1]]]
    wanted = [[[1, 1], [1, 1]], [[0.9, 0.9], [1, 0.9]]]
    wanted.append([[0.8272567, 0.8026515], [0.9343228, 0.7819689]])
    tx = optlab.soap(0.1, precondition_frequency=1, weight_decay=0.0)
    w = jnp.ones((2, 2))
    state = tx.init(w)
    for g, want in zip(gradients, wanted, strict=True):
        u, state = tx.update(jnp.array(g, float), state, w)
        w = w + u
        np.testing.assert_allclose(w, want, atol=1e-6)
        if want is wanted[1]:
            np.testing.assert_allclose(state[0].nu, [[0.05, 0.05], [0, 0.05]], atol=1e-7)
            np.testing.assert_allclose(
                np.abs(state[0].left_basis[0]), [0.98546, 0.16991], atol=1e-5
            )


def test_an_idle_update_decays_nothing():
    tx = optlab.soap(0.1, weight_decay=0.5)
    w = jnp.ones((2, 3))
    u, _ = tx.update(w, tx.init(w), w)
    np.testing.assert_array_equal(u, 0)


# Identities


rng = np.random.default_rng(0)
GRADIENTS = rng.normal(size=(4, 5, 3)) * [1.0, 2.0, 4.0]


def updates_of(tx, gradients, params=None):
    """Return the updates that a transformation makes of gradients, stacked along the first axis."""

    def body(state, g):
        u, state = tx.update(g, state)
        return state, u

    first = jax.tree.map(lambda g: jnp.zeros_like(g[0]), gradients)
    updates = jax.jit(lambda g: jax.lax.scan(body, tx.init(first), g)[1])(gradients)
    return jax.tree.map(np.asarray, updates)


@pytest.mark.parametrize("one_sided", [False, True])
def test_shampoo_without_averages_is_the_orthogonal_factor(one_sided):
    with jax.enable_x64(True):
        tx = optlab.scale_by_shampoo(
            0.0, 0.0, 0.0, grafting=None, precondition_frequency=1, one_sided=one_sided
        )
        got = updates_of(tx, GRADIENTS)
    u, _, vt = np.linalg.svd(GRADIENTS, full_matrices=False)
    # Roundings in the null space of G Gᵀ are multiplied by the root of a rounding, 1e4.
    np.testing.assert_allclose(got, u @ vt, rtol=0, atol=1e-12 if one_sided else 1e-10)


def test_soap_without_bases_is_adam_from_the_second_update_on():
    with jax.enable_x64(True):  # without ε it does not matter where ε stands
        soap = optlab.scale_by_soap(eps=0.0, max_precondition_dim=2)
        got = updates_of(soap, GRADIENTS)
        want = updates_of(optlab.scale_by_adam(0.95, 0.95, eps=0.0), GRADIENTS[1:])
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got[1:], want, rtol=0, atol=1e-13)


ROTATABLE = {
    "soap": lambda: optlab.scale_by_soap(refresh="eigh", precondition_frequency=1),
    "shampoo": lambda: optlab.scale_by_shampoo(grafting="sgd", precondition_frequency=1),
}


@pytest.mark.parametrize("name", ROTATABLE)
def test_updates_of_rotated_gradients_are_rotated_updates(name):
    left, right = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    gradients = GRADIENTS[:, :3]  # square, since a null space has no basis of its own
    with jax.enable_x64(True):
        both = {"w1": gradients, "w2": left @ gradients @ right}
        got = updates_of(ROTATABLE[name](), both)
    # A rounding in a statistic, over the least distance of its eigenvalues.
    np.testing.assert_allclose(got["w2"], left @ got["w1"] @ right, rtol=0, atol=1e-10)


DEFAULTS = {
    "soap": lambda **options: optlab.scale_by_soap(eps=0.1, **options),
    "shampoo": lambda **options: optlab.scale_by_shampoo(eps=0.1, **options),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_layers_in_a_stack_and_blocks_of_a_matrix_are_as_matrices_alone(name):
    with jax.enable_x64(True):
        wide = rng.normal(size=(4, 3, 8))
        parts = {f"w{i}": wide[..., i : i + 3] for i in (0, 3, 6)}
        layers = np.stack([parts["w0"], parts["w3"]], axis=1)
        tx = DEFAULTS[name](block_size=3, axes={"layers": rules.Axes((1,), (2,), (0,))})
        got = updates_of(tx, {**parts, "wide": wide, "layers": layers})
    close = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(got["layers"], np.stack([got["w0"], got["w3"]], 1), **close)
    blocks = np.concatenate([got[name] for name in parts], axis=-1)
    np.testing.assert_allclose(got["wide"], blocks, **close)


# When decompositions run, and what happens where they fail


def primitives(jaxpr, within=()):
    """Yield the name of each primitive, with those of the primitives that it stands in."""
    for eqn in jaxpr.eqns:
        yield eqn, within
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner, (*within, eqn.primitive.name))


@pytest.mark.parametrize("name", DEFAULTS)
def test_decompositions_stand_in_a_branch_and_products_have_the_highest_precision(name):
    tx = DEFAULTS[name]()
    params = {"w1": jnp.ones((5, 3)), "w2": jnp.ones((5, 3)), "layers": jnp.ones((2, 5, 3))}
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params)).jaxpr
    found = list(primitives(jaxpr))
    where = {e.primitive.name: within for e, within in found if e.primitive.name in ("eigh", "qr")}
    assert "eigh" in where
    assert all("cond" in within for within in where.values())
    precisions = [e.params["precision"] for e, _ in found if e.primitive.name == "dot_general"]
    assert len(precisions) > 8
    highest = jax.lax.Precision.HIGHEST
    assert all(precision in (highest, (highest, highest)) for precision in precisions)


@pytest.mark.parametrize(("name", "factor"), [("soap", "left_basis"), ("shampoo", "left_root")])
def test_a_scheduled_frequency_says_when_factors_are_renewed(name, factor):
    tx = DEFAULTS[name](precondition_frequency=lambda step: jnp.where(step < 4, 3, 2))
    update = jax.jit(tx.update)
    state, changed = tx.init(jnp.zeros((5, 3))), []
    for t in range(1, 9):
        before = getattr(state, factor)
        _, state = update(jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), state)
        if not np.array_equal(before, getattr(state, factor)):
            changed.append(t)
    assert changed == [1, 4, 5, 7]
    assert update._cache_size() == 1


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_gradient_that_is_not_finite_is_counted_and_does_not_stay_in_the_factors(name):
    tx = DEFAULTS[name](precondition_frequency=2)
    update = jax.jit(tx.update)
    g = {"bias": jnp.ones(3), "kernel": jnp.asarray(GRADIENTS[0], jnp.float32)}
    _, state = update(g, tx.init(g))
    u, bad = update({**g, "kernel": g["kernel"].at[1, 2].set(jnp.nan)}, state)
    assert np.isnan(u["kernel"]).all()
    assert np.isfinite(u["bias"]).all()
    for slot in ("left_statistic", "right_statistic"):
        before, after = (getattr(s, slot)["kernel"] for s in (state, bad))
        np.testing.assert_array_equal(before, after)
    assert int(optax.tree.get(bad, "failures")["kernel"]) == 1
    # Moments of NaN belong to the caller, as in Adam; the factors go on.
    _, after = update(g, bad._replace(mu=state.mu, nu=state.nu))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
    assert int(after.failures["kernel"]) == 1


def test_statistics_that_overflow_are_not_taken_in():
    tx = optlab.scale_by_shampoo(accumulate=True)
    g = jnp.full((2, 2), 3e38)
    state = tx.init(g)
    for _ in range(12):
        u, state = tx.update(g, state)
        assert np.isfinite(u).all()
    assert np.isfinite(state.left_statistic).all()
    assert int(state.failures) > 0


def test_the_derivative_of_a_root_is_that_of_differences():
    with jax.enable_x64(True):
        tx = optlab.scale_by_shampoo(eps=0.01)
        g, direction = GRADIENTS[0], GRADIENTS[1]

        def update(step):
            u, _ = tx.update(g + step * direction, tx.init(g))
            return u

        slope = jax.jit(lambda: jax.jvp(update, (0.0,), (1.0,))[1])()
        difference = (update(1e-6) - update(-1e-6)) / 2e-6
    # The difference is right to the square of its step, and to a rounding over the step.
    np.testing.assert_allclose(slope, difference, rtol=0, atol=1e-8 * np.abs(difference).max())


# Memory, placement and errors


@pytest.mark.parametrize("make", [optlab.soap, optlab.shampoo])
def test_state_takes_as_many_numbers_as_documented(make):
    params = {"kernel": jax.ShapeDtypeStruct((64, 32), jnp.float32)}
    m, n = params["kernel"].shape
    for options, factors in (
        ({}, 2 * (m * m + n * n)),
        ({"one_sided": True}, 2 * n * n),
        ({"max_precondition_dim": 32}, 2 * n * n),
        ({"block_size": 32}, 2 * 4 * 32 * 32),
    ):
        (kernel,) = optlab.describe(make(0.1, **options), params)
        assert kernel.state_bytes == 4 * (2 * m * n + factors + 1)  # and the count of failures


OTHERS = (pytest.mark.slow, pytest.mark.other_rows)
SPECS = [P(None, "d"), *(pytest.param(s, marks=OTHERS) for s in (P("d"), P()))]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sharded_matrices_have_the_updates_of_whole_ones(spec):
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(AxisType.Explicit,))
    shapes = {"w1": (8, 8), "w2": (8, 8), "layers": (2, 8, 4)}
    g = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    txs = [make(precondition_frequency=1) for make in DEFAULTS.values()]

    @jax.jit
    def run(g, states):
        return [tx.update(g, state)[0] for tx, state in zip(txs, states, strict=True)]

    states = [tx.update(g, tx.init(g))[1] for tx in txs]
    alone = run(g, states)
    with jax.set_mesh(mesh):
        sharded = {
            name: jax.device_put(x, NamedSharding(mesh, P(*spec[: x.ndim])))
            for name, x in g.items()
        }
        whole = jax.device_put(states, NamedSharding(mesh, P()))
        placed = run(sharded, whole)
    # The order of sums may differ.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), placed, alone)


@pytest.mark.parametrize("make", [optlab.soap, optlab.shampoo])
def test_what_cannot_be_preconditioned_is_refused(make):
    who = make.__name__
    vectors = {"bias": jnp.ones(3), "scale": jnp.ones(())}
    with pytest.raises(ValueError, match=f"{who}: there must be a matrix among .* got bias of"):
        make(0.1).init(vectors)
    with pytest.raises(ValueError, match=f"{who}: parameters must be real, got complex64 at"):
        make(0.1).init({"w": jnp.ones((2, 3), complex)})
    for axes in (rules.Axes((0,), (0,)), rules.Axes((0,), (2,))):
        with pytest.raises(ValueError, match=re.escape("must name each axis of the shape (2, 3)")):
            make(0.1, axes={"w": axes}).init({"w": jnp.ones((2, 3))})
    make(0.1).init({})


# Many runs in one program


def primitives_outside_conditionals(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        if equation.primitive.name != "cond":
            for inner in jaxprs_in_params(equation.params):
                yield from primitives_outside_conditionals(inner)


@pytest.mark.parametrize("make", [optlab.soap, optlab.shampoo], ids=["soap", "shampoo"])
def test_lanes_decompose_only_when_due_and_one_matrix_at_a_time(make):
    """Stacks of matrices can block each other's threads where several programs run on a CPU."""
    params = {"w": jnp.ones((4, 3))}

    def update(rate, state, gradients):
        return make(rate).update(gradients, state, params)

    rates = jnp.array([0.1, 0.2])
    gradients = {"w": jax.random.normal(jax.random.key(0), (2, 4, 3))}
    state = jax.vmap(lambda rate: make(rate).init(params))(rates)
    jaxpr = jax.make_jaxpr(jax.vmap(update))(rates, state, gradients)
    assert not {"eigh", "qr", "householder_product"} & {*primitives_outside_conditionals(jaxpr)}
    compiled = jax.jit(jax.vmap(update)).lower(rates, state, gradients).compile()
    shapes = re.findall(r"= \(?f32\[([\d,]+)\].*lapack", compiled.as_text())
    assert shapes
    assert max(len(shape.split(",")) for shape in shapes) == 2
    updates, state = compiled(rates, state, gradients)
    for lane, rate in enumerate(rates):
        own = {"w": gradients["w"][lane]}
        alone, _ = make(rate).update(own, make(rate).init(params), params)
        np.testing.assert_allclose(updates["w"][lane], alone["w"], atol=1e-6)
