"""Reading averages of the parameters from a state, of every kind and however deeply nested."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._tree import is_traced
from optlab._types import Array, Tree
from optlab.rules._leaf import is_cut, slices_of
from optlab.rules._state import is_rule_state
from optlab.transforms._power_average import NEAR, WIDTH, widths_of


def averaged_params(state: Any, params: Tree | None = None, *, width: float | None = None) -> Tree:
    """Return the averaged parameters from a state in which an average is nested anywhere.

    The average is one that `params_ema`, `params_average`, `params_power_ema` or `params_lawa`
    keeps. The result has buffers of its own: it survives the state's donation, and may be donated
    itself.

    Args:
        state: the state of a transformation: a chain, partition, masked, MultiSteps, the
            `opt_state` of a TrainState or of an `nnx.Optimizer`, or any tree of them.
        params: the parameters of the model, in the structure they had at `init`. Where given, the
            average takes their types, and theirs are the leaves that no average covers because
            `optax.partition` or `optax.masked` kept them from it.
        width: which relative width of `params_power_ema`, in (0, 1/√12], where it keeps several.

    Returns:
        The average in the structure of the parameters; without `params`, in float32 (float64 for
        double parameters) and with `optax.MaskedNode` where no average is kept; a stack of which
        `optlab.groups.partition` freezes some slices is then a dictionary of slices. Where groups
        of parameters have averages of their own, they are joined. Before anything is averaged it is
        the parameters given to `init`: of `params_ema`, and of the others under `jax.jit`, where
        nobody can see that there is nothing yet.

    Raises:
        ValueError: the state holds no average, several of the same parameters, one of nothing, or
            one of another structure than `params`; `width` is no number in its range, is none of
            those that are kept, or is missing where there are several.
    """
    who = "averaged_params"
    nodes = averages_in(state)
    if not nodes:
        _checks.fail(
            who,
            "the state must hold an average of the parameters",
            type(state).__name__,
            "put optlab.params_ema(0.999) last in the chain",
        )
    if width is not None and not any(is_power_ema(node) for node in nodes):
        kinds = ", ".join(sorted({node.kind for node in nodes}))
        _checks.fail(who, "width must be left out but for params_power_ema", f"a state of {kinds}")
    if width is not None:
        width = float(_checks.check_number(who, "width", width, WIDTH, kinds="a number"))
    average = joined(who, [_READ[node.kind](who, node, width) for node in nodes])
    if params is None:
        return average
    try:
        return jax.tree.map(
            _filled, average, params, is_leaf=lambda node: _is_masked(node) or is_cut(node)
        )
    except ValueError:
        _checks.fail(
            who,
            "params must have the structure of the parameters given to init",
            f"{jax.tree.structure(params)} for an average of {jax.tree.structure(average)}",
            "in Flax NNX pass nnx.as_pure of both the state and the parameters",
        )


def _filled(own: Any, param: Array) -> Array:
    """Return the average of one parameter, and the parameter where none of it is kept."""
    if is_cut(own):
        parts = [_filled(part, param[place]) for place, part in slices_of(own)]
        return jnp.concatenate(parts)
    return _copy_of(param) if _is_masked(own) else jnp.array(own, param.dtype, copy=True)


def averages_in(state: Any) -> list[Any]:
    """Return the states in a tree that hold averages of the parameters."""
    return [node for node in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(node)]


def is_power_ema(node: Any) -> bool:
    """Whether a node of a tree is the state of `params_power_ema`."""
    return is_rule_state(node) and node.kind == "params_power_ema"


def joined(who: str, averages: Sequence[Tree]) -> Tree:
    """Return copies of the averages of groups of parameters in one tree.

    Each has `MaskedNode` where the others have arrays.
    """
    masked = {
        path
        for average in averages
        for path, node in jax.tree_util.tree_leaves_with_path(average, is_leaf=_is_masked)
        if _is_masked(node)
    }

    def join(path: Any, *parts: Any) -> Any:
        present = [part for part in parts if not _is_masked(part)]
        if len(present) > 1:
            _checks.fail(
                who,
                "the state must hold one average of each parameter",
                f"{len(present)} of {jax.tree_util.keystr(path) or 'the same'}",
                "pass the part of the state that holds the one you want",
            )
        return _copy_of(present[0]) if present else parts[0]

    return jax.tree_util.tree_map_with_path(
        join, *averages, is_leaf=lambda path, node: path in masked, is_leaf_takes_path=True
    )


def require_any(who: str, node: Any, count: Any) -> None:
    """Require that something has been averaged, where its number is known."""
    numbers = [number for number in jax.tree.leaves(count) if not is_traced(number)]
    if any((np.asarray(number) == 0).any() for number in numbers):
        _checks.fail(
            who,
            f"{node.kind} must have averaged the parameters of an update",
            "none so far",
            "read the average after the first update that it takes",
        )


def _ema(who: str, node: Any, width: float | None) -> Tree:
    return node.average


def _uniform(who: str, node: Any, width: float | None) -> Tree:
    require_any(who, node, node.num_averaged)
    return node.average


def _power_ema(who: str, node: Any, width: float | None) -> Tree:
    require_any(who, node, node.step)
    widths = widths_of(node)
    if width is None and len(widths) == 1:
        return getattr(node, *widths.values())
    nearest = min(widths, key=lambda own: abs(own - (width or 0.0)))
    if width is None or abs(nearest - width) > NEAR * nearest:
        _checks.fail(
            who,
            f"width must be one of {', '.join(map(str, widths))}",
            f"width={width}",
            "optlab.reconstruct makes averages of other widths" if width is not None else "",
        )
    return getattr(node, widths[nearest])


def _lawa(who: str, node: Any, width: float | None) -> Tree:
    require_any(who, node, node.filled)
    (filled,) = jax.tree.leaves(node.filled)

    def mean(recent: Array) -> Array:
        # Before the first is taken all are copies of the parameters given to `init`.
        number = jnp.maximum(jnp.asarray(filled), 1)
        axis = number.ndim  # axes of a batch of states go first
        taken = jnp.arange(recent.shape[axis]) < number[..., None]

        def spread(x: Array) -> Array:
            return x.reshape(x.shape + (1,) * (recent.ndim - x.ndim))

        parts = recent / spread(number[..., None]).astype(recent.dtype)
        return jnp.sum(jnp.where(spread(taken), parts, 0), axis)

    return jax.tree.map(mean, node.recent)


_READ: dict[str, Callable[[str, Any, float | None], Tree]] = {
    "params_average": _uniform,
    "params_ema": _ema,
    "params_lawa": _lawa,
    "params_power_ema": _power_ema,
}
"""How to read the average from the states of each kind."""


def _is_ours(node: Any) -> bool:
    return is_rule_state(node) and node.kind in _READ


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _copy_of(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
