"""Multipliers by width: the published tables, the update that comes of them, and refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from helpers import assert_same_bits
from optlab import groups, mup, reference
from optlab.rules import Axes

BASE, WIDTH = 4, 16
M = WIDTH / BASE


def mlp(width, make=jnp.zeros):
    shapes = {
        "stem": {"kernel": (6, width), "bias": (width,)},
        "dense": {"kernel": (width, width)},
        "head": {"kernel": (width, 3), "bias": (3,)},
    }
    return jax.tree.map(make, shapes, is_leaf=lambda x: isinstance(x, tuple))


def drawn(width, seed=0):
    rng = np.random.default_rng(seed)
    return mlp(width, lambda shape: rng.normal(size=shape).astype(np.float32) / shape[0] ** 0.5)


def by_path(table):
    return {one.path: one for one in table}


PARAMS, BASE_PARAMS = drawn(WIDTH), drawn(BASE)
OPTIMIZERS = {
    "sgd": optlab.sgd(0.1, momentum=0.9),
    "adam": optlab.adam(0.1),
    "lion": optlab.lion(0.1),
    "muon": optlab.muon(0.1, weight_decay=0.0, scale="scion"),
    "moonshot": optlab.muon(0.1, weight_decay=0.0),
}

# Tables 8 and 3 of Yang et al. (2022); a matrix of Muon by the spectral condition √(o/i)/s. The
# matrices that Muon takes are the stem and the hidden one. The scale "moonshot" is 0.2 √max(in,
# out): of the stem 0.2 √6 at the base and 0.2 √16 here, of the hidden matrix 0.2 √4 and 0.2 √16.
RATES = {
    ("sgd", "multiplier"): {"stem": M, "bias": M, "dense": 1, "head": M},
    ("sgd", "plain"): {"stem": M, "bias": M, "dense": 1, "head": 1 / M},
    ("adam", "multiplier"): {"stem": 1, "bias": 1, "dense": 1 / M, "head": 1},
    ("adam", "plain"): {"stem": 1, "bias": 1, "dense": 1 / M, "head": 1 / M},
    ("lion", "multiplier"): {"stem": 1, "bias": 1, "dense": 1 / M, "head": 1},
    ("lion", "plain"): {"stem": 1, "bias": 1, "dense": 1 / M, "head": 1 / M},
    ("muon", "multiplier"): {"stem": 1, "bias": 1, "dense": 1, "head": 1},
    ("muon", "plain"): {"stem": 1, "bias": 1, "dense": 1, "head": 1 / M},
    ("moonshot", "multiplier"): {
        "stem": M**0.5 / (16 / 6) ** 0.5,
        "bias": 1,
        "dense": M**-0.5,
        "head": 1,
    },
}


@pytest.mark.parametrize(("name", "coding"), RATES)
def test_rates_are_those_of_the_published_tables(name, coding):
    table = by_path(mup.table(OPTIMIZERS[name], PARAMS, BASE_PARAMS, coding=coding))
    kinds = {path: one.kind for path, one in table.items()}
    assert kinds == {
        "stem/kernel": "input",
        "stem/bias": "vector",
        "dense/kernel": "hidden",
        "head/kernel": "output",
        "head/bias": "fixed",
    }
    want = RATES[name, coding]
    rates = {path: one.rate for path, one in table.items()}
    assert rates == pytest.approx(
        {
            "stem/kernel": want["stem"],
            "stem/bias": want["bias"],
            "dense/kernel": want["dense"],
            "head/kernel": want["head"],
            "head/bias": 1,
        }
    )


@pytest.mark.parametrize("coding", ["multiplier", "plain"])
def test_first_numbers_and_epsilon_are_those_of_the_published_tables(coding):
    table = by_path(mup.table(OPTIMIZERS["adam"], PARAMS, BASE_PARAMS, coding=coding))
    inits = {path: one.init for path, one in table.items()}
    plain = coding == "plain"
    assert inits == {
        "stem/kernel": 1,
        "stem/bias": 1,
        "dense/kernel": M**-0.5,
        "head/kernel": 1 / M if plain else 1,
        "head/bias": 1,
    }
    # Gradients shrink as 1/m; those of a plain head, whose input keeps its size, do not.
    epsilons = {path: one.eps for path, one in table.items()}
    assert epsilons == {
        "stem/kernel": 1 / M,
        "stem/bias": 1 / M,
        "dense/kernel": 1 / M,
        "head/kernel": 1 if plain else 1 / M,
        "head/bias": 1,
    }
    kept = mup.table(OPTIMIZERS["adam"], PARAMS, BASE_PARAMS, coding=coding, scale_eps=False)
    assert {one.eps for one in kept} == {1}


DECAYS = {
    # What a parameter shrinks by in one update, over rate · λ.
    "mup": {"stem/kernel": 1, "stem/bias": 1, "dense/kernel": 1, "head/kernel": 1, "head/bias": 1},
    "nanogpt_mup": {
        "stem/kernel": 1,
        "stem/bias": 1,
        "dense/kernel": 1 / M,
        "head/kernel": 1,
        "head/bias": 1,
    },
    "completep": {
        "stem/kernel": 1,
        "stem/bias": 0,
        "dense/kernel": 1,
        "head/kernel": 1,
        "head/bias": 0,
    },
    "unit_scaling": dict.fromkeys(
        ("stem/kernel", "stem/bias", "dense/kernel", "head/kernel", "head/bias"), 1 / 0.1
    ),
}


@pytest.mark.parametrize("coding", ["multiplier", "plain"])
@pytest.mark.parametrize("decay", DECAYS)
def test_parameters_shrink_as_each_treatment_of_decay_says(decay, coding):
    tx = optlab.lion(0.1, weight_decay=0.5)
    tx = mup.transfer(tx, PARAMS, BASE_PARAMS, decay=decay, coding=coding)
    no_gradients = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(no_gradients, tx.init(PARAMS), PARAMS)
    shrinks = {
        path: np.max(-updates[module][name] / PARAMS[module][name]) / (0.1 * 0.5)
        for path in DECAYS[decay]
        for module, name in [path.split("/")]
    }
    # A few roundings in float32.
    assert shrinks == pytest.approx(DECAYS[decay], rel=1e-5)


def test_updates_are_those_of_the_reference_with_multiplied_numbers():
    tx = optlab.adamw(0.1, eps=1e-2, weight_decay=0.2)
    own = mup.transfer(tx, PARAMS, BASE_PARAMS, decay="nanogpt_mup")
    table = by_path(mup.table(tx, PARAMS, BASE_PARAMS, decay="nanogpt_mup"))
    gradients = drawn(WIDTH, seed=1)
    state, states, params = own.init(PARAMS), {path: {} for path in table}, PARAMS
    step = jax.jit(own.update)
    want = jax.tree.map(np.float64, PARAMS)
    for t in (1, 2):
        updates, state = step(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for path, one in table.items():
            module, name = path.split("/")
            want[module][name], states[path] = reference.adamw(
                want[module][name],
                gradients[module][name],
                states[path],
                t,
                learning_rate=0.1 * one.rate,
                eps=1e-2 * one.eps,
                weight_decay=0.2 * one.decay,
            )
    # Float32 after two updates of numbers near 1.
    jax.tree.map(lambda p, w: np.testing.assert_allclose(p, w, atol=2e-6), params, want)


@pytest.mark.parametrize("name", ["sgd", "adam", "lion", "muon"])
def test_both_codings_train_the_same_function(name):
    x = np.random.default_rng(2).normal(size=(5, 6)).astype(np.float32)

    def trained(coding):
        params = mup.init(PARAMS, BASE_PARAMS, coding=coding)
        multiplier = 1 / M if coding == "multiplier" else 1.0
        own = {"sgd": {}, "adam": {"eps": 1e-3}}.get(name, {"weight_decay": 0.1})
        tx = getattr(optlab, name)(0.03, **own)
        tx = mup.transfer(tx, params, BASE_PARAMS, coding=coding, decay="nanogpt_mup")

        def logits(params):
            hidden = jnp.tanh(x @ params["stem"]["kernel"] + params["stem"]["bias"])
            hidden = jnp.tanh(hidden @ params["dense"]["kernel"])
            return multiplier * (hidden @ params["head"]["kernel"]) + params["head"]["bias"]

        @jax.jit
        def step(params, state):
            gradients = jax.grad(lambda p: jnp.mean((logits(p) - x[:, :3]) ** 2))(params)
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for _ in range(3):
            params, state = step(params, state)
        return logits(params)

    # The factor is a power of two, so that the runs differ by a few roundings at most.
    np.testing.assert_allclose(trained("multiplier"), trained("plain"), rtol=1e-5, atol=1e-6)


def test_depth_has_the_multipliers_of_completep_in_blocks_alone():
    def model(width):
        block = {"kernel": jnp.zeros((6, width, width)), "bias": jnp.zeros((6, width))}
        norm = {"scale": jnp.zeros(width)}
        return {"embed": jnp.zeros((9, width)), "layers": block, "norm": norm}

    tx, deep = optlab.adamw(0.1), {"depth_ratio": 3.0, "decay": "completep"}
    table = by_path(mup.table(tx, model(WIDTH), model(BASE), **deep))
    assert table["layers/kernel"][3:] == pytest.approx(
        ("hidden", "adam", M**-0.5, 1 / M, M, 1 / (3 * M))
    )
    assert table["layers/bias"][3:] == ("vector", "adam", 1, 1, 0, 1 / (3 * M))
    assert table["norm/scale"][3:] == ("vector", "adam", 1, 1, 0, 1 / M)
    assert table["embed"][3:] == ("input", "adam", 1, 1, 1, 1 / M)
    half = by_path(mup.table(tx, model(WIDTH), model(BASE), alpha=0.5, **deep))
    assert half["layers/kernel"].rate == pytest.approx(3**-0.5 / M)
    assert half["layers/bias"].rate == pytest.approx(3**-0.5)
    assert half["embed"].rate == 1


def test_the_base_model_itself_has_the_updates_of_the_optimizer_alone():
    tx = optlab.adamw(optlab.schedules.cosine(0.1, 10), weight_decay=0.1)
    own = mup.transfer(tx, PARAMS, PARAMS, decay="mup")
    gradients = drawn(WIDTH, seed=1)
    updates = [t.update(gradients, t.init(PARAMS), PARAMS)[0] for t in (own, tx)]
    assert_same_bits(*updates)


def test_biases_do_not_decay_under_completep_at_the_base_width_either():
    table = by_path(mup.table(optlab.adamw(0.1), PARAMS, PARAMS, decay="completep"))
    assert {path: one.decay for path, one in table.items()} == {
        path: float(path.endswith("kernel")) for path in table
    }


def test_it_stands_beside_other_rules_of_groups():
    tx = groups.partition(
        PARAMS,
        [
            ("stem", groups.frozen()),
            ("head", groups.group(lr_mult=10.0)),
            (..., groups.group()),
            groups.no_decay(),
            mup.by_width(BASE_PARAMS, decay="mup"),
        ],
        optimizer=optlab.adamw(optlab.schedules.linear(0.1, 0.0, 10), weight_decay=0.1),
    )
    values = optlab.hyperparams(tx.init(PARAMS))
    assert float(values["rest-hidden/learning_rate"]) == pytest.approx(0.1 / M)
    assert float(values["rest-hidden/weight_decay"]) == pytest.approx(0.1 * M)
    assert float(values["rest-hidden/eps"]) == pytest.approx(1e-8 / M)
    assert float(values["head-output/learning_rate"]) == pytest.approx(1.0)
    assert float(values["head-no_decay/weight_decay"]) == 0
    assert not any(name.startswith("stem") for name in values)


def test_a_foreign_optimizer_has_the_rates_of_the_table_that_is_named():
    tx = mup.transfer(optax.adam(0.1), PARAMS, BASE_PARAMS, rule="adam")
    updates, _ = tx.update(drawn(WIDTH, seed=1), tx.init(PARAMS), PARAMS)
    sizes = jax.tree.map(lambda u: float(np.median(np.abs(u))), updates)
    # The first update of Adam is the rate, but for ε of Optax.
    assert sizes["dense"]["kernel"] == pytest.approx(0.1 / M, rel=1e-4)
    assert sizes["stem"]["kernel"] == pytest.approx(0.1, rel=1e-4)


def test_a_traced_rate_and_a_traced_decay_are_multiplied():
    @jax.jit
    def first(rate):
        tx = optlab.lion(rate, weight_decay=0.5)
        tx = mup.transfer(tx, PARAMS, BASE_PARAMS, decay="unit_scaling")
        return tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)[0]

    for rate in (0.1, 0.2):
        update = first(rate)["dense"]["kernel"]
        # λ alone, whatever the rate; a few roundings.
        np.testing.assert_allclose(update, -0.5 * PARAMS["dense"]["kernel"], rtol=1e-5)


SHAPES = {
    # base → target: which kind, growth of the input, of the output
    "attn/query/kernel": ((8, 2, 4), (32, 8, 4), ("hidden", 4, 4)),
    "attn/out/kernel": ((2, 4, 8), (8, 4, 32), ("hidden", 4, 4)),
    "attn/query/bias": ((2, 4), (8, 8), ("vector", 1, 8)),
    "attn/value/kernel": ((8, 2, 4), (32, 4, 8), ("hidden", 4, 4)),
    "qkv/kernel": ((8, 24), (32, 96), ("hidden", 4, 4)),
    "conv/kernel": ((3, 3, 8, 8), (3, 3, 32, 16), ("hidden", 4, 2)),
    "first_conv/kernel": ((3, 3, 3, 8), (3, 3, 3, 32), ("input", 1, 4)),
    "dense/kernel": ((8, 1), (32, 1), ("output", 4, 1)),
    "linear/weight": ((10, 8), (10, 32), ("output", 4, 1)),
    "layers/kernel": ((2, 8, 8), (6, 32, 32), ("hidden", 4, 4)),
    "layers/bias": ((2, 8), (6, 32), ("vector", 1, 4)),
    "experts/up/kernel": ((2, 8, 16), (4, 32, 64), ("hidden", 4, 4)),
    "wte/embedding": ((100, 8), (100, 32), ("input", 1, 4)),
    "gain": ((), (), ("fixed", 1, 1)),
}


@pytest.mark.parametrize("path", SHAPES)
def test_names_tell_which_axes_are_input_and_output(path):
    def tree(shape):
        *modules, name = path.split("/")
        node = {name: jax.ShapeDtypeStruct(shape, jnp.float32)}
        for module in reversed(modules):
            node = {module: node}
        return node

    base, shape, (kind, fan_in, fan_out) = SHAPES[path]
    (row,) = mup.table(optlab.sgd(0.1), tree(shape), tree(base))
    rates = {"hidden": fan_out / fan_in, "output": fan_in, "fixed": 1}
    assert (row.kind, row.rate) == (kind, rates.get(kind, fan_out))


def test_axes_and_kinds_can_be_named_where_names_do_not_tell():
    base, wide = ({"w": jnp.zeros((n, n, 5 * n)), "out": jnp.zeros(n)} for n in (2, 8))
    options = {"axes": {"w": Axes((1, 2), (0,))}, "kinds": {"out": "output"}}
    table = by_path(mup.table(optlab.adam(0.1), wide, base, **options))
    assert (table["w"].kind, table["w"].rate) == ("hidden", 1 / 16)
    assert (table["out"].kind, table["out"].eps) == ("output", 1 / 4)


class Model(nnx.Module):
    def __init__(self, width, rngs):
        self.stem = nnx.Linear(6, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)


def test_models_of_flax_and_equinox_can_be_the_base():
    base, wide = (nnx.eval_shape(lambda n=n: Model(n, nnx.Rngs(0))) for n in (BASE, WIDTH))
    table = mup.table(optlab.adam(0.1), nnx.state(wide, nnx.Param), base)
    kinds = ["output" if p == "head/kernel" else "input" for p in ("head/kernel", "stem/kernel")]
    assert [one.kind for one in table if one.path.endswith("kernel")] == kinds
    make = lambda n: eqx.nn.MLP(6, 3, n, 2, key=jax.random.key(0))  # noqa: E731
    base, wide = (eqx.filter_eval_shape(make, n) for n in (BASE, WIDTH))
    table = mup.table(optlab.adam(0.1), eqx.filter(wide, lambda x: hasattr(x, "dtype")), base)
    kinds = [one.kind for one in table if one.path.endswith("weight")]
    assert kinds == ["input", "hidden", "output"]


def only(**leaves):
    return {name: jnp.zeros(shape) for name, shape in leaves.items()}


ADAM = optlab.adam(0.1)
REFUSED = {
    "a missing counterpart": (ADAM, PARAMS, {"stem": PARAMS["stem"]}, {}, "none for dense/kernel"),
    "another rank": (ADAM, only(w=(4, 4)), only(w=(4,)), {}, r"as many axes .*, got \(4,\) for"),
    "no shapes": (ADAM, PARAMS, {"w": "text"}, {}, "base must hold arrays"),
    "an empty array": (ADAM, only(w=(4, 4)), only(w=(0, 4)), {}, "w must have sizes >= 1"),
    "a number in params": (ADAM, {"w": 1.0}, PARAMS, {}, "params must hold arrays"),
    "three axes that grow": (
        ADAM,
        only(w=(8, 8, 8)),
        only(w=(2, 2, 2)),
        {},
        "which axes of w are its input and its output, .*write axes=",
    ),
    "heads that grow without a name": (
        ADAM,
        only(w=(8, 8, 4)),
        only(w=(2, 2, 4)),
        {},
        "which axes of w are its input",
    ),
    "a vocabulary that grows": (
        ADAM,
        {"head": only(kernel=(8, 100))},
        {"head": only(kernel=(2, 50))},
        {},
        "by its name head, must keep the size of its output",
    ),
    "an unknown rule": (ADAM, PARAMS, BASE_PARAMS, {"rule": "adamax"}, "rule must be one of 'sgd'"),
    "another rule": (ADAM, PARAMS, BASE_PARAMS, {"rule": "sgd"}, "got 'sgd' for adam"),
    "a rule without a table": (
        optlab.lamb(0.1, weight_decay=0.0),
        PARAMS,
        BASE_PARAMS,
        {},
        "must be SGD, Adam, AdamW, Lion or Muon",
    ),
    "a foreign rule": (optax.adam(0.1), PARAMS, BASE_PARAMS, {}, "write rule='adam' for optax"),
    "a wrapper": (
        optlab.skip_nonfinite(ADAM),
        PARAMS,
        BASE_PARAMS,
        {},
        "rule must be given for .*; put a chain or a wrapper around the result",
    ),
    "an unknown option": (ADAM, PARAMS, BASE_PARAMS, {"deccay": "mup"}, "among .*, got deccay"),
    "a power below a half": (ADAM, PARAMS, BASE_PARAMS, {"alpha": 0.2}, r"alpha .*\[0.5, 1\]"),
    "decay that is not chosen": (
        optlab.adamw(0.1),
        PARAMS,
        BASE_PARAMS,
        {},
        "decay must be chosen where there is weight decay, got decay=None .*write decay='mup'",
    ),
    "an unknown decay": (ADAM, PARAMS, BASE_PARAMS, {"decay": "none"}, "decay must be one of"),
    "an unknown coding": (ADAM, PARAMS, BASE_PARAMS, {"coding": "both"}, "coding must be one of"),
    "a schedule without its peak": (
        optlab.adamw(lambda step: 0.1),
        PARAMS,
        BASE_PARAMS,
        {"decay": "unit_scaling"},
        "peak_rate must be given",
    ),
    "a penalty in front of Adam": (
        optlab.dialects.pytorch.adam(0.1, weight_decay=0.1),
        PARAMS,
        BASE_PARAMS,
        {"decay": "mup"},
        "must stand behind the direction",
    ),
    "a depth of nothing": (
        ADAM,
        PARAMS,
        BASE_PARAMS,
        {"depth_ratio": 0.0},
        "must be finite and > 0",
    ),
    "no blocks": (ADAM, PARAMS, BASE_PARAMS, {"depth_ratio": 2.0}, "residual blocks"),
    "a wrong pattern": (ADAM, PARAMS, BASE_PARAMS, {"kinds": {"haed": "output"}}, "did you mean"),
    "a wrong kind": (ADAM, PARAMS, BASE_PARAMS, {"kinds": {"head": "top"}}, "must be one of"),
    "a hidden vector": (
        ADAM,
        PARAMS,
        BASE_PARAMS,
        {"kinds": {"stem/bias": "hidden"}},
        "must have an input and an output",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_what_to_do(case):
    tx, params, base, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        mup.table(tx, params, base, **options)
    assert str(error.value).startswith("mup.table: ")


def test_two_widths_in_one_partition_are_refused():
    twice = [mup.by_width(BASE_PARAMS), mup.by_width(BASE_PARAMS)]
    with pytest.raises(ValueError, match=r"by_width at most once, .*got 2; take one of them out"):
        groups.partition(PARAMS, twice, optimizer=ADAM)
