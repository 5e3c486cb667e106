"""The averaged parameters of a run, as a model that can be evaluated."""

import jax

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab.tasks._task import Task
from optlab.lab.training._batch_stats import places_of_statistics, refreshed
from optlab.lab.training._loop import TrainState
from optlab.transforms import averaged_params


def check_average(who: str, run: TrainState) -> None:
    """Require an optimizer that keeps one average of the parameters.

    Args:
        who: the public name that errors begin with.
        run: the run before its first update.
    """
    try:
        # Traced, where an average of nothing is no error.
        jax.eval_shape(averaged_params, run.opt_state, run.params)
    except ValueError as error:
        _checks.fail(
            who,
            "optimizer must keep an average if average=True",
            f"one of which {error}",
            "write optax.chain(optimizer, optlab.params_ema(0.999))",
        )


def averaged_model(who: str, task: Task, run: TrainState, key: Array) -> tuple[Tree, Tree]:
    """Return the averaged parameters, with running statistics that were computed for them.

    Args:
        who: the public name that errors begin with.
        task: the problem.
        run: the run; before anything is averaged its own parameters and state are returned.
        key: a random key, for the order of the examples and the noise of the task.
    """
    try:
        params = averaged_params(run.opt_state, run.params)
    except ValueError:  # an average of nothing, as `check_average` has found no other fault
        return run.params, run.model_state
    if not places_of_statistics(run.model_state):
        return params, run.model_state
    return params, refreshed(who, task, params, run.model_state, key)
