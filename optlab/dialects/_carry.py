"""Carrying a run over: what the states of other frameworks' optimizers and of ours have in common.

Our rules keep what theirs keep, under other names; `SLOTS` says which fields those are. The rest of
a state (hyperparameters in force, products of decay rates, counts) follows from the transformation
itself and from the number of updates made.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._inspect import arguments
from optlab._types import Array, Tree
from optlab.rules._state import is_rule_state

MOMENTUM, RATE = "scale_by_momentum", "scale_by_learning_rate"
MUON = "scale_by_muon"
SLOTS: Mapping[str, tuple[str, ...]] = {
    MOMENTUM: ("velocity",),
    "scale_by_adagrad": ("sum_of_squares",),
    "scale_by_rmsprop": ("mean_square", "mean"),
    "scale_by_adam": ("mu", "nu", "nu_max", "raw_nu_max"),
    "scale_by_lion": ("mu",),
    MUON: ("mu",),
}
"""The slots of each kind of rule that other frameworks keep, too."""

SQUARES = ("sum_of_squares", "mean_square", "nu", "nu_max", "raw_nu_max")
"""The fields that are sums or averages of squares."""


def rule_states(state: Any) -> list[Any]:
    """List the states of rules, in the order in which they act."""
    nodes = jax.tree.leaves(state, is_leaf=is_rule_state)
    return [node for node in nodes if is_rule_state(node)]


def states_of(who: str, tx: optax.GradientTransformation, params: Tree) -> list[Any]:
    """List the states of the rules in `tx`, abstract; require that there are some."""
    _checks.check_transformation(who, tx)
    states = rule_states(jax.eval_shape(tx.init, params))
    if not states:
        _checks.fail(
            who,
            "tx must hold an optimizer of optlab",
            "none of its rules",
            "build it with optlab.dialects",
        )
    return states


def slots(node: Any) -> dict[str, Tree]:
    """Return what a rule keeps of the gradients, by the name of the field."""
    names = SLOTS.get(node.kind, ())
    return {name: getattr(node, name) for name in names if name in node._fields}


def velocities(state: Any) -> Iterator[tuple[bool, bool]]:
    """Yield for each velocity whether the rate is inside it, and whether RMSProp comes before.

    The rate is inside where the velocity is fed with gradients already multiplied by it. What
    belongs together are rules in one tuple, as an optimizer and a chain of rules keep them.
    """

    def together(node: Any) -> bool:
        return type(node) is tuple and bool(node) and all(map(is_rule_state, node))

    for group in jax.tree.leaves(state, is_leaf=together):
        kinds = [node.kind for node in group] if together(group) else []
        if MOMENTUM in kinds and RATE in kinds:
            velocity = kinds.index(MOMENTUM)
            inside = velocity > kinds.index(RATE)
            yield inside, "scale_by_rmsprop" in kinds[:velocity]


def resume(
    who: str,
    tx: optax.GradientTransformation,
    params: Tree,
    step: int,
    slot: Callable[[Any, str, Tree], Tree],
    step_of: Callable[[list[Any]], int | None] = lambda states: None,
) -> Any:
    """Return the state of `tx` after `step` updates.

    Args:
        who: the public name that errors begin with.
        tx: the transformation.
        params: the parameters.
        step: updates made.
        slot: (state of a rule as `init` makes it, field, tree to be replaced) → the field's tree.
        step_of: (the states of rules that share a counter) → the updates that they made, or None
            for `step`.
    """
    start = tx.init(params)
    # One update tells the logarithms of the decay rates as exactly as the rules know them.
    once = iter(_after_one(who, tx, params, start))

    def filled(group: Any) -> Any:
        nodes = rule_states(group)
        if not nodes:
            return group
        own = step_of(nodes)
        updates_made = step if own is None else own
        new = [_filled(who, node, next(once), updates_made, slot) for node in nodes]
        return new[0] if is_rule_state(group) else tuple(new)

    state = jax.tree.map(filled, with_counts(start, step), is_leaf=_is_group)
    # The values that the next update will use, of schedules too.
    ahead = iter(_after_one(who, tx, params, state))

    def with_values(node: Any) -> Any:
        if not is_rule_state(node):
            return node
        after = next(ahead)
        size = len(node.declarations)
        if not size:
            return node
        stored = node.hyperparams.at[:size].set(after.hyperparams[:size])
        return node._replace(hyperparams=stored)

    return jax.tree.map(with_values, state, is_leaf=is_rule_state)


def _is_group(node: Any) -> bool:
    """Whether a node is the state of one rule, or a tuple of such states, which act together."""
    if is_rule_state(node):
        return True
    return type(node) is tuple and bool(node) and all(map(is_rule_state, node))


def _filled(
    who: str, node: Any, after: Any, step: int, slot: Callable[[Any, str, Tree], Tree]
) -> Any:
    """Return the state of one rule after `step` updates; `after` is its state after one."""
    new = {name: slot(node, name, tree) for name, tree in slots(node).items()}
    name = counter(node)
    if name:
        new[name] = jnp.full_like(getattr(node, name), step)
    corrected = [declared.name for declared in node.declarations if declared.has_product]
    if corrected:
        if any(None in arguments(node)[name] for name in corrected):
            _checks.fail(
                who,
                "decay rates freed of their bias by a product must be constant",
                "a schedule",
                "build the optimizer with this dialect",
            )
        size = 2 * len(node.declarations)
        products = [_times(log, step) for log in after.hyperparams[size:].reshape(-1, 2)]
        new["hyperparams"] = node.hyperparams.at[size:].set(jnp.concatenate(products))
    return node._replace(**new)


def counter(node: Any) -> str | None:
    """Return the field in which the state of a rule counts updates; None if another one does."""
    return next((name for name in ("count", "step") if name in node._fields), None)


def with_counters(state: Any) -> Iterator[tuple[Any, int]]:
    """Yield the states of rules with the number of updates that each has made."""
    for group in jax.tree.leaves(state, is_leaf=_is_group):
        nodes = rule_states(group)
        counts = [int(getattr(node, name)) for node in nodes if (name := counter(node))]
        for node in nodes:
            yield node, counts[0]


def _after_one(who: str, tx: optax.GradientTransformation, params: Tree, state: Any) -> list[Any]:
    """Return the states of the rules after one more update, which all of them must take part in."""
    before = rule_states(state)
    zeros = jax.tree.map(jnp.zeros_like, params)
    try:
        after = rule_states(tx.update(zeros, state, params)[1])
    except TypeError as error:  # an argument that only a loop could give
        _checks.fail(
            who,
            "tx must update from gradients and parameters alone",
            str(error),
            "carry the optimizer without what needs more, and put its state into the chain's",
        )
    last = 2**31 - 1  # where a count stays
    for old, new in zip(before, after, strict=True):
        name = counter(new)
        if name and int(getattr(new, name)) == int(getattr(old, name)) != last:
            _checks.fail(
                who,
                "tx must make a step in every update",
                f"{type(new).__name__} which made none",
                "carry the optimizer within, and put its state into init's of what accumulates: "
                "accumulate(tx, every).init(params)._replace(inner=state)",
            )
    return after


def with_counts(state: Any, step: int) -> Any:
    """Return a state with all its counts of updates, those of foreign rules too, at `step`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, step) if is_count(path, x) else x, state
    )


def is_count(path: Any, leaf: Any) -> bool:
    """Whether a leaf is a NamedTuple's `count`."""
    return jax.tree_util.keystr(path[-1:]) == ".count" and jnp.shape(leaf) == ()


def as_numpy(who: str, what: str, value: Any) -> np.ndarray:
    """Return an array of numbers, also of a tensor of PyTorch."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            # NumPy has no bfloat16 of its own.
            value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        _checks.fail(who, f"{what} must be an array of numbers", f"{error}")
    if array.dtype.kind not in "iufc" and array.dtype != jnp.bfloat16:
        _checks.fail(who, f"{what} must be an array of numbers", f"{array.dtype}")
    return array


def fitted(who: str, name: str, key: str, array: Any, like: Array, *, square: bool) -> Array:
    """Return an array for a leaf of a slot; require what belongs there.

    Args:
        who: the public name that errors begin with.
        name: of the parameter.
        key: what the other framework calls the slot.
        array: what it keeps there.
        like: the leaf to replace.
        square: whether it is a sum of squares.
    """
    what = f"{key} of {name}"
    array = as_numpy(who, what, array)
    if array.shape != np.shape(like):
        _checks.fail(
            who, f"{what} must have the shape {np.shape(like)} of the parameter", f"{array.shape}"
        )
    if array.dtype.kind in "iu" or (array.dtype.kind == "c" and not jnp.iscomplexobj(like)):
        _checks.fail(who, f"{what} must be floating point, as the parameter", f"{array.dtype}")
    if square and array.dtype.kind != "c" and (array < 0).any():
        _checks.fail(who, f"{what}, of squares, must be >= 0", f"{array.min()}")
    with np.errstate(over="ignore"):
        new = array.astype(like.dtype)
    if (np.isfinite(array) & ~np.isfinite(new)).any():
        _checks.fail(who, f"{what} must be finite in {like.dtype}", f"{np.abs(array).max()}")
    return jnp.array(new, copy=True)


def settle_step(
    who: str, counts: Mapping[str, Any], step: int | None, no_count: str, remedy: str = ""
) -> int:
    """Return the one number of updates made that a foreign state tells, or that was passed.

    Args:
        who: the public name that errors begin with.
        counts: what the state tells, by where it stands.
        step: what was passed.
        no_count: why the state may tell none.
        remedy: what to do where they differ.
    """
    by_place = {}
    for place, count in counts.items():
        count = as_numpy(who, f"the number of updates at {place}", count)
        if count.shape or count != np.floor(count) or not 0 <= count < 2**31:
            _checks.fail(
                who, f"the number of updates at {place} must be an integer >= 0", f"{count}"
            )
        by_place[place] = int(count)
    if len(set(by_place.values())) > 1:
        got = ", ".join(f"{count} at {place}" for place, count in list(by_place.items())[:4])
        _checks.fail(who, "all must have made the same number of updates", got, remedy)
    if step is None:
        if not by_place:
            _checks.fail(who, f"step must be given, since {no_count}", "step=None")
        return next(iter(by_place.values()))
    step = _checks.check_count(who, "step", step, 0)
    if by_place and step not in by_place.values():
        stated = next(iter(by_place.values()))
        _checks.fail(who, f"step must be {stated}, which the state tells", f"step={step}")
    return step


def _times(log: Array, step: int) -> Array:
    """Return step · log β, both as a high and a low part."""
    total = float(log[0]) * step, float(log[1]) * step
    high = np.asarray(sum(total), log.dtype)
    low = (total[0] - float(high)) + total[1]
    return jnp.stack([jnp.asarray(high), jnp.asarray(low, log.dtype)])
