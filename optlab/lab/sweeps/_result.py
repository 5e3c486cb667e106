"""`Sweep`: the result of a search over hyperparameters, to read, to plot, and to continue from."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optlab import _checks
from optlab._report import Spread, aligned, digits_of, number, strict, versions
from optlab.lab.sweeps._importance import Importance, importances
from optlab.lab.sweeps._space import Categorical, Range
from optlab.lab.sweeps._trial import DIVERGED, STOPPED, Trial, rank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 10
"""The number of trials that a table shows by default."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """The result of `sweep`; it can be printed, plotted, and searched further in `narrowed()`.

    Attributes:
        task: the task's name.
        space: name → range.
        search: "random", "halton", "grid" or "bayes".
        split: "validation", or None for an objective without data.
        score: the metric by which trials are judged.
        maximize: whether a higher score is better.
        trials: all trials that ended, by number.
        seconds: wall time of this call, including compilation.
        missing: the number of trials still running in other processes that share the storage.
    """

    task: str
    space: Mapping[str, Range]
    search: str
    split: str | None
    score: str
    maximize: bool
    trials: Sequence[Trial]
    seconds: float
    missing: int = 0

    def ranked(self) -> list[Trial]:
        """Return the trials, the best first.

        The order is by the number of updates that `halving` left them, then by the score, then by
        the loss. Trials whose score is not defined come after those, by the loss; and diverged
        ones last.
        """
        return rank(self.trials, maximize=self.maximize)

    @property
    def best(self) -> Trial:
        """The best trial.

        Raises:
            ValueError: there is no trial, or every trial diverged.
        """
        self._check_any_converged("best")
        return self.ranked()[0]

    def narrowed(self, best: int | None = None) -> dict[str, Range]:
        """Return a smaller space around the best trials, for a finer search.

        Each range is cut to the part that holds the best trials, with a margin that depends on the
        number of trials (see `Range.around`). A range is not cut at an edge that its best values
        reach.

        Args:
            best: the number of best trials to use, ≥ 1; None for a tenth of all, and at least 3.

        Raises:
            ValueError: every trial diverged.
        """
        if best is None:
            best = max(3, math.ceil(len(self.trials) / 10))
        _checks.check_integer("Sweep.narrowed", "best", best, 1)
        self._check_any_converged("narrowed")
        good = self.ranked()[:best]
        good = [t for t in good if t.has_score] or [t for t in good if not t.diverged]
        numbers = [r for r in self.space.values() if not isinstance(r, Categorical)]
        share = len(self.trials) ** (-1 / max(1, len(numbers)))
        return {
            name: values.around([trial.values[name] for trial in good], share)
            for name, values in self.space.items()
        }

    def _check_any(self, what: str) -> None:
        if not self.trials:
            remedy = "call sweep again once the others' trials have ended"
            _checks.fail(f"Sweep.{what}", "there must be a trial", "none", remedy)

    def _check_any_converged(self, what: str) -> None:
        self._check_any(what)
        if all(trial.status == DIVERGED for trial in self.trials):
            required, got = "there must be a trial that did not diverge", "none"
            _checks.fail(f"Sweep.{what}", required, got, "try lower rates")

    def title(self, metric: str) -> str:
        """Name a metric as reports and plots do: "validation loss", or "loss" without data."""
        return f"{self.split} {metric}" if self.split else metric

    def table(self, limit: int | None = SHOWN) -> str:
        """Return the best trials as aligned text, followed by notes.

        Args:
            limit: the number of trials to show, ≥ 1; None for all.

        Raises:
            ValueError: `limit` is out of its range.
        """
        if limit is not None:
            _checks.check_integer("Sweep.table", "limit", limit, 1)
        best_trials = self.ranked()[:limit]
        columns = {"trial": [str(trial.number) for trial in best_trials]}
        columns |= {name: [_value(t.values[name]) for t in best_trials] for name in self.space}
        digits = digits_of(trial.score for trial in best_trials)
        columns[self.title(self.score)] = [self._score(trial, digits) for trial in best_trials]
        if self.score != "loss":
            digits = digits_of(trial.loss for trial in best_trials)
            columns["loss"] = [number(trial.loss, digits) for trial in best_trials]
        columns["updates"] = [str(trial.num_updates) for trial in best_trials]
        if any(trial.causes for trial in best_trials):
            columns["best at"] = [_updates(trial.taken) for trial in best_trials]
            columns["ended by"] = [_causes(trial) for trial in best_trials]
        columns["status"] = [trial.status for trial in best_trials]
        left_out = len(self.trials) - len(best_trials)
        notes = [f"{left_out} more trials are not shown."] if left_out else []
        notes += self._notes()
        return "\n\n".join(filter(None, ("\n".join(aligned(columns)), "\n".join(notes))))

    def __str__(self) -> str:
        return f"{self.task}: {self.search} search, {len(self.trials)} trials\n\n{self.table()}"

    def importances(self) -> dict[str, Importance]:
        """Return how much each hyperparameter matters, name → (share, sure).

        The share, in [0, 1], is that of the variance of the trials' ranks which a parabola in this
        hyperparameter alone explains, or a mean for each choice, adjusted for the number of
        coefficients. What only matters in combination with others does not show. `sure` says that
        random ranks hardly ever explain as much; with few trials nothing is sure.
        """
        order = self.ranked()
        # Trials without a score share a rank, those that diverged another.
        keys = [(-int(t.steps[-1]), t.score) if t.has_score else t.diverged for t in order]
        places: dict[Any, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        ranks = np.array([np.mean(places[key]) for key in keys])
        return importances(self.space, [trial.values for trial in order], ranks)

    def plot(self) -> "Figure":
        """Draw the trials; see `optlab.plots.plot_sweep`.

        Raises:
            ModuleNotFoundError: if Matplotlib is not installed.
            ValueError: there is no trial.
        """
        self._check_any("plot")
        from optlab.plots import plot_sweep

        return plot_sweep(self)

    def to_csv(self) -> str:
        """Return a CSV line per trial, the best first: number, status, scores and values.

        With early stopping there are also the updates of the best evaluation, and what ended it.
        """
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        stops = any(trial.causes for trial in self.trials)
        own = ["best_at", "ended_by"] if stops else []
        head = ["trial", "status", "updates", *own, self.score, "validation_loss"]
        lines.writerow([*head, *self.space])
        for trial in self.ranked():
            own = [_updates(trial.taken), _causes(trial)] if stops else []
            numbers = [trial.number, trial.status, trial.num_updates, *own, trial.score, trial.loss]
            lines.writerow([*numbers, *(trial.values[name] for name in self.space)])
        return text.getvalue()

    def to_json(self, **extra: Any) -> str:
        """Return everything as strict JSON; a number that is not finite is null.

        Args:
            extra: further entries, such as the options of the call.
        """
        document = vars(self) | {
            "space": {name: values.to_json() for name, values in self.space.items()},
            "trials": [vars(trial) for trial in self.trials],
            "importances": {name: x._asdict() for name, x in self.importances().items()},
            "ranking": [trial.number for trial in self.ranked()],
            "versions": versions("optlab", "jax", "jaxlib", "optax", "flax", "numpy", "optuna"),
        }
        return json.dumps(strict({**extra, **document}), allow_nan=False)

    def _score(self, trial: Trial, digits: int) -> str:
        return Spread.of(trial.final(self.score)).text(digits) if trial.has_score else "–"

    def _notes(self) -> Iterator[str]:
        diverged = sum(trial.status == DIVERGED for trial in self.trials)
        stopped = sum(trial.status == STOPPED for trial in self.trials)
        if self.missing:
            yield f"{self.missing} more trials still run elsewhere."
        if stopped:
            yield f"{stopped} of {len(self.trials)} trials were stopped early for better ones."
        causes = Counter(cause for trial in self.trials for cause in trial.causes if cause)
        if causes:
            runs = sum(len(trial.causes) for trial in self.trials)
            counts = ", ".join(f"{count} by {cause}" for cause, count in causes.most_common())
            yield f"Early stopping ended {causes.total()} of {runs} runs: {counts}."
        if diverged:
            yield f"{diverged} of {len(self.trials)} trials diverged."
        unscored = sum(not (trial.has_score or trial.diverged) for trial in self.trials)
        if unscored:
            yield (
                f"{unscored} of {len(self.trials)} trials have no score, as {self.score} is not "
                "defined at their end; they are ranked by the loss."
            )
        if not any(trial.has_score for trial in self.trials):
            return
        shares = {name: x for name, x in self.importances().items() if not math.isnan(x.share)}
        if shares:
            texts = (f"{n} {x.share:.2f}{'' if x.sure else ' (unsure)'}" for n, x in shares.items())
            yield f"Share of the ranks explained by each alone: {', '.join(texts)}."
        for name, values in self.space.items():
            if edge := _edge(values, self.best.values[name], len(self.trials)):
                yield (
                    f"{name}: the best lies at the {edge} end of its range; "
                    "a wider one may hold a better."
                )


def _edge(values: Range, value: Any, trials: int) -> str | None:
    """Return the end of its range to which a value is closer than trials are to one another."""
    if isinstance(values, Categorical) or trials == 1:
        return None
    position, reach = values.position(value), 0.5 / trials
    if position <= reach or value == values.low:
        return "lower"
    return "upper" if position >= 1 - reach or value == values.high else None


def _updates(updates: np.ndarray | None) -> str:
    """Write the updates of the runs of a trial: one number, or the least and the most."""
    if updates is None:
        return "–"
    ends = sorted({int(np.min(updates)), int(np.max(updates))})
    return "–".join(map(str, ends))


def _causes(trial: Trial) -> str:
    return ", ".join(sorted({cause for cause in trial.causes if cause})) or "–"


def _value(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return number(value)
    return str(value)
