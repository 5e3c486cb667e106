"""Averages of the parameters, to evaluate and to keep in place of the last ones.

    θ_avg ← a θ_avg + (1 − a) θ

θ are the parameters *after* the update, a is `decay`; θ_avg starts as a copy of the parameters.
With a warm-up of power p the decay of update t is min(a, 1 − t^(−p)): the first update's average is
the parameters themselves, so that the random initialization is forgotten at once rather than over
1/(1 − a) updates. p = 2/3 reaches 0.999 at update 31,623, p = 3/4 at 10,000.

Reference: Polyak & Juditsky, SIAM J. Control Optim. 30 (1992).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import compute_dtype
from optlab._types import Hyperparam, Tree
from optlab.rules import Rule, lift
from optlab.rules import decay as decay_rate
from optlab.rules._state import is_rule_state

KIND = "params_ema"
"""The kind of the states that hold an average of the parameters."""


def params_ema(
    decay: Hyperparam, *, warmup_power: float | None = None
) -> optax.GradientTransformationExtraArgs:
    """Keep an exponential moving average of the parameters; the updates pass through unchanged.

    It must stand last in a chain, where the updates are what will be added to the parameters. Read
    the average with `averaged_params`.

    Args:
        decay: a in [0, 1), typically 0.999: an average over about 1/(1 − a) updates.
        warmup_power: p > 0 to let the decay of update t be min(a, 1 − t^(−p)); None for a constant.

    Returns:
        A transformation whose state holds `average`, in at least float32; its `update` needs the
        parameters.

    Raises:
        ValueError: a hyperparameter is out of its range; at update, the parameters are missing.

    Example:
        >>> import jax.numpy as jnp, optax, optlab
        >>> tx = optax.chain(optlab.sgd(1.0), optlab.params_ema(0.5))
        >>> params = jnp.array(1.0)
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jnp.array(0.5), state, params)
        >>> print(params + updates, optlab.averaged_params(state))
        0.5 0.75

    Reference:
        Polyak & Juditsky (1992).
    """
    who = KIND
    if warmup_power is not None:
        warmup_power = _checks.check_number(who, "warmup_power", warmup_power, _checks.POSITIVE)

    def share_of_new(h, t):
        if warmup_power is None:
            return h.decay.complement
        return jnp.maximum(h.decay.complement, t.astype(h.decay.complement.dtype) ** -warmup_power)

    def leaf(u, slots, share, new_param):
        return u, (slots.average + share * (new_param - slots.average),)

    rule = Rule(
        who,
        leaf,
        hyperparams={"decay": decay_rate(decay)},
        slots={"average": _copy},
        once=share_of_new,
        needs_params=True,
        after_update=True,
        counter="step",
    )
    return lift(rule)


def averaged_params(state: Any, params: Tree | None = None) -> Tree:
    """Return the averaged parameters from a state in which a `params_ema` is nested anywhere.

    The result has buffers of its own: it survives the state's donation, and may be donated itself.

    Args:
        state: the state of a transformation: a chain, partition, masked, MultiSteps, the
            `opt_state` of a TrainState or of an `nnx.Optimizer`, or any tree of them.
        params: the parameters of the model, in the structure they had at `init`. Where given, the
            average takes their types, and theirs are the leaves that no `params_ema` covers
            because `optax.partition` or `optax.masked` kept them from it.

    Returns:
        The average in the structure of the parameters; without `params`, in float32 (float64 for
        double parameters) and with `optax.MaskedNode` where no average is kept. Where groups of
        parameters have averages of their own, they are joined.

    Raises:
        ValueError: the state holds no average, several of the same parameters, or one of another
            structure than `params`.
    """
    who = "averaged_params"
    averages = [node.average for node in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(node)]
    if not averages:
        _checks.fail(
            who,
            "the state must hold a params_ema",
            type(state).__name__,
            "put optlab.params_ema(0.999) last in the chain",
        )

    masked = {
        path
        for average in averages
        for path, node in jax.tree_util.tree_leaves_with_path(average, is_leaf=_is_masked)
        if _is_masked(node)
    }

    def join(path: Any, *parts: Any) -> Any:
        present = [part for part in parts if not _is_masked(part)]
        if len(present) > 1:
            _checks.fail(
                who,
                "the state must hold one average of each parameter",
                f"{len(present)} of {jax.tree_util.keystr(path) or 'the same'}",
                "pass the part of the state that holds the one you want",
            )
        return _copy_of(present[0]) if present else parts[0]

    average = jax.tree_util.tree_map_with_path(
        join, *averages, is_leaf=lambda path, node: path in masked, is_leaf_takes_path=True
    )
    if params is None:
        return average
    try:
        return jax.tree.map(
            lambda own, p: _copy_of(p) if _is_masked(own) else jnp.array(own, p.dtype, copy=True),
            average,
            params,
            is_leaf=_is_masked,
        )
    except ValueError:
        _checks.fail(
            who,
            "params must have the structure of the parameters given to init",
            f"{jax.tree.structure(params)} for an average of {jax.tree.structure(average)}",
            "in Flax NNX pass nnx.as_pure of both the state and the parameters",
        )


def _is_ours(node: Any) -> bool:
    return is_rule_state(node) and node.kind == KIND


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _copy_of(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def _copy(param: Any) -> Any:
    dtype = compute_dtype(param.dtype)
    if isinstance(param, jax.ShapeDtypeStruct):  # a description has no values to copy
        return jax.ShapeDtypeStruct(param.shape, dtype, sharding=param.sharding)
    # A buffer of its own, so that parameters and state can be donated together.
    return jnp.array(param, dtype, copy=True)
