"""`optlab.native.step`: what loops compute is what XLA computes, wherever a step may be used."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from helpers import assert_same_bits, random_tree, stepping
from native.steps import assert_close, calls, run, stepping_native
from optlab import native, registry
from optlab.native import _operations, _report
from optlab.testing._runs import random_tree as random_tree_of

rng = np.random.default_rng(0)
SHAPES = {"b": (5,), "s": (), "w": (40, 30)}
PARAMS = random_tree(rng, SHAPES)
GRADS = [random_tree(rng, SHAPES) for _ in range(3)]
CHAIN = optax.chain(
    optlab.clip_by_global_norm(1.0),
    optlab.adamw(lambda step: 0.1 / (1 + step), weight_decay=0.01),
    optlab.params_ema(0.9),
)

ROWS = {**registry.OPTIMIZERS, **registry.TRANSFORMATIONS, **registry.WRAPPERS}


@pytest.fixture(autouse=True)
def reports(caplog):
    """The lines that say what XLA computes."""
    _report._said.clear()
    caplog.set_level(logging.WARNING, "optlab.native")
    return caplog


MOSTLY_XLA = ("shampoo", "soap")
"""Rules whose matrices XLA computes; they take seconds to compile."""


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name, marks=[pytest.mark.slow] if name in MOSTLY_XLA else [])
        for name, row in ROWS.items()
    ],
)
def test_every_rule_makes_the_steps_that_xla_makes(row):
    tx = row.make(**row.arguments())
    params = jax.tree.map(jnp.asarray, random_tree_of(row, 0))
    grads = [random_tree_of(row, seed) for seed in (1, 2)]
    step = jax.jit(stepping_native(tx))
    assert_close(run(step, tx, params, grads), run(jax.jit(stepping(tx)), tx, params, grads))
    assert calls(stepping_native(tx), grads[0], params, tx.init(params))


def test_a_chain_with_a_norm_is_two_loops():
    state = CHAIN.init(PARAMS)
    assert calls(stepping_native(CHAIN), GRADS[0], PARAMS, state) == 2
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    assert calls(stepping_native(tx), GRADS[0], PARAMS, tx.init(PARAMS)) == 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_makes_the_steps_that_xla_makes(dtype):
    params, *grads = (jax.tree.map(lambda x: jnp.asarray(x, dtype), t) for t in (PARAMS, *GRADS))
    got = run(jax.jit(stepping_native(CHAIN)), CHAIN, params, grads)
    # XLA may leave out the rounding of an update that is added to a parameter at once.
    assert_close(got, run(jax.jit(stepping(CHAIN)), CHAIN, params, grads), jnp.finfo(dtype).eps)


def test_double_precision_makes_the_steps_that_xla_makes():
    with jax.enable_x64(True):
        params, *grads = (
            jax.tree.map(lambda x: np.asarray(x, np.float64), t) for t in (PARAMS, *GRADS)
        )
        got = run(jax.jit(stepping_native(CHAIN)), CHAIN, params, grads)
        want = run(jax.jit(stepping(CHAIN)), CHAIN, params, grads)
        assert_close(got, want, 32 * np.finfo(np.float64).eps)
        assert calls(stepping_native(CHAIN), grads[0], params, CHAIN.init(params)) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e-42, 3e38, -0.0])
def test_extreme_gradients_make_the_steps_that_xla_makes(value):
    spoiled = {name: np.array(g) for name, g in GRADS[0].items()}
    spoiled["w"][3, 4] = spoiled["b"][0] = value
    grads = [GRADS[1], spoiled, GRADS[2]]
    tx = optlab.skip_nonfinite(CHAIN) if value is np.inf else CHAIN
    got = run(jax.jit(stepping_native(tx)), tx, PARAMS, grads)
    assert_close(got, run(jax.jit(stepping(tx)), tx, PARAMS, grads))


# Where a step is used


@pytest.fixture(scope="module")
def wanted():
    """What XLA makes of the steps."""
    return run(jax.jit(stepping(CHAIN)), CHAIN, PARAMS, GRADS)


def test_a_step_works_alone_donated_and_in_scan(wanted):
    alone = stepping_native(CHAIN)
    assert_close(run(alone, CHAIN, PARAMS, GRADS), wanted)
    donated = jax.jit(alone, donate_argnums=(1, 2))
    start = jax.tree.map(jnp.array, PARAMS)
    assert_close(run(donated, CHAIN, start, GRADS), wanted)

    @jax.jit
    def scanned(params, state, grads):
        return jax.lax.scan(lambda c, g: (alone(g, *c), None), (params, state), grads)[0]

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *GRADS)
    assert_close(scanned(PARAMS, CHAIN.init(PARAMS), stacked), wanted)
    assert calls(scanned, PARAMS, CHAIN.init(PARAMS), stacked) == 2


# Optax's SGD has no scalars, so that a call takes its bit of work from an array.
@pytest.mark.parametrize("tx", [optlab.adamw(1e-3), optax.sgd(0.1)], ids=["adamw", "sgd"])
def test_python_goes_on_while_a_donated_step_writes_in_place(tx):
    params = {"w": jnp.zeros((200, 200)), "b": jnp.zeros(200)}
    step = jax.jit(
        lambda params, state, g: native.step(tx)(g, state, params), donate_argnums=(0, 1)
    )
    compiled = step.lower(params, tx.init(params), params).compile()
    # A copy of `w` would be all of it; the scalars of a step and its bit of work are 3%.
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * params["w"].nbytes
    # XLA runs a program of less within the thread that calls it.
    assert compiled.cost_analysis()["flops"] >= 1000


def test_a_step_keeps_what_is_not_donated():
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = CHAIN.init(params)
    before = jax.tree.map(np.array, (params, state))
    jax.jit(stepping_native(CHAIN))(GRADS[0], params, state)
    assert_same_bits((params, state), before)


def test_lanes_fall_back_to_xla_with_one_line(wanted, reports):
    lanes = [jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tree) for tree in (PARAMS, *GRADS)]
    step = jax.jit(jax.vmap(stepping_native(CHAIN)))
    params, state = lanes[0], jax.vmap(CHAIN.init)(lanes[0])
    for g in lanes[1:]:
        params, state = step(g, params, state)
    assert_close(jax.tree.map(lambda x: x[0], (params, state)), wanted)
    assert [record.message for record in reports.records] == [
        "optlab.native: vmap: XLA computes the steps of all lanes together"
    ]


def test_derivatives_are_those_of_the_plain_step():
    def end(rate, stepping):
        tx = optlab.adam(rate)
        grads = {**GRADS[0], "b": jnp.zeros(5)}  # where the derivative of a root is infinite
        params, _ = run(stepping(tx), tx, PARAMS, [grads, grads])
        return sum(jnp.sum(x**2) for x in params.values())

    derivatives = [
        jax.jit(jax.grad(lambda rate, s=s: end(rate, s)))(0.1) for s in (stepping_native, stepping)
    ]
    np.testing.assert_allclose(*derivatives, rtol=1e-5)  # a sum of 1200 terms
    assert np.isfinite(derivatives[0])


def test_extra_arguments_reach_the_transformation():
    tx = optlab.reduce_on_plateau(patience=1)
    tx = optax.chain(optlab.sgd(0.1), tx)
    step, plain = native.step(tx), jax.jit(tx.update)
    updates, want = plain(GRADS[0], tx.init(PARAMS), PARAMS, value=jnp.float32(2.0))
    params, state = step(GRADS[0], tx.init(PARAMS), PARAMS, value=jnp.float32(2.0))
    assert_close((params, state), (optax.apply_updates(PARAMS, updates), want))
    # A function cannot be an argument of a compiled step; around a traced one it may be anything.
    params, _ = step(GRADS[0], tx.init(PARAMS), PARAMS, value=2.0, value_fn=jnp.sum)
    assert_close(params, optax.apply_updates(PARAMS, updates))
    jitted = jax.jit(lambda g, s, p, value: step(g, s, p, value=value, value_fn=lambda p: value))
    assert_close(jitted(GRADS[0], tx.init(PARAMS), PARAMS, 2.0)[0], params)


def test_arrays_divided_between_devices_are_left_to_xla(wanted, reports):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params, *grads = jax.device_put((PARAMS, *GRADS), where)
    assert_close(run(jax.jit(stepping_native(CHAIN)), CHAIN, params, grads), wanted)
    assert len(reports.records) == 1


def test_none_and_integer_leaves_pass_through():
    params = {**PARAMS, "none": None}
    grads = {**GRADS[0], "none": None}
    tx = optax.chain(optlab.adam(0.1), optax.identity())
    got, _ = native.step(tx)(grads, tx.init(params), params)
    assert got["none"] is None
    counts = {"n": jnp.arange(4), "x": jnp.ones(4)}
    tx = optax.GradientTransformation(lambda p: p, lambda g, s, p=None: (g, s))
    got, _ = native.step(tx)({"n": jnp.arange(4), "x": jnp.ones(4)}, counts, counts)
    np.testing.assert_array_equal(got["n"], 2 * np.arange(4))
    assert got["n"].dtype == counts["n"].dtype


def test_what_is_wrong_is_said_as_without_loops():
    with pytest.raises(ValueError, match=r"^native\.step: tx must be"):
        native.step(optlab.adam)
    step = native.step(optlab.adam(0.1))
    with pytest.raises(ValueError, match="same structure"):
        step({"other": np.ones(3)}, optlab.adam(0.1).init(PARAMS), PARAMS)


# Operations

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3e38, -3e38, np.inf, -np.inf, np.nan]
SPECIAL += [1e-40, -0.75]
CASES = {
    "bfloat16": [x for x in SPECIAL if x != 1e-40],  # XLA compares some of them as integers
    "bool": [0, 1],
    "float16": [*SPECIAL[:8], np.inf, -np.inf, np.nan, 6e4],
    "float32": SPECIAL,
    "int16": [0, 1, -1, 5, 2**15 - 1, -(2**15)],
    "int32": [0, 1, -1, 33, 2**31 - 1, -(2**31)],
    "int8": [0, 1, -1, 5, 127, -128],
    "uint32": [0, 1, 31, 32, 2**32 - 1],
    "uint8": [0, 1, 7, 255],
}
UNARY = {
    "abs": jax.lax.abs,
    "ceil": jax.lax.ceil,
    "cube": lambda x: jax.lax.integer_pow(x, 3),
    "finite": jax.lax.is_finite,
    "floor": jax.lax.floor,
    "neg": jax.lax.neg,
    "not": jax.lax.bitwise_not,
    "round": lambda x: jax.lax.round(x, jax.lax.RoundingMethod.TO_NEAREST_EVEN),
    "rsqrt": jax.lax.rsqrt,
    "sign": jax.lax.sign,
    "sqrt": jax.lax.sqrt,
    "square": jax.lax.square,
    **{f"to-{t}": lambda x, t=t: x.astype(t) for t in ("bfloat16", "bool", "float32", "int32")},
    "bits": lambda x: jax.lax.bitcast_convert_type(x, f"int{8 * x.dtype.itemsize}"),
}
CONSTANTS = [1.0, -2.5, 0.0, -0.0, float("inf"), float("-inf"), float("nan")]
"""A loop knows which constants are neither 0 nor NaN nor infinite."""

for name, function in (("maximum", jnp.maximum), ("minimum", jnp.minimum)):
    for c in CONSTANTS:
        UNARY |= {
            f"{name}-{c}": lambda x, c=c, f=function: f(floating(x), c),
            f"{name}-of-{c}": lambda x, c=c, f=function: f(c, floating(x)),
        }
UNARY["within"] = lambda x: jnp.clip(floating(x), -1.0, 2.0)


def floating(x):
    """Return an array as it is; an error as JAX's own if its type is not a floating-point one."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError
    return x


BINARY = {
    "add": jax.lax.add,
    "and": jax.lax.bitwise_and,
    "clamp": lambda x, y: x if x.dtype == bool else jax.lax.clamp(x.dtype.type(1), x, x[-1]),
    "div": jax.lax.div,
    "eq": jax.lax.eq,
    "ge": jax.lax.ge,
    "gt": jax.lax.gt,
    "le": jax.lax.le,
    "left": jax.lax.shift_left,
    "lt": jax.lax.lt,
    "max": jax.lax.max,
    "min": jax.lax.min,
    "mul": jax.lax.mul,
    "ne": jax.lax.ne,
    "or": jax.lax.bitwise_or,
    "right": jax.lax.shift_right_arithmetic,
    "right-logical": jax.lax.shift_right_logical,
    "select": lambda x, y: jax.lax.select(x > y, x, y),
    "sub": jax.lax.sub,
    "xor": jax.lax.bitwise_xor,
}


def in_loops(name, dtype):
    """Whether a loop computes an operation of a type; C leaves open what the others are."""
    if dtype == "bool":
        return name not in ("add", "finite", "sign", "to-bool")
    if jnp.issubdtype(dtype, jnp.floating):
        return name != "to-int32" and (name != "bits" or dtype == "float32")
    shifts = ("left", "right", "right-logical")
    return name != "div" and (jnp.dtype(dtype).itemsize >= 4 or name not in shifts)


def applicable(functions, *args):
    """Return what functions make of arguments, of those that JAX and loops have for the type."""
    results = {}
    for name, function in functions.items():
        with contextlib.suppress(TypeError):
            if in_loops(name, args[0].dtype):
                results[name] = function(*args)
    return results


@pytest.mark.parametrize("dtype", CASES)
def test_every_operation_gives_the_bits_that_xla_gives(dtype, reports):
    values = np.array(CASES[dtype], np.float64 if "float" in dtype else None)
    x, y = (jnp.asarray(v.ravel(), dtype) for v in np.meshgrid(values, values))

    def update(g, state, params=None):
        results = applicable(UNARY, g) | applicable(BINARY, g, params)
        return g, results

    tx = optax.GradientTransformation(lambda p: (), update)
    _, got = native.step(tx)(x, (), y)
    _, want = jax.jit(update)(x, (), y)
    assert calls(lambda *args: native.step(tx)(*args), x, (), y) == 1
    for name in want:
        a, b = np.asarray(got[name]), np.asarray(want[name])
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jnp.floating):
            # XLA itself takes numbers below the smallest normal one for zero, or does not.
            tiny = float(jnp.finfo(a.dtype).tiny) if a.dtype != np.float16 else 0
            a, b = (z.astype(np.float64) for z in (a, b))
            a, b = (np.where(np.abs(z) < tiny, np.copysign(0, z), z) for z in (a, b))
        # XLA's reciprocal root is an estimate with one or two corrections.
        ulps = 2 * float(jnp.finfo(dtype).eps) if name == "rsqrt" else 0
        np.testing.assert_allclose(a, b, rtol=ulps, atol=0, err_msg=name)
        a, b = (z[~np.isnan(z)] * 1.0 for z in (a, b))  # the sign of NaN says nothing
        np.testing.assert_array_equal(np.signbit(a), np.signbit(b), err_msg=name)
    assert not reports.records  # XLA has computed none of them


def test_operations_are_known_by_the_names_of_jax():
    known = {p.name for p in vars(jax.lax).values() if hasattr(p, "bind")}
    known |= {name.removesuffix("_p") for name in vars(jax.lax) if name.endswith("_p")}
    known |= {"add_any", "expand_dims"}
    assert set(_operations.OPERATIONS) <= known


# Sums


def test_reductions_of_many_chunks_are_exact_to_the_last_chunk():
    n = 100_003

    def update(g, state, params=None):
        return g, {
            "all": jnp.isfinite(g).all(),
            "any": (g > 99_999).any(),
            "max": g.max(),
            "min": g.min(),
            "sum": g.sum(),
        }

    tx = optax.GradientTransformation(lambda p: (), update)
    x = jnp.arange(n, dtype=jnp.float32)
    state = native.step(tx)(x, (), x)[1]
    assert (bool(state["all"]), bool(state["any"])) == (True, True)
    assert (float(state["max"]), float(state["min"])) == (n - 1, 0)
    assert float(state["sum"]) == pytest.approx(n * (n - 1) / 2, rel=1e-6)
    state = native.step(tx)(x.at[n - 1].set(jnp.nan), (), x)[1]
    assert not state["all"]
    assert all(np.isnan(state[name]) for name in ("max", "min", "sum"))
