"""Write a rule of your own, train with it and check it: Signum, the sign of a momentum.

v ← β v + (1 − β) g;   θ ← θ − α sign(v)          Bernstein et al., ICML (2018)
"""

import jax
import jax.numpy as jnp
import numpy as np

from optlab import lab
from optlab.rules import Rule, average, decay, optimizer, slot, visibly_bounded
from optlab.testing import check_transformation


def rule(who, momentum=0.9):
    """Descend by the sign of a momentum."""

    def leaf(g, slots, h, p):
        v = average(h.momentum, slots.velocity, visibly_bounded(g))
        return jnp.sign(v), (v,)

    return Rule(who, leaf, {"momentum": decay(momentum)}, {"velocity": slot()})


def reference(g, state, t, *, momentum=0.9):
    """Return the direction of one array in float64, as the paper has it."""
    v = momentum * state.get("v", 0.0) + (1 - momentum) * g
    return np.sign(v), {"v": v}


signum = optimizer("signum", rule)

if __name__ == "__main__":
    run = lab.train(lab.tasks.digits_mlp(), signum(1e-3), steps=300, key=jax.random.key(0))
    print(f"validation accuracy {run.history.validation['accuracy'][-1]:.3f}")
    tiny = {"extreme_gradients_match_reference": "the sign of a number that counts as 0 is 0"}
    print(check_transformation(signum, reference=reference, squares=True, exempt=tiny))
