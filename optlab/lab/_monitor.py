"""`monitor`: what an optimizer does to the gradients and to the weights, recorded in its state.

    ratio of a group = ‖Δθ‖ / ‖θ‖

Δθ are the updates as they leave, θ the parameters before them. About 1e-3 is healthy, below 1e-6
too small to matter. Norms are Euclidean, over all elements, formed so that the squares neither
overflow nor vanish; beyond the largest number of their type they read as that number, so that a
norm is Inf or NaN where values are, and only there.

An update counts as clipped where some element leaves clipping smaller in size than it arrived, by
more than rounding. A bound on single elements can change one of millions, which the norm would not
show; and a rule that multiplies by max_norm/‖g‖ = 1 rounds, which is not clipping.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import as_array, compute_dtype, scaled_norm
from optlab._types import Array, Tree

_WHO = "monitor"

Groups = Callable[[str], str] | Tree
"""A function from the path of a leaf to the name of its group, or a tree of names."""

_Path = tuple[str, ...]


class MonitorState(NamedTuple):
    """State of `monitor`; all numbers are 0 before the first update.

    Norms and ratios are float32, float64 where x64 is enabled.

    Attributes:
        inner: the states of `clipping` and of `tx`.
        count: () int32; updates made; it stops at 2³¹ − 1.
        num_clipped: () int32; those of them that clipping changed.
        gradient_norm: () float; of the gradients of the last update.
        clipped_norm: () float; of the gradients after clipping.
        update_norm: () float; of the updates that left.
        params_norm: () float; of the parameters before the update.
        update_norms: group → () float, of its updates; where there are no parameters, () zero.
        params_norms: group → () float, of its parameters; where there are none, () zero.
    """

    inner: tuple[Any, Any]
    count: Array
    num_clipped: Array
    gradient_norm: Array
    clipped_norm: Array
    update_norm: Array
    params_norm: Array
    # Not their quotient: it is Inf where weights are zero, and `skip_nonfinite` lets no number of a
    # state become so.
    update_norms: dict[str, Array]
    params_norms: dict[str, Array]


def monitor(
    tx: optax.GradientTransformation | None = None,
    *,
    clipping: optax.GradientTransformation | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Record norms, update-to-weight ratios and the share of clipped updates; change nothing.

    The updates are those of `optax.chain(clipping, tx)`, parts that are None left out. Without
    either, `monitor()` passes on what it gets, and stands where updates leave: last in a chain.
    Read the record with `monitored`.

    The gradients are what arrives. At `monitor()` updates arrive, so there the extra argument
    `grad` is taken instead where the caller passes one, as `train` and all of the lab do. It is
    taken as passed: within `accumulate` that is the last micro-batch's, within `dynamic_loss_scale`
    a scaled one. `monitor()` knows of no clipping before it, and then `clipped_norm` is
    `gradient_norm`.

    It costs some reads of each tree; and `clipping`, which must be pure, is formed twice, so that a
    compiled program rounds as it would unobserved.

    Args:
        tx: the optimizer; None for none.
        clipping: what acts on the gradients before it, such as `clip_by_global_norm(1.0)`; None for
            none.
        groups: of which parameters to tell the ratio together. A function of the path,
            "encoder/layer1/kernel", to the name of the group; or a tree of names in the structure
            of the parameters, or a prefix of it, as `optax.partition` takes. None for the first
            part of the path, which is the module's name; "params" where there is only an array.

    Returns:
        A transformation with state `MonitorState`; its `update` needs the parameters, and takes any
        extra arguments.

    Raises:
        ValueError: `tx` or `clipping` is no transformation; at init, `groups` gives a parameter no
            name; at init or update, leaves are integers; at update, the parameters are missing, or
            do not fit the gradients or the state.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> tx = monitor(optlab.sgd(0.1), clipping=optlab.clip_by_global_norm(1.0))
        >>> params = {"body": jnp.array([3.0, 4.0]), "head": jnp.array([0.5])}
        >>> gradients = {"body": jnp.array([0.0, 1.2]), "head": jnp.array([1.6])}
        >>> _, state = tx.update(gradients, tx.init(params), params)
        >>> for name, value in monitored(state).items():
        ...     print(f"{name:14} {value:.3f}")
        gradient_norm  2.000
        clipped_norm   1.000
        update_norm    0.100
        params_norm    5.025
        clipped_share  1.000
        ratio/body     0.012
        ratio/head     0.160
    """
    wraps, clips = tx is not None or clipping is not None, clipping is not None
    tx, clipping = _checked("tx", tx), _checked("clipping", clipping)
    group_of = _namer(groups)

    def init(params: Tree) -> MonitorState:
        names = sorted({group_of(path) for path, _ in _leaves("parameters", params)})

        def zeros() -> dict[str, Array] | Array:
            # A tree without leaves may be Optax's placeholder for one that has some, as in
            # `optax.tree_map_params`, where an array here stands for any groups.
            return {name: _zero() for name in names} if names else _zero()

        return MonitorState(
            inner=(clipping.init(params), tx.init(params)),
            count=jnp.zeros((), jnp.int32),
            num_clipped=jnp.zeros((), jnp.int32),
            gradient_norm=_zero(),
            clipped_norm=_zero(),
            update_norm=_zero(),
            params_norm=_zero(),
            update_norms=zeros(),
            params_norms=zeros(),
        )

    def update(
        updates: Tree, state: MonitorState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, MonitorState]:
        _checks.check_state_kind(_WHO, state, MonitorState)
        if params is None:
            _checks.fail(
                _WHO,
                "update must be given the parameters",
                "params=None",
                "call update(gradients, state, params)",
            )
        clipping_state, tx_state = state.inner
        clipped, new_clipping_state = clipping.update(updates, clipping_state, params, **extra_args)
        new_updates, tx_state = tx.update(clipped, tx_state, params, **extra_args)

        gradients = updates if wraps else _those_of(updates, extra_args.get("grad"))
        gradient_norm = _norm(_arrays("gradients", gradients))
        # A copy, for a state that is to be donated must not hold one buffer twice.
        clipped_norm, is_clipped = jnp.copy(gradient_norm), jnp.zeros((), bool)
        if clips:
            # A value that is read once more is fused otherwise by the compiler, and so rounded
            # otherwise: what is read here is formed anew, of inputs that hide that it is the same.
            hidden = jax.lax.optimization_barrier((updates, clipping_state, params))
            clipped, _ = clipping.update(*hidden, **extra_args)
            clipped_norm = _norm(_arrays("gradients", clipped))
            is_clipped = _any_smaller(clipped, updates)
        update_norms, params_norms = _norms_by_group(group_of, new_updates, params, state)
        norms = {
            "gradient_norm": gradient_norm,
            "clipped_norm": clipped_norm,
            "update_norm": _norm(jax.tree.leaves(update_norms)),
            "params_norm": _norm(jax.tree.leaves(params_norms)),
            "update_norms": update_norms,
            "params_norms": params_norms,
        }
        old = {name: getattr(state, name) for name in norms}
        num_clipped = state.num_clipped
        return new_updates, MonitorState(
            inner=(new_clipping_state, tx_state),
            count=optax.safe_increment(state.count),
            num_clipped=jnp.where(is_clipped, optax.safe_increment(num_clipped), num_clipped),
            **jax.tree.map(lambda new, old: new.astype(old.dtype), norms, old),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def monitored(opt_state: Any) -> dict[str, Array]:
    """Return what `monitor` recorded of the last update, from a state that holds one anywhere.

    It may be called under `jit` and in a `scan`, which then stacks the record of every update.

    Args:
        opt_state: the state of a transformation: of a chain, partition, masked, MultiSteps, the
            `opt_state` of a TrainState or of an `nnx.Optimizer`, or any tree of them.

    Returns:
        name → () float array; of a vmapped state, one value a lane. "gradient_norm",
        "clipped_norm", "update_norm" and "params_norm"; "clipped_share", of all updates so far,
        those that clipping changed; and "ratio/…" of each group, ‖Δθ‖/‖θ‖, which is Inf for an
        update of weights that were all zero, 0 for none, and NaN only where a number is. Before the
        first update all are 0. Empty without a `monitor`. Of several, a name is preceded by the
        label of `optax.partition` (or the keys of any dict on the way), as in "head/update_norm";
        where they share that or have none a number follows, as in "update_norm[0]", in the order
        of the chain, one that wraps others before them.
    """
    found = list(_monitors(opt_state, ()))
    together = Counter(label for label, _ in found)
    seen: Counter[str] = Counter()
    record = {}
    for label, state in found:
        before = f"{label}/" if label and len(found) > 1 else ""
        after = f"[{seen[label]}]" if together[label] > 1 else ""
        seen[label] += 1
        record |= {f"{before}{name}{after}": value for name, value in _record(state).items()}
    return record


def _monitors(state: Any, labels: tuple[str, ...]) -> Iterator[tuple[str, MonitorState]]:
    """Yield each monitor's label and state, those that others wrap after these."""
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_ours):
        if _is_ours(node):
            keys = (str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
            inside = (*labels, *keys)
            yield "/".join(inside), node
            yield from _monitors(node.inner, inside)


def _is_ours(node: Any) -> bool:
    return isinstance(node, MonitorState)


def _record(state: MonitorState) -> dict[str, Array]:
    """Return what one monitor recorded."""
    # Flax NNX wraps the arrays in variables.
    seen = {
        name: jax.tree.leaves(getattr(state, name))[0]
        for name in ("gradient_norm", "clipped_norm", "update_norm", "params_norm")
    }
    count, num_clipped = (jax.tree.leaves(x)[0] for x in (state.count, state.num_clipped))
    share = num_clipped / jnp.maximum(count, 1)
    seen["clipped_share"] = share.astype(seen["gradient_norm"].dtype)
    if isinstance(state.update_norms, Mapping):
        for name in sorted(state.update_norms):
            norms = state.update_norms[name], state.params_norms[name]
            seen[f"ratio/{name}"] = _ratio(*(jax.tree.leaves(norm)[0] for norm in norms))
    return seen


def _ratio(update_norm: Array, params_norm: Array) -> Array:
    # 0/0 is no update, and Inf/Inf one that is out of bounds.
    is_ratio = (update_norm == 0) | jnp.isinf(update_norm)
    is_ratio &= ~jnp.isnan(params_norm)
    return jnp.where(is_ratio, update_norm, update_norm / params_norm)


def _checked(name: str, part: Any) -> optax.GradientTransformationExtraArgs:
    """Return a part of the chain, which may be None for none."""
    if part is None:
        return optax.with_extra_args_support(optax.identity())
    if not all(callable(getattr(part, method, None)) for method in ("init", "update")):
        _checks.fail(
            _WHO,
            f"{name} must be an optax.GradientTransformation or None",
            repr(part),
            "pass one already made, such as optlab.adam(1e-3)",
        )
    return optax.with_extra_args_support(part)


def _namer(groups: Groups | None) -> Callable[[_Path], str]:
    """Return the function from the path of a leaf to the name of its group."""
    if groups is None:
        return lambda path: path[0] if path else "params"
    # A tree of names may be a module, which may be callable.
    if callable(groups) and jax.tree_util.all_leaves([groups]):
        return lambda path: _checked_name(groups("/".join(path)), path)
    names = dict(_paths(groups))

    def name_of(path: _Path) -> str:
        prefixes = [path[:length] for length in range(len(path) + 1)]
        named = [prefix for prefix in prefixes if prefix in names]
        return _checked_name(names[named[0]] if named else None, path)

    return name_of


def _checked_name(name: Any, path: _Path) -> str:
    if not isinstance(name, str | int):
        _checks.fail(
            _WHO,
            "groups must give each parameter the name of its group",
            f"{name} for {'/'.join(path) or 'the root'}",
        )
    return str(name)


def _paths(tree: Tree) -> list[tuple[_Path, Any]]:
    """Return the leaves of a tree, each with its path as a person would write it."""
    return [
        (tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf)
        for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
        for leaf in jax.tree.leaves(node)
    ]


def _is_variable(node: Any) -> bool:
    """Whether a node is a Flax NNX variable, below which the path would go on to its `value`."""
    return hasattr(type(node), "get_raw_value")


def _leaves(what: str, tree: Tree) -> list[tuple[_Path, Array]]:
    """Return the leaves of a tree as arrays of numbers that can be differentiated."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        _checks.check_inexact(_WHO, what, path, as_array(leaf))
    return [(path, as_array(leaf)) for path, leaf in _paths(tree)]


def _arrays(what: str, tree: Tree) -> list[Array]:
    return [leaf for _, leaf in _leaves(what, tree)]


def _those_of(updates: Tree, grad: Tree | None) -> Tree:
    """Return the gradients of what is updated here, which may be a part of the parameters."""
    if grad is None:
        return updates
    gradients = dict(jax.tree_util.tree_leaves_with_path(grad))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    if not gradients.keys() >= set(paths):
        remedy = "pass as grad the gradients that the updates were made of"
        _checks.fail_structure(_WHO, "grad", updates, grad, remedy)
    return [gradients[path] for path in paths]


def _norms_by_group(
    group_of: Callable[[_Path], str], updates: Tree, params: Tree, state: MonitorState
) -> tuple[Any, Any]:
    """Return the norms of the updates and of the parameters, in the layout of the state's."""
    names = {path: group_of(path) for path, _ in _paths(params)}
    kept = set(state.params_norms) if isinstance(state.params_norms, Mapping) else set()
    if set(names.values()) != kept:
        _checks.fail(
            _WHO,
            "the parameters must be in the groups that init found",
            f"{sorted(set(names.values()))} after {sorted(kept)}",
            "call init with the parameters that the gradients are taken of",
        )
    moved = _leaves("updates", updates)
    if not names.keys() >= {path for path, _ in moved}:
        remedy = "call update with the parameters that the gradients are taken of"
        _checks.fail_structure(_WHO, "parameters", updates, params, remedy)

    def norms(leaves: list[tuple[_Path, Array]]) -> dict[str, Array] | Array:
        if not kept:
            return _zero()
        groups: dict[str, list[Array]] = {name: [] for name in sorted(kept)}
        for path, leaf in leaves:
            groups[names[path]].append(leaf)
        return {name: _norm(group) for name, group in groups.items()}

    return norms(moved), norms(_leaves("parameters", params))


def _norm(leaves: Sequence[Array]) -> Array:
    """Return the norm of all elements; if they are finite so is it."""
    norm, scale = scaled_norm(leaves)
    largest = jnp.finfo(norm.dtype).max
    return jnp.where(jnp.isfinite(norm), jnp.minimum(norm / scale, largest), norm)


def _any_smaller(clipped: Tree, gradients: Tree) -> Array:
    """Return whether an element was clipped, a () bool; of a complex one, either of its parts."""
    found = jnp.zeros((), bool)
    pairs = zip(_arrays("gradients", clipped), _arrays("gradients", gradients), strict=True)
    for after, before in pairs:
        # A rule that divides by the norm and multiplies by the bound, both rounded to the
        # gradients' type, rounds four times, each by half of this eps.
        kept = 1 - 2 * float(jnp.finfo(before.dtype).eps)
        dtype = compute_dtype(before.dtype)
        for part in (jnp.real, jnp.imag) if jnp.iscomplexobj(before) else (jnp.real,):
            small, large = (jnp.abs(part(x)).astype(dtype) for x in (after, before))
            found |= jnp.any(small < large * kept)
    return found


def _zero() -> Array:
    return jnp.zeros((), float)
