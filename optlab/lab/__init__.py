"""The lab: tools to choose and debug an optimizer for a model.

A `Task` is a training problem as pure functions. `tasks` holds some on real data, and makes them
from your own models and data, such as `tasks.nnx_classifier`. The tools, in order of use:

    check_initial_loss, check_overfits_small_batch    is the model right?
    lr_range_test       raise the rate over one short run, from several seeds: where to train
    sweep               search hyperparameters, many trials in one compiled program
    compare             several optimizers, each over a grid of rates and seeds
    bench               many optimizers on many tasks, each tuned with the same budget
    train, monitor      one run, and what its optimizer does; `EarlyStopping` says when to stop it
    diagnose            patterns in a run's curves, the evidence for each, and what to try
    tune                all of the above in seven steps, within a budget, with a report
    ensemble, snapshots many models of one task, whose predictions are combined and judged
    soup, barrier       one model from several, and the loss on the way between two
    refresh_batch_stats running statistics for weights that are an average
"""

from optlab._report import Spread
from optlab.lab import tasks
from optlab.lab.benchmarking._bench import bench
from optlab.lab.benchmarking._outcome import Goal, Outcome
from optlab.lab.benchmarking._problems import bench_tasks
from optlab.lab.benchmarking._profile import Area, Profile
from optlab.lab.benchmarking._result import Bench
from optlab.lab.comparison._compare import Comparison, compare
from optlab.lab.comparison._rows import Row
from optlab.lab.comparison._runs import Runs
from optlab.lab.diagnosis._check import Check
from optlab.lab.diagnosis._diagnosis import Diagnosis, diagnose
from optlab.lab.diagnosis._findings import Finding
from optlab.lab.diagnosis._model_checks import check_initial_loss, check_overfits_small_batch
from optlab.lab.ensembles._calibration import (
    Reliability,
    Scores,
    fit_temperature,
    reliability,
    scores,
)
from optlab.lab.ensembles._combine import combine_log_probs
from optlab.lab.ensembles._ensemble import Ensemble, Member, ensemble
from optlab.lab.ensembles._ensemble_report import EnsembleReport
from optlab.lab.ensembles._snapshots import snapshots
from optlab.lab.ensembles._soup import Barrier, Soup, barrier, soup
from optlab.lab.rates._range_test import RangeTest, lr_range_test
from optlab.lab.sweeps._result import Sweep
from optlab.lab.sweeps._space import Categorical, Integer, LogUniform, Range, Uniform
from optlab.lab.sweeps._sweep import sweep
from optlab.lab.sweeps._trial import Trial
from optlab.lab.tasks._task import Task, shuffled_batches
from optlab.lab.tracking import mlflow, tensorboard, wandb
from optlab.lab.training._batch_stats import refresh_batch_stats
from optlab.lab.training._early_stopping import EarlyStopping
from optlab.lab.training._history import History
from optlab.lab.training._results import Evaluation, Run
from optlab.lab.training._train import train
from optlab.lab.tuning._result import (
    Chart,
    Interval,
    Series,
    Step,
    Table,
    TunedTrial,
    Tuning,
    Winner,
)
from optlab.lab.tuning._tune import tune
from optlab.wrappers._monitor import MonitorState, monitor, monitored

__all__ = [
    "Area",
    "Barrier",
    "Bench",
    "Categorical",
    "Chart",
    "Check",
    "Comparison",
    "Diagnosis",
    "EarlyStopping",
    "Ensemble",
    "EnsembleReport",
    "Evaluation",
    "Finding",
    "Goal",
    "History",
    "Integer",
    "Interval",
    "LogUniform",
    "Member",
    "MonitorState",
    "Outcome",
    "Profile",
    "Range",
    "RangeTest",
    "Reliability",
    "Row",
    "Run",
    "Runs",
    "Scores",
    "Series",
    "Soup",
    "Spread",
    "Step",
    "Sweep",
    "Table",
    "Task",
    "Trial",
    "TunedTrial",
    "Tuning",
    "Uniform",
    "Winner",
    "barrier",
    "bench",
    "bench_tasks",
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
    "tune",
    "wandb",
]
