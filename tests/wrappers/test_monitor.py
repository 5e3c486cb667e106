"""`monitor`: what it records, of whatever it is around or in, without changing a bit."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from helpers import assert_same_bits, noise_of, random_tree, stepping
from optlab.lab import Task, lr_range_test
from optlab.wrappers._monitor import MonitorState, monitor, monitored

rng = np.random.default_rng(0)
NUM_UPDATES = 6
# A norm of 28 elements, a quotient of two: some roundings of 6e-8.
FEW_ROUNDINGS = {"rtol": 1e-6}


SHAPES = {"body": {"w": (6, 3), "b": (3,)}, "head": (7,)}
PARAMS = random_tree(rng, SHAPES)
# Norms on both sides of the bound 5, which is that of about 28 elements of order 1.
GRADIENTS = [
    jax.tree.map(lambda g, i=i: g * (0.5 + i % 3), random_tree(rng, SHAPES)) for i in range(6)
]


def once(tx, gradients, params, **extra_args):
    """Return the updates and the record of one update."""
    updates, state = tx.update(gradients, tx.init(params), params, **extra_args)
    return updates, monitored(state)


def norm(tree):
    squares = [np.sum(np.abs(np.asarray(x)).astype(np.float64) ** 2) for x in jax.tree.leaves(tree)]
    return np.sqrt(sum(squares))


def near(number):
    return pytest.approx(float(number), rel=FEW_ROUNDINGS["rtol"])


# What is recorded


@pytest.fixture(scope="module")
def run():
    """The records of a run of clipped SGD with momentum, stacked by a scan."""
    tx = monitor(optlab.sgd(0.1, momentum=0.9), clipping=optlab.clip_by_global_norm(5.0))

    def body(carry, g):
        params, state = stepping(tx)(g, *carry)
        return (params, state), monitored(state)

    gradients = jax.tree.map(lambda *g: jnp.stack(g), *GRADIENTS)
    (_, state), records = jax.jit(
        lambda: jax.lax.scan(body, (PARAMS, tx.init(PARAMS)), gradients)
    )()
    return state, records


def test_the_record_agrees_with_float64(run):
    _, records = run
    theta, velocity = ({"body": None, "head": None} for _ in range(2))
    theta = jax.tree.map(np.float64, PARAMS)
    velocity = jax.tree.map(np.zeros_like, theta)
    num_clipped = 0
    for i, g in enumerate(GRADIENTS):
        g = jax.tree.map(np.float64, g)
        factor = min(1.0, 5.0 / norm(g))
        num_clipped += factor < 1
        velocity = jax.tree.map(lambda v, g, f=factor: 0.9 * v + f * g, velocity, g)
        updates = jax.tree.map(lambda v: -0.1 * v, velocity)
        expected = {
            "gradient_norm": norm(g),
            "clipped_norm": min(norm(g), 5.0),
            "update_norm": norm(updates),
            "params_norm": norm(theta),
            "clipped_share": num_clipped / (i + 1),
            "ratio/body": norm(updates["body"]) / norm(theta["body"]),
            "ratio/head": norm(updates["head"]) / norm(theta["head"]),
        }
        assert {name: values[i] for name, values in records.items()} == pytest.approx(
            expected,
            rel=2e-6,  # the trajectories part by a rounding an operation
        )
        theta = jax.tree.map(np.add, theta, updates)
    assert 0 < num_clipped < NUM_UPDATES


def test_a_scan_stacks_numbers_of_one_type(run):
    state, records = run
    assert {(x.shape, x.dtype) for x in records.values()} == {((NUM_UPDATES,), np.dtype("float32"))}
    assert (state.count, state.num_clipped.dtype) == (NUM_UPDATES, np.int32)


def test_before_the_first_update_all_is_zero():
    record = monitored(monitor(optlab.sgd(0.1)).init(PARAMS))
    assert set(record) == {
        *("gradient_norm", "clipped_norm", "update_norm", "params_norm", "clipped_share"),
        *("ratio/body", "ratio/head"),
    }
    assert not any(record.values())


def test_without_clipping_nothing_is_clipped():
    _, record = once(monitor(optlab.sgd(0.1)), GRADIENTS[2], PARAMS)
    assert record["clipped_norm"] == record["gradient_norm"] > 5
    assert record["clipped_share"] == 0


def test_clipping_alone_is_monitored_too():
    updates, record = once(monitor(clipping=optlab.clip_by_value(0.5)), GRADIENTS[2], PARAMS)
    assert_same_bits(updates, jax.tree.map(lambda g: jnp.clip(g, -0.5, 0.5), GRADIENTS[2]))
    assert record["update_norm"] == near(record["clipped_norm"])
    assert record["clipped_share"] == 1


def test_alone_it_takes_the_gradients_from_the_loop():
    tx = optax.chain(optlab.sgd(0.1), monitor())
    state = tx.init(PARAMS)
    with_grad, told = tx.update(GRADIENTS[0], state, PARAMS, grad=GRADIENTS[0])
    without, untold = tx.update(GRADIENTS[0], state, PARAMS)
    assert_same_bits(with_grad, without)
    told_record, untold_record = monitored(told), monitored(untold)
    assert told_record["gradient_norm"] == near(norm(GRADIENTS[0]))
    assert untold_record["gradient_norm"] == near(0.1 * norm(GRADIENTS[0]))
    assert told_record["clipped_norm"] == told_record["gradient_norm"]
    assert told_record["clipped_share"] == 0
    assert told_record["ratio/head"] == untold_record["ratio/head"] > 0
    assert jax.tree.structure(told) == jax.tree.structure(untold)


def test_around_an_optimizer_the_gradients_are_what_arrives():
    tx = optax.chain(optax.scale(3.0), monitor(optlab.sgd(0.1)))
    _, record = once(tx, GRADIENTS[0], PARAMS, grad=GRADIENTS[0])
    assert record["gradient_norm"] == near(3 * norm(GRADIENTS[0]))


def test_in_a_group_the_gradients_are_those_of_the_group():
    labels = {"body": "a", "head": "b"}
    tx = optax.partition({"a": optlab.sgd(0.1), "b": monitor()}, labels)
    _, record = once(tx, GRADIENTS[0], PARAMS, grad=GRADIENTS[0])
    assert record["gradient_norm"] == near(norm(GRADIENTS[0]["head"]))
    assert set(record) >= {"ratio/head"}
    assert "ratio/body" not in record


# Clipped or not

BOUND = np.array([3.0, 0.0, -4.0], np.float32)  # of norm exactly 5
ONE_OF_MANY = np.full(1_000_000, 0.5, np.float32)
ONE_OF_MANY[123] = 1.001


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("clip", [optlab.clip_by_global_norm, optax.clip_by_global_norm])
@pytest.mark.parametrize(
    ("size", "clipped"), [(0.5, False), (0.875, False), (1.0, False), (1.25, True), (100.0, True)]
)
def test_a_norm_is_clipped_above_its_bound_only(clip, dtype, size, clipped):
    # In bfloat16 a bound of 5·0.7 is rounded, as is what is divided by it.
    for scale in (1.0, 0.7, 1e-6 if dtype == np.float32 else 0.3):
        g = (BOUND * np.float32(scale)).astype(dtype)
        bound = float(optlab.global_norm(jnp.asarray(g)))
        g = (np.float32(size) * g.astype(np.float32)).astype(dtype)
        _, record = once(monitor(clipping=clip(bound)), g, np.ones_like(g))
        assert record["clipped_share"] == clipped, scale


@pytest.mark.parametrize(
    ("clipping", "gradient", "clipped"),
    [
        (optlab.clip_by_value(4.0), BOUND, False),
        (optlab.clip_by_value(3.9), BOUND, True),
        (optax.clip(4.0), BOUND, False),
        (optax.clip(3.9), BOUND, True),
        (optlab.clip_by_value(1.0), ONE_OF_MANY, True),
        (optlab.clip_by_value(1.001), ONE_OF_MANY, False),
        (optax.clip_by_block_rms(1.0), BOUND, True),
        (optax.clip_by_block_rms(10.0), BOUND, False),
        (optax.adaptive_grad_clip(0.1), BOUND, True),
        (optax.adaptive_grad_clip(1e3), BOUND, False),
        (optlab.clip_by_value(3.0), (BOUND * 1j).astype(np.complex64), True),
        (optlab.clip_by_value(4.0), (BOUND * 1j).astype(np.complex64), False),
        (optax.identity(), BOUND, False),
        (optax.scale(2.0), BOUND, False),
    ],
)
def test_any_clipping_is_seen_by_what_it_does(clipping, gradient, clipped):
    _, record = once(monitor(clipping=clipping), gradient, np.ones_like(gradient))
    assert record["clipped_share"] == clipped


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gradients_that_are_not_finite_show_and_count_only_where_clipping_shrinks_them(value):
    g = np.array([1.0, value, 2.0], np.float32)
    for clipping, clipped in (
        (optlab.clip_by_global_norm(0.1), False),  # lets them pass
        (optlab.clip_by_value(10.0), value == np.inf),
    ):
        _, record = once(monitor(clipping=clipping), g, np.ones_like(g))
        assert record["clipped_share"] == clipped
        np.testing.assert_equal(np.asarray(record["gradient_norm"]), value)


# Ratios at the edge


@pytest.mark.parametrize(
    ("gradient", "weight", "ratio"),
    [
        (0.0, 0.0, 0.0),
        (1.0, 0.0, np.inf),
        (0.0, 2.0, 0.0),
        (1.0, 2.0, 0.5),
        (np.inf, 2.0, np.inf),
        (np.inf, np.inf, np.inf),
        (1.0, np.inf, 0.0),
        (0.0, np.nan, np.nan),
        (np.inf, np.nan, np.nan),
        (np.nan, 0.0, np.nan),
        (3e-30, 6e-30, 0.5),
        (3e30, 6e30, 0.5),
    ],
)
def test_ratios_are_nan_only_where_a_number_is(gradient, weight, ratio):
    arrays = (np.full((1,), x, np.float32) for x in (gradient, weight))
    _, record = once(monitor(), *arrays)
    np.testing.assert_allclose(record["ratio/params"], np.float32(ratio), **FEW_ROUNDINGS)


def test_a_norm_out_of_range_is_the_largest_number():
    g = np.full(16, 3e38, np.float32)
    _, record = once(monitor(clipping=optlab.clip_by_global_norm(1.0)), g, np.ones_like(g))
    assert record["gradient_norm"] == np.finfo(np.float32).max
    assert record["clipped_norm"] == near(1.0)


# Updates are those of the chain

CHAINS = {
    "adamw": (lambda: optlab.adamw(0.1), lambda: optlab.clip_by_global_norm(5.0)),
    "optax": (lambda: optax.adamw(0.1), lambda: optax.clip_by_global_norm(5.0)),
    "unclipped": (lambda: optlab.sgd(0.1, momentum=0.9), lambda: None),
    "clip only": (lambda: None, lambda: optlab.clip_by_value(0.5)),
    "nothing": (lambda: None, lambda: None),
}


@pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(False, id="eager"),
        # With the compiler's usual options two programs have the same bits.
        pytest.param(True, id="compiled", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", CHAINS)
def test_updates_and_inner_states_are_those_of_the_chain(name, compiled):
    tx, clipping = (make() for make in CHAINS[name])
    plain = optax.chain(*(part or optax.identity() for part in (clipping, tx)))
    tx = monitor(tx, clipping=clipping)
    updates = {t: jax.jit(t.update) if compiled else t.update for t in (plain, tx)}
    params, state, plain_state = PARAMS, tx.init(PARAMS), plain.init(PARAMS)
    for g in GRADIENTS[:3]:
        want, plain_state = updates[plain](g, plain_state, params)
        got, state = updates[tx](g, state, params)
        assert_same_bits(got, want)
        assert_same_bits(state.inner, plain_state)
        params = optax.apply_updates(params, got)


@pytest.mark.parametrize("name", CHAINS)
def test_a_large_step_is_looked_at_first_and_records_the_same(name, monkeypatch):
    tx, clipping = (make() for make in CHAINS[name])
    tx = monitor(tx, clipping=clipping)
    state = tx.init(PARAMS)
    want = jax.jit(tx.update)(GRADIENTS[0], state, PARAMS)
    monkeypatch.setattr("optlab.wrappers._monitor._LARGE", 0)
    got = jax.jit(lambda *args: tx.update(*args))(GRADIENTS[0], state, PARAMS)
    # XLA may round a product and a sum together in one program and not in the other.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
    assert float(monitored(got[1])["update_norm"]) > 0


@pytest.mark.parametrize("least", [0, 2**22])
def test_parameters_and_gradients_may_be_python_numbers(least, monkeypatch):
    monkeypatch.setattr("optlab.wrappers._monitor._LARGE", least)
    tx, params = monitor(optlab.sgd(0.5)), {"a": 3.0, "b": np.full(2, 4.0, np.float32)}
    gradients = {"a": 1.0, "b": np.zeros(2, np.float32)}
    updates, state = jax.jit(lambda b, s: tx.update(gradients | {"b": b}, s, params))(
        gradients["b"], tx.init(params)
    )
    assert updates["a"] == -0.5
    assert monitored(state)["params_norm"] == near(41**0.5)


def bowl():
    """Return the task of descending a noisy bowl of 3 + 2 dimensions."""

    def loss(x, state, batch, key):
        return jnp.sum((x["a"] + 0.1 * noise_of(key, width=3)) ** 2) + jnp.sum(x["b"] ** 4), state

    return Task(
        name="bowl",
        init=lambda key: ({"a": noise_of(key, width=3), "b": jnp.array([1.0, 0.0])}, ()),
        loss=loss,
        batch=lambda key, step: (),
        evaluate=lambda x, state, data: {"loss": jnp.sum(x["a"] ** 2) + jnp.sum(x["b"] ** 4)},
    )


def plain_adamw(rate):
    return optax.chain(optlab.clip_by_global_norm(1.0), optlab.adamw(rate))


def monitored_adamw(rate):
    return monitor(optlab.adamw(rate), clipping=optlab.clip_by_global_norm(1.0))


def test_a_range_test_is_bitwise_that_without_it():
    options = {"min_lr": 1e-4, "steps": 30, "seeds": 2}
    plain = lr_range_test(bowl(), plain_adamw, **options)
    found = lr_range_test(bowl(), monitored_adamw, **options)
    np.testing.assert_array_equal(found.losses, plain.losses)


# In and around other transformations

ZERO = {"head": jnp.zeros(2), "body": jnp.ones(3)}
ONES = jax.tree.map(jnp.ones_like, ZERO)


@pytest.mark.parametrize("clip", [5.0, 1e30])
def test_zero_weights_do_not_make_skip_nonfinite_skip(clip):
    # With a rate of 0 the ratio of zero weights is 0 before it is Inf.
    tx = monitor(optlab.sgd(lambda step: 0.1 * step), clipping=optlab.clip_by_global_norm(clip))
    tx = optlab.skip_nonfinite(tx)
    params, state = ZERO, tx.init(ZERO)
    ratios = []
    for size in (1.0, 1.0, 3e38):  # the norm of the last is out of range
        g = jax.tree.map(lambda g, size=size: size * g, ONES)
        params, state = stepping(tx)(g, params, state)
        ratios.append(float(monitored(state)["ratio/head"]))
    assert ratios[:2] == [0.0, np.inf]
    assert optlab.skip_counts(state).skipped == 0


@pytest.mark.parametrize("inside", [False, True])
def test_a_skipped_step_inside_or_outside(inside):
    if inside:
        tx = monitor(optlab.skip_nonfinite(optlab.sgd(0.1)))
    else:
        tx = optlab.skip_nonfinite(monitor(optlab.sgd(0.1)))
    step = jax.jit(stepping(tx))
    params, state = step(GRADIENTS[0], PARAMS, tx.init(PARAMS))
    before = monitored(state)
    bad = {**GRADIENTS[1], "head": GRADIENTS[1]["head"] * np.nan}
    after, state = step(bad, params, state)
    assert_same_bits(after, params)
    assert optlab.skip_counts(state).skipped == 1
    if inside:
        assert np.isnan(monitored(state)["gradient_norm"])
        assert monitored(state)["update_norm"] == monitored(state)["ratio/head"] == 0
    else:
        assert_same_bits(monitored(state), before)


def test_multi_steps_and_accumulate_record_their_steps():
    inner = monitored_adamw(0.1)
    for tx in (optax.MultiSteps(inner, 2).gradient_transformation(), optlab.accumulate(inner, 2)):
        step, params, state = jax.jit(stepping(tx)), PARAMS, tx.init(PARAMS)
        for g in GRADIENTS[:4]:
            params, state = step(g, params, state)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *GRADIENTS[2:4])
        record = monitored(state)
        assert record["gradient_norm"] == near(norm(mean))
        assert optax.tree_utils.tree_get(state, "num_clipped") == 2


def test_every_lane_has_its_own_record():
    tx = monitored_adamw(0.1)
    gradients = jax.tree.map(lambda *g: jnp.stack(g), *GRADIENTS)
    lanes = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(PARAMS), PARAMS)[1]))(gradients)
    record = monitored(lanes)
    np.testing.assert_allclose(
        record["gradient_norm"], [norm(g) for g in GRADIENTS], **FEW_ROUNDINGS
    )
    np.testing.assert_array_equal(record["clipped_share"], [norm(g) > 1 for g in GRADIENTS])
    assert {x.shape for x in record.values()} == {(NUM_UPDATES,)}


def test_it_goes_through_a_branch_and_its_state_can_be_donated():
    tx = optax.chain(optlab.adam(0.1), monitor())
    _, state = tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS)

    def maybe(state, make):
        return jax.lax.cond(make, lambda: tx.update(GRADIENTS[1], state, PARAMS)[1], lambda: state)

    maybe = jax.jit(maybe, donate_argnums=0)
    record = monitored(maybe(maybe(state, True), False))
    assert record["gradient_norm"] > 0


def test_hyperparameters_and_averages_are_found_inside():
    tx = monitor(
        optax.chain(optlab.sgd(0.5), optlab.params_ema(0.9)),
        clipping=optlab.clip_by_global_norm(2.0),
        groups=lambda path: "learning_rate",
    )
    state = tx.init(PARAMS)
    found = optlab.hyperparams(state)
    assert found["learning_rate"] == 0.5
    assert found["max_norm"] == 2.0
    assert set(found) == {"learning_rate", "max_norm", "decay"}
    state = optlab.replace_hyperparams(state, learning_rate=0.25, max_norm=1e9)
    updates, state = tx.update(GRADIENTS[0], state, PARAMS)
    assert_same_bits(updates, jax.tree.map(lambda g: jnp.float32(-0.25) * g, GRADIENTS[0]))
    assert monitored(state)["clipped_share"] == 0
    average = optlab.averaged_params(state, PARAMS)
    assert jax.tree.structure(average) == jax.tree.structure(PARAMS)


def test_line_searches_and_steps_from_the_loss_work_inside():
    def loss(x):
        return jnp.sum((x - 1.0) ** 2)

    for tx in (optax.polyak_sgd(), optax.lbfgs()):
        wrapped, x = monitor(tx), jnp.array([3.0, -1.0])
        value, grad = jax.value_and_grad(loss)(x)
        extra = {"value": value, "grad": grad, "value_fn": loss}
        want, _ = tx.update(grad, tx.init(x), x, **extra)
        got, record = once(wrapped, grad, x, **extra)
        assert_same_bits(got, want)
        assert record["update_norm"] > 0


def test_tree_map_params_finds_every_slot():
    tx = monitored_adamw(0.1)
    state = tx.init(PARAMS)
    specs = jax.tree.map(lambda p: f"spec of {p.shape}", PARAMS)
    mapped = optax.tree_map_params(
        tx, lambda slot, spec: spec, state, specs, transform_non_params=lambda x: "none"
    )
    assert optax.tree_utils.tree_get(mapped, "mu") == specs
    assert mapped.params_norms == mapped.count == "none"


# Trees of all kinds


def test_frozen_and_masked_leaves_take_no_part():
    g = {**GRADIENTS[0], "head": None}
    updates, record = once(monitor(optlab.sgd(0.1)), g, PARAMS)
    assert updates["head"] is None
    assert record["ratio/head"] == 0
    assert record["ratio/body"] > 0
    assert record["gradient_norm"] == near(norm(g["body"]))
    assert record["params_norm"] == near(norm(PARAMS))
    tx = optax.masked(monitor(optlab.sgd(0.1)), {"body": True, "head": False})
    _, record = once(tx, GRADIENTS[0], PARAMS)
    assert record["params_norm"] == near(norm(PARAMS["body"]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_norms_of_other_types_are_formed_in_float32(dtype):
    turned = 1 + 1j if dtype == jnp.complex64 else 1
    params, g = (jnp.asarray(tree["head"] * turned, dtype) for tree in (PARAMS, GRADIENTS[0]))
    updates, record = once(monitor(optlab.sgd(0.1)), g, params)
    assert updates.dtype == dtype
    assert {x.dtype for x in record.values()} == {np.dtype("float32")}
    wide = np.complex128 if dtype == jnp.complex64 else np.float64
    updates, params, g = (np.asarray(x).astype(wide) for x in (updates, params, g))
    expected = [norm(g), norm(updates), norm(params), norm(updates) / norm(params)]
    names = ("gradient_norm", "update_norm", "params_norm", "ratio/params")
    np.testing.assert_allclose([record[name] for name in names], expected, **FEW_ROUNDINGS)


def test_double_precision_is_recorded_as_such():
    with jax.enable_x64(True):
        tx = monitored_adamw(0.1)
        params = {"d": jnp.full(2, 1e-200), "f": jnp.ones(2, jnp.float32)}
        state = tx.init(params)
        _, new = jax.jit(tx.update)(params, state, params)
        assert [x.dtype for x in jax.tree.leaves(new)] == [x.dtype for x in jax.tree.leaves(state)]
        assert new.params_norms["d"] == pytest.approx(np.sqrt(2) * 1e-200, rel=1e-14)
        assert {x.dtype for x in monitored(new).values()} == {np.dtype("float64")}


def test_a_tree_without_leaves_is_recorded_as_zero():
    for empty in ({}, [None, ()]):
        tx = monitor(optlab.sgd(0.1), clipping=optlab.clip_by_global_norm(1.0))
        state = tx.init(empty)
        _, new = tx.update(empty, state, empty)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert not any(monitored(new).values())


# Groups


@dataclasses.dataclass
class Net:
    """A dataclass as people register them."""

    body: dict
    head: jax.Array


jax.tree_util.register_dataclass(Net, ["body", "head"], [])


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)])
        self.head = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        for layer in self.body:
            x = nnx.relu(layer(x))
        return self.head(x)


def paths_of(params):
    """Return the paths that a function of `groups` is given."""
    paths = []
    monitor(groups=lambda path: paths.append(path) or "all").init(params)
    return paths


@pytest.mark.parametrize(
    ("params", "groups", "path"),
    [
        (jnp.ones(3), {"params"}, ""),
        ([jnp.ones(3), {"w": jnp.ones(2)}], {"0", "1"}, "1/w"),
        ({"body": {"w": jnp.ones(2)}, "head": jnp.ones(2)}, {"body", "head"}, "body/w"),
        (Net({"w": jnp.ones(2)}, jnp.ones(2)), {"body", "head"}, "body/w"),
        (nnx.state(NnxNet(), nnx.Param), {"body", "head"}, "body/1/kernel"),
        (
            eqx.filter(eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0)), eqx.is_inexact_array),
            {"layers"},
            "layers/1/weight",
        ),
    ],
    ids=["array", "list", "dict", "dataclass", "nnx", "equinox"],
)
def test_groups_have_the_names_of_modules(params, groups, path):
    _, record = once(monitor(optlab.sgd(0.1)), params, params)
    assert {name for name in record if "/" in name} == {f"ratio/{group}" for group in groups}
    assert path in paths_of(params)


def test_groups_are_named_by_a_function_or_a_tree():
    by_path = monitor(groups=lambda path: "bias" if path.endswith("/b") else "rest")
    by_tree = monitor(groups={"body": {"w": "rest", "b": "bias"}, "head": "rest"})
    by_prefix = monitor(groups={"body": 0, "head": 1})
    by_name = monitor(groups="all")
    _, record = once(by_path, GRADIENTS[0], PARAMS)
    assert_same_bits(record, once(by_tree, GRADIENTS[0], PARAMS)[1])
    expected = norm(GRADIENTS[0]["body"]["b"]) / norm(PARAMS["body"]["b"])
    assert record["ratio/bias"] == near(expected)
    assert {"ratio/0", "ratio/1"} <= set(once(by_prefix, GRADIENTS[0], PARAMS)[1])
    expected = norm(GRADIENTS[0]) / norm(PARAMS)
    assert once(by_name, GRADIENTS[0], PARAMS)[1]["ratio/all"] == near(expected)


def test_a_tree_of_names_may_be_a_module_that_can_be_called():
    model = eqx.filter(eqx.nn.Linear(2, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    names = jax.tree_util.tree_map_with_path(lambda path, leaf: path[-1].name, model)
    assert {"ratio/weight", "ratio/bias"} <= set(once(monitor(groups=names), model, model)[1])


def test_names_fit_a_masked_part_of_the_tree():
    tx = monitor(groups={"body": {"w": "x", "b": "y"}, "head": "z"})
    _, record = once(optax.masked(tx, {"body": False, "head": True}), GRADIENTS[0], PARAMS)
    assert {name for name in record if "/" in name} == {"ratio/z"}


# Reading


def test_a_state_without_a_monitor_has_no_record():
    assert monitored(optlab.adam(0.1).init(PARAMS)) == {}


def test_several_are_numbered_or_named_by_their_label():
    tx = optax.chain(monitor(clipping=optlab.clip_by_value(1.0)), optlab.adam(0.1), monitor())
    _, record = once(tx, GRADIENTS[0], PARAMS)
    assert record["update_norm[0]"] == record["clipped_norm[0]"] > record["update_norm[1]"]
    assert {"ratio/head[0]", "ratio/head[1]"} <= set(record)
    both = {"a": monitor(optlab.sgd(0.1)), "b": monitor(optlab.sgd(0.2))}
    _, record = once(optax.partition(both, {"body": "a", "head": "b"}), GRADIENTS[0], PARAMS)
    assert {"a/update_norm", "b/update_norm", "a/ratio/body", "b/ratio/head"} <= set(record)
    _, record = once(monitor(monitor(optlab.sgd(0.1))), GRADIENTS[0], PARAMS)
    assert record["update_norm[0]"] == record["update_norm[1]"]


def test_it_is_read_from_an_nnx_optimizer():
    model = NnxNet()
    optimizer = nnx.Optimizer(model, monitored_adamw(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        gradients = nnx.grad(lambda model: jnp.mean((model(x) - 5.0) ** 2))(model)
        optimizer.update(model, gradients)
        return monitored(optimizer.opt_state), optlab.global_norm(gradients)

    record, gradient_norm = step(model, optimizer, jnp.ones((4, 2)))
    assert record["gradient_norm"] == near(gradient_norm)
    assert record["ratio/head"] > 0
    assert_same_bits(monitored(optimizer.opt_state), record)


# Errors


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="monitor: clipping must be an optax"):
        monitor(optlab.sgd(0.1), clipping=1.0)
    with pytest.raises(ValueError, match="monitor: tx must be an optax"):
        monitor(optlab.sgd)
    for groups in ({"body": "x"}, {"body": "x", "head": None}, lambda path: None):
        with pytest.raises(ValueError, match=r"groups must give each parameter the name.*(head|b)"):
            monitor(groups=groups).init(PARAMS)


def test_what_update_is_given_is_checked():
    tx = monitor()
    state = tx.init(PARAMS)
    assert isinstance(state, MonitorState)
    with pytest.raises(ValueError, match="monitor: update must be given the parameters"):
        tx.update(GRADIENTS[0], state)
    with pytest.raises(ValueError, match="the state that init returned, a MonitorState"):
        tx.update(GRADIENTS[0], (), PARAMS)
    with pytest.raises(ValueError, match=r"same structure, got .*'head'.* only in the gradients"):
        monitor(groups="all").update(
            GRADIENTS[0],
            monitor(groups="all").init(PARAMS),
            {"body": PARAMS["body"]},
        )
    with pytest.raises(ValueError, match="in the groups that init found"):
        tx.update(GRADIENTS[0], state, {"body": PARAMS["body"]})
    with pytest.raises(ValueError, match=r"same structure, got .*'head'.* only in the gradients"):
        tx.update(GRADIENTS[0], state, PARAMS, grad={"body": GRADIENTS[0]["body"]})


def test_integers_are_left_to_masks():
    params = {"w": jnp.ones(2), "n": jnp.array([1, 2])}
    with pytest.raises(ValueError, match=r"monitor: parameters must be floating point.*\['n'\]"):
        monitor().init(params)
    tx = optax.masked(monitor(optlab.sgd(0.1)), {"w": True, "n": False})
    updates, record = once(tx, params, params)
    assert updates["n"] is params["n"]
    assert record["params_norm"] == near(np.sqrt(2))
