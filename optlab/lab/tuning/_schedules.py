"""The schedules that the finals try, each of a peak rate and a number of updates.

    constant     the peak rate throughout
    cosine       a warm-up over 5% of the run, then half a cosine down to 0
    wsd          a warm-up over 5%, the peak rate, and a straight line down to 0 over the last 20%
    one cycle    half a cosine up over 30% and another down, from a 25th to a 10,000th of the peak

Runs and recipes take a schedule from here, so that a recipe cannot differ from the runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optlab import schedules
from optlab._types import ArrayLike, Schedule


@dataclass(frozen=True)
class NamedSchedule:
    """A function from a peak rate and a number of updates to a schedule.

    Attributes:
        maker: the name of the function in `optlab.schedules`.
        peak: the name of its argument for the peak rate.
        lengths: updates of the run → its other arguments.
        part: what of its result is the rate; "" for all.
    """

    maker: str
    peak: str
    lengths: Callable[[int], Mapping[str, int]]
    part: str = ""

    def __call__(self, peak: ArrayLike, steps: int) -> Schedule:
        """Return the schedule.

        Args:
            peak: the highest rate, ≥ 0; it may be traced.
            steps: updates of the run, ≥ 1.
        """
        made = getattr(schedules, self.maker)(**{self.peak: peak}, **self.lengths(steps))
        return getattr(made, self.part) if self.part else made

    def source(self, peak: float, steps: int) -> str:
        """Return the schedule as an expression of Python that needs `from optlab import schedules`.

        Args:
            peak: the highest rate, ≥ 0.
            steps: updates of the run, ≥ 1.

        Example:
            >>> SCHEDULES["cosine"].source(0.1, 200)
            'schedules.warmup_cosine(peak_value=0.1, warmup_steps=10, decay_steps=200)'
        """
        arguments = {self.peak: float(peak), **self.lengths(steps)}
        text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return f"schedules.{self.maker}({text})" + (f".{self.part}" if self.part else "")


def _wsd(steps: int) -> dict[str, int]:
    warmup, decay = steps // 20, max(1, steps // 5)
    stable = steps - warmup - decay
    return {"warmup_steps": warmup, "stable_steps": stable, "decay_steps": decay}


SCHEDULES: Mapping[str, NamedSchedule] = {
    "constant": NamedSchedule("constant", "value", lambda steps: {}),
    "cosine": NamedSchedule(
        "warmup_cosine",
        "peak_value",
        lambda steps: {"warmup_steps": steps // 20, "decay_steps": steps},
    ),
    "wsd": NamedSchedule("wsd", "peak_value", _wsd),
    "one cycle": NamedSchedule(
        "one_cycle",
        "peak_value",
        # Its last value is that of the last update.
        lambda steps: {"total_steps": max(1, steps - 1)},
        "learning_rate",
    ),
}
"""The name of a schedule → the function that makes it."""
