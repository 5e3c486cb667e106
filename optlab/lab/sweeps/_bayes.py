"""Bayesian search with Optuna: each batch of trials is placed where earlier trials scored well.

The first trials are Halton points. Once enough trials are finished, Optuna's tree-structured
Parzen estimator models the better ones by one density, l(x), and the rest by another, g(x). It
draws samples from l and proposes the sample of largest l/g. Trials that still run count among the
rest (the "constant liar"), which keeps the trials of one batch apart. Trials that diverged count
among the rest too, which keeps later trials away from them.

Reference: Bergstra, Bardenet, Bengio, Kégl, "Algorithms for Hyper-Parameter Optimization", NeurIPS
(2011); Watanabe, "Tree-Structured Parzen Estimator", arXiv:2304.11127 (2023).
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from optlab import _checks
from optlab._extras import needs_extra
from optlab.lab.sweeps._optuna import (
    Result,
    SignsOfLife,
    ask,
    disconnect,
    distributions,
    fail_silent,
    is_dead,
    open_study,
    patiently,
    sampler,
    storage_errors,
    this_process,
)
from optlab.lab.sweeps._space import Range, Scalar, checked_space

Finished = tuple[int, dict[str, Scalar], float | None, dict[str, Any]]

_WHO = "sweep"
_OTHER_NAME = "give this one another name"
_SPACE, _OWNER, _RECORD = "optlab_space", "optlab_owner", "optlab_record"
_SEEN = "optlab_seen"
# A process may die between creating a trial and signing it. Where a storage takes no signs of life,
# an unsigned trial of this age is therefore taken to be abandoned.
_UNSIGNED = timedelta(seconds=60)


class Bayes:
    """A study that proposes batches of trials and learns from their scores.

        with Bayes(space, seed=0) as study:
            while left := study.remaining(64):
                for number, values in study.ask(min(left, 8)):
                    study.tell(number, score_of(values))

    In memory, a batch depends only on the seed, the numbers of its trials, and the results that
    were reported before `ask`: a trial's random numbers are drawn from (seed, number). A search
    that was killed can therefore be repeated: give its finished trials back with `add_finished`,
    and ask for batches of the same sizes from the beginning. The study then proposes the same
    trials, and the finished ones need not run again. The result of a trial given back takes effect
    at the same point as the first time: at the batch after its own.

    With a storage, any number of processes and machines can work on the study of that name; the
    order of their calls decides which trials each of them gets. Each trial records the host and
    the process that run it. Trials that a dead process of this host left behind are marked as
    failed and do not count. So are those of other hosts once a database has had no sign of life of
    them for five minutes; processes give one each minute. What is told of a trial that was given
    up does not count. A database server that goes away is waited for, for five minutes.

    Args:
        space: name → range.
        seed: seed of the search, ≥ 0. Processes that share a study must pass the same seed.
        maximize: whether a higher score is better.
        storage: where the study is stored: None for memory, the URL of a database such as
            "sqlite:///study.db", or one of Optuna's storages.
        name: the name of the study in its storage.

    Raises:
        ValueError: the storage cannot be used, or its study of that name has another space or
            direction.
        ModuleNotFoundError: Optuna is not installed.
    """

    def __init__(
        self,
        space: Mapping[str, Range],
        *,
        seed: int = 0,
        maximize: bool = False,
        storage: Any = None,
        name: str = "sweep",
    ):
        with needs_extra(_WHO, "bayes"):
            from optuna.storages import BaseStorage
            from optuna.trial import TrialState
        self._space = checked_space(_WHO, space)
        _checks.check_integer(_WHO, "seed", seed, 0)
        if not isinstance(storage, (str, BaseStorage, type(None))):
            required = "storage must be None, the URL of a database or one of Optuna's storages"
            _checks.fail(_WHO, required, repr(storage))
        self._states = TrialState
        self._kinds = distributions(self._space)
        self._storage = storage
        self._worst = -math.inf if maximize else math.inf
        self._known: dict[int, Finished] = {}
        self._known_values: dict[int, dict[str, Scalar]] = {}
        self._running: dict[int, Any] = {}
        own_sampler = sampler(self._space, seed, self._known_values)
        with storage_errors(_WHO, storage, ValueError):
            self._study = open_study(storage, name, maximize, own_sampler)
        self._signs = SignsOfLife(self._study)
        with self._storage_errors():
            self._check_study(name, maximize)

    def __enter__(self) -> "Bayes":
        """Return the study."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Close the study."""
        # Where a database has failed, its first error is the one to show.
        with suppress(*() if kind is None else (ValueError,)):
            self.close()

    def close(self) -> None:
        """Give up all running trials, so that they can be proposed again."""
        self._signs.close()
        try:
            with self._storage_errors():
                while self._running:
                    number, _ = self._running.popitem()
                    self._fail(number)
        finally:
            disconnect(self._study)

    def ask(self, n: int, trials: int | None = None) -> list[tuple[int, dict[str, Scalar]]]:
        """Return the number and the values of up to `n` new trials.

        Args:
            n: ≥ 1.
            trials: the total number of trials that the study shall have, over all processes. Fewer
                than `n` trials are returned where `n` would exceed this total. The total is never
                exceeded: numbers are assigned in order, and a new trial is withdrawn if `trials`
                others have lower numbers.

        Raises:
            ValueError: the storage fails.
        """
        _checks.check_integer(_WHO, "n", n, 1)
        for number in sorted(self._known.keys() & self._running):
            _, _, score, record = self._known[number]
            self.tell(number, score, record)
        batch: list[tuple[int, dict[str, Scalar]]] = []
        with self._storage_errors():
            self._patiently(self._fail_abandoned)
            wanted = n if trials is None else min(n, self._left(trials))
            while len(batch) < wanted:
                number, values = self._ask()
                if trials is not None and self._patiently(
                    lambda before=number: self._counted(before) >= trials
                ):
                    del self._running[number]
                    self._signs.end(number)
                    self._fail(number)
                    wanted = min(n, len(batch) + self._left(trials))
                else:
                    batch.append((number, values))
        return batch

    def tell(
        self, number: int, score: float | None, record: Mapping[str, Any] | None = None
    ) -> bool:
        """Report the score of a trial and finish it.

        Args:
            number: the trial's number, as returned by `ask`.
            score: the score; None or not finite if the trial diverged, which counts as the worst
                possible score.
            record: JSON-compatible data to store with the trial.

        Returns:
            Whether it counts; not so if the trial was given up in the meantime.

        Raises:
            ValueError: `ask` of this object did not return the trial, the trial is finished, or
                the storage fails.
        """
        if number not in self._running:
            got = f"number={number!r}"
            _checks.fail(_WHO, "tell needs a trial that ask returned and that still runs", got)
        record = _jsonable(record or {})
        value = self._worst if _finite(score) is None else float(score)
        with self._storage_errors():
            counts = self._patiently(lambda: self._tell(self._running[number], value, record))
        del self._running[number]
        self._signs.end(number)
        self._known.pop(number, None)
        return counts

    def add_finished(
        self,
        number: int,
        values: Mapping[str, Scalar],
        score: float | None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """Give back a finished trial of an earlier search in memory; see the class for the effect.

        Raises:
            ValueError: the study has a storage, which already holds its trials; the trial was
                already asked for; or the values do not belong to the space.
        """
        if self._storage is not None:
            _checks.fail(_WHO, "add_finished needs a study in memory", "one with a storage")
        if number < len(self._study.get_trials(deepcopy=False)):
            remedy = "give trials back before the first ask"
            required = "add_finished needs a trial that ask has not returned"
            _checks.fail(_WHO, required, f"number={number!r}", remedy)
        if values.keys() != self._space.keys():
            _checks.fail(_WHO, f"values must name {sorted(self._space)}", f"{sorted(values)}")
        for name, value in values.items():
            self._space[name].position(value)
        self._known_values[number] = dict(values)
        self._known[number] = (number, dict(values), _finite(score), _jsonable(record or {}))

    def finished(self) -> list[Finished]:
        """Return number, values, score (None if diverged) and record of each finished trial.

        Raises:
            ValueError: the storage fails.
        """
        states = (self._states.COMPLETE,)
        with self._storage_errors():
            trials = self._patiently(lambda: self._study.get_trials(deepcopy=False, states=states))
        reported = {trial.number: self._entry(trial) for trial in trials}
        return [entry for _, entry in sorted({**self._known, **reported}.items())]

    def remaining(self, trials: int) -> int:
        """Return how many trials must still be started so that there are `trials`.

        Raises:
            ValueError: the storage fails.
        """
        with self._storage_errors():
            self._patiently(self._fail_abandoned)
            return self._left(trials)

    def _left(self, trials: int) -> int:
        return max(0, trials - self._patiently(self._counted))

    def _ask(self) -> tuple[int, dict[str, Scalar]]:
        """Create a trial, and store in it which process runs it."""
        trial = self._patiently(lambda: ask(self._study, self._kinds))
        if self._storage is not None:
            self._patiently(lambda: self._sign(trial))
        self._running[trial.number] = trial
        return trial.number, self._values(trial)

    def _sign(self, trial: Any) -> None:
        # In this order: if this process dies in between, the trial is not signed, and is given up.
        self._signs.begin(trial)
        trial.set_user_attr(_OWNER, this_process())

    def _tell(self, trial: Any, value: float, record: Mapping[str, Any]) -> bool:
        """Report a score, unless the trial has ended already; return whether it is complete."""
        from optuna.exceptions import UpdateFinishedTrialError

        with suppress(UpdateFinishedTrialError):
            if record:
                trial.set_user_attr(_RECORD, record)
        ended = self._study.tell(trial, value, skip_if_finished=True)
        return ended.state == self._states.COMPLETE

    def _patiently(self, function: Callable[[], Result]) -> Result:
        return patiently(_WHO, self._storage, function)

    def _values(self, trial: Any) -> dict[str, Scalar]:
        return {name: trial.params[name] for name in self._space}

    def _entry(self, trial: Any) -> Finished:
        record = dict(trial.user_attrs.get(_RECORD, {}))
        return trial.number, self._values(trial), _finite(trial.value), record

    def _counted(self, before: float = math.inf) -> int:
        """Return how many trials with a lower number are finished or running."""
        count = (self._states.COMPLETE, self._states.PRUNED, self._states.RUNNING)
        trials = self._study.get_trials(deepcopy=False, states=count)
        return sum(trial.number < before for trial in trials)

    def _fail(self, number: int) -> None:
        # Another process may have failed this trial already.
        with suppress(ValueError, RuntimeError):
            self._study.tell(number, state=self._states.FAIL)

    def _fail_abandoned(self) -> None:
        """Fail the running trials whose process has ended, as far as can be known."""
        if self._storage is None:
            return
        from optuna.exceptions import UpdateFinishedTrialError

        fail_silent(self._study)
        for trial in self._study.get_trials(deepcopy=False, states=(self._states.RUNNING,)):
            if _OWNER in trial.user_attrs:
                if is_dead(trial.user_attrs[_OWNER]):
                    self._fail(trial.number)
            elif not self._signs.are_taken:
                if datetime.now() - trial.datetime_start > _UNSIGNED:
                    self._fail(trial.number)
            elif _SEEN not in trial.user_attrs:
                # Its process may have died before the first sign of life. This one is in its place.
                # It may also have ended in the meantime, or have been given up.
                with suppress(UpdateFinishedTrialError):
                    self._signs.write(trial)
                    self._study._storage.set_trial_user_attr(trial._trial_id, _SEEN, True)

    def _check_study(self, name: str, maximize: bool) -> None:
        """Require a study of this space and direction that a sweep made; mark a new one as ours."""
        ours = _without_traced(self._space)
        # Read the trials first: another process stores the space before it asks for a trial.
        has_trials = bool(self._study.get_trials(deepcopy=False))
        theirs = self._study.user_attrs.get(_SPACE)
        directions = [direction.name for direction in self._study.directions]
        if directions != ["MAXIMIZE" if maximize else "MINIMIZE"]:
            required = f"the study {name!r} must {'maximize' if maximize else 'minimize'}"
            got = f"one to {' and '.join(directions).lower()}"
            _checks.fail(_WHO, required, got, _OTHER_NAME)
        if theirs is None and has_trials:
            required = f"the study {name!r} must be one that a sweep made"
            _checks.fail(_WHO, required, "one with other trials", _OTHER_NAME)
        if theirs is None:
            self._study.set_user_attr(_SPACE, ours)
        elif theirs != ours:
            got = f"one whose {', '.join(_differing(ours, theirs))} differ"
            _checks.fail(_WHO, f"the study {name!r} must have the same space", got, _OTHER_NAME)

    def _storage_errors(self) -> Any:
        return storage_errors(_WHO, self._storage)


def _without_traced(space: Mapping[str, Range]) -> dict[str, dict[str, Any]]:
    """Return the space as JSON, without the `traced` options, which do not affect the search."""
    documents = {name: entry.to_json() for name, entry in space.items()}
    return {
        name: {key: value for key, value in document.items() if key != "traced"}
        for name, document in documents.items()
    }


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterable[str]:
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def _finite(score: float | None) -> float | None:
    return None if score is None or not math.isfinite(score) else float(score)


def _jsonable(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record as JSON will return it when it is read again."""
    try:
        return json.loads(json.dumps(dict(record)))
    except (TypeError, ValueError) as error:
        _checks.fail(_WHO, "record must hold JSON's own types", str(error))
