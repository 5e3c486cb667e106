"""What the dialects share: checks under a framework's own names, and the sign of the gradient."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._checks import Domain
from optlab._types import Array, Hyperparam, Mask
from optlab.rules import Rule
from optlab.rules import weight_decay as weight_decay_rule


def check(who: str, **numbers: tuple[Hyperparam, Domain]) -> None:
    """Require numbers to be in their domains, under the names that the framework gives them."""
    for name, (value, domain) in numbers.items():
        if not callable(value):
            kinds = "a number, a scalar array or a schedule"
            _checks.check_number(who, name, value, domain, kinds=kinds)


def pair(who: str, name: str, value: Any) -> tuple[Hyperparam, Hyperparam]:
    """Return two decay rates given as one argument."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        _checks.fail(who, f"{name} must be a pair of decay rates", f"{name}={value!r}")
    check(who, **{f"{name}[{i}]": (beta, _checks.DECAY) for i, beta in enumerate(value)})
    return tuple(value)


def is_zero(value: Hyperparam | None) -> bool:
    """Whether an argument says that a term is not there, so that no rule need be."""
    if value is None or callable(value) or isinstance(value, jax.core.Tracer):
        return value is None
    return bool(np.all(np.asarray(value) == 0))


def flip_sign_rules(who: str, maximize: bool) -> list[Rule]:
    """Return the rule that negates the gradient, or none where the optimizer descends."""
    if not _checks.check_flag(who, "maximize", maximize):
        return []
    leaf = lambda g, slots, h, p: (-g, slots)  # noqa: E731
    return [Rule(who, leaf, kind="flip_sign", counter="step")]


def decay_rules(who: str, weight_decay: Hyperparam | None, mask: Mask | None = None) -> list[Rule]:
    """Return the rule of weight decay, or none where there is no decay."""
    return [] if is_zero(weight_decay) else [weight_decay_rule(who, weight_decay, mask)]


def step_decay_rules(who: str, weight_decay: Hyperparam | None, *, times_rate: bool) -> list[Rule]:
    """Return the rule that subtracts λθ, or ηλθ with `times_rate`, from what is a step already."""

    def once(h, t):
        return -(h.weight_decay * h.learning_rate) if times_rate else -h.weight_decay

    reads = ("learning_rate",) if times_rate else ()
    return [replace(rule, once=once, reads=reads) for rule in decay_rules(who, weight_decay)]


def by_power(rule: Rule) -> Rule:
    """Return a rule whose averages are freed of the bias 1 − βᵗ with the present β.

    That is another number than the product of the values that β has had, where β changes.
    """
    parameters = {
        name: parameter._replace(by_power=True) for name, parameter in rule.hyperparams.items()
    }
    return replace(rule, hyperparams=parameters)


def first_undampened(h: Any, t: Array) -> Any:
    """Return momentum's scalars as PyTorch's; the first gradient enters the velocity whole."""
    # PyTorch has no dampening without momentum either.
    whole = (t == 1) | (h.momentum.value == 0)
    return h.momentum, jnp.where(whole, 1, h.dampening.complement)
