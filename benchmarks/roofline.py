"""The fastest that this machine moves the bytes a case has to move, whatever it computes.

A case reads some arrays of the parameters' size and writes others; here arrays of the same size are
read and written as often, with next to no arithmetic and without XLA, whose limits must not become
the measure. On a CPU these are NumPy's functions, one thread a core on its part of each array, for
NumPy lets other threads run while it works. They go block by block through all arrays at once:

    p ← p + g       two reads, one write
    m ← −m          one read, one write, for each array of state
    max g           one read, in a pass of its own before: what a global norm costs

The largest is that of the bits as integers: on two cores as fast as `np.dot`, both being limited by
the memory, but never BLAS, which may start threads of its own in each of ours.
All is in place, as written memory that has not been read must be fetched by most processors, too.
Plain copies (`np.copyto`) are slower for this reason.

On a GPU it is one copy of half as many bytes as the case reads and writes together, by PyTorch
where it is installed, otherwise by JAX.
"""

import importlib.util
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 2**20
"""Elements that a thread takes of one array before it turns to the next: 4 MB."""


class Plan(NamedTuple):
    """How often an element of each array is touched.

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
    """Return the operations that read and write so much.

    Args:
        reads: arrays read, at least one more than are written: the gradients.
        writes: arrays written, at least 1: the parameters.
    """
    return Plan(additions=1, negations=writes - 1, maxima=reads - writes - 1)


class CpuRoofline:
    """NumPy on several threads; as a contender."""

    name = "roofline"

    def __init__(self, reads: int, writes: int, size: int, threads: int) -> None:
        """Make arrays.

        Args:
            reads: arrays read.
            writes: arrays written.
            size: elements of an array, float32.
            threads: one a core.
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
        """Do nothing: all steps are done."""

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
    """A copy by JAX; as a contender."""

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
    """A copy by PyTorch; as a contender."""

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
