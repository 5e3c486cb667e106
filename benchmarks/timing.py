"""How contenders are timed: side by side, in rounds, after their results have been compared.

In each round every contender makes one sample, in a new random order, so that other activity of the
machine affects all alike. Before each sample the contender makes as many steps without timing them,
for two reasons: the caches still hold the data of the previous contender, and that contender's idle
threads spin for some milliseconds. Ratios are computed within rounds. Their median and quartiles
are the result; a median of milliseconds is only an illustration.
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
"""The least seconds of a sample; short steps are repeated within it."""

LEAST_ROUNDS = 5
"""The fewest rounds, however little time there is: quartiles need some."""

FACTORS = (1.0, -1.5, 2.0)
"""Factors of the gradients in the three steps of `check_agreement`. The sign changes, so that
averages matter. The size grows, because AMSGrad takes the largest v̂ in JAX but the largest v in
PyTorch; with growing gradients both are the last one."""

TOLERANCE = 1e-4
"""Allowed difference, as a share of the farthest movement. Optax and the hand-written steps compute
1 − β₂ᵗ in float32, where β₂ = 0.999 is off by 1e-8, and so 1 − β₂ by 1e-5. Sums of 10⁸ squares
differ in their last digits by the order of summation."""

ROUNDINGS = 2
"""Allowed difference of each number in each step, in roundings. Each of two contenders rounds, by
up to half a spacing, the number and a product of the same size (in an average, decay · old)."""

LEAST_MOVEMENT = 10
"""Contenders are compared only if some number moves this many times the allowed difference."""


class Disagreement(Exception):
    """Two contenders compute different results."""


class Samples(NamedTuple):
    """The times of a measurement.

    Attributes:
        seconds: contender → (rounds,) float64, the time of a step.
        steps: the number of steps in a sample.
    """

    seconds: dict[str, np.ndarray]
    steps: int


def check_agreement(
    contenders: Sequence[Optimizer],
    start: Sequence[np.ndarray],
    gradients: dict[str, jax.Array],
    eps: float = float(jnp.finfo(jnp.float32).eps),
    limit: int | None = None,
) -> dict[str, float]:
    """Make three steps with each contender, and compare the results with those of the first one.

    Parameters and averages are compared. Each number may differ by TOLERANCE of the farthest
    movement, by the known error of the contender's norm as a share of it, and in each step by
    ROUNDINGS of that movement and of its own size. The roundings of the largest number must not be
    allowed for all numbers: in bfloat16 they exceed the whole movement, so that a step that does
    nothing would pass. Numbers near 0 have roundings far smaller than their steps, so that they
    show a difference even if clipped steps are short.

    Args:
        contenders: contenders that have not moved yet.
        start: the parameters at which they all stand.
        gradients: the gradients of the timing, which contenders have again at the end.
        eps: the relative spacing of the parameters' type.
        limit: how many numbers of each array are compared, the first ones; None for all.

    Returns:
        Contender → the largest difference of its parameters, as a share of the farthest movement.

    Raises:
        Disagreement: a difference is too large, or nothing moves enough for a comparison.
    """
    start = [x.reshape(-1)[:limit] for x in start]
    reference = _after_three_steps(contenders[0], gradients, limit)
    movement = {kind: _distance(arrays, start) for kind, arrays in reference.items()}
    roundings = len(FACTORS) * ROUNDINGS * eps
    every = {kind: (TOLERANCE + roundings) * distance for kind, distance in movement.items()}
    for kind, arrays in reference.items():
        if not _excess(arrays, start, every[kind], roundings) >= LEAST_MOVEMENT:
            raise Disagreement(f"{contenders[0].name}: {kind} must move enough to be compared")
    shares = {contenders[0].name: 0.0}
    for contender in contenders[1:]:
        for kind, arrays in _after_three_steps(contender, gradients, limit).items():
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
    contender: Optimizer, gradients: dict[str, jax.Array], limit: int | None
) -> dict[str, list[np.ndarray]]:
    for factor in FACTORS:
        contender.set_gradients({name: factor * g for name, g in gradients.items()})
        contender.advance(1)
    contender.set_gradients(gradients)
    results = contender.results() if limit is None else contender.results(limit)
    return {kind: [x.reshape(-1) for x in arrays] for kind, arrays in results.items()}


def _distance(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Return the largest difference of two numbers; NaN if any is NaN."""
    return _excess(some, others, every=1.0, relative=0.0)


def _excess(
    some: Sequence[np.ndarray], others: Sequence[np.ndarray], every: float, relative: float
) -> float:
    """Return the largest ratio of a difference to the allowed one; NaN if any is NaN.

    Args:
        some: the reference.
        others: the numbers to compare with it.
        every: the difference allowed for all numbers.
        relative: a further allowed difference, as a share of the reference's absolute value.
    """
    excesses = []
    for x, y in zip(some, others, strict=True):
        x, y = x.astype(np.float32), y.astype(np.float32)
        excesses.append(np.max(np.abs(x - y) / (every + relative * np.abs(x))))
    return float(np.max(excesses))


class Clock:
    """The time that a whole run may take, and how much of it is left.

    Every part has a share, counted from the beginning of the run, so that what one leaves the next
    ones may use. A part measures its first case even if earlier ones took its time.

    Attributes:
        was_over: whether a part has asked since its beginning, when its time was over.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        """Begin.

        Args:
            seconds: for everything; infinity for no limit.
        """
        self.was_over, self._is_first = False, True
        self._began, self._seconds, self._end = time.monotonic(), seconds, math.inf

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return math.isfinite(self._seconds)

    def begin(self, share: float) -> None:
        """Begin a part that ends when this share of all the time is over, in (0, 1]."""
        self.was_over, self._is_first = False, True
        if self.is_limited:
            self._end = self._began + share * self._seconds

    def is_over(self) -> bool:
        """Return whether the time of the part is over; the part then leaves out what remains.

        It asks once before each case, and is told to measure the first in any case.
        """
        self.was_over = time.monotonic() > self._end and not self._is_first
        self._is_first = False
        return self.was_over

    def part(self, parts: int) -> float:
        """Return when the first of so many equal parts of what is left should end."""
        now = time.monotonic()
        return now + max(0.0, self._end - now) / parts


def measure(
    contenders: Sequence[Contender],
    rounds: int,
    warm_ups: int = 10,
    seed: int = 0,
    until: float = math.inf,
) -> Samples:
    """Time contenders side by side.

    Args:
        contenders: the contenders to time.
        rounds: samples of each contender, ≥ 1.
        warm_ups: rounds before the samples, ≥ 1; the quickest step in them determines how many
            steps a sample has.
        seed: the seed of the random orders.
        until: what `time.monotonic()` is when it shall end, with LEAST_ROUNDS at least.
    """
    rng = np.random.default_rng(seed)

    def one_round(steps: int) -> dict[str, float]:
        order = rng.permutation(len(contenders))
        return {contenders[i].name: _sample(contenders[i], steps) for i in order}

    gc.collect()
    gc.disable()
    try:
        quickest = math.inf
        for number in range(warm_ups):
            if number < LEAST_ROUNDS or time.monotonic() < until:
                quickest = min(quickest, *one_round(steps=1).values())
        steps = math.ceil(MIN_SAMPLE / quickest)
        samples_by_round: list[dict[str, float]] = []
        while len(samples_by_round) < rounds and (
            len(samples_by_round) < LEAST_ROUNDS or time.monotonic() < until
        ):
            samples_by_round.append(one_round(steps))
    finally:
        gc.enable()
    names = [contender.name for contender in contenders]
    return Samples(
        {name: np.array([one[name] for one in samples_by_round]) for name in names}, steps
    )


def _sample(contender: Contender, steps: int) -> float:
    """Return the seconds of a step, although JAX may start a step before the last one is done."""
    contender.advance(steps)
    contender.wait()
    began = time.perf_counter()
    contender.advance(steps)
    contender.wait()
    return (time.perf_counter() - began) / steps


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Return the quantiles that describe the samples, by their percentage."""
    percentages = (5, 25, 50, 75, 95)
    return {
        f"{q}%": float(x)
        for q, x in zip(percentages, np.percentile(values, percentages), strict=True)
    }


def ratio(seconds: dict[str, np.ndarray], base: str, name: str) -> dict[str, float] | None:
    """Return how many times as fast as the base a contender is, as quantiles of the rounds' ratios.

    It is None if the base was not measured.
    """
    return quantiles(seconds[base] / seconds[name]) if base in seconds else None
