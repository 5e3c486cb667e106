"""Standard streams that are closed, full, or left by their reader: no traceback, and a status."""

import subprocess
import sys

import pytest

OPTLAB = f"{sys.executable} -m optlab"
CLOSED = "optlab: cannot write the output: stdout is closed; redirect it to a file\n"
FULL = "optlab: cannot write the output: No space left on device\n"

posix = pytest.mark.skipif(sys.platform == "win32", reason="shells of POSIX")


@posix
@pytest.mark.parametrize(
    ("command", "status", "err"),
    [
        ("--version >&-", 2, CLOSED),
        ("--version >&- 2>&-", 2, ""),
        ("--version 2>&- >/dev/null", 0, ""),
        ("train --bogus 2>&-", 2, ""),
        ("--version <&- >/dev/null", 0, ""),
        ("--version >/dev/full", 2, FULL),
        ("train --help >/dev/full", 2, FULL),
    ],
)
def test_a_stream_that_takes_nothing_causes_no_traceback(command, status, err):
    ended = subprocess.run(f"{OPTLAB} {command}", shell=True, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", err)


@posix
def test_a_reader_that_leaves_before_the_help_causes_no_traceback():
    command = [*OPTLAB.split(), "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, b"")
