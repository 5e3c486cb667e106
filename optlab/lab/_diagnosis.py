"""`diagnose`: which patterns the curves of a run show, on what evidence, and what to try.

The rules are in `_rate_patterns` and `_fit_patterns`, their statistics in `_curves`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from optlab import _checks
from optlab.lab._curves import Curves
from optlab.lab._findings import (
    DECAYED_TOO_EARLY,
    DIVERGENCE,
    FLAT_START,
    NO_PROGRESS,
    OVERFITTING,
    RATE_TOO_HIGH,
    STILL_IMPROVING,
    UPDATES_TOO_SMALL,
    Finding,
)
from optlab.lab._fit_patterns import (
    flat_start,
    high_start,
    no_progress,
    overfitting,
    underfitting,
)
from optlab.lab._history import History
from optlab.lab._rate_patterns import (
    decayed_too_early,
    divergence,
    plateau,
    rate_too_high,
    still_improving,
    updates_too_small,
)

LEAST_UPDATES = 20
"""Fewer have no shape; of them only divergence is told."""

_BROKEN = {DIVERGENCE, RATE_TOO_HIGH}
_UNMOVED = {UPDATES_TOO_SMALL, NO_PROGRESS}

RULES: Mapping[Callable[[Curves], Finding | None], set[str]] = {
    divergence: set(),
    decayed_too_early: {DIVERGENCE},
    rate_too_high: {DIVERGENCE},
    high_start: set(),
    flat_start: _BROKEN,
    updates_too_small: _BROKEN,
    no_progress: _BROKEN | {UPDATES_TOO_SMALL},
    overfitting: _BROKEN | {NO_PROGRESS},
    still_improving: _BROKEN | {NO_PROGRESS, DECAYED_TOO_EARLY, OVERFITTING},
    plateau: _BROKEN | _UNMOVED | {DECAYED_TOO_EARLY, FLAT_START, STILL_IMPROVING},
    underfitting: _BROKEN | _UNMOVED | {DECAYED_TOO_EARLY, OVERFITTING},
}
"""Rule → the patterns that explain what it would say; the most important first."""


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; `print` it. True where there is something to say.

    Attributes:
        findings: most important first; empty where nothing stands out.
    """

    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return bool(self.findings)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.findings)) or "Nothing stands out."


def diagnose(history: History, *, baseline: float | None = None) -> Diagnosis:
    """Name the patterns that the curves of a run show, and say nothing where there are none.

    Divergence, too high a rate, a start that is flat or far too high, updates too small, no
    progress, a decay that came too early, overfitting, a run that was still improving, a plateau
    at a constant rate, and underfitting. Of what is missing in the history nothing is said: of a
    gap, say, without metrics on training data. It helps to record these (the task has a split
    "train"), some 20 evaluations with one before the first update, the rate, and what `monitor`
    sees; `train` does all of it. In fewer than 20 updates only divergence is seen.

    The rules look at shares of the loss's own fall and at its own noise, so that its unit does not
    matter. What is poor has no such measure: by default it is judged by the loss before training.

    Args:
        history: of the run; from `train`, or your own.
        baseline: the loss of the best guess without inputs: log C for C classes alike, the variance
            of the targets for a mean square. With it, underfitting and a start that is too high are
            seen where the loss before training says little; None to go by this, and by the accuracy
            before training.

    Raises:
        ValueError: `history` is no `History`, or `baseline` not a number above 0.

    Example:
        >>> import numpy as np
        >>> updates = np.arange(300)
        >>> loss = 0.2 + 2 * np.exp(-updates / 300)
        >>> [finding.pattern for finding in diagnose(History(loss)).findings]
        ['still improving']
        >>> print(diagnose(History(0.2 + 2 * np.exp(-updates / 30))))
        Nothing stands out.
    """
    if not isinstance(history, History):
        got, remedy = type(history).__name__, "pass run.history, or a History of your own curves"
        _checks.fail("diagnose", "history must be a History", got, remedy)
    if baseline is not None:
        _checks.check_number("diagnose", "baseline", baseline, _checks.POSITIVE)
        baseline = float(baseline)
    return Diagnosis(tuple(_find(Curves(history, baseline))))


def _find(c: Curves) -> Iterator[Finding]:
    named: set[str] = set()
    for rule, explained_by in RULES.items():
        if len(c.history.loss) < LEAST_UPDATES and rule is not divergence:
            return
        if named.isdisjoint(explained_by) and (finding := rule(c)):
            named.add(finding.pattern)
            yield finding
