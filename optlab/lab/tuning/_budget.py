"""What a tuning procedure may cost, and what it has cost so far.

A budget is a wall time, or a number of updates over all runs. Each step may use what is left up to
its share of the whole; what a step leaves is for those after it.
"""

import math
import re
import time
from dataclasses import dataclass
from threading import Lock
from typing import Any, NoReturn

from optlab import _checks
from optlab.lab.tuning._texts import duration

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
"""Seconds of each unit of time."""

_FORM = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|m|h|updates|trials)\s*")


@dataclass(frozen=True)
class Budget:
    """What may be used.

    Attributes:
        amount: seconds, or updates over all runs.
        in_updates: whether it is a number of updates.
        text: the budget in words.
    """

    amount: float
    in_updates: bool
    text: str

    @classmethod
    def of(cls, who: str, budget: Any, steps: int) -> "Budget":
        """Read "10m", "90s", "2h", "20000 updates", "40 trials", or a number of minutes.

        A trial stands for a run of `steps` updates.

        Raises:
            ValueError: the budget is none of these, or is not above 0.
        """
        if isinstance(budget, str):
            form = _FORM.fullmatch(budget)
            if form is None:
                _fail(who, budget)
            number, unit = float(form[1]), form[2]
        else:
            if isinstance(budget, bool) or not isinstance(budget, int | float):
                _fail(who, budget)
            number, unit = float(budget), "m"
        if not 0 < number < math.inf:
            _fail(who, budget)
        if unit in UNITS:
            return cls(number * UNITS[unit], False, duration(number * UNITS[unit]))
        if unit == "trials":
            return cls(number * steps, True, f"{number:g} trials of {steps} updates")
        return cls(number, True, f"{number:g} updates")


def _fail(who: str, budget: Any) -> NoReturn:
    required = "budget must be a time, or a number of updates or trials, above 0"
    remedy = 'pass "10m", "90s", "2h", "20000 updates", "40 trials", or a number of minutes'
    _checks.fail(who, required, repr(budget), remedy)


class Meter:
    """What was used so far, over all calls of a procedure.

    Args:
        budget: what may be used.
        seconds, updates, runs: what earlier calls used.
    """

    def __init__(self, budget: Budget, seconds: float = 0.0, updates: int = 0, runs: int = 0):
        self.budget = budget
        self._began, self._before = time.perf_counter(), seconds
        self.updates, self.runs = updates, runs
        self._lock = Lock()

    @property
    def seconds(self) -> float:
        """The wall time of all calls."""
        return self._before + time.perf_counter() - self._began

    @property
    def used(self) -> float:
        """What was used, in the unit of the budget."""
        return float(self.updates) if self.budget.in_updates else self.seconds

    def count(self, updates: int, runs: int = 0) -> None:
        """Count updates and runs; from several threads."""
        with self._lock:
            self.updates += updates
            self.runs += runs

    def left(self, share: float = 1.0) -> float:
        """Return what is left of a share of the whole budget, in its unit; ≥ 0."""
        return max(0.0, share * self.budget.amount - self.used)
