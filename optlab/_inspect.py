"""Hyperparameters seen from outside: read and replaced in any state, however deeply nested."""

from collections import Counter
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._hyperparams import Memory
from optlab._types import Array, ArrayLike

_DOMAINS = dict.fromkeys(("b1", "b2", "decay", "momentum", "dampening", "rtol"), _checks.DECAY)
_DOMAINS |= {"factor": _checks.INSIDE, "min_scale": _checks.UNIT}
"""What values may be, by name, where that is less than any finite number ≥ 0."""


class _Entry(NamedTuple):
    """One value in one rule's state."""

    key: str  # as `hyperparams` calls it
    name: str  # as the constructor calls it
    path: Hashable  # of the rule's state
    value: Array
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
        **values: name → value, ≥ 0 and finite. A name stands for all groups that have it; one
            group's alone is replaced by `**{"head/learning_rate": 1e-3}`.

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
    changes: dict[Hashable, dict[str, ArrayLike]] = {}
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
            domain = _DOMAINS.get(entry.name, _checks.NONNEGATIVE)
            _checks.check_number(who, key, value, domain, dtype=entry.value.dtype)
            changes.setdefault(entry.path, {})[entry.name] = value

    def change(path: Any, node: Any) -> Any:
        for name, value in changes.get(path, {}).items():
            if name in node.hyperparams:
                scheduled = jnp.isnan(_given(node)[name])
                new = _filled(node.hyperparams[name], value, keep=scheduled)
                node = node._replace(hyperparams={**node.hyperparams, name: new})
            else:
                node = node._replace(**{name: _filled(getattr(node, name), value, keep=False)})
        return node

    return jax.tree_util.tree_map_with_path(change, state, is_leaf=is_rule_state)


def _entries(state: Any) -> list[_Entry]:
    """List all values, with keys that tell them apart."""
    found = []
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_rule_state):
        if not is_rule_state(node):
            continue
        group = "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
        given = _given(node)
        for name, value in sorted(node.hyperparams.items()):
            found.append((group, name, path, _array(value), _is_nan(given[name])))
        for name in getattr(node, "readable", ()):
            found.append((group, name, path, _array(getattr(node, name)), False))
    groups = {group for group, *_ in found if group} or {""}
    names = Counter(name for _, name, *_ in found)
    grouped = Counter((group, name) for group, name, *_ in found)
    seen: Counter[tuple[str, str]] = Counter()
    entries = []
    for group, name, path, value, scheduled in found:
        alone = len(groups) == 1 and names[name] == 1
        key = name if alone or not group else f"{group}/{name}"
        if grouped[group, name] > 1:
            key += f"[{seen[group, name]}]"
            seen[group, name] += 1
        entries.append(_Entry(key, name, path, value, scheduled))
    return entries


def is_rule_state(node: Any) -> bool:
    """Whether a node is the state of one rule."""
    return isinstance(node, tuple) and isinstance(getattr(node, "memory", None), Memory)


def _array(leaf: Any) -> Array:
    """Return the array of a leaf, which Flax NNX wraps in a variable."""
    return jax.tree.leaves(leaf)[0]


def _given(node: Any) -> dict[str, Array]:
    """Return the constructor's arguments by name, NaN for a schedule; of all lanes, if vmapped."""
    given = jnp.moveaxis(_array(node.memory.given), -1, 0)
    return dict(zip(sorted(node.hyperparams), given, strict=True))


def _filled(leaf: Any, value: ArrayLike, keep: ArrayLike) -> Any:
    """Return the leaf with another value, in its own type and wrapping, except where to keep it."""
    return jax.tree.map(lambda old: jnp.where(keep, old, jnp.asarray(value, old.dtype)), leaf)


def _is_nan(given: Array) -> bool:
    return not isinstance(given, jax.core.Tracer) and bool(np.isnan(given).any())
