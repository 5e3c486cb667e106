"""Options for groups of parameters: which are frozen, and which have numbers of their own."""

import argparse
from typing import Any

from optlab.cli._errors import UsageError
from optlab.cli._options import natural, number, scalar


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
        type=number,
        metavar="D",
        help="multiply the rate of each layer by a power of D, 1 at the head and least at the "
        "first layer",
    )
    options.add_argument(
        "--no-decay", action="store_true", help="no weight decay for biases and norms"
    )


def check_groups(options: argparse.Namespace) -> None:
    """Require what waits to start within the run, as far as its length is said."""
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


def _frozen(text: str) -> tuple[str, None]:
    if not text:
        raise argparse.ArgumentTypeError("expected a pattern such as head, got nothing")
    return text, None


def _group(text: str) -> tuple[str, dict[str, Any]]:
    """Read PATTERN:NAME=VALUE,NAME=VALUE."""
    pattern, colon, values = text.rpartition(":")
    pairs = [pair.partition("=") for pair in values.split(",")]
    if not (pattern and colon and all(name.isidentifier() and x for name, _, x in pairs)):
        raise argparse.ArgumentTypeError(f"expected PATTERN:NAME=VALUE, got {text!r}")
    names = [name for name, *_ in pairs]
    if len(set(names)) < len(names) or "optimizer" in names:
        raise argparse.ArgumentTypeError(f"expected each hyperparameter once, got {text!r}")
    return pattern, {name: scalar(value) for name, _, value in pairs}


def _stage(text: str) -> tuple[str, int]:
    """Read PATTERN:STEP."""
    pattern, colon, step = text.rpartition(":")
    if not (pattern and colon):
        raise argparse.ArgumentTypeError(f"expected PATTERN:STEP, got {text!r}")
    return pattern, natural(step)
