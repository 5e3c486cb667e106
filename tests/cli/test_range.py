"""`optlab lr-range`, as a shell sees it."""

import json
import sys

import numpy as np
import pytest

from optlab.cli import _lr_range

QUICK = ["lr-range", "--task", "valley", "--optimizer", "sgd", "--seeds", "2", "--steps", "30"]


@pytest.mark.slow
def test_without_options_it_suggests_a_rate_for_a_network(run, tmp_path):
    status, out, err = run("lr-range")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        "adam on digits-mlp: learning-rate range test, 1e-07 to 10 in 100 exponential steps, "
        "5 seeds"
    )
    suggested = float(lines[3].removeprefix("suggested max").split()[0])
    assert 1e-3 < suggested < 3e-2  # where `optlab compare` finds the best rates
    assert lines[-1] == "Wrote lr-range.json, lr-range.png"
    assert (tmp_path / "lr-range.png").stat().st_size > 10_000


def test_json_is_all_that_stands_on_stdout(run, tmp_path):
    options = ["--min-lr", "1e-4", "--max-lr", "0.1", "--mode", "linear", "--json"]
    status, out, err = run(*QUICK, *options, "--out", "new/folder/plot.svg")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["task"], found["optimizer"], found["mode"]) == ("valley", "sgd", "linear")
    np.testing.assert_allclose(found["rates"], np.linspace(1e-4, 0.1, 30))
    assert np.shape(found["losses"]) == (2, 30)
    assert 1e-4 <= found["suggested_max"] < 0.1
    assert (tmp_path / "new" / "folder" / "plot.svg").exists()


def test_runs_in_a_file_are_not_made_again(run, monkeypatch):
    options = ["--results", "runs.sqlite", "--confirm", "5", "--json"]
    status, out, _ = run(*QUICK, *options)
    assert status == 0
    monkeypatch.setattr("optlab.lab.rates._range_test._losses", None)
    assert run(*QUICK, *options)[:2] == (0, out)
    status, _, err = run(*QUICK, *options, "--set", "momentum=0.5")
    assert status == 2
    assert "optimizer must be that of the range test in" in err


def test_a_test_without_a_suggestion_says_why(run):
    status, out, err = run(*QUICK, "--min-lr", "10", "--max-lr", "100")
    assert (status, err) == (0, "")
    assert "\nNo reliable suggestion: the runs diverge at the first rate already, 10; lower" in out
    assert "Wrote lr-range.json, lr-range.png" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "digits"], "unknown task 'digits'; did you mean 'digits-mlp', 'digits-cnn'? ("),
        (["--optimizer", "admw"], "unknown optimizer 'admw'; did you mean 'adamw', 'adam'? (known"),
        (["--mode", "linar"], "unknown mode 'linar'; did you mean 'linear'? (known: exponential, "),
        (["--min-lr", "1", "--max-lr", "1"], "--min-lr must be below --max-lr, got 1 and 1"),
        (["--min-lr", "20"], "--min-lr must be below --max-lr, got 20 and 10"),
        (["--min-lr", "0"], "argument --min-lr: a rate must be from 1.2e-38 to 3.4e+38, got '0'"),
        (
            ["--max-lr", "nan"],
            "argument --max-lr: expected a finite number such as 1e-3, got 'nan'",
        ),
        (["--steps", "9"], "argument --steps: expected at least 10, got 9"),
        (["--steps", "x"], "argument --steps: expected a whole number >= 1, got 'x'"),
        (["--seeds", "0"], "argument --seeds: expected a whole number >= 1, got '0'"),
        (["--out", "plot.txt"], "argument --out: expected a file in .png, .svg, .pdf, got 'plot.t"),
        (["--out", "/proc/no/plot.png"], "cannot write to '/proc/no"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(_lr_range, "lr_range_test", lambda *args, **options: pytest.fail("trained"))
    status, out, err = run(*QUICK, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"optlab: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["matplotlib", "flax", "sklearn"])
def test_a_missing_extra_is_one_line_and_status_2(run, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.datasets", None)  # may have been imported before
    status, out, err = run("lr-range")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"the module {module}" in err
    assert err.endswith('run pip install "optlab[lab]"\n')


def test_a_plot_that_cannot_be_written_in_the_end_is_one_line(run, tmp_path, monkeypatch):
    (tmp_path / "lr-range.png").mkdir()
    monkeypatch.setattr("optlab.cli.arguments._lr_range.check_place", lambda *args: None)
    monkeypatch.setattr(_lr_range, "check_writable_file", lambda file: None)
    status, out, err = run(*QUICK)
    assert (status, err.count("\n")) == (2, 1)
    assert "suggested max" in out  # nothing is lost
    assert err.endswith("; choose another file with --out\n")
