"""`python -m optlab` and the console script `optlab`.

An interruption (Ctrl-C) ends them at any moment with one line and status 130. Loading JAX takes
seconds, so what answers an interruption is there before anything else of optlab is imported.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

INTERRUPTED = 130
"""The exit status, which shells report after SIGINT."""

CLOSED = 2
"""The exit status where stdout is closed, so that no result could be printed."""

PAUSE = 0.1
"""Seconds after which an interruption is raised again, if it is no longer on its way."""

PATIENCE = 2.0
"""Seconds that compiled code has to return to Python after an interruption."""

TOGETHER = 0.5
"""Seconds within which two interruptions are one: a launcher may pass on what we get, too."""


def main() -> int:
    """Run the command line of the process and return its exit status."""
    if not open_streams():
        return CLOSED
    interruptions = Interruptions()
    interruptions.install()
    try:
        from optlab import cli

        return cli.main(within=interruptions)
    except KeyboardInterrupt:
        interruptions.end()


def open_streams() -> bool:
    """Open closed standard streams on the null device; return whether stdout was open.

    The files that a command opens would take their numbers, and what is printed would go there.
    """
    stdout = sys.stdout is not None
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        null = os.dup(null)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    os.close(null)
    if not stdout:
        line = "optlab: cannot write the output: stdout is closed; redirect it to a file"
        print(line, file=sys.stderr)
    return stdout


class Interruptions:
    """What interruptions do: they are raised within this context, and end the process outside.

    Within, the first one is a `KeyboardInterrupt`, so that files are closed and the terminal is
    left as it was. The process ends at once if another one comes, or if the first one is not seen
    in `PATIENCE` seconds, because compiled code does not look for it.

    The process ends without the end of the interpreter. XLA's threads may still compute, and crash
    when the interpreter is taken down under them.
    """

    def __init__(self) -> None:
        self._are_raised = False
        self._was_raised = False
        self._was_written = False
        self._seen_at = -float("inf")
        self._process = os.getpid()

    def install(self) -> None:
        """Answer the interruptions of this process, unless they are ignored, as under `nohup`."""
        if not hasattr(signal, "setitimer"):  # Windows
            return
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return
        signal.signal(signal.SIGINT, self._interrupt)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        threading.Thread(target=self._watch, args=[reader], daemon=True).start()
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        signal.signal(signal.SIGALRM, self._raise_again)
        sys.unraisablehook = _show_unless_interruption

    def __enter__(self) -> None:
        self._are_raised = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._are_raised = False
        if self._was_raised:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if kind is not None:  # such as JAX's error of a callback that was interrupted
                raise KeyboardInterrupt

    def end(self) -> NoReturn:
        """End the process after an interruption that was raised; what was printed is shown."""
        with suppress(OSError, ValueError, AttributeError):  # stdout is full, or closed
            sys.stdout.flush()
        self._end_now()

    def _interrupt(self, signum: int, frame: Any) -> None:
        """Handle SIGINT, in the main thread."""
        if os.getpid() != self._process:  # a loader's worker
            raise KeyboardInterrupt
        before, self._seen_at = self._seen_at, time.monotonic()
        if self._are_raised and not self._was_raised:
            self._was_raised = True
            signal.setitimer(signal.ITIMER_REAL, PAUSE, PAUSE)
            raise KeyboardInterrupt
        if self._seen_at - before > TOGETHER:
            self._end_now()

    def _watch(self, reader: int) -> None:
        """End the process if the main thread does not see an interruption."""
        while number := os.read(reader, 1):
            if number[0] == signal.SIGINT:
                received_at = time.monotonic()
                time.sleep(PATIENCE)
                if self._seen_at < received_at - TOGETHER:
                    self._end_now()

    def _raise_again(self, signum: int, frame: Any) -> None:
        """Raise an interruption again that was dropped, in the main thread, at every SIGALRM.

        Python drops what is raised in a destructor, in a weak reference's callback, and in one of
        the garbage collector's, which JAX has; compiled code drops what it does not expect. While
        files are closed because of the interruption, it is still on its way.
        """
        handled = sys.exception()
        while handled is not None and not isinstance(handled, KeyboardInterrupt):
            handled = handled.__context__
        if self._are_raised and handled is None:
            raise KeyboardInterrupt

    def _end_now(self) -> NoReturn:
        if not self._was_written:
            self._was_written = True
            line = b"optlab: interrupted\n"
            if "rich" in sys.modules and os.isatty(2):
                line = b"\r\x1b[2K\x1b[?25h" + line  # in place of a bar, which hides the cursor
            with suppress(OSError):
                os.write(2, line)
        if "multiprocessing" in sys.modules:
            for worker in sys.modules["multiprocessing"].active_children():
                worker.terminate()
        os._exit(INTERRUPTED)


def _show_unless_interruption(dropped: Any) -> None:
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    sys.exit(main())
