"""The least time in which this machine can move the bytes of a case, whatever is computed.

A case reads some arrays of the parameters' size and writes others. The roofline reads and writes
arrays of the same size as often, with hardly any arithmetic, and without XLA, whose limits must not
become the measure. On a CPU it uses NumPy's functions, with one thread per core on its part of each
array, because NumPy lets other threads run while it works. The threads go through all arrays
together, block by block:

    p ← p + g       two reads, one write
    m ← −m          one read, one write, for each array of state
    max g           one read, in a separate pass at the beginning, as a global norm needs it

The maximum is taken of the bits as integers. On two cores this is as fast as `np.dot`, since both
are limited by the memory, but it never uses BLAS, which may start threads of its own.
Everything is in place, because most processors must fetch memory that they write without having
read it. Plain copies (`np.copyto`) are slower for this reason.

On a GPU it is one copy of half as many bytes as the case reads and writes together, by PyTorch if
it is installed, otherwise by JAX.
"""

import importlib.util
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 2**20
"""Elements of one array, 4 MB, that a thread handles before it turns to the next array."""


class Plan(NamedTuple):
    """How often each operation is applied to an array.

    Attributes:
        additions: p ← p + g.
        negations: m ← −m.
        maxima: max g.
    """

    additions: int
    negations: int
    maxima: int

    @property
    def reads(self) -> int:
        return 2 * self.additions + self.negations + self.maxima

    @property
    def writes(self) -> int:
        return self.additions + self.negations


def plan(reads: int, writes: int) -> Plan:
    """Return the operations with these numbers of reads and writes.

    Args:
        reads: arrays read; at least one more than are written, because of the gradients.
        writes: arrays written, at least 1, the parameters.
    """
    return Plan(additions=1, negations=writes - 1, maxima=reads - writes - 1)


class CpuRoofline:
    """The roofline of a CPU: NumPy on several threads."""

    name = "roofline"

    def __init__(self, reads: int, writes: int, size: int, threads: int) -> None:
        """Create the arrays.

        Args:
            reads: arrays read.
            writes: arrays written.
            size: elements of an array, float32.
            threads: one per core.
        """
        self._plan = plan(reads, writes)
        arrays = [np.ones(size, np.float32) for _ in range(writes + 1)]
        bounds = np.linspace(0, size, threads + 1).astype(int)
        self._parts = [
            [_blocks(array[i:j]) for array in arrays] for i, j in itertools.pairwise(bounds)
        ]
        self._pool = ThreadPoolExecutor(threads)

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            if self._plan.maxima:
                list(self._pool.map(self._read, self._parts))
            list(self._pool.map(self._update, self._parts))

    def wait(self) -> None:
        """Do nothing, because `advance` returns after its steps are done."""

    def _read(self, part: list[list[np.ndarray]]) -> None:
        for _ in range(self._plan.maxima):
            for g in part[0]:
                np.maximum.reduce(g.view(np.int32))

    def _update(self, part: list[list[np.ndarray]]) -> None:
        for g, p, *state in zip(*part, strict=True):
            np.add(p, g, out=p)
            for m in state:
                np.negative(m, out=m)


class JaxCopy:
    """The roofline of a GPU: a copy by JAX."""

    name = "roofline"

    def __init__(self, num_bytes: int) -> None:
        self._source = jnp.zeros(num_bytes // 4, jnp.float32)
        self._copy = jax.jit(jnp.copy)
        self.advance(1)

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self._target = self._copy(self._source)

    def wait(self) -> None:
        self._target.block_until_ready()


class TorchCopy:
    """The roofline of a GPU: a copy by PyTorch."""

    name = "roofline"

    def __init__(self, num_bytes: int) -> None:
        import torch

        self._source, self._target = torch.zeros((2, num_bytes // 4), device="cuda")
        self.wait = torch.cuda.synchronize

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self._target.copy_(self._source)


def roofline(reads: int, writes: int, size: int, threads: int):
    """Return the roofline of a case on the device that JAX uses.

    Args:
        reads: arrays read.
        writes: arrays written.
        size: elements of an array, float32.
        threads: cores of the CPU.
    """
    if jax.default_backend() == "cpu":
        return CpuRoofline(reads, writes, size, threads)
    copy = TorchCopy if _torch_has_cuda() else JaxCopy
    return copy(4 * size * (reads + writes) // 2)


def _torch_has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _blocks(array: np.ndarray) -> list[np.ndarray]:
    return [array[i : i + BLOCK] for i in range(0, len(array), BLOCK)]
