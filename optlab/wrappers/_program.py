"""A step that is chosen, or not, while it is computed.

A wrapper that makes a step or not has to choose between the new state and the old one. If it
computes the step, looks at the results and then chooses, XLA keeps all results in memory besides
the old state. Where a step is light, that is elementwise but for sums, it takes less time to
compute it twice: once to look at it, which writes nothing, and once to write what is chosen.

Each array of the new state is chosen where it is computed, and the parameters' update is computed
of the chosen array. In a step that is made this is the new array, so that the update is the same;
in one that is not, the update is dropped. XLA then stores the array over the old one first, and
reads it for the update. If the update were computed of the new array before the choice, XLA would
compute that array again for the update, from the old one, and so would have to copy the old one.

Derivatives are those of the step with a branch, since a number that is computed of a chosen array
and then dropped may have an infinite one.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from optlab._jaxpr import function_of, is_array, is_few, run_equation
from optlab._tree import as_array, is_traced
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
"""The operations of a light step. Any other one may be in it as well if its results are few numbers
(`is_few`), unless it is one of `LONG`."""

LONG = {
    "conv_general_dilated", "eigh", "io_callback", "lu", "pure_callback", "qr", "scan", "svd",
    "while",
}  # fmt: skip
"""Operations that take long even where their results are few numbers."""


class Program:
    """A function as JAX traces it.

    Attributes:
        is_light: whether it may be computed twice.
        shapes: the shapes and types of its results.
    """

    def __init__(self, function: Callable[..., Tree], *operands: Tree):
        """Trace a function of trees, whose leaves may be anything beside arrays."""
        leaves, structure = jax.tree.flatten(operands)
        self._given = [place for place, leaf in enumerate(leaves) if is_array(leaf)]

        def of_arrays(*arrays: Any) -> list[Any]:
            values = list(leaves)
            for place, x in zip(self._given, arrays, strict=True):
                values[place] = x
            tree = function(*jax.tree.unflatten(structure, values))
            results, self._structure = jax.tree.flatten(tree)
            self._others = [None if is_array(x) else (x,) for x in results]
            return [x for x in results if is_array(x)]

        arrays = [leaves[place] for place in self._given]
        self._closed, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        self.shapes = self._tree(shapes)
        self.is_light = _is_light(self._closed.jaxpr)

    def run(self, *operands: Tree) -> tuple[Tree, Mapping[Any, Any]]:
        """Compute the function of these operands.

        Returns:
            The results, and everything that was computed on the way, for `again` and `choose`.
        """
        closed = self._closed
        arrays = self._arrays(operands)
        results, values = _evaluate(closed.jaxpr, closed.consts, arrays, None, {})
        return self._tree(results), values

    def again(self, known: Mapping[Any, Any], *operands: Tree) -> Tree:
        """Compute the function once more, but take the scalars in it from what `run` computed."""
        closed, scalars = self._closed, {var: x for var, x in known.items() if not var.aval.shape}
        arrays = self._arrays(operands)
        return self._tree(_evaluate(closed.jaxpr, closed.consts, arrays, None, scalars)[0])

    def choose(
        self, made: Array, old: Sequence[Any], known: Mapping[Any, Any], *operands: Tree
    ) -> Tree:
        """Compute the function of these operands, and choose between its results and others.

        Args:
            made: whether the results of the function are chosen, a () bool.
            old: for each leaf of the results, what is chosen otherwise, an array or a number; None
                for one that is not to be chosen.
            known: what `run` computed. Few numbers are taken from there.
            *operands: the operands.
        """
        jaxpr = self._closed.jaxpr
        old = [x for x, other in zip(old, self._others, strict=True) if other is None]
        places = [place for place, x in enumerate(old) if x is not None]
        few = {var: x for var, x in known.items() if is_few(var.aval)}

        def plain(made: Array, consts: Any, arrays: Any, others: Any, _: Any) -> list[Any]:
            def compute() -> list[Any]:
                return _evaluate(jaxpr, consts, arrays, None, {})[0]

            def keep() -> list[Any]:
                return [_like(x, var.aval) for x, var in zip(others, jaxpr.outvars, strict=True)]

            if len(places) == len(old):
                return jax.lax.cond(made, compute, keep)
            results = compute()
            for place, other in zip(places, others, strict=True):
                results[place] = jnp.where(made, results[place], other)
            return results

        @jax.custom_jvp
        def chosen(made: Array, consts: Any, arrays: Any, others: Any, numbers: Any) -> list[Any]:
            all_old: list[Any] = [None] * len(old)
            for place, other in zip(places, others, strict=True):
                all_old[place] = other
            choice = _choice_of(made, jaxpr, jaxpr.outvars, all_old)
            values = dict(zip(few, numbers, strict=True))
            results, _ = _evaluate(jaxpr, consts, arrays, choice, values)
            return [
                x if other is None or choice.has(var, other) else jnp.where(made, x, other)
                for x, var, other in zip(results, jaxpr.outvars, all_old, strict=True)
            ]

        @chosen.defjvp
        def derivative(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
            return jax.jvp(plain, primals, tangents)

        others = [old[place] for place in places]
        arrays = self._arrays(operands)
        return self._tree(chosen(made, self._closed.consts, arrays, others, list(few.values())))

    def _arrays(self, operands: Sequence[Tree]) -> list[Any]:
        leaves = jax.tree.leaves(operands)
        return [leaves[place] for place in self._given]

    def _tree(self, arrays: Sequence[Any]) -> Tree:
        """Return the results of the function, given those that are arrays."""
        rest = iter(arrays)
        leaves = [next(rest) if other is None else other[0] for other in self._others]
        return jax.tree.unflatten(self._structure, leaves)


def _like(x: Any, aval: Any) -> Any:
    """Return a number or an array with the shape and the type of another."""
    if getattr(x, "dtype", None) == aval.dtype and jnp.shape(x) == aval.shape:
        return x
    return jnp.broadcast_to(jnp.asarray(x, aval.dtype), aval.shape)


def light_program(function: Callable[..., Tree], *operands: Tree) -> Program | None:
    """Return the program of a function; None if it is not light, or called outside of any trace."""
    if not any(map(is_traced, jax.tree.leaves(operands))):
        return None
    program = Program(function, *operands)
    return program if program.is_light else None


def hidden(tree: Tree) -> Tree:
    """Return a tree with each array behind a barrier.

    XLA does not merge what is computed of these arrays with what is computed of the tree's own.
    """
    return jax.tree.map(lambda x: jax.lax.optimization_barrier(x) if is_array(x) else x, tree)


def wait_for(number: Array, tree: Tree) -> Tree:
    """Return the arrays of a tree unchanged, but so that XLA computes a number before it uses them.

    XLA then writes nothing over what the number is computed of. The number must never be −1.
    """

    def wait(x: Any) -> Array:
        x = as_array(x)
        # A constant in place of the number would change how XLA rounds.
        return jnp.where(number == -1, number.astype(x.dtype), x)

    return jax.tree.map(wait, tree)


class _Choice(NamedTuple):
    """Which values some variables of a program have where a step is not made.

    Attributes:
        made: whether the step is made, a () bool.
        old: variable → its value where the step is not made.
    """

    made: Array
    old: Mapping[Any, Any]

    def has(self, var: Any, other: Any) -> bool:
        """Return whether `other` is the value that a variable has where the step is not made."""
        return not isinstance(var, Literal) and self.old.get(var) is other


def _choice_of(made: Array, jaxpr: Jaxpr, variables: Sequence[Any], old: Sequence[Any]) -> _Choice:
    """Return the choice for the arrays among the results of a program.

    Where a variable is returned twice, its first place decides. Few numbers are chosen at the end.
    """
    choices: dict[Any, Any] = {}
    given = {*jaxpr.invars, *jaxpr.constvars}
    for var, other in zip(variables, old, strict=True):
        if other is None or isinstance(var, Literal) or var in given or is_few(var.aval):
            continue
        choices.setdefault(var, other)
    return _Choice(made, choices)


def _evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    operands: Sequence[Any],
    choice: _Choice | None,
    known: Mapping[Any, Any],
) -> tuple[list[Any], Mapping[Any, Any]]:
    """Return the results of a program, and the values of all its variables."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, operands, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        old = [choice and choice.old.get(var) for var in eqn.outvars]
        if known and all(var in known for var in eqn.outvars):
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
        return _evaluate(function.jaxpr, function.consts, operands, choice, {})[0]

    return jax.jit(choosing)


def _is_plain_call(eqn: Any) -> bool:
    """Return whether an operation only calls a function, with no word on devices.

    What it may say of derivatives is not needed here: they are taken of the plain program.
    """
    if eqn.primitive.name not in ("jit", "pjit", "custom_jvp_call"):
        return False
    places = (*eqn.params.get("in_shardings", ()), *eqn.params.get("out_shardings", ()))
    return all(type(place).__name__ == "UnspecifiedValue" for place in places)


def _is_light(jaxpr: Jaxpr) -> bool:
    if jaxpr.effects:
        return False
    for eqn in jaxpr.eqns:
        if all(is_few(var.aval) for var in eqn.outvars):
            if eqn.primitive.name in LONG and not all(is_few(x.aval) for x in eqn.invars):
                return False
            continue
        function = function_of(eqn)
        light = eqn.primitive.name in LIGHT if function is None else _is_light(function.jaxpr)
        if not light:
            return False
    return True
