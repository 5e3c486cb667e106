"""The two rules that stand behind a direction: decoupled weight decay and the learning rate.

u ← u + λθ
u ← −α·u
"""

from typing import Literal

from optlab import _checks
from optlab._types import Hyperparam, Mask
from optlab.rules._hyperparams import number
from optlab.rules._rule import Rule


def weight_decay(who: str, weight_decay: Hyperparam, mask: Mask | None = None) -> Rule:
    """Return the rule u ← u + λθ.

    Behind a direction and before the learning rate it is decoupled decay, in front of the direction
    the gradient of an L2 penalty ½λ‖θ‖².

    Args:
        who: the public name that errors begin with.
        weight_decay: λ ≥ 0.
        mask: which parameters are decayed; None for all.
    """
    return Rule(
        who,
        kind="add_decayed_weights",
        hyperparams={"weight_decay": number(weight_decay)},
        once=lambda h, t: h.weight_decay,
        leaf=lambda u, slots, decay, p: (u + decay * p, slots),
        metric=lambda slots, decay: 1.0,
        needs_params=True,
        mask=mask,
        counter="step",
    )


def learning_rate(
    who: str,
    learning_rate: Hyperparam,
    flip_sign: bool = True,
    counter: Literal["count", "step"] = "count",
) -> Rule:
    """Return the rule u ← −α·u, with which every optimizer ends.

    Args:
        who: the public name that errors begin with.
        learning_rate: α ≥ 0.
        flip_sign: whether to descend; False multiplies by α.
        counter: what the state calls the number of updates, if no other rule of the lift counts.
    """
    descends = _checks.check_flag(who, "flip_sign", flip_sign)
    return Rule(
        who,
        kind="scale_by_learning_rate",
        hyperparams={"learning_rate": number(learning_rate)},
        once=lambda h, t: -h.learning_rate if descends else h.learning_rate,
        leaf=lambda u, slots, factor, p: (factor * u, slots),
        metric=lambda slots, factor: abs(factor),
        counter=counter,
    )
