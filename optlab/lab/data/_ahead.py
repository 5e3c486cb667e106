"""A generator that runs on a thread, ahead of who takes its items."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
        self._items: deque[tuple[Any, BaseException | None]] = deque()
        self._changed = threading.Condition()
        self._beats = 0
        self._closed = self._silent = False
        settings = (jax.config.jax_enable_x64, jax.config.jax_default_device)
        # A daemon, so that a loader that never returns does not keep the process alive.
        self._thread = threading.Thread(
            target=self._run, args=(make, *settings), name="optlab-loader", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._changed:
            while not self._items and not self._closed:
                beats = self._beats
                if not self._changed.wait_for(
                    lambda beats=beats: self._items or self._beats != beats, self._timeout
                ):
                    self._closed = self._silent = True
                    self._late()
            if self._closed:
                raise StopIteration
            item, error = self._items.popleft()
            self._closed = error is not None
            self._changed.notify_all()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        """End the thread after its piece of work; wait for a moment, unless it was silent."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
        self.join(0 if self._silent else GRACE)

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end; return whether it did."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _run(self, make: Callable[[Callable[[], None]], Iterator[Any]], x64: bool, device: Any):
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
        with self._changed:
            self._beats += 1
            self._changed.notify_all()

    def _put(self, item: Any, error: BaseException | None) -> bool:
        """Hand an item over when there is room; return False if nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < SIZE or self._closed)
            if not self._closed:
                self._items.append((item, error))
                self._changed.notify_all()
            return not self._closed
