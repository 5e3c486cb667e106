"""A task that kills a worker, in a module that workers can import."""

import os
import signal
from pathlib import Path

from helpers import bowl


def deadly(width, *, flag, survivor):
    """Return a task; the first worker that makes it with a width of 2 is killed."""
    if width == 2 and os.getpid() != survivor and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return bowl(width=width)
