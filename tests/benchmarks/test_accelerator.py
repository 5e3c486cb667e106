"""The benchmark of an accelerator ends in time with what it has, and a failure costs a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.accelerator import Item, run
from benchmarks.options import parse

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

RIGHT = {"what": "sgd", "against": "a reference", "error": 0.5, "right": True}


def _options(folder):
    return parse(["accelerator", "--quick", "--out", str(folder)])


def _written(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def _raises():
    yield RIGHT
    raise RuntimeError("out of\nmemory")


def test_an_item_that_fails_costs_a_line_and_the_others_are_measured(tmp_path, capsys):
    items = [
        Item("correctness", "one that fails", _raises),
        Item("correctness", "another", lambda: [RIGHT]),
    ]
    assert run(_options(tmp_path), items) == 1
    written = _written(tmp_path)
    assert written["problems"] == ["correctness, one that fails: RuntimeError: out of memory"]
    assert [r["what"] for r in written["results"]] == ["sgd", "sgd"]
    assert "out of memory" in capsys.readouterr().out


def test_a_wrong_result_is_the_exit_status(tmp_path, capsys):
    wrong = {**RIGHT, "error": float("nan"), "right": False}
    assert run(_options(tmp_path), [Item("correctness", "sgd", lambda: [wrong])]) == 1
    assert "WRONG" in capsys.readouterr().out
    assert run(_options(tmp_path), [Item("correctness", "sgd", lambda: [RIGHT])]) == 0


def test_an_item_without_time_is_left_out(tmp_path):
    items = [Item("correctness", "late", lambda: [RIGHT], until=-1.0)]
    assert run(_options(tmp_path), items) == 0
    assert _written(tmp_path)["problems"] == ["correctness, late: no time was left"]


def test_the_watchdog_ends_an_item_that_never_returns(tmp_path):
    code = """
import sys, time
from benchmarks.accelerator import Item, run
from benchmarks.options import parse
right = {"what": "sgd", "against": "x", "error": 0.5, "right": True}
items = [Item("correctness", "quick", lambda: [right]),
         Item("correctness", "endless", lambda: time.sleep(600))]
run(parse(["accelerator", "--quick", "--out", sys.argv[1]]), items, seconds=2.0)
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3, done.stderr
    assert "the time is over: the rest was left out" in done.stdout
    written = _written(tmp_path)
    assert len(written["results"]) == 1
    assert written["problems"] == ["the time is over: the rest was left out"]


def test_a_quick_run_measures_every_part_on_a_cpu(tmp_path, capsys):
    assert main(["accelerator", "--quick", "--out", str(tmp_path)]) == 0
    written = _written(tmp_path)
    assert {r["part"] for r in written["results"]} == {"correctness", "step", "matrices", "sweep"}
    assert all(r["right"] for r in written["results"] if r["part"] == "correctness")
    assert written["problems"] == []
    assert written["machine"]["chip"] == "cpu"
    assert "these figures say nothing" in capsys.readouterr().out


def test_the_accelerator_runs_alone(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["accelerator", "step"])
    assert stopped.value.code == 2
    assert "accelerator must stand alone" in capsys.readouterr().err
