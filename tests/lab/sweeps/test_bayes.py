"""Bayesian search: better than chance, repeatable, and shared by processes through a database."""

import contextlib
import logging
import math
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import timedelta

import numpy as np
import optuna
import pytest
from sqlalchemy.exc import OperationalError

from optlab.lab.sweeps import _bayes, _optuna
from optlab.lab.sweeps._bayes import Bayes
from optlab.lab.sweeps._search import points
from optlab.lab.sweeps._space import Categorical, Integer, LogUniform, Uniform

SPACE = {
    "rate": LogUniform(1e-5, 1.0),
    "width": Integer(1, 8, log=True),
    "rule": Categorical(("sgd", None, 1.5)),
    "fixed": Categorical((3,)),
}


def score_of(rate, width, rule, fixed):
    """A bowl with its lowest value, 0, at 1e-2, that diverges above 0.2."""
    if rate > 0.2:
        return math.nan
    return (math.log10(rate) + 2) ** 2 + 0.1 * (8 - width) / 7 + 0.2 * (rule is None)


def search(trials, batch=8, study=None, finished=(), **options):
    """Run to the end and return the trials asked for and the study's results."""
    with study or Bayes(SPACE, **options) as study:
        for entry in finished:
            study.add_finished(*entry)
        known = {number for number, *_ in finished}
        asked = []
        while left := study.remaining(trials):
            for number, values in study.ask(min(left, batch)):
                asked.append((number, values))
                if number not in known:
                    study.tell(number, score_of(**values), {"number": number})
        return asked, study.finished()


@pytest.fixture(scope="module")
def whole():
    return search(32, seed=1)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


# In memory


def test_trials_are_numbered_and_their_values_are_of_the_space(whole):
    asked, finished = whole
    assert [number for number, _ in asked] == list(range(32))
    assert [entry[:2] for entry in finished] == asked
    for _, values in asked:
        assert list(values) == list(SPACE)
        for name, value in values.items():
            SPACE[name].position(value)
        assert type(values["width"]) is int
    scores = [score for *_, score, _ in finished]
    assert None in scores  # those that diverged
    assert finished[5][3] == {"number": 5}


def test_the_first_trials_are_halton_points(whole):
    asked, _ = whole
    spread = points(SPACE, "halton", 1, range(16))
    assert [values for _, values in asked[:8]] == spread[:8]
    assert all(values != point for (_, values), point in zip(asked[8:], spread[8:], strict=False))


def test_a_search_repeats_itself(whole):
    assert search(32, seed=1) == whole
    assert search(16, seed=2)[0] != whole[0][:16]
    assert search(16, seed=1)[0] == whole[0][:16]


@pytest.mark.parametrize("seed", range(3))
def test_a_search_that_was_killed_asks_for_the_same_trials_again(whole, seed):
    _, finished = whole
    rng = np.random.default_rng(seed)
    batches = rng.integers(0, 4)
    told = [*range(8 * batches), *(8 * batches + rng.permutation(8)[: rng.integers(1, 8)])]
    # Given back in whatever order they ended.
    back = [finished[i] for i in rng.permutation(told)]
    assert search(32, seed=1, finished=back) == whole


def test_results_have_their_effect_at_the_batch_after_theirs(whole):
    asked, finished = whole
    study = Bayes(SPACE, seed=1)
    for number, values, _, _ in finished[:8]:
        study.add_finished(number, values, -finished[number][2] if finished[number][2] else None)
    assert study.ask(8) == asked[:8]
    assert study.ask(8) != asked[8:16]
    later = Bayes(SPACE, seed=1)
    for entry in finished[8:]:
        later.add_finished(*entry)
    assert later.ask(8) == asked[:8]


def test_a_higher_score_is_better_where_it_is_to_be_maximized(whole):
    study = Bayes(SPACE, seed=1, maximize=True)
    asked = []
    for _ in range(4):
        asked += (batch := study.ask(8))
        for number, values in batch:
            study.tell(number, -score_of(**values))
    assert asked == whole[0]


@pytest.mark.parametrize("other", ["random", "halton"])
def test_the_search_is_mostly_better_than_one_that_does_not_learn(other, best_of_searches):
    without = [
        np.nanmin([score_of(**values) for values in points(SPACE, other, seed, range(64))])
        for seed in range(16)
    ]
    # If both were alike, 12 of 16 or more would come of 1 in 26 such comparisons.
    assert np.sum(best_of_searches < without) >= 12
    # Over 48 seeds the medians are 0.006, and 0.054 and 0.056 without learning.
    assert np.median(best_of_searches) < np.median(without) / 3


@pytest.fixture(scope="module")
def best_of_searches():
    found = [search(64, seed=seed)[1] for seed in range(16)]
    return np.array([min(s for *_, s, _ in finished if s is not None) for finished in found])


def test_trials_that_diverged_keep_the_next_ones_away():
    space = {"x": Uniform(0.0, 1.0)}
    study = Bayes(space)
    asked = []
    for _ in range(6):
        asked += (batch := study.ask(8))
        for number, values in batch:
            study.tell(number, None if values["x"] < 0.8 else 1.0)
    share = np.mean([values["x"] < 0.8 for _, values in asked[16:]])
    assert share < 0.5  # of 0.8 by chance


def test_a_search_all_of_whose_trials_diverged_goes_on_spreading():
    study = Bayes({"x": Uniform(0.0, 1.0)})
    for _ in range(3):
        batch = study.ask(8)
        for number, _ in batch:
            study.tell(number, math.inf)
    spread = points({"x": Uniform(0.0, 1.0)}, "halton", 0, range(24))
    assert [values for _, values, _, _ in study.finished()] == spread
    assert all(score is None for *_, score, _ in study.finished())


def test_trials_left_untold_are_given_up_when_the_study_closes():
    study = Bayes(SPACE)
    with study:
        study.ask(5)
        study.tell(3, 1.0)
        assert study.remaining(8) == 3
    assert study.remaining(8) == 7
    assert [number for number, *_ in study.finished()] == [3]


def test_optuna_stays_quiet_and_its_verbosity_as_it_was(url):
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    verbosity = optuna.logging.get_verbosity()
    logging.getLogger("optuna").addHandler(handler)
    try:
        search(16, seed=1)
        search(16, seed=1, storage=url)
        search(17, seed=1, storage=url)
        assert said == []
        optuna.create_study()
        assert "A new study created in memory" in said[0].getMessage()
    finally:
        logging.getLogger("optuna").removeHandler(handler)
    assert optuna.logging.get_verbosity() == verbosity


# In a database


def test_a_search_in_a_database_is_the_one_in_memory_and_can_be_continued(whole, url):
    first = search(13, seed=1, storage=url)
    assert first[0][:8] == whole[0][:8]
    asked, finished = search(16, seed=1, storage=url, batch=3)
    assert [number for number, _ in asked] == [13, 14, 15]
    assert finished[:13] == first[1]
    assert search(16, seed=1, storage=url) == ([], finished)
    assert search(32, seed=1, storage=url.replace("study", "other")) == whole


WORKER = """
import os, signal, sys
sys.path.insert(0, os.path.dirname({file!r}))
import warnings
warnings.simplefilter("error")
from test_bayes import SPACE, score_of
from optlab.lab.sweeps._bayes import Bayes
with Bayes(SPACE, seed=1, storage=sys.argv[1]) as study:
    told = 0
    while left := study.remaining(int(sys.argv[2])):
        for number, values in study.ask(min(left, 5), trials=int(sys.argv[2])):
            if told == int(sys.argv[3]):
                os.kill(os.getpid(), signal.SIGKILL)
            study.tell(number, score_of(**values), {{"pid": os.getpid()}})
            told += 1
"""


def worker(url, trials, die_after=-1):
    script = WORKER.format(file=__file__)
    arguments = [sys.executable, "-c", script, url, str(trials), str(die_after)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE)


def finish(process):
    _, stderr = process.communicate(timeout=120)
    assert stderr == b""
    return process.returncode


@pytest.mark.slow
def test_processes_share_a_study_and_stop_at_its_trials(url):
    processes = [worker(url, 30) for _ in range(3)]
    assert [finish(process) for process in processes] == [0, 0, 0]
    finished = Bayes(SPACE, seed=1, storage=url).finished()
    assert len(finished) == 30
    assert len({tuple(values.values()) for _, values, _, _ in finished}) == 30
    assert len({record["pid"] for *_, record in finished}) > 1


@pytest.mark.slow
def test_what_a_killed_process_left_is_asked_for_again(url):
    assert finish(worker(url, 12, die_after=7)) == -signal.SIGKILL
    study = optuna.load_study(study_name="sweep", storage=url)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE"] * 7 + ["RUNNING"] * 3
    with Bayes(SPACE, seed=1, storage=url) as study:
        before = study.finished()
        assert len(before) == 7
        assert study.remaining(12) == 5
    asked, finished = search(12, storage=url, study=Bayes(SPACE, seed=1, storage=url))
    assert [number for number, _ in asked] == [10, 11, 12, 13, 14]
    assert len(finished) == 12
    assert finished[:7] == before


def test_the_trials_of_other_hosts_and_of_the_living_are_left_alone(url):
    ours = Bayes(SPACE, storage=url)
    ours.ask(3)
    raw = optuna.load_study(study_name="sweep", storage=url)
    raw.ask().set_user_attr("optlab_owner", {"host": "elsewhere", "pid": 1, "started": 1})
    assert Bayes(SPACE, storage=url).remaining(10) == 6


def test_a_trial_that_nobody_signed_is_given_up_after_a_while(url, monkeypatch):
    # Hosts may be in different time zones, so what a trial says of its start is of no use.
    study = Bayes(SPACE, storage=url)
    monkeypatch.setattr(_bayes, "_UNSIGNED", timedelta(0))
    optuna.load_study(study_name="sweep", storage=url).ask()
    assert study.remaining(10) == 9
    silence(url, [0])
    assert study.remaining(10) == 10  # though it was seen unsigned once more


def test_a_trial_that_nobody_signed_is_given_up_where_there_are_no_signs_of_life(monkeypatch):
    storage = optuna.storages.InMemoryStorage()
    study = Bayes(SPACE, storage=storage)
    optuna.load_study(study_name="sweep", storage=storage).ask()
    assert study.remaining(10) == 9
    monkeypatch.setattr(_bayes, "_UNSIGNED", timedelta(0))
    assert study.remaining(10) == 10


def silence(url, numbers):
    """Date the signs of life of some trials back by ten minutes."""
    file = url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany(
            "update trial_heartbeats set heartbeat = datetime(heartbeat, '-10 minutes') "
            "where trial_id in (select trial_id from trials where number = ?)",
            [(number,) for number in numbers],
        )


def test_trials_of_another_host_are_given_up_without_signs_of_life(url, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_optuna, "_host", lambda: "elsewhere")
        theirs = Bayes(SPACE, storage=url)
        theirs.ask(3)
    ours = Bayes(SPACE, storage=url)
    assert ours.remaining(10) == 7
    silence(url, [0, 2])
    assert ours.remaining(10) == 9
    # The other host lives after all. What it tells of trials that were given up does not count.
    assert [theirs.tell(n, 1.0, {"told": n}) for n in range(3)] == [False, True, False]
    assert [(number, record) for number, *_, record in ours.finished()] == [(1, {"told": 1})]


def test_signs_of_life_are_written_while_trials_run_and_no_longer(url, monkeypatch):
    monkeypatch.setattr(_optuna, "HEARTBEAT", 0.01)
    written, wrote = [], threading.Event()
    with Bayes(SPACE, storage=url) as study:
        storage = study._study._storage
        monkeypatch.setattr(storage, "record_heartbeat", lambda n: (written.append(n), wrote.set()))
        study.ask(2)
        for told in ([], [1]):
            for number in told:
                study.tell(number, 1.0)
            written.clear()
            wrote.clear()
            assert wrote.wait(10)
        assert set(written) <= {1}  # ids count from 1, and this one is of trial 0
    written.clear()
    time.sleep(0.05)
    assert written == []


def away(*_, **options):
    """Stand for a server that does not answer."""
    try:
        raise OperationalError("select 1", {}, ConnectionError("connection refused\nhint"))
    except OperationalError as error:
        raise optuna.exceptions.StorageInternalError("during the commit") from error


def test_a_server_that_does_not_answer_is_asked_again_with_one_warning(url, monkeypatch):
    monkeypatch.setattr(_optuna, "ATTEMPT", 0.0)
    with Bayes(SPACE, storage=url) as study:
        ((number, _),) = study.ask(1)
        tell, left = study._study.tell, [away, away]

        def sometimes(*arguments, **options):
            return (left.pop() if left else tell)(*arguments, **options)

        monkeypatch.setattr(study._study, "tell", sometimes)
        message = r"^sweep: 'sqlite.*' does not answer \(connection refused\); trying again for 300"
        with pytest.warns(UserWarning, match=message) as warned:
            assert study.tell(number, 1.0)
        assert len(warned) == 1
        assert left == []
        monkeypatch.setattr(_optuna, "PATIENCE", 0.0)
        monkeypatch.setattr(study._study, "get_trials", away)
        message = r"\(connection refused\); start it, and call again with the same arguments; what"
        with pytest.warns(match="trying again for 0 sec"), pytest.raises(ValueError, match=message):
            study.finished()


def test_psycopg_is_used_for_postgresql_where_it_is_all_there_is(monkeypatch):
    made = []
    monkeypatch.setattr(optuna.storages, "RDBStorage", lambda url, **options: made.append(url))
    for installed in ({"psycopg"}, {"psycopg", "psycopg2"}, set()):
        monkeypatch.setattr(_optuna, "find_spec", lambda name, known=installed: name in known)
        _optuna._patient("postgresql://host/db")
    assert made == ["postgresql+psycopg://host/db", "postgresql://host/db", "postgresql://host/db"]


def test_a_trial_withdraws_where_others_have_asked_in_the_meantime(url, monkeypatch):
    one, other = Bayes(SPACE, storage=url), Bayes(SPACE, storage=url)
    other.ask(3, trials=4)
    # As if both had looked before either asked.
    monkeypatch.setattr(one, "_left", lambda trials: 4 - len(other._running))
    one_ask = one._ask

    def late():
        other._ask()
        return one_ask()

    monkeypatch.setattr(one, "_ask", late)
    assert one.ask(2, trials=4) == []
    assert len(other._running) == 4
    assert Bayes(SPACE, storage=url).remaining(4) == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="start times are Linux's")
def test_a_process_number_that_was_given_out_again_is_no_sign_of_life():
    us = _optuna.this_process()
    assert not _optuna.is_dead(us)
    assert _optuna.is_dead({**us, "started": us["started"] - 1})
    assert _optuna.is_dead({**us, "pid": 2**22 + 1})
    assert not _optuna.is_dead({**us, "pid": 2**22 + 1, "host": "elsewhere"})
    assert us["host"].startswith(socket.gethostname())


def test_without_start_times_a_living_process_number_counts():
    us = {**_optuna.this_process(), "started": None}
    assert not _optuna.is_dead(us)
    assert _optuna.is_dead({**us, "pid": 2**22 + 1})


def test_storages_of_optunas_own_are_taken(tmp_path):
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
    journal = optuna.storages.JournalStorage(backend)
    asked, _ = search(10, seed=1, storage=journal)
    assert asked == search(10, seed=1)[0]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maximize": True}, "the study 'sweep' must maximize, got one to minimize; give this one"),
        (
            {"space": {**SPACE, "rate": LogUniform(1e-4, 1)}},
            "have the same space, got one whose r",
        ),
        ({"space": {"a": Uniform(0, 1)}}, "one whose a, fixed, rate, rule, width differ; give"),
        (
            {"name": "foreign"},
            "the study 'foreign' must be one that a sweep made, got one with ",
        ),
        ({"name": "two"}, "the study 'two' must minimize, got one to minimize and maximize;"),
    ],
)
def test_a_study_of_something_else_is_refused(url, options, message):
    Bayes(SPACE, storage=url)
    optuna.create_study(storage=url, study_name="foreign").ask()
    optuna.create_study(storage=url, study_name="two", directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match=f"^sweep: .*{re.escape(message)}"):
        Bayes(**{"space": SPACE, "storage": url, **options})
    traced = {**SPACE, "rate": LogUniform(1e-5, 1.0, traced=True)}
    Bayes(dict(reversed(traced.items())), storage=url)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("study.db", "got 'study.db' (Could not parse SQLAlchemy URL"),
        (
            "sqlite:////no/such/folder/a.db",
            "got 'sqlite:////no/such/folder/a.db' (unable to open",
        ),
        ("nodb://x", '(Can\'t load plugin: sqlalchemy.dialects:nodb); write "sqlite:///study.db"'),
        (
            "mysql+nodriver://me:secret@host/db",
            "got 'mysql+nodriver://me:***@host/db' (Can't load plugin: sqlalchemy.dialects:mysql",
        ),
        (
            "mysql+pymssql_missing://host:port/db",
            "got 'mysql+pymssql_missing://host:port/db' (invalid literal for int()",
        ),
        ("redis://x", "got 'redis://x' ("),
        (3, "must be None, the URL of a database or one of Optuna's storages, got 3"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_in_one_line(storage, message):
    with pytest.raises(ValueError, match=f"^sweep: storage .*{re.escape(message)}") as caught:
        Bayes(SPACE, storage=storage)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(ValueError, match=r"psycopg2.*; install the database's driver") as caught:
        Bayes(SPACE, storage="postgresql+psycopg2://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no database" * 100)
    with pytest.raises(ValueError, match=r"\(file is not a database\)$"):
        Bayes(SPACE, storage=f"sqlite:///{tmp_path}/notes.txt")


def test_a_locked_database_is_told_and_nothing_is_lost(url, tmp_path, monkeypatch):
    monkeypatch.setattr(_optuna, "SQLITE_TIMEOUT", 0.05)
    study = Bayes(SPACE, storage=url)
    ((number, _),) = study.ask(1)
    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("BEGIN EXCLUSIVE")
    locked = r"^sweep: storage .*\(database is locked\); another process holds it; continue when"
    with pytest.raises(ValueError, match=locked):
        study.tell(number, 1.0)
    with pytest.raises(ValueError, match=locked):
        Bayes(SPACE, storage=url)
    other.rollback()
    other.close()
    study.tell(number, 1.0, {"curve": [1.0]})
    assert [entry[2:] for entry in study.finished()] == [(1.0, {"curve": [1.0]})]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda study: study.ask(0), "sweep: n must be an integer >= 1, got n=0"),
        (lambda study: study.tell(9, 1.0), "sweep: tell needs a trial that ask returned and that"),
        (lambda study: study.tell(0, 1.0, {"a": np.ones(2)}), "sweep: record must hold JSON's own"),
        (
            lambda study: study.add_finished(0, study.ask(1)[0][1], 1.0),
            "sweep: add_finished needs a trial that ask has not returned, got number=0; give",
        ),
        (lambda study: study.add_finished(9, {"a": 1}, 1.0), "sweep: values must name ['fixed', "),
        (
            lambda study: study.add_finished(9, {**dict.fromkeys(SPACE, 3), "rate": 5.0}, 1.0),
            "LogUniform.position: the value must be one of LogUniform(low=1e-05, high=1.0), got 5",
        ),
        (lambda study: Bayes({}), "sweep: space must name at least one hyperparameter, got none"),
        (lambda study: Bayes(SPACE, seed=-1), "sweep: seed must be an integer >= 0, got seed=-1"),
    ],
)
def test_bad_calls_are_refused(act, message):
    study = Bayes(SPACE)
    study.ask(1)
    with pytest.raises(ValueError, match=re.escape(message)):
        act(study)


def test_a_trial_is_told_once_and_what_a_database_holds_need_not_be_given_back(url):
    study = Bayes(SPACE, storage=url)
    study.ask(1)
    study.tell(0, 1.0)
    with pytest.raises(ValueError, match="sweep: tell needs a trial that ask returned"):
        study.tell(0, 2.0)
    with pytest.raises(ValueError, match="add_finished needs a study in memory, got one with a"):
        study.add_finished(5, {}, 1.0)


def test_the_extra_is_named_where_optuna_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna.trial", None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r'optuna.*pip install "optlab\[bayes\]"'):
        Bayes(SPACE)
