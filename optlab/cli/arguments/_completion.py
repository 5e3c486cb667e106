"""The options of `optlab completion`."""

import argparse

from optlab.cli._errors import check_known
from optlab.cli._options import complete_with, declare

SHELLS = ("bash", "zsh", "fish")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command."""
    declare(
        parser,
        check,
        description="Print lines that teach a shell to complete optlab's commands, options, names\n"
        "of optimizers and tasks, and hyperparameters. It needs argcomplete, which\n"
        'pip install "optlab[completion]" installs. Add to the file that your shell\n'
        "reads:\n\n"
        '  ~/.bashrc                   eval "$(optlab completion bash)"\n'
        '  ~/.zshrc, below compinit    eval "$(optlab completion zsh)"\n'
        "  ~/.config/fish/config.fish  optlab completion fish | source",
        epilog="",
    )
    action = parser.add_argument("shell", metavar="SHELL", help=", ".join(SHELLS))
    complete_with(action, SHELLS)


def check(options: argparse.Namespace) -> None:
    """Refuse unknown shells."""
    check_known("shell", options.shell, SHELLS)
