"""`Procedure`: what the seven steps share, and how a step is carried out once.

The numbers of trials are unique over all steps, so that one runner can go on with a trial that an
earlier step began.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from optlab._divergence import has_diverged
from optlab.lab.sweeps._recipe import Recipe, traced_types
from optlab.lab.sweeps._space import Range
from optlab.lab.sweeps._trial import COMPLETE, DIVERGED
from optlab.lab.tasks._check_task import check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training._loop import seed_keys
from optlab.lab.training._runner import Curves, TrialRuns
from optlab.lab.tuning._budget import Meter
from optlab.lab.tuning._journal import Journal
from optlab.lab.tuning._result import (
    RUNNING,
    Chart,
    Series,
    Step,
    Table,
    TunedTrial,
)
from optlab.lab.tuning._schedules import SCHEDULES
from optlab.lab.tuning._space import default_of

WHO = "tune"

EVALUATIONS = 20
"""The evaluations of a whole run."""

BLOCK = 1000
"""Trials of an optimizer, a schedule or a candidate have numbers from a multiple of this on."""

MOST_CONTENDERS = 100
"""The most optimizers, so that the numbers below are free."""

ROUNDS_FROM, NOISE, HEATS_FROM, FINALS_FROM = 10**5, 9 * 10**5, 10**6, 2 * 10**6
"""The numbers of the coarse search begin at 0, and those of each round of the refinement at a
multiple of the first. Then come the trial that measures how seeds differ, the heats, the finals."""

CONSTANT = "constant"
"""The name of the schedule that does not change the rate."""

Values = Mapping[str, Any]


LEAST_TO_MEASURE = 300
"""The updates from which on the pace of trials is known."""


class OutOfBudget(Exception):
    """Raised in the middle of runs when a step has used its share."""


@dataclass(frozen=True)
class Contender:
    """An optimizer in the running.

    Attributes:
        name: its name.
        make: a function of hyperparameters that returns it.
    """

    name: str
    make: Callable[..., optax.GradientTransformation]


@dataclass(frozen=True, eq=False)
class Record:
    """A trial with its curves.

    Attributes:
        trial: the trial.
        steps: (evaluations,) int.
        train_loss, loss, scores: (seeds, evaluations) float.
        test: (seeds,) float, the score on the test split at the end; empty if it was not asked for.
    """

    trial: TunedTrial
    steps: np.ndarray
    train_loss: np.ndarray
    loss: np.ndarray
    scores: np.ndarray
    test: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON with arrays."""
        return {**vars(self), "trial": asdict(self.trial)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Record":
        """Undo `to_json`."""
        return cls(**{**document, "trial": TunedTrial(**document["trial"])})


class Outcome(NamedTuple):
    """What a step hands on.

    Attributes:
        step: for the report.
        facts: for later steps, as JSON.
    """

    step: Step
    facts: dict[str, Any] = {}  # noqa: RUF012, which takes it for a class variable


@dataclass(eq=False)
class Procedure:
    """The state of a tuning procedure.

    Attributes:
        task: the task, or the function that makes it.
        plain: the task with all its usual values.
        contenders: the optimizers in the running.
        space: the user's ranges; those that are not given are chosen.
        steps: updates of a whole run with the usual batch size.
        seed: the seed of the search, and the first one of the runs.
        quick: whether to take fewer and shorter runs.
        ensemble: the members of an ensemble of the winner; 0 for none.
        journal: the file.
        meter: what was used.
        on_change: called with what is going on, in words.
        plain_numbers: arguments of the task that cannot be traced.
        done: what the steps that have ended handed on, by the name of the step.
        began: the name of the step that is carried out; None between steps.
    """

    task: Task | Callable[..., Task]
    plain: Task
    contenders: Sequence[Contender]
    space: Mapping[str, Range]
    steps: int
    seed: int
    quick: bool
    ensemble: int
    journal: Journal
    meter: Meter
    on_change: Callable[[str], None] = lambda text: None
    plain_numbers: set[str] = field(default_factory=set)
    done: dict[str, Outcome] = field(default_factory=dict)
    began: Step | None = None

    def __post_init__(self):
        """Read what an earlier call has stored."""
        self._runners: dict[tuple, TrialRuns] = {}
        self._until = math.inf
        self._trained = (0.0, 0)
        self._compilation, self._waits = 0.0, (0.0, False)
        self.records = {
            key: Record.from_json(entry) for key, entry in self.journal.entries("trial/").items()
        }

    # Steps

    def carry_out(self, step: Step, function: Callable[["Procedure"], Outcome]) -> Outcome:
        """Return the outcome of a step; carry it out if the file has none.

        Args:
            step: its name and its question.
            function: what finds the rest out.
        """
        self.began = replace(step, verdict=RUNNING)
        entry = self.journal.get(f"step/{step.name}")
        if entry is None:
            self.on_change(step.question)
            before = self.journal.once(f"begin/{step.name}", self._used, self.meter)
            outcome = function(self)
            costs = [now - then for now, then in zip(self._used(), before, strict=True)]
            seconds, updates, runs = costs
            whole = replace(outcome.step, seconds=seconds, updates=int(updates), runs=int(runs))
            entry = {"step": asdict(whole), "facts": outcome.facts}
            self.journal.put({f"step/{step.name}": entry}, self.meter)
            entry = self.journal.get(f"step/{step.name}")
        self.began = None
        outcome = Outcome(step_from_json(entry["step"]), entry["facts"])
        self.done[step.name] = outcome
        self.on_change("")
        return outcome

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """Return a decision; make it now, and write it down, if there is none in the file."""
        return self.journal.once(key, make, self.meter)

    def pace(self) -> float:
        """Return what an update costs, in the unit of the budget, with compilation.

        It is measured on the trials of this call; before there are any, on the steps before.
        """
        if self.meter.budget.in_updates:
            return 1.0
        seconds, updates = self._trained
        if updates < LEAST_TO_MEASURE:
            seconds, updates = self.meter.seconds, self.meter.updates
        return seconds / max(1, updates)

    def _used(self) -> list[float]:
        return [self.meter.seconds, self.meter.updates, self.meter.runs]

    # Values

    def contender(self, name: str) -> Contender:
        """Return an optimizer by its name."""
        return next(one for one in self.contenders if one.name == name)

    def make_task(self, values: Values) -> Task:
        """Return the task of values that are all its own."""
        if isinstance(self.task, Task):
            return self.task
        return self.task(**values)

    def steps_of(self, values: Values) -> int:
        """Return the updates of a whole run, on as many examples whatever the batch size."""
        usual, own = self.usual_batch, values.get("batch_size")
        return self.steps if not usual or not own else max(1, round(self.steps * usual / own))

    @property
    def usual_batch(self) -> int | None:
        """The batch size that the task's function takes by default; None if it has none."""
        usual = default_of(self.task, "batch_size")
        return usual if isinstance(usual, int) else None

    def every(self, values: Values) -> int:
        """Return the updates between evaluations."""
        steps = self.steps_of(values)
        return max(1, self.plain.eval_every or -(-steps // EVALUATIONS))

    def better(self, a: float, b: float) -> bool:
        """Whether the score a is better than b; a score that is no number is worse than any."""
        if math.isnan(a) or math.isnan(b):
            return math.isnan(b) and not math.isnan(a)
        return a > b if self.plain.maximize else a < b

    def ranked(self, records: Sequence[Record]) -> list[Record]:
        """Return records from the best; those that diverged last."""
        sign = -1 if self.plain.maximize else 1

        def order(record: Record) -> tuple:
            trial = record.trial
            diverged = trial.status == DIVERGED
            return diverged, 0.0 if diverged else sign * trial.score, trial.loss, trial.number

        return sorted(records, key=order)

    def of_stage(self, stage: str) -> list[Record]:
        """Return the trials of a step, each with its longest run, by number."""
        longest: dict[int, Record] = {}
        for record in self.records.values():
            trial = record.trial
            known = longest.get(trial.number)
            if trial.stage == stage and (known is None or known.trial.updates < trial.updates):
                longest[trial.number] = record
        return [longest[number] for number in sorted(longest)]

    def is_whole(self, record: Record) -> bool:
        """Whether a trial ran to the end of its run."""
        return record.trial.updates >= self.steps_of(record.trial.values)

    # Runs

    def train(
        self,
        stage: str,
        contender: Contender,
        points: Mapping[int, Values],
        space: Mapping[str, Range],
        *,
        part: float = 1.0,
        schedule: str = CONSTANT,
        seeds: Sequence[int] | None = None,
        share: float = 1.0,
        keep: bool = False,
        tests: bool = False,
    ) -> list[Record]:
        """Train trials up to a part of their run, and return those that ended, by number.

        Args:
            stage: the name of the step.
            contender: the optimizer.
            points: number → values.
            space: the ranges of the values, which say what can be traced.
            part: the part of a whole run, in (0, 1].
            schedule: the name of the schedule of the rate.
            seeds: the seeds of each trial; None for the first alone.
            share: the part of the whole budget after which trials are given up.
            keep: whether a later call shall go on with these trials.
            tests: whether the test split is evaluated at the end.
        """
        seeds = [self.seed] if seeds is None else list(seeds)
        self._until = share
        by_batch: dict[Any, dict[int, Values]] = {}
        for number, values in points.items():
            by_batch.setdefault(values.get("batch_size"), {})[number] = values
        ended = []
        for group in by_batch.values():
            try:
                ended += self._train(
                    stage, contender, group, space, part, schedule, seeds, keep, tests
                )
            except OutOfBudget:
                ended += [
                    self.records[key]
                    for number in group
                    if (key := self._key(number, part)) in self.records
                ]
        return sorted(ended, key=lambda record: record.trial.number)

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop the states of trials that do not go on."""
        for runner in self._runners.values():
            runner.forget(numbers)

    def _train(
        self,
        stage: str,
        contender: Contender,
        points: Mapping[int, Values],
        space: Mapping[str, Range],
        part: float,
        schedule: str,
        seeds: list[int],
        keep: bool,
        tests: bool,
    ) -> list[Record]:
        example = next(iter(points.values()))
        steps, every = self.steps_of(example), self.every(example)
        stop = min(steps, max(every, math.ceil(part * steps / every) * every))
        missing = [n for n in points if self._key(n, part) not in self.records]
        if missing:
            if not self.meter.left(self._until):
                raise OutOfBudget
            known = len(self._runners)
            runner = self._runner(contender, schedule, example, space, seeds, every, steps, tests)
            self._check_time_to_compile(known)
            skip = points.keys() - missing
            seconds, updates = self.meter.seconds, self.meter.updates
            with closing(runner.run(list(points.items()), stop, skip=skip, keep=keep)) as running:
                for chunk in running:
                    self.meter.count(0, len(chunk) * len(seeds))
                    self._store(stage, contender, points, schedule, part, chunk)
            taken = self.meter.seconds - seconds, self.meter.updates - updates
            self._trained = self._trained[0] + taken[0], self._trained[1] + taken[1]
        return [self.records[self._key(number, part)] for number in points]

    def _check_time_to_compile(self, known: int) -> None:
        """Give up where what is left of the whole budget would go into a new program alone."""
        self._waits = self.meter.seconds, len(self._runners) > known
        in_time = self.meter.budget.in_updates or self.meter.left() >= self._compilation
        if self._waits[1] and not in_time:
            self._runners.popitem()
            raise OutOfBudget

    def _store(
        self,
        stage: str,
        contender: Contender,
        points: Mapping[int, Values],
        schedule: str,
        part: float,
        chunk: Mapping[int, Curves],
    ) -> None:
        new = {}
        for number, curves in chunk.items():
            record = self._record(stage, number, contender, schedule, points[number], curves)
            new[self._key(number, part)] = record
        entries = {f"trial/{key}": record.to_json() for key, record in new.items()}
        self.journal.put(entries, self.meter)
        self.records |= new
        records = list(self.records.values())
        best = self.ranked([r for r in records if self.is_whole(r)] or records)[0].trial
        self.on_change(
            f"{stage}: {contender.name}, {len(self.records)} trials so far, "
            f"best {self.plain.score} {best.score:.4g}"
        )

    def _record(
        self,
        stage: str,
        number: int,
        contender: Contender,
        schedule: str,
        values: Values,
        curves: Curves,
    ) -> Record:
        loss, scores = (curves.validation[name] for name in ("loss", self.plain.score))
        diverged = has_diverged([curves.train_loss, loss], scores, maximize=self.plain.maximize)
        # The steps compare scores only; a run without one cannot take part.
        diverged = bool((diverged | ~np.isfinite(scores[:, -1])).any())
        with np.errstate(invalid="ignore"):
            mean_loss = float(loss[:, -1].mean(dtype=float))
        trial = TunedTrial(
            stage=stage,
            number=number,
            optimizer=contender.name,
            schedule=schedule,
            values=dict(values),
            status=DIVERGED if diverged else COMPLETE,
            updates=int(curves.steps[-1]),
            scores=scores[:, -1].tolist(),
            loss=mean_loss,
        )
        test = curves.test.get(self.plain.score, np.zeros(0))
        return Record(trial, curves.steps, curves.train_loss, loss, scores, np.asarray(test))

    @staticmethod
    def _key(number: int, part: float) -> str:
        return f"{number}/{part:.6g}"

    def _runner(
        self,
        contender: Contender,
        schedule: str,
        example: Values,
        space: Mapping[str, Range],
        seeds: list[int],
        every: int,
        steps: int,
        tests: bool,
    ) -> TrialRuns:
        names = tuple(example)
        key = (contender.name, schedule, names, tuple(seeds), every, steps, tests)
        if key not in self._runners:
            recipe = self.recipe(contender, schedule, names, steps)
            source = check_task(WHO, recipe.make_task(example))
            traced = traced_types(recipe, space, example, source and source.example)
            self._runners[key] = TrialRuns(
                WHO,
                recipe,
                traced,
                keys=seed_keys(jnp.asarray(seeds)),
                eval_every=every,
                on_updates=functools.partial(self._on_updates, len(seeds)),
                tests=tests,
            )
        return self._runners[key]

    def _on_updates(self, seeds: int, updates: int) -> None:
        self.meter.count(updates * seeds)
        began, is_new = self._waits
        if is_new:  # the first updates of a new program
            self._compilation, self._waits = self.meter.seconds - began, (began, False)
        if not self.meter.left(self._until):
            raise OutOfBudget

    def recipe(
        self, contender: Contender, schedule: str, names: tuple[str, ...], steps: int
    ) -> Recipe:
        make = scheduled(contender.make, schedule, steps)
        return Recipe(self.task, make, names, who=WHO)

    def optimizer(self, trial: TunedTrial) -> tuple[Task, optax.GradientTransformation]:
        """Return the task and the optimizer of a trial."""
        contender, values = self.contender(trial.optimizer), trial.values
        steps = self.steps_of(values)
        return self.recipe(contender, trial.schedule, tuple(values), steps).make(values)


def scheduled(make: Callable[..., Any], schedule: str, steps: int) -> Callable[..., Any]:
    """Return a constructor whose rate follows a schedule, with `learning_rate` as its highest."""
    if schedule == CONSTANT:
        return make

    @functools.wraps(make)
    def optimizer(learning_rate: Any, **values: Any) -> Any:
        return make(learning_rate=SCHEDULES[schedule](learning_rate, steps), **values)

    optimizer.__signature__ = inspect.signature(make)  # of a partial, too
    return optimizer


def step_from_json(document: Mapping[str, Any]) -> Step:
    """Return the step that `dataclasses.asdict` described."""
    charts = [
        Chart(**{**chart, "series": [Series(**series) for series in chart["series"]]})
        for chart in document["charts"]
    ]
    tables = [Table(**table) for table in document["tables"]]
    return Step(**{**document, "charts": charts, "tables": tables})
