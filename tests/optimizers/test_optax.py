"""Every rule inside Optax's own wrappers, and against Optax's own optimizers.

Eager runs of the same operations agree bitwise. Where one side is compiled, XLA may fuse a product
and a sum with one rounding instead of two: a difference of 1.2e-7 relative an operation, of which
an update chains about ten.
"""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from helpers import one_of_each_kind
from optlab.registry import OPTIMIZERS, TRANSFORMATIONS

COMPILED = {"rtol": 2e-6, "atol": 1e-6}  # see above; parameters and gradients are of order 1

RATE = 0.1
MAKERS = {
    name: functools.partial(row.make, RATE, **row.samples[0]) for name, row in OPTIMIZERS.items()
} | {name: functools.partial(row.make, **row.samples[0]) for name, row in TRANSFORMATIONS.items()}
ROWS = OPTIMIZERS | TRANSFORMATIONS


def rows_but(test):
    """Return the rows that are not exempt from a test."""
    return {name: row for name, row in ROWS.items() if test not in row.exempt}


every_row = pytest.mark.parametrize("name", ROWS)
every_kind = pytest.mark.parametrize("name", one_of_each_kind(ROWS))
every_kind_of_optimizer = pytest.mark.parametrize("name", one_of_each_kind(OPTIMIZERS))

rng = np.random.default_rng(0)


def random_tree():
    """Return a tree whose shapes no scalar and no vector of hyperparameters has."""
    shapes = {"dense": {"kernel": (6, 5)}, "scale": (7,)}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS = random_tree()
GRADIENTS = [random_tree() for _ in range(4)]
NAN = jax.tree.map(lambda p: p.at[0].set(jnp.nan), PARAMS)


def walk(tx, gradients=GRADIENTS, params=PARAMS, state=None, update=None):
    """Feed a transformation with gradients.

    Returns the updates and the parameters after each, as lists, and the last state.
    """
    state, update = state or tx.init(params), update or tx.update
    all_updates, all_params = [], []
    for g in gradients:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        all_updates.append(updates)
        all_params.append(params)
    return all_updates, all_params, state


def part(trees, key):
    """Return of every tree the branch under one key."""
    return [{key: tree[key]} for tree in trees]


# Wrappers


@every_kind
def test_chain_is_its_parts_in_a_row(name):
    parts = [optax.clip_by_global_norm(1.0), MAKERS[name](), optax.trace(0.9)]
    states, params = [tx.init(PARAMS) for tx in parts], PARAMS
    updates, after, _ = walk(optax.chain(*parts))
    for g, chained, new_params in zip(GRADIENTS, updates, after, strict=True):
        for i, tx in enumerate(parts):
            g, states[i] = tx.update(g, states[i], params)
        chex.assert_trees_all_equal(chained, g)
        params = new_params


@every_row
def test_extra_arguments_pass_through_a_chain(name):
    scale_by_extra = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, *, factor: (
            jax.tree.map(lambda u: factor * u, updates),
            state,
        ),
    )
    tx = MAKERS[name]()
    chain = optax.chain(tx, scale_by_extra)
    updates, _ = chain.update(GRADIENTS[0], chain.init(PARAMS), PARAMS, factor=2.0)
    alone, _ = tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS)
    # Multiplying by 2 is exact.
    chex.assert_trees_all_equal(updates, jax.tree.map(lambda u: 2 * u, alone))


@every_row
def test_partition_is_each_group_on_its_own(name):
    ours, theirs = MAKERS[name](), optax.sgd(RATE, momentum=0.9)
    labels = {"dense": "ours", "scale": "theirs"}
    _, after, _ = walk(optax.partition({"ours": ours, "theirs": theirs}, labels))
    for tx, key in ((ours, "dense"), (theirs, "scale")):
        _, alone, _ = walk(tx, part(GRADIENTS, key), *part([PARAMS], key))
        chex.assert_trees_all_equal(part(after, key), alone)


@every_row
def test_frozen_leaves_are_bitwise_unchanged_and_keep_no_state(name):
    labels = {"dense": "trained", "scale": "frozen"}
    groups = {"trained": MAKERS[name](), "frozen": optax.set_to_zero()}
    _, after, state = walk(optax.partition(groups, labels))
    chex.assert_trees_all_equal(part(after, "scale"), part([PARAMS] * 4, "scale"))
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert PARAMS["scale"].shape not in shapes


@every_row
def test_masked_leaves_pass_through_untouched(name):
    tx = MAKERS[name]()
    updates, _, _ = walk(optax.masked(tx, {"dense": True, "scale": False}))
    chex.assert_trees_all_equal(part(updates, "scale"), part(GRADIENTS, "scale"))
    alone, _, _ = walk(tx, part(GRADIENTS, "dense"), *part([PARAMS], "dense"))
    chex.assert_trees_all_equal(part(updates, "dense"), alone)


@pytest.mark.parametrize("name", one_of_each_kind(rows_but("flattening_changes_nothing")))
def test_flattening_changes_nothing(name):
    tx = MAKERS[name]()
    _, after, _ = walk(optax.flatten(tx))
    _, plain, _ = walk(tx)
    # The norm's sum runs in another order: a few roundings.
    chex.assert_trees_all_close(after, plain, rtol=1e-6, atol=1e-7)


@every_kind
def test_multi_steps_acts_on_the_mean_gradient(name):
    tx = MAKERS[name]()
    multi = optax.MultiSteps(tx, every_k_schedule=2)
    updates, after, state = walk(multi, update=jax.jit(multi.update))
    for waiting in updates[::2]:
        chex.assert_trees_all_equal(waiting, jax.tree.map(jnp.zeros_like, PARAMS))
    pairs = zip(GRADIENTS[::2], GRADIENTS[1::2], strict=True)
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in pairs]
    _, alone, alone_state = walk(tx, means)
    chex.assert_trees_all_close(after[1::2], alone, **COMPILED)
    chex.assert_trees_all_close(state.inner_opt_state, alone_state, **COMPILED)


@every_kind_of_optimizer
def test_an_update_that_is_not_finite_leaves_no_trace(name):
    tx = MAKERS[name]()
    careful = optax.apply_if_finite(tx, max_consecutive_errors=2)
    first, second = GRADIENTS[:2]
    _, after, state = walk(careful, [first, NAN, second], update=jax.jit(careful.update))
    _, alone, alone_state = walk(tx, [first, second])
    chex.assert_trees_all_equal(after[1], after[0])
    chex.assert_trees_all_close([after[0], after[2]], alone, **COMPILED)
    chex.assert_trees_all_close(state.inner_state, alone_state, **COMPILED)
    assert state.total_notfinite == 1


def is_masked(node):
    return isinstance(node, optax.MaskedNode)


@pytest.mark.parametrize("name", rows_but("tree_map_params_finds_every_slot"))
def test_tree_map_params_finds_every_slot(name):
    tx = MAKERS[name]()
    state = tx.init(PARAMS)
    specs = jax.tree.map(lambda p: f"spec of {p.shape}", PARAMS)
    mapped = optax.tree_map_params(
        tx,
        lambda slot, spec: slot if is_masked(slot) else spec,
        state,
        specs,
        transform_non_params=lambda x: f"{x.shape}",
        is_leaf=is_masked,
    )
    expected = jax.tree.map(
        lambda x: f"spec of {x.shape}" if x.shape in {(6, 5), (7,)} else f"{x.shape}", state
    )
    assert mapped == expected


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.hyperparams])
def test_an_injected_hyperparameter_changes_from_the_next_update_on(name):
    row = ROWS[name]
    first, second = ({key: pair[i] for key, pair in row.hyperparams.items()} for i in (0, 1))
    options = dict(row.fixed) | dict(row.samples[0])
    # Sizes of arrays and counts of steps, unlike other numbers, cannot be traced.
    sizes = {"block_size", "max_precondition_dim", "min_dim_size_to_factor", "ns_steps"} & set(
        inspect.signature(row.constructor).parameters
    )
    make = optax.inject_hyperparams(row.constructor, sizes, hyperparam_dtype=jnp.float32)
    tx = make(**(options | first))

    def changing(key):
        return lambda step: jnp.where(step < 2, first[key], second[key])

    scheduled = row.constructor(**(options | {key: changing(key) for key in first}))
    expected, _, expected_state = walk(scheduled)
    for update in (tx.update, jax.jit(tx.update)):
        before, middle, state = walk(tx, GRADIENTS[:2], update=update)
        state.hyperparams.update({key: jnp.float32(value) for key, value in second.items()})
        after, _, state = walk(tx, GRADIENTS[2:], middle[-1], state, update)
        chex.assert_trees_all_close(before + after, expected, **COMPILED)
        if name == "params_ema":
            averages = map(optlab.averaged_params, (state, expected_state))
            chex.assert_trees_all_close(*averages, **COMPILED)
    if name not in ("params_ema", "reduce_on_plateau"):  # without a value it passes updates through
        unchanged, _, _ = walk(row.constructor(**(options | first)), GRADIENTS)
        difference = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), after[0], unchanged[2])
        assert max(jax.tree.leaves(difference)) > 1e-3


@every_kind_of_optimizer
def test_a_deep_nest_compiled_is_its_parts_by_hand(name):
    """Accumulate, clip, train one group with an average, freeze the other."""
    tx = optax.chain(MAKERS[name](), optlab.params_ema(0.9))
    groups = {"trained": tx, "frozen": optax.set_to_zero()}
    nest = optax.MultiSteps(
        optax.chain(
            optlab.clip_by_global_norm(1.0),
            optax.partition(groups, {"dense": "trained", "scale": "frozen"}),
        ),
        every_k_schedule=2,
    )
    _, after, state = walk(nest, update=jax.jit(nest.update))
    pairs = zip(GRADIENTS[::2], GRADIENTS[1::2], strict=True)
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in pairs]
    clipped = [optax.clip_by_global_norm(1.0).update(g, optax.EmptyState())[0] for g in means]
    _, alone, alone_state = walk(tx, part(clipped, "dense"), *part([PARAMS], "dense"))
    chex.assert_trees_all_close(part(after[1::2], "dense"), alone, **COMPILED)
    chex.assert_trees_all_equal(after[-1]["scale"], PARAMS["scale"])
    average, expected = map(optlab.averaged_params, (state, alone_state))
    chex.assert_trees_all_close(average["dense"], expected["dense"], **COMPILED)


# Schedules

STEPS = range(25)
SCHEDULES = {
    "constant": (optlab.schedules.constant(0.1), optax.constant_schedule(0.1)),
    "linear": (optlab.schedules.linear(0.2, 0.1, 20), optax.linear_schedule(0.2, 0.1, 20)),
    "cosine": (
        optlab.schedules.cosine(0.2, 20, end_value=0.1),
        optax.cosine_decay_schedule(0.2, 20, alpha=0.5),
    ),
    "warmup_cosine": (
        optlab.schedules.warmup_cosine(0.2, 5, 20, init_value=0.1, end_value=0.05),
        optax.warmup_cosine_decay_schedule(0.1, 0.2, 5, 20, end_value=0.05),
    ),
}
OPTAX_SCHEDULES = {
    "piecewise": optax.piecewise_constant_schedule(0.1, {2: 0.5}),
    "exponential": optax.exponential_decay(0.1, 2, 0.5),
    "onecycle": optax.cosine_onecycle_schedule(4, 0.1),
    "joined": optax.join_schedules([lambda step: 0.1, optax.linear_schedule(0.1, 0.2, 3)], [2]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_agree_with_optax(name):
    values = [[float(schedule(step)) for step in STEPS] for schedule in SCHEDULES[name]]
    # Values are of order 0.1, and Optax's cosine and our sine err by 1e-7 of that.
    np.testing.assert_allclose(*values, rtol=0, atol=5e-8)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    "make", [optax.sgd, optax.inject_hyperparams(optax.sgd)], ids=["plain", "injected"]
)
def test_our_schedules_drive_optax_optimizers(name, make):
    _, after, _ = walk(make(SCHEDULES[name][0]))
    expected = PARAMS
    for step, (g, params) in enumerate(zip(GRADIENTS, after, strict=True)):
        rate = float(SCHEDULES[name][1](step))
        expected = jax.tree.map(lambda p, g, rate=rate: p - rate * g, expected, g)
        chex.assert_trees_all_close(params, expected, **COMPILED)


@pytest.mark.parametrize("name", OPTAX_SCHEDULES)
def test_optax_schedules_drive_our_optimizers(name):
    schedule = OPTAX_SCHEDULES[name]
    tx = optlab.sgd(schedule, momentum=0.9)
    params, state = PARAMS, tx.init(PARAMS)
    theirs = optax.sgd(schedule, momentum=0.9)
    _, expected, _ = walk(theirs)
    for step, g in enumerate(GRADIENTS):
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        assert optlab.hyperparams(state)["learning_rate"] == jnp.float32(schedule(step))
        chex.assert_trees_all_close(params, expected[step], **COMPILED)


# Optax's own optimizers, where the rule is the same


def cut(step):
    """Schedule a rate that is cut half-way."""
    return jnp.where(step < 50, 0.01, 0.002)


AGREEING = {
    "sgd": (optlab.sgd(0.01), optax.sgd(0.01)),
    "momentum": (optlab.sgd(0.01, momentum=0.9), optax.sgd(0.01, momentum=0.9)),
    "momentum-scheduled": (optlab.sgd(cut, momentum=0.9), optax.sgd(cut, momentum=0.9)),
    "nesterov": (
        optlab.sgd(0.01, momentum=0.9, nesterov=True),
        optax.sgd(0.01, momentum=0.9, nesterov=True),
    ),
    # With ε = 0 it makes no difference that ours stands outside the root.
    "adagrad": (
        optlab.adagrad(0.01, eps=0.0, initial_accumulator_value=0.1),
        optax.adagrad(0.01, eps=0.0),
    ),
    "rmsprop": (optlab.rmsprop(0.01, eps=1e-3), optax.rmsprop(0.01, eps=1e-3, eps_in_sqrt=False)),
    "rmsprop-eps_in_sqrt": (
        optlab.rmsprop(0.01, eps=1e-3, eps_in_sqrt=True, initial_scale=1.0),
        optax.rmsprop(0.01, eps=1e-3, initial_scale=1.0),
    ),
    "rmsprop-centered": (
        optlab.rmsprop(0.01, eps=1e-3, eps_in_sqrt=True, centered=True),
        optax.rmsprop(0.01, eps=1e-3, centered=True),
    ),
    # With a constant rate it makes no difference that ours stands outside the velocity.
    "rmsprop-nesterov": (
        optlab.rmsprop(0.01, eps_in_sqrt=True, momentum=0.9, nesterov=True),
        optax.rmsprop(0.01, momentum=0.9, nesterov=True),
    ),
    "adam": (optlab.adam(0.01), optax.adam(0.01)),
    "adam-eps": (
        optlab.adam(0.01, b1=0.8, b2=0.95, eps=1e-2, eps_root=1e-3),
        optax.adam(0.01, b1=0.8, b2=0.95, eps=1e-2, eps_root=1e-3),
    ),
    "adam-nesterov": (optlab.adam(0.01, nesterov=True), optax.adam(0.01, nesterov=True)),
    "adam-amsgrad": (optlab.adam(0.01, b2=0.9, amsgrad=True), optax.amsgrad(0.01, b2=0.9)),
    "adamw": (optlab.adamw(0.01), optax.adamw(0.01, weight_decay=0.01)),
    "adamw-scheduled": (optlab.adamw(cut, weight_decay=0.5), optax.adamw(cut, weight_decay=0.5)),
    "lion": (optlab.lion(0.01), optax.lion(0.01, weight_decay=0.0)),
    "lion-decayed": (
        optlab.lion(0.01, 0.8, 0.9, weight_decay=0.5),
        optax.lion(0.01, 0.8, 0.9, weight_decay=0.5),
    ),
    # Optax's norm is that of the sum, and its masks let all arrays through.
    "lars": (
        optlab.lars(cut, 0.1, True, 0.05, 1e-3, True, norm_of_sum=True, nesterov=True),
        optax.lars(cut, 0.1, True, 0.05, 1e-3, True, nesterov=True),
    ),
    "lamb": (
        optlab.lamb(0.01, weight_decay=0.1, mask=True, trust_ratio_mask=True),
        optax.lamb(0.01, weight_decay=0.1),
    ),
    "clipped": (
        optax.chain(optlab.clip_by_global_norm(1.0), optlab.clip_by_value(0.2), optlab.sgd(0.01)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.clip(0.2), optax.sgd(0.01)),
    ),
    "penalized": (
        optax.chain(optlab.add_decayed_weights(0.1), optlab.sgd(0.01)),
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.01)),
    ),
}


@pytest.mark.parametrize(
    ("name", "x64"),
    [pytest.param(name, True, id=f"{name}-float64") for name in AGREEING]
    + [
        pytest.param(name, False, id=f"{name}-float32", marks=pytest.mark.slow)
        for name in OPTIMIZERS
        if name in AGREEING
    ],
)
def test_a_hundred_updates_agree_with_optax(name, x64):
    def path(tx, params, gradients):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]

    with jax.enable_x64(x64):
        draw = np.random.default_rng(1)
        params = jnp.asarray(draw.normal(size=10))
        gradients = jnp.asarray(draw.normal(size=(100, 10)))
        ours, theirs = (
            jax.jit(functools.partial(path, tx))(params, gradients) for tx in AGREEING[name]
        )
        # In float32 Optax forms Adam's 1 − βᵗ with a relative error of up to 2e-5, of which the
        # root lets through half: 1e-5 of each update's 0.01, a hundred times over. In float64
        # there are only the roundings: a few hundred of 1e-16.
        chex.assert_trees_all_close(ours, theirs, rtol=0, atol=1e-13 if x64 else 1e-5)


# Averages of the parameters


def averaged_by_hand(decay, params, start=PARAMS):
    """Return the average of parameters that starts as a copy, in float64."""
    average = jax.tree.map(np.float64, start)
    for p in params:
        average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * np.float64(b), average, p)
    return average


# A float32 average against a float64 one: three roundings of 6e-8 an update, values of order 1.
AVERAGED = {"rtol": 1e-6, "atol": 1e-6}


def test_averaged_params_are_read_from_a_chain():
    _, after, state = walk(optax.chain(optlab.adam(RATE), optlab.params_ema(0.5)))
    expected = averaged_by_hand(0.5, after)
    chex.assert_trees_all_close(optlab.averaged_params(state), expected, **AVERAGED)
    in_a_checkpoint = {"step": 4, "optimizer": [state, None]}
    chex.assert_trees_all_close(optlab.averaged_params(in_a_checkpoint), expected, **AVERAGED)


def test_averages_agree_with_incremental_update():
    tx = optax.chain(optlab.sgd(RATE), optlab.params_ema(0.9))
    _, after, state = walk(tx)
    expected = functools.reduce(
        lambda average, p: optax.incremental_update(p, average, 0.1), after, PARAMS
    )
    chex.assert_trees_all_close(optlab.averaged_params(state), expected, **AVERAGED)


def test_averages_of_a_partition_are_joined():
    groups = {
        "slow": optax.chain(optlab.adam(RATE), optlab.params_ema(0.9)),
        "fast": optax.chain(optlab.sgd(RATE), optlab.params_ema(0.5)),
    }
    _, after, state = walk(optax.partition(groups, {"dense": "slow", "scale": "fast"}))
    average = optlab.averaged_params(state)
    assert jax.tree.structure(average) == jax.tree.structure(PARAMS)
    for key, decay in {"dense": 0.9, "scale": 0.5}.items():
        expected = averaged_by_hand(decay, part(after, key), *part([PARAMS], key))
        chex.assert_trees_all_close(*part([average], key), expected, **AVERAGED)


def test_an_average_behind_a_partition_covers_frozen_leaves_too():
    groups = {"trained": optlab.adam(RATE), "frozen": optax.set_to_zero()}
    tx = optax.chain(
        optax.partition(groups, {"dense": "trained", "scale": "frozen"}), optlab.params_ema(0.5)
    )
    _, after, state = walk(tx)
    average = optlab.averaged_params(state)
    chex.assert_trees_all_close(average, averaged_by_hand(0.5, after), **AVERAGED)
    # a·θ + (1 − a)·θ is formed as θ + (1 − a)(θ − θ).
    chex.assert_trees_all_equal(average["scale"], PARAMS["scale"])


def test_a_masked_average_holds_the_leaves_that_are_averaged():
    mask = {"dense": True, "scale": False}
    tx = optax.chain(optlab.sgd(RATE), optax.masked(optlab.params_ema(0.5), mask))
    _, after, state = walk(tx)
    average = optlab.averaged_params(state)
    assert average["scale"] == optax.MaskedNode()
    expected = averaged_by_hand(0.5, part(after, "dense"), *part([PARAMS], "dense"))
    chex.assert_trees_all_close(*part([average], "dense"), expected, **AVERAGED)


def test_an_average_under_multi_steps_counts_whole_updates_alone():
    multi = optax.MultiSteps(optax.chain(optlab.sgd(RATE), optlab.params_ema(0.5)), 2)
    _, after, state = walk(multi, update=jax.jit(multi.update))
    expected = averaged_by_hand(0.5, after[1::2])
    chex.assert_trees_all_close(optlab.averaged_params(state), expected, **AVERAGED)
