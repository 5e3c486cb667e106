"""JAX's settings that hold for one thread, taken along to others."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax


class Settings(NamedTuple):
    """Settings of a thread.

    Attributes:
        x64: whether numbers of 64 bits are enabled.
        promotion: how types are promoted.
        device: the default device; None for JAX's own choice.
    """

    x64: bool
    promotion: str
    device: Any

    def __call__(self, function: Callable[[], Any]) -> Any:
        """Call a function with these settings, and return its result."""
        own = settings()
        with ExitStack() as stack:
            if own.x64 != self.x64:
                stack.enter_context(jax.enable_x64(self.x64))
            if own.device != self.device:
                stack.enter_context(jax.default_device(self.device))
            if own.promotion != self.promotion:
                stack.enter_context(jax.numpy_dtype_promotion(self.promotion))
            return function()


def settings() -> Settings:
    """Return the settings of this thread."""
    config = jax.config
    return Settings(
        config.jax_enable_x64, config.jax_numpy_dtype_promotion, config.jax_default_device
    )
