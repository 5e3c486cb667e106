"""Paths that a caller passes: `~` is the home folder, and addresses are refused or left alone.

An address, such as gs://bucket/run, is a string: a `pathlib.Path` of it would lose a slash.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optlab._domains import fail

# Two letters at least: one is a drive of Windows.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
_BROKEN_ADDRESS = re.compile(r"(gs|gcs|s3|az|abfs|hf|hdfs|https?):/(?!/)")


def folder_of(who: str, argument: str, path: Any, addresses: Sequence[str] = ()) -> Path | str:
    """Return the folder that an argument names, without looking whether it is there.

    Args:
        who: the public name that errors begin with.
        argument: the name of the argument.
        path: what the caller passed.
        addresses: how an address may begin, such as "gs://"; without any the folder must be on this
            machine.

    Returns:
        An absolute `Path`, in which `~` is the home folder; an address as the string that it is.

    Raises:
        ValueError: it is no path, or an address of a kind that is not allowed.

    Example:
        >>> folder_of("train", "checkpoints", "~/runs/1") == Path.home() / "runs" / "1"
        True
        >>> folder_of("train", "checkpoints", "gs://bucket/run", ["gs://"])
        'gs://bucket/run'
        >>> folder_of("tensorboard", "folder", "s3://bucket/run")
        Traceback (most recent call last):
        ...
        ValueError: tensorboard: folder must be a folder on this machine, got 's3://bucket/run'
    """
    return _place_of(who, argument, path, "folder", addresses)


def file_of(who: str, argument: str, path: Any) -> Path:
    """Return the file on this machine that an argument names, as `folder_of` returns a folder."""
    return Path(_place_of(who, argument, path, "file", ()))


def make_folder(who: str, argument: str, folder: Path) -> None:
    """Create a folder that does not exist.

    Raises:
        ValueError: it cannot be created, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        required = f"{argument} must be a folder that can be written"
        fail(who, required, f"{folder}: {error.strerror}")


def _place_of(
    who: str, argument: str, path: Any, kind: str, addresses: Sequence[str]
) -> Path | str:
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    if not isinstance(text, str) or not text or "\0" in text:
        fail(who, f"{argument} must be a {kind}", repr(path), "pass a str or pathlib.Path")
    required = f"{argument} must be a {kind} on this machine"
    if addresses:
        required += f" or an address that begins with {' or '.join(addresses)}"
    if _BROKEN_ADDRESS.match(text):
        remedy = "an address has two slashes, which a pathlib.Path loses: pass a str"
        fail(who, required, repr(text), remedy)
    if _ADDRESS.match(text):
        if not text.startswith(tuple(addresses)):
            fail(who, required, repr(text))
        return text
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # there is no such user, or a user without a home
        fail(who, required, f"{text!r}, whose home folder is not known")
