"""Optimizers: one published rule a file, as a direction and as the optimizer made of it."""

from optlab.optimizers._adafactor import adafactor, scale_by_adafactor
from optlab.optimizers._adagrad import adagrad, scale_by_adagrad
from optlab.optimizers._adam import adam, scale_by_adam
from optlab.optimizers._adamw import adamw
from optlab.optimizers._lamb import lamb, scale_by_lamb
from optlab.optimizers._lars import lars, scale_by_lars
from optlab.optimizers._lbfgs import lbfgs, scale_by_lbfgs
from optlab.optimizers._lion import lion, scale_by_lion
from optlab.optimizers._momentum import scale_by_momentum
from optlab.optimizers._muon import muon, scale_by_muon
from optlab.optimizers._rmsprop import rmsprop, scale_by_rmsprop
from optlab.optimizers._sgd import sgd
from optlab.optimizers._shampoo import scale_by_shampoo, shampoo
from optlab.optimizers._soap import scale_by_soap, soap

__all__ = [
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "lamb",
    "lars",
    "lbfgs",
    "lion",
    "muon",
    "rmsprop",
    "scale_by_adafactor",
    "scale_by_adagrad",
    "scale_by_adam",
    "scale_by_lamb",
    "scale_by_lars",
    "scale_by_lbfgs",
    "scale_by_lion",
    "scale_by_momentum",
    "scale_by_muon",
    "scale_by_rmsprop",
    "scale_by_shampoo",
    "scale_by_soap",
    "sgd",
    "shampoo",
    "soap",
]
