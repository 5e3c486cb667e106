"""What each device holds of an optimizer's state, as a table."""

from typing import Any, NamedTuple

import optax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from optlab._types import Tree
from optlab.rules._leaf import path_name
from optlab.sharding._specs import names_of
from optlab.sharding._state import bytes_of, placed


class Slot(NamedTuple):
    """An array of the state of an optimizer.

    Attributes:
        path: its names, joined by "/".
        shape: its shape.
        dtype: its type.
        spec: the axes of the mesh that divide each of its axes.
        bytes: its size.
        device_bytes: the size of what one device holds of it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    spec: PartitionSpec
    bytes: int
    device_bytes: int


class Layout(tuple[Slot, ...]):
    """The arrays of a state on a mesh: a tuple of `Slot`; `print` shows a table."""

    __slots__ = ()

    @property
    def bytes(self) -> int:
        """The size of the state."""
        return sum(slot.bytes for slot in self)

    @property
    def device_bytes(self) -> int:
        """The size of what one device holds of the state."""
        return sum(slot.device_bytes for slot in self)

    def __str__(self) -> str:
        """Return the table, one line for each array, and the sums."""
        rows = [("state", "shape", "divided over", "bytes", "on a device")]
        rows += [
            (
                slot.path,
                str(slot.shape),
                _spec_text(slot.spec),
                f"{slot.bytes:,}",
                f"{slot.device_bytes:,}",
            )
            for slot in self
        ]
        rows.append(("in all", "", "", f"{self.bytes:,}", f"{self.device_bytes:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if number < 3 else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


def layout(
    tx: optax.GradientTransformation, params: Tree, mesh: Mesh | AbstractMesh, axis: str = "data"
) -> Layout:
    """Show how `state_sharding` divides a state, and what each device holds; nothing is computed.

    Args:
        tx: as for `state_sharding`.
        params: as for `state_sharding`.
        mesh: as for `state_sharding`; the shape alone is enough.
        axis: as for `state_sharding`.

    Returns:
        A tuple of `Slot`, which prints as a table.

    Raises:
        ValueError: as for `state_sharding`.

    Example:
        >>> import jax, jax.numpy as jnp, optlab
        >>> mesh = jax.sharding.AbstractMesh((4,), ("data",))
        >>> params = {"w": jnp.zeros((6, 8)), "b": jnp.zeros(3)}
        >>> print(layout(optlab.lion(1e-3), params, mesh))
        state          shape   divided over  bytes  on a device
        0/count        ()      -                 4            4
        0/mu/b         (3,)    -                12           12
        0/mu/w         (6, 8)  -, data         192           48
        0/hyperparams  (4,)    -                16           16
        1/hyperparams  (2,)    -                 8            8
        2/hyperparams  (2,)    -                 8            8
        in all                                 240           96
    """
    _, found = placed("layout", tx, params, mesh, axis)
    return Layout(
        Slot(
            path_name(path),
            tuple(leaf.shape),
            leaf.dtype,
            PartitionSpec(*place.entries),
            *bytes_of(leaf, place, mesh),
        )
        for path, leaf, place in found
    )


def _spec_text(spec: PartitionSpec) -> str:
    """Return a spec as text: "data, -"; "-" for what each device has all of."""
    entries = ["+".join(names_of(entry)) or "-" for entry in spec]
    return ", ".join(entries) if {*entries} - {"-"} else "-"
