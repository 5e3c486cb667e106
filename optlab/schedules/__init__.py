"""Schedules: pure functions of the step, counted in optimizer updates, the first of which uses 0.

A schedule takes the place of any hyperparameter of optlab's and of Optax's optimizers:
`optlab.adamw(optlab.schedules.cosine(1e-3, decay_steps=1000))`.
"""

from optlab.schedules._compose import clamp, epochs_to_steps, join, scale
from optlab.schedules._curve import Curve
from optlab.schedules._cycles import OneCycle, cosine_restarts, one_cycle, triangular
from optlab.schedules._decay import (
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    multistep,
    polynomial,
    step_decay,
)
from optlab.schedules._swa import swa_schedule
from optlab.schedules._warmup import warmup, warmup_cosine, wsd

__all__ = [
    "Curve",
    "OneCycle",
    "clamp",
    "constant",
    "cosine",
    "cosine_restarts",
    "epochs_to_steps",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "multistep",
    "one_cycle",
    "polynomial",
    "scale",
    "step_decay",
    "swa_schedule",
    "triangular",
    "warmup",
    "warmup_cosine",
    "wsd",
]
