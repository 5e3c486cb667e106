"""Options for groups of parameters: which are frozen, and which have numbers of their own."""

import argparse
import re
from typing import Any

from optlab._domains import SHARE
from optlab.cli._errors import UsageError, value_errors
from optlab.cli._expressions import suggestions
from optlab.cli._known import OPTIMIZERS, Argument
from optlab.cli._options import natural, scalar, within

FACTORS = {name: Argument(name, "finite and >= 0") for name in ("lr_mult", "wd_mult")}
"""What a group may set beside hyperparameters."""


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add the options that `group_rules` reads."""
    options = parser.add_argument_group(
        "groups of parameters",
        "A PATTERN is a regular expression that matches whole names on the path of a parameter, "
        "such as head or conv1/kernel. Of --freeze and --group the first whose pattern matches "
        "decides, in their order; all other parameters keep the optimizer's own numbers.",
    )
    options.add_argument(
        "--freeze",
        type=_frozen,
        dest="group",
        action="append",
        default=[],
        metavar="PATTERN",
        help="freeze the parameters that match; may be repeated",
    )
    options.add_argument(
        "--group",
        type=_group,
        action="append",
        default=[],
        metavar="PATTERN:NAME=VALUE,…",
        help="set hyperparameters of those that match, or multiply rate and decay with lr_mult= "
        "and wd_mult=, as in head:lr_mult=10,weight_decay=0; may be repeated",
    )
    options.add_argument(
        "--unfreeze",
        type=_stage,
        action="append",
        default=[],
        metavar="PATTERN:STEP",
        help="freeze the parameters that match until this update; may be repeated",
    )
    options.add_argument(
        "--layer-decay",
        type=within("D", SHARE),
        metavar="D",
        help="multiply the rate of each layer by a power of D, 1 at the head and least at the "
        "first layer",
    )
    options.add_argument(
        "--no-decay", action="store_true", help="no weight decay for biases and norms"
    )


def check_groups(options: argparse.Namespace) -> None:
    """Require known hyperparameters, and what waits to start within the run."""
    for pattern, values in options.group:
        for name, value in (values or {}).items():
            _check_of_group(options, pattern, name, value)
    if options.steps is not None:
        check_starts(options, options.steps)


def check_starts(options: argparse.Namespace, steps: int) -> None:
    """Require that what waits starts within the run."""
    for pattern, start in options.unfreeze:
        if start >= steps:
            raise UsageError(
                f"argument --unfreeze: STEP must be below the {steps} updates of the run, got "
                f"{pattern}:{start}"
            )


def _check_of_group(options: argparse.Namespace, pattern: str, name: str, value: Any) -> None:
    known = OPTIMIZERS[options.optimizer].arguments
    with value_errors():
        if name in FACTORS:
            FACTORS[name].check("groups.group", value)
        elif name in known:
            known[name].check(options.optimizer, value)
        else:
            raise UsageError(
                f"argument --group: the group {pattern!r} must set hyperparameters of its "
                f"optimizer, {options.optimizer}, got {name}"
                f"{suggestions(name, [*FACTORS, *known])}"
            )


def _checked(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"{pattern!r} is no regular expression: {error}"
        ) from error
    return pattern


def _frozen(text: str) -> tuple[str, None]:
    if not text:
        raise argparse.ArgumentTypeError("expected a pattern such as head, got nothing")
    return _checked(text), None


def _group(text: str) -> tuple[str, dict[str, Any]]:
    """Read PATTERN:NAME=VALUE,NAME=VALUE."""
    pattern, colon, values = text.rpartition(":")
    pairs = [pair.partition("=") for pair in values.split(",")]
    if not (pattern and colon and all(name.isidentifier() and x for name, _, x in pairs)):
        raise argparse.ArgumentTypeError(f"expected PATTERN:NAME=VALUE, got {text!r}")
    names = [name for name, *_ in pairs]
    if len(set(names)) < len(names) or "optimizer" in names:
        raise argparse.ArgumentTypeError(f"expected each hyperparameter once, got {text!r}")
    return _checked(pattern), {name: scalar(value) for name, _, value in pairs}


def _stage(text: str) -> tuple[str, int]:
    """Read PATTERN:STEP."""
    pattern, colon, step = text.rpartition(":")
    if not (pattern and colon):
        raise argparse.ArgumentTypeError(f"expected PATTERN:STEP, got {text!r}")
    return _checked(pattern), natural(step)
