"""Gradients at both ends of the floating-point numbers, against the float64 references.

A row that takes squares says so, and its reference gets gradients bounded by 2⁶³, as which larger
ones count. What is smaller than the smallest normal number may be taken for zero, as XLA does on
CPUs. That much may be missing from a gradient or a state, and a quotient by ε of it.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from optlab.registry import Row
from optlab.testing._check import require

LARGEST = 2.0**63
TINY = float(np.finfo(np.float32).tiny)
UPDATES = 6
SIZE = 8

_rng = np.random.default_rng(0)
BASE = _rng.uniform(0.25, 1, (UPDATES, SIZE)) * _rng.choice([-1, 1], (UPDATES, SIZE))


def sizes(*of_updates: Any) -> np.ndarray:
    """Return gradients of these sizes, each one for all coordinates or one for each."""
    return np.array([row * size for row, size in zip(BASE, of_updates, strict=True)], np.float32)


EXTREMES = np.array([1e-40, 1.5 * TINY, 1e-30, 1e-10, 1, 1e19, 1e30, 1.5e38])
SCENARIOS = {
    "denormal": sizes(*[1e-40] * 6),
    "at_the_smallest_normal_number": sizes(*[1.5 * TINY] * 6),
    "tiny": sizes(*[1e-30] * 6),
    "tiny_then_ordinary": sizes(*[1e-30] * 3, 1, 1, 1),
    "ordinary_then_tiny": sizes(1, 1, 1, *[1e-30] * 3),
    "zero_then_tiny": sizes(0, 0, 0, *[1e-30] * 3),
    "with_squares_that_vanish": sizes(*[1e-20] * 6),
    "with_squares_in_range": sizes(*[np.logspace(-18, 18, SIZE)] * 6),
    "around_the_bound_of_squares": sizes(1, LARGEST * np.linspace(0.9, 4, SIZE), 1, 1, 1, 1),
    "mixed_once": sizes(1, EXTREMES, 1, 1, 1, 1),
    "mixed_twice": sizes(EXTREMES, 1, 1, EXTREMES[::-1], 1, 1),
    "small_ones_mixed": sizes(*[np.minimum(EXTREMES, 1)] * 6),
}
HUGE = {f"{size:g}": sizes(*[size] * 6) for size in (1e20, 1e30, 1e37)}


def tree(row: Row, vector: np.ndarray, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Return a vector of 8 numbers as a tree of a vector and a matrix."""
    vector = vector.astype(dtype)
    return {"b": vector[..., :2], "w": vector[..., 2:].reshape(*vector.shape[:-1], 2, 3)}


def flat(leaves: list[Any]) -> np.ndarray:
    """Return the leaves of such a tree as vectors."""
    first, second = (np.asarray(x) for x in leaves)
    return np.concatenate([first, second.reshape(*second.shape[:-2], 6)], axis=-1)


def ordinary_parameters(row: Row) -> np.ndarray:
    """Return parameters beside which no digit of an outcome is lost."""
    # An optimizer's reference returns a difference of parameters, which only 0 leaves whole.
    return np.full(SIZE, 0.0 if row.is_optimizer else 0.75)


def outcomes(
    row: Row,
    options: Mapping[str, Any],
    grads: np.ndarray,
    params: np.ndarray,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Run the updates of all scenarios, (scenarios, updates, SIZE), in one compilation."""
    tx = row.make(**row.arguments(**options))
    params = np.broadcast_to(params, (len(grads), SIZE))

    def run(grads: Any, params: Any) -> Any:
        def body(state: Any, g: Any) -> tuple[Any, Any]:
            update, state = tx.update(g, state, params)
            return state, row.outcome(update, state)

        return jax.lax.scan(body, tx.init(params), grads)[1]

    result = jax.jit(jax.vmap(run))(tree(row, grads, dtype), tree(row, params, dtype))
    return flat(jax.tree.leaves(result))


def wanted_outcomes(
    row: Row, options: Mapping[str, Any], grads: np.ndarray, params: np.ndarray
) -> np.ndarray:
    """Return the reference's outcomes for one scenario, (updates, SIZE)."""
    assert row.reference is not None
    arguments = {**row.fixed, **row.arguments(**options)}
    wanted, state = [], None
    arrays = list(tree(row, params, float).values())
    for t, g in enumerate(np.asarray(grads, float), 1):
        if row.squares:
            g = np.clip(g, -LARGEST, LARGEST)
        outcome, state = row.reference(
            list(tree(row, g, float).values()), arrays, state, t, **arguments
        )
        wanted.append(flat(outcome))
    return np.array(wanted)


@functools.lru_cache
def measured(
    row: Row, sample: int, extreme_parameters: bool = False
) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """Return all scenarios of a sample: the outcomes, and the wanted ones."""
    options = row.samples[sample]
    if extreme_parameters:
        names = list(range(4))
        grads = np.repeat([SCENARIOS["tiny_then_ordinary"], SCENARIOS["mixed_once"]], 2, axis=0)
        params = np.array([EXTREMES, EXTREMES[::-1]] * 2, np.float32)
    else:
        every = {**SCENARIOS, **HUGE}
        names, grads = list(every), np.array(list(every.values()))
        params = np.broadcast_to(ordinary_parameters(row), (len(names), SIZE))
    results = outcomes(row, options, grads, params)
    return {
        name: (result, wanted_outcomes(row, options, g, p))
        for name, result, g, p in zip(names, results, grads, params, strict=True)
    }


def require_right(
    row: Row, sample: int, scenario: Any, results: Mapping[Any, Any] | None = None
) -> None:
    """Require closeness relative to the outcome or the one before it, whose difference it may be.

    Where the elements of a matrix depend on each other, the largest of them takes their place.
    8e-7 is measured, the roundings of two terms that cancel.
    """
    result, want = (measured(row, sample) if results is None else results)[scenario]
    options = row.arguments(**row.samples[sample])
    # What an outcome may lack where gradients and state below TINY count as zero.
    eps = options.get("eps", row.hyperparams.get("eps", (1,))[0])
    vanishing = 16 * row.gain * TINY / min(eps or 1, 1)
    size = np.maximum(np.abs(want), np.abs(np.concatenate([want[:1], want[:-1]])))
    if not row.elementwise:
        size[:, 2:] = size[:, 2:].max(axis=1, keepdims=True)
    where = f"{scenario} of the sample {dict(row.samples[sample])}"
    require(np.isfinite(result).all(), f"not finite at {where}: {result}")
    close = np.abs(result - want) <= max(1.5e-6, row.rtol) * size + vanishing
    require(close.all(), f"{where}: {result[~close]} for {want[~close]}")
