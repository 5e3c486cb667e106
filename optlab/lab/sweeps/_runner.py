"""Train the trials of a sweep, as lanes of one compiled program where shapes allow.

Values that set no shape and choose no branch are arguments of a program; each trial is a lane. The
other values are static. Trials with the same static values form a group, which has its own program,
compiled once: a program always has the same number of lanes, some of them idle when trials run out,
and can advance from any update to any other. On a CPU, one program runs per core.

A lane's result does not depend on its neighbours, but a trial may differ in its last bit between
lanes. If lanes share an operand, as they share the batch in the first layer, XLA computes their
products as one large matrix product and rounds its last columns differently. Each trial therefore
has a fixed lane, given by its place among all trials of its program, whichever of them run.
"""

import os
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab._types import Array, Tree
from optlab.lab.sweeps._recipe import Recipe, Values
from optlab.lab.training._lanes import make_lanes
from optlab.lab.training._loop import TrainState

Point = tuple[int, Values]
"""The number and the values of a trial."""

Chunk = Mapping[int, Point]
"""The trials that run together, by lane; lanes without a trial are idle."""

Static = tuple[tuple[str, str], ...]
"""The values that are compiled into a program, as a key to look it up by."""


class Curves(NamedTuple):
    """The curves of a trial, or of several in lanes.

    Attributes:
        steps: (evaluations,) int.
        train_loss: (seeds, evaluations) float.
        validation: metric → (seeds, evaluations) float.
    """

    steps: np.ndarray
    train_loss: np.ndarray
    validation: dict[str, np.ndarray]


class TrialRuns:
    """The trials of one sweep, each trained up to the last requested update.

    Args:
        recipe: what to train.
        traced: the values that are arguments of a program, name → type.
        seeds: the seeds of the runs of each trial.
        eval_every: updates between evaluations.
        lanes: trials that run together.
        memory: bytes that all programs running together may take; if they would take more, fewer
            lanes run.
        on_updates: called with the number of updates done, over all trials; from several threads.
    """

    def __init__(
        self,
        recipe: Recipe,
        traced: Mapping[str, type],
        *,
        seeds: Sequence[int],
        eval_every: int,
        lanes: int,
        memory: float,
        on_updates: Callable[[int], None],
    ):
        self._recipe, self._traced, self._on_updates = recipe, traced, on_updates
        self._seeds = jnp.asarray(seeds)
        # One program per core of a CPU, because a program of few lanes keeps only one core busy.
        self._streams = os.cpu_count() or 1 if jax.default_backend() == "cpu" else 1
        self._eval_every, self._lanes, self._memory = eval_every, lanes, memory / self._streams
        self._groups: dict[tuple, _Group] = {}
        self._resumable: dict[int, tuple[TrainState, Curves]] = {}
        self._stopping = False

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
        pending = self._grouped(points, skip)
        compiling: dict[Future, tuple[_Group, list[tuple[int, Point]]]] = {}
        running: set[Future] = set()
        with ThreadPoolExecutor(self._streams) as pool:
            try:
                while pending or compiling or running:
                    # Trace and compile the next group while the previous one runs.
                    while pending and len(compiling) + len(running) < self._streams:
                        static, members = pending.popleft()
                        _, (_, example) = members[0]
                        group = self._group(static, example)
                        compiling[group.compiled] = group, members
                    for future in wait([*compiling, *running], return_when=FIRST_COMPLETED).done:
                        if future in running:
                            running.remove(future)
                            yield future.result()
                            continue
                        group, members = compiling.pop(future)
                        group.fit(self._memory)
                        for chunk in self._chunks(members, group.lanes):
                            running.add(pool.submit(self._run_chunk, group, chunk, stop, keep))
            finally:  # stops the remaining work after an error or an interruption
                self._stopping = True
                pool.shutdown(cancel_futures=True)
                self._stopping = False

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop the stored states of trials that do not continue."""
        for number in numbers:
            self._resumable.pop(number, None)

    def take(self, number: int) -> TrainState:
        """Return the stored state of a trial, arrays (seeds, …), and drop it."""
        return self._resumable.pop(number)[0]

    def _grouped(
        self, points: Sequence[Point], skip: Container[int]
    ) -> deque[tuple[Static, list[tuple[int, Point]]]]:
        """Return the trials to be trained of each program, with their places in it."""
        places: dict[Static, int] = defaultdict(int)
        members_by_static: dict[Static, list[tuple[int, Point]]] = defaultdict(list)
        for number, values in points:
            static = tuple((k, repr(v)) for k, v in values.items() if k not in self._traced)
            if number not in skip:
                members_by_static[static].append((places[static], (number, values)))
            places[static] += 1
        return deque(members_by_static.items())

    def _chunks(self, members: Sequence[tuple[int, Point]], lanes: int) -> Iterator[Chunk]:
        """Assign trials to the lanes of their places; the trials of a chunk start together."""
        queues: dict[int, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
        for place, (number, values) in members:
            reached = self._resumable[number][1].steps[-1] if number in self._resumable else -1
            queues[int(reached)][place % lanes].append((number, values))
        for by_lane in queues.values():
            for row in zip_longest(*by_lane.values()):
                yield {lane: p for lane, p in zip(by_lane, row, strict=True) if p is not None}

    def _group(self, static: Static, example: Values) -> "_Group":
        if static not in self._groups:
            self._groups[static] = _Group(
                self._recipe, example, self._traced, self._seeds, self._lanes
            )
        return self._groups[static]

    def _run_chunk(self, group: "_Group", chunk: Chunk, stop: int, keep: bool) -> dict[int, Curves]:
        every = self._eval_every
        filler = next(iter(chunk.values()))  # fills idle lanes, whose results are not used
        lanes = [chunk.get(lane, filler) for lane in range(group.lanes)]
        values = group.values([v for _, v in lanes])
        reached = {number: self._resumable.pop(number, None) for number, _ in chunk.values()}
        if reached[filler[0]] is None:
            runs, curves = group.start(values)
        else:
            runs = group.stack([reached[number][0] for number, _ in lanes])
            curves = _stacked([reached[number][1] for number, _ in lanes])
        first = int(curves.steps[-1])
        for end in (*range(first - first % every + every, stop, every), stop):
            if self._stopping:
                raise CancelledError
            runs, curves = group.advance(runs, values, curves, end)
            self._on_updates(len(chunk) * (end - first))
            first = end
        curves_by_number = {number: _lane(curves, lane) for lane, (number, _) in chunk.items()}
        if keep:
            for lane, (number, _) in chunk.items():
                self._resumable[number] = (group.take(runs, lane), curves_by_number[number])
        return curves_by_number


class _Group:
    """The programs of the trials that share their static values with `example`.

    The constructor traces the programs, and threads compile them. Call `fit` before other methods.

    Attributes:
        compiled: a future of the compiled programs.
        lanes: the number of trials that run together.
    """

    def __init__(
        self,
        recipe: Recipe,
        example: Values,
        traced: Mapping[str, type],
        seeds: Array,
        lanes: int,
    ):
        task = recipe.make_task(example)
        self._data = task.splits["validation"] if task.splits else None
        self._example, self._traced = example, traced
        self._seeds, self.lanes = seeds, lanes
        self._programs = make_lanes(lambda lane: recipe.make({**example, **lane["values"]}))
        self.compiled = self._compile()
        self.take = jax.jit(lambda runs, i: jax.tree.map(lambda x: x[i], runs))
        self._stack = jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states))

    def fit(self, memory: float) -> None:
        """Wait for the programs; compile them with fewer lanes if they need too much memory."""
        while True:
            self._begin, self._advance, self._evaluate = self.compiled.result()
            required_bytes = max(map(_bytes, (self._begin, self._advance, self._evaluate)))
            if required_bytes <= memory or self.lanes == 1:
                return
            self.lanes = max(1, min(self.lanes - 1, int(self.lanes * memory / required_bytes)))
            self.compiled = self._compile()

    def values(self, lanes: Sequence[Values]) -> Tree:
        """Return the traced values of all lanes as arrays (lanes,)."""
        arrays = {
            name: jnp.asarray([v[name] for v in lanes], dtype)
            for name, dtype in self._traced.items()
        }
        # The lane numbers define the number of lanes even if no value is traced.
        return {"lane": jnp.arange(len(lanes)), "values": arrays}

    def start(self, values: Tree) -> tuple[TrainState, Curves]:
        """Return all lanes before the first update, and their first evaluation."""
        runs = self._begin(values, self._seeds)
        metrics = self._metrics(runs, values)
        unknown = np.full((self.lanes, len(self._seeds), 1), np.nan, np.float32)
        return runs, Curves(np.zeros(1, int), unknown, metrics)

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """Stack the states of single trials into lanes."""
        return self._stack(*states)

    def advance(
        self, runs: TrainState, values: Tree, curves: Curves, stop: int
    ) -> tuple[TrainState, Curves]:
        """Train on to the update `stop`, and evaluate there."""
        first = np.int32(curves.steps[-1])
        runs, losses = self._advance(runs, values, self._seeds, first, np.int32(stop))
        new = Curves(np.array([stop]), np.asarray(losses)[..., None], self._metrics(runs, values))
        return runs, jax.tree.map(lambda *x: np.concatenate(x, axis=-1), curves, new)

    def _metrics(self, runs: TrainState, values: Tree) -> dict[str, np.ndarray]:
        metrics = self._evaluate(runs, values, self._data)
        return {name: value[..., None] for name, value in jax.device_get(dict(metrics)).items()}

    def _compile(self) -> Future:
        values, step = self.values([self._example] * self.lanes), np.int32(0)
        runs = jax.eval_shape(self._programs.begin, values, self._seeds)
        lowered = [
            self._programs.begin.lower(values, self._seeds),
            self._programs.advance.lower(runs, values, self._seeds, step, step),
            self._programs.evaluate.lower(runs, values, self._data),
        ]
        return _in_thread(lambda: _at_once([program.compile for program in lowered]))


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


def available_memory() -> float:
    """Return half of the device's memory, in bytes; ∞ if it is unknown."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit / 2 if limit else np.inf


def _stacked(curves: Sequence[Curves]) -> Curves:
    """Stack the curves of trials into lanes."""
    return Curves(
        curves[0].steps,
        np.stack([c.train_loss for c in curves]),
        {name: np.stack([c.validation[name] for c in curves]) for name in curves[0].validation},
    )


def _lane(curves: Curves, index: int) -> Curves:
    validation = {name: values[index] for name, values in curves.validation.items()}
    return Curves(curves.steps, curves.train_loss[index], validation)
