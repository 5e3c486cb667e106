"""The `optlab` command: what the lab does, by name and from a shell.

A command is a file here: `add` declares its name and its options, `run` does what they ask for.
"""

from optlab.cli._main import main

__all__ = ["main"]
