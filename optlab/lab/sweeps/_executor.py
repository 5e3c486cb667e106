"""`ExecutorRuns`: trials run as jobs of an executor, with the interface of `TrialRuns`.

A job is what one program trains at the same time: up to `lanes` trials that share it. Each trial
has the lane that it would have in this process, and so the same bits on the same kind of device.
States of trials that continue at a rung of halving are held here between jobs, so that a worker
that dies takes nothing along.
"""

import os
import sys
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from typing import Any, NoReturn
from uuid import uuid4

from optlab import _checks
from optlab.lab.sweeps._jobs import Job, Outcome, Versions, Work, run_job, stop_jobs
from optlab.lab.training._runner import Curves, Point, chunks, default_lanes, grouped

JOBS_AHEAD = 1000
"""The most jobs that are submitted and have not ended."""

BYTES_AHEAD = 2**28
"""The most bytes of tasks in such jobs, of which there are at least `FEWEST_AHEAD`."""

FEWEST_AHEAD = 64

PATIENCE = 30.0
"""Seconds after which a warning says that no worker has taken the first job."""


def check_executor(who: str, executor: Any, search: str) -> None:
    """Require an executor that can run jobs of JAX, or none, and a search that has jobs."""
    if executor is None:
        return
    if not isinstance(executor, Executor):
        makes_one = hasattr(executor, "get_executor")
        remedy = "pass client.get_executor()" if makes_one else ""
        required = "executor must be a concurrent.futures.Executor"
        _checks.fail(who, required, repr(executor), remedy)
    context = getattr(executor, "_mp_context", None)
    if isinstance(executor, ProcessPoolExecutor) and context.get_start_method() == "fork":
        required = "executor must not fork this process, as JAX would hang in its copies"
        remedy = 'pass ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))'
        _checks.fail(who, required, "a pool that forks", remedy)
    if search == "bayes":
        _checks.fail(
            who,
            "executor must be None with search='bayes', which learns from one batch of trials "
            "before it asks for the next, and would leave most workers idle",
            "an executor",
            "pass storage, the URL of a database, and call sweep on each machine; or use "
            'search="halton"',
        )


def lanes_of_workers(who: str, executor: Executor) -> int:
    """Return the lanes of a device of the workers, if nobody says how many; ask one of them."""
    try:
        future = executor.submit(default_lanes)
    except Exception as error:
        _fail(who, error, "pass an executor that takes jobs")
    try:
        if not wait([future], timeout=PATIENCE).done:
            # Workers of a cluster may wait in a queue for hours: that is no error.
            warnings.warn(
                f"{who}: the executor has run nothing for {PATIENCE:g} seconds; the sweep waits "
                "until it has a worker that is free",
                stacklevel=3,
            )
        return future.result()
    except Exception as error:
        _fail(who, error, _START)
    finally:
        future.cancel()


_START = (
    "install optlab on every worker; a script that starts a pool of processes needs "
    '`if __name__ == "__main__":`'
)


class ExecutorRuns:
    """Trials that run as jobs of an executor, each up to the last requested update.

    Args:
        who: the public name that errors begin with.
        executor: runs the jobs.
        work: what the jobs have in common.
        results: the file where results are stored; None for none.
        on_updates: called with the number of updates done, over all trials.
    """

    def __init__(
        self,
        who: str,
        executor: Executor,
        work: Work,
        *,
        results: Any = None,
        on_updates: Callable[[int], None] = lambda updates: None,
    ):
        self._who, self._executor, self._results = who, executor, results
        self._traced, self._lanes, self._on_updates = work.traced, work.lanes, on_updates
        self._work = work._replace(settings=work.settings._replace(device=None)).packed(who)
        self._most = min(JOBS_AHEAD, max(FEWEST_AHEAD, BYTES_AHEAD // len(self._work)))
        self._sweep, self._versions = uuid4().hex, Versions.here()
        self._folder = os.path.abspath(sys.path[0]) if sys.path else os.getcwd()
        self._kept: dict[int, tuple[bytes, Curves]] = {}

    def run(
        self,
        points: Sequence[Point],
        stop: int,
        *,
        skip: Container[int] = (),
        keep: bool = False,
    ) -> Iterator[dict[int, Curves]]:
        """Train trials up to an update; yield the curves of each job when it ends.

        Args:
            points: the trials. Trials that an earlier call kept continue from there.
            stop: updates done at the end.
            skip: numbers of trials that are not trained, but keep their lanes.
            keep: whether to store the states of the trials, so that a later call can continue them.

        Raises:
            ValueError: the executor fails.
        """
        jobs = self._jobs(points, stop, skip, keep)
        running: dict[Future, Job] = {}
        is_done = False
        try:
            while not is_done or running:
                while not is_done and len(running) < self._most:
                    job = next(jobs, None)
                    if job is None:
                        is_done = True
                    else:
                        running[self._submit(job)] = job
                done = wait(running, return_when=FIRST_COMPLETED).done
                # What ended well is stored before an error of another job ends the sweep.
                for future in sorted(done, key=_has_failed):
                    job = running.pop(future)
                    outcome = self._outcome(future)
                    updates = sum(stop - self._reached(number) for _, (number, _) in job.members)
                    for number, state in outcome.states.items():
                        self._kept[number] = state, outcome.curves[number]
                    self._on_updates(updates)
                    yield dict(outcome.curves)
        finally:  # after an error or an interruption
            for future in running:
                future.cancel()
            if running:
                stop_jobs(self._sweep)

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop the stored states of trials that do not continue."""
        for number in numbers:
            self._kept.pop(number, None)

    def _jobs(
        self, points: Sequence[Point], stop: int, skip: Container[int], keep: bool
    ) -> Iterator[Job]:
        reached = {number: self._reached(number) for number in self._kept}
        for static, members in grouped(points, self._traced, skip).items():
            for chunk in chunks(members, self._lanes, reached):
                yield Job(
                    self._who,
                    self._sweep,
                    self._versions,
                    self._folder,
                    self._work,
                    static,
                    list(chunk.items()),
                    min(self._lanes, len(members)),
                    stop,
                    keep,
                    {n: self._kept[n] for n, _ in chunk.values() if n in self._kept},
                )

    def _reached(self, number: int) -> int:
        return int(self._kept[number][1].steps[-1]) if number in self._kept else 0

    def _submit(self, job: Job) -> Future:
        try:
            return self._executor.submit(run_job, job)
        except Exception as error:
            _fail(self._who, error, self._remedy())

    def _outcome(self, future: Future) -> Outcome:
        try:
            outcome: Outcome = future.result()
        except Exception as error:
            _fail(self._who, error, self._remedy())
        if outcome.error is not None:
            outcome.error.add_note(outcome.trace)
            raise outcome.error
        return outcome

    def _remedy(self) -> str:
        if self._results is None:
            return (
                "nothing is kept without a file of results; pass results, and a sweep that was "
                "stopped continues when it is called again"
            )
        return (
            f"the trials that have ended are in {str(self._results)!r}; pass another executor and "
            "the same arguments, and the sweep continues from there"
        )


def _has_failed(future: Future) -> bool:
    if future.cancelled() or future.exception() is not None:
        return True
    return future.result().error is not None


def _fail(who: str, error: Exception, remedy: str) -> NoReturn:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    got = f"{type(error).__name__}: {text}".removesuffix(": ").removesuffix(".")
    required = "executor must run jobs until the sweep has ended"
    _checks.fail(who, required, got, remedy)
