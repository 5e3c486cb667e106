"""LAMB with a decay that is decoupled, as timm and Keras have it.

    θ′ = (1 − ηλ) θ
    θ ← θ′ − η ‖θ′‖/‖r‖ · r                    r is Adam's direction

The ratio sees the decayed weights, so its rule must know the rate: `held_rate` stands before it,
and `step` at the end.
"""

from dataclasses import replace
from typing import Any

from optlab._types import Array, Hyperparam, Mask
from optlab.rules import (
    Rule,
    norm_of,
    number,
    times_ratio,
)
from optlab.rules import learning_rate as learning_rate_rule


def held_rate(who: str, learning_rate: Hyperparam) -> Rule:
    """Return a rule that holds the learning rate and changes nothing."""
    rule = learning_rate_rule(who, learning_rate)
    return replace(rule, leaf=lambda u, slots, factor, p: (u, slots))


def step(who: str) -> Rule:
    """Return the rule u ← −η·u with the rate that `held_rate` holds."""

    def once(h: Any, t: Array) -> Array:
        return -h.learning_rate

    def leaf(u, slots, factor, p):
        return factor * u, slots

    return Rule(who, leaf, kind="descend", reads=("learning_rate",), once=once, counter="step")


def decoupled_decay_and_trust_ratio(
    who: str,
    weight_decay: Hyperparam,
    decayed: Mask,
    adapted: Mask,
    max_trust_ratio: Hyperparam | None = None,
) -> Rule:
    """Return the rule u ← λθ + ‖θ′‖/‖u‖·u.

    Args:
        who: the public name that errors begin with.
        weight_decay: λ ≥ 0.
        decayed: which parameters are decayed.
        adapted: for which ones the ratio is not 1.
        max_trust_ratio: what the ratio is bounded by; None for no bound.
    """

    def leaf(u, slots, h, p, masks):
        largest = None if max_trust_ratio is None else h.max_trust_ratio
        decays = "decayed" in masks
        if "adapted" in masks:
            left = (1 - h.learning_rate * h.weight_decay) * p if decays else p
            u = times_ratio(u, norm_of(left), norm_of(u), largest=largest)
        return (u + h.weight_decay * p if decays else u), ()

    bounds = {} if max_trust_ratio is None else {"max_trust_ratio": number(max_trust_ratio)}
    return Rule(
        who,
        leaf,
        kind="decoupled_decay_and_trust_ratio",
        hyperparams={"weight_decay": number(weight_decay), **bounds},
        reads=("learning_rate",),
        static=lambda facts: facts.masks,
        masks={"decayed": decayed, "adapted": adapted},
        needs_params=True,
        complex="whole",
        counter="step",
    )
