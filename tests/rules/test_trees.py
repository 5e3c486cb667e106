"""Trees as models make them: masks of every form, leaves that are no arrays, half precision."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

import optlab
from optlab.rules import Rule, lift, slot

W, B = jnp.ones((2, 3)), jnp.ones(3)


class Callable(eqx.Module):
    """A module that can be called, as most can."""

    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Data:
    """A dataclass of the user's own."""

    w: jax.Array
    b: jax.Array


def nnx_state():
    return jax.tree.map(jnp.ones_like, nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))


TREES = {
    "dict": {"w": W, "b": B},
    "frozen": FrozenDict(w=W, b=B),
    "module": Callable(W, B),
    "dataclass": Data(W, B),
    "tuple": (W, B),
    "with None": {"w": W, "b": B, "none": None},
    "nnx": nnx_state(),
}

MASKS = {
    "function": lambda params: lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
    "tree": lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    "NumPy": lambda params: jax.tree.map(lambda x: np.bool_(x.ndim > 1), params),
    "JAX": lambda params: jax.tree.map(lambda x: jnp.asarray(x.ndim > 1), params),
    "names": lambda params: {"w": True, "b": False},
    "frozen names": lambda params: FrozenDict(w=True, b=False),
    "dataclass of names": lambda params: Data(True, False),
}


# A mask of names alone fits the trees that have these names.
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (kind, form)
        for kind in TREES
        for form in MASKS
        if "names" not in form or kind not in ("tuple", "with None", "nnx")
    ],
)
def test_masks_of_every_form(kind, form):
    params = TREES[kind]
    decay = lift(optlab.rules.weight_decay("decay", 0.5, MASKS[form](params)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = decay.update(zeros, decay.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    for update in jax.tree.leaves(updates):
        np.testing.assert_array_equal(update, 0.5 if update.ndim > 1 else 0)


def test_a_mask_may_be_a_prefix_of_the_parameters():
    params = {"head": {"w": W, "b": B}, "body": {"w": W}}
    for mask in ({"head": True, "body": False}, {"head": {"w": True, "b": True}, "body": False}):
        decay = optlab.add_decayed_weights(1.0, mask)
        updates, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
        assert [float(jnp.max(x)) for x in jax.tree.leaves(updates)] == [0, 1, 1]


@pytest.mark.parametrize("mask", [{"w": 1, "b": 0}, "w", {"w": True}, {"w": True, "x": False}])
def test_a_mask_of_something_else_is_refused(mask):
    with pytest.raises(ValueError, match=r"^adamw: .*mask"):
        optlab.adamw(0.1, mask=mask).init(TREES["dict"])


@pytest.mark.parametrize("kind", TREES)
def test_a_masked_leaf_has_no_slots(kind):
    def leaf(g, slots, h, p):
        return 0 * g, (slots.mu + g,)

    def mask(tree):
        return jax.tree.map(lambda x: x.ndim > 1, tree)

    params = TREES[kind]
    tx = lift(Rule("matrices", leaf, slots={"mu": slot()}, mask=mask))
    state = tx.init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state.mu)] == [(2, 3)]
    updates, new = tx.update(params, state, params)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for update in jax.tree.leaves(updates):
        np.testing.assert_array_equal(update, 0 if update.ndim > 1 else 1)


MODEL = {"w": W, "f": jax.nn.relu, "text": "relu", "none": None, "steps": jnp.arange(3), "n": 3}
GRADIENTS = {"w": W, "f": None, "text": None, "none": None, "steps": None, "n": None}

WITHOUT_SLOTS = {
    "sgd": lambda: optlab.sgd(0.1),
    "clipped": lambda: optax.chain(optlab.clip_by_global_norm(1.0), optlab.sgd(0.1)),
    "by-value": lambda: optlab.clip_by_value(0.5),
    "decay": lambda: optlab.add_decayed_weights(0.1),
    "plateau": lambda: optlab.reduce_on_plateau(),
}
WITH_SLOTS = {
    "sgd": lambda: optlab.sgd(0.1, 0.9),
    "adam": lambda: optlab.adam(0.1),
    "lion": lambda: optlab.lion(0.1),
    "params_ema": lambda: optlab.params_ema(0.9),
}


@pytest.mark.parametrize("name", WITHOUT_SLOTS)
def test_rules_without_slots_take_models_with_functions_in_them(name):
    tx = WITHOUT_SLOTS[name]()
    updates, _ = tx.update(GRADIENTS, tx.init(MODEL), MODEL)
    assert {key: x for key, x in updates.items() if key != "w"} == {
        key: None for key in MODEL if key != "w"
    }
    assert updates["w"].shape == W.shape


@pytest.mark.parametrize("name", WITH_SLOTS)
def test_rules_with_slots_name_the_leaf_that_is_no_array(name):
    tx = WITH_SLOTS[name]()
    with pytest.raises(
        ValueError, match=rf"^{name}: parameters must be arrays, got .* at \['f'\].*filter"
    ):
        tx.init(MODEL)
    for leaf in (jnp.arange(3), np.ones(3, bool)):
        with pytest.raises(
            ValueError, match=rf"^{name}: .* got {leaf.dtype.name[:3]}.* at \['a'\]\['k'\]"
        ):
            tx.init({"a": {"k": leaf}})
    filtered = eqx.filter(MODEL, eqx.is_inexact_array)
    updates, _ = tx.update(GRADIENTS, tx.init(filtered), filtered)
    assert updates["w"].shape == W.shape


@pytest.mark.parametrize(
    ("of_gradient", "of_param", "of_update"),
    [
        (jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.float16, jnp.float32, jnp.float32),
        (jnp.float32, jnp.bfloat16, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
        (jnp.complex64, jnp.complex64, jnp.complex64),
    ],
)
def test_updates_have_the_wider_type_of_gradient_and_parameter(of_gradient, of_param, of_update):
    tx = optax.chain(optlab.clip_by_global_norm(1.0), optlab.adamw(0.1, mu_dtype=jnp.bfloat16))
    params = jnp.ones(3, of_param)
    state = tx.init(params)
    update, new = tx.update(jnp.ones(3, of_gradient), state, params)
    assert update.dtype == of_update
    types = [[x.dtype for x in jax.tree.leaves(s)] for s in (state, new)]
    assert types[0] == types[1]
