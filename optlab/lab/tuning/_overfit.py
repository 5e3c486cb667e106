"""Step 2: can the model memorize a few examples? If not, tries say what is guilty.

    rate             more and higher rates, over more updates
    initialization   the same weights, with each matrix scaled to the variance 2 / inputs
    capacity         two examples in place of the batch
    loss             the loss of the batch beside the mean of the losses of its examples; a small
                     step down the gradient; the accuracy beside the loss

The first try that changes the outcome names the cause.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab._types import Tree
from optlab.lab.diagnosis._memory import MEMORIZED, RATES, Lane, Memory, judge, memorize
from optlab.lab.diagnosis._model_checks import first_batch
from optlab.lab.tasks._check_task import check_task
from optlab.lab.tasks._task import Batch, Task
from optlab.lab.training._loop import Keys, run_keys
from optlab.lab.tuning._procedure import WHO, Outcome, Procedure
from optlab.lab.tuning._result import FAILED, PASSED, WARNING, Chart, Series, Step, Table
from optlab.lab.tuning._space import plain_values
from optlab.lab.tuning._texts import number
from optlab.optimizers import adam

STEP = Step("overfit a batch", "Can the model memorize a few examples?")

STEPS, QUICK_STEPS = 300, 150
"""Updates on the batch."""

MORE_RATES = (1e-6, 1e-5, 0.3, 1.0)
"""Rates that are tried when those of `RATES` fail."""

FEW = 2
"""Examples that are left to tell too small a model from other faults."""

SAME = 1e-3
"""How far the loss of a batch and the mean of the losses of its examples may lie apart; sums of
float32 differ by 1e-6."""

ALONE = 16
"""The most examples whose losses are taken one by one."""

DRAWS = 8
"""The keys over which both are averaged, as dropout that stays on differs between them."""

FLOOR = 1.1
"""How near the loss must come to the least value of a softmax that is taken twice."""

FALLEN, FEW_RIGHT = 0.3, 0.5
"""The loss has fallen, and yet the metrics are poor, below these shares."""


class _Try(NamedTuple):
    """One try: what was changed, what came of it, and whether the batch was memorized."""

    what: str
    outcome: str
    passed: bool
    moved: bool = True  # whether any parameter changed


def overfit(procedure: Procedure) -> Outcome:
    """Train on one batch; if it is not memorized, find out why."""
    task = procedure.make_task(plain_values(procedure.task))
    keys = run_keys(jax.random.key(procedure.seed))
    batch = first_batch(task, keys, check_task(WHO, task))
    steps = QUICK_STEPS if procedure.quick else STEPS

    def attempt(task: Task, batch: Batch, rates=RATES, steps: int = steps) -> Memory:
        procedure.meter.count(0, len(rates))
        memory = memorize(
            WHO, task, batch, adam, rates, steps=steps, keys=keys, show=_counting(procedure)
        )
        return memory

    memory = attempt(task, batch)
    check = judge(memory, RATES, steps)
    chart = Chart(
        "Loss on one batch, with Adam",
        "update",
        "loss",
        [
            Series(f"rate {rate:g}", list(range(steps)), memory.losses[lane].tolist())
            for lane, rate in enumerate(RATES)
        ],
        y_log=bool((memory.losses[np.isfinite(memory.losses)] > 0).all()),
    )
    sentence = f"{check.evidence[0].upper()}{check.evidence[1:]}"
    best = _best(memory, RATES)
    if check.passed:
        verdict, advice = _of_success(procedure, task, best, memory, check.advice)
        step = replace(STEP, verdict=verdict, evidence=sentence, advice=advice, charts=[chart])
        return Outcome(step, {"passed": verdict != FAILED})
    tries, cause = _find_cause(task, batch, keys, memory, attempt, steps)
    table = Table(
        "What was tried",
        {
            "changed": [one.what for one in tries],
            "outcome": [one.outcome for one in tries],
            "memorized": ["yes" if one.passed else "no" for one in tries],
        },
    )
    step = replace(
        STEP, verdict=FAILED, evidence=sentence, advice=cause, charts=[chart], tables=[table]
    )
    return Outcome(step, {"passed": False})


def _counting(procedure: Procedure) -> Callable[[int, str], None]:
    before = 0

    def show(done: int, text: str) -> None:
        nonlocal before
        procedure.meter.count(done - before)
        before = done

    return show


def _best(memory: Memory, rates: Any) -> Lane:
    lanes = [Lane.of(memory, lane, rate) for lane, rate in enumerate(rates)]
    return min(lanes, key=lambda lane: (not lane.passed, -lane.accuracy, lane.share))


def _of_success(
    procedure: Procedure, task: Task, best: Lane, memory: Memory, doubt: str
) -> tuple[str, str]:
    """Return the verdict on a model that memorized its batch: the loss may still be wrong."""
    classes = procedure.done["initial loss"].facts["classes"]
    if best.has_accuracy and best.accuracy < FEW_RIGHT:
        if not jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))[1]):
            return FAILED, (
                f"The loss is guilty: it was memorized, and yet only {best.accuracy:.0%} of the "
                "same labels are right in evaluation. The loss trains something other than the "
                "metrics judge: labels that are shifted or shuffled in one of the two, or "
                "another axis."
            )
        return WARNING, f"Suspect {doubt}"
    if classes is not None and best.has_accuracy and best.accuracy >= MEMORIZED:
        floor = float(np.log(1 + (classes - 1) / np.e))
        lowest = float(np.nanmin(memory.losses))
        if floor * 0.999 <= lowest <= floor * FLOOR:
            return FAILED, (
                "The loss is guilty: every label is right, and yet the loss stays at "
                f"{number(lowest)}, the least value of a softmax that is taken twice, "
                f"{number(floor)}. Pass logits to the cross-entropy, not probabilities."
            )
    return (WARNING, f"Suspect {doubt}") if doubt else (PASSED, "")


def _find_cause(
    task: Task, batch: Batch, keys: Keys, memory: Memory, attempt: Callable, steps: int
) -> tuple[list[_Try], str]:
    """Try changes until one of them names the cause; return all tries, and the cause."""
    tries: list[_Try] = []
    best = _best(memory, RATES)
    if not np.isfinite(best.share):
        return tries, (
            "The loss is guilty: it is not finite at any rate. Look for NaN or infinity in the "
            "data, and for log(0), a division by 0 or an overflow in the loss."
        )
    if len(best.unmoved) == best.num_leaves:
        tries.append(_attempt(_SCALED, attempt, with_usual_weights(task), batch))
        if tries[-1].moved:
            return tries, _INITIALIZATION
        return tries, (
            "The loss is guilty: no parameter ever changed. The gradient is stopped "
            "(`stop_gradient`, argmax, integers), or the loss does not depend on the parameters."
        )
    if fault := _fault_of_loss(task, batch, keys, best, tries):
        return tries, fault
    tries.append(_attempt(_SCALED, attempt, with_usual_weights(task), batch))
    if tries[-1].passed:
        return tries, _INITIALIZATION
    tries.append(
        _attempt(
            "other rates, three times the updates", attempt, task, batch, MORE_RATES, 3 * steps
        )
    )
    if tries[-1].passed:
        return tries, (
            "The rate is guilty: the batch is memorized at another rate or with more updates. "
            "Look at the scale of inputs and outputs, which sets the rate that is needed."
        )
    few = _first_rows(batch, FEW)
    if few is not None:
        tries.append(_attempt(f"{FEW} examples in place of the batch", attempt, task, few))
        if tries[-1].passed:
            return tries, (
                f"The capacity is guilty: {FEW} examples are memorized and the batch is not. "
                "Take a larger model; or look for equal inputs with different labels."
            )
    if best.unmoved:
        names = ", ".join(best.unmoved[:3])
        return tries, (
            f"{len(best.unmoved)} of {best.num_leaves} parameters never changed ({names}): they "
            "are cut off from the loss, or dead."
        )
    return tries, (
        "The loss is the likeliest to be guilty, as neither rate, initialization nor fewer "
        "examples help: a wrong axis, labels shuffled against the inputs, or inputs that say "
        "nothing of the targets."
    )


_SCALED = "each matrix scaled to variance 2 / inputs"

_INITIALIZATION = (
    "The initialization is guilty: with the same matrices scaled to the variance 2 / inputs, the "
    "model learns. Draw them with that variance (He), or 1 / inputs for tanh."
)


def _attempt(what: str, attempt: Callable, task: Task, batch: Batch, *options: Any) -> _Try:
    memory = attempt(task, batch, *options)
    rates = options[0] if options else RATES
    best = _best(memory, rates)
    moved = len(best.unmoved) < best.num_leaves
    accuracy = f"accuracy {best.accuracy:.0%}, " if best.has_accuracy else ""
    text = f"{accuracy}loss {number(best.start)} to {number(best.end)}"
    text += f" at the rate {number(best.rate)}" if moved else "; no parameter changed"
    return _Try(what, text, best.passed, moved)


def _fault_of_loss(
    task: Task, batch: Batch, keys: Keys, best: Lane, tries: list[_Try]
) -> str | None:
    """Try the loss itself; return what is wrong with it, or None."""
    params, model_state = jax.jit(task.init)(keys.init)

    @jax.jit
    def loss(params: Tree, batch: Batch, noise: jax.Array) -> jax.Array:
        return task.loss(params, model_state, batch, noise)[0]

    if best.has_accuracy and best.share < FALLEN and best.accuracy < FEW_RIGHT:
        return (
            f"The loss is guilty: it fell to {best.share:.0%} of its start while only "
            f"{best.accuracy:.0%} of the labels became right. It trains something other than the "
            "metrics judge: labels that are shifted in one of the two, or another axis or sign."
        )
    if best.end < 0 <= best.start:
        return (
            f"The loss is guilty: it fell below 0, to {number(best.end)}, and the model did not "
            "memorize the batch. Look at its sign."
        )
    rows = [row for at in range(ALONE) if (row := _first_rows(batch, 1, at)) is not None]
    if len(rows) > 1 and not jax.tree.leaves(model_state):
        few = _first_rows(batch, len(rows))
        noises = jax.random.split(keys.noise, DRAWS)
        try:
            whole = np.array([loss(params, few, noise) for noise in noises])
            alone = np.array([[loss(params, row, noise) for row in rows] for noise in noises])
        except Exception:  # the task's own code may not accept a batch of one
            return None
        differences = whole - alone.mean(axis=1)
        whole, alone = float(whole.mean()), float(alone.mean())
        outcome = f"{number(whole)} together, {number(alone)} as the mean of each alone"
        tries.append(_Try(f"the loss of {len(rows)} examples", outcome, False))
        noise = 4 * differences.std(ddof=1) / DRAWS**0.5
        if abs(differences.mean()) > noise + SAME * max(abs(whole), abs(alone)):
            return (
                f"The loss is guilty: for {len(rows)} examples it is {number(whole)}, and the mean "
                f"of their losses one by one is {number(alone)}. It mixes examples: arrays (n, 1) "
                "and (n,) that broadcast to (n, n), an axis of the batch that is summed or "
                "normalized over, or a sum in place of a mean."
            )
    return None


def with_usual_weights(task: Task) -> Task:
    """Return the task whose matrices begin with the variance 2 / inputs, drawn anew if constant."""

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        params, model_state = task.init(key)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.fold_in(key, 1), max(1, len(leaves)))
        return structure.unflatten(map(_scaled_leaf, keys, leaves)), model_state

    return replace(task, init=init)


def _scaled_leaf(key: jax.Array, leaf: jax.Array) -> jax.Array:
    if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    inputs = leaf.size // leaf.shape[-1]
    wanted = (2 / inputs) ** 0.5
    deviation = leaf.std()
    drawn = wanted * jax.random.normal(key, leaf.shape, leaf.dtype)
    scaled = leaf * (wanted / jnp.maximum(deviation, jnp.finfo(leaf.dtype).tiny))
    return jnp.where(deviation > 0, scaled, drawn)


def _first_rows(batch: Batch, count: int, at: int = 0) -> Batch | None:
    """Return some examples of a batch; None if its arrays do not share their first axis."""
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or lengths == {()} or next(iter(lengths))[0] <= max(count - 1, at):
        return None
    return jax.tree.map(lambda leaf: leaf[at : at + count], batch)
