"""JAX's settings that hold for one thread, taken along to others."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax


def settings() -> Callable[[Callable[[], Any]], Any]:
    """Return a function that calls another one with the settings of the thread it was made on.

    These are the type of numbers, the default device and the promotion of types.
    """
    x64, device = jax.config.jax_enable_x64, jax.config.jax_default_device
    promotion = jax.config.jax_numpy_dtype_promotion

    def inside(function: Callable[[], Any]) -> Any:
        with ExitStack() as stack:
            if jax.config.jax_enable_x64 != x64:
                stack.enter_context(jax.enable_x64(x64))
            if jax.config.jax_default_device != device:
                stack.enter_context(jax.default_device(device))
            if jax.config.jax_numpy_dtype_promotion != promotion:
                stack.enter_context(jax.numpy_dtype_promotion(promotion))
            return function()

    return inside
