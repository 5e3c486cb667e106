"""What a value is, in words that are the same in every process, and what a function depends on.

A value is described by what it means, never by its address: a number by itself, an array by its
shape, its type and a digest of its numbers, a function by its name and what it closes over, any
other object by its type.
"""

import dataclasses
import dis
import enum
import functools
import hashlib
import math
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

DIGESTED_BYTES = 2**20
"""How much of an array is digested, in rows that are spread evenly over it."""

LONGEST = 160
"""The characters of a description; of a longer one the beginning and a digest are kept."""

_DEPTH = 12
_NODES = 20_000
"""Bounds of a description, for objects without an end."""

_LIBRARIES = tuple(
    f"{folder}{os.sep}"
    for folder in (
        Path(__file__).parent,
        *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")),
    )
)
"""The folders of code that is not the user's own."""


def described(value: Any, *, code: bool = True) -> Any:
    """Return a number, string or None as it is, and a text that stands for any other value.

    Args:
        value: any object.
        code: whether the code of functions of the user's own is a part of them.

    Example:
        >>> described(0.1), described(jnp.float32(0.1)), described(math.nan)
        (0.1, 0.1, 'nan')
        >>> described({"w": True, "b": False})
        "{'w': True, 'b': False}"
        >>> described(np.zeros((2, 3)))
        'float64[2, 3] #8b00a97e'
    """
    return _Describer(code).describe(value)


class _Describer:
    """Describes one value; what it meets a second time on one path is a cycle, and left out."""

    def __init__(self, code: bool):
        self._code, self._inside, self._nodes = code, [], 0

    def describe(self, value: Any) -> Any:
        """Return JSON: a scalar or a text."""
        if isinstance(value, str) and not isinstance(value, enum.Enum):
            return _shortened(value)
        if value is None or type(value) in (bool, int):
            return value
        if isinstance(value, float | np.floating):
            return number_text(value)
        if is_array(value):
            return _array_text(value)
        self._nodes += 1
        if id(value) in self._inside or len(self._inside) > _DEPTH or self._nodes > _NODES:
            return "…"
        self._inside.append(id(value))
        text = _shortened(self._text(value))
        self._inside.pop()
        return text

    def _text(self, value: Any) -> str:
        value = unwrapped(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            return self._call(f"partial {self.describe(value.func)}", arguments_of(value))
        if isinstance(value, MethodType):
            return f"{self.describe(value.__self__)}.{value.__name__}"
        if isinstance(value, type | BuiltinFunctionType | np.ufunc):
            return getattr(value, "__qualname__", value.__name__)
        if isinstance(value, enum.Enum):
            return str(value)
        if isinstance(value, np.dtype):
            return value.name
        if isinstance(value, bytes | complex | range | slice | type(...)):
            return repr(value)
        if isinstance(value, jax.ShapeDtypeStruct):
            return f"{value.dtype}{list(value.shape)}"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{k!r}: {self._part(x)}" for k, x in _items(value)) + "}"
        if isinstance(value, set | frozenset):
            return "{" + ", ".join(sorted(map(self._part, value))) + "}"
        if hasattr(value, "_fields"):
            return self._call(type(value).__name__, value._asdict())
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._part, value))}]"
        return self._object(value)

    def _object(self, value: Any) -> str:
        name = type(value).__qualname__
        text = getattr(value, "text", None)
        if callable(value) and isinstance(text, str):  # a schedule of optlab
            # Its text shows the address of a function in it, which that function stands for.
            whole = re.sub(r" at 0x[0-9a-f]+", "", text)
            return (
                whole
                if whole == text
                else f"{whole} {self.describe(getattr(value, 'function', None))}"
            )
        if isinstance(value, ModuleType) or type(value).__module__.startswith("jax"):
            return name
        if dataclasses.is_dataclass(value):
            return self._call(name, _fields_of(value))
        if callable(value):
            return self._call(name, getattr(value, "__dict__", {}))
        return name

    def _function(self, function: FunctionType) -> str:
        name = function.__name__
        if name != "<lambda>" and not is_own(function):
            name = maker_of(function)
        if self._code and is_own(function):
            name += f" {code_text(function)}"
        variables = variables_of(function)
        if not self._code:
            variables = {own: x for own, x in variables.items() if not is_no_fact(x)}
        return self._call(name, variables)

    def _call(self, name: str, variables: Mapping[str, Any]) -> str:
        arguments = ", ".join(f"{key}={self._part(value)}" for key, value in variables.items())
        return f"{name}({arguments})" if arguments else name

    def _part(self, value: Any) -> str:
        return repr(value) if isinstance(value, str) else str(self.describe(value))


_PLACES = jax.sharding.Mesh | jax.sharding.Sharding | jax.sharding.PartitionSpec | jax.Device


def is_no_fact(value: Any) -> bool:
    """Whether a variable of a task's function is None, or says only where arrays lie.

    A run may go on with other devices, or without a mesh.
    """
    return value is None or isinstance(value, _PLACES)


def _items(mapping: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    for key, value in mapping.items():
        yield (key if isinstance(key, str | int | tuple | EllipsisType) else described(key)), value


def _fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that tell its objects apart."""
    names = [field.name for field in dataclasses.fields(value) if field.compare is not False]
    return {name: getattr(value, name, None) for name in names}


def variables_of(function: Any) -> dict[str, Any]:
    """Return what a function depends on by name: defaults, closure and globals of its own."""
    function = unwrapped(function)
    if isinstance(function, functools.partial):
        return arguments_of(function) | variables_of(function.func)
    if isinstance(function, MethodType):
        return {"self": function.__self__, **variables_of(function.__func__)}
    if not isinstance(function, FunctionType):
        return {}
    variables = defaults_of(function)
    for name, cell in cells_of(function):
        variables |= content_of(name, cell)
    return variables | globals_of(function)


def cells_of(function: FunctionType) -> Iterator[tuple[str, Any]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def content_of(name: str, cell: Any) -> dict[str, Any]:
    try:
        return {name: cell.cell_contents}
    except ValueError:  # the variable has no value yet
        return {}


def defaults_of(function: FunctionType) -> dict[str, Any]:
    """Return the defaults of arguments, with which functions made in a loop often bind values."""
    if not is_own(function):
        return {}
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    values = function.__defaults__ or ()
    names = positional[len(positional) - len(values) :]
    defaults = {**dict(zip(names, values, strict=True)), **(function.__kwdefaults__ or {})}
    return {name: value for name, value in defaults.items() if value is not None}


def globals_of(function: FunctionType) -> dict[str, Any]:
    """Return the numbers, strings, arrays and functions of its module that a function reads."""
    if not is_own(function):
        return {}
    values = {}
    for code in _codes(function.__code__):
        for instruction in dis.get_instructions(code):
            name = instruction.argval
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and name in function.__globals__:
                value = function.__globals__[name]
                own = isinstance(value, FunctionType) and is_own(value)
                if own or is_array(value) or isinstance(value, bool | int | float | str | tuple):
                    values[name] = value
    return values


def arguments_of(call: functools.partial) -> dict[str, Any]:
    return {**{f"args[{i}]": value for i, value in enumerate(call.args)}, **call.keywords}


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def code_text(function: FunctionType) -> str:
    """Return what stands for the code of a function, without names of files and lines."""
    digest = hashlib.blake2b(digest_size=4)
    for code in _codes(function.__code__):
        # Through `described`, because the order in which a set is shown differs between processes.
        constants = [described(x) for x in code.co_consts if not isinstance(x, CodeType)]
        digest.update(code.co_code + repr((constants, code.co_names)).encode())
    return f"#{digest.hexdigest()}"


def maker_of(function: Any) -> str:
    """Return the name of the function that made another one, or its own if none did."""
    function = unwrapped(function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name.split(".<locals>")[0].removesuffix(".__init__")


def unwrapped(function: Any) -> Any:
    """Return the function that `jax.jit`, say, is wrapped around."""
    for _ in range(_DEPTH):
        if isinstance(function, FunctionType) or not callable(function):
            break
        function = getattr(function, "__wrapped__", function)
    return function


def is_own(function: FunctionType) -> bool:
    """Whether a function is the user's own, and not one of an installed package."""
    return not function.__code__.co_filename.startswith(_LIBRARIES)


def is_of_library(value: Any) -> bool:
    function = unwrapped(value)
    return isinstance(function, FunctionType) and not is_own(function)


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic | jax.Array)


def number_text(value: Any) -> float | str:
    number = float(value) if isinstance(value, float) else float(str(np.asarray(value)))
    return number if math.isfinite(number) else str(number)


def _array_text(array: Any) -> Any:
    if isinstance(array, jax.Array):
        if isinstance(array, Tracer):
            return f"{array.dtype}{list(array.shape)}"
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
    if array.shape == () and jnp.issubdtype(array.dtype, jnp.floating):
        return number_text(np.asarray(array))
    if array.shape == () and array.dtype.kind in "biu":
        return np.asarray(array).item()
    text = f"{array.dtype}{list(array.shape)}"
    whole = not isinstance(array, jax.Array) or array.is_fully_addressable
    if not whole or array.dtype.hasobject:  # its numbers are elsewhere, or are addresses
        return text
    digest = hashlib.blake2b(digest_size=4)
    for part in _samples(array):
        digest.update(np.ascontiguousarray(part).tobytes())
    return f"{text} #{digest.hexdigest()}"


def _samples(array: Any) -> Iterator[np.ndarray]:
    """Yield at most about `DIGESTED_BYTES` of an array, in rows spread evenly over it."""
    if isinstance(array, jax.Array) and {d.platform for d in array.devices()} == {"cpu"}:
        array = np.asarray(array)  # not a copy
    if array.nbytes <= DIGESTED_BYTES:
        yield np.asarray(array)
        return
    rows = len(array)
    row_bytes = array.nbytes // rows
    if row_bytes > DIGESTED_BYTES:
        for row in (0, rows - 1) if rows > 1 else (0,):
            yield from _samples(array[row])
        return
    chosen = np.linspace(0, rows - 1, DIGESTED_BYTES // max(row_bytes, 1)).astype(int)
    yield np.asarray(array[chosen])


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… #{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
