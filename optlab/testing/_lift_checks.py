"""The checks of the machinery around the arithmetic: execution, trees, types, persistence."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import replace_hyperparams
from optlab._types import Tree
from optlab.registry import Row
from optlab.testing import _runs
from optlab.testing._check import (
    begins,
    check,
    refuses,
    require,
    require_close,
    require_finite,
    require_identical,
)
from optlab.testing._rule_checks import has_hyperparams
from optlab.testing._runs import (
    FEW_ROUNDINGS,
    at,
    compiled,
    gradient,
    gradients,
    make,
    parameters,
    three_updates,
)


def has_two_devices(row: Row) -> bool:
    """Whether sharding can be tried; `jax_num_cpu_devices` makes two of one CPU."""
    return jax.device_count() > 1


def is_own(row: Row) -> bool:
    """Whether optlab answers for the row's errors."""
    return row.own


def layout(tree: Tree) -> Any:
    """Return the shapes and types of a tree."""
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


# Execution


@check("lift")
def eager_equals_compiled(row: Row) -> None:
    """Updates without `jit` differ from those with it. Mend: compute in JAX alone, and branch on
    nothing but shapes, types and options.
    """
    updates, _ = three_updates(row, make(row))
    require_close(updates, _runs.first_three(row)[0], FEW_ROUNDINGS)


@check("lift")
def numpy_arrays_are_taken(row: Row) -> None:
    """NumPy arrays fail without `jit`, or give other updates than JAX arrays. Mend: convert inputs
    with `jnp.asarray`.
    """
    host = jax.tree.map(np.asarray, (parameters(row), gradient(row)))
    tx = make(row)
    updates, _ = tx.update(host[1], tx.init(host[0]), host[0])
    require_close(updates, _runs.first_three(row)[0][0], FEW_ROUNDINGS)


@check("lift")
def scan_equals_loop(row: Row) -> None:
    """Updates in one `lax.scan` differ from a loop of calls, or the state changes its types. Mend:
    return the state in the structure, shapes and types in which it came.
    """
    updates, states = _runs.single_runs(row)[1]
    in_loop, loop_state = _runs.first_three(row)
    for i, update in enumerate(in_loop):
        require_close(at(updates, i), update, FEW_ROUNDINGS)
    require_close(at(states, 2), loop_state, FEW_ROUNDINGS)


@check("lift", has_hyperparams)
def vmap_over_hyperparameters_equals_loop(row: Row) -> None:
    """A sweep of hyperparameters under `vmap` differs from one run each. Mend: let no Python code
    look at the value of a hyperparameter.
    """
    grads = {k: g[:2] for k, g in gradients(row).items()}

    def run(values):
        return _runs.trajectory(make(row, **values), grads, parameters(row))[0]

    values = {name: jnp.array(pair) for name, pair in row.hyperparams.items()}
    lanes = jax.jit(jax.vmap(run))(values)
    for lane in range(2):
        tx = make(row, **{name: v[lane] for name, v in values.items()})
        for step, single in enumerate(three_updates(row, tx)[0][:2]):
            of_lane = jax.tree.map(lambda u, i=lane, j=step: u[i, j], lanes)
            require_close(of_lane, single, FEW_ROUNDINGS)


@check("lift")
def vmap_over_trees_equals_loop(row: Row) -> None:
    """A batch of models under `vmap` differs from one model each. Mend: use no function that cannot
    be mapped, and no shape that includes the batch.
    """
    tx = make(row)
    params, grads = _runs.random_tree(row, 2, 3), _runs.random_tree(row, 3, 3)
    states = jax.vmap(tx.init)(params)
    lanes, _ = jax.jit(jax.vmap(tx.update))(grads, states, params)
    for i in range(3):
        p, g = at(params, i), at(grads, i)
        single, _ = compiled(row).update(g, tx.init(p), p)
        require_close(at(lanes, i), single, FEW_ROUNDINGS)


@check("lift", lambda row: has_hyperparams(row) and row.own)
def one_compilation_serves_all_values(row: Row) -> None:
    """Another value of a hyperparameter compiles the update anew. Mend: keep values in the state,
    as arrays.
    """
    tx = make(row, **{name: values[0] for name, values in row.hyperparams.items()})
    traces = []

    @jax.jit
    def step(g, state, params):
        traces.append(1)
        return tx.update(g, state, params)

    state = tx.init(parameters(row))
    for name, values in row.hyperparams.items():
        for value in values:
            replaced = replace_hyperparams(state, **{name: value})
            jax.eval_shape(step, gradient(row), replaced, parameters(row))
    require(len(traces) == 1, f"{len(traces)} compilations")


@check("lift")
def donation_is_safe(row: Row) -> None:
    """Donated buffers are read after they were overwritten. Mend: let no two leaves of the state
    share a buffer, and none of them with the parameters.
    """
    tx = make(row)
    params = jax.tree.map(jnp.array, parameters(row))
    state = tx.init(params)
    step, updates = jax.jit(tx.update, donate_argnums=(1, 2)), None
    for i in range(2):
        updates, state = step(at(gradients(row), i), state, params)
        params = jax.tree.map(jnp.array, parameters(row))
    require_identical(updates, _runs.first_three(row)[0][1])


@check("lift", has_hyperparams)
def donation_keeps_the_callers_arrays(row: Row) -> None:
    """A donated state takes an array with it that was passed to the constructor. Mend: copy what
    goes into the state.
    """
    values = {name: jnp.array(pair[0]) for name, pair in row.hyperparams.items()}
    tx = make(row, **values)
    params = jax.tree.map(jnp.array, parameters(row))
    _, state = tx.update(gradient(row), tx.init(params), params)
    consume = jax.jit(lambda state: jax.tree.map(jnp.copy, state), donate_argnums=0)
    for donated in (tx.init(jax.tree.map(jnp.array, parameters(row))), state):
        consume(donated)
        require(all(x.is_deleted() for x in jax.tree.leaves(donated)), "not all were donated")
    require(not any(value.is_deleted() for value in values.values()), "an argument is deleted")


@check("lift", has_two_devices)
def sharded_equals_single_device(row: Row) -> None:
    """Updates of sharded arrays differ from those of whole ones, or slots in the parameters' shape
    lose the parameters' sharding. Mend: make slots with `jnp.full_like`.
    """
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    sharding = {
        k: NamedSharding(mesh, PartitionSpec("data") if _divisible(shape) else PartitionSpec())
        for k, shape in row.shapes.items()
    }
    params, g = (jax.device_put(tree, sharding) for tree in (parameters(row), gradient(row)))
    tx = compiled(row)
    first_state = tx.init(params)
    updates, state = tx.update(g, first_state, params)
    require_close(updates, _runs.first_three(row)[0][0], FEW_ROUNDINGS)
    key = _runs.largest_key(row)
    # A compiler may shard the new state by itself, but not the first one.
    for leaf in jax.tree.leaves((first_state, state)):
        if leaf.shape == row.shapes[key]:
            same = leaf.sharding.is_equivalent_to(sharding[key], leaf.ndim)
            require(same, f"a slot has the sharding {leaf.sharding}")


@check("lift", has_two_devices)
def slots_sharded_unlike_parameters_work(row: Row) -> None:
    """With a mesh of explicit axes, slots that are sharded where parameters are not (ZeRO) fail, or
    lose their sharding. Mend: bring the arrays of a leaf to one sharding before the arithmetic.
    """
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    key = _runs.largest_key(row)
    if not _divisible(row.shapes[key]):
        return
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data"))
    # What is shared with other checks is made outside, so that its arrays know of no mesh.
    shared, expected = (parameters(row), gradient(row)), _runs.first_three(row)[0][0]
    tx = make(row)
    with jax.set_mesh(mesh):
        params, g = (jax.device_put(tree, whole) for tree in shared)
        state = jax.tree.map(
            lambda x: jax.device_put(x, split if x.shape == row.shapes[key] else whole),
            tx.init(params),
        )
        updates, new_state = jax.jit(tx.update)(g, state, params)
        require_close(updates, expected, FEW_ROUNDINGS)
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True):
            same = new.sharding.is_equivalent_to(old.sharding, old.ndim)
            require(same, f"a slot of {old.sharding} became {new.sharding}")


def _divisible(shape: tuple[int, ...]) -> bool:
    """Whether the first axis can be split in two."""
    return bool(shape) and shape[0] % 2 == 0


@check("lift")
def state_is_stable_under_cond(row: Row) -> None:
    """The state after an update cannot stand in for the one before, in `lax.cond`. Mend: return the
    state in the structure, shapes and types in which it came.
    """
    tx = make(row)

    def maybe(predicate, g, state, params):
        return jax.lax.cond(predicate, lambda: tx.update(g, state, params)[1], lambda: state)

    state = tx.init(parameters(row))
    # Tracing decides whether the branches agree.
    after = jax.eval_shape(maybe, False, gradient(row), state, parameters(row))
    require(layout(after) == layout(state), "the layout changes")


@check("lift")
def abstract_init_has_the_concrete_layout(row: Row) -> None:
    """`init` of descriptions of parameters fails or has another layout, so that a checkpoint cannot
    be restored without memory for two models. Mend: make slots from shape and type.
    """
    tx = make(row)
    concrete = layout(tx.init(parameters(row)))
    require(layout(jax.eval_shape(tx.init, parameters(row))) == concrete, "under eval_shape")
    shapes = jax.eval_shape(lambda: parameters(row))
    require(layout(tx.init(shapes)) == concrete, "of ShapeDtypeStructs")


@check("lift")
def inputs_are_not_mutated(row: Row) -> None:
    """An update changes its inputs. Mend: return new trees."""
    params, g = (
        {key: np.array(x) for key, x in tree.items()} for tree in (parameters(row), gradient(row))
    )
    tx = make(row)
    state = tx.init(params)
    before = copy.deepcopy((params, g, state))
    tx.update(g, state, params)
    require_identical((params, g, state), before)


@check("lift")
def lowers_for_every_platform(row: Row) -> None:
    """The update cannot be exported for CPU, GPU and TPU. Mend: use no primitive of one platform
    outside `lax.platform_dependent`.
    """
    tx = make(row)
    abstract = jax.eval_shape(lambda: parameters(row))
    platforms = ("cpu", "cuda", "rocm", "tpu")
    exported = jax.export.export(jax.jit(tx.update), platforms=platforms)(
        abstract, jax.eval_shape(tx.init, abstract), abstract
    )
    require(exported.platforms == platforms, f"{exported.platforms}")


@check("lift")
def is_a_static_argument(row: Row) -> None:
    """The transformation cannot be a static argument of `jit`, as libraries that wrap optimizers
    pass it. Mend: keep unhashable objects out of what `jit` sees.
    """
    tx = make(row)
    require(hash(tx) == hash(tx), "not hashable")
    require(tx == tx, "not equal to itself")
    step = jax.jit(lambda tx, g, state, p: tx.update(g, state, p)[0], static_argnums=0)
    jax.eval_shape(
        lambda g, state, p: step(tx, g, state, p),
        gradient(row),
        tx.init(parameters(row)),
        parameters(row),
    )


@check("lift")
def runs_under_strict_settings(row: Row) -> None:
    """The update fails, or changes, where NaN are errors or types must not be promoted silently.
    Mend: compute no NaN that is not used, and cast on purpose.
    """
    expected = _runs.first_three(row)[0]
    tx = make(row)
    with jax.numpy_dtype_promotion("strict"):
        require_close(three_updates(row, tx)[0], expected, FEW_ROUNDINGS)
    with jax.debug_nans(True), jax.debug_infs(True):
        require_close(three_updates(row, tx)[0], expected, FEW_ROUNDINGS)
    with jax.disable_jit():
        updates, _ = tx.update(gradient(row), tx.init(parameters(row)), parameters(row))
        require_close(updates, expected[0], FEW_ROUNDINGS)


# Trees


@check("lift")
def odd_trees_pass_through(row: Row) -> None:
    """Empty trees, empty arrays, None, masked leaves or Python numbers are not taken. Mend: walk
    trees with `jax.tree` alone.
    """
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
        require(jax.tree.structure(updates) == jax.tree.structure(tree), f"updates of {tree}")
        require(jax.tree.structure(new_state) == jax.tree.structure(state), f"state of {tree}")
        require_finite(updates)


@check("lift", is_own)
def a_none_gradient_leaves_its_slots_alone(row: Row) -> None:
    """A None among the gradients fails, or moves what belongs to its parameter. Mend: skip leaves
    whose gradient is None.
    """
    tx = make(row)
    params, key, other = parameters(row), _runs.largest_key(row), _runs.smallest_key(row)
    # After an update the slots are no longer what `init` made them.
    _, state = tx.update(gradient(row), tx.init(params), params)
    updates, new_state = tx.update({**gradient(row), key: None}, state, params)
    require(updates[key] is None, "the update is not None")
    require(jax.tree.structure(new_state) == jax.tree.structure(state), "the structure changes")
    old_leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, old), new in zip(old_leaves, jax.tree.leaves(new_state), strict=True):
        if jax.tree_util.DictKey(key) in path:
            require(np.array_equal(old, new), "it moved")
    if other == key:
        return
    g, p = ({other: tree[other]} for tree in (gradient(row), params))
    _, state = tx.update(g, tx.init(p), p)
    require_identical({other: updates[other]}, tx.update(g, state, p)[0])


@check("lift", is_own)
def an_integer_leaf_is_an_error(row: Row) -> None:
    """An integer parameter or gradient fails obscurely. Mend: let the lift check leaves."""
    tree = {"w": jnp.ones(5), "step": jnp.zeros((), int)}
    message = "must be floating point or complex, got int32 at \\['step'\\]"
    tx = make(row)
    floats = jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    state = tx.init(floats)
    has_slots = any(leaf.shape == (5,) for leaf in jax.tree.leaves(state))
    if has_slots:  # without slots nothing is made of the parameters
        with refuses(f"parameters {message}", "an integer parameter"):
            tx.init(tree)
    with refuses(f"gradients {message}", "an integer gradient"):
        tx.update(tree, state, floats)


@check("lift", is_own)
def another_structure_is_an_error(row: Row) -> None:
    """Gradients of another structure or shape fail obscurely. Mend: let the lift align trees."""
    tx = make(row)
    state = tx.init(parameters(row))
    with refuses(r"same structure, got \['extra'\] only in the gradients", "another structure"):
        tx.update({**gradient(row), "extra": jnp.ones(1)}, state, parameters(row))
    key = _runs.largest_key(row)
    wrong = {**gradient(row), key: np.ones((*row.shapes[key], 2), np.float32)}
    with refuses(rf"gradient at \['{key}'\] must have the shape", "another shape"):
        tx.update(wrong, state, parameters(row))


@check("lift", is_own)
def a_foreign_state_is_an_error(row: Row) -> None:
    """The state of another transformation fails obscurely. Mend: let the lift check states."""
    tx = make(row)
    params = parameters(row)
    for state in (params, optax.adam(0.1).init(params), optax.sgd(0.1).init(params)):
        if jax.tree.leaves(state):
            required = begins(row) + "update must be given the state that init"
            with refuses(required, "a foreign state"):
                tx.update(gradient(row), state, params)


@check("lift")
def mixed_types_keep_their_own(row: Row) -> None:
    """In a tree of several types, a leaf's update takes another leaf's type. Mend: cast leaf by
    leaf.
    """
    dtypes = {"a": jnp.bfloat16, "b": jnp.float32, "c": jnp.float16}
    key = _runs.largest_key(row)
    params, g = (
        {k: jnp.asarray(tree[key], dtype) for k, dtype in dtypes.items()}
        for tree in (parameters(row), gradient(row))
    )
    tx = make(row)
    updates, _ = tx.update(g, tx.init(params), params)
    require({k: u.dtype for k, u in updates.items()} == dtypes, f"{layout(updates)}")


# States


@check("lift")
def the_counter_saturates(row: Row) -> None:
    """The count of updates wraps around after 2³¹ − 1 of them. Mend: use
    `optax.safe_increment`.
    """
    tx = make(row)
    top = np.int32(2**31 - 1)
    state = jax.tree.map(
        lambda x: jnp.full_like(x, top) if x.dtype == jnp.int32 else x, tx.init(parameters(row))
    )
    updates, state = tx.update(gradient(row), state, parameters(row))
    counts = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    require(all(x == top for x in counts), f"{counts}")
    require_finite(updates)


@check("lift")
def the_state_is_finite(row: Row) -> None:
    """The state holds NaN or infinity before or after an ordinary update, so that a search for
    broken numbers finds it. Mend: mark what is not there yet with a finite number.
    """
    tx = make(row)
    state = tx.init(parameters(row))
    require_finite(_runs.numbers(state), "the first state")
    require_finite(
        _runs.numbers(tx.update(gradient(row), state, parameters(row))[1]), "the next state"
    )


@check("lift")
def a_pickled_state_resumes_bitwise(row: Row) -> None:
    """A state that was pickled or copied does not go on as before. Mend: keep arrays, numbers and
    NamedTuples in the state, of classes that can be imported.
    """
    tx = compiled(row)
    _, state = tx.update(gradient(row), tx.init(parameters(row)), parameters(row))
    expected = tx.update(gradient(row), state, parameters(row))
    for restored in (pickle.loads(pickle.dumps(state)), copy.deepcopy(state)):
        require_identical(tx.update(gradient(row), restored, parameters(row)), expected)


@check("lift")
def optax_maps_over_slots(row: Row) -> None:
    """`optax.tree_map_params` does not find the slots in the parameters' shape. Mend: let `init`
    take trees of no leaves, and make slots by mapping over the parameters.
    """
    tx = make(row)
    state = tx.init(parameters(row))
    mapped = optax.tree_map_params(tx, lambda x: x, state)
    require_identical(mapped, state)
