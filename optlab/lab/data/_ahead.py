"""A generator that runs on a thread, ahead of who takes its items."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

import jax

SIZE = 2
"""Items that wait to be taken, beside the one that the thread works on."""

GRACE = 1.0
"""Seconds that closing waits for the thread, which ends at once unless its generator is busy."""


class Ahead:
    """The items of a generator in order, made on a thread.

    An error of the generator is raised where its item would come. The thread has JAX's settings
    for the type of numbers and for the default device, which hold for one thread only, of the one
    that makes this object.

    Args:
        make: beat → the generator, whose body runs on the thread. It must call beat() for every
            piece of work that may take up to `timeout`.
        timeout: seconds to wait for an item or a beat, > 0.
        late: raises the error of a generator that is silent for longer.
    """

    def __init__(
        self,
        make: Callable[[Callable[[], None]], Iterator[Any]],
        timeout: float,
        late: Callable[[], NoReturn],
    ):
        self._timeout, self._late = timeout, late
        self._items: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()  # an entry for each item that may wait
        for _ in range(SIZE):
            self._room.put(None)
        self._last_beat = time.monotonic()
        self._ended = self._silent = False
        settings = (jax.config.jax_enable_x64, jax.config.jax_default_device)
        # A daemon, so that a loader that never returns does not keep the process alive.
        self._thread = threading.Thread(
            target=self._run, args=(make, *settings), name="optlab-loader", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        item, error = self._take()
        if error is not None:
            self._ended = True
            raise error
        self._room.put(None)
        return item

    def _take(self) -> tuple[Any, BaseException | None]:
        began = time.monotonic()
        while True:
            left = max(began, self._last_beat) + self._timeout - time.monotonic()
            if left <= 0:
                self._ended = self._silent = True
                self._late()
            try:
                return self._items.get(timeout=left)
            except Empty:  # unless there was a beat, it is too late now
                pass

    def close(self) -> None:
        """End the thread after its piece of work; wait for a moment, unless it was silent."""
        self._ended = True
        self._room.put(None)
        self.join(0 if self._silent else GRACE)
        self._items = SimpleQueue()  # lets go of batches that nobody takes

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end; return whether it did."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _run(self, make: Callable[[Callable[[], None]], Iterator[Any]], x64: bool, device: Any):
        _shield_workers()
        items = make(self._beat)
        try:
            with ExitStack() as settings:
                if jax.config.jax_enable_x64 != x64:
                    settings.enter_context(jax.enable_x64(x64))
                if jax.config.jax_default_device != device:
                    settings.enter_context(jax.default_device(device))
                for item in items:
                    if not self._put(item, None):
                        return
            self._put(None, StopIteration())
        except BaseException as error:  # nobody else would see it
            self._put(None, error)
        finally:
            items.close()

    def _beat(self) -> None:
        self._last_beat = time.monotonic()

    def _put(self, item: Any, error: BaseException | None) -> bool:
        """Hand an item over when there is room; return False if nobody wants it any more."""
        self._room.get()
        if not self._ended:
            self._items.put((item, error))
        return not self._ended


def _shield_workers() -> None:
    """Block interruptions on this thread, and so in the workers that a loader starts on it.

    A terminal interrupts them together with this process, which ends them, and each of them would
    print a traceback.
    """
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        tracker = sys.modules.get("multiprocessing.resource_tracker")
        if tracker is not None:  # the first worker would start it, which ends the block
            tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
