"""What the dialects share: checks under a framework's own names, and the sign of the gradient."""

from typing import Any, NamedTuple

import jax
import numpy as np

from optlab import _checks
from optlab._checks import Domain
from optlab._hyperparams import Hyperparams, Memory
from optlab._lift import Rule
from optlab._types import Array, Hyperparam, Mask
from optlab.transforms._weight_decay import weight_decay_rule


class FlipSignState(NamedTuple):
    """State of the rule that turns descent into ascent.

    Attributes:
        count: () int32; updates made.
        hyperparams: empty.
        memory: empty.
    """

    count: Array
    hyperparams: dict[str, Array]
    memory: Memory


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
    """Return the rule that negates the gradient, where asked for."""
    rule = Rule(
        state=FlipSignState,
        hyperparams=Hyperparams(who),
        leaf=lambda g, slots, h, p: (-g, slots),
    )
    return [rule] if maximize else []


def decay_rules(
    who: str, weight_decay: Hyperparam | None, mask: Mask | None = None, **options: bool
) -> list[Rule]:
    """Return the rule of weight decay, or none where there is no decay."""
    if is_zero(weight_decay):
        return []
    return [weight_decay_rule(who, weight_decay, mask, **options)]
