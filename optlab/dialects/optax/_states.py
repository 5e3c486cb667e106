"""A run carried over between Optax's states and those of optlab's own optimizers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import as_array
from optlab._types import Array, Tree
from optlab.dialects import _carry
from optlab.rules._state import is_rule_state

_FIELDS: Mapping[str, Mapping[str, str]] = {
    "TraceState": {"velocity": "trace"},
    "ScaleByRssState": {"sum_of_squares": "sum_of_squares"},
    "ScaleByRmsState": {"mean_square": "nu"},
    "ScaleByRmsWithCountState": {"mean_square": "nu"},
    "ScaleByRStdDevState": {"mean_square": "nu", "mean": "mu"},
    "ScaleByRStdDevWithCountState": {"mean_square": "nu", "mean": "mu"},
    "ScaleByAdamState": {"mu": "mu", "nu": "nu"},
    "ScaleByAmsgradState": {"mu": "mu", "nu": "nu", "nu_max": "nu_max"},
    "ScaleByLionState": {"mu": "mu"},
}
"""What Optax calls the fields of our states, for each kind of its states."""


def from_state(
    tx: optax.GradientTransformation, params: Tree, state: Any, *, step: int | None = None
) -> Any:
    """Return the state of `tx` that goes on where a transformation of Optax stopped.

    Args:
        tx: the transformation to go on with, of `optlab`, where it is the same rule (`sgd`, `adam`
            with or without `amsgrad`, `adamw`, `lion`, RMSProp without momentum, AdaGrad); also a
            chain or a partition, with rules in the order they have in Optax's. The stand-ins of
            this module keep Optax's state: they take one as it is, and one that is wrapped
            otherwise, as in `inject_hyperparams`, through here.
        params: the parameters to go on with.
        state: Optax's state, of the same rules. Optax keeps the same for all of Adam's relatives
            (`adamax`, `radam`, `yogi`, …), so they cannot be told apart here.
        step: updates made; needed where Optax keeps no count, as in SGD at a constant rate.

    Returns:
        The state. Hyperparameters and schedules are those of `tx`.

    Raises:
        ValueError: the state does not fit; the message names the parameter and what was expected.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> params = {"w": jnp.ones(2)}
        >>> theirs = optax.adamw(1e-3)
        >>> _, state = theirs.update(params, theirs.init(params), params)
        >>> ours = from_state(optlab.adamw(1e-3, weight_decay=1e-4), params, state)
        >>> print(ours[0].count, ours[0].mu["w"])
        1 [0.1 0.1]
    """
    who = "dialects.optax.from_state"
    _checks.check_transformation(who, tx)
    target = jax.eval_shape(tx.init, params)
    nodes = [node for node in _nodes(target) if _slots(node)]
    matched = _match(who, nodes, target, state)
    _check_nothing_left(who, state, _has_memory)
    pairs = list(zip(nodes, matched, strict=True))
    of_ours = iter([other for node, other in pairs if not _is_theirs(node)])
    of_theirs = [other for node, other in pairs if _is_theirs(node)]
    source: dict[int, Any] = {}

    def slot(node: Any, field: str, like: Tree) -> Tree:
        if id(node) not in source:
            source[id(node)] = next(of_ours)
        tree = _slots(source[id(node)])[field]
        return _fit(who, field, tree, like, square=field in _carry.SQUARES)

    counts, missing = _counts(state), "this state keeps no count of its updates"
    if _carry.rule_states(target):
        step = _carry.settle_step(who, counts, step, missing)
        new = _carry.resume(who, tx, params, step, slot)
    else:
        new = _with_counts(who, tx.init(params), counts, step, missing)
    return _filled(who, new, of_theirs)


def to_state(state: Any, tx: optax.GradientTransformation, params: Tree) -> Any:
    """Return the state of a transformation of Optax that goes on where one of optlab stopped.

    Args:
        state: of a transformation of `optlab`, as in `from_state`, or of a stand-in.
        tx: Optax's transformation, to go on with.
        params: the parameters to go on with.

    Returns:
        The state of `tx`, in its own types. What Optax's transformation has no place for, such as
        an average of parameters, is left out.

    Raises:
        ValueError: the state does not fit; the message names the parameter and what was expected.
    """
    who = "dialects.optax.to_state"
    _checks.check_transformation(who, tx)
    counts = {f"rule {i}": count for i, (_, count) in enumerate(_carry.with_counters(state))}
    counts |= _counts(state)
    states = _nodes(state)
    if not states and not counts:
        _checks.fail(who, "the state must be of an optimizer of optlab", type(state).__name__)
    start = tx.init(params)
    matched = _match(who, states, state, start)
    _check_nothing_left(who, start, lambda x: jnp.issubdtype(x.dtype, jnp.inexact))
    keeping = [node for node in states if _slots(node)]
    by_place = {id(other): node for other, node in zip(matched, keeping, strict=True)}
    sources = [by_place[id(other)] for other in _their_states(start)]
    new = _with_counts(who, start, counts, None, "this state keeps no count of its updates")
    return _filled(who, new, sources)


def _with_counts(
    who: str, start: Any, counts: Mapping[str, Any], step: int | None, missing: str
) -> Any:
    """Return a state of Optax with its counts of updates as they are in another state."""
    if not _counts(start):
        return start
    return _carry.with_counts(start, _carry.settle_step(who, counts, step, missing))


def _filled(who: str, state: Any, sources: Sequence[Any]) -> Any:
    """Return a state whose parts that Optax makes hold the slots of others, in their order."""
    left = iter(sources)

    def filled(node: Any) -> Any:
        if not _is_theirs(node):
            return node
        slots, new = _slots(next(left)), {}
        for field, name in _FIELDS[type(node).__name__].items():
            new[name] = _fit(who, name, slots[field], getattr(node, name), square=False)
        return node._replace(**new)

    return jax.tree.map(filled, state, is_leaf=_is_theirs)


def _nodes(state: Any) -> list[Any]:
    """Return the states of rules, of optlab and of Optax, in their order."""

    def is_node(node: Any) -> bool:
        return is_rule_state(node) or _is_theirs(node)

    return [node for node in jax.tree.leaves(state, is_leaf=is_node) if is_node(node)]


def _slots(node: Any) -> dict[str, Tree]:
    """Return what the state of a rule of optlab or of Optax keeps, by our name of the slot."""
    if not _is_theirs(node):
        return _carry.slots(node)
    return {ours: getattr(node, name) for ours, name in _FIELDS[type(node).__name__].items()}


def _is_theirs(node: Any) -> bool:
    # The states of our rules have the same names.
    return isinstance(node, tuple) and type(node).__name__ in _FIELDS and not is_rule_state(node)


def _their_states(state: Any) -> list[Any]:
    return [node for node in jax.tree.leaves(state, is_leaf=_is_theirs) if _is_theirs(node)]


def _counts(state: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in leaves if _carry.is_count(path, leaf)
    }


def _match(who: str, states: list[Any], ours: Any, theirs: Any) -> list[Any]:
    """Return Optax's state for each of our rules that keeps something, in the order of ours."""
    remedy = "build both with the same options"
    for inside, is_rmsprop in _carry.velocities(ours):
        if inside != is_rmsprop:
            _checks.fail(
                who,
                f"the rate must stand {'inside' if is_rmsprop else 'outside'} the velocity, as in "
                "Optax",
                f"a rate {'inside' if inside else 'outside'}",
                "go on with the stand-in of optlab.dialects.optax, which keeps Optax's state",
            )
    left, matched = _their_states(theirs), []
    kinds = ", ".join(type(node).__name__ for node in left) or "nothing of the kind"
    for node in states:
        own = set(_slots(node))
        if not own:
            continue
        found = [other for other in left if set(_FIELDS[type(other).__name__]) == own]
        if not found:
            needs = f"what {_kind(node)} keeps, {', '.join(sorted(own))}"
            _checks.fail(who, f"Optax's state must hold {needs}", kinds, remedy)
        matched.append(found[0])
        left = [other for other in left if other is not found[0]]
    if left:
        got = f"none for {', '.join(type(node).__name__ for node in left)}"
        _checks.fail(who, "every state of Optax must have its place in ours", got, remedy)
    return matched


def _kind(node: Any) -> str:
    return type(node).__name__ if _is_theirs(node) else node.kind


def _has_memory(leaf: Array) -> bool:
    """Whether a leaf says what the start of a run does not; a flag may say what it will."""
    if jnp.issubdtype(leaf.dtype, jnp.number):
        return bool((leaf != 0).any())
    return not jnp.issubdtype(leaf.dtype, jnp.bool_)  # a random key


def _check_nothing_left(who: str, state: Any, matters: Callable[[Array], bool]) -> None:
    """Require that what Optax keeps beside the rules we know is nothing that matters."""
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_theirs):
        # inject_hyperparams keeps the values it was given, which are here those of our arguments.
        is_argument = any(str(key).startswith(".hyperparams") for key in path)
        if _is_theirs(node) or is_argument or _carry.is_count(path, node):
            continue
        if matters(as_array(node)):
            _checks.fail(
                who,
                "all that Optax keeps must have its place in ours",
                f"{jax.tree_util.keystr(path)}, which has none",
                "carry the optimizer alone, at the end of a window where gradients accumulate",
            )


def _fit(who: str, key: str, tree: Tree, like: Tree, *, square: bool) -> Tree:
    """Return the arrays of `tree` in the place of those of `like`."""
    given = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    expected = [_name(path) for path, _ in paths]
    for name in sorted(set(expected) ^ set(given)):
        got = "none" if name in expected else f"one of {name}"
        required = f"{key} of {name}" if name in expected else f"no {key} of {name}"
        _checks.fail(who, f"the state must hold {required}, as the parameters do", got)
    leaves = [
        _carry.fitted(who, name, key, given[name], leaf, square=square)
        for name, (_, leaf) in zip(expected, paths, strict=True)
    ]
    return structure.unflatten(leaves)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path) or "the root"
