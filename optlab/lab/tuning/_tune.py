"""`tune`: the seven steps from a model to a tuned, explained run.

    1. initial loss        is it that of a model that knows nothing?
    2. overfit a batch     can the model memorize a few examples?
    3. learning rates      at which rates does each optimizer train?
    4. coarse search       which hyperparameters train well at all?
    5. refinement          which are best, and how sharply?
    6. learning curves     what do the best and a typical run show?
    7. finals              which schedule wins, over several seeds?

Each step ends with a verdict, its evidence, and what to do. The steps are in modules of their own.

Reference: Karpathy, "A Recipe for Training Neural Networks" (2019); Godbole, Dahl, Gilmer, Shallue,
Nado, "Deep Learning Tuning Playbook" (2023).
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._report import versions
from optlab.lab.data import Batches
from optlab.lab.sweeps._recipe import name_of
from optlab.lab.sweeps._space import Range, checked_space
from optlab.lab.tasks._check_task import check_in_memory, check_predicts, check_task
from optlab.lab.tasks._task import Task
from optlab.lab.tuning import (
    _finals,
    _initial_loss,
    _overfit,
    _rates,
    _reading,
    _refinement,
    _search,
)
from optlab.lab.tuning._budget import Budget, Meter
from optlab.lab.tuning._fingerprint import fingerprint
from optlab.lab.tuning._folder import Folder
from optlab.lab.tuning._journal import CONTENTS, Journal
from optlab.lab.tuning._live import live_view
from optlab.lab.tuning._procedure import MOST_CONTENDERS, WHO, Contender, Outcome, Procedure
from optlab.lab.tuning._recipe import recipe
from optlab.lab.tuning._result import (
    FAILED,
    SKIPPED,
    WARNING,
    Interval,
    Step,
    TunedTrial,
    Tuning,
    Winner,
)
from optlab.lab.tuning._space import RATE, default_of, takes
from optlab.lab.tuning._texts import count, duration, number
from optlab.optimizers import adamw, sgd

Make = Callable[..., optax.GradientTransformation]

STEPS: Sequence[tuple[Step, Callable[[Procedure], Outcome]]] = (
    (_initial_loss.STEP, _initial_loss.initial_loss),
    (_overfit.STEP, _overfit.overfit),
    (_rates.STEP, _rates.rates),
    (_search.STEP, _search.coarse_search),
    (_refinement.STEP, _refinement.refine),
    (_reading.STEP, _reading.read),
    (_finals.STEP, _finals.finals),
)
"""The seven steps, and the functions that carry them out."""


OPTIMIZERS: Mapping[str, Make] = {
    "adamw": adamw,
    "momentum": partial(sgd, momentum=0.9, nesterov=True),
}
"""The optimizers in the running, if the caller does not say which."""


def tune(
    task: Task | Callable[..., Task],
    *,
    budget: str | float = "10m",
    optimizers: Mapping[str, Make] | None = None,
    space: Mapping[str, Range] | None = None,
    steps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    go_on: bool = False,
    ensemble: int = 0,
    folder: str | Path | None = None,
    callbacks: Sequence[Callable[[Tuning, str], None]] = (),
    progress: bool = False,
) -> Tuning:
    """Go from a model to a tuned run in seven steps, each with a verdict and its evidence.

    The steps are: the loss before training, memorizing a batch, a range test for each optimizer, a
    coarse search, a refinement around the best, a look at the curves, and the finals with schedules
    over several seeds. A step that fails ends the procedure, unless `go_on`.

    What a step decides from the time that was left is written to the folder before it is carried
    out. A procedure that is called again with the same arguments goes on from there; only runs that
    had not ended are made again. Hyperparameters are chosen on the validation split. The test split
    is used once, for the winner.

    Args:
        task: the problem; or a function that returns it, whose arguments `batch_size`, `dropout`
            and `label_smoothing` are then searched, too, unless `functools.partial` sets them. The
            task must have validation data, or be an objective without data.
        budget: what the procedure may cost over all calls: "10m", "90s" or "2h" of wall time,
            "20000 updates" over all runs, or "40 trials", which are that many whole runs; or a
            number of minutes. The procedure exceeds it by a tenth at most, unless a single
            compilation, range test or interval between evaluations takes longer than that. A budget
            of updates gives the same trials on every machine.
        optimizers: name → constructor, a function of `learning_rate` and other hyperparameters;
            None for AdamW, and SGD with Nesterov's momentum.
        space: name → range, in place of the ranges that are chosen, or beside them.
        steps: updates of a whole run, ≥ 1; None for the task's own number.
        seed: seed of the search, and the first one of the runs.
        quick: whether to be content with one optimizer, and with fewer and shorter runs.
        go_on: whether to go on after a step that failed.
        ensemble: the members of a deep ensemble of the winner, 3 to 5 say, which is judged at the
            end; 0 for none. The task must be a classification in memory.
        folder: where results.sqlite holds everything as it arrives, and report.html, report.md and
            recipe.py are written. It must be new, empty, or that of this procedure. None for none.
        callbacks: each is called with the `Tuning` so far, and with what is going on in words, as
            that changes.
        progress: whether to show the steps on stderr, if that is a terminal.

    Raises:
        ModuleNotFoundError: rich, for `progress`, is not installed.
        ValueError: an argument is out of its range, the budget does not allow a single run, no
            optimizer and not the task takes a name of `space`, they refuse a value of it, or
            `folder` cannot be written or holds anything else.

    Example:
        >>> from optlab.lab import tasks
        >>> tuning = tune(tasks.digits_mlp, budget="5m", quick=True)  # doctest: +SKIP
        >>> print(tuning)  # doctest: +SKIP
    """
    _checks.check_flag(WHO, "quick", quick)
    _checks.check_flag(WHO, "go_on", go_on)
    _checks.check_integer(WHO, "seed", seed, 0)
    _check_callbacks(callbacks)
    contenders = _contenders(optimizers, quick)
    given = {} if space is None else checked_space(WHO, space)
    plain, source = _plain(task)
    steps = plain.steps if steps is None else steps
    _checks.check_integer(WHO, "steps", steps, 1)
    _checks.check_integer(WHO, "ensemble", ensemble, 0)
    if ensemble:
        check_in_memory(WHO, plain)
        check_predicts(WHO, plain)
    amount = Budget.of(WHO, budget, int(steps))
    about = {
        "task": plain.name,
        "score": plain.score,
        CONTENTS: fingerprint(plain, source),
        "optimizers": {one.name: name_of(one.make) for one in contenders},
        **{f"space[{name!r}]": values.to_json() for name, values in given.items()},
        "steps": int(steps),
        "seed": int(seed),
        "quick": quick,
        "ensemble": int(ensemble),
    }
    place = None if folder is None else Folder(WHO, folder)
    with (
        closing(Journal(WHO, None if place is None else place.results, about)) as journal,
        live_view(WHO, progress) as draw,
    ):
        callbacks = [*callbacks, draw, *([] if place is None else [place.report])]
        meter = Meter(amount, *journal.used)
        procedure = Procedure(
            task=task,
            plain=plain,
            contenders=contenders,
            space=given,
            steps=int(steps),
            seed=int(seed),
            quick=quick,
            ensemble=int(ensemble),
            journal=journal,
            meter=meter,
        )
        _check_space(procedure)
        procedure.on_change = lambda text: _notify(procedure, callbacks, text)
        reason = _carry_out(procedure, go_on)
        result = _result(procedure, reason, finished=True)
        if place is not None and result.winner is not None:
            winner = result.winner
            make = procedure.contender(winner.optimizer).make
            place.write_recipe(lambda: recipe(winner, task, make))
        for callback in callbacks:
            callback(result, "")
    return result


def _carry_out(procedure: Procedure, go_on: bool) -> str | None:
    """Carry out the steps; return why the procedure ended early, or None."""
    for step, function in STEPS:
        outcome = procedure.carry_out(step, function)
        if outcome.step.verdict == FAILED and not (go_on and _can_go_on(step)):
            return f"Step “{step.name}” failed. {outcome.step.advice}".strip()
    return None


def _can_go_on(step: Step) -> bool:
    """Whether the steps after a failed one have something to begin with."""
    return step.name in (_initial_loss.STEP.name, _overfit.STEP.name)


def _notify(procedure: Procedure, callbacks: Sequence[Callable], text: str) -> None:
    if callbacks:
        result = _result(procedure, None, finished=False)
        for callback in callbacks:
            callback(result, text)


def _result(procedure: Procedure, reason: str | None, *, finished: bool) -> Tuning:
    """Return everything so far."""
    steps = []
    for step, _ in STEPS:
        if step.name in procedure.done:
            steps.append(procedure.done[step.name].step)
        elif procedure.began is not None and procedure.began.name == step.name:
            steps.append(procedure.began)
        else:
            steps.append(replace(step, verdict=SKIPPED) if finished else step)
    winner = _winner(procedure)
    trials = _trials(procedure)
    plain, meter = procedure.plain, procedure.meter
    return Tuning(
        task=plain.name,
        score=plain.score,
        maximize=plain.maximize,
        budget=meter.budget.text,
        seconds=meter.seconds,
        updates=meter.updates,
        runs=meter.runs,
        steps=steps,
        trials=trials,
        winner=winner,
        summary=_summary(procedure, winner, reason) if finished else [],
        failures=_failures(trials),
        finished=finished,
        machine=_machine(),
    )


def _winner(procedure: Procedure) -> Winner | None:
    done = procedure.done.get(_finals.STEP.name)
    if done is None or "winner" not in done.facts:
        return None
    facts = done.facts["winner"]
    test = facts["test"]
    return Winner(
        optimizer=facts["optimizer"],
        schedule=facts["schedule"],
        values=facts["values"],
        steps=procedure.steps_of(facts["values"]),
        stop=facts["stop"],
        seed=facts.get("seed", procedure.seed),
        score=Interval.of(facts["scores"]),
        test=None if test is None else Interval.of(test),
        tied=facts["tied"],
        candidates=facts["candidates"],
    )


def _trials(procedure: Procedure) -> list[TunedTrial]:
    names = (_search.STEP.name, _refinement.STEP.name, _finals.STEP.name)
    trials = []
    for record in (record for name in names for record in procedure.of_stage(name)):
        stopped = record.trial.status == "complete" and not procedure.is_whole(record)
        trials.append(replace(record.trial, status="stopped") if stopped else record.trial)
    return trials


def _summary(procedure: Procedure, winner: Winner | None, reason: str | None) -> list[str]:
    """Return what came out, how sure that is, and what it cost."""
    plain, meter = procedure.plain, procedure.meter
    sentences = [] if reason is None else [f"The procedure ended early. {reason}"]
    split = "validation " if plain.splits else ""
    if winner is not None:
        values = ", ".join(f"{name}={number(v)}" for name, v in winner.values.items())
        how = f"with a {winner.schedule} schedule" if winner.schedule != "constant" else ""
        sentences.append(
            f"Train with {winner.optimizer}({values}) {how}".rstrip()
            + f" for {winner.stop} updates: {split}{plain.score} {winner.score}."
        )
        if winner.test is not None:
            sentences.append(f"On the test split, which chose nothing: {winner.test}.")
        sentences.append(
            f"As good, as far as the seeds can tell: {'; '.join(winner.tied)}."
            if winner.tied
            else _lonely(winner)
        )
    warned = [step.step.name for step in procedure.done.values() if step.step.verdict == WARNING]
    if warned:
        sentences.append(f"Look at what these steps say: {', '.join(warned)}.")
    sentences.append(
        f"It took {duration(meter.seconds)}, {count(meter.updates, 'update')} and "
        f"{count(meter.runs, 'run')}."
    )
    return sentences


def _lonely(winner: Winner) -> str:
    """Return what a winner without ties has to be compared with."""
    if len(winner.score.values) < 2:
        return "From one seed nothing can be said about how sure this is."
    if winner.candidates < 2:
        return "It was the only candidate that the budget allowed to try over seeds."
    return "No other candidate of the finals is as good."


def _failures(trials: Sequence[TunedTrial]) -> list[str]:
    """Return sentences about trials that diverged, by optimizer."""
    sentences = []
    for name in dict.fromkeys(trial.optimizer for trial in trials):
        own = [trial for trial in trials if trial.optimizer == name]
        bad = [trial for trial in own if trial.status == "diverged"]
        if bad:
            rates = [trial.values[RATE] for trial in bad if RATE in trial.values]
            low = f", all at rates from {min(rates):.3g} on" if rates else ""
            sentences.append(f"{name}: {len(bad)} of {len(own)} trials diverged{low}.")
    return sentences


def _machine() -> str:
    device = jax.devices()[0]
    names = ("optlab", "jax", "jaxlib", "optax", "flax", "numpy")
    packages = ", ".join(f"{name} {v}" for name, v in versions(*names).items() if v)
    kind = _processor() if device.platform == "cpu" else device.device_kind
    return f"{kind}, {len(jax.devices())} device(s); Python {platform.python_version()}, {packages}"


def _processor() -> str:
    """Return the name of the processor, as far as it can be known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def _contenders(optimizers: Any, quick: bool) -> list[Contender]:
    if optimizers is None:
        optimizers = dict(list(OPTIMIZERS.items())[: 1 if quick else None])
    remedy = 'pass {"adamw": optlab.adamw}, say'
    if not isinstance(optimizers, Mapping) or not optimizers:
        _checks.fail(WHO, "optimizers must map names to constructors", repr(optimizers), remedy)
    for name, make in optimizers.items():
        if not isinstance(name, str) or not callable(make):
            required = "optimizers must map names to functions of hyperparameters"
            _checks.fail(WHO, required, f"{name!r}: {make!r}", remedy)
        if not takes(make, RATE):
            required = f"the constructor of {name} must take {RATE}"
            _checks.fail(WHO, required, repr(make), "write a function that does, and calls it")
    if len(optimizers) > MOST_CONTENDERS:
        got = f"{len(optimizers)}"
        _checks.fail(WHO, f"optimizers must name at most {MOST_CONTENDERS}", got)
    return [Contender(name, make) for name, make in optimizers.items()]


def _plain(task: Any) -> tuple[Task, Batches | None]:
    """Return the task with its usual values, and its loader."""
    if isinstance(task, Task):
        plain = task
    elif callable(task):
        plain = task()
    else:
        required = "task must be a Task, or a function that returns one"
        _checks.fail(WHO, required, repr(task))
    if isinstance(plain, Task) and not plain.splits and _has_data(plain):
        required = f"task {plain.name!r} must have validation data, by which runs are judged"
        remedy = 'hold out a part of the training data: Task(splits={"validation": …})'
        _checks.fail(WHO, required, "no split", remedy)
    source = check_task(WHO, plain)
    if source is not None:
        source.refuse_one_shot(WHO, "by each run")
    return plain, source


def _has_data(task: Task) -> bool:
    """Whether the batches of a task hold anything; those of a plain objective do not."""
    if not callable(task.batch):
        return True
    return bool(jax.tree.leaves(jax.eval_shape(task.batch, jax.random.key(0), jnp.int32(0))))


def _check_space(procedure: Procedure) -> None:
    """Require that each name of the user's space is taken, and each value accepted."""
    makes = [one.make for one in procedure.contenders]
    for name in procedure.space:
        if not any(takes(function, name) for function in (*makes, procedure.task)):
            names = ", ".join(one.name for one in procedure.contenders)
            required = f"space must name arguments of the optimizers ({names}) or of the task"
            remedy = (
                "pass the function that makes the task, not the task"
                if isinstance(procedure.task, Task) and default_of(makes[0], name) is None
                else ""
            )
            _checks.fail(WHO, required, name, remedy)
    _search.check_spaces(procedure)


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        required = "callbacks must be a list of functions"
        _checks.fail(WHO, required, repr(callbacks), "pass [function]")
