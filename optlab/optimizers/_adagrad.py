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

from __future__ import annotations

from optlab._types import ArrayLike, Hyperparam
from optlab.rules import (
    NONNEGATIVE,
    Rule,
    added,
    bounded_square,
    check_flag,
    check_number,
    direction,
    number,
    optimizer,
    root,
    slot,
    visibly_bounded,
)


def adagrad_rule(
    who: str,
    initial_accumulator_value: ArrayLike = 0.0,
    eps: Hyperparam = 1e-8,
    *,
    eps_in_sqrt: bool = False,
    compensated: bool = False,
) -> Rule:
    """Divide gradients by the root of the sum of all their squares.

    Args:
        initial_accumulator_value: where s starts, ≥ 0, in the unit of the squared gradients.
        eps: ε ≥ 0, in the unit of the gradients, or of their squares with `eps_in_sqrt`. With ε = 0
            and an accumulator that starts at 0, a coordinate whose gradient has always been zero is
            0/0, and one whose squares underflow (|g| below 1e-19 in float32) infinite.
        eps_in_sqrt: whether to divide by √(s + ε).
        compensated: whether to keep what rounding takes from s, for long runs; as many bytes as s.
    """

    def leaf(g, slots, h, p):
        old, *lost = slots
        square = bounded_square(g)
        if compensated:
            square += lost[0]
        s = added(old, square)
        if compensated:
            lost = [square - (s - old)]
        return visibly_bounded(g) / size_of(s, h), (s, *lost)

    def size_of(s, h):
        return root(s + h.eps) if eps_in_sqrt else root(s) + h.eps

    start = check_number(who, "initial_accumulator_value", initial_accumulator_value, NONNEGATIVE)
    eps_in_sqrt = check_flag(who, "eps_in_sqrt", eps_in_sqrt)
    compensated = check_flag(who, "compensated", compensated)
    return Rule(
        who,
        leaf,
        metric=lambda slots, h: 1 / size_of(slots.sum_of_squares, h),
        kind="scale_by_adagrad",
        hyperparams={"eps": number(eps)},
        slots={"sum_of_squares": slot(start)} | ({"lost": slot()} if compensated else {}),
    )


scale_by_adagrad = direction("scale_by_adagrad", adagrad_rule)
adagrad = optimizer("adagrad", adagrad_rule, summary="Descend with AdaGrad.")
