"""A state carried over to another partition of the same parameters.

A parameter that was frozen has no state. When it joins, its averages begin at 0, and their bias is
to be corrected by a count of its own: with the count of the others, Adam's first updates would be
up to five times too large. So what joins gets a count of its own, and schedules go on with the
count of the run.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._tree import is_traced
from optlab._types import Tree
from optlab.groups._partition import PartitionState
from optlab.rules._hyperparams import scheduled_mark
from optlab.rules._leaf import path_name, without_part
from optlab.rules._rule import JOINED
from optlab.rules._state import is_rule_state

_WHO = "groups.carry_over"
_COUNTERS = ("count", "step")
_SHARED = (*_COUNTERS, JOINED, "hyperparams")


class _Unit(NamedTuple):
    """The states of rules that share one count.

    Attributes:
        path: where they are; the path of the tuple, or of the only state.
        states: one for each rule.
        age: the updates that its parameters have had.
        total: the updates of the run.
        is_direction: whether it counts updates as a direction does, and not as a clip does.
        joins: whether its parameters can have joined later.
    """

    path: Any
    states: tuple[Any, ...]
    age: int
    total: int
    is_direction: bool
    joins: bool


class _Piece(NamedTuple):
    """A slot of a parameter, or of some of its slices, in the old state."""

    array: Any
    start: int
    stop: int
    is_whole: bool
    unit: _Unit
    state: Any


_Index = dict[tuple[str, str, str], list[_Piece]]
"""(kind of state, field, path of the array with what follows in the slot) → pieces."""


def carry_over(state: Any, tx: optax.GradientTransformation, params: Tree) -> Any:
    """Return the state of another transformation that goes on where a run stands.

    What the run knows of a parameter is found by its path, wherever it stands in the old state.
    Parameters that were frozen start anew, with a count of their own. The numbers of the new
    transformation apply, not values that were replaced in the old state; its schedules go on with
    the count of the run, and are read from the state after the next update.

    Call it outside of `jit`. Where parameters of different ages meet in one group, the group has a
    state for each, so that a checkpoint of it is restored into a state that `carry_over` returned.

    Args:
        state: the old state, of any chain or partition of optlab's rules. What Optax's rules
            keep is carried over only to the same rules, for parameters that all stay.
        tx: the new transformation, such as another `partition` of the same parameters.
        params: the parameters as they are now.

    Returns:
        A state for `tx`, with arrays of its own. From the `opt_state` of an `nnx.Optimizer` it is
        one that can be assigned to the `opt_state` of another.

    Raises:
        ValueError: a part of the old state does not fit, with its path, what is expected and what
            is found; or a parameter joins others under a transformation that has one count for all.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> params = {"body": jnp.zeros(2), "head": jnp.zeros(2)}
        >>> adam = optlab.adam(0.1)
        >>> first = optlab.groups.freeze(adam, params, "body")
        >>> _, state = first.update(params, first.init(params), params)
        >>> tx = optlab.groups.partition(params, [(..., adam)])
        >>> state = carry_over(state, tx, params)
        >>> sorted(state.groups)
        ['rest', 'rest@1']
    """
    _checks.check_transformation(_WHO, tx)
    if any(map(is_traced, jax.tree.leaves(state))):
        required = "state must be known, outside of jit"
        _checks.fail(_WHO, required, "a traced array", "call it between two calls of the step")
    old = list(_units(state))
    index = _indexed(old)
    new = tx.init(params)
    total = max((unit.total for unit in old if unit.is_direction), default=0)
    seen: dict[tuple[str, str, str], int] = defaultdict(int)
    sizes = {
        path_name(path): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    _check_related(state, new, index, sizes)
    by_path = {}
    for unit in _units(new):
        before = next((own for own in old if _kinds(own) == _kinds(unit)), None)
        # A rule without slots has nothing else to tell how many updates it has made.
        count = total if before is None else before.total
        key = jax.tree_util.keystr(unit.path)
        by_path[key] = _carried(unit, index, seen, total, count, sizes)
    new = _with_foreign(new, state, index, sizes)
    return _wrapped_like(state, _copied(_replaced(new, by_path)))


def _check_related(old: Any, new: Any, index: _Index, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Require that the old state is one of optlab's rules, and knows these parameters."""
    remedy = "call tx.init(params) to start anew"
    if old is None or (isinstance(old, dict) and not old):
        _checks.fail(_WHO, "state must be that of a transformation", repr(old), remedy)
    of_optax = {own.param for own in _foreign(old, sizes) if own.is_of_optax and own.param}
    known = {path for *_, path in index}
    for unit in _units(new):
        for state in unit.states if unit.is_direction else ():
            for field, path, _ in _slots(state):
                array = _owner(_array_path(path)[0], sizes)
                if (state.kind, field, _array_path(path)[0]) not in index and array in of_optax:
                    _checks.fail(
                        _WHO,
                        f"the old state of {array} must be one of {state.kind}",
                        "one of Optax's",
                        "carry it over with optlab.dialects.optax.from_state(tx, params, state)",
                    )
    if known and not any(f"{own}/".startswith(f"{path}/") for own in known for path in sizes):
        required = f"state must be one of these parameters, {', '.join(sorted(sizes)[:3])}, …"
        _checks.fail(_WHO, required, f"one of {', '.join(sorted(known)[:3])}", remedy)
    nodes = jax.tree.leaves(old, is_leaf=is_rule_state)
    if not any(map(is_rule_state, nodes)) and not of_optax and nodes:
        required = "state must be that of a transformation of these parameters"
        _checks.fail(_WHO, required, f"a {type(old).__name__} that holds none of them", remedy)


def _units(state: Any) -> Iterator[_Unit]:
    """Yield the units of a state, in its order."""
    siblings: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_rule_state):
        if is_rule_state(node):
            in_tuple = path and isinstance(path[-1], jax.tree_util.SequenceKey)
            parent = path[:-1] if in_tuple else path
            siblings[jax.tree_util.keystr(parent)].append((path, node))
    for nodes in siblings.values():
        counted = [name for _, node in nodes for name in _COUNTERS if name in node._fields]
        if len(counted) == len(nodes):  # each of them was lifted by itself
            yield from (_unit(path, (node,)) for path, node in nodes)
        else:
            path = nodes[0][0]
            yield _unit(path[:-1] if len(nodes) > 1 else path, tuple(node for _, node in nodes))


def _unit(path: Any, states: tuple[Any, ...]) -> _Unit:
    counting = next(s for s in states if any(name in s._fields for name in _COUNTERS))
    counter = next(name for name in _COUNTERS if name in counting._fields)
    joins = JOINED in counting._fields
    age = _number(getattr(counting, counter))
    total = age + (_number(getattr(counting, JOINED)) if joins else 0)
    return _Unit(path, states, age, total, counter == "count", joins)


def _kinds(unit: _Unit) -> list[str]:
    return [state.kind for state in unit.states]


def _number(leaf: Any) -> int:
    number = np.asarray(jax.tree.leaves(leaf)[0])
    if number.ndim:
        required = "state must be that of one run"
        remedy = "carry each over by itself, and stack them with jax.tree.map"
        _checks.fail(_WHO, required, f"a count of shape {number.shape}, as of a vmap", remedy)
    return int(number)


def _slots(state: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the field, the path and the array of each slot."""
    for name in state._fields:
        if name not in _SHARED:
            for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(state, name)):
                yield name, path, leaf


def _array_path(path: Any) -> tuple[str, tuple[int, int] | None]:
    """Return the path of an array, and which of its slices are meant; None for all."""
    name = path_name(path)
    array = without_part(name)
    if array == name:
        return name, None
    start, stop = name[len(array) + 1 : -1].split(":")
    return array, (int(start), int(stop))


def _all_slices(array: Any) -> tuple[int, int]:
    return 0, np.shape(array)[0] if np.ndim(array) else 1


def _indexed(units: Sequence[_Unit]) -> _Index:
    index: _Index = defaultdict(list)
    for unit in units:
        for state in unit.states:
            for field, path, leaf in _slots(state):
                array, part = _array_path(path)
                piece = _Piece(leaf, *(part or _all_slices(leaf)), part is None, unit, state)
                index[state.kind, field, array].append(piece)
    return index


def _carried(
    unit: _Unit,
    index: _Index,
    seen: dict[tuple[str, str, str], int],
    total: int,
    count: int,
    sizes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Return the states that take the place of a new unit: one, or for a group one for each age.

    They are keyed by what is added to the group's name.
    """
    values: list[dict[tuple[str, str], Any]] = [{} for _ in unit.states]
    ages: dict[str, int] = {}
    origins: dict[int, list[_Piece]] = defaultdict(list)
    for number, state in enumerate(unit.states):
        for field, path, leaf in _slots(state):
            pieces = _found(state, field, path, leaf, index, seen)
            name = path_name(path)
            if pieces is None:
                _check_kind(unit, state, name, index)
                ages.setdefault(_owner(name, sizes), 0)
                continue
            array, piece = pieces
            values[number][field, jax.tree_util.keystr(path)] = array
            ages[_owner(name, sizes)] = piece.unit.age
            origins[piece.unit.age].append(piece)
    if not unit.joins:
        return {"": _of_one_age(unit, values, ages, origins, count)}
    distinct = sorted(set(ages.values()), reverse=True) or [total]
    states = {}
    for age in distinct:
        paths = {name for name, own in ages.items() if own == age} if len(distinct) > 1 else None
        suffix = "" if age == distinct[0] else f"@{total - age}"
        states[suffix] = _at_age(unit, values, origins[age], age, total, paths)
    return states


def _owner(name: str, sizes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the path of the parameter, or of its slices, that a slot is of."""
    names = name.split("/")
    for length in range(len(names), 0, -1):
        own = "/".join(names[:length])
        if without_part(own) in sizes:
            return own
    return name


def _arguments(state: Any) -> list[float]:
    """Return the arguments that the constructor of a rule had, as its state holds them."""
    size = len(state.declarations)
    if not size:
        return []
    return np.asarray(jax.tree.leaves(state.hyperparams)[0])[size : 2 * size].tolist()


def _found(
    state: Any,
    field: str,
    path: Any,
    leaf: Any,
    index: _Index,
    seen: dict[tuple[str, str, str], int],
) -> tuple[Any, _Piece] | None:
    """Return what the old state holds of a slot, and where from; None for nothing."""
    array, part = _array_path(path)
    pieces = index.get((state.kind, field, array), [])
    if not pieces:
        return None
    name, shape = path_name(path), np.shape(leaf)
    whole = [piece for piece in pieces if np.shape(piece.array) == shape]
    if part is None and whole:
        # The same rule may stand twice in a chain; its arguments tell which is meant, or its place.
        alike = [piece for piece in whole if _arguments(piece.state) == _arguments(state)]
        if len(whole) > 1 and not alike:
            required = f"it must be plain which {state.kind} of {name} is carried over"
            got = f"{len(whole)} in the old state, none with the same arguments"
            _checks.fail(_WHO, required, got, "keep their hyperparameters, or start anew")
        candidates = alike or whole
        key = (state.kind, field, f"{name} {_arguments(state)}")
        own = candidates[min(seen[key], len(candidates) - 1)]
        seen[key] += 1
        return own.array, own
    start, stop = part or _all_slices(leaf)
    inside = sorted(
        (piece for piece in pieces if piece.start < stop and piece.stop > start),
        key=lambda piece: piece.start,
    )
    if not inside:
        return None
    if (inside[0].is_whole and part is None) or any(
        np.shape(piece.array)[1:] != shape[1:] for piece in inside
    ):
        got = ", ".join(f"{np.shape(piece.array)}" for piece in inside)
        _checks.fail(_WHO, f"{field} of {name} must have the shape {shape}", got)
    covered = sum(min(piece.stop, stop) - max(piece.start, start) for piece in inside)
    if covered != stop - start or len({piece.unit.age for piece in inside}) > 1:
        got = ", ".join(f"{piece.start} to {piece.stop - 1}" for piece in inside)
        _checks.fail(
            _WHO,
            f"the slices of {name} must all have joined at one time, and have state",
            f"{field} of slices {got}",
            "give the slices that join a rule of their own, with groups.slices(…)",
        )
    arrays = [piece.array[max(start - piece.start, 0) : stop - piece.start] for piece in inside]
    return jnp.concatenate(arrays), inside[0]


def _check_kind(unit: _Unit, state: Any, name: str, index: _Index) -> None:
    """Require that a parameter without old state was frozen, and had no other optimizer."""
    array = without_part(name)
    if not unit.is_direction:
        return
    others = sorted(
        {
            kind
            for (kind, _, path), pieces in index.items()
            if path == array and any(piece.unit.is_direction for piece in pieces)
        }
    )
    if others and state.kind not in others:
        _checks.fail(
            _WHO,
            f"the old state of {array} must be one of {state.kind}",
            f"one of {', '.join(others)}",
            "keep the optimizer of what was trained before, or start anew with tx.init(params)",
        )


def _of_one_age(
    unit: _Unit,
    values: Sequence[dict[tuple[str, str], Any]],
    ages: dict[str, int],
    origins: dict[int, list[_Piece]],
    count: int,
) -> Any:
    """Return the states of a unit that has one count for all."""
    known = sorted(origins)
    missing = sorted(name for name, age in ages.items() if age not in origins)
    mixed = missing and known
    if unit.is_direction and (mixed or len(known) > 1):
        names = missing or sorted(name for name, age in ages.items() if age == known[0])
        _checks.fail(
            _WHO,
            "parameters that join must have a count of their own",
            f"one count for all, with {', '.join(names[:5])} among those that join",
            "make the new transformation with optlab.groups.partition",
        )
    age = known[-1] if known else 0 if missing else count
    return _at_age(unit, values, origins[age], age, age, None)


def _at_age(
    unit: _Unit,
    values: Sequence[dict[tuple[str, str], Any]],
    pieces: Sequence[_Piece],
    age: int,
    total: int,
    paths: set[str] | None,
) -> Any:
    """Return the states of a unit for the parameters of one age; `paths` is None for all."""
    states = []
    for state, own in zip(unit.states, values, strict=True):
        changes: dict[str, Any] = {}
        for field in state._fields:
            if field in _SHARED:
                continue

            def value(path: Any, leaf: Any, field: str = field, own: Any = own) -> Any:
                return own.get((field, jax.tree_util.keystr(path)), leaf)

            slots = jax.tree_util.tree_map_with_path(value, getattr(state, field))
            changes[field] = slots if paths is None else _pruned(slots, paths)
        for field, number in (*((name, age) for name in _COUNTERS), (JOINED, total - age)):
            if field in state._fields:
                changes[field] = _filled(getattr(state, field), number)
        before = (own for piece in pieces for own in piece.unit.states if own.kind == state.kind)
        if state.declarations and (same := next(before, None)) is not None:
            changes["hyperparams"] = _with_history(state, same)
        states.append(state._replace(**changes))
    return states[0] if len(states) == 1 else tuple(states)


def _pruned(tree: Tree, paths: set[str], above: tuple[str, ...] = ()) -> Tree:
    """Return a tree of dictionaries without the arrays of other paths."""
    kept = {}
    for name, node in tree.items():
        is_part = name.startswith("[") and name.endswith("]")
        names = (*above[:-1], above[-1] + name) if is_part and above else (*above, name)
        if "/".join(names) in paths:
            kept[name] = node
        elif isinstance(node, Mapping) and (inside := _pruned(node, paths, names)):
            kept[name] = inside
    return kept


def _filled(leaf: Any, number: int) -> Any:
    return jax.tree.map(lambda x: jnp.full_like(x, number), leaf)


def _with_history(new: Any, old: Any) -> Any:
    """Return the array of hyperparameters with what another state knows of the run.

    That are the products of decay rates, and the values that schedules had at the last update.
    """

    def places(state: Any) -> dict[str, int]:
        names = [declared.name for declared in state.declarations if declared.has_product]
        first = 2 * len(state.declarations)
        return {name: first + 2 * number for number, name in enumerate(names)}

    before = jax.tree.leaves(old.hyperparams)[0]
    source = places(old)
    values = {declared.name: index for index, declared in enumerate(old.declarations)}
    mark = scheduled_mark(before.dtype)

    def carried(stored: Any) -> Any:
        for name, place in places(new).items():
            if name in source:
                stored = stored.at[place : place + 2].set(before[source[name] : source[name] + 2])
        for index, declared in enumerate(new.declarations):
            place = values.get(declared.name)
            if place is not None and before[len(values) + place] == mark:
                is_scheduled = stored[len(new.declarations) + index] == mark
                stored = stored.at[index].set(jnp.where(is_scheduled, before[place], stored[index]))
        return stored

    return jax.tree.map(carried, new.hyperparams)


class _Foreign(NamedTuple):
    """An array of a state that no rule of optlab keeps.

    Attributes:
        path: where it is, as text.
        kind: the type of the NamedTuple around it; None without one.
        inside: its path within that NamedTuple.
        param: the path of the parameter that it belongs to; None for a number of the whole.
        array: the array.
    """

    path: str
    kind: type | None
    inside: str
    param: str | None
    array: Any

    @property
    def is_of_optax(self) -> bool:
        return self.kind is not None and self.kind.__module__.startswith("optax.")


def _foreign(state: Any, sizes: Mapping[str, tuple[int, ...]]) -> list[_Foreign]:
    """Return the arrays of a state that no rule of optlab keeps."""
    arrays: list[_Foreign] = []

    def visit(node: Any, above: Any) -> None:
        def is_inner(x: Any) -> bool:
            is_named = isinstance(x, tuple) and hasattr(x, "_fields")
            return is_rule_state(x) or (x is not node and is_named)

        for path, leaf in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_inner):
            if is_rule_state(leaf):
                continue
            if is_inner(leaf):
                visit(leaf, (*above, *path))
                continue
            names = path_name(path).split("/")
            ends = ("/".join(names[start:]) for start in range(len(names)))
            param = next((own for own in ends if without_part(own) in sizes), None)
            kind = type(node) if hasattr(node, "_fields") else None
            text = jax.tree_util.keystr((*above, *path))
            arrays.append(_Foreign(text, kind, "/".join(names), param, leaf))

    visit(state, ())
    return arrays


def _with_foreign(new: Any, old: Any, index: _Index, sizes: Mapping[str, tuple[int, ...]]) -> Any:
    """Return a state in which what no rule of optlab keeps is that of the old one.

    It is found by its place in the state, or else by the type of the state around it.
    """
    before = _foreign(old, sizes)
    by_path = {own.path: own for own in before}
    by_kind: dict[tuple[Any, str], list[_Foreign]] = defaultdict(list)
    for own in before:
        by_kind[own.kind, own.inside].append(own)
    known = {own.param for own in before if own.is_of_optax}
    known |= {
        path
        for (_, _, path), pieces in index.items()
        if any(piece.unit.is_direction for piece in pieces)
    }
    values: dict[str, Any] = {}
    for own in _foreign(new, sizes):
        same = by_path.get(own.path)
        alike = by_kind[own.kind, own.inside] if own.kind is not None else []
        if same is None and alike:
            same = alike[0]
            if any(not np.array_equal(same.array, other.array) for other in alike):
                places = ", ".join(other.path for other in alike)
                required = f"it must be plain what is carried over to {own.path}"
                _checks.fail(_WHO, required, f"different numbers at {places}", "keep the groups")
        if same is not None and np.shape(same.array) != np.shape(own.array):
            required = f"{own.path} must have the shape {np.shape(own.array)}"
            _checks.fail(_WHO, required, f"{np.shape(same.array)}")
        if same is not None:
            values[own.path] = same.array
        elif own.is_of_optax and own.param in known:
            _checks.fail(
                _WHO,
                f"the old state of {own.param} must be one of {_name(own)}",
                f"none at {own.path}",
                "keep the optimizer of what was trained before, or start anew with tx.init(params)",
            )
    _check_counts(_foreign(new, sizes), values)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf if is_rule_state(leaf) else values.get(jax.tree_util.keystr(path), leaf)
        ),
        new,
        is_leaf=is_rule_state,
    )


def _name(own: _Foreign) -> str:
    return "" if own.kind is None else own.kind.__name__


def _check_counts(arrays: Sequence[_Foreign], values: Mapping[str, Any]) -> None:
    """Refuse parameters that join others in a state of Optax, which has one count for all."""
    owners: dict[str, list[_Foreign]] = defaultdict(list)
    for own in arrays:
        if own.is_of_optax:
            owners[own.path[: own.path.rfind("." + own.inside.split("/")[0])]].append(own)
    for owner, inside in owners.items():
        counts = any(own.inside == "count" for own in inside)
        joins = [own for own in inside if own.param and own.path not in values]
        if counts and joins and any(own.param and own.path in values for own in inside):
            _checks.fail(
                _WHO,
                "parameters that join must have a count of their own",
                f"one count for all at {owner or 'the root'}, with {joins[0].param} new",
                "use one of optlab's optimizers, or give what joins a group of its own",
            )


def _replaced(state: Any, by_path: dict[str, dict[str, Any]], above: Any = ()) -> Any:
    """Return a state with other units, and with several of them where a group has several ages."""

    def is_replaced(path: Any, node: Any) -> bool:
        own = jax.tree_util.keystr((*above, *path))
        return own in by_path or (isinstance(node, PartitionState) and node is not state)

    def new(path: Any, node: Any) -> Any:
        own = (*above, *path)
        text = jax.tree_util.keystr(own)
        if text in by_path:
            return by_path[text][""]
        if not isinstance(node, PartitionState):
            return node
        groups = {}
        for name, group in node.groups.items():
            key = (*own, jax.tree_util.GetAttrKey("groups"), jax.tree_util.DictKey(name))
            units = by_path.get(jax.tree_util.keystr(key))
            if units is None:
                groups[name] = _replaced(group, by_path, key)
            else:
                groups |= {name + suffix: unit for suffix, unit in units.items()}
        return PartitionState(groups)

    if isinstance(state, PartitionState):
        return new((), state)
    return jax.tree_util.tree_map_with_path(
        new, state, is_leaf=is_replaced, is_leaf_takes_path=True
    )


def _wrapped_like(old: Any, new: Any) -> Any:
    """Return a state whose arrays Flax NNX wraps in variables, where it does so in the old one."""
    nnx = sys.modules.get("flax.nnx")  # a state of `nnx.Optimizer` has imported it
    training = sys.modules.get("flax.nnx.training.optimizer")
    if nnx is None or training is None:
        return new
    nodes = jax.tree.leaves(old, is_leaf=lambda x: isinstance(x, nnx.Variable))
    is_wrapped = any(isinstance(node, nnx.Variable) for node in nodes)
    return nnx.data(training.to_opt_state(new)) if is_wrapped else new


def _copied(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)
