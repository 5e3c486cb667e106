"""PyTorch's optimizers as contenders. Import this module only if PyTorch is installed."""

import numpy as np
import torch

from benchmarks.cases import Case
from benchmarks.settings import AVERAGE_DECAY, LEARNING_RATE, MAX_NORM
from benchmarks.shapes import Arrays

NORM_ERROR = 5e-3
"""The relative error of PyTorch's norm, whose squares are summed in float32. On a CPU the norm of
the 38.6 million normal numbers of GPT-2's embedding is 2.4e-3 too small."""

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tensor(array: np.ndarray) -> torch.Tensor:
    """Return a tensor on the device, with its own memory."""
    return torch.tensor(array, device=DEVICE)


class TorchStep:
    """A step in place, as in a training loop of PyTorch: clip, update, average.

    Clipping changes the gradients in place, too. It multiplies them even if they are short enough,
    so that later steps, whose gradients have been clipped before, do the same work.
    """

    def __init__(self, name: str, case: Case, form: str, params: Arrays, gradients: Arrays) -> None:
        """Build a contender.

        Args:
            name: the name of the contender.
            case: a case that PyTorch has.
            form: "fused" or "foreach".
            params: the initial parameters.
            gradients: the gradients of every step.
        """
        self.name = name
        self._clip = case.clip
        self.norm_error = NORM_ERROR if case.clip else 0.0
        self._params = [tensor(p).requires_grad_() for p in params.values()]
        self.set_gradients(gradients)
        self._averages = [tensor(p) for p in params.values()] if case.average else []
        rule = case.torch
        constructor = getattr(torch.optim, rule.name)
        self._optimizer = constructor(
            self._params, lr=LEARNING_RATE, **rule.options, **{form: True}
        )

    def set_gradients(self, gradients: Arrays) -> None:
        for p, g in zip(self._params, gradients.values(), strict=True):
            p.grad = tensor(g)

    def advance(self, steps: int) -> None:
        """Make some steps."""
        for _ in range(steps):
            if self._clip:
                torch.nn.utils.clip_grad_norm_(self._params, MAX_NORM, foreach=True)
            self._optimizer.step()
            if self._averages:
                with torch.no_grad():
                    torch._foreach_lerp_(self._averages, self._params, 1 - AVERAGE_DECAY)

    def wait(self) -> None:
        """Wait until all steps are done."""
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    def results(self, limit: int | None = None) -> dict[str, list[np.ndarray]]:
        """Return the parameters and, if the case has one, their average.

        With a limit, return so many of the first numbers of each array.
        """
        results = {"params": self._params, "average": self._averages}
        return {
            name: [self._first(x.detach(), limit).cpu().numpy() for x in tensors]
            for name, tensors in results.items()
            if tensors
        }

    @staticmethod
    def _first(x: torch.Tensor, limit: int | None) -> torch.Tensor:
        return x if limit is None else x.reshape(-1)[:limit]
