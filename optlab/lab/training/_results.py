"""What `train` passes to callbacks, and what it returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._inspect import replace_hyperparams
from optlab._types import ArrayLike, Tree
from optlab.lab.training._history import History
from optlab.lab.training._loop import TrainState


class Control:
    """What callbacks see of a run, and what they ask of it.

    Attributes:
        run: the run at this evaluation.
        reason: why the run shall stop; None if it shall go on.
        is_over: whether the callbacks of this evaluation have ended; the memory of `run` may then
            belong to later updates.
    """

    def __init__(self, run: TrainState):
        self.run = run
        self.reason: str | None = None
        self.is_over = False


@dataclass(frozen=True)
class Evaluation:
    """The argument of a callback of `train`, which is called at the start and after each interval.

    A callback may read the run, stop it, and change its hyperparameters.

    Attributes:
        step: updates done.
        steps: updates of the whole run.
        losses: (updates,) float, the loss of each update since the previous evaluation.
        learning_rate: the rate of the last update; with several parameter groups the largest one.
            None if it is unknown.
        train: metric → float, on the train split; empty if there is none.
        validation: metric → float, on the validation split; without splits, of the objective.
        monitored: the values of `monitor` at the last update; empty without `monitor`.
        seconds: seconds since this call of `train` began.

    Example:
        A callback that halves the rate at update 100, and ends the run at a loss of 0.1:

        >>> def act(evaluation):
        ...     if evaluation.step == 100:
        ...         evaluation.replace_hyperparams(learning_rate=evaluation.learning_rate / 2)
        ...     if evaluation.validation["loss"] < 0.1:
        ...         evaluation.stop("the loss is below 0.1")
    """

    step: int
    steps: int
    losses: np.ndarray
    learning_rate: float | None
    train: Mapping[str, float]
    validation: Mapping[str, float]
    monitored: Mapping[str, float]
    seconds: float
    control: Control | None = field(default=None, repr=False, compare=False)

    @property
    def params(self) -> Tree:
        """A copy of the parameters; the run goes on in the memory of its own."""
        return jax.tree.map(jnp.copy, self._now.run.params)

    @property
    def model_state(self) -> Tree:
        """A copy of the rest of the model's state."""
        return jax.tree.map(jnp.copy, self._now.run.model_state)

    @property
    def opt_state(self) -> optax.OptState:
        """A copy of the optimizer's state."""
        return jax.tree.map(jnp.copy, self._now.run.opt_state)

    def stop(self, reason: str = "a callback stopped the run") -> None:
        """End the run after the callbacks of this evaluation.

        Args:
            reason: what `Run.reason` shall say.

        Raises:
            ValueError: `reason` is no text.
        """
        if not isinstance(reason, str) or not reason:
            _checks.fail("Evaluation.stop", "reason must be a text", repr(reason))
        self._now.reason = reason

    def replace_hyperparams(self, **values: ArrayLike) -> None:
        """Replace hyperparameters that are constant, from the next update on.

        Args:
            values: name → value, as `optlab.replace_hyperparams` takes them.

        Raises:
            ValueError: the optimizer has no such hyperparameter, or a schedule of it.
        """
        run = self._now.run
        self._now.run = run._replace(opt_state=replace_hyperparams(run.opt_state, **values))

    @property
    def _now(self) -> Control:
        """What the callbacks may see and change while they are called."""
        if self.control is None or self.control.is_over:
            _checks.fail(
                "Evaluation",
                "the run must be read or changed while a callback is called",
                f"an evaluation at update {self.step}, whose callbacks have ended",
                "take what you need of it in the callback",
            )
        return self.control


@dataclass(frozen=True)
class Run:
    """The result of `train`.

    Attributes:
        params: the final parameters; with early stopping those of the best evaluation. If the final
            ones are not finite, and there are checkpoints, those of the newest checkpoint.
        model_state: the rest of the model's state, at the same update as `params`.
        opt_state: the optimizer's state after the last update.
        history: the curves.
        step: the number of updates after which `params` were taken.
        reason: why the run ended: "all updates done", the reason of early stopping or of a
            callback, the update from which the loss is not finite, or that `skip_nonfinite` gave
            up. More follows if updates were skipped, if losses were not finite at the end, or if
            gradients of an open window made no update.
        diverged: whether the run ended in numbers that are not finite: in its parameters, in the
            validation loss, in the losses of all updates since the last evaluation, or as
            `skip_nonfinite` gave up. `reason` says where that began.
        test: metric → float, of `params` on the test split; empty if there is none.
    """

    params: Tree = field(repr=False)
    model_state: Tree = field(repr=False)
    opt_state: optax.OptState = field(repr=False)
    history: History = field(repr=False)
    step: int
    reason: str
    test: Mapping[str, float]
    diverged: bool = False
