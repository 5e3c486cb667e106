"""Muon in the frameworks: the cases that are recorded, and the gradients they are recorded on.

Parameters are kept as JAX keeps them, (in, out); for PyTorch and timm they are transposed. Muon
reads its parameters only to decay them, so gradients are given beforehand: rounded sines, some of
them silent for a while, and some about as small as ε.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from golden.cases import Wave

FILE = Path(__file__).with_name("muon.npz")

UPDATES = 60
RECORDED = (1, 2, 10, UPDATES)

SHAPES = {"tall": (9, 6), "wide": (4, 9), "small": (4, 4), "embedding": (4, 4), "bias": (4,)}
SIZES = {"tall": 1.0, "wide": 1.0, "small": 2.0**-22, "embedding": 0.5, "bias": 1.0}
"""The largest element of a gradient."""

SILENT = {"wide": range(1, 6), "tall": range(20, 50)}
"""The updates at which a gradient is 0."""


def rounded(x, bits=20):
    """Return multiples of 2⁻ᵇ, which any machine's sine gives alike and float32 holds."""
    return np.round(x * 2.0**bits) / 2.0**bits


def start():
    """Return the parameters before the first update."""
    return {
        name: rounded(1 + np.cos(np.arange(np.prod(shape)) ** 2.0 + i)).reshape(shape)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def gradient(t):
    """Return the gradient of update t = 1, 2, …"""
    gradients = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        k = np.arange(np.prod(shape))
        noise = rounded(np.sin(i + 0.7 * k**2 + (1.1 + 0.3 * k) * t + 0.05 * t**2))
        silent = t in SILENT.get(name, ())
        gradients[name] = (0.0 if silent else SIZES[name]) * noise.reshape(shape)
    return gradients


_COUNT = np.arange(UPDATES)
RATE = rounded(np.where(_COUNT < 10, (_COUNT + 1) / 10, 0.55 + 0.45 * np.cos(_COUNT / 20)), 30)
"""The learning rate's factor at each count."""
WAVE = rounded((1 + np.cos(_COUNT / 10)) / 2, 30)
"""From 0 to 1, for hyperparameters that move between two values."""


@dataclass(frozen=True)
class Case:
    """One Muon.

    Attributes:
        rate: the learning rate where the schedule's factor is 1.
        options: further arguments, by the framework's names; any of them may be a `Wave`.
    """

    rate: float
    options: dict[str, Any] = field(default_factory=dict)

    def rates(self):
        """Return the learning rate of each update, (updates,)."""
        return self.rate * RATE

    def moving(self):
        """Return the values of those options that move, by name, (updates,) each."""
        return {
            name: wave.low + (wave.high - wave.low) * WAVE
            for name, wave in self.options.items()
            if isinstance(wave, Wave)
        }


def _case(rate, **options):
    return Case(rate, options)


MUON = {
    "pytorch": {
        "muon": _case(0.05),
        "adjust_lr_fn": _case(0.02, adjust_lr_fn="match_rms_adamw", weight_decay=0.0),
        "nesterov": _case(0.05, nesterov=False),
        "ns_coefficients": _case(0.05, ns_coefficients=(2.0, -1.5, 0.5), ns_steps=7),
        "eps": _case(0.05, eps=0.3),
        "momentum-moving": _case(0.05, momentum=Wave(0.8, 0.95), weight_decay=0.5),
    },
    "timm": {
        "muon": _case(0.02),
        "nesterov": _case(0.02, nesterov=True, weight_decay=0.1),
        "original": _case(0.05, adjust_lr_fn="original", ns_coefficients="original"),
        "rms_to_rms": _case(0.05, adjust_lr_fn="rms_to_rms", ns_coefficients=(2.0, -1.5, 0.5)),
        "polar_express": _case(
            0.05, adjust_lr_fn=None, ns_coefficients="polar_express", ns_steps=9
        ),
        "polar_express_safer": _case(
            0.02, ns_coefficients="polar_express_safer", safety_factor=1.02, ns_steps=4
        ),
        "fallback": _case(
            0.02, fallback_lr_scale=0.3, betas=(0.8, 0.9), eps=0.1, weight_decay=0.2, momentum=0.8
        ),
        "momentum-moving": _case(0.02, momentum=Wave(0.8, 0.95)),
    },
    "keras": {
        "muon": _case(0.02),
        "nesterov": _case(0.02, nesterov=False, momentum=0.8),
        "exclude": _case(0.02, exclude_embeddings=False, exclude_layers=["^ta", "small"]),
        "rms_rate": _case(0.05, rms_rate=None, muon_a=2.0, muon_b=-1.5, muon_c=0.5, ns_steps=7),
        "adam": _case(0.02, adam_lr_ratio=0.3, adam_beta_1=0.8, adam_beta_2=0.9, epsilon=0.1),
        "decay": _case(0.02, weight_decay=0.5, adam_weight_decay=0.1, global_clipnorm=2.0),
    },
    "optax": {
        "muon": _case(0.05),
        "nesterov": _case(0.05, nesterov=False, eps=0.3),
        "dion": _case(0.02, ns_coeffs="dion", consistent_rms=0.2, weight_decay=0.1),
        "adam": _case(
            0.05, adam_learning_rate=0.01, adam_b1=0.8, adam_b2=0.9, adam_weight_decay=0.5
        ),
        "beta-moving": _case(0.05, beta=Wave(0.8, 0.95)),
    },
}
