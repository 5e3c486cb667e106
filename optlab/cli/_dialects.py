"""`optlab dialects`: show how the frameworks differ in one rule."""

import argparse
import shutil
import sys

from optlab.cli._errors import check_known
from optlab.cli._options import declare
from optlab.dialects._table import TABLES, table


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        run,
        description="Show rules as PyTorch, Keras 3, TensorFlow 1, Optax and optlab write them,\n"
        "with the names and defaults of their arguments. The functions are in\n"
        "optlab.dialects.",
        epilog=f"rules: {', '.join(TABLES)}",
    )
    parser.add_argument(
        "rules", nargs="*", metavar="RULE", help="which rules to show (default: all)"
    )


def run(options: argparse.Namespace) -> None:
    """Print the tables."""
    for name in options.rules:
        check_known("rule", name, TABLES)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n\n\n".join(table(name, width) for name in options.rules or TABLES))
