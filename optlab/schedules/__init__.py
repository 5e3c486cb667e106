"""Schedules: pure functions of the step, counted in optimizer updates, the first of which uses 0.

A schedule takes the place of any hyperparameter of optlab's and of Optax's optimizers:
`optlab.adamw(optlab.schedules.cosine(1e-3, decay_steps=1000))`.
"""

from optlab.schedules._decay import constant, cosine, linear
from optlab.schedules._warmup import warmup_cosine

__all__ = ["constant", "cosine", "linear", "warmup_cosine"]
