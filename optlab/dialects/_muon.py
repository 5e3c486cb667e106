"""What the dialects of Muon share: which parameters are its own, and what the others get.

A framework that takes an array as one matrix does not split a fused query, key and value.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from optlab._types import Hyperparam
from optlab.optimizers._muon import muon_rule
from optlab.rules import Axes, AxesChoice, Leaf, Rule, number, with_prefix

Owns = Callable[[Leaf], bool]
"""Whether Muon treats a leaf."""

ORIGINAL_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""(a, b, c) of Keller Jordan, the default of PyTorch, Keras and Optax."""

TIMM_COEFFICIENTS = {
    "original": (ORIGINAL_COEFFICIENTS,),
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (
        (8.237312490495555, -23.157747414558198, 16.680568411445915),
        (4.082441999064835, -2.893047735332586, 0.5252849256975648),
        (3.9263479922546582, -2.8547468034765298, 0.5318022422894988),
        (3.2982187133085143, -2.424541981026706, 0.48632008358844075),
        (2.2970369434552573, -1.63662558125903, 0.4002628455953627),
        (1.8763805351440397, -1.2347896577722228, 0.35891887501668385),
        (1.8564423485617974, -1.2132449880935525, 0.3568003487825883),
        (1.8749994008682747, -1.2499988017229169, 0.3749994008546422),
    ),
    "polar_express_safer": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.0429299351667245, -2.808917465908704, 0.5000178451051299),
        (3.8916678022926563, -2.7724841532176825, 0.5060648178503389),
        (3.285753657755658, -2.3681294933425394, 0.46449024233003117),
        (2.3005307116270983, -1.6111665557258408, 0.3833374427545273),
        (1.8631210546382593, -1.2042160621002727, 0.3421879560523383),
        (1.8382572152247512, -1.1779263289537742, 0.3396513038637379),
        (1.8749999923301852, -1.2499999836060613, 0.374999991275876),
    ),
}
"""timm's sets of coefficients (a, b, c), a row for each step."""


def whole_matrix(leaf: Leaf) -> Axes:
    """Return the axes of a leaf as one matrix, unless they were asked for."""
    if leaf.asked:
        return leaf.axes
    if len(leaf.shape) == 2 and not leaf.is_linear:
        return Axes((0,), (1,))
    return leaf.axes._replace(split=())


def muon_of_matrices(who: str, owns: Owns | None = None, **options: Any) -> Rule:
    """Return Muon's rule for the leaves it owns, by default all; `muon_rule` has the options."""
    rule = muon_rule(who, **options)
    return replace(rule, where=owns, static=whole_matrix, check_leaves=None)


def for_others(rule: Rule, owns: Owns, axes: AxesChoice | None = None) -> Rule:
    """Return a rule for the leaves that Muon does not own, its names behind "adam_"."""
    return replace(with_prefix("adam_", rule), where=lambda leaf: not owns(leaf), axes=axes)


def rate_ratio(who: str, ratio: Hyperparam) -> Rule:
    """Return the rule that multiplies an update, and so its rate, by the number `lr_ratio`."""

    def leaf(u, slots, h, p):
        return h.lr_ratio * u, slots

    return Rule(who, leaf, kind="lr_ratio", hyperparams={"lr_ratio": number(ratio)}, counter="step")
