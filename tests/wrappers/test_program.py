"""A light step is computed with its outcome in view: the same results, without copies in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from helpers import assert_same_bits, spoiled

SHAPE = (20, 10)
rng = np.random.default_rng(0)
PARAMS = {name: rng.normal(size=SHAPE).astype(np.float32) for name in ("w", "b")}
GRADIENTS = [{name: rng.normal(size=SHAPE).astype(np.float32) for name in PARAMS} for _ in range(3)]


@jax.jit
def average(g, mu):
    """Return an update and its slot, and two slots that it hands on."""
    new = 0.9 * mu + g
    return -0.1 * new, new, mu


@jax.custom_jvp
def halved(x):
    return x / 2


halved.defjvp(lambda primals, tangents: (primals[0] / 2, tangents[0] / 2))


def slots(*names):
    return lambda params: {name: jax.tree.map(jnp.zeros_like, params) for name in names}


def transformation(init, leaf):
    """Make a transformation of (gradient, slots) → (update, slots) for one leaf."""

    def update(updates, state, params=None):
        results = {
            key: leaf(g, {name: slot[key] for name, slot in state.items()})
            for key, g in updates.items()
        }
        new = {name: {key: own[name] for key, (_, own) in results.items()} for name in state}
        return {key: u for key, (u, _) in results.items()}, new

    return optax.GradientTransformation(init, update)


def through_a_function(g, own):
    update, new, before = average(g, own["mu"])
    return update, {"mu": new, "before": before}


LEAVES = {
    "a slot that is the gradient": (("last",), lambda g, own: (-g - own["last"], {"last": g})),
    "a slot that stays": (("mu",), lambda g, own: (own["mu"] - g, {"mu": own["mu"]})),
    "slots that change places": (
        ("one", "two"),
        lambda g, own: (-own["one"], {"one": own["two"] + g, "two": own["one"]}),
    ),
    "one result in two slots": (
        ("one", "two"),
        lambda g, own: (lambda x: (-x, {"one": x, "two": x}))(own["one"] - own["two"] + g),
    ),
    "an update that is the slot": (("mu",), lambda g, own: ((x := own["mu"] - g), {"mu": x})),
    "a slot that is a constant": (("mu",), lambda g, own: (-g, {"mu": jnp.ones(SHAPE)})),
    "a function within": (("mu", "before"), through_a_function),
    "a derivative of its own": (("mu",), lambda g, own: (-(x := halved(own["mu"] + g)), {"mu": x})),
}


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_step_is_made_or_changes_no_bit(leaf):
    names, function = LEAVES[leaf]
    tx = transformation(slots(*names), function)
    guarded = optlab.skip_nonfinite(tx)
    step, plain = jax.jit(guarded.update), jax.jit(tx.update)
    state, expected = guarded.init(PARAMS), tx.init(PARAMS)
    for g in (GRADIENTS[0], spoiled(GRADIENTS[1], np.nan), GRADIENTS[2]):
        updates, state = step(g, state)
        if np.isfinite(g["w"]).all():
            wanted, expected = plain(g, expected)
        else:
            wanted = jax.tree.map(lambda x: np.full_like(x, -0.0), PARAMS)
        assert_same_bits((updates, state.inner), (wanted, expected))


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_window_of_two_makes_one_step(leaf):
    names, function = LEAVES[leaf]
    tx = transformation(slots(*names), function)
    gathered = optlab.accumulate(tx, 2)
    step, state = jax.jit(gathered.update), gathered.init(PARAMS)
    first, state = step(GRADIENTS[0], state)
    assert_same_bits(
        (first, state.inner), (jax.tree.map(lambda x: -0.0 * abs(x), PARAMS), tx.init(PARAMS))
    )
    mean = jax.tree.map(lambda a, b: a / 2 + b / 2, *GRADIENTS[:2])
    assert_same_bits((step(GRADIENTS[1], state)[0]), jax.jit(tx.update)(mean, tx.init(PARAMS))[0])


WRAPS = {"skip_nonfinite": optlab.skip_nonfinite, "accumulate": lambda tx: optlab.accumulate(tx, 2)}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("make", [optax.adam, optlab.adam], ids=["optax", "optlab"])
def test_derivatives_are_those_of_the_steps_that_are_made(wrap, make):
    def end(rate, scale, tx_of):
        tx = tx_of(make(rate))
        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(2):
            g = jax.tree.map(lambda g: scale * g, GRADIENTS[0])
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(jnp.abs(p)) for p in params.values())

    # A window of two equal gradients is one step, and the other call makes none.
    def once(rate, scale):
        tx, g = make(rate), jax.tree.map(lambda g: scale * g, GRADIENTS[0])
        updates, _ = tx.update(g, tx.init(PARAMS), PARAMS)
        return sum(jnp.sum(jnp.abs(p + updates[key])) for key, p in PARAMS.items())

    plain = once if wrap == "accumulate" else lambda *x: end(*x, lambda tx: tx)
    want = jax.jit(jax.grad(plain, (0, 1)))(0.01, 1.0)
    got = jax.jit(jax.grad(lambda *x: end(*x, WRAPS[wrap]), (0, 1)))(0.01, 1.0)
    # Sums of 400 float32 numbers around 1, which cancel: 400 · 6e-8, and a margin of 4.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", WRAPS)
def test_parameters_may_have_leaves_that_are_no_arrays(wrap):
    tx = WRAPS[wrap](optlab.adam(0.1))
    state = tx.init({**PARAMS, "activation": None})

    @jax.jit
    def step(g, state, params):
        params, g = {**params, "activation": jax.nn.relu}, {**g, "activation": None}
        updates, state = tx.update(g, state, params)
        assert updates.pop("activation") is None
        return updates, state

    updates, state = step(GRADIENTS[0], state, PARAMS)
    assert np.isfinite(updates["w"]).all()


def temporary(tx):
    """Return the temporary memory of a donated step, in shares of the parameters' memory."""
    params = {name: jax.ShapeDtypeStruct((1024, 1024), jnp.float32) for name in "abcdefgh"}

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (8 * 4 * 1024**2)


@pytest.mark.parametrize(
    ("wrap", "share"),
    [
        # One of eight arrays is worked on at a time: a byte for each number, which says whether it
        # is finite, or its update.
        (optlab.skip_nonfinite, 1 / 8 / 4),
        (optlab.dynamic_loss_scale, 1 / 8 / 4),
        (lambda tx: optlab.accumulate(tx, 2), 1 / 8 / 4),
        (optlab.monitor, 1 / 8),
    ],
    ids=["skip_nonfinite", "dynamic_loss_scale", "accumulate", "monitor"],
)
def test_xla_keeps_no_copies_of_the_results(wrap, share):
    assert temporary(optlab.adamw(1e-3)) < 0.01  # scalars alone
    assert temporary(wrap(optlab.adamw(1e-3))) < share + 0.01  # and scalars


@pytest.mark.parametrize("wrap", [optlab.skip_nonfinite, lambda tx: optlab.accumulate(tx, 2)])
def test_products_of_matrices_are_not_computed_twice(wrap):
    params = {"a": jnp.zeros((20, 20))}

    def count(tx):
        return str(jax.make_jaxpr(tx.update)(params, tx.init(params), params)).count("dot_general")

    assert count(wrap(optlab.muon(1e-3))) == count(optlab.muon(1e-3)) > 0
