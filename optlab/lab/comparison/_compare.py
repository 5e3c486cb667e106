"""`compare`: which optimizer is best on a task, at which rate, and how much the rate matters."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab import _checks
from optlab._report import aligned, number, strict, versions
from optlab.lab.comparison._rows import Row, summarize
from optlab.lab.comparison._runs import MakeOptimizer, Runs, train_grid
from optlab.lab.tasks._check_task import check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training._loop import checked_seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVALUATIONS = 30
"""The number of evaluations in a run, if neither the caller nor the task sets `eval_every`."""


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
            self.title(self.score): [str(row.validation or "all diverged") for row in rows],
        }
        if any(row.test for row in rows):
            columns[f"test {self.score}"] = [str(row.test or "–") for row in rows]
        if self.target is not None:
            columns[f"updates to {self.target:g}"] = [_updates(row) for row in rows]
        if any(row.decades is not None for row in rows):
            columns["decades"] = [_decades(row) for row in rows]
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
            return "Every run diverged: try lower rates."
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
        return f"{title}, {runs.steps[-1]} updates each\n\n{self.table()}\n\n{self.verdict()}"

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
    num_steps: int | None = None,
    eval_every: int | None = None,
    target: float | None = None,
    on_progress: Callable[[str, int], None] | None = None,
) -> Comparison:
    """Train with every optimizer, at every rate and from every seed, and judge all alike.

    All runs of one optimizer are one compiled program. Runs of the same seed share their
    initialization, batches and random keys. Rates are chosen by the validation score at the end of
    training; the test score is only reported.

    Args:
        task: the problem.
        optimizers: label → a function of the learning rate (traced) that returns the optimizer:
            `optax.adam`, or `lambda rate: adamw(warmup_cosine(rate, …))`.
        rates: positive, in any order.
        seeds: the number of seeds, counted from 0, or the seeds themselves.
        num_steps: updates per run, ≥ 1; None for the task's own number.
        eval_every: updates between evaluations, ≥ 1; None for the task's own number.
        target: a score; the updates until it is first reached are reported. None for the task's
            own target.
        on_progress: called with the label and the updates done, at each evaluation.

    Raises:
        ValueError: there is nothing to compare, or a rate, a seed or a number is out of range.

    Example:
        >>> import optax
        >>> from optlab.lab import tasks
        >>> comparison = compare(
        ...     tasks.valley(), {"sgd": optax.sgd, "adam": optax.adam}, rates=[0.01, 0.1, 1.0])
        >>> [row.rate for row in comparison.rows()]
        [0.01, 1.0]
    """
    num_steps = task.num_steps if num_steps is None else num_steps
    if eval_every is None:
        eval_every = task.eval_every or -(-num_steps // EVALUATIONS)
    seeds = checked_seeds("compare", seeds)
    rates = _checked_rates(rates)
    _checks.check_integer("compare", "num_steps", num_steps, 1)
    _checks.check_integer("compare", "eval_every", eval_every, 1)
    check_task("compare", task)
    if not optimizers:
        _checks.fail("compare", "optimizers must name at least one", "none")
    runs = train_grid(
        task,
        optimizers,
        rates=rates,
        seeds=seeds,
        num_steps=num_steps,
        eval_every=eval_every,
        on_progress=on_progress,
    )
    return Comparison(
        task=task.name,
        split="validation" if task.splits else None,
        score=task.score,
        maximize=task.maximize,
        target=task.target if target is None else target,
        runs=dict(runs),
    )


def _checked_rates(rates: Sequence[float]) -> np.ndarray:
    checked = np.unique(np.asarray(rates, np.float64))
    if checked.size == 0:
        _checks.fail("compare", "rates must hold at least one", "none", "pass rates such as 1e-3")
    for rate in checked:
        _checks.check_number("compare", "each of rates", rate, _checks.POSITIVE, dtype=np.float32)
    return checked


def _updates(row: Row) -> str:
    if row.rate is None:
        return "–"
    return "never" if row.updates_to_target is None else f"{row.updates_to_target:g}"


def _decades(row: Row) -> str:
    if row.decades is None:
        return "–"
    return f"≥ {row.decades:.1f}" if row.decades_at_least else f"{row.decades:.1f}"
