"""Collect what the command line knows without JAX: names, summaries and limits of arguments.

Run `python tests/known.py` after a change of an optimizer, a schedule or a dialect. It writes
optlab/cli/known.json; a test compares that file with what is collected here.
"""

import inspect
import json
import re
from pathlib import Path

import optlab
from optlab import schedules
from optlab.dialects._table import TABLES
from optlab.lab.rates._range_test import LEAST_STEPS, MODES
from optlab.lab.sweeps._search import SEARCHES
from optlab.registry import BY_NAME, OPTIMIZERS, SCHEDULES

FILE = Path(optlab.__file__).parent / "cli" / "known.json"

WRONG = ("no such value", -1.0, 2.5, float("nan"))
"""Values of which each kind of argument refuses at least one."""

SPELLED = (bool, int, float, str, tuple, type(None))
"""Types of defaults that a help can show."""


def requirement(make, name):
    """Return what the message about a wrong value of an argument says that it must be."""
    for value in WRONG:
        try:
            make(**{name: value})
        except ValueError as error:
            match = re.search(rf"\b{name} must be (.+?), got", str(error))
            if match and not match[1].startswith(("a number", "a schedule")):
                return match[1].removesuffix(" or None")
        except Exception:  # a schedule in place of a string, say
            continue
    return None


def takes_none(make, name):
    try:
        make(**{name: None})
    except Exception:
        return False
    return True


def of(make, function, *, also_none=False, skip=()):
    """Return argument → its default, what it must be, and whether it may be None."""
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in skip:
            continue
        known = {"requires": requirement(make, parameter.name)}
        if parameter.default is not parameter.empty:
            spelled = type(parameter.default) in SPELLED
            known["default"] = parameter.default if spelled else "(a function)"
        if also_none and takes_none(make, parameter.name):
            known["none"] = True
        arguments[parameter.name] = known
    return arguments


def of_optimizer(row):
    def make(**values):
        return row.make(**{"learning_rate": 0.1, **values})

    return {"summary": row.summary, "fixed": dict(row.fixed)} | {
        "arguments": of(make, row.constructor, also_none=True)
    }


def of_schedule(name):
    row = next(row for row in SCHEDULES.values() if row.name.split(".")[0] == name)
    function = getattr(schedules, name)

    def make(**values):
        return function(**{**row.samples[0], **values})

    fields = list(getattr(function(**row.samples[0]), "_fields", ()))
    return {"summary": row.summary, "fields": fields, "arguments": of(make, function)}


def collect():
    return {
        "optimizers": {name: of_optimizer(row) for name, row in BY_NAME.items()},
        "own": list(OPTIMIZERS),
        "schedules": {
            name: of_schedule(name) for name in dict.fromkeys(n.split(".")[0] for n in SCHEDULES)
        },
        "dialects": list(TABLES),
        "searches": list(SEARCHES),
        "modes": list(MODES),
        "least_steps": LEAST_STEPS,
    }


def text():
    """Return the file's text, with a line for each name."""
    parts = []
    for key, known in collect().items():
        value = json.dumps(known, ensure_ascii=False)
        if isinstance(known, dict):
            lines = (
                f"    {json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}"
                for name, entry in known.items()
            )
            value = "{\n" + ",\n".join(lines) + "\n  }"
        parts.append(f"  {json.dumps(key)}: {value}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
