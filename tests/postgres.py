"""A PostgreSQL server of a test's own, installed from Debian's package where there is none."""

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

INSTALL = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", "postgresql"]


class Server:
    """A server on a free port of this machine.

    Attributes:
        url: of a database for SQLAlchemy, with psycopg.
    """

    def __init__(self, programs, folder):
        self._programs, self._data = programs, folder / "data"
        self._run("initdb", "--auth=trust", "--username=optlab", "--no-sync", "--no-instructions")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.url = f"postgresql+psycopg://optlab@127.0.0.1:{port}/postgres"

    def start(self):
        """Start it, and wait until it answers."""
        # The server must not hold the pipe that this process reads.
        self._run("pg_ctl", "-w", "-l", "/dev/null", "-o", self._options, "start")

    def stop(self):
        """Stop it as a crash does."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def _run(self, program, *arguments):
        command = [str(self._programs / program), "-D", str(self._data), *arguments]
        if os.getuid() == 0:  # which PostgreSQL refuses to run as
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", timeout=60
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def running_server():
    """Yield a server that runs; skip the test, with the reason, where none can."""
    programs = _programs() or _installed()
    if os.getuid() == 0 and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    folder = Path(tempfile.mkdtemp(prefix="postgres"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        server = Server(programs, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _programs():
    """Return the folder of the newest server on this machine; None if there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if folders:
        return folders[-1].parent
    program = shutil.which("initdb")
    return None if program is None else Path(program).resolve().parent


def _installed():
    if shutil.which("apt-get") is None or os.getuid() != 0:
        pytest.skip("PostgreSQL is not installed, and only root can install Debian's package")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], INSTALL):
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=300
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"PostgreSQL is not installed, and {' '.join(command)} takes too long")
        if done.returncode != 0:
            error = (done.stderr.strip() or "failed").splitlines()[-1]
            pytest.skip(f"PostgreSQL is not installed, and {' '.join(command)} says: {error}")
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's package has no server")
    return programs
