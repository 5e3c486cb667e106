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
the batch. m is measured once, by an `old` beside which that statistic vanishes: new / old is then m
as the layer's type rounds it. A share such as 1 − 0.99 would lose six of its bits to that rounding,
and so m is taken to be the shortest decimal that rounds to the same number. A statistic that does
not change in training, with old = 0 as with old = 1, belongs to a layer that is switched to its
running statistics; it is left as it is, also for the layers after it.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, Tree
from optlab.lab import _loop
from optlab.lab._task import Batch, Task, check_task
from optlab.rules._leaf import path_names

_WHO = "refresh_batch_stats"

BATCH_SIZE = 256
"""The number of examples in a batch, if the caller passes no batches."""

Statistics = Mapping[int, Array]
"""Arrays of running statistics, by their place among the leaves of the model's state."""

Name = tuple[str, ...]
"""The names on the path to a leaf."""


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
    the key "batch_stats" (as in Linen), and elsewhere arrays of one shape beside each other that
    are named "mean" and "var". A state without any is returned unchanged. In the pass over the data
    each layer sees inputs that the layers before it normalized by the batch, as in training; one
    pass is therefore enough. The larger the batches, the nearer the result is to what evaluation
    sees. There is one compiled program, and another one for a last batch of another size.

    Args:
        task: the problem. The batches pass through its `loss` in training mode.
        params: the parameters; they do not change.
        model_state: the rest of the model's state; all but its running statistics is returned as it
            is.
        key: a random key, for the order of the examples and the noise of `Task.loss`.
        batches: the batches, each as `Task.batch` returns it, and together the training data, once;
            None to divide the split "train" into batches of a random order.
        batch_size: examples in a batch, ≥ 1, if `batches` is None.
        weight: "examples", where a batch counts by its examples, the length of its first array; or
            "batches", where all count alike, as in `torch.optim.swa_utils.update_bn`.
        variance: "pooled" for the variance of all examples together; "mean" for the mean of the
            batches' variances, as in most libraries. Both are as biased as the layer's own.
        dropout: whether dropout is on in the pass, as it is in training. False needs
            `Task.observe`, which `tasks.nnx_classifier` sets.

    Raises:
        ValueError: an argument is out of its range, there is no data, or the task is not valid.

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
    running = {place: leaves[place] for place in places_of_statistics(model_state)}
    if not running:
        return model_state
    order_key, noise = jax.random.split(key)
    if batches is None:
        batches = _divided(who, task, order_key, batch_size)
    function = task.loss if dropout else task.observe
    step = _Step(partial(_see, function, dropout, params), noise, model_state)
    totals: _Totals | None = None
    for index, batch in enumerate(batches):
        if totals is None:
            running, shares = _measured(who, step, running, batch, _names(model_state))
            totals = _Totals(_means_of_variances(model_state, running) if pooled else {})
        zeros = {place: jnp.zeros_like(x) for place, x in running.items()}
        after = step(zeros, batch, index)
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
        see: (model_state, batch, key) → model_state.
        noise: the key from which the key of each batch is made.
        model_state: the state of the model before the first batch. All in it that is no running
            statistic goes on from batch to batch, such as the random streams of dropout.
    """

    def __init__(self, see: Callable[[Tree, Batch, Array], Tree], noise: Array, model_state: Tree):
        self._see, self._noise = see, noise
        self._leaves, self._structure = jax.tree.flatten(model_state)
        self._places = set(places_of_statistics(model_state))

    def __call__(self, running: Statistics, batch: Batch, index: int) -> Statistics:
        """Return the statistics after a batch, whose noise is that of its index."""
        leaves = [running.get(place, leaf) for place, leaf in enumerate(self._leaves)]
        state = jax.tree.unflatten(self._structure, leaves)
        after = jax.tree.leaves(self._see(state, batch, jax.random.fold_in(self._noise, index)))
        for place in set(range(len(leaves))) - self._places:
            self._leaves[place] = after[place]
        return {place: after[place] for place in running}


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


def _measured(
    who: str, step: _Step, running: Statistics, batch: Batch, names: Sequence[Name]
) -> tuple[Statistics, dict[int, np.ndarray]]:
    """Return the statistics that training changes, and the share 1 − m of a batch in each."""
    at_zero, at_one = (
        step({place: jnp.full_like(x, value) for place, x in running.items()}, batch, 0)
        for value in (0, 1)
    )
    running = {
        place: x
        for place, x in running.items()
        if not (np.all(at_zero[place] == 0) and np.all(at_one[place] == 1))
    }
    large = {
        place: jnp.full_like(x, 2.0 ** (jnp.finfo(x.dtype).maxexp - 8))
        for place, x in running.items()
    }
    after = step(large, batch, 0)
    shares = {place: _share(after[place] / x) for place, x in large.items()}
    for place, share in shares.items():
        if np.any((share <= 0) | (share > 1)):
            _checks.fail(
                who,
                "a running statistic must become m·old + (1 − m)·batch with m in [0, 1)",
                f"m={1 - share.flat[0]:.3g} at {'/'.join(names[place])}",
                "keep other statistics outside of what refresh_batch_stats takes for one",
            )
    return running, shares


def _share(m: Array) -> np.ndarray:
    """Return 1 − m in float64, of the shortest decimal that rounds to m in its type."""
    m = np.asarray(m)
    values, places = np.unique(m, return_inverse=True)
    return (1 - np.array([float(str(value)) for value in values]))[places].reshape(m.shape)


def places_of_statistics(state: Tree) -> list[int]:
    """Return the places of the running statistics among the leaves of a model's state."""
    names, leaves = _names(state), jax.tree.leaves(state)
    marked = set(_places_of_batch_stats(state))
    shape_of = {name: jnp.shape(leaf) for name, leaf in zip(names, leaves, strict=True)}

    def is_statistic(place: int, name: Name) -> bool:
        other = {"mean": "var", "var": "mean"}.get(name[-1] if name else "")
        is_pair = other is not None and shape_of.get((*name[:-1], other)) == shape_of[name]
        return is_pair or place in marked or "batch_stats" in name

    return [
        place
        for place, (name, leaf) in enumerate(zip(names, leaves, strict=True))
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and is_statistic(place, name)
    ]


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


def _means_of_variances(state: Tree, running: Statistics) -> dict[int, int]:
    """Return the place of the mean beside each variance, by the place of the variance."""
    place_of = {name: place for place, name in enumerate(_names(state)) if place in running}
    return {
        place: place_of[*name[:-1], "mean"]
        for name, place in place_of.items()
        if name[-1:] == ("var",) and (*name[:-1], "mean") in place_of
    }


def _names(state: Tree) -> list[Name]:
    """Return the names on the path to each leaf."""
    return [path_names(path) for path, _ in jax.tree.leaves_with_path(state)]


def _divided(who: str, task: Task, key: Array, batch_size: int) -> Iterator[Batch]:
    """Yield the split "train" in batches of a random order, each example once."""
    data = task.splits.get("train")
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
