"""`sweep`: search hyperparameters, the trials as lanes of few compiled programs.

Successive halving (Jamieson, Talwalkar, AISTATS 2016): with n trials, a share of 1/η goes on at
each rung. The rungs lie at T/ηᵏ, …, T/η, T updates, and k is the largest for which the first rung
reaches an evaluation and ηᵏ ≤ n.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax

from optlab import _checks
from optlab.lab._bayes import Bayes
from optlab.lab._extras import needs_extra
from optlab.lab._recipe import Recipe, Values, name_of, traced_types
from optlab.lab._search import check_search, grid, points
from optlab.lab._space import Range, checked_space
from optlab.lab._store import Store, decode, encode
from optlab.lab._sweep_result import Sweep
from optlab.lab._task import Task, check_task
from optlab.lab._train import EVALUATIONS
from optlab.lab._trial import COMPLETE, DIVERGED, STOPPED, Trial, has_diverged, rank
from optlab.lab._trial_runs import Curves, Point, TrialRuns, available_memory

_WHO = "sweep"

LANES = {"cpu": 16}
"""Trials that run together, by platform: more are hardly faster on a CPU, and idle ones cost."""

LANES_ELSEWHERE = 64

FEW_EVALUATIONS = 10
"""Evaluations of a trial for which nothing else is said, where no rungs lie on them."""

BATCH = 8
"""Trials that Optuna is asked for together: from more at once it learns less."""


def sweep(
    task: Task | Callable[..., Task],
    optimizer: Callable[..., optax.GradientTransformation],
    space: Mapping[str, Range],
    *,
    trials: int,
    search: str = "random",
    seed: int = 0,
    repeats: int = 1,
    steps: int | None = None,
    eval_every: int | None = None,
    halving: int | None = None,
    results: str | Path | None = None,
    storage: str | None = None,
    lanes: int | None = None,
    memory: float | None = None,
    callbacks: Sequence[Callable[[Trial], None]] = (),
    progress: bool = False,
) -> Sweep:
    """Search for the hyperparameters of the best validation score.

    Each range goes by its name to `optimizer`, to `task`, or to both, whichever takes an argument
    of that name; what neither names goes to `**kwargs`. Trials that differ in numbers alone, such
    as rates and decays, are lanes of one compiled program; each other value, such as a batch size,
    has a program of its own, compiled once. All trials share their seeds: initialization, batches
    and noise. The test split is never looked at.

    Args:
        task: the problem; or a function of hyperparameters that returns it, such as
            `tasks.digits_mlp`, which takes `batch_size`.
        optimizer: a function of hyperparameters, such as `optlab.adamw`. It may be called with
            traced numbers.
        space: name → `LogUniform`, `Uniform`, `Integer` or `Categorical`.
        trials: how many, ≥ 1; for "grid" the most there may be.
        search: "random"; "halton", which fills the space more evenly; "grid"; or "bayes", by
            Optuna, which learns from one batch of `lanes` trials to the next.
        seed: of the search and of the runs. The trial of a number is the same in any sweep of this
            seed and space, however many there are; by "bayes" it depends on those before it, too.
        repeats: runs of each trial, from the seeds `seed`, `seed + 1`, …; their mean score counts.
        steps: updates a trial, ≥ 1; None for the task's.
        eval_every: updates between evaluations; None for the task's, or a tenth of the run, a
            thirtieth with `halving`.
        halving: η ≥ 2: give up all trials but the best of every η at each rung; None to train all
            to the end. Not for "bayes".
        results: an SQLite file to keep results in as they come. A sweep that was stopped in any way
            goes on from what is there when called again with the same arguments, and ends with
            the same trials, bit for bit; `trials` may be raised then, unless it shapes the search
            ("grid", `halving`). Of task and optimizer only the names are compared. Two processes
            may use one file, but do not share the work.
        storage: for "bayes", the URL of an Optuna storage, such as "sqlite:///study.db", through
            which several processes or machines work on the same trials; takes the place of
            `results`. Each sweep has a study of its own there, which the same arguments find
            again. Who is done first returns without the trials that others still run, and
            `Sweep.missing` tells how many those are.
        lanes: trials that run together, ≥ 1; None for 16 on a CPU, 64 elsewhere, and 8 by "bayes",
            which learns from batch to batch. Rounding in the last bit depends on it.
        memory: bytes that the programs may take which run together; fewer lanes run where they
            would take more. None for half of the device's. `halving` keeps beyond that what every
            trial that may go on has come to: its parameters and its optimizer's state.
        callbacks: each is called with every `Trial` as it ends.
        progress: whether to show a bar on stderr.

    Raises:
        ModuleNotFoundError: Optuna, for "bayes", or rich, for `progress`, is not installed.
        ValueError: an argument is out of its range, a range is of no use to task and optimizer, or
            `results` are those of another sweep.

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
        >>> found = sweep(parabola, optlab.sgd, rates, trials=32, search="halton", steps=5)
        >>> 0.3 < found.best.values["learning_rate"] < 0.7
        True
    """
    began = time.perf_counter()
    _check_places(search, results, storage)
    _check_callbacks(callbacks)
    asked = {"search": search, "trials": trials, "seed": seed, "repeats": repeats, "lanes": lanes}
    plan = _checked_plan(task, optimizer, space, steps, eval_every, halving, **asked)
    memory = available_memory() if memory is None else _checked_memory(memory)
    with _shown(progress, plan) as (on_updates, bar):
        runs = TrialRuns(
            plan.recipe,
            plan.traced,
            seeds=[seed + r for r in range(repeats)],
            eval_every=plan.eval_every,
            lanes=plan.lanes,
            memory=memory,
            on_updates=on_updates,
        )
        if storage is not None:
            ended = _search_together(plan, runs, storage, (*callbacks, *bar))
        else:
            with closing(Store(_WHO, results, plan.about())) as store:
                record = _Record(store, (*callbacks, *bar))
                search_all = _search_bayes if search == "bayes" else _search_known
                search_all(plan, runs, record)
                ended = [record.ended[number] for number in range(plan.trials)]
    return Sweep(
        task=plan.task.name,
        space=plan.space,
        search=search,
        split="validation" if plan.task.splits else None,
        score=plan.task.score,
        maximize=plan.task.maximize,
        trials=ended,
        seconds=time.perf_counter() - began,
        missing=max(0, plan.trials - len(ended)),
    )


@dataclass(frozen=True)
class _Plan:
    """A sweep as asked for, checked."""

    recipe: Recipe
    task: Task  # that of the first trial, whose name and score are those of all
    space: Mapping[str, Range]
    traced: Mapping[str, type]
    search: str
    trials: int
    seed: int
    repeats: int
    steps: int
    eval_every: int
    halving: int | None
    lanes: int

    def about(self) -> dict[str, Any]:
        """Return what results must have in common with this sweep, to be its own."""
        names = ("search", "seed", "repeats", "steps", "eval_every", "halving", "lanes")
        about = {"task": self.task.name, "optimizer": name_of(self.recipe.optimizer)}
        about |= {"score": self.task.score, "maximize": self.task.maximize}
        about["space"] = list(self.space)  # in its order, which decides the values
        about |= {f"space[{name!r}]": values.to_json() for name, values in self.space.items()}
        about |= {name: getattr(self, name) for name in names}
        if self.search == "grid" or self.halving:
            about["trials"] = self.trials
        return about

    def study(self) -> str:
        """Return the name of the study that this sweep, and no other one, has in a storage."""
        about = json.dumps({**self.about(), "lanes": None}, sort_keys=True)
        return f"{self.task.name} {hashlib.sha256(about.encode()).hexdigest()[:12]}"

    def points(self) -> list[Point]:
        """Return the trials, where their values are known beforehand."""
        if self.search == "grid":
            return list(enumerate(grid(_WHO, self.space, self.trials)))
        numbers = range(self.trials)
        values = points(self.space, self.search, self.seed, numbers)
        return list(zip(numbers, values, strict=True))

    def rungs(self) -> list[int]:
        """Return the updates after which trials are given up, ascending."""
        if not self.halving:
            return []
        highest = int(math.log(self.trials, self.halving) + 1e-9)
        every = self.eval_every
        # On evaluations, so that a trial is evaluated at the same updates whether it halts or not.
        rungs = {
            math.ceil(self.steps / self.halving**k / every) * every
            for k in range(1, highest + 1)
            if self.steps >= self.halving**k * every
        }
        return sorted(rung for rung in rungs if rung < self.steps)

    def trial(self, number: int, values: Values, curves: Curves, status: str) -> Trial:
        """Return a trial that ends here, in this way unless it diverged."""
        loss, scores = (curves.validation[name] for name in ("loss", self.task.score))
        diverged = has_diverged(curves.train_loss, loss, scores)
        score = math.nan if diverged else float(scores[:, -1].mean(dtype=float))
        status = DIVERGED if diverged else status
        return Trial(number, dict(values), status, **curves._asdict(), score=score)


class _Record:
    """The trials that ended, in memory and in a store, and who is told of them."""

    def __init__(self, store: Store, callbacks: Sequence[Callable[[Trial], None]]):
        self.store, self._callbacks = store, callbacks
        self.ended = {trial.number: trial for trial in store.trials()}

    def add(self, trials: Iterable[Trial]) -> None:
        """Keep those that are new."""
        new = [trial for trial in trials if trial.number not in self.ended]
        self.store.add(new)
        self.ended |= {trial.number: trial for trial in new}
        for trial in new:
            for callback in self._callbacks:
                callback(trial)


def _search_known(plan: _Plan, runs: TrialRuns, record: _Record) -> None:
    """Run trials whose values are known beforehand, from rung to rung."""
    points = plan.points()
    field = dict(points)
    for rung in plan.rungs():
        reached = {n: Curves(**curves) for n, curves in record.store.rungs(rung).items()}
        out = {number for number, _ in points if number not in field or number in reached}
        with closing(runs.run(points, rung, skip=out, keep=True)) as running:
            for found in running:
                record.store.add_rungs({(n, rung): c._asdict() for n, c in found.items()})
                reached |= found
        candidates = [plan.trial(n, values, reached[n], STOPPED) for n, values in field.items()]
        best = rank(candidates, maximize=plan.task.maximize)
        best = best[: math.ceil(len(field) / plan.halving)]
        going = {trial.number for trial in best if trial.status != DIVERGED}
        record.add(trial for trial in candidates if trial.number not in going)
        runs.forget(field.keys() - going)
        field = {n: values for n, values in field.items() if n in going}
    _run_to_end(plan, runs, record, points)


def _search_bayes(plan: _Plan, runs: TrialRuns, record: _Record) -> None:
    """Ask Optuna for a batch of trials at a time; what has ended already is told, not run."""
    with Bayes(plan.space, seed=plan.seed, maximize=plan.task.maximize) as study:
        for number, trial in record.ended.items():
            study.add_finished(number, trial.values, trial.score)
        for first in range(0, plan.trials, plan.lanes):
            # A whole batch even at the end, so that its trials are those of a longer sweep.
            batch = study.ask(plan.lanes)[: plan.trials - first]
            _run_to_end(plan, runs, record, batch)
            for number, _ in batch:
                study.tell(number, record.ended[number].score)


def _run_to_end(plan: _Plan, runs: TrialRuns, record: _Record, points: Sequence[Point]) -> None:
    """Run those that have not ended."""
    values = dict(points)
    with closing(runs.run(points, plan.steps, skip=record.ended)) as running:
        for found in running:
            record.add(plan.trial(n, values[n], curves, COMPLETE) for n, curves in found.items())


def _search_together(
    plan: _Plan, runs: TrialRuns, storage: str, callbacks: Sequence[Callable[[Trial], None]]
) -> list[Trial]:
    """Share the trials with whoever works on the same Optuna storage."""
    options = {"seed": plan.seed, "maximize": plan.task.maximize, "storage": storage}
    with Bayes(plan.space, **options, name=plan.study()) as study:
        while batch := dict(study.ask(plan.lanes, trials=plan.trials)):
            with closing(runs.run(list(batch.items()), plan.steps)) as running:
                for number, curves in (entry for found in running for entry in found.items()):
                    trial = plan.trial(number, batch[number], curves, COMPLETE)
                    study.tell(number, trial.score, {"trial": encode(vars(trial))})
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
    *,
    search: str,
    trials: int,
    seed: int,
    repeats: int,
    lanes: int | None,
) -> _Plan:
    check_search(_WHO, search, seed)
    _checks.check_count(_WHO, "trials", trials, 1)
    _checks.check_count(_WHO, "repeats", repeats, 1)
    _checks.check_count(_WHO, "seed + repeats", seed + repeats, 1)  # the runs' seeds are int32
    if halving is not None:
        _checks.check_count(_WHO, "halving", halving, 2)
        if search == "bayes":
            required = "halving must be None with search='bayes', which learns from whole runs"
            _checks.fail(_WHO, required, f"halving={halving}", 'use "halton" or "random"')
    if lanes is None:
        lanes = LANES.get(jax.default_backend(), LANES_ELSEWHERE)
        lanes = min(lanes, BATCH) if search == "bayes" else lanes
    _checks.check_count(_WHO, "lanes", lanes, 1)
    space = checked_space(_WHO, space)
    if search == "grid":
        trials = len(grid(_WHO, space, trials))
    recipe = Recipe(task, optimizer, tuple(space))
    example = {name: values.at(0.5) for name, values in space.items()}
    first = recipe.make_task(example)
    check_task(_WHO, first)
    steps = first.num_steps if steps is None else steps
    _checks.check_count(_WHO, "steps", steps, 1)
    if eval_every is None:
        evaluations = EVALUATIONS if halving else FEW_EVALUATIONS
        eval_every = first.eval_every or math.ceil(steps / evaluations)
    _checks.check_count(_WHO, "eval_every", eval_every, 1)
    return _Plan(
        recipe=recipe,
        task=first,
        space=space,
        traced=traced_types(recipe, space, example),
        search=search,
        # NumPy's integers, too, are kept as JSON.
        trials=int(trials),
        seed=int(seed),
        repeats=int(repeats),
        steps=int(steps),
        eval_every=int(eval_every),
        halving=None if halving is None else int(halving),
        lanes=int(lanes),
    )


def _check_places(search: str, results: str | Path | None, storage: str | None) -> None:
    if storage is None:
        return
    if search != "bayes":
        required = "storage must be None unless search='bayes'"
        _checks.fail(_WHO, required, f"storage={storage!r}", "pass a file as results")
    if results is not None:
        _checks.fail(_WHO, "results must be None where storage keeps them", f"{str(results)!r}")


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        remedy = "pass [function]"
        _checks.fail(_WHO, "callbacks must be a list of functions", repr(callbacks), remedy)


def _checked_memory(memory: float) -> float:
    _checks.check_number(_WHO, "memory", memory, _checks.POSITIVE)
    return float(memory)


@contextmanager
def _shown(progress: bool, plan: _Plan) -> Iterator[tuple[Callable[[int], None], Sequence]]:
    """Yield whom to tell of updates done, and whom of trials ended, for a bar if one is wanted."""
    if not progress:
        yield lambda updates: None, ()
        return
    with needs_extra(_WHO):
        from rich.console import Console
        from rich.progress import Progress

    ended: list[Trial] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("compiling", total=_planned_updates(plan))

        def show(trial: Trial) -> None:
            ended.append(trial)
            best = rank(ended, maximize=plan.task.maximize)[0]
            text = f"{len(ended)} of {plan.trials} trials, best {plan.task.score} {best.score:.3g}"
            bar.update(shown, description=text)

        yield lambda updates: bar.update(shown, advance=updates), (show,)


def _planned_updates(plan: _Plan) -> int:
    """Return the updates of all trials together."""
    field, done, total = plan.trials, 0, 0
    for rung in plan.rungs():
        total += field * (rung - done)
        field, done = math.ceil(field / plan.halving), rung
    return total + field * (plan.steps - done)
