"""Early stopping of runs in lanes: where each run ends, why, and where it was best.

Each run has a stopper of its own, which judges the score of each evaluation as `train` does. The
curves of runs that end at different updates are arrays of one length: after its end a run has NaN.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array
from optlab.lab.tasks._task import Task
from optlab.lab.training._early_stopping import EarlyStopping


class Stoppers:
    """The stoppers of runs in lanes; arrays are (lanes, seeds).

    Args:
        rule: when a run stops; a new stopper.
        shape: the lanes and the seeds.

    Attributes:
        ended: int, the updates done at the last evaluation that the run had.
        taken: int, the updates after which its score is taken: at the best evaluation; if there is
            none, at the last one.
    """

    def __init__(self, rule: EarlyStopping, shape: tuple[int, int]):
        self._skips_undefined = rule.stop_on_nonfinite
        alone = rule.keeping(None)
        self._lanes = jax.tree.map(lambda leaf: np.broadcast_to(leaf, shape), alone)
        self.ended, self.taken = np.zeros(shape, int), np.zeros(shape, int)

    def update(self, step: int, scores: np.ndarray, losses: np.ndarray) -> None:
        """Judge an evaluation.

        Args:
            step: the updates done.
            scores: float, the score of each run.
            losses: float, the validation loss of each run.
        """
        # A score that is not defined, such as F1 before any positive, is no sign of divergence.
        undefined = ~np.isfinite(scores) & np.isfinite(losses) & self._skips_undefined
        running, best = ~self.stopped, self._lanes.best_check
        self._lanes = jax.device_get(_judged(self._lanes, scores, undefined, np.int32(step)))
        improved = (self._lanes.best_check != best) | (self._lanes.best_check == 0)
        self.ended = np.where(running, step, self.ended)
        self.taken = np.where(running & improved, step, self.taken)

    @property
    def stopped(self) -> np.ndarray:
        """Bool: which runs have stopped."""
        return np.asarray(self._lanes.should_stop)

    def reasons(self, lane: int) -> list[str | None]:
        """Return why each run of a lane stopped, as `EarlyStopping.reason` says it."""
        return [stopper.reason for stopper in self._of(lane)]

    def causes(self, lane: int) -> list[str | None]:
        """Return why each run of a lane stopped, as `EarlyStopping.cause` says it."""
        return [stopper.cause for stopper in self._of(lane)]

    def _of(self, lane: int) -> list[EarlyStopping]:
        seeds = range(self.ended.shape[1])
        return [jax.tree.map(lambda leaf, i=i: leaf[lane, i], self._lanes) for i in seeds]


@jax.jit
def _judged(stoppers: EarlyStopping, scores: Array, undefined: Array, step: Array) -> EarlyStopping:
    def judged(stopper: EarlyStopping, score: Array, skip: Array) -> EarlyStopping:
        new = stopper.update(score, step=step)
        return jax.tree.map(lambda was, now: jnp.where(skip, was, now), stopper, new)

    return jax.vmap(jax.vmap(judged))(stoppers, scores, undefined)


def value_at(curve: np.ndarray, steps: np.ndarray, updates: np.ndarray | None) -> np.ndarray:
    """Return the value of each curve after some updates.

    Args:
        curve: (…, evaluations).
        steps: (evaluations,) int, the updates done at each of them; ascending.
        updates: (…) int, some of `steps`; None for the last one.

    Returns:
        (…).

    Example:
        >>> value_at(np.array([[3.0, 1.0, 2.0]]), np.array([0, 5, 10]), np.array([5]))
        array([1.])
    """
    if updates is None:
        return curve[..., -1]
    places = np.searchsorted(steps, updates)[..., None]
    return np.take_along_axis(curve, places, axis=-1)[..., 0]


def held(curve: np.ndarray, steps: np.ndarray, ended: np.ndarray | None) -> np.ndarray:
    """Return curves that keep the value of the last evaluation that the run had.

    Args:
        curve: (…, evaluations).
        steps: (evaluations,) int.
        ended: (…) int, the updates of the last evaluation of each run; None for the last of all.

    Example:
        >>> held(np.array([[3.0, 1.0, np.nan]]), np.array([0, 5, 10]), np.array([5]))
        array([[3., 1., 1.]])
    """
    if ended is None:
        return curve
    places = np.minimum(np.arange(len(steps)), np.searchsorted(steps, ended)[..., None])
    return np.take_along_axis(curve, places, axis=-1)


def blanked(curve: np.ndarray, at: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """Return curves with NaN after the end of each run.

    Args:
        curve: (…, points) float.
        at: (points,) int, the updates done at each point.
        ended: (…) int, the updates done at the end of each run.
    """
    return np.where(at <= ended[..., None], curve, np.asarray(np.nan, curve.dtype))


def rule_facts(rule: EarlyStopping | None) -> Mapping[str, Any] | None:
    """Return what identifies a rule of early stopping; None for none."""
    names = ("patience", "min_delta", "stop_on_nonfinite", "start", "target", "divergence")
    return None if rule is None else {name: getattr(rule, name) for name in names}


def check_rule(who: str, task: Task, rule: EarlyStopping | None) -> None:
    """Require a rule of early stopping that judges the score of a task, or none.

    Args:
        who: the public name that errors begin with.
        task: the problem.
        rule: the rule.
    """
    if rule is None:
        return
    if not isinstance(rule, EarlyStopping):
        _checks.fail(who, "early_stopping must be an EarlyStopping", repr(rule))
    mode = "max" if task.maximize else "min"
    if rule.mode != mode:
        better = "higher" if task.maximize else "lower"
        _checks.fail(
            who,
            f"early_stopping must have mode={mode!r}, as a {better} {task.score} is better",
            f"mode={rule.mode!r}",
        )
    if np.any(rule.num_checks):
        _checks.fail(
            who,
            "early_stopping must be new",
            f"num_checks={rule.num_checks}",
            "pass EarlyStopping(patience=3), say",
        )
