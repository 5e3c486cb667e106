"""`Tuning`: the result of `tune`, as plain data: seven steps, all trials, the winner.

Everything here can be written as JSON and read again. A report can therefore be made from the file
of results at any time, also while the procedure runs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from optlab._report import strict

PASSED, WARNING, FAILED, SKIPPED = "passed", "warning", "failed", "skipped"
"""The verdicts of a step. "warning" is a step that passed with something to look at."""

WAITING, RUNNING = "waiting", "running"
"""In place of a verdict: a step that has not begun, and one that has not ended."""

MOST_DIGITS = 6
"""The most decimals of the ends of an interval."""

CONFIDENCE = 0.95
"""The share of cases in which an interval holds the mean."""


@dataclass(frozen=True)
class Series:
    """One curve or one cloud of points in a chart.

    Attributes:
        name: its name in the legend; "" for none.
        x: (n,) numbers, or strings for an axis of choices.
        y: (n,) float; a value that is not finite leaves a gap.
        kind: "line" or "points".
        low, high: (n,) float, the ends of a band around a line or of error bars of points; empty
            for none.
        texts: (n,) strings that are shown on hover beside the numbers; empty for none.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    kind: str = "line"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """A chart as plain data.

    Attributes:
        title: what it shows, such as "Best accuracy against weight_decay".
        x_label, y_label: the names of the axes, with their units.
        series: what is drawn.
        x_log, y_log: whether an axis is logarithmic.
        marks: label → x of a vertical line.
        levels: label → y of a horizontal line.
        note: a sentence below the chart; "" for none.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what it shows.
        columns: heading → cells, all of one length.
        note: a sentence below the table; "" for none.
    """

    title: str
    columns: Mapping[str, Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One of the seven steps.

    Attributes:
        name: a short name, such as "initial loss".
        question: what the step finds out, as a question.
        verdict: "passed", "warning", "failed", "skipped", "running" or "waiting".
        evidence: the measured numbers, in sentences.
        advice: what to do; "" if there is nothing to do.
        charts, tables: what a report shows for the step.
        seconds: the wall time that it took.
        updates: the updates that it made, over all runs.
        runs: the runs that it made.
    """

    name: str
    question: str
    verdict: str = WAITING
    evidence: str = ""
    advice: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    seconds: float = 0.0
    updates: int = 0
    runs: int = 0


@dataclass(frozen=True)
class Interval:
    """The mean of a score over seeds, with Student's interval for it.

    Attributes:
        mean: the mean.
        low, high: the ends of the interval that holds the true mean in 95% of cases; both the mean
            itself for a single seed.
        values: the score of each seed.
    """

    mean: float
    low: float
    high: float
    values: Sequence[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return the interval of some values, at least one.

        Example:
            >>> print(Interval.of([0.9, 0.92, 0.94]))
            0.92 (0.870 to 0.970, 3 seeds)
        """
        values = [float(value) for value in values]
        mean = math.fsum(values) / len(values)
        reach = 0.0
        if len(values) > 1:
            reach = _student(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5
        return cls(mean, mean - reach, mean + reach, tuple(values))

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.mean:.3g} (one seed)"
        decimals = digits(self.high - self.low)
        form = f".{decimals}f" if decimals < MOST_DIGITS else ".2e"
        low, high = (f"{end:{form}}" for end in (self.low, self.high))
        return f"{self.mean:.3g} ({low} to {high}, {len(self.values)} seeds)"


@dataclass(frozen=True)
class Winner:
    """What to train with.

    Attributes:
        optimizer: the name of the optimizer.
        schedule: the name of the schedule of the rate.
        values: name → value, of all hyperparameters; "learning_rate" is the highest of the run.
        steps: updates of a whole run, over which the schedule is laid out.
        stop: updates after which the run ends, ≤ `steps`; it is lower where later scores are worse.
        seed: the seed of the first of its runs, which the recipe repeats.
        score: the validation score over the seeds.
        test: the test score over the same runs; None without a test split.
        tied: the names of the other candidates that the data cannot tell from it.
        candidates: the number of candidates that ran over seeds, this one among them.
    """

    optimizer: str
    schedule: str
    values: Mapping[str, Any]
    steps: int
    stop: int
    seed: int
    score: Interval
    test: Interval | None
    tied: Sequence[str]
    candidates: int


@dataclass(frozen=True)
class TunedTrial:
    """One run, or the runs of several seeds with the same values.

    Attributes:
        stage: the step that made it: "coarse search", "refinement" or "finals".
        number: counted from 0 within its stage.
        optimizer: the name of the optimizer.
        schedule: the name of the schedule of its rate.
        values: name → value.
        status: "complete"; "stopped", for a short run that was not continued; or "diverged".
        updates: updates done.
        scores: the validation score of each seed at the end.
        loss: the validation loss at the end, as the mean over the seeds.
    """

    stage: str
    number: int
    optimizer: str
    schedule: str
    values: Mapping[str, Any]
    status: str
    updates: int
    scores: Sequence[float]
    loss: float

    @property
    def score(self) -> float:
        """The mean of the scores; NaN if the trial diverged."""
        return math.nan if self.status == "diverged" else math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True, eq=False)
class Tuning:
    """The result of `tune`; it can be printed.

    Attributes:
        task: the task's name.
        score: the metric by which runs are judged.
        maximize: whether a higher score is better.
        budget: what the procedure may cost, in words, such as "10 minutes".
        seconds: the wall time that it took so far, over all calls.
        updates: the updates that it made, over all runs.
        runs: the runs that it made.
        steps: the seven steps.
        trials: all trials of the search and of the finals.
        winner: what to train with; None if there is none yet.
        summary: sentences: what came out, how sure that is, and what it cost.
        failures: sentences about what went wrong on the way, such as runs that diverged.
        finished: whether the procedure has ended.
        machine: the processor, and the versions of the packages.
    """

    task: str
    score: str
    maximize: bool
    budget: str
    seconds: float
    updates: int
    runs: int
    steps: Sequence[Step]
    trials: Sequence[TunedTrial]
    winner: Winner | None
    summary: Sequence[str]
    failures: Sequence[str]
    finished: bool
    machine: str

    def to_json(self, **extra: Any) -> str:
        """Return everything as strict JSON; a number that is not finite is null.

        Args:
            extra: further entries, such as the options of the call.
        """
        return json.dumps(strict({**extra, **asdict(self)}), allow_nan=False)

    def __str__(self) -> str:
        lines = [f"{self.task}: tuning, {self.budget}", ""]
        for number, step in enumerate(self.steps, 1):
            lines.append(f"{number}. {step.name}: {step.verdict}. {step.evidence}".rstrip())
            if step.advice:
                lines.append(f"   Do: {step.advice}")
        return "\n".join([*lines, "", *self.summary])


def _student(freedom: int) -> float:
    """Return the quantile of Student's distribution that a 95% interval reaches to.

    Tabulated to ten degrees of freedom; beyond, by the first two terms of the Cornish–Fisher
    expansion, which is right to 1e-3.
    """
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    if freedom <= len(table):
        return table[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def digits(width: float) -> int:
    """Return the decimals that show two digits of a width, at most six."""
    if not 0 < width < math.inf:
        return 3
    return min(MOST_DIGITS, max(0, 1 - math.floor(math.log10(width))))
