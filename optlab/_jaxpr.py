"""Programs as JAX traces them: which function an operation calls, and how it is computed anew."""

import math
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

INSIDE = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
INSIDE |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
"""The primitives that call a function, with the parameter that holds it."""

for_loops: ContextVar[bool] = ContextVar("for loops", default=False)
"""Whether a program is traced for `optlab.native`, which needs no help to save memory."""

FEW = 64
"""The most numbers of an array whose computation takes no time beside that of parameters."""


def is_few(aval: Any) -> bool:
    """Return whether an array holds few numbers, given its shape and type."""
    shape = getattr(aval, "shape", ())
    return all(isinstance(length, int) for length in shape) and math.prod(shape) <= FEW


def function_of(eqn: Any) -> ClosedJaxpr | None:
    """Return the function that an operation calls with its operands; None for any other."""
    function = eqn.params.get(INSIDE.get(eqn.primitive.name))
    if isinstance(function, Jaxpr) and not function.constvars:
        function = ClosedJaxpr(function, ())
    return function if isinstance(function, ClosedJaxpr) else None


def is_array(leaf: Any) -> bool:
    """Return whether a leaf of a tree is an array or a number."""
    return hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)


def run_equation(eqn: Any, operands: Iterable[Any]) -> list[Any]:
    """Compute an operation of a program on other operands."""
    primitive, functions = eqn.primitive, ()
    bound = primitive.get_bind_params(eqn.params)
    if isinstance(bound, tuple):  # in some versions of JAX functions come apart
        functions, bound = bound
    with eqn.ctx.manager:
        results = primitive.bind(*functions, *operands, **bound)
    return list(results) if primitive.multiple_results else [results]
