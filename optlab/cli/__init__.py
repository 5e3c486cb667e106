"""The `optlab` command: the tools of the lab from a shell.

Each command is a file of this package: `add` declares its options, `run` executes it.
"""

from optlab.cli._main import main

__all__ = ["main"]
