"""A Bayesian search shared through a real PostgreSQL: processes die, and the server goes away."""

import json
import subprocess
import sys
import textwrap
import threading

import pytest

import optlab
from helpers import bowl
from optlab.lab import LogUniform, sweep
from optlab.lab.sweeps import _optuna
from postgres import running_server

pytestmark = pytest.mark.slow

SPACE = {"learning_rate": LogUniform(1e-3, 3.0)}
OPTIONS = {"search": "bayes", "lanes": 2, "steps": 2}


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("optuna")
    pytest.importorskip("psycopg")
    with running_server() as server:
        yield server


@pytest.mark.other_rows  # half a minute; test_bayes.py has the same with an SQLite file
def test_two_of_four_processes_are_killed_and_no_trial_is_lost_or_doubled(server, tmp_path):
    # One process forks the others, so that JAX is imported once. Each says that it is a host of its
    # own, so that only the lack of signs of life tells that it has died.
    script = f"""
        import json, math, os, pathlib, signal, time
        import optuna, psycopg
        from optlab.lab import LogUniform
        from optlab.lab.sweeps import _optuna
        from optlab.lab.sweeps._bayes import Bayes
        _optuna.HEARTBEAT, _optuna.GRACE = 1, 5
        space = {{"rate": LogUniform(1e-3, 1.0)}}

        def run(name, dies_after=None):
            _optuna._host = lambda: name
            told = []
            with Bayes(space, storage={server.url!r}) as study:
                while batch := study.ask(3, trials=200):
                    for number, values in batch:
                        if study.tell(number, math.log(values["rate"]) ** 2):
                            told.append(number)
                        pathlib.Path(name).write_text(json.dumps(told))
                        if len(told) == dies_after:  # in the middle of a batch
                            os.kill(os.getpid(), signal.SIGKILL)
                return study.finished()

        def forked(*arguments):
            child = os.fork()
            if child == 0:
                try:
                    run(*arguments)
                    os._exit(0)
                finally:
                    os._exit(1)
            return child

        def finished(child):
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        children = [forked("a"), forked("b"), forked("c", 10), forked("d", 19)]
        assert [finished(child) for child in children] == [0, 0, -9, -9]
        time.sleep(6)
        trials = run("e")  # and what the dead have left, unless the living have run it
        pathlib.Path("found").write_text(json.dumps([trial[:2] for trial in trials]))
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    told = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("?")}
    assert [len(told[name]) for name in "cd"] == [10, 19]
    numbers, values = zip(*json.loads((tmp_path / "found").read_text()), strict=True)
    assert len(numbers) == len(set(numbers)) == 200
    assert len({entry["rate"] for entry in values}) == 200
    # Each was told of once, by the process that ran it.
    assert sorted(number for each in told.values() for number in each) == list(numbers)


def test_a_server_that_goes_away_and_comes_back_is_waited_for(server, monkeypatch):
    monkeypatch.setattr(_optuna, "ATTEMPT", 0.2)
    told = []

    def tell(trial):
        told.append(trial.number)
        if len(told) == 3:
            server.stop()
            threading.Timer(1.0, server.start).start()

    options = OPTIONS | {"storage": server.url, "callbacks": [tell], "seed": 2}
    with pytest.warns(UserWarning, match="sweep: 'postgresql.* does not answer .*; trying again f"):
        found = sweep(bowl(), optlab.sgd, SPACE, trials=8, **options)
    assert sorted(trial.number for trial in found.trials) == sorted(told)
    assert len(found.trials) == 8
    assert found.missing == 0


def test_a_server_that_stays_away_ends_the_sweep_which_goes_on_when_called_again(
    server, monkeypatch
):
    monkeypatch.setattr(_optuna, "PATIENCE", 0.2)
    told = []

    def tell(trial):
        told.append(trial.number)
        if len(told) == 3:
            server.stop()

    options = OPTIONS | {"storage": server.url, "callbacks": [tell], "seed": 1}
    message = (
        "^sweep: storage must be a database that can be used, got 'postgresql.*; start it, and "
        "call again with the same arguments; what was stored in it counts$"
    )
    with (
        pytest.warns(UserWarning, match="trying again for 0.2 seconds"),
        pytest.raises(ValueError, match=message),
    ):
        sweep(bowl(), optlab.sgd, SPACE, trials=8, **options)
    server.start()
    # Trials that this process had asked for are still its own, as far as others can see.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_optuna, "_started", lambda pid: 1)
        found = sweep(bowl(), optlab.sgd, SPACE, trials=8, **options)
    assert len(found.trials) == len(told) == len(set(told)) == 8
    assert found.missing == 0
