"""What tests of the command line share: the command, run as a shell runs it."""

import sys

import pytest

from optlab import cli


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    """Run the command in a folder of its own; return its status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    yield run
    # Another test may write a module of the same name.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
