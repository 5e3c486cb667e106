"""Which parameter belongs to which group, and what is said of rules that do not fit."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optlab
from golden import record_groups
from optlab import groups

ADAMW = optlab.adamw(0.1, weight_decay=0.5)
PARAMS = {
    "embed": {"embedding": jnp.ones((5, 2))},
    "layers": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((4, 2))},
    "head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
}


def treatments(rules, params=PARAMS, **options):
    """Return what happens to each parameter by its path."""
    tx = groups.partition(params, rules, optimizer=ADAMW, **options)
    return {one.path: one for one in optlab.describe(tx, params)}


def groups_of(rules, params=PARAMS):
    return {path: one.group for path, one in treatments(rules, params).items()}


def test_the_first_pattern_that_matches_decides():
    rules = [("bias", groups.group()), ("head", groups.group(lr_mult=10.0)), (..., groups.frozen())]
    assert groups_of(rules) == {
        "embed/embedding": None,
        "head/bias": "bias",
        "head/kernel": "head",
        "layers/bias": "bias",
        "layers/kernel": None,
    }


def test_predicates_see_the_path_and_the_parameter():
    rules = [(lambda path, p: p.ndim == 1, groups.group(name="vectors")), (..., groups.group())]
    assert groups_of(rules)["head/bias"] == "vectors"
    assert groups_of(rules)["layers/bias"] == "rest"


def test_numbers_of_a_group_multiply_or_replace_those_of_the_optimizer():
    own = groups.group(lr_mult=0.25, wd_mult=2.0)
    assert treatments([(..., own)])["head/bias"][4:6] == ((0.025,), (1.0,))
    own = groups.group(learning_rate=0.3, weight_decay=0.0)
    assert treatments([(..., own)])["head/bias"][4:6] == ((0.3,), (0.0,))
    of_muon = optlab.describe(
        groups.partition(
            PARAMS,
            [(..., groups.group(lr_mult=0.5))],
            optimizer=optlab.muon(0.1, adam_learning_rate=0.01),
        ),
        PARAMS,
    )
    assert [one.rates for one in of_muon][:2] == [(0.005,), (0.005,)]
    assert of_muon[4].rates == (0.05,)


def test_modifiers_multiply_each_other_and_the_groups():
    rules = [
        groups.layerwise_decay(0.5),
        groups.no_decay(),
        ("head", groups.group(lr_mult=10.0)),
        (..., groups.group()),
    ]
    got = treatments(rules)
    assert got["head/kernel"][4:6] == ((1.0,), (0.5,))
    assert got["head/bias"].group == "head-layer5-no_decay"
    assert got["head/bias"].decays == (0.0,)
    # The slices of the stack are layers 1 to 4 of 5.
    assert got["layers/kernel"].rates == (0.1, (0.0625, 0.125, 0.25, 0.5))
    assert got["layers/bias"].decays == (0.0,)  # has two axes, one of which counts layers
    assert got["embed/embedding"].rates == (0.1 * 0.5**5,)


def test_embeddings_decay_unless_asked_otherwise():
    assert treatments([groups.no_decay()])["embed/embedding"].decays == (0.5,)
    assert treatments([groups.no_decay(embeddings=True)])["embed/embedding"].decays == (0.0,)
    assert treatments([groups.no_decay("head")])["head/kernel"].decays == (0.0,)


def test_layers_and_decays_are_timms():
    recorded = record_groups.load()
    params = {}
    columns = (recorded[f"timm/{what}"] for what in ("paths", "shapes", "scales", "decays"))
    rows = zip(*columns, strict=True)
    rows = [(str(path), str(shape), scale, decay) for path, shape, scale, decay in rows]
    for path, shape, *_ in rows:
        node = params
        *above, last = path.split("/")
        for name in above:
            node = node.setdefault(name, {})
        node[last] = jax.ShapeDtypeStruct(tuple(map(int, shape.split("x"))), jnp.float32)
    rules = [groups.layerwise_decay(record_groups.LAYER_DECAY), groups.no_decay()]
    tx = groups.partition(params, rules, optimizer=optlab.adamw(1.0, weight_decay=0.05))
    got = {one.path: (one.rates, one.decays) for one in optlab.describe(tx, params)}
    assert got == {path: ((scale,), (decay,)) for path, _, scale, decay in rows}


@pytest.mark.parametrize(
    ("numbering", "want"),
    [
        ("timm", [0.75**13, 0.75, 0.75, 1.0]),
        ("mae", [0.75**13, 0.75, 1.0, 1.0]),
        ("electra", [0.75**14, 0.75**2, 1.0, 1.0]),
    ],
)
def test_numberings_differ_at_the_ends(numbering, want):
    names = ["embed", *(f"block_{i}" for i in range(12)), "norm", "head"]
    params = {name: {"kernel": jnp.ones((2, 2))} for name in names}
    tx = groups.partition(
        params, [groups.layerwise_decay(0.75, numbering)], optimizer=optlab.sgd(1.0)
    )
    rates = {one.path.split("/")[0]: one.rates[0] for one in optlab.describe(tx, params)}
    got = [rates[name] for name in ("embed", "block_11", "norm", "head")]
    np.testing.assert_allclose(got, want, rtol=1e-15)  # powers may differ by a rounding


def test_layers_follow_the_numbers_and_not_the_order_of_the_names():
    stages = {f"layer{i}": {str(j): {"conv1": jnp.ones((2, 2))} for j in range(2)} for i in (1, 2)}
    params = {"conv1": jnp.ones((2, 2)), **stages, "fc": {"kernel": jnp.ones((2, 2))}}
    params |= {f"layer{i}": {"0": {"conv1": jnp.ones((2, 2))}} for i in (3, 10)}
    tx = groups.partition(params, [groups.layerwise_decay(0.5)], optimizer=optlab.sgd(1.0))
    rates = {one.path: one.rates[0] for one in optlab.describe(tx, params)}
    assert rates["conv1"] == 0.5**7
    assert [rates[f"layer{k}/conv1"] for k in ("1/0", "1/1", "2/0", "2/1", "3/0", "10/0")] == [
        0.5**k for k in (6, 5, 4, 3, 2, 1)
    ]


def test_rates_by_layer_have_a_floor_and_an_order_by_pattern():
    params = {name: jnp.ones(2) for name in ("b", "a", "top")}
    rule = groups.layerwise_decay(0.1, layers=["b", "a"], head=["top"], min_rate=0.05)
    tx = groups.partition(params, [rule], optimizer=optlab.sgd(1.0))
    assert [one.rates[0] for one in optlab.describe(tx, params)] == [0.1, 0.05, 1.0]


def test_rates_by_layer_may_be_traced_and_a_model_may_have_no_head():
    params = {f"Dense_{number}": {"k": jnp.ones(1)} for number in range(2)}

    def update(decay):
        rule = groups.layerwise_decay(decay, head=None)
        tx = groups.partition(params, [rule], optimizer=optlab.sgd(1.0))
        updates, _ = tx.update(params, tx.init(params), params)
        return jnp.concatenate(jax.tree.leaves(updates))

    got = jax.vmap(update)(jnp.array([0.5, 0.25]))
    np.testing.assert_array_equal(got, [[-0.5, -1.0], [-0.25, -1.0]])


def test_discriminative_rates_are_fastais_and_ulmfits():
    params = {name: jnp.ones(2) for name in "abcde"}
    for options, want in (
        ({"rates": slice(1e-5, 1e-3)}, [1e-5, 10**-4.5, 1e-4, 10**-3.5, 1e-3]),
        ({"rates": slice(1e-3)}, [1e-4] * 4 + [1e-3]),
        ({"rates": [1e-5, 1e-4, 2e-4, 3e-4, 1e-3]}, [1e-5, 1e-4, 2e-4, 3e-4, 1e-3]),
        ({"factor": 2.6}, [2.1883e-5, 5.6897e-5, 1.4793e-4, 3.846e-4, 1e-3]),
    ):
        rule = groups.discriminative(list("abcde"), **options)
        tx = groups.partition(params, [rule], optimizer=optlab.sgd(1e-3))
        rates = [one.rates[0] for one in optlab.describe(tx, params)]
        np.testing.assert_allclose(rates, want, rtol=1e-4)  # the digits above


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.Dense(3, name="body")(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.body, self.head = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)


class Eqx(eqx.Module):
    body: eqx.nn.Linear
    head: eqx.nn.Linear


def test_one_notation_serves_all_frameworks():
    key = jax.random.key(0)
    trees = [
        Linen().init(key, jnp.ones((1, 4))),
        nnx.state(Nnx(nnx.Rngs(0)), nnx.Param),
        eqx.filter(Eqx(eqx.nn.Linear(4, 3, key=key), eqx.nn.Linear(3, 2, key=key)), eqx.is_array),
    ]
    for params in trees:
        tx = groups.partition(
            params, [("body", groups.frozen()), ("head", groups.group())], optimizer=ADAMW
        )
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = tx.update(gradients, tx.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        moved = {
            "body" if "body" in jax.tree_util.keystr(path) else "head": bool(jnp.any(leaf != 0))
            for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
        }
        assert moved == {"body": False, "head": True}
        assert sum(leaf.size for leaf in jax.tree.leaves(state.groups["head"][0])) > 2 * 8


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [("head", groups.group()), ("embed", groups.frozen())],
            "every parameter must be covered by a pattern, got none for layers/bias, layers/kernel",
        ),
        (
            [("heads", groups.group()), (..., groups.frozen())],
            "got 'heads', which matches none; did you mean head",
        ),
        (
            [(groups.slices("kernels", 0, 2), groups.group()), (..., groups.frozen())],
            "got slices('kernels', 0, 2), which matches none; did you mean",
        ),
        (
            [("head", groups.group()), ("head/bias", groups.frozen()), (..., groups.group())],
            "got 'head/bias', whose parameters earlier patterns take; put it in front",
        ),
        (
            {"head": groups.group(), "bias": groups.frozen(), ...: groups.group()},
            "one pattern of a mapping must match head/bias, got 'head' and 'bias'",
        ),
        (
            [
                (groups.slices("layers", 0, 3), groups.group()),
                (groups.slices("layers/kernel", 2, 4), groups.frozen()),
                (..., groups.group()),
            ],
            "slices of layers/kernel must not overlap, got 0 to 2 and 2 to 3",
        ),
        (
            [(groups.slices("layers", 2, 5), groups.group()), (..., groups.frozen())],
            "must name slices of layers/bias, got 2 to 4 for the shape (4, 2)",
        ),
        ([(..., groups.frozen())], "at least one parameter must be trained, got 5 that are all"),
        ([(..., groups.group(weight_deca=0.1))], "got weight_deca; did you mean weight_decay?"),
        ([(..., groups.group(optax_b1=0.1))], "got optax_b1; it has b1, b2, eps"),
        ([(..., groups.group(weight_decay=-1.0))], "weight_decay must be finite and >= 0, got"),
        ([("head", 0.1)], "a rule must end with a group or a transformation, got 0.1"),
        ([groups.frozen()], "each rule must be a pair (pattern, group) or a modifier"),
        ("head", "rules must be a list or a mapping, got 'head'"),
        ([("(", groups.group())], "patterns must be regular expressions"),
        (
            [groups.discriminative(["head"], slice(1e-3))],
            "got none for embed/embedding, layers/bias",
        ),
        ([groups.gradual_unfreezing([("head", 0)])], "every parameter that is trained must match"),
        (
            [groups.no_decay("normm")],
            "each pattern must match whole names on some path, got 'normm'",
        ),
        (
            [("head", optlab.accumulate(optlab.sgd(1.0), 2)), groups.no_decay(), (..., ADAMW)],
            "the weight decay of the group 'head-no_decay' can be set where the optimizer is one",
        ),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        groups.partition(PARAMS, rules, optimizer=ADAMW)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: groups.group(lr_mult=-0.1),
            "groups.group: lr_mult must be finite and >= 0, got lr_mult=-0.1",
        ),
        (
            lambda: groups.group(lr_mult=float("nan")),
            "lr_mult must be finite and >= 0, got lr_mult=nan",
        ),
        (
            lambda: groups.group(wd_mult=float("inf")),
            "wd_mult must be finite and >= 0, got wd_mult=inf",
        ),
        (lambda: groups.group("adam"), "optimizer must be an optax.GradientTransformation, got"),
        (lambda: groups.group(name="a/b"), 'name must be a string without "/" and "@"'),
        (lambda: groups.slices("a", 3, 3), "start must be below stop, got start=3, stop=3"),
        (lambda: groups.slices("a", -1, 3), "start must be an integer >= 0, got start=-1"),
        (lambda: groups.layerwise_decay(1.5), "decay must be in (0, 1], got decay=1.5"),
        (lambda: groups.layerwise_decay(0.5, "beit"), "numbering must be one of 'timm', 'mae'"),
        (lambda: groups.discriminative(["a"]), "either rates or factor must be given"),
        (lambda: groups.discriminative(["a", "b"], [0.1]), "rates must hold one for each of 2"),
        (lambda: groups.discriminative(["a"], slice(0.0, 1.0)), "must be finite and > 0"),
        (lambda: groups.gradual_unfreezing([("a", -1)]), "each start must be an integer >= 0"),
        (
            lambda: groups.partition(
                PARAMS, [groups.gradual_unfreezing([(..., 5)])], optimizer=ADAMW
            ),
            "at least one parameter must be trained from the first update on, got starts at 5",
        ),
        (
            lambda: groups.partition(
                PARAMS, [groups.gradual_unfreezing([(..., 0), ("head", 2)])], optimizer=ADAMW
            ),
            "each pattern must decide for some parameter, got 'head', whose parameters earlier",
        ),
        (
            lambda: groups.partition(
                PARAMS,
                [groups.gradual_unfreezing({"head": 0, "kernel": 2, ...: 3})],
                optimizer=ADAMW,
            ),
            "one pattern of a mapping must match head/kernel, got 'head' and 'kernel'",
        ),
        (
            lambda: groups.partition({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}, [(..., ADAMW)]),
            "parameters must have different paths, with their names joined by /, got a/b twice",
        ),
        (
            lambda: groups.partition({"a[0:1]": jnp.ones(2)}, [(..., ADAMW)]),
            'names must not end like those of slices, "[0:1]", got a[0:1]; rename it',
        ),
        (
            lambda: groups.partition(
                jnp.ones((4, 2)), [(groups.slices(".*", 0, 2), groups.frozen()), (..., ADAMW)]
            ),
            "must name slices of an array in a tree, got a single array",
        ),
        (
            lambda: groups.partition(PARAMS, [(..., ADAMW)], around=lambda tx: ADAMW).init(PARAMS),
            "around must return a transformation with the given one in it",
        ),
        (
            lambda: groups.partition(PARAMS, [(..., groups.group(lr_mlt=2.0))], optimizer=ADAMW),
            "got lr_mlt; did you mean lr_mult?",
        ),
        (
            lambda: groups.freeze(ADAMW, PARAMS),
            "groups.freeze: there must be a pattern of what is frozen, got none; write freeze(",
        ),
        (
            lambda: groups.keep_statistics({"a": 1.0}, {"a": 2.0}),
            "groups.keep_statistics: there must be a pattern of the frozen parts, got none",
        ),
        (
            lambda: groups.keep_statistics({"a": 1.0}, {"a": 2.0, "b": 2.0}, "a"),
            "the state after the update must have the structure of the one before, got PyTreeDef(",
        ),
        (
            lambda: groups.keep_statistics({"a": 1.0}, {"a": 2.0}, "b"),
            "each pattern must match whole names on some path, got 'b', which matches none",
        ),
        (
            lambda: groups.gradual_unfreezing([(groups.slices("a", 0, 1), 1)]),
            "a stage must begin with a pattern or ..., got SlicesOf",
        ),
        (
            lambda: groups.partition(
                {"Dense_0": {"k": jnp.ones(2)}, "Dense_1": {"k": jnp.ones(2)}},
                [groups.layerwise_decay(0.5)],
                optimizer=ADAMW,
            ),
            "must tell which parameters that are trained are the head, got none among Dense_0",
        ),
        (
            lambda: groups.partition(
                {name: {"layers": {"k": jnp.ones((2, 3))}} for name in ("encoder", "decoder")},
                [groups.layerwise_decay(0.5)],
                optimizer=ADAMW,
            ),
            "order of the layers, got decoder/layers with 2 and encoder/layers with 2; pass layers",
        ),
        (lambda: groups.gradual_unfreezing(["a"]), "stages must hold pairs of a pattern and a"),
        (
            lambda: groups.partition(PARAMS, [(..., groups.group())]),
            "the group 'rest' must have an optimizer, got none; pass optimizer=",
        ),
        (
            lambda: groups.partition({"a": "text"}, [(..., ADAMW)]),
            "params must hold arrays, or their shapes, got str at ['a']",
        ),
        (
            lambda: groups.partition(
                {
                    "Conv_0": jnp.ones(2),
                    "x": {"Dense_0": {"k": jnp.ones(2)}},
                    "y": {"Conv_0": {"k": jnp.ones(2)}},
                },
                [groups.layerwise_decay(0.5)],
                optimizer=ADAMW,
            ),
            "the names must tell the order of the layers, got x/Dense_0, 1, … and y/Conv_0, 1, …",
        ),
        (
            lambda: groups.partition(
                {"a0": {"k": jnp.ones(2)}, "odd": jnp.ones(2), "head": jnp.ones(2)},
                [groups.layerwise_decay(0.5)],
                optimizer=ADAMW,
            ),
            "must belong to the stem, to a layer or to the head, got odd",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_frozen_layers_keep_their_places_among_the_others():
    names = ("embed", "layer0", "layer1", "layer2", "head")
    params = {name: {"k": jnp.ones(2)} for name in names}
    rules = [("layer2", groups.frozen()), (..., groups.group()), groups.layerwise_decay(0.5)]
    tx = groups.partition(params, rules, optimizer=optlab.sgd(1.0))
    rates = {one.path.split("/")[0]: one.rates for one in optlab.describe(tx, params)}
    assert rates == {
        "embed": (0.0625,),
        "head": (1.0,),
        "layer0": (0.125,),
        "layer1": (0.25,),
        "layer2": (),
    }


def test_frozen_side_branches_need_no_place_among_the_layers():
    params = {
        "block0": {"k": jnp.ones(2)},
        "head": jnp.ones(2),
        "ema": {"block0": {"k": jnp.ones(2)}},
    }
    rules = [("ema", groups.frozen()), (..., groups.group()), groups.layerwise_decay(0.5)]
    tx = groups.partition(params, rules, optimizer=optlab.sgd(1.0))
    assert [one.rates for one in optlab.describe(tx, params)] == [(0.5,), (), (1.0,)]
