"""Adam: momentum divided by the root of a moving average of squared gradients, both unbiased.

    m ← β₁ m + (1 − β₁) g        m̂ = m / (1 − β₁ᵗ)
    v ← β₂ v + (1 − β₂) g²       v̂ = v / (1 − β₂ᵗ)
    u = −lr · m̂ / (√(v̂ + eps_root) + eps)

β₁ is `b1`, β₂ `b2`, lr `learning_rate`; m is `mu`, v is `nu`, both start at 0. Where β changes over
time, βᵗ stands for the product of its values so far, which keeps the correction exact. A finite
gradient beyond 2⁶³, whose square would overflow float32, counts as 2⁶³ (2⁵¹¹ in float64).

AMSGrad (`amsgrad`) divides by the root of the largest v̂ so far, `nu_max` (as Optax; PyTorch and
Keras take the largest v, `raw_nu_max` in their dialects). NAdam (`nesterov`) looks one step ahead,
in Dozat's simplified form, in which the next β₁ is taken to be the present one:

    m̂ = β₁ m / (1 − β₁ᵗ⁺¹) + (1 − β₁) g / (1 − β₁ᵗ)

Reference: Kingma & Ba, ICLR (2015); Reddi, Kale, Kumar, ICLR (2018) for AMSGrad; Dozat, ICLR
workshop (2016) for NAdam.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._arithmetic import average, bounded_square, visibly_bounded
from optlab._hyperparams import Hyperparams, Memory, decay, number
from optlab._lift import Rule, lift, slot
from optlab._types import Array, DTypeLike, Hyperparam, Tree
from optlab.transforms._learning_rate import learning_rate_rule


class ScaleByAdamState(NamedTuple):
    """State of `scale_by_adam`.

    Attributes:
        count: () int32; updates made.
        mu: m, like the parameters.
        nu: v, like the parameters.
        hyperparams: the values in force: `b1`, `b2`, `eps` and `eps_root`.
        memory: what keeps them alive between updates, and the products Πβ₁ and Πβ₂.
        nu_max: the largest v̂ so far, like the parameters; None unless AMSGrad.
        raw_nu_max: the largest v so far, in its place where a dialect takes that.
    """

    count: Array
    mu: Tree
    nu: Tree
    hyperparams: dict[str, Array]
    memory: Memory
    nu_max: Tree | None = None
    raw_nu_max: Tree | None = None


def adam_rule(
    who: str,
    b1: Hyperparam,
    b2: Hyperparam,
    eps: Hyperparam,
    eps_root: Hyperparam = 0.0,
    nesterov: bool = False,
    amsgrad: bool = False,
    mu_dtype: DTypeLike | None = None,
    *,
    raw_max: bool = False,
    eps_hat: bool = False,
    by_power: bool = False,
) -> Rule:
    """Return the rule, for all optimizers that go in Adam's direction.

    The last three are other frameworks': AMSGrad's maximum of v in place of v̂, the ε of Kingma &
    Ba's efficient form, an ε/√(1 − β₂ᵗ), and biases of the present decays, where these change.
    """
    max_slot = ("raw_nu_max" if raw_max else "nu_max") if amsgrad else None

    def weights(h, gradients, t):
        of_mu, of_g = h.b1.correction, None
        if nesterov:
            next_bias = h.b1.complement + h.b1.value / h.b1.correction
            of_mu, of_g = h.b1.value / next_bias, h.b1.complement * h.b1.correction
        eps = h.eps * jnp.sqrt(h.b2.correction) if eps_hat else h.eps
        return h._replace(eps=eps), of_mu, of_g

    def leaf(g, slots, weights, p):
        (mu, nu, *nu_max), (h, of_mu, of_g) = slots, weights
        bounded = visibly_bounded(g)
        mu = average(h.b1, mu, bounded)
        nu = average(h.b2, nu, bounded_square(g))
        mu_hat = of_mu * mu + of_g * bounded if nesterov else of_mu * mu
        nu_hat = h.b2.correction * nu
        if max_slot == "nu_max":
            nu_hat = jnp.maximum(nu_max[0], nu_hat)
            nu_max = [nu_hat]
        elif max_slot == "raw_nu_max":
            nu_max = [jnp.maximum(nu_max[0], nu)]
            nu_hat = h.b2.correction * nu_max[0]
        return mu_hat / (jnp.sqrt(nu_hat + h.eps_root) + h.eps), (mu, nu, *nu_max)

    _checks.check_float_dtype(who, "mu_dtype", mu_dtype)
    slots = {"mu": slot(dtype=mu_dtype), "nu": slot()}
    return Rule(
        state=ScaleByAdamState,
        hyperparams=Hyperparams(
            who,
            b1=decay(b1, bias_corrected=True, by_power=by_power),
            b2=decay(b2, bias_corrected=True, by_power=by_power),
            eps=number(eps),
            eps_root=number(eps_root),
        ),
        slots=slots | ({max_slot: slot()} if max_slot else {}),
        prepare=weights,
        leaf=leaf,
    )


def scale_by_adam(
    *,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    nesterov: bool = False,
    amsgrad: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace gradients by Adam's direction m̂ / (√v̂ + ε).

    Args:
        b1: β₁ in [0, 1), of the average of gradients.
        b2: β₂ in [0, 1), of the average of squared gradients.
        eps: ε ≥ 0 outside the root, in the unit of the gradients. With ε = 0 and ε_root = 0, a
            coordinate whose gradient has always been zero is 0/0, and one whose squares underflow
            (|g| below 1e-17 in float32) infinite.
        eps_root: ε_root ≥ 0 inside the root, in the unit of the squared gradients; above 0 where
            one differentiates through the update.
        nesterov: whether to look one step ahead (NAdam).
        amsgrad: whether to divide by the root of the largest v̂ so far.
        mu_dtype: type of m; by default the parameters', but at least float32.

    Returns:
        A transformation with state `ScaleByAdamState`.

    Raises:
        ValueError: a hyperparameter is out of its range.

    Reference:
        Kingma & Ba, ICLR (2015); Reddi, Kale, Kumar, ICLR (2018); Dozat, ICLR workshop (2016).
    """
    return lift(adam_rule("scale_by_adam", b1, b2, eps, eps_root, nesterov, amsgrad, mu_dtype))


def adam(
    learning_rate: Hyperparam,
    *,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    nesterov: bool = False,
    amsgrad: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend with Adam: θ ← θ − αm̂ / (√v̂ + ε).

    Args:
        learning_rate: α ≥ 0, typically 0.001; the length of the first step in every coordinate.
        b1: β₁ in [0, 1), of the average of gradients.
        b2: β₂ in [0, 1), of the average of squared gradients.
        eps: ε ≥ 0, outside the root, in the unit of the gradients.
        eps_root: ε_root ≥ 0, inside the root, in the unit of the squared gradients.
        nesterov: whether to look one step ahead (NAdam).
        amsgrad: whether to divide by the root of the largest v̂ so far.
        mu_dtype: type of m; by default the parameters', but at least float32.

    Returns:
        The optimizer, with the states of `scale_by_adam` and `scale_by_learning_rate`.

    Raises:
        ValueError: a hyperparameter is out of its range.

    Example:
        Adam's first step is the learning rate in every coordinate, whatever the gradient's size:

        >>> import jax.numpy as jnp
        >>> tx = adam(0.01)
        >>> params = jnp.array([2.0, 5.0])
        >>> updates, state = tx.update(jnp.array([4.0, -300.0]), tx.init(params), params)
        >>> print(updates)
        [-0.01  0.01]

    Reference:
        Kingma & Ba, ICLR (2015).
    """
    return lift(
        adam_rule("adam", b1, b2, eps, eps_root, nesterov, amsgrad, mu_dtype),
        learning_rate_rule("adam", learning_rate),
    )
