"""Many runs in one compiled program: over values of hyperparameters, and over seeds.

Arrays over all runs are (lanes, seeds, …). All lanes of one seed share their initialization, their
batches and their random keys, so that they differ in the hyperparameters alone. Anything that does
not depend on the hyperparameters is computed once for all lanes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optlab._types import Array, Tree
from optlab.lab.tasks._task import Task
from optlab.lab.training import _loop
from optlab.lab.training._loop import Keys, TrainState

MakeRun = Callable[[Tree], tuple[Task, optax.GradientTransformation]]
"""A function from one lane's values, () arrays that may be traced, to the task and optimizer."""


class Lanes(NamedTuple):
    """The compiled functions of all runs of one `MakeRun`.

    Attributes:
        begin: (values, seeds) → runs, with values a tree of (lanes,) and seeds (seeds,) int.
        advance: (runs, values, seeds, first, stop) → (runs, losses): the runs after the updates
            `first` … `stop` − 1, and their mean losses (lanes, seeds). The runs passed in are
            donated.
        evaluate: (runs, values, data) → metric → (lanes, seeds).
    """

    begin: Callable[[Tree, Array], TrainState]
    advance: Callable[[TrainState, Tree, Array, int, int], tuple[TrainState, Array]]
    evaluate: Callable[[TrainState, Tree, Any], Mapping[str, Array]]


def make_lanes(make_run: MakeRun) -> Lanes:
    """Return the programs that train the runs of `make_run` in lanes.

    The first and last update are arguments, so that one program serves every interval between
    evaluations, whatever its length.
    """

    def begin_one(values: Tree, keys: Keys) -> TrainState:
        return _loop.begin(*make_run(values), keys)

    def update_one(
        values: Tree, keys: Keys, run: TrainState, step: Array
    ) -> tuple[TrainState, Array]:
        return _loop.update(*make_run(values), keys, run, step)

    def evaluate_one(run: TrainState, values: Tree, data: Any) -> Mapping[str, Array]:
        task, _ = make_run(values)
        return task.evaluate(run.params, run.model_state, data)

    begin_all = _over_lanes_and_seeds(begin_one, (0, None), (None, 0))
    update_all = _over_lanes_and_seeds(update_one, (0, None, 0, None), (None, 0, 0, None))

    def begin(values: Tree, seeds: Array) -> TrainState:
        return begin_all(values, _loop.seed_keys(seeds))

    def advance(
        runs: TrainState, values: Tree, seeds: Array, first: Array, stop: Array
    ) -> tuple[TrainState, Array]:
        keys = _loop.seed_keys(seeds)

        def body(step: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            runs, total = carry
            runs, losses = update_all(values, keys, runs, step)
            return runs, total + losses

        shape = (len(jax.tree.leaves(values)[0]), len(seeds))
        runs, total = lax.fori_loop(first, stop, body, (runs, jnp.zeros(shape, float)))
        return runs, total / (stop - first)

    return Lanes(
        begin=jax.jit(begin),
        advance=jax.jit(advance, donate_argnums=0),
        evaluate=jax.jit(_over_lanes_and_seeds(evaluate_one, (0, 0, None), (0, None, None))),
    )


def _over_lanes_and_seeds(function: Callable, lane_axes: tuple, seed_axes: tuple) -> Callable:
    """Map over lanes, then over seeds; an axis of None marks an argument that does not vary."""
    return jax.vmap(jax.vmap(function, in_axes=seed_axes), in_axes=lane_axes)
