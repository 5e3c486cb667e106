"""What `optlab train` makes of many weights: ensembles, snapshots, and averages of a run."""

import argparse
import math
from collections.abc import Callable, Mapping

import jax
import optax

from optlab import schedules, transforms
from optlab._report import aligned
from optlab._report import number as short
from optlab._types import Schedule
from optlab.cli._errors import UsageError, value_errors
from optlab.cli._output import write_errors
from optlab.cli._task_errors import task_errors
from optlab.cli.arguments._train import Average
from optlab.lab import Ensemble, Run, Task, ensemble, refresh_batch_stats, snapshots
from optlab.lab.training._batch_stats import places_of_statistics
from optlab.lab.training._train import EVALUATIONS


def check_average(options: argparse.Namespace, task: Task, steps: int) -> None:
    """Require an average that this task and this run can have; nothing has been computed yet."""
    if options.average is None:
        return
    if options.average.name == "uniform" and options.average.value >= steps:
        raise UsageError(
            f"argument --average: START must be below the {steps} updates of the run, got "
            f"{options.average}"
        )
    _, model_state = jax.eval_shape(task.init, jax.random.key(0))
    if places_of_statistics(model_state) and "train" not in task.splits:
        raise UsageError(
            f"--average needs a split 'train' in the task {task.name!r}, on which the running "
            "statistics of the average are computed"
        )


def averaging(options: argparse.Namespace, task: Task, steps: int) -> optax.GradientTransformation:
    """Return the transformation that keeps the average, for the end of a chain."""
    name, value = options.average
    every = task.eval_every or math.ceil(steps / EVALUATIONS)
    makers: dict[str, Callable[[], optax.GradientTransformation]] = {
        "ema": lambda: transforms.params_ema(value),
        "uniform": lambda: transforms.params_average(start=value),
        "power": lambda: transforms.params_power_ema(sigma_rel=value),
        "lawa": lambda: transforms.params_lawa(k=value, every=min(every, steps)),
    }
    return makers[name]()


def cyclic(rate: float | Schedule, cycles: int, steps: int) -> Schedule:
    """Return the rate of snapshots; a schedule of the user's own is left as it is."""
    if callable(rate):
        return rate
    return schedules.cosine_restarts(rate, decay_steps=math.ceil(steps / cycles))


def average_scores(
    options: argparse.Namespace, task: Task, run: Run
) -> dict[str, dict[str, float]]:
    """Return split → metrics of the averaged parameters, with running statistics of their own."""
    params = transforms.averaged_params(run.opt_state, run.params)
    state = refresh_batch_stats(task, params, run.model_state, key=jax.random.key(options.seed))
    evaluate = jax.jit(task.evaluate)
    splits = task.splits or {"validation": None}
    return {
        split: {name: float(x) for name, x in evaluate(params, state, data).items()}
        for split, data in splits.items()
    }


def average_table(how: Average, scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return the metrics of the averaged parameters as aligned text."""
    columns = {f"average, {how}": list(scores)}
    for name in next(iter(scores.values())):
        columns[name] = [short(metrics[name]) for metrics in scores.values()]
    return "\n".join(aligned(columns))


def run_many(
    options: argparse.Namespace, task: Task, tx: optax.GradientTransformation, steps: int
) -> None:
    """Train an ensemble or snapshots; print the report or the JSON, and write both files."""
    with task_errors(options.task), value_errors():
        models = _models(options, task, tx, steps)
        report = models.report()
    names = ("task", "optimizer", "rate", "seed", "ensemble", "snapshots")
    text = report.to_json(options={name: getattr(options, name) for name in names})
    print(text if options.json else f"{options.optimizer} on {report}")
    with write_errors(options.out):
        (options.out / "ensemble.json").write_text(text + "\n", encoding="utf-8")
        report.plot().savefig(options.out / "ensemble.png")
    if not options.json:
        print("", f"Wrote {options.out / 'ensemble.json'}, ensemble.png", sep="\n")


def _models(
    options: argparse.Namespace, task: Task, tx: optax.GradientTransformation, steps: int
) -> Ensemble:
    if options.ensemble:
        return ensemble(task, tx, members=options.ensemble, steps=steps, seed=options.seed)
    key = jax.random.key(options.seed)
    return snapshots(task, tx, cycles=options.snapshots, steps=steps, key=key)
