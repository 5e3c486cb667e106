"""`Bench`: the result of a benchmark, to read, to draw, and to write."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab import _checks
from optlab._report import Spread, aligned, strict, versions
from optlab.lab.benchmarking._outcome import Goal, Outcome
from optlab.lab.benchmarking._profile import MOST, Profile, profile_of
from optlab.lab.benchmarking._ranks import fewest_tasks, told_apart
from optlab.lab.sweeps._space import Range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("updates", "seconds")
"""By what the cost of reaching a target is measured."""


@dataclass(frozen=True, eq=False)
class Bench:
    """The result of `bench`; it can be printed, and it has `plot`.

    Attributes:
        goals: task → its score and its target, in the order of the `tasks` argument.
        space: optimizer → name → range; all optimizers of the file that ran on all these tasks.
        outcomes: (task, optimizer) → what the optimizer did there.
        trials: the trials of an optimizer on a task.
        seeds: the seeds of the runs with the chosen values.
        left_out: optimizers of the file that have not run on all these tasks.
    """

    goals: Mapping[str, Goal]
    space: Mapping[str, Mapping[str, Range]]
    outcomes: Mapping[tuple[str, str], Outcome]
    trials: int
    seeds: Sequence[int]
    left_out: Sequence[str] = ()

    @property
    def optimizers(self) -> tuple[str, ...]:
        """The labels of the optimizers, in the order in which they came into the file."""
        return tuple(self.space)

    @property
    def machines(self) -> tuple[str, ...]:
        """The machines on which updates were timed, in words."""
        timed = (x.machine for x in self.outcomes.values() if x.values is not None)
        return tuple(sorted(set(timed)))

    def costs(self, measure: str = "updates") -> np.ndarray:
        """Return what it cost to reach the targets: (tasks, optimizers, seeds) float, ∞ for a miss.

        Args:
            measure: "updates", or "seconds", which are updates times the seconds of one.

        Raises:
            ValueError: there is no such measure, or the seconds are of several machines.
        """
        _checks.check_choice("Bench.costs", "measure", measure, MEASURES)
        rows = [[self.outcomes[task, o] for o in self.optimizers] for task in self.goals]
        costs = np.array([[outcome.updates for outcome in row] for row in rows])
        if measure == "updates":
            return costs
        if len(self.machines) > 1:
            required = "measure must be 'updates' where several machines took part"
            _checks.fail("Bench.costs", required, f"{measure!r} of {_list(self.machines)}")
        seconds = np.array([[outcome.seconds for outcome in row] for row in rows])
        return np.where(np.isfinite(costs), costs * seconds[..., None], np.inf)

    def profile(self, measure: str = "updates", *, taus: Sequence[float] | None = None) -> Profile:
        """Return the performance profiles: on which share of tasks an optimizer is near the best.

            ρ(τ) = the share of tasks on which the median over seeds of the cost of reaching the
                   target is at most τ times that of the best optimizer there

        A miss is infinite. Intervals hold 95% of 2,000 draws of the tasks and of the seeds.

        Args:
            measure: "updates", or "seconds", which are updates times the seconds of one.
            taus: factors in [1, 4], ascending; None for 61 of them.

        Raises:
            ValueError: there is no such measure, a factor is out of its range, or the seconds are
                of several machines.

        Reference: Dolan, Moré, Mathematical Programming 91 (2002).
        """
        factors = np.asarray(np.linspace(1, MOST, 61) if taus is None else taus, float)
        if factors.ndim != 1 or not len(factors) or not all((factors >= 1) & (factors <= MOST)):
            _checks.fail("Bench.profile", f"taus must be numbers in [1, {MOST:g}]", repr(taus))
        return profile_of(measure, self.optimizers, self.costs(measure), np.sort(factors))

    @property
    def ties(self) -> tuple[str, ...]:
        """What the data tell apart, and what they cannot: a sentence over all tasks, one for each.

        Over all tasks, the optimizer with the largest area under its profile is told from another
        by the ranks of all optimizers on the tasks (Nemenyi's test at 95%). If all were equal, the
        sentence would tell any apart in at most about 5% of benchmarks. On one task, optimizers are
        told apart by the seeds alone: if the ranges of their updates to the target do not overlap.
        """
        return (self._overall(), *map(self._on_task, self.goals))

    def table(self) -> str:
        """Return updates and seconds to the targets, and scores, as aligned text with notes."""
        areas = self.profile().areas
        order = list(areas)
        updates = {"updates to the target": order}
        seconds = {"seconds to the target": order}
        scores = {"score at the end": order}
        for task in self.goals:
            outcomes = [self.outcomes[task, optimizer] for optimizer in order]
            updates[task] = [_updates(outcome.median_updates) for outcome in outcomes]
            seconds[task] = [_seconds(outcome) for outcome in outcomes]
            scores[task] = [_score(outcome) for outcome in outcomes]
        reached = np.isfinite(np.median(self.costs(), axis=-1)).sum(axis=0)
        counts = dict(zip(self.optimizers, reached, strict=True))
        updates["reached"] = [f"{counts[optimizer]} of {len(self.goals)}" for optimizer in order]
        updates["area"] = [str(areas[optimizer]) for optimizer in order]
        tables = [updates, scores] if len(self.machines) > 1 else [updates, seconds, scores]
        parts = (*map(aligned, tables), self._notes())
        return "\n\n".join("\n".join(part) for part in parts)

    def __str__(self) -> str:
        title = (
            f"{len(self.optimizers)} optimizers on {len(self.goals)} tasks: {self.trials} trials "
            f"each, and {len(self.seeds)} seeds with the values that were chosen"
        )
        return "\n\n".join((title, self.table(), "\n".join(self.ties)))

    def plot(self, *, measure: str = "updates") -> "Figure":
        """Draw profiles, areas, and costs by task; see `optlab.plots.plot_bench`.

        Args:
            measure: as for `profile`.

        Raises:
            ModuleNotFoundError: if Matplotlib is not installed.
        """
        from optlab.plots import plot_bench

        return plot_bench(self, measure=measure)

    def to_csv(self) -> str:
        """Return a CSV line for each run that counts: what it was, what it reached, and when."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        names = ("validation", "test", "seconds_per_update", "values")
        lines.writerow(["task", "optimizer", "trial", "seed", "updates_to_target", *names])
        for (task, optimizer), outcome in self.outcomes.items():
            for i, seed in enumerate(self.seeds):
                row = [task, optimizer, outcome.trial, seed]
                row += [outcome.updates[i], outcome.validation[i], outcome.test[i]]
                lines.writerow([*row, outcome.seconds, json.dumps(strict(outcome.values))])
        return text.getvalue()

    def to_json(self, **extra: Any) -> str:
        """Return everything as strict JSON; a number that is not finite, as of a miss, is null.

        Args:
            extra: further entries, such as the options of the call.
        """
        profile = self.profile()
        areas = {label: area._asdict() for label, area in profile.areas.items()}
        document = {
            "goals": [asdict(goal) for goal in self.goals.values()],
            "space": {
                label: {name: values.to_json() for name, values in space.items()}
                for label, space in self.space.items()
            },
            "outcomes": [vars(outcome) for outcome in self.outcomes.values()],
            "trials": self.trials,
            "seeds": list(self.seeds),
            "left_out": list(self.left_out),
            "profile": vars(profile) | {"areas": areas},
            "ties": self.ties,
            "versions": versions("optlab", "jax", "jaxlib", "optax", "flax", "numpy"),
        }
        return json.dumps(strict({**extra, **document}), allow_nan=False)

    def _overall(self) -> str:
        costs, areas = self.costs(), self.profile().areas
        leader, *others = areas
        lead = f"Over all tasks {leader} has the largest area under its profile, {areas[leader]}"
        if areas[leader].value == 0:
            return "No optimizer reaches the target of any task."
        if not others:
            return f"{lead}; there is no other optimizer."
        medians = np.median(costs, axis=-1)
        worse = told_apart(medians, self.optimizers.index(leader))
        told = [label for label in others if self.optimizers.index(label) in worse]
        tied = [label for label in others if label not in told]
        if not tied:
            return f"{lead}, and the data tell it from all others."
        needed = fewest_tasks(len(self.optimizers))
        if len(costs) < needed:
            return (
                f"{lead}. {len(costs)} tasks are too few to tell {len(self.optimizers)} optimizers "
                f"apart by their ranks, however far apart they are; that takes {needed}."
            )
        said = f"{lead}. The data cannot tell it from {_list(tied)}"
        return f"{said}; they tell it from {_list(told)}." if told else f"{said}."

    def _on_task(self, task: str) -> str:
        outcomes = [self.outcomes[task, optimizer] for optimizer in self.optimizers]
        outcomes = [x for x in outcomes if math.isfinite(x.median_updates)]
        if not outcomes:
            return f"{task}: no optimizer reaches the target."
        first, *others = sorted(outcomes, key=lambda outcome: outcome.median_updates)
        lead = f"{task}: {first.optimizer} is first, with {first.median_updates:g} updates"
        if len(self.seeds) == 1:
            return f"{lead}; with one seed there is no telling whether that is chance."
        tied = [x for x in others if x.updates.min() <= first.updates.max()]
        if not tied:
            return f"{lead}, and no other comes within the range over its seeds."
        names = _list(f"{x.optimizer} ({x.median_updates:g})" for x in tied)
        return f"{lead}; the seeds cannot tell it from {names}."

    def _notes(self) -> Iterator[str]:
        for goal in self.goals.values():
            side = "at least" if goal.maximize else "at most"
            what = f"{goal.split} {goal.score}" if goal.split else goal.score
            rule = " (found by the rule, as the task sets none)" if goal.by_rule else ""
            yield f"{goal.task}: {what} {side} {goal.target:.3g}{rule}; {goal.steps} updates."
        yield f"updates: the median over {len(self.seeds)} seeds; never: half of them or more miss."
        if len(self.machines) > 1:
            yield f"No seconds are shown, as they are of several machines: {_list(self.machines)}."
        else:
            yield "seconds: updates times the time of one, measured alone; they vary with machines."
        yield "score: on test where there is such a split, ± one standard deviation over seeds."
        yield "area: of the profile over τ in [1, 4], 1 at best, with its 95% interval."
        seeds = len(self.seeds)
        if seeds > 1:
            chance = 2 / math.comb(2 * seeds, seeds)
            yield f"Ranges of two equal optimizers on a task lie apart in {chance:.2g} of cases."
        if self.left_out:
            yield f"Not on all of these tasks yet, and left out: {_list(self.left_out)}."


def _updates(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else "never"


def _seconds(outcome: Outcome) -> str:
    seconds = outcome.median_updates * outcome.seconds
    return f"{seconds:.2g}" if math.isfinite(seconds) else "never"


def _score(outcome: Outcome) -> str:
    values = outcome.validation if np.isnan(outcome.test).all() else outcome.test
    sound = values[~np.isnan(values)]
    return str(Spread.of(sound)) if len(sound) else "diverged"


def _list(names: Any) -> str:
    """Join names: "a", "a and b", "a, b and c"."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
