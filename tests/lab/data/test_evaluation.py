"""One pass over a loader: what it yields, the short last batch, and what is refused."""

import itertools
import threading

import grain
import numpy as np
import pytest

from optlab.lab.data import DataError, read_once

ROWS = np.arange(22, dtype=np.float32).reshape(11, 2)


def batches(sizes, **more):
    """A loader of batches of these sizes, whose rows are counted through."""
    ends = list(itertools.accumulate(sizes))
    pairs = zip([0, *ends], ends, strict=False)
    return [{"x": ROWS[a:b], "y": np.arange(a, b), **more} for a, b in pairs]


def once(loader, **options):
    return list(read_once("train", "digits", "validation", loader, **options))


def refused(loader, **options):
    with pytest.raises(DataError) as error:
        once(loader, **options)
    return str(error.value)


def test_every_example_comes_once_with_the_number_of_its_batch():
    loader = batches([4, 4, 3])
    for _ in range(2):
        pairs = once(loader)
        assert [examples for _, examples in pairs] == [4, 4, 3]
        assert np.array_equal(np.concatenate([batch["x"] for batch, _ in pairs]), ROWS)
        assert all(type(batch["x"]) is np.ndarray for batch, _ in pairs)


def test_the_last_short_batch_of_real_loaders_is_read():
    rows = grain.MapDataset.source(ROWS)
    loader = grain.DataLoader(
        data_source=ROWS,
        sampler=grain.samplers.IndexSampler(11, num_epochs=1),
        operations=[grain.transforms.Batch(4, drop_remainder=False)],
    )
    for ends in (rows.batch(4), rows.to_iter_dataset().batch(4), loader):
        pairs = once(ends)
        assert [examples for _, examples in pairs] == [4, 4, 3]
        assert np.array_equal(np.concatenate([batch for batch, _ in pairs]), ROWS)


def test_torch_loaders_are_read_to_the_end():
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.from_numpy(ROWS), batch_size=4)
    pairs = once(loader)
    assert [examples for _, examples in pairs] == [4, 4, 3]
    assert np.array_equal(np.concatenate([batch for batch, _ in pairs]), ROWS)


def test_batches_without_examples_are_left_out():
    assert [examples for _, examples in once(batches([4, 0, 3, 0]))] == [4, 3]


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "must yield a batch in each pass, got none in the first one"),
        (batches([0, 0]), "must yield examples, got none in 2 batches"),
        (iter(batches([4])), "something that each evaluation can read anew, got an iterator (li"),
        ({"x": ROWS}, "got dict with 'x'; name one of its data sets"),
        (
            batches([3, 4]),
            "its first, got float32[4, 2] for float32[3, 2] at ['x'] of batch 1",
        ),
        ([{"x": ROWS}, {"x": ROWS[:, :1]}], "got float32[11, 1] for float32[11, 2] at ['x'] of"),
        ([ROWS, ROWS[:3].astype(int)], "got int32[3, 2] for float32[11, 2] at the root of batch 1"),
        (
            batches([4], w=1.0),
            "their first axis, got a number at ['w'] of batch 0; batch the",
        ),
        (batches([4], w=ROWS), "got 11 at ['w'], 4 at ['x'] in batch 0; give all its arrays the"),
        (batches([4], w="a"), "must yield trees of arrays, got str at ['w'] of batch 0"),
        ([()], "along their first axis, got no array in batch 0"),
    ],
)
def test_what_cannot_be_averaged_over_is_refused_with_the_split(loader, message):
    text = refused(loader)
    assert text.startswith("train: the loader of split 'validation' of task 'digits' must ")
    assert message in text


class Repeated:
    """An endless data set as `tf.data` reports it."""

    def __iter__(self):
        raise AssertionError("it must not be read")

    def cardinality(self):
        return np.int64(-1)


class Long(Repeated):
    def __len__(self):
        return 100_001

    def cardinality(self):
        return np.int64(100_001)


@pytest.mark.parametrize(
    ("loader", "got"),
    [
        (grain.MapDataset.range(9).repeat().batch(2), "one that repeats for ever"),
        (grain.MapDataset.range(9).repeat().to_iter_dataset().batch(2), "one that repeats for"),
        (
            grain.DataLoader(
                data_source=ROWS,
                sampler=grain.samplers.IndexSampler(11),
                operations=[grain.transforms.Batch(4)],
            ),
            "one that repeats for ever",
        ),
        (Repeated(), "one that repeats for ever"),
        (Long(), "100,001 batches"),
    ],
)
def test_a_loader_that_says_that_it_is_endless_is_refused_before_it_is_read(loader, got):
    text = refused(loader)
    assert f"must end, to evaluate on all of it, got {got}" in text
    assert text.endswith("leave out .repeat(), or give it or the sampler num_epochs=1")


def test_a_loader_that_does_not_end_is_refused_after_a_bound():
    text = refused(lambda: itertools.repeat(ROWS), max_batches=7)
    assert (
        "'validation' of task 'digits' must end, to evaluate on all of it, got more than 7" in text
    )
    assert len(once(lambda: itertools.repeat(ROWS, 7), max_batches=7)) == 7


def test_an_error_comes_after_the_batches_before_it():
    def loader():
        yield from batches([4, 4])
        raise OSError("gone")

    taken = []
    with pytest.raises(DataError, match="got OSError at batch 2: gone"):
        taken.extend(read_once("train", "digits", "test", loader))
    assert len(taken) == 2


def test_a_pass_that_is_broken_off_ends_its_thread():
    pairs = read_once("train", "digits", "test", lambda: itertools.repeat(ROWS))
    next(pairs)
    pairs.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "optlab-loader"]


def test_numbers_must_be_in_range():
    with pytest.raises(ValueError, match="train: max_batches must be an integer >= 1, got"):
        once([], max_batches=0)
    with pytest.raises(ValueError, match="train: timeout must be finite and > 0, got"):
        once([], timeout=-1)
