"""Sweeps on executors: the same trials, wherever they run, and nothing lost when workers die."""

import inspect
import multiprocessing
import os
import pickle
import re
import sys
import threading
import time
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import pytest

import optlab
from deadly import deadly
from helpers import bowl
from optlab import cli
from optlab.lab import Categorical, EarlyStopping, LogUniform, sweep
from optlab.lab.sweeps import _executor, _jobs
from optlab.lab.sweeps._database import encode
from optlab.lab.training._runner import TrialRuns

SPACE = {"width": Categorical((2, 3, 4)), "learning_rate": LogUniform(1e-3, 3.0)}
OPTIONS = {"trials": 12, "lanes": 2, "steps": 16, "eval_every": 2}


def sweep_bowl(task=bowl, **options):
    return sweep(task, optlab.sgd, SPACE, **OPTIONS | options)


def texts(found):
    """Return the trials of a sweep, to the last bit."""
    return [encode(vars(trial)) for trial in found.trials]


DIED = BrokenProcessPool("a process was terminated abruptly")


class Here(Executor):
    """Runs each job at once, in this thread; pickles what it takes and returns, as others do.

    Args:
        jobs: the number of jobs after which it breaks; None for never.
        error: what it then raises.
    """

    def __init__(self, jobs=None, error=DIED):
        self._left, self._error = jobs, error

    def submit(self, function, /, *arguments):
        """Run a job, and return its future."""
        future = Future()
        if self._left == 0:
            future.set_exception(self._error)
            return future
        if self._left is not None:
            self._left -= 1
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))
        future.set_result(pickle.loads(pickle.dumps(function(*arguments))))
        return future


@pytest.fixture(scope="module")
def usual():
    return texts(sweep_bowl())


@pytest.fixture(scope="module")
def halved():
    return texts(sweep_bowl(halving=2))


# The same trials


def test_trials_in_threads_have_the_bits_of_trials_of_this_process(usual):
    told = []
    with ThreadPoolExecutor(3) as pool:
        found = sweep_bowl(executor=pool, callbacks=[told.append])
    assert texts(found) == usual
    assert sorted(trial.number for trial in told) == list(range(12))


def test_trials_that_halving_lets_go_on_take_their_state_from_job_to_job(halved, monkeypatch):
    started, start = [], _jobs.TrialRuns._run_in_turn

    def counted(self, group, chunk, stop, keep, stopping):
        started.extend(n for n, _ in chunk.values() if n not in self._resumable)
        return start(self, group, chunk, stop, keep, stopping)

    monkeypatch.setattr(TrialRuns, "_run_in_turn", counted)
    assert texts(sweep_bowl(executor=Here(), halving=2)) == halved
    assert sorted(started) == list(range(12))  # none begins twice


def test_early_stopping_ends_runs_in_jobs():
    rule = {"early_stopping": EarlyStopping(2), "trials": 3}
    assert texts(sweep_bowl(executor=Here(), **rule)) == texts(sweep_bowl(**rule))


def test_jobs_have_the_lanes_of_the_workers_device(monkeypatch):
    monkeypatch.setattr("optlab.lab.sweeps._sweep.default_lanes", lambda: 99)
    asked = []

    class Asked(Here):
        def submit(self, function, /, *arguments):
            asked.append((function, len(arguments) and len(arguments[0].members)))
            return super().submit(function, *arguments)

    sweep(bowl, optlab.sgd, {"learning_rate": LogUniform(1e-3, 3.0)}, trials=5, executor=Asked())
    (question, _), *jobs = asked
    assert question.__name__ == "default_lanes"
    assert [count for _, count in jobs] == [4, 1]  # of a CPU


# What goes wrong


@pytest.mark.parametrize("halving", [None, 2])
def test_an_executor_that_breaks_loses_no_trial_and_the_sweep_goes_on(
    tmp_path, usual, halved, halving
):
    file, told = tmp_path / "results.db", []
    options = {"results": file, "halving": halving, "callbacks": [told.append]}
    message = (
        r"^sweep: executor must run jobs until the sweep has ended, got BrokenProcessPool: a "
        r"process was terminated abruptly; the trials that have ended are in '.*results.db'; pass "
        r"another executor and the same arguments, and the sweep continues from there$"
    )
    with pytest.raises(ValueError, match=message):
        sweep_bowl(executor=Here(jobs=7 if halving else 3), **options)
    assert told
    assert texts(sweep_bowl(executor=Here(), **options)) == (halved if halving else usual)
    assert sorted(trial.number for trial in told) == list(range(12))  # each is told of once


@pytest.mark.parametrize("error", [CancelledError(), OSError("connection\nlost")])
def test_whatever_an_executor_raises_is_one_line(error):
    with pytest.raises(ValueError, match=r"got (CancelledError|OSError: connection); nothing is"):
        sweep_bowl(executor=Here(0, error))
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(ValueError, match="got RuntimeError: cannot schedule new futures after sh"):
        sweep_bowl(executor=closed)
    with pytest.raises(ValueError, match=r"got (CancelledError|OSError: connection); install opt"):
        sweep_bowl(executor=Here(0, error), lanes=None)


class OwnError(Exception):
    """An error that cannot be unpickled, as its constructor takes no single argument."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")


@pytest.mark.parametrize(
    ("error", "kind"), [(KeyError("no such width"), KeyError), (OwnError(3, "disk"), RuntimeError)]
)
def test_an_error_in_a_job_is_the_users_own(error, kind, monkeypatch):
    def broken(*_, **options):
        raise error

    monkeypatch.setattr(TrialRuns, "run_groups", broken)
    with pytest.raises(kind, match=r"no such width|^OwnError: 3: disk") as raised:
        sweep_bowl(executor=Here())
    (note,) = raised.value.__notes__
    assert "raised on " in note
    assert "in broken\n    raise error" in note


class Kept(ThreadPoolExecutor):
    """A pool of threads that keeps its futures."""

    def __init__(self, threads):
        super().__init__(threads)
        self.futures = []

    def submit(self, *arguments):
        """Submit a job."""
        self.futures.append(super().submit(*arguments))
        return self.futures[-1]


def test_a_sweep_says_that_no_worker_has_come_yet(monkeypatch):
    monkeypatch.setattr(_executor, "PATIENCE", 0.1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 0.5)
        with pytest.warns(UserWarning, match=r"^sweep: the executor has run nothing for 0\.1 sec"):
            assert _executor.lanes_of_workers("sweep", pool) == 4


def test_an_interruption_cancels_what_has_not_begun(tmp_path, usual):
    def interrupt(trial):
        raise KeyboardInterrupt

    file = tmp_path / "results.db"
    with Kept(1) as pool, pytest.raises(KeyboardInterrupt):
        sweep_bowl(executor=pool, callbacks=[interrupt], results=file)
    assert any(future.cancelled() for future in pool.futures)
    assert texts(sweep_bowl(results=file)) == usual


def test_jobs_in_this_process_stop_when_the_sweep_does():
    def task(width):
        if width == 3 and threading.current_thread() is not threading.main_thread():
            raise KeyError("no such width")
        return bowl(width=width)

    # A million updates would take minutes if they were not stopped.
    options = {"trials": 4, "search": "grid", "steps": 1_000_000, "eval_every": 100}
    space = {"width": Categorical((2, 3)), "learning_rate": Categorical((0.1, 0.2))}
    with Kept(2) as pool, pytest.raises(KeyError, match="no such width"):
        sweep(task, optlab.sgd, space, executor=pool, lanes=2, **options)
    assert {type(future.result().error) for future in pool.futures} == {KeyError, CancelledError}


def job_of(task, versions=None):
    work = b"cno_such_module\nmake\n." if task is None else task
    here = versions or _jobs.Versions.here()
    return _jobs.Job("sweep", "another", here, "/", work, (), [], 1, 1, False, {})


def test_a_worker_without_the_users_module_or_with_other_versions_says_so():
    error = _jobs.run_job(job_of(None)).error
    assert str(error).startswith(
        "sweep: each worker must be able to import what task, optimizer and groups are made of, "
        "got ModuleNotFoundError: No module named 'no_such_module' on "
    )
    assert "PYTHONPATH" in str(error)
    error = _jobs.run_job(job_of(None, _jobs.Versions("3.9", "0.0.1", "0.4"))).error
    assert str(error).startswith(
        "sweep: each worker must have the versions of this process, python 3.9, optlab 0.0.1, jax "
        "0.4, got python 3."
    )


def test_what_cannot_be_pickled_is_refused_with_a_remedy(monkeypatch):
    own = bowl()  # its functions are closures
    lock = threading.Lock()
    message = "task, optimizer and groups must be picklable, .* got .*lock.*; pass as task a funct"
    with pytest.raises(ValueError, match=message):
        sweep_bowl(task=lambda width: lock and bowl(width=width), executor=Here())
    monkeypatch.setattr(_jobs, "find_spec", lambda name: None)
    message = r"^sweep: task, .*; pass functions of a module, such as task=mytasks.make in place of"
    with pytest.raises(ValueError, match=message):
        sweep(own, optlab.sgd, {"learning_rate": LogUniform(0.1, 1.0)}, trials=1, executor=Here())


class Client:
    """Stands for a client of dask, which has an executor and is none."""

    def submit(self):
        """Submit a job."""

    def get_executor(self):
        """Return the executor."""

    def __repr__(self):
        return "Client"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": 3}, "executor must be a concurrent.futures.Executor, got 3"),
        ({"executor": Client()}, "got Client; pass client.get_executor()"),
        (
            {"executor": ProcessPoolExecutor(1, multiprocessing.get_context("fork"))},
            "executor must not fork this process, as JAX would hang in its copies, got a pool",
        ),
        (
            {"executor": Here(), "search": "bayes"},
            "executor must be None with search='bayes', which learns from one batch of trials",
        ),
    ],
)
def test_executors_that_cannot_run_a_sweep_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^sweep: .*{re.escape(message)}"):
        sweep_bowl(**options)


# Live


@pytest.fixture
def task(tmp_path):
    return partial(deadly, flag=str(tmp_path / "killed"), survivor=os.getpid())


@pytest.mark.slow
def test_a_process_that_is_killed_breaks_its_pool_and_another_goes_on(task, usual, tmp_path):
    context, told = multiprocessing.get_context("spawn"), []
    options = {"results": tmp_path / "results.db", "callbacks": [told.append]}
    with ProcessPoolExecutor(1, context) as pool, pytest.raises(ValueError, match="BrokenProcessP"):
        sweep_bowl(task, executor=pool, **options)
    assert 0 < len(told) < 12
    with ProcessPoolExecutor(1, context) as pool:
        assert texts(sweep_bowl(task, executor=pool, **options)) == usual
    assert sorted(trial.number for trial in told) == list(range(12))


@pytest.fixture(scope="module")
def scheduler():
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with (
        distributed.LocalCluster(n_workers=2, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.slow
def test_the_command_line_runs_the_users_module_on_dasks_workers(
    scheduler, tmp_path, monkeypatch, capfd
):
    (tmp_path / "bowls.py").write_text(inspect.getsource(_bowls))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    command = ["sweep", "--task", "bowls:_bowls", "--optimizer", "sgd", "--trials", "3"]
    tables = []
    for more in ([], ["--dask", scheduler.scheduler.address]):
        assert cli.main([*command, *more]) == 0
        tables.append(capfd.readouterr().out)
    assert "3 trials" in tables[0]
    assert tables[0] == tables[1]


def _bowls():
    """Return a task, all on its own."""
    import jax.numpy as jnp

    from optlab.lab import Task

    def loss(x):
        return jnp.sum(x**2)

    return Task(
        "bowls",
        init=lambda key: (jnp.ones(2), ()),
        loss=lambda x, state, batch, key: (loss(x), state),
        batch=lambda key, step: (),
        evaluate=lambda x, state, data: {"loss": loss(x)},
        steps=4,
    )


@pytest.mark.slow
def test_a_worker_of_dask_that_is_killed_loses_nothing(scheduler, task, halved, tmp_path):
    told = []
    options = {"results": tmp_path / "results.db", "callbacks": [told.append], "halving": 2}
    found = sweep_bowl(task, executor=scheduler.get_executor(), **options)
    assert (tmp_path / "killed").exists()
    assert texts(found) == halved
    assert sorted(trial.number for trial in told) == list(range(12))
