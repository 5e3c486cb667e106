"""The lab's use of Optuna: distributions, the sampler, opening a study, and who runs a trial.

Who runs a trial is known in two ways. A process of this host is looked up among the processes. Any
other is alive as long as it writes signs of life into the storage, each `HEARTBEAT` seconds; its
trials are given up once there is none for `GRACE` seconds, by the clock of the database.
"""

import logging
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from optlab import _checks
from optlab.lab.sweeps._search import points
from optlab.lab.sweeps._space import Categorical, Integer, LogUniform, Range, Scalar

Result = TypeVar("Result")

# The estimator proposes trials once this many are finished.
STARTUP = 8
# Seconds to wait for another process's transaction on an SQLite file.
SQLITE_TIMEOUT = 60.0
# Seconds between two signs of life, and those without one after which a trial is given up.
HEARTBEAT, GRACE = 60, 300
# Seconds to wait for a database server that no longer answers, and between attempts.
PATIENCE, ATTEMPT = 300.0, 2.0
# Attempts to open a study: processes that create the tables of a new database at the same time
# may fail.
_ATTEMPTS = 10


def distributions(space: Mapping[str, Range]) -> dict[str, Any]:
    """Return the ranges as Optuna's distributions."""
    from optuna import distributions as kinds

    def distribution(entry: Range) -> Any:
        if isinstance(entry, Categorical):
            return kinds.CategoricalDistribution(entry.choices)
        if isinstance(entry, Integer):
            return kinds.IntDistribution(entry.low, entry.high, log=entry.log)
        return kinds.FloatDistribution(entry.low, entry.high, log=isinstance(entry, LogUniform))

    return {name: distribution(entry) for name, entry in space.items()}


def sampler(
    space: Mapping[str, Range], seed: int, known_values: Mapping[int, Mapping[str, Scalar]]
) -> Any:
    """Return a sampler that draws a trial's random numbers from (seed, number) alone.

    Args:
        space: name → range.
        seed: seed of the search.
        known_values: number → the values of a trial that was run before; looked up at each
            proposal.
    """
    from optuna.samplers import BaseSampler

    kinds = distributions(space)

    def proposal(study: Any, trial: Any) -> dict[str, Scalar]:
        if trial.number in known_values:
            return dict(known_values[trial.number])
        (halton_point,) = points(space, "halton", seed, [trial.number])
        return halton_point | (_estimate(study, trial, kinds, seed) if _can_estimate(study) else {})

    class Sampler(BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return kinds

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Scalar]:
            return proposal(study, trial)

        def sample_independent(self, study: Any, trial: Any, name: str, kind: Any) -> Scalar:
            # Optuna calls this for a known value that rounding has put outside its range.
            return proposal(study, trial)[name]

    return Sampler()


def _can_estimate(study: Any) -> bool:
    """Whether enough trials are finished, and not all of them diverged."""
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return len(finished) >= STARTUP and any(np.isfinite(trial.value) for trial in finished)


def _estimate(study: Any, trial: Any, kinds: Mapping[str, Any], seed: int) -> dict[str, Scalar]:
    """Return the estimator's proposal for the hyperparameters that can vary."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler

    own_seed = int(np.random.SeedSequence([seed, trial.number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        estimator = TPESampler(
            seed=own_seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP
        )
    varying = {name: kind for name, kind in kinds.items() if not kind.single()}
    return estimator.sample_relative(study, trial, varying)


def open_study(storage: Any, name: str, maximize: bool, sampler: Any) -> Any:
    """Return the study of that name; create it if there is none."""
    import optuna

    for attempt in range(_ATTEMPTS):
        try:
            with _quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.create_study(
                    storage=_patient(storage),
                    study_name=name,
                    direction="maximize" if maximize else "minimize",
                    sampler=sampler,
                    load_if_exists=True,
                )
        except Exception as error:
            created_elsewhere = re.search("already exists|UNIQUE|duplicate", str(error))
            if not created_elsewhere or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.1)
    raise AssertionError("the last attempt returns or raises")


def _patient(storage: Any) -> Any:
    """Return the storage; of a database, one with signs of life that bears with its connections."""
    from optuna.storages import RDBStorage

    if not isinstance(storage, str):
        return storage
    options: dict[str, Any] = {"pool_pre_ping": True}  # a connection may have died since its use
    if storage.startswith("sqlite"):  # other processes write, too
        options = {"connect_args": {"timeout": SQLITE_TIMEOUT}}
    elif storage.startswith("postgresql://") and not find_spec("psycopg2") and find_spec("psycopg"):
        storage = storage.replace("postgresql://", "postgresql+psycopg://", 1)
    signs = {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE}
    return RDBStorage(storage, engine_kwargs=options, **signs)


def disconnect(study: Any) -> None:
    """Close a study's connections to its database, if it has one; the next use opens others."""
    storage = getattr(study._storage, "_backend", None)
    if hasattr(storage, "engine"):
        storage.remove_session()
        storage.engine.dispose()


class SignsOfLife:
    """Writes signs of life of running trials into a storage, from a thread, at intervals.

    Args:
        study: the study; nothing is written where its storage takes no signs of life.

    Attributes:
        are_taken: whether the storage takes them.
    """

    def __init__(self, study: Any):
        self._storage = study._storage
        interval = getattr(self._storage, "get_heartbeat_interval", lambda: None)()
        self.are_taken, self._interval = interval is not None, interval
        self._ids: dict[int, int] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, trial: Any) -> None:
        """Write the first sign of a trial, and go on until `end`."""
        if not self.are_taken:
            return
        self.write(trial)
        self._ids[trial.number] = trial._trial_id
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, daemon=True)
            self._thread.start()

    def write(self, trial: Any) -> None:
        """Write a single sign of a trial."""
        self._storage.record_heartbeat(trial._trial_id)

    def end(self, number: int) -> None:
        """Write no more signs of a trial."""
        self._ids.pop(number, None)

    def close(self) -> None:
        """Write no more signs of any trial."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _write(self) -> None:
        while not self._closed.wait(self._interval):
            for trial_id in list(self._ids.values()):
                # The thread that reports scores waits for a database that does not answer.
                with suppress(Exception):
                    self._storage.record_heartbeat(trial_id)


def ask(study: Any, kinds: Mapping[str, Any]) -> Any:
    """Return a new trial, whose signs of life are ours to write."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with")
        return study.ask(kinds)


def fail_silent(study: Any) -> None:
    """Give up the running trials without signs of life."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import fail_stale_trials

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's messages about the study in this thread, without changing its verbosity."""
    thread = threading.get_ident()
    names = [name for name in logging.root.manager.loggerDict if name.startswith("optuna.")]
    loggers = [logging.getLogger(name) for name in names]

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.thread != thread

    for logger in loggers:
        logger.addFilter(passes)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(passes)


@contextmanager
def storage_errors(who: str, storage: Any, *others: type[Exception]) -> Iterator[None]:
    """Turn errors of databases, of their drivers and of the types `others` into a ValueError."""
    try:
        yield
    except Exception as error:
        libraries = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
        if not libraries & {"sqlalchemy", "optuna"} and not isinstance(
            error, (ImportError, *others)
        ):
            raise
        reason = _reason(error)
        _checks.fail(
            who,
            "storage must be a database that can be used",
            f"{masked(str(storage))!r} ({masked(reason)})",
            _remedy(error, reason),
        )


def patiently(who: str, storage: Any, function: Callable[[], Result]) -> Result:
    """Call a function of a storage, again and again while a database server does not answer.

    Args:
        who: the public name that warnings begin with.
        storage: the storage, for warnings.
        function: may be called again after it has failed.
    """
    deadline = None
    while True:
        try:
            return function()
        except Exception as error:
            now = time.monotonic()
            if not _is_away(error) or (deadline is not None and now > deadline):
                raise
            if deadline is None:
                deadline = now + PATIENCE
                warnings.warn(
                    f"{who}: {masked(str(storage))!r} does not answer "
                    f"({masked(_reason(error))}); trying again for {PATIENCE:g} seconds",
                    stacklevel=2,
                )
            time.sleep(min(ATTEMPT, PATIENCE))


def _is_away(error: BaseException) -> bool:
    """Whether a database server cannot be reached, or has closed the connection."""
    kinds = ("sqlalchemy.exc.OperationalError", "sqlalchemy.exc.InterfaceError")
    for each in (error, error.__cause__):
        for kind in type(each).__mro__:
            if f"{kind.__module__}.{kind.__qualname__}" in kinds:
                return "sqlite3" not in type(getattr(each, "orig", None)).__module__
    return False


def masked(text: str) -> str:
    """Return a text in which the passwords of URLs are masked."""
    return re.sub(r"(://[^:/@\s]*):[^\s]*@", r"\1:***@", text)


def _reason(error: BaseException) -> str:
    """Return the first line of the database's own message."""
    cause = error.__cause__ or error
    return str(getattr(cause, "orig", None) or cause).splitlines()[0]


def _remedy(error: BaseException, reason: str) -> str:
    if isinstance(error, ImportError):
        return 'install the database\'s driver, for PostgreSQL by pip install "optlab[postgresql]"'
    if "locked" in reason:
        return "another process holds it; continue when it is done"
    if _is_away(error):
        return "start it, and call again with the same arguments; what was stored in it counts"
    if type(error).__name__ in ("ArgumentError", "NoSuchModuleError", "ValueError"):
        return 'write "sqlite:///study.db", say'
    return ""


def this_process() -> dict[str, Any]:
    """Identify this process, so that other processes can tell whether it is alive."""
    return {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_dead(owner: Mapping[str, Any]) -> bool:
    """Whether a process of this host has ended; False for processes of other hosts."""
    if owner["host"] != _host():
        return False
    if owner["started"] is not None:
        return _started(owner["pid"]) != owner["started"]
    if os.name != "posix":  # signal 0 only asks whether a process exists on POSIX
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _host() -> str:
    """Return the host's name; on Linux with its process namespace.

    Containers may share a host name, while each numbers its processes on its own.
    """
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(pid: int) -> int | None:
    """Return the clock tick at which a living process started; None if Linux does not report it.

    It tells a process from a later one with the same number.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = status.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])  # fields 3 and 22 of proc(5)
