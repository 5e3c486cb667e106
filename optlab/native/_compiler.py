"""From the text of a loop to a function in this process: the compiler, and the folder it fills.

The folder is $OPTLAB_NATIVE_CACHE, by default `optlab/native` in $XDG_CACHE_HOME or `~/.cache`. A
file's name is a hash of all that decides its contents: the text, the compiler, its options, and the
processor. The file begins with a hash of the rest, so that a damaged one is known, and made again.
Files are written beside their place and then moved to it, so that processes which make the same
file at once do not see half of it; none waits for another. Where the folder cannot be written, a
process compiles for itself alone.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import jax

FOLDER = "OPTLAB_NATIVE_CACHE"
"""The environment variable that names the folder of compiled loops."""

TIMEOUT = 60
"""Seconds after which a compiler is stopped."""

OPTIONS = ["-O3", "-shared", "-fPIC", "-w", "-fwrapv", "-fno-math-errno", "-fno-trapping-math"]
# Without contraction the numbers are those of the operations as written, whatever the compiler.
OPTIONS += ["-ffp-contract=off"]

_lock = threading.Lock()
_loaded: dict[str, ctypes.CDLL] = {}
_failed: dict[tuple[str, ...], str] = {}
"""Why a source could not be loaded, so that a compiler that fails is not run for every trace."""


class Unavailable(Exception):
    """There is no loop, for the reason that the text says."""


@functools.cache
def handler() -> ctypes.CDLL:
    """Return the library that XLA calls, made known to XLA.

    Raises:
        Unavailable: it cannot be compiled or loaded.
    """
    source = (Path(__file__).parent / "_handler.c").read_text()
    include = jax.ffi.include_dir()
    header = Path(include, "xla", "ffi", "api", "c_api.h")
    if not header.is_file():
        raise Unavailable("jaxlib comes without the header of its foreign-function interface")
    library = load(source, ("-pthread", f"-I{include}"), header.read_text())
    library.optlab_register.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    capsule = jax.ffi.pycapsule(library.optlab_run)
    jax.ffi.register_ffi_target(TARGET, capsule, platform="cpu")
    return library


TARGET = "optlab_native_loop"
"""The name under which XLA knows the handler."""


def make_loop(text: str) -> str:
    """Compile and load a loop, and return the key by which the handler knows it.

    The key is a hash of the text. So a program that JAX has kept on disk finds the loop in another
    process as soon as that has traced the step.

    Raises:
        Unavailable: it cannot be compiled or loaded.
    """
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    with _lock:
        if key not in _loaded:
            known = handler()
            library = load(text)
            if known.optlab_register(key.encode(), library.optlab_loop):
                raise Unavailable("there is no memory for a loop")
            _loaded[key] = library
    return key


def load(source: str, options: tuple[str, ...] = (), depends: str = "") -> ctypes.CDLL:
    """Return the library of a source, from the folder or compiled.

    Args:
        source: the text in C.
        options: further options of the compiler.
        depends: the text of files that the source includes.

    Raises:
        Unavailable: it cannot be compiled or loaded.
    """
    command = compiler()
    attempt = (source, *options, *command)
    if attempt in _failed:
        raise Unavailable(_failed[attempt])
    try:
        return _load(command, source, options, depends)
    except Unavailable as error:
        _failed[attempt] = str(error)
        raise


def _load(command: list[str], source: str, options: tuple[str, ...], depends: str) -> ctypes.CDLL:
    parts = [source, depends, *command, *OPTIONS, *options, *_processor(), _version(command)]
    parts.append(_cpu())
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
    where = folder()
    path = where and where / f"{name}.bin"
    contents = path and _read(path)
    if contents is not None:
        try:
            return _open(contents)
        except Unavailable:
            pass  # made on another system that shares the folder
    contents = _compile(command, source, options)
    library = _open(contents)
    if path:
        _write(path, contents)
    return library


def folder() -> Path | None:
    """Return the folder of compiled loops; None where the user has no folder at all."""
    if own := os.environ.get(FOLDER):
        return Path(own)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(cache, "optlab", "native")


def compiler() -> list[str]:
    """Return the command of the compiler of C.

    Raises:
        Unavailable: there is none.
    """
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    raise Unavailable(
        f"there is no compiler {named[0]}, which CC names"
        if named
        else "there is no compiler of C (cc, gcc or clang)"
    )


def _processor() -> list[str]:
    """Return options for the processor: all that it can do, in its widest registers."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return ["-march=native", "-mprefer-vector-width=512"]
    return ["-mcpu=native"]


@functools.cache
def _cpu() -> str:
    """Return what tells processors apart for which other code is made."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = ("model name", "flags", "Features", "CPU part")
    own = sorted({line for line in lines if line.startswith(kinds)})
    return "\n".join([platform.machine(), platform.processor(), *own])


@functools.cache
def _version_of(path: str, changed: float) -> str:
    return _run([path, "--version"], "")[1]


def _version(command: list[str]) -> str:
    try:
        return _version_of(command[0], os.stat(command[0]).st_mtime)
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error}") from error


def _compile(command: list[str], source: str, options: tuple[str, ...]) -> bytes:
    """Return the bytes of a library."""
    try:
        with tempfile.TemporaryDirectory(prefix="optlab-") as scratch:
            path = Path(scratch, "loop.so")
            arguments = [*command, *OPTIONS, *_processor(), *options]
            status, messages = _run([*arguments, "-x", "c", "-", "-o", str(path)], source)
            if status:
                line = next((x for x in messages.splitlines() if x.strip()), f"status {status}")
                raise Unavailable(f"{command[0]} failed: {line.strip()[:200]}")
            return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{command[0]} made no library: {error}") from error


def _run(command: list[str], text: str) -> tuple[int, str]:
    """Run a command, and return its status and what it printed; stop it if it takes too long.

    Its output goes to a file, so that no process which it may leave behind is waited for.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
        given.write(text.encode())
        given.seek(0)
        environment = {**os.environ, "LC_ALL": "C"}
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            status = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Unavailable(f"{command[0]} did not end in {TIMEOUT} seconds") from None
        printed.seek(0)
        return status, printed.read(100_000).decode(errors="replace")


def _open(contents: bytes) -> ctypes.CDLL:
    """Load a library from a file of this process alone, which nobody can damage meanwhile."""
    try:
        with tempfile.TemporaryDirectory(prefix="optlab-") as scratch:
            path = Path(scratch, "loop.so")
            path.write_bytes(contents)
            return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"a compiled loop cannot be loaded: {error}") from error


def _read(path: Path) -> bytes | None:
    """Return a library from the folder; None if there is none, a damaged one or another user's."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            data = file.read()
    except OSError:
        return None
    digest, contents = data[:32], data[32:]
    return contents if hashlib.sha256(contents).digest() == digest else None


def _write(path: Path, contents: bytes) -> None:
    """Keep a library in the folder, if that can be."""
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(contents).digest() + contents)
        os.replace(scratch, path)
    except OSError:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)
