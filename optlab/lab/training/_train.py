"""`train`: one run that is evaluated, recorded, and can be continued after an interruption.

The updates between two evaluations are one call of one compiled program, whatever their number.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab import _checks
from optlab._extras import needs_extra
from optlab._identity import identity
from optlab._inspect import hyperparams
from optlab._types import Array, Tree
from optlab.groups._assignment import Rules
from optlab.lab.tasks._check_task import check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training import _loop
from optlab.lab.training._checkpoints import Checkpoints, soundness
from optlab.lab.training._early_stopping import EarlyStopping
from optlab.lab.training._grouping import grouped
from optlab.lab.training._history import History
from optlab.lab.training._loop import Keys, TrainState
from optlab.wrappers._monitor import monitored

_WHO = "train"

EVALUATIONS = 30
"""The number of evaluations in a run, if neither the caller nor the task sets `eval_every`."""


@dataclass(frozen=True)
class Evaluation:
    """The argument of a callback of `train`, which is called at the start and after each interval.

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
    """

    step: int
    steps: int
    losses: np.ndarray
    learning_rate: float | None
    train: Mapping[str, float]
    validation: Mapping[str, float]
    monitored: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Run:
    """The result of `train`.

    Attributes:
        params: the final parameters; with early stopping those of the best evaluation.
        model_state: the rest of the model's state, at the same update as `params`.
        opt_state: the optimizer's state after the last update.
        history: the curves.
        step: the number of updates after which `params` were taken.
        reason: why the run ended: "all updates done", the reason of early stopping, or the update
            whose loss is not finite.
        test: metric → float, of `params` on the test split; empty if there is none.
    """

    params: Tree = field(repr=False)
    model_state: Tree = field(repr=False)
    opt_state: optax.OptState = field(repr=False)
    history: History = field(repr=False)
    step: int
    reason: str
    test: Mapping[str, float]


def train(
    task: Task,
    tx: optax.GradientTransformation,
    *,
    steps: int,
    key: Array,
    groups: Rules | None = None,
    eval_every: int | None = None,
    early_stopping: EarlyStopping | None = None,
    callbacks: Sequence[Callable[[Evaluation], None]] = (),
    progress: bool = False,
    checkpoints: str | Path | None = None,
) -> Run:
    """Train, evaluate at regular intervals, and record everything.

    The run of `key=jax.random.key(seed)` is the same as that of the seed in `compare` and `sweep`.
    It ends early after an interval in which a loss is not finite.

    Args:
        task: the problem. All its splits except "test" are evaluated at each evaluation; "test" is
            evaluated once, at the end.
        tx: the optimizer. If `monitor` is around it or in it, its values are in
            `History.monitored`.
        steps: updates, ≥ 1.
        key: the random key of the run, for the initialization, the batches and the noise.
        groups: rules for groups of parameters, as `optlab.groups.partition` takes them, with `tx`
            as the optimizer; None for one group. For what acts on all groups together, such as a
            clip or a monitor, pass a partition as `tx`.
        eval_every: updates between evaluations, ≥ 1; None for the task's own number, or else a
            thirtieth of the run.
        early_stopping: updated with the task's score at each evaluation, including the one before
            the first update; its mode must be "max" if a higher score is better. Must be unused.
            `train` keeps the best parameters itself and replaces any `best_params` passed to it.
        callbacks: functions of an `Evaluation`, called in order at each evaluation, after its
            checkpoint is written; `tensorboard("runs/1")` makes one. An error of a callback ends
            the run.
        progress: whether to show a progress bar on stderr, if that is a terminal.
        checkpoints: a folder, for this run only, in which Orbax stores the run at each evaluation;
            None for none. A run that finds a checkpoint continues from it, calls its callbacks for
            that evaluation once more, and ends bit for bit like one that was never stopped. `steps`
            may then be raised, which leaves an additional evaluation at the former end. The
            checkpoint of another run is refused: of another task, other data, another key or other
            arguments of the optimizer. A state with numbers that are not finite is not stored. A
            checkpoint takes about a tenth of a second.

    Raises:
        ModuleNotFoundError: Orbax, for `checkpoints`, or rich, for `progress`, is not installed.
        ValueError: an argument is out of its range, `task` is not a valid task, the groups do not
            fit its parameters, or the checkpoint is damaged or belongs to another run.

    Example:
        >>> import optlab
        >>> parabola = Task(
        ...     name="parabola",
        ...     init=lambda key: (jnp.array(2.0), ()),
        ...     loss=lambda x, state, batch, key: (x**2, state),
        ...     batch=lambda key, step: (),
        ...     evaluate=lambda x, state, data: {"loss": x**2},
        ... )
        >>> run = train(parabola, optlab.sgd(0.25), steps=4, key=jax.random.key(0), eval_every=2)
        >>> run.history.loss.tolist(), run.history.validation["loss"].tolist()
        ([4.0, 1.0, 0.25, 0.0625], [4.0, 0.25, 0.015625])
    """
    check_task(_WHO, task)
    _check_arguments(tx, steps, key)
    _check_options(task, early_stopping, callbacks, checkpoints)
    if eval_every is None:
        eval_every = task.eval_every or math.ceil(steps / EVALUATIONS)
    _checks.check_integer(_WHO, "eval_every", eval_every, 1)
    # Python integers, because NumPy integers would compile the program a second time.
    steps, eval_every = int(steps), int(eval_every)
    began = time.perf_counter()
    tx = grouped(task, tx, groups)
    loop = _Loop(task, tx, _loop.run_keys(key), min(eval_every, steps))
    with (
        _checkpoints_in(checkpoints, task, tx, key, early_stopping) as checkpointer,
        _progress_callbacks(progress, steps) as bar,
    ):
        for position in _positions(loop, loop.start(early_stopping), steps, checkpointer):
            evaluation = _evaluation(position, steps, time.perf_counter() - began)
            for callback in (*callbacks, *bar):
                callback(evaluation)
    return loop.finish(position, steps)


class _State(NamedTuple):
    """The state that a run carries between evaluations; checkpoints store all of it."""

    run: TrainState
    stopper: EarlyStopping | None


class _Position(NamedTuple):
    """The position of a run: updates done, its state, and its curves by name.

    The curves "loss", "learning_rate", "rates/…" and "monitored/…" have a number for each update;
    "steps", "train/…" and "validation/…" have one for each evaluation. Before the first evaluation
    there are no curves.
    """

    step: int
    state: _State
    curves: dict[str, np.ndarray]


class _Loop:
    """The compiled programs of one run, which advance it from position to position."""

    def __init__(self, task: Task, tx: optax.GradientTransformation, keys: Keys, eval_every: int):
        self._task, self._eval_every, self._keys = task, eval_every, keys
        self._begin = jax.jit(partial(_begin, task, tx))
        self._advance = jax.jit(partial(_advance, task, tx, eval_every), donate_argnums=1)
        self._evaluate = jax.jit(task.evaluate)  # no wrapper, so that runs share a compilation
        self._judge = jax.jit(_judge)
        splits = {name: data for name, data in task.splits.items() if name != "test"}
        # A task without data is validated on the objective itself.
        self._evaluation_data = jax.device_put(splits) or {"validation": None}

    def start(self, early_stopping: EarlyStopping | None) -> _Position:
        """Return the position before the first evaluation."""
        run = self._begin(self._keys)
        stopper = early_stopping and early_stopping.keeping(_params_and_state(run))
        return _Position(0, _State(run, stopper), {})

    def go_on(self, position: _Position, steps: int) -> _Position:
        """Return the position at the next evaluation; the old position can no longer be used."""
        first, (run, stopper), curves = position
        every = self._eval_every
        stop = min(steps, (first // every + 1) * every) if curves else 0
        run, traces = self._advance(self._keys, run, first, stop - first)
        new = {name: np.asarray(trace)[: stop - first] for name, trace in traces.items()}
        new["steps"] = np.array([stop])
        for split, data in self._evaluation_data.items():
            metrics = self._metrics(run, data)
            new |= {f"{split}/{name}": value[None] for name, value in metrics.items()}
        if stopper is not None:
            score = new[f"validation/{self._task.score}"][0]
            stopper = self._judge(stopper, score, run)
        curves = {
            name: np.concatenate([curves[name], x]) if curves else x for name, x in new.items()
        }
        return _Position(stop, _State(run, stopper), curves)

    def finish(self, position: _Position, steps: int) -> Run:
        """Return the result of the run."""
        step, (run, stopper), curves = position
        reason = _reason_to_end(position, steps)
        if stopper is not None:
            run = _with_params_and_state(run, stopper.best_params)
            step = int(curves["steps"][max(0, int(stopper.best_check) - 1)])
        history = History(
            loss=curves["loss"],
            steps=curves["steps"],
            train=_under("train", curves),
            validation=_under("validation", curves),
            learning_rate=curves.get("learning_rate"),
            rates=_under("rates", curves),
            monitored=_under("monitored", curves),
            score=self._task.score,
            maximize=self._task.maximize,
        )
        test = {}
        if "test" in self._task.splits:
            test = self._metrics(run, self._task.splits["test"])
        return Run(
            params=run.params,
            model_state=run.model_state,
            opt_state=run.opt_state,
            history=history,
            step=step,
            reason=reason,
            test={name: float(value) for name, value in test.items()},
        )

    def _metrics(self, run: TrainState, data: Any) -> dict[str, np.ndarray]:
        metrics = dict(self._evaluate(run.params, run.model_state, data))
        dtype = jnp.result_type(float)
        return {name: value.astype(dtype) for name, value in jax.device_get(metrics).items()}


def _positions(
    loop: _Loop, position: _Position, steps: int, checkpointer: Checkpoints | None
) -> Iterator[_Position]:
    """Yield the position at each evaluation, after its checkpoint is written.

    A restored position is yielded first, because the run may have been stopped before its callbacks
    were called for it.
    """
    if checkpointer:
        is_sound = soundness(position.state)
    if checkpointer and (restored := checkpointer.restore(position.state)):
        position = _Position(restored.step, restored.state, restored.curves)
        _check_not_past(position.step, steps, checkpointer.folder)
        yield position
    while _reason_to_end(position, steps) is None:
        position = loop.go_on(position, steps)
        if checkpointer:
            checkpointer.save(*position, sound=is_sound(position.state))
        yield position


def _evaluation(position: _Position, steps: int, seconds: float) -> Evaluation:
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
    )


def _begin(task: Task, tx: optax.GradientTransformation, keys: Keys) -> TrainState:
    """Return a run before its first update, with the types that it has after an update.

    Numbers that are not arrays would have a weak type before the first update, and the program that
    updates them would be compiled twice.
    """
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), _loop.begin(task, tx, keys)
    )


def _advance(
    task: Task,
    tx: optax.GradientTransformation,
    size: int,
    keys: Keys,
    run: TrainState,
    first: Array,
    count: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """Make `count` updates, at most `size`, and record each; the records have length `size`."""

    def body(i: Array, carry: tuple) -> tuple:
        run, traces = carry
        run, loss = _loop.update(task, tx, keys, run, first + i)
        observed = _observe(run.opt_state, loss)
        return run, {name: trace.at[i].set(observed[name]) for name, trace in traces.items()}

    observed = jax.eval_shape(_observe, run.opt_state, jnp.zeros((), float))
    traces = {name: jnp.zeros((size,), value.dtype) for name, value in observed.items()}
    return lax.fori_loop(0, count, body, (run, traces))


def _observe(opt_state: optax.OptState, loss: Array) -> dict[str, Array]:
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


def _judge(stopper: EarlyStopping, score: Array, run: TrainState) -> EarlyStopping:
    return stopper.update(score, _params_and_state(run))


def _params_and_state(run: TrainState) -> tuple[Tree, Tree]:
    """Return the parts of a run that early stopping stores."""
    return run.params, _loop.without_keys(run.model_state)


def _with_params_and_state(run: TrainState, best: tuple[Tree, Tree]) -> TrainState:
    params, model_state = best
    model_state = _loop.with_keys(model_state, run.model_state)
    return run._replace(params=params, model_state=model_state)


def _reason_to_end(position: _Position, steps: int) -> str | None:
    """Say why the run ends here; None if it goes on."""
    bad = np.flatnonzero(~np.isfinite(position.curves.get("loss", np.zeros(0))))
    if bad.size:
        return f"the loss was not finite at update {bad[0] + 1}"
    stopper = position.state.stopper
    if stopper is not None and stopper.should_stop:
        return f"early stopping: {stopper.reason}"
    return "all updates done" if position.curves and position.step >= steps else None


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with "prefix/", by the rest of their names."""
    start = f"{prefix}/"
    return {k.removeprefix(start): x for k, x in arrays.items() if k.startswith(start)}


def _latest(prefix: str, curves: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the last number of each curve that `_under` returns and that has one."""
    return {name: float(x[-1]) for name, x in _under(prefix, curves).items() if x.size}


@contextmanager
def _checkpoints_in(
    folder: str | Path | None,
    task: Task,
    tx: optax.GradientTransformation,
    key: Array,
    early_stopping: EarlyStopping | None,
) -> Iterator[Checkpoints | None]:
    """Yield the checkpoints in a folder; None without a folder."""
    if folder is None:
        yield None
        return
    rule = ("patience", "min_delta", "stop_on_nonfinite")
    stops = early_stopping and {name: getattr(early_stopping, name) for name in rule}
    facts = identity(task, tx, key, {"early_stopping": stops})
    checkpointer = Checkpoints(_WHO, folder, facts)
    try:
        yield checkpointer
    finally:
        checkpointer.close()


@contextmanager
def _progress_callbacks(
    progress: bool, steps: int
) -> Iterator[Sequence[Callable[[Evaluation], None]]]:
    """Yield a callback that shows a progress bar, or nothing if none is wanted."""
    if not progress:
        yield ()
        return
    with needs_extra(_WHO):
        from rich.console import Console
        from rich.progress import Progress

    console = Console(stderr=True)
    # If stdout goes elsewhere, the bar must not redirect the output of callbacks to stderr.
    redirect = sys.stdout.isatty()
    with Progress(console=console, transient=True, redirect_stdout=redirect) as bar:
        bar_task = bar.add_task("compiling", total=steps)

        def show(evaluation: Evaluation) -> None:
            metrics = "  ".join(f"{k} {v:.3g}" for k, v in evaluation.validation.items())
            bar.update(bar_task, description=metrics, completed=evaluation.step)

        yield (show,)


def _check_arguments(tx: optax.GradientTransformation, steps: int, key: Array) -> None:
    if not all(callable(getattr(tx, name, None)) for name in ("init", "update")):
        _checks.fail(
            _WHO,
            "tx must be an optax.GradientTransformation",
            repr(tx),
            "pass optlab.adam(1e-3), say, not the function optlab.adam",
        )
    _checks.check_integer(_WHO, "steps", steps, 1)
    _loop.check_key(_WHO, key)


def _check_options(
    task: Task,
    early_stopping: EarlyStopping | None,
    callbacks: Sequence[Callable[[Evaluation], None]],
    checkpoints: str | Path | None,
) -> None:
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        _checks.fail(_WHO, "callbacks must be a sequence of functions", repr(callbacks))
    if checkpoints is not None and not isinstance(checkpoints, str | os.PathLike):
        _checks.fail(_WHO, "checkpoints must be a folder", repr(checkpoints))
    if early_stopping is None:
        return
    if not isinstance(early_stopping, EarlyStopping):
        _checks.fail(_WHO, "early_stopping must be an EarlyStopping", repr(early_stopping))
    mode = "max" if task.maximize else "min"
    if early_stopping.mode != mode:
        better = "higher" if task.maximize else "lower"
        _checks.fail(
            _WHO,
            f"early_stopping must have mode={mode!r}, as a {better} {task.score} is better",
            f"mode={early_stopping.mode!r}",
        )
    if np.any(early_stopping.num_checks):
        _checks.fail(
            _WHO,
            "early_stopping must be new",
            f"num_checks={early_stopping.num_checks}",
            "pass EarlyStopping(patience=3), say",
        )


def _check_not_past(done: int, steps: int, folder: str | Path | None) -> None:
    if done > steps:
        _checks.fail(
            _WHO,
            f"steps must be at least the {done} updates of the checkpoint in {folder}",
            f"steps={steps}",
            "raise steps, or pass another folder",
        )
