"""Expressions such as `warmup(cosine(1e-3, 1000), warmup_steps=100)`, read without running code.

Python's own parser makes a tree of the text. Only calls of known functions and literals are
accepted: numbers, strings, None, True, False, lists and tuples. Anything else is an error.
"""

import ast
import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

Functions = Mapping[str, Callable[..., Any]]
"""The functions that an expression may call, by name."""

PREFIXES = ("optlab.schedules.", "schedules.")
"""Prefixes that a name may have, so that a line of Python can be pasted unchanged."""

LONGEST = 10_000
"""The largest number of characters in an expression."""

_UNDERSTOOD = "only numbers, strings, lists and calls of {kind}s are understood"


class ExpressionError(ValueError):
    """An expression cannot be read; the message gives the reason in one line."""


def evaluate(
    text: str,
    functions: Functions,
    kind: str,
    names: Mapping[str, Any] | None = None,
    used: set[str] | None = None,
) -> Any:
    """Return the value of an expression, which must be a call.

    A field of a named tuple that a call returns can be selected: `one_cycle(0.1, 100).momentum`.

    Args:
        text: the expression.
        functions: the functions that it may call. Their ValueErrors are passed on unchanged.
        kind: what the functions make, for messages: "schedule".
        names: names that may stand for a number, with their values.
        used: a set to which those of `names` are added that the expression uses.

    Raises:
        ValueError: the text is not such an expression, or a function refuses its arguments.

    Example:
        >>> def double(x):
        ...     return 2 * x
        >>> evaluate("double(double(x=-2.5))", {"double": double}, "number")
        -10.0
        >>> evaluate("double(2 + 3)", {"double": double}, "number")
        Traceback (most recent call last):
        ...
        optlab.cli._expressions.ExpressionError: only numbers, strings, lists and calls of \
numbers are understood, got '2 + 3'
    """
    reader = _Reader(text, functions, kind, names or {}, set() if used is None else used)
    tree = _parse(text)
    if not isinstance(tree, ast.Call | ast.Attribute):
        if isinstance(tree, ast.Name):
            function = reader.function(tree)
            parameters_text = _describe_parameters(function)
            raise ExpressionError(f"{tree.id} needs its arguments: {tree.id}({parameters_text})")
        raise ExpressionError(f"expected the call of a {kind}, got {reader.source(tree)}")
    return reader.value(tree)


def suggestions(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the names that are similar, or "" if none is."""
    close = difflib.get_close_matches(name, list(known))
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""


def _parse(text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise ExpressionError(
            f"an expression may have at most {LONGEST} characters, got {len(text)}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of code that compiles but looks wrong
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ExpressionError(f"cannot read {_shortened(text)}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "it is nested too deeply" if not isinstance(error, ValueError) else str(error)
        raise ExpressionError(f"cannot read {_shortened(text)}: {reason}") from error


class _Reader:
    """Turns nodes of an expression's tree into values."""

    def __init__(
        self, text: str, functions: Functions, kind: str, names: Mapping[str, Any], used: set[str]
    ):
        self.text = text.strip()
        self.functions = functions
        self.kind = kind
        self.names = names
        self.used = used

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=number)) if (
                type(number) in (int, float)
            ):
                return -number if isinstance(node.op, ast.USub) else number
            case ast.Name(id=name) if name in self.names:
                self.used.add(name)
                return self.names[name]
            case ast.List():
                return [self.value(element) for element in node.elts]
            case ast.Tuple():
                return tuple(self.value(element) for element in node.elts)
            case ast.Call():
                return self.call(node)
            case ast.Attribute(value=ast.Call()):
                return self.field(node)
        self.fail(node)

    def call(self, node: ast.Call) -> Any:
        function = self.function(node.func)
        name = self.name(node.func)
        args = [self.value(arg) for arg in node.args]
        options: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise ExpressionError(
                    f"{name}: arguments must be written out, got **{self.source(keyword.value)}"
                )
            if keyword.arg in options:
                raise ExpressionError(f"{name}: {keyword.arg} is given twice")
            options[keyword.arg] = self.value(keyword.value)
        _check_arguments(name, function, args, options)
        try:
            return function(*args, **options)
        except (TypeError, OverflowError) as error:  # for example a number in place of a list
            raise ExpressionError(
                f"{name}: the arguments do not fit: {error} "
                f"(it takes {_describe_parameters(function)})"
            ) from error

    def function(self, node: ast.expr) -> Callable[..., Any]:
        name = self.name(node)
        if name not in self.functions:
            raise ExpressionError(
                f"unknown {self.kind} {_shortened(name)}{suggestions(name, self.functions)} "
                f"(known: {', '.join(self.functions)})"
            )
        return self.functions[name]

    def name(self, node: ast.expr) -> str:
        if not isinstance(node, ast.Name | ast.Attribute):
            self.fail(node)
        name = ast.unparse(node)
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        return name

    def field(self, node: ast.Attribute) -> Any:
        value = self.value(node.value)
        fields = getattr(value, "_fields", ())
        if node.attr not in fields:
            available = f"; it has {', '.join(fields)}" if fields else ""
            raise ExpressionError(f"{self.source(node.value)} has no {node.attr!r}{available}")
        return getattr(value, node.attr)

    def fail(self, node: ast.expr) -> NoReturn:
        got = self.source(node)
        required = _UNDERSTOOD.format(kind=self.kind)
        raise ExpressionError(f"{required}, got {got}")

    def source(self, node: ast.AST) -> str:
        return _shortened(ast.get_source_segment(self.text, node) or ast.unparse(node))


def _check_arguments(
    name: str, function: Callable[..., Any], args: list[Any], options: Mapping[str, Any]
) -> None:
    parameters = inspect.signature(function).parameters
    parameters_text = f"(it takes {_describe_parameters(function)})"
    for option in options:
        if option not in parameters:
            hint = suggestions(option, parameters)
            raise ExpressionError(f"{name}: unknown argument {option!r}{hint} {parameters_text}")
    if len(args) > len(parameters):
        raise ExpressionError(f"{name}: {len(args)} arguments are too many {parameters_text}")
    by_position = list(parameters)[: len(args)]
    for option in options:
        if option in by_position:
            raise ExpressionError(f"{name}: {option} is given twice {parameters_text}")
    missing = [
        repr(parameter.name)
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.name not in by_position
        and parameter.name not in options
    ]
    if missing:
        word = "argument" if len(missing) == 1 else "arguments"
        raise ExpressionError(f"{name}: missing {word} {', '.join(missing)} {parameters_text}")


def _describe_parameters(function: Callable[..., Any]) -> str:
    return ", ".join(
        parameter.name
        if parameter.default is parameter.empty
        else f"{parameter.name}={parameter.default!r}"
        for parameter in inspect.signature(function).parameters.values()
    )


def _shortened(text: str, longest: int = 60) -> str:
    """Return the text in quotes on one line, cut off if it is long."""
    line = " ".join(text.split())
    return repr(line if len(line) <= longest else line[: longest - 1] + "…")
