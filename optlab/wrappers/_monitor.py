"""`monitor`: the norms of gradients, updates and weights, recorded in the optimizer's state.

    ratio of a group = ‖Δθ‖ / ‖θ‖

Δθ are the final updates, θ the parameters before them. A ratio of about 1e-3 is healthy; below
1e-6 the updates are too small to matter. Norms are Euclidean, over all elements, and computed so
that the squares neither overflow nor vanish. A norm above the largest number of its type reads as
that number, so that a norm is Inf or NaN only if an element is.

An update counts as clipped if clipping makes some element smaller in size by more than rounding.
The norm would not do as a measure: a bound on single elements may change one of millions, which
does not show in the norm, and a rule that multiplies by max_norm/‖g‖ = 1 changes the norm by
rounding alone.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._jaxpr import for_loops
from optlab._tree import as_array, compute_dtype, scaled_norm
from optlab._types import Array, Tree
from optlab.wrappers._program import hidden, light_program, wait_for

_WHO = "monitor"

_LARGE = 2**22
"""The least number of parameters, 16 MB in float32, whose updates are not kept for their norm."""

Groups = Callable[[str], str] | Tree
"""A function from the path of a leaf to the name of its group, or a tree of group names."""

_Path = tuple[str, ...]


class MonitorState(NamedTuple):
    """State of `monitor`; all numbers are 0 before the first update.

    Norms and ratios are float32, or float64 where x64 is enabled.

    Attributes:
        inner: the states of `clipping` and of `tx`.
        count: () int32; the number of updates, at most 2³¹ − 1.
        num_clipped: () int32; the number of updates that clipping changed.
        gradient_norm: () float; the norm of the gradients of the last update.
        clipped_norm: () float; the norm of the gradients after clipping.
        update_norm: () float; the norm of the final updates.
        params_norm: () float; the norm of the parameters before the update.
        update_norms: group → () float, the norm of its updates; () zero if there are no parameters.
        params_norms: group → () float, the norm of its parameters; () zero if there are none.
    """

    inner: tuple[Any, Any]
    count: Array
    num_clipped: Array
    gradient_norm: Array
    clipped_norm: Array
    update_norm: Array
    params_norm: Array
    # Their quotient is not stored: it is Inf for zero weights, and `skip_nonfinite` refuses steps
    # that make a number of a state infinite.
    update_norms: dict[str, Array]
    params_norms: dict[str, Array]

    def monitored(self) -> dict[str, Array]:
        """Return what `optlab.monitored` shows of this state."""
        return _record(self)


def monitor(
    tx: optax.GradientTransformation | None = None,
    *,
    clipping: optax.GradientTransformation | None = None,
    groups: Groups | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Record norms, update-to-weight ratios and the share of clipped updates; change nothing.

    The updates are those of `optax.chain(clipping, tx)`, without the parts that are None. With
    neither part, `monitor()` passes its input on unchanged; put it last in a chain. Read the record
    with `monitored`.

    `monitor(tx)` records its input as the gradients. `monitor()` receives updates instead, and
    records the extra argument `grad` as the gradients if the caller passes one, as `train` and all
    other functions of the lab do. `grad` is recorded as it is passed: within `accumulate` it is the
    gradient of the last micro-batch, within `dynamic_loss_scale` a scaled gradient. `monitor()`
    does not see a clipping before it, so its `clipped_norm` equals `gradient_norm`.

    The cost is a few reads of each tree. `clipping` is computed twice, so that a compiled program
    rounds the updates as it does without `monitor`; `clipping` must therefore be pure. On a CPU,
    with at least 2²² parameters and an elementwise step, XLA computes the whole step twice, since
    this takes less time and memory than to keep the updates for their norm. XLA may then round the
    updates and the state of `tx` otherwise than without `monitor`, by some units in the last place.

    Args:
        tx: the optimizer; None for none.
        clipping: a transformation of the gradients before the optimizer, such as
            `clip_by_global_norm(1.0)`; None for none.
        groups: which parameters share a ratio: a function from the path, "encoder/layer1/kernel",
            to the name of the group; or a tree of names in the structure of the parameters or a
            prefix of it, as for `optax.partition`. None for the first part of the path, which is
            the module's name, or "params" if the parameters are a single array.

    Returns:
        A transformation with state `MonitorState`; its `update` needs the parameters, and accepts
        any extra arguments.

    Raises:
        ValueError: `tx` or `clipping` is not a transformation; at init, `groups` gives a parameter
            no name; at init or update, a leaf holds integers; at update, the parameters are
            missing, or do not fit the gradients or the state.

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
    is_wrapper, has_clipping = tx is not None or clipping is not None, clipping is not None
    tx, clipping = _checked("tx", tx), _checked("clipping", clipping)
    group_of = _namer(groups)

    def init(params: Tree) -> MonitorState:
        names = sorted({group_of(path) for path, _ in _leaves("parameters", params)})

        def zeros() -> dict[str, Array] | Array:
            # A tree without leaves may be Optax's placeholder for a tree with leaves, as in
            # `optax.tree_map_params`; a single array then stands for any groups.
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
        gradients = updates if is_wrapper else _those_of(updates, extra_args.get("grad"))

        def step(updates: Tree, inner: tuple[Any, Any], params: Tree) -> tuple[Tree, Tree, Any]:
            clipped, clipping_state = clipping.update(updates, inner[0], params, **extra_args)
            new_updates, tx_state = tx.update(clipped, inner[1], params, **extra_args)
            return clipped, new_updates, (clipping_state, tx_state)

        def recorded(clipped: Tree, new_updates: Tree, after: Array | None = None) -> Any:
            gradient_norm = _norm(_arrays("gradients", gradients))
            # A copy, because a donated state must not hold the same buffer twice.
            clipped_norm, is_clipped = jnp.copy(gradient_norm), jnp.zeros((), bool)
            if has_clipping:
                clipped_norm = _norm(_arrays("gradients", clipped), after)
                is_clipped = _any_smaller(clipped, updates, in_turn=after is not None)
                after = None if after is None else clipped_norm
            by_group = _norms_by_group(group_of, new_updates, params, state, after)
            return gradient_norm, clipped_norm, is_clipped, *by_group

        program = _large_program(step, updates, state.inner, params)
        if program is None:
            clipped, new_updates, inner = step(updates, state.inner, params)
            if has_clipping:
                # If the norm read the clipped gradients themselves, the compiler would fuse, and so
                # round, the updates differently. A barrier keeps it from merging the two.
                again = jax.lax.optimization_barrier((updates, state.inner[0], params))
                clipped, _ = clipping.update(*again, **extra_args)
            found = recorded(clipped, new_updates)
        else:
            (clipped, seen, _), known = program.run(hidden(updates), state.inner, params)
            found = recorded(clipped, seen, after=state.count)
            waiting = wait_for(_norm(jax.tree.leaves(found[-2:])), updates)
            _, new_updates, inner = program.again(known, waiting, state.inner, params)
        gradient_norm, clipped_norm, is_clipped, update_norms, params_norms = found
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
            inner=inner,
            count=optax.safe_increment(state.count),
            num_clipped=jnp.where(is_clipped, optax.safe_increment(num_clipped), num_clipped),
            **jax.tree.map(lambda new, old: new.astype(old.dtype), norms, old),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def monitored(opt_state: Any) -> dict[str, Array]:
    """Return what `monitor` recorded at the last update, from any state that contains its state.

    It may be called under `jit`, and in a `scan`, which then stacks the record of every update.

    Args:
        opt_state: the state of a transformation: of a chain, partition, masked, MultiSteps, the
            `opt_state` of a TrainState or of an `nnx.Optimizer`, or any tree of them.

    Returns:
        name → () float array; for a vmapped state, one value per lane. The names are
        "gradient_norm", "clipped_norm", "update_norm" and "params_norm"; "clipped_share", the share
        of all updates so far that clipping changed; and "ratio/…" for each group, ‖Δθ‖/‖θ‖. A ratio
        is Inf for an update of weights that were all zero, 0 for no update, and NaN only if a
        number is NaN. All values are 0 before the first update. A `scaling.noise_scale` adds
        "noise_scale", which is NaN while there is none. Without either the dict is empty. With
        several monitors, names are prefixed by their label in `optax.partition` (or the
        keys of any dict on the way), as in "head/update_norm". Where labels coincide or are
        missing, names are numbered in chain order, outer before inner, as in "update_norm[0]".
    """
    monitors = list(_monitors(opt_state, ()))
    kind_counts = Counter(type(state) for _, state in monitors)
    label_counts = Counter((label, type(state)) for label, state in monitors)
    numbers: Counter[tuple[str, type]] = Counter()
    record = {}
    for label, state in monitors:
        kind = type(state)
        prefix = f"{label}/" if label and kind_counts[kind] > 1 else ""
        suffix = f"[{numbers[label, kind]}]" if label_counts[label, kind] > 1 else ""
        numbers[label, kind] += 1
        record |= {f"{prefix}{name}{suffix}": value for name, value in state.monitored().items()}
    return record


def _monitors(state: Any, labels: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the label and the state of each transformation that records, outer before inner."""
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_ours):
        if _is_ours(node):
            keys = (str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
            inside = (*labels, *keys)
            yield "/".join(inside), node
            yield from _monitors(node.inner, inside)


def _is_ours(node: Any) -> bool:
    return callable(getattr(type(node), "monitored", None))


def _record(state: MonitorState) -> dict[str, Array]:
    """Return the record of one monitor."""
    # Flax NNX wraps the arrays in variables, which `tree.leaves` unwraps.
    values = {
        name: jax.tree.leaves(getattr(state, name))[0]
        for name in ("gradient_norm", "clipped_norm", "update_norm", "params_norm")
    }
    count, num_clipped = (jax.tree.leaves(x)[0] for x in (state.count, state.num_clipped))
    share = num_clipped / jnp.maximum(count, 1)
    values["clipped_share"] = share.astype(values["gradient_norm"].dtype)
    if isinstance(state.update_norms, Mapping):
        for name in sorted(state.update_norms):
            norms = state.update_norms[name], state.params_norms[name]
            values[f"ratio/{name}"] = _ratio(*(jax.tree.leaves(norm)[0] for norm in norms))
    return values


def _ratio(update_norm: Array, params_norm: Array) -> Array:
    # 0/0 means no update, and Inf/Inf an update out of bounds.
    is_ratio = (update_norm == 0) | jnp.isinf(update_norm)
    is_ratio &= ~jnp.isnan(params_norm)
    return jnp.where(is_ratio, update_norm, update_norm / params_norm)


def _checked(name: str, part: Any) -> optax.GradientTransformationExtraArgs:
    """Return a part of the chain with support for extra arguments; the identity for None."""
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
    # A module may serve as a tree of names, and modules may be callable.
    if callable(groups) and jax.tree_util.all_leaves([groups]):
        return lambda path: _checked_name(groups("/".join(path)), path)
    names = dict(_paths(groups))

    def name_of(path: _Path) -> str:
        prefixes = [path[:length] for length in range(len(path) + 1)]
        matching = [prefix for prefix in prefixes if prefix in names]
        return _checked_name(names[matching[0]] if matching else None, path)

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
    """Return the leaves of a tree, each with its path as plain names."""
    return [
        (tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf)
        for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
        for leaf in jax.tree.leaves(node)
    ]


def _is_variable(node: Any) -> bool:
    """Whether a node is a Flax NNX variable, whose own path would add a `value`."""
    return hasattr(type(node), "get_raw_value")


def _leaves(what: str, tree: Tree) -> list[tuple[_Path, Array]]:
    """Return the leaves of a tree as arrays of numbers that can be differentiated."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        _checks.check_inexact(_WHO, what, path, as_array(leaf))
    return [(path, as_array(leaf)) for path, leaf in _paths(tree)]


def _arrays(what: str, tree: Tree) -> list[Array]:
    return [leaf for _, leaf in _leaves(what, tree)]


def _those_of(updates: Tree, grad: Tree | None) -> Tree:
    """Return the gradients of the leaves of `updates`, which may be a part of the parameters."""
    if grad is None:
        return updates
    gradients = dict(jax.tree_util.tree_leaves_with_path(grad))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    if not gradients.keys() >= set(paths):
        remedy = "pass as grad the gradients that the updates were made of"
        _checks.fail_structure(_WHO, "grad", updates, grad, remedy)
    return [gradients[path] for path in paths]


def _norms_by_group(
    group_of: Callable[[_Path], str],
    updates: Tree,
    params: Tree,
    state: MonitorState,
    after: Array | None,
) -> tuple[Any, Any]:
    """Return the norms of updates and parameters by group, in the layout of the state."""
    names = {path: group_of(path) for path, _ in _paths(params)}
    stored_groups = set(state.params_norms) if isinstance(state.params_norms, Mapping) else set()
    if set(names.values()) != stored_groups:
        _checks.fail(
            _WHO,
            "the parameters must be in the groups that init found",
            f"{sorted(set(names.values()))} after {sorted(stored_groups)}",
            "call init with the parameters that the gradients are taken of",
        )
    update_leaves = _leaves("updates", updates)
    if not names.keys() >= {path for path, _ in update_leaves}:
        remedy = "call update with the parameters that the gradients are taken of"
        _checks.fail_structure(_WHO, "parameters", updates, params, remedy)

    def norms(
        leaves: list[tuple[_Path, Array]], after: Array | None = None
    ) -> dict[str, Array] | Array:
        if not stored_groups:
            return _zero()
        groups: dict[str, list[Array]] = {name: [] for name in sorted(stored_groups)}
        for path, leaf in leaves:
            groups[names[path]].append(leaf)
        found = {}
        for name, group in groups.items():
            found[name] = _norm(group, after)
            after = None if after is None else found[name]
        return found

    return norms(update_leaves, after), norms(_leaves("parameters", params))


def _large_program(step: Callable[..., Tree], updates: Tree, inner: Any, params: Tree) -> Any:
    """Return the program of a step that is computed twice, first to look at it; None for others.

    On a CPU XLA would keep copies of the updates and of the parameters in memory for the norms.
    """
    sizes = (getattr(leaf, "size", 1) for leaf in jax.tree.leaves(params))
    size = sum(size for size in sizes if isinstance(size, int))
    if size < _LARGE or for_loops.get() or jax.default_backend() != "cpu":
        return None
    return light_program(step, updates, inner, params)


def _norm(leaves: Sequence[Array], after: Array | None = None) -> Array:
    """Return the norm of all elements; it is finite if they are. `after`: see `scaled_norm`."""
    norm, scale = scaled_norm(leaves, after)
    largest = jnp.finfo(norm.dtype).max
    return jnp.where(jnp.isfinite(norm), jnp.minimum(norm / scale, largest), norm)


def _any_smaller(clipped: Tree, gradients: Tree, in_turn: bool) -> Array:
    """Return whether clipping made an element, or a part of a complex one, smaller; () bool.

    If `in_turn`, XLA compares one array after another, and keeps the results of one at a time.
    """
    is_smaller = jnp.zeros((), bool)
    pairs = zip(_arrays("gradients", clipped), _arrays("gradients", gradients), strict=True)
    for new, old in pairs:
        # A rule that divides by the norm and multiplies by the bound rounds four times, each time
        # by at most half of this eps, as both are rounded to the gradients' type.
        unclipped = 1 - 2 * float(jnp.finfo(old.dtype).eps)
        dtype = compute_dtype(old.dtype)
        for part in (jnp.real, jnp.imag) if jnp.iscomplexobj(old) else (jnp.real,):
            small, large = (jnp.abs(part(x)).astype(dtype) for x in (new, old))
            found = small < large * unclipped
            is_smaller |= jnp.any(found & ~is_smaller if in_turn else found)
    return is_smaller


def _zero() -> Array:
    return jnp.zeros((), float)
