"""`Outcome`: what an optimizer did on a task; the choice of its values, and its runs with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optlab.lab.benchmarking._file import OneRun, Timed
from optlab.lab.benchmarking._targets import updates_to

TUNING_SEED = 0
"""The seed of all trials, which no run that counts may have."""


@dataclass(frozen=True)
class Goal:
    """What a task is, for a benchmark.

    Attributes:
        task: its name.
        split: "validation", or None for an objective without data.
        score: the metric by which runs are judged.
        maximize: whether a higher score is better.
        target: the score to reach.
        by_rule: whether the target was found by the rule for tasks that set none.
        steps: updates per run.
        eval_every: updates between evaluations, which is the resolution of updates to the target.
    """

    task: str
    split: str | None
    score: str
    maximize: bool
    target: float
    by_rule: bool
    steps: int
    eval_every: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an optimizer did on a task.

    Attributes:
        task: the task's name.
        optimizer: the optimizer's label.
        values: the chosen values, name → value; None if every trial diverged, and then the arrays
            below say that every run missed the target.
        trial: the number of the chosen trial; None if there is none.
        updates: (seeds,) float, updates to the target; ∞ for a miss.
        validation: (seeds,) float, the score at the end; NaN if the run diverged.
        test: (seeds,) float, the same on the test split; NaN also if there is none.
        seconds: seconds per update; NaN if there are no values.
        machine: the machine of `seconds`, in words.
        num_trials: the number of trials.
        num_reached: how many of them met the target.
        num_diverged: how many of them diverged.
    """

    task: str
    optimizer: str
    values: Mapping[str, Any] | None
    trial: int | None
    updates: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    seconds: float
    machine: str
    num_trials: int
    num_reached: int
    num_diverged: int

    @property
    def median_updates(self) -> float:
        """The median of `updates`; ∞ if half of the runs or more missed the target."""
        return float(np.median(self.updates))


def updates_of(goal: Goal, run: OneRun) -> float:
    """Return the updates in which a run met the target; ∞ for a miss, or if it diverged."""
    if run.diverged:
        return np.inf
    return updates_to(goal.target, run.steps, run.scores, maximize=goal.maximize)


def chosen(goal: Goal, tuned: Sequence[OneRun]) -> OneRun | None:
    """Return the trial whose values are chosen, on validation; None if every trial diverged.

    It is the one that met the target in the fewest updates; of equal ones, and if none met it, the
    one with the best score at the end, and then the first.
    """
    sign = -1 if goal.maximize else 1
    sound = [run for run in tuned if not run.diverged]
    order = [(updates_of(goal, run), sign * run.scores[-1], run.trial) for run in sound]
    return sound[order.index(min(order))] if sound else None


def outcome_of(
    goal: Goal,
    optimizer: str,
    runs: Sequence[OneRun],
    timed: Timed | None,
    *,
    trials: int,
    seeds: Sequence[int],
) -> Outcome | None:
    """Return the outcome; None if some of its runs have not ended.

    Args:
        goal: what the task is.
        optimizer: the optimizer's label.
        runs: its runs on the task, trials and others.
        timed: the time of an update; None if it was not measured.
        trials: the number of trials.
        seeds: the seeds of the runs that count.
    """
    tuned = [run for run in runs if run.seed == TUNING_SEED]
    if len(tuned) < trials:
        return None
    choice = chosen(goal, tuned)
    counts = {
        "num_trials": trials,
        "num_reached": sum(updates_of(goal, run) < np.inf for run in tuned),
        "num_diverged": sum(run.diverged for run in tuned),
    }
    if choice is None:
        nan = np.full(len(seeds), np.nan)
        never = np.full(len(seeds), np.inf)
        return Outcome(goal.task, optimizer, None, None, never, nan, nan, np.nan, "", **counts)
    by_seed = {run.seed: run for run in runs if run.trial == choice.trial}
    if timed is None or not by_seed.keys() >= set(seeds):
        return None
    final = [by_seed[seed] for seed in seeds]
    score = goal.score
    return Outcome(
        goal.task,
        optimizer,
        choice.values,
        choice.trial,
        updates=np.array([updates_of(goal, run) for run in final]),
        validation=np.array([np.nan if r.diverged else r.scores[-1] for r in final], float),
        test=np.array([np.nan if r.diverged else r.test.get(score, np.nan) for r in final], float),
        seconds=timed.seconds,
        machine=timed.machine,
        **counts,
    )
