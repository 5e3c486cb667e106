"""What a loop can compute: operations of JAX on one element, as expressions of C.

A value of type bool is an int, one of a half-precision type is a float that the type holds exactly.
Each operation on halves is rounded to the type, as the operations of JAX say. Nothing is contracted
or reordered, so that one processor computes what another does.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Kind(NamedTuple):
    """How C holds a type.

    Attributes:
        memory: the type of an element of an array.
        register: the type of a value in the loop.
        floating: whether it is a floating-point type.
        suffix: what ends the names of C's functions on it.
    """

    memory: str
    register: str
    floating: bool = False
    suffix: str = ""


KINDS = {
    "float32": Kind("float", "float", True, "f"),
    "float64": Kind("double", "double", True),
    "bfloat16": Kind("uint16_t", "float", True, "f"),
    "float16": Kind("_Float16", "float", True, "f"),
    "bool": Kind("uint8_t", "int"),
    **{f"{sign}int{bits}": Kind(f"{sign}int{bits}_t", f"{sign}int{bits}_t") for sign in ("", "u")
       for bits in (8, 16, 32, 64)},
}  # fmt: skip
"""The types of arrays that a loop reads and writes."""

HALVES = {"bfloat16", "float16"}

PRELUDE = """\
#include <stdint.h>
static inline float load_bfloat16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}
static inline uint16_t store_bfloat16(float x) { /* x is rounded already */
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return (uint16_t)(bits >> 16);
}
static inline float round_bfloat16(float x) {
  uint32_t bits;
  float y;
  __builtin_memcpy(&bits, &x, 4);
  uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
  bits = (x != x ? bits | 0x400000 : rounded) & 0xffff0000;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}
"""
"""What every loop's file begins with."""

HALF_PRELUDE = """\
static inline float load_float16(_Float16 x) { return (float)x; }
static inline _Float16 store_float16(float x) { return (_Float16)x; }
static inline float round_float16(float x) { return (float)(_Float16)x; }
"""
"""What the file of a loop with float16 has besides; not every compiler knows the type."""


def load(dtype: str, place: str) -> str:
    """Return the value of an element in memory."""
    return f"load_{dtype}({place})" if dtype in HALVES else place


def store(dtype: str, value: str) -> str:
    """Return what memory holds of a value."""
    return f"store_{dtype}({value})" if dtype in HALVES else value


class Ordinary(str):
    """The name of a constant in C that is neither 0 nor NaN nor infinite."""

    __slots__ = ()


Write = Callable[[list[str], list[str], str, dict[str, Any]], str | None]
"""Operands, their types, the result's type, the parameters → an expression; None if unknown."""


def _infix(sign: str, floating: bool = True, integer: bool = True, boolean: str = "") -> Write:
    def write(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
        if types[0] == "bool":
            return f"({x[0]} {boolean} {x[1]})" if boolean else None
        allowed = floating if KINDS[types[0]].floating else integer
        return f"({x[0]} {sign} {x[1]})" if allowed else None

    return write


def _compare(sign: str) -> Write:
    return lambda x, types, out, params: f"({x[0]} {sign} {x[1]})"


def _extremum(sign: str) -> Write:
    """Return the larger or smaller; NaN where an operand is."""

    def write(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
        return _choose(sign, types[0], *x)

    return write


def _choose(sign: str, dtype: str, a: str, b: str) -> str:
    if not KINDS[dtype].floating or isinstance(a, Ordinary):
        return f"({a} {sign} {b} ? {a} : {b})"
    if isinstance(b, Ordinary):
        return f"({b} {sign} {a} ? {b} : {a})"
    zero = f"{a} + {b}" if sign == ">" else f"-(-{a} - {b})"  # 0 is larger than −0
    return f"({a} {sign} {b} || {a} != {a} ? {a} : {a} == 0 && {b} == 0 ? {zero} : {b})"


def _clamp(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    low, value, high = x
    kind, dtype = KINDS[types[1]].register, types[1]
    raised = f"const {kind} raised = {_choose('>', dtype, low, value)};"
    return f"({{ {raised} {_choose('<', dtype, high, 'raised')}; }})"


def _float_function(name: str) -> Write:
    def write(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
        kind = KINDS[types[0]]
        return f"__builtin_{name}{kind.suffix}({x[0]})" if kind.floating else None

    return write


def _abs(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    kind = KINDS[types[0]]
    if kind.floating:
        return f"__builtin_fabs{kind.suffix}({x[0]})"
    return f"({x[0]} < 0 ? -{x[0]} : {x[0]})"


def _sign(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    if types[0] == "bool":
        return None
    return f"({x[0]} > 0 ? 1 : {x[0]} < 0 ? -1 : {x[0]})"


def _negate(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    return None if types[0] == "bool" else f"(-{x[0]})"


def _not(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    return f"(!{x[0]})" if types[0] == "bool" else f"(~{x[0]})"


def _rsqrt(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    kind = KINDS[types[0]]
    return f"(1 / __builtin_sqrt{kind.suffix}({x[0]}))" if kind.floating else None


def _is_finite(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    return f"({x[0]} - {x[0]} == 0)" if KINDS[types[0]].floating else "1"


def _square(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    return None if types[0] == "bool" else f"({x[0]} * {x[0]})"


def _integer_pow(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    # XLA rounds the products of a half once, at the end or at each, as it likes.
    y = params["y"]
    if types[0] == "bool" or not 1 <= y <= 3:
        return None
    return "(" + " * ".join([x[0]] * y) + ")"


def _select(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    return f"({x[0]} ? {x[2]} : {x[1]})" if types[0] == "bool" and len(x) == 3 else None


def _round(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    to_even = params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN
    return _float_function("rint")(x, types, out, params) if to_even else None


def _convert(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    source, target = types[0], out
    if target == "bool":
        return f"({x[0]} != 0)"
    if source == "float64" and target in HALVES:
        return None  # rounded once, not to float32 first
    if KINDS[source].floating and not KINDS[target].floating:
        return None  # C leaves open what a number out of range becomes
    if "int64" in source and target in HALVES | {"float32"}:
        return None
    return f"(({KINDS[target].register}){x[0]})"


def _bitcast(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    sizes = [jnp.dtype(dtype).itemsize for dtype in (types[0], out)]
    if sizes[0] != sizes[1] or "bool" in (types[0], out) or {types[0], out} & HALVES:
        return None
    source, target = KINDS[types[0]].register, KINDS[out].register
    return f"(((union {{ {source} a; {target} b; }}){{ .a = {x[0]} }}).b)"


def _shift(sign: str, unsigned: bool) -> Write:
    def write(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
        bits = 8 * jnp.dtype(types[0]).itemsize
        if types[0] == "bool" or bits < 32:
            return None
        by = f"(uint{bits}_t){x[1]}"
        value = f"({'u' * unsigned}int{bits}_t){x[0]}"
        inside, outside = f"{value} {sign} {by}", "0" if unsigned else f"{value} {sign} {bits - 1}"
        return f"({by} < {bits} ? {inside} : {outside})"

    return write


def _same(x: list[str], types: list[str], out: str, params: dict[str, Any]) -> str | None:
    return x[0]


OPERATIONS: dict[str, Write] = {
    "abs": _abs,
    "add": _infix("+", boolean="|"),
    "add_any": _infix("+", boolean="|"),
    "and": _infix("&", floating=False, boolean="&"),
    "bitcast_convert_type": _bitcast,
    "broadcast_in_dim": _same,
    "ceil": _float_function("ceil"),
    "clamp": _clamp,
    "convert_element_type": _convert,
    "copy": _same,
    "div": _infix("/", integer=False),
    "eq": _compare("=="),
    "expand_dims": _same,
    "floor": _float_function("floor"),
    "ge": _compare(">="),
    "gt": _compare(">"),
    "integer_pow": _integer_pow,
    "is_finite": _is_finite,
    "le": _compare("<="),
    "lt": _compare("<"),
    "max": _extremum(">"),
    "min": _extremum("<"),
    "mul": _infix("*", boolean="&"),
    "ne": _compare("!="),
    "neg": _negate,
    "not": _not,
    "optimization_barrier": _same,
    "or": _infix("|", floating=False, boolean="|"),
    "reshape": _same,
    "round": _round,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "shift_left": _shift("<<", unsigned=True),
    "shift_right_arithmetic": _shift(">>", unsigned=False),
    "shift_right_logical": _shift(">>", unsigned=True),
    "sign": _sign,
    "sqrt": _float_function("sqrt"),
    "square": _square,
    "squeeze": _same,
    "sub": _infix("-"),
    "xor": _infix("^", floating=False, boolean="^"),
}
"""By the name of JAX's primitive."""

EXACT = {name for name, write in OPERATIONS.items() if write is _same}
EXACT |= {"abs", "clamp", "max", "min", "neg", "select_n", "sign"}
"""Operations whose result needs no rounding to the type of the operands."""

MOVES = {"reshape", "squeeze", "expand_dims", "copy", "optimization_barrier", "broadcast_in_dim"}
"""Operations that give a value another shape at most."""

REDUCTIONS = {"reduce_sum": 0, "reduce_max": 1, "reduce_min": 2, "reduce_and": 2, "reduce_or": 1}
"""How the handler combines what chunks make: 0 adds, 1 takes the largest, 2 the smallest."""

REDUCED_TYPES = {"float32": 0, "float64": 1, "bool": 2}
"""The handler's codes of the types that are reduced."""


def reduction_code(name: str, dtype: str) -> int | None:
    """Return the handler's code of a reduction; None for one that it does not know."""
    if name not in REDUCTIONS or dtype not in REDUCED_TYPES:
        return None
    if (dtype == "bool") != (name in ("reduce_and", "reduce_or")):
        return None
    return 4 * REDUCTIONS[name] + REDUCED_TYPES[dtype]


def expression(
    name: str, operands: list[str], types: Sequence[str], out: str, params: dict[str, Any]
) -> str | None:
    """Return the value of an operation in C; None if a loop cannot compute it.

    Args:
        name: the name of the primitive.
        operands: the operands in C, each of which may stand several times in the result.
        types: their types.
        out: the type of the result.
        params: the parameters of the primitive.
    """
    if name not in OPERATIONS or out not in KINDS or any(dtype not in KINDS for dtype in types):
        return None
    text = OPERATIONS[name](operands, list(types), out, params)
    if text is not None and out in HALVES and name not in EXACT:
        return f"round_{out}({text})"
    return text


def constant(value: np.ndarray) -> float | None:
    """Return a constant as a double that holds it exactly; None if there is none."""
    if value.dtype.kind in "iu" and abs(int(value)) >= 2**53:
        return None
    return float(value)
