"""How a rule is written: its arithmetic for one array, declared, and lifted to any tree.

A rule is a small function on one array. `Rule` declares it together with its hyperparameters and
its slots, and `lift` turns it into an Optax transformation. optlab's own rules are written with
this module; Shampoo and SOAP also share the private `_factors`. A rule in your own file has the
same rights. `direction` and `optimizer` make public functions of it:

    def rule(who, b1=0.9, b2=0.99):
        def leaf(g, slots, h, p):
            update = jnp.sign(average(h.b1, slots.mu, g))
            return update, (average(h.b2, slots.mu, g),)
        return Rule(who, leaf, hyperparams={"b1": decay(b1), "b2": decay(b2)},
                    slots={"mu": slot()})

    lion = optimizer("lion", rule)
"""

from optlab._checks import (
    ANY,
    DECAY,
    FINITE,
    NONNEGATIVE,
    NONNEGATIVE_OR_INFINITE,
    POSITIVE,
    UNIT,
    Domain,
    check_flag,
    check_float_dtype,
    check_number,
    fail,
)
from optlab._tree import root, scaled_norm
from optlab.rules._arithmetic import (
    accumulate,
    added,
    average,
    bounded,
    bounded_square,
    round_to,
    saturated,
    visibly_bounded,
)
from optlab.rules._hyperparams import Decay, Parameter, decay, number
from optlab.rules._leaf import AxesChoice, Leaf, linear_maps
from optlab.rules._leaves import is_divided, placed_like
from optlab.rules._lift import lift
from optlab.rules._matrices import from_matrices, matrices
from optlab.rules._newton_schulz import newton_schulz_coefficients, orthogonalized
from optlab.rules._norms import (
    global_norm_clip,
    norm_of,
    sum_of_norms,
    times_ratio,
)
from optlab.rules._patterns import paths_matching, paths_not_matching
from optlab.rules._public import direction, optimizer
from optlab.rules._roles import Axes, Meaning, default_axes, meaning
from optlab.rules._rule import Rule, slot, with_prefix
from optlab.rules._steps import learning_rate, weight_decay

__all__ = [
    "ANY",
    "DECAY",
    "FINITE",
    "NONNEGATIVE",
    "NONNEGATIVE_OR_INFINITE",
    "POSITIVE",
    "UNIT",
    "Axes",
    "AxesChoice",
    "Decay",
    "Domain",
    "Leaf",
    "Meaning",
    "Parameter",
    "Rule",
    "accumulate",
    "added",
    "average",
    "bounded",
    "bounded_square",
    "check_flag",
    "check_float_dtype",
    "check_number",
    "decay",
    "default_axes",
    "direction",
    "fail",
    "from_matrices",
    "global_norm_clip",
    "is_divided",
    "learning_rate",
    "lift",
    "linear_maps",
    "matrices",
    "meaning",
    "newton_schulz_coefficients",
    "norm_of",
    "number",
    "optimizer",
    "orthogonalized",
    "paths_matching",
    "paths_not_matching",
    "placed_like",
    "root",
    "round_to",
    "saturated",
    "scaled_norm",
    "slot",
    "sum_of_norms",
    "times_ratio",
    "visibly_bounded",
    "weight_decay",
    "with_prefix",
]
