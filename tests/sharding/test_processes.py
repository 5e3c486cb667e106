"""Several processes train on a divided state like one, also after one of them was killed."""

import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import on_shards


def started(processes, result, *more):
    """Start processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = (str(processes), port, *map(str, (result, *more)))
    return [
        subprocess.Popen(
            [sys.executable, on_shards.__file__, str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]


def ended(processes):
    """Wait for processes, and require that they end well."""
    try:
        said = [one.communicate(timeout=300)[0] for one in processes]
    finally:
        for one in processes:
            one.kill()
    assert [one.returncode for one in processes] == [0] * len(processes), said


def numbers_of(result):
    stored = np.load(result)
    return [stored[name] for name in stored.files]


@pytest.mark.slow
def test_several_processes_train_like_one_and_go_on_where_one_was_killed(tmp_path):
    ended(started(2, tmp_path / "two.npz", tmp_path / "untouched"))
    two = numbers_of(tmp_path / "two.npz")
    # On one device sums have another order, 1e-7 each, in six updates of size 0.01.
    alone = on_shards.train(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]), 0, 1)
    for got, want in zip(two, jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)

    # The last one dies an update after the first checkpoint. The other one waits for it, until
    # what has started both ends it.
    killed = started(2, tmp_path / "never.npz", tmp_path / "killed", on_shards.EVERY + 1)
    try:
        assert killed[-1].wait(timeout=300) == -signal.SIGKILL
    finally:
        for one in killed:
            one.kill()
            one.communicate()
    steps = {path.name for path in (tmp_path / "killed").iterdir()}
    assert steps == {str(on_shards.EVERY)}
    assert not (tmp_path / "never.npz").exists()
    ended(started(2, tmp_path / "resumed.npz", tmp_path / "killed"))
    for got, want in zip(numbers_of(tmp_path / "resumed.npz"), two, strict=True):
        np.testing.assert_array_equal(got, want)

    ended(started(4, tmp_path / "four.npz"))
    for got, want in zip(numbers_of(tmp_path / "four.npz"), two, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
