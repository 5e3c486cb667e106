"""Muon as PyTorch, timm, Keras and Optax write it, against trajectories recorded from them.

`tests/golden/record_muon.py` recorded them, with matrices of several shapes and a vector.
"""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from golden.muon_cases import FILE, MUON, RECORDED, SHAPES, UPDATES, gradient, start
from optlab import dialects
from optlab.rules import Axes

MAKE = {
    "pytorch": dialects.pytorch.muon,
    "timm": dialects.timm.muon,
    "keras": dialects.keras.muon,
    "optax": dialects.optax.contrib.muon,
}
CASES = [
    pytest.param(framework, name, id=f"{framework}-{name}")
    for framework, cases in MUON.items()
    for name in cases
]
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2]
# Measured: 1.7e-15 at worst.
FLOAT64_TOLERANCE = 1e-12
# Measured: 1e-6 at worst.
FLOAT32_TOLERANCE = 1e-5


def names(framework):
    """The parameters of a framework's cases; PyTorch takes matrices alone."""
    return MATRICES if framework == "pytorch" else list(SHAPES)


@functools.cache
def recording():
    with np.load(FILE) as file:
        return dict(file)


def recorded(framework, name):
    """The parameters of a case, {name: (recorded updates, …)}."""
    flat, leaves, begin = recording()[f"{framework}/{name}"], {}, 0
    for key in names(framework):
        end = begin + int(np.prod(SHAPES[key]))
        leaves[key] = flat[:, begin:end].reshape(-1, *SHAPES[key])
        begin = end
    assert begin == flat.shape[1]
    return leaves


def schedule(values):
    return lambda count: jnp.asarray(values)[count]


def transformation(framework, case):
    moving = {name: schedule(values) for name, values in case.moving().items()}
    return MAKE[framework](schedule(case.rates()), **(case.options | moving))


@functools.cache
def replay(framework, dtype):
    """The parameters of a framework's cases, {case: {name: (recorded updates, …)}}.

    All run in one compiled loop. In double, where formulas and not digits are in question, a
    compiler that hurries will do.
    """
    hurry = {"xla_backend_optimization_level": 0} if dtype == "float64" else None
    with jax.enable_x64(dtype == "float64"):
        txs = {name: transformation(framework, case) for name, case in MUON[framework].items()}
        keys = names(framework)
        params = {k: jnp.asarray(p, dtype) for k, p in start().items() if k in keys}
        per_update = [gradient(t) for t in range(1, UPDATES + 1)]
        gradients = {k: jnp.asarray([g[k] for g in per_update], dtype) for k in keys}

        @functools.partial(jax.jit, compiler_options=hurry)
        def run(params, gradients):
            def body(carry, g):
                new = {}
                for name, tx in txs.items():
                    p, state = carry[name]
                    u, state = tx.update(g, state, p)
                    new[name] = (optax.apply_updates(p, u), state)
                return new, {name: p for name, (p, _) in new.items()}

            carry = {name: (params, tx.init(params)) for name, tx in txs.items()}
            return jax.lax.scan(body, carry, gradients)[1]

        at = np.array(RECORDED) - 1
        return jax.tree.map(lambda leaf: np.asarray(leaf)[at], run(params, gradients))


def error(framework, name, dtype):
    """The worst difference, relative to the largest element of its leaf."""
    got, want = replay(framework, dtype)[name], recorded(framework, name)
    assert all(got[key].dtype == dtype for key in want)
    return max(np.abs(got[key] - want[key]).max() / np.abs(want[key]).max() for key in want)


@pytest.mark.parametrize(("framework", "name"), CASES)
def test_the_recorded_trajectory_is_replayed_in_double(framework, name):
    assert error(framework, name, "float64") <= FLOAT64_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "name"), CASES)
def test_the_recorded_trajectory_is_replayed_in_single(framework, name):
    """A Newton–Schulz step multiplies what rounding does to small singular values."""
    assert error(framework, name, "float32") <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("framework", MUON)
def test_no_two_cases_have_the_same_trajectory(framework):
    """An option that changed nothing would be checked by nothing."""
    leaves = {name: recording()[f"{framework}/{name}"] for name in MUON[framework]}
    for a, b in itertools.combinations(leaves, 2):
        assert np.abs(leaves[a] - leaves[b]).max() > 1e6 * FLOAT64_TOLERANCE, (a, b)


# Which parameters are matrices


def treatment(tx, shapes):
    """The rule that treats each parameter, {path: shape} → {path: name}."""
    params = {}
    for path, shape in shapes.items():
        *modules, name = path.split("/")
        inner = params
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return {row.path: row.rules[0] for row in optlab.describe(tx, params)}


def test_timm_decides_by_shape():
    muon = {
        "dense/kernel": (64, 128),
        "head/kernel": (64, 10),
        "long/kernel": (4, 512),
        "conv/kernel": (3, 3, 8, 16),
        "conv_point/kernel": (1, 1, 8, 16),
        "conv_equinox/weight": (16, 8, 1, 1),
    }
    adam = {
        "thin/kernel": (3, 128),
        "longer/kernel": (4, 516),
        "conv_depthwise/kernel": (3, 3, 1, 16),
        "conv_depthwise/weight": (16, 1, 3, 3),
        "conv_thin/weight": (3, 8, 3, 3),
        "pos_embed": (1, 196, 768),
        "scale": (16,),
        "layers/bias": (8, 16),
        "logit_scale": (),
    }
    rules = treatment(dialects.timm.muon(), muon | adam)
    assert {path for path, rule in rules.items() if rule == "muon"} == set(muon)
    assert {path for path, rule in rules.items() if rule == "adam"} == set(adam)


def test_timms_shapes_give_way_to_axes():
    tx = dialects.timm.muon(axes={"dense": Axes(), "thin": Axes((0,), (1,))})
    shapes = {"dense/kernel": (64, 128), "thin/kernel": (3, 128)}
    assert treatment(tx, shapes) == {"dense/kernel": "adam", "thin/kernel": "muon"}


def test_pytorch_takes_matrices_alone():
    tx = dialects.pytorch.muon()
    shapes = {"embedding": (9, 4), "norm/scale": (2, 4), "attention/query/kernel": (4, 2, 2)}
    assert set(treatment(tx, shapes).values()) == {"muon"}
    params = {"w": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    message = (
        r"dialects.pytorch.muon: every parameter must be a matrix, got bias \(2,\); give the "
        "others an optimizer of their own with optax.partition, or use optlab.muon"
    )
    with pytest.raises(ValueError, match=message):
        tx.init(params)
    with pytest.raises(ValueError, match=r"got w \(3, 2\)"):
        dialects.pytorch.muon(axes={"w": Axes()}).init({"w": params["w"]})
    labels = jax.tree.map(lambda p: p.ndim, params)
    optax.partition({2: tx, 1: dialects.pytorch.adamw()}, labels).init(params)


def first_update(tx, params):
    gradients = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size) ** 2.0).reshape(p.shape), params)
    return jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(gradients, params)


def test_a_fused_query_key_and_value_is_one_matrix():
    fused = {"qkv": {"kernel": jnp.ones((4, 12))}}
    plain = {"w": jnp.ones((4, 12))}
    tx = dialects.pytorch.muon()
    got, want = first_update(tx, fused)["qkv"]["kernel"], first_update(tx, plain)["w"]
    np.testing.assert_array_equal(got, want)
    axes = {"qkv": Axes((0,), (1,), split=(4, 4, 4))}
    split = first_update(dialects.pytorch.muon(axes=axes), fused)["qkv"]["kernel"]
    assert np.abs(split - want).max() > 1e-4


def test_half_precision_steps_are_close_and_the_update_keeps_its_type():
    params = {"w": jnp.zeros((4, 6))}
    exact = first_update(dialects.pytorch.muon(), params)["w"]
    rough = first_update(dialects.pytorch.muon(ns_dtype=jnp.bfloat16), params)["w"]
    assert rough.dtype == jnp.float32
    # Five steps multiply the roundings of bfloat16, of 2⁻⁸.
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_a_state_of_pytorch_is_carried_over_and_back():
    tx = dialects.pytorch.muon(lr=lambda count: 0.1 / (count + 1))
    params = {"w": jnp.zeros((3, 2))}
    gradients = [{"w": jnp.asarray(gradient(t)["tall"][:3, :2], jnp.float32)} for t in (1, 2, 3)]
    state = tx.init(params)
    for g in gradients[:2]:
        _, state = tx.update(g, state, params)
    arrays = dialects.pytorch.to_state_dict(state)
    average = 0.05 * (0.95 * gradients[0]["w"] + gradients[1]["w"])
    assert set(arrays["w"]) == {"momentum_buffer"}
    np.testing.assert_allclose(arrays["w"]["momentum_buffer"], average, rtol=1e-5)
    carried = dialects.pytorch.from_state_dict(tx, params, arrays, step=2)
    got, want = (tx.update(gradients[2], s, params)[0]["w"] for s in (carried, state))
    np.testing.assert_array_equal(got, want)


# Optax's module


@pytest.mark.parametrize("name", dialects.optax.contrib.__all__)
def test_the_stand_in_has_optaxs_signature_and_documents_it(name):
    ours, theirs = getattr(dialects.optax.contrib, name), getattr(optax.contrib, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    text = inspect.getdoc(ours)
    assert f"`optax.contrib.{name}`" in text
    assert all(f"{argument}:" in text for argument in inspect.signature(ours).parameters)


def test_all_other_names_are_optaxs():
    contrib = dialects.optax.contrib
    assert contrib.MuonState is optax.contrib.MuonState
    assert set(dir(optax.contrib)) <= set(dir(contrib))
    with pytest.raises(AttributeError, match="has no attribute 'moun'"):
        contrib.moun  # noqa: B018


PARAMS = {
    "w": jnp.ones((3, 4)),
    "b": jnp.ones(4),
    "half": jnp.ones((2, 3), jnp.bfloat16),
    "no": None,
}


def run(contrib, updates, begin=None, **options):
    """The parameters and the state after some updates, which may go on from others."""
    params, state = begin or (PARAMS, contrib.muon(0.1, **options).init(PARAMS))
    update = jax.jit(contrib.muon(0.1, **options).update)
    for t in updates:
        gradients = jax.tree.map(lambda p, t=t: jnp.cos(p + t).astype(p.dtype), params)
        gradients["w"] = gradients["w"].at[0].add(1.0)
        new, state = update(gradients, state, params)
        params = optax.apply_updates(params, new)
    return params, state


def assert_alike(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        # Optax makes the steps of bfloat16 leaves in bfloat16; moments of that type are rounded at
        # another place, and float32 bias corrections of Optax are off by up to 2e-5.
        tolerance = 0.05 if a.dtype == jnp.bfloat16 else 1e-4
        np.testing.assert_allclose(*(np.asarray(x, np.float64) for x in (a, b)), atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1, "mu_dtype": jnp.bfloat16},
        {"adaptive": True},
        {"muon_weight_dimension_numbers": optax.contrib.MuonDimensionNumbers(1, 0)},
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_a_run_that_began_in_optax_goes_on_here(options):
    if "muon_weight_dimension_numbers" in options:  # the same for all arrays of two axes
        numbers = options["muon_weight_dimension_numbers"]
        options = {
            "muon_weight_dimension_numbers": lambda params: jax.tree.map(
                lambda p: numbers if p.ndim == 2 else None, params
            )
        }
    begin = run(optax.contrib, range(2), **options)
    wanted = run(optax.contrib, range(2, 4), begin, **options)
    assert_alike(run(dialects.optax.contrib, range(2, 4), begin, **options), wanted)


def test_a_direction_takes_arrays_of_two_axes_and_says_so():
    tx = dialects.optax.contrib.scale_by_muon()
    params = {"w": jnp.ones((3, 4))}
    assert tx.update(params, tx.init(params))[0]["w"].shape == (3, 4)
    params = {"b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"arrays must have two axes, got b \(3,\); pass weight_"):
        tx.update(params, tx.init(params))


def test_a_layer_that_keras_excludes_is_one_pattern_or_several_and_must_be_there():
    params = {"mlp": {"kernel": jnp.ones((3, 4))}, "head": {"kernel": jnp.ones((4, 3))}}
    for excluded in ("head", ["head"]):
        rows = optlab.describe(dialects.keras.muon(exclude_layers=excluded), params)
        kinds = {one.path: one.rules[0] for one in rows}
        assert kinds["mlp/kernel"] == "summed_muon"
        assert kinds["head/kernel"] != "summed_muon"
    with pytest.raises(ValueError, match="'haed', which occurs in none; there are head/kernel"):
        dialects.keras.muon(exclude_layers=["haed"]).init(params)
