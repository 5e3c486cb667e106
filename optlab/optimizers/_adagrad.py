"""AdaGrad: a rate per coordinate that shrinks with all the squared gradients seen.

    s ← s + g²
    u = −lr · g / (√s + eps)                     or −lr · g / √(s + eps) with `eps_in_sqrt`

s is `sum_of_squares` and starts at `initial_accumulator_value` (Optax, Keras: 0.1), lr is
`learning_rate`. eps stands outside the root by default (Optax, Keras: inside). A finite gradient
beyond 2⁶³, whose square would overflow float32, counts as 2⁶³ (2⁵¹¹ in float64), and s ends at the
largest finite number.

In float32 a square below 2⁻²⁵ s is lost in s: after 10⁶ updates with normal gradients s is up to a
thousandth too small. With `compensated` the rule keeps what rounding took (Kahan), in `lost`:

    a = g² + lost;  s′ = s + a;  lost ← a − (s′ − s);  s ← s′

Reference: Duchi, Hazan, Singer, JMLR 12 (2011).
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._arithmetic import added, bounded_square, visibly_bounded
from optlab._hyperparams import Hyperparams, Memory, number
from optlab._lift import Rule, lift, slot
from optlab._types import Array, ArrayLike, Hyperparam, Tree
from optlab.transforms._learning_rate import learning_rate_rule


class ScaleByAdagradState(NamedTuple):
    """State of `scale_by_adagrad`.

    Attributes:
        count: () int32; updates made.
        sum_of_squares: s, like the parameters.
        hyperparams: the value in force: `eps`.
        memory: what keeps it alive between updates.
        lost: what rounding took from s, like the parameters; None unless compensated.
    """

    count: Array
    sum_of_squares: Tree
    hyperparams: dict[str, Array]
    memory: Memory
    lost: Tree | None = None


def adagrad_rule(
    who: str,
    eps: Hyperparam,
    eps_in_sqrt: bool,
    initial_accumulator_value: ArrayLike,
    compensated: bool = False,
) -> Rule:
    """Return the rule, for all optimizers that go in AdaGrad's direction."""

    def leaf(g, slots, h, p):
        old, *lost = slots
        square = bounded_square(g)
        if compensated:
            square += lost[0]
        s = added(old, square)
        if compensated:
            lost = [square - (s - old)]
        root = jnp.sqrt(s + h.eps) if eps_in_sqrt else jnp.sqrt(s) + h.eps
        return visibly_bounded(g) / root, (s, *lost)

    _checks.check_number(
        who, "initial_accumulator_value", initial_accumulator_value, _checks.NONNEGATIVE
    )
    return Rule(
        state=ScaleByAdagradState,
        hyperparams=Hyperparams(who, eps=number(eps)),
        slots={"sum_of_squares": slot(initial_accumulator_value)}
        | ({"lost": slot()} if compensated else {}),
        leaf=leaf,
    )


def scale_by_adagrad(
    *,
    eps: Hyperparam = 1e-8,
    eps_in_sqrt: bool = False,
    initial_accumulator_value: ArrayLike = 0.0,
    compensated: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divide gradients by the root of the sum of all their squares: g / (√s + ε).

    Args:
        eps: ε ≥ 0, in the unit of the gradients, or of their squares with `eps_in_sqrt`. With ε = 0
            and an accumulator that starts at 0, a coordinate whose gradient has always been zero is
            0/0, and one whose squares underflow (|g| below 1e-19 in float32) infinite.
        eps_in_sqrt: whether to divide by √(s + ε).
        initial_accumulator_value: where s starts, ≥ 0, in the unit of the squared gradients.
        compensated: whether to keep what rounding takes from s, for long runs; as many bytes as s.

    Returns:
        A transformation with state `ScaleByAdagradState`.

    Raises:
        ValueError: a hyperparameter is out of its range.

    Reference:
        Duchi, Hazan, Singer, JMLR 12 (2011).
    """
    return lift(
        adagrad_rule("scale_by_adagrad", eps, eps_in_sqrt, initial_accumulator_value, compensated)
    )


def adagrad(
    learning_rate: Hyperparam,
    *,
    eps: Hyperparam = 1e-8,
    eps_in_sqrt: bool = False,
    initial_accumulator_value: ArrayLike = 0.0,
    compensated: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend with AdaGrad: θ ← θ − αg / (√s + ε).

    Args:
        learning_rate: α ≥ 0; the length of the first step in every coordinate.
        eps: ε ≥ 0; outside the root by default (Optax: inside). See `scale_by_adagrad`.
        eps_in_sqrt: whether to divide by √(s + ε).
        initial_accumulator_value: where s starts, ≥ 0 (Optax: 0.1).
        compensated: whether to keep what rounding takes from s; see `scale_by_adagrad`.

    Returns:
        The optimizer, with the states of `scale_by_adagrad` and `scale_by_learning_rate`.

    Raises:
        ValueError: a hyperparameter is out of its range.

    Reference:
        Duchi, Hazan, Singer, JMLR 12 (2011).
    """
    return lift(
        adagrad_rule("adagrad", eps, eps_in_sqrt, initial_accumulator_value, compensated),
        learning_rate_rule("adagrad", learning_rate),
    )
