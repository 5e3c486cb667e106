"""The `optlab` command: the tools of the lab from a shell.

The options of each command are a file of `arguments`, which needs no JAX; a file of this package
with the same name has its `run`.
"""

from optlab.cli._main import main

__all__ = ["main"]
