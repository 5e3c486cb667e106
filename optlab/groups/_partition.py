"""A partition of the parameters into groups, as one transformation.

The outer part takes frozen parameters away before anything else sees their gradients, and cuts
stacked arrays whose slices belong to different groups. In the middle stands what acts on all groups
together, such as a clip. The inner part gives each group its own transformation.

An update of −0.0 leaves every number as it is, −0.0 included.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import as_array, is_none, update_dtype
from optlab._types import Array, Tree
from optlab.groups._assignment import WHO, Part, Rules, assigned
from optlab.groups._optimizers import is_one, of_group
from optlab.groups._settings import frozen, group
from optlab.rules._leaf import path_name, path_names, without_part
from optlab.rules._lift import Lifted, counting_rule
from optlab.rules._patterns import part_of
from optlab.rules._recorder import Membership, record_memberships
from optlab.rules._rule import JOINED
from optlab.rules._state import exportable

Transformation = optax.GradientTransformationExtraArgs
Around = Callable[[Transformation], optax.GradientTransformation]


@exportable("PartitionState")
class PartitionState(NamedTuple):
    """State of `partition`, within that of what stands around the groups.

    Attributes:
        groups: name → the state of the group's transformation. Parameters that joined a group later
            than others have a state of their own, at the name, "@" and the update they joined at.
    """

    groups: dict[str, Any]


@dataclass(frozen=True)
class _Member:
    """One group: its transformation, its parts by path, and when it starts."""

    tx: Any
    parts: Mapping[str, Part]
    start: int


@dataclass(frozen=True)
class Plan:
    """What happens to each parameter.

    Attributes:
        parts: the path of an array → its parts, one where it is not cut.
        group_of: the path of a part → the name of its group; frozen parts have none.
        members: the groups by name.
    """

    parts: Mapping[str, Sequence[Part]]
    group_of: Mapping[str, str]
    members: Mapping[str, _Member]


def partition(
    params: Tree,
    rules: Rules,
    *,
    optimizer: optax.GradientTransformation | None = None,
    around: Around | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Treat groups of parameters differently, by patterns of their paths.

    The first pair whose pattern matches decides a parameter's group, and every parameter must be
    covered. Modifiers in the list then change the groups' numbers: `no_decay`, `layerwise_decay`,
    `discriminative`, `gradual_unfreezing`. Their multipliers multiply each other. Where the list
    holds modifiers alone, they apply to all parameters.

    `optlab.describe(tx, params)` prints the result. `optlab.hyperparams(state)` reads one value for
    each group, as "head/learning_rate", and `replace_hyperparams` replaces it.

    Args:
        params: the parameters, or their shapes.
        rules: a list of pairs and modifiers. A pair has a pattern (a regular expression that
            matches whole names on a path, joined by "/"), a predicate (path, parameter) → bool,
            `slices(…)`, or `...` for all that are left; and behind it `group(…)`, `frozen()` or a
            transformation. In a mapping from patterns no order decides, so two must not match the
            same parameter.
        optimizer: the transformation of all groups that name none; a group changes its numbers.
            It acts on each group apart, and so does a clip that is a part of it.
        around: (the transformation of all groups) → the one to use, for what acts on all trained
            parameters together: `lambda tx: optax.chain(optlab.clip_by_global_norm(1.0), tx)`.
            Frozen parameters are not among those that it sees.

    Returns:
        A transformation for these parameters.

    Raises:
        ValueError: a parameter is not covered, a pattern matches nothing or decides for nothing,
            slices overlap, all is frozen, a group has no optimizer or sets what it has not; at init
            and update, the parameters are not those of the plan.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> params = {name: {"kernel": jnp.ones((2, 2))} for name in ("embed", "body", "head")}
        >>> tx = partition(
        ...     params,
        ...     [
        ...         ("embed", optlab.groups.frozen()),
        ...         ("head", optlab.groups.group(lr_mult=10.0)),
        ...         (..., optlab.groups.group(weight_decay=0.1)),
        ...     ],
        ...     optimizer=optlab.adamw(1e-3, weight_decay=0.0),
        ... )
        >>> print(optlab.describe(tx, params))
        path          shape   group  rule  axes  rate   decay  frozen  state bytes
        body/kernel   (2, 2)  rest   adam  -     0.001  0.1    -                32
        embed/kernel  (2, 2)  -      -     -     -      -      yes               0
        head/kernel   (2, 2)  head   adam  -     0.01   0      -                32
        in all                                                                  64
    """
    if optimizer is not None:
        _checks.check_transformation(WHO, optimizer)
    if around is not None and not callable(around):
        required = "around must be a function of the groups' transformation"
        _checks.fail(WHO, required, repr(around), "write lambda tx: optax.chain(clip, tx), say")
    plan = _plan(assigned(params, rules, optimizer), optimizer)
    return _transformation(plan, _inner(plan), around)


def freeze(
    tx: optax.GradientTransformation, params: Tree, *patterns: str
) -> optax.GradientTransformationExtraArgs:
    """Freeze the parameters that patterns match; the others are those of `tx` alone.

    Everything in `tx` acts as if the frozen parameters did not exist: clipping, averages, state.

    Args:
        tx: the transformation of all other parameters, with everything around it.
        params: the parameters, or their shapes.
        *patterns: as for `partition`.

    Returns:
        A transformation for these parameters.

    Raises:
        ValueError: there is no pattern, one matches nothing, or all is frozen.

    Example:
        >>> import jax.numpy as jnp, optax, optlab
        >>> params = {"body": jnp.array(3.0), "head": jnp.array(4.0)}
        >>> tx = optax.chain(optlab.clip_by_global_norm(1.0), optlab.sgd(1.0))
        >>> tx = freeze(tx, params, "body")
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> print(updates["body"], updates["head"])
        -0.0 -1.0
    """
    _checks.check_transformation("groups.freeze", tx)
    if not patterns:
        remedy = "write freeze(tx, params, 'embed'), say"
        _checks.fail("groups.freeze", "there must be a pattern of what is frozen", "none", remedy)
    rules = [*((pattern, frozen()) for pattern in patterns), (..., group(optax.identity()))]
    plan = _plan(assigned(params, rules, None), None)
    return _transformation(plan, optax.with_extra_args_support(tx), None)


def _plan(parts: Sequence[Part], optimizer: Any) -> Plan:
    """Return the plan of an assignment."""
    by_array: dict[str, list[Part]] = {}
    names: dict[str, str] = {}
    members: dict[str, list[Part]] = {}
    for part in parts:
        by_array.setdefault(without_part(part.path), []).append(part)
        if not part.group.is_frozen:
            labels = [one.label for one in part.refinements if one.label]
            name = "-".join([part.group.name, *labels] if part.group.name else labels) or "all"
            names[part.path] = name
            members.setdefault(name, []).append(part)
    plan = Plan(by_array, names, {n: _member(n, own, optimizer) for n, own in members.items()})
    starts = {member.start for member in plan.members.values()}
    if min(starts):
        required = "at least one parameter must be trained from the first update on"
        _checks.fail("groups.gradual_unfreezing", required, f"starts at {min(starts)} and later")
    return plan


def _member(name: str, parts: Sequence[Part], default: Any) -> _Member:
    """Return a group; require that its parts agree in what names cannot tell."""
    settings = parts[0].group
    if any(part.group is not settings for part in parts):
        required = "groups must have different names"
        _checks.fail(WHO, required, f"{name!r} twice", "write group(…, name=…)")
    optimizer = settings.optimizer if settings.optimizer is not None else default
    if optimizer is None:
        required = f"the group {name!r} must have an optimizer"
        remedy = "pass optimizer=optlab.adamw(1e-3) to partition, or one to the group"
        _checks.fail(WHO, required, "none", remedy)
    rate, decay, eps, start = settings.lr_mult, settings.wd_mult, 1.0, 0
    for one in parts[0].refinements:
        rate = rate if isinstance(one.rate, tuple) else _product(rate, one.rate)
        decay, eps = _product(decay, one.decay), _product(eps, one.eps)
        start = max(start, one.start)
    multipliers = {}
    for part in parts:
        of_slices = [one.rate for one in part.refinements if isinstance(one.rate, tuple)]
        if of_slices:
            columns = zip(*of_slices, strict=True)
            multipliers[part.path] = tuple(_product(*column) for column in columns)
    tx = of_group(WHO, name, settings, optimizer, rate, decay, eps, multipliers)
    if start and not isinstance(tx, Lifted):
        required = f"the group {name!r}, which starts late, must have one of optlab's optimizers"
        _checks.fail("groups.gradual_unfreezing", required, "another transformation")
    return _Member(tx, {part.path: part for part in parts}, start)


def _product(*factors: Any) -> Any:
    """Return a product that stays the number itself where all others are 1."""
    others = [factor for factor in factors if not is_one(factor)]
    return math.prod(others[1:], start=others[0]) if others else 1.0


def _transformation(plan: Plan, inner: Transformation, around: Around | None) -> Transformation:
    """Return the transformation of the whole tree."""
    middle = inner if around is None else around(inner)
    _checks.check_transformation(WHO, middle)
    middle = optax.with_extra_args_support(middle)

    def init(params: Tree) -> Any:
        _check_complete(plan, params)
        record_memberships(_memberships(plan, set(_by_name(params))))
        state = middle.init(_trained(plan, params, "parameters"))
        if around is not None and not _partitions_in(state):
            required = "around must return a transformation with the given one in it"
            remedy = "write lambda tx: optax.chain(clip, tx), say"
            _checks.fail(WHO, required, f"one whose state is {type(state).__name__}", remedy)
        return state

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        structure = jax.tree.structure(updates, is_leaf=is_none)
        gradients = _trained(plan, updates, "gradients")
        gradients = _without_idle(plan, gradients, state)
        trained = None if params is None else _trained(plan, params, "parameters")
        grad = extra_args.get("grad")
        if grad is not None and jax.tree.structure(grad, is_leaf=is_none) == structure:
            extra_args["grad"] = _without_idle(plan, _trained(plan, grad, "gradients"), state)
        if params is not None and callable(value_fn := extra_args.get("value_fn")):
            extra_args["value_fn"] = lambda own: value_fn(_joined(plan, params, own, lambda p: p))
        new, state = middle.update(gradients, state, trained, **extra_args)
        return _joined(plan, updates, new, _no_update, params), state

    return Transformation(init, update)


def _memberships(plan: Plan, present: set[str]) -> list[Membership]:
    """Return what a table shows of each part of the arrays that are present."""
    rows = []
    for path, parts in plan.parts.items():
        for part in parts if path in present else ():
            name = plan.group_of.get(part.path, "")
            start = plan.members[name].start if name else 0
            rows.append(Membership(path, part.path, part.shape, name, start))
    return rows


def _check_complete(plan: Plan, params: Tree) -> None:
    """Require all parameters of the plan, unless a part of them was taken out before."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = {path_name(path) for path, _ in leaves}
    missing = sorted(set(plan.parts) - paths)
    nodes = jax.tree.leaves(params, is_leaf=_is_masked)
    if leaves and missing and not any(map(_is_masked, nodes)):
        _fail_plan("parameters", f"no {', '.join(missing[:3])}")


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _fail_plan(what: str, got: str) -> NoReturn:
    required = f"the {what} must be those that partition was given"
    _checks.fail(WHO, required, got, "call partition with the parameters that you train")


def _trained(plan: Plan, tree: Tree, what: str) -> Tree:
    """Return a tree without its frozen arrays, and with the parts of those that are cut."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)
    new = []
    for path, leaf in leaves:
        name = path_name(path)
        parts = plan.parts.get(name)
        if leaf is None:
            new.append(None)
            continue
        if parts is None:
            _fail_plan(what, f"{name}, which it was not")
        if len(parts) == 1:
            if jnp.shape(leaf) != parts[0].shape:
                _fail_plan(
                    what, f"the shape {jnp.shape(leaf)} in place of {parts[0].shape} at {name}"
                )
            new.append(leaf if parts[0].path in plan.group_of else optax.MaskedNode())
            continue
        if jnp.shape(leaf)[:1] != (parts[-1].stop,):
            _fail_plan(what, f"{jnp.shape(leaf)} for {parts[-1].stop} slices at {name}")
        new.append(
            {
                f"[{part.start}:{part.stop}]": _cut(leaf, part)
                if part.path in plan.group_of
                else optax.MaskedNode()
                for part in parts
            }
        )
    return structure.unflatten(new)


def _cut(leaf: Any, part: Part) -> Any:
    """Return some slices of an array, or of the description of one."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(part.shape, leaf.dtype)
    spec = tuple(jax.typeof(leaf).sharding.spec)
    if spec[:1] not in ((), (None,)):
        _checks.fail(
            WHO,
            f"the first axis of {without_part(part.path)}, of which some slices are meant, must be "
            "on each device as a whole",
            f"it sharded over {spec[0]!r}",
            "shard another axis",
        )
    return leaf[part.start : part.stop]


def _joined(
    plan: Plan,
    whole: Tree,
    trained: Tree,
    frozen: Callable[..., Array],
    params: Tree | None = None,
) -> Tree:
    """Return a whole tree of the trained arrays and, for others, a function of those in `whole`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(whole, is_leaf=is_none)
    results = structure.flatten_up_to(trained)
    beside = [None] * len(leaves) if params is None else structure.flatten_up_to(params)
    new = []
    for (path, leaf), result, param in zip(leaves, results, beside, strict=True):
        parts = plan.parts[path_name(path)]
        if leaf is None:
            # Of what is frozen nobody needs a gradient, but an update must be there to be added.
            is_frozen = all(part.path not in plan.group_of for part in parts)
            new.append(frozen(param) if is_frozen and param is not None else None)
            continue
        own = (leaf,) if params is None else (leaf, param)
        if len(parts) == 1:
            new.append(frozen(*own) if _is_masked(result) else result)
            continue
        pieces = [result[f"[{part.start}:{part.stop}]"] for part in parts]
        pieces = [
            frozen(*(_cut(x, part) for x in own if x is not None)) if _is_masked(piece) else piece
            for piece, part in zip(pieces, parts, strict=True)
        ]
        new.append(jnp.concatenate(pieces))
    return structure.unflatten(new)


def _no_update(gradient: Any, param: Any = None) -> Array:
    """Return the update that changes nothing; nothing of the gradient but its type is read."""
    gradient = gradient if hasattr(gradient, "dtype") else as_array(gradient)
    if gradient.dtype == jax.dtypes.float0:
        return jnp.zeros_like(gradient if param is None else param)
    if not jnp.issubdtype(gradient.dtype, jnp.inexact):
        return jnp.zeros_like(gradient)
    is_complex = jnp.issubdtype(gradient.dtype, jnp.complexfloating)
    zero = complex(-0.0, -0.0) if is_complex else -0.0
    return jnp.full_like(gradient, zero, dtype=update_dtype(gradient, param))


def _inner(plan: Plan) -> Transformation:
    """Return the transformation that gives each group its own."""
    paths = list(plan.parts)

    def init(params: Tree) -> PartitionState:
        with part_of(paths):
            return PartitionState(
                {
                    name: member.tx.init(_branch(params, member.parts))
                    for name, member in plan.members.items()
                }
            )

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        _check_state(plan, state)
        new, states = {}, {}
        with part_of(paths):
            for key, own_paths in cohorts(plan, state).items():
                member, own = plan.members[key.split("@")[0]], state.groups[key]
                gradients = _branch(updates, own_paths)
                beside = None if params is None else _branch(params, own_paths)
                extra = _of_group(extra_args, updates, params, own_paths)
                result, states[key] = member.tx.update(gradients, own, beside, **extra)
                if member.start:
                    active = started(member, own)
                    states[key] = _kept_until(active, member, states[key], own)
                    result = jax.tree.map(partial(_where, active), result)
                new |= _by_name(result)
        new_updates = jax.tree_util.tree_map_with_path(
            lambda path, leaf: None if leaf is None else new[path_name(path)],
            updates,
            is_leaf=is_none,
        )
        return new_updates, PartitionState(states)

    return Transformation(init, update)


def _of_group(
    extra_args: Mapping[str, Any], updates: Tree, params: Tree | None, paths: Any
) -> dict[str, Any]:
    """Return the extra arguments for a group: `grad` and `value_fn` speak of its parameters."""
    own = dict(extra_args)
    if _structure(own.get("grad")) == _structure(updates):
        own["grad"] = _branch(own["grad"], paths)
    if params is not None and callable(value_fn := own.get("value_fn")):

        def value_of_group(group: Tree) -> Any:
            leaves = _by_name(group)
            return value_fn(
                jax.tree_util.tree_map_with_path(
                    lambda path, leaf: leaves.get(path_name(path), leaf), params, is_leaf=is_none
                )
            )

        own["value_fn"] = value_of_group
    return own


def _structure(tree: Tree) -> Any:
    return jax.tree.structure(tree, is_leaf=is_none)


def _where(active: Array, update: Array) -> Array:
    """Return an update, or one that changes nothing."""
    return jnp.where(active, update, _no_update(update))


def _by_name(tree: Tree) -> dict[str, Any]:
    """Return the leaves of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)
    return {path_name(path): leaf for path, leaf in leaves}


def _branch(tree: Tree, paths: Any) -> Tree:
    """Return the arrays of some paths as a tree of dictionaries.

    It has nothing in the place of the others, since a state of many groups would take longer to
    walk than to update.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)
    if not leaves:
        return tree  # Optax's placeholder for any parameters
    branch: dict[str, Any] = {}
    for path, leaf in leaves:
        if path_name(path) not in paths:
            continue
        if not path:
            return leaf
        *above, last = _keys(path)
        node = branch
        for key in above:
            node = node.setdefault(key, {})
        node[last] = leaf
    return branch


def _keys(path: Any) -> list[str]:
    """Return the names on a path, the slices of an array as a name of their own."""
    *above, last = path_names(path)
    array = without_part(last)
    return [*above, last] if array == last else [*above, array, last[len(array) :]]


def _check_state(plan: Plan, state: Any) -> None:
    """Require the state of this plan."""
    _checks.check_state_kind(WHO, state, PartitionState)
    names = {key.split("@")[0] for key in state.groups}
    if names != set(plan.members):
        required = f"the state must hold the groups {', '.join(sorted(plan.members))}"
        remedy = "carry it over with optlab.groups.carry_over(state, tx, params)"
        _checks.fail(WHO, required, ", ".join(sorted(names)), remedy)


def cohorts(plan: Plan, state: PartitionState) -> dict[str, set[str]]:
    """Return for each state in a partition's the paths of the parts that it is of.

    A group whose parameters joined at different times has several; the slots in the later ones tell
    whose they are.
    """
    result = {}
    for name, member in plan.members.items():
        left = set(member.parts)
        for key in sorted(key for key in state.groups if key.startswith(f"{name}@")):
            result[key] = _paths_with_slots(member.tx, state.groups[key], left)
            left -= result[key]
        result[name] = left
    return result


def _paths_with_slots(tx: Any, state: Any, paths: set[str]) -> set[str]:
    """Return those of the paths for which a state has slots."""
    found = {
        path_name(path)
        for rule, own in zip(tx.rules, states_of(tx, state), strict=True)
        for name in rule.slots
        for path, _ in jax.tree_util.tree_leaves_with_path(getattr(own, name))
    }
    # A slot may be a tree of arrays, whose names follow those of the parameter.
    return {path for path in paths if any(f"{own}/".startswith(f"{path}/") for own in found)}


def states_of(tx: Lifted, state: Any) -> tuple[Any, ...]:
    """Return the state of each rule of a lifted transformation."""
    return (state,) if len(tx.rules) == 1 else tuple(state)


def total_count(tx: Lifted, state: Any) -> Array:
    """Return the number of updates of the whole run, as the state of a group counts them."""
    number = counting_rule(tx.rules)
    own = states_of(tx, state)[number]
    count, joined = (_array(getattr(own, field)) for field in (tx.rules[number].counter, JOINED))
    return count + joined


def _array(leaf: Any) -> Array:
    """Return the array of a leaf, which Flax NNX wraps in a variable."""
    return jax.tree.leaves(leaf)[0]


def started(member: _Member, state: Any) -> Array:
    """Return whether the update that comes is one of those that the group takes part in."""
    return total_count(member.tx, state) >= member.start


def _kept_until(active: Array, member: _Member, new: Any, old: Any) -> Any:
    """Return the new state, or the old one with a longer wait if the group has not started."""
    kept = jax.tree.map(lambda x, y: jnp.where(active, x, y), new, old)
    states = list(states_of(member.tx, kept))
    number = counting_rule(member.tx.rules)
    joined = getattr(states[number], JOINED)
    waited = jax.tree.map(lambda x: jnp.where(active, x, optax.safe_increment(x)), joined)
    states[number] = states[number]._replace(**{JOINED: waited})
    return states[0] if len(states) == 1 else tuple(states)


def _partitions_in(state: Any) -> list[PartitionState]:
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, PartitionState))
    return [node for node in nodes if isinstance(node, PartitionState)]


def _without_idle(plan: Plan, gradients: Tree, state: Any) -> Tree:
    """Return gradients that are 0 where a group has not started, so that no norm counts them."""
    waiting = {name: member for name, member in plan.members.items() if member.start}
    if not waiting:
        return gradients
    found = _partitions_in(state)
    if len(found) != 1:
        required = "what stands around the groups must keep one state of them"
        _checks.fail(WHO, required, f"{len(found)}")
    active = {name: started(member, found[0].groups[name]) for name, member in waiting.items()}

    def without(path: Any, gradient: Any) -> Any:
        name = plan.group_of.get(path_name(path))
        if gradient is None or name not in active:
            return gradient
        return jnp.where(active[name], gradient, jnp.zeros_like(gradient))

    return jax.tree_util.tree_map_with_path(without, gradients, is_leaf=is_none)
