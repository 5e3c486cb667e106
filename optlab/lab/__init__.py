"""The lab: tools to choose and debug an optimizer for a model.

A `Task` is a training problem as pure functions. `tasks` holds some on real data, and
`tasks.nnx_classifier` makes one from your own Flax NNX model. The tools, in order of use:

    check_initial_loss, check_overfits_small_batch    is the model right?
    lr_range_test       raise the rate over one short run, from several seeds: where to train
    sweep               search hyperparameters, many trials in one compiled program
    compare             several optimizers, each over a grid of rates and seeds
    train, monitor      one run, and what its optimizer does; `EarlyStopping` says when to stop it
    diagnose            patterns in a run's curves, the evidence for each, and what to try
    ensemble, snapshots many models of one task, whose predictions are combined and judged
    soup, barrier       one model from several, and the loss on the way between two
    refresh_batch_stats running statistics for weights that are an average
"""

from optlab.lab import tasks
from optlab.lab._batch_stats import refresh_batch_stats
from optlab.lab._calibration import Reliability, Scores, fit_temperature, reliability, scores
from optlab.lab._checks_before import Check, check_initial_loss, check_overfits_small_batch
from optlab.lab._combine import combine_log_probs
from optlab.lab._compare import Comparison, compare
from optlab.lab._diagnosis import Diagnosis, diagnose
from optlab.lab._early_stopping import EarlyStopping
from optlab.lab._ensemble import Ensemble, Member, ensemble
from optlab.lab._ensemble_report import EnsembleReport
from optlab.lab._findings import Finding
from optlab.lab._grid import Runs
from optlab.lab._history import History
from optlab.lab._monitor import MonitorState, monitor, monitored
from optlab.lab._range_test import RangeTest, lr_range_test
from optlab.lab._rows import Row, Spread
from optlab.lab._snapshots import snapshots
from optlab.lab._soup import Barrier, Soup, barrier, soup
from optlab.lab._space import Categorical, Integer, LogUniform, Range, Uniform
from optlab.lab._sweep import sweep
from optlab.lab._sweep_result import Sweep
from optlab.lab._task import Task, shuffled_batches
from optlab.lab._train import Evaluation, Run, train
from optlab.lab._trial import Trial
from optlab.lab.tracking import mlflow, tensorboard, wandb

__all__ = [
    "Barrier",
    "Categorical",
    "Check",
    "Comparison",
    "Diagnosis",
    "EarlyStopping",
    "Ensemble",
    "EnsembleReport",
    "Evaluation",
    "Finding",
    "History",
    "Integer",
    "LogUniform",
    "Member",
    "MonitorState",
    "Range",
    "RangeTest",
    "Reliability",
    "Row",
    "Run",
    "Runs",
    "Scores",
    "Soup",
    "Spread",
    "Sweep",
    "Task",
    "Trial",
    "Uniform",
    "barrier",
    "check_initial_loss",
    "check_overfits_small_batch",
    "combine_log_probs",
    "compare",
    "diagnose",
    "ensemble",
    "fit_temperature",
    "lr_range_test",
    "mlflow",
    "monitor",
    "monitored",
    "refresh_batch_stats",
    "reliability",
    "scores",
    "shuffled_batches",
    "snapshots",
    "soup",
    "sweep",
    "tasks",
    "tensorboard",
    "train",
    "wandb",
]
