"""The lift: from arithmetic on one array to an Optax transformation on a tree.

A rule says what happens to one array (`Rule`). `lift` does the rest, once and for all rules:
walking trees, None and masked leaves, precision, counts, schedules, checks and the naming of state.
Rules lifted together run one after the other on each leaf without rounding in between, so that the
whole chain for a leaf is a single expression that the compiler can fuse into one pass over memory.

Conventions of every lifted transformation:

- Arithmetic is done in float32, or float64 for double leaves; the updates return in the gradients'
  type and each slot in its own.
- A complex leaf counts as two real ones, its real and its imaginary part (as in PyTorch).
- Where a gradient is None the parameter takes no part: no update, and its slots stay as they are.
- `count` is the number of updates made; it stops at 2³¹ − 1.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._arithmetic import narrowed, round_to
from optlab._hyperparams import Hyperparams
from optlab._tree import as_array, compute_dtype, is_none
from optlab._types import Array, ArrayLike, DTypeLike, Mask, Tree

InitSlot = Callable[[Array], Array]


def slot(value: ArrayLike = 0.0, dtype: DTypeLike | None = None) -> InitSlot:
    """Return how a slot starts: filled with `value`, in `dtype` or at least float32.

    For a complex parameter both parts are filled, and `dtype`, a real type, has no say.
    """

    def start(param: Array) -> Array:
        if jnp.iscomplexobj(param):
            real = jnp.full_like(param.real, value, dtype=compute_dtype(param.dtype))
            return jax.lax.complex(real, real)
        return jnp.full_like(param, value, dtype=dtype or compute_dtype(param.dtype))

    return start


@dataclass(frozen=True)
class Rule:
    """One rule, written for one array.

    Attributes:
        state: the NamedTuple of its state: `count`, a field for each slot, `hyperparams`, `memory`.
        hyperparams: its hyperparameters.
        leaf: the arithmetic, (update, slots, scalars, parameter) → (update, slots); `slots` is a
            tuple in the order of `slots` below, `parameter` is None where none was given. It is
            traced once for each shape, so that what changes must come through `scalars`.
        slots: for each field of the state that is a tree like the parameters', how it starts.
        prepare: what is computed once for the whole tree, (hyperparameters in force, gradients,
            number of this update from 1) → the `scalars` that every leaf receives. The gradients
            are those that enter the first of the rules lifted together.
        reads: names of hyperparameters that belong to a rule before this one, of those lifted
            together; `prepare` gets them behind its own.
        scalars: how further fields of its state start, scalars that are not hyperparameters.
        observe: in place of `prepare` for a rule that reacts to the run: (state, hyperparameters in
            force, extra arguments of `update`) → (state, the `scalars` that every leaf receives).
        needs_params: whether `update` must be given the parameters.
        after_update: whether `leaf` is given the parameter as it will be after the update so far.
        mask: which leaves the rule touches; None for all.
    """

    state: type
    hyperparams: Hyperparams
    leaf: Callable[[Array, tuple[Array, ...], Any, Array | None], tuple[Array, tuple[Array, ...]]]
    slots: Mapping[str, InitSlot] = field(default_factory=dict)
    prepare: Callable[[Any, Sequence[Array], Array], Any] = lambda h, gradients, t: h
    reads: Sequence[str] = ()
    scalars: Callable[[], Mapping[str, Array]] = dict
    observe: Callable[[Any, Any, Mapping[str, Any]], tuple[Any, Any]] | None = None
    needs_params: bool = False
    after_update: bool = False
    mask: Mask | None = None

    @property
    def who(self) -> str:
        """The public name that errors begin with."""
        return self.hyperparams.who

    def check_mask(self, params: Tree) -> None:
        """Require a mask that fits the parameters; Optax also inits with trees of no leaves."""
        if self.mask is not None and jax.tree.leaves(params):
            _Gradients(self.who, params).align_mask(self.mask, params)

    def check_state(self, state: Any) -> None:
        """Require a state that `init` of this rule could have returned."""
        names = {"hyperparams": self.hyperparams.parameters, "slots": self.slots}
        _checks.check_state(self.who, state, self.state, names)

    def init(self, params: Tree) -> Any:
        """Return the state before the first update."""
        values, memory = self.hyperparams.init()
        slots = {name: jax.tree.map(start, params) for name, start in self.slots.items()}
        return self.state(
            count=jnp.zeros((), jnp.int32),
            hyperparams=values,
            memory=memory,
            **self.scalars(),
            **slots,
        )


def lift(*rules: Rule) -> optax.GradientTransformationExtraArgs:
    """Make one transformation of rules that act one after the other.

    Args:
        *rules: at least one, all of the same `who`.

    Returns:
        A transformation whose state is that of the rule, or the tuple of the rules' states.
        `update` takes any extra arguments, as Optax's chains pass them to all; a rule that observes
        them picks its own.
    """
    who = rules[0].who
    needs_params = any(rule.needs_params for rule in rules)
    outlined = jax.jit(partial(_run_leaf, rules), static_argnums=0)  # traced once for each shape

    def init(params: Tree) -> Any:
        params = jax.tree.map(as_array, params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            _checks.check_inexact(who, "parameters", path, leaf)
        for rule in rules:
            rule.check_mask(params)
        states = tuple(rule.init(params) for rule in rules)
        return states if len(rules) > 1 else states[0]

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
        gradients = _Gradients(who, updates)
        states = _states_of(who, rules, state)
        in_force: dict[str, Any] = {}
        steps = [
            _Step(rule, old, gradients, params, extra_args, in_force)
            for rule, old in zip(rules, states, strict=True)
        ]
        scalars = [step.prepared for step in steps]
        run_leaf = partial(_run_leaf, rules)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in gradients.leaves):
            scalars, run_leaf = _computed_once(scalars, steps[0].count), outlined
        cast = cache(lambda dtype: jax.tree.map(partial(_cast, dtype=dtype), scalars))
        parameters = gradients.align("parameters", params)
        new = list(gradients.leaves)
        for index in gradients.present:
            gradient, parameter = gradients.leaves[index], parameters[index]
            own_scalars = cast(_dtype_within(gradient, parameter))
            touching = tuple(number for number, step in enumerate(steps) if step.touches(index))
            new[index], slots = run_leaf(
                touching,
                gradient,
                parameter,
                [steps[number].slots(index) for number in touching],
                [own_scalars[number] for number in touching],
            )
            for number, own in zip(touching, slots, strict=True):
                steps[number].store(index, own)
        states = tuple(step.new_state() for step in steps)
        return gradients.structure.unflatten(new), states if len(rules) > 1 else states[0]

    return optax.GradientTransformationExtraArgs(init, update)


def _states_of(who: str, rules: Sequence[Rule], state: Any) -> tuple[Any, ...]:
    """Return the state of each rule, checked."""
    states = state if len(rules) > 1 else (state,)
    if not isinstance(states, tuple) or len(states) != len(rules):
        _checks.fail(
            who,
            f"update must be given the state that init returned, a tuple of {len(rules)}",
            type(state).__name__,
            "call update(gradients, state, params)",
        )
    for rule, own in zip(rules, states, strict=True):
        rule.check_state(own)
    return states


class _Gradients:
    """The leaves of the gradients, to which the leaves of all other trees are aligned."""

    def __init__(self, who: str, tree: Tree):
        with_paths, self.structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)
        self.who, self.tree = who, tree
        self.paths = [path for path, _ in with_paths]
        self.leaves = [leaf if leaf is None else as_array(leaf) for _, leaf in with_paths]
        self.present = [index for index, leaf in enumerate(self.leaves) if leaf is not None]
        for index in self.present:
            _checks.check_inexact(who, "gradients", self.paths[index], self.leaves[index])

    def align(self, what: str, tree: Tree | None) -> list[Any]:
        """Return the leaves of `tree` in the gradients' order, or Nones if there is no tree."""
        if tree is None:
            return [None] * len(self.leaves)
        remedy = "call init with the parameters that the gradients are taken of"
        try:
            others = self.structure.flatten_up_to(tree)
        except ValueError:
            _checks.fail_structure(self.who, what, self.tree, tree, remedy)
        for index in self.present:
            if not jax.tree_util.all_leaves([others[index]]):
                _checks.fail_structure(self.who, what, self.tree, tree, remedy)
            others[index] = as_array(others[index])
            _checks.check_same_shape(
                self.who, self.paths[index], self.leaves[index], others[index], what
            )
        return others

    def align_mask(self, mask: Mask, params: Tree | None) -> list[bool]:
        """Return for each leaf whether the mask, a tree or a prefix of one, lets it through."""
        if callable(mask):
            mask = mask(self.tree if params is None else params)
        try:
            full = jax.tree.map(
                lambda m, part: jax.tree.map(lambda _: m, part, is_leaf=is_none), mask, self.tree
            )
        except ValueError:
            remedy = "give the mask as a function of the parameters, such as one of their shapes"
            _checks.fail_structure(self.who, "mask", self.tree, mask, remedy)
        flat = self.structure.flatten_up_to(full)
        for index in self.present:
            if not isinstance(flat[index], bool | np.bool_):
                _checks.fail(self.who, "mask must hold booleans", repr(flat[index]))
        return flat


class _Step:
    """One rule in one update: what it has prepared, its mask, and its slots as lists of leaves.

    `before` holds the hyperparameters in force of the rules before it, and gains this rule's.
    """

    def __init__(
        self,
        rule: Rule,
        state: Any,
        gradients: _Gradients,
        params: Tree | None,
        extra_args: Mapping[str, Any],
        before: dict[str, Any],
    ):
        in_force, values, memory = rule.hyperparams.step(
            state.count, state.hyperparams, state.memory
        )
        if rule.reads:
            names = (*in_force._fields, *rule.reads)
            read = (before[name] for name in rule.reads)
            in_force = namedtuple("Hyperparams", names)(*in_force, *read)
        before |= in_force._asdict()
        self.rule, self.count = rule, optax.safe_increment(state.count)
        self._structure = gradients.structure
        if rule.observe is None:
            present = [gradients.leaves[index] for index in gradients.present]
            self.prepared = rule.prepare(in_force, present, self.count)
        else:
            state, self.prepared = rule.observe(state, in_force, extra_args)
        self._state = state._replace(count=self.count, hyperparams=values, memory=memory)
        self._slots = {
            name: gradients.align(f"state's {name}", getattr(state, name)) for name in rule.slots
        }
        self._mask = None if rule.mask is None else gradients.align_mask(rule.mask, params)

    def touches(self, index: int) -> bool:
        return self._mask is None or self._mask[index]

    def slots(self, index: int) -> tuple[Array, ...]:
        return tuple(leaves[index] for leaves in self._slots.values())

    def store(self, index: int, new: tuple[Array, ...]) -> None:
        for leaves, leaf in zip(self._slots.values(), new, strict=True):
            leaves[index] = leaf

    def new_state(self) -> Any:
        slots = {name: self._structure.unflatten(leaves) for name, leaves in self._slots.items()}
        return self._state._replace(**slots)


def _computed_once(scalars: Sequence[Any], count: Array) -> Sequence[Any]:
    """Keep XLA from computing the scalars anew in the kernels of every leaf.

    On a CPU it does, which can double the time of compilation, but not with what comes out of a
    branch. Only zeros could come out of the other one, as no count is negative.
    """

    def from_branch(scalars: Sequence[Any], count: Array) -> Sequence[Any]:
        return jax.lax.cond(
            count >= 0, lambda x: x, lambda x: jax.tree.map(jnp.zeros_like, x), scalars
        )

    return jax.lax.platform_dependent(
        scalars, count, cpu=from_branch, default=lambda scalars, count: scalars
    )


def _cast(x: Array, dtype: DTypeLike) -> Array:
    return x if x.dtype == bool else x.astype(dtype)


def _dtype_within(gradient: Array, parameter: Array | None) -> jnp.dtype:
    """Return the type that a leaf is computed in."""
    return compute_dtype(gradient.dtype, gradient.dtype if parameter is None else parameter.dtype)


def _run_leaf(
    rules: Sequence[Rule],
    touching: tuple[int, ...],
    gradient: Array,
    parameter: Array | None,
    slots: Sequence[tuple[Array, ...]],
    scalars: Sequence[Any],
) -> tuple[Array, list[tuple[Array, ...]]]:
    """Run the rules that touch a leaf; return its update, and its new slots of each of them."""
    rules = [rules[number] for number in touching]
    dtype = _dtype_within(gradient, parameter)

    def run(part: Callable[[Array], Array]) -> tuple[Array, list[tuple[Array, ...]]]:
        def take(x: Array) -> Array:
            return part(x).astype(dtype)

        update, new_slots = take(gradient), []
        for rule, old, own_scalars in zip(rules, slots, scalars, strict=True):
            p = parameter
            if p is not None:
                p = take(p)
                if rule.after_update:
                    p = round_to(p + round_to(update, gradient.dtype), parameter.dtype)
            update, own = rule.leaf(update, tuple(map(take, old)), own_scalars, p)
            new_slots.append(own)
        return update, new_slots

    if jnp.iscomplexobj(gradient):
        update, new_slots = jax.tree.map(jax.lax.complex, run(jnp.real), run(jnp.imag))
    else:
        update, new_slots = run(lambda x: x)
    new_slots = jax.tree.map(lambda new, old: narrowed(new, old.dtype), new_slots, list(slots))
    return update.astype(gradient.dtype), new_slots
