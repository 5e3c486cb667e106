"""`optax.contrib`, with optlab's arithmetic in `muon` and `scale_by_muon`.

    muon      m average of g;  d = m̂, or μ m/(1 − μᵗ⁺¹) + (1 − μ) g/(1 − μᵗ) with Nesterov
              θ ← θ − η (s · orthogonal factor of d + λθ)                arrays of two axes
              AdamW, with Nesterov NAdamW, and its ε that of Muon        all others

μ is `beta`, η `learning_rate`, λ `weight_decay`; m̂ = m/(1 − μᵗ), and s = √max(1, out/in), or
`consistent_rms` · √max(in, out). The two bias corrections of Nesterov's step are Optax's; other
frameworks have none, and agree from about the hundredth update on. Embeddings and heads are arrays
of two axes, too.

States are Optax's own. The coefficients that a state holds are not read: those of the argument
count. A Newton–Schulz step is at least in float32, where Optax takes the leaf's type, and its
products have the default precision of the device, as in Optax. Optax itself is used with
`adaptive`, with dimension numbers, and with a preconditioning other than "frobenius".

All other names are Optax's own.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

if TYPE_CHECKING:
    from optax.contrib import *  # noqa: F403

from optlab import _checks
from optlab._types import Array, ArrayLike, Tree
from optlab.dialects._muon import ORIGINAL_COEFFICIENTS
from optlab.dialects.optax._rules import adamw, add_decayed_weights, scale_by_learning_rate
from optlab.dialects.optax._stand_in import Part, stands_in
from optlab.optimizers._muon import SCALES, Momentum, muon_rule
from optlab.rules import Axes, Leaf, average, decay, newton_schulz_coefficients

__all__ = ["muon", "scale_by_muon"]

_PRESETS = {
    "standard": ORIGINAL_COEFFICIENTS,
    "dion": newton_schulz_coefficients("optax.contrib.muon", "you", 5),
}
"""Optax's sets of coefficients."""


@stands_in(optax.contrib.scale_by_muon)
def scale_by_muon(
    who,
    ns_coeffs,
    ns_steps,
    beta,
    eps,
    mu_dtype,
    nesterov,
    adaptive,
    preconditioning,
    weight_dimension_numbers,
):
    """Make the direction of `optax.contrib.scale_by_muon`, an orthogonal factor of each matrix."""
    if adaptive or preconditioning != "frobenius" or weight_dimension_numbers is not None:
        return None
    rows = np.shape(ns_coeffs)
    if len(rows) == 2:
        if rows[0] > ns_steps:
            return None
        ns_steps = rows[0]
    rule = muon_rule(
        who,
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        mu_dtype,
        scale=lambda size_in, size_out: 1.0,
        ns_precision="default",
        momentum=_corrected(nesterov=nesterov),
    )
    corrected = decay(beta, bias_corrected=True, by_power=True)
    rule = replace(
        rule,
        hyperparams={**rule.hyperparams, "beta": corrected},
        static=lambda leaf: _two_axes(who, leaf),
        where=None,
        check_leaves=None,
    )
    return Part(rule, {"mu": "mu"}, by_parts=False)


@stands_in(optax.contrib.muon)
def muon(
    who,
    learning_rate,
    ns_coeffs,
    ns_steps,
    beta,
    eps,
    weight_decay,
    weight_decay_mask,
    mu_dtype,
    nesterov,
    adaptive,
    preconditioning,
    adam_b1,
    adam_b2,
    adam_eps_root,
    adam_weight_decay,
    adam_learning_rate,
    muon_weight_dimension_numbers,
    consistent_rms,
):
    """Descend as `optax.contrib.muon`: arrays of two axes by Muon, all others by AdamW."""
    if adaptive or preconditioning != "frobenius" or muon_weight_dimension_numbers is not None:
        return None
    if isinstance(ns_coeffs, str):
        if ns_coeffs not in _PRESETS:
            return None
        ns_coeffs = _PRESETS[ns_coeffs]
    matrices = optax.chain(
        scale_by_muon(ns_coeffs, ns_steps, beta, eps, mu_dtype, nesterov=nesterov),
        _scale_by_shape(consistent_rms),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    others = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1,
        adam_b2,
        eps,
        adam_eps_root,
        mu_dtype,
        adam_weight_decay,
        nesterov=nesterov,
    )
    return optax.partition({"muon": matrices, "adam": others}, _labels)


def _corrected(*, nesterov: bool) -> Momentum:
    """Return Optax's momentum, freed of its bias: at update t + 1 for m, and at t for g."""

    def momentum(beta: Any, mu: Array, g: Array) -> tuple[Array, Array]:
        mu = average(beta, mu, g)
        if not nesterov:
            return beta.correction * mu, mu
        next_bias = beta.complement + beta.value / beta.correction
        of_g = beta.complement * beta.correction
        return beta.value / next_bias * mu + of_g * g, mu

    return momentum


def _two_axes(who: str, leaf: Leaf) -> Axes:
    """Require a leaf of two axes, which Optax takes for (in, out)."""
    if len(leaf.shape) != 2:
        remedy = "pass weight_dimension_numbers, or treat it with optax.partition"
        _checks.fail(who, "arrays must have two axes", f"{leaf.path} {leaf.shape}", remedy)
    return Axes((0,), (1,))


def _scale_by_shape(consistent_rms: ArrayLike | None) -> optax.GradientTransformation:
    """Return the transformation that multiplies the orthogonal factors by s."""

    def scaled(u: Array) -> ArrayLike:
        if consistent_rms is None:
            return SCALES["keller_jordan"](*u.shape) * u
        return math.sqrt(max(u.shape)) * consistent_rms * u

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, updates))


def _labels(params: Tree) -> Tree:
    return jax.tree.map(lambda p: "muon" if jnp.ndim(p) == 2 else "adam", params)


def __getattr__(name: str) -> Any:
    try:
        return getattr(optax.contrib, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(optax.contrib)})
