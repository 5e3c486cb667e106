"""Train on one batch alone, and judge whether the model memorizes it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
import optax

from optlab._report import number
from optlab._types import Array, Tree
from optlab.lab.diagnosis._check import Check
from optlab.lab.tasks._task import Batch, Task
from optlab.lab.training._loop import Keys
from optlab.lab.training._progress import Show, count_updates
from optlab.lab.training._runner import Fixed, TrialRuns

RATES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Learning rates of Adam that are tried; most models can memorize a batch at one of them."""

MEMORIZED = 0.99
"""The accuracy at which a batch counts as memorized; about 1% of labels are often wrong."""

PARTS = 20
"""The parts of the training between which the progress bar moves."""

FALLEN = 0.05
"""A batch also counts as memorized if its loss falls below this share of the initial loss."""


class Memory(NamedTuple):
    """The results of training on one batch; arrays are (lanes, …).

    Attributes:
        losses: (lanes, steps) float, the loss at each update.
        before, after: metric → (lanes,) float, on the batch in evaluation mode; empty if
            `Task.evaluate` does not accept a batch.
        moved: a tree like the parameters, of (lanes,) bool: whether any element of a leaf changed.
    """

    losses: Array
    before: Mapping[str, Array]
    after: Mapping[str, Array]
    moved: Tree


def memorize(
    who: str,
    task: Task,
    batch: Batch,
    make: Callable[[Array], optax.GradientTransformation],
    rates: Sequence[float | None],
    *,
    steps: int,
    keys: Keys,
    show: Show = lambda done, text: None,
) -> Memory:
    """Train on one batch, from one start, at all rates side by side.

    Args:
        who: the public name that errors begin with.
        task: the problem.
        batch: the batch.
        make: a rate → the optimizer.
        rates: the rates; (None,) for an optimizer with a rate of its own.
        steps: updates.
        keys: the keys of the run.
        show: moves a progress bar.
    """
    alone = replace(task, batch=lambda key, step: batch, loader=None)
    runs = TrialRuns(
        who,
        Fixed(alone, make),
        {"rate": float},
        keys=jax.tree.map(lambda key: key[None], keys),
        eval_every=max(1, steps // PARTS),
        lanes=len(rates),
        evaluates=False,
        on_updates=count_updates(show, "memorizing a batch"),
    )
    points = [(trial, {"rate": rate or 0.0}) for trial, rate in enumerate(rates)]
    with closing(runs.run(points, steps, keep=True)) as running:
        curves = {trial: part for chunk in running for trial, part in chunk.items()}
    start = jax.jit(task.init)(keys.init)
    evaluate = _evaluator(task, keys, batch)
    before = evaluate(*start, batch)
    memories = []
    for trial, _ in points:
        run = jax.tree.map(lambda x: x[0], runs.take(trial))
        moved = jax.tree.map(lambda a, b: (a != b).any(), start[0], run.params)
        after = evaluate(run.params, run.model_state, batch)
        memories.append(Memory(curves[trial].losses[0], before, after, moved))
    return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(memories))


def _evaluator(
    task: Task, keys: Keys, batch: Batch
) -> Callable[[Tree, Tree, Batch], Mapping[str, Array]]:
    """Return `task.evaluate`, or a function without metrics if it does not accept a batch."""

    def metrics(params: Tree, model_state: Tree, batch: Batch) -> Mapping[str, Array]:
        return dict(task.evaluate(params, model_state, batch))

    try:
        jax.eval_shape(lambda keys: metrics(*task.init(keys.init), batch), keys)
    except Exception:  # the task's own code may not accept a batch
        return lambda params, model_state, batch: {}
    return jax.jit(metrics)


def judge(memory: Memory, rates: Sequence[float | None], steps: int) -> Check:
    lanes = [Lane.of(memory, lane, rate) for lane, rate in enumerate(rates)]
    best = min(lanes, key=lambda lane: (not lane.passed, -lane.accuracy, lane.share))
    evidence = f"{best.described(steps)}{'' if rates == (None,) else _tried(rates)}."
    if not best.passed:
        return Check(False, evidence, _suspect(best, lanes, rates))
    if best.accuracy < MEMORIZED:
        return Check(
            True,
            evidence,
            "evaluation mode: the loss is memorized, and yet labels are wrong there; batch "
            "statistics may lag behind (their momentum), or dropout not be switched off.",
        )
    return Check(True, evidence)


@dataclass(frozen=True)
class Lane:
    """The result of one optimizer.

    Attributes:
        rate: the rate of Adam; None for the user's own optimizer.
        start, end: the initial and the final loss.
        share: the final loss as a share of the initial one, in the better of both modes; ∞ if it
            is not finite.
        accuracy: the final accuracy in evaluation mode; 1 if the task reports none.
        has_accuracy: whether the task reports an accuracy.
        unmoved: paths of parameters that no update changed.
        num_leaves: the number of parameter arrays.
    """

    rate: float | None
    start: float
    end: float
    share: float
    accuracy: float
    has_accuracy: bool
    unmoved: tuple[str, ...]
    num_leaves: int

    @classmethod
    def of(cls, memory: Memory, lane: int, rate: float | None) -> "Lane":
        """Take the results of one lane from those of all."""
        losses = np.asarray(memory.losses[lane], np.float64)
        pairs = [(float(losses[0]), float(losses[-max(1, len(losses) // 20) :].mean()))]
        if "loss" in memory.after:
            pairs.append((float(memory.before["loss"][lane]), float(memory.after["loss"][lane])))
        moved = jax.tree.leaves_with_path(memory.moved)
        start, end = min(pairs, key=lambda pair: _share(*pair))
        return cls(
            rate=rate,
            start=start,
            end=end,
            share=_share(start, end),
            accuracy=float(memory.after["accuracy"][lane]) if "accuracy" in memory.after else 1.0,
            has_accuracy="accuracy" in memory.after,
            unmoved=tuple(jax.tree_util.keystr(path) for path, any_of in moved if not any_of[lane]),
            num_leaves=len(moved),
        )

    @property
    def passed(self) -> bool:
        """Whether the batch was memorized."""
        by_accuracy = self.has_accuracy and self.accuracy >= MEMORIZED and np.isfinite(self.share)
        return by_accuracy or self.share < FALLEN

    def described(self, steps: int) -> str:
        """Describe the result in words."""
        reached = f"reached {self.accuracy:.0%} accuracy, and " if self.has_accuracy else ""
        at = "" if self.rate is None else f", with Adam at the rate {number(self.rate)}"
        return (
            f"{steps} updates on one batch {reached}brought the loss from {number(self.start)} to "
            f"{number(self.end)}{at}"
        )


def _share(start: float, end: float) -> float:
    if not np.isfinite([start, end]).all():
        return np.inf
    return end / start if start > 0 else (1.0 if end >= start else 0.0)


def _tried(rates: Sequence[float]) -> str:
    return f" (the best of {len(rates)} from {number(rates[0])} to {number(rates[-1])})"


def _suspect(best: Lane, lanes: Sequence[Lane], rates: Sequence[float | None]) -> str:
    """Name the usual causes why a model does not memorize a batch, the likeliest first."""
    if not np.isfinite(best.share):
        return (
            "NaN or infinity in the data, or log(0), a division by 0 or an overflow in the loss"
            + ("; too high a rate." if best.rate is None else ".")
        )
    if len(best.unmoved) == best.num_leaves:
        return (
            "no parameter changed: all may be frozen or masked, the gradient stopped "
            "(`stop_gradient`, argmax, integers), or the loss not depend on them."
        )
    reasons = []
    if best.unmoved:
        few = ", ".join(best.unmoved[:3]) + (", …" if len(best.unmoved) > 3 else "")
        reasons.append(f"{len(best.unmoved)} of {best.num_leaves} parameters never changed ({few})")
    if best.share > 0.8:
        reasons.append(
            "a fault in the loss (a wrong axis, a softmax taken twice, the wrong sign), or inputs "
            "that say nothing of the targets"
        )
    reasons.append(
        "labels shuffled against the inputs, too small a model, dropout, weight decay or "
        "augmentation too strong, or too few steps"
    )
    if best.rate is None:
        reasons.append("a wrong rate (without `optimizer`, four are tried)")
    return "; ".join(reasons) + "."
