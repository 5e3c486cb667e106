"""`optlab dialects`: show how the frameworks differ in one rule."""

import argparse
import shutil
import sys

from optlab.dialects._table import TABLES, table


def run(options: argparse.Namespace) -> None:
    """Print the tables."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n\n\n".join(table(name, width) for name in options.rules or TABLES))
