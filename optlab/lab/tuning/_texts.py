"""The texts that both reports use: numbers, durations, sentences, and the rows of all trials."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from optlab.lab.tuning import _result
from optlab.lab.tuning._result import CONFIDENCE, TunedTrial, Tuning, Winner
from optlab.lab.tuning._result import digits as interval_digits

SYMBOLS = {
    _result.PASSED: "✓",
    _result.WARNING: "!",
    _result.FAILED: "✕",
    _result.SKIPPED: "–",
    _result.RUNNING: "▸",
    _result.WAITING: "·",
}
"""What stands before a verdict, for those who do not see colours."""

STAGES = ("finals", "refinement", "coarse search")
"""The stages of trials, the last one first."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def escaped(text: Any) -> str:
    """Return text that is safe in HTML, between tags and in attributes with double quotes."""
    # A file name may have bytes that are no text, which cannot be written as UTF-8.
    return html.escape(str(text).encode("utf-8", "replace").decode("utf-8"))


def number(value: Any) -> str:
    """Write a value: numbers with at most four digits, all else as it is."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return "–" if value is None else str(value)
    if isinstance(value, int | np.integer):
        return f"{int(value):,}" if abs(int(value)) >= 10_000 else str(int(value))
    value = float(value)
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.4g}"


def power(value: float) -> str:
    """Write a number as a power of ten.

    Example:
        >>> power(1e-5), power(2.5e6), power(0.0)
        ('10⁻⁵', '2.5·10⁶', '0')
    """
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.10e}".split("e")
    factor = f"{float(mantissa):.6g}"
    ten = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return {"1": ten, "-1": f"-{ten}"}.get(factor, f"{factor}·{ten}")


def shortened(text: str, most: int) -> str:
    """Return text of at most `most` characters, with an ellipsis in place of its end."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def shortened_inside(text: str, most: int) -> str:
    """Return text of at most `most` characters, with an ellipsis in place of its middle.

    Example:
        >>> shortened_inside("adamw, cosine, rate 0.01", 16)
        'adamw, c…te 0.01'
    """
    end = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - end]}…{text[-end:]}"


def duration(seconds: float) -> str:
    """Write seconds in units that people use.

    Example:
        >>> [duration(seconds) for seconds in (0.042, 7.31, 75, 3600, 100_000)]
        ['0.04 s', '7.3 s', '1 min 15 s', '1 h', '27 h 47 min']
        >>> duration(0), duration(14.2)
        ('0 s', '14 s')
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 59.5:
        decimals = 0 if seconds >= 9.95 or seconds == 0 else 1 if seconds >= 0.995 else 2
        return f"{seconds:.{decimals}f} s"
    seconds = round(seconds)
    units = ("min", seconds // 60, "s", seconds % 60)
    if seconds >= 3600:
        minutes = round(seconds / 60)
        units = ("h", minutes // 60, "min", minutes % 60)
    large, whole, small, rest = units
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


def count(number: int, one: str) -> str:
    """Write how many there are of something.

    Example:
        >>> count(1, "run"), count(12_000, "update")
        ('1 run', '12,000 updates')
    """
    return f"{number:,} {one}" + ("" if number == 1 else "s")


def is_number(text: str) -> bool:
    """Return whether text is a number, as tables of results write it."""
    return math.isfinite(as_number(text))


def as_number(text: str) -> float:
    """Return the number that text is; NaN if it is none.

    Example:
        >>> as_number("12,000"), as_number("5%"), as_number("relu")
        (12000.0, 5.0, nan)
    """
    try:
        return float(text.replace(",", "").removesuffix("%"))
    except ValueError:
        return math.nan


def clock(time: datetime) -> str:
    """Write a date and a time."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z").strip()


def judged(tuning: Tuning) -> str:
    """Say by what runs are judged, and what the procedure may cost."""
    better = "higher" if tuning.maximize else "lower"
    return f"Judged by {tuning.score} ({better} is better). Budget: {tuning.budget}."


def running(tuning: Tuning, written: datetime | None) -> str:
    """Say of a procedure that has not ended where it was when the report was written."""
    text = "The procedure had not ended when this was written"
    if written is not None:
        text += f", {clock(written)}"
    for i, step in enumerate(tuning.steps, 1):
        if step.verdict == _result.RUNNING:
            text += f": it was at step {i} of {len(tuning.steps)}, {step.name}"
    return f"{text}. If it was stopped since, the same call goes on from there."


def length(winner: Winner) -> str:
    """Say how many updates the winner takes."""
    whole = f" of the schedule's {winner.steps:,}" if winner.stop < winner.steps else ""
    return f"{winner.stop:,}{whole}"


def averaged(tuning: Tuning, winner: Winner) -> str:
    """Say what the winner's score is."""
    seeds = len(winner.score.values)
    of_seeds = f"the mean over {seeds} seeds" if seeds > 1 else "of one seed"
    return f"{tuning.score}, {of_seeds}"


def winner_title(winner: Winner) -> str:
    """Name a winner."""
    return f"{winner.optimizer}, {winner.schedule} schedule"


def sureness(tuning: Tuning, winner: Winner) -> Iterator[str]:
    """Say how sure the winner's score and its rank are."""
    score = winner.score
    if len(score.values) > 1:
        digits = interval_digits(score.high - score.low)
        yield (
            f"The true mean of the {tuning.score} lies between {score.low:.{digits}f} "
            f"and {score.high:.{digits}f} in {CONFIDENCE:.0%} of such cases. The seeds have "
            f"{', '.join(map(number, score.values))}."
        )
    else:
        yield "There is one seed, so nothing is known about how much the score varies."
    if winner.test is not None:
        yield f"On the test split: {winner.test}."
    if winner.tied:
        yield f"The data cannot tell it from these: {'; '.join(winner.tied)}."
    elif winner.candidates < 2:
        yield "It was the only candidate that ran over seeds."
    elif len(score.values) > 1:
        yield "No other final candidate is tied with it."


class Trials(NamedTuple):
    """The rows of all trials: the last stage first, in a stage the best whole run first.

    Attributes:
        headings: of the columns.
        rows: the text of each cell.
        values: (row, column) → the number in that cell.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: Mapping[tuple[int, int], float]

    @classmethod
    def of(cls, tuning: Tuning) -> "Trials":
        """Return the rows of the trials of a result."""

        def order(trial: TunedTrial) -> tuple[int, bool, bool, float, int]:
            stage = STAGES.index(trial.stage) if trial.stage in STAGES else len(STAGES)
            score = _score(trial)
            is_lost, is_short = math.isnan(score), trial.status == "stopped"
            badness = 0.0 if is_lost else (-score if tuning.maximize else score)
            return stage, is_lost, is_short, badness, trial.number

        trials = sorted(tuning.trials, key=order)
        names = list(dict.fromkeys(name for trial in trials for name in trial.values))
        several = any(len(trial.scores) > 1 for trial in trials)
        headings = ["stage", "trial", tuning.score, *(["seeds"] if several else [])]
        headings += ["optimizer", "schedule", *names, "status", "updates"]
        headings += [] if tuning.score == "loss" else ["loss"]
        rows, values = [], {}
        for r, trial in enumerate(trials):
            cells = [trial.stage, trial.number, _score(trial)]
            cells += [len(trial.scores)] if several else []
            cells += [trial.optimizer, trial.schedule]
            cells += [trial.values.get(name) for name in names]
            cells += [trial.status, trial.updates]
            cells += [] if tuning.score == "loss" else [trial.loss]
            rows.append([number(cell) for cell in cells])
            for c, cell in enumerate(cells):
                if isinstance(cell, int | float | np.number) and math.isfinite(cell):
                    values[r, c] = float(cell)
        return cls(headings, rows, values)

    def text(self, shown: int) -> str:
        """Say how the rows are ordered, and how many are left out."""
        order = "The last stage comes first, and in a stage the best of the whole runs."
        if shown < len(self.rows):
            order += f" The first {shown:,} of {len(self.rows):,} are shown."
        return order


def _score(trial: TunedTrial) -> float:
    return trial.score if len(trial.scores) else math.nan
