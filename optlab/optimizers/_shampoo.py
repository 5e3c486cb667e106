"""Shampoo: a momentum divided by roots of its statistics of rows and of columns.

    L ← β₂ L + (1 − β₂) G Gᵀ      R ← β₂ R + (1 − β₂) Gᵀ G
    m ← β₁ m + (1 − β₁) g         m̂ = m / (1 − β₁ᵗ)
    P = (L / (1 − β₂ᵗ) + ε I)^−p · m̂ · (R / (1 − β₂ᵗ) + ε I)^−p
    u = −lr · (P · ‖a‖ / ‖P‖ + λ θ)

β₁ is `b1`, β₂ `b2`, ε `eps`, p `exponent`, λ `weight_decay`, lr `learning_rate`. m is `mu`, L and R
are `left_statistic` and `right_statistic`, their roots `left_root` and `right_root`. The roots
start at the identity, all else at 0. p is ¼, or ½ where a matrix has one preconditioned side. Every
linear map is a matrix, embeddings and heads among them.

a is the step of another optimizer (`grafting`), from which a matrix takes the length of its step.
It is made of m̂, too. Vectors and scalars take this step as it is.

    "adam"       v ← β₂ v + (1 − β₂) g²      a = m̂ / (√(v / (1 − β₂ᵗ)) + graft_eps)
    "rmsprop"    the same v                  a = m̂ / (√v + graft_eps)
    "adagrad"    v ← v + g²                  a = m̂ / (√v + graft_eps)
    "sgd"                                    a = m̂
    None         u = P for matrices, Adam's step for vectors; before `start_step` matrices take m̂

v is `nu`. Lengths are those of each block, so that stacked layers are as separate ones.

The roots are computed anew at the updates `start_step`, `start_step` + k, …, where k is
`precondition_frequency`; before them, matrices take the step a, too. `momentum` gathers the steps
once more: b ← μ b + u, and with `nesterov` u + μ b is taken. Conventions elsewhere:
`accumulate=True` makes L and R sums, as in the first paper. ε is a share of the largest eigenvalue
by default, as in Anil et al. (who take that for at least 1e-6), and a number in the unit of the
squared gradients with `eps_place="absolute"`, as in Shi et al. With ε = 0, roots are those of the
pseudo-inverse.

Matrices are cut in blocks of `block_size`, each preconditioned by itself. With Adam's grafting, a
matrix of m by n in one block needs 2mn + 2(m² + n²) numbers of state, with one preconditioned side
2mn + 2 min(m, n)².

Roots are computed by eigendecomposition in float32 (float64 for double parameters), products in the
highest precision. Where statistics or roots are not finite, those before stay, and the state's
`failures` counts the update, by parameter: `optax.tree.get(state, "failures")`. The update itself
shows a gradient that is not finite, and the averages keep it, as Adam's do; `skip_nonfinite` around
the optimizer leaves such updates out. The elements of a finite gradient count as at most 2⁶³
divided by the root of their number (2⁵¹¹ in float64). On a CPU set the environment variable
OPENBLAS_NUM_THREADS=1: LAPACK's threads and XLA's can hold each other up.

Reference: Gupta, Koren, Singer, "Shampoo: Preconditioned stochastic tensor optimization", ICML
(2018); Anil et al., arXiv:2002.09018 (2020); Shi et al., arXiv:2309.06497 (2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optlab import _checks
from optlab._checks import AT_LEAST_ONE, POSITIVE
from optlab._types import Array, Hyperparam, Mask
from optlab.rules import (
    AxesChoice,
    Rule,
    added,
    average,
    bounded_square,
    check_flag,
    check_number,
    decay,
    direction,
    number,
    optimizer,
    root,
    slot,
)
from optlab.rules import (
    accumulate as accumulated,
)
from optlab.rules import weight_decay as weight_decay_rule
from optlab.rules._factors import (
    Factors,
    Plan,
    all_of,
    bounded_for_products,
    check_any_matrix,
    count_slot,
    counted,
    decomposed,
    factor_slot,
    finite_or_old,
    multiplied,
    only_where_due,
    plan_of,
    product,
    transposed,
    updated_statistics,
)

Grafting = Literal["adam", "rmsprop", "adagrad", "sgd"] | None
"""Which optimizer's step a matrix takes its length from."""


@dataclass(frozen=True)
class _Roots:
    """How roots are taken.

    Attributes:
        exponent: p; None for 1 / (2 · preconditioned sides).
        is_relative: whether ε is a share of the largest eigenvalue.
        is_sum: whether statistics are sums, which have no bias.
    """

    exponent: float | None
    is_relative: bool
    is_sum: bool


def shampoo_rule(
    who: str,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-6,
    *,
    grafting: Grafting = "adam",
    graft_eps: Hyperparam = 1e-8,
    eps_place: Literal["relative", "absolute"] = "relative",
    exponent: float | None = None,
    accumulate: bool = False,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    precondition_frequency: Hyperparam = 10,
    start_step: Hyperparam = 1,
    block_size: int | None = 1024,
    max_precondition_dim: int = 10_000,
    one_sided: bool = False,
    axes: AxesChoice | None = None,
) -> Rule:
    """Replace gradients by Shampoo's direction.

    Args:
        b1: β₁ in [0, 1), of the average of gradients.
        b2: β₂ in [0, 1), of the statistics and of the squares of the grafted step.
        eps: ε ≥ 0, added to the eigenvalues of the statistics: a share of the largest one, or in
            the unit of the squared gradients.
        grafting: "adam", "rmsprop", "adagrad" or "sgd", whose step's length a matrix takes, or
            None.
        graft_eps: ≥ 0, added to the root of the squares of the grafted step, in the unit of the
            gradients.
        eps_place: "relative" or "absolute", what ε is.
        exponent: p > 0; None for 1 / (2 · number of preconditioned sides).
        accumulate: whether the statistics are sums in place of averages.
        momentum: μ in [0, 1), of the steps; None for none.
        nesterov: whether the momentum looks one step ahead.
        precondition_frequency: k ≥ 1, rounded to a whole number; the roots are computed anew every
            k updates.
        start_step: ≥ 1, rounded to a whole number; the update at which preconditioning begins.
        block_size: ≥ 1, the most rows and columns of a block; None for whole matrices.
        max_precondition_dim: ≥ 1; a side of more rows or columns is not preconditioned.
        one_sided: whether only the shorter side is preconditioned.
        axes: the axes of some parameters, by pattern of their path or by a function of path and
            shape, as `optlab.rules.Rule` takes them; None to go by their names.

    Example:
        Without averages and grafting the direction of a matrix is its nearest orthogonal one:

        >>> import jax.numpy as jnp, optlab
        >>> tx = optlab.scale_by_shampoo(b1=0.0, b2=0.0, eps=0.0, grafting=None)
        >>> gradients = {"w": jnp.array([[3.0, 0.0], [0.0, 0.5]])}
        >>> updates, state = tx.update(gradients, tx.init(gradients))
        >>> print(updates["w"].round(5))
        [[1. 0.]
         [0. 1.]]
    """
    _checks.check_choice(who, "grafting", grafting, ("adam", "rmsprop", "adagrad", "sgd", None))
    _checks.check_choice(who, "eps_place", eps_place, ("relative", "absolute"))
    if exponent is not None:
        exponent = float(check_number(who, "exponent", exponent, POSITIVE))
    is_sum = check_flag(who, "accumulate", accumulate)
    roots = _Roots(exponent, eps_place == "relative", is_sum)
    if check_flag(who, "nesterov", nesterov) and momentum is None:
        _checks.fail(who, "nesterov needs momentum", "momentum=None", "pass momentum=0.9, say")
    plan_of_leaf = plan_of(who, block_size, max_precondition_dim, one_sided)

    def once(h, t):
        every, start = (
            jnp.round(x).astype(t.dtype) for x in (h.precondition_frequency, h.start_step)
        )
        has_started = t >= start
        return h, has_started, has_started & ((t - start) % every == 0)

    def leaf(g, slots, scalars, p, plan):
        h, has_started, is_due = scalars
        mu, nu, left, right, left_root, right_root, failures, *velocity = slots
        g = bounded_for_products(g)
        mu = average(h.b1, mu, g)
        mu_hat = h.b1.correction * mu
        if nu is not None:
            nu = added(nu, g * g) if grafting == "adagrad" else average(h.b2, nu, bounded_square(g))
        u = _grafted(grafting, h, mu_hat, nu)
        if plan is not None:
            stats, before = plan.factors(left, right), plan.factors(left_root, right_root)
            stats, after, failures = _refreshed(
                plan, roots, is_due, h.b2, h.eps, g, stats, before, failures
            )
            preconditioned = plan.map(multiplied, mu_hat, after)
            if grafting is not None:
                preconditioned = plan.map(_of_length, preconditioned, plan.blocks(u))
            u = jnp.where(has_started, preconditioned, u)
            left, right, left_root, right_root = *plan.stored(stats), *plan.stored(after)
        if velocity:
            velocity = [accumulated(h.momentum, velocity[0], u)]
            u = accumulated(h.momentum, velocity[0], u) if nesterov else velocity[0]
        return u, (mu, nu, left, right, left_root, right_root, failures, *velocity)

    def squares(param, plan):
        is_needed = grafting not in ("sgd", None) or (grafting is None and plan is None)
        return slot()(param) if is_needed else None

    return Rule(
        who,
        leaf,
        kind="scale_by_shampoo",
        hyperparams={
            "b1": decay(b1, bias_corrected=True),
            "b2": decay(b2, bias_corrected=True),
            "eps": number(eps),
            "graft_eps": number(graft_eps),
            "precondition_frequency": number(precondition_frequency, AT_LEAST_ONE),
            "start_step": number(start_step, AT_LEAST_ONE),
        }
        | ({} if momentum is None else {"momentum": decay(momentum)}),
        slots={
            "mu": slot(),
            "nu": squares,
            "left_statistic": factor_slot("left", 0),
            "right_statistic": factor_slot("right", 0),
            "left_root": factor_slot("left", 1),
            "right_root": factor_slot("right", 1),
            "failures": count_slot,
        }
        | ({} if momentum is None else {"velocity": slot()}),
        once=once,
        static=plan_of_leaf,
        stacked=True,
        axes=axes,
        complex="refused",
        check_leaves=lambda own, every: check_any_matrix(who, own),
    )


def _grafted(grafting: Grafting, h: Any, mu_hat: Array, nu: Array | None) -> Array:
    """Return the step a; without grafting and squares, m̂."""
    if nu is None:
        return mu_hat
    nu_hat = nu if grafting in ("rmsprop", "adagrad") else h.b2.correction * nu
    return mu_hat / (root(nu_hat) + h.graft_eps)


def _of_length(x: Array, a: Array) -> Array:
    """Return matrices with the lengths of others; what is 0 stays 0."""
    own, wanted = _norm(x), _norm(a)
    is_zero = own == 0
    return x * jnp.where(is_zero, 0, wanted / jnp.where(is_zero, 1, own))


def _norm(x: Array) -> Array:
    """Return the norm of each matrix, (…, 1, 1), whose squares may be out of range."""
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)
    scaled = x / jnp.where(largest > 0, largest, 1)
    return largest * root(jnp.sum(scaled * scaled, axis=(-2, -1), keepdims=True))


@partial(jax.jit, static_argnums=(0, 1))  # so that eager updates, too, compile it once
def _refreshed(
    plan: Plan,
    roots: _Roots,
    is_due: Array,
    b2: Any,
    eps: Array,
    g: Array,
    stats: list[Factors],
    before: list[Factors],
    failures: Array,
) -> tuple[list[Factors], list[Factors], Array]:
    """Return statistics with g in them, roots that are new where it is due, and the failures."""
    combine = jnp.add if roots.is_sum else partial(average, b2)
    stats, were_finite = updated_statistics(plan, g, stats, combine)

    def renew():
        new, checks = [], []
        for of_stack, old in zip(stats, before, strict=True):
            exponent = roots.exponent or 0.5 / max(len(of_stack), 1)
            new.append({})
            for side, statistic in of_stack.items():
                unbiased = statistic if roots.is_sum else b2.correction * statistic
                own = _inverse_root(exponent, roots.is_relative, unbiased, eps)
                new[-1][side], is_finite = finite_or_old(own, old[side])
                checks.append(is_finite)
        return new, all_of(checks)

    def keep():
        return before, jnp.bool_(True)

    after, are_finite = only_where_due(is_due, renew, keep)
    return stats, after, counted(failures, were_finite & are_finite)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _inverse_root(exponent: float, is_relative: bool, a: Array, eps: Array) -> Array:
    """Return (A + ε I)^−p of symmetric matrices without negative eigenvalues."""
    vectors, _, values = _eigen(is_relative, a, eps)
    return product(vectors * _power(values, -exponent)[..., None, :], transposed(vectors))


@_inverse_root.defjvp
def _inverse_root_jvp(exponent, is_relative, primals, tangents):
    """Differentiate by the formula of Daleckii and Krein, which equal eigenvalues do not harm."""
    (a, eps), (da, deps) = primals, tangents
    vectors, largest, values = _eigen(is_relative, a, eps)
    da = product(transposed(vectors), product(da, vectors))
    ridge = largest * deps + eps * da[..., -1:, -1] if is_relative else deps
    da = da + ridge[..., None] * jnp.eye(a.shape[-1], dtype=a.dtype)
    x, y = values[..., :, None], values[..., None, :]
    powers = _power(values, -exponent)
    # Of close eigenvalues the slope in the middle is right to the square of their distance.
    are_close = jnp.abs(x - y) <= 1e-3 * (x + y)
    difference = powers[..., :, None] - powers[..., None, :]
    quotients = difference / jnp.where(are_close, 1, x - y)
    slopes = jnp.where(are_close, -exponent * _power((x + y) / 2, -exponent - 1), quotients)
    whole = product(vectors * _power(values, -exponent)[..., None, :], transposed(vectors))
    return whole, product(vectors, product(slopes * da, transposed(vectors)))


def _eigen(is_relative: bool, a: Array, eps: Array) -> tuple[Array, Array, Array]:
    """Return eigenvectors, the largest eigenvalue (…, 1), and the eigenvalues of A + ε I."""
    vectors = decomposed(lambda x: jnp.linalg.eigh(x)[1], a)
    values = jnp.maximum(jnp.sum(vectors * product(a, vectors), axis=-2), 0)
    largest = jnp.max(values, axis=-1, keepdims=True, initial=0)
    return vectors, largest, values + (eps * largest if is_relative else eps)


def _power(x: Array, exponent: float) -> Array:
    """Return x to a negative power, and 0 where x is 0."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** exponent, 0)


def _shampoo(
    who: str,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-6,
    weight_decay: Hyperparam = 0.01,
    mask: Mask | None = None,
    *,
    grafting: Grafting = "adam",
    graft_eps: Hyperparam = 1e-8,
    eps_place: Literal["relative", "absolute"] = "relative",
    exponent: float | None = None,
    accumulate: bool = False,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    precondition_frequency: Hyperparam = 10,
    start_step: Hyperparam = 1,
    block_size: int | None = 1024,
    max_precondition_dim: int = 10_000,
    one_sided: bool = False,
    axes: AxesChoice | None = None,
) -> list[Rule]:
    """Descend with Shampoo, by a momentum divided by roots of its statistics.

    Args:
        weight_decay: λ ≥ 0; each update shrinks the parameters by the factor 1 − αλ.
        mask: which parameters are decayed; None for all.
    """
    rule = shampoo_rule(
        who,
        b1,
        b2,
        eps,
        grafting=grafting,
        graft_eps=graft_eps,
        eps_place=eps_place,
        exponent=exponent,
        accumulate=accumulate,
        momentum=momentum,
        nesterov=nesterov,
        precondition_frequency=precondition_frequency,
        start_step=start_step,
        block_size=block_size,
        max_precondition_dim=max_precondition_dim,
        one_sided=one_sided,
        axes=axes,
    )
    return [rule, weight_decay_rule(who, weight_decay, mask)]


scale_by_shampoo = direction("scale_by_shampoo", shampoo_rule)
shampoo = optimizer("shampoo", _shampoo, like=(shampoo_rule,))
