"""Going on from a place: the batches that follow are bit for bit those of a run without a break."""

import json
import warnings

import grain
import jax
import numpy as np
import pytest

from optlab.lab.data import Batches, DataError

ROWS = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
STEPS = 11
"""Batches of a run: more than two passes of five batches."""


def numbered(index):
    return {"x": ROWS[index], "y": index}


def grain_loader():
    return grain.DataLoader(
        data_source=np.arange(11),
        sampler=grain.samplers.IndexSampler(11, shuffle=True, seed=3, num_epochs=1),
        operations=[_Numbered(), grain.transforms.Batch(2, drop_remainder=True)],
        worker_count=0,
        read_options=grain.ReadOptions(num_threads=1),
    )


class _Numbered(grain.transforms.Map):
    def map(self, index):
        return numbered(index)


def grain_map():
    rows = grain.MapDataset.range(11).shuffle(seed=3).map(numbered)
    return rows.batch(2, drop_remainder=True)


def grain_iter():
    rows = grain.MapDataset.range(11).shuffle(seed=3).repeat().map(numbered)
    return rows.to_iter_dataset(grain.ReadOptions(num_threads=1)).batch(2)


def grain_iterator():
    """An iterator, which is set back where a pass begins."""
    return iter(grain_map().to_iter_dataset(grain.ReadOptions(num_threads=1)))


class Stateful:
    """A loader with a random generator, whose state it reports and which each pass moves on."""

    def __init__(self):
        self.rng, self.left, self.resumes = np.random.default_rng(3), [], False

    def __iter__(self):
        if not self.resumes:
            self.left = list(self.rng.permutation(10).reshape(5, 2))
        self.resumes = False
        while self.left:
            yield numbered(self.left.pop(0))

    def state_dict(self):
        return {"rng": self.rng.bit_generator.state, "left": self.left}

    def load_state_dict(self, state):
        self.rng.bit_generator.state = state["rng"]
        self.left, self.resumes = list(state["left"]), True


class WithStatefulIterator:
    """A loader whose iterators report and take a state."""

    def __iter__(self):
        return _StatefulIterator()


class _StatefulIterator:
    def __init__(self):
        self.next = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == 5:
            raise StopIteration
        self.next += 1
        return numbered(np.arange(2) + self.next)

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def torchdata_loader():
    torch = pytest.importorskip("torch")
    stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchdata calls what PyTorch has deprecated
        return stateful_dataloader.StatefulDataLoader(
            torch.utils.data.TensorDataset(torch.from_numpy(ROWS), torch.arange(11)),
            batch_size=2,
            shuffle=True,
            drop_last=True,
            generator=torch.Generator().manual_seed(3),
        )


LOADERS = [
    grain_loader,
    grain_map,
    grain_iter,
    grain_iterator,
    Stateful,
    WithStatefulIterator,
    torchdata_loader,
]


def read(batches, **options):
    """All batches of a read as bytes, and the places."""
    options = {"stop": STEPS, "move": lambda tree: tree, "save_at": lambda read: True, **options}
    with batches.read(**options) as stream:
        pairs = list(stream)
    trees = [[leaf.tobytes() for leaf in jax.tree.leaves(batch)] for batch, _ in pairs]
    return trees, [place for _, place in pairs]


@pytest.mark.parametrize("make", LOADERS)
def test_the_batches_after_a_place_are_those_of_a_run_without_a_break(make):
    batches = Batches("train", "digits", make())
    assert batches.can_save_place
    assert not batches.one_shot
    every, places = read(batches)
    assert len(every) == STEPS
    # Within a pass, at its end, and after the first batch of the next one; a new process has a new
    # loader, which may have been read from.
    for start in (1, 5, 6):
        resumed = Batches("train", "digits", make())
        after, later = read(resumed, start=start, place=places[start - 1])
        assert after == every[start:]
        assert len(later) == STEPS - start
    # A run may be broken off twice.
    again, _ = read(Batches("train", "digits", make()), start=8, place=later[1])
    assert again == every[8:]


@pytest.mark.parametrize("make", LOADERS)
def test_batches_between_a_place_and_the_start_are_passed_over(make):
    every, places = read(Batches("train", "digits", make()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they are few, and need no warning
        after, _ = read(Batches("train", "digits", make()), start=7, place=places[3])
    assert after == every[7:]


def test_an_iterator_that_can_be_set_back_is_left_where_it_was():
    loader = grain_iterator()
    next(loader)
    first = Batches("train", "digits", loader)
    Batches("train", "digits", loader)  # reads its first batch, and no more
    every, places = read(first)
    (begun, _), again = read(first, stop=3), Batches("train", "digits", loader)
    assert begun == every[:3]
    assert read(again)[0] == every
    assert read(Batches("train", "digits", loader), start=5, place=places[4])[0] == every[5:]


def test_places_are_taken_only_where_they_are_asked_for():
    _, places = read(Batches("train", "digits", grain_map()), save_at=lambda read: read % 4 == 0)
    assert [n for n, place in enumerate(places, start=1) if place is not None] == [4, 8]


def test_a_place_is_json_and_of_grain_not_pickled():
    for make in (grain_loader, grain_map):
        (place,) = read(Batches("train", "digits", make()), stop=1)[1]
        assert "pickle" not in json.loads(place)["state"]
    (place,) = read(Batches("train", "digits", Stateful()), stop=1)[1]
    assert "pickle" in json.loads(place)["state"]  # holds arrays


def test_a_place_of_another_loader_or_of_another_batch_is_refused():
    batches = Batches("train", "digits", grain_map())
    (place,) = read(batches, stop=1)[1]
    with pytest.raises(DataError, match="a place before batch 0, got one before batch 1"):
        read(batches, start=0, place=place)
    with pytest.raises(DataError, match=r"got a place from iterator\.get_state, which it has not;"):
        read(Batches("train", "digits", Stateful()), start=1, place=place)
    with pytest.raises(DataError, match="got JSONDecodeError from it"):
        read(batches, start=1, place=b"no place")
    with pytest.raises(DataError, match="must go on from a place that it reported, got"):
        read(Batches("train", "digits", grain_loader()), start=1, place=place)


def test_a_loader_whose_state_raises_is_read_without_places():
    class Unable(Stateful):
        def state_dict(self):
            raise NotImplementedError

    batches = Batches("train", "digits", Unable())
    assert not batches.can_save_place
    assert read(batches)[1] == [None] * STEPS


# PyTorch


def torch_loader(**options):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(ROWS), torch.arange(11))
    options = {"batch_size": 2, "drop_last": True, **options}
    return torch.utils.data.DataLoader(data, shuffle=True, **options)


def test_a_shuffling_torch_loader_yields_what_a_plain_loop_over_it_does():
    torch = pytest.importorskip("torch")
    torch.manual_seed(5)
    loader = torch_loader()
    plain = [[x.numpy().tobytes(), y.int().numpy().tobytes()] for x, y in [*loader, *loader]]
    torch.manual_seed(5)
    batches = Batches("train", "digits", torch_loader())
    assert not batches.can_save_place
    assert read(batches, stop=10)[0] == plain
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match="7 batches were read again"):
        assert read(Batches("train", "digits", torch_loader()), start=7, stop=10)[0] == plain[7:]


def test_tensors_of_any_kind_become_arrays():
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 3, requires_grad=True)
    example = Batches("train", "digits", [(x, x.bfloat16(), x.half().T, x.bool())]).example
    assert [leaf.dtype.name for leaf in example] == ["float32", "bfloat16", "float16", "bool"]
    assert all(np.all(leaf == 1) for leaf in example)


def test_a_short_last_batch_of_a_torch_loader_is_refused_with_the_way_out():
    batches = Batches("train", "digits", torch_loader(drop_last=False))
    with pytest.raises(DataError, match=r"\[1, 3\] for .*\[2, 3\] at \[0\] of batch 5; .*drop"):
        read(batches)
