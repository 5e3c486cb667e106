"""Numbers that are allowed, and the one form of error; nothing here needs JAX.

The command line refuses wrong arguments with these before it loads JAX, which takes seconds.
"""

import math
from dataclasses import dataclass
from typing import NoReturn, SupportsFloat


@dataclass(frozen=True)
class Domain:
    """The set of numbers that a hyperparameter may take: an interval of the real line.

    Attributes:
        description: what stands behind "must be" in an error.
        low: the least number, None for no bound.
        high: the largest number, None for no bound.
        open_low: whether `low` itself is outside.
        open_high: whether `high` itself is outside.
        finite: whether infinities and NaN are outside. NaN is also outside of any bound.
    """

    description: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    finite: bool = True

    def contains(self, number: SupportsFloat) -> bool:
        """Return whether a concrete real number lies in the interval."""
        number = float(number)
        if self.finite and not math.isfinite(number):
            return False
        if self.low is not None and not (
            number > self.low if self.open_low else number >= self.low
        ):
            return False
        return self.high is None or (number < self.high if self.open_high else number <= self.high)


ANY = Domain("any number", finite=False)
FINITE = Domain("finite")
NONNEGATIVE = Domain("finite and >= 0", 0)
NONNEGATIVE_OR_INFINITE = Domain("a number >= 0", 0, finite=False)
POSITIVE = Domain("finite and > 0", 0, open_low=True)
DECAY = Domain("in [0, 1)", 0, 1, open_high=True)
UNIT = Domain("in [0, 1]", 0, 1)
INSIDE = Domain("in (0, 1)", 0, 1, open_low=True, open_high=True)
SHARE = Domain("in (0, 1]", 0, 1, open_low=True)
AT_LEAST_ONE = Domain("finite and >= 1", 1)
ABOVE_ONE = Domain("finite and > 1", 1, open_low=True)


def fail(who: str, required: str, got: str, remedy: str = "") -> NoReturn:
    """Raise the ValueError `who: required, got …; remedy`."""
    raise ValueError(f"{who}: {required}, got {got}" + (f"; {remedy}" if remedy else ""))
