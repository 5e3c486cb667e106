"""A loader on the host as the source of a run's batches."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from optlab import _checks
from optlab._types import Tree
from optlab.lab.data._ahead import Ahead
from optlab.lab.data._arrays import check_layout, layout_of, to_arrays
from optlab.lab.data._contents import contents_of, text_of
from optlab.lab.data._errors import Source
from optlab.lab.data._passes import AGAIN, Passes, check_loader, is_iterator, rewinds


@dataclass(frozen=True)
class _ReadAgain:
    """Says that batches were read a second time to come back to a place."""

    batches: int
    seconds: float


class Batches:
    """A host loader as a source of batches for a run.

    Where a pass over the loader ends, another one begins; batches are counted over all passes. The
    first batch is read when this object is made, and opens the first pass of the first `read`: a
    loader that shuffles yields the same batches as in a plain loop over it. A later `read` begins
    new passes. An iterator that can be set back is left where it was.

    Args:
        who: the public name that errors begin with.
        task_name: the name of the task, for errors.
        loader: yields batches: a Grain `DataLoader`, `MapDataset` or `IterDataset`, a PyTorch
            `DataLoader`, a `tf.data` or Hugging Face data set of batches, anything else that can
            be iterated over again, or a function without arguments, called for each pass, that
            returns what can be iterated over. An iterator can be read once only, unless it can be
            set back (`get_state`, `set_state`).
        timeout: seconds to wait for a batch, > 0.

    Attributes:
        example: the first batch as a tree of NumPy arrays. A mapping, or a dataclass that is not
            registered as a pytree, has become a dictionary. JAX's arrays stay what they are.
        layout: the shapes and types of `example`, which every batch must have.
        one_shot: whether the loader is an iterator that can be read once only.
        can_save_place: whether `read` returns places.

    Raises:
        DataError: the loader cannot be iterated over, raises, blocks, or its first pass has no
            batch or one that is not made of arrays.
        ValueError: `timeout` is not > 0.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> data = np.arange(12.0).reshape(6, 2)
        >>> batches = Batches("train", "rows", lambda: (data[i : i + 2] for i in (0, 2, 4)))
        >>> batches.layout
        ShapeDtypeStruct(shape=(2, 2), dtype=float32)
        >>> with batches.read(stop=4, move=jax.device_put) as stream:
        ...     [float(batch[0, 0]) for batch, place in stream]
        [0.0, 4.0, 8.0, 0.0]
    """

    example: Tree
    layout: Tree
    one_shot: bool
    can_save_place: bool

    def __init__(self, who: str, task_name: str, loader: Any, *, timeout: float = 300.0):
        self._source = Source(who, f"the loader of task {task_name!r}")
        self._timeout = float(_checks.check_number(who, "timeout", timeout, _checks.POSITIVE))
        check_loader(self._source, loader)
        self._loader = loader
        self._beginning = loader.get_state() if is_iterator(loader) and rewinds(loader) else None
        self.one_shot = is_iterator(loader) and self._beginning is None
        self._thread: Ahead | None = None
        self._is_open = False
        self._opened: Passes | None = self._passes()
        # An iterator that can be set back is set back at once, so that the next run that is given
        # it begins where this one does.
        rewinds_now = self._beginning is not None
        with self._opened.ahead(self._peek, self._timeout, closes=rewinds_now) as peek:
            self.example, self.can_save_place = next(peek)
            next(peek, None)  # its end, where it is set back
        if rewinds_now:
            self._opened = None
        self.layout = layout_of(self.example)

    def refuse_one_shot(self, who: str, why: str) -> None:
        """Raise an error if the loader can be read once only.

        Args:
            who: the public name that the error begins with.
            why: what needs a loader that can be read again, as in "to resume a run".

        Raises:
            DataError: the loader is an iterator that cannot be set back.
        """
        if self.one_shot:
            source = Source(who, self._source.text)
            got = f"an iterator ({type(self._loader).__name__}), which can be read once only"
            source.fail(f"must be something that can be read again {why}", got, AGAIN)

    @contextmanager
    def read(
        self,
        *,
        start: int = 0,
        place: bytes | None = None,
        stop: int | None = None,
        move: Callable[[Tree], Tree],
        save_at: Callable[[int], bool] = lambda read: False,
    ) -> Iterator[Iterator[tuple[Tree, bytes | None]]]:
        """Yield batches in order, read and moved on a thread ahead of who takes them.

        At most two batches wait, while the thread works on a third one. An error is raised at the
        batch that it belongs to, after all batches before it. Leaving the context ends the thread;
        it does not wait for a loader that blocks.

        Args:
            start: the first batch to yield, ≥ 0.
            place: a place at or before batch `start`; the batches between them are read again. If
                it is None, all batches before `start` are, and a warning says what that cost.
            stop: the batch to stop before; None to yield batches for ever.
            move: batch, as NumPy arrays in memory of its own → batch on the device, called on the
                thread.
            save_at: number of batches read from the beginning of the run → whether to take the
                place after them.

        Returns:
            A context with the iterator of (moved batch, place after it). The place is None where
            `save_at` is False or the loader does not report one.

        Raises:
            DataError: the loader raises, blocks, ends, has a pass without a batch, or yields a
                batch that is not like the first one; or `place` is not one of this loader's. What
                `move` raises is raised unchanged.
        """
        self._await_last_read()
        passes, self._opened = self._opened, None
        if passes is None:
            self.refuse_one_shot(self._source.who, "after it has been read")
        if passes is None or place is not None:
            passes = self._passes()

        def items() -> Iterator[Any]:
            if place is not None:
                passes.restore(place)
                self._check_place(passes.read, start)
                for _ in range(start - passes.read):
                    passes.next()
            elif start:
                yield self._read_again(passes, start)
            while stop is None or passes.read < stop:
                number = passes.read
                batch = to_arrays(passes.next(), number, self._source.fail)
                check_layout(self.layout, batch, number, self._source.fail)
                saves = self.can_save_place and save_at(passes.read)
                yield move(batch), passes.place() if saves else None

        with passes.ahead(items, self._timeout) as thread:
            self._thread = thread
            self._is_open = True
            try:
                yield self._without_notices(thread)
            finally:
                self._is_open = False

    def _await_last_read(self) -> None:
        """Require that no thread uses the loader any more."""
        if self._is_open:
            got = "a read within another one"
            self._source.fail(
                "must be read by one run at a time", got, "leave the first one before"
            )
        if self._thread is not None and not self._thread.join(self._timeout):
            got = f"one that is busy after {self._timeout:g} s"
            self._source.fail("must have ended its last read", got)

    def first(self, number: int) -> list[Tree]:
        """Return the first batches of a pass that is read for them alone.

        Args:
            number: how many, ≥ 1.
        """
        with self.read(stop=number, move=jax.device_put) as pairs:
            return [batch for batch, _ in pairs]

    def contents(self) -> dict[str, Any]:
        """Return what tells this loader from another one as facts, name → JSON."""
        return contents_of(self._loader, self.example)

    def begins_anew(self) -> bool:
        """Say whether another pass begins with another first batch, as where it is shuffled."""
        if self.one_shot:
            return True
        passes = self._passes(numbered=False)

        def items() -> Iterator[Tree]:
            yield to_arrays(passes.next(), 0, self._source.fail)

        with passes.ahead(items, self._timeout) as thread:
            first = next(thread)
        return text_of(first) != text_of(self.example)

    def _passes(self, *, numbered: bool = True) -> Passes:
        return Passes(self._source, self._loader, beginning=self._beginning, numbered=numbered)

    def _peek(self) -> Iterator[tuple[Tree, bool]]:
        """Read the first batch without losing it; say whether the loader reports its place."""
        passes = self._opened
        batch = passes.next()
        try:
            reports = passes.place() is not None
        except Exception:  # the methods are there, but raise
            reports = False
        passes.put_back(batch)
        yield to_arrays(batch, 0, self._source.fail), reports

    def _read_again(self, passes: Passes, batches: int) -> _ReadAgain:
        began = time.perf_counter()
        for _ in range(batches):
            passes.next()
        return _ReadAgain(batches, time.perf_counter() - began)

    def _check_place(self, read: int, start: int) -> None:
        if read > start:
            required = f"must go on from a place before batch {start}"
            self._source.fail(required, f"one before batch {read}")

    def _without_notices(self, items: Iterator[Any]) -> Iterator[tuple[Tree, bytes | None]]:
        for item in items:
            if isinstance(item, _ReadAgain):
                warnings.warn(
                    f"{self._source.who}: {self._source.text} reports no place to go on from, so "
                    f"that {item.batches} batches were read again, which took {item.seconds:.1f} "
                    "s; a Grain loader or torchdata's StatefulDataLoader goes on at once",
                    stacklevel=2,
                )
            else:
                yield item
