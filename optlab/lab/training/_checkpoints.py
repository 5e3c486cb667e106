"""Checkpoints of a run through Orbax: complete or absent, sound, and restored only into that run.

A new checkpoint is written beside the previous ones, and the oldest is removed once the new one is
complete. A run that is killed at any moment therefore leaves a usable checkpoint. A state that is
not sound (`soundness`) is never written, so that the newest checkpoint can always be gone on from.
"""

import base64
import re
import signal
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from optlab import _checks, _paths
from optlab._extras import needs_extra
from optlab._identity import with_new_hyperparams
from optlab._types import Array, Tree
from optlab.lab.training._loop import with_keys, without_keys

Extra = Mapping[str, Any]
"""Name → bytes, or anything that JSON can hold."""

FORMAT = 2
"""The number of this way to write a checkpoint; another one is refused."""


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
        step: the updates done.
        state: the state, on the devices of the one that it was restored like.
        curves: name → array.
        extra: name → what `save` was given beside them.
        taken_over: name → (value of the checkpoint, value now), the facts that differ.
    """

    step: int
    state: Tree
    curves: dict[str, np.ndarray]
    extra: dict[str, Any]
    taken_over: dict[str, tuple[Any, Any]]


class Checkpoints:
    """The checkpoints of one run in a folder: the newest ones, all of them sound.

    Args:
        who: the public name that errors begin with.
        folder: where to write; created if it does not exist. `~` is the home folder. Addresses that
            begin with gs:// are passed on to Orbax, which needs gcsfs for them.
        facts: the facts that identify the run, as JSON, by the name of the argument that sets each;
            `optlab._identity.identity` returns them. A checkpoint with other facts is refused.
        keep: the number of checkpoints that are kept, ≥ 1.

    Raises:
        ModuleNotFoundError: if Orbax is not installed.
        ValueError: the folder cannot be used, or `keep` is out of its range.
    """

    def __init__(self, who: str, folder: Any, facts: Mapping[str, Any], keep: int = 1):
        _checks.check_integer(who, "keep", keep, 1)
        self.folder = _paths.folder_of(who, "checkpoints", folder, ["gs://"])
        with needs_extra(who, "checkpoints"):
            import orbax.checkpoint as ocp
        self._who, self._facts, self._args = who, dict(facts), ocp.args
        self._abandoned: list[int] = []
        options = ocp.CheckpointManagerOptions(
            max_to_keep=int(keep),
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,  # they remain if a run is killed while it writes
        )
        if isinstance(self.folder, Path):
            _paths.make_folder(who, "checkpoints", self.folder)
        try:
            with _interrupted_after():
                self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            required = "checkpoints must be a folder that can be written"
            _checks.fail(who, required, f"{self.folder}: {error.strerror or _line(error)}")
        # The libraries that reach a bucket raise errors of their own, also where one is missing.
        except Exception as error:
            if isinstance(self.folder, Path):
                raise
            required = "checkpoints must be an address that can be reached"
            _checks.fail(who, required, f"{self.folder}: {_line(error)}")

    @property
    def steps(self) -> list[int]:
        """The updates done at each checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Tree,
        curves: Mapping[str, np.ndarray],
        *,
        sound: bool,
        extra: Extra | None = None,
    ) -> bool:
        """Write a checkpoint, unless the state is not sound.

        Checkpoints later than one that `restore` was asked for by its step are removed first: they
        belong to the run that was given up there.

        Args:
            step: the updates done.
            state: any tree of arrays, random keys included.
            curves: name → array of any length.
            sound: whether the state can be gone on from, as `soundness` judges it.
            extra: what else `restore` shall return, such as the place of a loader.

        Returns:
            Whether the checkpoint was written.
        """
        if not sound:
            return False
        args = self._args
        about = {
            "format": FORMAT,
            "run": self._facts,
            "layout": _layout(state),
            "curves": {name: str(curve.dtype) for name, curve in curves.items()},
            "extra": _packed(extra or {}),
        }
        items = {
            "state": _storable(state),
            "curves": {name: x for name, x in curves.items() if x.size},
        }
        arrays = {name: args.StandardSave(item) for name, item in items.items() if item}
        about["items"] = [*arrays]
        composite = args.Composite(about=args.JsonSave(about), **arrays)
        with _interrupted_after():
            while self._abandoned:
                self._manager.delete(self._abandoned.pop())
            return self._manager.save(step, args=composite)

    def restore(
        self, like: Tree, *, take_over: Container[str] | bool = False, step: int | None = None
    ) -> Restored | None:
        """Return the newest checkpoint, or that of a step; None if there is none.

        Args:
            like: the state of this run before its first update, on the devices to restore to. The
                checkpoint must have its structure, shapes and types.
            take_over: the names of the facts that may differ from the checkpoint's, where "loss"
                also stands for "loss.scale" and what else belongs to the loss; True for all. What
                this run says then counts from its next update on, hyperparameters included,
                although the checkpoint holds those of the earlier run.
            step: the updates done at the checkpoint to go on from; None for the newest one. Later
                checkpoints remain until the next one is written.

        Raises:
            ValueError: there are checkpoints, but not that of `step`; or it is damaged or belongs
                to another run or model.
        """
        steps = self.steps
        if not steps:
            return None
        if step is None:
            step = steps[-1]
        elif step not in steps:
            required = f"the update to go on from must be one of a checkpoint in {self.folder}"
            _checks.fail(self._who, f"{required}, {', '.join(map(str, steps))}", repr(step))
        step = int(step)
        args = self._args
        about = self._read(step, about=args.JsonRestore())["about"]
        taken_over = self._differences(step, about, like, take_over)
        target = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in _storable(like).items()
        }
        items = {"state": args.StandardRestore(target), "curves": args.StandardRestore()}
        items = {name: items[name] for name in about["items"]}
        arrays = {"state": {}, "curves": {}, **(self._read(step, **items) if items else {})}
        leaves, structure = jax.tree.flatten(without_keys(like))
        leaves = [arrays["state"].get(str(index), leaf) for index, leaf in enumerate(leaves)]
        state = with_keys(jax.tree.unflatten(structure, leaves), like)
        curves = {
            name: arrays["curves"].get(name, np.zeros(0, dtype))
            for name, dtype in about["curves"].items()
        }
        # The latest is removed first, so that what is left at any moment is a run without a gap.
        self._abandoned = [later for later in steps if later > step]
        state = with_new_hyperparams(state, like, taken_over)
        return Restored(step, state, curves, _unpacked(about["extra"]), taken_over)

    def close(self) -> None:
        """Wait until everything is written."""
        with _interrupted_after():
            self._manager.close()

    def _read(self, step: int, **items: Any) -> Mapping[str, Any]:
        try:
            with _interrupted_after():
                return self._manager.restore(step, args=self._args.Composite(**items))
        # Orbax and the libraries below it raise many kinds of errors for damaged files.
        except Exception as error:
            required = f"the checkpoint {self.folder}/{step} must be a whole one of a run"
            earlier = [other for other in self.steps if other < step]
            otherwise = f"go on from update {earlier[-1]}" if earlier else "start again"
            _checks.fail(self._who, required, _line(error), f"remove it to {otherwise}")

    def _differences(
        self, step: int, about: Mapping[str, Any], like: Tree, take_over: Container[str] | bool
    ) -> dict[str, tuple[Any, Any]]:
        """Return name → (fact of the checkpoint, fact now) where they differ, if all may."""
        if about.get("format") != FORMAT:
            required = f"the checkpoint {self.folder}/{step} must be of format {FORMAT}"
            remedy = "pass another folder, or end that run with the optlab that began it"
            _checks.fail(self._who, required, str(about.get("format", 1)), remedy)
        every = dict.fromkeys([*self._facts, *about["run"]])
        both = {name: (_fact(about["run"], name), _fact(self._facts, name)) for name in every}
        differ = {name: (was, now) for name, (was, now) in both.items() if was != now}
        if isinstance(take_over, bool):
            refused = [] if take_over else [*differ]
        else:
            names = [take_over] if isinstance(take_over, str) else take_over
            refused = [n for n in differ if n not in names and _owner(n) not in names]
        # Of another model the layout says more than the details in which it differs.
        plain = [name for name in refused if "." not in name and _ABSENT not in differ[name]]
        self._refuse(plain, refused, differ)
        self._check_layout(about["layout"], like)
        self._refuse(refused, refused, differ)
        return differ

    def _refuse(
        self, first: list[str], refused: list[str], differ: Mapping[str, tuple[Any, Any]]
    ) -> None:
        if not first:
            return
        name, *_ = first
        was, now = differ[name]
        required = f"{name} must be that of the checkpoint in {self.folder}, {_shown(was)}"
        others = ", ".join(other for other in refused if other != name)
        got = f"{name}={_shown(now)}" + (f" (and others: {others})" if others else "")
        _checks.fail(self._who, required, got, REMEDY)

    def _check_layout(self, layout: list[list[str]], like: Tree) -> None:
        saved, current = dict(layout), dict(_layout(like))
        for path in [*saved, *current]:
            was, now = saved.get(path, "not there"), current.get(path, "not there")
            if was != now:
                required = f"state{path} must be as in the checkpoint in {self.folder}, {was}"
                _checks.fail(self._who, required, now, "pass another folder, or that model")


REMEDY = "pass another folder, the arguments of that run, or what may be taken over"
"""How errors about the checkpoint of another run end."""

_ABSENT = ("not there",)
"""Stands for a fact that one of two runs does not have; no JSON equals it."""

_OF_OLDER = {"native": False}
"""Facts that a checkpoint may be older than, with what they were then."""


def _fact(facts: Mapping[str, Any], name: str) -> Any:
    return facts.get(name, _OF_OLDER.get(name, _ABSENT))


@contextmanager
def _interrupted_after() -> Iterator[None]:
    """Handle an interruption (Ctrl-C) after this block, but a second one at once.

    Orbax would otherwise leave a checkpoint half written or half removed, and complain about its
    coroutines.
    """
    handler = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not (in_main and callable(handler)):  # only the main thread is interrupted, if it is
        yield
        return
    arrived: list[Any] = []

    def remember(*arguments: Any) -> None:
        arrived.append(arguments)
        if len(arrived) > 1:
            handler(*arguments)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if len(arrived) == 1:
            handler(*arrived[0])


def soundness(initial: Tree) -> Callable[[Tree], bool]:
    """Return a function of a state that says whether it can be gone on from.

    A state is sound if every array has only finite numbers, except for those that had others at the
    start, such as a best value of infinity.

    Args:
        initial: the state before the first update.

    Example:
        >>> is_sound = soundness({"w": jnp.ones(2), "best": jnp.array(jnp.inf)})
        >>> is_sound({"w": jnp.zeros(2), "best": jnp.array(jnp.inf)})
        True
        >>> is_sound({"w": jnp.array([0.0, jnp.nan]), "best": jnp.array(1.0)})
        False
    """
    at_start = _finite(initial)

    def is_sound(state: Tree) -> bool:
        return not np.any(at_start & ~_finite(state))

    return is_sound


def _finite(tree: Tree) -> np.ndarray:
    """Return for each array of floating-point numbers whether all are finite."""
    leaves = jax.tree.leaves(without_keys(tree))
    leaves = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return np.asarray(_all_finite(leaves)) if leaves else np.ones(0, bool)


@jax.jit
def _all_finite(leaves: list[Array]) -> Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])


def _storable(tree: Tree) -> dict[str, Array]:
    """Return the leaves by their index, without empty ones, which Orbax refuses."""
    leaves = jax.tree.leaves(without_keys(tree))
    return {str(index): leaf for index, leaf in enumerate(leaves) if leaf.size}


def _layout(tree: Tree) -> list[list[str]]:
    return [[keystr(path), f"{x.dtype}{list(x.shape)}"] for path, x in tree_leaves_with_path(tree)]


def _packed(extra: Extra) -> dict[str, dict[str, Any]]:
    """Return JSON from which `_unpacked` makes the same values."""
    return {
        name: {"base64": base64.b64encode(value).decode()}
        if isinstance(value, bytes)
        else {"json": value}
        for name, value in extra.items()
    }


def _unpacked(packed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: base64.b64decode(value["base64"]) if "base64" in value else value["json"]
        for name, value in packed.items()
    }


def _owner(name: str) -> str:
    """Return the argument that a detail belongs to: "loss" of "loss.scale"."""
    return re.split(r"[.\[]", name, maxsplit=1)[0]


def _shown(fact: Any) -> str:
    return fact[0] if fact is _ABSENT else repr(fact)


def _line(error: Exception) -> str:
    """Return the kind and the first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
