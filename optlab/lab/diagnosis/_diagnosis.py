"""`diagnose`: which patterns the curves of a run show, on what evidence, and what to try.

The rules are in `_rate_patterns` and `_fit_patterns`; the statistics they use are in `_curves`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from optlab import _checks
from optlab.lab.diagnosis._curves import Curves
from optlab.lab.diagnosis._findings import (
    DECAYED_TOO_EARLY,
    DIVERGENCE,
    FLAT_START,
    NO_PROGRESS,
    OVERFITTING,
    RATE_TOO_HIGH,
    SPIKE,
    STILL_IMPROVING,
    UPDATES_TOO_SMALL,
    Finding,
)
from optlab.lab.diagnosis._fit_patterns import (
    flat_start,
    high_start,
    no_progress,
    overfitting,
    underfitting,
)
from optlab.lab.diagnosis._rate_patterns import (
    decayed_too_early,
    divergence,
    not_finite,
    plateau,
    rate_too_high,
    spike,
    still_improving,
    updates_too_small,
)
from optlab.lab.training._history import History

LEAST_UPDATES = 20
"""In a run of fewer updates only divergence is diagnosed."""

_BROKEN = {DIVERGENCE, RATE_TOO_HIGH}
_UNMOVED = {UPDATES_TOO_SMALL, NO_PROGRESS}

RULES: Mapping[Callable[[Curves], Finding | None], set[str]] = {
    divergence: set(),
    not_finite: {DIVERGENCE},
    decayed_too_early: {DIVERGENCE},
    spike: {DIVERGENCE},
    rate_too_high: {DIVERGENCE, DECAYED_TOO_EARLY, SPIKE},
    high_start: set(),
    flat_start: _BROKEN,
    updates_too_small: _BROKEN | {DECAYED_TOO_EARLY},
    no_progress: _BROKEN | {UPDATES_TOO_SMALL},
    overfitting: _BROKEN | {NO_PROGRESS},
    still_improving: _BROKEN | {NO_PROGRESS, DECAYED_TOO_EARLY, OVERFITTING},
    plateau: _BROKEN | _UNMOVED | {DECAYED_TOO_EARLY, FLAT_START, STILL_IMPROVING, OVERFITTING},
    underfitting: _BROKEN | _UNMOVED | {DECAYED_TOO_EARLY, OVERFITTING},
}
"""Rule → the patterns that already explain its finding; the most important rule first."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`; it can be printed, and it is true if there is any finding.

    Attributes:
        findings: the most important first; empty if nothing stands out.
    """

    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return bool(self.findings)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.findings)) or "Nothing stands out."


def diagnose(history: History, *, baseline: float | None = None) -> Diagnosis:
    """Name the patterns that the curves of a run show; nothing if they show none.

    The patterns are: divergence, single losses that are not finite, a spike, too high a rate, a
    start that is flat or far too high, updates too small, no progress, a decay that came too early,
    overfitting, a run that was still improving, a plateau at a constant rate, and underfitting. One
    loss that is not finite is no divergence if the run goes on after it, as with `skip_nonfinite`;
    all other rules read past it. A pattern is only reported if the
    history holds the data for it: a gap between training and validation, for example, needs metrics
    on both. It helps to record metrics on training data (the task has a split "train"), some 20
    evaluations with one before the first update, the rate, and the values of `monitor`. `train`
    records all of these. In a run of fewer than 20 updates only divergence is reported.

    The rules measure shares of the loss's own fall and compare them with its own noise, so that
    the unit of the loss does not matter. Whether a final loss is poor is judged by comparison with
    the loss before training, or with `baseline`.

    Args:
        history: the curves of the run, from `train` or from your own loop.
        baseline: the loss of the best guess without inputs, > 0: log C for C equally frequent
            classes, or the variance of the targets for a mean square. With it, underfitting and a
            start that is too high are recognized even if the loss before training is no good
            measure: a run underfits that ends above 0.4 of it. None to use the loss and the
            accuracy before training; a run then underfits only above 0.8 of that loss, because
            nobody knows how much can be learned.

    Raises:
        ValueError: `history` is not a `History`, or `baseline` is not a number above 0.

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
    patterns: set[str] = set()
    for rule, explained_by in RULES.items():
        if len(c.history.loss) < LEAST_UPDATES and rule is not divergence:
            return
        if patterns.isdisjoint(explained_by) and (finding := rule(c)):
            patterns.add(finding.pattern)
            yield finding
