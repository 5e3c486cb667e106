"""Checks before training: is the initial loss right, and can the model memorize one batch?

A model that knows nothing gives each of C classes the probability 1/C. Its cross-entropy is

    L₀ = log C

Random initial weights make the outputs differ between inputs, which raises the loss somewhat. A
model that can learn from much data should also be able to memorize a single batch.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._report import number
from optlab._types import Array, Tree
from optlab.lab.tasks._check_task import check_task
from optlab.lab.tasks._task import Batch, Task
from optlab.lab.training import _loop
from optlab.lab.training._loop import Keys, checked_seeds
from optlab.lab.training._progress import Show, count_updates, progress_bar
from optlab.lab.training._runner import Fixed, TrialRuns
from optlab.optimizers import adam

LOWEST, HIGHEST = 0.9, 3.0
"""Bounds for the initial loss, as a multiple of log C. Measured on networks with 1 to 8 hidden
layers, 32 to 512 units wide, with 2 to 100 classes and standardized inputs, as means over five
seeds: 1.00 to 1.88 with ReLU and He initialization in all layers, 1.00 to 1.26 with tanh, 1.00 with
zeros in the last layer. Single seeds range from 0.98 to 3.1 (two classes, eight layers). The
built-in MLP starts at 1.4. The built-in CNN starts at 2.35, because it twice takes the largest of
four pixels."""

BATCHES = 5
"""Batches per seed over which the initial loss is averaged."""

RATES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Learning rates of Adam that are tried; most models can memorize a batch at one of them."""

MEMORIZED = 0.99
"""The accuracy at which a batch counts as memorized; about 1% of labels are often wrong."""

PARTS = 20
"""The parts of the training between which the progress bar moves."""

FALLEN = 0.05
"""A batch also counts as memorized if its loss falls below this share of the initial loss."""


@dataclass(frozen=True)
class Check:
    """The result of a check before training; it can be printed, and it is true if it passed.

    Attributes:
        passed: whether the check passed.
        evidence: the measured numbers, as a sentence.
        advice: the likely causes if it failed; "" if there are none to name.
    """

    passed: bool
    evidence: str
    advice: str = ""

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        text = f"{'Passed' if self.passed else 'Failed'}: {self.evidence}"
        return f"{text}\n  Suspect: {self.advice}" if self.advice else text


def check_initial_loss(task: Task, num_classes: int, *, seeds: int | Sequence[int] = 5) -> Check:
    """Compare the loss before training with log C, the loss of guessing.

    The check passes from 0.9 to 3 times log C, the range of usual initializations with standardized
    inputs.

    Args:
        task: a classification whose loss is the mean cross-entropy, in nats.
        num_classes: C, ≥ 2.
        seeds: the number of seeds, counted from 0, or the seeds themselves; each initializes the
            model anew.

    Raises:
        ValueError: an argument is out of its range, or the task is not one.

    Example:
        >>> task = Task(
        ...     name="three classes",
        ...     init=lambda key: (jnp.zeros(3), ()),
        ...     loss=lambda bias, state, batch, key: (-jax.nn.log_softmax(bias)[batch], state),
        ...     batch=lambda key, step: jax.random.randint(key, (), 0, 3),
        ...     evaluate=lambda bias, state, data: {"loss": -jax.nn.log_softmax(bias).mean()},
        ... )
        >>> print(check_initial_loss(task, 3))
        Passed: the loss before training is 1.1 (5 seeds: 1.1 to 1.1), 1.00 times log 3 = 1.1.
        >>> check_initial_loss(task, 10).passed
        False
    """
    who = "check_initial_loss"
    _checks.check_integer(who, "num_classes", num_classes, 2)
    seeds = checked_seeds(who, seeds)
    source = check_task(who, task)
    first = BATCHES if source is None else source.first(BATCHES)
    losses = _loop.losses_at_start(task, _loop.seed_keys(jnp.asarray(seeds)), first)
    guess = float(np.log(num_classes))
    if not np.isfinite(losses).all():
        bad = (~np.isfinite(losses)).any(axis=1).sum()
        return Check(
            False,
            f"the loss before training is not finite, from {bad} of {len(seeds)} seeds.",
            "NaN or infinity in the data; log(0), a division by 0 or an overflow in the model or "
            "the loss (take `optax.softmax_cross_entropy...` of logits, not the log of a softmax).",
        )
    each = losses.mean(axis=1, dtype=float)
    ratio = each.mean() / guess
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    evidence = (
        f"the loss before training is {number(each.mean())} ({count}: {number(each.min())} to "
        f"{number(each.max())}), {ratio:.2f} times log {num_classes} = {number(guess)}."
    )
    if LOWEST <= ratio <= HIGHEST:
        return Check(True, evidence)
    return Check(False, evidence, _suspect_loss(task, ratio, first))


def _suspect_loss(task: Task, ratio: float, batches: Sequence[Batch] | int) -> str:
    """Name the usual causes of an initial loss of `ratio` times log C."""
    if ratio > HIGHEST and _is_sum(task, batches):
        return (
            "the loss is a sum over the batch, not a mean: on half of a batch it is half as high."
        )
    if ratio > HIGHEST:
        return (
            "initial weights too large, in the last layer above all (draw them with variance "
            "1/inputs, or begin with zeros there); inputs that are not standardized; a sum in "
            "place of a mean; or more classes than were said."
        )
    return (
        "fewer classes than were said; examples that are left out or padding that is averaged in "
        "as 0; weights that are trained already, and, if not, labels that leak into the inputs."
    )


def _is_sum(task: Task, batches: Sequence[Batch] | int) -> bool:
    """Whether half of a batch gives about half the loss; False if a batch cannot be halved."""
    try:
        keys = _loop.seed_keys(jnp.arange(1))
        whole, half = (
            _loop.losses_at_start(task, keys, batches, share=x).mean() for x in (1.0, 0.5)
        )
    except Exception:  # the task's own code may not accept half of a batch
        return False
    return bool(0.25 < half / whole < 0.75)


class _Memory(NamedTuple):
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


def check_overfits_small_batch(
    task: Task,
    optimizer: optax.GradientTransformation | None = None,
    *,
    steps: int = 300,
    key: Array | None = None,
    progress: bool = False,
) -> Check:
    """Train on the first batch repeatedly, and report whether the model memorizes it.

    The check passes if the accuracy on the batch reaches 99% in evaluation mode, or if the loss
    falls below a twentieth of its start in either mode. A model that cannot memorize a few examples
    has a fault that more training will not repair.

    Args:
        task: the problem. Its accuracy is used if `evaluate` accepts a batch as its data and
            returns "accuracy".
        optimizer: None for Adam at four rates from 1e-4 to 0.1, of which one must succeed,
            so that a wrong rate does not fail a sound model. The four train side by side and take
            four times the memory.
        steps: updates, ≥ 1.
        key: the random key of the run; None for `jax.random.key(0)`.
        progress: whether to show a progress bar on stderr.

    Raises:
        ModuleNotFoundError: rich, for `progress`, is not installed.
        ValueError: an argument is out of its range, or the task is not one.
    """
    who = "check_overfits_small_batch"
    _checks.check_integer(who, "steps", steps, 1)
    if optimizer is not None:
        _checks.check_transformation(who, optimizer, "optimizer")
    source = check_task(who, task)
    rates = RATES if optimizer is None else (None,)
    key = jax.random.key(0) if key is None else key
    _loop.check_key(who, key)
    example = None if source is None else source.example
    with progress_bar(who, progress, steps * len(rates)) as show:
        memory = _memorize(task, optimizer, steps, _loop.run_keys(key), example, show)
    return _judge(memory, rates, steps)


def _memorize(
    task: Task,
    tx: optax.GradientTransformation | None,
    steps: int,
    keys: Keys,
    example: Batch | None,
    show: Show,
) -> _Memory:
    """Train on the first batch, with Adam at all rates, or with `tx`."""
    batch = example
    if batch is None:
        batch = jax.jit(task.batch)(keys.batch, jnp.int32(0))
    alone = replace(task, batch=lambda key, step: batch, loader=None)
    rates = RATES if tx is None else (0.0,)
    runs = TrialRuns(
        "check_overfits_small_batch",
        Fixed(alone, adam if tx is None else lambda rate: tx),
        {"rate": float},
        keys=jax.tree.map(lambda key: key[None], keys),
        eval_every=max(1, steps // PARTS),
        lanes=len(rates),
        evaluates=False,
        on_updates=count_updates(show, "memorizing a batch"),
    )
    points = [(trial, {"rate": rate}) for trial, rate in enumerate(rates)]
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
        memories.append(_Memory(curves[trial].losses[0], before, after, moved))
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


def _judge(memory: _Memory, rates: Sequence[float | None], steps: int) -> Check:
    lanes = [_Lane.of(memory, lane, rate) for lane, rate in enumerate(rates)]
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
class _Lane:
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
    def of(cls, memory: _Memory, lane: int, rate: float | None) -> "_Lane":
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


def _suspect(best: _Lane, lanes: Sequence[_Lane], rates: Sequence[float | None]) -> str:
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
