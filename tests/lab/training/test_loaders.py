"""`train` on data from the host: what it trains on, where it goes on, and loaders that fail."""

import dataclasses
import signal
import threading
import time
import warnings

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
import run_to_kill
from helpers import assert_same_bits
from optlab.lab import Categorical, EarlyStopping, Task, compare, lr_range_test, sweep, train
from optlab.lab.data import Batches

KEY = jax.random.key(3)
ROWS = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
TARGETS = ROWS @ np.array([1, 2, 3], np.float32)
EVERY, STEPS = 2, 9
"""Updates of a run: two passes of four batches, and one more."""


def rows(i):
    return {"x": ROWS[2 * i : 2 * i + 2], "y": TARGETS[2 * i : 2 * i + 2]}


def four_batches():
    return (rows(i) for i in range(4))


def linear(loader, **changes):
    """Return the task of fitting a linear model to batches of two rows."""

    def error(w, data):
        return jnp.mean((data["x"] @ w - data["y"]) ** 2)

    return dataclasses.replace(
        Task(
            name="rows",
            init=lambda key: (jnp.zeros(3), ()),
            loss=lambda w, state, batch, key: (error(w, batch), state),
            evaluate=lambda w, state, data: {"loss": error(w, data)},
            splits={"validation": {"x": ROWS, "y": TARGETS}},
            loader=loader,
        ),
        **changes,
    )


def run(loader, steps=STEPS, changes=None, **options):
    tx = optlab.sgd(0.1, momentum=0.5)
    task = linear(loader, **(changes or {}))
    return train(task, tx, steps=steps, key=KEY, eval_every=EVERY, **options)


def fingerprint(run):
    return run_to_kill.result(run)


@pytest.fixture(scope="module")
def straight():
    """The run of a loader that never fails, which is that of a plain loop."""
    return run(four_batches)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert "optlab-loader" not in names


# What it trains on


def test_a_run_on_a_loader_is_a_plain_loop_over_it_bit_for_bit(straight):
    tx, task = optlab.sgd(0.1, momentum=0.5), linear(four_batches)

    @jax.jit
    def update(w, state, batch):
        loss, gradient = jax.value_and_grad(lambda w: task.loss(w, (), batch, KEY)[0])(w)
        updates, state = tx.update(gradient, state, w)
        return w + updates, state, loss

    w, losses = jnp.zeros(3), []
    state = tx.init(w)
    for step in range(STEPS):
        w, state, loss = update(w, state, rows(step % 4))
        losses.append(loss)
    assert_same_bits(straight.params, w)
    np.testing.assert_array_equal(straight.history.loss, losses)
    assert straight.history.steps.tolist() == [0, 2, 4, 6, 8, 9]


class Rows(grain.transforms.Map):
    def map(self, index):
        return {"x": ROWS[index], "y": TARGETS[index]}


def grain_loader():
    return grain.DataLoader(
        data_source=range(8),
        sampler=grain.samplers.SequentialSampler(8),
        operations=[Rows(), grain.transforms.Batch(2)],
        worker_count=0,
        read_options=grain.ReadOptions(num_threads=1),
    )


def grain_map():
    return grain.MapDataset.range(8).map(Rows()).batch(2)


def grain_iter():
    return grain_map().to_iter_dataset(grain.ReadOptions(num_threads=1))


def torch_loader():
    torch = pytest.importorskip("torch")
    data = [{"x": x, "y": y} for x, y in zip(ROWS[:8], TARGETS[:8], strict=True)]
    return torch.utils.data.DataLoader(data, batch_size=2)


@dataclasses.dataclass
class Fields:
    x: np.ndarray
    y: np.ndarray


def dataclasses_():
    return [Fields(**rows(i)) for i in range(4)]


def one_shot():
    return (rows(i % 4) for i in range(STEPS))


LOADERS = [grain_loader, grain_map, grain_iter, torch_loader, dataclasses_, one_shot]


@pytest.mark.parametrize("make", LOADERS)
def test_loaders_of_all_kinds_give_the_same_run(make, straight):
    assert fingerprint(run(make())) == fingerprint(straight)


def test_batches_may_be_tuples():
    loader = [(batch["x"], batch["y"]) for batch in four_batches()]

    def loss(w, state, batch, key):
        x, y = batch
        return jnp.mean((x @ w - y) ** 2), state

    assert run(loader, steps=4, changes={"loss": loss}).history.num_updates == 4


@pytest.mark.parametrize("make", [grain_loader, grain_iter, lambda: iter(grain_iter())])
def test_a_loader_gives_the_same_run_again(make, straight):
    loader = make()
    first, second = run(loader), run(loader)
    assert fingerprint(first) == fingerprint(second) == fingerprint(straight)


def unequal_parts():
    return ({"x": ROWS[i : i + 4], "y": TARGETS[i : i + 4]} for i in (0, 4, 8))


def test_metrics_of_a_stream_are_exact(straight):
    streamed = run(four_batches, changes={"splits": {"validation": unequal_parts}})
    np.testing.assert_allclose(
        streamed.history.validation["loss"],
        straight.history.validation["loss"],
        rtol=1e-6,  # a sum of ten squares in another order
    )


# Where it goes on


def shuffled():
    return grain.MapDataset.range(8).shuffle(seed=3).map(Rows()).batch(2)


@pytest.mark.parametrize(
    ("make", "stops"),
    [
        pytest.param(shuffled, (4,), marks=pytest.mark.slow),
        pytest.param(shuffled, (5,)),
        pytest.param(shuffled, (2, 7), marks=pytest.mark.slow),
        pytest.param(lambda: iter(grain_iter()), (4,), marks=pytest.mark.slow),
        pytest.param(lambda: iter(grain_iter()), (5,), marks=pytest.mark.slow),
        pytest.param(lambda: iter(grain_iter()), (2, 7)),
    ],
)
def test_a_run_that_goes_on_from_a_place_is_one_that_never_stopped(tmp_path, make, stops):
    stopper = {"early_stopping": EarlyStopping(9)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (*stops, STEPS):
            last = run(make(), steps, checkpoints=tmp_path, **stopper)
    # An odd end of a run leaves an additional evaluation.
    evaluations = sorted({0, 2, 4, 6, 8, *stops, STEPS})
    assert last.history.steps.tolist() == evaluations
    whole = run(make(), **stopper)
    assert_same_bits((last.params, last.opt_state), (whole.params, whole.opt_state))
    np.testing.assert_array_equal(last.history.loss, whole.history.loss)


def test_without_a_place_batches_are_read_again_and_a_warning_says_so(tmp_path, straight):
    run(four_batches, 4, checkpoints=tmp_path)
    with pytest.warns(UserWarning, match="^train: the loader of task 'rows' .* 4 batches were"):
        last = run(four_batches, checkpoints=tmp_path)
    assert fingerprint(last) == fingerprint(straight)


def test_an_iterator_that_can_be_read_once_cannot_continue_a_run(tmp_path):
    run((rows(i % 4) for i in range(4)), 4, checkpoints=tmp_path)
    with pytest.raises(ValueError, match="read again to continue a run, got an iterator") as caught:
        run((rows(i % 4) for i in range(STEPS)), checkpoints=tmp_path)
    assert str(caught.value).startswith("train: the loader of task 'rows' must")


def test_a_run_that_is_done_reads_only_the_first_batch(tmp_path):
    run(four_batches, 4, checkpoints=tmp_path)
    read = []

    def counted():
        for i in range(4):
            read.append(i)
            yield rows(i)

    again = run(counted, 4, checkpoints=tmp_path, take_over=["loader"])
    assert again.reason == "all updates done"
    assert read == [0]


# Loaders that fail


class Failing:
    """A loader that does something else in place of a batch, until it is mended."""

    def __init__(self, at, instead):
        self.at, self.instead, self.is_mended, self.read = at, instead, False, 0

    def __iter__(self):
        for i in range(4):
            fails = self.read == self.at and not self.is_mended
            self.read += 1
            yield self.instead() if fails else rows(i)


def raise_error():
    raise OSError("disk is gone")


def other_shape():
    return {"x": ROWS[:1], "y": TARGETS[:1]}


def block():
    time.sleep(0.5)


FAILURES = [
    (raise_error, r"must yield batches, got OSError at batch 5: disk is gone"),
    (other_shape, r"like its first, got float32\[1, 3\] for float32\[2, 3\] at \['x'\] of batch 5"),
    pytest.param(
        lambda: {"x": ROWS[:2]},
        r"like its first, got nothing at \['y'\] of batch 5; yield the same",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        lambda: {**rows(0), "y": np.int32([1, 2])},
        r"got int32\[2\] for float32\[2\] at \['y'\] of",
        marks=pytest.mark.slow,
    ),
    (lambda: {**rows(0), "y": "cat"}, r"must yield trees of arrays, got str at \['y'\] of batch 5"),
    (block, r"must yield a batch within 0.1 s, got nothing for batch 5"),
]


@pytest.mark.parametrize(("instead", "message"), FAILURES)
def test_what_was_trained_before_a_failure_is_in_the_checkpoint(
    tmp_path, straight, instead, message
):
    loader = Failing(5, instead)
    options = {"checkpoints": tmp_path, "changes": {"timeout": 0.1}}
    with pytest.raises(ValueError, match=f"^train: the loader of task 'rows' .*{message}"):
        run(loader, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["5"]
    time.sleep(0.5 if instead is block else 0)  # so that its thread ends
    loader.is_mended = True
    with pytest.warns(UserWarning, match="5 batches were read again"):
        last = run(loader, **options)
    assert fingerprint(last) == fingerprint(straight)


def test_a_loader_that_fails_at_an_evaluation_has_its_checkpoint_already(tmp_path, straight):
    loader = Failing(4, raise_error)
    seen = []
    options = {"checkpoints": tmp_path, "callbacks": [lambda e: seen.append(e.step)]}
    with pytest.raises(ValueError, match="OSError at batch 4"):
        run(loader, **options)
    loader.read = 0
    with (
        pytest.warns(UserWarning, match="4 batches were read again"),
        pytest.raises(ValueError, match="OSError at batch 4"),
    ):
        run(loader, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
    loader.is_mended = True
    with pytest.warns(UserWarning, match="4 batches were read again"):
        assert fingerprint(run(loader, **options)) == fingerprint(straight)
    assert seen == [0, 2, 4, 4, 4, 6, 8, 9]


@pytest.mark.parametrize("tool", ["sweep", "compare", "lr_range_test"])
def test_tools_that_train_in_lanes_name_the_batch_that_failed(tool):
    def fails():
        yield from four_batches()
        raise OSError("disk gone")

    task, rates = linear(fails), {"learning_rate": Categorical([0.1, 0.2])}
    run = {
        "sweep": lambda: sweep(task, optlab.sgd, rates, trials=2, steps=9),
        "compare": lambda: compare(task, {"sgd": optlab.sgd}, rates=[0.1], seeds=1, steps=9),
        "lr_range_test": lambda: lr_range_test(task, optlab.sgd, seeds=1, steps=12),
    }[tool]
    with pytest.raises(ValueError, match=rf"^{tool}: the loader of task 'rows' .*: disk gone"):
        run()


class Scaled:
    """A data set as PyTorch reads it, with augmentation if there is a generator."""

    def __init__(self, scale=1.0, random=None):
        self.scale, self.random = scale, random

    def __len__(self):
        return 8

    def __getitem__(self, i):
        noise = 0.0 if self.random is None else self.random.normal()
        return ROWS[i] * self.scale + noise


class InBatches:
    """A loader with the attributes of PyTorch's."""

    batch_sampler = sampler = None

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return (rows(i) for i in range(4))


def scaled(scale):
    return lambda: ({"x": scale * batch["x"], "y": batch["y"]} for batch in four_batches())


@pytest.mark.filterwarnings("ignore:.*read again")
@pytest.mark.parametrize(
    ("one", "other", "fact"),
    [
        (scaled(1.0), scaled(2.0), "loader.first_batch"),
        (four_batches, lambda: ({"x": rows(i)["x"]} for i in range(4)), "loader.batch"),
        (InBatches(Scaled()), InBatches(Scaled(scale=2.0)), "loader.dataset"),
    ],
)
def test_a_loader_of_other_data_is_not_that_of_the_checkpoint(one, other, fact):
    assert contents(one) == contents(one)
    assert contents(one)[fact] != contents(other)[fact]


@pytest.mark.filterwarnings("ignore:.*read again")
def test_a_loader_that_shuffles_without_a_seed_goes_on(tmp_path):
    random = np.random.default_rng(0)

    def shuffled():
        return (rows(i) for i in random.permutation(4))

    run(shuffled, 4, checkpoints=tmp_path)
    assert run(shuffled, 6, checkpoints=tmp_path).reason == "all updates done"


def test_items_that_differ_each_time_are_no_fact():
    augmented = InBatches(Scaled(random=np.random.default_rng(0)))
    assert contents(augmented) == contents(augmented)


def contents(loader):
    return Batches("train", "rows", loader).contents()


def test_an_iterator_that_ends_early_is_named_and_loses_nothing(tmp_path):
    with pytest.raises(ValueError, match="got none in pass 2, at batch 3; an iterator ends once"):
        run((rows(i) for i in range(3)), checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_from_a_place_the_batches_between_it_and_a_failure_are_read_again(tmp_path):
    class Mendable(grain.transforms.Map):
        def map(self, index):
            if failing[0] and index == 6:
                raise OSError("disk is gone")
            return {"x": ROWS[index], "y": TARGETS[index]}

    def loader():
        return grain.MapDataset.range(8).map(Mendable()).batch(2)

    failing = [True]
    with pytest.raises(ValueError, match="at batch 3"):
        run(loader(), checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    failing[0] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        last = run(loader(), checkpoints=tmp_path)
    assert_same_bits(last.params, run(loader()).params)


@pytest.mark.parametrize(
    "fails_at",
    [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(5, marks=pytest.mark.slow)],
)
def test_where_an_evaluation_fails_its_updates_are_kept_and_it_is_made_later(tmp_path, fails_at):
    reads = []

    def validation():
        # Once to check the task, then once for each evaluation.
        reads.append(None)
        if len(reads) - 2 == fails_at:
            raise OSError("disk is gone")
        yield {"x": ROWS, "y": TARGETS}

    seen = []
    options = {
        "changes": {"splits": {"validation": validation}},
        "early_stopping": EarlyStopping(9),
        "callbacks": [lambda evaluation: seen.append(evaluation.step)],
    }
    with pytest.raises(ValueError, match=r"^train: the loader of split 'validation' of"):
        run(shuffled(), checkpoints=tmp_path, **options)
    evaluations = [0, 2, 4, 6, 8, 9]
    assert [path.name for path in tmp_path.iterdir()] == [str(evaluations[fails_at])]
    assert seen == evaluations[:fails_at]
    last = run(shuffled(), checkpoints=tmp_path, **options)
    assert seen == evaluations
    assert fingerprint(last) == fingerprint(run(shuffled(), **options))


def test_an_evaluation_without_an_end_is_refused_before_training():
    data = grain.MapDataset.range(8).map(Rows()).repeat().batch(2)
    with pytest.raises(ValueError, match="split 'validation' of task 'rows' must end, to evaluate"):
        run(four_batches, changes={"splits": {"validation": data}})


def test_an_iterator_cannot_be_the_data_of_a_split():
    with pytest.raises(ValueError, match=r"split 'validation' .* each evaluation can read anew"):
        run(four_batches, changes={"splits": {"validation": iter([rows(0)])}})


def test_ctrl_c_ends_a_run_that_waits_for_its_loader(tmp_path):
    reached, released = threading.Event(), threading.Event()

    def loader():
        for i in range(3):
            yield rows(i)
        reached.wait()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        released.wait()

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(loader, checkpoints=tmp_path, callbacks=[lambda e: e.step == 2 and reached.set()])
    assert time.monotonic() - began < 100  # it waits for 300 s otherwise
    released.set()
    wait_for_threads()
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def wait_for_threads():
    for thread in threading.enumerate():
        if thread.name == "optlab-loader":
            thread.join(10)


def test_an_error_of_a_callback_ends_the_thread_of_the_loader():
    def full(evaluation):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run(four_batches, callbacks=[full])


def test_a_metric_that_cannot_be_averaged_ends_the_thread_of_its_stream():
    def evaluate(w, state, data):
        return {"loss": jnp.max(data["y"])}

    changes = {"evaluate": evaluate, "splits": {"validation": unequal_parts}}
    with pytest.raises(ValueError, match="must be means over examples"):
        run(four_batches, changes=changes)


# A loss that is not finite


@pytest.mark.filterwarnings("ignore:.*read again")
def test_a_run_that_diverges_keeps_its_last_sound_checkpoints(tmp_path):
    is_bad = [True]

    def loader():
        for i in range(4):
            yield {**rows(i), "y": rows(i)["y"] * (np.nan if i == 2 and is_bad[0] else 1)}

    options = {"checkpoints": tmp_path, "keep": 2, "early_stopping": EarlyStopping(9)}
    for _ in range(2):  # once more from the last sound one
        last = run(loader, **options)
        assert last.reason == "the loss was not finite at update 3"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2"]
        assert np.isfinite(last.params).all()
        assert last.step == 2
    is_bad[0] = False  # the data are mended
    mended = run(loader, **options, resume_at=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8", "9"]
    assert fingerprint(mended) == fingerprint(run(four_batches, early_stopping=EarlyStopping(9)))
