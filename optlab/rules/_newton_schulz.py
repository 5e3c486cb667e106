"""The orthogonal factor of a matrix, approximately, by Newton–Schulz iterations.

With G = U S Vᵀ, the factor is U Vᵀ. From X = G/‖G‖, whose singular values are at most 1, each step
applies an odd polynomial of degree 5 to the singular values and leaves U and Vᵀ as they are:

    X ← aX + bAX + cA²X        A = XXᵀ

A set of coefficients says how far from 1 they end. The last column is the image of the singular
values from 0.01 to 1 after five steps:

    keller_jordan   (3.4445, −4.7750, 2.0315) again and again           0.68 to 1.13
    you             five triples by Jiacheng You, the last repeated     0.98 to 1.03
    polar_express   the best polynomial for what the steps before left  0.88 to 1.12

Polar Express ends within 1e-6 of 1 after eight steps. For a wide matrix, X changes only from the
left, by polynomials of A. The Gram form composes those of two or three steps and multiplies X once,
with fewer operations where the matrix is more than 1.5 times as long as wide.

Reference: Jordan et al., "Muon" (2024), kellerjordan.github.io/posts/muon; Amsel, Persson, Musco,
Gower, "The Polar Express", arXiv 2505.16932 (2025).
"""

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._tree import root
from optlab._types import Array, ArrayLike, DTypeLike

Coefficients = tuple[tuple[float, float, float], ...]
"""(a, b, c) of each step."""

Product = Callable[[Array, Array], Array]
"""The product of stacks of matrices, in some precision."""

_KELLER_JORDAN = (3.4445, -4.7750, 2.0315)
_YOU = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
_GRAM_FROM = 1.5
"""The ratio of the sides from which the Gram form takes fewer operations."""


def newton_schulz_coefficients(who: str, ns_coeffs: str | ArrayLike, ns_steps: int) -> Coefficients:
    """Return the coefficients of each step, checked.

    Args:
        who: the public name that errors begin with.
        ns_coeffs: "keller_jordan", "you" or "polar_express", or rows (a, b, c).
        ns_steps: how many steps, ≥ 1; where there are fewer rows the last is repeated, where there
            are more the first ones count.

    Raises:
        ValueError: there is no such set, a row is no finite triple, or there is no step.
    """
    steps = _checks.check_count(who, "ns_steps", ns_steps, 1)
    if isinstance(ns_coeffs, str):
        if ns_coeffs == "polar_express":
            return polar_express(steps)
        sets = {"keller_jordan": (_KELLER_JORDAN,), "you": _YOU}
        if ns_coeffs not in sets:
            names = ", ".join(map(repr, [*sets, "polar_express"]))
            required = f"ns_coeffs must be {names}, or rows (a, b, c)"
            _checks.fail(who, required, f"ns_coeffs={ns_coeffs!r}")
        rows: Sequence[tuple[float, float, float]] = sets[ns_coeffs]
    else:
        table = np.asarray(ns_coeffs, np.float64)
        if table.shape == (3,):
            table = table[None]
        if table.ndim != 2 or table.shape[1] != 3 or not len(table) or not np.isfinite(table).all():
            required = "ns_coeffs must be a name, or finite rows (a, b, c)"
            _checks.fail(who, required, f"ns_coeffs={ns_coeffs!r}")
        rows = [(float(a), float(b), float(c)) for a, b, c in table]
    return tuple(rows[min(step, len(rows) - 1)] for step in range(steps))


@lru_cache
def polar_express(steps: int, smallest: float = 1e-3) -> Coefficients:
    """Return the coefficients of Polar Express, step by step.

    Each polynomial is the one that brings the interval of singular values that the steps before it
    left closest to 1. The interval of the first is [`smallest`, 1]. Values below 0.024 times the
    largest are left out while a polynomial is chosen, as those who published the method do, so that
    rounding does not drive large ones away; the polynomial is then centred anew.
    """
    low, high, rows = smallest, 1.0, []
    for _ in range(steps):
        chosen = _nearest_to_one(max(low, _CUSHION * high), high)
        at = np.array([low, high])
        if low < _CUSHION * high:
            chosen = chosen * 2 / _odd(chosen, at).sum()
        rows.append(tuple(map(float, chosen)))
        low = float(_odd(chosen, at)[0])
        high = 2 - low
    return tuple(rows)


_CUSHION = 0.02407327424182761


def _odd(row: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return ax + bx³ + cx⁵."""
    return x * (row[0] + x**2 * (row[1] + x**2 * row[2]))


def _nearest_to_one(low: float, high: float) -> np.ndarray:
    """Return (a, b, c) with the least largest |ax + bx³ + cx⁵ − 1| on an interval.

    By Remez: the difference takes its largest size, with alternating signs, at the ends and at the
    two extrema between them.
    """
    if low > (1 - 5e-6) * high:  # the polynomial whose derivatives vanish at 1
        return np.array([15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5])
    inner = low + (high - low) * np.array([0.25, 0.75])
    size = np.inf
    while True:
        points = np.array([low, *inner, high])
        signs = np.array([1.0, -1.0, 1.0, -1.0])
        system = np.stack([points, points**3, points**5, signs], axis=1)
        *row, new_size = np.linalg.solve(system, np.ones(4))
        a, b, c = row
        if abs(size - new_size) < 1e-15:
            return np.array(row)
        root = np.sqrt(9 * b**2 - 20 * a * c)
        inner = np.sort(np.sqrt((-3 * b + np.array([-root, root])) / (10 * c)))
        size = new_size


def orthogonalized(
    x: Array,
    rows: Coefficients,
    eps: ArrayLike,
    dtype: DTypeLike | None = None,
    precision: Any = "highest",
    divisor: Callable[[Array, Array], Array] = operator.add,
) -> Array:
    """Return the orthogonal factors of matrices; those of a zero matrix are 0.

    Args:
        x: (…, m, n) float array.
        rows: the coefficients of each step.
        eps: ε ≥ 0, in the unit of x.
        dtype: the type of the iteration; None for that of x.
        precision: of its products, as `jnp.matmul` takes it.
        divisor: (‖G‖, ε) → what G is divided by; by default their sum, as Keller Jordan.
    """
    scale = _scale(x)
    x = scale * x
    norm = root(jnp.sum(x * x, axis=(-2, -1), keepdims=True))
    length = divisor(norm, scale * eps)
    unit = (x / jnp.where(length == 0, 1, length)).astype(dtype or x.dtype)
    is_tall = x.shape[-2] > x.shape[-1]
    wide = jnp.swapaxes(unit, -1, -2) if is_tall else unit
    factor = _iterated(wide, rows, partial(jnp.matmul, precision=precision))
    return (jnp.swapaxes(factor, -1, -2) if is_tall else factor).astype(x.dtype)


def _scale(x: Array) -> Array:
    """Return a power of two for each matrix, with which its squares neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    step = jnp.finfo(x.dtype).maxexp // 8
    edge = 2.0 ** (2.5 * step)
    small = jnp.where(largest < 1 / edge, 2.0 ** (5 * step), 1.0)
    return jnp.where(largest > edge, 2.0 ** (-6 * step), small).astype(x.dtype)


def _iterated(x: Array, rows: Coefficients, product: Product) -> Array:
    """Return wide matrices after all steps."""
    short, long = x.shape[-2:]
    table = jnp.asarray(rows, x.dtype)
    # In half precision the Gram form loses the small singular values.
    if long > _GRAM_FROM * short and jnp.finfo(x.dtype).bits >= 32:
        for start, stop in _groups(len(rows)):
            x = _composed(x, table[start:stop], product)
        return x

    def step(x: Array, row: Array) -> tuple[Array, None]:
        a, b, c = row
        gram = product(x, jnp.swapaxes(x, -1, -2))
        return a * x + product(b * gram + c * product(gram, gram), x), None

    return jax.lax.scan(step, x, table)[0]


def _composed(x: Array, rows: Array, product: Product) -> Array:
    """Return X after some steps, in which it is multiplied once.

    Each step multiplies X by W = aI + bA + cA², which commutes with A, so that the next A is AW²
    and the product of all W comes last.
    """
    identity = jnp.eye(x.shape[-2], dtype=x.dtype)

    def factor_of(gram: Array, row: Array) -> Array:
        a, b, c = row
        return a * identity + b * gram + c * product(gram, gram)

    def step(carry: tuple[Array, Array, Array], row: Array) -> tuple[Any, None]:
        gram, factor, composed = carry
        gram = product(product(gram, factor), factor)
        factor = factor_of(gram, row)
        return (gram, factor, product(composed, factor)), None

    gram = product(x, jnp.swapaxes(x, -1, -2))
    factor = factor_of(gram, rows[0])
    (*_, composed), _ = jax.lax.scan(step, (gram, factor, factor), rows[1:])
    return product(composed, x)


def _groups(steps: int) -> list[tuple[int, int]]:
    """Return where groups of steps that are composed start and stop: three, then two and two.

    Rounding in A hides singular values that are small beside the largest, the more so the more
    steps a group has. After three steps there are few of them, and a fresh A repairs what was lost:
    errors stay within a few times those of single steps.
    """
    starts = [0, *range(3, steps, 2)]
    return list(zip(starts, [*starts[1:], steps], strict=True))
