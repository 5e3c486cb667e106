"""PyTorch's optimizers (`torch.optim`), its clipping, and its optimizer state.

    sgd       g ← ±g + λθ;  v ← g at update 1, then μv + (1 − τ)g;  θ ← θ − ηv, or θ − η(g + μv)
    adagrad   g ← ±g + λθ;  s ← s + g²;             θ ← θ − η/(1 + (t − 1)·lr_decay) · g/(√s + ε)
    rmsprop   g ← ±g + λθ;  s ← αs + (1 − α)g²;     b ← μb + g/(√s + ε);  θ ← θ − ηb
    adam      g ← ±g + λθ;  m, v averages of g, g²; θ ← θ − η m̂/(√v̂ + ε)
    adamw     g ← ±g;       m, v averages of g, g²; θ ← θ − η (m̂/(√v̂ + ε) + λθ)

η is `lr`, λ `weight_decay`, μ `momentum`, τ `dampening`, α `alpha`, ε `eps`; the sign is − with
`maximize`. m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ) with the present betas, where these are changed
during a run. AMSGrad takes the maximum of v, not of v̂.

Arguments have PyTorch's names, order and defaults. Those that do not change the arithmetic
(`foreach`, `fused`, `capturable`, `differentiable`) have no place here. Every number may be a
schedule of the count before the update; in the state, `lr` is `learning_rate` and so on, as
everywhere in optlab.

What differs, where PyTorch fails: the variance of centered RMSProp is clamped at 0, where rounding
makes it negative and PyTorch's root NaN; finite gradients whose squares overflow count as 2⁶³
(PyTorch's coordinate stops for ever) and are clipped to the bound (PyTorch: to 0); gradients whose
norm is not finite pass the clip unchanged (PyTorch zeroes the finite ones). Updates are counted for
the optimizer, not for each parameter, so a parameter that starts late, its gradient None before, is
freed of less bias: put it into a group of its own. Moments of bfloat16 parameters are float32
(PyTorch: bfloat16). Of `clip_grad_norm_` only `norm_type=2` is there.

Reference: pytorch.org/docs/stable/optim.html, and the single-tensor functions in `torch/optim`.
Trajectories are checked against PyTorch 2.13.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax

from optlab import _checks
from optlab._types import Array, ArrayLike, Hyperparam, Tree
from optlab.dialects import _carry
from optlab.dialects._adam import with_raw_maximum
from optlab.dialects._common import (
    by_power,
    check,
    decay_rules,
    first_undampened,
    flip_sign_rules,
    is_zero,
    pair,
)
from optlab.optimizers._adagrad import adagrad_rule
from optlab.optimizers._adam import adam_rule
from optlab.optimizers._momentum import momentum_rules
from optlab.optimizers._rmsprop import rmsprop_rule
from optlab.rules import Rule, global_norm_clip, lift, number
from optlab.rules import learning_rate as learning_rate_rule
from optlab.rules._norms import clip_factors
from optlab.transforms._clipping import value_rule

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "clip_grad_norm",
    "clip_grad_value",
    "from_state_dict",
    "rmsprop",
    "sgd",
    "to_state_dict",
]

_NONNEGATIVE, _DECAY, _UNIT = _checks.NONNEGATIVE, _checks.DECAY, _checks.UNIT

_KEYS = {
    "velocity": "momentum_buffer",
    "sum_of_squares": "sum",
    "mean_square": "square_avg",
    "mean": "grad_avg",
    "mu": "exp_avg",
    "nu": "exp_avg_sq",
    "raw_nu_max": "max_exp_avg_sq",
}
"""What PyTorch calls the fields of our states."""

_GROUPS = (
    "put parameters with different counts into groups of their own, with optax.partition and one "
    "optimizer for each"
)


def sgd(
    lr: Hyperparam = 1e-3,
    momentum: Hyperparam = 0.0,
    dampening: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.SGD`: the first gradient enters the velocity undampened.

    Args:
        lr: η ≥ 0, outside the velocity.
        momentum: μ in [0, 1]; 0 keeps no velocity.
        dampening: τ in [0, 1), from the second update on.
        weight_decay: λ ≥ 0 of an L2 penalty ½λ‖θ‖², added to the gradient.
        nesterov: whether to look ahead; needs momentum and no dampening.
        maximize: whether to ascend.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or Nesterov's momentum has none or is dampened.
    """
    who = "dialects.pytorch.sgd"
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        momentum=(momentum, _UNIT),
        dampening=(dampening, _DECAY),
        weight_decay=(weight_decay, _NONNEGATIVE),
    )
    if nesterov and (is_zero(momentum) or not is_zero(dampening)):
        got = f"momentum={momentum}, dampening={dampening}"
        _checks.fail(who, "nesterov needs momentum and no dampening", got)
    velocity = [
        replace(rule, once=first_undampened)
        for rule in (
            []
            if is_zero(momentum)
            else momentum_rules(who, momentum, nesterov, dampening=dampening)
        )
    ]
    return lift(
        *flip_sign_rules(who, maximize),
        *decay_rules(who, weight_decay),
        *velocity,
        learning_rate_rule(who, lr),
    )


def adagrad(
    lr: Hyperparam = 1e-2,
    lr_decay: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    initial_accumulator_value: ArrayLike = 0.0,
    eps: Hyperparam = 1e-10,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.Adagrad`, whose rate falls with the updates too.

    Args:
        lr: η ≥ 0.
        lr_decay: ≥ 0; update t has the rate η/(1 + (t − 1)·lr_decay).
        weight_decay: λ ≥ 0 of an L2 penalty ½λ‖θ‖².
        initial_accumulator_value: where s starts, ≥ 0.
        eps: ε ≥ 0, outside the root.
        maximize: whether to ascend.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.pytorch.adagrad"
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        lr_decay=(lr_decay, _NONNEGATIVE),
        weight_decay=(weight_decay, _NONNEGATIVE),
        eps=(eps, _NONNEGATIVE),
    )
    return lift(
        *flip_sign_rules(who, maximize),
        *decay_rules(who, weight_decay),
        adagrad_rule(who, initial_accumulator_value, eps),
        learning_rate_rule(who, lr) if is_zero(lr_decay) else _falling_rate(who, lr, lr_decay),
    )


def _falling_rate(who: str, lr: Hyperparam, lr_decay: Hyperparam) -> Rule:
    """Return the rule of a rate that update t divides by 1 + (t − 1)·lr_decay."""
    rule = learning_rate_rule(who, lr)

    def once(h: Any, t: Array) -> Array:
        updates_before = (t - 1).astype(h.lr_decay.dtype)
        return -(h.learning_rate / (1 + updates_before * h.lr_decay))

    return replace(rule, hyperparams={**rule.hyperparams, "lr_decay": number(lr_decay)}, once=once)


def rmsprop(
    lr: Hyperparam = 1e-2,
    alpha: Hyperparam = 0.99,
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    momentum: Hyperparam = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.RMSprop`: ε outside the root, the rate outside the velocity.

    Args:
        lr: η ≥ 0.
        alpha: α in [0, 1), of the average of squared gradients.
        eps: ε ≥ 0, outside the root.
        weight_decay: λ ≥ 0 of an L2 penalty ½λ‖θ‖².
        momentum: μ in [0, 1]; 0 keeps no velocity.
        centered: whether to divide by the standard deviation.
        maximize: whether to ascend.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.pytorch.rmsprop"
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        alpha=(alpha, _DECAY),
        eps=(eps, _NONNEGATIVE),
        weight_decay=(weight_decay, _NONNEGATIVE),
        momentum=(momentum, _UNIT),
    )
    velocity = [] if is_zero(momentum) else momentum_rules(who, momentum)
    return lift(
        *flip_sign_rules(who, maximize),
        *decay_rules(who, weight_decay),
        rmsprop_rule(who, alpha, eps, centered=centered),
        *velocity,
        learning_rate_rule(who, lr),
    )


def adam(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.Adam`.

    Args:
        lr: η ≥ 0.
        betas: β₁ and β₂ in [0, 1).
        eps: ε ≥ 0, outside the root.
        weight_decay: λ ≥ 0 of an L2 penalty ½λ‖θ‖², which enters the averages.
        amsgrad: whether to divide by the root of the largest v so far.
        maximize: whether to ascend.
        decoupled_weight_decay: whether to decay the weights as `adamw` does.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    return _adam(
        "dialects.pytorch.adam",
        lr,
        betas,
        eps,
        weight_decay,
        amsgrad,
        maximize,
        decoupled_weight_decay,
    )


def adamw(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `torch.optim.AdamW`.

    Args:
        lr: η ≥ 0.
        betas: β₁ and β₂ in [0, 1).
        eps: ε ≥ 0, outside the root.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights.
        amsgrad: whether to divide by the root of the largest v so far.
        maximize: whether to ascend.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = adamw(lr=0.1, betas=(0.9, 0.95), weight_decay=0.5)
        >>> params = jnp.array([4.0, -4.0])
        >>> print(tx.update(jnp.array([3.0, 0.0]), tx.init(params), params)[0])
        [-0.3  0.2]
    """
    return _adam("dialects.pytorch.adamw", lr, betas, eps, weight_decay, amsgrad, maximize, True)


def _adam(who, lr, betas, eps, weight_decay, amsgrad, maximize, decoupled):
    amsgrad = _checks.check_flag(who, "amsgrad", amsgrad)
    decoupled = _checks.check_flag(who, "decoupled_weight_decay", decoupled)
    check(
        who,
        lr=(lr, _NONNEGATIVE),
        eps=(eps, _NONNEGATIVE),
        weight_decay=(weight_decay, _NONNEGATIVE),
    )
    b1, b2 = pair(who, "betas", betas)
    decay = decay_rules(who, weight_decay)
    direction = by_power(adam_rule(who, b1, b2, eps))
    return lift(
        *flip_sign_rules(who, maximize),
        *([] if decoupled else decay),
        with_raw_maximum(direction) if amsgrad else direction,
        *(decay if decoupled else []),
        learning_rate_rule(who, lr),
    )


def clip_grad_norm(max_norm: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Clip as `torch.nn.utils.clip_grad_norm_`: g · min(1, c/(‖g‖ + 10⁻⁶)).

    Args:
        max_norm: c ≥ 0, a bound on √(Σ g²) over all leaves.

    Returns:
        The transformation, for the front of a chain.

    Raises:
        ValueError: the bound is negative or not finite.
    """
    rule = global_norm_clip("dialects.pytorch.clip_grad_norm", max_norm)
    return lift(
        replace(
            rule,
            across=lambda h, t, updates, params: clip_factors(updates, h.max_norm, eps=1e-6),
        )
    )


def clip_grad_value(clip_value: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Clip every element to [−clip_value, clip_value], as `torch.nn.utils.clip_grad_value_`.

    Args:
        clip_value: ≥ 0.

    Returns:
        The transformation, for the front of a chain.

    Raises:
        ValueError: the bound is negative or not finite.
    """
    check("dialects.pytorch.clip_grad_value", clip_value=(clip_value, _NONNEGATIVE))
    return lift(value_rule("dialects.pytorch.clip_grad_value", clip_value))


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
        step: updates made; needed where PyTorch keeps no count, which is in SGD.

    Returns:
        The state. Schedules and hyperparameters are those of `tx`; nothing is read from PyTorch's
        `param_groups` but names.

    Raises:
        ValueError: the state does not fit; the message names the parameter and what was expected.

    Example:
        >>> import jax.numpy as jnp, numpy as np
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
        # SGD, whose only key this is, keeps no count.
        if counts and name not in counts and keys != {_KEYS["velocity"]}:
            _checks.fail(who, f"{name} must have step, as the other parameters", "none")
    no_count = "SGD keeps no count of its updates" if wanted else "the state is empty"

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
        key, square = _KEYS[field], field in _carry.SQUARES

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
                own = result.setdefault(_name(path), {})
                if field != "velocity":
                    own["step"] = np.asarray(count, np.float32)
                own[_KEYS[field]] = np.array(leaf)
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
            for path, _ in jax.tree_util.tree_leaves_with_path(tree):
                own = wanted.setdefault(_name(path), set())
                if _KEYS[field] in own:
                    got = f"two of {_name(path)}"
                    _checks.fail(who, f"the optimizer must keep one {_KEYS[field]}", got)
                own.add(_KEYS[field])
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


def _name(path: Any) -> str:
    # Flax NNX keeps an array as the `value` of a variable.
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator=".") or "the root"
