"""SOAP: Adam in the eigenbasis of Shampoo's statistics.

    G′ = Q_Lᵀ G Q_R
    m ← β₁ m + (1 − β₁) G′        v ← β₂ v + (1 − β₂) G′²
    u = −lr · (√(1 − β₂ᵗ) / (1 − β₁ᵗ) · Q_L (m / (√v + eps)) Q_Rᵀ + λ θ)
    L ← β₂ L + (1 − β₂) G Gᵀ      R ← β₂ R + (1 − β₂) Gᵀ G

β₁ is `b1`, β₂ `b2`, λ `weight_decay`, lr `learning_rate`. m is `mu` and v `nu`, both in the basis;
L and R are `left_statistic` and `right_statistic`, Q_L and Q_R `left_basis` and `right_basis`. All
but the bases start at 0. Every linear map is a matrix, embeddings and heads among them. Vectors and
scalars have no bases; for them this is Adam.

The first update computes the bases, the eigenvectors of L and R by falling eigenvalue, and moves
nothing: so a basis never meets the gradients that it is made of. t counts from the second update.
Every `precondition_frequency` updates, one step of orthogonal iteration follows the
statistics:

    order the columns of Q by diag(Qᵀ L Q), and the entries of v alike;   Q ← the Q of QR(L Q)

m is then carried over to the new basis; v is ordered but never rotated. This is the arithmetic of
the authors' code, but for the decay: there θ shrinks after the step, by αλ(θ − αu), which differs
from αλθ by α²λu. It is decoupled here as in AdamW. The variants:

- `refresh="eigh"` computes the eigenvectors anew each time. v keeps its order.
- `refresh_before=True` takes a gradient into statistics and bases before it is used, so that the
  first update moves.
- `one_sided=True` rotates the shorter side alone, and needs a fraction of the memory and the time.
- `block_size` cuts large matrices in blocks, each with bases of its own.
- `normalize=True` divides the step of each matrix by its root mean square, for bases that are
  refreshed rarely.

A matrix of m by n needs 2mn + 2(m² + n²) numbers of state, with one side 2mn + 2 min(m, n)².

The bases are computed in float32 (float64 for double parameters), products with them in the highest
precision. Where statistics or bases are not finite, those before stay, and the state's `failures`
counts the update, by parameter: `optax.tree.get(state, "failures")`. The update itself shows a
gradient that is not finite, and m and v keep it, as Adam's do; `skip_nonfinite` around the
optimizer leaves such updates out. Derivatives take the bases for constants. The elements of a
finite gradient count as at most 2⁶³ divided by the root of their number (2⁵¹¹ in float64). On a CPU
set the environment variable OPENBLAS_NUM_THREADS=1: LAPACK's threads and XLA's can hold each other
up.

Reference: Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade, "SOAP: Improving and
stabilizing Shampoo using Adam", ICLR (2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optlab import _checks
from optlab._checks import AT_LEAST_ONE
from optlab._types import Array, Hyperparam, Mask
from optlab.rules import (
    AxesChoice,
    Decay,
    Rule,
    average,
    bounded_square,
    check_flag,
    decay,
    direction,
    number,
    optimizer,
    root,
    slot,
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


def soap_rule(
    who: str,
    b1: Hyperparam = 0.95,
    b2: Hyperparam = 0.95,
    eps: Hyperparam = 1e-8,
    *,
    precondition_frequency: Hyperparam = 10,
    max_precondition_dim: int = 10_000,
    block_size: int | None = None,
    one_sided: bool = False,
    refresh: Literal["qr", "eigh"] = "qr",
    refresh_before: bool = False,
    correct_bias: bool = True,
    normalize: bool = False,
    axes: AxesChoice | None = None,
) -> Rule:
    """Replace gradients by SOAP's direction.

    Args:
        b1: β₁ in [0, 1), of the average of rotated gradients.
        b2: β₂ in [0, 1), of the average of their squares and of the statistics.
        eps: ε ≥ 0, added to √v before the bias is corrected, in the unit of the gradients. With
            ε = 0 a rotated coordinate that has always been zero is 0/0.
        precondition_frequency: k ≥ 1, rounded to a whole number; the bases are refreshed at the
            updates 1, 1 + k, 1 + 2k, …
        max_precondition_dim: ≥ 1; a side of more rows or columns is not rotated.
        block_size: ≥ 1, the most rows and columns of a block; None for whole matrices.
        one_sided: whether only the shorter side is rotated.
        refresh: "qr" for a step of orthogonal iteration, "eigh" for the eigenvectors.
        refresh_before: whether statistics and bases take in a gradient before it is used.
        correct_bias: whether m and v are freed of their bias to 0.
        normalize: whether the step of each matrix is divided by its root mean square.
        axes: the axes of some parameters, by pattern of their path or by a function of path and
            shape, as `optlab.rules.Rule` takes them; None to go by their names.

    Example:
        The first update only learns the bases:

        >>> import jax.numpy as jnp, optlab
        >>> tx = optlab.scale_by_soap()
        >>> params = {"w": jnp.ones((2, 3))}
        >>> gradients = {"w": jnp.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])}
        >>> updates, state = tx.update(gradients, tx.init(params))
        >>> print(updates["w"])
        [[0. 0. 0.]
         [0. 0. 0.]]
    """
    by_qr = _checks.check_choice(who, "refresh", refresh, ("qr", "eigh")) == "qr"
    refresh_before = check_flag(who, "refresh_before", refresh_before)
    correct_bias = check_flag(who, "correct_bias", correct_bias)
    normalize = check_flag(who, "normalize", normalize)
    plan_of_leaf = plan_of(who, block_size, max_precondition_dim, one_sided)
    idle = 0 if refresh_before else 1

    def once(h, t):
        scale = (
            h.b1.correction / jnp.sqrt(h.b2.correction) if correct_bias else jnp.ones_like(h.eps)
        )
        every = jnp.round(h.precondition_frequency).astype(t.dtype)
        return h, t == 1, (t - 1) % every == 0, t > idle, scale

    def leaf(g, slots, scalars, p, plan):
        h, is_first, is_due, moves, scale = scalars
        g = bounded_for_products(g)
        refreshed = partial(_refreshed, plan, by_qr, is_first, is_due, h.b2, g)
        mu, nu, stats, bases, failures = _unpacked(plan, slots)
        if refresh_before:
            mu, nu, stats, bases, failures = refreshed(mu, nu, stats, bases, failures)
        rotated = _turned(plan, g, bases)
        mu = jnp.where(moves, average(h.b1, mu, rotated), mu)
        nu = jnp.where(moves, average(h.b2, nu, bounded_square(rotated)), nu)
        u = scale * _turned_back(plan, mu / (root(nu) + h.eps), bases)
        if normalize:
            u = u / (_root_mean_square(plan, u) + 1e-30)
        u = jnp.where(moves, u, g - g)  # g − g is NaN where g is, 0 elsewhere
        if not refresh_before:
            mu, nu, stats, bases, failures = refreshed(mu, nu, stats, bases, failures)
        return u, _packed(plan, mu, nu, stats, bases, failures)

    return Rule(
        who,
        leaf,
        kind="scale_by_soap",
        hyperparams={
            "b1": decay(b1, bias_corrected=correct_bias, idle=idle),
            "b2": decay(b2, bias_corrected=correct_bias, idle=idle),
            "eps": number(eps),
            "precondition_frequency": number(precondition_frequency, AT_LEAST_ONE),
        },
        slots={
            "mu": slot(),
            "nu": slot(),
            "left_statistic": factor_slot("left", 0),
            "right_statistic": factor_slot("right", 0),
            "left_basis": factor_slot("left", 1),
            "right_basis": factor_slot("right", 1),
            "failures": count_slot,
        },
        once=once,
        static=plan_of_leaf,
        stacked=True,
        axes=axes,
        complex="refused",
        check_leaves=lambda own, every: check_any_matrix(who, own),
    )


def _unpacked(plan: Plan | None, slots: Any) -> tuple[Any, ...]:
    """Return m, v, the statistics and the bases by stack of blocks, and the count of failures."""
    mu, nu, left, right, left_basis, right_basis, failures = slots
    if plan is None:
        return mu, nu, [], [], failures
    return mu, nu, plan.factors(left, right), plan.factors(left_basis, right_basis), failures


def _packed(
    plan: Plan | None, mu: Array, nu: Array, stats: Any, bases: Any, failures: Any
) -> tuple[Any, ...]:
    """Return what `_unpacked` took apart."""
    pairs = (None,) * 4 if plan is None else (*plan.stored(stats), *plan.stored(bases))
    return mu, nu, *pairs, failures


def _turned(plan: Plan | None, x: Array, bases: Sequence[Factors]) -> Array:
    """Return Q_Lᵀ x Q_R for the blocks of x."""
    return x if plan is None else plan.map(_into, x, bases)


def _turned_back(plan: Plan | None, x: Array, bases: Sequence[Factors]) -> Array:
    """Return Q_L x Q_Rᵀ for the blocks of x."""
    return x if plan is None else plan.map(_out_of, x, bases)


def _into(x: Array, bases: Factors) -> Array:
    return multiplied(x, _with(bases, "left", transposed))


def _out_of(x: Array, bases: Factors) -> Array:
    return multiplied(x, _with(bases, "right", transposed))


def _with(bases: Factors, side: str, change: Callable[[Array], Array]) -> Factors:
    return {own: change(q) if own == side else q for own, q in bases.items()}


def _root_mean_square(plan: Plan | None, u: Array) -> Array:
    """Return the root mean square of each matrix, or of a vector as a whole."""
    own = None if plan is None else (*plan.axes.input, *plan.axes.output)
    return root(jnp.mean(u * u, axis=own, keepdims=True))


@partial(jax.jit, static_argnums=(0, 1))  # so that eager updates, too, compile it once
def _refreshed(
    plan: Plan | None,
    by_qr: bool,
    is_first: Array,
    is_due: Array,
    b2: Decay,
    g: Array,
    mu: Array,
    nu: Array,
    stats: list[Factors],
    bases: list[Factors],
    failures: Any,
) -> tuple[Any, ...]:
    """Return the same with g in the statistics and, where it is due, with new bases."""
    if plan is None:
        return mu, nu, stats, bases, failures
    stats, were_finite = updated_statistics(plan, g, stats, partial(average, b2))

    def renew():
        moments = [plan.blocks(mu), plan.blocks(nu)]
        new = [
            _new_bases(by_qr, is_first, *of_stack)
            for of_stack in zip(stats, bases, *moments, strict=True)
        ]
        new_bases, new_mu, new_nu, is_finite = zip(*new, strict=True)
        return list(new_bases), plan.joined(new_mu), plan.joined(new_nu), all_of(is_finite)

    def keep():
        return bases, mu, nu, jnp.bool_(True)

    bases, mu, nu, is_finite = only_where_due(is_due, renew, keep)
    return mu, nu, stats, bases, counted(failures, were_finite & is_finite)


def _new_bases(
    by_qr: bool, is_first: Array, stats: Factors, bases: Factors, mu: Array, nu: Array
) -> tuple[dict[str, Array], Array, Array, Array]:
    """Return the bases that follow the statistics of a stack, m and v in them, and success."""
    new, checks = {}, []
    for side, statistic in stats.items():
        statistic, old = jax.lax.stop_gradient((statistic, bases[side]))
        places = jnp.arange(old.shape[-1])
        unordered = jnp.zeros_like(old[..., 0, :], places.dtype) + places
        if by_qr:
            basis, order = only_where_due(
                is_first,
                lambda s=statistic, n=unordered: (_eigenvectors(s), n),
                lambda s=statistic, q=old: _iterated(s, q),
            )
        else:
            basis, order = _eigenvectors(statistic), unordered
        new[side], is_finite = finite_or_old(basis, old)
        checks.append(is_finite)
        order = jnp.where(is_finite[..., 0], order, unordered)
        index = order[..., :, None] if side == "left" else order[..., None, :]
        nu = jnp.take_along_axis(nu, index, axis=-2 if side == "left" else -1)
    return new, _into(_out_of(mu, bases), new), nu, all_of(checks)


def _eigenvectors(statistic: Array) -> Array:
    """Return the eigenvectors of symmetric matrices as columns, by falling eigenvalue."""
    return decomposed(lambda x: jnp.linalg.eigh(x)[1], statistic)[..., ::-1]


def _iterated(statistic: Array, basis: Array) -> tuple[Array, Array]:
    """Return the basis after one step of orthogonal iteration, and the order of its columns."""
    power = product(statistic, basis)
    order = jnp.argsort(jnp.sum(basis * power, axis=-2), axis=-1, descending=True)
    ordered = jnp.take_along_axis(power, order[..., None, :], axis=-1)
    return decomposed(lambda x: jnp.linalg.qr(x)[0], ordered), order


def _soap(
    who: str,
    b1: Hyperparam = 0.95,
    b2: Hyperparam = 0.95,
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.01,
    mask: Mask | None = None,
    *,
    precondition_frequency: Hyperparam = 10,
    max_precondition_dim: int = 10_000,
    block_size: int | None = None,
    one_sided: bool = False,
    refresh: Literal["qr", "eigh"] = "qr",
    refresh_before: bool = False,
    correct_bias: bool = True,
    normalize: bool = False,
    axes: AxesChoice | None = None,
) -> list[Rule]:
    """Descend with SOAP, by Adam in the eigenbasis of Shampoo's statistics.

    Args:
        weight_decay: λ ≥ 0; each update shrinks the parameters by the factor 1 − αλ.
        mask: which parameters are decayed; None for all.
    """
    rule = soap_rule(
        who,
        b1,
        b2,
        eps,
        precondition_frequency=precondition_frequency,
        max_precondition_dim=max_precondition_dim,
        block_size=block_size,
        one_sided=one_sided,
        refresh=refresh,
        refresh_before=refresh_before,
        correct_bias=correct_bias,
        normalize=normalize,
        axes=axes,
    )
    idle = 0 if refresh_before else 1
    decayed = replace(
        weight_decay_rule(who, weight_decay, mask),
        once=lambda h, t: jnp.where(t > idle, h.weight_decay, 0),
    )
    return [rule, decayed]


scale_by_soap = direction("scale_by_soap", soap_rule)
soap = optimizer("soap", _soap, like=(soap_rule,))
