"""Two ways to train runs in lanes: together in one program, or apart, one after another.

Runs are those of several trials, which differ in the values of hyperparameters, from several seeds.
Arrays over all runs are (lanes, seeds, …).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optlab._types import Array, Tree
from optlab.lab.tasks._task import Batch, Task
from optlab.lab.training import _loop
from optlab.lab.training._engine import BY_LANES, Carry, Division, Engine, MakeRun, Unfinished
from optlab.lab.training._evaluation import Evaluator, ReadOnce
from optlab.lab.training._loop import Judged, Keys, TrainState
from optlab.lab.training._threads import settings
from optlab.lab.training._work import work_of

LITTLE_WORK = 5e7
"""Floating-point operations of an update up to which a CPU updates several lanes together.

On two cores, updates of dense networks of 3 million operations are about twice as fast together as
apart, and those of 30 million about as fast. Larger ones are faster apart, as they leave the cache.
"""


class Way(NamedTuple):
    """How the lanes of some trials run.

    Attributes:
        apart: whether they are runs of their own, one after another, and not one program.
        over_devices: whether a run is divided over devices itself; only one runs at a time then.
    """

    apart: bool
    over_devices: bool


def way_of(make_run: MakeRun, values: Tree, keys: Keys, batch: Batch | None) -> Way:
    """Return the way in which the lanes of some trials run.

    On a CPU single runs are faster than lanes together for updates with convolutions, whose kernels
    then differ between lanes, with loops, or with much work. Other platforms are faster with much
    work at once.

    Args:
        make_run: values → task and optimizer.
        values: the values of each lane.
        keys: the keys of the runs, each (seeds,).
        batch: a batch of the task's loader; None if batches come from `Task.batch`.
    """

    def begin(lane: Tree, keys: Keys) -> TrainState:
        return _loop.begin(*make_run(lane), keys)

    def update(lane: Tree, keys: Keys, run: TrainState, step: Array) -> tuple[TrainState, Array]:
        task, tx = make_run(lane)
        if batch is None:
            return _loop.update(task, tx, keys, run, step)
        return _loop.update_on(task, tx, run, batch, keys.noise)

    lane, keys = _at(values, 0), _at(keys, 0)
    run = jax.eval_shape(begin, lane, keys)
    work = work_of(update, lane, keys, run, jnp.int32(0))
    on_mesh = not jax.sharding.get_abstract_mesh().empty
    if on_mesh or work.is_divided or work_of(begin, lane, keys).is_divided:
        return Way(apart=True, over_devices=True)
    is_large = work.has_convolutions or work.has_loops or work.flops > LITTLE_WORK
    return Way(apart=is_large and jax.default_backend() == "cpu", over_devices=False)


class Together:
    """Lanes that one program updates at once.

    Args:
        who: the public name that errors begin with.
        make_run: the values of one lane → task and optimizer.
        task: the task; where it depends on the values, that of one of the lanes.
        keys: the keys of the runs, each (seeds,).
        lanes: the lanes of one device.
        size: the most updates of one call of `advance`.
        read: the batches of splits that are streams.
        devices: the devices that the runs are divided between.
        division: whether each device has some of the lanes, or all lanes of some seeds.
    """

    def __init__(
        self,
        who: str,
        make_run: MakeRun,
        task: Task,
        *,
        keys: Keys,
        lanes: int,
        size: int,
        read: ReadOnce,
        devices: Sequence[jax.Device],
        division: Division,
    ):
        self._keys, self._task, self._size = keys, task, size
        self.lanes = lanes * max(1, len(devices)) if division is BY_LANES else lanes
        options = {"devices": devices, "division": division}
        self._engine = Engine(make_run, observe=observe_loss, size=size, in_lanes=True, **options)
        self._evaluator = Evaluator(who, task, over=lambda lane: make_run(lane)[0], batches=read)
        self.turn = Lock() if task.loader is not None else nullcontext()
        self.move = jax.device_put
        if self._engine.mesh is not None:
            everywhere = NamedSharding(self._engine.mesh, PartitionSpec())
            self.move = partial(jax.device_put, device=everywhere)
        self.take = jax.jit(lambda carry, lane: _at(carry.runs, lane))
        self._stack = jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states))

    @property
    def batches(self) -> int:
        """The batches of an update."""
        return self._engine.batches

    def begin(self, values: Tree, used: Sequence[int]) -> Carry:
        """Return all lanes before their first update."""
        del used  # idle lanes cost no more than others
        return self._engine.begin(values, self._keys)

    def stack(self, states: Sequence[TrainState]) -> Carry:
        """Return the lanes of single trials, arrays (seeds, …)."""
        shape = (self._size, len(states), len(self._keys.init))
        carry = Carry(self._stack(*states), {"loss": jnp.zeros(shape, float)})
        return self._engine.divided(carry)

    def advance(
        self,
        carry: Carry,
        values: Tree,
        first: int,
        stop: int,
        used: Sequence[int],
        batches: Iterator[Batch] | None,
        judged: Judged,
    ) -> tuple[Carry, np.ndarray]:
        """Return the lanes after some updates, and their losses (lanes, seeds, updates)."""
        del used
        try:
            carry, records = self._engine.advance(
                carry, values, self._keys, first, stop, batches=batches, judged=judged
            )
        except Unfinished as error:  # trials that are not whole are not kept
            raise error.__cause__ from error.__cause__.__cause__
        return carry, records["loss"]

    def evaluate(
        self, carry: Carry, values: Tree, split: str | None, used: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Return the metrics of all lanes, (lanes, seeds) each."""
        del used
        return self._evaluator(carry.runs.params, carry.runs.model_state, split, values)

    def programs(
        self, values: Tree, splits: Sequence[str | None], batch: Batch | None
    ) -> list[jax.stages.Lowered]:
        """Trace all programs, those that evaluate `splits` too, and return them to be compiled."""
        carry = self._engine.shapes(values, self._keys)
        return _programs(self._engine, self._evaluator, carry, values, self._keys, splits, batch)

    def required(self, bytes_of_programs: Sequence[int], threads: int) -> float:
        """Return the bytes that one thread of `threads` needs."""
        del threads
        return max(bytes_of_programs)


class Apart:
    """Lanes that are runs of their own, in as many threads as there are cores.

    Args:
        who: the public name that errors begin with.
        make_run: the values of one lane → task and optimizer.
        task: the task; where it depends on the values, that of one of the lanes.
        keys: the keys of the runs, each (seeds,).
        lanes: the lanes.
        size: the most updates of one call of `advance`.
        read: the batches of splits that are streams.
        threads: the threads.
        native: whether `optlab.native.step` makes the steps.
    """

    def __init__(
        self,
        who: str,
        make_run: MakeRun,
        task: Task,
        *,
        keys: Keys,
        lanes: int,
        size: int,
        read: ReadOnce,
        threads: int,
        native: bool = False,
    ):
        self._keys, self._task = [_at(keys, seed) for seed in range(len(keys.init))], task
        self.lanes, self._size = lanes, size
        options = {"in_lanes": False, "native": native}
        self._engine = Engine(make_run, observe=observe_loss, size=size, **options)

        def evaluate(params_and_lane: tuple[Tree, Tree], state: Tree, data: Any) -> Any:
            params, lane = params_and_lane
            return make_run(lane)[0].evaluate(params, state, data)

        self._evaluator = Evaluator(who, replace(task, evaluate=evaluate), batches=read)
        self.turn, self.move = Lock(), jax.device_put
        self._pool = ThreadPoolExecutor(threads)

    def begin(self, values: Tree, used: Sequence[int]) -> dict[int, list[Carry]]:
        """Return the runs of the lanes in use before their first update."""
        jobs = [partial(self._engine.begin, _at(values, n), keys) for n, keys in self._runs(used)]
        return self._by_lane(used, self._at_once(jobs))

    def stack(self, states: Sequence[TrainState]) -> dict[int, list[Carry]]:
        """Return the lanes of single trials, arrays (seeds, …)."""
        return {
            lane: [
                Carry(_at(state, seed), {"loss": jnp.zeros((self._size,), float)})
                for seed in range(len(self._keys))
            ]
            for lane, state in enumerate(states)
        }

    @property
    def batches(self) -> int:
        """The batches of an update."""
        return self._engine.batches

    def take(self, runs: dict[int, list[Carry]], lane: int) -> TrainState:
        """Return the state of one lane, arrays (seeds, …)."""
        return jax.tree.map(lambda *x: jnp.stack(x), *(carry.runs for carry in runs[lane]))

    def advance(
        self,
        runs: dict[int, list[Carry]],
        values: Tree,
        first: int,
        stop: int,
        used: Sequence[int],
        batches: Iterator[Batch] | None,
        judged: Judged,
    ) -> tuple[dict[int, list[Carry]], np.ndarray]:
        """Return the lanes after some updates, and their losses (lanes, seeds, updates)."""
        single = [
            (carry, _at(values, lane), keys, _at(judged, (lane, seed)))
            for lane in used
            for seed, (carry, keys) in enumerate(zip(runs[lane], self._keys, strict=True))
        ]
        if batches is not None:  # all runs share each batch
            ended = self._engine.advance_all(single, first, stop, batches)
        else:
            ended = self._at_once(
                [
                    partial(self._engine.advance, *run, first, stop, judged=last)
                    for *run, last in single
                ]
            )
        losses = self._in_all_lanes([records["loss"] for _, records in ended], used)
        return {**runs, **self._by_lane(used, [carry for carry, _ in ended])}, losses

    def evaluate(
        self, runs: dict[int, list[Carry]], values: Tree, split: str | None, used: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Return the metrics of all lanes, (lanes, seeds) each."""

        def job(carry: Carry, lane: Tree) -> dict[str, np.ndarray]:
            return self._evaluator((carry.runs.params, lane), carry.runs.model_state, split)

        jobs = [partial(job, carry, _at(values, lane)) for lane in used for carry in runs[lane]]
        # A stream is read by one run at a time.
        is_stream = split is not None and self._evaluator.is_stream(split)
        ended = [job() for job in jobs] if is_stream else self._at_once(jobs)
        return {
            name: self._in_all_lanes([metrics[name] for metrics in ended], used)
            for name in ended[0]
        }

    def programs(
        self, values: Tree, splits: Sequence[str | None], batch: Batch | None
    ) -> list[jax.stages.Lowered]:
        """Trace all programs, those that evaluate `splits` too, and return them to be compiled."""
        lane, keys = _at(values, 0), self._keys[0]
        carry = self._engine.shapes(lane, keys)
        run = carry.runs._replace(params=(carry.runs.params, lane))
        return _programs(
            self._engine, self._evaluator, carry, lane, keys, splits, batch, evaluated=run
        )

    def required(self, bytes_of_programs: Sequence[int], threads: int) -> float:
        """Return the bytes that one thread of `threads` needs."""
        runs = self.lanes * len(self._keys)
        return max(bytes_of_programs) * max(1, runs / threads)

    def _runs(self, used: Sequence[int]) -> list[tuple[int, Keys]]:
        return [(lane, keys) for lane in used for keys in self._keys]

    def _by_lane(self, used: Sequence[int], runs: Sequence[Any]) -> dict[int, list[Any]]:
        seeds = len(self._keys)
        return {lane: list(runs[i * seeds : (i + 1) * seeds]) for i, lane in enumerate(used)}

    def _in_all_lanes(self, results: Sequence[np.ndarray], used: Sequence[int]) -> np.ndarray:
        """Return the results of all runs as (lanes, seeds, …), with NaN in idle lanes."""
        stacked = np.stack(results).reshape(len(used), len(self._keys), *results[0].shape)
        whole = np.full((self.lanes, *stacked.shape[1:]), math.nan, stacked.dtype)
        whole[list(used)] = stacked
        return whole

    def _at_once(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        return list(self._pool.map(settings(), jobs))


def observe_loss(opt_state: Any, loss: Array) -> dict[str, Array]:
    """Return the record of an update of runs in lanes: the loss alone."""
    del opt_state
    return {"loss": jnp.asarray(loss, float)}


def _programs(
    engine: Engine,
    evaluator: Evaluator,
    carry: Carry,
    values: Tree,
    keys: Keys,
    splits: Sequence[str | None],
    batch: Batch | None,
    evaluated: TrainState | None = None,
) -> list[jax.stages.Lowered]:
    step, run = np.int32(0), carry.runs if evaluated is None else evaluated
    runs = np.shape(jax.tree.leaves(values)[0]) + np.shape(keys.init)
    judged = Judged.of(np.zeros((*runs, 0)))
    if batch is None:
        advance = engine.loop_program.lower(values, keys, carry, step, step, judged)
    else:
        advance = engine.call_program.lower(values, keys, carry, step, step, batch, judged)
    lanes = () if evaluated is not None else values
    programs = [engine.begin_program.lower(values, keys), advance]
    for split in splits:
        programs += evaluator.lower(run.params, run.model_state, split, lanes)
    return programs


def _at(tree: Tree, index: int) -> Tree:
    return jax.tree.map(lambda x: x[index], tree)
