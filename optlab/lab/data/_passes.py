"""A loader read pass after pass, and its place as bytes.

A place is JSON: how many batches have been read, in which pass, and what the loader itself reports
of where it is. It is taken from one of

    get_state, set_state                of the iterator (Grain)
    state_dict, load_state_dict         of the loader (torchdata's StatefulDataLoader, Hugging
                                        Face's IterableDataset), or of the iterator

What is not JSON in it (tensors of random generators) is pickled, so that a place must be trusted
like the program that reads it.
"""

import base64
import copy
import inspect
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import jax
import numpy as np

from optlab.lab.data._ahead import Ahead
from optlab.lab.data._errors import Source

AGAIN = "pass a Grain or PyTorch loader, or a function that makes a new iterator at each call"


def check_loader(source: Source, loader: Any) -> None:
    """Require something that yields batches: an object with `__iter__`, or a function."""
    required = "must be something to iterate over that yields batches"
    if isinstance(loader, Mapping):
        remedy = "name one of its data sets; for arrays in memory, use shuffled_batches"
        source.fail(required, f"{type(loader).__name__} with {_names(loader)}", remedy)
    if isinstance(loader, np.ndarray | jax.Array | str | bytes):
        remedy = "for arrays in memory, use shuffled_batches"
        source.fail(required, type(loader).__name__, remedy)
    if hasattr(loader, "__iter__"):
        return
    if not callable(loader):
        examples = hasattr(loader, "__getitem__")
        got = f"{type(loader).__name__}, which has no __iter__"
        source.fail(required, got, "make a loader of batches of it" if examples else AGAIN)
    try:
        inspect.signature(loader).bind()
    except TypeError as error:
        source.fail("must be a function without arguments", f"{loader!r} ({error})", AGAIN)
    except ValueError:  # no signature can be seen
        pass


def _names(mapping: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, list(mapping)[:5])) or "nothing"


def is_iterator(loader: Any) -> bool:
    """Say whether a loader is its own iterator, which goes on where it stopped."""
    return hasattr(loader, "__next__") and hasattr(loader, "__iter__") and iter(loader) is loader


def rewinds(loader: Any) -> bool:
    """Say whether an iterator can be set back to where it began."""
    return _has(loader, "get_state", "set_state")


def _has(thing: Any, *names: str) -> bool:
    return all(callable(getattr(thing, name, None)) for name in names)


class Passes:
    """The batches of a loader as they are, counted from 0 over all passes.

    Where the loader or its sampler has a method `set_epoch`, as those have that shuffle by the
    number of the pass, it is called with that number when a pass begins.

    Args:
        source: who reads whose loader.
        loader: what `check_loader` accepts.
        beginning: the state to which an iterator is set back when a pass begins; None for loaders
            that are iterated over anew.
        numbered: whether to call `set_epoch`.

    Attributes:
        read: batches read until now.
    """

    def __init__(
        self, source: Source, loader: Any, *, beginning: Any = None, numbered: bool = True
    ):
        self.read = 0
        self._beat: Callable[[], None] = lambda: None
        self._source, self._loader = source, loader
        self._beginning, self._numbered = beginning, numbered
        self._iterator: Iterator[Any] | None = None
        self._pass = self._in_pass = 0
        self._put_back: list[Any] = []

    def next(self) -> Any:
        """Return the next batch; where a pass ends, begin another one."""
        while True:
            try:
                return self.next_of_pass()
            except StopIteration:
                self.check_not_empty()
                self._iterator = None
                self._pass, self._in_pass = self._pass + 1, 0

    def next_of_pass(self) -> Any:
        """Return the next batch of this pass; raise StopIteration at its end."""
        self._beat()
        try:
            if self._iterator is None:
                self._iterator = self._begin()
            batch = self._put_back.pop() if self._put_back else next(self._iterator)
        except StopIteration:
            raise
        except Exception as error:
            what = f"{type(error).__name__} at batch {self.read}"
            first_line = str(error).partition("\n")[0]
            self._source.fail(
                "must yield batches",
                f"{what}: {first_line}" if first_line else what,
                "its own error stands above",
                cause=error,
            )
        self.read += 1
        self._in_pass += 1
        return batch

    def put_back(self, batch: Any) -> None:
        """Let the last batch come once more."""
        self._put_back.append(batch)
        self.read -= 1
        self._in_pass -= 1

    def check_not_empty(self) -> None:
        """Require that the pass that has ended had a batch."""
        if self._in_pass:
            return
        if not self._pass:
            remedy = "a data set smaller than one batch has none where short batches are left out"
            self._source.fail("must yield a batch in each pass", "none in the first one", remedy)
        got = f"none in pass {self._pass + 1}, at batch {self.read}"
        self._source.fail("must yield a batch in each pass", got, f"an iterator ends once: {AGAIN}")

    def ahead(
        self, make: Callable[[], Iterator[Any]], timeout: float, *, closes: bool = True
    ) -> Ahead:
        """Run a generator that reads these passes on a thread.

        Args:
            make: makes the generator.
            timeout: seconds to wait for a batch, > 0.
            closes: whether the last iterator is let go at the end, so that its files, threads and
                processes can close, or set back where it can be.
        """

        def items(beat: Callable[[], None]) -> Iterator[Any]:
            self._beat = beat
            try:
                yield from make()
            finally:
                if closes:
                    self._close()

        return Ahead(items, timeout, lambda: self._fail_late(timeout))

    def _fail_late(self, timeout: float) -> NoReturn:
        required = f"must yield a batch within {timeout:g} s"
        remedy = "see where it waits, or allow it more time"
        self._source.fail(required, f"nothing for batch {self.read}", remedy)

    def place(self) -> bytes | None:
        """Return the place after the last batch; None if the loader does not report one."""
        owner, method = self._reporter()
        if owner is None:
            return None
        iterator = self._iterator
        # A loader may have several iterators, and reports the place of the last one.
        reporter = iterator if _has(iterator, method) else self._loader
        place = {
            "read": self.read,
            "pass": self._pass,
            "in_pass": self._in_pass,
            "method": f"{owner}.{method}",
            "state": _encode(getattr(reporter, method)()),
        }
        generator = getattr(self._loader, "generator", None)
        if owner == "loader" and _has(generator, "get_state", "set_state"):
            place["generator"] = _encode(generator.get_state())
        return json.dumps(place).encode()

    def restore(self, place: bytes) -> None:
        """Go on after the batch after which `place` was returned."""
        required = "must go on from a place that it reported"
        remedy = (
            "use the same data and loader; Grain needs a __repr__ of your own data source that "
            "is the same in each process"
        )
        try:
            place = json.loads(place)
            self.read, self._pass, self._in_pass = place["read"], place["pass"], place["in_pass"]
            state = _decode(place["state"])
            if place["method"] == "loader.state_dict" and self._reporter()[0] == "loader":
                self._number_pass()
                self._loader.load_state_dict(state)
                self._iterator = iter(self._loader)
                if "generator" in place:
                    # A StatefulDataLoader draws the seed of its workers from its generator when a
                    # pass begins, and does not count that draw in its state.
                    self._loader.generator.set_state(_decode(place["generator"]))
                return
            self._iterator = self._begin()
            owner, method = self._reporter()
            if place["method"] == f"{owner}.{method}":
                restorer = "set_state" if method == "get_state" else "load_state_dict"
                getattr(self._iterator, restorer)(state)
                return
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            got = f"{type(error).__name__} from it: {first_line}"
            self._source.fail(required, got, remedy, cause=error)
        self._source.fail(required, f"a place from {place['method']}, which it has not", remedy)

    def _reporter(self) -> tuple[str | None, str]:
        """Return who reports the place, the iterator or the loader, and by which method."""
        iterator = self._iterator
        if _has(iterator, "get_state", "set_state"):
            return "iterator", "get_state"
        if _has(self._loader, "state_dict", "load_state_dict"):
            return "loader", "state_dict"
        if _has(iterator, "state_dict", "load_state_dict"):
            return "iterator", "state_dict"
        return None, ""

    def _begin(self) -> Iterator[Any]:
        self._number_pass()
        if self._beginning is not None:
            self._set_back()
        return iter(self._loader if hasattr(self._loader, "__iter__") else self._loader())

    def _close(self) -> None:
        self._iterator = None
        if self._beginning is not None:
            with suppress(Exception):  # of a loader that has failed already
                self._set_back()

    def _set_back(self) -> None:
        self._loader.set_state(copy.deepcopy(self._beginning))

    def _number_pass(self) -> None:
        for part in (self._loader, getattr(self._loader, "sampler", None)):
            if self._numbered and _has(part, "set_epoch"):
                part.set_epoch(self._pass)


def _encode(state: Any) -> Any:
    """Return a state as JSON if that loses nothing, otherwise pickled."""
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    try:
        if _same(json.loads(json.dumps(state)), state):
            return {"json": state}
    except (TypeError, ValueError):  # holds what JSON has not
        pass
    return {"pickle": base64.b64encode(pickle.dumps(state)).decode()}


def _same(read: Any, written: Any) -> bool:
    """Say whether JSON gave back the same values of the same types."""
    if type(read) is not type(written):
        return False
    if isinstance(read, dict):
        return read.keys() == written.keys() and all(_same(read[k], written[k]) for k in read)
    if isinstance(read, list):
        return len(read) == len(written) and all(map(_same, read, written))
    return read == written


def _decode(state: Any) -> Any:
    ((kind, contents),) = state.items()
    if kind == "json":
        return contents
    contents = base64.b64decode(contents)
    return pickle.loads(contents) if kind == "pickle" else contents
