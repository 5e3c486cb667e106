"""`optlab completion`: print what a shell needs to complete the command line."""

import argparse

from optlab._extras import needs_extra


def run(options: argparse.Namespace) -> None:
    """Print the lines for the shell."""
    with needs_extra("completion", "completion"):
        import argcomplete

    print(argcomplete.shellcode(["optlab"], shell=options.shell))
