"""`sweep`: search hyperparameters; the trials run as lanes of a few compiled programs.

Successive halving (Jamieson, Talwalkar, AISTATS 2016): of n trials, a share of 1/η continues at
each rung. The rungs lie at T/ηᵏ, …, T/η, T updates. k is the largest number for which the first
rung reaches an evaluation and ηᵏ ≤ n.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optax

from optlab import _checks
from optlab.groups._assignment import Rules
from optlab.lab.sweeps._bayes import Bayes
from optlab.lab.sweeps._database import decode, encode
from optlab.lab.sweeps._domains import check_domains
from optlab.lab.sweeps._executor import ExecutorRuns, check_executor, lanes_of_workers
from optlab.lab.sweeps._jobs import Work
from optlab.lab.sweeps._recipe import Recipe, Values, name_of, traced_types
from optlab.lab.sweeps._record import Record
from optlab.lab.sweeps._result import Sweep
from optlab.lab.sweeps._search import check_search, grid, points
from optlab.lab.sweeps._space import Range, checked_space
from optlab.lab.sweeps._store import Store
from optlab.lab.sweeps._trial import COMPLETE, STOPPED, Trial, rank
from optlab.lab.tasks._check_task import batch_size, check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training._early_stopping import EarlyStopping
from optlab.lab.training._grouping import group_table
from optlab.lab.training._interval import evaluation_interval
from optlab.lab.training._loop import checked_seeds
from optlab.lab.training._progress import Show, progress_bar
from optlab.lab.training._runner import Curves, Point, TrialRuns, default_lanes
from optlab.lab.training._stoppers import check_rule, rule_facts
from optlab.lab.training._threads import settings
from optlab.lab.training._train import EVALUATIONS

_WHO = "sweep"

FEW_EVALUATIONS = 10
"""The number of evaluations in a trial without rungs, if neither the caller nor the task sets
`eval_every`."""

Runs = TrialRuns | ExecutorRuns
"""What trains trials."""

BATCH = 8
"""Trials that are requested from Optuna together; it learns less from larger batches."""


def sweep(
    task: Task | Callable[..., Task],
    optimizer: Callable[..., optax.GradientTransformation],
    space: Mapping[str, Range],
    *,
    trials: int,
    groups: Rules | None = None,
    search: str = "random",
    seed: int = 0,
    seeds: int | Sequence[int] = 1,
    steps: int | None = None,
    eval_every: int | None = None,
    halving: int | None = None,
    early_stopping: EarlyStopping | None = None,
    results: str | Path | None = None,
    storage: str | None = None,
    lanes: int | None = None,
    memory: float | None = None,
    executor: Executor | None = None,
    callbacks: Sequence[Callable[[Trial], None]] = (),
    progress: bool = False,
    native: bool = False,
) -> Sweep:
    """Search for the hyperparameters with the best validation score.

    Each value is passed by its name to `optimizer`, to `task`, or to both, depending on which has
    an argument of that name; if neither has, it is passed as one of `**kwargs`. Trials that differ
    only in numbers, such as rates and decays, are lanes of one compiled program. Each other value,
    such as a batch size, has its own program, compiled once. All trials share their seeds, that is,
    their initialization, batches and noise. The test split is never used.

    Args:
        task: the problem; or a function of hyperparameters that returns it, such as
            `tasks.digits_mlp`, which takes `batch_size`.
        optimizer: a function of hyperparameters, such as `optlab.adamw`. It may be called with
            traced numbers.
        space: name → `LogUniform`, `Uniform`, `Integer` or `Categorical`.
        trials: the number of trials, ≥ 1; for "grid" the largest number. A space with a single
            point has one trial.
        groups: rules for groups of parameters, as `optlab.groups.partition` takes them, with the
            trial's optimizer; None for one group.
        search: "random"; "halton", which fills the space more evenly; "grid"; or "bayes", by
            Optuna, which learns from one batch of `lanes` trials to the next.
        seed: seed of the search and of the runs. A trial with a given number is the same in every
            sweep of this seed and space, however many trials there are. With "bayes" it also
            depends on the trials before it.
        seeds: the number of runs of each trial, from the seeds `seed`, `seed + 1`, …, or the seeds
            themselves; the score of the trial is their mean.
        steps: updates per trial, ≥ 1; None for the task's own number.
        eval_every: updates between evaluations; None for the task's own number, or else a tenth of
            the run, or a thirtieth with `halving`.
        halving: η ≥ 2: at each rung, continue only the best 1/η of the trials. None to train all
            trials to the end. Not available for "bayes".
        early_stopping: when each run ends before that, as in `train`: its mode must be that of the
            task's score, and a run's score is that of its best evaluation. None to let no run end
            early. With `halving`, a rung judges the best score so far, and a trial that has ended
            keeps its place among those that continue as long as its score is good enough; it takes
            no more time. With several seeds each run ends by itself.
        results: an SQLite file in which results are stored as they arrive. A sweep that was stopped
            in any way continues from this file when it is called again with the same arguments, and
            ends with the same trials, bit for bit. `trials` may then be raised, unless the search
            depends on it ("grid", `halving`). Tasks and optimizers are compared by name only. Two
            processes may use one file, but do not share the work.
        storage: for "bayes", in place of `results`: the URL of an Optuna storage, such as
            "sqlite:///study.db", through which several processes or machines work on the same
            trials. Each sweep has its own study there, which the same arguments find again. A
            process that finishes early returns without trials still running elsewhere;
            `Sweep.missing` counts them. Trials of a process that has died are run again: at once
            if it ran on this host, and after five minutes without a sign of life if on another
            one. A server that goes away is waited for, for five minutes; after that the sweep ends
            in an error, and goes on when it is called again.
        lanes: trials that run at the same time on each local device, ≥ 1; None for 4 on a CPU and
            64 elsewhere. With "bayes" it is also the number of trials that it learns from at once;
            None for 8. Trials of small dense networks are updated by one program, and results then
            depend on this number by rounding in the last bit. On a CPU, larger ones and those with
            convolutions or loops run one after another, from one thread per core.
        memory: bytes that programs running together may take; if they would take more, fewer lanes
            run. None for half of the device's memory. `halving` needs additional memory for the
            parameters and the optimizer state of every trial that may continue.
        executor: runs the trials in place of this process: any `concurrent.futures.Executor`, such
            as dask's `client.get_executor()` or a `ProcessPoolExecutor` that spawns. A job is
            `lanes` trials of one program; None for as many as suit the workers' devices. `memory`
            counts on each worker. Workers write nothing: what they return goes to `results` from
            here. With `halving` the states of trials that may continue are held here between rungs.
            Task and optimizer are pickled, with cloudpickle if it is installed. Not available for
            "bayes".
        callbacks: each is called with every `Trial` as it ends.
        progress: whether to show a progress bar on stderr.
        native: whether `optlab.native.step` makes the steps, as in `train`. Trials then run one
            after another, from one thread per core. That is slower for small models, whose trials
            one program would update together.

    Raises:
        ModuleNotFoundError: Optuna, for "bayes", or rich, for `progress`, is not installed.
        ValueError: an argument is out of its range, neither task nor optimizer accepts a name in
            `space`, one of them refuses an end of a range or a combination of ends, `results`
            belongs to another sweep, or the executor fails.

    Example:
        >>> import optlab
        >>> from optlab.lab import LogUniform
        >>> import jax.numpy as jnp
        >>> parabola = Task(
        ...     name="parabola",
        ...     init=lambda key: (jnp.array(2.0), ()),
        ...     loss=lambda x, state, batch, key: (x**2, state),
        ...     batch=lambda key, step: (),
        ...     evaluate=lambda x, state, data: {"loss": x**2},
        ... )
        >>> rates = {"learning_rate": LogUniform(1e-3, 10.0)}
        >>> result = sweep(parabola, optlab.sgd, rates, trials=32, search="halton", steps=5)
        >>> 0.3 < result.best.values["learning_rate"] < 0.7
        True
    """
    began = time.perf_counter()
    check_executor(_WHO, executor, search)
    _check_destinations(search, results, storage)
    _check_callbacks(callbacks)
    options = {"search": search, "trials": trials, "seed": seed, "seeds": seeds, "lanes": lanes}
    options["early_stopping"] = early_stopping
    options["native"] = _checks.check_flag(_WHO, "native", native)
    plan = _checked_plan(task, optimizer, space, steps, eval_every, halving, groups, **options)
    if memory is not None:
        memory = float(_checks.check_number(_WHO, "memory", memory, _checks.POSITIVE))
    if executor is not None and lanes is None:
        plan = replace(plan, lanes=lanes_of_workers(_WHO, executor))
    with progress_bar(_WHO, progress, _planned_updates(plan)) as show:
        bar = _Bar(plan, show)
        work = Work(
            plan.recipe,
            plan.traced,
            plan.seeds,
            plan.eval_every,
            plan.lanes,
            memory,
            early_stopping,
            settings(),
            plan.native,
        )
        if executor is None:
            runs = work.runs(_WHO, bar.on_updates)
        else:
            runs = ExecutorRuns(_WHO, executor, work, results=results, on_updates=bar.on_updates)
        if storage is not None:
            trials_done = _search_shared(plan, runs, storage, (*callbacks, bar.on_trial))
        else:
            with closing(Store(_WHO, results, plan.about())) as store:
                record = Record(store, (*callbacks, bar.on_trial))
                search_all = _search_bayes if search == "bayes" else _search_fixed
                search_all(plan, runs, record)
                trials_done = [record.ended[number] for number in range(plan.trials)]
    return Sweep(
        task=plan.task.name,
        space=plan.space,
        search=search,
        split="validation" if plan.task.splits else None,
        score=plan.task.score,
        maximize=plan.task.maximize,
        trials=trials_done,
        seconds=time.perf_counter() - began,
        missing=max(0, plan.trials - len(trials_done)),
    )


@dataclass(frozen=True)
class _Plan:
    """The checked arguments of a sweep."""

    recipe: Recipe
    task: Task  # the task of the first trial; its name and score are those of all trials
    space: Mapping[str, Range]
    traced: Mapping[str, type]
    search: str
    trials: int
    seed: int
    seeds: list[int]
    steps: int
    eval_every: int
    halving: int | None
    lanes: int
    batch: int  # trials that are requested from Optuna together
    groups: str | None  # as a table, with the values in the middle of their ranges
    early_stopping: Mapping[str, Any] | None
    native: bool

    def about(self) -> dict[str, Any]:
        """Return the facts that identify this sweep; stored results must have the same ones."""
        names = ("search", "seed", "seeds", "steps", "eval_every", "halving", "lanes")
        about = {"task": self.task.name, "optimizer": name_of(self.recipe.optimizer)}
        about |= {"score": self.task.score, "maximize": self.task.maximize}
        about["space"] = list(self.space)  # names in their order, which affects the values
        about |= {f"space[{name!r}]": values.to_json() for name, values in self.space.items()}
        about |= {name: getattr(self, name) for name in names}
        # A file of a sweep that has none of these may be older than they are.
        rare = {"groups": self.groups, "early_stopping": self.early_stopping}
        rare["native"] = self.native or None
        about |= {name: value for name, value in rare.items() if value is not None}
        if self.search == "grid" or self.halving:
            about["trials"] = self.trials
        return about

    def study(self) -> str:
        """Return the name of this sweep's study in a storage; no other sweep has the same name."""
        about = json.dumps({**self.about(), "lanes": None}, sort_keys=True)
        return f"{self.task.name} {hashlib.sha256(about.encode()).hexdigest()[:12]}"

    def points(self) -> list[Point]:
        """Return the trials of a search that fixes their values beforehand."""
        if self.search == "grid":
            return list(enumerate(grid(_WHO, self.space, self.trials)))
        numbers = range(self.trials)
        values = points(self.space, self.search, self.seed, numbers)
        return list(zip(numbers, values, strict=True))

    def rungs(self) -> list[int]:
        """Return the updates after which halving stops trials, ascending."""
        if not self.halving:
            return []
        highest = int(math.log(self.trials, self.halving) + 1e-9)
        every = self.eval_every
        # Rungs lie on evaluations, so that halving does not change when a trial is evaluated.
        rungs = {
            math.ceil(self.steps / self.halving**k / every) * every
            for k in range(1, highest + 1)
            if self.steps >= self.halving**k * every
        }
        return sorted(rung for rung in rungs if rung < self.steps)

    def trial(self, number: int, values: Values, curves: Curves, status: str) -> Trial:
        """Return a trial that ends here with this status, as diverged, or as ended early."""
        options = {"score": self.task.score, "maximize": self.task.maximize}
        return Trial.of(number, values, curves, status, **options)


def _search_fixed(plan: _Plan, runs: Runs, record: Record) -> None:
    """Run trials whose values are fixed beforehand, from rung to rung."""
    points = plan.points()
    remaining = dict(points)
    for rung in plan.rungs():
        reached = {n: Curves(**curves) for n, curves in record.store.rungs(rung).items()}
        skipped = {number for number, _ in points if number not in remaining or number in reached}
        with closing(runs.run(points, rung, skip=skipped, keep=True)) as running:
            for chunk in running:
                record.store.add_rungs({(n, rung): c._asdict() for n, c in chunk.items()})
                reached |= chunk
        candidates = [plan.trial(n, values, reached[n], STOPPED) for n, values in remaining.items()]
        best = rank(candidates, maximize=plan.task.maximize)
        best = best[: math.ceil(len(remaining) / plan.halving)]
        promoted = {trial.number for trial in best if not trial.diverged}
        record.add(trial for trial in candidates if trial.number not in promoted)
        runs.forget(remaining.keys() - promoted)
        remaining = {n: values for n, values in remaining.items() if n in promoted}
    _run_to_end(plan, runs, record, points)


def _search_bayes(plan: _Plan, runs: Runs, record: Record) -> None:
    """Request batches of trials from Optuna; for trials that have ended, only report the score."""
    with Bayes(plan.space, seed=plan.seed, maximize=plan.task.maximize) as study:
        for number, trial in record.ended.items():
            study.add_finished(number, trial.values, trial.score)
        for first in range(0, plan.trials, plan.batch):
            # Request a whole batch even at the end, so that a longer sweep has the same trials.
            batch = study.ask(plan.batch)[: plan.trials - first]
            _run_to_end(plan, runs, record, batch)
            for number, _ in batch:
                study.tell(number, record.ended[number].score)


def _run_to_end(plan: _Plan, runs: Runs, record: Record, points: Sequence[Point]) -> None:
    """Run the trials that have not ended."""
    values = dict(points)
    with closing(runs.run(points, plan.steps, skip=record.ended)) as running:
        for chunk in running:
            record.add(plan.trial(n, values[n], curves, COMPLETE) for n, curves in chunk.items())


def _search_shared(
    plan: _Plan, runs: Runs, storage: str, callbacks: Sequence[Callable[[Trial], None]]
) -> list[Trial]:
    """Run a share of the trials, together with other processes on the same Optuna storage."""
    options = {"seed": plan.seed, "maximize": plan.task.maximize, "storage": storage}
    with Bayes(plan.space, **options, name=plan.study()) as study:
        while batch := dict(study.ask(plan.batch, trials=plan.trials)):
            with closing(runs.run(list(batch.items()), plan.steps)) as running:
                for number, curves in (entry for chunk in running for entry in chunk.items()):
                    trial = plan.trial(number, batch[number], curves, COMPLETE)
                    if study.tell(number, trial.score, {"trial": encode(vars(trial))}):
                        for callback in callbacks:
                            callback(trial)
        return [Trial(**decode(record["trial"])) for *_, record in study.finished()]


def _checked_plan(
    task: Task | Callable[..., Task],
    optimizer: Callable[..., optax.GradientTransformation],
    space: Mapping[str, Range],
    steps: int | None,
    eval_every: int | None,
    halving: int | None,
    groups: Rules | None,
    *,
    search: str,
    trials: int,
    seed: int,
    seeds: int | Sequence[int],
    lanes: int | None,
    early_stopping: EarlyStopping | None,
    native: bool,
) -> _Plan:
    check_search(_WHO, search, seed)
    _checks.check_integer(_WHO, "trials", trials, 1)
    runs = checked_seeds(_WHO, seeds)
    if not isinstance(seeds, Sequence | np.ndarray):
        runs = runs + seed
    _checks.check_integer(_WHO, "the last of seeds", int(runs.max()), 0)  # they must be int32
    if halving is not None:
        _checks.check_integer(_WHO, "halving", halving, 2)
        if search == "bayes":
            required = "halving must be None with search='bayes', which learns from whole runs"
            _checks.fail(_WHO, required, f"halving={halving}", 'use "halton" or "random"')
    batch = BATCH if lanes is None else lanes
    if lanes is None:
        lanes = default_lanes()
    _checks.check_integer(_WHO, "lanes", lanes, 1)
    space = checked_space(_WHO, space)
    if all(values.size == 1 for values in space.values()):
        trials = 1
    if search == "grid":
        trials = len(grid(_WHO, space, trials))
    recipe = Recipe(task, optimizer, tuple(space), groups)
    example = {name: values.at(0.5) for name, values in space.items()}
    check_domains(_WHO, recipe, space, example)
    first = recipe.make_task(example)
    source = check_task(_WHO, first)
    check_rule(_WHO, first, early_stopping)
    table = None if groups is None else group_table(*recipe.make(example))
    steps = first.steps if steps is None else steps
    _checks.check_integer(_WHO, "steps", steps, 1)
    if eval_every is None:
        evaluations = EVALUATIONS if halving else FEW_EVALUATIONS
        size = batch_size(first, source)
        eval_every = evaluation_interval(_WHO, first, steps, batch_size=size, most=evaluations)
    _checks.check_integer(_WHO, "eval_every", eval_every, 1)
    return _Plan(
        recipe=recipe,
        task=first,
        space=space,
        traced=traced_types(recipe, space, example, source and source.example),
        search=search,
        # Python integers, because NumPy integers cannot be stored as JSON.
        trials=int(trials),
        seed=int(seed),
        seeds=runs.tolist(),
        steps=int(steps),
        eval_every=int(eval_every),
        halving=None if halving is None else int(halving),
        lanes=int(lanes),
        batch=batch,
        groups=table,
        early_stopping=rule_facts(early_stopping),
        native=native,
    )


def _check_destinations(search: str, results: str | Path | None, storage: str | None) -> None:
    if storage is None:
        return
    if search != "bayes":
        required = "storage must be None unless search='bayes'"
        _checks.fail(_WHO, required, f"storage={storage!r}", "pass a file as results")
    if results is not None:
        _checks.fail(_WHO, "results must be None with storage", f"{str(results)!r}")


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        remedy = "pass [function]"
        _checks.fail(_WHO, "callbacks must be a list of functions", repr(callbacks), remedy)


class _Bar:
    """What the progress bar of a sweep shows: updates done, trials ended, and the best of them."""

    def __init__(self, plan: _Plan, show: Show):
        self._plan, self._show = plan, show
        self._ended: list[Trial] = []
        self._done, self._text = 0, "compiling"

    def on_updates(self, updates: int) -> None:
        """Count the updates of some trials."""
        self._done += updates
        self._show(self._done, self._text)

    def on_trial(self, trial: Trial) -> None:
        """Count a trial that has ended."""
        plan = self._plan
        self._ended.append(trial)
        best = rank(self._ended, maximize=plan.task.maximize)[0]
        trials = f"{len(self._ended)} of {plan.trials} trials"
        self._text = f"{trials}, best {plan.task.score} {best.score:.3g}"
        self._show(self._done, self._text)


def _planned_updates(plan: _Plan) -> int:
    """Return the total number of updates of all trials."""
    remaining, done, total = plan.trials, 0, 0
    for rung in plan.rungs():
        total += remaining * (rung - done)
        remaining, done = math.ceil(remaining / plan.halving), rung
    return total + remaining * (plan.steps - done)
