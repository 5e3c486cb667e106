"""What a partition does: the same bits where nothing differs, and nothing where all is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from golden import record_groups
from helpers import assert_same_bits, random_tree
from optlab import groups, lab
from optlab.rules import Rule, lift, number, slot

SHAPES = {
    "body": {"kernel": (6, 4), "bias": (4,)},
    "norm": {"scale": (4,)},
    "head": {"kernel": (4, 3), "bias": (3,)},
}
STEPS = 5


def trained(tx, params, steps=STEPS, state=None):
    """Return the parameters, and the state, after some updates with gradients of their own."""

    @jax.jit
    def step(t, params, state):
        gradients = jax.tree.map(
            lambda p: jnp.cos(t + jnp.arange(p.size)).reshape(p.shape) * p, params
        )
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params) if state is None else state
    for t in range(steps):
        params, state = step(t, params, state)
    return params, state


@pytest.fixture(scope="module")
def params():
    return random_tree(np.random.default_rng(0), SHAPES)


ADAMW = optlab.adamw(optlab.schedules.cosine(0.1, 20), weight_decay=0.1)


def clipped(tx):
    return optax.chain(optlab.clip_by_global_norm(0.5), tx)


@pytest.fixture(scope="module")
def plain(params):
    return trained(clipped(ADAMW), params)[0]


@pytest.mark.parametrize(
    "rules",
    [
        [(..., groups.group())],
        [("body", groups.group()), ("norm", groups.group(weight_decay=0.1)), (..., groups.group())],
        [groups.discriminative(["body", "norm", "head"], [1.0, 1.0, 1.0])],
    ],
    ids=["one_group", "three_groups", "rates_of_one"],
)
def test_groups_that_do_not_differ_change_no_bit(rules, params, plain):
    tx = groups.partition(params, rules, optimizer=ADAMW, around=clipped)
    assert_same_bits(trained(tx, params)[0], plain)


def test_frozen_parameters_take_no_part_in_anything(params):
    def around(tx):
        return lab.monitor(
            optax.chain(tx, optlab.params_ema(0.5)), clipping=optlab.clip_by_global_norm(0.5)
        )

    signed = {**params, "body": jax.tree.map(lambda p: -0.0 * jnp.abs(p), params["body"])}
    rules = [("body|norm", groups.frozen()), ("head", groups.group())]
    tx = groups.partition(signed, rules, optimizer=ADAMW, around=around)
    after, state = trained(tx, signed)
    alone, state_alone = trained(around(ADAMW), {"head": signed["head"]})
    assert_same_bits(after["head"], alone["head"])
    assert_same_bits({**after, "head": None}, {**signed, "head": None})
    want = lab.monitored(state_alone)
    assert {name: float(x) for name, x in lab.monitored(state).items()} == {
        name: float(x) for name, x in want.items()
    }
    # The state is that of the head, and the average has no copy of what is frozen.
    sizes = [sum(x.nbytes for x in jax.tree.leaves(s)) for s in (state, state_alone)]
    assert sizes[0] == sizes[1] + 4  # the number of updates made before
    average = optlab.averaged_params(state, after)
    assert_same_bits(average["body"], signed["body"])
    assert_same_bits(average["head"], optlab.averaged_params(state_alone)["head"])


def test_what_is_frozen_may_have_any_gradient(params):
    tx = groups.freeze(clipped(ADAMW), params, "body", "norm")
    gradients = jax.tree.map(lambda p: p * jnp.nan, params) | {"head": params["head"]}
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(updates)])).all()


def flops(tx, params):
    def loss(params, x):
        for name in ("a", "b", "c"):
            x = jnp.tanh(x @ params[name])
        return jnp.sum(x**2)

    def step(params, state, x):
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    x = jnp.ones((64, 128))
    return jax.jit(step).lower(params, tx.init(params), x).compile().cost_analysis()["flops"]


def test_gradients_of_what_is_frozen_are_not_computed():
    params = {name: jnp.ones((128, 128)) for name in "abc"}
    product = 2 * 64 * 128 * 128
    all_trained = flops(clipped(ADAMW), params)
    tx = groups.partition(
        params, [("c", groups.group()), (..., groups.frozen())], optimizer=ADAMW, around=clipped
    )
    head_only = flops(tx, params)
    # Three products forwards, and then two backwards for each trained matrix but the first.
    assert all_trained > 8 * product
    assert 4 * product < head_only < 4.6 * product


def test_a_stack_of_layers_is_treated_as_if_its_layers_were_apart():
    rng = np.random.default_rng(1)
    stack = rng.normal(size=(4, 3, 3)).astype(np.float32)
    apart = {f"layer{i}": {"kernel": stack[i]} for i in range(4)} | {"head": stack[0]}
    stacked = {"layers": {"kernel": stack}, "head": stack[0]}
    tx = groups.partition(
        apart,
        [("layer0", groups.frozen()), (..., groups.group()), groups.layerwise_decay(0.5)],
        optimizer=ADAMW,
        around=clipped,
    )
    of_stack = groups.partition(
        stacked,
        [
            (groups.slices("layers", 0, 1), groups.frozen()),
            (..., groups.group()),
            groups.layerwise_decay(0.5),
        ],
        optimizer=ADAMW,
        around=clipped,
    )
    after, _ = trained_on(tx, apart)
    after_of_stack, state = trained_on(of_stack, stacked)
    # The multiplier is a factor of the update here and one of the rate there: a rounding apart.
    for i in range(4):
        got = after_of_stack["layers"]["kernel"][i]
        np.testing.assert_allclose(got, after[f"layer{i}"]["kernel"], rtol=1e-5, atol=1e-6)
    assert_same_bits(np.asarray(after_of_stack["layers"]["kernel"][0]), stack[0])
    mu = state[1].groups["rest-layers1to4"][0].mu
    assert mu["layers"]["kernel"]["[1:4]"].shape == (3, 3, 3)


def test_averages_of_a_stack_are_those_of_its_trained_slices():
    stack = {"layers": {"kernel": jnp.ones((4, 2))}, "head": jnp.ones(2)}
    rules = [(groups.slices("layers", 1, 3), groups.frozen()), (..., groups.group())]

    def around(tx):
        return optax.chain(tx, optlab.params_average())

    tx = groups.partition(stack, rules, optimizer=optlab.sgd(0.5), around=around)
    after, state = trained_on(tx, stack)
    average = optlab.averaged_params(state, after)["layers"]["kernel"]
    powers = 0.5 ** np.arange(1, STEPS + 1)
    # A float32 mean rounds once an update.
    np.testing.assert_allclose(average[:, 0], [powers.mean(), 1, 1, powers.mean()], rtol=1e-6)


def trained_on(tx, params):
    """Train with gradients that are the parameters themselves."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


def test_groups_that_differ_in_numbers_share_the_arithmetic_of_a_leaf(params):
    traced = []

    def leaf(g, slots, h, p):
        traced.append(g.shape)
        return h.factor * g, (slots.m + g,)

    def rule(factor):
        return lift(Rule("r", leaf, hyperparams={"factor": number(factor)}, slots={"m": slot()}))

    many = {f"layer{i}": jnp.ones(3) for i in range(6)}
    rules = [(f"layer{i}", groups.group(factor=float(i))) for i in range(6)]
    tx = groups.partition(many, rules, optimizer=rule(1.0))
    state = tx.init(many)
    before = len(traced)
    updates, _ = jax.jit(tx.update)(many, state)
    assert len(traced) == before + 1
    assert [float(updates[f"layer{i}"][0]) for i in range(6)] == list(range(6))


@pytest.mark.parametrize("way", ["carry_over", "gradual_unfreezing"])
def test_unfreezing_is_pytorchs(way):
    recorded, frozen = record_groups.load(), record_groups.FROZEN
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, record_groups.start())
        gradients = record_groups.gradients()
        optimizer = optlab.adamw(
            lambda t: record_groups.RATE * record_groups.schedule(t), weight_decay=0.1
        )
        own = [
            (name, groups.group(lr_mult=factor, weight_decay=decay))
            for name, factor, decay in zip(
                "abc", record_groups.FACTORS, record_groups.DECAYS, strict=True
            )
        ]
        later = [groups.gradual_unfreezing([("a", frozen), (..., 0)])]
        rules = {
            "carry_over": [[("a", groups.frozen()), *own[1:]], own],
            "gradual_unfreezing": [[*own, *later]] * 2,
        }[way]
        start, end = (
            groups.partition(
                params,
                stage,
                optimizer=optimizer,
                around=lambda tx: optax.chain(
                    optlab.clip_by_global_norm(record_groups.MAX_NORM), tx
                ),
            )
            for stage in rules
        )
        state, tx, update = start.init(params), start, jax.jit(start.update)
        for t in range(record_groups.UPDATES):
            if t == frozen and way == "carry_over":
                state, tx = groups.carry_over(state, end, params), end
                update = jax.jit(tx.update)
            updates, state = update({name: g[t] for name, g in gradients.items()}, state, params)
            params = optax.apply_updates(params, updates)
            for name in "abc":
                want = recorded[f"pytorch/{name}"][t]
                # PyTorch forms 1 − βᵗ, ours exp of a sum: a few units in the last place.
                np.testing.assert_allclose(params[name], want, rtol=1e-13, atol=1e-14)


def test_parameters_that_join_a_group_start_with_a_count_of_their_own():
    params = {"old": jnp.zeros(2), "new": jnp.zeros(2)}
    adam = optlab.adam(1.0)
    tx = groups.freeze(adam, params, "new")
    state = tx.init(params)
    gradients = jax.tree.map(jnp.ones_like, params)
    for _ in range(100):
        _, state = jax.jit(tx.update)(gradients, state, params)
    joined = groups.partition(params, [(..., adam)])
    state = groups.carry_over(state, joined, params)
    for _ in range(12):
        updates, state = jax.jit(joined.update)(gradients, state, params)
        # With the count of the others the updates would be up to 5.2 times as large; with its own
        # they are 1, but for some roundings of float32.
        np.testing.assert_allclose(updates["new"], -1.0, rtol=1e-6)
        np.testing.assert_allclose(updates["old"], -1.0, rtol=1e-6)
    assert float(optlab.hyperparams(state)["learning_rate"]) == 1.0
    state = optlab.replace_hyperparams(state, learning_rate=0.5)
    updates, _ = joined.update(gradients, state, params)
    np.testing.assert_allclose([updates["new"][0], updates["old"][0]], -0.5, rtol=1e-6)


def test_nothing_is_lost_where_nothing_changes(params):
    rules = [("body", groups.group(lr_mult=0.5)), (..., groups.group())]

    def around(tx):
        return optax.chain(optlab.clip_by_global_norm(0.5), tx, optlab.params_ema(0.9))

    tx = groups.partition(params, rules, optimizer=ADAMW, around=around)
    after, state = trained(tx, params)
    assert_same_bits(groups.carry_over(state, tx, after), state)
    plain = around(ADAMW)
    after, state = trained(plain, params)
    assert_same_bits(groups.carry_over(state, plain, after), state)


def test_a_stack_keeps_the_state_of_slices_that_stay(params):
    stack = {"layers": {"kernel": jnp.ones((4, 2, 2))}}
    adam = optlab.adam(0.1)
    last = groups.partition(stack, [(groups.slices("layers", 3, 4), adam), (..., groups.frozen())])
    state = trained_on(last, stack)[1]
    rules = [
        (groups.slices("layers", 3, 4), adam),
        (groups.slices("layers", 1, 3), adam),
        (..., groups.frozen()),
    ]
    more = groups.partition(stack, rules)
    carried = groups.carry_over(state, more, stack)
    (kept,) = carried.groups["layers_3_to_3"][0].mu["layers"]["kernel"].values()
    assert_same_bits(kept, state.groups["layers_3_to_3"][0].mu["layers"]["kernel"]["[3:4]"])
    assert int(carried.groups["layers_3_to_3"][0].count) == STEPS
    assert int(carried.groups["layers_1_to_2"][0].count) == 0
    assert int(carried.groups["layers_1_to_2"][0].joined) == STEPS
    with pytest.raises(ValueError, match="the slices of layers/kernel must all have joined at one"):
        groups.carry_over(state, groups.partition(stack, [(..., adam)]), stack)


def test_a_state_that_does_not_fit_is_refused_by_path(params):
    tx = groups.partition(params, [(..., ADAMW)])
    state = trained(tx, params)[1]
    sgd = groups.partition(params, [(..., optlab.sgd(0.1, momentum=0.9))])
    with pytest.raises(ValueError, match="old state of body/bias must be one of scale_by_momentum"):
        groups.carry_over(state, sgd, params)
    wider = {**params, "head": {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}}
    with pytest.raises(ValueError, match=r"mu of head/bias must have the shape \(5,\), got \(3,\)"):
        groups.carry_over(state, groups.partition(wider, [(..., ADAMW)]), wider)
    few = groups.freeze(ADAMW, params, "body")
    state = trained(few, params)[1]
    with pytest.raises(ValueError, match="one count for all, with body/bias"):
        groups.carry_over(state, ADAMW, params)
    with pytest.raises(ValueError, match="the state must hold the groups rest, got a, b"):
        tx.update(params, groups.PartitionState({"a": (), "b": ()}), params)
    with pytest.raises(ValueError, match="got one of Optax's; carry it over with optlab"):
        groups.carry_over(optax.adam(0.1).init(params), tx, params)
    with pytest.raises(ValueError, match="state must be one of these parameters, body/bias"):
        groups.carry_over(ADAMW.init({"other": jnp.ones(2)}), tx, params)
    optax_state = trained(groups.freeze(optax.adam(0.1), params, "body"), params)[1]
    with pytest.raises(ValueError, match="one count for all at "):
        groups.carry_over(optax_state, optax.adam(0.1), params)


def test_averages_are_carried_over_by_their_arguments(params):
    two = optax.chain(optlab.sgd(0.1), optlab.params_ema(0.5), optlab.params_ema(0.9))
    after, state = trained(two, params)
    one = optax.chain(optlab.sgd(0.1), optlab.params_ema(0.9))
    carried = groups.carry_over(state, one, after)
    assert_same_bits(carried[1].average, state[2].average)
    with pytest.raises(ValueError, match="it must be plain which params_ema of body/bias is"):
        groups.carry_over(state, optax.chain(optlab.sgd(0.1), optlab.params_ema(0.7)), after)


def test_states_of_optax_are_carried_over_to_the_same_rule_alone(params):
    adam = optax.adam(0.1)
    tx = groups.partition(params, [(..., groups.group(adam, name="old"))])
    after, state = trained(tx, params)
    renamed = groups.partition(params, [(..., groups.group(adam, name="new"))])
    carried = groups.carry_over(state, optax.chain(optax.clip(1.0), renamed), after)
    assert_same_bits(carried[1].groups["new"], state.groups["old"])
    for other in (optax.sgd(0.1, momentum=0.9), optlab.adam(0.1)):
        with pytest.raises(ValueError, match="the old state of body/bias must be one of"):
            groups.carry_over(state, other, after)
    with pytest.raises(ValueError, match="the old state of body/bias must be one of"):
        groups.carry_over(trained(ADAMW, params)[1], adam, after)
    with pytest.raises(ValueError, match="state must be that of a transformation, got None"):
        groups.carry_over(None, ADAMW, after)
    batch = jax.vmap(ADAMW.init)(jax.tree.map(lambda p: jnp.stack([p, p]), params))
    with pytest.raises(ValueError, match=r"a count of shape \(2,\), as of a vmap"):
        groups.carry_over(batch, ADAMW, params)


def test_line_searches_see_the_parameters_of_their_group(params):
    def value(params):
        return sum(jnp.sum((p - 1) ** 2) for p in jax.tree.leaves(params))

    rules = [("body", groups.frozen()), ("head", optlab.sgd(0.0)), (..., optlab.lbfgs())]
    tx = groups.partition(params, rules)
    grad = jax.grad(value)(params)
    updates, _ = tx.update(
        grad, tx.init(params), params, value=value(params), grad=grad, value_fn=value
    )
    alone, own = optlab.lbfgs(), {"norm": params["norm"]}
    of_own = {"norm": grad["norm"]}
    want, _ = alone.update(
        of_own, alone.init(own), own, value=value(own), grad=of_own, value_fn=value
    )
    # The values differ by those of the other parameters, which round them.
    np.testing.assert_allclose(updates["norm"]["scale"], want["norm"]["scale"], rtol=1e-4)
    assert not any(np.any(update) for update in jax.tree.leaves(updates["body"]))


def test_frozen_parameters_need_no_gradient(params):
    tx = groups.freeze(ADAMW, params, "body", "norm")
    none = jax.tree.map(lambda p: None, params)
    updates, _ = tx.update({**none, "head": params["head"]}, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert_same_bits(after["body"], jax.tree.map(jnp.asarray, params["body"]))


def test_other_parameters_than_those_of_the_plan_are_refused(params):
    tx = groups.partition(params, [(..., ADAMW)])
    with pytest.raises(
        ValueError, match="must be those that partition was given, got no norm/scale"
    ):
        tx.init({name: params[name] for name in ("body", "head")})
    with pytest.raises(ValueError, match="got tail, which it was not"):
        tx.init({**params, "tail": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"the shape \(5,\) in place of \(4,\) at norm/scale"):
        tx.update({**params, "norm": {"scale": jnp.ones(5)}}, tx.init(params), params)


def test_optimizers_of_optax_have_multipliers_and_groups(params):
    tx = groups.partition(
        params,
        [("head", groups.group(lr_mult=0.5)), ("body", optax.sgd(1.0)), (..., groups.group())],
        optimizer=optax.chain(optax.trace(0.9), optax.scale(-2.0)),
    )
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["head"]["bias"], -params["head"]["bias"])
    np.testing.assert_array_equal(updates["body"]["bias"], -params["body"]["bias"])
    np.testing.assert_array_equal(updates["norm"]["scale"], -2 * params["norm"]["scale"])


def test_hyperparameters_are_read_and_replaced_by_group(params):
    rules = [("head", groups.group(lr_mult=10.0)), (..., groups.group())]
    tx = groups.partition(params, rules, optimizer=optlab.sgd(0.1), around=clipped)
    state = tx.init(params)
    values = {name: float(value) for name, value in optlab.hyperparams(state).items()}
    assert values["head/learning_rate"] == 1.0
    assert values["rest/learning_rate"] == pytest.approx(0.1)  # stored in float32
    state = optlab.replace_hyperparams(state, max_norm=1e9, **{"head/learning_rate": 0.5})
    updates, _ = tx.update(params, state, params)
    np.testing.assert_array_equal(updates["head"]["bias"], -0.5 * params["head"]["bias"])


def test_patterns_and_masks_of_an_optimizer_are_those_of_all_parameters(params):
    masks = [
        optlab.rules.paths_not_matching("bias"),
        jax.tree.map(lambda p: p.ndim > 1, params),
        lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree),
    ]
    for mask in masks:
        tx = groups.partition(
            params,
            [("norm", groups.group()), (..., groups.group())],
            optimizer=optlab.adamw(0.1, mask=mask),
        )
        decays = {one.path: one.decays for one in optlab.describe(tx, params)}
        assert (decays["head/bias"], decays["head/kernel"]) == ((), (0.01,))


def test_a_partition_trains_a_flax_module_inside_wrappers():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    tx = groups.partition(
        params,
        [("bias", groups.frozen()), ("kernel", groups.group())],
        optimizer=ADAMW,
        around=lambda tx: optlab.skip_nonfinite(optlab.accumulate(tx, 2)),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(model, nnx.Param)))

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: jnp.sum(model(jnp.ones((4, 3))) ** 2))(model)
        optimizer.update(model, gradients)

    for _ in range(2):
        step(model, optimizer)
    after = nnx.as_pure(nnx.state(model, nnx.Param))
    assert_same_bits(after["bias"], before["bias"])
    assert (after["kernel"] != before["kernel"]).any()


def test_a_table_of_nested_partitions_shows_each_parameter_once(params):
    inner = groups.partition(
        params, [("bias", groups.group(name="inner")), (..., groups.group())], optimizer=ADAMW
    )
    outer = groups.freeze(inner, params, "head")
    rows = {one.path: (one.group, one.is_frozen) for one in optlab.describe(outer, params)}
    assert rows == {
        "body/bias": ("inner", False),
        "body/kernel": ("rest", False),
        "head/bias": (None, True),
        "head/kernel": (None, True),
        "norm/scale": ("rest", False),
    }


def test_a_state_goes_from_one_flax_optimizer_to_the_next():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    adam = optlab.adam(0.1)
    optimizer = nnx.Optimizer(model, groups.freeze(adam, params, "bias"), wrt=nnx.Param)
    gradients = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        optimizer.update(model, gradients)
    rules = [("kernel", groups.group()), ("bias", groups.group())]
    tx = groups.partition(params, rules, optimizer=adam)
    following = nnx.Optimizer(model, tx, wrt=nnx.Param)
    following.opt_state = groups.carry_over(optimizer.opt_state, tx, params)
    following.update(model, gradients)
    counts = {name: int(own[0].count[...]) for name, own in following.opt_state.groups.items()}
    assert counts == {"kernel": 3, "bias": 1}


def test_stages_wait_without_moving_and_without_a_say_in_the_clip():
    params = {"body": jnp.array([3.0, -0.0]), "head": jnp.array([1.0, 2.0])}
    tx = groups.partition(
        params,
        [groups.gradual_unfreezing([("head", 0), (..., 3)])],
        optimizer=optlab.adamw(0.1),
        around=clipped,
    )
    alone = clipped(optlab.adamw(0.1))
    (early, state), (want, _) = (
        trained_on_steps(tx, params, 3),
        trained_on_steps(alone, {"head": params["head"]}, 3),
    )
    assert_same_bits(early["body"], params["body"])
    assert_same_bits(early["head"], want["head"])
    assert not any(np.any(x) for x in jax.tree.leaves(state[1].groups["from3"][0].mu))
    late, state = trained_on_steps(tx, early, 1, state)
    assert (late["body"] != early["body"]).any()
    assert [one.start for one in optlab.describe(tx, params)] == [3, 0]
    with pytest.raises(ValueError, match="which starts late, must have one of optlab's optimizers"):
        groups.partition(params, [groups.gradual_unfreezing([(..., 3)])], optimizer=optax.sgd(0.1))


def trained_on_steps(tx, params, steps, state=None):
    state = tx.init(params) if state is None else state
    for _ in range(steps):
        updates, state = jax.jit(tx.update)(params, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_the_table_shows_groups_rates_and_what_is_frozen(params):
    tx = groups.partition(
        params,
        [("body", groups.frozen()), (..., groups.group()), groups.no_decay()],
        optimizer=optlab.adamw(0.1, weight_decay=0.5),
    )
    assert str(optlab.describe(tx, params)).splitlines() == [
        "path         shape   group          rule  axes  rate  decay  frozen  state bytes",
        "body/bias    (4,)    -              -     -     -     -      yes               0",
        "body/kernel  (6, 4)  -              -     -     -     -      yes               0",
        "head/bias    (3,)    rest-no_decay  adam  -     0.1   0      -                24",
        "head/kernel  (4, 3)  rest           adam  -     0.1   0.5    -                96",
        "norm/scale   (4,)    rest-no_decay  adam  -     0.1   0      -                32",
        "in all                                                                       152",
    ]


def second_update(tx, params):
    """Return the second update, as SOAP's first one only looks."""
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(2):
        updates, state = update(params, state, params)
    return updates


@pytest.mark.parametrize(
    "make", [optlab.muon, optlab.lamb, pytest.param(optlab.soap, marks=pytest.mark.slow)]
)
def test_rules_on_matrices_and_layers_are_the_same_in_groups(make, params):
    rules = [
        ("head", groups.group(lr_mult=0.5)),
        ("bias|scale", groups.group()),
        (..., groups.group()),
    ]
    tx = groups.partition(params, rules, optimizer=make(0.5))
    got, want = second_update(tx, params), second_update(make(0.5), params)
    want["head"] = jax.tree.map(lambda u: 0.5 * u, want["head"])
    # XLA fuses the stacks of one matrix and of two differently.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), got, want)
