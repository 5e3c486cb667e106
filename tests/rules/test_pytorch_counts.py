"""States of PyTorch whose parameters have made different numbers of updates."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab.dialects import pytorch

OPTIMIZERS = {
    "adamw": ("AdamW", pytorch.adamw, {"lr": 0.1, "betas": (0.8, 0.9)}),
    "amsgrad": ("Adam", pytorch.adam, {"lr": 0.1, "amsgrad": True}),
    "rmsprop": ("RMSprop", pytorch.rmsprop, {"lr": 0.1, "momentum": 0.5}),
    "adagrad": ("Adagrad", pytorch.adagrad, {"lr": 0.1, "lr_decay": 0.5}),
}
START = {"a": np.array([1.0, -2.0], np.float32), "b": np.array([0.5], np.float32)}


@pytest.fixture
def torch():
    """The library, which every worker would wait for if this file imported it."""
    return pytest.importorskip("torch")


def parameters(torch):
    return {key: torch.nn.Parameter(torch.tensor(value)) for key, value in START.items()}


def step(optimizer, named, names):
    """Make one update from the gradient 2x of the named parameters; the others take no part."""
    optimizer.zero_grad()
    sum((named[name] ** 2).sum() for name in names).backward()
    optimizer.step()


@pytest.mark.parametrize("late", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_of_their_own_go_on_as_pytorch_does(name, late, torch):
    theirs, ours, options = OPTIMIZERS[name]
    named = parameters(torch)
    optimizer = getattr(torch.optim, theirs)(list(named.items()), **options)
    for update in range(4):
        step(optimizer, named, ["a", "b"] if update >= late else ["a"])
    params = {key: jnp.array(value.detach().numpy()) for key, value in named.items()}

    with pytest.raises(
        ValueError, match=r"same number of updates, got 4 at a, .* at b; .*partition"
    ):
        pytorch.from_state_dict(ours(**options), params, optimizer.state_dict())

    tx = optax.partition({"a": ours(**options), "b": ours(**options)}, {"a": "a", "b": "b"})
    state = pytorch.from_state_dict(tx, params, optimizer.state_dict())
    for _ in range(3):
        gradients = {key: 2 * value for key, value in params.items()}
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        step(optimizer, named, ["a", "b"])
    for key, value in named.items():
        # Both compute in float32, in another order.
        np.testing.assert_allclose(params[key], value.detach().numpy(), rtol=2e-6)


def test_a_parameter_that_adagrad_has_never_updated_starts_in_a_group_of_its_own(torch):
    theirs, ours, options = OPTIMIZERS["adagrad"]
    named = parameters(torch)
    optimizer = getattr(torch.optim, theirs)(list(named.items()), **options)
    step(optimizer, named, ["a"])
    params = {key: jnp.array(value.detach().numpy()) for key, value in named.items()}
    tx = optax.partition({"a": ours(**options), "b": ours(**options)}, {"a": "a", "b": "b"})
    state = pytorch.from_state_dict(tx, params, optimizer.state_dict())
    updates, _ = tx.update({key: 2 * value for key, value in params.items()}, state, params)
    step(optimizer, named, ["a", "b"])
    for key, value in named.items():
        np.testing.assert_allclose(params[key] + updates[key], value.detach().numpy(), rtol=2e-6)
