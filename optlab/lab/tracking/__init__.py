"""Trackers: the curves of runs and sweeps in TensorBoard, Weights & Biases and MLflow.

`tensorboard`, `wandb` and `mlflow` each return a `Tracker`. It is a callback of `train`, a callback
of `sweep`, and a function that a loop of the user's own calls with numbers by name.
"""

from optlab.lab.tracking._common import Tracker
from optlab.lab.tracking._mlflow import mlflow
from optlab.lab.tracking._tensorboard import tensorboard
from optlab.lab.tracking._wandb import wandb

__all__ = ["Tracker", "mlflow", "tensorboard", "wandb"]
