"""What the lab needs of Optuna: a study quietly opened, its sampler, and who runs a trial."""

import logging
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from optlab import _checks
from optlab.lab._search import points
from optlab.lab._space import Categorical, Integer, LogUniform, Range, Scalar

# So many trials are to be finished before the estimator has its say.
STARTUP = 8
# How long a process waits for another one's transaction on a SQLite file, in seconds.
SQLITE_TIMEOUT = 60.0
# Processes that make the tables of a new database at once get in each other's way.
_ATTEMPTS = 10


def distributions(space: Mapping[str, Range]) -> dict[str, Any]:
    """Return the ranges as Optuna's distributions."""
    from optuna import distributions as kinds

    def translated(entry: Range) -> Any:
        if isinstance(entry, Categorical):
            return kinds.CategoricalDistribution(entry.choices)
        if isinstance(entry, Integer):
            return kinds.IntDistribution(entry.low, entry.high, log=entry.log)
        return kinds.FloatDistribution(entry.low, entry.high, log=isinstance(entry, LogUniform))

    return {name: translated(entry) for name, entry in space.items()}


def sampler(
    space: Mapping[str, Range], seed: int, known: Mapping[int, Mapping[str, Scalar]]
) -> Any:
    """Return a sampler that draws a trial's random numbers from (seed, number) alone.

    Args:
        space: name → range.
        seed: of the search.
        known: number → the values that a trial has had already, looked up when it is asked for.
    """
    from optuna.samplers import BaseSampler

    kinds = distributions(space)

    def proposal(study: Any, trial: Any) -> dict[str, Scalar]:
        if trial.number in known:
            return dict(known[trial.number])
        (spread,) = points(space, "halton", seed, [trial.number])
        return spread | (_estimate(study, trial, kinds, seed) if _can_tell(study) else {})

    class Sampler(BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return kinds

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Scalar]:
            return proposal(study, trial)

        def sample_independent(self, study: Any, trial: Any, name: str, kind: Any) -> Scalar:
            # Only of a known value that a rounding puts outside its range.
            return proposal(study, trial)[name]

    return Sampler()


def _can_tell(study: Any) -> bool:
    """Whether enough trials are finished, and not all of them diverged."""
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return len(finished) >= STARTUP and any(np.isfinite(trial.value) for trial in finished)


def _estimate(study: Any, trial: Any, kinds: Mapping[str, Any], seed: int) -> dict[str, Scalar]:
    """Return the estimator's proposal for what can vary."""
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
    """Return the study of that name, made where there is none."""
    import optuna

    for attempt in range(_ATTEMPTS):
        try:
            with _quiet():
                return optuna.create_study(
                    storage=_patient(storage),
                    study_name=name,
                    direction="maximize" if maximize else "minimize",
                    sampler=sampler,
                    load_if_exists=True,
                )
        except Exception as error:
            made_by_another = re.search("already exists|UNIQUE|duplicate", str(error))
            if not made_by_another or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.1)
    raise AssertionError("the last attempt returns or raises")


def _patient(storage: Any) -> Any:
    """Return the storage, of a SQLite file one that waits while other processes write."""
    from optuna.storages import RDBStorage

    if not isinstance(storage, str) or not storage.startswith("sqlite"):
        return storage
    return RDBStorage(storage, engine_kwargs={"connect_args": {"timeout": SQLITE_TIMEOUT}})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing the study, in this thread, and leave its verbosity alone."""
    thread = threading.get_ident()
    names = [name for name in logging.root.manager.loggerDict if name.startswith("optuna.")]
    loggers = [logging.getLogger(name) for name in names]

    def matters(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.thread != thread

    for logger in loggers:
        logger.addFilter(matters)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(matters)


@contextmanager
def storage_errors(who: str, storage: Any, *others: type[Exception]) -> Iterator[None]:
    """Turn what databases, their drivers, and `others` raise into one line."""
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


def masked(text: str) -> str:
    """Return a text without the password of a URL in it."""
    return re.sub(r"(://[^:/@\s]*):[^\s]*@", r"\1:***@", text)


def _reason(error: BaseException) -> str:
    """Return the first line of what the database itself said."""
    cause = error.__cause__ or error
    return str(getattr(cause, "orig", None) or cause).splitlines()[0]


def _remedy(error: BaseException, reason: str) -> str:
    if isinstance(error, ImportError):
        return "install the database's driver, such as psycopg2-binary for PostgreSQL"
    if "locked" in reason:
        return "another process holds it; continue when it is done"
    if type(error).__name__ in ("ArgumentError", "NoSuchModuleError", "ValueError"):
        return 'write "sqlite:///study.db", say'
    return ""


def this_process() -> dict[str, Any]:
    """Return who we are, so that another process can tell whether we are alive."""
    return {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_dead(owner: Mapping[str, Any]) -> bool:
    """Whether a process of this host has ended; of another host's nobody here can know."""
    if owner["host"] != _host():
        return False
    if owner["started"] is not None:
        return _started(owner["pid"]) != owner["started"]
    if os.name != "posix":  # where signal 0 is no mere question
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _host() -> str:
    """Return the host's name; on Linux with the namespace in which process numbers mean anything.

    Containers may share a name, and each has its own process 1.
    """
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(pid: int) -> int | None:
    """Return the clock tick at which a living process began; None where Linux does not tell.

    A process number is given out again after its process's end.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = status.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])  # fields 3 and 22 of proc(5)
