"""Results of a sweep in a file: killed at any moment, it goes on, and ends with the same trials."""

import contextlib
import dataclasses
import functools
import json
import os
import sqlite3
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

import helpers
import optlab
from helpers import bowl
from optlab.lab import Categorical, LogUniform, sweep
from optlab.lab.sweeps._database import decode, encode
from optlab.lab.sweeps._store import Store
from optlab.lab.sweeps._trial import Trial

RATES = {"learning_rate": LogUniform(1e-3, 3.0)}
OPTIONS = {"trials": 6, "lanes": 4, "steps": 16, "eval_every": 2}


def sweep_bowl(file=None, **options):
    return sweep(bowl(), optlab.sgd, RATES, **OPTIONS | {"results": file} | options)


def assert_same(found, other):
    """Require that two sweeps hold the same trials bit for bit."""
    assert [encode(vars(trial)) for trial in found.trials] == [
        encode(vars(trial)) for trial in other.trials
    ]


@contextlib.contextmanager
def opened(file):
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        yield connection


@pytest.fixture(scope="module")
def never_stopped():
    return sweep_bowl(trials=11)


@pytest.fixture(scope="module")
def halved():
    return sweep_bowl(trials=11, halving=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of six trials, which tests leave as it is, and what was found."""
    file = tmp_path_factory.mktemp("made") / "results.db"
    return file, sweep_bowl(file)


# Going on


def test_a_finished_sweep_is_read_and_nothing_run(made):
    file, found = made
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optlab.lab.training._runner.TrialRuns._run_chunk", pytest.fail)
        assert_same(sweep_bowl(file, callbacks=[told.append]), found)
        assert_same(sweep_bowl(str(file)), found)
    assert told == []


def test_trials_may_be_raised_later(tmp_path, never_stopped):
    file, told = tmp_path / "results.db", []
    for trials in (1, 6, 11):
        found = sweep_bowl(file, trials=trials, callbacks=[told.append])
        assert [trial.number for trial in found.trials] == list(range(trials))
    assert_same(found, never_stopped)
    assert sorted(trial.number for trial in told) == list(range(11))
    # Fewer are the first of those that are there.
    fewer = sweep_bowl(file, trials=3)
    assert_same(fewer, dataclasses.replace(found, trials=found.trials[:3]))


@pytest.mark.parametrize("halving", [None, 2])
def test_whatever_is_missing_is_run_again_to_the_same_bits(
    tmp_path, never_stopped, halved, halving
):
    whole = halved if halving else never_stopped
    file, random = tmp_path / "results.db", np.random.default_rng(0)
    sweep_bowl(file, trials=11, halving=halving)
    for _ in range(2):
        with opened(file) as connection:
            lost = set(random.choice(11, 4, replace=False).tolist())
            connection.executemany("delete from trials where trial = ?", [(n,) for n in lost])
            for rung in (4, 8):
                some = [(int(n), rung) for n in random.choice(11, 3)]
                connection.executemany("delete from rungs where trial = ? and step = ?", some)
        told = []
        assert_same(sweep_bowl(file, trials=11, halving=halving, callbacks=[told.append]), whole)
        assert {trial.number for trial in told} == lost
        assert len(told) == len(lost)


def test_an_interrupted_sweep_goes_on(tmp_path, never_stopped):
    def interrupt(trial):
        told.append(trial.number)
        if len(told) == 2:
            raise KeyboardInterrupt

    file, told = tmp_path / "results.db", []
    with pytest.raises(KeyboardInterrupt):
        sweep_bowl(file, trials=11, callbacks=[interrupt])
    with opened(file) as connection:
        connection.execute("pragma locking_mode = exclusive")  # nobody has it open
        ((kept,),) = connection.execute("select count(*) from trials")
        assert 2 <= kept < 11
    assert_same(sweep_bowl(file, trials=11), never_stopped)


def test_bayesian_search_goes_on_as_if_never_stopped(tmp_path):
    pytest.importorskip("optuna")
    options = {"search": "bayes", "steps": 4, "trials": 11}
    whole = sweep_bowl(**options)
    file = tmp_path / "results.db"
    sweep_bowl(file, **options | {"trials": 6})
    with opened(file) as connection:
        connection.execute("delete from trials where trial in (1, 5)")
    assert_same(sweep_bowl(file, **options), whole)


@pytest.mark.slow
@pytest.mark.parametrize("halving", [pytest.param(None, marks=pytest.mark.other_rows), 2])
def test_a_sweep_killed_at_any_moment_ends_with_the_same_trials(tmp_path, halving):
    # A process forks one sweep after the other, so that only the first has to import JAX.
    script = f"""
        import json, os, random, signal, sys, threading, time, pathlib
        sys.path.insert(0, {os.path.dirname(helpers.__file__)!r})
        import jax, optlab
        from helpers import bowl
        from optlab.lab import Categorical, LogUniform, sweep
        from optlab.lab.sweeps._database import encode

        SPACE = {{"width": Categorical((2, 3)), "learning_rate": LogUniform(1e-3, 3.0)}}

        def run(results, told, found):
            def tell(trial):
                with open(told, "a") as log:
                    log.write(f"{{trial.number}}\\n")
            swept = sweep(
                bowl, optlab.sgd, SPACE, trials=24, lanes=2, steps=4000, eval_every=50,
                halving={halving}, results=results, callbacks=[tell])
            pathlib.Path(found).write_text("\\n".join(encode(vars(t)) for t in swept.trials))

        def forked(*arguments):
            child = os.fork()
            if child == 0:
                run(*arguments)
                os._exit(0)
            return child

        def finished(child):
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        began = time.monotonic()
        assert finished(forked(None, "told.whole", "whole"))
        usual = time.monotonic() - began
        together = [forked("shared.db", f"told.{{i}}", f"shared.{{i}}") for i in range(2)]
        assert all([finished(child) for child in together])
        kills = 0
        while True:
            child = forked("killed.db", "told.killed", "killed")
            # Longer and longer, so that it gets to its end however slow the machine is today.
            killer = threading.Timer(
                random.uniform(0.1, 0.3 + 0.2 * kills) * usual, os.kill, (child, signal.SIGKILL))
            killer.start()
            done = finished(child)
            killer.cancel()
            if done:
                break
            kills += 1
        print(kills)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    kills = int(run.stdout)
    assert kills >= 2
    whole = (tmp_path / "whole").read_text()
    assert len(whole.splitlines()) == 24
    for name in ("killed", "shared.0", "shared.1"):
        assert (tmp_path / name).read_text() == whole, name
    told = (tmp_path / "told.killed").read_text().split()
    # One that is finished is not run again, nor told of again; only those that were finished at
    # the very kill, of one chunk or of those that halving gives up together, can go untold.
    assert len(told) == len(set(told))
    untold = 24 - len(told)
    assert untold <= kills * (12 if halving else 2)


# The file


def test_results_are_read_by_plain_sqlite(made):
    file, found = made
    with opened(file) as connection:
        rows = connection.execute("select trial, status, contents from trials order by trial")
        for trial, (number, status, contents) in zip(found.trials, rows.fetchall(), strict=True):
            assert (number, status) == (trial.number, trial.status)
            assert json.loads(contents)["values"] == trial.values
        ((about,),) = connection.execute("select about from facts")
    about = json.loads(about)
    assert about["task"] == "bowl"
    assert about["space['learning_rate']"] == RATES["learning_rate"].to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": bowl(name="other")}, "task must be that of the sweep in .*, 'bowl', got 'other'"),
        (
            {"task": bowl(score="height", evaluate=lambda *_: {"loss": 1.0, "height": 1.0})},
            "score must be that .*, 'loss', got 'height'",
        ),
        ({"task": bowl(maximize=True)}, "maximize must be that .*, False, got True"),
        ({"optimizer": optlab.adam}, r"optimizer must be that .*sgd'.*, got '.*adam'"),
        (
            {"optimizer": functools.partial(optlab.sgd, momentum=0.5)},
            r"optimizer must be that .*, got '.*sgd\(momentum=0\.5\)'",
        ),
        (
            {"space": {"learning_rate": LogUniform(1e-3, 4.0)}},
            r"space\['learning_rate'\] must be that .*'high': 3\.0.*, got .*'high': 4\.0}",
        ),
        (
            {"space": {**RATES, "momentum": LogUniform(0.1, 0.5)}},
            r"space must be that .*, \['learning_rate'\], got \['learning_rate', 'momentum'\]",
        ),
        ({"search": "halton"}, "search must be that .*, 'random', got 'halton'"),
        ({"seed": 1}, "seed must be that .*, 0, got 1"),
        ({"seeds": 2}, r"seeds must be that .*, \[0\], got \[0, 1\]"),
        ({"steps": 17}, "steps must be that .*, 16, got 17"),
        ({"eval_every": 3}, "eval_every must be that .*, 2, got 3"),
        ({"halving": 2}, "halving must be that .*, None, got 2"),
        ({"lanes": 5}, "lanes must be that .*, 4, got 5"),
        ({"native": True}, "native must be that .*, False, got True"),
    ],
)
def test_the_results_of_another_sweep_are_refused(made, changes, message):
    file, found = made
    before = file.read_bytes()
    arguments = {"task": bowl(), "optimizer": optlab.sgd, "space": RATES, **OPTIONS} | changes
    task, optimizer, space = (arguments.pop(name) for name in ("task", "optimizer", "space"))
    with pytest.raises(ValueError, match=f"^sweep: {message}; pass another file"):
        sweep(task, optimizer, space, results=file, **arguments)
    assert file.read_bytes() == before
    assert len(found.trials) == 6


@pytest.mark.parametrize("options", [{"search": "grid"}, {"halving": 2}])
def test_trials_are_not_raised_where_they_shape_the_search(tmp_path, options):
    file = tmp_path / "results.db"
    sweep_bowl(file, trials=2, steps=4, **options)
    with pytest.raises(
        ValueError, match=r"sweep: trials must be that of the sweep in .*, 2, got 3"
    ):
        sweep_bowl(file, trials=3, steps=4, **options)


def test_ranges_in_another_order_are_another_space(tmp_path):
    space = {**RATES, "momentum": LogUniform(0.1, 0.5)}
    options = {"trials": 1, "lanes": 1, "steps": 1, "results": tmp_path / "results.db"}
    sweep(bowl(), optlab.sgd, space, **options)
    with pytest.raises(ValueError, match="space must be that of the sweep"):
        sweep(bowl(), optlab.sgd, dict(reversed(space.items())), **options)


def other_program(file):
    with opened(file) as connection:
        connection.execute("create table sweep (about text, wind text)")


def text(file):
    file.write_text("learning_rate,loss\n0.1,1.0\n" * 100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            other_program,
            "results must be a new file or the file of a sweep, got another program's database",
        ),
        (text, "results must be a file that SQLite can write, got .*not a database"),
        (os.mkdir, "results must be a file that SQLite can write, got .*unable to open"),
    ],
)
def test_another_programs_file_is_refused_and_left_alone(tmp_path, make, message):
    file = tmp_path / "results.db"
    make(file)
    before = None if file.is_dir() else file.read_bytes()
    with pytest.raises(ValueError, match=f"sweep: {message}"):
        Store("sweep", file, {})
    assert before is None or file.read_bytes() == before
    assert os.listdir(tmp_path) == ["results.db"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sweep: results must be a file that SQLite can write"):
        sweep_bowl(tmp_path / "no" / "such" / "folder.db")


def test_an_empty_file_becomes_a_store(tmp_path):
    file = tmp_path / "results.db"
    file.touch()
    with contextlib.closing(Store("sweep", file, {"seed": 1})) as store:
        assert store.trials() == []
    with pytest.raises(ValueError, match=r"seed must be that of the sweep in .*, 1, got 2"):
        Store("sweep", file, {"seed": 2})


def test_a_file_that_another_process_keeps_locked_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("optlab.lab.sweeps._database._PATIENCE", 0.05)
    file = tmp_path / "results.db"
    with contextlib.closing(Store("sweep", file, {})) as store:
        with opened(file) as connection:
            connection.execute("begin exclusive")
            for use in (lambda: Store("sweep", file, {}), store.trials, lambda: store.add([])):
                with pytest.raises(ValueError, match=r"sweep: results must be .*locked"):
                    use()
            connection.rollback()
        assert store.trials() == []


def test_what_is_written_while_it_fails_is_not_written_at_all(tmp_path):
    curve = np.ones((1, 1), np.float32)
    good = Trial(0, {}, "complete", np.zeros(1, int), curve, {"loss": curve}, 1.0)
    file = tmp_path / "results.db"
    with contextlib.closing(Store("sweep", file, {})) as store:
        with pytest.raises(TypeError, match="object cannot be stored as JSON"):
            store.add([good, dataclasses.replace(good, number=1, values={"x": object()})])
        assert store.trials() == []
        with pytest.raises(ValueError, match="sweep: results must be"):
            store.add_rungs({(0, 2): 1.0, (1,): 2.0})
        assert store.rungs(2) == {}
        store.add([good])
        store.add([dataclasses.replace(good, score=7.0)])  # what is there stays
        assert [trial.score for trial in store.trials()] == [1.0]


@pytest.mark.parametrize(
    "array",
    [
        np.array([[np.nan, np.inf, -np.inf, -0.0, 1 / 3]], np.float32),
        np.array([1 / 3, 5e-324, np.nan]),
        np.array([1 / 3, np.inf], np.float16),
        np.array([1 / 3, np.nan], ml_dtypes.bfloat16),
        np.array([[]], np.float32),
        np.array([2**62, -1]),
        np.array([True, False]),
    ],
    ids=lambda array: array.dtype.name,
)
def test_arrays_are_kept_to_the_bit(array):
    kept = decode(encode({"inside": [array]}))["inside"][0]
    assert (kept.dtype, kept.shape) == (array.dtype, array.shape)
    assert kept.tobytes() == array.tobytes()


def test_scalars_are_kept_as_they_are():
    values = {"a": 0.1, "b": 1, "c": True, "d": None, "e": "é", "f": 1.0}
    kept = decode(encode(values))
    assert kept == values
    assert [type(value) for value in kept.values()] == [type(value) for value in values.values()]


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep(bowl(), optlab.sgd, {"learning_rate": Categorical((0.1,))}, trials=1, lanes=1, steps=1)
    assert os.listdir(tmp_path) == []
