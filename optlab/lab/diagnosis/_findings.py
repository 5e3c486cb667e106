"""`Finding`: one result of `diagnose`, and the names of the patterns."""

from dataclasses import dataclass

from optlab._report import number
from optlab.lab.diagnosis._curves import Curves

DIVERGENCE = "divergence"
NOT_FINITE = "losses that are not finite"
RATE_TOO_HIGH = "rate too high"
SPIKE = "spike"
FLAT_START = "flat, then a sharp drop"
HIGH_START = "starts far too high"
UPDATES_TOO_SMALL = "updates too small"
NO_PROGRESS = "no progress"
DECAYED_TOO_EARLY = "decayed too early"
OVERFITTING = "overfitting"
STILL_IMPROVING = "still improving"
PLATEAU = "plateau at a constant rate"
UNDERFITTING = "underfitting"


@dataclass(frozen=True)
class Finding:
    """A pattern that the curves show.

    Attributes:
        pattern: the name of the pattern, one of the constants of this file, such as "overfitting".
        evidence: the numbers of this run that show the pattern.
        advice: what to try.
    """

    pattern: str
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.pattern.capitalize()}: {self.evidence}\n  Try: {self.advice}"


def at_rate(c: Curves, update: int) -> str:
    rate = c.rate(update)
    return "" if rate is None else f", at the rate {number(rate)}"
