"""`bench`: tune optimizers with equal budgets, and measure what they take to reach a target.

On each task each optimizer gets the same number of trials, Halton points in its part of the
published space (see `_space`), all from one seed. The values that met the target on validation in
the fewest updates are chosen. They are then run from fresh seeds, and only these runs count: for
the updates to the target on validation, and for the score on test. Last the time of an update is
measured alone.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab import optimizers as rules
from optlab._divergence import has_diverged
from optlab._identity import identity, transformation
from optlab._report import versions
from optlab.lab.benchmarking import _targets
from optlab.lab.benchmarking._file import BenchFile, OneRun
from optlab.lab.benchmarking._outcome import TUNING_SEED, Goal, Outcome, chosen, outcome_of
from optlab.lab.benchmarking._problems import bench_tasks
from optlab.lab.benchmarking._result import Bench
from optlab.lab.benchmarking._seconds import seconds_per_update
from optlab.lab.benchmarking._space import MakeOptimizer, checked_spaces, space_of
from optlab.lab.data import Batches
from optlab.lab.sweeps._domains import check_domains
from optlab.lab.sweeps._recipe import Recipe, traced_types
from optlab.lab.sweeps._search import points
from optlab.lab.sweeps._space import Range
from optlab.lab.tasks._check_task import batch_size, check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training._grouping import params_of
from optlab.lab.training._interval import evaluation_interval
from optlab.lab.training._loop import checked_seeds, seed_keys
from optlab.lab.training._progress import Show, progress_bar
from optlab.lab.training._runner import Curves, Point, TrialRuns, default_lanes

_WHO = "bench"

EVALUATIONS = 60
"""The most intervals of a run, if the task does not set `eval_every`."""

REFERENCE = "(reference)"
"""The label under which a file holds the runs that find the target of a task."""


def bench(
    tasks: Sequence[Task] | None,
    optimizers: Mapping[str, MakeOptimizer],
    *,
    trials: int = 12,
    seeds: int | Sequence[int] = 5,
    steps: int | None = None,
    space: Mapping[str, Mapping[str, Range]] | None = None,
    results: str | Path | None = None,
    lanes: int | None = None,
    memory: float | None = None,
    callbacks: Sequence[Callable[[Outcome], None]] = (),
    progress: bool = False,
) -> Bench:
    """Compare optimizers on tasks, each tuned with the same number of trials.

    On each task an optimizer is tuned on Halton points of the published space, from one seed. The
    values that reach the target in the fewest updates on validation are chosen, and run again from
    fresh seeds; only these runs count.

    The published space, by the names of the arguments of an optimizer: `learning_rate`, two decades
    below and above the usual rate of the rule; `weight_decay`, log-uniform from 1e-5 to 0.1; and
    `momentum`, `b1` or `beta`, uniform from 0.8 to 0.98. An argument is tuned if its default is a
    number. The usual rate of a rule of your own is the default of its `learning_rate`.

    The target of a task is `Task.target`. For a task without one it is found by a rule that no
    optimizer of the benchmark takes part in: Adam, tuned on 8 trials; of the best of these runs the
    worst validation score in the last quarter.

    Args:
        tasks: the problems, whose names differ; None for the six of `bench_tasks`.
        optimizers: label → a function of hyperparameters, such as `optlab.adamw`. It may be called
            with traced numbers.
        trials: trials of each optimizer on each task, ≥ 1. One with nothing to tune has one.
        seeds: the number of fresh seeds, counted from 1, or the seeds themselves; 0 is the seed of
            the trials.
        steps: updates of every run, ≥ 1; None for the number of each task.
        space: label → name → range, in place of the published space of an optimizer.
        results: an SQLite file in which runs are stored as they end. A benchmark that was stopped
            in any way continues from it. Optimizers and tasks may be added in later calls, and
            those that are there already are not run again. What is not comparable is refused:
            another number of trials, other seeds, updates, targets, data or space, other versions
            of the libraries, another kind of device, or another optimizer under the same label.
        lanes: as for `sweep`.
        memory: as for `sweep`.
        callbacks: each is called with every `Outcome`, when it is known.
        progress: whether to show a progress bar on stderr.

    Returns:
        A `Bench` of these tasks, and of all optimizers of the file that have run on them.

    Raises:
        ModuleNotFoundError: SciPy is not installed; or rich, for `progress`; or what the built-in
            tasks need.
        ValueError: there is nothing to compare, an argument is out of its range, an optimizer
            refuses the parameters of a task or an end of a range, its usual rate is not known, or
            `results` has something that is not comparable.

    Example:
        >>> import optax
        >>> from optlab.lab import tasks
        >>> rules = {"sgd": lambda learning_rate=0.01: optax.sgd(learning_rate), "adam": rules.adam}
        >>> result = bench([tasks.valley()], rules, trials=4, seeds=2, steps=60)
        >>> [outcome.num_trials for outcome in result.outcomes.values()]
        [4, 4]
    """
    plan = _checked_plan(tasks, optimizers, trials, seeds, steps, space, lanes, memory)
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        _checks.fail(_WHO, "callbacks must be a sequence of functions", repr(callbacks))
    runs = plan.trials + len(plan.seeds)
    total = sum(entry.steps for entry in plan.entries) * len(plan.contenders) * runs
    with (
        closing(BenchFile(_WHO, results, plan.about())) as file,
        progress_bar(_WHO, progress, total) as show,
    ):
        for entry in plan.entries:
            file.check_task(entry.task.name, entry.facts())
        for contender in plan.contenders:
            file.check_optimizer(contender.label, contender.facts())
        bar = _Bar(show)
        for entry in plan.entries:
            goal = _goal(plan, file, entry)
            for contender in plan.contenders:
                bar.text = f"{entry.task.name}, {contender.label}"
                outcome = _measured(plan, file, entry, goal, contender, bar)
                for callback in callbacks:
                    callback(outcome)
        return _all_results(plan, file)


@dataclass(frozen=True, eq=False)
class _Entry:
    """A task of the benchmark.

    Attributes:
        task: the task.
        steps: updates per run.
        eval_every: updates between evaluations.
        example: a batch of its loader; None if it has none.
    """

    task: Task
    steps: int
    eval_every: int
    example: Any

    def facts(self) -> dict[str, Any]:
        """Return the facts that must not change."""
        task = self.task
        return {
            "steps": self.steps,
            "eval_every": self.eval_every,
            "score": task.score,
            "maximize": task.maximize,
            "split": "validation" if task.splits else None,
            "target_of": "rule" if task.target is None else "task",
            "target": task.target,
            "contents": _digest(identity(task, optax.identity(), jax.random.key(0), {})),
        }


@dataclass(frozen=True, eq=False)
class _Contender:
    """An optimizer of the benchmark.

    Attributes:
        label: its label.
        make: the function that makes it.
        space: name → range.
        trials: the number of its trials.
    """

    label: str
    make: MakeOptimizer
    space: Mapping[str, Range]
    trials: int

    @property
    def example(self) -> dict[str, Any]:
        """The values in the middle of the space."""
        return {name: values.at(0.5) for name, values in self.space.items()}

    def recipe(self, task: Task) -> Recipe:
        """Return what a trial trains."""
        who = f"{_WHO}: optimizer {self.label!r}"
        return Recipe(task, self.make, tuple(self.space), who=who)

    def points(self) -> list[Point]:
        """Return the trials."""
        numbers = range(self.trials)
        values = points(self.space, "halton", TUNING_SEED, numbers) if self.space else [{}]
        return list(zip(numbers, values, strict=True))

    def facts(self) -> dict[str, Any]:
        """Return the facts that must not change."""
        return {
            "space": [[name, values.to_json()] for name, values in self.space.items()],
            "contents": _digest(transformation(self.make(**self.example))),
        }


@dataclass(frozen=True, eq=False)
class _Plan:
    """The checked arguments of a benchmark."""

    entries: Sequence[_Entry]
    contenders: Sequence[_Contender]
    trials: int
    seeds: list[int]
    lanes: int
    memory: float | None

    def about(self) -> dict[str, Any]:
        """Return the facts that all results of a file share."""
        packages = versions("optlab", "jax", "jaxlib", "optax", "flax", "numpy")
        return {
            "trials": self.trials,
            "seeds": self.seeds,
            "lanes": self.lanes,
            "the kind of device": jax.default_backend(),
            **{f"the version of {name}": version for name, version in packages.items()},
        }


class _Bar:
    """The progress bar: updates done, and what is being trained."""

    def __init__(self, show: Show):
        self._show, self._done, self.text = show, 0, "compiling"

    def count(self, updates: int) -> None:
        """Count updates that were done, now or in an earlier call."""
        self._done += updates
        self._show(self._done, self.text)


def _goal(plan: _Plan, file: BenchFile, entry: _Entry) -> Goal:
    """Return what the task is, and its target; find the target if nothing says it."""
    facts = file.facts("task")[entry.task.name]
    if facts["target"] is None:
        file.set_target(entry.task.name, _reference_target(plan, file, entry))
        facts = file.facts("task")[entry.task.name]
    return _goal_of(entry.task.name, facts)


def _goal_of(task: str, facts: Mapping[str, Any]) -> Goal:
    return Goal(
        task=task,
        split=facts["split"],
        score=facts["score"],
        maximize=facts["maximize"],
        target=facts["target"],
        by_rule=facts["target_of"] == "rule",
        steps=facts["steps"],
        eval_every=facts["eval_every"],
    )


def _reference_target(plan: _Plan, file: BenchFile, entry: _Entry) -> float:
    """Return the target of a task by the rule of `_targets`."""
    task = entry.task
    space = space_of(_WHO, REFERENCE, rules.adam)
    adam = _Contender(REFERENCE, rules.adam, space, _targets.TRIALS)
    _run(plan, file, entry, adam, adam.points(), [TUNING_SEED], count=lambda updates: None)
    # Every run misses an unreachable target, so that the score at the end decides.
    never = np.inf if task.maximize else -np.inf
    goal = _goal_of(task.name, entry.facts() | {"target": never})
    best = chosen(goal, file.runs(task.name, REFERENCE))
    if best is None or not np.isfinite(best.scores).all():
        _checks.fail(
            _WHO,
            f"task {task.name!r} must have a target, or be one that Adam can train",
            "no target, and reference runs that diverged",
            "set Task.target",
        )
    return _targets.level_held(best.steps, best.scores, maximize=task.maximize)


def _measured(
    plan: _Plan, file: BenchFile, entry: _Entry, goal: Goal, contender: _Contender, bar: _Bar
) -> Outcome:
    """Return the outcome of an optimizer on a task, after the runs that are missing in the file."""
    name, label = entry.task.name, contender.label
    run = partial(_run, plan, file, entry, contender, count=bar.count)
    run(contender.points(), [TUNING_SEED])
    tuned = [run for run in file.runs(name, label) if run.seed == TUNING_SEED]
    choice = chosen(goal, tuned)
    if choice is not None:
        run([(choice.trial, choice.values)], plan.seeds, tests=True)
        if file.seconds(name, label) is None:
            tx = contender.make(**choice.values)
            file.add_seconds(name, label, seconds_per_update(_WHO, entry.task, tx))
    options = {"trials": contender.trials, "seeds": plan.seeds}
    return outcome_of(goal, label, file.runs(name, label), file.seconds(name, label), **options)


def _run(
    plan: _Plan,
    file: BenchFile,
    entry: _Entry,
    contender: _Contender,
    points: Sequence[Point],
    seeds: Sequence[int],
    *,
    count: Callable[[int], None],
    tests: bool = False,
) -> None:
    """Run trials from these seeds, except those that the file has.

    The runs of a trial are written together.
    """
    task = entry.task
    done = {(run.trial, run.seed) for run in file.runs(task.name, contender.label)}
    skip = {number for number, _ in points if done >= {(number, seed) for seed in seeds}}
    count(len(skip) * entry.steps)
    if len(skip) == len(points):
        return
    values, recipe = dict(points), contender.recipe(task)
    trials = TrialRuns(
        _WHO,
        recipe,
        traced_types(recipe, contender.space, contender.example, entry.example),
        keys=seed_keys(jnp.asarray(seeds)),
        eval_every=entry.eval_every,
        lanes=plan.lanes,
        memory=plan.memory,
        on_updates=count,
        tests=tests,
    )
    with closing(trials.run(points, entry.steps, skip=skip)) as running:
        for chunk in running:
            file.add(
                task.name,
                contender.label,
                [
                    run
                    for number, curves in chunk.items()
                    for run in _runs(task, number, values[number], curves, seeds)
                ],
            )


def _runs(
    task: Task, number: int, values: Mapping[str, Any], curves: Curves, seeds: Sequence[int]
) -> list[OneRun]:
    """Return the runs of a trial, one for each seed."""
    loss, scores = (curves.validation[name] for name in ("loss", task.score))
    diverged = has_diverged([curves.train_loss, loss], scores, maximize=task.maximize)
    # Optimizers are compared by scores only; a run without one cannot take part.
    diverged |= ~np.isfinite(scores[:, -1])
    return [
        OneRun(
            trial=number,
            seed=seed,
            values=dict(values),
            steps=curves.steps,
            scores=scores[i],
            test={name: float(metric[i]) for name, metric in curves.test.items()},
            diverged=bool(diverged[i]),
        )
        for i, seed in enumerate(seeds)
    ]


def _all_results(plan: _Plan, file: BenchFile) -> Bench:
    """Return the outcomes of all optimizers of the file that have run on all tasks of the plan."""
    facts = file.facts("task")
    goals = {
        entry.task.name: _goal_of(entry.task.name, facts[entry.task.name]) for entry in plan.entries
    }
    spaces, outcomes, left_out = {}, {}, []
    for label, facts in file.facts("optimizer").items():
        space = {name: Range.from_json(values) for name, values in facts["space"]}
        options = {"trials": plan.trials if space else 1, "seeds": plan.seeds}
        of_label = {
            (task, label): outcome_of(
                goal, label, file.runs(task, label), file.seconds(task, label), **options
            )
            for task, goal in goals.items()
        }
        if None in of_label.values():
            left_out.append(label)
            continue
        spaces[label] = space
        outcomes |= of_label
    return Bench(goals, spaces, outcomes, plan.trials, plan.seeds, left_out)


def _checked_plan(
    tasks: Sequence[Task] | None,
    optimizers: Mapping[str, MakeOptimizer],
    trials: int,
    seeds: int | Sequence[int],
    steps: int | None,
    spaces: Mapping[str, Mapping[str, Range]] | None,
    lanes: int | None,
    memory: float | None,
) -> _Plan:
    _checks.check_integer(_WHO, "trials", trials, 1)
    fresh = checked_seeds(_WHO, seeds)
    if not isinstance(seeds, Sequence | np.ndarray):
        fresh = fresh + 1
    if TUNING_SEED in fresh:
        required = f"seeds must not hold {TUNING_SEED}, the seed of the trials"
        _checks.fail(_WHO, required, str(list(seeds)), "values would be chosen for that run")
    if lanes is not None:
        _checks.check_integer(_WHO, "lanes", lanes, 1)
    if memory is not None:
        memory = float(_checks.check_number(_WHO, "memory", memory, _checks.POSITIVE))
    contenders = _checked_contenders(optimizers, int(trials), spaces)
    entries = _checked_entries(tasks, steps)
    for contender in contenders:
        recipe = contender.recipe(entries[0].task)
        check_domains(recipe.who, recipe, contender.space, contender.example)
        for entry in entries:
            _check_fits(entry, contender)
    return _Plan(
        entries=entries,
        contenders=contenders,
        # Python integers, because NumPy integers cannot be stored as JSON.
        trials=int(trials),
        seeds=fresh.tolist(),
        lanes=int(lanes or default_lanes()),
        memory=memory,
    )


def _checked_entries(tasks: Sequence[Task] | None, steps: int | None) -> list[_Entry]:
    if tasks is None:
        tasks = bench_tasks()
    if not isinstance(tasks, Sequence) or isinstance(tasks, str) or not tasks:
        required = "tasks must be a sequence of tasks, or None for the built-in ones"
        _checks.fail(_WHO, required, repr(tasks), "pass [task]")
    if steps is not None:
        _checks.check_integer(_WHO, "steps", steps, 1)
    entries = []
    for task in tasks:
        source = check_task(_WHO, task)
        if task.name in {entry.task.name for entry in entries}:
            remedy = "dataclasses.replace(task, name=…) gives one another name"
            _checks.fail(_WHO, "tasks must have different names", f"{task.name!r} twice", remedy)
        entries.append(_entry(task, source, int(task.steps if steps is None else steps)))
    return entries


def _entry(task: Task, source: Batches | None, steps: int) -> _Entry:
    size = batch_size(task, source)
    eval_every = evaluation_interval(_WHO, task, steps, batch_size=size, most=EVALUATIONS)
    return _Entry(task, steps, eval_every, source and source.example)


def _checked_contenders(
    optimizers: Mapping[str, MakeOptimizer],
    trials: int,
    spaces: Mapping[str, Mapping[str, Range]] | None,
) -> list[_Contender]:
    if not isinstance(optimizers, Mapping) or not optimizers:
        required = "optimizers must map at least one label to a function of hyperparameters"
        _checks.fail(_WHO, required, repr(optimizers), 'pass {"adamw": optlab.adamw}')
    for label in optimizers:
        if not isinstance(label, str) or not label or label == REFERENCE:
            required = f"labels of optimizers must be texts other than {REFERENCE!r}"
            _checks.fail(_WHO, required, repr(label))
    return [
        _Contender(label, optimizers[label], space, trials if space else 1)
        for label, space in checked_spaces(_WHO, optimizers, spaces).items()
    ]


def _check_fits(entry: _Entry, contender: _Contender) -> None:
    """Require an optimizer that accepts the parameters of a task."""
    recipe = contender.recipe(entry.task)
    _, tx = recipe.make(contender.example)
    try:
        jax.eval_shape(tx.init, params_of(entry.task))
    except ValueError as error:
        raise ValueError(
            f"{recipe.who} must accept the parameters of task {entry.task.name!r}, got a refusal "
            f"({error}); leave one of them out"
        ) from error


def _digest(facts: Mapping[str, Any]) -> str:
    """Return a short text that other facts hardly ever have."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
