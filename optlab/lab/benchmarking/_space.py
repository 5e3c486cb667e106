"""The published space: which hyperparameters are tuned, and over which values.

It is the same for all optimizers, by the names and the defaults of their arguments:

    learning_rate           LogUniform(c / 100, c · 100), c the usual rate of the rule
    weight_decay            LogUniform(1e-5, 0.1)
    momentum, b1, beta      Uniform(0.8, 0.98)

An argument is tuned if its default is a number; None stands for a part of a rule that is off. The
usual rate of a rule is the default of its argument `learning_rate`, or else stands in `USUAL`. All
other arguments keep their defaults. The ranges come in this order, so that trial n has the same
place in the range of the rate for every optimizer.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import optax

from optlab import _checks, optimizers
from optlab.lab.sweeps._space import LogUniform, Range, Uniform, checked_space

MakeOptimizer = Callable[..., optax.GradientTransformation]
"""A function of hyperparameters that returns an optimizer; it may be called with traced numbers."""

RATE = "learning_rate"

DECADES = 2
"""A rate is searched over so many decades below the usual one, and as many above it."""

USUAL: Mapping[MakeOptimizer, float] = {
    optimizers.sgd: 0.1,
    optimizers.adagrad: 0.01,
    optimizers.rmsprop: 0.001,
    optimizers.adam: 0.001,
    optimizers.adamw: 0.001,
    optimizers.lion: 0.0001,
    optimizers.adafactor: 0.01,
    optimizers.lars: 1.0,
    optimizers.lamb: 0.01,
    optimizers.muon: 0.001,
    optimizers.shampoo: 0.001,
    optimizers.soap: 0.003,
}
"""Rule → its usual learning rate, for those without a default.

Adam's is that of its paper, which AdamW, RMSProp, and Muon and Shampoo with Adam's step size, have
in common; Lion's is a tenth of it, SOAP's three times it, as their authors advise.
"""

DECAY = LogUniform(1e-5, 0.1)
MOMENTUM = Uniform(0.8, 0.98)

SHARED: Mapping[str, Range] = {
    "weight_decay": DECAY,
    "momentum": MOMENTUM,
    "b1": MOMENTUM,
    "beta": MOMENTUM,
}
"""Argument → range, for all rules that have it with a number as its default."""


def space_of(who: str, label: str, make: MakeOptimizer) -> dict[str, Range]:
    """Return the published space of an optimizer, name → range; empty if nothing is to be tuned.

    Args:
        who: the public name that errors begin with.
        label: the optimizer's label.
        make: the function that makes it.

    Raises:
        ValueError: it is no function, or its usual learning rate is not known.

    Example:
        >>> for name, values in space_of("bench", "adam", optimizers.adam).items():
        ...     print(name, values)
        learning_rate LogUniform(low=1e-05, high=0.1)
        b1 Uniform(low=0.8, high=0.98)
    """
    defaults = {
        name: parameter.default for name, parameter in _parameters(who, label, make).items()
    }
    space: dict[str, Range] = {}
    if RATE in defaults and (usual := _usual(who, label, make, defaults[RATE])) is not None:
        space[RATE] = LogUniform(usual / 10**DECADES, usual * 10**DECADES)
    space |= {name: SHARED[name] for name in SHARED if _is_number(defaults.get(name))}
    return space


def checked_spaces(
    who: str,
    optimizers: Mapping[str, MakeOptimizer],
    spaces: Mapping[str, Mapping[str, Range]] | None,
) -> dict[str, dict[str, Range]]:
    """Return label → space: the published ones, but those of the caller where there are any.

    Raises:
        ValueError: a label of `spaces` is not that of an optimizer, or a space is wrong.
    """
    spaces = {} if spaces is None else spaces
    if not isinstance(spaces, Mapping) or not all(isinstance(x, Mapping) for x in spaces.values()):
        required = "space must map labels of optimizers to spaces, name → range"
        remedy = 'pass {"adam": {"learning_rate": LogUniform(1e-4, 1e-1)}}'
        _checks.fail(who, required, repr(spaces), remedy)
    for label in spaces:
        if label not in optimizers:
            known = ", ".join(map(repr, optimizers))
            _checks.fail(who, f"space must have labels of optimizers, {known}", repr(label))
    return {
        label: checked_space(who, spaces[label]) if label in spaces else space_of(who, label, make)
        for label, make in optimizers.items()
    }


def _usual(who: str, label: str, make: MakeOptimizer, default: Any) -> float | None:
    """Return the usual rate of a rule; None if it finds its rate itself, or has none."""
    if _is_number(default):
        name = f"the default of {RATE} of optimizer {label!r}"
        return float(_checks.check_number(who, name, default, _checks.POSITIVE))
    rule = _unwrapped(make)
    usual = next((rate for known, rate in USUAL.items() if known is rule), None)
    if usual is None and default is not None:
        _checks.fail(
            who,
            f"{RATE} of optimizer {label!r} must have a default, which is the middle of its range",
            "none",
            "write def rule(learning_rate=1e-3, …), pass functools.partial(rule, "
            f"learning_rate=1e-3), or pass space={{{label!r}: …}}",
        )
    return usual


def _parameters(who: str, label: str, make: Any) -> Mapping[str, inspect.Parameter]:
    if not callable(make):
        _checks.fail(
            who,
            f"optimizer {label!r} must be a function of hyperparameters",
            repr(make),
            "pass optlab.adamw, and not optlab.adamw(1e-3)",
        )
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):
        required = f"optimizer {label!r} must have a signature, which says what to tune"
        _checks.fail(who, required, repr(make), "wrap it in a function")


def _unwrapped(make: MakeOptimizer) -> MakeOptimizer:
    return _unwrapped(make.func) if isinstance(make, partial) else make


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
