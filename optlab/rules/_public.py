"""From the function of a rule to public functions: a direction, and the optimizer made of it.

A rule is declared once, as a function of a name and of its hyperparameters that returns a `Rule`.
Its signature and its docstring are those of the public functions.
"""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec

import optax

from optlab import _checks
from optlab._types import Hyperparam
from optlab.rules._lift import lift
from optlab.rules._rule import Rule
from optlab.rules._steps import learning_rate as learning_rate_rule

P = ParamSpec("P")
Transformation = optax.GradientTransformationExtraArgs

_RATE = "learning_rate: α ≥ 0, a number, an array or a schedule of the update's number from 0."


def direction(
    name: str,
    rules: Callable[Concatenate[str, P], Rule | Sequence[Rule]],
    *,
    like: Sequence[Callable[..., Any]] = (),
    **defaults: Any,
) -> Callable[P, Transformation]:
    """Return the public function of a direction.

    Args:
        name: the name of the function; errors begin with it.
        rules: (name, *hyperparameters) → the rule, or a sequence of rules that act one after the
            other.
        like: functions whose docstrings describe the arguments that `rules` does not describe.
        **defaults: defaults of hyperparameters where they differ from those of `rules`.

    Returns:
        (*hyperparameters) → an `optax.GradientTransformationExtraArgs`. Its docstring is that of
        `rules`, followed by what all directions have in common.
    """

    def make(arguments: inspect.BoundArguments) -> list[Rule]:
        return _as_list(rules(name, *arguments.args, **arguments.kwargs))

    parameters = [
        parameter.replace(default=defaults.get(parameter.name, parameter.default))
        for parameter in _parameters(rules)
    ]
    returns = "A transformation that makes a direction."
    return _public(name, rules, parameters, make, returns, like)


def optimizer(
    name: str,
    rules: Callable[Concatenate[str, P], Rule | Sequence[Rule]],
    *,
    summary: str = "",
    like: Sequence[Callable[..., Any]] = (),
    rates: Callable[..., Rule | Sequence[Rule]] = learning_rate_rule,
) -> Callable[Concatenate[Hyperparam, P], Transformation]:
    """Return the public function of an optimizer: the rules, and behind them the learning rate.

    Args:
        name: the name of the function; errors begin with it.
        rules: (name, *hyperparameters) → the rule, or a sequence of rules that act one after the
            other. If `learning_rate` is among the hyperparameters, the sequence is the whole
            optimizer: `rules` then decides where the learning rate acts, and whether one is needed.
        summary: the first line of the docstring, in place of that of `rules`.
        like: functions whose docstrings describe the arguments that `rules` does not describe.
        rates: (name, learning rate, **those of the other arguments that it names) → the rule of
            the learning rate, or rules for several rates; by default one for all parameters.

    Returns:
        (learning_rate, *hyperparameters) → an `optax.GradientTransformationExtraArgs`.
    """
    with_any: Callable[..., Rule | Sequence[Rule]] = rules
    parameters = _parameters(rules)
    own = {parameter.name for parameter in parameters}
    takes_rate = "learning_rate" in own
    read_by_rates = [p.name for p in _parameters(rates) if p.name in own]

    def make(arguments: inspect.BoundArguments) -> list[Rule]:
        if takes_rate:
            return _as_list(with_any(name, *arguments.args, **arguments.kwargs))
        rate, *others = arguments.args
        named = {key: arguments.arguments[key] for key in read_by_rates}
        return [
            *_as_list(with_any(name, *others, **arguments.kwargs)),
            *_as_list(rates(name, rate, **named)),
        ]

    rate = inspect.Parameter(
        "learning_rate", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Hyperparam"
    )
    returns = "The optimizer; its state is the tuple of its rules' states"
    if takes_rate:
        return _public(name, rules, parameters, make, f"{returns}.", like, summary)
    returns += ", that of the rate last."
    return _public(name, rules, [rate, *parameters], make, returns, like, summary)


def _public(
    name: str,
    rules: Callable[..., Any],
    parameters: Sequence[inspect.Parameter],
    make: Callable[[inspect.BoundArguments], list[Rule]],
    returns: str,
    like: Sequence[Callable[..., Any]] = (),
    summary: str = "",
) -> Callable[..., Transformation]:
    """Return a function with its name, its signature and its docstring."""
    signature = inspect.Signature(
        parameters, return_annotation="optax.GradientTransformationExtraArgs"
    )

    def function(*args: Any, **kwargs: Any) -> Transformation:
        try:
            arguments = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}() {error}") from None
        arguments.apply_defaults()
        return lift(*make(arguments))

    function.__name__ = function.__qualname__ = name
    function.__module__ = rules.__module__
    function.__signature__ = signature
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    function.__annotations__["return"] = signature.return_annotation
    function.__doc__ = _document(rules, parameters, returns, like, summary)
    return function


def _as_list(rules: Rule | Sequence[Rule]) -> list[Rule]:
    if isinstance(rules, Rule):
        return [rules]
    if not isinstance(rules, list | tuple):
        got = type(rules).__name__
        _checks.fail("optimizer", "its function must return a Rule or a list of them", got)
    return list(rules)


def _parameters(rules: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a rule's function without its first, the name."""
    return list(inspect.signature(rules).parameters.values())[1:]


def _document(
    rules: Callable[..., Any],
    parameters: Sequence[inspect.Parameter],
    returns: str,
    like: Sequence[Callable[..., Any]],
    summary: str,
) -> str:
    """Return the docstring of a public function, from those of the functions of its rules."""
    own_summary, described, rest = _sections(rules)
    texts = {"learning_rate": _RATE}
    for other in reversed(like):
        texts |= _sections(other)[1]
    texts |= described
    args = [f"    {texts[p.name]}" for p in parameters if p.name in texts]
    parts = [
        summary or own_summary,
        *(["Args:\n" + "\n".join(args)] if args else []),
        f"Returns:\n    {returns}",
        "Raises:\n    ValueError: a hyperparameter is outside its range.",
        *rest,
    ]
    module = sys.modules.get(rules.__module__)  # none for a function that `exec` made
    page = getattr(module, "__doc__", None) or ""
    reference = re.search(r"^Reference: (.*?)(\n\n|\Z)", page, re.DOTALL | re.MULTILINE)
    if reference:
        parts.append("Reference:\n    " + reference[1].strip().replace("\n", "\n    "))
    return "\n\n".join(parts) + "\n"


def _sections(function: Callable[..., Any]) -> tuple[str, dict[str, str], list[str]]:
    """Return a docstring's summary, its `Args` by name, and its other sections."""
    text = inspect.getdoc(function) or ""
    head, *sections = re.split(r"^(?=[A-Z][a-z]+:\n)", text, flags=re.MULTILINE)
    args: dict[str, str] = {}
    others = []
    for section in sections:
        if not section.startswith("Args:\n"):
            others.append(section.strip())
            continue
        for entry in re.split(r"^    (?=\w+: )", section[6:], flags=re.MULTILINE):
            if entry.strip():
                args[entry.split(":", 1)[0]] = entry.rstrip()
    return head.strip(), args, others
