"""Carrying a run over: what the states of other frameworks' optimizers and of ours have in common.

Our rules keep what theirs keep, under other names; `SLOTS` says which fields those are. The rest of
a state (hyperparameters in force, products of decay rates) follows from the transformation itself
and from the number of updates made.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._inspect import is_rule_state
from optlab._types import Array, Tree
from optlab.optimizers import (
    ScaleByAdagradState,
    ScaleByAdamState,
    ScaleByMomentumState,
    ScaleByRmspropState,
)
from optlab.transforms import ScaleByLearningRateState

SLOTS: Mapping[type, tuple[str, ...]] = {
    ScaleByMomentumState: ("velocity",),
    ScaleByAdagradState: ("sum_of_squares",),
    ScaleByRmspropState: ("mean_square", "mean"),
    ScaleByAdamState: ("mu", "nu", "nu_max", "raw_nu_max"),
}


def rule_states(state: Any) -> list[Any]:
    """List the states of rules, in the order in which they act."""
    nodes = jax.tree.leaves(state, is_leaf=is_rule_state)
    return [node for node in nodes if is_rule_state(node)]


def slots(node: Any) -> dict[str, Tree]:
    """Return what a rule keeps of the gradients, by the name of the field."""
    names = SLOTS.get(type(node), ())
    return {name: getattr(node, name) for name in names if getattr(node, name) is not None}


def rate_is_inside(states: Iterable[Any]) -> bool:
    """Whether a velocity is fed with gradients already multiplied by the learning rate."""
    kinds = [type(node) for node in states]
    if ScaleByMomentumState not in kinds or ScaleByLearningRateState not in kinds:
        return False
    return kinds.index(ScaleByMomentumState) > kinds.index(ScaleByLearningRateState)


def resume(
    who: str,
    tx: optax.GradientTransformation,
    params: Tree,
    step: int,
    slot: Callable[[Any, str, Tree], Tree],
) -> Any:
    """Return the state of `tx` after `step` updates.

    Args:
        who: the public name that errors begin with.
        tx: the transformation.
        params: the parameters.
        step: updates made.
        slot: (state of a rule as `init` makes it, field, tree to be replaced) → the field's tree.
    """
    start = tx.init(params)
    _, once = tx.update(jax.tree.map(jnp.zeros_like, params), start, params)
    logs = iter([node.memory.log_products for node in rule_states(once)])

    def filled(node: Any) -> Any:
        if not is_rule_state(node):
            return node
        new = {name: slot(node, name, tree) for name, tree in slots(node).items()}
        products = tuple(_times(log, step) for log in next(logs))
        if products and np.isnan(np.asarray(node.memory.given)).any():
            _checks.fail(
                who,
                "decay rates freed of their bias by a product must be constant",
                "a schedule",
                "build the optimizer with this dialect",
            )
        return node._replace(
            count=jnp.full_like(node.count, step),
            memory=node.memory._replace(log_products=products),
            **new,
        )

    state = jax.tree.map(filled, start, is_leaf=is_rule_state)
    # The values that the next update will use, of schedules too.
    ahead = iter(rule_states(tx.update(jax.tree.map(jnp.zeros_like, params), state, params)[1]))
    return jax.tree.map(
        lambda node: (
            node._replace(hyperparams=next(ahead).hyperparams) if is_rule_state(node) else node
        ),
        state,
        is_leaf=is_rule_state,
    )


def fitted(who: str, name: str, key: str, array: Any, like: Array) -> Array:
    """Return an array for a leaf of a slot; require the leaf's shape."""
    array = np.asarray(array)
    if array.shape != np.shape(like):
        _checks.fail(
            who,
            f"{key} of {name} must have the shape {np.shape(like)} of the parameter",
            f"{array.shape}",
        )
    if array.dtype.kind not in "fc" and array.dtype != jnp.bfloat16:
        _checks.fail(who, f"{key} of {name} must be floating point", f"{array.dtype}")
    return jnp.array(array, like.dtype, copy=True)


def settle_step(who: str, counts: Mapping[str, Any], step: int | None, what: str) -> int:
    """Return the one number of updates made that a foreign state tells, or that was passed."""
    seen = {name: int(np.asarray(count)) for name, count in counts.items()}
    if len(set(seen.values())) > 1:
        got = ", ".join(f"{count} at {name}" for name, count in list(seen.items())[:4])
        _checks.fail(who, "all parameters must have made the same number of updates", got)
    if step is not None:
        _checks.check_count(who, "step", step, 0)
        seen["step"] = step
    if not seen:
        _checks.fail(
            who, f"step must be given, since {what} keeps no count of its updates", "step=None"
        )
    if len(set(seen.values())) > 1:
        told = next(iter(seen.values()))
        _checks.fail(who, f"step must be {told}, which the state tells", f"step={step}")
    return next(iter(seen.values()))


def _times(log: Array, step: int) -> Array:
    """Return step · log β, both as a high and a low part."""
    total = float(log[0]) * step, float(log[1]) * step
    high = np.asarray(sum(total), log.dtype)
    low = (total[0] - float(high)) + total[1]
    return jnp.stack([jnp.asarray(high), jnp.asarray(low, log.dtype)])
