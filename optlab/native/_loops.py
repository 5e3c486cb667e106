"""The call of a loop, as an operation of JAX.

On one CPU it becomes a call of the handler. Everywhere else, and in `vmap` and derivatives, it
becomes the operations that the loop was made of, for XLA.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from optlab.native import _compiler
from optlab.native._graph import Constant, Node, Operand, Value, run_node
from optlab.native._operations import MOVES
from optlab.native._report import report

LONG = 10_000
"""The most elements of a loop that takes less time than to wake another thread."""


def in_given_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function that computes operations of a program in the types that they have.

    Those of a norm are of double precision, whatever JAX's setting.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return run


@dataclass(eq=False)
class Leaf:
    """The arrays of one leaf, and what a loop computes of them.

    Attributes:
        nodes: the operations of the loop.
        inputs: the arrays that it reads.
        outputs: the arrays that it writes.
        reductions: the values that it reduces, with the codes.
        reduced: the operations of the program that reduce them.
        aliases: for an output, by number, the input whose memory it takes.
        scalars: the scalars that it uses.
    """

    nodes: list[Node]
    inputs: list[Value]
    outputs: list[Operand]
    reductions: list[tuple[Operand, int]]
    reduced: list[Node]
    aliases: dict[int, int]
    scalars: list[Value] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The number of elements of an array."""
        return self.inputs[0].size


@dataclass(eq=False)
class Call:
    """One call of a loop for several leaves.

    Attributes:
        level: how many reductions in loops it waits for, one after another.
        key: the key of the loop.
        leaves: the leaves.
        scalars: the scalars that all use.
        constants: the numbers that all use.
    """

    level: int
    key: str
    leaves: list[Leaf]
    scalars: list[Value]
    constants: tuple[float, ...]

    def run(
        self, read: Callable[[Operand], Any], donated: bool
    ) -> tuple[dict[int, Any], list[tuple[Node, list[Any]]]]:
        """Return the arrays by the identity of their values, and parts of reductions."""
        operands = [read(x) for x in self.scalars]
        operands += [read(x) for leaf in self.leaves for x in leaf.inputs]
        results = loop_p.bind(*operands, call=self, donated=donated)
        outputs = [x for leaf in self.leaves for x in leaf.outputs]
        arrays = dict(zip(map(id, outputs), results, strict=False))
        sums = []
        for number, values in enumerate(results[len(outputs) :]):
            nodes = [leaf.reduced[number] for leaf in self.leaves]
            if all(node is nodes[0] for node in nodes):
                sums.append((nodes[0], [values]))
            else:
                sums += [(node, [values[i]]) for i, node in enumerate(nodes)]
        return arrays, sums

    @in_given_types
    def as_operations(self, *operands: Any) -> list[Any]:
        """Compute what the loop computes, with XLA."""
        count = len(self.scalars)
        outputs, reduced = [], []
        for number, leaf in enumerate(self.leaves):
            start = count + number * len(leaf.inputs)
            arrays = operands[start : start + len(leaf.inputs)]
            values = dict(zip(map(id, self.scalars), operands[:count], strict=True))
            # A leaf's scalars are the call's, in the same order.
            values.update(zip(map(id, leaf.inputs), arrays, strict=True))
            for node in leaf.nodes:
                values[id(node.outputs[0])] = compute(node, values)
            outputs += [values[id(x)] for x in leaf.outputs]
            reduced.append([_reduce(values[id(x)], code) for x, code in leaf.reductions])
        return outputs + [jnp.stack(parts) for parts in zip(*reduced, strict=True)]


def compute(node: Node, values: dict[int, Any]) -> Any:
    """Compute an elementwise operation with XLA, for operands of any shape.

    Args:
        node: the operation.
        values: what is known, by the identity of the value.
    """
    operands = [x.value if isinstance(x, Constant) else values[id(x)] for x in node.inputs]
    if node.name in MOVES:
        return jnp.broadcast_to(jnp.reshape(operands[0], _shape(operands[0], node)), _to(node))
    return run_node(node, operands)[0]


def _shape(operand: Any, node: Node) -> tuple[int, ...]:
    return () if jnp.shape(operand) == () else _to(node)


def _to(node: Node) -> tuple[int, ...]:
    return node.outputs[0].shape


def _reduce(x: Any, code: int) -> Any:
    if x.dtype == bool:
        return (jnp.any, jnp.all)[code // 4 - 1](x)
    return (jnp.sum, jnp.max, jnp.min)[code // 4](x)


loop_p = Primitive("optlab_native_loop")
loop_p.multiple_results = True


def _array(shape: tuple[int, ...], name: str) -> Any:
    return jax.core.ShapedArray(shape, jnp.dtype(name))


def _types(*avals: Any, call: Call, donated: bool) -> list[Any]:
    outputs = [_array(x.shape, x.type) for leaf in call.leaves for x in leaf.outputs]
    return outputs + [_array((len(call.leaves),), x.type) for x, _ in call.leaves[0].reductions]


def _in_xla(*operands: Any, call: Call, donated: bool) -> list[Any]:
    return call.as_operations(*operands)


def _batched(
    operands: Sequence[Any], axes: Sequence[Any], *, call: Call, donated: bool
) -> tuple[list[Any], list[int]]:
    report("vmap: XLA computes the steps of all lanes together")
    results = jax.vmap(call.as_operations, in_axes=tuple(axes))(*operands)
    return results, [0] * len(results)


def _derivative(
    primals: Sequence[Any], tangents: Sequence[Any], *, call: Call, donated: bool
) -> tuple[Any, Any]:
    tangents = [ad.instantiate_zeros(x) for x in tangents]
    return jax.jvp(call.as_operations, tuple(primals), tuple(tangents))


_lower_to_operations = mlir.lower_fun(_in_xla)


def _some_work(operand: Any) -> Any:
    """Return a number that takes XLA 2048 operations, none of which it can leave out.

    XLA's CPU client runs a program of fewer than 1000 floating-point operations, by its own count,
    in the thread that calls it, and Python waits for the end. XLA counts no operation in a loop.
    """
    if operand.shape:
        operand = jax.lax.slice(operand, [0] * operand.ndim, [1] * operand.ndim).reshape(())
    return jnp.sum(jnp.maximum(operand.astype(jnp.float32), jnp.arange(1024, dtype=jnp.float32)))


@in_given_types
def _to_handler(*operands: Any, call: Call, donated: bool) -> list[Any]:
    first = call.leaves[0]
    scalars, inputs, outputs = len(call.scalars), len(first.inputs), len(first.outputs)
    if sum(leaf.size for leaf in call.leaves) > LONG:
        operands = (*operands[:scalars], _some_work(operands[0]), *operands[scalars:])
        scalars += 1
    aliases = {}
    for number, leaf in enumerate(call.leaves if donated else ()):
        for output, array in leaf.aliases.items():
            aliases[scalars + number * inputs + array] = number * outputs + output
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in _types(call=call, donated=donated)]
    shape = (len(call.leaves), scalars, inputs, outputs, len(first.reductions))
    function = jax.ffi.ffi_call(
        _compiler.TARGET, results, vmap_method="sequential", input_output_aliases=aliases
    )
    return list(
        function(
            *operands,
            key=call.key,
            shape=np.array(shape, np.int64),
            # XLA takes no empty attribute.
            reductions=np.array([*(code for _, code in first.reductions), 0], np.int64),
            constants=np.array([*call.constants, 0.0], np.float64),
        )
    )


_lower_to_handler = mlir.lower_fun(_to_handler)


def _lower_on_cpu(ctx: Any, *operands: Any, call: Call, donated: bool) -> Any:
    # A call is not divided between devices, so that with several XLA would gather every array.
    axes = ctx.module_context.axis_context
    if getattr(axes, "num_devices", None) == 1:
        return _lower_to_handler(ctx, *operands, call=call, donated=donated)
    report("several devices: XLA computes the steps of arrays that are divided between them")
    return _lower_to_operations(ctx, *operands, call=call, donated=donated)


loop_p.def_impl(_in_xla)
loop_p.def_abstract_eval(_types)
batching.primitive_batchers[loop_p] = _batched
ad.primitive_jvps[loop_p] = _derivative
mlir.register_lowering(loop_p, _lower_to_operations)
mlir.register_lowering(loop_p, _lower_on_cpu, platform="cpu")
