"""Hyperparameters seen from outside: read and replaced in any state, however deeply nested."""

import re
from collections import Counter
from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, ArrayLike
from optlab.rules._hyperparams import scheduled_mark
from optlab.rules._state import is_rule_state


class _Entry(NamedTuple):
    """One value in one rule's state."""

    key: str  # as `hyperparams` calls it
    name: str  # as the constructor calls it
    path: Hashable  # of the rule's state
    index: int | None  # in the state's array of hyperparameters; None for a field of its own
    value: Array
    domain: _checks.Domain
    scheduled: bool


def hyperparams(state: Any) -> dict[str, Array]:
    """Return the hyperparameters in force, from a state in which rules are nested anywhere.

    Before the first update these are the values it will use; after an update, those it used.

    Args:
        state: the state of a transformation: of a chain, partition, masked, MultiSteps or inject,
            the `opt_state` of a TrainState or `nnx.Optimizer`, or any tree of them.

    Returns:
        name → () float array, float32 (float64 where x64 is enabled), `scale` of
        `reduce_on_plateau` among them; of a vmapped state, one value a lane. Where there are
        several groups, as the labels of `optax.partition` (or the keys of any dict on the way) make
        them, a name is preceded by its group, as in "head/learning_rate". Where a name occurs more
        than once in a group a number follows, as in "max_norm[0]", in the order of the chain.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> tx = optlab.sgd(0.5, momentum=lambda step: 0.5 + 0.25 * step)
        >>> {name: float(value) for name, value in hyperparams(tx.init(jnp.zeros(3))).items()}
        {'dampening': 0.0, 'momentum': 0.5, 'learning_rate': 0.5}
    """
    return {entry.key: entry.value for entry in _entries(state)}


def replace_hyperparams(state: Any, **values: ArrayLike) -> Any:
    """Return a state that uses other values from the next update on, without a new compilation.

    A replaced value stays in force for as long as the transformation is built with the argument
    it was built with before. Inside `jit`, where it cannot be seen that a hyperparameter is
    scheduled, its schedule goes on and the value stays. The state of Optax's `inject_hyperparams`
    around the rule keeps showing the value that was injected.

    Args:
        state: as for `hyperparams`.
        **values: name → value, in the range that the constructor demands. A name stands for all
            groups that have it; one group's alone is replaced by `**{"head/learning_rate": 1e-3}`.

    Returns:
        A state of the same structure and types.

    Raises:
        ValueError: there is no such name in the state, it is scheduled, or the value is not a
            number that it could be.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> tx = optlab.adam(1e-3)
        >>> state = replace_hyperparams(tx.init(jnp.zeros(3)), learning_rate=3e-4)
        >>> print(hyperparams(state)["learning_rate"])
        0.0003
    """
    who = "replace_hyperparams"
    entries = _entries(state)
    changes: dict[Hashable, list[tuple[_Entry, ArrayLike]]] = {}
    for key, value in values.items():
        meant = [entry for entry in entries if key in (entry.key, entry.name)]
        free = [entry.key for entry in entries if not entry.scheduled]
        there = f"there is {', '.join(free)} to replace" if free else "there is none to replace"
        if not meant:
            _checks.fail(who, "names must be those of hyperparameters in the state", key, there)
        for entry in meant:
            if entry.scheduled:
                _checks.fail(
                    who, f"{entry.key} must not be scheduled", "a schedule, which sets it", there
                )
            number = _checks.check_number(who, key, value, entry.domain, dtype=entry.value.dtype)
            changes.setdefault(entry.path, []).append((entry, number))

    def change(path: Any, node: Any) -> Any:
        for entry, value in changes.get(path, ()):
            if entry.index is None:
                set_value = partial(jnp.full_like, fill_value=value)
                field = entry.name
            else:
                size = len(node.declarations)
                set_value = partial(_with_value, index=entry.index, size=size, value=value)
                field = "hyperparams"
            # Through the tree, as Flax NNX wraps the array in a variable.
            node = node._replace(**{field: jax.tree.map(set_value, getattr(node, field))})
        return node

    return jax.tree_util.tree_map_with_path(change, state, is_leaf=is_rule_state)


def arguments(state: Any) -> dict[str, list[float | None]]:
    """Return the constructors' arguments as a state holds them, by name; None for a schedule."""
    result: dict[str, list[float | None]] = {}
    for node in filter(is_rule_state, jax.tree.leaves(state, is_leaf=is_rule_state)):
        size = len(node.declarations)
        for index, declared in enumerate(node.declarations):
            argument = _array(node.hyperparams)[size + index]
            # In the shortest digits that mean the stored number: 0.1, not 0.10000000149.
            number = None if _is_scheduled(argument) else float(str(np.asarray(argument)))
            result.setdefault(declared.name, []).append(number)
    return result


def _with_value(stored: Array, index: int, size: int, value: ArrayLike) -> Array:
    """Return a rule's array of hyperparameters with another value, unless it is scheduled."""
    scheduled = stored[..., size + index] == scheduled_mark(stored.dtype)
    value = jnp.where(scheduled, stored[..., index], jnp.asarray(value, stored.dtype))
    return stored.at[..., index].set(value)


def _entries(state: Any) -> list[_Entry]:
    """List all values, with keys that tell them apart."""
    values = []
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_rule_state):
        if not is_rule_state(node):
            continue
        group = "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
        size = len(node.declarations)
        stored = _array(node.hyperparams) if size else None
        for index, declared in sorted(enumerate(node.declarations), key=lambda item: item[1].name):
            scheduled = _is_scheduled(stored[..., size + index])
            value = stored[..., index]
            values.append((group, declared.name, path, index, value, declared.domain, scheduled))
        for name, domain in node.readable:
            values.append((group, name, path, None, _array(getattr(node, name)), domain, False))
    groups = {_whole_group(group) for group, *_ in values if group} or {""}
    names = Counter(name for group, name, *_ in values if group == _whole_group(group))
    grouped = Counter((group, name) for group, name, *_ in values)
    numbered: Counter[tuple[str, str]] = Counter()
    entries = []
    for group, name, *rest in values:
        alone = len(groups) == 1 and names[name] == 1
        key = name if alone or not group else f"{_whole_group(group)}/{name}"
        if grouped[group, name] > 1:
            key += f"[{numbered[group, name]}]"
            numbered[group, name] += 1
        entries.append(_Entry(key, name, *rest))
    return entries


def _whole_group(group: str) -> str:
    """Return the name of the group, of which those that joined at an update are a part: "a@300"."""
    return re.sub(r"@\d+", "", group)


def _array(leaf: Any) -> Array:
    """Return the array of a leaf, which Flax NNX wraps in a variable."""
    return jax.tree.leaves(leaf)[0]


def _is_scheduled(argument: Array) -> bool:
    """Whether the constructor's argument, as the state holds it, stands for a schedule."""
    return not isinstance(argument, jax.core.Tracer) and bool(
        np.any(np.asarray(argument) == scheduled_mark(argument.dtype))
    )
