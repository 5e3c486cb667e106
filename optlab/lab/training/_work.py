"""How much a program computes, counted in its jaxpr, without compiling or running it."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Sharding


class Work(NamedTuple):
    """The work of a program.

    Attributes:
        flops: floating-point operations: two for each product in a matrix product or a convolution,
            one for each element of any other result. The body of a loop counts once for each pass
            where their number is known.
        has_convolutions: whether there is a convolution.
        has_loops: whether there is a loop, such as that of a recurrent network.
        is_divided: whether arrays are divided over several devices.
    """

    flops: float
    has_convolutions: bool
    has_loops: bool
    is_divided: bool


def work_of(function: Callable[..., Any], *args: Any) -> Work:
    """Return the work of a function of arrays, or of their shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> work_of(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 4))).flops
        48.0
    """
    names: set[str] = set()
    flops = _flops(jax.make_jaxpr(function)(*args).jaxpr, names)
    has_loops = bool(names & {"scan", "while"})
    return Work(flops, "conv_general_dilated" in names, has_loops, _DIVIDED in names)


_DIVIDED = "arrays on several devices"


def _flops(jaxpr: Jaxpr, names: set[str]) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        names.add(name)
        if name in ("reshard", "shard_map", "sharding_constraint") or (
            name == "device_put" and any(map(_is_on_several, eqn.params["devices"]))
        ):
            names.add(_DIVIDED)
        inside = [_flops(inner, names) for inner in _inner(eqn.params)]
        size = sum(math.prod(getattr(out.aval, "shape", ())) for out in eqn.outvars)
        if name == "scan":
            total += eqn.params["length"] * sum(inside)
        elif name == "cond":
            total += max(inside, default=0.0)
        elif name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * size * math.prod(kernel) / max(outputs, 1)
        else:
            total += sum(inside) if inside else size
    return total


def _is_on_several(where: Any) -> bool:
    return isinstance(where, Sharding) and len(where.device_set) > 1


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yield the jaxprs among the parameters of an equation."""
    for value in params.values():
        for entry in value if isinstance(value, list | tuple) else (value,):
            if isinstance(entry, ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, Jaxpr):
                yield entry
