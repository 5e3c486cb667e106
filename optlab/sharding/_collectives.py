"""What a compiled program moves between devices, as its text says."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import jax


class Collective(NamedTuple):
    """An operation of a compiled program that moves arrays between devices.

    Attributes:
        operation: "all-reduce", "reduce-scatter", "all-gather", "all-to-all" or
            "collective-permute".
        shapes: the shapes of its results, as one device has them.
    """

    operation: str
    shapes: tuple[tuple[int, ...], ...]


_LINE = re.compile(
    r" = (.+?) (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)(-start)?\("
)
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")


def collectives(compiled: "jax.stages.Compiled | str") -> tuple[Collective, ...]:
    """List what a compiled program moves between devices, to see what a training step costs.

    An operation in a loop counts once.

    Args:
        compiled: what `lower(…).compile()` of a jitted function or of `step` returns, or its text.

    Returns:
        The operations, in the order of the text.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> collectives(jax.jit(jnp.sum).lower(jnp.ones(8)).compile())
        ()
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text() or ""
    return tuple(_found(text))


def _found(text: str) -> Iterator[Collective]:
    for results, operation, starts in _LINE.findall(text):
        shapes = [
            tuple(int(size) for size in sizes.split(",") if size)
            for sizes in _SHAPE.findall(results)
        ]
        # What starts these two returns its arguments as well, and a permutation two numbers.
        if starts and operation in ("all-gather", "collective-permute"):
            if operation == "collective-permute":
                shapes = shapes[:2]
            shapes = shapes[len(shapes) // 2 :]
        yield Collective(operation, tuple(shapes))
