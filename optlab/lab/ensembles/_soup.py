"""Soups: one model whose weights are the mean of those of several models; and the way between two.

    uniform   θ = Σ_m θ_m / M, over all M models
    greedy    models in the order of their score, the best first; a model is kept where the score of
              the mean of all kept ones rises strictly with it

The score is that of the validation split, so that the test split stays unseen. A mean makes sense
where no barrier lies between the models: where the loss along the line between two of them,

    L((1 − t)·θ_a + t·θ_b),    0 ≤ t ≤ 1,

stays near the straight line between its ends. That is so for models that were fine-tuned from the
same weights. Between runs from different initializations it rises to that of guessing, although
both ends are good.

Reference: Wortsman et al., ICML (2022) for soups; Frankle, Dziugaite, Roy, Carbin, ICML (2020) for
the barrier.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._report import number
from optlab._types import Array, Tree
from optlab.lab.ensembles._ensemble import Ensemble, Member
from optlab.lab.ensembles._members import stack
from optlab.lab.tasks._check_task import check_in_memory, check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training._batch_stats import refreshed
from optlab.lab.training._results import Run

Model = Member | Run | tuple[Tree, Tree]
"""What has parameters and a model's state."""


@dataclass(frozen=True)
class Soup:
    """One model from several.

    Attributes:
        params: the mean of the parameters of the chosen models.
        model_state: the state of the first chosen model, with the running statistics that the mean
            has over the training data.
        chosen: the places of the models in the mean, in the order in which they were added.
        score: the task's score of the mean, on the validation split.
        scores: that of each model alone.
    """

    params: Tree = field(repr=False)
    model_state: Tree = field(repr=False)
    chosen: tuple[int, ...]
    score: float
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Barrier:
    """The loss along the straight line between two models.

    Attributes:
        positions: (points,) float, from 0 at the first model to 1 at the second.
        losses: (points,) float, the validation loss at each.
        height: how far the loss rises above the straight line between its ends, ≥ 0.
    """

    positions: np.ndarray
    losses: np.ndarray
    height: float

    def __str__(self) -> str:
        line = ", ".join(number(float(loss)) for loss in self.losses)
        return f"loss along the line: {line}; barrier {number(self.height)}"


def soup(
    task: Task,
    models: Ensemble | Sequence[Model],
    *,
    how: str = "uniform",
    different_starts: bool | None = None,
    seed: int = 0,
) -> Soup:
    """Average the weights of several models; a model with batch normalization is refreshed.

    Args:
        task: the problem. Its validation split judges, and running statistics are computed anew on
            its training data.
        models: an `Ensemble`; or runs of `train`, or pairs (params, model_state), of one structure.
        how: "uniform" for the mean of all; "greedy" to add only models that raise the validation
            score, beginning with the best.
        different_starts: True to average even runs from different initializations, whose mean is
            usually useless. An ensemble knows how its members began. Of a list of models nothing is
            known: pass False if they began from the same weights.
        seed: the seed for the order of the examples when running statistics are computed, ≥ 0.

    Raises:
        ValueError: the models began from different initializations, and `different_starts` is not
            True; the message has the barrier. Or an argument is out of its range.

    Example:
        >>> parabola = Task(
        ...     name="parabola",
        ...     init=lambda key: (jnp.array(2.0), ()),
        ...     loss=lambda x, state, batch, key: (x**2, state),
        ...     batch=lambda key, step: (),
        ...     evaluate=lambda x, state, data: {"loss": x**2},
        ... )
        >>> models = [(jnp.array(x), ()) for x in (1.5, -1.0, 4.0)]
        >>> greedy = soup(parabola, models, how="greedy", different_starts=False)
        >>> greedy.chosen, greedy.score, float(greedy.params)
        ((1, 0), 0.0625, 0.25)

    Reference:
        Wortsman et al., ICML (2022).
    """
    who = "soup"
    check_task(who, task)
    check_in_memory(who, task)
    _checks.check_choice(who, "how", how, ("uniform", "greedy"))
    _checks.check_choice(who, "different_starts", different_starts, (True, False, None))
    _checks.check_integer(who, "seed", seed, 0)
    members = _members(who, task, models.members if isinstance(models, Ensemble) else models)
    if not different_starts:
        _check_starts(who, task, models, members, different_starts, seed)
    refresh = partial(_refreshed, who, task, seed)
    params = stack([member.params for member in members])
    scores = [_score(task, member) for member in members]

    def mean(chosen: Sequence[int]) -> Member:
        average = _mean(params, np.isin(np.arange(len(members)), chosen))
        return refresh(Member(average, members[chosen[0]].model_state))

    if how == "uniform":
        chosen = list(range(len(members)))
        best = mean(chosen)
        score = _score(task, best)
    else:
        sign = -1 if task.maximize else 1
        # A score that is not a number stands last, and improves nothing.
        order = sorted(range(len(members)), key=lambda m: (np.isnan(scores[m]), sign * scores[m]))
        chosen, best, score = order[:1], members[order[0]], scores[order[0]]
        for place in order[1:]:
            candidate = mean([*chosen, place])
            candidate_score = _score(task, candidate)
            if sign * candidate_score < sign * score:
                chosen, best, score = [*chosen, place], candidate, candidate_score
    return Soup(best.params, best.model_state, tuple(chosen), score, tuple(scores))


def barrier(task: Task, a: Model, b: Model, *, points: int = 11, seed: int = 0) -> Barrier:
    """Return the loss along the straight line between two models, on the validation split.

    Args:
        task: the problem. Where the model has batch normalization, its running statistics are
            computed anew at each point inside, on the training data.
        a: a run of `train`, or a pair (params, model_state).
        b: another one, of the same structure.
        points: points on the line, with its ends, ≥ 3.
        seed: the seed for the order of the examples when running statistics are computed, ≥ 0.

    Raises:
        ValueError: an argument is out of its range, or the models differ in structure.

    Example:
        >>> hill = Task(
        ...     name="hill",
        ...     init=lambda key: (jnp.array(1.0), ()),
        ...     loss=lambda x, state, batch, key: ((x**2 - 1) ** 2, state),
        ...     batch=lambda key, step: (),
        ...     evaluate=lambda x, state, data: {"loss": (x**2 - 1) ** 2},
        ... )
        >>> print(barrier(hill, (jnp.array(-1.0), ()), (jnp.array(1.0), ()), points=5))
        loss along the line: 0, 0.562, 1, 0.562, 0; barrier 1

    Reference:
        Frankle et al., ICML (2020).
    """
    who = "barrier"
    check_task(who, task)
    check_in_memory(who, task)
    _checks.check_integer(who, "points", points, 3)
    _checks.check_integer(who, "seed", seed, 0)
    return _barrier(who, task, *_members(who, task, [a, b]), points, seed)


def _barrier(who: str, task: Task, a: Member, b: Member, points: int, seed: int) -> Barrier:
    positions = np.linspace(0, 1, points)
    losses = []
    for position in positions:
        end = {0.0: a, 1.0: b}.get(float(position))
        member = end or Member(_between(a.params, b.params, position), a.model_state)
        member = member if end else _refreshed(who, task, seed, member)
        losses.append(_metric(task, member, "loss"))
    losses = np.array(losses)
    straight = losses[0] + positions * (losses[-1] - losses[0])
    return Barrier(positions, losses, float(np.max(losses - straight)))


def _check_starts(
    who: str, task: Task, models: Any, members: Sequence[Member], said: bool | None, seed: int
) -> None:
    """Require that all runs began from the same weights; of a list the caller has to say so."""
    if not isinstance(models, Ensemble):
        if said is None:
            _checks.fail(
                who,
                "different_starts must say whether the models began from different initializations",
                f"different_starts=None for a {type(models).__name__} of models",
                "pass False for fine-tunes of the same weights",
            )
    elif not models.shared_start:
        between = _barrier(who, task, members[0], members[1], 5, seed)
        _checks.fail(
            who,
            "models must have begun from the same initialization",
            f"an ensemble of different ones; from {models.labels[0]} to {models.labels[1]} the "
            f"{between}",
            "combine the predictions instead, or pass different_starts=True",
        )


def _members(who: str, task: Task, models: Any) -> list[Member]:
    """Return models as members; they must have the structure of the task's own."""
    if isinstance(models, str) or not isinstance(models, Sequence) or not models:
        required = "models must be an Ensemble, or a list of models with at least one"
        _checks.fail(who, required, f"{type(models).__name__} {models!r:.60}")
    members = []
    expected = jax.eval_shape(task.init, jax.random.key(0))
    for place, model in enumerate(models):
        pair = (model.params, model.model_state) if isinstance(model, Run) else model
        if not isinstance(pair, tuple) or len(pair) != 2:
            required = "a model must be a run of train, or a pair (params, model_state)"
            _checks.fail(who, required, f"{type(model).__name__} as model {place}")
        if _form(pair) != _form(expected):
            required = "a model must have the arrays that the task's init makes"
            _checks.fail(who, required, f"others in model {place}")
        members.append(Member(*pair))
    return members


def _form(pair: tuple[Tree, Tree]) -> tuple:
    """Return what must agree for weights to be averaged."""
    leaves, structure = jax.tree.flatten(tuple(pair))
    return structure, [jnp.shape(leaf) for leaf in leaves]


def _refreshed(who: str, task: Task, seed: int, member: Member) -> Member:
    key = jax.random.key(seed)
    return member._replace(model_state=refreshed(who, task, *member, key))


def _score(task: Task, member: Member) -> float:
    return _metric(task, member, task.score)


def _metric(task: Task, member: Member, name: str) -> float:
    data = task.splits["validation"] if task.splits else None
    return float(jax.jit(task.evaluate)(*member, data)[name])


@jax.jit
def _mean(params: Tree, chosen: Array) -> Tree:
    """Return the mean of some of the stacked trees, formed in at least float32."""

    def of_leaf(leaf: Array) -> Array:
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        where = chosen.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.mean(wide, axis=0, where=where).astype(leaf.dtype)

    return jax.tree.map(of_leaf, params)


@jax.jit
def _between(a: Tree, b: Tree, position: Array) -> Tree:
    """Return the point between two trees, at a share of the way from the first."""

    def of_leaves(a: Array, b: Array) -> Array:
        wide = jnp.promote_types(a.dtype, jnp.float32)
        return ((1 - position) * a.astype(wide) + position * b.astype(wide)).astype(a.dtype)

    return jax.tree.map(of_leaves, a, b)
