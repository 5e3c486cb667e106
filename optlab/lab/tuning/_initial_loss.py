"""Step 1: is the loss before training that of a model that knows nothing?

A classification is compared with log C, and every task with the loss of the best guess without
inputs, `Task.baseline`. Regularization is off, as far as the task takes it as an argument.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.lab.data import is_stream
from optlab.lab.diagnosis._model_checks import BATCHES, HIGHEST, LOWEST, suspect_loss
from optlab.lab.tasks._check_task import check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training._loop import losses_at_start, seed_keys
from optlab.lab.tuning._overfit import with_usual_weights
from optlab.lab.tuning._procedure import WHO, Outcome, Procedure
from optlab.lab.tuning._result import FAILED, PASSED, WARNING, Chart, Series, Step
from optlab.lab.tuning._space import plain_values
from optlab.lab.tuning._texts import number

STEP = Step(
    "initial loss",
    "Is the loss before training that of a model that knows nothing?",
)

SEEDS = 5
"""The seeds from which the model is initialized."""

HIGH = 4.0
"""The most times the baseline that a loss other than a cross-entropy may start at without a
warning. Outputs of the variance of standardized targets double it; targets with a mean far from 0
raise it without any fault in the loss."""


def num_classes(task: Task) -> int | None:
    """Return the number of classes; None if the task is no classification in memory."""
    if task.predict is None or is_stream(task.splits.get("validation")):
        return None
    params, model_state = jax.eval_shape(task.init, jax.random.key(0))
    data = task.splits["validation"]
    logits, _ = jax.eval_shape(task.predict, params, model_state, data)
    return int(logits.shape[-1])


def initial_loss(procedure: Procedure) -> Outcome:
    """Measure the loss before training, and compare it."""
    task = procedure.make_task(plain_values(procedure.task))
    source = check_task(WHO, task)
    first = BATCHES if source is None else source.first(BATCHES)
    seeds = np.arange(procedure.seed, procedure.seed + SEEDS)
    losses = losses_at_start(task, seed_keys(jnp.asarray(seeds)), first)
    each = losses.mean(axis=1, dtype=float)
    classes = num_classes(task)
    levels = {} if classes is None else {f"log {classes}": float(np.log(classes))}
    if task.baseline is not None:
        levels["best guess without inputs"] = task.baseline
    chart = Chart(
        "Loss before training, regularization off",
        "seed",
        "loss",
        [Series("mean of the first batches", seeds.tolist(), each.tolist(), "points")],
        levels=levels,
    )
    verdict, evidence, advice = _judge(task, losses, first, classes, len(seeds))
    if verdict != FAILED and (fault := _fault_of_validation(task)):
        verdict, advice = FAILED, fault
    if off := ", ".join(plain_values(procedure.task)):
        evidence += f" This is with {off} off."
    step = Step(STEP.name, STEP.question, verdict, evidence, advice, charts=[chart])
    return Outcome(step, {"loss": float(each.mean()), "classes": classes})


def _fault_of_validation(task: Task) -> str | None:
    """Return what is wrong with the validation split, as the model before training shows it."""
    data = task.splits.get("validation")
    if is_stream(data):
        return None
    params, model_state = jax.jit(task.init)(jax.random.key(0))
    metrics = jax.jit(lambda p, s: dict(task.evaluate(p, s, data)))(params, model_state)
    if not np.isfinite(metrics["loss"]):
        return (
            f"Before training, the validation loss is {float(metrics['loss'])}, while that of the "
            "training batches is finite: look for NaN or infinity in the validation split."
        )
    if task.predict is not None and data is not None:
        _, labels = jax.jit(lambda p, s: task.predict(p, s, data))(params, model_state)
        if len(np.unique(labels)) == 1:
            return (
                f"All {len(labels)} labels of the validation split are {int(labels[0])}: a "
                "constant is right everywhere, and nothing can be judged. Take a split with all "
                "classes."
            )
    return None


def _judge(
    task: Task, losses: np.ndarray, first: Any, classes: int | None, seeds: int
) -> tuple[str, str, str]:
    each = losses.mean(axis=1, dtype=float)
    if not np.isfinite(losses).all():
        return (
            FAILED,
            f"From {(~np.isfinite(losses)).any(axis=1).sum()} of {len(losses)} seeds the loss "
            "before training is not finite.",
            "Look for NaN or infinity in the data, and for log(0), a division by 0 or an overflow "
            "in the loss; take a cross-entropy of logits, not the log of a softmax.",
        )
    spread = f"({len(each)} seeds: {number(each.min())} to {number(each.max())})"
    evidence = f"The loss before training is {number(each.mean())} {spread}"
    if classes is not None:
        ratio = float(each.mean() / np.log(classes))
        evidence += f", {ratio:.2f} times log {classes} = {number(float(np.log(classes)))}"
        if task.baseline is not None:
            evidence += f"; the best guess without inputs has {number(task.baseline)}"
        # Where one class is frequent, a guess of it is better than log C by luck.
        lowest = LOWEST * min(1.0, (task.baseline or np.inf) / float(np.log(classes)))
        if lowest <= ratio <= HIGHEST:
            return PASSED, f"{evidence}.", ""
        suspected = f"Suspect {suspect_loss(task, ratio, first)}"
        if ratio > HIGHEST and "sum over the batch" not in suspected:
            keys = seed_keys(jnp.arange(seeds))
            again = losses_at_start(with_usual_weights(task), keys, first).mean(dtype=float)
            as_ratio = float(again / np.log(classes))
            if LOWEST <= as_ratio <= HIGHEST:
                suspected = (
                    "The initialization is guilty: with each matrix scaled to the variance "
                    f"2 / inputs the loss is {as_ratio:.2f} times log {classes}. Draw the weights "
                    "with that variance, and the last layer with less."
                )
            else:
                suspected = (
                    "The weights are not guilty: with each matrix scaled to the variance 2 / "
                    f"inputs the loss is still {as_ratio:.2f} times log {classes}. Standardize the "
                    "inputs; or there are more classes than logits are meant for."
                )
        return FAILED, f"{evidence}.", suspected
    if task.baseline is None:
        advice = "Set Task.baseline, the loss of the best guess without inputs, and it is judged."
        return PASSED, f"{evidence}. There is no number to compare it with.", advice
    ratio = float(each.mean() / task.baseline)
    evidence += f", {ratio:.2f} times that of the best guess without inputs, "
    evidence += f"{number(task.baseline)}."
    if ratio < LOWEST:
        advice = (
            "Suspect weights that are trained already, targets that leak into the inputs, or a "
            "loss that leaves out examples or halves the error."
        )
        return FAILED, evidence, advice
    if ratio > HIGH:
        advice = (
            "Standardize the targets, or begin with the mean of the targets as the last bias; "
            "suspect initial weights that are too large, and a sum in place of a mean."
        )
        return WARNING, evidence, advice
    return PASSED, evidence, ""
