"""A program of JAX as a flat list of operations on arrays, and how it is run by XLA.

Functions within functions (`jit`, custom derivatives) are spelled out, and a choice by platform is
made for the CPU. What is left inside of an operation are loops and branches.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from optlab._jaxpr import INSIDE, function_of, is_few, run_equation
from optlab.native._operations import KINDS, OPERATIONS, REDUCTIONS


@functools.cache
def _type_name(dtype: Any) -> str:
    return dtype.name if isinstance(dtype, np.dtype) else ""


class Value:
    """An array that the program is given or computes.

    Attributes:
        shape: its shape.
        type: the name of its type, "" for one that only JAX knows, such as that of random keys.
        node: what computes it; None for an argument.
        size: the number of elements; 0 if only the caller of an exported function knows it.
    """

    __slots__ = ("node", "shape", "size", "type")
    node: Any

    def __init__(self, aval: Any, node: "Node | None" = None):
        self.shape: tuple[int, ...] = getattr(aval, "shape", ())
        self.type = _type_name(getattr(aval, "dtype", None))
        self.node = node
        known = all(isinstance(length, int) for length in self.shape)
        self.size = math.prod(self.shape) if known else 0

    @property
    def is_big(self) -> bool:
        """Whether it has axes, and elements in a number that is known."""
        return bool(self.shape) and bool(self.size)


class Constant:
    """A number that stands in the program.

    Attributes:
        value: an array ().
    """

    __slots__ = ("shape", "type", "value")
    node: Any = None
    is_big = False
    size = 1

    def __init__(self, value: Any, aval: Any):
        self.value = value
        self.shape: tuple[int, ...] = aval.shape
        self.type = _type_name(aval.dtype)


Operand = Value | Constant


class Node:
    """One operation.

    Attributes:
        number: its place in the program.
        name: the name of its primitive.
        eqn: the equation of JAX.
        inputs: its operands.
        outputs: its results.
    """

    __slots__ = ("eqn", "inputs", "name", "number", "outputs")

    def __init__(self, number: int, name: str, eqn: Any, inputs: list[Operand]):
        self.number, self.name, self.eqn, self.inputs = number, name, eqn, inputs
        self.outputs: list[Value] = []

    def on(self, inputs: list[Operand], shape: tuple[int, ...]) -> "Node":
        """Return the same operation on others, with a result of this shape."""
        node = Node(self.number, self.name, self.eqn, inputs)
        node.outputs = [Value(jax.ShapeDtypeStruct(shape, jnp.dtype(self.outputs[0].type)), node)]
        return node

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the primitive."""
        return self.eqn.params


class Graph:
    """A program.

    Args:
        jaxpr: the program as JAX traces it.
        given: what it is given, first what the function had from outside. What is given in several
            places is one value.

    Attributes:
        nodes: its operations, each behind those that it needs.
        arguments: the values of what it is given.
        results: what it returns.
    """

    def __init__(self, jaxpr: Jaxpr, given: Sequence[Any]):
        self.nodes: list[Node] = []
        self._known: dict[Any, list[Operand]] = {}
        values: dict[int, Value] = {}
        for var, one in zip((*jaxpr.constvars, *jaxpr.invars), given, strict=True):
            values.setdefault(id(one), Value(var.aval))
        self.arguments = [values[id(one)] for one in given]
        bound = len(jaxpr.constvars)
        self.results = self._inline(jaxpr, self.arguments[bound:], self.arguments[:bound])

    def _inline(
        self, jaxpr: Jaxpr, arguments: Sequence[Operand], constants: Sequence[Any] = ()
    ) -> list[Operand]:
        values: dict[Any, Operand] = dict(zip(jaxpr.invars, arguments, strict=True))
        for var, value in zip(jaxpr.constvars, constants, strict=True):
            values[var] = value if isinstance(value, Value) else Constant(value, var.aval)

        def read(atom: Any) -> Operand:
            return Constant(atom.val, atom.aval) if isinstance(atom, Literal) else values[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            function = _called(eqn)
            if function is not None:
                inside = inputs[1:] if eqn.primitive.name == "cond" else inputs
                outputs = self._inline(function.jaxpr, inside, function.consts)
            elif _is_choice(eqn, inputs):
                outputs = self._choose(eqn, inputs)
            else:
                outputs = self._append(eqn, inputs)
            values.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _choose(self, eqn: Any, inputs: list[Operand]) -> list[Operand]:
        """Compute both branches, and choose element by element."""
        off, on = (
            self._inline(branch.jaxpr, inputs[1:], branch.consts)
            for branch in eqn.params["branches"]
        )
        outputs = []
        for var, a, b in zip(eqn.outvars, off, on, strict=True):
            if a is not b:
                choice = _choice(var.aval.shape, var.aval.dtype)
                (a,) = self._inline(choice.jaxpr, [inputs[0], a, b], choice.consts)
            outputs.append(a)
        return outputs

    def _append(self, eqn: Any, inputs: list[Operand]) -> list[Operand]:
        name = eqn.primitive.name
        if name == "optimization_barrier":
            # One for each array, so that who needs one of them does not need all.
            return [
                self._add(name, eqn, [value], [var.aval])[0]
                for value, var in zip(inputs, eqn.outvars, strict=True)
            ]
        avals = [var.aval for var in eqn.outvars]
        key = _key(eqn, inputs)
        if key is None:
            return self._add(name, eqn, inputs, avals)
        if key not in self._known:
            self._known[key] = self._add(name, eqn, inputs, avals)
        return self._known[key]

    def _add(
        self, name: str, eqn: Any, inputs: list[Operand], avals: Sequence[Any]
    ) -> list[Operand]:
        node = Node(len(self.nodes), name, eqn, inputs)
        node.outputs = [Value(aval, node) for aval in avals]
        self.nodes.append(node)
        return list(node.outputs)


def _key(eqn: Any, inputs: list[Operand]) -> Any:
    """Return what equal operations on equal operands share; None for what has effects."""
    if eqn.effects:
        return None
    try:
        types = [var.aval for var in eqn.outvars]
        key = (eqn.primitive, *map(_identity, inputs), *sorted(eqn.params.items()), *types)
        hash(key)
    except TypeError:  # parameters that cannot be compared
        return None
    return key


def _identity(operand: Operand) -> Any:
    if isinstance(operand, Constant) and operand.shape == ():
        value = np.asarray(operand.value)
        return operand.type, value.dtype, value.tobytes()
    return id(operand)


def _called(eqn: Any) -> ClosedJaxpr | None:
    """Return the function that an operation calls with its operands; None for any other.

    The function of a choice by platform is called without the first operand, the choice.
    """
    name = eqn.primitive.name
    if name in INSIDE:
        return function_of(eqn)
    platforms = eqn.params.get("branches_platforms") if name == "cond" else None
    if platforms is not None:
        for branch, names in zip(eqn.params["branches"], platforms, strict=True):
            if names is None or "cpu" in names:
                return branch
    return None


@functools.cache
def _choice(shape: tuple[int, ...], dtype: Any) -> ClosedJaxpr:
    """Return the program (number of a branch, result of the first, of the second) → result."""
    branch, result = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct(shape, dtype)
    return jax.make_jaxpr(lambda i, a, b: jax.lax.select(i > 0, b, a))(branch, result, result)


def _is_choice(eqn: Any, inputs: Sequence[Operand]) -> bool:
    """Return whether an operation chooses between two branches that loops can compute both."""
    if eqn.primitive.name != "cond" or len(eqn.params["branches"]) != 2 or eqn.effects:
        return False
    if inputs[0].shape != () or not any(x.is_big for x in inputs):
        return False
    types = [_type_name(getattr(var.aval, "dtype", None)) for var in eqn.outvars]
    return all(dtype in KINDS for dtype in types) and all(
        _is_cheap(branch.jaxpr) for branch in eqn.params["branches"]
    )


def _is_cheap(jaxpr: Jaxpr) -> bool:
    """Return whether a program is made of what loops compute, and of operations on few numbers."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        function = _called(eqn)
        if function is not None:
            parts = [function.jaxpr]
        elif name == "cond":
            parts = [branch.jaxpr for branch in eqn.params["branches"]]
        else:
            parts = []
            known = name in OPERATIONS or name in REDUCTIONS or name == "concatenate"
            few = all(is_few(var.aval) for var in (*eqn.invars, *eqn.outvars))
            if eqn.effects or not (known or (few and name not in ("while", "scan"))):
                return False
        if not all(map(_is_cheap, parts)):
            return False
    return True


def run_node(node: Node, operands: Iterable[Any]) -> list[Any]:
    """Compute an operation with XLA."""
    return run_equation(node.eqn, operands)
