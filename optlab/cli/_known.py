"""What the command line knows before it loads JAX, which takes seconds.

The names of optimizers and schedules and the limits of their arguments are copies, in known.json;
`python tests/known.py` writes that file, and a test compares it with the functions themselves.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optlab import _domains
from optlab._domains import Domain, fail

FLAG = "True or False"

DOMAINS = {x.description: x for x in vars(_domains).values() if isinstance(x, Domain)}


class Argument(NamedTuple):
    """An argument of an optimizer, a schedule or a built-in task.

    Attributes:
        name: its name.
        requires: what stands behind "must be" in an error; None if anything may be right.
        default: its default; `inspect.Parameter.empty` if it must be given.
        none: whether it may be None.
        most: the largest value, for a whole number; None for no bound.
    """

    name: str
    requires: str | None = None
    default: Any = inspect.Parameter.empty
    none: bool = False
    most: int | None = None

    @property
    def is_flag(self) -> bool:
        """Whether it is true or false, and nothing else."""
        return self.requires == FLAG

    @property
    def least(self) -> int | None:
        """The least whole number that it may be; None if it is no whole number."""
        match = re.fullmatch(r"an integer >= (\d+)", self.requires or "")
        return int(match[1]) if match else None

    def allows(self, value: Any) -> bool:
        """Whether a value lies within the limits, as far as they are known."""
        if value is None:
            return self.none or self.default is None or self.requires is None
        if self.is_flag:
            return isinstance(value, bool)
        number = _is_number(value)
        if self.least is not None:
            return number and value == int(value) and self.least <= value <= (self.most or value)
        if self.requires in DOMAINS:
            return number and DOMAINS[self.requires].contains(value)
        if (self.requires or "").startswith("one of "):
            choices = self.requires.removeprefix("one of ").split(", ")
            return str(value) in {choice.strip("'") for choice in choices}
        return True

    def check(self, who: str, value: Any, written: str | None = None, remedy: str = "") -> None:
        """Require a value within the limits.

        Args:
            who: the function that the argument belongs to.
            value: the value.
            written: the value as the user wrote it; None for its own form.
            remedy: what to do about a wrong value.
        """
        if not self.allows(value):
            most = f" and at most {self.most}" if self.most else ""
            written = written or (str(value).lower() if value is None else str(value))
            got = f"{self.name}={written}"
            required = "true or false" if self.is_flag else f"{self.requires}{most}"
            if self.requires in DOMAINS and not _is_number(value):
                required = "a number"
            fail(who, f"{self.name} must be {required}", got, remedy)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Function(NamedTuple):
    """An optimizer, a schedule or a task: one line about it, and its arguments.

    Attributes:
        summary: one line for people.
        arguments: name → argument, in their order.
        fields: for a schedule that returns several curves, their names.
    """

    summary: str
    arguments: Mapping[str, Argument]
    fields: Sequence[str] = ()


class Curves:
    """What a call of a schedule stands for, as long as the schedules are not loaded."""

    def __init__(self, fields: Sequence[str]):
        self._fields = fields
        for name in fields:
            setattr(self, name, self)


def stand_in(name: str, function: Function) -> Callable[..., Curves]:
    """Return a function with a schedule's signature that only checks its arguments."""

    def call(*args: Any, **options: Any) -> Curves:
        for key, value in signature.bind(*args, **options).arguments.items():
            argument = function.arguments[key]
            several = argument.least is not None and isinstance(value, list | tuple)
            for part in value if several else [value]:
                if part is not None and not isinstance(part, Curves):
                    argument.check(name, part)
        return Curves(function.fields)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [
            inspect.Parameter(argument.name, kind, default=argument.default)
            for argument in function.arguments.values()
        ]
    )
    call.__signature__ = signature
    return call


def _function(entry: Mapping[str, Any]) -> Function:
    arguments = {}
    for name, known in entry["arguments"].items():
        default = known.get("default")
        known |= {"default": tuple(default)} if isinstance(default, list) else {}
        arguments[name] = Argument(name, **known)
    return Function(entry["summary"], arguments, entry.get("fields", ()))


_KNOWN = json.loads(Path(__file__).with_name("known.json").read_text(encoding="utf-8"))

OPTIMIZERS = {name: _function(entry) for name, entry in _KNOWN["optimizers"].items()}
"""All optimizers, by name."""

COMPARED = _KNOWN["own"]
"""The optimizers that are compared where none is named."""

SCHEDULES = {name: _function(entry) for name, entry in _KNOWN["schedules"].items()}
"""All schedules, by name."""

SCHEDULE_FORMS = {name: stand_in(name, entry) for name, entry in SCHEDULES.items()}
"""Functions in place of the schedules, which only check their arguments."""

DIALECTS, SEARCHES, MODES = _KNOWN["dialects"], _KNOWN["searches"], _KNOWN["modes"]

LEAST_STEPS = _KNOWN["least_steps"]
"""The least number of updates of a range test."""

_BATCH_SIZE = Argument("batch_size", "an integer >= 1", 32, most=1078)  # the training split

TASKS = {
    "digits-mlp": Function(
        "a perceptron on handwritten digits",
        {
            "batch_size": _BATCH_SIZE,
            "width": Argument("width", "an integer >= 2", 128),
            "dropout": Argument("dropout", "in [0, 1)", None, none=True),
        },
    ),
    "digits-cnn": Function(
        "a convolutional network on handwritten digits", {"batch_size": _BATCH_SIZE}
    ),
    "valley": Function("a quadratic function, steeper along y", {}),
}
"""The built-in tasks, by name."""
