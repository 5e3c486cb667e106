"""The checks every transformation passes: one test for each row of the registry and each check.

All work on one small tree of fixed shapes, so that compiled functions are shared between checks.
"""

import copy
import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from jax.sharding import NamedSharding, PartitionSpec

from optlab import registry

ROWS = {**registry.OPTIMIZERS, **registry.TRANSFORMATIONS, **registry.WRAPPERS}
UPDATES = 1000
FLOAT_EPS = float(np.finfo(np.float32).eps)

SHAPES = {"s": (), "w": (4, 3)}


def random_tree(seed, *leading, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=leading + shape).astype(dtype) for k, shape in SHAPES.items()}


PARAMS = random_tree(0)
# Sizes from 1e-2 to 1e2 between coordinates: adaptive rules must bring them to one scale.
GRADIENTS = {
    k: g * np.logspace(-2, 2, max(1, int(np.prod(SHAPES[k])))).reshape(SHAPES[k]).astype(g.dtype)
    for k, g in random_tree(1, UPDATES).items()
}
GRADIENT = {k: g[0] for k, g in GRADIENTS.items()}


def arguments(row, **options):
    """The constructor's arguments: an optimizer's learning rate is 0.1 unless said."""
    is_optimizer = row.wraps is not None or row.name in registry.OPTIMIZERS
    rate = {"learning_rate": 0.1} if is_optimizer else {}
    return {**rate, **row.samples[0], **options}


def make(row, **options):
    return row.make(**arguments(row, **options))


def updates_alone(updates, state):
    return updates


def trajectory(tx, gradients, params, outcome=updates_alone):
    """Run all updates in one scan at fixed parameters; return their outcomes and the last state."""

    def body(state, g):
        u, state = tx.update(g, state, params)
        return state, outcome(u, state)

    state, updates = jax.lax.scan(body, tx.init(params), gradients)
    return updates, state


def reference_trajectory(row, options, params, gradients, steps, values=lambda t: {}):
    """The same in float64, as a list over `steps` of lists of arrays."""
    params = [np.asarray(p, np.float64) for p in params.values()]
    wanted, state = {}, None
    for t in range(1, max(steps) + 1):
        g = [np.asarray(g[t - 1], np.float64) for g in gradients.values()]
        u, state = row.reference(g, params, state, t, **{**options, **values(t)})
        if t in steps:
            wanted[t] = u
    return wanted


@functools.cache
def compiled(name):
    """The default transformation of a row, with its update compiled."""
    tx = make(ROWS[name])
    return optax.GradientTransformation(tx.init, jax.jit(tx.update))


def three_updates(tx, params=PARAMS, gradients=GRADIENTS):
    state, updates = tx.init(params), []
    for i in range(3):
        g = jax.tree.map(lambda g, i=i: g[i], gradients)
        u, state = tx.update(g, state, params)
        updates.append(u)
    return updates, state


def layout(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def assert_close(a, b, rtol):
    """Close relative to each leaf's largest element, the scale at which rounding errors arise."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.shape == y.shape
        if y.size:
            np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max())


# A compiler may contract a·b + c to one rounding and reorder nothing else: a few roundings an
# element, which the difference of two averages can multiply.
FEW_ROUNDINGS = 32 * FLOAT_EPS


# Numbers against the reference


CHECKED_UPDATES = (1, 2, 7, UPDATES)


@functools.cache
def wanted_updates(name, sample):
    """The reference for one sample of a row; the double run has the same inputs, so shares it."""
    row = ROWS[name]
    options = {**row.fixed, **arguments(row, **row.samples[sample])}
    return reference_trajectory(row, options, PARAMS, GRADIENTS, CHECKED_UPDATES)


def run_samples(row, gradients, params):
    """Return the outcomes of all samples, and the first one's updates and states.

    One program for all of them compiles faster than one for each.
    """

    @jax.jit
    def run(gradients, params):
        first, *others = (make(row, **options) for options in row.samples)
        (outcome, *kept), _ = trajectory(
            first, gradients, params, lambda u, state: (row.outcome(u, state), u, state)
        )
        return [
            outcome,
            *(trajectory(tx, gradients, params, row.outcome)[0] for tx in others),
        ], kept

    return run(gradients, params)


@functools.cache
def single_runs(name):
    return run_samples(ROWS[name], GRADIENTS, PARAMS)


def assert_match_reference(row, outcomes, rtol):
    """Compare each leaf; of its largest, as a sum that passes through zero keeps its roundings."""
    for sample, (outcome, options) in enumerate(zip(outcomes, row.samples, strict=True)):
        wanted = wanted_updates(row.name, sample)
        for leaf, got in enumerate(outcome.values()):
            largest = max(np.abs(want[leaf]).max() for want in wanted.values())
            for t, want in wanted.items():
                np.testing.assert_allclose(
                    got[t - 1], want[leaf], rtol=0, atol=rtol * largest, err_msg=f"{options}"
                )


def matches_reference(row):
    assert_match_reference(row, single_runs(row.name)[0], rtol=2e-6)


def matches_reference_in_double(row):
    gradients, params = (
        {k: np.asarray(x, np.float64) for k, x in tree.items()} for tree in (GRADIENTS, PARAMS)
    )
    with jax.enable_x64(True):
        outcomes, _ = run_samples(row, gradients, params)
    assert_match_reference(row, outcomes, rtol=1e-12)


def follows_schedules(row):
    """All hyperparameters scheduled at once, in double, against the reference given the values."""
    gradients = {k: np.asarray(x[:9], np.float64) for k, x in GRADIENTS.items()}
    params = {k: np.asarray(x, np.float64) for k, x in PARAMS.items()}
    steps = range(1, 10)
    changes = {name: 2 + i for i, name in enumerate(row.hyperparams)}  # one after the other

    def value(name, step):
        first, second = row.hyperparams[name]
        return second if step >= changes[name] else first

    with jax.enable_x64(True):
        scheduled = {
            name: lambda step, at=changes[name], v=values: jnp.where(step >= at, v[1], v[0])
            for name, values in row.hyperparams.items()
        }
        run = jax.jit(lambda g, p: trajectory(make(row, **scheduled), g, p, row.outcome))
        updates, state = run(gradients, params)
        wanted = reference_trajectory(
            row,
            {**row.fixed, **arguments(row)},
            params,
            gradients,
            steps,
            values=lambda t: {name: value(name, t - 1) for name in row.hyperparams},
        )
        for t in steps:
            for got, want in zip(updates.values(), wanted[t], strict=True):
                np.testing.assert_allclose(
                    got[t - 1], want, rtol=0, atol=1e-12 * np.abs(want).max()
                )
        for name in row.hyperparams:
            assert state_value(state, name) == value(name, 8)


# Execution


def scan_equals_loop(row):
    updates, states = single_runs(row.name)[1]
    in_loop, loop_state = three_updates(compiled(row.name))
    for i, update in enumerate(in_loop):
        assert_close(jax.tree.map(lambda u, i=i: u[i], updates), update, FEW_ROUNDINGS)
    assert_close(jax.tree.map(lambda s: s[2], states), loop_state, FEW_ROUNDINGS)


def vmap_over_hyperparameters_equals_loop(row):
    gradients = {k: g[:2] for k, g in GRADIENTS.items()}

    def run(values):
        return trajectory(make(row, **values), gradients, PARAMS)[0]

    values = {name: jnp.array(pair) for name, pair in row.hyperparams.items()}
    lanes = jax.jit(jax.vmap(run))(values)
    for lane in range(2):
        tx = make(row, **{name: v[lane] for name, v in values.items()})
        for step, single in enumerate(three_updates(tx)[0][:2]):
            of_lane = jax.tree.map(lambda u, i=lane, j=step: u[i, j], lanes)
            assert_close(of_lane, single, FEW_ROUNDINGS)


def vmap_over_trees_equals_loop(row):
    tx = make(row)
    params, gradients = random_tree(2, 3), random_tree(3, 3)
    states = jax.vmap(tx.init)(params)
    lanes, _ = jax.jit(jax.vmap(tx.update))(gradients, states, params)
    for i in range(3):
        p, g = (jax.tree.map(lambda x, i=i: x[i], tree) for tree in (params, gradients))
        single, _ = compiled(row.name).update(g, tx.init(p), p)
        assert_close(jax.tree.map(lambda x, i=i: x[i], lanes), single, FEW_ROUNDINGS)


def one_compilation_serves_all_values(row):
    tx = make(row, **{name: values[0] for name, values in row.hyperparams.items()})
    traces = []

    @jax.jit
    def step(gradient, state, params):
        traces.append(1)
        return tx.update(gradient, state, params)

    state = tx.init(PARAMS)
    for name, values in row.hyperparams.items():
        for value in values:
            dtype = state_value(state, name).dtype
            state = optax.tree_utils.tree_set(state, **{name: jnp.asarray(value, dtype)})
            _, state = jax.eval_shape(step, GRADIENT, state, PARAMS)  # what jit goes by
    assert len(traces) == 1


def donation_is_safe(row):
    tx = make(row)
    params = jax.tree.map(jnp.array, PARAMS)
    state = tx.init(params)
    step = jax.jit(tx.update, donate_argnums=(1, 2))
    for i in range(2):
        g = jax.tree.map(lambda g, i=i: g[i], GRADIENTS)
        updates, state = step(g, state, params)
        params = jax.tree.map(jnp.array, PARAMS)
    assert_identical(updates, three_updates(compiled(row.name))[0][1])


def donation_keeps_the_callers_arrays(row):
    values = {name: jnp.array(pair[0]) for name, pair in row.hyperparams.items()}
    tx = make(row, **values)
    _, state = tx.update(GRADIENT, tx.init(PARAMS), PARAMS)
    consume = jax.jit(lambda state: jax.tree.map(jnp.copy, state), donate_argnums=0)
    for donated in (tx.init(PARAMS), state):
        consume(donated)
        assert all(x.is_deleted() for x in jax.tree.leaves(donated))
    assert not any(value.is_deleted() for value in values.values())


def sharded_equals_single_device(row):
    mesh = jax.make_mesh((2,), ("data",))
    sharding = {
        k: NamedSharding(
            mesh, PartitionSpec("data" if shape else None) if shape else PartitionSpec()
        )
        for k, shape in SHAPES.items()
    }
    params, gradient = (jax.device_put(tree, sharding) for tree in (PARAMS, GRADIENT))
    tx = compiled(row.name)
    updates, state = tx.update(gradient, tx.init(params), params)
    assert_close(updates, three_updates(tx)[0][0], FEW_ROUNDINGS)
    slots = jax.tree.leaves(state)
    assert all(leaf.sharding.is_equivalent_to(sharding["w"], 2) for leaf in slots if leaf.ndim == 2)


def state_is_stable_under_cond(row):
    """The branches must be of one type, which tracing decides; only one of them is ours to run."""
    tx = make(row)

    def maybe(predicate, gradient, state, params):
        return jax.lax.cond(predicate, lambda: tx.update(gradient, state, params)[1], lambda: state)

    state = tx.init(PARAMS)
    after = jax.eval_shape(maybe, False, GRADIENT, state, PARAMS)
    assert layout(after) == layout(state)


def abstract_init_has_the_concrete_layout(row):
    tx = make(row)
    assert layout(jax.eval_shape(tx.init, PARAMS)) == layout(tx.init(PARAMS))


def inputs_are_not_mutated(row):
    params, gradient = dict(PARAMS), dict(GRADIENT)
    tx = make(row)
    state = tx.init(params)
    before = copy.deepcopy((params, gradient, state))
    tx.update(gradient, state, params)
    assert_identical((params, gradient, state), before)


def lowers_for_every_platform(row):
    tx = make(row)
    abstract = jax.eval_shape(lambda: PARAMS)
    exported = jax.export.export(jax.jit(tx.update), platforms=("cpu", "cuda", "rocm", "tpu"))(
        abstract, jax.eval_shape(tx.init, abstract), abstract
    )
    assert exported.platforms == ("cpu", "cuda", "rocm", "tpu")


# Trees


def odd_trees_pass_through(row):
    trees = (
        {},
        (),
        {"empty": jnp.zeros((0, 3)), "full": jnp.ones(2)},
        {"none": None, "full": jnp.ones(2)},
        {"masked": optax.MaskedNode(), "full": jnp.ones(2)},
        jnp.ones(()),
        [1.0, np.float64(2.0)],
    )
    tx = make(row)
    for tree in trees:
        state = tx.init(tree)
        updates, new_state = tx.update(tree, state, tree)
        assert jax.tree.structure(updates) == jax.tree.structure(tree)
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))


def a_none_gradient_leaves_its_slots_alone(row):
    tx = make(row)
    state = tx.init(PARAMS)
    gradient = {**GRADIENT, "w": None}
    updates, new_state = tx.update(gradient, state, PARAMS)
    assert updates["w"] is None
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True)
    assert all(np.array_equal(old, new) for old, new in pairs if old.shape == SHAPES["w"])
    alone, _ = tx.update({"s": GRADIENT["s"]}, tx.init({"s": PARAMS["s"]}), {"s": PARAMS["s"]})
    assert_identical({"s": updates["s"]}, alone)


def an_integer_leaf_is_an_error(row):
    tree = {"w": jnp.ones(2), "step": jnp.zeros((), int)}
    message = "must be floating point or complex, got int32 at \\['step'\\]"
    with pytest.raises(ValueError, match=f"parameters {message}"):
        make(row).init(tree)
    floats = jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    with pytest.raises(ValueError, match=f"gradients {message}"):
        make(row).update(tree, make(row).init(floats), floats)


def another_structure_is_an_error(row):
    tx = make(row)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"same structure, got \['extra'\] only in the gradients"):
        tx.update({**GRADIENT, "extra": jnp.ones(1)}, state, PARAMS)
    wrong = {**GRADIENT, "w": np.ones((3, 4), np.float32)}
    with pytest.raises(ValueError, match=r"gradient at \['w'\] must have the shape \(4, 3\)"):
        tx.update(wrong, state, PARAMS)


def a_foreign_state_is_an_error(row):
    tx = make(row)
    who = row.constructor.__name__
    for state in (PARAMS, optax.adam(0.1).init(PARAMS), optax.sgd(0.1).init(PARAMS)):
        with pytest.raises(ValueError, match=f"^{who}: update must be given the state that init"):
            tx.update(GRADIENT, state, PARAMS)


def missing_parameters_are_an_error(row):
    tx = make(row)
    state = tx.init(PARAMS)
    if row.needs_params:
        with pytest.raises(
            ValueError, match="update must be given the parameters, got params=None"
        ):
            tx.update(GRADIENT, state)
    else:
        assert_identical(tx.update(GRADIENT, state)[0], tx.update(GRADIENT, state, PARAMS)[0])


def complex_equals_two_reals(row):
    tx = make(row)

    def parts(tree):
        return {part: {k: getattr(x, part) for k, x in tree.items()} for part in ("real", "imag")}

    params = {
        k: (p + 2j * p[::-1] if p.ndim else p + 1j).astype(np.complex64) for k, p in PARAMS.items()
    }
    state, real_state = tx.init(params), tx.init(parts(params))
    for i in range(3):
        g = {k: (x[i] + 1j * x[i + 1]).astype(np.complex64) for k, x in GRADIENTS.items()}
        updates, state = tx.update(g, state, params)
        reals, real_state = tx.update(parts(g), real_state, parts(params))
    assert all(u.dtype == np.complex64 for u in updates.values())
    # The norm adds the same squares in another order.
    assert_close(parts(updates), reals, FEW_ROUNDINGS)


# Numbers


def low_precision_keeps_types_and_computes_in_float32(row):
    for dtype in (jnp.bfloat16, jnp.float16):
        params, gradient = (
            {k: jnp.asarray(x, dtype) for k, x in tree.items()} for tree in (PARAMS, GRADIENT)
        )
        tx = make(row)
        updates, state = tx.update(gradient, tx.init(params), params)
        assert all(u.dtype == dtype for u in updates.values())
        slots = [s for s in jax.tree.leaves(state) if jnp.issubdtype(s.dtype, jnp.inexact)]
        assert all(s.dtype == jnp.float32 for s in slots)
        full = [{k: x.astype(jnp.float32) for k, x in tree.items()} for tree in (params, gradient)]
        exact, _ = tx.update(full[1], tx.init(full[0]), full[0])
        # One rounding, at the very end: half a unit in the last place, so the same after rounding.
        assert_identical(updates, {k: u.astype(dtype) for k, u in exact.items()})


def mixed_types_keep_their_own(row):
    dtypes = {"a": jnp.bfloat16, "b": jnp.float32, "c": jnp.float16}
    params, gradient = (
        {k: jnp.asarray(tree["w"], dtype) for k, dtype in dtypes.items()}
        for tree in (PARAMS, GRADIENT)
    )
    tx = make(row)
    updates, _ = tx.update(gradient, tx.init(params), params)
    assert {k: u.dtype for k, u in updates.items()} == dtypes


def zero_gradient_is_a_no_op(row):
    for dtype in (jnp.float32, jnp.float16):
        params = {k: jnp.asarray(p, dtype) for k, p in PARAMS.items()}
        zeros = jax.tree.map(jnp.zeros_like, params)
        tx = make(row)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(zeros, state, params)
            assert_close(updates, zeros, 0.0)


def tiny_gradients_stay_finite(row):
    tx = make(row)
    for size in (1e-20, 1e-30, 1e-40):  # squares that underflow, and a denormal
        gradient = {k: np.full(shape, size, np.float32) for k, shape in SHAPES.items()}
        updates, _ = tx.update(gradient, tx.init(PARAMS), PARAMS)
        assert all(bool(jnp.isfinite(u).all()) for u in updates.values())


def huge_gradients_stay_finite_and_are_forgotten(row):
    tx = make(row)
    for size in (1e20, 1e30, 3e38):
        gradient = {k: np.full(shape, size, np.float32) for k, shape in SHAPES.items()}
        state = tx.init(PARAMS)
        for g in (gradient, GRADIENT, GRADIENT):
            updates, state = tx.update(g, state, PARAMS)
            assert all(bool(jnp.isfinite(u).all()) for u in updates.values())


def an_infinity_is_not_hidden(row):
    gradient = {**GRADIENT, "s": np.float32(np.inf)}
    tx = make(row)
    updates, _ = tx.update(gradient, tx.init(PARAMS), PARAMS)
    assert not np.isfinite(updates["s"])


def a_nan_is_not_hidden_and_does_not_spread(row):
    gradient = {**GRADIENT, "s": np.float32(np.nan)}
    tx = make(row)
    updates, _ = tx.update(gradient, tx.init(PARAMS), PARAMS)
    assert np.isnan(updates["s"])
    assert np.isfinite(updates["w"]).all()


def the_counter_saturates(row):
    tx = make(row)
    top = np.int32(2**31 - 1)

    def count(tree, value):
        return jax.tree.map(lambda x: value(x) if x.dtype == jnp.int32 else x, tree)

    state = count(tx.init(PARAMS), lambda x: jnp.full_like(x, top))
    updates, state = tx.update(GRADIENT, state, PARAMS)
    assert all(x == top for x in jax.tree.leaves(state) if x.dtype == jnp.int32)
    assert all(bool(jnp.isfinite(u).all()) for u in updates.values())


def mirrored_inputs_give_mirrored_updates(row):
    def mirror(tree):
        return jax.tree.map(lambda x: -x, tree)

    tx = compiled(row.name)
    mirrored, _ = three_updates(tx, mirror(PARAMS), mirror(GRADIENTS))
    assert_identical(jax.tree.map(np.abs, mirrored), jax.tree.map(np.abs, three_updates(tx)[0]))
    assert_identical(mirrored, mirror(three_updates(tx)[0]))


# Hyperparameters


def state_value(state, name):
    return optax.tree_utils.tree_get(state, name)


def bad_hyperparameters_are_refused(row):
    assert row.errors
    who = row.constructor.__name__
    for options, message in row.errors:
        with pytest.raises(ValueError, match="^" + who) as error:
            make(row, **options)
        assert str(error.value).startswith(f"{who}: {message}")


def array_and_schedule_equal_a_float(row):
    """Same layout for all three; same bits too, except 1 − β, which only a float has exactly."""
    for name, (value, _) in row.hyperparams.items():
        exact = float(np.float32(value)) if value < 0.5 else 1 - 2.0**-7  # 1 − β without rounding
        tx = make(row, **{name: exact})
        updates, state = three_updates(tx)
        for other in (jnp.array(exact), lambda step, v=exact: jnp.float32(v)):
            other_updates, other_state = three_updates(make(row, **{name: other}))
            assert_close(other_updates, updates, FEW_ROUNDINGS)
            assert jax.tree.structure(other_state) == jax.tree.structure(state)
            assert state_value(other_state, name) == state_value(state, name)
            assert [x.dtype for x in jax.tree.leaves(other_state)] == [
                x.dtype for x in jax.tree.leaves(state)
            ]


def the_first_update_uses_step_zero(row):
    for name, (first, second) in row.hyperparams.items():
        tx = make(row, **{name: lambda step, a=first, b=second: jnp.where(step == 0, a, b)})
        state = tx.init(PARAMS)
        assert state_value(state, name) == np.float32(first)
        _, state = tx.update(GRADIENT, state, PARAMS)
        assert state_value(state, name) == np.float32(first)
        _, state = tx.update(GRADIENT, state, PARAMS)
        assert state_value(state, name) == np.float32(second)


def a_value_replaced_in_the_state_takes_effect(row):
    """As if the transformation had been made with it, in double to see every digit."""
    with jax.enable_x64(True):
        params, gradient = (
            {k: np.asarray(x, np.float64) for k, x in tree.items()} for tree in (PARAMS, GRADIENT)
        )
        for name, (first, second) in row.hyperparams.items():
            tx = make(row, **{name: first})
            state = optax.tree_utils.tree_set(tx.init(params), **{name: jnp.array(second)})
            updates, state = tx.update(gradient, state, params)
            wanted, _ = make(row, **{name: second}).update(
                gradient, make(row, **{name: second}).init(params), params
            )
            assert_close(updates, wanted, 1e-12)
            assert state_value(state, name) == second
            assert state_value(tx.update(gradient, state, params)[1], name) == second


def a_changed_argument_takes_effect(row):
    """A transformation built anew with another value, as by a sweep, uses that value."""
    for name, (first, second) in row.hyperparams.items():
        _, state = make(row, **{name: first}).update(
            GRADIENT, make(row, **{name: first}).init(PARAMS), PARAMS
        )
        _, state = make(row, **{name: second}).update(GRADIENT, state, PARAMS)
        assert state_value(state, name) == np.float32(second)


# Persistence


def a_pickled_state_resumes_bitwise(row):
    tx = compiled(row.name)
    _, state = tx.update(GRADIENT, tx.init(PARAMS), PARAMS)
    for restored in (pickle.loads(pickle.dumps(state)), copy.deepcopy(state)):
        assert_identical(tx.update(GRADIENT, restored, PARAMS), tx.update(GRADIENT, state, PARAMS))
    assert "count" in repr(state)


CHECKS = (
    matches_reference,
    matches_reference_in_double,
    follows_schedules,
    scan_equals_loop,
    vmap_over_hyperparameters_equals_loop,
    vmap_over_trees_equals_loop,
    one_compilation_serves_all_values,
    donation_is_safe,
    donation_keeps_the_callers_arrays,
    sharded_equals_single_device,
    state_is_stable_under_cond,
    abstract_init_has_the_concrete_layout,
    inputs_are_not_mutated,
    lowers_for_every_platform,
    odd_trees_pass_through,
    a_none_gradient_leaves_its_slots_alone,
    an_integer_leaf_is_an_error,
    another_structure_is_an_error,
    a_foreign_state_is_an_error,
    missing_parameters_are_an_error,
    complex_equals_two_reals,
    low_precision_keeps_types_and_computes_in_float32,
    mixed_types_keep_their_own,
    zero_gradient_is_a_no_op,
    tiny_gradients_stay_finite,
    huge_gradients_stay_finite_and_are_forgotten,
    an_infinity_is_not_hidden,
    a_nan_is_not_hidden_and_does_not_spread,
    the_counter_saturates,
    mirrored_inputs_give_mirrored_updates,
    bad_hyperparameters_are_refused,
    array_and_schedule_equal_a_float,
    the_first_update_uses_step_zero,
    a_value_replaced_in_the_state_takes_effect,
    a_changed_argument_takes_effect,
    a_pickled_state_resumes_bitwise,
)


def test_exemptions_name_checks():
    names = {check.__name__ for check in CHECKS}
    assert all(set(row.exempt) <= names for row in ROWS.values())


class Variants(chex.TestCase):
    """Updates without `jit`, and on values placed on a device, as with it."""

    @chex.variants(without_jit=True, with_device=True, without_device=True)
    @parameterized.named_parameters((name, name) for name in ROWS)
    def test_every_variant_gives_the_compiled_updates(self, name):
        tx = make(ROWS[name])
        variant = optax.GradientTransformation(tx.init, self.variant(tx.update))
        assert_close(three_updates(variant)[0], three_updates(compiled(name))[0], FEW_ROUNDINGS)


@pytest.mark.parametrize(
    ("row", "check"),
    [
        pytest.param(row, check, id=f"{row.name}-{check.__name__}")
        for row in ROWS.values()
        for check in CHECKS
        if check.__name__ not in row.exempt
    ],
)
def test_row(row, check):
    check(row)
