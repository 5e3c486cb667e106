"""A loader as a source of batches: their order and types, what is refused, how threads end."""

import dataclasses
import itertools
import signal
import threading
from collections import OrderedDict, UserDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab.lab.data import Batches, DataError, _ahead


def batch_of(number, size=4):
    """The batch with this number, from which it can be known again."""
    return {"x": np.full((size, 2), number, np.float32), "y": np.arange(size) + number}


def loader_of(count=5):
    return [batch_of(i) for i in range(count)]


def source(loader, **options):
    return Batches("train", "digits", loader, **options)


def take(batches, **options):
    """The numbers of the batches of a read."""
    with batches.read(**{"stop": 5, "move": lambda tree: tree, **options}) as stream:
        return [int(batch["y"][0]) for batch, _ in stream]


def taken_until_error(batches, **options):
    """The numbers of the batches before an error, and the error."""
    taken = []
    options = {"move": lambda tree: tree, **options}
    with pytest.raises(DataError) as error, batches.read(**options) as stream:
        taken.extend(int(batch["y"][0]) for batch, _ in stream)
    return taken, error.value


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "optlab-loader"]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="not on Windows")
def test_interruptions_do_not_reach_what_a_loader_starts():
    def loader():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])  # threads and processes inherit it
        yield {"y": np.array([signal.SIGINT in blocked])}

    assert take(source(loader), stop=1) == [True]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


# Order


def test_batches_are_counted_over_passes_and_each_read_begins_anew():
    batches = source(loader_of(5))
    assert take(batches, stop=12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert take(batches, stop=2) == [0, 1]


def test_reading_the_example_neither_loses_a_batch_nor_begins_a_pass_in_vain():
    passes = []

    def loader():
        passes.append(None)
        yield from loader_of(5)

    batches = source(loader)
    assert int(batches.example["y"][0]) == 0
    assert take(batches, stop=5) == [0, 1, 2, 3, 4]
    assert len(passes) == 1
    take(batches, stop=6)
    assert len(passes) == 3


def test_passes_are_numbered_for_loaders_and_samplers_that_ask_for_it():
    class Shuffling(list):
        def __init__(self, *args):
            super().__init__(*args)
            self.numbers, self.sampler = [], None

        def set_epoch(self, number):
            self.numbers.append(number)

    loader = Shuffling(loader_of(5))
    loader.sampler = Shuffling()
    take(source(loader), stop=11)
    assert loader.numbers == loader.sampler.numbers == [0, 1, 2]


def test_an_endless_loader_is_read_no_further_than_the_queue_allows():
    read = []

    def loader():
        for i in itertools.count():
            read.append(i)
            yield batch_of(i)

    with source(loader).read(move=lambda tree: tree) as stream:
        assert [int(next(stream)[0]["y"][0]) for _ in range(3)] == [0, 1, 2]
    assert len(read) <= 3 + 3  # two wait, and the thread holds one


def test_an_iterator_is_read_once_and_its_first_batch_is_not_lost():
    batches = source(iter(loader_of(5)))
    assert batches.one_shot
    assert take(batches, stop=5) == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="must be something that can be read again after it has"):
        take(batches)
    with pytest.raises(DataError, match=r"^sweep: .*'digits' .* read again to train lanes, got an"):
        batches.refuse_one_shot("sweep", "to train lanes")
    source(loader_of(5)).refuse_one_shot("sweep", "to train lanes")


def test_a_loader_without_a_place_is_read_again_with_a_warning_of_what_it_cost():
    batches = source(loader_of(5))
    moved = []
    with pytest.warns(UserWarning, match=r"^train: .*'digits' reports no place .* 7 batches .* s;"):
        assert take(batches, start=7, stop=9, move=lambda t: moved.append(t) or t) == [2, 3]
    assert len(moved) == 2
    assert not batches.can_save_place


# Types


class Pair(NamedTuple):
    x: object
    y: object


@dataclasses.dataclass
class Plain:
    x: object
    inner: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    x: object
    y: object


X = np.ones((4, 2), np.float32)
Y = np.arange(4, dtype=np.int32)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((X, [Y, None]), (X, [Y, None])),
        (Pair(X, Y), Pair(X, Y)),
        (OrderedDict(b=X, a=Y), OrderedDict(b=X, a=Y)),
        (Registered(X, Y), Registered(X, Y)),
        (Plain(X, (Plain(Y, 1.5),)), {"x": X, "inner": ({"x": Y, "inner": np.float32(1.5)},)}),
        (UserDict(x=X, y=UserDict(z=Y)), {"x": X, "y": {"z": Y}}),
        ({"x": [[1, 1], [1, 1]]}, {"x": np.ones((2, 2), np.int32)}),
        ((True, 3, 2.5, 1j), (np.bool_(1), np.int32(3), np.float32(2.5), np.complex64(1j))),
        ((X.astype(">f8"), X.astype(jnp.bfloat16)), (X, X.astype(jnp.bfloat16))),
    ],
)
def test_batches_of_many_kinds_become_trees_of_arrays(batch, expected):
    example = source([batch]).example
    assert jax.tree.structure(example) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(example), jax.tree.leaves(expected), strict=True):
        assert type(ours) is np.ndarray
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_numbers_keep_64_bits_where_x64_is_enabled_for_the_calling_thread():
    loader = [{"x": np.arange(3.0), "y": np.arange(3)}]
    with jax.enable_x64(True):
        batches = source(loader)
        with batches.read(stop=1, move=jax.device_put) as stream:
            batch, _ = next(stream)
    assert (batch["x"].dtype, batch["y"].dtype) == (np.float64, np.int64)
    assert source(loader).example["y"].dtype == np.int32


def test_types_are_compared_as_jax_has_them():
    batches = source([batch_of(0), {"x": np.ones((4, 2)), "y": np.full(4, 1, np.int32)}])
    assert take(batches, stop=2) == [0, 1]


def test_arrays_of_jax_stay_what_they_are():
    x = jnp.ones(3)
    assert source([{"x": x}]).example["x"] is x


def test_a_loader_may_write_its_next_batch_into_the_same_memory():
    buffer = batch_of(0)

    def loader():
        for i in range(5):
            buffer["y"][:] = i
            buffer["x"][:] = i
            yield buffer

    with source(loader).read(stop=5, move=jax.device_put) as stream:
        batches = [batch for batch, _ in stream]
    assert [int(batch["x"][0, 0]) for batch in batches] == [0, 1, 2, 3, 4]


# What is refused


def refuses(loader):
    """The message with which a loader is refused before anything is read."""
    with pytest.raises(DataError) as error:
        source(loader, timeout=0.5)
    return str(error.value)


class Examples:
    """A data set of single examples, as PyTorch has them."""

    def __getitem__(self, index):
        return batch_of(index)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (3, "something to iterate over that yields batches, got int, which has no __iter__"),
        (Examples(), "got Examples, which has no __iter__; make a loader of batches of it"),
        ({"train": 1}, "got dict with 'train'; name one of its data sets; for arrays"),
        (np.ones(3), "got ndarray; for arrays in memory, use shuffled_batches"),
        (lambda key, step: (), "must be a function without arguments, got <function"),
        (lambda: None, "must yield batches, got TypeError at batch 0: 'NoneType' object is not"),
        ([], "must yield a batch in each pass, got none in the first one; a data set smaller"),
        ([{"x": X, "text": ["a"]}], r"trees of arrays, got str at ['text'][0] of batch 0; leave"),
        ([(X, np.array(["a"]))], "got ndarray at [1] of batch 0 (of type <U1); leave the field"),
        ([([[1.0, 2.0], [3.0]],)], "got list at [0] of batch 0 (setting an array element"),
        ([(np.ma.ones(3),)], "got MaskedArray at [0] of batch 0 (its mask would be lost); leave"),
        ([(np.zeros(1, "M8[D]"),)], "got ndarray at [0] of batch 0 (of type datetime64[D]); leave"),
        ([{1: X, "a": X}], "must yield pytrees, got batch 0 ("),
    ],
)
def test_what_yields_no_batches_of_arrays_is_refused(loader, message):
    text = refuses(loader)
    assert text.startswith("train: the loader of task 'digits' must ")
    assert message in text


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": X}, "batches like its first, got nothing at ['y'] of batch 7; yield the same"),
        ({**batch_of(7), "z": X}, "got something new at ['z'] of batch 7"),
        (OrderedDict(batch_of(7)), "got PyTreeDef(CustomNode(OrderedDict["),
        (batch_of(7, size=3), "got float32[3, 2] for float32[4, 2] at ['x'] of batch 7; leave out"),
        (batch_of(7, size=3), "drop_last=True (PyTorch), drop_remainder=True (Grain, tf.data)"),
        (batch_of(7, size=5), "[5, 2] for float32[4, 2] at ['x'] of batch 7; give all batches"),
        ({**batch_of(7), "x": X.astype(int)}, "got int32[4, 2] for float32[4, 2] at ['x'] of"),
        ({**batch_of(7), "x": "seven"}, "must yield trees of arrays, got str at ['x'] of batch 7"),
    ],
)
def test_a_batch_unlike_the_first_is_an_error_after_all_batches_before_it(batch, message):
    taken, error = taken_until_error(source([*loader_of(7), batch]))
    assert taken == list(range(7))
    assert message in str(error)


def test_an_error_of_the_loader_is_the_cause_of_one_that_names_the_batch():
    def loader():
        yield from loader_of(3)
        raise OSError("the disk is gone\nand more")

    taken, error = taken_until_error(source(loader))
    assert taken == [0, 1, 2]
    assert "got OSError at batch 3: the disk is gone; its own error" in str(error)
    assert isinstance(error.__cause__, OSError)


def test_an_iterator_that_ends_too_early_is_an_error_at_its_end():
    taken, error = taken_until_error(source(iter(loader_of(3))), stop=5)
    assert taken == [0, 1, 2]
    assert "got none in pass 2, at batch 3; an iterator ends once: pass a Grain" in str(error)


def test_an_error_of_the_move_is_raised_unchanged_at_its_batch():
    def move(tree):
        if tree["y"][0] == 2:
            raise ZeroDivisionError
        return tree

    with source(loader_of(5)).read(move=move) as stream:
        assert [int(next(stream)[0]["y"][0]) for _ in range(2)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(stream)
        assert next(stream, None) is None


def test_one_read_within_another_is_refused():
    batches = source(loader_of(5))
    with (
        batches.read(move=lambda tree: tree),
        pytest.raises(DataError, match="must be read by one run at a time, got a read within"),
    ):
        take(batches)
    assert take(batches) == [0, 1, 2, 3, 4]


def test_a_timeout_must_be_positive():
    with pytest.raises(ValueError, match="train: timeout must be finite and > 0, got timeout=0"):
        source(loader_of(5), timeout=0)


# Threads


class Blocking:
    """A loader that blocks at a batch until it is released."""

    def __init__(self, at):
        self.at, self.reached, self.released = at, threading.Event(), threading.Event()

    def __iter__(self):
        for i in range(10):
            if i == self.at:
                self.reached.set()
                self.released.wait(60)
            yield batch_of(i)


@pytest.fixture
def blocking():
    loader = Blocking(at=2)
    yield loader
    loader.released.set()
    for thread in threads():
        thread.join(60)


def test_a_loader_that_blocks_is_an_error_after_the_timeout(blocking):
    taken, error = taken_until_error(source(blocking, timeout=0.5))
    assert taken == [0, 1]
    assert "must yield a batch within 0.5 s, got nothing for batch 2; see where" in str(error)
    blocking.at = 0
    with pytest.raises(DataError, match=r"within 0.5 s, got nothing for batch 0"):
        source(blocking, timeout=0.5)


def test_the_timeout_is_for_one_batch_even_if_many_are_read_again():
    clock = threading.Event()

    def loader():
        for i in range(8):
            clock.wait(0.1)
            yield batch_of(i)

    # Each batch takes a fifth of the timeout, and all of them more than it.
    with pytest.warns(UserWarning, match="7 batches were read again"):
        assert take(source(loader, timeout=0.5), start=7, stop=8) == [7]


def test_leaving_the_context_ends_the_thread_and_closes_a_generator():
    closed = []

    def loader():
        try:
            yield from map(batch_of, itertools.count())
        finally:
            closed.append(None)

    batches = source(loader)
    with batches.read(move=lambda tree: tree) as stream:
        next(stream)
    assert not threads()
    assert closed


def test_an_interruption_of_the_caller_leaves_no_thread_and_no_message(capfd):
    def interrupted(batches):
        with batches.read(move=lambda tree: tree) as stream:
            next(stream)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(source(lambda: map(batch_of, itertools.count())))
    assert not threads()
    assert capfd.readouterr().err == ""


def test_leaving_the_context_does_not_wait_for_a_loader_that_blocks(blocking, monkeypatch):
    monkeypatch.setattr(_ahead, "GRACE", 0.01)
    batches = source(blocking, timeout=0.5)
    with batches.read(move=lambda tree: tree) as stream:
        next(stream)
        blocking.reached.wait(60)
    (thread,) = threads()
    with pytest.raises(DataError, match=r"must have ended its last read, got one that is busy"):
        take(batches)
    blocking.released.set()
    thread.join(60)
    assert take(batches, stop=3) == [0, 1, 2]
