"""What happens to a group of parameters, and how refinements change it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optlab import _checks
from optlab._types import ArrayLike
from optlab.rules import Leaf

_RESERVED = set("/@\n")


@dataclass(frozen=True)
class Group:
    """What happens to a group of parameters; made with `group` and `frozen`.

    Attributes:
        name: as hyperparameters and tables call it; "" for the pattern's own text.
        optimizer: the transformation; None for that of `partition`.
        lr_mult: multiplies the learning rate.
        wd_mult: multiplies the weight decay.
        is_frozen: whether the parameters stay as they are.
        hyperparams: values that replace those of the optimizer, by name.
    """

    name: str = ""
    optimizer: Any = None
    lr_mult: ArrayLike = 1.0
    wd_mult: ArrayLike = 1.0
    is_frozen: bool = False
    hyperparams: Mapping[str, Any] = field(default_factory=dict)


def group(
    optimizer: Any = None,
    *,
    name: str = "",
    lr_mult: ArrayLike = 1.0,
    wd_mult: ArrayLike = 1.0,
    **hyperparams: Any,
) -> Group:
    """Say what happens to the parameters of a group.

    Args:
        optimizer: the transformation of this group; None for that of `partition`. Any of Optax's
            will do, but only of optlab's own can hyperparameters and decay be set by group.
        name: the name of the group, for `hyperparams` and tables; by default the pattern's text.
        lr_mult: multiplies the learning rate, ≥ 0: after the direction, and together with the whole
            schedule, its warm-up and its floor. It multiplies the decoupled decay with it.
        wd_mult: multiplies the weight decay, ≥ 0.
        **hyperparams: values in place of those of the optimizer, by its names: `weight_decay=0.0`,
            `b2=0.95`, or a schedule of the group's own as `learning_rate`.

    Raises:
        ValueError: a multiplier is negative or not finite, or the optimizer no transformation.

    Example:
        >>> group(lr_mult=0.1, weight_decay=0.0).lr_mult
        0.1
    """
    who = "groups.group"
    if optimizer is not None and not callable(getattr(optimizer, "update", None)):
        remedy = "pass optlab.adam(1e-3), say, or lr_mult= for a multiplier of the rate"
        required = "optimizer must be an optax.GradientTransformation"
        _checks.fail(who, required, repr(optimizer), remedy)
    if not isinstance(name, str) or _RESERVED & set(name):
        _checks.fail(who, 'name must be a string without "/" and "@"', repr(name))
    lr_mult = _checks.check_number(who, "lr_mult", lr_mult, _checks.NONNEGATIVE)
    wd_mult = _checks.check_number(who, "wd_mult", wd_mult, _checks.NONNEGATIVE)
    return Group(name, optimizer, lr_mult, wd_mult, hyperparams=hyperparams)


def frozen() -> Group:
    """Say that the parameters of a group stay as they are.

    They are not moved by a bit and have neither decay nor state. Clipping, averages and monitors
    that `partition` has around the groups do not see them, and a compiled program does not compute
    their gradients unless something else reads them.
    """
    return Group("frozen", is_frozen=True)


class Refinement(NamedTuple):
    """How a modifier, such as `layerwise_decay`, changes the group of one parameter.

    Attributes:
        label: what it adds to the group's name; "" for nothing.
        rate: multiplies the learning rate: a number, or one for each slice of a stacked array.
        decay: multiplies the weight decay.
        eps: multiplies ε outside of Adam's root, and with its square the one inside.
        start: the number of updates before which the parameter is frozen.
    """

    label: str = ""
    rate: Any = 1.0
    decay: ArrayLike = 1.0
    eps: float = 1.0
    start: int = 0


@dataclass(frozen=True)
class Modifier:
    """Refines the groups of all parameters at once.

    Attributes:
        refine: (the facts of all parameters, whether each is trained, at least in part, and the
            groups of each) → for each parameter a refinement, or None where there is none. A
            parameter has one group with its optimizer, more where its slices have several, and
            none where it is frozen.
        once: the name of the modifier, where a partition takes one of them at most; None where it
            takes several.
    """

    refine: Callable[
        [Sequence[Leaf], Sequence[bool], Sequence[tuple[Group, ...]]], Sequence[Refinement | None]
    ]
    once: str | None = None
