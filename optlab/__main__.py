"""`python -m optlab` and the console script `optlab`."""

import signal
import sys
from typing import Any

from optlab import cli

PAUSE = 0.1
"""Seconds after which a dropped interruption comes again: what has dropped it is short."""


def main() -> int:
    """Run the command line of the process and return its exit status.

    Python drops what is raised in a destructor, in a weak reference's callback, and in one of the
    garbage collector's, which JAX has. An interruption that came there is raised again a moment
    later, so that one Ctrl-C is enough; one that was raised is never repeated, so that nothing
    disturbs what is written before the end.
    """
    if not hasattr(signal, "setitimer"):  # Windows
        return cli.main()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = _raise_interruptions_again
    try:
        return cli.main()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _raise_interruptions_again(dropped: Any) -> None:
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, PAUSE)  # what is raised here would be dropped, too
    else:
        sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    sys.exit(main())
