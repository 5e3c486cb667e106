"""The running statistics of frozen parts, which no optimizer sees."""

import jax

from optlab import _checks
from optlab._types import Tree
from optlab.rules._leaf import path_name
from optlab.rules._patterns import check_all_match, check_patterns, matches


def keep_statistics(old: Tree, new: Tree, *patterns: str) -> Tree:
    """Return the new state of a model with the old one of its frozen parts.

    A frozen part in training mode still normalizes by the statistics of the batch and moves its
    running ones, which are no parameters. After each update, this puts the running ones back. In
    training the outputs of the part then still depend on the batch; where they must not, call it
    in evaluation mode, in Flax with `use_running_average=True`.

    Args:
        old: the state before the update: `batch_stats` of Flax Linen, the variables beside the
            parameters of Flax NNX, or the `model_state` of a task.
        new: the state that the update returned.
        *patterns: as for `partition`, of the paths in this state.

    Returns:
        The new state, with the old leaves where a pattern matches.

    Raises:
        ValueError: there is no pattern, one matches nothing, or the states differ in structure.

    Example:
        >>> old = {"trunk": {"mean": 0.0}, "head": {"mean": 0.0}}
        >>> new = {"trunk": {"mean": 1.0}, "head": {"mean": 1.0}}
        >>> keep_statistics(old, new, "trunk")
        {'head': {'mean': 1.0}, 'trunk': {'mean': 0.0}}
    """
    who = "groups.keep_statistics"
    patterns = check_patterns(who, patterns)
    if not patterns:
        remedy = "write keep_statistics(old, new, 'trunk'), say"
        _checks.fail(who, "there must be a pattern of the frozen parts", "none", remedy)
    if jax.tree.structure(old) != jax.tree.structure(new):
        required = "the state after the update must have the structure of the one before"
        got = f"{jax.tree.structure(new)} after {jax.tree.structure(old)}"
        _checks.fail(who, required, got, "pass the same part of the model's state twice")
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(new)]
    check_all_match(who, patterns, paths)

    def kept(path: object, before: object, after: object) -> object:
        return before if any(matches(p, path_name(path)) for p in patterns) else after

    return jax.tree_util.tree_map_with_path(kept, old, new)
