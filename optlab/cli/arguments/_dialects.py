"""The options of `optlab dialects`."""

import argparse

from optlab.cli._errors import check_known
from optlab.cli._known import DIALECTS
from optlab.cli._options import complete_with, declare


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        check,
        description="Show rules as PyTorch, Keras 3, TensorFlow 1, Optax and optlab write them,\n"
        "with the names and defaults of their arguments. The functions are in\n"
        "optlab.dialects.",
        epilog=f"rules: {', '.join(DIALECTS)}",
    )
    action = parser.add_argument(
        "rules", nargs="*", metavar="RULE", help="which rules to show (default: all)"
    )
    complete_with(action, DIALECTS)


def check(options: argparse.Namespace) -> None:
    """Refuse unknown rules."""
    for name in options.rules:
        check_known("rule", name, DIALECTS)
