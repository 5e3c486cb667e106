"""Names for the types that appear in optlab's signatures."""

from collections.abc import Callable
from typing import Any

import jax
from jax.typing import ArrayLike, DTypeLike

Array = jax.Array
"""A concrete or traced JAX array."""

Tree = Any
"""A pytree whose leaves are arrays: parameters, gradients, updates or a slot of state."""

Schedule = Callable[[ArrayLike], ArrayLike]
"""Maps a step (an int or a traced integer; 0 at the first update) to a value. Optax's own type."""

Hyperparam = float | ArrayLike | Schedule
"""A constant, an array (traced or not) or a schedule."""

Mask = Tree | Callable[[Tree], Tree]
"""Booleans in the structure of the parameters (or a prefix of it), or a function returning them."""

__all__ = ["Array", "ArrayLike", "DTypeLike", "Hyperparam", "Mask", "Schedule", "Tree"]
