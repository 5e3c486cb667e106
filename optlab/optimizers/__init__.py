"""Optimizers: one published rule a file, as a direction and as the optimizer made of it."""

from optlab.optimizers._adagrad import ScaleByAdagradState, adagrad, scale_by_adagrad
from optlab.optimizers._adam import ScaleByAdamState, adam, scale_by_adam
from optlab.optimizers._adamw import adamw
from optlab.optimizers._rmsprop import ScaleByRmspropState, rmsprop, scale_by_rmsprop
from optlab.optimizers._sgd import ScaleByMomentumState, scale_by_momentum, sgd

__all__ = [
    "ScaleByAdagradState",
    "ScaleByAdamState",
    "ScaleByMomentumState",
    "ScaleByRmspropState",
    "adagrad",
    "adam",
    "adamw",
    "rmsprop",
    "scale_by_adagrad",
    "scale_by_adam",
    "scale_by_momentum",
    "scale_by_rmsprop",
    "sgd",
]
