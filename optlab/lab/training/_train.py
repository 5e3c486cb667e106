"""`train`: one run that is evaluated, recorded, and can be continued after an interruption."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from optlab import _checks
from optlab._facts import described
from optlab._identity import identity
from optlab._types import Array, Tree
from optlab.groups._assignment import Rules
from optlab.lab.data import FIRST_BATCH, Batches, DataError
from optlab.lab.tasks._check_task import batch_of, batch_size, check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training import _loop
from optlab.lab.training._checkpoints import Checkpoints, soundness
from optlab.lab.training._early_stopping import EarlyStopping
from optlab.lab.training._grouping import grouped
from optlab.lab.training._interval import evaluation_interval
from optlab.lab.training._processes import of_all, of_first
from optlab.lab.training._progress import progress_bar
from optlab.lab.training._results import Control, Evaluation, Run
from optlab.lab.training._run import (
    Position,
    RunLoop,
    evaluation_at,
    is_evaluated,
)
from optlab.lab.training._sharding import Sharding
from optlab.lab.training._start import checked_start
from optlab.lab.training._stoppers import check_rule, rule_facts

_WHO = "train"

EVALUATIONS = 30
"""The most intervals of a run, if neither the caller nor the task sets `eval_every`."""


def train(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    steps: int | None = None,
    key: Array | None = None,
    groups: Rules | None = None,
    params: Tree | None = None,
    model_state: Tree | None = None,
    eval_every: int | None = None,
    early_stopping: EarlyStopping | None = None,
    average: bool = False,
    callbacks: Sequence[Callable[[Evaluation], None]] = (),
    progress: bool = False,
    checkpoints: str | Path | None = None,
    keep: int = 1,
    take_over: Collection[str] | bool = False,
    resume_at: int | None = None,
    mesh: Mesh | None = None,
    data_axis: str = "data",
    divide_state: bool = False,
    native: bool = False,
) -> Run:
    """Train, evaluate at regular intervals, and record everything.

    The run of `key=jax.random.key(seed)` is the same as that of the seed in `compare` and `sweep`.
    It ends early after an interval in which a loss is not finite. If `skip_nonfinite`, `accumulate`
    or their like keep bad batches from the parameters, it goes on while parameters and the model's
    state are finite, and ends after an interval in which `skip_nonfinite` gave up. The updates
    between two evaluations are one call of a compiled program, or one call for each batch if the
    batches come from a loader.

    Args:
        task: the problem. All its splits except "test" are evaluated at each evaluation; "test" is
            evaluated once, at the end.
        optimizer: the optimizer. If `optlab.monitor` is around it or in it, its values are in
            `History.monitored`. A `reduce_on_plateau` in it judges the score of each evaluation,
            once; other rules that read a value get the loss of the batch.
        steps: updates, ≥ 1; None for the task's own number. An update is a step of the parameters:
            with `accumulate` or `optax.MultiSteps` it takes as many batches as they accumulate, and
            its loss is the mean of theirs.
        key: the random key of the run, for the initialization, the batches and the noise; None for
            `jax.random.key(0)`. A loader has an order of its own.
        groups: rules for groups of parameters, as `optlab.groups.partition` takes them, with
            `optimizer` as theirs; None for one group. For what acts on all groups together, such as
            a clip or a monitor, pass a partition as `optimizer`.
        params: parameters to start from, such as pretrained ones: a tree with the names, shapes and
            types of that of `Task.init`. None for those of `Task.init`.
        model_state: the rest of the model's state to start from, likewise.
        eval_every: updates between evaluations, ≥ 1; None for the task's own number, or else a
            thirtieth of the run, or as much longer as lets all evaluations take a fifth of the run
            at most, by the number of examples.
        early_stopping: updated with the task's score at each evaluation, including the one before
            the first update; its mode must be "max" if a higher score is better. Must be unused. A
            score that is not finite although the loss is, such as F1 before any positive, does not
            stop the run: it does not count, or with `stop_on_nonfinite=False` counts as one without
            improvement. If no score was finite, the last parameters are returned.
            `train` keeps the best parameters itself and replaces any `best_params` passed to it.
        average: whether to evaluate, judge by early stopping, keep and return the average of the
            parameters that `optimizer` keeps by `params_ema`, `params_average`, `params_power_ema`
            or `params_lawa`, in place of the parameters themselves. Until there is one, the
            parameters stand for it. Running statistics of batch normalization are computed for it
            at each evaluation, in one pass over the training data, as `refresh_batch_stats` does.
        callbacks: functions of an `Evaluation`, called in order at each evaluation, after its
            checkpoint is written; `tensorboard("runs/1")` makes one. They may stop the run and
            replace hyperparameters. An error of a callback ends the run.
        progress: whether to show a progress bar on stderr, if that is a terminal.
        checkpoints: a folder, for this run only, in which Orbax stores the run at each evaluation;
            None for none. A run that finds a checkpoint continues from it, calls its callbacks for
            that evaluation once more, and ends bit for bit like one that was never stopped. `steps`
            may then be raised, which leaves an additional evaluation at the former end. The
            checkpoint of another run is refused: of another task, other data, another key or other
            arguments of the optimizer. A state with numbers that are not finite is never stored.
            With a loader that cannot save its place, batches are read again to continue, and a
            warning says how long that took. A checkpoint takes about a tenth of a second.
        keep: the number of checkpoints that are kept, ≥ 1.
        take_over: the names of what may differ from the checkpoint's run, as the error names them,
            such as ["learning_rate"]; True for all. The new values count from the next update on.
        resume_at: the updates done at the checkpoint to continue from; None for the newest one.
        mesh: the devices to train on, as `jax.make_mesh` returns them; None for one. Each batch is
            divided over one axis of it. Parameters and the model's state stay as `Task.init` makes
            them under the mesh, replicated or divided. With several processes
            (`jax.distributed.initialize`), all make the same call, each with callbacks that do the
            same; a loader yields the part of each batch that belongs to its process.
        data_axis: the name of that axis.
        divide_state: whether each device keeps one part of the optimizer's state only, divided over
            that axis as `optlab.sharding.state_sharding` does it (ZeRO-1). A checkpoint of a run
            that divides it continues one that does not, and the other way round.
        native: whether `optlab.native.step` makes the steps, which on a CPU takes less time where
            a step's memory counts, as in large models. Results differ by roundings. What it cannot
            compute XLA does, and one warning says so.

    Raises:
        ModuleNotFoundError: Orbax, for `checkpoints`, or rich, for `progress`, is not installed.
        ValueError: an argument is out of its range, `task` is not a valid task, the groups do not
            fit its parameters, the checkpoint is damaged or belongs to another run, or a loader
            ends early, blocks, raises, or yields batches that differ from the first one. The run
            until there is then in the checkpoint, except with several processes, which have that
            of the last evaluation.

    Example:
        >>> import jax.numpy as jnp, optlab
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
    began = time.perf_counter()
    key = jax.random.key(0) if key is None else key
    divide_state = _checks.check_flag(_WHO, "divide_state", divide_state)
    sharding = Sharding(mesh, data_axis, divide_state)
    sharding.check(_WHO)
    with ExitStack() as contexts:
        contexts.enter_context(sharding.context())
        source = check_task(_WHO, task)
        steps = task.steps if steps is None else steps
        _check_arguments(optimizer, steps, key)
        _check_options(task, early_stopping, callbacks)
        _check_resuming(checkpoints, keep, take_over, resume_at)
        batch, is_of_process = batch_of(task, source), source is not None
        sharding.check_batch(_WHO, task.name, batch, is_of_process=is_of_process)
        if eval_every is None:
            size = batch_size(task, source)
            eval_every = evaluation_interval(_WHO, task, steps, batch_size=size, most=EVALUATIONS)
        _checks.check_integer(_WHO, "eval_every", eval_every, 1)
        # Python integers, because NumPy integers would compile the program a second time.
        steps, eval_every = int(steps), min(int(eval_every), int(steps))
        start = checked_start(_WHO, task, params, model_state)
        tx = grouped(task, optimizer, groups)
        show = contexts.enter_context(progress_bar(_WHO, progress, steps))
        loop = RunLoop(
            _WHO,
            task,
            tx,
            _loop.run_keys(key),
            eval_every=eval_every,
            source=source,
            sharding=sharding,
            average=_checks.check_flag(_WHO, "average", average),
            native=_checks.check_flag(_WHO, "native", native),
        )
        facts = partial(_facts, task, source, tx, key, early_stopping, average, start, native)
        store = contexts.enter_context(_checkpoints_in(checkpoints, keep, facts))
        position = loop.start(early_stopping, start)
        is_sound = soundness(position.state) if store else None
        reason = saved = None

        def notify(position: Position) -> tuple[Position, str | None]:
            """Call the callbacks; return the run as they leave it, and why it shall stop."""
            control = Control(position.state.run)
            evaluation = evaluation_at(position, steps, time.perf_counter() - began, control)
            try:
                for callback in callbacks:
                    callback(evaluation)
            finally:
                control.is_over = True
            metrics = "  ".join(f"{k} {v:.3g}" for k, v in evaluation.validation.items())
            show(position.step, metrics)
            state = position.state._replace(run=control.run)
            return position._replace(state=state), control.reason

        def save(position: Position) -> None:
            nonlocal saved
            # At an update whose evaluation failed there is a checkpoint already.
            if store and position.step != saved:
                places = {"places": of_all(loop.place and loop.place.decode())}
                if store.save(*position, sound=is_sound(position.state), extra=places):
                    saved = position.step

        may_differ = _MayDiffer(take_over, source)
        restored = store and store.restore(position.state, take_over=may_differ, step=resume_at)
        if restored:
            position = Position(restored.step, restored.state, restored.curves)
            saved = position.step
            _check_not_past(position.step, steps, store.folder)
            places = restored.extra["places"]
            if len(places) == jax.process_count() and places[jax.process_index()] is not None:
                loop.place = places[jax.process_index()].encode()
            # A run whose data failed between two evaluations, or in one, has none to report.
            if is_evaluated(position):
                position, reason = notify(position)
        elif resume_at is not None:
            _fail_without(store.folder, resume_at)
        with loop.batches(position.step, steps):
            while reason is None and loop.reason_to_end(position, steps) is None:
                try:
                    position = loop.go_on(position, steps)
                except DataError:
                    # Several processes save together, and the data of one alone may have failed.
                    if loop.partial is not None and jax.process_count() == 1:
                        save(loop.partial)
                    raise
                save(position)
                position, reason = notify(position)
        sound = None
        if store and store.steps and not loop.is_sound(position):
            checkpoint = store.restore(position.state, take_over=True)
            sound = checkpoint.step, checkpoint.state.run
        return loop.finish(position, steps, reason, sound)


def _facts(
    task: Task,
    source: Batches | None,
    tx: optax.GradientTransformation,
    key: Array,
    early_stopping: EarlyStopping | None,
    average: bool,
    start: tuple[Tree | None, Tree | None],
    native: bool,
) -> dict[str, Any]:
    options: dict[str, Any] = {"early_stopping": rule_facts(early_stopping)}
    options |= {"average": average, "native": native}
    options |= {} if source is None else source.contents()
    for name, tree in zip(("params", "model_state"), start, strict=True):
        leaves = jax.tree.leaves_with_path(_loop.without_keys(tree))
        by_path = {_checks.path_text(path): _known(leaf) for path, leaf in leaves}
        options[name] = None if tree is None else described(by_path)
    # The loaders of several processes may differ in the part of the data that they read.
    return of_first(identity(task, tx, key, options))


class _MayDiffer:
    """The names of the facts that may differ from those of a checkpoint."""

    def __init__(self, take_over: Collection[str] | bool, source: Batches | None):
        self._asked = [take_over] if isinstance(take_over, str) else take_over
        self._source = source

    def __contains__(self, name: object) -> bool:
        """Whether a fact may differ: by request, or because it does so in every process."""
        asked = self._asked if isinstance(self._asked, bool) else name in self._asked
        is_random = name == FIRST_BATCH and self._source is not None
        return asked or (is_random and self._source.begins_anew())


def _known(leaf: Any) -> Any:
    """Return an array, or only its shape where parts of it are known to other processes alone."""
    whole = getattr(leaf, "is_fully_addressable", True)
    return leaf if whole else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


@contextmanager
def _checkpoints_in(
    folder: str | Path | None, keep: int, facts: Callable[[], Mapping[str, Any]]
) -> Iterator[Checkpoints | None]:
    """Yield the checkpoints in a folder; None without a folder."""
    if folder is None:
        yield None
        return
    store = Checkpoints(_WHO, folder, facts(), keep)
    try:
        yield store
    finally:
        store.close()


def _check_arguments(optimizer: optax.GradientTransformation, steps: int, key: Array) -> None:
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        _checks.fail(
            _WHO,
            "optimizer must be an optax.GradientTransformation",
            repr(optimizer),
            "pass optlab.adam(1e-3), say, not the function optlab.adam",
        )
    _checks.check_integer(_WHO, "steps", steps, 1)
    _loop.check_key(_WHO, key)


def _check_options(
    task: Task,
    early_stopping: EarlyStopping | None,
    callbacks: Sequence[Callable[[Evaluation], None]],
) -> None:
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        _checks.fail(_WHO, "callbacks must be a sequence of functions", repr(callbacks))
    check_rule(_WHO, task, early_stopping)


def _check_resuming(
    checkpoints: Any, keep: int, take_over: Collection[str] | bool, resume_at: int | None
) -> None:
    if not isinstance(take_over, bool | Collection):
        required = "take_over must be True, False or a list of names"
        _checks.fail(_WHO, required, f"take_over={take_over!r}")
    if resume_at is not None:
        _checks.check_integer(_WHO, "resume_at", resume_at, 0)
    settings = {"keep": keep != 1, "take_over": bool(take_over), "resume_at": resume_at is not None}
    given = {"keep": keep, "take_over": take_over, "resume_at": resume_at}
    for name, value in given.items():
        if checkpoints is None and settings[name]:
            required = f"{name} must be left out without checkpoints"
            _checks.fail(_WHO, required, f"{name}={value!r}", "pass a folder as checkpoints")


def _fail_without(folder: Any, resume_at: int) -> None:
    required = f"resume_at must be left out where there is no checkpoint, as in {folder}"
    _checks.fail(_WHO, required, f"resume_at={resume_at}")


def _check_not_past(done: int, steps: int, folder: str | Path | None) -> None:
    if done > steps:
        _checks.fail(
            _WHO,
            f"steps must be at least the {done} updates of the checkpoint in {folder}",
            f"steps={steps}",
            "raise steps, or pass another folder",
        )
