"""The `optlab` command, as a shell sees it."""

import contextlib
import importlib.metadata
import io
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from optlab import __main__, __version__, cli, dialects, registry
from optlab.cli import _compare
from optlab.dialects._table import TABLES

QUICK = ["compare", "--task", "valley", "--optimizers", "sgd,adam", "--rates", "1e-3,1e-2,1"]
QUICK += ["--seeds", "2", "--steps", "5"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A comparison as printed, and the folder it made."""
    folder = tmp_path_factory.mktemp("quick") / "new" / "folder"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main([*QUICK, "--out", str(folder)]) == 0
    return out.getvalue(), err.getvalue(), folder


def test_compare_prints_the_table_and_the_verdict(quick):
    out, _, _ = quick
    assert out.startswith("optimizer  best rate")
    assert "sgd        0.01       " in out
    assert " leads: loss " in out


def test_compare_writes_results_and_plots(quick):
    out, _, folder = quick
    files = {path.name for path in folder.iterdir()}
    assert files == {"results.json", "curves.png", "sensitivity.png", "paths.png"}
    assert out.endswith(
        f"Wrote {folder / 'results.json'}, curves.png, sensitivity.png, paths.png\n"
    )


def test_patience_ends_runs_of_a_comparison(run):
    status, out, _ = run(*QUICK, "--rates", "1e-9", "--steps", "20", "--patience", "2")
    assert status == 0
    assert "ended early" in out.splitlines()[0]
    assert "2 of 2 (2 by patience)" in out


def test_progress_is_plain_lines_unless_on_a_terminal(quick):
    _, err, _ = quick
    lines = err.splitlines()
    assert lines[0] == "valley: 2 optimizers × 3 rates × 2 seeds, 5 updates each"
    assert [line.split(":")[0] for line in lines[1:]] == ["sgd", "adam"]
    assert "\x1b" not in err


def test_progress_on_a_terminal_is_a_bar_on_stderr(run, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(_compare, "write", lambda *results, **options: "nothing")
    monkeypatch.setenv("TERM", "xterm")
    status, out, _ = run(*QUICK, "--optimizers", "sgd", "--out", tmp_path)
    assert status == 0
    assert "\x1b" in terminal.getvalue()
    assert "\x1b" not in out


def test_compare_trains_a_network_on_digits(run, tmp_path):
    options = ["--optimizers", "adam", "--rates", "1e-3:1e-2:2", "--seeds", "1", "--steps", "30"]
    status, out, _ = run("compare", *options, "--batch-size", "16", "--out", tmp_path, "--json")
    results = json.loads(out)
    assert status == 0
    assert results["optimizers"]["adam"]["test"]["accuracy"][1][0] > 0.5
    assert results["options"]["batch_size"] == 16
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "curves.png",
        "sensitivity.png",
    }


def test_json_is_all_that_stands_on_stdout_and_equals_the_file(run, tmp_path):
    status, out, _ = run(*QUICK, "--out", tmp_path, "--json", "--target", "5")
    assert status == 0
    assert out == (tmp_path / "results.json").read_text()
    results = json.loads(out)
    assert results["target"] == 5
    assert results["options"]["rates"] == [0.001, 0.01, 1.0]
    assert results["optimizers"]["sgd"]["num_diverged"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--optimizers", "sgd,admw"],
            "unknown optimizer 'admw'; did you mean 'adamw', 'adam'? (known: sgd, momentum,",
        ),
        (["--optimizers", "zzz"], "unknown optimizer 'zzz' (known: sgd, "),
        (["--task", "digits"], "unknown task 'digits'; did you mean 'digits-mlp', 'digits-cnn'? ("),
        (["--rates", "fast"], "argument --rates: expected a finite number such as 1e-3, got 'f"),
        (["--rates", "1e-3,"], "argument --rates: expected a finite number such as 1e-3, got ''"),
        (["--rates", "inf"], "argument --rates: expected a finite number such as 1e-3, got 'i"),
        (["--rates", "1e-50"], "argument --rates: a rate must be from 1.2e-38 to 3.4e+38, got"),
        (["--rates", "0.1,1e-1"], "argument --rates: values must differ, got 0.1 twice"),
        (["--optimizers", "sgd,sgd"], "argument --optimizers: values must differ, got sgd twice"),
        (["--seeds", "9" * 20], "argument --seeds: expected a whole number below 2**31, got"),
        (["--rates", "0"], "argument --rates: a rate must be from 1.2e-38 to 3.4e+38, got '0'"),
        (
            ["--rates=-1e-3"],
            "argument --rates: a rate must be from 1.2e-38 to 3.4e+38, got '-1e-3'",
        ),
        (
            ["--rates", "1e-3:1"],
            "argument --rates: a range must read LOW:HIGH:COUNT with COUNT fro",
        ),
        (["--rates", "1e-3:1:1"], "argument --rates: a range must read LOW:HIGH:COUNT with COUNT"),
        (["--rates", "1:1:3"], "argument --rates: LOW must be below HIGH in LOW:HIGH:COUNT, got"),
        (["--seeds", "0"], "argument --seeds: expected a whole number >= 1, got '0'"),
        (["--steps", "1.5"], "argument --steps: expected a whole number >= 1, got '1.5'"),
        (["--batch-size", "-4"], "argument --batch-size: expected"),
        (
            ["--task", "digits-mlp", "--batch-size", "5000"],
            "digits-mlp: batch_size must be an integer >= 1 and at most 1078, got batch_size=5000",
        ),
        (["--batch-size", "4"], "the task 'valley' has no batches; leave out --batch-size"),
        (["--optimizers", "muon"], "muon: there must be a hidden matrix among the parameters, got"),
        (["--target", "nan"], "argument --target: expected a finite number"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(run, tmp_path, arguments, message):
    status, out, err = run(*QUICK, "--out", tmp_path, *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith(f"optlab: {message}")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_command_is_one_line_and_status_2(run):
    status, out, err = run("compere")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "'compere'" in err


def test_compare_leaves_out_by_itself_what_cannot_train_the_task(run, tmp_path):
    options = ("--rates", "0.01", "--seeds", "1", "--steps", "1", "--out", tmp_path)
    status, out, err = run("compare", "--task", "valley", *options)
    assert status == 0
    lines = err.splitlines()
    left_out = [line for line in lines if line.startswith("left out: ")]
    assert [line.split(":")[1].strip() for line in left_out] == ["muon", "shampoo", "soap"]
    assert f"valley: {len(registry.OPTIMIZERS) - 3} optimizers" in err
    assert "lamb " in out
    assert "muon" not in out


def test_a_folder_that_cannot_be_written_is_told_before_training(run, tmp_path, monkeypatch):
    monkeypatch.setattr(_compare, "compare", lambda *args, **options: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    status, out, err = run(*QUICK, "--out", tmp_path / "file" / "folder")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("optlab: cannot write to ")
    assert err.endswith("; choose another folder with --out\n")


def test_a_result_that_cannot_be_written_is_one_line_and_status_2(run, tmp_path):
    (tmp_path / "results.json").mkdir()
    status, out, err = run(*QUICK, "--out", tmp_path)
    assert status == 2
    assert out.startswith("optimizer")  # nothing is lost
    assert "results.json': Is a directory" in err.splitlines()[-1]


@pytest.mark.parametrize("module", ["flax", "sklearn", "matplotlib", "rich"])
def test_a_missing_extra_is_one_line_and_status_2(run, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.datasets", None)  # may have been imported before
    status, out, err = run("compare", "--out", tmp_path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"the module {module}" in err
    assert err.endswith('run pip install "optlab[lab]"\n')


def test_an_interruption_in_python_is_raised(run, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(_compare, "compare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(*QUICK, "--out", tmp_path)


def interrupt_at(line, command, **environment):
    """Interrupt a command once it writes this line on stderr; return how it ends."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as process:
        assert line in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


ENDED = (130, "", "optlab: interrupted\n")


@pytest.fixture
def slow_jax(tmp_path):
    """A path for modules with a jax that takes a minute to load."""
    text = "import sys, time\nprint('loading', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    (tmp_path / "jax.py").write_text(text)
    return os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])


def test_a_signal_ends_a_command_that_still_loads(slow_jax):
    command = [sys.executable, "-m", "optlab", *QUICK]
    assert interrupt_at("loading", command, PYTHONPATH=slow_jax) == ENDED


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_and_version_do_not_load_jax(slow_jax, option):
    command = [sys.executable, "-m", "optlab", option]
    environment = os.environ | {"PYTHONPATH": slow_jax}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "optlab" in ended.stdout


def test_a_signal_ends_a_run(tmp_path):
    command = [sys.executable, "-m", "optlab", *QUICK[:5], "--steps", "1000000"]
    assert interrupt_at("valley: 2 optimizers", [*command, "--out", tmp_path]) == ENDED


PROCESS = """
import gc, hashlib, os, signal, sys, time, types, weakref
from optlab import __main__

def interrupt(*_):
    if not sent:
        sent.append(True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # the signal is handled here at the latest

class Thing:
    def __del__(self):
        interrupt()

def main(within):
    with within:
        work()
    return 0

sent = []
sys.modules["optlab.cli"] = types.SimpleNamespace(main=main)  # JAX is not loaded
"""


def end_of(work):
    """Return how a process of optlab ends whose command is this body of a function."""
    script = f"{PROCESS}def work():\n{textwrap.indent(work, '    ')}\nsys.exit(__main__.main())"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


posix = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="only systems with SIGALRM")


@posix
@pytest.mark.parametrize(
    "dropped",
    [
        "thing = Thing()\ndel thing",
        "thing = set()\nreference = weakref.ref(thing, interrupt)\ndel thing",
        "gc.callbacks.append(interrupt)\ngc.collect()",
        "try:\n    interrupt()\nexcept KeyboardInterrupt:\n    pass",
    ],
    ids=["destructor", "weak reference", "collection", "code that swallows it"],
)
def test_an_interruption_that_was_dropped_is_raised_again(dropped):
    rest = "time.sleep(60)"
    assert end_of(f"{dropped}\n{rest}") == ENDED


@posix
def test_an_interruption_that_becomes_another_error_is_still_one():
    work = "try:\n    interrupt()\nexcept KeyboardInterrupt:\n    raise ValueError"
    assert end_of(work) == ENDED


@posix
def test_an_interruption_lets_a_command_close_its_files():
    closing = "try:\n    interrupt()\nfinally:\n    time.sleep(0.3)\n    print('closed')"
    assert end_of(closing) == (130, "closed\n", "optlab: interrupted\n")


@posix
def test_a_second_interruption_ends_a_command_that_closes_its_files():
    closing = "__main__.TOGETHER = 0\ntry:\n    interrupt()\nfinally:\n    sent.clear()\n"
    assert end_of(f"{closing}    interrupt()\n    time.sleep(60)") == ENDED


@posix
def test_an_interruption_does_not_wait_for_compiled_code():
    send = "os.system(f'(sleep 0.1; kill -INT {os.getpid()}) &')"
    work = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # it does not look for signals
    assert end_of(f"__main__.PATIENCE = 0.2\n{send}\n{work}") == ENDED


@posix
def test_an_interruption_of_a_worker_process_is_its_own():
    fork = "worker = os.fork()\nif not worker:\n    try:\n        interrupt()\n"
    fork += "    except KeyboardInterrupt:\n        os._exit(3)\n"
    wait = "print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))\ntime.sleep(0.2)"
    assert end_of(f"__main__.PATIENCE = 0.1\n{fork}{wait}") == (0, "3\n", "")


def test_a_reader_that_leaves_early_causes_no_traceback(tmp_path):
    command = [sys.executable, "-m", "optlab", *QUICK, "--out", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 141
    assert "Traceback" not in err


def test_without_a_command_comes_the_help_and_status_2(run):
    status, out, err = run()
    assert (status, out) == (2, "")
    assert "compare" in err


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["--version"]])
def test_help_and_version(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 0
    assert (__version__ if "--version" in arguments else "usage: optlab") in capsys.readouterr().out


def test_the_console_script_runs_what_python_m_runs():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="optlab")
    assert script.load() is __main__.main


def test_dialects_prints_the_tables_that_are_asked_for(run):
    status, out, err = run("dialects", "rmsprop")
    assert (status, err) == (0, "")
    assert out == dialects.table("rmsprop") + "\n"
    assert run("dialects")[1].count("\noptlab ") >= len(TABLES)


def test_dialects_of_an_unknown_rule_is_one_line(run):
    status, out, err = run("dialects", "adam", "rmprop")
    assert (status, out) == (2, "")
    assert err.startswith("optlab: unknown rule 'rmprop'; did you mean 'rmsprop'? (known: sgd, ")


def test_dialects_fit_a_narrow_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, out, _ = run("dialects", "adam")
    assert max(map(len, out.splitlines())) <= 100  # notes and formulas have their own length
    assert "\nPyTorch\n  η " in out
