"""From optlab's rules to functions that Optax's programs cannot tell from Optax's own.

A stand-in has the signature, the defaults and the states of a function of Optax; the arithmetic of
an update is that of our rules. The states are Optax's own, made by its `init`, in its types: a
program that reads, replaces, saves or restores them goes on working, and so does a run that was
saved under Optax. Whatever our rules do not take is left to Optax's function itself:

- arguments outside the ranges of our rules, such as a negative learning rate;
- gradients that are not floating point, and complex ones where the rule is not linear (Optax's
  Adam takes |g|², ours the square of each part);
- gradients of another shape than their slots, which Optax broadcasts.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import is_none
from optlab._types import Array, ArrayLike, Hyperparam, Mask, Tree
from optlab.rules import Rule, lift

P = ParamSpec("P")
T = TypeVar("T")
Transformation = optax.GradientTransformationExtraArgs

NUMBERS = ("b1", "b2", "eps", "eps_root", "decay", "momentum", "max_delta", "max_norm")
NUMBERS += ("trust_coefficient", "min_norm", "beta", "adam_b1", "adam_b2", "adam_eps_root")
"""The arguments that Optax takes as numbers alone; `inject_hyperparams` makes them schedules."""

STATIC = ("mask", "weight_decay_mask", "trust_ratio_mask", "mu_dtype", "accumulator_dtype")
STATIC += ("ns_steps", "weight_dimension_numbers", "muon_weight_dimension_numbers")
"""The arguments that are no hyperparameters, though they may be callable or a number."""


class Part(NamedTuple):
    """One transformation in a chain of Optax, and our rule that does its work.

    Attributes:
        rule: None where there is nothing to do.
        fields: our names of the rule's slots → the fields of Optax's state.
        by_parts: whether complex leaves may be computed as two real ones.
        schedule: of the one hyperparameter that may follow one in Optax; the state then counts.
        make: (hyperparameter) → the rule, where there is a schedule.
        mask: which leaves the rule touches; the state is then one of `optax.masked`.
    """

    rule: Rule | None = None
    fields: Mapping[str, str] = {}
    by_parts: bool = True
    schedule: Callable[[ArrayLike], ArrayLike] | None = None
    make: Callable[[Hyperparam], Rule] | None = None
    mask: Mask | None = None

    def rule_now(self, own: Any, updates: Tree) -> Rule | None:
        """Return the rule of this update, from the part's own state."""
        rule = self.rule
        if self.schedule is not None:
            value = self.schedule(self._inner(own).count)
            rule = self.make(lambda count: value)  # a schedule may take any value
        if self.mask is not None and rule is not None:
            mask = self.mask(updates) if _is_function(self.mask) else self.mask
            rule = replace(rule, mask=jax.tree.map(bool, mask))
        return rule

    def counted(self, own: Any) -> Any:
        """Return the part's state after one more update, its slots as they were."""
        inner = self._inner(own)
        if "count" not in getattr(inner, "_fields", ()):
            return own
        inner = inner._replace(count=optax.safe_increment(inner.count))
        return inner if self.mask is None else own._replace(inner_state=inner)

    def _inner(self, own: Any) -> Any:
        return own if self.mask is None else own.inner_state


def scheduled(make: Callable[[Hyperparam], Rule], value: Hyperparam, **others: Any) -> Part:
    """Return the part of a rule with one hyperparameter, a number or a schedule."""
    if callable(value):
        return Part(schedule=value, make=make, **others)
    return Part(make(value), **others)


def stands_in(theirs: Callable[P, T]) -> Callable[[Callable[..., Any]], Callable[P, T]]:
    """Make a stand-in of a function of Optax.

    What is decorated takes a name for errors and Optax's arguments, without defaults. It returns
    the `Part` that stands for Optax's transformation, a list of parts for a chain, a transformation
    of stand-ins with Optax's states, or None where Optax itself is to be used. A ValueError, too,
    is taken for "use Optax itself".
    """
    signature = inspect.signature(theirs)

    def decorate(parts: Callable[..., Any]) -> Callable[P, T]:
        known = list(inspect.signature(parts).parameters)[1:]
        name = parts.__name__
        parameters = signature.parameters.values()
        flags = [p.name for p in parameters if p.annotation in (bool, "bool")]

        @functools.wraps(parts)
        def function(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name}() {error}") from None
            bound.apply_defaults()
            arguments = bound.arguments
            for flag in flags:  # Optax takes any object for one of the two
                _checks.check_flag(f"dialects.optax.{name}", flag, arguments[flag])
            if any(callable(arguments.get(number)) for number in NUMBERS):
                static = [own for own in STATIC if own in arguments]
                dtype = jax.dtypes.canonicalize_dtype(float)
                inject = optax.inject_hyperparams(function, static, hyperparam_dtype=dtype)
                return inject(*args, **kwargs)
            # A later version of Optax may have arguments that we do not know.
            others = [key for key in arguments if key not in known]
            if any(arguments[key] is not signature.parameters[key].default for key in others):
                return theirs(*args, **kwargs)
            try:
                ours = parts(f"dialects.optax.{name}", **{key: arguments[key] for key in known})
            except ValueError:
                ours = None
            if ours is None:
                return theirs(*args, **kwargs)
            if isinstance(ours, optax.GradientTransformation):
                return Transformation(theirs(*args, **kwargs).init, ours.update)
            return _transformation(theirs(*args, **kwargs), ours)

        function.__signature__ = signature
        function.__annotations__ = dict(getattr(theirs, "__annotations__", {}))
        function.__doc__ = _document(name, parts, theirs)
        del function.__wrapped__
        return function

    return decorate


def _document(name: str, ours: Callable[..., Any], theirs: Callable[..., Any]) -> str:
    """Return our summary and Optax's description of the arguments."""
    sections = re.split(r"^(?=[A-Z][A-Za-z]+:\n)", inspect.getdoc(theirs) or "", flags=re.M)
    taken = [text.strip() for text in sections[1:] if text.startswith(("Args:", "Returns:"))]
    raises = "Raises:\n  ValueError: at update, the parameters are needed and missing."
    return "\n\n".join([inspect.cleandoc(ours.__doc__), *taken, raises]) + "\n"


def _transformation(theirs: Any, ours: Part | Sequence[Part]) -> Transformation:
    """Return a transformation with Optax's states and our arithmetic."""
    theirs = optax.with_extra_args_support(theirs)
    chained = not isinstance(ours, Part)
    parts = tuple(ours) if chained else (ours,)
    changing = any(part.schedule is not None or part.mask is not None for part in parts)
    constant = None if changing else _lifted([part.rule for part in parts])

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        owns = state if chained else (state,)
        if len(owns) != len(parts):
            return theirs.update(updates, state, params, **extra_args)  # which explains it
        rules = [part.rule_now(own, updates) for part, own in zip(parts, owns, strict=True)]
        needed = any(rule is not None and rule.needs_params for rule in rules)
        leaves = _Leaves(updates)
        slots = [
            [leaves.beside(getattr(own, field)) for field in part.fields.values()]
            for part, own in zip(parts, owns, strict=True)
        ]
        beside = [tree for own in slots for tree in own]
        if needed and params is not None:
            beside.append(leaves.beside(params))
        kinds = jnp.inexact if all(part.by_parts for part in parts) else jnp.floating
        if None in beside or not are_numeric(leaves.arrays, kinds):
            return theirs.update(updates, state, params, **extra_args)
        if not any(rules):
            new = tuple(part.counted(own) for part, own in zip(parts, owns, strict=True))
            return updates, new if chained else state
        dtypes = leaves.result_types(beside, _numbers(parts, rules))
        lifted = _lifted(rules) if constant is None else constant
        # Where Optax's result is wider than the gradient, ours must not be rounded to that first.
        widened = leaves.cast(leaves.arrays, dtypes, only_widen=True)
        result, new = lifted(widened, parts, owns, params if needed else None)
        result = leaves.cast(leaves.structure.flatten_up_to(result), dtypes)
        return result, tuple(new) if chained else new[0]

    return Transformation(theirs.init, update)


def _lifted(rules: Sequence[Rule | None]) -> Callable[..., tuple[Tree, list[Any]]]:
    """Return (updates, parts, Optax's states, parameters) → the updates and Optax's new states."""
    present = [rule for rule in rules if rule is not None]
    tx = lift(*present) if present else None

    def update(
        updates: Tree, parts: Sequence[Part], owns: Sequence[Any], params: Tree | None
    ) -> tuple[Tree, list[Any]]:
        start = tx.init(())
        nodes = iter(start if len(present) > 1 else (start,))
        ours = []
        for rule, part, own in zip(rules, parts, owns, strict=True):
            if rule is not None:
                node = next(nodes)
                values = {name: getattr(own, field) for name, field in part.fields.items()}
                if "count" in node._fields and "count" in getattr(own, "_fields", ()):
                    values["count"] = jnp.asarray(own.count)
                ours.append(node._replace(**values))
        state = tuple(ours) if len(present) > 1 else ours[0]
        updates, state = tx.update(updates, state, params)
        nodes = iter(state if len(present) > 1 else (state,))
        new = []
        for rule, part, own in zip(rules, parts, owns, strict=True):
            after = part.counted(own)
            if rule is not None:
                node = next(nodes)
                values = {field: getattr(node, name) for name, field in part.fields.items()}
                after = after._replace(**values) if values else after
            new.append(after)
        return updates, new

    return update


def _numbers(parts: Sequence[Part], rules: Sequence[Rule | None]) -> list[Any]:
    """Return the numbers that take part in the type of Optax's result.

    The value of a schedule is not among them: Optax casts a rate to the gradient's type.
    """
    return [
        parameter.value
        for part, rule in zip(parts, rules, strict=True)
        if rule is not None and part.schedule is None
        for parameter in rule.hyperparams.values()
    ]


def are_numeric(leaves: Sequence[Any], kinds: Any) -> bool:
    """Whether all leaves, but for None, are arrays or numbers of some kinds, as `jnp.floating`."""
    return all(
        leaf is None
        or (
            (isinstance(leaf, float | complex) or hasattr(leaf, "dtype"))
            and jnp.issubdtype(jnp.result_type(leaf), kinds)
        )
        for leaf in leaves
    )


class _Leaves:
    """The leaves of the gradients, None among them."""

    def __init__(self, updates: Tree):
        self.arrays, self.structure = jax.tree.flatten(updates, is_leaf=is_none)

    def beside(self, tree: Tree) -> list[Any] | None:
        """Return the leaves of a tree in the same structure and shapes; None if it is another."""
        try:
            others = self.structure.flatten_up_to(tree)
        except (ValueError, TypeError):
            return None
        for own, other in zip(self.arrays, others, strict=True):
            if own is None:
                continue
            if not jax.tree_util.all_leaves([other]) or jnp.shape(own) != jnp.shape(other):
                return None
        return others

    def result_types(self, beside: Sequence[list[Any]], numbers: Sequence[Any]) -> list[Any]:
        """Return the types that Optax's results have."""
        return [
            None if own is None else jnp.result_type(own, *(tree[i] for tree in beside), *numbers)
            for i, own in enumerate(self.arrays)
        ]

    def cast(
        self, leaves: Sequence[Any], dtypes: Sequence[Any], *, only_widen: bool = False
    ) -> Tree:
        """Return leaves in other types as a tree."""

        def one(leaf: Any, dtype: Any) -> Array | None:
            if leaf is None:
                return None
            leaf = jnp.asarray(leaf)
            keeps = only_widen and jnp.promote_types(leaf.dtype, dtype) == leaf.dtype
            return leaf if keeps else leaf.astype(dtype)

        return self.structure.unflatten(map(one, leaves, dtypes))


def _is_function(mask: Mask) -> bool:
    """Whether a mask is a function of the parameters, and no module that can be called."""
    return callable(mask) and jax.tree_util.all_leaves([mask])
