"""Optax's whole namespace, with optlab's arithmetic where optlab has the rule.

    from optlab.dialects import optax                # in place of `import optax`

Every public name of Optax is here. These are ours, under Optax's names, arguments, defaults and
states; all others are Optax's own objects:

    sgd       v ← μv + g;                      θ ← θ − ηv, or θ − η(g + μv) (Nesterov)
    adagrad   s ← s + g², from 0.1;            θ ← θ − ηg/√(s + ε)
    rmsprop   s ← βs + (1 − β)g²;              b ← μb − ηg/√(s + ε);  θ ← θ + b
    adam      m, v averages of g, g²;          θ ← θ − η m̂/(√(v̂ + ε_root) + ε)
    adamw     m, v averages of g, g²;          θ ← θ − η (m̂/(√(v̂ + ε_root) + ε) + λθ)
    lars      r = ξ‖θ‖/(‖g + λθ‖ + ε);         v ← μv − ηr(g + λθ);  θ ← θ + v
    lamb      r = m̂/(√(v̂ + ε_root) + ε) + λθ;  θ ← θ − η ‖θ‖/‖r‖·r
    lion      m average of g by β₂;            θ ← θ − η (sign(β₁m + (1 − β₁)g) + λθ)
    nadam, nadamw, amsgrad;  scale_by_rss, scale_by_rms, scale_by_stddev, scale_by_adam,
    scale_by_amsgrad, scale_by_lion, scale_by_trust_ratio, trace;  scale_by_learning_rate,
    add_decayed_weights, clip, clip_by_global_norm;  global_norm;  contrib.muon,
    contrib.scale_by_muon

η is `learning_rate`, μ `momentum`, β `decay`, ε `eps`, ε_root `eps_root`, λ `weight_decay`;
m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ) with the present decay rates, where these change. The rate
stands outside the velocity of `sgd` and *inside* that of `rmsprop`.

Updates are those of Optax but for roundings, and in Optax's types. They differ where Optax's lose
the number: finite gradients whose squares overflow count as 2⁶³ (Optax's second moment stays
infinite for ever) and are clipped to the bound (Optax: to 0); the variance of centered RMSProp is
clamped at 0; an infinite gradient shows as NaN. Inside, arithmetic is at least float32, and bias
corrections have all digits (in float32 Optax's are off by up to 2e-5).

States are Optax's own in every field and type, so a run saved under Optax goes on here, and back.
`from_state` and `to_state` carry a run between them and `optlab`'s optimizers, whose states hold
the hyperparameters in force; those of a stand-in do not, and `optlab.hyperparams` finds none there.
Each number may be a schedule: where Optax takes none, `inject_hyperparams` is put around the rule.

Schedules are Optax's: `optlab.schedules` differ in types, in rounding and before step 0. So is what
Optax builds of its own rules (`adafactor`, `noisy_sgd`, …), and so are its submodules, but for
`contrib.muon` and `contrib.scale_by_muon`.

Reference: optax.readthedocs.io. Trajectories are checked against Optax 0.2.8, and Optax's own tests
pass on this module but for a list with reasons (`tests/dialects/optax_suite.py`).
"""

from typing import TYPE_CHECKING, Any

import optax

if TYPE_CHECKING:
    from optax import *  # noqa: F403

from optlab.dialects.optax import contrib  # noqa: F401
from optlab.dialects.optax._rules import *  # noqa: F403
from optlab.dialects.optax._states import from_state, to_state

__all__ = ["from_state", "to_state"]
__all__ += optax.__all__


def __getattr__(name: str) -> Any:
    try:
        return getattr(optax, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(optax)})
