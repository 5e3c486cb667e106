"""The learning-rate range test: raise the rate over a short run, and see where the loss falls.

    αᵢ = min_lr·(max_lr/min_lr)^(i/(N−1))   exponential
    αᵢ = min_lr + (max_lr − min_lr)·i/(N−1)   linear,     i = 0 … N−1

The run makes one update at each rate, from several seeds at once. A seed diverges when most of its
next losses are more than four times the initial loss, or none is finite any more; its later losses
do not count. A single high loss is that of a hard batch. A few losses that are not finite, after
which the run went on, as a bad batch gives them under `skip_nonfinite`, are passed over; many are a
reason to make no suggestion. Runs at constant rates then confirm or correct the highest suggested
rate, and more seeds check it where it is close to divergence; see `_confirm`. Where the losses of
single batches are so noisy that no fall is seen, the runs at constant rates alone decide: their
validation loss does not depend on the batch.

Reference: Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._divergence import limit
from optlab._report import aligned, number, strict, versions
from optlab._types import Schedule
from optlab.lab.data import Batches
from optlab.lab.rates._confirm import EVALUATIONS, Confirmation, RunsAt, choose
from optlab.lab.rates._confirm import confirm as confirm_around
from optlab.lab.rates._suggest import (
    Suggestion,
    fallen,
    median_over_seeds,
    picks,
    smooth,
    start_in_noise,
    stays_high,
    suggest,
    trend,
)
from optlab.lab.sweeps._recipe import name_of
from optlab.lab.sweeps._store import Store
from optlab.lab.tasks._check_task import check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training._loop import checked_seeds, losses_at_start, seed_keys
from optlab.lab.training._progress import Show, count_updates, progress_bar
from optlab.lab.training._runner import Fixed, TrialRuns, default_lanes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MakeScheduled = Callable[[Schedule], optax.GradientTransformation]
"""A function of the learning rate, given as a schedule, that returns the optimizer."""

_WHO = "lr_range_test"

RAMP, CONFIRMING, CHECKING = -1000, 0, 1
"""Keys in the file of results: the number of the rising run, whose step is its length, and the
steps of the confirming runs and of those from more seeds, whose numbers are their places."""

MODES = ("exponential", "linear")

LEAST_STEPS = 10
"""The least number of steps; a curve of fewer points cannot be judged."""

PARTS = 20
"""The parts of the test between which the progress bar moves."""

MOST_CONFIRMING = 1000
"""Updates of a confirming run, at most, if the caller does not say how many."""

CONFIRMING_SEEDS = 3
"""Confirming runs start from at most this many of the seeds."""

MORE_SEEDS = 9
"""Seeds from which a rate is checked if a run diverged at a rate close above it."""

CONFIRMING_RATES = 8
"""The usual number of rates that are confirmed, by which the progress bar is drawn."""

CLEAR = 0.1
"""Where the rising run shows no fall, that of the validation loss must be this share of it."""

INITIAL_BATCHES = 10
"""Batches on which the loss before the first update, and the noise in it, are measured."""


MOST_GAPS = 0.1
"""The share of a seed's losses that may be not finite, although training went on after them."""


@dataclass(frozen=True)
class RangeTest:
    """The result of `lr_range_test`; it can be printed, and it has `plot`.

    Attributes:
        task: the task's name.
        mode: "exponential" or "linear".
        rates: (steps,) float, ascending; the rate of each update.
        seeds: (seeds,) int.
        initial: (seeds, 10) float, the losses on ten batches before the first update.
        losses: (seeds, steps) float, the loss on the next batch after the update at each rate; NaN
            after the seed diverged. In the place of one that is not finite, after which the run
            went on, stands the middle of those beside it.
        smoothed: (seeds, steps) float, running averages of `losses` with decay 0.98, corrected for
            bias, as fastai draws them. They lag behind the losses.
        trends: (seeds, steps) float, means of `losses` over a window centred on each rate.
        median: (steps,) float, the median of `trends` over the seeds; NaN after half of them
            diverged.
        confirmed_rates: (rates,) float, ascending; the constant rates of the confirming runs.
        confirmed_losses: (rates, seeds) float, the validation losses at the end of these runs;
            infinite where a run diverged.
        confirmed_steps: updates of each confirming run; 0 if there is none.
        checked: rate → the share of more seeds that diverged there, or did not lower the loss. Such
            runs are made if a confirming run diverged at a rate up to three times the best one,
            from this one downwards. Empty if there are none.
        suggested_max: a rate to train with: the constant rate at which the confirming runs end with
            the lowest loss, or the highest one below it at which no run diverged; without them, a
            rate that is high, but below the rates at which training becomes worse. None if there is
            no reliable suggestion.
        suggested_min: the rate at which improvement begins, where a cycle or a warm-up may start;
            None if there is no reliable suggestion.
        max_interval: the lowest and the highest rate that is best for a single seed; or None.
        min_interval: the lowest and the highest `suggested_min` of a single seed; or None.
        at_edge: whether the loss still fell at the last rate; a higher `max_lr` may then raise the
            suggestions.
        in_noise: whether the loss of the rising run fell by no more than noise, so that the runs at
            constant rates alone made the suggestion. `suggested_min` is then a tenth of it.
        reason: why there is no suggestion; None if there is one.
        picks: fastai's "valley", "steep", "minimum" and "slide" → a rate, from the median of
            `smoothed`. A pick is left out where the loss has fallen by no
            more than noise, or by less than a tenth of its whole fall.
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
    confirmed_rates: np.ndarray
    confirmed_losses: np.ndarray
    confirmed_steps: int
    suggested_max: float | None
    suggested_min: float | None
    max_interval: tuple[float, float] | None
    min_interval: tuple[float, float] | None
    at_edge: bool
    reason: str | None
    picks: Mapping[str, float]
    checked: Mapping[float, float] = field(default_factory=dict)
    in_noise: bool = False

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
        """Describe the test in one line.

        Args:
            label: the subject, such as "adam on digits-mlp"; None for the task's name.
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
            ax: the axes to draw on; None for a new figure.
            label: the subject in the title, as for `title`.

        Raises:
            ModuleNotFoundError: if Matplotlib is not installed.
        """
        from optlab.plots import plot_range_test

        return plot_range_test(self, label=label, ax=ax)

    def to_json(self, **extra: Any) -> str:
        """Return everything as strict JSON; a number that is not finite is null.

        Args:
            extra: further entries, such as the options of the call.
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
        if self.confirmed_steps:
            tried = self.confirmed_rates
            yield (
                f"{len(tried)} constant rates from {number(tried[0])} to {number(tried[-1])} were "
                f"tried over {self.confirmed_steps} updates; longer runs may want a lower one."
            )
        if self.in_noise:
            yield (
                "While the rate rose, the loss fell by no more than noise: the validation losses "
                "at constant rates alone made the suggestion."
            )
        if any(self.checked.values()):
            shares = (f"{share:.0%} at {number(rate)}" for rate, share in self.checked.items())
            yield f"Of {MORE_SEEDS} more seeds failed: {', '.join(shares)}."
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
    confirm: int | None = None,
    results: str | Path | None = None,
    lanes: int | None = None,
    memory: float | None = None,
    progress: bool = False,
) -> RangeTest:
    """Raise the learning rate over a short run from several seeds, and suggest rates by the loss.

    One update at each rate tells little of a whole run. The test therefore goes on with runs at
    constant rates around its first suggestion, and suggests the one that ends with the lowest
    validation loss. These are usually 4 to 8 rates, each from up to three of the seeds.

    The seeds run in lanes, as in `sweep`. The test changes nothing outside: keys, parameters and
    batches are created from the seeds, in the same way as in `compare`. Batches of a loader are
    shared by all seeds.

    Args:
        task: the problem.
        optimizer: a function of the learning rate, given as a schedule, that returns the optimizer:
            `optlab.adam`, or `lambda rate: optlab.adam(rate, b1=0.8)`.
        min_lr: the first rate, > 0.
        max_lr: the last rate, > min_lr.
        steps: updates, one at each rate, ≥ 10.
        seeds: the number of seeds, counted from 0, or the seeds themselves.
        mode: "exponential" for equally many rates in each decade, or "linear".
        confirm: updates of each confirming run, ≥ 0; the best constant rate of a longer run may be
            lower. 0 for no such runs, if a rough suggestion is enough. None for the task's own
            number of steps, at most 1000.
        results: an SQLite file in which the rising run and the confirming ones are stored as they
            end. A test that was stopped in any way continues from this file when it is called again
            with the same arguments. Tasks and optimizers are compared by name only. None for no
            file.
        lanes: confirming runs that train at the same time on each device, as for `sweep`.
        memory: as for `sweep`.
        progress: whether to show a progress bar on stderr.

    Returns:
        The curves and the suggestions. If the suggestions would not be reliable, `suggested_max`
        is None and `reason` says why.

    Raises:
        ModuleNotFoundError: rich, for `progress`, is not installed.
        ValueError: an argument is out of its range, `optimizer` does not return an optimizer, or
            `results` belongs to another test.

    Example:
        Gradient descent on f(x) = x² converges below the rate 1, and at ½ in one step:

        >>> import jax
        >>> import optlab
        >>> parabola = Task(
        ...     name="parabola",
        ...     init=lambda key: (jax.random.normal(key), ()),
        ...     loss=lambda x, state, batch, key: (x**2, state),
        ...     batch=lambda key, step: (),
        ...     evaluate=lambda x, state, data: {"loss": x**2},
        ... )
        >>> result = lr_range_test(parabola, optlab.sgd)
        >>> 0.1 < result.suggested_max < 1
        True
    """
    return run_range_test(
        partial(Store, _WHO, results, what="range test"),
        task,
        optimizer,
        min_lr=min_lr,
        max_lr=max_lr,
        steps=steps,
        seeds=seeds,
        mode=mode,
        confirm=confirm,
        lanes=lanes,
        memory=memory,
        progress=progress,
    )


class Runs(Protocol):
    """Where the runs of a test are stored as they end: by place and key, as in a `Store`."""

    def rungs(self, step: int) -> dict[int, Any]:
        """Return place → run for the runs of a key."""

    def add_rungs(self, curves: Mapping[tuple[int, int], Any]) -> None:
        """Store runs by (place, key)."""

    def close(self) -> None:
        """Close it."""


def run_range_test(
    open_runs: Callable[[Mapping[str, Any]], Runs],
    task: Task,
    optimizer: MakeScheduled,
    *,
    min_lr: float,
    max_lr: float,
    steps: int,
    seeds: int | Sequence[int],
    mode: str,
    confirm: int | None,
    lanes: int | None,
    memory: float | None,
    progress: bool,
) -> RangeTest:
    """Make the test of `lr_range_test`, which documents the other arguments.

    `open_runs` takes the facts that identify the test, and returns where its runs are stored; those
    that are there already are not made again.
    """
    source = check_task(_WHO, task)
    rates = _checked_rates(min_lr, max_lr, steps, mode)
    seeds = checked_seeds(_WHO, seeds)
    tx = _make(optimizer, rates)
    if source is not None:
        source.refuse_one_shot(_WHO, "by the range test")
    confirm = min(task.steps, MOST_CONFIRMING) if confirm is None else confirm
    _checks.check_integer(_WHO, "confirm", confirm, 0)
    if lanes is not None:
        _checks.check_integer(_WHO, "lanes", lanes, 1)
    if memory is not None:
        _checks.check_number(_WHO, "memory", memory, _checks.POSITIVE)
    about = {
        "task": task.name,
        "optimizer": name_of(optimizer),
        "rates": rates.tolist(),
        "seeds": seeds.tolist(),
        "confirm": int(confirm),
        "lanes": int(lanes or default_lanes()),
    }
    with (
        closing(open_runs(about)) as store,
        progress_bar(_WHO, progress, steps + CONFIRMING_RATES * confirm) as show,
    ):
        if not (ramp := store.rungs(steps).get(RAMP)):
            initial, losses = _losses(task, tx, steps, seeds, source, memory, show)
            ramp = {"initial": np.asarray(initial), "losses": losses}
            store.add_rungs({(RAMP, steps): ramp})
        refusal = _too_many_gaps(ramp["losses"])
        initial, losses = (np.asarray(ramp[name], np.float64) for name in ("initial", "losses"))
        initial = _filled(initial, ~np.isfinite(initial))
        losses = _filled(losses, _gaps(losses))
        rough = refusal or suggest(rates, losses, initial)
        if isinstance(rough, str):
            start = None if refusal else start_in_noise(rates, losses, initial)
        else:
            start = rough[1].rate
        confirmation = None
        if confirm and start is not None:
            options = {"lanes": lanes, "memory": memory}
            few, more = seeds[:CONFIRMING_SEEDS], seeds.max() + 1 + np.arange(MORE_SEEDS)
            few, more = (
                RunsAt(
                    _confirming_runs(task, optimizer, steps, confirm, some, show, **options),
                    confirm,
                    store.rungs(key),
                    lambda ends, key=key: store.add_rungs({(k, key): e for k, e in ends.items()}),
                )
                for some, key in ((few, CONFIRMING), (more, CHECKING))
            )
            confirmation = confirm_around(few, more, start, lowest=rates[0], highest=rates[-1])
    return _conclude(task.name, mode, rates, seeds, initial, losses, rough, confirmation, confirm)


def _make(optimizer: MakeScheduled, rates: np.ndarray) -> optax.GradientTransformation:
    """Return the optimizer whose rate passes through `rates` and then stays at the last."""
    remedy = "pass optlab.adam, or lambda rate: optlab.adam(rate, b1=0.8)"
    if not callable(optimizer):
        _checks.fail(_WHO, "optimizer must be a function of the rate", repr(optimizer), remedy)
    table = jnp.asarray(rates, float)
    try:
        tx = optimizer(lambda count: table[jnp.clip(count, 0, len(rates) - 1)])
    except TypeError as error:
        required = "optimizer must take a schedule of the rate, a function of the step"
        how = "to change the rate, pass a schedule, such as lambda step: 2 * rate(step)"
        raise ValueError(f"{_WHO}: {required}, got one that raises {error}; {how}") from error
    if not all(callable(getattr(tx, name, None)) for name in ("init", "update")):
        required = "optimizer must return an optax.GradientTransformation"
        _checks.fail(_WHO, required, repr(tx), remedy)
    return tx


def _losses(
    task: Task,
    tx: optax.GradientTransformation,
    steps: int,
    seeds: np.ndarray,
    source: Batches | None,
    memory: float | None,
    show: Show,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses (seeds, batches) before the first update, and (seeds, steps) after each."""
    first = INITIAL_BATCHES if source is None else source.first(INITIAL_BATCHES)
    keys = seed_keys(jnp.asarray(seeds))
    initial = losses_at_start(task, keys, first)
    # The highest of several losses, because the loss of a single batch may be 0 by chance.
    first_losses = np.where(np.isfinite(initial), initial, -np.inf)
    highest = limit(first_losses.max(axis=1, keepdims=True))
    # One more update, because its loss is the loss after the last update of the test.
    options = {"eval_every": max(1, steps // PARTS), "lanes": 1, "evaluates": False}
    done = count()
    runs = TrialRuns(
        _WHO,
        Fixed(task, lambda rate: tx),
        {},
        keys=keys,
        memory=memory,
        on_updates=lambda updates: show(next(done) * options["eval_every"], "range test"),
        **options,
    )
    with closing(runs.run([(0, {})], steps + 1)) as running:
        (chunk,) = running
    losses = chunk[0].losses
    finite = np.isfinite(losses)
    goes_on = np.logical_or.accumulate(finite[:, ::-1], axis=1)[:, ::-1]
    running_still = np.logical_and.accumulate(goes_on & ~stays_high(losses, highest), axis=1)
    return initial, np.where(running_still & finite, losses, np.nan)[:, 1:]


def _confirming_runs(
    task: Task,
    optimizer: MakeScheduled,
    done: int,
    steps: int,
    seeds: np.ndarray,
    show: Show,
    **options: Any,
) -> TrialRuns:
    """Return the runner of runs at constant rates, of which each is the value "rate"."""
    return TrialRuns(
        _WHO,
        Fixed(task, lambda rate: optimizer(lambda count: jnp.asarray(rate, float))),
        {"rate": float},
        keys=seed_keys(jnp.asarray(seeds)),
        eval_every=max(1, steps // EVALUATIONS),
        on_updates=count_updates(show, "confirming runs", done),
        **options,
    )


def _conclude(
    task: str,
    mode: str,
    rates: np.ndarray,
    seeds: np.ndarray,
    initial: np.ndarray,
    losses: np.ndarray,
    rough: tuple[Suggestion, Suggestion, bool] | str,
    confirmation: Confirmation | None,
    confirmed_steps: int,
) -> RangeTest:
    smoothed, trends = smooth(losses), trend(losses)
    is_refused = isinstance(rough, str)
    reason = rough if is_refused else None
    low, high, at_edge = (None, None, False) if is_refused else rough
    in_noise = False
    if confirmation is not None:
        choice = choose(confirmation)
        if is_refused:
            if not isinstance(choice, str) and confirmation.is_clear(choice.rate, CLEAR):
                in_noise, reason, high = True, None, choice
                low = Suggestion(*(x / 10 for x in (choice.rate, choice.low, choice.high)))
        elif isinstance(choice, str):
            low, high, at_edge, reason = None, None, False, choice
        else:
            low, high = low.below(choice), choice
            at_edge = at_edge and bool(choice.rate == confirmation.rates[-1])

    def interval(suggestion: Suggestion | None) -> tuple[float, float] | None:
        return (suggestion.low, suggestion.high) if suggestion else None

    of_fastai = picks(rates, median_over_seeds(smoothed))
    none = Confirmation(np.zeros(0), np.zeros(0), np.zeros((0, 0)))
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
        confirmed_rates=(confirmation or none).rates,
        confirmed_losses=(confirmation or none).losses,
        confirmed_steps=confirmed_steps if confirmation else 0,
        suggested_max=high.rate if high else None,
        suggested_min=low.rate if low else None,
        max_interval=interval(high),
        min_interval=interval(low),
        at_edge=at_edge,
        reason=reason,
        picks={} if reason else fallen(rates, losses, initial, of_fastai),
        checked=(confirmation or none).checked,
        in_noise=in_noise,
    )


def _gaps(losses: np.ndarray) -> np.ndarray:
    """Return which losses (seeds, steps) are not finite although a later one is."""
    finite = np.isfinite(losses)
    return ~finite & np.logical_or.accumulate(finite[:, ::-1], axis=1)[:, ::-1]


def _too_many_gaps(losses: np.ndarray) -> str | None:
    """Return why losses (seeds, steps) allow no suggestion, if too many are not finite."""
    gaps = _gaps(losses).sum(axis=1)
    worst = int(gaps.argmax())
    if gaps[worst] <= MOST_GAPS * losses.shape[1]:
        return None
    counts = f"{gaps[worst]} of {losses.shape[1]} losses of a seed"
    return f"{counts} are not finite, although training went on after them"


def _filled(losses: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Return losses (seeds, steps) with what lies between finite ones in the place of gaps."""
    losses = np.array(losses, np.float64)
    for seed, gap in zip(losses, gaps, strict=True):
        known = np.flatnonzero(np.isfinite(seed))
        if known.size:
            seed[gap] = np.interp(np.flatnonzero(gap), known, seed[known])
    return losses


def _checked_rates(min_lr: float, max_lr: float, steps: int, mode: str) -> np.ndarray:
    _checks.check_number(_WHO, "min_lr", min_lr, _checks.POSITIVE, dtype=np.float32)
    _checks.check_number(_WHO, "max_lr", max_lr, _checks.POSITIVE, dtype=np.float32)
    if not min_lr < max_lr:
        _checks.fail(_WHO, f"max_lr must be above min_lr={min_lr:g}", f"max_lr={max_lr:g}")
    _checks.check_integer(_WHO, "steps", steps, LEAST_STEPS)
    if mode not in MODES:
        _checks.fail(_WHO, "mode must be 'exponential' or 'linear'", f"mode={mode!r}")
    space = np.geomspace if mode == "exponential" else np.linspace
    return space(float(min_lr), float(max_lr), steps)
