"""Checkpoints of a run through Orbax: complete or absent, and restored only into the same run.

A new checkpoint is written beside the previous one and replaces it once it is complete. A run that
is killed at any moment therefore leaves a usable checkpoint.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from optlab import _checks
from optlab._extras import needs_extra
from optlab._types import Array, Tree
from optlab.lab.training._loop import with_keys, without_keys


class Checkpoints:
    """The checkpoints of one run in a folder; only the newest one is kept.

    Args:
        who: the public name that errors begin with.
        folder: where to write; created if it does not exist.
        about: state → facts that identify its run, as JSON, by the name of the argument that sets
            each. A checkpoint with other facts is refused.

    Raises:
        ModuleNotFoundError: if Orbax is not installed.
        ValueError: the folder cannot be used.
    """

    def __init__(self, who: str, folder: str | Path, about: Callable[[Tree], Mapping[str, Any]]):
        with needs_extra(who, "checkpoints"):
            import orbax.checkpoint as ocp
        self.folder = Path(folder).absolute()
        self._who, self._about, self._args = who, about, ocp.args
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,  # they remain if a run is killed while it writes
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            required = "checkpoints must be a folder that can be written"
            _checks.fail(who, required, f"{self.folder}: {error.strerror}")

    def save(self, step: int, state: Tree, curves: Mapping[str, np.ndarray]) -> None:
        """Write a checkpoint.

        Args:
            step: the updates done.
            state: any tree of arrays, random keys included.
            curves: name → array of any length.
        """
        args = self._args
        about = {
            "run": self._about(state),
            "layout": _layout(state),
            "curves": {name: str(curve.dtype) for name, curve in curves.items()},
        }
        self._manager.save(
            step,
            args=args.Composite(
                about=args.JsonSave(about),
                state=args.StandardSave(_storable(state)),
                curves=args.StandardSave({name: x for name, x in curves.items() if x.size}),
            ),
        )

    def restore(self, like: Tree) -> tuple[int, Tree, dict[str, np.ndarray]] | None:
        """Return updates done, state and curves of the newest checkpoint; None if there is none.

        Args:
            like: a state of the same structure, shapes and types, on the devices to restore to.

        Raises:
            ValueError: the checkpoint is that of another run or model, or is damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        args = self._args
        about = self._read(step, about=args.JsonRestore())["about"]
        self._check(about, like)
        target = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in _storable(like).items()
        }
        restored = self._read(
            step, state=args.StandardRestore(target), curves=args.StandardRestore()
        )
        leaves, structure = jax.tree.flatten(without_keys(like))
        leaves = [restored["state"].get(str(index), leaf) for index, leaf in enumerate(leaves)]
        state = with_keys(jax.tree.unflatten(structure, leaves), like)
        curves = {
            name: restored["curves"].get(name, np.zeros(0, dtype))
            for name, dtype in about["curves"].items()
        }
        return step, state, curves

    def close(self) -> None:
        """Wait until everything is written."""
        self._manager.close()

    def _read(self, step: int, **items: Any) -> Mapping[str, Any]:
        try:
            return self._manager.restore(step, args=self._args.Composite(**items))
        # Orbax and the libraries below it raise many kinds of errors for damaged files.
        except Exception as error:
            required = f"the checkpoint {self.folder / str(step)} must be a whole one of a run"
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            _checks.fail(self._who, required, reason, "remove it to start again")

    def _check(self, about: Mapping[str, Any], like: Tree) -> None:
        current = self._about(like)
        for name, was in about["run"].items():
            now = current.get(name, was)  # a missing fact is a difference in the layout, below
            if was != now:
                required = f"{name} must be that of the checkpoint in {self.folder}, {was!r}"
                _checks.fail(self._who, required, f"{name}={now!r}", _REMEDY)
        saved, current = dict(about["layout"]), dict(_layout(like))
        for path in [*saved, *current]:
            was, now = saved.get(path, "not there"), current.get(path, "not there")
            if was != now:
                required = f"state{path} must be as in the checkpoint in {self.folder}, {was}"
                _checks.fail(self._who, required, now, _REMEDY)


_REMEDY = "pass another folder, or the arguments of that run"


def _storable(tree: Tree) -> dict[str, Array]:
    """Return the leaves by their index, without empty ones, which Orbax refuses."""
    leaves = jax.tree.leaves(without_keys(tree))
    return {str(index): leaf for index, leaf in enumerate(leaves) if leaf.size}


def _layout(tree: Tree) -> list[list[str]]:
    return [[keystr(path), f"{x.dtype}{list(x.shape)}"] for path, x in tree_leaves_with_path(tree)]
