"""How contenders are timed: side by side, in rounds, after their results have been compared.

In each round every contender makes one sample, in an order drawn anew, so that whatever else the
machine does meets all alike. Before each sample come as many steps that are not timed: the caches
hold what the contender before has left there, and that one's idle threads still spin for some
milliseconds. Ratios are formed within rounds; their median and quartiles are what counts, beside
which a median of milliseconds is an illustration.
"""

import gc
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import Contender, Optimizer

MIN_SAMPLE = 0.005
"""Seconds that a sample lasts at least; short steps are repeated in it."""

FACTORS = (1.0, -1.5, 2.0)
"""Of the gradients in three steps before the timing: of changing sign, so that averages are seen,
and growing, for AMSGrad takes the largest v̂ in JAX and the largest v in PyTorch, which is then the
last of either."""

TOLERANCE = 1e-4
"""Of the farthest movement. Optax and the hand-written steps form 1 − β₂ᵗ in float32, where β₂ =
0.999 is off by 1e-8, and so 1 − β₂ by 1e-5; sums of 10⁸ squares differ in their last digits by the
order in which they are formed."""

ROUNDINGS = 2
"""Of each number in each step, that two contenders may differ by: each rounds, by up to half a
spacing, the number and a product that is as large (in an average, decay · old)."""

SEEN = 10
"""How many times what is allowed some number must move in three steps, or nothing is compared."""


class Disagreement(Exception):
    """Two contenders do not compute the same."""


class Samples(NamedTuple):
    """What was measured.

    Attributes:
        seconds: of a step, by contender: (rounds,) float64.
        steps: in a sample.
    """

    seconds: dict[str, np.ndarray]
    steps: int


def check_agreement(
    contenders: Sequence[Optimizer],
    start: Sequence[np.ndarray],
    gradients: dict[str, jax.Array],
    eps: float = float(jnp.finfo(jnp.float32).eps),
) -> dict[str, float]:
    """Let all take three steps, and compare parameters and averages with those of the first.

    Each number may differ by TOLERANCE of the farthest movement, by the error of the contender's
    norm of it, and in each step by ROUNDINGS of that movement and of its own. The largest number's
    roundings must not be allowed to all: in bfloat16 they exceed the whole movement, and a step
    that does nothing would pass. Numbers near 0 have roundings far smaller than their steps, and
    tell, also where clipped steps are short.

    Args:
        contenders: that have not moved yet.
        start: the parameters they stand at.
        gradients: those of the timing; contenders have them again in the end.
        eps: the relative spacing of the parameters' type.

    Returns:
        The parameters' largest difference by contender, as a share of their farthest movement.

    Raises:
        Disagreement: a difference is larger, or nothing moves enough to tell.
    """
    reference = _after_three_steps(contenders[0], gradients)
    movement = {kind: _distance(arrays, start) for kind, arrays in reference.items()}
    roundings = len(FACTORS) * ROUNDINGS * eps
    every = {kind: (TOLERANCE + roundings) * distance for kind, distance in movement.items()}
    for kind, arrays in reference.items():
        if not _excess(arrays, start, every[kind], roundings) >= SEEN:
            raise Disagreement(f"{contenders[0].name}: {kind} must move enough to be compared")
    shares = {contenders[0].name: 0.0}
    for contender in contenders[1:]:
        for kind, arrays in _after_three_steps(contender, gradients).items():
            allowed = every[kind] + contender.norm_error * movement[kind]
            excess = _excess(reference[kind], arrays, allowed, roundings)
            if not excess <= 1:
                raise Disagreement(
                    f"{contender.name}: {kind} must be within {allowed:.1e} and "
                    f"{roundings:.1e} of their size from those of {contenders[0].name}, "
                    f"got {excess:.1f} times as much"
                )
            if kind == "params":
                shares[contender.name] = _distance(reference[kind], arrays) / movement[kind]
    return shares


def _after_three_steps(
    contender: Optimizer, gradients: dict[str, jax.Array]
) -> dict[str, list[np.ndarray]]:
    for factor in FACTORS:
        contender.set_gradients({name: factor * g for name, g in gradients.items()})
        contender.advance(1)
    contender.set_gradients(gradients)
    return contender.results()


def _distance(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Return the largest difference of two numbers; NaN where there is one."""
    return _excess(some, others, every=1.0, relative=0.0)


def _excess(
    some: Sequence[np.ndarray], others: Sequence[np.ndarray], every: float, relative: float
) -> float:
    """Return the largest difference over what its number may have; NaN where there is one.

    Args:
        some: reference.
        others: compared with it.
        every: difference that all may have.
        relative: further difference, over the reference's absolute value.
    """
    excesses = []
    for x, y in zip(some, others, strict=True):
        x, y = x.astype(np.float32), y.astype(np.float32)
        excesses.append(np.max(np.abs(x - y) / (every + relative * np.abs(x))))
    return float(np.max(excesses))


def measure(
    contenders: Sequence[Contender], rounds: int, warm_ups: int = 10, seed: int = 0
) -> Samples:
    """Time contenders side by side.

    Args:
        contenders: to be timed.
        rounds: samples of each, ≥ 1.
        warm_ups: rounds before, ≥ 1, by whose quickest step the length of samples is chosen.
        seed: of the orders.
    """
    rng = np.random.default_rng(seed)

    def one_round(steps: int) -> dict[str, float]:
        order = rng.permutation(len(contenders))
        return {contenders[i].name: _sample(contenders[i], steps) for i in order}

    gc.collect()
    gc.disable()
    try:
        quickest = min(min(one_round(steps=1).values()) for _ in range(warm_ups))
        steps = math.ceil(MIN_SAMPLE / quickest)
        taken = [one_round(steps) for _ in range(rounds)]
    finally:
        gc.enable()
    names = [contender.name for contender in contenders]
    return Samples({name: np.array([one[name] for one in taken]) for name in names}, steps)


def _sample(contender: Contender, steps: int) -> float:
    """Return the seconds of a step. JAX may begin the next before the last is done."""
    contender.advance(steps)
    contender.wait()
    began = time.perf_counter()
    contender.advance(steps)
    contender.wait()
    return (time.perf_counter() - began) / steps


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Return the quantiles that describe samples, by their percentage."""
    percentages = (5, 25, 50, 75, 95)
    return {
        f"{q}%": float(x)
        for q, x in zip(percentages, np.percentile(values, percentages), strict=True)
    }


def ratio(seconds: dict[str, np.ndarray], base: str, name: str) -> dict[str, float] | None:
    """Return how many times as fast as the base, by quantiles of the ratios within rounds.

    None where the base was not measured.
    """
    return quantiles(seconds[base] / seconds[name]) if base in seconds else None
