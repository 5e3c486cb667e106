"""One run, from evaluation to evaluation: its state, its curves, and what comes next."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab._inspect import hyperparams
from optlab._types import Array, Tree
from optlab.lab.data import Batches, DataError, read_once
from optlab.lab.tasks._task import Task
from optlab.lab.training import _loop
from optlab.lab.training._average import averaged_model, check_average
from optlab.lab.training._checkpoints import soundness
from optlab.lab.training._early_stopping import EarlyStopping
from optlab.lab.training._engine import Carry, Engine, Unfinished
from optlab.lab.training._evaluation import Evaluator
from optlab.lab.training._history import History
from optlab.lab.training._interval import next_stop
from optlab.lab.training._loop import Judged, Keys, TrainState, outlives_bad_batches
from optlab.lab.training._results import Control, Evaluation, Run
from optlab.lab.training._sharding import Sharding
from optlab.lab.training._start import starting_from
from optlab.lab.training._windows import not_made, waiting
from optlab.wrappers._monitor import monitored
from optlab.wrappers._skip_nonfinite import gave_up

DONE = "all updates done"
"""Why a run ends that nothing ends early."""


class State(NamedTuple):
    """The state that a run carries between evaluations; checkpoints store all of it."""

    run: TrainState
    stopper: EarlyStopping | None


class Position(NamedTuple):
    """The position of a run: updates done, its state, and its curves by name.

    The curves "loss", "learning_rate", "rates/…" and "monitored/…" have a number for each update;
    "steps", "train/…" and "validation/…" have one for each evaluation. Before the first evaluation
    there may be no curves. State that is not finite where it was at the start is not sound.
    """

    step: int
    state: State
    curves: dict[str, np.ndarray]


class RunLoop:
    """The compiled programs of one run, which advance it from position to position.

    Args:
        who: the public name that errors begin with.
        task: the problem.
        tx: the optimizer.
        keys: the keys of the run.
        eval_every: updates between evaluations.
        source: the batches of the task's loader; None if it has none.
        sharding: how the run is divided over devices.
        average: whether the averaged parameters are those that are judged, kept and returned.
        native: whether `optlab.native.step` makes the steps.

    Attributes:
        place: the last place of the loader that is known; None if there is none.
        partial: the run as far as it came when its data failed; None before that.
    """

    def __init__(
        self,
        who: str,
        task: Task,
        tx: optax.GradientTransformation,
        keys: Keys,
        *,
        eval_every: int,
        source: Batches | None,
        sharding: Sharding,
        average: bool = False,
        native: bool = False,
    ):
        self._average = average
        self._who, self._task, self._keys = who, task, keys
        self._every, self._source, self._sharding = eval_every, source, sharding
        self._engine = Engine(
            lambda values: (starting_from(task, values), tx),
            observe=observe,
            size=eval_every,
            in_lanes=False,
            settle=sharding.settler(who, task),
            divide=sharding.divide,
            native=native,
        )

        def read(split: str) -> Iterator[tuple[Tree, int]]:
            return read_once(who, task.name, split, task.splits[split], timeout=task.timeout)

        self._evaluator = Evaluator(who, task, batches=read, place=sharding.place)
        # A task without data is validated on the objective itself.
        self._splits = [name for name in task.splits if name != "test"] or [None]
        self._judge = jax.jit(_judge)
        self.place: bytes | None = None
        self.partial: Position | None = None
        self._stream: Iterator[Tree] | None = None

    def start(
        self, early_stopping: EarlyStopping | None, values: tuple[Tree, Tree] = (None, None)
    ) -> Position:
        """Return the position before the first evaluation.

        Args:
            early_stopping: the rule; None for none.
            values: the parameters and the model's state to start from, as `checked_start` returns
                them.
        """
        if any(tree is not None for tree in values):
            values = self._sharding.place_start(self._task, self._keys.init, values)
        carry = self._engine.begin(values, self._keys)
        self._records = carry.records
        self._is_sound = soundness(_model(carry.runs))
        if self._average:
            check_average(self._who, carry.runs)
        if early_stopping is None:
            return Position(0, State(carry.runs, None), {})
        stopper = self._sharding.on_mesh(early_stopping.keeping(_kept(carry.runs, jnp.int32(0))))
        if self._sharding.mesh is not None:
            places = jax.tree.map(lambda leaf: leaf.sharding, stopper)
            self._judge = jax.jit(_judge, out_shardings=places)
        return Position(0, State(carry.runs, stopper), {})

    def finish(
        self,
        position: Position,
        steps: int,
        reason: str | None,
        restored: tuple[int, TrainState] | None = None,
    ) -> Run:
        """Return the result of the run.

        Args:
            position: where it ended.
            steps: the updates of the whole run.
            reason: why a callback ended it; None if none did.
            restored: updates done and the run there, which stand for those of a position that is
                not sound; None if there are none.
        """
        step, (run, stopper), curves = position
        ended = self.reason_to_end(position, steps)
        reason, diverged = self._verdict(position, reason or ended or DONE)
        if not self.is_sound(position) and restored is not None:
            step, run = restored
        if stopper is not None and (int(stopper.best_check) or not self.is_sound(position)):
            *best, step = stopper.best_params
            run = _with_params_and_state(run, best)
        else:
            run = self._judged(run)
        test = self._evaluate(run, "test") if "test" in self._task.splits else {}
        return Run(
            params=run.params,
            model_state=run.model_state,
            opt_state=run.opt_state,
            history=history(self._task, curves),
            step=int(step),
            reason=reason,
            diverged=diverged,
            test={name: float(value) for name, value in test.items()},
        )

    def is_sound(self, position: Position) -> bool:
        """Return whether parameters and the model's state are finite where they were at first."""
        return self._is_sound(_model(position.state.run))

    def reason_to_end(self, position: Position, steps: int) -> str | None:
        """Say why the run ends here; None if it goes on."""
        loss = position.curves.get("loss", np.zeros(0))
        bad = np.flatnonzero(~np.isfinite(loss))
        if bad.size and not outlives_bad_batches(position.state.run.opt_state):
            return f"the loss was not finite at update {bad[0] + 1}"
        if not self.is_sound(position):
            if loss.size and not np.isfinite(loss[-1]):
                return f"the loss was not finite at update {_begin_of_bad(loss) + 1}"
            return f"the parameters were not finite after update {position.step}"
        if gave_up(position.state.run.opt_state):
            began = _begin_of_bad(loss) + 1
            since = f" (the loss since update {began})" if began <= loss.size else ""
            return f"skip_nonfinite gave up: too many steps in a row were not finite{since}"
        stopper = position.state.stopper
        if stopper is not None and stopper.should_stop:
            return f"early stopping: {stopper.reason}"
        return DONE if position.step >= steps and is_evaluated(position) else None

    def _verdict(self, position: Position, reason: str) -> tuple[str, bool]:
        """Return why the run ended, with what else is to be said, and whether it diverged."""
        run, curves = position.state.run, position.curves
        loss = curves.get("loss", np.zeros(0))
        lost = not np.isfinite(loss).all() and not outlives_bad_batches(run.opt_state)
        if lost or not self.is_sound(position) or gave_up(run.opt_state):
            return reason, True
        parts, bad = [reason], _begin_of_bad(loss)
        parts += not_made(run.opt_state, position.step)
        if len(parts) > 1 and reason == DONE:
            parts = [f"{DONE}, but {parts[1]}", *parts[2:]]
        since = int(curves["steps"][-2]) if len(curves["steps"]) > 1 else 0
        no_loss = bad < loss.size and bad <= since
        if no_loss:
            parts.append(f"no loss was finite from update {bad + 1} on")
        validation = curves["validation/loss"]
        bad = _begin_of_bad(validation)
        no_validation = bad < len(validation)
        if no_validation:
            at = curves["steps"][bad]
            parts.append(f"the validation loss was not finite from update {at} on")
        if count := waiting(run.opt_state):
            batches = "1 batch waits" if count == 1 else f"{count} batches wait"
            parts.append(f"{batches} in an open window, without an update")
        return "; ".join(parts), no_loss or no_validation

    def go_on(self, position: Position, steps: int) -> Position:
        """Return the position at the next evaluation; the old position can no longer be used.

        Raises:
            DataError: the data failed; `partial` is then the position until there.
        """
        position = self._advanced(position, steps)
        stop, (run, stopper), curves = position
        shown = self._judged(run)
        new = {"steps": np.array([stop])}
        try:
            for split in self._splits:
                metrics = self._evaluate(shown, split)
                new |= {f"{split or 'validation'}/{k}": value[None] for k, value in metrics.items()}
        except DataError:
            self.partial = position
            raise
        score, loss = (new[f"validation/{name}"][0] for name in (self._task.score, "loss"))
        # A score that is not defined, such as F1 before any positive, is no sign of divergence.
        undefined = not np.isfinite(score) and np.isfinite(loss)
        if stopper is not None and not (undefined and stopper.stop_on_nonfinite):
            stopper = self._judge(stopper, score, shown, np.int32(stop))
        return Position(stop, State(run, stopper), _joined(curves, new))

    def _advanced(self, position: Position, steps: int) -> Position:
        """Return the position before the next evaluation, which may be this one."""
        first, (run, stopper), curves = position
        stop = first
        if is_evaluated(position) or (first % self._every and first < steps):
            stop = next_stop(first, self._every, steps)
        carry = Carry(run, self._records)
        judged = Judged.of(curves.get(f"validation/{self._task.score}", np.zeros(0)))
        try:
            carry, new = self._engine.advance(
                carry, (), self._keys, first, stop, batches=self._stream, judged=judged
            )
        except Unfinished as error:
            run, self._records = error.carry
            curves = _joined(curves, error.records)
            step = first + len(error.records["loss"])
            # A run can be gone on from after a whole update only.
            if not error.waiting:
                self.partial = Position(step, State(run, stopper), curves)
            raise error.__cause__ from error.__cause__.__cause__
        run, self._records = carry
        return Position(stop, State(run, stopper), _joined(curves, new))

    def _judged(self, run: TrainState) -> TrainState:
        """Return the run with the parameters that are judged: the average, or its own."""
        if not self._average:
            return run
        params, state = averaged_model(self._who, self._task, run, self._keys.noise)
        return run._replace(params=params, model_state=state)

    def _evaluate(self, run: TrainState, split: str | None) -> dict[str, np.ndarray]:
        return self._evaluator(run.params, run.model_state, split)

    @contextmanager
    def batches(self, start: int, steps: int) -> Iterator[None]:
        """Read batches of the loader from an update on, if there is a loader, in this context."""
        if self._source is None:
            yield
            return
        if start >= steps:
            self._stream = iter(())
            yield
            return
        if start:
            self._source.refuse_one_shot(self._who, "to continue a run")
        batches = self._engine.batches
        every, last = self._every * batches, steps * batches
        stream = self._source.read(
            start=start * batches,
            place=self.place,
            stop=last,
            move=self._sharding.move,
            save_at=lambda read: read % every == 0 or read == last,
        )
        with stream as pairs:
            self._stream = self._at_their_places(pairs)
            yield

    def _at_their_places(self, pairs: Iterator[tuple[Tree, bytes | None]]) -> Iterator[Tree]:
        for batch, place in pairs:
            self.place = self.place if place is None else place
            yield batch


def evaluation_at(position: Position, steps: int, seconds: float, control: Control) -> Evaluation:
    """Return the argument of callbacks for a position."""
    curves = position.curves
    since = int(curves["steps"][-2]) if len(curves["steps"]) > 1 else 0
    rates = curves.get("learning_rate", np.zeros(0))
    return Evaluation(
        step=position.step,
        steps=steps,
        losses=curves["loss"][since:],
        learning_rate=float(rates[-1]) if rates.size else None,
        train=_latest("train", curves),
        validation=_latest("validation", curves),
        monitored=_latest("monitored", curves),
        seconds=seconds,
        control=control,
    )


def is_evaluated(position: Position) -> bool:
    """Return whether the run was evaluated at its last update."""
    steps = position.curves.get("steps", ())
    return len(steps) > 0 and int(steps[-1]) == position.step


def _joined(curves: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the curves, with new numbers at the end of those that have some."""
    both = curves.keys() & new.keys()
    return {**curves, **new} | {name: np.concatenate([curves[name], new[name]]) for name in both}


def history(task: Task, curves: Mapping[str, np.ndarray]) -> History:
    """Return the curves of a run as a `History`."""
    return History(
        loss=curves["loss"],
        steps=curves["steps"],
        train=_under("train", curves),
        validation=_under("validation", curves),
        learning_rate=curves.get("learning_rate"),
        rates=_under("rates", curves),
        monitored=_under("monitored", curves),
        score=task.score,
        maximize=task.maximize,
    )


def observe(opt_state: optax.OptState, loss: Array) -> dict[str, Array]:
    """Return the record of an update: the loss before it, the rates, and the monitored values."""
    observed = {f"monitored/{name}": value for name, value in monitored(opt_state).items()}
    observed["loss"] = jnp.asarray(loss, float)
    rates = learning_rates(opt_state)
    if rates:
        observed["learning_rate"] = jnp.max(jnp.stack(list(rates.values())))
    if len(rates) > 1:
        observed |= {f"rates/{group}": rate for group, rate in rates.items()}
    return observed


def learning_rates(opt_state: optax.OptState) -> dict[str, Array]:
    """Return the rate of each parameter group, including the scale of `reduce_on_plateau`."""
    values_by_name = hyperparams(opt_state)
    rates = {}
    for name, rate in values_by_name.items():
        *group, own = name.split("/")
        if own == "learning_rate":
            scale = "/".join([*group, "scale"])
            factor = values_by_name.get(scale, values_by_name.get("scale", 1.0))
            rates["/".join(group)] = rate * factor
    return rates


def _judge(stopper: EarlyStopping, score: Array, run: TrainState, step: Array) -> EarlyStopping:
    return stopper.update(score, _kept(run, step), step=step)


def _model(run: TrainState) -> tuple[Tree, Tree]:
    """Return parameters and the model's state, without random keys."""
    return run.params, _loop.without_keys(run.model_state)


def _kept(run: TrainState, step: Array) -> tuple[Tree, Tree, Array]:
    """Return what early stopping stores of a run."""
    return *_model(run), step


def _with_params_and_state(run: TrainState, best: Sequence[Tree]) -> TrainState:
    params, model_state = best
    model_state = _loop.with_keys(model_state, run.model_state)
    return run._replace(params=params, model_state=model_state)


def _begin_of_bad(curve: np.ndarray) -> int:
    """Return the index from which a curve is never finite again; its length if it ends finite."""
    finite = np.flatnonzero(np.isfinite(curve))
    return int(finite[-1]) + 1 if finite.size else 0


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with "prefix/", by the rest of their names."""
    start = f"{prefix}/"
    return {k.removeprefix(start): x for k, x in arrays.items() if k.startswith(start)}


def _latest(prefix: str, curves: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the last number of each curve that `_under` returns and that has one."""
    return {name: float(x[-1]) for name, x in _under(prefix, curves).items() if x.size}
