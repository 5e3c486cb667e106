"""Compute the running statistics of batch normalization anew, for weights that no update made.

    running mean      μ̄ = Σ_b w_b μ_b
    running variance  Σ_b w_b (v_b + (μ_b − μ̄)²)    or    Σ_b w_b v_b

μ_b and v_b are mean and variance of batch b, w_b is its share of all examples (or 1/number of
batches). The first variance is that of all examples together; the second, which other libraries
keep, leaves out how the means of batches differ. An average of weights needs this: in training it
never saw a batch, and the running statistics belong to other weights.

No layer has to be known for it. In training, a layer normalizes by the batch, and then sets

    new = m · old + (1 − m) · batch,

so that its output does not depend on `old`. With old = 0, `new` is (1 − m) times the statistic of
the batch. m is measured by an `old` beside which that statistic vanishes: new / old is then m as
float32 rounds it. A share such as 1 − 0.99 would lose six of its bits to that rounding, and so m is
taken to be the shortest decimal that rounds to the same number. Half-precision statistics have
neither the bits nor the range for this, and pass through the layers as float32. m is measured on
the first batch. Where something else in the state changes from batch to batch, m may depend on it,
as 1 − 1/n does in a cumulative average, and m is measured on each batch.

A statistic that does not change in training, with old = 0 as with old = 1, belongs to a layer that
is switched to its running statistics; it is left as it is, also for the layers after it.
"""

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab.tasks._check_task import check_in_memory, check_task
from optlab.lab.tasks._task import Batch, Task
from optlab.lab.training import _loop
from optlab.rules._leaf import path_names

_WHO = "refresh_batch_stats"

BATCH_SIZE = 256
"""The number of examples in a batch, if the caller passes no batches."""

Statistics = Mapping[int, Array]
"""Arrays of running statistics, by their place among the leaves of the model's state."""

Name = tuple[str, ...]
"""The names on the path to a leaf."""

KINDS = {"mean": "mean", "var": "variance", "variance": "variance"}
"""What a running statistic is, by a word of its name."""

LARGE = 2.0**120
"""A value of a running statistic in float32 beside which that of a batch vanishes."""

WORD = re.compile("[A-Z]?[a-z]+")
"""A word of a name such as running_mean or runningMean."""


def refresh_batch_stats(
    task: Task,
    params: Tree,
    model_state: Tree,
    *,
    key: Array,
    batches: Iterable[Batch] | None = None,
    batch_size: int = BATCH_SIZE,
    weight: str = "examples",
    variance: str = "pooled",
    dropout: bool = True,
) -> Tree:
    """Return a model's state with the running statistics that these parameters have over the data.

    The running statistics are the `nnx.BatchStat` variables of a Flax NNX model, everything under
    the key "batch_stats" (as in Linen), and elsewhere arrays of one shape beside each other whose
    names have the words "mean" and "var" or "variance" and are alike otherwise, such as
    "running_mean" and "running_var". A state without any is returned unchanged. A warning names
    other arrays that training changes as it changes running statistics.

    In the pass over the data each layer sees inputs that the layers before it normalized by the
    batch, as in training; one pass is therefore enough. The larger the batches, the nearer the
    result is to what evaluation sees. There is one compiled program, and another one for a last
    batch of another size. A batch passes twice where the state holds more than running statistics
    that training changes, such as counts.

    Args:
        task: the problem. The batches pass through its `loss` in training mode.
        params: the parameters; they do not change.
        model_state: the rest of the model's state; all but its running statistics is returned as it
            is.
        key: a random key, for the order of the examples and the noise of `Task.loss`.
        batches: the batches, each as `Task.batch` returns it, and together the training data, once;
            None to divide the examples that `shuffled_batches` draws from, or else the split
            "train", into batches of a random order.
        batch_size: examples in a batch, ≥ 1, if `batches` is None.
        weight: "examples", where a batch counts by its examples, the length of its first array; or
            "batches", where all count alike, as in `torch.optim.swa_utils.update_bn`.
        variance: "mean" for the weighted mean of the variances v_b that the layer adds to its
            running statistics, as in most libraries; "pooled" to add the weighted mean of
            (μ_b − μ̄)². If the layer divides by the number of examples n_b, as Flax does, the
            second is the variance of all examples together. If it divides by n_b − 1, as PyTorch
            does, it is not: each v_b is then larger by the factor n_b/(n_b − 1), and stays so.
        dropout: whether dropout is on in the pass, as it is in training. False needs
            `Task.observe`, which `tasks.nnx_classifier` sets.

    Raises:
        ValueError: an argument is out of its range, there is no data, the task is not valid, a
            running statistic is no moving average or is rounded to half precision within the
            layer, or for `variance="pooled"` one has no name that tells what it is, or a variance
            has no mean beside it.

    Example:
        A task whose state has the mean and the variance of its batches:

        >>> def loss(x, state, batch, key):
        ...     new = {"mean": batch.mean(0), "var": batch.var(0)}
        ...     return x**2, jax.tree.map(lambda old, b: 0.9 * old + 0.1 * b, state, new)
        >>> task = Task(
        ...     name="norm",
        ...     init=lambda key: (jnp.array(1.0), {"mean": jnp.zeros(()), "var": jnp.ones(())}),
        ...     loss=loss,
        ...     batch=lambda key, step: jnp.array([1.0, 3.0]),
        ...     evaluate=lambda x, state, data: {"loss": x**2},
        ... )
        >>> params, state = task.init(jax.random.key(0))
        >>> batches = [jnp.array([1.0, 3.0]), jnp.array([5.0, 9.0, 10.0])]
        >>> state = refresh_batch_stats(task, params, state, key=jax.random.key(0), batches=batches)
        >>> print(f"{state['mean']:.4f} {state['var']:.4f}")
        5.6000 11.8400

    Reference:
        Izmailov et al., UAI (2018).
    """
    check_task(_WHO, task)
    check_in_memory(_WHO, task)
    _loop.check_key(_WHO, key)
    _checks.check_choice(_WHO, "weight", weight, ("examples", "batches"))
    _checks.check_choice(_WHO, "variance", variance, ("pooled", "mean"))
    _checks.check_integer(_WHO, "batch_size", batch_size, 1)
    if not _checks.check_flag(_WHO, "dropout", dropout) and task.observe is None:
        required = "dropout must be True for a task without Task.observe"
        remedy = "set observe=(params, model_state, batch) → model_state, with dropout off"
        _checks.fail(_WHO, required, "dropout=False", remedy)
    return refreshed(
        _WHO,
        task,
        params,
        model_state,
        key,
        batches=batches,
        batch_size=batch_size,
        by_examples=weight == "examples",
        pooled=variance == "pooled",
        dropout=dropout,
    )


def refreshed(
    who: str,
    task: Task,
    params: Tree,
    model_state: Tree,
    key: Array,
    *,
    batches: Iterable[Batch] | None = None,
    batch_size: int = BATCH_SIZE,
    by_examples: bool = True,
    pooled: bool = True,
    dropout: bool = True,
) -> Tree:
    """Return what `refresh_batch_stats` does, of arguments that are checked already.

    Args:
        who: the public name that errors begin with.
        task: the problem.
        params: the parameters.
        model_state: the rest of the model's state.
        key: a random key.
        batches: as in `refresh_batch_stats`.
        batch_size: as in `refresh_batch_stats`.
        by_examples: whether a batch counts by its examples.
        pooled: whether how the means of batches differ is a part of the variance.
        dropout: whether dropout is on.
    """
    leaves, structure = jax.tree.flatten(model_state)
    places = places_of_statistics(model_state)
    order_key, noise = jax.random.split(key)
    function = task.loss if dropout else task.observe
    see = partial(_see, function, dropout, params)
    _warn_of_others(who, see, model_state, task, noise)
    if not places:
        return model_state
    if batches is None:
        batches = _divided(who, task, order_key, batch_size)
    step = _Step(who, see, noise, model_state)
    totals: _Totals | None = None
    for index, batch in enumerate(batches):
        if totals is None:
            running = _trained(step, batch)
            shares = _shares(who, step, running, batch, index)
            totals = _Totals(_means_of_variances(who, step.names, running) if pooled else {})
        elif step.changed:
            shares = _shares(who, step, running, batch, index)
        after = step(dict.fromkeys(running, 0), batch, index)
        step.advance()
        statistics = {p: np.asarray(x, np.float64) / shares[p] for p, x in after.items()}
        totals.add(statistics, _examples(who, batch) if by_examples else 1)
    if totals is None:
        _checks.fail(who, "batches must hold at least one batch", "none")
    for place, x in totals.statistics.items():
        leaves[place] = jnp.asarray(x, leaves[place].dtype)
    return jax.tree.unflatten(structure, leaves)


@partial(jax.jit, static_argnums=(0, 1))
def _see(
    function: Callable, dropout: bool, params: Tree, state: Tree, batch: Batch, key: Array
) -> Tree:
    """Return the model's state after a batch in training mode.

    It is compiled once for a function of a task, whatever the parameters.
    """
    return function(params, state, batch, key)[1] if dropout else function(params, state, batch)


class _Step:
    """The pass of one batch through a model: its statistics before → its statistics after.

    Args:
        who: the public name that errors begin with.
        see: (model_state, batch, key) → model_state.
        noise: the key from which the key of each batch is made.
        model_state: the state of the model before the first batch.

    Attributes:
        names: the names on the path to each leaf of the state.
        places: the places of the running statistics.
        changed: whether the last batch changed anything else in the state but random keys.
    """

    def __init__(
        self, who: str, see: Callable[[Tree, Batch, Array], Tree], noise: Array, model_state: Tree
    ):
        self._who, self._see, self._noise = who, see, noise
        self._leaves, self._structure = jax.tree.flatten(model_state)
        self._after = self._leaves
        self.names, self.places = _names(model_state), places_of_statistics(model_state)
        self.changed = False

    def __call__(self, running: Mapping[int, float], batch: Batch, index: int) -> Statistics:
        """Return the statistics after a batch, whose noise is that of its index.

        Args:
            running: what each statistic is filled with before; others are what they were at first.
            batch: the batch.
            index: its number, from 0.
        """
        leaves = list(self._leaves)
        for place, value in running.items():
            own = jnp.result_type(leaves[place])
            wide = jnp.promote_types(own, jnp.float32)
            leaves[place] = jnp.full(jnp.shape(leaves[place]), value, wide)
        state = jax.tree.unflatten(self._structure, leaves)
        try:
            state = self._see(state, batch, jax.random.fold_in(self._noise, index))
        except TypeError:  # such as that of a loop whose state must keep its type
            for place in running:
                own = jnp.result_type(self._leaves[place])
                if own != leaves[place].dtype:
                    self._refuse_type(place, own)
            raise
        self._after = jax.tree.leaves(state)
        for place in running:
            own = jnp.result_type(self._after[place])
            if jnp.finfo(own).bits < 32:
                self._refuse_type(place, own)
        return {place: self._after[place] for place in running}

    def advance(self) -> None:
        """Go on to the next batch with what the last pass made of the rest of the state.

        So the random streams of dropout go on from batch to batch, and counts do.
        """
        rest = set(range(len(self._leaves))) - set(self.places)
        self.changed = any(not _same(self._leaves[place], self._after[place]) for place in rest)
        for place in rest:
            self._leaves[place] = self._after[place]

    def _refuse_type(self, place: int, dtype: np.dtype) -> NoReturn:
        _checks.fail(
            self._who,
            "a running statistic must be free to pass through the model as float32",
            f"{dtype} at {'/'.join(self.names[place])}",
            "keep the model's running statistics in float32",
        )


def _same(before: Array, after: Array) -> bool:
    """Return whether a leaf is what it was; random keys count as the same."""
    if jnp.issubdtype(jnp.result_type(before), jax.dtypes.prng_key):
        return True
    return np.array_equal(before, after)


class _Totals:
    """The statistics of all batches so far, in float64.

    Args:
        mean_of: the place of the mean that belongs to each variance, by the variance's place; empty
            to leave out how the means differ.

    Attributes:
        statistics: the statistics over all batches.
    """

    def __init__(self, mean_of: Mapping[int, int]):
        self._mean_of, self._weight = mean_of, 0.0
        self.statistics: dict[int, np.ndarray] = {}

    def add(self, batch: Mapping[int, np.ndarray], weight: float) -> None:
        """Take in the statistics of one batch."""
        self._weight += weight
        share = weight / self._weight
        old = self.statistics or batch
        new = {place: old[place] + share * (x - old[place]) for place, x in batch.items()}
        for place, mean in self._mean_of.items():
            new[place] += share * (1 - share) * (batch[mean] - old[mean]) ** 2
        self.statistics = new


def _trained(step: _Step, batch: Batch) -> list[int]:
    """Return the places of the statistics that training changes."""
    at_zero, at_one = (step(dict.fromkeys(step.places, value), batch, 0) for value in (0, 1))
    return [
        place
        for place in step.places
        if not (np.all(at_zero[place] == 0) and np.all(at_one[place] == 1))
    ]


def _shares(
    who: str, step: _Step, running: Sequence[int], batch: Batch, index: int
) -> dict[int, np.ndarray]:
    """Return the share 1 − m of a batch in each running statistic."""
    after = step(dict.fromkeys(running, LARGE), batch, index)
    shares = {place: _share(x / jnp.asarray(LARGE, x.dtype)) for place, x in after.items()}
    for place, share in shares.items():
        outside = ~((share > 0) & (share <= 1))  # so is NaN
        if np.any(outside):
            _checks.fail(
                who,
                "a running statistic must become m·old + (1 − m)·batch with m in [0, 1)",
                f"m={1 - share[outside][0]:.3g} at {'/'.join(step.names[place])}",
                "keep other statistics outside of what refresh_batch_stats takes for one",
            )
    return shares


def _share(m: Array) -> np.ndarray:
    """Return 1 − m in float64, of the shortest decimal that rounds to m in its type."""
    m = np.asarray(m)
    values, places = np.unique(m, return_inverse=True)
    return (1 - np.array([float(str(value)) for value in values]))[places].reshape(m.shape)


def places_of_statistics(state: Tree) -> list[int]:
    """Return the places of the running statistics among the leaves of a model's state."""
    names, leaves = _names(state), jax.tree.leaves(state)
    marked = set(_places_of_batch_stats(state))
    shapes: dict[tuple[Name, str], list[tuple[int, ...]]] = {}
    for name, leaf in zip(names, leaves, strict=True):
        shapes.setdefault(_pair_and_kind(name), []).append(jnp.shape(leaf))

    def is_statistic(place: int, name: Name) -> bool:
        pair, kind = _pair_and_kind(name)
        other = {"mean": "variance", "variance": "mean"}.get(kind)
        is_pair = jnp.shape(leaves[place]) in shapes.get((pair, other), ())
        return is_pair or place in marked or "batch_stats" in name

    return [
        place
        for place, (name, leaf) in enumerate(zip(names, leaves, strict=True))
        if _is_float(leaf) and is_statistic(place, name)
    ]


def _pair_and_kind(name: Name) -> tuple[Name, str]:
    """Return what a mean and its variance have in common in their names, and which of them it is.

    The kind is "mean", "variance", or "" for any other leaf.
    """
    for place in reversed(range(len(name))):
        words = WORD.findall(name[place])
        kinds = [KINDS[word.lower()] for word in words if word.lower() in KINDS]
        if kinds:
            rest = "_".join(word for word in words if word.lower() not in KINDS)
            return (*name[:place], rest, *name[place + 1 :]), kinds[-1]
    return name, ""


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _places_of_batch_stats(state: Tree) -> Iterator[int]:
    """Yield the places of the leaves that are in an `nnx.BatchStat`."""
    nnx = sys.modules.get("flax.nnx")  # a state of Flax NNX has imported it
    if nnx is None:
        return
    place = 0
    for node in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.BatchStat)):
        size = len(jax.tree.leaves(node))
        if isinstance(node, nnx.BatchStat):
            yield from range(place, place + size)
        place += size


def _means_of_variances(who: str, names: Sequence[Name], running: Sequence[int]) -> dict[int, int]:
    """Return the place of the mean beside each variance, by the place of the variance."""
    place_of = {_pair_and_kind(names[place]): place for place in running}
    mean_of = {}
    for place in running:
        pair, kind = _pair_and_kind(names[place])
        if kind == "variance" and (pair, "mean") in place_of:
            mean_of[place] = place_of[pair, "mean"]
        elif kind != "mean":
            _checks.fail(
                who,
                "each running statistic must be named a mean, or a variance with a mean beside it",
                "/".join(names[place]),
                'rename them, or take the mean of each by refresh_batch_stats(variance="mean")',
            )
    return mean_of


def _warn_of_others(who: str, see: Callable, model_state: Tree, task: Task, key: Array) -> None:
    """Warn of arrays that training changes as a moving average, but that are not recognized."""
    leaves, structure = jax.tree.flatten(model_state)
    others = set(range(len(leaves))) - set(places_of_statistics(model_state))
    others = [place for place in sorted(others) if _is_float(leaves[place])]
    if not others:
        return
    batch = task.batch(key, jnp.int32(0))

    def after(value: float) -> list[np.ndarray]:
        changed = list(leaves)
        for place in others:
            changed[place] = jnp.full_like(leaves[place], value)
        new = jax.tree.leaves(see(jax.tree.unflatten(structure, changed), batch, key))
        return [np.asarray(new[place], np.float64) for place in others]

    names = _names(model_state)
    moving = []
    for place, *values in zip(others, *map(after, (0, 1, 2)), strict=True):
        first, second = np.diff(values, axis=0)
        bits = float(jnp.finfo(jnp.result_type(leaves[place])).eps)
        # Roundings of values of about 2; m = 1 leaves an array as it is.
        straight = np.allclose(first, second, rtol=0, atol=16 * bits)
        if straight and np.all((first > 0) & (first < 1 - 16 * bits)):
            moving.append("/".join(names[place]))
    if moving:
        warnings.warn(
            f"{who}: {', '.join(moving)} change in training as moving averages do, and are left as "
            "they are; if they are running statistics, keep them under the key batch_stats, or "
            "name them mean and var",
            stacklevel=3,
        )


def _names(state: Tree) -> list[Name]:
    """Return the names on the path to each leaf."""
    return [path_names(path) for path, _ in jax.tree.leaves_with_path(state)]


def _divided(who: str, task: Task, key: Array, batch_size: int) -> Iterator[Batch]:
    """Yield the training examples in batches of a random order, each example once."""
    # The split may be a part of them.
    data = getattr(task.batch, "examples", task.splits.get("train"))
    remedy = "pass batches=[…], each as Task.batch returns it"
    if data is None:
        names = ", ".join(map(repr, task.splits)) or "no splits"
        _checks.fail(who, 'the task must have a split "train"', names, remedy)
    like = jax.eval_shape(task.batch, key, jnp.int32(0))
    lengths = {len(leaf) if np.ndim(leaf) else None for leaf in jax.tree.leaves(data)}
    if jax.tree.structure(data) != jax.tree.structure(like) or len(lengths) != 1:
        got = f"{jax.tree.structure(data)} for {jax.tree.structure(like)}"
        _checks.fail(
            who, 'the split "train" must be a tree like what Task.batch returns', got, remedy
        )
    data = jax.tree.map(np.asarray, data)
    order = np.asarray(jax.random.permutation(key, lengths.pop()))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        yield jax.tree.map(lambda array, rows=rows: array[rows], data)


def _examples(who: str, batch: Batch) -> int:
    """Return the number of examples in a batch, the length of its first array."""
    leaves = jax.tree.leaves(batch)
    if not leaves or not np.ndim(leaves[0]):
        required = "the first array of a batch must have an axis of examples"
        got = f"shape {np.shape(leaves[0])}" if leaves else "a batch without arrays"
        _checks.fail(who, required, got, 'pass weight="batches" to count all batches alike')
    return len(leaves[0])
