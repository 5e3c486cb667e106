"""Which run is this? Facts about an optimizer and a task that are the same in every process.

A transformation is two functions, and what sets it apart is in their closures. This module walks
through them and names each value by the function that it was passed to, as in
"scale_by_adam.b1"; a hyperparameter of optlab goes by its own name, "learning_rate".

The code of a function is a fact where the function is a schedule, a mask or an update of the user's
own, whose numbers may stand in the code. It is none where the function belongs to a task: a print
in a loss does not make another run.
"""

import functools
from collections.abc import Mapping, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab._facts import (
    arguments_of,
    cells_of,
    code_text,
    content_of,
    defaults_of,
    described,
    globals_of,
    is_array,
    is_no_fact,
    is_of_library,
    is_own,
    maker_of,
    number_text,
    unwrapped,
    variables_of,
)
from optlab._types import Array, Tree
from optlab.rules._hyperparams import float_dtype
from optlab.rules._rule import Rule
from optlab.rules._state import is_rule_state

Facts = dict[str, Any]
"""Name → JSON."""

_DEPTH = 48
_NODES = 20_000
"""Bounds of the walk, for closures without an end."""


def identity(task: Any, tx: Any, key: Array, options: Mapping[str, Any]) -> Facts:
    """Return the facts that identify a run, by the name of the argument that sets each.

    Args:
        task: a `Task`. Facts are its name, its score, the shapes of its batch, its data, and the
            names of its functions with the values that they close over or read from their module:
            numbers, strings, arrays, models. Lists and dicts are left out unless they hold arrays,
            because functions often keep records in them. The code of the functions is no fact.
        tx: the transformation.
        key: the random key of the run.
        options: other arguments that must not change, by name.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    facts: Facts = {"task": task.name, "key": np.asarray(key).tolist()}
    facts |= {name: plain(value) for name, value in options.items()}
    return facts | transformation(tx) | _task_facts(task)


def plain(value: Any) -> Any:
    """Return a value as JSON: dicts, lists, strings and numbers as they are, others described."""
    if isinstance(value, Mapping):
        return {str(name): plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [plain(x) for x in value]
    return described(value)


def transformation(tx: Any) -> Facts:
    """Return the facts of an Optax transformation.

    A name that occurs several times, as in a chain of two optimizers, has a list of values. The
    groups of `optlab.groups.partition` precede names, as in "head/learning_rate".

    Example:
        >>> import optax
        >>> for name, fact in transformation(optax.sgd(0.1, momentum=0.9)).items():
        ...     print(name, "=", fact)
        tx = chain, trace, scale
        trace.accumulator_dtype = None
        trace.decay = 0.9
        trace.nesterov = False
        scale.step_size = -0.1
    """
    walk = _Walk()
    walk.enter_pair(tx)
    facts: Facts = {"tx": ", ".join(walk.names) or type(tx).__name__}
    for name, values in walk.values.items():
        facts[name] = values[0] if len(values) == 1 else values
    return facts


def with_new_hyperparams(state: Tree, like: Tree, names: Mapping[str, Any]) -> Tree:
    """Return a restored state with the hyperparameters of another one where arguments changed.

    Args:
        state: the restored state.
        like: the state before the first update of a run that was given other arguments.
        names: the names of the facts that differ. Optax's `inject_hyperparams` holds values without
            the arguments that they came from, so that these names say which to replace.
    """

    def is_holder(node: Any) -> bool:
        return is_rule_state(node) or _is_injected(node)

    def replace(new: Any, node: Any) -> Any:
        if _is_injected(node):
            own = {name.split("/")[-1] for name in names}
            values = {name: new.hyperparams[name] for name in own if name in node.hyperparams}
            inner = jax.tree.map(replace, new.inner_state, node.inner_state, is_leaf=is_holder)
            hyperparams = {**node.hyperparams, **values}
            return node._replace(hyperparams=hyperparams, inner_state=inner)
        if not is_rule_state(node) or not node.declarations:
            return node
        size = len(node.declarations)

        def merge(new: Array, old: Array) -> Array:
            changed = new[..., size : 2 * size] != old[..., size : 2 * size]
            changed = jnp.concatenate([changed, changed], axis=-1)
            head = jnp.where(changed, new[..., : 2 * size], old[..., : 2 * size])
            return jnp.concatenate([head, old[..., 2 * size :]], axis=-1)

        # Through the tree, as Flax NNX wraps the array in a variable.
        return node._replace(hyperparams=jax.tree.map(merge, new.hyperparams, node.hyperparams))

    if not names:
        return state
    return jax.tree.map(replace, like, state, is_leaf=is_holder)


def _is_injected(node: Any) -> bool:
    """Whether a node is the state of Optax's `inject_hyperparams`, of one version or another."""
    return hasattr(node, "_fields") and {"hyperparams", "inner_state"} <= set(node._fields)


class _Walk:
    """A walk through the closures of a transformation.

    Attributes:
        names: the functions that made the transformation, from the outside in.
        values: name → the values of it, in the order of the walk.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: dict[str, list[Any]] = {}
        self._seen: set[int] = set()  # what was entered, by its address while it lives
        self._inside: list[int] = []
        self._nodes = 0
        self._group = ""

    def enter_pair(self, tx: Any) -> None:
        """Enter a transformation; the order of `names` is that in which it updates."""
        count = len(self.names)
        self.enter(tx.update)
        named = len(self.names) > count
        before = list(self.names)
        self.enter(tx.init)
        if named:
            self.names = before

    def enter(self, value: Any) -> None:
        """Enter a function, a transformation, a rule, or a container of them."""
        self._nodes += 1
        if id(value) in self._inside or len(self._inside) > _DEPTH or self._nodes > _NODES:
            return
        self._inside.append(id(value))
        if _is_transformation(value):
            self.enter_pair(value)
        elif isinstance(value, Rule):
            self._enter_rule(value)
        elif isinstance(value, Mapping | Sequence):
            for part in value.values() if isinstance(value, Mapping) else value:
                self.enter(part)
        else:
            self._enter_function(value)
        self._inside.pop()

    def _enter_function(self, function: Any, helped: str = "") -> None:
        """Enter a function; `helped` is the maker of the function that closes over it."""
        function = unwrapped(function)
        maker = maker_of(function)
        if isinstance(function, functools.partial):
            self.enter(function.func)
            self._add_all(maker_of(function.func), arguments_of(function))
        elif isinstance(function, MethodType):
            self._enter_owner(function.__self__)
        elif not isinstance(function, FunctionType):
            self.names.append(str(described(function)))
        elif function.__module__ == "optlab.rules._lift":
            # Its rules say all that its other variables hold.
            self.enter(self._variables(function).get("rules", ()))
        else:
            if maker not in (helped, *_SILENT) and not maker.startswith("_"):
                self.names.append(f"{maker} {code_text(function)}" if is_own(function) else maker)
            self._add_all(maker, self._variables(function))

    def _enter_owner(self, owner: Any) -> None:
        """Enter the object whose method is a part of a transformation."""
        name = type(owner).__qualname__
        self.names.append(name)
        if id(owner) not in self._seen:
            self._seen.add(id(owner))
            attributes = getattr(owner, "__dict__", {})
            self._add_all(name, {key.lstrip("_"): value for key, value in attributes.items()})

    def _enter_groups(self, plan: Any) -> None:
        """Enter the groups of a partition, whose names precede those of their facts."""
        if id(plan) in self._seen:
            return
        self._seen.add(id(plan))
        self._add("groups", described(plan.group_of))
        outer = self._group
        for name, member in plan.members.items():
            self._group = f"{outer}{name}/"
            self.enter(member.tx)
            if member.start:
                self._add("start", member.start)
        self._group = outer

    def _variables(self, function: FunctionType) -> dict[str, Any]:
        """Return what a function depends on, without what another function of the walk shares."""
        variables = defaults_of(function)
        for name, cell in cells_of(function):
            if id(cell) not in self._seen:
                self._seen.add(id(cell))
                variables |= content_of(name, cell)
        return variables | globals_of(function)

    def _enter_rule(self, rule: Rule) -> None:
        kind = rule.kind or rule.who
        self.names.append(kind)
        if id(rule) in self._seen:
            return
        self._seen.add(id(rule))
        for name, parameter in rule.hyperparams.items():
            value = parameter.value
            self._add(name, described(value) if callable(value) else _stored(value))
        for name in ("mask", "where", "axes", "masks"):
            if value := getattr(rule, name):
                self._add(f"{kind}.{name}", described(value))
        for name in ("leaf", "once", "across", "static", "observe"):
            function = getattr(rule, name)
            if isinstance(function, FunctionType):
                self._add_all(kind, self._variables(function))
                if is_own(function):
                    self._add(f"{kind}.{name}", f"{function.__name__} {code_text(function)}")

    def _add_all(self, maker: str, variables: Mapping[str, Any]) -> None:
        for name, value in variables.items():
            if maker.startswith("inject_hyperparams") and name.endswith("_hps"):
                for own, number in value.items():
                    self._add(own, described(number))
            elif {"group_of", "members"} <= set(getattr(value, "__dataclass_fields__", ())):
                self._enter_groups(value)
            elif _is_of_transformation(value):
                self.enter(value)
            elif is_of_library(value):
                self._enter_function(value, helped=maker)
            elif name != "who":
                self._add(f"{maker}.{name}", described(value))

    def _add(self, name: str, value: Any) -> None:
        self.values.setdefault(f"{self._group}{name}", []).append(value)


_SILENT = ("with_extra_args_support", "identity")
"""Makers of functions of Optax that change nothing."""


def _is_of_transformation(value: Any) -> bool:
    """Whether a value is a part of a transformation, or a container of parts."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(_is_transformation, value.values()))
    if isinstance(value, list | tuple) and not _is_transformation(value):
        return bool(value) and all(_is_transformation(x) or _is_part(x) for x in value)
    return _is_transformation(value) or isinstance(value, Rule)


def _is_part(value: Any) -> bool:
    """Whether an element of a sequence is a rule, or a function like `init` and `update`."""
    function = unwrapped(value)
    made = isinstance(function, FunctionType) and "<locals>" in function.__qualname__
    return made or is_of_library(value) or isinstance(function, Rule | MethodType)


def _is_transformation(value: Any) -> bool:
    return isinstance(value, tuple) and getattr(value, "_fields", ())[:2] == ("init", "update")


def _task_facts(task: Any) -> Facts:
    facts: Facts = {}
    for field in ("batch", "init", "loss", "evaluate"):
        function = getattr(task, field)
        if field == "batch":
            facts |= _batch_facts(function) if task.loader is None else _loader_facts(task.loader)
            continue
        facts[field] = getattr(unwrapped(function), "__name__", type(function).__qualname__)
        for name, value in variables_of(function).items():
            if _is_fact_of_task(value):
                facts[f"{field}.{name}"] = described(value, code=False)
    for name, data in task.splits.items():
        facts |= _data_facts(f"splits[{name!r}]", data)
    return facts | {"score": task.score, "maximize": task.maximize}


def _batch_facts(batch: Any) -> Facts:
    """Return the size of a batch and its data where they can be told apart, or else its shapes."""
    variables = {
        name: described(value, code=False)
        for name, value in variables_of(batch).items()
        if _is_fact_of_task(value)
    }
    known = {name: variables.pop(name) for name in ("batch_size", "data") if name in variables}
    if len(known) == 2 and is_of_library(batch):
        return known  # all else follows from them
    known["batch"] = described(jax.eval_shape(batch, jax.random.key(0), jnp.int32(0)))
    return known | {f"batch.{name}": value for name, value in variables.items()}


def _loader_facts(loader: Any) -> Facts:
    """Return what a loader says of itself."""
    facts = _data_facts("loader", loader)
    for name in ("batch_size", "drop_last"):
        if (value := getattr(loader, name, None)) is not None:
            facts[name] = described(value)
    return facts


def _data_facts(name: str, data: Any) -> Facts:
    """Return what data are; of a function that yields them, its name and its variables."""
    if not isinstance(unwrapped(data), FunctionType):
        return {name: described(data, code=False)}
    variables = {
        f"{name}.{own}": described(value, code=False)
        for own, value in variables_of(data).items()
        if _is_fact_of_task(value)
    }
    return {name: unwrapped(data).__name__} | variables


def _is_fact_of_task(value: Any) -> bool:
    if isinstance(value, ModuleType) or is_no_fact(value):
        return False
    if isinstance(value, list | dict | set):
        leaves = jax.tree.leaves(value)
        return bool(leaves) and all(is_array(leaf) for leaf in leaves)
    return True


def _stored(value: Any) -> Any:
    """Return a hyperparameter in the shortest digits that mean the number in the state."""
    return number_text(np.asarray(value, float_dtype()).reshape(()))
