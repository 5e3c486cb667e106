"""`Check`: the result of a check before training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The result of a check before training; it can be printed, and it is true if it passed.

    Attributes:
        passed: whether the check passed.
        evidence: the measured numbers, as a sentence.
        advice: the likely causes if it failed; "" if there are none to name.
    """

    passed: bool
    evidence: str
    advice: str = ""

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        text = f"{'Passed' if self.passed else 'Failed'}: {self.evidence}"
        return f"{text}\n  Suspect: {self.advice}" if self.advice else text
