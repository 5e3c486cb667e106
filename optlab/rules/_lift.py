"""The lift: from arithmetic on one array to an Optax transformation on a tree.

A rule says what happens to one array (`Rule`). `lift` does the rest, once and for all rules:
walking trees, None and masked leaves, precision, counts, schedules, checks and the names in the
state. Rules lifted together run one after the other on each leaf without rounding in between. The
whole chain for a leaf is then a single expression, which the compiler can fuse into one pass over
memory. A rule that needs the whole tree (`across`) or that is `stacked` starts a new pass.

Conventions of every lifted transformation:

- Arithmetic is done in float32, or in float64 for double leaves. Each slot returns in its own type.
  An update returns in the gradient's type, or in the parameter's where that is wider.
- Where a gradient is None the parameter takes no part: no update, and its slots stay as they are.
- The state counts the updates made, once for all rules lifted together, up to 2³¹ − 1.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass, replace
from enum import Enum
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import as_array, compute_dtype, is_none, is_traced, update_dtype
from optlab._types import Array, DTypeLike, Tree
from optlab.rules._arithmetic import narrowed, round_to
from optlab.rules._hyperparams import named_tuple, settle, unpacked
from optlab.rules._leaf import AxesChoice, leaf_facts, path_name
from optlab.rules._leaves import (
    Leaves,
    gathered,
    placed_alike,
    placed_like,
    places_of,
    spread,
    whole,
)
from optlab.rules._patterns import AxesByPattern, check_all_match, sees_a_part
from optlab.rules._recorder import record
from optlab.rules._rule import JOINED, Rule, Slot, complex_of
from optlab.rules._state import RuleState

StaticOf = Callable[[int], tuple[Hashable, ...]]
"""What a rule knows of a leaf besides its arrays, by the leaf's index."""


class Lifted(optax.GradientTransformationExtraArgs):
    """A transformation that `lift` made, which knows its rules.

    Attributes:
        rules: the rules, in order.
        runners: what runs them on one leaf.
    """

    rules: tuple[Rule, ...] = ()
    runners: Any = None


def lift(*rules: Rule, axes: AxesChoice | None = None) -> optax.GradientTransformationExtraArgs:
    """Make one transformation of rules that act one after the other.

    Args:
        *rules: at least one; errors begin with the first one's `who`.
        axes: the axes of some leaves, as `Rule.axes` takes them, for all rules that ask for them.
            `optlab.describe` shows what comes of it.

    Returns:
        A transformation whose state is that of the rule, or the tuple of the rules' states.
        `update` takes any extra arguments, as Optax's chains pass them to all; a rule that observes
        them picks its own. A single rule without slots also accepts the empty state of Optax's
        transformations, or None, and returns it.

    Raises:
        ValueError: at init, a slot cannot be made, or `leaf` returns something else than an update
            and slots of the shapes and types that it received.
    """
    _name_of(rules)
    if axes is not None:
        rules = tuple(replace(rule, axes=axes) for rule in rules)
    return lifted(rules)


def lifted(rules: tuple[Rule, ...], joins: bool = False, like: "Lifted | None" = None) -> Lifted:
    """Make one transformation of rules that act one after the other.

    Args:
        rules: at least one.
        joins: whether the state holds how many updates were made before its leaves joined. The
            schedules of hyperparameters count these; everything else, such as the correction of a
            bias, counts the updates of the leaves themselves.
        like: a transformation that may have the same arithmetic, with other numbers.
    """
    who = _name_of(rules)
    _check_metrics(rules)
    counting = counting_rule(rules)
    types = [rule.state_type(i == counting, joins) for i, rule in enumerate(rules)]
    counter = rules[counting].counter
    segments = _segments(rules)
    needs_params = any(rule.needs_params for rule in rules)
    has_slots = any(rule.slots for rule in rules)

    run, outlined, together = runners = _runners(rules, like)
    settled_at_once = _settled_at_once(rules, runners)
    at_once = len(segments) == 1 and not rules[0].stacked
    at_once = at_once and all(rule.across is None and rule.observe is None for rule in rules)

    def init(params: Tree) -> Any:
        leaves = Leaves(who, "parameters", params)
        # Without slots nothing is made of the leaves, so that they may be anything.
        if has_slots:
            leaves.check()
        states, touched_by = [], []
        for rule, state in zip(rules, types, strict=True):
            touched = _touched(rule, leaves, params, leaves.arrays)
            if rule.complex == "refused":
                leaves.refuse_complex(touched)
            _check_leaves(rule, leaves, touched)
            static = _static(rule, leaves, leaves.arrays, params)
            slots = {name: _start(rule, name, leaves, touched, static) for name in rule.slots}
            _check_arithmetic(rule, leaves, slots, touched, static)
            touched_by.append(touched)
            values = {name: leaves.structure.unflatten(slots[name]) for name in slots}
            values |= {name: make() for name, make in rule.fields.items()}
            if rule.hyperparams:
                values["hyperparams"] = rule.settled.init()
            values |= {name: jnp.zeros((), jnp.int32) for name in _counts(state, counter)}
            states.append(state(**values))
        record(rules, leaves, touched_by)
        return tuple(states) if len(rules) > 1 else states[0]

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        if needs_params and params is None:
            _checks.fail(
                who,
                "update must be given the parameters",
                "params=None",
                "call update(gradients, state, params)",
            )
        leaves = Leaves(who, "gradients", updates)
        leaves.check()
        parameters = leaves.align("parameters", params)
        passed = state
        is_empty = len(rules) == 1 and not has_slots and _is_empty(state)
        if is_empty:
            state = _from_empty(rules[0], types[0], init)
        states = _states_of(who, types, state)
        count = getattr(states[counting], counter)
        joined = getattr(states[counting], JOINED) if joins else None
        traced = any(is_traced(leaf) for leaf in leaves.arrays)
        stored = [getattr(own, "hyperparams", None) for own in states]
        steps = [
            _Step(rule, own, leaves, params, parameters)
            for rule, own in zip(rules, states, strict=True)
        ]
        new = list(leaves.arrays)
        are_together, is_whole = places_of(
            array for index in leaves.present for array in (leaves.arrays[index], parameters[index])
        )
        run_some = together if are_together else None

        def prepared(index: int, segment: tuple[int, ...], final: bool) -> tuple[Any, ...]:
            """Return the static arguments of `run` for a leaf, its arrays and its type within."""
            gradient, parameter = leaves.arrays[index], parameters[index]
            numbers = tuple(number for number in segment if steps[number].touches(index))
            dtype = update_dtype(gradient, parameter) if final else None
            static = tuple(steps[number].static(index) for number in numbers)
            arrays = (new[index], parameter, [steps[number].slots(index) for number in numbers])
            return (numbers, static, dtype), arrays, _dtype_within(gradient, parameter)

        def waiting_of(
            indices: Sequence[int], segment: tuple[int, ...], final: bool
        ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            """Return the static arguments of `together`, and the arrays of its leaves."""
            layouts, all_arrays = [], []
            for index in indices:
                key, arrays, within = prepared(index, segment, final)
                layouts.append((key, tuple(segment.index(number) for number in key[0]), within))
                all_arrays.append(arrays if is_whole else placed_alike(*arrays))
            return tuple(layouts), tuple(all_arrays)

        def store(indices: Sequence[int], layouts: Any, results: Any) -> None:
            for index, ((numbers, *_), *_), (update, slots) in zip(
                indices, layouts, results, strict=True
            ):
                new[index] = update
                for number, own in zip(numbers, slots, strict=True):
                    steps[number].store(index, own, is_whole)

        settle_all = _settled if traced or settled_at_once is None else settled_at_once
        is_one_call = run_some is not None and at_once and len(leaves.present) <= _TOGETHER
        if is_one_call and settled_at_once is not None:
            # Nothing need be known before the leaves run, so that one call does everything.
            layouts, arrays = waiting_of(leaves.present, segments[0], final=True)
            next_count, settled, results = settled_at_once(
                rules, stored, count, joined, layouts, arrays
            )
            store(leaves.present, layouts, results)
        else:
            is_one_call = False
            next_count, settled, _ = settle_all(rules, stored, count, joined)
        for step, own in zip(steps, settled, strict=True):
            step.settle(own)
        for segment in () if is_one_call else segments:
            scalars = [
                steps[number].scalars(next_count, leaves, new, parameters, extra_args)
                for number in segment
            ]
            run_leaf = outlined if traced else run
            if traced and not all(_has_cheap_scalars(rules[number]) for number in segment):
                scalars = _computed_once(scalars, next_count)
            cast = cache(
                lambda dtype, scalars=scalars: jax.tree.map(partial(_cast, dtype=dtype), scalars)
            )
            final = segment is segments[-1]
            touched = [
                index
                for index in leaves.present
                if final or any(steps[number].touches(index) for number in segment)
            ]
            batches = defaultdict(list)
            if run_some is not None and not rules[segment[0]].stacked:
                for first in range(0, len(touched), _TOGETHER):
                    some = touched[first : first + _TOGETHER]
                    layouts, arrays = waiting_of(some, segment, final)
                    store(some, layouts, run_some(layouts, arrays, scalars))
                continue
            for index in touched:
                key, arrays, within = prepared(index, segment, final)
                numbers, shared = key[0], cast(within)
                shared = [shared[segment.index(number)] for number in numbers]
                if rules[segment[0]].stacked and numbers:
                    kept = steps[numbers[0]].batch_axes(index)
                    batches[key, _layout(arrays), kept].append((index, arrays, shared))
                    continue
                new[index], new_slots = run_leaf(*key, *placed_alike(*arrays), shared)
                for number, slots in zip(numbers, new_slots, strict=True):
                    steps[number].store(index, slots)
            places = _places(max(map(len, batches.values()), default=0), next_count, traced)
            for (key, _, kept), batch in batches.items():
                results = _run_stacked(run_leaf, key, batch, kept, places)
                for index, new[index], new_slots in results:
                    for number, slots in zip(key[0], new_slots, strict=True):
                        steps[number].store(index, slots)
        states = tuple(
            step.new_state({counter: next_count} if number == counting else {})
            for number, step in enumerate(steps)
        )
        new_state = states if len(rules) > 1 else states[0]
        return leaves.structure.unflatten(new), passed if is_empty else new_state

    transformation = Lifted(init, update)
    transformation.rules, transformation.runners = rules, runners
    return transformation


def _check_metrics(rules: Sequence[Rule]) -> None:
    """Require of the rules before one that needs their metric that they have one."""
    for place, rule in enumerate(rules):
        for before in rules[:place] if rule.needs_metric else ():
            if before.metric is None:
                _checks.fail(
                    rule.who,
                    "each rule before it must have a metric",
                    f"{before.kind or before.who}, which has none",
                    "use sgd, adagrad, rmsprop, adam or adamw, or declare the metric of your Rule",
                )
    needing = [place for place, rule in enumerate(rules) if rule.needs_metric]
    if needing and _segments(rules)[0][-1] < needing[-1]:
        _checks.fail(
            rules[needing[-1]].who,
            "the rules before it must run in one pass over the leaves",
            f"{len(_segments(rules))} passes",
            "put a rule with across, stacked or complex='whole' into a transformation of its own",
        )


def counting_rule(rules: Sequence[Rule]) -> int:
    """Return the number of the rule whose state counts the updates."""
    return next((i for i, rule in enumerate(rules) if rule.counter == "count"), 0)


def _counts(state: Any, counter: str) -> list[str]:
    """Return the fields of a state that count updates."""
    return [name for name in (counter, JOINED) if name in state._fields]


class _Runners(NamedTuple):
    """What runs rules on leaves.

    All transformations share them that differ in the numbers of their hyperparameters alone, such
    as those of parameter groups.

    Attributes:
        run: runs them on one leaf.
        outlined: the same as a function that JAX traces apart, once for each shape.
        together: runs them on some leaves, compiled, for updates outside of `jit`; None where no
            other transformation could share what is compiled. Some programs build theirs anew for
            each update.
    """

    run: Callable[..., Any]
    outlined: Callable[..., Any]
    together: Callable[..., Any] | None


_runs: dict[Hashable, _Runners] = {}
"""What runs a leaf, by the arithmetic of the rules."""

_TOGETHER = 16
"""How many leaves run in one call outside of `jit`. A call costs more than small leaves do; one for
a thousand leaves would take long to compile."""


def _runners(rules: tuple[Rule, ...], like: Lifted | None) -> _Runners:
    """Return what runs the rules, from before where there has been the same arithmetic."""
    if like is not None and [rule.leaf for rule in like.rules] == [rule.leaf for rule in rules]:
        return like.runners
    key = tuple((_identity(rule.leaf), rule.who, rule.complex, rule.after_update) for rule in rules)
    if any(rule.needs_metric for rule in rules):
        key += tuple((_identity(rule.metric), str(rule.needs_metric)) for rule in rules)
    if all(identity for identity, *_ in key) and key in _runs:
        return _runs[key]

    def run(numbers: tuple[int, ...], *args: Any) -> tuple[Array, list[Any]]:
        return _run_leaf([rules[number] for number in numbers], *args)

    outlined = jax.jit(run, static_argnums=(0, 1, 2))
    if not all(identity for identity, *_ in key) or len(_runs) >= 1000:
        return _Runners(run, outlined, None)

    def run_together(layouts: Any, arrays: Any, scalars: Sequence[Any]) -> list[Any]:
        results = []
        for (leaf_key, places, dtype), own in zip(layouts, arrays, strict=True):
            shared = [jax.tree.map(partial(_cast, dtype=dtype), scalars[i]) for i in places]
            results.append(run(*leaf_key, *own, shared))
        return results

    _runs[key] = _Runners(run, outlined, jax.jit(run_together, static_argnums=0))
    return _runs[key]


class _Settled(NamedTuple):
    """The numbers of one rule in one update.

    Attributes:
        in_force: its hyperparameters, with those that it reads of rules before it, for `across` or
            `observe`; None where the rule has neither.
        stored: the array for the new state; None without hyperparameters.
        scalars: what `once` returned; None where `across` or `observe` stands in its place.
    """

    in_force: Any
    stored: Array | None
    scalars: Any


def _settled(
    rules: Sequence[Rule],
    stored: Sequence[Array | None],
    count: Array,
    joined: Array | None,
    inputs: Sequence[Any] | None = None,
) -> tuple[Array, list[_Settled], None]:
    """Return the count after the update, the numbers of each rule that need no leaves, and None."""
    next_count = jnp.asarray(optax.safe_increment(count))
    before: dict[str, Any] = {}
    settled = []
    for index, (rule, own) in enumerate(zip(rules, stored, strict=True)):
        if inputs is None or own is None:
            in_force, new = rule.settled.step(count, own, 0 if joined is None else joined)
        else:
            in_force, new = settle(rule.settled.layout, count, own, inputs[index])
        before |= in_force._asdict()
        if rule.reads:
            in_force = _with_read(rule, in_force, before)
        needs_more = rule.observe is not None or rule.across is not None
        # Whatever a compiled function returns costs time, so nothing is returned twice.
        settled.append(
            _Settled(in_force, new, None)
            if needs_more
            else _Settled(None, new, rule.once(in_force, next_count))
        )
    return next_count, settled, None


_settlers: dict[Hashable, Callable[..., Any]] = {}
"""`_settled` compiled, by what the rules compute of their hyperparameters."""


def _settled_at_once(rules: tuple[Rule, ...], runners: _Runners) -> Callable[..., Any] | None:
    """Return `_settled` compiled, for updates outside of `jit`; None where nothing can share it.

    With the arguments of `_Runners.together` it also runs leaves, and returns what they become in
    place of None. What is compiled must serve all transformations of the same rules. Some programs
    build theirs anew for each update, with other numbers.
    """
    key = tuple(
        (
            _identity(rule.once),
            rule.settled.layout,
            rule.settled.packing,
            tuple(rule.reads),
            rule.across is None and rule.observe is None,
        )
        for rule in rules
    )
    if not all(identity for identity, *_ in key):
        return None
    key = (*key, runners.together)
    if key not in _settlers:
        if len(_settlers) >= 1000:
            return None

        @partial(jax.jit, static_argnums=0)
        def compiled(
            layouts: Any, arrays: Any, stored: Any, count: Array, joined: Any, packed: Any
        ) -> Any:
            inputs = [
                () if own is None else unpacked(r.settled.layout, r.settled.packing, *numbers)
                for r, own, numbers in zip(rules, stored, packed, strict=True)
            ]
            next_count, settled, _ = _settled(rules, stored, count, joined, inputs)
            if layouts is None or runners.together is None:
                return next_count, settled, None
            results = runners.together(layouts, arrays, [own.scalars for own in settled])
            return next_count, [own._replace(scalars=None) for own in settled], results

        _settlers[key] = compiled
    at_once = _settlers[key]

    def run(
        rules: Sequence[Rule],
        stored: Any,
        count: Array,
        joined: Any,
        layouts: Any = None,
        arrays: Any = None,
    ) -> Any:
        packed = [
            None if own is None else rule.settled.packed(count, 0 if joined is None else joined)
            for rule, own in zip(rules, stored, strict=True)
        ]
        return at_once(layouts, arrays, stored, count, joined, packed)

    return run


def _with_read(rule: Rule, in_force: Any, before: Mapping[str, Any]) -> Any:
    """Return a rule's hyperparameters, and behind them those that it reads of rules before it."""
    for name in rule.reads:
        if name not in before:
            names = ", ".join(before) or "no such name"
            _checks.fail(
                rule.who,
                f"{name}, which the rule reads, must be a hyperparameter of a rule before "
                "it in the same lift",
                names,
            )
    names = (*in_force._fields, *rule.reads)
    read = (before[name] for name in rule.reads)
    return named_tuple("Hyperparams", names)(*in_force, *read)


def _name_of(rules: Sequence[Rule]) -> str:
    """Return the name that errors begin with; require rules."""
    for rule in rules:
        if not isinstance(rule, Rule):
            got = type(rule).__name__
            _checks.fail("lift", "its arguments must be rules", got, "pass Rule(...), one by one")
    if not rules:
        _checks.fail("lift", "there must be at least one rule", "none")
    return rules[0].who


def _segments(rules: Sequence[Rule]) -> list[tuple[int, ...]]:
    """Return the rules by number, in groups that run in one pass over the leaves."""
    segments: list[tuple[int, ...]] = []
    for number, rule in enumerate(rules):
        before = rules[number - 1]
        together = (rule.stacked, rule.complex == "whole") == (
            before.stacked,
            before.complex == "whole",
        )
        if number and rule.across is None and together:
            segments[-1] += (number,)
        else:
            segments.append((number,))
    return segments


def _touched(rule: Rule, leaves: Leaves, params: Tree | None, arrays: Sequence[Any]) -> list[bool]:
    """Return for each leaf whether the rule touches it."""
    touched = leaves.mask(rule.mask, params)
    if rule.where is not None:
        for index in leaves.present:
            if touched[index]:
                facts = leaf_facts(rule.who, leaves.paths[index], arrays[index], rule.axes_of)
                touched[index] = rule.where(facts)
    return touched


def _check_leaves(rule: Rule, leaves: Leaves, touched: list[bool]) -> None:
    """Require that patterns match, and let the rule say what it thinks of its leaves."""
    if isinstance(rule.axes_of, AxesByPattern):
        paths = [path_name(leaves.paths[index]) for index in leaves.present]
        check_all_match(rule.who, tuple(rule.axes_of.choices), paths)
    if rule.check_leaves is not None and leaves.present:
        facts = {
            index: leaf_facts(rule.who, leaves.paths[index], leaves.arrays[index], rule.axes_of)
            for index in leaves.present
        }
        own = [leaf for index, leaf in facts.items() if touched[index]]
        # A group of parameters may have none that the rule is for, such as matrices.
        if own or not sees_a_part():
            rule.check_leaves(own, list(facts.values()))


def _start(
    rule: Rule, name: str, leaves: Leaves, touched: list[bool], static: StaticOf
) -> list[Any]:
    """Return a slot of all leaves before the first update; `MaskedNode` where there is none."""
    slots: list[Any] = list(leaves.arrays)
    for index in leaves.present:
        slots[index] = optax.MaskedNode()
        if touched[index]:
            param, facts = leaves.arrays[index], static(index)
            try:
                slot = rule.init_leaf(name, param, facts)
            except Exception as error:
                in_parts = _is_complex(param) and rule.complex == "parts"
                _checks.fail(
                    rule.who,
                    f"slots[{name!r}] must make a slot for every parameter",
                    f"{type(error).__name__}: {error} for {leaves.describe(index)}",
                    "return floating-point arrays for the real and the imaginary part, or declare "
                    "the rule with complex='whole'"
                    if in_parts
                    else "return an array, a tree of arrays, or None for no slot",
                )
            if slot is not None:
                slots[index] = slot
            _check_slot(rule, name, slots[index], leaves.describe(index))
    return slots


def _check_slot(rule: Rule, name: str, slot: Any, where: str) -> None:
    """Require a tree of arrays."""
    for leaf in jax.tree.leaves(slot, is_leaf=is_none):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            _checks.fail(
                rule.who,
                f"slots[{name!r}] must make arrays",
                f"{type(leaf).__name__} for {where}",
                "return an array, a tree of arrays, or None for no slot",
            )


def _static(rule: Rule, leaves: Leaves, arrays: Sequence[Any], params: Tree | None) -> StaticOf:
    """Return what a rule knows of each leaf besides its arrays, as arguments for `leaf`."""
    make = rule.static
    if make is None:
        return lambda index: ()
    passes = {name: leaves.mask(mask, params) for name, mask in rule.masks.items()}

    def static_of(index: int) -> tuple[Hashable, ...]:
        masks = frozenset(name for name, through in passes.items() if through[index])
        facts = leaf_facts(rule.who, leaves.paths[index], arrays[index], rule.axes_of, masks)
        static = make(facts)
        try:
            hash(static)
        except TypeError:
            _checks.fail(
                rule.who,
                "static must return a hashable value",
                f"{type(static).__name__} for {facts.path}",
                "return a tuple in place of a list",
            )
        return (static,)

    return static_of


_sound: set[Hashable] = set()
"""Rules and shapes whose arithmetic has been checked in this process."""


def _check_arithmetic(
    rule: Rule,
    leaves: Leaves,
    slots: Mapping[str, list[Any]],
    touched: list[bool],
    static_of: StaticOf,
) -> None:
    """Require of `leaf` that it returns what it must, without computing anything.

    Without slots one array is enough, since all that changes from leaf to leaf is the shape.
    """
    if rule.reads or rule.observe is not None:
        return  # Only an update knows what these rules receive.
    indices = [index for index in leaves.present if touched[index]]
    if not slots:
        indices = [index for index in indices if _is_inexact(leaves.arrays[index])][:1]
    code = _identity((rule.leaf, rule.once, rule.across))
    for index in indices:
        param = leaves.arrays[index]
        static = static_of(index)
        own = {name: slots[name][index] for name in slots}
        key = (
            code,
            tuple(slots),
            static,
            _layout((param, own)),
            jax.dtypes.canonicalize_dtype(float),
        )
        if code is not None and key in _sound:
            continue

        def one_update(
            param: Array, own: dict[str, Any], static: tuple[Hashable, ...] = static
        ) -> Any:
            zero = jnp.zeros((), jnp.int32)
            stored = rule.settled.init() if rule.hyperparams else None
            h, _ = rule.settled.step(zero, stored)
            shared = (
                rule.once(h, zero + 1)
                if rule.across is None
                else rule.across(h, zero + 1, [param], [param])
            )
            scalars = jax.tree.map(partial(_cast, dtype=_dtype_within(param, param)), shared)
            slots = rule.slot_type(**own)
            parameter = param if rule.needs_params else None
            return _run_leaf([rule], (static,), None, param, parameter, [slots], [scalars])

        try:
            jax.eval_shape(one_update, _abstract(param), _abstract(own))
        except (TypeError, AttributeError) as error:
            unread = "" if rule.needs_params else ", or set needs_params where it reads p"
            _checks.fail(
                rule.who,
                f"leaf, and once or across, must run on {leaves.describe(index)}",
                f"{type(error).__name__}: {error}",
                f"compare their arguments with those of optlab.rules.Rule{unread}",
            )
        if len(_sound) < 10_000:  # so that a long process does not gather rules for ever
            _sound.add(key)


def _identity(x: Any, depth: int = 4) -> Hashable:
    """Return what decides what a function does: its code, and what stands around it.

    None where something else than functions, plain values and groups of them stands around it.
    """
    if x is None or isinstance(x, bool | int | float | str | type | Enum | BuiltinFunctionType):
        return type(x), x
    if not depth:
        return None
    kind: Any = getattr(x, "__code__", tuple)
    if isinstance(x, tuple):
        parts = x
    elif isinstance(x, dict):
        kind, parts = dict, tuple(x.items())
    elif is_dataclass(x) and type(x).__hash__ is not object.__hash__:  # equal where its fields are
        kind, parts = type(x), tuple(getattr(x, own.name) for own in dataclass_fields(x))
    elif isinstance(x, FunctionType):
        cells = []
        for cell in x.__closure__ or ():
            with contextlib.suppress(ValueError):  # a name that has no value yet
                cells.append(cell.cell_contents)
        defaults = *(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()
        parts = *defaults, *cells
    else:
        return None
    around = [_identity(part, depth - 1) for part in parts]
    if None in around:
        return None
    return kind, *around


def _is_inexact(leaf: Any) -> bool:
    """Whether a leaf is an array of floating-point or complex numbers."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _abstract(tree: Tree) -> Tree:
    """Return the shapes and types of a tree, without shardings, which arithmetic does not need."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _layout(tree: Tree) -> Hashable:
    """Return what leaves that are stacked must have in common: structure, shapes, types."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(
        (leaf.shape, str(leaf.dtype), str(getattr(jax.typeof(leaf), "sharding", None)))
        if isinstance(leaf, jax.Array)
        else (leaf.shape, str(leaf.dtype))
        for leaf in leaves
    )


def _is_empty(state: Any) -> bool:
    """Whether a state is that of one of Optax's transformations that keep none."""
    return state is None or (isinstance(state, tuple) and not state)


def _from_empty(rule: Rule, state: type, init: Callable[[Tree], Any]) -> Any:
    """Return the state of a rule that was called with an empty one."""
    for name, parameter in rule.hyperparams.items():
        if callable(parameter.value):
            _checks.fail(
                rule.who,
                f"update must be given the state that init returned, since {name} is a schedule",
                "an empty state",
                "call init(params) and pass its state on",
            )
    if rule.fields:
        _checks.fail_state(rule.who, state.__name__, None)
    return init(())


def _states_of(who: str, types: Sequence[type], state: Any) -> tuple[Any, ...]:
    """Return the state of each rule, checked."""
    if len(types) == 1:
        states = (state,)
    elif isinstance(state, tuple) and len(state) == len(types):
        states = tuple(state)
    else:
        names = ", ".join(kind.__name__ for kind in types)
        _checks.fail_state(who, f"tuple ({names})", state)
    for kind, own in zip(types, states, strict=True):
        if not isinstance(own, RuleState) or own.kind != kind.kind:
            _checks.fail_state(who, kind.__name__, own)
        if _contents(type(own)) != _contents(kind):
            _checks.fail(
                who,
                f"the state must hold {', '.join(_contents(kind))}",
                ", ".join(_contents(type(own))),
                "call init of this transformation, with the same options",
            )
    return states


@cache
def _contents(state: type) -> tuple[str, ...]:
    """Return the names of a state's fields and of its hyperparameters."""
    products = [d.name for d in state.declarations if d.has_product]
    return (
        *(name for name in state._fields if name != "hyperparams"),
        *(declaration.name for declaration in state.declarations),
        *(f"the product of {name}" for name in products),
    )


class _Step:
    """One rule in one update: its hyperparameters in force, its masks, and its slots by leaf.

    Facts and slots are those of the parameter, or of the gradient where `update` got no parameters.
    """

    def __init__(
        self,
        rule: Rule,
        state: Any,
        leaves: Leaves,
        params: Tree | None,
        parameters: Sequence[Any],
    ):
        self._arrays = leaves.arrays if params is None else parameters
        self.static = _static(rule, leaves, self._arrays, params)
        self._rule, self._leaves, self._state = rule, leaves, state
        self._settled = _Settled(None, None, None)
        self._touched = _touched(rule, leaves, params, self._arrays)
        self._slots = {name: self._aligned(name, getattr(state, name)) for name in rule.slots}

    def settle(self, numbers: _Settled) -> None:
        """Take the numbers of this update."""
        self._settled = numbers
        if numbers.stored is not None:
            self._state = self._state._replace(hyperparams=numbers.stored)

    def _aligned(self, name: str, tree: Tree) -> list[Any]:
        """Return a slot by leaf, checked against what `init` makes of such a leaf."""
        what = f"state's {name}"
        start = self._rule.slots[name]
        if isinstance(start, Slot):
            return self._leaves.align(what, tree, self._touched)
        parts = self._leaves.beside(what, tree)
        for index in self._leaves.present:
            if self._touched[index]:
                array = self._arrays[index]
                layout = self._rule.slot_layout(name, array.shape, array.dtype, self.static(index))
                slot = self._leaves.slot(index, what, layout, parts[index])
                parts[index] = jax.tree.map(as_array, slot)
        return parts

    def batch_axes(self, index: int) -> tuple[int, ...]:
        """Return the axes along which a leaf of a stacked rule may stay sharded."""
        if self._rule.static is None:
            return ()
        path = self._leaves.paths[index]
        return leaf_facts(self._rule.who, path, self._arrays[index], self._rule.axes_of).axes.batch

    def scalars(
        self,
        count: Array,
        leaves: Leaves,
        updates: Sequence[Any],
        parameters: Sequence[Any],
        extra_args: Mapping[str, Any],
    ) -> Any:
        """Return the numbers that all leaves share."""
        rule = self._rule
        if rule.observe is not None:
            self._state, scalars = rule.observe(self._state, self._settled.in_force, extra_args)
            return scalars
        if rule.across is not None:
            present = [index for index in leaves.present if self.touches(index)]
            return rule.across(
                self._settled.in_force,
                count,
                [updates[index] for index in present],
                [parameters[index] for index in present],
            )
        return self._settled.scalars

    def touches(self, index: int) -> bool:
        return self._touched[index]

    def slots(self, index: int) -> Any:
        return self._rule.slot_type(*(leaves[index] for leaves in self._slots.values()))

    def store(self, index: int, new: Any, is_whole: bool = False) -> None:
        for leaves, slot in zip(self._slots.values(), new, strict=True):
            leaves[index] = slot if is_whole else placed_like(slot, leaves[index])

    def new_state(self, counts: Mapping[str, Array]) -> Any:
        structure = self._leaves.structure
        slots = {name: structure.unflatten(leaves) for name, leaves in self._slots.items()}
        return self._state._replace(**slots, **counts)


def _has_cheap_scalars(rule: Rule) -> bool:
    """Whether a rule's scalars are its hyperparameters, or simple arithmetic on them.

    `once` then names nothing but them, and calls no function.
    """
    known = {*rule.hyperparams, "complement", "value"}
    code = getattr(rule.once, "__code__", None)
    return (
        code is not None
        and known.issuperset(code.co_names)
        and rule.across is None
        and rule.observe is None
        and not any(
            kind.is_scheduled or kind.declared.bias_corrected for kind in rule.settled.layout
        )
    )


def _computed_once(scalars: Sequence[Any], count: Array) -> Sequence[Any]:
    """Keep XLA from computing the scalars anew in the kernels of every leaf.

    XLA's CPU backend would recompute them in every leaf's kernel, which can double the time of
    compilation. It does not do so across a conditional, so they go through one whose other branch
    is never taken (no count is negative).
    """

    def from_branch(scalars: Sequence[Any], count: Array) -> Sequence[Any]:
        return jax.lax.cond(
            count >= 0, lambda x: x, lambda x: jax.tree.map(jnp.zeros_like, x), scalars
        )

    return jax.lax.platform_dependent(
        scalars, count, cpu=from_branch, default=lambda scalars, count: scalars
    )


def _cast(x: Any, dtype: DTypeLike) -> Array:
    """Return a shared number in the type that a leaf is computed in."""
    x = as_array(x)
    is_number = jnp.issubdtype(x.dtype, jnp.number) and x.dtype != dtype
    return x.astype(dtype) if is_number else x


def _dtype_within(gradient: Array, parameter: Array | None) -> jnp.dtype:
    """Return the type that a leaf is computed in."""
    return compute_dtype(gradient.dtype, gradient.dtype if parameter is None else parameter.dtype)


def _complex_dtype(real: DTypeLike) -> jnp.dtype:
    """Return the complex type whose parts are float32 or float64."""
    return jnp.dtype(jnp.complex128 if jnp.finfo(real).bits == 64 else jnp.complex64)


def _run_stacked(
    run: Callable[..., Any],
    key: tuple[Any, ...],
    batch: list[tuple[int, Any, Any]],
    kept: tuple[int, ...],
    places: Sequence[Any],
) -> list[tuple[int, Array, list[Any]]]:
    """Run leaves of one layout as one batch; return the index, update and slots of each.

    On a mesh with explicit axes each device computes some of the batch, on arrays that are whole
    but for the axes in `kept`; the results return to where the leaves were.
    """
    _, (gradient, _, slots), scalars = batch[0]
    before = gradient, list(slots)
    members = [placed_alike(*arrays) for _, arrays, _ in batch]
    if len(batch) == 1:
        results = run(*key, *whole(members[0], kept), scalars)
        return [(batch[0][0], *placed_like(results, before))]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *members)
    shared_out = spread(stacked, tuple(axis + 1 for axis in kept))
    results = jax.vmap(lambda *arrays: run(*key, *arrays, scalars))(*shared_out)
    results = gathered(results, before, len(batch))
    return [
        (index, *jax.tree.map(lambda x, place=place: _at(x, place), results))
        for place, (index, _, _) in zip(places, batch, strict=False)
    ]


def _places(count: int, number: Array, traced: bool) -> Sequence[Any]:
    """Return 0, 1, …, at which the members of a batch are.

    XLA's CPU backend compiles a kernel for each constant place. From a conditional, whose other
    branch is never taken, the places come as numbers that it does not know; one kernel then serves
    all leaves of a shape.
    """
    if count < 2 or not traced:
        return range(count)

    def from_branch(number: Array) -> list[Array]:
        return jax.lax.cond(
            number >= 0,
            lambda: [jnp.int32(place) for place in range(count)],
            lambda: [jnp.int32(0)] * count,
        )

    return jax.lax.platform_dependent(
        number, cpu=from_branch, default=lambda number: [jnp.int32(i) for i in range(count)]
    )


def _at(stack: Array, place: Any) -> Array:
    """Return one member of a stack."""
    if isinstance(place, int):
        return stack[place]
    return jax.lax.dynamic_index_in_dim(stack, place, keepdims=False, allow_negative_indices=False)


def _run_leaf(
    rules: Sequence[Rule],
    static: Sequence[tuple[Hashable, ...]],
    out_dtype: DTypeLike | None,
    gradient: Array,
    parameter: Array | None,
    slots: Sequence[Any],
    scalars: Sequence[Any],
) -> tuple[Array, list[Any]]:
    """Run rules on one leaf; return its update, and its new slots of each rule.

    Args:
        rules: those that touch the leaf.
        static: what each of them knows of it besides its arrays.
        out_dtype: the type of the update; None for the one that is computed in.
        gradient: what enters the first rule.
        parameter: the parameter, or None.
        slots: a NamedTuple for each rule.
        scalars: what each rule computed for all leaves.
    """
    dtype = _dtype_within(gradient, parameter)
    wants_metric = any(rule.needs_metric for rule in rules)

    def run(part: Callable[[Array], Array]) -> tuple[Array, list[Any]]:
        def take(x: Array) -> Array:
            if not jnp.issubdtype(x.dtype, jnp.inexact):
                return x
            x = part(x)
            return x.astype(_complex_dtype(dtype) if _is_complex(x) else dtype)

        update, new_slots = take(gradient), []
        metric: Any = jnp.ones((), dtype)
        for rule, facts, old, own in zip(rules, static, slots, scalars, strict=True):
            p = parameter
            if p is not None:
                p = take(p)
                if rule.after_update and parameter is not None:
                    p = round_to(p + round_to(update, out_dtype or gradient.dtype), parameter.dtype)
            taken = type(old)(*(None if _is_masked(x) else jax.tree.map(take, x) for x in old))
            if rule.needs_metric:
                own = own, metric
            result = rule.leaf(update, taken, own, p, *facts)
            update, new = _checked_result(rule, result, update, taken)
            if rule.metric is not None and wants_metric:
                metric = metric * rule.metric(new, own, *facts)
            new_slots.append(type(old)(*(optax.MaskedNode() if x is None else x for x in new)))
        return update, new_slots

    if _is_complex(gradient) and all(rule.complex != "whole" for rule in rules):
        update, new_slots = jax.tree.map(complex_of, run(jnp.real), run(jnp.imag))
    else:
        update, new_slots = run(lambda x: x)
    new_slots = jax.tree.map(lambda new, old: narrowed(new, old.dtype), new_slots, list(slots))
    return update if out_dtype is None else update.astype(out_dtype), new_slots


def _is_masked(slot: Any) -> bool:
    """Whether a slot stands for none; its leaf receives None."""
    return isinstance(slot, optax.MaskedNode)


def _is_complex(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.complexfloating)


def _checked_result(rule: Rule, result: Any, update: Array, slots: Any) -> tuple[Array, Any]:
    """Return what `leaf` returned as an update and slots; require that they are as those before."""
    if not isinstance(result, tuple) or len(result) != 2:
        _checks.fail(
            rule.who,
            "leaf must return the pair (update, slots)",
            type(result).__name__,
            "return update, slots",
        )
    new_update, new_slots = result
    _check_like(rule, "the update", update, new_update)
    if not isinstance(new_slots, tuple | list) or len(new_slots) != len(slots):
        number = len(new_slots) if isinstance(new_slots, tuple | list) else repr(new_slots)
        _checks.fail(
            rule.who,
            f"leaf must return a tuple of its {len(slots)} slots",
            f"{number}",
            f"return update, ({', '.join(slots._fields)},)" if slots else "return update, ()",
        )
    for name, old, new in zip(slots._fields, slots, new_slots, strict=True):
        if jax.tree.structure(new) != jax.tree.structure(old):
            _checks.fail(
                rule.who,
                f"leaf must return the slot {name} in its structure, {jax.tree.structure(old)}",
                f"{jax.tree.structure(new)}",
                "return the slots in the order of their declaration",
            )
        for old_leaf, new_leaf in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
            _check_like(rule, f"the slot {name}", old_leaf, new_leaf)
    return jnp.asarray(new_update), type(slots)(*new_slots)


def _check_like(rule: Rule, what: str, old: Array, new: Any) -> None:
    """Require an array of the shape and the kind of type that came."""
    if not isinstance(new, jax.Array):
        _checks.fail(
            rule.who, f"leaf must return {what} as an array", type(new).__name__, "use jax.numpy"
        )
    same_kind = (
        new.dtype == old.dtype
        if not jnp.issubdtype(old.dtype, jnp.inexact)
        else jnp.issubdtype(new.dtype, jnp.inexact) and _is_complex(new) == _is_complex(old)
    )
    if new.shape != old.shape or not same_kind:
        _checks.fail(
            rule.who,
            f"leaf must return {what} with the shape {old.shape} and the type {old.dtype}",
            f"{new.shape} and {new.dtype}",
            "return it in the shape and the type of g"
            if what == "the update"
            else "declare a slot of another shape by a function in slots",
        )
