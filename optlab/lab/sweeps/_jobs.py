"""Jobs of a sweep: what a worker of an executor does, in its own process or thread.

A job trains the trials that run at the same time in the lanes of one program, up to an update. It
has all that this needs: the task and the optimizer, as bytes, and the states of the trials that
continue. A worker keeps the programs of the last sweeps, so that each is compiled once per process.
Jobs write nothing; the sweep stores what they return.
"""

import os
import pickle
import socket
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from importlib.util import find_spec
from threading import BoundedSemaphore, Lock
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optlab import __version__, _checks
from optlab.lab.sweeps._recipe import Recipe
from optlab.lab.training._early_stopping import EarlyStopping
from optlab.lab.training._loop import seed_keys
from optlab.lab.training._runner import Curves, Members, Static, TrialRuns, streams
from optlab.lab.training._threads import Settings, settings

_SWEEPS_KEPT = 2
"""The sweeps whose programs a worker keeps."""

_TRACEBACK = "raised on {host}, by process {pid}:\n{text}"


class Work(NamedTuple):
    """What all jobs of a sweep have in common.

    Attributes:
        recipe: what to train.
        traced: the values that are arguments of a program, name → type.
        seeds: the seeds of the runs of each trial.
        eval_every: updates between evaluations.
        lanes: trials that run at the same time.
        memory: bytes that programs running together may take; None for half of the device's.
        early_stopping: when a run stops; None for never.
        settings: JAX's settings of the sweep; the default device is that of the worker.
        native: whether the steps are made in loops.
    """

    recipe: Recipe
    traced: Mapping[str, type]
    seeds: Sequence[int]
    eval_every: int
    lanes: int
    memory: float | None
    early_stopping: EarlyStopping | None
    settings: Settings
    native: bool

    def runs(self, who: str, on_updates: Callable[[int], None] = lambda updates: None) -> TrialRuns:
        """Return the runner of this process."""
        return TrialRuns(
            who,
            self.recipe,
            self.traced,
            keys=seed_keys(jnp.asarray(self.seeds)),
            eval_every=self.eval_every,
            lanes=self.lanes,
            memory=self.memory,
            on_updates=on_updates,
            early_stopping=self.early_stopping,
            native=self.native,
        )

    def packed(self, who: str) -> bytes:
        """Return this as bytes for other processes.

        With cloudpickle, functions of a script, of a notebook or within other functions travel,
        too; without it only those that a worker can import.

        Raises:
            ValueError: something cannot be pickled.
        """
        has_cloudpickle = find_spec("cloudpickle") is not None
        if has_cloudpickle:
            import cloudpickle as pickler
        else:
            pickler = pickle
        try:
            return pickler.dumps(self)
        except Exception as error:
            remedy = (
                "pass as task a function that makes the task, and with it what holds files, locks "
                "or connections"
            )
            if not has_cloudpickle:
                remedy = (
                    "pass functions of a module, such as task=mytasks.make in place of "
                    "mytasks.make(), or install cloudpickle"
                )
            text = str(error).splitlines()[0] if str(error) else ""
            required = "task, optimizer and groups must be picklable, to reach the workers"
            got = f"{type(error).__name__}: {text}"
            raise ValueError(f"{who}: {required}, got {got}; {remedy}") from error


class Versions(NamedTuple):
    """The versions that a sweep and its workers must share."""

    python: str
    optlab: str
    jax: str

    @classmethod
    def here(cls) -> "Versions":
        """Return those of this process."""
        python = ".".join(map(str, sys.version_info[:2]))
        return cls(python, __version__, jax.__version__)

    def __str__(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self._asdict().items())


class Job(NamedTuple):
    """A job.

    Attributes:
        who: the public name that errors begin with.
        sweep: what tells the jobs of this call of `sweep` from all others.
        versions: those of the sweep.
        folder: where the sweep looks for modules first.
        work: the packed `Work`.
        static: the values that are compiled into the program.
        members: the trials, each with its lane.
        count: the number of trials that the program is made for.
        stop: updates done at the end.
        keep: whether to return the states of the trials.
        states: number → the packed state and the curves so far, for trials that continue.
    """

    who: str
    sweep: str
    versions: Versions
    folder: str
    work: bytes
    static: Static
    members: Members
    count: int
    stop: int
    keep: bool
    states: Mapping[int, tuple[bytes, Curves]]


class Outcome(NamedTuple):
    """What a job returns.

    Attributes:
        curves: number → the curves of a trial.
        states: number → the packed state of a trial, if it was asked for.
        error: what was raised in place of that; None for nothing.
        trace: where it was raised, as text.
    """

    curves: Mapping[int, Curves]
    states: Mapping[int, bytes]
    error: Exception | None = None
    trace: str = ""


class _Programs(NamedTuple):
    """What a worker keeps of a sweep: its runner, its settings, and a place for each program."""

    runs: TrialRuns
    settings: Settings
    places: BoundedSemaphore


_programs: OrderedDict[str, _Programs] = OrderedDict()
_loading = Lock()


def run_job(job: Job) -> Outcome:
    """Run a job; errors are returned, so that those of the executor itself stand apart."""
    try:
        kept = _programs_of(job)
        with kept.places:
            return kept.settings(lambda: _run(kept.runs, job))
    except Exception as error:
        host = {"host": socket.gethostname(), "pid": os.getpid()}
        trace = _TRACEBACK.format(**host, text="".join(traceback.format_exception(error)))
        return Outcome({}, {}, _portable(error), trace)


def stop_jobs(sweep: str) -> None:
    """End the jobs of a sweep that run in this process at their next evaluation."""
    kept = _programs.get(sweep)
    if kept is not None:
        kept.runs.stop()


def _run(runs: TrialRuns, job: Job) -> Outcome:
    for number, (state, curves) in job.states.items():
        runs.put(number, pickle.loads(state), curves)
    curves: dict[int, Curves] = {}
    for chunk in runs.run_groups([(job.static, job.members, job.count)], job.stop, keep=job.keep):
        curves |= chunk
    states = {}
    if job.keep:
        states = {n: pickle.dumps(jax.device_get(runs.take(n))) for n in curves}
    return Outcome(curves, states)


def _programs_of(job: Job) -> _Programs:
    """Return what this process keeps of the job's sweep."""
    with _loading:
        if job.sweep not in _programs:
            _programs[job.sweep] = _loaded(job)
        _programs.move_to_end(job.sweep)
        while len(_programs) > _SWEEPS_KEPT:
            _programs.popitem(last=False)
        return _programs[job.sweep]


def _loaded(job: Job) -> _Programs:
    here = Versions.here()
    if here != job.versions:
        required = f"each worker must have the versions of this process, {job.versions}"
        _checks.fail(job.who, required, f"{here} on {socket.gethostname()}")
    if job.folder not in sys.path and os.path.isdir(job.folder):
        sys.path.append(job.folder)
    try:
        work: Work = pickle.loads(job.work)
    except (ImportError, AttributeError) as error:
        required = "each worker must be able to import what task, optimizer and groups are made of"
        got = f"{type(error).__name__}: {error} on {socket.gethostname()}"
        remedy = "install it there, or start the workers with PYTHONPATH set to its folder"
        raise ValueError(f"{job.who}: {required}, got {got}; {remedy}") from error
    inside = work.settings._replace(device=settings().device)
    return _Programs(inside(lambda: work.runs(job.who)), inside, BoundedSemaphore(streams()))


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent: itself, or one that says the same."""
    if isinstance(error, CancelledError):
        return error
    try:
        again = pickle.loads(pickle.dumps(error))
        if type(again) is type(error) and str(again) == str(error):
            return again
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
