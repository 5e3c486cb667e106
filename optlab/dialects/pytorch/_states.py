"""The state of an optimizer, from PyTorch and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from optlab import _checks
from optlab._types import Array, Tree
from optlab.dialects import _carry

_BUFFER = "momentum_buffer"
"""The one key of SGD and of Muon, which keep no count of their updates."""

_KEYS = {
    "velocity": _BUFFER,
    "sum_of_squares": "sum",
    "mean_square": "square_avg",
    "mean": "grad_avg",
    "mu": "exp_avg",
    "nu": "exp_avg_sq",
    "raw_nu_max": "max_exp_avg_sq",
}
"""What PyTorch calls the fields of our states, but for Muon's."""

_GROUPS = (
    "put parameters with different counts into groups of their own, with optax.partition and one "
    "optimizer for each"
)


def from_state_dict(
    tx: optax.GradientTransformation,
    params: Tree,
    state_dict: Mapping[str, Any],
    *,
    step: int | None = None,
) -> Any:
    """Return the state of `tx` that goes on where an optimizer of PyTorch stopped.

    Args:
        tx: the optimizer to go on with, built with the options of PyTorch's, as by
            `adamw(lr=…, betas=…)`; also within a chain, and by groups as in `optax.partition`,
            which may leave parameters out. What has no part in PyTorch's state starts anew.
        params: the parameters to go on with. A leaf's name is its path joined by dots, such as
            "encoder.0.weight" for params["encoder"][0]["weight"], or the key itself in a flat dict.
        state_dict: {name: {key: array}}, such as {"encoder.0.weight": {"step": …, "exp_avg": …}},
            in arrays or tensors of the parameters' shapes. Where you transpose a weight (Flax's
            kernels are (in, out), PyTorch's weights (out, in)), transpose its state too. Or the
            whole `optimizer.state_dict()` of an optimizer made from `model.named_parameters()`,
            which tells the names.
        step: updates made; needed where PyTorch keeps no count, which is in SGD and Muon.

    Returns:
        The state. Schedules and hyperparameters are those of `tx`; nothing is read from PyTorch's
        `param_groups` but names.

    Raises:
        ValueError: the state does not fit; the message names the parameter and what was expected.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from optlab.dialects.pytorch import sgd
        >>> params = {"weight": jnp.ones(2)}
        >>> recorded = {"weight": {"momentum_buffer": np.array([1.0, 2.0])}}
        >>> state = from_state_dict(sgd(0.1, momentum=0.5), params, recorded, step=50)
        >>> print(state[0].count, state[0].velocity["weight"])
        50 [1. 2.]
    """
    who = "dialects.pytorch.from_state_dict"
    states = _carry.states_of(who, tx, params)
    _check_meaning(who, states, jax.eval_shape(tx.init, params))
    named = _by_name(who, state_dict)
    ours = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for name in ours:
        if ours.count(name) > 1:
            _checks.fail(who, "parameters must have different names", f"{name} twice")
    wanted = _wanted(who, states)
    _check_keys(who, ours, named, wanted)
    counts = {name: own["step"] for name, own in named.items() if "step" in own}
    for name, keys in wanted.items():
        if counts and name not in counts and keys != {_BUFFER}:
            _checks.fail(who, f"{name} must have step, as the other parameters", "none")
    no_count = "SGD and Muon keep no count of their updates" if wanted else "the state is empty"

    def settle(own: Mapping[str, Any]) -> int:
        """Return the number of updates that parameters with these counts have made."""
        made = _carry.settle_step(who, own, step, no_count, _GROUPS)
        # Adagrad keeps a state, and counts 0, of a parameter that it has never updated.
        if wanted and not made and not own:
            _checks.fail(who, "step must be at least 1 where there is a state", f"{made}")
        return made

    def step_of(nodes: list[Any]) -> int | None:
        own = {name: counts[name] for name in _wanted(who, nodes) if name in counts}
        return settle(own) if own else None

    # Rules that keep nothing of the parameters have made as many updates as any parameter.
    made = {name: settle({name: count}) for name, count in counts.items()}
    latest = max(made.values()) if made else settle({})

    def slot(node: Any, field: str, tree: Tree) -> Tree:
        key, square = _key(node, field), field in _carry.SQUARES

        def leaf(path: Any, like: Array) -> Array:
            name = _name(path)
            return _carry.fitted(who, name, key, named[name][key], like, square=square)

        return jax.tree_util.tree_map_with_path(leaf, tree)

    return _carry.resume(who, tx, params, latest, slot, step_of)


def to_state_dict(state: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return a state as PyTorch keeps it: {name: {key: array}}.

    Args:
        state: of an optimizer of this dialect, or of a chain with one in it.

    Returns:
        What `from_state_dict` reads, in float32 (double for double parameters), with PyTorch's
        keys; nothing before the first update. To go on there, put it into
        `optimizer.state_dict()["state"]`, in the order of the parameters, with `torch.from_numpy`.
        What PyTorch's optimizer has no place for, such as an average of parameters, is left out.

    Raises:
        ValueError: the state holds nothing that PyTorch could, or keeps it in another form.
    """
    who = "dialects.pytorch.to_state_dict"
    states = _carry.rule_states(state)
    if not states:
        _checks.fail(who, "the state must be of an optimizer of optlab", type(state).__name__)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(states)) or any(
        np.ndim(getattr(node, name)) for node in states if (name := _carry.counter(node))
    ):
        got = "one that is traced or mapped over lanes"
        _checks.fail(who, "the state must be a single one, of arrays", got)
    _check_meaning(who, states, state)
    _wanted(who, states)
    result: dict[str, dict[str, np.ndarray]] = {}
    for node, count in _carry.with_counters(state):
        for field, tree in _carry.slots(node).items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if not count:
                    continue
                own, key = result.setdefault(_name(path), {}), _key(node, field)
                if key != _BUFFER:
                    own["step"] = np.asarray(count, np.float32)
                own[key] = np.array(leaf)
    return result


def _by_name(who: str, state_dict: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return {name: {key: array}}, also from a whole `state_dict()`, without what is None."""
    if not isinstance(state_dict, Mapping):
        got = type(state_dict).__name__
        _checks.fail(who, "state_dict must be a mapping by parameter name", got)
    remedy = "make the optimizer from model.named_parameters(), or pass {name: {key: array}}"
    if "param_groups" in state_dict:
        groups, states = state_dict["param_groups"], state_dict.get("state", {})
        names = {}
        for group in groups:
            if group.get("param_names") is None:
                got = "param_groups without param_names"
                _checks.fail(who, "the optimizer must know its parameters' names", got, remedy)
            names |= dict(zip(group["params"], group["param_names"], strict=False))
        for index in states:
            if index not in names:
                _checks.fail(who, "every parameter must have a name", f"none for {index}", remedy)
        state_dict = {names[index]: own for index, own in states.items()}
    for name, own in state_dict.items():
        if not isinstance(name, str):
            _checks.fail(who, "parameters must be named by strings", f"{name!r}", remedy)
        if not isinstance(own, Mapping):
            _checks.fail(who, f"the state of {name} must be a mapping", type(own).__name__)
    return {
        name: {key: value for key, value in own.items() if value is not None}
        for name, own in state_dict.items()
    }


def _check_meaning(who: str, states: list[Any], state: Any) -> None:
    """Require states that mean what PyTorch's mean."""
    remedy = "build the optimizer with optlab.dialects.pytorch"
    if any(inside for inside, _ in _carry.velocities(state)):
        _checks.fail(who, "the rate must stand outside the velocity", "a rate inside", remedy)
    if any("nu_max" in _carry.slots(node) for node in states):
        _checks.fail(
            who, "AMSGrad must take the maximum of v", "the maximum of v freed of bias", remedy
        )


def _wanted(who: str, states: list[Any]) -> dict[str, set[str]]:
    """Return the keys that each parameter's slots need, where it has any."""
    wanted: dict[str, set[str]] = {}
    for node in states:
        for field, tree in _carry.slots(node).items():
            key = _key(node, field)
            for path, _ in jax.tree_util.tree_leaves_with_path(tree):
                own = wanted.setdefault(_name(path), set())
                if key in own:
                    got = f"two of {_name(path)}"
                    _checks.fail(who, f"the optimizer must keep one {key}", got)
                own.add(key)
    return wanted


def _check_keys(
    who: str,
    ours: list[str],
    named: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, set[str]],
) -> None:
    """Require of each parameter the keys that its slots need, and no others."""
    for name in named:
        if name not in ours:
            known = ", ".join(ours[:5])
            _checks.fail(who, f"parameters must be those in params ({known}, …)", name)
    remedy = "build the optimizer with the options that PyTorch's had"
    for name in ours:
        need = wanted.get(name, set())
        if need and not named.get(name):
            held = ", ".join(list(named)[:5]) or "nothing"
            _checks.fail(
                who,
                f"the state must hold {name}, with {', '.join(sorted(need))}",
                held,
                "leave parameters that PyTorch did not update out with optax.partition"
                if named
                else "start with tx.init(params) where no update was made",
            )
        held = set(named.get(name, {})) - {"step"}
        for key in sorted(need ^ held):
            required = f"{name} must have {key}" if key in need else f"{name} must not have {key}"
            _checks.fail(who, required, ", ".join(sorted(held)) or "nothing", remedy)


def _key(node: Any, field: str) -> str:
    """Return what PyTorch calls a field of a rule's state."""
    return _BUFFER if node.kind == _carry.MUON else _KEYS[field]


def _name(path: Any) -> str:
    # Flax NNX keeps an array as the `value` of a variable.
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator=".") or "the root"
