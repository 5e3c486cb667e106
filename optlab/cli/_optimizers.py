"""Optimizers as the options describe them: hyperparameters, the course of the rate, clipping."""

import argparse
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import optax

from optlab import schedules, transforms
from optlab._types import Hyperparam, Schedule
from optlab.cli._errors import UsageError
from optlab.cli._expressions import evaluate
from optlab.cli._known import OPTIMIZERS
from optlab.cli._options import RATE, settings_of
from optlab.lab.tuning._recipe import ScriptForm
from optlab.registry import BY_NAME, SCHEDULES

SCHEDULE_FUNCTIONS: Mapping[str, Callable[..., Schedule | schedules.OneCycle]] = {
    name: getattr(schedules, name) for name in (row.split(".")[0] for row in SCHEDULES)
}
"""The functions that an expression may call; one-cycle has two rows, but one function."""


def maker(options: argparse.Namespace, name: str) -> Callable[..., optax.GradientTransformation]:
    """Return the function from the learning rate and hyperparameters to an optimizer.

    The values of --set and --schedule are in it, but not those of --clip.

    Args:
        options: the options.
        name: the name of the optimizer.
    """
    known = OPTIMIZERS[name].arguments
    own = {key: value for key, value in settings_of(options).items() if key in known}
    row = BY_NAME[name]
    schedule = getattr(options, "schedule", None)

    def make(learning_rate: Hyperparam | None = None, **values: Any) -> Any:
        rate = learning_rate
        if schedule is not None:
            rate = schedule_of(schedule, {RATE: learning_rate, **values})
        # Other values may stand in the schedule alone.
        hyperparams = {key: value for key, value in values.items() if key in known}
        rates = {} if rate is None else {RATE: rate}
        return row.make(**rates, **own, **hyperparams)

    return make


def clipped(options: argparse.Namespace, name: str) -> Callable[..., optax.GradientTransformation]:
    """Return the function of `maker`, with --clip in front; its name says all that is set.

    Stored results are told apart by the names of functions.
    """
    make, clip = maker(options, name), clipping(options)

    def make_clipped(*args: Any, **values: Any) -> optax.GradientTransformation:
        tx = make(*args, **values)
        return tx if clip is None else optax.chain(clip, tx)

    words = {
        "set": [f"{key}={text}" for key, text in options.set],
        "rate": getattr(options, "rate", None),
        "schedule": getattr(options, "schedule", None),
        "clip": options.clip,
    }
    make_clipped.__qualname__ = f"{name} { ({key: x for key, x in words.items() if x}) }"
    return make_clipped


def clipping(options: argparse.Namespace) -> optax.GradientTransformation | None:
    """Return the transformation that --clip asks for."""
    return None if options.clip is None else _clip(options.clip)()


def _clip(most: float) -> partial[optax.GradientTransformation]:
    return partial(transforms.clip_by_global_norm, most)


def schedule_of(text: str, names: Mapping[str, Any]) -> Schedule:
    """Return the schedule that a call describes, with values for the names in it."""
    try:
        result = evaluate(text, SCHEDULE_FUNCTIONS, "schedule", names)
    except (OverflowError, RecursionError) as error:
        raise UsageError(str(error)) from error
    return result.learning_rate if isinstance(result, schedules.OneCycle) else result


def rate_of(options: argparse.Namespace, names: Mapping[str, Any] | None = None) -> Hyperparam:
    """Return the rate in --rate: a number, or a schedule written as a call."""
    if "(" in options.rate:
        return schedule_of(options.rate, names or {})
    return float(options.rate)


def swept(options: argparse.Namespace) -> Callable[..., optax.GradientTransformation]:
    """Return the function from the values of a trial to its optimizer, for `sweep`."""
    row = BY_NAME[options.optimizer]
    if not (options.set or options.rate or options.schedule or options.clip):
        return partial(row.constructor, **row.fixed)
    make = clipped(options, options.optimizer)
    known = inspect.signature(row.constructor).parameters
    rest = [
        p.replace(kind=p.KEYWORD_ONLY)
        for name, p in known.items()
        if name not in dict(options.set) and (name != RATE or options.rate is None)
    ]
    rest += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        for name in sorted(options.in_schedules - known.keys())
    ]

    def make_from_values(**values: Any) -> optax.GradientTransformation:
        rates = {} if options.rate is None else {RATE: rate_of(options, values)}
        return make(**rates, **values)

    make_from_values.__qualname__ = make.__qualname__
    make_from_values.__signature__ = inspect.Signature(rest)
    if options.rate is None and options.schedule is None:
        own = {key: value for key, value in settings_of(options).items() if key in known}
        clip = () if options.clip is None else (_clip(options.clip),)
        form = ScriptForm(partial(row.constructor, **row.fixed, **own), clip)
        make_from_values.script_form = form
    return make_from_values
