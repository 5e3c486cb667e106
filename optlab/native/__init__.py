"""One pass over the parameters on a CPU: the arithmetic of any chain, compiled as loops.

`step` makes the function of a whole step, from any transformation of optlab or Optax.
"""

from optlab.native._step import step

__all__ = ["step"]
