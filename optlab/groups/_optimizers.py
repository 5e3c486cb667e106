"""The transformation of one group: the optimizer with the group's own numbers."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._types import Array, ArrayLike, Hyperparam
from optlab.groups._settings import Group
from optlab.rules import Leaf, Rule
from optlab.rules._lift import Lifted, lifted

Multipliers = Mapping[str, tuple[float, ...]]
"""By path, what the updates of the slices of an array are multiplied by."""


def of_group(
    who: str,
    name: str,
    settings: Group,
    optimizer: Any,
    rate: ArrayLike,
    decay: ArrayLike,
    eps: float,
    multipliers: Multipliers,
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation of one group.

    Args:
        who: the public name that errors begin with.
        name: the group's.
        settings: what the user says of the group.
        optimizer: the transformation whose numbers change.
        rate: multiplies the learning rate.
        decay: multiplies the weight decay.
        eps: multiplies ε.
        multipliers: those of the slices of some arrays.
    """
    if not isinstance(optimizer, Lifted):
        if settings.hyperparams or not (is_one(decay) and is_one(eps)):
            what = ", ".join(settings.hyperparams) or (
                "eps" if is_one(decay) else "the weight decay"
            )
            _checks.fail(
                who,
                f"{what} of the group {name!r} can be set where the optimizer is one of optlab's "
                "own, without a wrapper",
                "a transformation whose rules are not known",
                "pass optlab.adamw(…) as optimizer, and what acts on all groups as around=",
            )
        # A multiplier of the update multiplies the rate, wherever in the chain the rate stands.
        scales = [] if is_one(rate) and not multipliers else [_scale(rate, multipliers)]
        chain = optax.chain(optimizer, *(lifted((rule,)) for rule in scales))
        return optax.with_extra_args_support(chain if scales else optimizer)
    rules = _with_values(who, name, optimizer.rules, settings.hyperparams)
    rules, has_rate = _multiplied(rules, "learning_rate", rate)
    rules, _ = _multiplied(rules, "weight_decay", decay)
    rules, _ = _multiplied(rules, "eps", eps)
    rules, _ = _multiplied(rules, "eps_root", eps * eps)
    if multipliers or not (has_rate or is_one(rate)):
        rules = (*rules, _scale(1.0 if has_rate else rate, multipliers))
    return lifted(rules, joins=True, like=optimizer)


def _with_values(
    who: str, name: str, rules: Sequence[Rule], values: Mapping[str, Any]
) -> tuple[Rule, ...]:
    """Return rules with other values of hyperparameters."""
    known = sorted({own for rule in rules for own in rule.hyperparams})
    for own in values:
        if own not in known:
            close = difflib.get_close_matches(own, [*known, "lr_mult", "wd_mult"])
            _checks.fail(
                who,
                f"the group {name!r} must set hyperparameters of its optimizer",
                own,
                f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}",
            )
    return tuple(_changed(rule, lambda own, old: values.get(own, old)) for rule in rules)


def _multiplied(
    rules: Sequence[Rule], ending: str, factor: ArrayLike
) -> tuple[tuple[Rule, ...], bool]:
    """Return rules whose hyperparameters of this name are multiplied, and whether there is one.

    An optimizer may have several, such as Muon's `adam_learning_rate`.
    """

    def is_meant(name: str) -> bool:
        return name == ending or name.endswith(f"_{ending}")

    found = any(is_meant(name) for rule in rules for name in rule.hyperparams)
    if is_one(factor):
        return tuple(rules), found
    change = lambda name, old: _times(factor, old) if is_meant(name) else old  # noqa: E731
    return tuple(_changed(rule, change) for rule in rules), found


def _changed(rule: Rule, change: Callable[[str, Hyperparam], Hyperparam]) -> Rule:
    """Return a rule with other values of its hyperparameters."""
    values = {name: change(name, own.value) for name, own in rule.hyperparams.items()}
    if all(values[name] is own.value for name, own in rule.hyperparams.items()):
        return rule
    new = {
        name: parameter._replace(value=values[name]) for name, parameter in rule.hyperparams.items()
    }
    # Layouts belong to the old rule's functions, which the new one shares.
    return replace(rule, hyperparams=new)


def _times(factor: ArrayLike, value: Hyperparam) -> Hyperparam:
    """Return a hyperparameter times a number, whether it is scheduled or not."""
    if callable(value):
        return lambda step: factor * value(step)
    return factor * value


def is_one(factor: ArrayLike) -> bool:
    """Whether a multiplier is known to change nothing."""
    return isinstance(factor, int | float) and factor == 1


def _scale(rate: ArrayLike, multipliers: Multipliers) -> Rule:
    """Return the rule that multiplies updates, some of them slice by slice."""

    def factors(leaf: Leaf) -> tuple[float, ...]:
        return multipliers.get(leaf.path, ())

    return Rule(
        "groups.partition",
        _scaled,
        kind="scale_by_group",
        once=lambda h, t: rate,
        static=factors,
        counter="step",
    )


def _scaled(
    u: Array, slots: Any, rate: Array, p: Array | None, factors: tuple[float, ...]
) -> tuple[Array, Any]:
    if factors:
        rate = rate * jnp.asarray(factors, u.dtype).reshape((-1,) + (1,) * (u.ndim - 1))
    return u * rate, slots
