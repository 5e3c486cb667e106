"""The learning-rate range test: raise the rate over a short run, and see where the loss falls.

    αᵢ = min_lr·(max_lr/min_lr)^(i/(N−1))   exponential
    αᵢ = min_lr + (max_lr − min_lr)·i/(N−1)   linear,     i = 0 … N−1

The run makes one update at each rate, from several seeds at once. A seed whose loss is no longer
finite, or rose fourfold above where it began, stands still from there on.

Reference: Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab import _checks
from optlab._types import Array, Schedule
from optlab.lab._grid import DIVERGENCE_FACTOR, checked_seeds
from optlab.lab._loop import TrainState, begin, run_keys, step_data, update
from optlab.lab._range_picks import (
    Suggestion,
    median_over_seeds,
    picks,
    smooth,
    suggest,
    trend,
)
from optlab.lab._report import aligned, number, strict, versions
from optlab.lab._task import Task, check_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MakeScheduled = Callable[[Schedule], optax.GradientTransformation]
"""A function of the learning rate, which is a schedule."""

_WHO = "lr_range_test"

MODES = ("exponential", "linear")

LEAST_STEPS = 10
"""Fewer points have no shape to read."""

INITIAL_BATCHES = 10
"""Batches on which the loss before the first update, and the noise in it, are measured."""


@dataclass(frozen=True)
class RangeTest:
    """What `lr_range_test` found; `print` it, or `plot` it.

    Attributes:
        task: the task's name.
        mode: "exponential" or "linear".
        rates: (steps,) float, ascending; of each update.
        seeds: (seeds,) int.
        initial: (seeds, 10) float, the loss on ten batches before the first update.
        losses: (seeds, steps) float, after the update at each rate, on the next batch; NaN from
            where the seed diverged.
        smoothed: (seeds, steps) float, running averages of `losses` with decay 0.98, freed of bias,
            as fastai draws them. They lag.
        trends: (seeds, steps) float, means of `losses` over a window centred on each rate.
        median: (steps,) float, of `trends` over the seeds; NaN where half of them have diverged.
        suggested_max: a rate to train with: high, and yet below where training becomes worse. None
            where there is no reliable suggestion.
        suggested_min: where improvement begins, from which a cycle or a warm-up may start; or None.
        max_interval: the lowest and the highest that `suggested_max` is by a single seed; or None.
        min_interval: likewise.
        at_edge: whether the loss still fell at the last rate, so that with a higher `max_lr` the
            suggestions may be higher.
        reason: why there is no suggestion; None where there is one.
        picks: fastai's "valley", "steep" and "minimum" → a rate, from the median of `smoothed`;
            empty where there is no reliable suggestion.
    """

    task: str
    mode: str
    rates: np.ndarray
    seeds: np.ndarray
    initial: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    trends: np.ndarray
    median: np.ndarray
    suggested_max: float | None
    suggested_min: float | None
    max_interval: tuple[float, float] | None
    min_interval: tuple[float, float] | None
    at_edge: bool
    reason: str | None
    picks: Mapping[str, float]

    @property
    def diverged(self) -> np.ndarray:
        """(seeds,) bool: which seeds diverged before the last rate."""
        return np.isnan(self.losses[:, -1])

    def table(self) -> str:
        """Return the suggestions as aligned text, or why there are none."""
        parts = ("\n".join(part) for part in (self._body(), self._notes()))
        return "\n\n".join(filter(None, parts))

    def __str__(self) -> str:
        return f"{self.title()}\n\n{self.table()}"

    def title(self, label: str | None = None) -> str:
        """Say in one line what was run.

        Args:
            label: of what, such as "adam on digits-mlp"; None for the task's name.
        """
        seeds = "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return (
            f"{label or self.task}: learning-rate range test, "
            f"{self.rates[0]:.3g} to {self.rates[-1]:.3g} in {len(self.rates)} {self.mode} steps, "
            f"{seeds}"
        )

    def plot(self, ax: "Axes | None" = None, *, label: str | None = None) -> "Axes":
        """Draw the curves and the suggestions; see `optlab.plots.plot_range_test`.

        Args:
            ax: where to draw; None for a new figure.
            label: for the title; see there.

        Raises:
            ModuleNotFoundError: if Matplotlib is not installed.
        """
        from optlab.plots import plot_range_test  # which imports this room

        return plot_range_test(self, label=label, ax=ax)

    def to_json(self, **extra: Any) -> str:
        """Return everything as strict JSON; a number that is not finite is null.

        Args:
            extra: further entries, such as the options that led here.
        """
        document = {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "diverged": self.diverged,
            "versions": versions("optlab", "jax", "jaxlib", "optax", "flax", "numpy"),
        }
        return json.dumps(strict({**extra, **document}), allow_nan=False)

    def _body(self) -> list[str]:
        if self.reason is not None:
            return [f"No reliable suggestion: {self.reason}."]
        rows = {
            "suggested max": (self.suggested_max, self.max_interval),
            "suggested min": (self.suggested_min, self.min_interval),
            **{f"{name} (fastai)": (rate, None) for name, rate in self.picks.items()},
        }
        many = len(self.seeds) > 1
        columns = {
            "": list(rows),
            "rate": [number(rate) for rate, _ in rows.values()],
            "over seeds": [
                f"{number(interval[0])} to {number(interval[1])}" if interval and many else ""
                for _, interval in rows.values()
            ],
        }
        return list(aligned(columns))

    def _notes(self) -> Iterator[str]:
        if self.diverged.any():
            yield f"{self.diverged.sum()} of {len(self.seeds)} seeds diverged before the last rate."
        if self.at_edge:
            yield "The loss still falls at the last rate; raise max_lr to see where that ends."


def lr_range_test(
    task: Task,
    optimizer: MakeScheduled,
    *,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
    steps: int = 100,
    seeds: int | Sequence[int] = 5,
    mode: str = "exponential",
) -> RangeTest:
    """Raise the learning rate over a short run from several seeds, and suggest rates by the loss.

    All seeds run in one compiled program. Nothing is left changed: keys, parameters and batches are
    made anew of the seeds, as `compare` makes them.

    Args:
        task: the problem.
        optimizer: a function of the learning rate, which is a schedule, that returns the optimizer:
            `optlab.adam`, or `lambda rate: optlab.adam(rate, b1=0.8)`.
        min_lr: the first rate, > 0.
        max_lr: the last rate, > min_lr.
        steps: updates, one at each rate, ≥ 10.
        seeds: how many, numbered from 0, or which.
        mode: "exponential", which has as many rates in each decade; or "linear".

    Returns:
        Curves and suggestions; `suggested_max` is None, and `reason` says why, where they would
        not be reliable.

    Raises:
        ValueError: an argument is out of its range, or `optimizer` makes no optimizer.

    Example:
        Gradient descent on f(x) = x² converges below the rate 1, and at ½ in one step:

        >>> import optlab
        >>> parabola = Task(
        ...     name="parabola",
        ...     init=lambda key: (jax.random.normal(key), ()),
        ...     loss=lambda x, state, batch, key: (x**2, state),
        ...     batch=lambda key, step: (),
        ...     evaluate=lambda x, state, data: {"loss": x**2},
        ... )
        >>> found = lr_range_test(parabola, optlab.sgd)
        >>> 0.1 < found.suggested_max < 1
        True
    """
    check_task(_WHO, task)
    rates = _checked_rates(min_lr, max_lr, steps, mode)
    seeds = checked_seeds(_WHO, seeds)
    made = _make(optimizer, rates)
    run = jax.jit(jax.vmap(partial(_run_seed, task, made, steps)))
    initial, losses = (np.asarray(x, np.float64) for x in run(jnp.asarray(seeds)))
    return _conclude(task.name, mode, rates, seeds, initial, losses)


def _make(optimizer: MakeScheduled, rates: np.ndarray) -> optax.GradientTransformation:
    """Return the optimizer whose rate goes through `rates`, and stays at the last."""
    remedy = "pass optlab.adam, or lambda rate: optlab.adam(rate, b1=0.8)"
    if not callable(optimizer):
        _checks.fail(_WHO, "optimizer must be a function of the rate", repr(optimizer), remedy)
    table = jnp.asarray(rates, float)
    try:
        made = optimizer(lambda count: table[jnp.clip(count, 0, len(rates) - 1)])
    except TypeError as error:
        required = "optimizer must take a schedule of the rate, a function of the step"
        how = "where it computes with the rate, compute in functions of the step"
        raise ValueError(f"{_WHO}: {required}, got one that raises {error}; {how}") from error
    if not all(callable(getattr(made, name, None)) for name in ("init", "update")):
        required = "optimizer must return an optax.GradientTransformation"
        _checks.fail(_WHO, required, repr(made), remedy)
    return made


def _run_seed(
    task: Task, optimizer: optax.GradientTransformation, steps: int, seed: Array
) -> tuple[Array, Array]:
    """Return the losses before the first update (batches,) and after each (steps,)."""
    keys = run_keys(jax.random.key(seed))
    start = begin(task, optimizer, keys)

    def loss_at_start(step: Array) -> Array:
        return task.loss(start.params, start.model_state, *step_data(task, keys, step))[0]

    initial = lax.map(loss_at_start, jnp.arange(INITIAL_BATCHES))
    # The highest of several, as a single example's loss may be 0 by chance.
    highest = initial.max()
    limit = highest + (DIVERGENCE_FACTOR - 1) * jnp.abs(highest)

    def advance(carry: tuple[TrainState, Array], step: Array) -> tuple[Any, Array]:
        run, running = carry
        updated, loss = update(task, optimizer, keys, run, step)
        running &= jnp.isfinite(loss) & (loss <= limit)
        run = jax.tree.map(partial(jnp.where, running), updated, run)
        return (run, running), jnp.where(running, loss, jnp.nan)

    # One step more: its loss is that after the last update.
    _, losses = lax.scan(advance, (start, jnp.array(True)), jnp.arange(steps + 1))
    return initial, losses[1:]


def _conclude(
    task: str,
    mode: str,
    rates: np.ndarray,
    seeds: np.ndarray,
    initial: np.ndarray,
    losses: np.ndarray,
) -> RangeTest:
    smoothed, trends = smooth(losses), trend(losses)
    found = suggest(rates, losses, initial)
    reliable = not isinstance(found, str)
    low, high, at_edge = found if reliable else (None, None, False)

    def interval(suggestion: Suggestion | None) -> tuple[float, float] | None:
        return (suggestion.low, suggestion.high) if suggestion else None

    return RangeTest(
        task=task,
        mode=mode,
        rates=rates,
        seeds=seeds,
        initial=initial,
        losses=losses,
        smoothed=smoothed,
        trends=trends,
        median=median_over_seeds(trends),
        suggested_max=high.rate if high else None,
        suggested_min=low.rate if low else None,
        max_interval=interval(high),
        min_interval=interval(low),
        at_edge=at_edge,
        reason=None if reliable else found,
        picks=picks(rates, median_over_seeds(smoothed)) if reliable else {},
    )


def _checked_rates(min_lr: float, max_lr: float, steps: int, mode: str) -> np.ndarray:
    _checks.check_number(_WHO, "min_lr", min_lr, _checks.POSITIVE, dtype=np.float32)
    _checks.check_number(_WHO, "max_lr", max_lr, _checks.POSITIVE, dtype=np.float32)
    if not min_lr < max_lr:
        _checks.fail(_WHO, f"max_lr must be above min_lr={min_lr:g}", f"max_lr={max_lr:g}")
    _checks.check_count(_WHO, "steps", steps, LEAST_STEPS)
    if mode not in MODES:
        _checks.fail(_WHO, "mode must be 'exponential' or 'linear'", f"mode={mode!r}")
    space = np.geomspace if mode == "exponential" else np.linspace
    return space(float(min_lr), float(max_lr), steps)
