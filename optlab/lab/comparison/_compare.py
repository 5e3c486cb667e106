"""`compare`: which optimizer is best on a task, at which rate, and how much the rate matters."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._report import Spread, aligned, digits_of, number, strict, versions
from optlab.lab.comparison._rows import Row, summarize
from optlab.lab.comparison._runs import MakeOptimizer, Runs
from optlab.lab.sweeps._recipe import name_of
from optlab.lab.sweeps._record import Record
from optlab.lab.sweeps._store import Store
from optlab.lab.sweeps._trial import COMPLETE, Trial
from optlab.lab.tasks._check_task import batch_size, check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training._early_stopping import EarlyStopping
from optlab.lab.training._interval import evaluation_interval
from optlab.lab.training._loop import checked_seeds, seed_keys
from optlab.lab.training._progress import count_updates, progress_bar
from optlab.lab.training._runner import Fixed, TrialRuns, default_lanes
from optlab.lab.training._stoppers import check_rule, rule_facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WHO = "compare"

EVALUATIONS = 30
"""The most intervals of a run, if neither the caller nor the task sets `eval_every`."""


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`; it can be printed, and it has `plot`.

    Attributes:
        task: the task's name.
        split: "validation", or None for an objective without data.
        score: the metric by which runs are judged.
        maximize: whether a higher score is better.
        target: the score to reach for `Row.updates_to_target`; None if there is none.
        runs: label → the optimizer's runs, in the order of the `optimizers` argument.
    """

    task: str
    split: str | None
    score: str
    maximize: bool
    target: float | None
    runs: Mapping[str, Runs]

    def title(self, metric: str) -> str:
        """Name a metric as reports and plots do: "validation loss", or "loss" without data."""
        return f"{self.split} {metric}" if self.split else metric

    def rows(self) -> tuple[Row, ...]:
        """Return one row per optimizer, in the order of the `optimizers` argument."""
        criteria = {"score": self.score, "maximize": self.maximize, "target": self.target}
        return tuple(summarize(label, runs, **criteria) for label, runs in self.runs.items())

    def table(self) -> str:
        """Return the rows as aligned text, followed by notes that explain the columns."""
        rows = self.rows()
        columns = {
            "optimizer": [row.optimizer for row in rows],
            "best rate": [number(row.rate) + "*" * row.at_edge for row in rows],
            self.title(self.score): _scores(
                [row.validation for row in rows], [_without_score(row) for row in rows]
            ),
        }
        if any(row.test for row in rows):
            columns[f"test {self.score}"] = _scores([row.test for row in rows], ["–"] * len(rows))
        if self.target is not None:
            columns[f"updates to {self.target:g}"] = [_updates(row) for row in rows]
        if any(row.decades is not None for row in rows):
            columns["decades"] = [_decades(row) for row in rows]
        if any(row.num_ended is not None for row in rows):
            columns["best at"] = [_best_at(row) for row in rows]
            columns["ended early"] = [_ended_early(row) for row in rows]
        columns["diverged"] = [f"{row.num_diverged} of {row.num_runs}" for row in rows]
        return "\n\n".join(filter(None, ("\n".join(aligned(columns)), "\n".join(self._notes()))))

    def verdict(self) -> str:
        """Say in one or two sentences which optimizer leads, at which rate, and which others tie.

        Each optimizer is judged at its best rate. The leader has the best mean validation score.
        Another optimizer ties with it if their intervals mean ± one standard deviation overlap.
        """
        sign = 1 if self.maximize else -1
        rows = [row for row in self.rows() if row.validation]
        if not rows:
            if all(row.num_diverged == row.num_runs for row in self.rows()):
                return "Every run diverged: try lower rates."
            return f"No run has a score: {self.score} is not defined at the end of any."
        rows.sort(key=lambda row: -sign * row.validation.mean)
        leader, *others = rows
        scores = f"{self.title(self.score)} {leader.validation}"
        if leader.test:
            scores += f", test {leader.test}"
        lead = f"{leader.optimizer} at {number(leader.rate)} leads: {scores}"
        if not others:
            return f"{lead}."
        if leader.validation.deviation is None:
            return f"{lead}. With one seed there is no telling whether that is chance."
        tied = [row for row in others if row.validation.overlaps(leader.validation)]
        if not tied:
            return f"{lead}; no other comes within the spread over seeds."
        names = ", ".join(f"{row.optimizer} at {number(row.rate)}" for row in tied)
        return f"{lead}; tied with {names} (their spreads over seeds overlap)."

    def __str__(self) -> str:
        runs = next(iter(self.runs.values()))
        seeds = "one seed" if len(runs.seeds) == 1 else f"{len(runs.seeds)} seeds"
        title = f"{self.task}: {len(self.runs)} optimizers × {len(runs.rates)} rates × {seeds}"
        most = "" if runs.taken is None else "at most "
        return f"{title}, {most}{runs.steps[-1]} updates each\n\n{self.table()}\n\n{self.verdict()}"

    def plot(self, *, metric: str = "loss") -> "Figure":
        """Draw the curves and the sensitivity; see `optlab.plots.plot_comparison`.

        Args:
            metric: a metric of the task.

        Raises:
            ModuleNotFoundError: if Matplotlib is not installed.
        """
        from optlab.plots import plot_comparison

        return plot_comparison(self, metric=metric)

    def to_json(self, **extra: Any) -> str:
        """Return everything as strict JSON: rows, verdict, versions, and the curves of each run.

        Arrays are nested lists in the shapes of `Runs`; a number that is not finite is null.

        Args:
            extra: further entries, such as the options of the call.
        """
        optimizers = {
            row.optimizer: {
                **asdict(row),
                "diverged": runs.diverged,
                "train_loss": runs.train_loss,
                "validation": runs.validation,
                "test": runs.test,
                "seconds": runs.seconds,
                **runs.early,
            }
            for row, runs in zip(self.rows(), self.runs.values(), strict=True)
        }
        any_runs = next(iter(self.runs.values()))
        document = {
            "task": self.task,
            "score": self.score,
            "maximize": self.maximize,
            "target": self.target,
            "rates": any_runs.rates,
            "seeds": any_runs.seeds,
            "steps": any_runs.steps,
            "verdict": self.verdict(),
            "optimizers": optimizers,
            "versions": versions("optlab", "jax", "jaxlib", "optax", "flax", "numpy"),
        }
        return json.dumps(strict({**extra, **document}), allow_nan=False)

    def _notes(self) -> Iterator[str]:
        if any(row.validation and row.validation.deviation is not None for row in self.rows()):
            yield "±: one standard deviation over seeds."
        if any(row.decades is not None for row in self.rows()):
            yield "decades: width in log10(rate), around the best, that keeps 90% of its progress."
        if any(row.num_ended is not None for row in self.rows()):
            yield "best at: updates at the best evaluation, as the median over seeds, at that rate."
            yield "ended early: runs that early stopping ended, over all rates and seeds."
        for row in self.rows():
            if row.at_edge:
                which = "lowest" if row.rate == self.runs[row.optimizer].rates[0] else "highest"
                yield (
                    f"* {row.optimizer}: the best rate is the {which} tried; "
                    "a wider grid may hold a better one."
                )


def compare(
    task: Task,
    optimizers: Mapping[str, MakeOptimizer],
    *,
    rates: Sequence[float],
    seeds: int | Sequence[int] = 3,
    steps: int | None = None,
    eval_every: int | None = None,
    target: float | None = None,
    early_stopping: EarlyStopping | None = None,
    results: str | Path | None = None,
    lanes: int | None = None,
    memory: float | None = None,
    callbacks: Sequence[Callable[[Trial], None]] = (),
    progress: bool = False,
    native: bool = False,
) -> Comparison:
    """Train with every optimizer, at every rate and from every seed, and judge all alike.

    Runs of the same seed share their initialization, batches and random keys. Rates are chosen by
    the validation score at the end of training; the test score is only reported. Each rate is a
    trial, and the trials of an optimizer run in lanes, as in `sweep`.

    Args:
        task: the problem.
        optimizers: label → a function of the learning rate (traced) that returns the optimizer:
            `optax.adam`, or `lambda rate: adamw(warmup_cosine(rate, …))`.
        rates: positive, in any order.
        seeds: the number of seeds, counted from 0, or the seeds themselves.
        steps: updates per run, ≥ 1; None for the task's own number.
        eval_every: updates between evaluations, ≥ 1; None for the task's own number, or else a
            thirtieth of the run, or as much longer as lets all evaluations take a fifth of the run
            at most, by the number of examples.
        target: a score; the updates until it is first reached are reported. None for the task's
            own target.
        early_stopping: when each run ends before that, as in `train`: its mode must be that of the
            task's score, and validation and test scores are those of the run's best evaluation.
            None to let no run end early.
        results: an SQLite file in which trials are stored as they end. A comparison that was
            stopped in any way continues from this file when it is called again with the same
            arguments. Tasks and optimizers are compared by name only. None for no file.
        lanes: as for `sweep`.
        memory: as for `sweep`.
        callbacks: each is called with every `Trial` as it ends, with the values "optimizer" and
            "learning_rate".
        progress: whether to show a progress bar on stderr.
        native: as for `sweep`.

    Raises:
        ModuleNotFoundError: rich, for `progress`, is not installed.
        ValueError: there is nothing to compare, a rate, a seed or a number is out of range, or
            `results` belongs to another comparison.

    Example:
        >>> import optax
        >>> from optlab.lab import tasks
        >>> comparison = compare(
        ...     tasks.valley(), {"sgd": optax.sgd, "adam": optax.adam}, rates=[0.01, 0.1, 1.0])
        >>> [row.rate for row in comparison.rows()]
        [0.01, 1.0]
    """
    source = check_task(_WHO, task)
    check_rule(_WHO, task, early_stopping)
    seeds, rates = checked_seeds(_WHO, seeds), _checked_rates(rates)
    steps = task.steps if steps is None else steps
    _checks.check_integer(_WHO, "steps", steps, 1)
    if eval_every is None:
        size = batch_size(task, source)
        eval_every = evaluation_interval(_WHO, task, steps, batch_size=size, most=EVALUATIONS)
    _checks.check_integer(_WHO, "eval_every", eval_every, 1)
    if lanes is not None:
        _checks.check_integer(_WHO, "lanes", lanes, 1)
    if memory is not None:
        _checks.check_number(_WHO, "memory", memory, _checks.POSITIVE)
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        _checks.fail(_WHO, "callbacks must be a sequence of functions", repr(callbacks))
    native = _checks.check_flag(_WHO, "native", native)
    if not optimizers:
        _checks.fail(_WHO, "optimizers must name at least one", "none")
    # Python integers, because NumPy integers cannot be stored as JSON.
    steps, eval_every, lanes = int(steps), int(eval_every), int(lanes or default_lanes())
    about = {
        "task": task.name,
        "optimizers": {label: name_of(make) for label, make in optimizers.items()},
        "rates": rates.tolist(),
        "seeds": seeds.tolist(),
        "steps": steps,
        "eval_every": eval_every,
        "lanes": lanes,
        "score": task.score,
    }
    if early_stopping is not None:  # else the file may be older than this entry
        about["early_stopping"] = rule_facts(early_stopping)
    if native:
        about["native"] = native
    judged = {"score": task.score, "maximize": task.maximize}
    total = len(optimizers) * len(rates) * steps
    with (
        closing(Store(_WHO, results, about, what="comparison")) as store,
        progress_bar(_WHO, progress, total) as show,
    ):
        record = Record(store, callbacks)
        runs = {}
        for index, (label, make_optimizer) in enumerate(optimizers.items()):
            began = time.perf_counter()
            trials = TrialRuns(
                _WHO,
                Fixed(task, make_optimizer),
                {"rate": float},
                keys=seed_keys(jnp.asarray(seeds)),
                eval_every=eval_every,
                lanes=lanes,
                memory=memory,
                on_updates=count_updates(show, label, index * len(rates) * steps),
                tests=True,
                early_stopping=early_stopping,
                native=native,
            )
            first = index * len(rates)
            points = [(first + i, {"rate": rate}) for i, rate in enumerate(rates.tolist())]
            named = {"optimizer": label}
            rate_of = {number: {"learning_rate": values["rate"]} for number, values in points}
            with closing(trials.run(points, steps, skip=record.ended)) as running:
                for chunk in running:
                    record.add(
                        Trial.of(n, {**named, **rate_of[n]}, curves, COMPLETE, **judged)
                        for n, curves in chunk.items()
                    )
            runs[label] = Runs.of(
                [record.ended[number] for number, _ in points],
                seeds=seeds,
                **judged,
                seconds=time.perf_counter() - began,
            )
    return Comparison(
        task=task.name,
        split="validation" if task.splits else None,
        score=task.score,
        maximize=task.maximize,
        target=task.target if target is None else target,
        runs=runs,
    )


def _checked_rates(rates: Sequence[float]) -> np.ndarray:
    checked = np.unique(np.asarray(rates, np.float64))
    if checked.size == 0:
        _checks.fail(_WHO, "rates must hold at least one", "none", "pass rates such as 1e-3")
    for rate in checked:
        _checks.check_number(_WHO, "each of rates", rate, _checks.POSITIVE, dtype=np.float32)
    return checked


def _without_score(row: Row) -> str:
    return "all diverged" if row.num_diverged == row.num_runs else "no score"


def _updates(row: Row) -> str:
    if row.rate is None:
        return "–"
    return "never" if row.updates_to_target is None else f"{row.updates_to_target:g}"


def _scores(spreads: Sequence[Spread | None], without: Sequence[str]) -> list[str]:
    """Write a column of scores, with as many digits as tell them apart, or why there is none."""
    digits = digits_of(spread.mean for spread in spreads if spread)
    return [x.text(digits) if x else why for x, why in zip(spreads, without, strict=True)]


def _best_at(row: Row) -> str:
    return "–" if row.best_at is None else f"{row.best_at:g}"


def _ended_early(row: Row) -> str:
    """Write how many runs ended early, and by what."""
    causes = ", ".join(f"{count} by {cause}" for cause, count in row.causes.items())
    return f"{row.num_ended} of {row.num_runs}" + (f" ({causes})" if causes else "")


def _decades(row: Row) -> str:
    if row.decades is None:
        return "–"
    return f"≥ {row.decades:.1f}" if row.decades_at_least else f"{row.decades:.1f}"
