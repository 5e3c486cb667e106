"""The contenders: optlab, Optax, both in loops, hand-written steps, PyTorch, and two limits.

The limits are the roofline of the memory, and a compiled step that does nothing.

Each contender has its own parameters and state, all start from the same values, and each makes
steps on request.
"""

import importlib.util
import os
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case, Functions
from benchmarks.roofline import roofline
from benchmarks.shapes import Arrays

BASE = "optax"
"""The contender that all others are compared with."""

BY_HAND = "by-hand"
"""The step that a user of JAX could write instead. optlab aims at 1.05 times its time."""

JAX_PEERS = (BASE, "optlab", BY_HAND)
NATIVE_PEERS = ("native", "optax-native")
"""The chains of optlab and of Optax in the loops of `optlab.native.step`."""

TORCH_PEERS = ("torch-fused", "torch-foreach")
UNTOUCHED = "untouched"
"""A compiled step of JAX that returns its arguments, which are those of Optax's step. No step with
as many arrays takes less time. It is measured where there are at least `MANY` leaves."""

MANY = 500
LIMITS = ("roofline", UNTOUCHED)
PEERS = (*JAX_PEERS, *NATIVE_PEERS, *TORCH_PEERS, *LIMITS)


class Contender(Protocol):
    """The interface of everything that is timed.

    Attributes:
        name: the name in tables.
    """

    name: str

    def advance(self, steps: int) -> None:
        """Make some steps, or start them."""

    def wait(self) -> None:
        """Wait until all steps are done, and all their results are available."""


class Optimizer(Contender, Protocol):
    """A contender that computes updates.

    Attributes:
        norm_error: the known relative error of its global norm.
    """

    norm_error: float

    def set_gradients(self, gradients: dict[str, jax.Array]) -> None:
        """Set the gradients that every step uses."""

    def results(self, limit: int | None = None) -> dict[str, list[np.ndarray]]:
        """Return the parameters and, if the case has one, their average.

        With a limit, return so many of the first numbers of each array.
        """


class JaxStep:
    """A compiled step of pure functions, with its arrays."""

    norm_error = 0.0

    def __init__(
        self,
        name: str,
        functions: Functions,
        params: Arrays,
        gradients: dict[str, jax.Array],
        donate: bool,
        dtype: Any = jnp.float32,
    ) -> None:
        """Build a contender.

        Args:
            name: the name of the contender.
            functions: what the contender computes.
            params: the initial parameters.
            gradients: the gradients of every step; all such contenders share them, because no step
                changes them.
            donate: whether a step may reuse the memory of its old parameters and state.
            dtype: type of the parameters.
        """
        self.name = name
        self._average = functions.average
        self._step = jax.jit(functions.step, donate_argnums=(0, 1) if donate else ())
        self._params = {name: jnp.array(p, dtype) for name, p in params.items()}
        self._state = functions.init(self._params)
        self.set_gradients(gradients)

    def set_gradients(self, gradients: dict[str, jax.Array]) -> None:
        self._gradients = gradients

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self._params, self._state = self._step(self._params, self._state, self._gradients)

    def wait(self) -> None:
        jax.block_until_ready((self._params, self._state))

    def results(self, limit: int | None = None) -> dict[str, list[np.ndarray]]:
        """Return the parameters and, if the case has one, their average.

        With a limit, return so many of the first numbers of each array.
        """
        results = {"params": self._params}
        if self._average:
            results["average"] = self._average(self._state)
        if limit is not None:
            results = jax.tree.map(lambda x: x.reshape(-1)[:limit], results)
        return {name: [np.array(x) for x in tree.values()] for name, tree in results.items()}

    def state_bytes(self) -> int:
        """Return the bytes of the state."""
        return sum(x.nbytes for x in jax.tree.leaves(self._state))


def available(peer: str, case: Case, donate: bool = True) -> bool:
    """Return whether a peer can run the case.

    PyTorch must be installed and have the rule. Its steps work in place, which counts as donation.
    """
    if peer not in TORCH_PEERS:
        return True
    has = case.torch is not None and (case.torch.fused or peer != "torch-fused")
    return has and donate and importlib.util.find_spec("torch") is not None


def contender(
    peer: str,
    case: Case,
    params: Arrays,
    gradients: dict[str, jax.Array],
    donate: bool,
) -> Contender:
    """Return a contender for a case.

    Args:
        peer: one of PEERS that is available.
        case: what to compute.
        params: the initial parameters, float32.
        gradients: the gradients of every step, float32.
        donate: whether JAX may reuse the memory of old parameters and state.
    """
    if peer == "roofline":
        return roofline(case.reads, case.writes, sum(p.size for p in params.values()), num_cores())
    if peer in TORCH_PEERS:
        from benchmarks.torch_peers import TorchStep

        return TorchStep(peer, case, peer.removeprefix("torch-"), params, gradients)
    return JaxStep(peer, functions_of(peer, case), params, gradients, donate)


def functions_of(peer: str, case: Case) -> Functions:
    """Return a contender of JAX as functions."""
    if peer == UNTOUCHED:
        init = case.functions(BASE).init
        return Functions(init, lambda params, state, gradients: (params, state), None)
    return case.functions(peer)


def num_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
