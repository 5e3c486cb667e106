"""Large batches: hyperparameters for another batch size, and the noise of the gradient."""

from optlab.scaling._batch import scale_batch
from optlab.scaling._estimate import (
    NoiseEstimate,
    NoiseScale,
    estimate_noise,
    replica_noise,
)
from optlab.scaling._noise_scale import NoiseScaleState, measured_noise, noise_scale

__all__ = [
    "NoiseEstimate",
    "NoiseScale",
    "NoiseScaleState",
    "estimate_noise",
    "measured_noise",
    "noise_scale",
    "replica_noise",
    "scale_batch",
]
