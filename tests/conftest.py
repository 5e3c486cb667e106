"""What test files share: two devices on the CPU, so that sharding can be checked anywhere."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture
def optlab_command(capfd, tmp_path, monkeypatch):
    """Run the command in a folder of its own; return its status, stdout and stderr."""
    from optlab import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    return run
