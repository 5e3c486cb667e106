"""Bad compilers, bad folders and damaged files: the results are right, and nothing hangs."""

import errno
import logging
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import native
from optlab.native import _compiler, _report

SOURCE = "int optlab_loop(void) { return 42; }"
PARAMS = {"w": jnp.ones((4, 3))}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path, caplog):
    """A process that has compiled no loop, and an empty folder."""
    monkeypatch.setenv(_compiler.FOLDER, str(tmp_path / "loops"))
    monkeypatch.setattr(_compiler, "_loaded", {})
    monkeypatch.setattr(_compiler, "_failed", {})
    monkeypatch.setattr(_report, "_said", set())
    caplog.set_level(logging.WARNING, "optlab.native")
    monkeypatch.delenv("CC", raising=False)
    return caplog


def step():
    """Make a step of SGD with loops, and return the new parameters, which XLA also knows."""
    tx = optlab.sgd(0.5)
    params, _ = native.step(tx)(PARAMS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(params["w"], np.full((4, 3), 0.5))


def answer():
    return _compiler.load(SOURCE).optlab_loop()


def program(path, text):
    """Write a program that can be run, to stand for a compiler."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def files():
    return sorted(_compiler.folder().iterdir())


def test_a_loop_is_compiled_once(monkeypatch):
    assert answer() == 42
    (file,) = files()
    before = file.read_bytes()
    monkeypatch.setattr(_compiler, "_compile", None)
    assert answer() == 42
    assert [path.read_bytes() for path in files()] == [before]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="cut"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:-1] + bytes([data[-1] ^ 1]), id="one-bit"),
        pytest.param(lambda data: b"\0" * len(data), id="zeros"),
    ],
)
def test_a_damaged_file_is_made_again(damage):
    assert answer() == 42
    (file,) = files()
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert answer() == 42
    assert file.read_bytes() == before


def test_a_file_of_another_system_is_made_again():
    import hashlib

    assert answer() == 42
    (file,) = files()
    before, foreign = file.read_bytes(), b"no library"
    file.write_bytes(hashlib.sha256(foreign).digest() + foreign)
    assert answer() == 42
    assert file.read_bytes() == before


def test_a_file_of_another_user_is_not_loaded(monkeypatch):
    assert answer() == 42
    path = files()[0]
    monkeypatch.setattr(os, "getuid", lambda: os.stat(path).st_uid + 1)
    assert _compiler._read(path) is None


def test_a_folder_that_cannot_be_made_is_done_without(monkeypatch, tmp_path, nothing_known):
    (tmp_path / "file").touch()
    monkeypatch.setenv(_compiler.FOLDER, str(tmp_path / "file" / "loops"))
    assert answer() == 42
    step()
    assert not nothing_known.records


def test_a_full_folder_is_done_without(monkeypatch, nothing_known):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    step()
    assert files() == []
    assert not nothing_known.records


def test_without_room_for_any_file_xla_computes_the_step(monkeypatch, nothing_known, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    step()
    assert len(nothing_known.records) == 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("exit 1", id="fails"),
        pytest.param("kill -9 $$", id="is-killed"),
        pytest.param("exit 0", id="makes-nothing"),
        pytest.param('while [ "$1" != -o ]; do shift; done; echo no > "$2"', id="makes-no-library"),
        pytest.param("cat > /dev/null; yes wrong | head -1000000; exit 2", id="talks"),
    ],
)
def test_a_broken_compiler_leaves_the_step_to_xla_with_one_line(
    text, monkeypatch, nothing_known, tmp_path
):
    monkeypatch.setenv("CC", program(tmp_path / "cc", text))
    step()
    step()
    (record,) = nothing_known.records
    assert record.message.startswith("optlab.native: ")
    assert record.message.endswith(": XLA computes the step")
    assert "\n" not in record.message


def test_a_foreign_compiler_leaves_the_step_to_xla(monkeypatch, nothing_known):
    monkeypatch.setenv("CC", sys.executable)
    step()
    assert len(nothing_known.records) == 1


def test_a_compiler_that_fails_is_run_once_for_each_loop(monkeypatch, tmp_path):
    log = tmp_path / "log"
    monkeypatch.setenv("CC", program(tmp_path / "cc", f"echo run >> {log}; exit 1"))
    for _ in range(3):
        step()
    assert len(log.read_text().splitlines()) == 2  # once for its version


@pytest.mark.parametrize("name", ["no-such-compiler", "/no/such/cc -O1"])
def test_without_a_compiler_xla_computes_the_step(name, monkeypatch, nothing_known):
    monkeypatch.setenv("CC", name)
    step()
    (record,) = nothing_known.records
    assert "which CC names" in record.message


def test_with_no_compiler_on_the_path_xla_computes_the_step(monkeypatch, nothing_known, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    step()
    (record,) = nothing_known.records
    assert "there is no compiler of C" in record.message


def test_a_compiler_that_never_ends_is_stopped(monkeypatch, nothing_known, tmp_path):
    # Its child keeps the output open, as the real compiler behind a driver would.
    monkeypatch.setenv("CC", program(tmp_path / "cc", "sleep 600 & sleep 600"))
    monkeypatch.setattr(_compiler, "TIMEOUT", 0.2)
    start = time.monotonic()
    step()
    assert time.monotonic() - start < 60
    assert "did not end" in nothing_known.records[0].message


def test_processes_that_compile_the_same_loop_at_once_both_have_it():
    script = f"from optlab.native import _compiler; print(_compiler.load({SOURCE!r}).optlab_loop())"
    started = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in started] == ["42", "42"]
    assert answer() == 42
    assert len(files()) == 1


def test_threads_that_write_the_same_file_at_once_leave_one_whole_file():
    results = []
    work = [threading.Thread(target=lambda: results.append(answer())) for _ in range(4)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join(60)
    assert results == [42] * 4
    assert len(files()) == 1


def test_another_compiler_option_or_header_is_another_file():
    assert answer() == 42
    _compiler.load(SOURCE, ("-DOTHER",))
    _compiler.load(SOURCE, (), "another header")
    assert len(files()) == 3


def test_the_default_folder_is_that_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv(_compiler.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _compiler.folder() == tmp_path / "optlab" / "native"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _compiler.folder() == tmp_path / ".cache" / "optlab" / "native"


def test_what_is_compiled_has_no_text_of_the_user(monkeypatch):
    sources = []
    load = _compiler.load

    def recorded(source, *args):
        sources.append(source)
        return load(source, *args)

    monkeypatch.setattr(_compiler, "load", recorded)

    def adam_of_lovelace(g, state, params=None):
        return {'system("lovelace")': g['system("lovelace")'] * 2.0}, state

    tx = optax.GradientTransformation(lambda p: (), adam_of_lovelace)
    params = {'system("lovelace")': jnp.ones(3)}
    native.step(tx)(params, (), params)
    assert sources
    assert not any("lovelace" in source for source in sources)
