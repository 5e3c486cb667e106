"""Checks before training: is the initial loss right, and can the model memorize one batch?

A model that knows nothing gives each of C classes the probability 1/C. Its cross-entropy is

    L₀ = log C

Random initial weights make the outputs differ between inputs, which raises the loss somewhat. A
model that can learn from much data should also be able to memorize a single batch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._report import number
from optlab._types import Array
from optlab.lab.data import Batches
from optlab.lab.diagnosis._check import Check
from optlab.lab.diagnosis._memory import RATES, judge, memorize
from optlab.lab.tasks._check_task import check_task
from optlab.lab.tasks._task import Batch, Task
from optlab.lab.training import _loop
from optlab.lab.training._loop import Keys, checked_seeds
from optlab.lab.training._progress import progress_bar
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
    return Check(False, evidence, suspect_loss(task, ratio, first))


def suspect_loss(task: Task, ratio: float, batches: Sequence[Batch] | int) -> str:
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
    keys = _loop.run_keys(key)
    batch = first_batch(task, keys, source)
    make = adam if optimizer is None else lambda rate: optimizer
    with progress_bar(who, progress, steps * len(rates)) as show:
        memory = memorize(who, task, batch, make, rates, steps=steps, keys=keys, show=show)
    return judge(memory, rates, steps)


def first_batch(task: Task, keys: Keys, source: Batches | None) -> Batch:
    """Return the batch of the first update of a run."""
    if source is not None:
        return source.example
    return jax.jit(task.batch)(keys.batch, jnp.int32(0))
