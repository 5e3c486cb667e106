"""Train many runs: the one runner of sweeps, comparisons, range tests and checks.

Values that set no shape and choose no branch are arguments of a program. The other values are
static. Trials with the same static values form a group, which has its own programs, compiled once.
A program can advance from any update to any other.

A group runs its trials in lanes, and in one of two ways (see `_lanes`). *Together*, a program
updates all lanes at once, and a CPU runs one program per core. A lane's result does not depend on
its neighbours, but a trial may differ in its last bit between lanes. If lanes share an operand, as
they share the batch in the first layer, XLA computes their products as one large matrix product and
rounds its last columns differently. Each trial therefore has a fixed lane, given by its place among
all trials of its program, whichever of them run. *Apart*, the program of a single run is called for
one lane after another, from one thread per core. A trial then has the bits of a run of `train`.

With several devices, lanes that run together are divided between them; each device has as many
lanes as one device would have alone, and the same bits. Batches of a loader are read once for all
lanes that run at the same time.

With early stopping each run of a trial has a stopper of its own. A lane is idle once all its runs
have stopped, and a chunk ends with its last lane; what a run does after its end is not recorded.
"""

import os
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from threading import Event, Lock
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab._types import Tree
from optlab.lab.data import Batches, read_once
from optlab.lab.tasks._task import Task
from optlab.lab.training._early_stopping import EarlyStopping
from optlab.lab.training._engine import BY_LANES, BY_SEEDS, Division
from optlab.lab.training._interval import next_stop
from optlab.lab.training._lanes import Apart, Together, way_of
from optlab.lab.training._loop import Judged, Keys, TrainState
from optlab.lab.training._stoppers import Stoppers, blanked
from optlab.lab.training._threads import settings

Values = Mapping[str, Any]
"""The values of one trial, by name."""

Point = tuple[int, Values]
"""The number and the values of a trial."""

Chunk = Mapping[int, Point]
"""The trials that run at the same time, by lane; lanes without a trial are idle."""

Static = tuple[tuple[str, str], ...]
"""The values that are compiled into a program, as a key to look it up by."""

Members = Sequence[tuple[int, Point]]
"""Trials of one program, each with its place among all of them, which gives it its lane."""

LANES = {"cpu": 4}
"""Lanes of a device, by platform. More are hardly faster on a CPU, where idle lanes cost."""

LANES_ELSEWHERE = 64
"""Lanes of a device on platforms that `LANES` does not name."""


class Recipe(Protocol):
    """What a trial trains, as a function of its values."""

    def make(self, values: Values) -> tuple[Task, optax.GradientTransformation]:
        """Return the task and the optimizer of one trial; some of the values may be traced."""
        ...

    def make_task(self, values: Values) -> Task:
        """Return the task of one trial."""
        ...


class Fixed(NamedTuple):
    """A recipe whose optimizer depends on one value alone, or on none.

    Attributes:
        task: the task of all trials.
        make_optimizer: the value called "rate", or None if there is none → the optimizer.
    """

    task: Task
    make_optimizer: Callable[[Any], optax.GradientTransformation]

    def make(self, values: Values) -> tuple[Task, optax.GradientTransformation]:
        """Return the task and the optimizer of one trial."""
        return self.task, self.make_optimizer(values.get("rate"))

    def make_task(self, values: Values) -> Task:
        """Return the task."""
        del values
        return self.task


class Curves(NamedTuple):
    """The curves of a trial, or of several in lanes.

    Attributes:
        steps: (evaluations,) int.
        losses: (seeds, updates) float, the loss of each update's batch, before the update.
        validation: metric → (seeds, evaluations) float; empty without evaluation.
        test: metric → (seeds,) float, after the last update; empty if it was not asked for.
        ended: (seeds,) int, the updates done where early stopping ended each run, after which its
            curves are NaN; None without early stopping.
        taken: (seeds,) int, the updates of the evaluation that early stopping keeps of each run;
            `test` is of there. None likewise.
        reasons: why early stopping ended each run, a sentence; None for one that went on to the
            end. Empty without early stopping.
        causes: the same in a word.
    """

    steps: np.ndarray
    losses: np.ndarray
    validation: dict[str, np.ndarray]
    test: dict[str, np.ndarray] = {}  # noqa: RUF012, which takes it for a class variable
    ended: np.ndarray | None = None
    taken: np.ndarray | None = None
    reasons: Sequence[str | None] = ()
    causes: Sequence[str | None] = ()

    @property
    def train_loss(self) -> np.ndarray:
        """The mean loss since the previous evaluation; at 0 the loss of the first batch.

        Losses that are not finite are left out where others are.
        """
        if not self.losses.shape[-1]:
            return np.full((*self.losses.shape[:-1], 1), np.nan, np.float32)
        parts = [self.losses[..., :1], *np.split(self.losses, self.steps[1:-1], axis=-1)]
        # The mean of losses on their way to divergence may overflow.
        with np.errstate(over="ignore"):
            return np.stack([_mean(part) for part in parts], axis=-1).astype(self.losses.dtype)


ON_ALL_DEVICES = Lock()
"""Held by what runs a program on several devices; two at once could wait for each other."""


class TrialRuns:
    """Trials, each trained up to the last requested update.

    Args:
        who: the public name that errors begin with.
        recipe: what to train.
        traced: the values that are arguments of a program, name → type.
        keys: the keys of the runs of each trial, each (seeds,); see `seed_keys`.
        eval_every: updates between evaluations.
        lanes: trials that run at the same time on a device; None for a number by platform.
        memory: bytes that all programs running together may take; None for half of the device's.
            If they would take more, fewer lanes run, and at last one run after another.
        on_updates: called with the number of updates done, over all trials; from several threads.
        evaluates: whether the runs are evaluated; if not, they have no curves of validation.
        tests: whether they are evaluated on the test split at the end of `run`, if there is one.
        early_stopping: when a run stops before that, by the task's score; None for never.
        native: whether `optlab.native.step` makes the steps; lanes then run apart.
    """

    def __init__(
        self,
        who: str,
        recipe: Recipe,
        traced: Mapping[str, type],
        *,
        keys: Keys,
        eval_every: int,
        lanes: int | None = None,
        memory: float | None = None,
        on_updates: Callable[[int], None] = lambda updates: None,
        evaluates: bool = True,
        tests: bool = False,
        early_stopping: EarlyStopping | None = None,
        native: bool = False,
    ):
        self._who, self._recipe, self._traced = who, recipe, traced
        self._native = native
        self._on_updates, self._evaluates, self._tests = on_updates, evaluates, tests
        self._early_stopping = early_stopping
        self._keys = keys
        # One program per core of a CPU, because a program of few lanes keeps only one core busy.
        self._streams = streams()
        self._eval_every, self._lanes = eval_every, lanes or default_lanes()
        self._memory = (available_memory() if memory is None else memory) / self._streams
        self._groups: dict[tuple, _Group] = {}
        self._resumable: dict[int, tuple[TrainState, Curves]] = {}
        self._making, self._stopped = Lock(), Event()

    def run(
        self,
        points: Sequence[Point],
        stop: int,
        *,
        skip: Container[int] = (),
        keep: bool = False,
    ) -> Iterator[dict[int, Curves]]:
        """Train trials up to an update; yield the curves of each chunk of trials when it ends.

        Args:
            points: the trials. Trials that an earlier call kept continue from there.
            stop: updates done at the end.
            skip: numbers of trials that are not trained, but keep their lanes.
            keep: whether to store the states of the trials, so that a later call can continue them.
        """
        groups = [
            (static, members, len(members))
            for static, members in grouped(points, self._traced, skip).items()
        ]
        yield from self.run_groups(groups, stop, keep=keep)

    def run_groups(
        self, groups: Iterable[tuple[Static, Members, int]], stop: int, *, keep: bool = False
    ) -> Iterator[dict[int, Curves]]:
        """Train trials as `run` does; several threads may call it at the same time.

        Args:
            groups: the trials of each program, with the number of trials that it is made for.
            stop: updates done at the end.
            keep: whether to store the states of the trials, so that a later call can continue them.
        """
        pending = deque(groups)
        compiling: dict[Future, tuple[_Group, Members]] = {}
        running: set[Future] = set()
        inside, stopping = settings(), Event()
        with ThreadPoolExecutor(self._streams) as pool:
            try:
                while pending or compiling or running:
                    # Trace and compile the next group while the previous one runs.
                    while pending and len(compiling) + len(running) < self._streams:
                        static, members, count = pending.popleft()
                        _, (_, example) = members[0]
                        group = self._group(static, example, count)
                        compiling[group.compiled] = group, members
                    for future in wait([*compiling, *running], return_when=FIRST_COMPLETED).done:
                        if future in running:
                            running.remove(future)
                            yield future.result()
                            continue
                        group, members = compiling.pop(future)
                        group.fit(self._memory)
                        for chunk in self._chunks(members, group.lanes):
                            job = partial(self._run_chunk, group, chunk, stop, keep, stopping)
                            running.add(pool.submit(inside, job))
            finally:  # stops the remaining work after an error or an interruption
                stopping.set()
                pool.shutdown(cancel_futures=True)

    def stop(self) -> None:
        """End all work at the next evaluation, now and later, with a `CancelledError`."""
        self._stopped.set()

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop the stored states of trials that do not continue."""
        for number in numbers:
            self._resumable.pop(number, None)

    def take(self, number: int) -> TrainState:
        """Return the stored state of a trial, arrays (seeds, …), and drop it."""
        return self._resumable.pop(number)[0]

    def put(self, number: int, state: TrainState, curves: Curves) -> None:
        """Store the state of a trial, as `take` returned it, and the curves up to there."""
        self._resumable[number] = state, curves

    def _chunks(self, members: Members, lanes: int) -> Iterator[Chunk]:
        resumed = [number for _, (number, _) in members if number in self._resumable]
        reached = {number: int(self._resumable[number][1].steps[-1]) for number in resumed}
        return chunks(members, lanes, reached)

    def _group(self, static: Static, example: Values, members: int) -> "_Group":
        with self._making:
            if static not in self._groups:
                self._groups[static] = _Group(
                    self._who,
                    self._recipe,
                    example,
                    self._traced,
                    keys=self._keys,
                    lanes=self._lanes,
                    members=members,
                    size=self._eval_every,
                    evaluates=self._evaluates,
                    threads=self._streams,
                    native=self._native,
                )
            return self._groups[static]

    def _run_chunk(
        self, group: "_Group", chunk: Chunk, stop: int, keep: bool, stopping: Event
    ) -> dict[int, Curves]:
        with group.turn:
            return self._run_in_turn(group, chunk, stop, keep, stopping)

    def _run_in_turn(
        self, group: "_Group", chunk: Chunk, stop: int, keep: bool, stopping: Event
    ) -> dict[int, Curves]:
        filler = next(iter(chunk.values()))  # fills idle lanes, whose results are not used
        lanes = [chunk.get(lane, filler) for lane in range(group.lanes)]
        values = group.values([v for _, v in lanes])
        reached = {number: self._resumable.pop(number, None) for number, _ in chunk.values()}
        used = [*chunk]
        if reached[filler[0]] is None:
            runs, curves = group.start(values, used)
        else:
            runs = group.stack([reached[number][0] for number, _ in lanes])
            curves = _stacked([reached[number][1] for number, _ in lanes])
        watch = _Watch(group, self._early_stopping, curves, tests=self._tests)
        watch.test(runs, values, curves, used)
        first, used = int(curves.steps[-1]), watch.going_on(used)
        with group.batches(first, stop if used else first) as batches:
            while first < stop and used:
                end = next_stop(first, self._eval_every, stop)
                if stopping.is_set() or self._stopped.is_set():
                    raise CancelledError
                runs, curves = group.advance(runs, values, curves, end, used, batches)
                self._on_updates(len(chunk) * (end - first))
                watch.judge(curves)
                watch.test(runs, values, curves, used)
                first, used = end, watch.going_on(used)
        if first < stop:  # the updates that nobody needs
            self._on_updates(len(chunk) * (stop - first))
        curves = watch.ended(_padded(curves, self._eval_every, stop))
        if self._tests and self._early_stopping is None:
            curves = curves._replace(test=group.tested(runs, values, [*chunk]))
        curves_by_number = {
            number: watch.told(_lane(curves, lane), lane) for lane, (number, _) in chunk.items()
        }
        if keep:
            for lane, (number, _) in chunk.items():
                self._resumable[number] = (group.take(runs, lane), curves_by_number[number])
        return curves_by_number


class _Watch:
    """The early stopping of the runs of a chunk; without a rule none of them stops.

    Args:
        group: the programs of the chunk.
        rule: when a run stops; None for never.
        curves: the evaluations so far, which are judged first.
        tests: whether the test metrics of the evaluations that are kept are asked for.
    """

    def __init__(self, group: "_Group", rule: EarlyStopping | None, curves: Curves, *, tests: bool):
        self._group, self._tests, self._test = group, tests, {}
        self._stoppers = None if rule is None else Stoppers(rule, curves.losses.shape[:2])
        for index in range(len(curves.steps)):
            self.judge(curves, index)

    def judge(self, curves: Curves, index: int = -1) -> None:
        """Judge one of the evaluations, by default the last one."""
        if self._stoppers is not None:
            score, loss = (
                curves.validation[name][..., index] for name in (self._group.score, "loss")
            )
            self._stoppers.update(int(curves.steps[index]), score, loss)

    def test(self, runs: Any, values: Tree, curves: Curves, used: Sequence[int]) -> None:
        """Evaluate the runs whose last evaluation is kept on the test split."""
        if self._stoppers is None or not self._tests:
            return
        is_kept = self._stoppers.taken == curves.steps[-1]
        lanes = [lane for lane in used if is_kept[lane].any()]
        if lanes:
            new = self._group.tested(runs, values, lanes)
            self._test = {k: np.where(is_kept, x, self._test.get(k, x)) for k, x in new.items()}

    def going_on(self, used: Sequence[int]) -> list[int]:
        """Return those of some lanes that have a run that has not stopped."""
        if self._stoppers is None:
            return list(used)
        stopped = self._stoppers.stopped
        return [lane for lane in used if not stopped[lane].all()]

    def ended(self, curves: Curves) -> Curves:
        """Return the curves with NaN after the end of each run, and what is said of the ends."""
        if self._stoppers is None:
            return curves
        ended, updates = self._stoppers.ended, np.arange(1, curves.losses.shape[-1] + 1)
        return curves._replace(
            losses=blanked(curves.losses, updates, ended),
            validation={k: blanked(x, curves.steps, ended) for k, x in curves.validation.items()},
            test=self._test,
            ended=ended,
            taken=self._stoppers.taken,
        )

    def told(self, curves: Curves, lane: int) -> Curves:
        """Return the curves of a lane, with the reasons of its ends."""
        if self._stoppers is None:
            return curves
        reasons, causes = self._stoppers.reasons(lane), self._stoppers.causes(lane)
        return curves._replace(reasons=reasons, causes=causes)


class _Group:
    """The programs of the trials that share their static values with `example`.

    The constructor traces the programs, and threads compile them. Call `fit` before other methods.

    Attributes:
        compiled: a future of the compiled programs.
        turn: a context in which a chunk runs; where chunks must wait for each other, a lock.
    """

    def __init__(
        self,
        who: str,
        recipe: Recipe,
        example: Values,
        traced: Mapping[str, type],
        *,
        keys: Keys,
        lanes: int,
        members: int,
        size: int,
        evaluates: bool,
        threads: int,
        native: bool,
    ):
        task = recipe.make_task(example)
        self._example, self._traced, self._keys = example, traced, keys
        self._evaluates = evaluates
        self._split, self._has_test = "validation" if task.splits else None, "test" in task.splits
        self._score = task.score
        self._source = None
        if task.loader is not None:
            self._source = Batches(who, task.name, task.loader, timeout=task.timeout)
            self._source.refuse_one_shot(who, "by each group of trials")

        def make_run(lane: Tree) -> tuple[Task, optax.GradientTransformation]:
            return recipe.make({**example, **lane["values"]})

        def read(split: str) -> Iterator[tuple[Tree, int]]:
            return read_once(who, task.name, split, task.splits[split], timeout=task.timeout)

        share = _share(members, lanes, len(keys.init))
        options = {"keys": keys, "size": size, "read": read}
        self._together = partial(
            Together,
            who,
            make_run,
            task,
            devices=share.devices,
            division=share.division,
            **options,
        )
        example_batch = None if self._source is None else self._source.example
        way = way_of(make_run, self.values([example]), keys, example_batch)
        self._over_devices = way.over_devices
        self._threads = 1 if way.over_devices else threads
        self._apart = partial(
            Apart, who, make_run, task, threads=self._threads, native=native, **options
        )
        apart = way.apart or native
        self._lanes = self._apart(lanes=lanes) if apart else self._together(lanes=share.lanes)
        self._fitting = Lock()
        self.compiled = self._compile()

    @property
    def score(self) -> str:
        """The metric by which the trials are judged."""
        return self._score

    @property
    def lanes(self) -> int:
        """The number of trials that run at the same time."""
        return self._lanes.lanes

    @property
    def turn(self) -> Any:
        """A context in which a chunk runs; where chunks must wait for each other, a lock."""
        return ON_ALL_DEVICES if self._over_devices else self._lanes.turn

    def fit(self, memory: float) -> None:
        """Wait for the programs; compile them with fewer lanes if they need too much memory."""
        with self._fitting:
            self._fit(memory)

    def _fit(self, memory: float) -> None:
        while True:
            sizes = [_bytes(program) for program in self.compiled.result()]
            required = self._lanes.required(sizes, self._threads)
            is_apart, lanes = isinstance(self._lanes, Apart), self._lanes.lanes
            if required <= memory or (is_apart and lanes == 1):
                return
            if lanes == 1:
                self._lanes = self._apart(lanes=1)
            else:
                lanes = max(1, min(lanes - 1, int(lanes * memory / required)))
                self._together.keywords["devices"] = ()
                self._lanes = (self._apart if is_apart else self._together)(lanes=lanes)
            self.compiled = self._compile()

    def values(self, lanes: Sequence[Values]) -> Tree:
        """Return the traced values of all lanes as arrays (lanes,)."""
        arrays = {
            name: jnp.asarray([v[name] for v in lanes], dtype)
            for name, dtype in self._traced.items()
        }
        # The lane numbers define the number of lanes even if no value is traced.
        return {"lane": jnp.arange(len(lanes)), "values": arrays}

    def start(self, values: Tree, used: Sequence[int]) -> tuple[Any, Curves]:
        """Return all lanes before the first update, and their first evaluation."""
        runs = self._lanes.begin(values, used)
        losses = np.zeros((self.lanes, len(self._keys.init), 0), jnp.result_type(float))
        return runs, Curves(np.zeros(1, int), losses, self._metrics(runs, values, used))

    def stack(self, states: Sequence[TrainState]) -> Any:
        """Stack the states of single trials into lanes."""
        return self._lanes.stack(states)

    def take(self, runs: Any, lane: int) -> TrainState:
        """Return the state of a lane, arrays (seeds, …)."""
        return self._lanes.take(runs, lane)

    def advance(
        self,
        runs: Any,
        values: Tree,
        curves: Curves,
        stop: int,
        used: Sequence[int],
        batches: Iterator[Tree] | None,
    ) -> tuple[Any, Curves]:
        """Train on to the update `stop`, and evaluate there."""
        first = int(curves.steps[-1])
        scores = curves.validation.get(self._score, np.zeros((*curves.losses.shape[:2], 0)))
        judged = Judged.of(scores)
        runs, losses = self._lanes.advance(runs, values, first, stop, used, batches, judged)
        new = Curves(np.array([stop]), losses, self._metrics(runs, values, used))
        validation = {
            name: np.concatenate([curves.validation[name], values], axis=-1)
            for name, values in new.validation.items()
        }
        losses = np.concatenate([curves.losses, new.losses], axis=-1)
        return runs, Curves(np.append(curves.steps, stop), losses, validation)

    def tested(self, runs: Any, values: Tree, used: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the metrics on the test split, (lanes, seeds) each; empty if there is none."""
        return self._lanes.evaluate(runs, values, "test", used) if self._has_test else {}

    @contextmanager
    def batches(self, first: int, stop: int) -> Iterator[Iterator[Tree] | None]:
        """Yield the batches of the loader for some updates; None if there is no loader."""
        if self._source is None or first >= stop:
            yield None
            return
        start, stop = first * self._lanes.batches, stop * self._lanes.batches
        with self._source.read(start=start, stop=stop, move=self._lanes.move) as pairs:
            yield (batch for batch, _ in pairs)

    def _metrics(self, runs: Any, values: Tree, used: Sequence[int]) -> dict[str, np.ndarray]:
        if not self._evaluates:
            return {}
        metrics = self._lanes.evaluate(runs, values, self._split, used)
        return {name: value[..., None] for name, value in metrics.items()}

    def _compile(self) -> Future:
        values = self.values([self._example] * self.lanes)
        layout = None if self._source is None else self._source.layout
        splits = [self._split] if self._evaluates else []
        lowered = self._lanes.programs(values, splits, layout)
        return _in_thread(lambda: _at_once([program.compile for program in lowered]))


def grouped(
    points: Iterable[Point], traced: Container[str], skip: Container[int]
) -> dict[Static, list[tuple[int, Point]]]:
    """Return the trials to be trained of each program, with their places in it.

    Args:
        points: the trials.
        traced: the names of the values that are arguments of a program.
        skip: numbers of trials that are not trained, but keep their places.
    """
    places: dict[Static, int] = defaultdict(int)
    members: dict[Static, list[tuple[int, Point]]] = defaultdict(list)
    for number, values in points:
        static = tuple((k, repr(v)) for k, v in values.items() if k not in traced)
        if number not in skip:
            members[static].append((places[static], (number, values)))
        places[static] += 1
    return members


def chunks(members: Members, lanes: int, reached: Mapping[int, int]) -> Iterator[Chunk]:
    """Assign trials to the lanes of their places; the trials of a chunk start together.

    Args:
        members: the trials of one program.
        lanes: its lanes.
        reached: the updates after which a trial continues, by number; other trials begin.
    """
    queues: dict[int, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for place, (number, values) in members:
        queues[reached.get(number, -1)][place % lanes].append((number, values))
    for by_lane in queues.values():
        for row in zip_longest(*by_lane.values()):
            yield {lane: p for lane, p in zip(by_lane, row, strict=True) if p is not None}


def _in_thread(function: Callable[[], Any]) -> Future:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future


def _at_once(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call each function in its own thread, and return the results."""
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def _bytes(program: Any) -> int:
    """Return the bytes that a compiled program needs, with its data; 0 if unknown."""
    sizes = program.memory_analysis()
    if sizes is None:
        return 0
    shared = sizes.alias_size_in_bytes
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - shared
    )


def default_lanes() -> int:
    """Return the lanes of a device, if nobody says how many."""
    return LANES.get(jax.default_backend(), LANES_ELSEWHERE)


def streams() -> int:
    """Return the number of programs that run at the same time."""
    return os.cpu_count() or 1 if jax.default_backend() == "cpu" else 1


class _Share(NamedTuple):
    """How some trials are divided between devices: the devices, none for one, the lanes of each."""

    devices: list[jax.Device]
    lanes: int
    division: Division


def _share(members: int, lanes: int, seeds: int) -> _Share:
    """Return how trials are divided between the local devices.

    On a CPU the lanes of a device are filled before those of the next one, so that trials have the
    same bits on any number of devices. Elsewhere all devices have a part, and a single trial is
    divided by its seeds.

    Args:
        members: the trials.
        lanes: the most lanes of a device.
        seeds: the runs of each trial.
    """
    devices = jax.local_devices()
    if not _fills_lanes_first():
        lanes = min(lanes, -(-members // len(devices)))
        if members == 1:
            used = max(n for n in range(1, len(devices) + 1) if seeds % n == 0)
            return _Share(devices[:used] if used > 1 else [], lanes, BY_SEEDS)
    used = min(-(-members // lanes), len(devices))
    return _Share(devices[:used] if used > 1 else [], lanes, BY_LANES)


def _fills_lanes_first() -> bool:
    return jax.default_backend() == "cpu"


def available_memory() -> float:
    """Return half of the device's memory, in bytes; ∞ if it is unknown."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit / 2 if limit else np.inf


def _mean(losses: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis of what is finite there; NaN where nothing is."""
    finite = np.isfinite(losses)
    total = np.where(finite, losses, 0).sum(axis=-1, dtype=np.float64)
    count = finite.sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _stacked(curves: Sequence[Curves]) -> Curves:
    """Stack the curves of trials into lanes."""
    return Curves(
        curves[0].steps,
        np.stack([c.losses for c in curves]),
        {name: np.stack([c.validation[name] for c in curves]) for name in curves[0].validation},
    )


def _padded(curves: Curves, every: int, stop: int) -> Curves:
    """Return curves up to an update, with NaN for what was not trained or evaluated."""
    steps = [int(curves.steps[-1])]
    while steps[-1] < stop:
        steps.append(next_stop(steps[-1], every, stop))

    def longer(curve: np.ndarray, count: int) -> np.ndarray:
        rest = np.full((*curve.shape[:-1], count), np.nan, curve.dtype)
        return np.concatenate([curve, rest], axis=-1)

    if len(steps) == 1:
        return curves
    return curves._replace(
        steps=np.append(curves.steps, steps[1:]),
        losses=longer(curves.losses, stop - steps[0]),
        validation={k: longer(x, len(steps) - 1) for k, x in curves.validation.items()},
    )


def _lane(curves: Curves, index: int) -> Curves:
    validation, test = (
        {name: values[index] for name, values in metrics.items()}
        for metrics in (curves.validation, curves.test)
    )
    ended, taken = (
        None if updates is None else updates[index] for updates in (curves.ended, curves.taken)
    )
    losses = curves.losses[index]
    return Curves(curves.steps, losses, validation, test, ended, taken)
