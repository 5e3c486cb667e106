"""A step as a program whose outcome is known before its results are written.

A wrapper that makes a step or not has to choose between the new state and the old one. If it
computes the step, looks at the results and then chooses, XLA keeps all results in memory besides
the old state. Where a step is light, that is elementwise but for sums, it takes less time to
compute it twice: once to look at it, which writes nothing, and once to write what is chosen.

Each array of the new state is chosen as soon as it is computed, and what is computed of it later is
computed of the choice. This changes nothing in a step that is made. XLA can then write the array
over the old one, as it does in a step without a wrapper. Otherwise it computes the array once more
for the parameters, of the old one, of which it makes a copy.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from optlab._jaxpr import function_of, is_few, run_equation
from optlab._tree import is_traced
from optlab._types import Array, Tree

LIGHT = {
    "abs", "add", "and", "atan2", "bitcast_convert_type", "broadcast_in_dim", "cbrt", "ceil",
    "clamp", "complex", "concatenate", "conj", "convert_element_type", "copy", "copy_p", "div",
    "eq", "exp", "exp2", "expand_dims", "expm1", "floor", "ge", "gt", "imag", "integer_pow",
    "iota", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne",
    "neg", "nextafter", "not", "optimization_barrier", "or", "pow", "pvary", "real",
    "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_precision", "reduce_sum",
    "rem", "reshape", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "slice", "split", "sqrt", "square", "squeeze",
    "stop_gradient", "sub", "tanh", "transpose", "xor",
}  # fmt: skip
"""The operations of a light step; others on few numbers belong to it as well."""


class Program:
    """A function as JAX traces it.

    Attributes:
        is_light: whether it may be computed twice.
        shapes: the shapes and types of its results.
    """

    def __init__(self, function: Callable[..., Tree], *operands: Tree):
        """Trace a function of trees of arrays."""
        self._closed, self.shapes = jax.make_jaxpr(function, return_shape=True)(*operands)
        self.is_light = _is_light(self._closed.jaxpr)

    def run(self, *operands: Tree) -> tuple[Tree, Mapping[Any, Any]]:
        """Compute the function of these operands.

        Returns:
            The results, and everything that was computed on the way, for `choose`.
        """
        return self._run(operands, None, {})

    def choose(
        self, made: Array, old: Sequence[Any], known: Mapping[Any, Any], *operands: Tree
    ) -> Tree:
        """Compute the function of these operands, and choose between its results and others.

        Args:
            made: whether the results of the function are chosen, a () bool.
            old: for each array among the results, what is chosen otherwise, an array or a number;
                None for an array that is not to be chosen.
            known: what `run` computed. Few numbers are taken from there.
            *operands: the operands.
        """
        variables = self._closed.jaxpr.outvars
        choice = _choice_of(made, self._closed.jaxpr, variables, old)
        tree, _ = self._run(operands, choice, known)
        results = [
            x if other is None or choice.has(var, other) else jnp.where(made, x, other)
            for x, var, other in zip(jax.tree.leaves(tree), variables, old, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(tree), results)

    def _run(
        self, operands: Sequence[Tree], choice: "_Choice | None", known: Mapping[Any, Any]
    ) -> tuple[Tree, Mapping[Any, Any]]:
        results, values = _evaluate(self._closed, jax.tree.leaves(operands), choice, known)
        return jax.tree.unflatten(jax.tree.structure(self.shapes), results), values


def light_program(function: Callable[..., Tree], *operands: Tree) -> Program | None:
    """Return the program of a function; None if it is not light, or called outside of any trace."""
    if not any(map(is_traced, jax.tree.leaves(operands))):
        return None
    program = Program(function, *operands)
    return program if program.is_light else None


class _Choice(NamedTuple):
    """What is chosen instead of some variables of a program, where a step is not made."""

    made: Array
    old: Mapping[Any, Any]

    def has(self, var: Any, other: Any) -> bool:
        """Return whether this is what is chosen instead of a variable."""
        return not isinstance(var, Literal) and self.old.get(var) is other


def _choice_of(made: Array, jaxpr: Jaxpr, variables: Sequence[Any], old: Sequence[Any]) -> _Choice:
    """Return the choice for what a program computes; of a variable that stands twice, the first."""
    choices: dict[Any, Any] = {}
    given = {*jaxpr.invars, *jaxpr.constvars}
    for var, other in zip(variables, old, strict=True):
        if other is not None and not isinstance(var, Literal) and var not in given:
            choices.setdefault(var, other)
    return _Choice(made, choices)


def _evaluate(
    closed: ClosedJaxpr, operands: Sequence[Any], choice: _Choice | None, known: Mapping[Any, Any]
) -> tuple[list[Any], Mapping[Any, Any]]:
    """Return the results of a program, and the values of all its variables."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, operands, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        old = [choice and choice.old.get(var) for var in eqn.outvars]
        if known and all(is_few(var.aval) for var in eqn.outvars):
            results = [known[var] for var in eqn.outvars]
        else:
            results, old = _compute(eqn, [read(atom) for atom in eqn.invars], choice, old)
        for var, x, other in zip(eqn.outvars, results, old, strict=True):
            values[var] = x if choice is None or other is None else jnp.where(choice.made, x, other)
    return [read(atom) for atom in jaxpr.outvars], values


def _compute(
    eqn: Any, operands: list[Any], choice: _Choice | None, old: list[Any]
) -> tuple[list[Any], list[Any]]:
    """Return the results of an operation, and what is still to be chosen instead of them."""
    function = function_of(eqn)
    if choice is None or function is None or not _is_plain_call(eqn):
        return run_equation(eqn, operands), old
    variables = function.jaxpr.outvars
    inner = _choice_of(choice.made, function.jaxpr, variables, old)
    places = tuple(
        i for i, var in enumerate(variables) if old[i] is not None and inner.has(var, old[i])
    )
    if not places:
        return run_equation(eqn, operands), old
    results = _choosing(function, places)(choice.made, [old[i] for i in places], operands)
    return results, [None if i in places else other for i, other in enumerate(old)]


@functools.lru_cache(maxsize=256)
def _choosing(function: ClosedJaxpr, places: tuple[int, ...]) -> Callable[..., list[Any]]:
    """Return a function (made, other results, operands) → results, some of which are chosen.

    One of a program is traced once, like the program's own, however many leaves use it.
    """
    variables = [function.jaxpr.outvars[place] for place in places]

    def choosing(made: Array, others: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        choice = _choice_of(made, function.jaxpr, variables, others)
        return _evaluate(function, operands, choice, {})[0]

    return jax.jit(choosing)


def _is_plain_call(eqn: Any) -> bool:
    """Return whether an operation only calls a function, with no word on derivatives or devices."""
    if eqn.primitive.name not in ("jit", "pjit"):
        return False
    places = (*eqn.params.get("in_shardings", ()), *eqn.params.get("out_shardings", ()))
    return all(type(place).__name__ == "UnspecifiedValue" for place in places)


def _is_light(jaxpr: Jaxpr) -> bool:
    if jaxpr.effects:
        return False
    for eqn in jaxpr.eqns:
        if all(is_few(var.aval) for var in eqn.outvars):
            continue
        function = function_of(eqn)
        light = eqn.primitive.name in LIGHT if function is None else _is_light(function.jaxpr)
        if not light:
            return False
    return True
