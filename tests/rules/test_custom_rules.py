"""Rules in a user's own file: what is refused, and slots of every kind."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from optlab import rules
from optlab.rules import Rule, decay, lift, number, slot

PARAMS = {"b": jnp.ones(3), "c": jnp.full((2, 3), 2.0), "w": jnp.ones((2, 3))}
MU = {"mu": slot()}


def unchanged(g, slots, h, p):
    return g, slots


@pytest.mark.parametrize(
    "name", ["count", "step", "hyperparams", "kind", "readable", "_x", "1x", "a b", "class", "", 1]
)
@pytest.mark.parametrize("what", ["slots", "hyperparams"])
def test_a_name_that_no_state_can_use_is_refused(what, name):
    declared = {"slots": slot(), "hyperparams": number(0.1)}[what]
    with pytest.raises(ValueError, match=r"^mine: .* names that a state can use, got .*choose"):
        Rule("mine", unchanged, **{what: {name: declared}})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"leaf": None}, "leaf must be a function, got None"),
        ({"slots": ["mu"]}, "slots must be a mapping by name, got list"),
        ({"slots": {"mu": 0.0}}, r"slots\['mu'\] must be a function, got 0.0; declare"),
        ({"hyperparams": {"lr": 0.1}}, r"lr must be declared, got 0.1; declare it with number"),
        ({"fields": {"seen": 0}}, r"fields\['seen'\] must be a function, got 0"),
        ({"complex": "yes"}, "complex must be one of 'parts', 'whole', 'refused', got"),
        ({"counter": "n"}, "counter must be one of 'count', 'step', got counter='n'"),
        ({"slots": MU, "hyperparams": {"mu": number(1)}}, "different names, got mu twice"),
        ({"hyperparams": {"b3": decay(1.0)}}, r"b3 must be in \[0, 1\), got b3=1.0"),
    ],
)
def test_a_rule_with_a_wrong_attribute_is_refused_at_construction(attributes, message):
    with pytest.raises(ValueError, match=f"^mine: .*{message}"):
        Rule(**({"who": "mine", "leaf": unchanged} | attributes))


LEAVES = {
    "the gradient alone": (lambda g, slots: g, "the pair"),
    "nothing": (lambda g, slots: None, "the pair .*, got NoneType"),
    "an update of another shape": (lambda g, slots: (g.sum(), slots), r"the shape .*got \(\)"),
    "a number": (lambda g, slots: (1.0, slots), "the update as an array, got float"),
    "a NumPy array": (lambda g, slots: (np.ones(3), slots), "got ndarray; use jax.numpy"),
    "integers": (lambda g, slots: (g.astype(int), slots), "the type float32, got .*int32"),
    "a slot of another shape": (lambda g, slots: (g, (g[0],)), r"slot mu with the shape .*got"),
    "a slot of integers": (lambda g, slots: (g, (g.astype(int),)), "slot mu with .* got .*int32"),
    "a slot that is a number": (lambda g, slots: (g, (0.0,)), "slot mu as an array, got float"),
    "a bare slot": (lambda g, slots: (g, slots.mu), "a tuple of its 1 slots"),
    "no slot": (lambda g, slots: (g, ()), "a tuple of its 1 slots, got 0"),
    "two slots": (lambda g, slots: (g, (g, g)), "a tuple of its 1 slots, got 2"),
}


@pytest.mark.parametrize("returned", LEAVES)
def test_a_leaf_that_returns_something_else_is_refused_at_init(returned):
    leaf, message = LEAVES[returned]
    good = lift(Rule("mine", lambda g, slots, h, p: (g, slots), slots=MU))
    bad = lift(Rule("mine", lambda g, slots, h, p: leaf(g, slots), slots=MU))
    good.init(PARAMS)
    with pytest.raises(ValueError, match=f"^mine: leaf must return .*{message}"):
        bad.init(PARAMS)


def one_of(returns_shape):
    def leaf(g, slots, h, p):
        return (g[0] if returns_shape else g), slots

    return lift(Rule("mine", leaf))


def test_an_option_that_makes_a_leaf_wrong_is_noticed_where_another_one_was_sound():
    one_of(False).init(PARAMS)
    with pytest.raises(ValueError, match=r"^mine: leaf must return the update with the shape"):
        one_of(True).init(PARAMS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "text", "must make arrays, got str for .*'b'"),
        (lambda p: 0.0, "must make arrays, got float for .*'b'"),
        (lambda p: [jnp.zeros(3), None], "must make arrays, got NoneType"),
        (lambda p: p.nothing, "must make a slot for every parameter, got AttributeError"),
        (lambda p, q: p, "must make a slot for every parameter, got TypeError"),
    ],
)
def test_a_slot_that_cannot_be_made_is_refused_at_init(make, message):
    with pytest.raises(ValueError, match=rf"^mine: slots\['mu'\] {message}.*return an array"):
        lift(Rule("mine", unchanged, slots={"mu": make})).init(PARAMS)


def test_codes_of_the_parts_of_a_complex_leaf_are_refused_with_the_way():
    tx = lift(Rule("mine", unchanged, slots={"codes": lambda p: jnp.zeros(p.shape, jnp.int8)}))
    with pytest.raises(ValueError, match=r"^mine: slots\['codes'\] .*complex='whole'"):
        tx.init(jnp.ones(2, jnp.complex64))


def test_complex_leaves_are_refused_by_a_rule_that_declares_so():
    tx = lift(Rule("mine", unchanged, slots=MU, complex="refused"))
    with pytest.raises(ValueError, match=r"^mine: parameters must be real, got complex64 at \['z'"):
        tx.init({"z": jnp.ones(2, jnp.complex64)})


def test_a_whole_complex_leaf_can_have_a_real_slot():
    def leaf(g, slots, h, p):
        squared = slots.squared + jnp.abs(g) ** 2
        return g / jnp.sqrt(squared), (squared,)

    slots = {"squared": lambda p: jnp.zeros(p.shape, jnp.float32)}
    tx = lift(Rule("mine", leaf, slots=slots, complex="whole"))
    g = jnp.array([3 + 4j], jnp.complex64)
    with jax.numpy_dtype_promotion("standard"):
        update, state = tx.update(g, tx.init(g), g)
    np.testing.assert_allclose(update, [0.6 + 0.8j], rtol=1e-6)
    assert state.squared.dtype == jnp.float32


def test_a_slot_of_a_whole_complex_leaf_is_complex():
    tx = lift(Rule("mine", lambda g, slots, h, p: (g, (slots.mu + g,)), slots=MU, complex="whole"))
    g = jnp.array([3 + 4j], jnp.complex64)
    assert tx.update(g, tx.init(g), g)[1].mu[0] == 3 + 4j


def test_lift_takes_rules_alone():
    for arguments in ((), ([Rule("mine", unchanged)],), (unchanged,)):
        with pytest.raises(ValueError, match=r"^lift: "):
            lift(*arguments)


def test_a_hyperparameter_to_read_must_be_one_of_a_rule_before():
    tx = lift(Rule("mine", unchanged, reads=("learning_rate",)))
    with pytest.raises(ValueError, match=r"^mine: learning_rate, which the rule reads, must be"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_static_facts_must_be_hashable():
    def leaf(g, slots, h, p, facts):
        return g, slots

    tx = lift(Rule("mine", leaf, slots={"n": lambda p, facts: p}, static=lambda leaf: [leaf.path]))
    with pytest.raises(ValueError, match=r"^mine: static must return a hashable value, got list"):
        tx.init(PARAMS)


@pytest.mark.parametrize("who", ["my rule!", "3d", "a.b-c"])
def test_a_rule_may_have_any_name(who):
    state = lift(Rule(who, unchanged, slots=MU)).init(PARAMS)
    assert type(state).__name__.isidentifier()


def quantized(g, slots, h, p):
    mu = 0.5 * slots.codes.astype(g.dtype) * slots.scale + g
    scale = jnp.max(jnp.abs(mu)) / 127
    return mu, (jnp.round(mu / scale).astype(jnp.int8), scale)


def factored(g, slots, h, p):
    if slots.factors is None:
        return g, (None,)
    row = slots.factors["row"] + jnp.sum(g * g, axis=1)
    column = slots.factors["column"] + jnp.sum(g * g, axis=0)
    size = jnp.sqrt(row[:, None] * column / jnp.sum(row))
    return g / size, ({"row": row, "column": column},)


def two_sided(g, slots, h, p):
    if g.ndim < 2:
        return g, slots
    left, right = slots.left + g @ g.T, slots.right + g.T @ g
    return left @ g @ right, (left, right)


def noisy(g, slots, h, p):
    key, own = jax.random.split(slots.key)
    return g + jax.random.normal(own, g.shape, g.dtype), (key,)


def counted(g, slots, h, p):
    return g * slots.seen, (slots.seen + 1,)


def square(axis):
    return lambda p: jnp.zeros((p.shape[axis],) * 2) if len(p.shape) > 1 else None


CUSTOM = {
    "int8 codes and a scale": (
        quantized,
        {
            "codes": lambda p: jnp.zeros(p.shape, jnp.int8),
            "scale": lambda p: jnp.zeros((), jnp.float32),
        },
    ),
    "a row and a column, None for vectors": (
        factored,
        {
            "factors": lambda p: (
                {"row": jnp.zeros(p.shape[0]), "column": jnp.zeros(p.shape[1])}
                if len(p.shape) > 1
                else None
            )
        },
    ),
    "two square factors": (two_sided, {"left": square(0), "right": square(1)}),
    "a random key": (noisy, {"key": lambda p: jax.random.key(3)}),
    "a counter": (counted, {"seen": lambda p: jnp.zeros((), jnp.int32)}),
}


@pytest.mark.parametrize("kind", CUSTOM)
def test_slots_of_any_shape_and_type_batched_masked_and_mapped(kind):
    leaf, slots = CUSTOM[kind]
    alone = lift(Rule("mine", leaf, slots=slots))
    stacked = lift(Rule("mine", leaf, slots=slots, stacked=True))
    masked = lift(
        Rule("mine", leaf, slots=slots, stacked=True, mask={"b": True, "c": False, "w": True})
    )
    start = alone.init(PARAMS)
    described = alone.init(jax.eval_shape(lambda: PARAMS))
    assert jax.tree.structure(described) == jax.tree.structure(start)

    @jax.jit
    def run(params):
        lanes = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
        return (
            alone.update(params, alone.init(params), params),
            stacked.update(params, stacked.init(params), params),
            masked.update(params, masked.init(params), params),
            jax.vmap(lambda p: stacked.update(p, stacked.init(p), p))(lanes),
        )

    one, batched, partly, mapped = run(PARAMS)
    assert jax.tree.structure(one[1]) == jax.tree.structure(start)
    for old, new in zip(jax.tree.leaves(start), jax.tree.leaves(one[1]), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    first_lane = jax.tree.map(lambda x: x[0], mapped)
    for other in (batched, first_lane):
        jax.tree.map(assert_close, one, other)
    name = next(iter(slots))
    assert isinstance(getattr(partly[1], name)["c"], optax.MaskedNode)
    np.testing.assert_array_equal(partly[0]["c"], PARAMS["c"])
    assert_close(partly[0]["w"], one[0]["w"])


def assert_close(a, b):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    # Batched products and sums add in another order.
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_slots_of_several_arrays_work_in_an_nnx_optimizer():
    """It puts other containers in the place of tuples and dicts."""
    pair = namedtuple("Pair", ["row", "column"])

    def leaf(g, slots, h, p):
        return g, tuple(jax.tree.map(lambda x: x + 1, slot) for slot in slots)

    def arrays(p):
        return jnp.zeros(p.shape[0]), jnp.ones(p.shape[-1])

    slots = {
        "tuple": arrays,
        "pair": lambda p: pair(*arrays(p)),
        "dict": lambda p: dict(zip(("row", "column"), arrays(p), strict=True)),
    }
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, lift(Rule("mine", leaf, slots=slots)), wrt=nnx.Param)
    for _ in range(3):
        optimizer.update(model, nnx.state(model, nnx.Param))
    for name in slots:
        kernel = nnx.to_pure_dict(nnx.state(optimizer))["opt_state"][name]["kernel"]
        assert sorted(float(x.max()) for x in jax.tree.leaves(kernel)) == [3.0, 4.0]


def test_a_rule_can_use_the_norm_of_the_updates_so_far():
    normalized = Rule(
        "normalized",
        lambda u, slots, factor, p: (factor * u, slots),
        across=lambda h, t, updates, params: 1 / jnp.sqrt(sum(jnp.sum(u * u) for u in updates)),
    )
    adam = optlab.optimizers._adam.adam_rule("normalized")
    tx = lift(adam, normalized, rules.learning_rate("normalized", 0.5))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optlab.global_norm(updates), 0.5, rtol=1e-6)


def test_the_domain_of_a_hyperparameter_travels_with_the_state():
    hyperparams = {"b3": decay(0.9, bias_corrected=True), "k": number(lambda step: 0.5)}
    tx = lift(Rule("mine", unchanged, slots=MU, hyperparams=hyperparams))
    single = tx.init(PARAMS)
    mapped = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(2))
    for state in (single, mapped):
        with pytest.raises(ValueError, match=r"b3 must be in \[0, 1\), got b3=1.5"):
            optlab.replace_hyperparams(state, b3=1.5)
        with pytest.raises(ValueError, match="k must not be scheduled"):
            optlab.replace_hyperparams(state, k=0.1)
        values = optlab.hyperparams(optlab.replace_hyperparams(state, b3=0.5))
        np.testing.assert_array_equal(values["b3"], np.full(values["b3"].shape, 0.5))


def test_facts_and_slots_are_those_of_the_parameter_and_not_of_a_narrower_gradient():
    types = []

    def static(leaf):
        types.append(leaf.dtype)
        return str(leaf.dtype)

    slots = {"mu": lambda p, facts: None if p.dtype == jnp.bfloat16 else jnp.zeros(())}
    rule = Rule("mine", lambda g, slots, h, p, facts: (g, slots), slots=slots, static=static)
    tx = lift(rule)
    tx.update({"w": jnp.ones(3, jnp.bfloat16)}, tx.init({"w": jnp.ones(3)}), {"w": jnp.ones(3)})
    assert set(types) == {jnp.dtype(jnp.float32)}
