"""Every kind of optimizer in Flax NNX, in Flax Linen, and in trees with None as Equinox makes them.

The two models are the same network from the same parameters, and are held to `tx.update` and
`optax.apply_updates` on the plain tree of parameters.
"""

import functools
from dataclasses import dataclass

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

import optlab
from helpers import one_of_each_kind
from optlab.registry import OPTIMIZERS

# The frameworks and the plain function are compiled to different programs: some roundings of 6e-8
# in gradients of order 0.1, which adaptive rules magnify to directions of order 1.
COMPILED = {"rtol": 2e-6, "atol": 2e-6}

RATE, NUM_UPDATES = 0.1, 4
every_kind = pytest.mark.parametrize("name", one_of_each_kind(OPTIMIZERS))

rng = np.random.default_rng(0)
PARAMS = jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    {"first": {"kernel": (3, 4), "bias": (4,)}, "head": {"kernel": (4, 2), "bias": (2,)}},
    is_leaf=lambda x: isinstance(x, tuple),
)
INPUTS = jnp.asarray(rng.normal(size=(NUM_UPDATES, 8, 3)), jnp.float32)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.first(x)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.tanh(nn.Dense(4, name="first")(x)))


def plain_net(params, x):
    x = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def loss_of(outputs):
    return jnp.mean((outputs - 1.0) ** 2)


def make(name, rate=RATE):
    return optax.chain(OPTIMIZERS[name].make(rate), optlab.params_ema(0.5))


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


class InNnx:
    """The network and its optimizer in Flax NNX, with a compiled step that donates both."""

    def __init__(self, tx, wrt=nnx.Param):
        self.model = NnxNet(nnx.Rngs(0))
        nnx.update(self.model, copy(PARAMS))
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=wrt)
        self.num_traces = 0

        @nnx.jit(donate_argnums=(0, 1))
        def step(model, optimizer, x):
            self.num_traces += 1
            gradients = nnx.grad(lambda m: loss_of(m(x)), argnums=nnx.DiffState(0, wrt))(model)
            optimizer.update(model, gradients)

        self._step = step

    def step(self, x):
        self._step(self.model, self.optimizer, x)

    @property
    def params(self):
        return nnx.to_pure_dict(nnx.state(self.model, nnx.Param))

    @property
    def opt_state(self):
        return nnx.as_pure(self.optimizer.opt_state)

    @property
    def average(self):
        averaged = nnx.clone(self.model)
        nnx.update(averaged, optlab.averaged_params(self.optimizer.opt_state))
        return nnx.to_pure_dict(nnx.state(averaged, nnx.Param))

    def set_learning_rate(self, rate):
        state = optlab.replace_hyperparams(self.optimizer.opt_state, learning_rate=rate)
        self.optimizer.opt_state = state


class InLinen:
    """The network in a TrainState of Flax Linen, with a compiled step that donates it."""

    def __init__(self, tx):
        apply_fn = LinenNet().apply
        self.state = TrainState.create(apply_fn=apply_fn, params={"params": copy(PARAMS)}, tx=tx)
        self.num_traces = 0

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state, x):
            self.num_traces += 1
            gradients = jax.grad(lambda params: loss_of(state.apply_fn(params, x)))(state.params)
            return state.apply_gradients(grads=gradients)

        self._step = step

    def step(self, x):
        self.state = self._step(self.state, x)

    @property
    def params(self):
        return self.state.params["params"]

    @property
    def opt_state(self):
        return self.state.opt_state

    @property
    def average(self):
        averaged = self.state.replace(params=optlab.averaged_params(self.state.opt_state))
        return averaged.params["params"]

    def set_learning_rate(self, rate):
        opt_state = optlab.replace_hyperparams(self.state.opt_state, learning_rate=rate)
        self.state = self.state.replace(opt_state=opt_state)


in_both = pytest.mark.parametrize("framework", [InNnx, InLinen], ids=["nnx", "linen"])


@functools.cache
def by_hand(name):
    """Return the parameters after each update of the plain tree, and the last state."""
    tx = make(name)
    params, state, after = PARAMS, tx.init(PARAMS), []

    @jax.jit
    def gradients(params, x):
        return jax.grad(lambda params: loss_of(plain_net(params, x)))(params)

    for x in INPUTS:
        updates, state = tx.update(gradients(params, x), state, params)
        params = optax.apply_updates(params, updates)
        after.append(params)
    return after, state


@in_both
@pytest.mark.parametrize("name", one_of_each_kind(OPTIMIZERS, but="shampoo"))
def test_updates_are_those_made_by_hand_and_compile_once(framework, name):
    run = framework(make(name))
    after, state = by_hand(name)
    for x, expected in zip(INPUTS, after, strict=True):
        run.step(x)
        chex.assert_trees_all_close(run.params, expected, **COMPILED)
    assert run.num_traces == 1
    # The same state, leaf by leaf in the same order, in whatever containers the framework uses.
    leaves, expected = jax.tree.leaves(run.opt_state), jax.tree.leaves(state)
    assert len(leaves) == len(expected)
    chex.assert_trees_all_close(leaves, expected, **COMPILED)


@in_both
def test_scheduled_rate_in_force_is_read_from_the_state(framework):
    schedule = optlab.schedules.warmup_cosine(0.1, warmup_steps=2, decay_steps=4)
    run = framework(make("adamw", schedule))
    for step, x in enumerate(INPUTS):
        run.step(x)
        in_force = optlab.hyperparams(run.opt_state)["learning_rate"]
        # Rounding of one float32 formula, eager and compiled.
        np.testing.assert_allclose(in_force, schedule(step), rtol=1e-6, atol=1e-9)


@in_both
def test_a_rate_put_in_the_state_acts_at_once_without_compiling_anew(framework):
    run = framework(make("sgd"))
    for x in INPUTS[:2]:
        run.step(x)
    before = copy(run.params)
    run.set_learning_rate(RATE / 2)
    run.step(INPUTS[2])
    (_, second, third, _), _ = by_hand("sgd")
    halved = jax.tree.map(lambda a, b: a + (b - a) / 2, second, third)
    chex.assert_trees_all_close(before, second, **COMPILED)
    chex.assert_trees_all_close(run.params, halved, **COMPILED)
    in_force = optlab.hyperparams(run.opt_state)["learning_rate"]
    assert in_force == RATE / 2
    assert in_force.dtype == jnp.float32
    assert run.num_traces == 1


@every_kind
def test_train_state_resumes_bitwise_from_its_bytes(name):
    run = InLinen(make(name))
    for x in INPUTS[:2]:
        run.step(x)
    saved = serialization.to_bytes(run.state)
    for x in INPUTS[2:]:
        run.step(x)
    uninterrupted = run.state
    run.state = serialization.from_bytes(uninterrupted, saved)
    assert run.state.step == 2
    for x in INPUTS[2:]:
        run.step(x)
    chex.assert_trees_all_equal(run.params, uninterrupted.params["params"])
    chex.assert_trees_all_equal(run.opt_state, uninterrupted.opt_state)


@in_both
def test_averaged_params_go_back_into_the_model(framework):
    run = framework(make("momentum"))
    average = jax.tree.map(np.float64, PARAMS)
    for x in INPUTS:
        run.step(x)
        average = jax.tree.map(lambda a, p: (a + np.float64(p)) / 2, average, run.params)
    # A float32 average against a float64 one, of values of order 1.
    chex.assert_trees_all_close(run.average, average, rtol=1e-6, atol=1e-6)


def test_average_in_nnx_leaves_batch_statistics_alone():
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, make("adam"), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: loss_of(m(x)))(model))

    step(model, optimizer, INPUTS[0])
    averaged = nnx.clone(model)
    nnx.update(averaged, optlab.averaged_params(optimizer.opt_state))
    statistics = [nnx.to_pure_dict(nnx.state(m, nnx.BatchStat)) for m in (model, averaged)]
    assert len(jax.tree.leaves(statistics[0])) == 2
    chex.assert_trees_all_equal(*statistics)


@every_kind
def test_nnx_filter_trains_a_part_and_leaves_the_rest_bitwise(name):
    run = InNnx(make(name), wrt=nnx.All(nnx.Param, nnx.PathContains("first")))
    for x in INPUTS:
        run.step(x)
    chex.assert_trees_all_equal(run.params["head"], PARAMS["head"])
    moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), run.params, PARAMS)
    assert min(jax.tree.leaves(moved["first"])) > 1e-3
    # The state holds nothing of the shape of a frozen kernel.
    assert (4, 2) not in {leaf.shape for leaf in jax.tree.leaves(run.opt_state)}


def test_nnx_takes_groups_and_masks_given_as_functions():
    def is_matrix(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    def labels(params):
        return jax.tree.map(lambda p: "matrix" if p.ndim > 1 else "vector", params)

    groups = {"matrix": optlab.adamw(RATE, mask=is_matrix), "vector": optax.set_to_zero()}
    run = InNnx(optax.chain(optax.partition(groups, labels), optlab.params_ema(0.5)))
    for x in INPUTS:
        run.step(x)
    for layer in ("first", "head"):
        chex.assert_trees_all_equal(run.params[layer]["bias"], PARAMS[layer]["bias"])
        moved = jnp.max(jnp.abs(run.params[layer]["kernel"] - PARAMS[layer]["kernel"]))
        assert moved > 1e-2
    assert run.num_traces == 1


# Equinox: models are dataclasses, filtered so that what is not trained is None.


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weight", "bias"], meta_fields=["activation"]
)
@dataclass(frozen=True)
class Layer:
    weight: jax.Array
    bias: jax.Array | None
    activation: str


@pytest.mark.filterwarnings("ignore:muon orthogonalizes")  # a list of layers names no head
@every_kind
def test_none_leaves_are_as_if_absent(name):
    weights = [PARAMS["first"]["kernel"], PARAMS["head"]["kernel"]]
    layers = [Layer(weights[0], None, "tanh"), Layer(weights[1], None, "identity")]
    tx = make(name)
    state, bare_state, bare = tx.init(layers), tx.init(weights), weights
    update = jax.jit(tx.update)
    for i in (1, 2):
        gradients = jax.tree.map(lambda x, i=i: jnp.cos(i * x), layers)
        updates, state = update(gradients, state, layers)
        layers = optax.apply_updates(layers, updates)
        bare_updates, bare_state = update(jax.tree.leaves(gradients), bare_state, bare)
        bare = optax.apply_updates(bare, bare_updates)
    assert [layer.activation for layer in layers] == ["tanh", "identity"]
    assert [layer.bias for layer in layers] == [None, None]
    # The same operations on the same leaves, compiled alike.
    chex.assert_trees_all_close([layer.weight for layer in layers], bare, **COMPILED)
    average = optlab.averaged_params(state)
    assert [layer.bias for layer in average] == [None, None]
    chex.assert_trees_all_close(
        [layer.weight for layer in average], optlab.averaged_params(bare_state), **COMPILED
    )


@every_kind
def test_a_parameter_without_gradient_and_its_state_stay_as_they_are(name):
    layer = Layer(PARAMS["first"]["kernel"], PARAMS["first"]["bias"], "tanh")
    tx = make(name)
    full = Layer(jnp.ones((3, 4)), jnp.ones(4), "tanh")
    _, state = tx.update(full, tx.init(layer), layer)
    updates, after = tx.update(Layer(jnp.ones((3, 4)), None, "tanh"), state, layer)
    assert updates.bias is None
    assert jnp.all(updates.weight != 0)
    slots = [[leaf for leaf in jax.tree.leaves(s) if leaf.shape == (4,)] for s in (state, after)]
    assert slots[0]
    chex.assert_trees_all_equal(*slots)
