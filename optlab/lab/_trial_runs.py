"""Train the trials of a sweep: lanes of one compiled program where shapes allow.

Values that set no shape and choose no branch are arguments of a program, a lane for each trial.
Trials that differ in the others, the static ones, make a group each, with a program of its own,
which is compiled once: a program always has the same number of lanes, idle ones among them where
trials run out, and goes from any update to any other. On a CPU, as many programs as it has cores
run at once.

A lane's result does not depend on what its neighbours hold, but the same trial may come out
otherwise in its last bit in another lane: where lanes share one operand, as all do the batch in the
first layer, their products are one large matrix product, whose last columns are rounded apart. So a
trial keeps its lane, by its place among all trials of its program, whichever of them are run.
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
from optlab.lab._lanes import make_lanes
from optlab.lab._loop import TrainState
from optlab.lab._recipe import Recipe, Values

Point = tuple[int, Values]
"""A trial's number and values."""

Chunk = Mapping[int, Point]
"""Trials by the lanes in which they run together; the other lanes are idle."""

Static = tuple[tuple[str, str], ...]
"""The values that are compiled into a program, as something to look it up by."""


class Curves(NamedTuple):
    """What a trial has come to.

    Attributes:
        steps: (evaluations,) int.
        train_loss: (seeds, evaluations) float.
        validation: metric → (seeds, evaluations) float.
    """

    steps: np.ndarray
    train_loss: np.ndarray
    validation: dict[str, np.ndarray]


class TrialRuns:
    """The trials of one sweep, trained as far as asked.

    Args:
        recipe: what to train.
        traced: the values that are arguments of a program, name → type.
        seeds: of the runs of each trial.
        eval_every: updates between evaluations.
        lanes: trials that run together.
        memory: bytes that all that run together may take; fewer lanes do where they would take
            more.
        on_updates: told of the updates done, of all trials together; from several threads.
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
        # A core of a CPU each: a single program of few lanes keeps only one busy.
        self._streams = os.cpu_count() or 1 if jax.default_backend() == "cpu" else 1
        self._eval_every, self._lanes, self._memory = eval_every, lanes, memory / self._streams
        self._groups: dict[tuple, _Group] = {}
        self._reached: dict[int, tuple[TrainState, Curves]] = {}
        self._stopping = False

    def run(
        self,
        points: Sequence[Point],
        stop: int,
        *,
        skip: Container[int] = (),
        keep: bool = False,
    ) -> Iterator[dict[int, Curves]]:
        """Train up to an update; yield what has come of the trials, as many at a time as end.

        Args:
            points: the trials. Those that were kept go on from where they were.
            stop: updates done at the end.
            skip: the numbers of trials that have their place among these, but are not trained.
            keep: whether they may be asked to go on later, and what that takes is kept.
        """
        wanted = self._grouped(points, skip)
        compiling: dict[Future, tuple[_Group, list[tuple[int, Point]]]] = {}
        running: set[Future] = set()
        with ThreadPoolExecutor(self._streams) as pool:
            try:
                while wanted or compiling or running:
                    # The next group is traced and compiled while the last one runs.
                    while wanted and len(compiling) + len(running) < self._streams:
                        static, members = wanted.popleft()
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
            finally:  # an error or an interruption, if there is anything left
                self._stopping = True
                pool.shutdown(cancel_futures=True)
                self._stopping = False

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop what was kept of trials that do not go on."""
        for number in numbers:
            self._reached.pop(number, None)

    def _grouped(
        self, points: Sequence[Point], skip: Container[int]
    ) -> deque[tuple[Static, list[tuple[int, Point]]]]:
        """Return the trials of each program that are to be trained, with their places there."""
        places: dict[Static, int] = defaultdict(int)
        found: dict[Static, list[tuple[int, Point]]] = defaultdict(list)
        for number, values in points:
            static = tuple((k, repr(v)) for k, v in values.items() if k not in self._traced)
            if number not in skip:
                found[static].append((places[static], (number, values)))
            places[static] += 1
        return deque(found.items())

    def _chunks(self, members: Sequence[tuple[int, Point]], lanes: int) -> Iterator[Chunk]:
        """Deal trials out to the lanes of their places; those of a chunk go on from one update."""
        queues: dict[int, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
        for place, (number, values) in members:
            reached = self._reached[number][1].steps[-1] if number in self._reached else -1
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
        anyone = next(iter(chunk.values()))  # to fill the idle lanes, at which nobody looks
        lanes = [chunk.get(lane, anyone) for lane in range(group.lanes)]
        values = group.values([v for _, v in lanes])
        kept = {number: self._reached.pop(number, None) for number, _ in chunk.values()}
        if kept[anyone[0]] is None:
            runs, curves = group.start(values)
        else:
            runs = group.stack([kept[number][0] for number, _ in lanes])
            curves = _stacked([kept[number][1] for number, _ in lanes])
        first = int(curves.steps[-1])
        for end in (*range(first - first % every + every, stop, every), stop):
            if self._stopping:
                raise CancelledError
            runs, curves = group.advance(runs, values, curves, end)
            self._on_updates(len(chunk) * (end - first))
            first = end
        found = {number: _lane(curves, lane) for lane, (number, _) in chunk.items()}
        if keep:
            for lane, (number, _) in chunk.items():
                self._reached[number] = (group.take(runs, lane), found[number])
        return found


class _Group:
    """The programs of the trials that share their static values with `example`.

    They are traced at once and compiled in threads. Nothing may be asked of a group before `fit`.

    Attributes:
        compiled: done when they are.
        lanes: how many trials run together.
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
        """Wait for the programs; with fewer lanes, where one needs more memory than this."""
        while True:
            self._begin, self._advance, self._evaluate = self.compiled.result()
            needed = max(map(_bytes, (self._begin, self._advance, self._evaluate)))
            if needed <= memory or self.lanes == 1:
                return
            self.lanes = max(1, min(self.lanes - 1, int(self.lanes * memory / needed)))
            self.compiled = self._compile()

    def values(self, lanes: Sequence[Values]) -> Tree:
        """Return the traced values of all lanes as arrays (lanes,)."""
        arrays = {
            name: jnp.asarray([v[name] for v in lanes], dtype)
            for name, dtype in self._traced.items()
        }
        # The lanes' numbers are there even if no value is, to say how many lanes there are.
        return {"lane": jnp.arange(len(lanes)), "values": arrays}

    def start(self, values: Tree) -> tuple[TrainState, Curves]:
        """Return all lanes before the first update, and their first evaluation."""
        runs = self._begin(values, self._seeds)
        metrics = self._metrics(runs, values)
        unknown = np.full((self.lanes, len(self._seeds), 1), np.nan, np.float32)
        return runs, Curves(np.zeros(1, int), unknown, metrics)

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """Return lanes of single trials."""
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
        found = self._evaluate(runs, values, self._data)
        return {name: value[..., None] for name, value in jax.device_get(dict(found)).items()}

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
    """Return the results of functions, each called in a thread of its own."""
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def _bytes(program: Any) -> int:
    """Return what a compiled program takes, its arguments and results included; 0 if unknown."""
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
    """Return half the bytes that the device has; infinity where that is not known."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit / 2 if limit else np.inf


def _stacked(curves: Sequence[Curves]) -> Curves:
    """Return the curves of lanes."""
    return Curves(
        curves[0].steps,
        np.stack([c.train_loss for c in curves]),
        {name: np.stack([c.validation[name] for c in curves]) for name in curves[0].validation},
    )


def _lane(curves: Curves, index: int) -> Curves:
    validation = {name: values[index] for name, values in curves.validation.items()}
    return Curves(curves.steps, curves.train_loss[index], validation)
