"""Optax's optimizers, its clipping, and its optimizer state.

    sgd       v ← μv + g;                      θ ← θ − ηv, or θ − η(g + μv) (Nesterov)
    adagrad   s ← s + g², from 0.1;            θ ← θ − ηg/√(s + ε)
    rmsprop   s ← βs + (1 − β)g²;              b ← μb − ηg/√(s + ε);  θ ← θ + b
    adam      m, v averages of g, g²;          θ ← θ − η m̂/(√(v̂ + ε_root) + ε)
    adamw     m, v averages of g, g²;          θ ← θ − η (m̂/(√(v̂ + ε_root) + ε) + λθ)

η is `learning_rate`, μ `momentum`, β `decay`, ε `eps`, ε_root `eps_root`, λ `weight_decay`;
m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ) with the present decay rates, where these change. The rate
stands outside the velocity of `sgd` and *inside* that of `rmsprop`.

Arguments have Optax's names, order and defaults; every number may be a schedule. The variance of
centered RMSProp is clamped at 0, and finite gradients whose squares overflow count as 2⁶³ (Optax's
second moment stays infinite for ever) and are clipped to the bound (Optax: to 0); gradients whose
norm is not finite pass the clip unchanged. Moments are at least float32 unless `mu_dtype` or
`accumulator_dtype` ask for less, and computed in float32 even then (Optax: in their own type).

Reference: optax.readthedocs.io. Trajectories are checked against Optax 0.2.8, whose bias
corrections in float32 are themselves off by up to 2e-5.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import as_array
from optlab._types import Array, ArrayLike, DTypeLike, Hyperparam, Mask, Tree
from optlab.dialects import _carry
from optlab.dialects._common import by_power, check
from optlab.optimizers._adagrad import adagrad_rule
from optlab.optimizers._adam import adam_rule
from optlab.optimizers._momentum import momentum_rules
from optlab.optimizers._rmsprop import rmsprop_rule
from optlab.rules import learning_rate as learning_rate_rule
from optlab.rules import lift
from optlab.rules import weight_decay as weight_decay_rule
from optlab.transforms._clipping import global_norm_rule, value_rule

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "clip",
    "clip_by_global_norm",
    "from_state",
    "rmsprop",
    "sgd",
    "to_state",
]

_FIELDS: Mapping[str, Mapping[str, str]] = {
    "TraceState": {"velocity": "trace"},
    "ScaleByRssState": {"sum_of_squares": "sum_of_squares"},
    "ScaleByRmsState": {"mean_square": "nu"},
    "ScaleByRmsWithCountState": {"mean_square": "nu"},
    "ScaleByRStdDevState": {"mean_square": "nu", "mean": "mu"},
    "ScaleByRStdDevWithCountState": {"mean_square": "nu", "mean": "mu"},
    "ScaleByAdamState": {"mu": "mu", "nu": "nu"},
    "ScaleByAmsgradState": {"mu": "mu", "nu": "nu", "nu_max": "nu_max"},
    "ScaleByLionState": {"mu": "mu"},
}
"""What Optax calls the fields of our states, for each kind of its states."""


def sgd(
    learning_rate: Hyperparam,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `optax.sgd`, which is `optlab.sgd`.

    Args:
        learning_rate: η ≥ 0, outside the velocity.
        momentum: μ in [0, 1); None keeps no velocity.
        nesterov: whether to look ahead along the velocity; without momentum it has no part.
        accumulator_dtype: type of the velocity; by default the parameters', but at least float32.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.optax.sgd"
    velocity = momentum_rules(
        who,
        momentum,
        nesterov=nesterov and momentum is not None,
        accumulator_dtype=accumulator_dtype,
    )
    return lift(*velocity, learning_rate_rule(who, learning_rate))


def adagrad(
    learning_rate: Hyperparam,
    initial_accumulator_value: ArrayLike = 0.1,
    eps: Hyperparam = 1e-7,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `optax.adagrad`: ε inside the root, s from 0.1.

    Args:
        learning_rate: η ≥ 0.
        initial_accumulator_value: where s starts, ≥ 0.
        eps: ε ≥ 0, inside the root, in the unit of the squared gradients. With ε = 0 and s from 0,
            a coordinate whose gradient has always been zero is 0/0 (Optax: 0).

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.optax.adagrad"
    return lift(
        adagrad_rule(who, initial_accumulator_value, eps, eps_in_sqrt=True),
        learning_rate_rule(who, learning_rate),
    )


def rmsprop(
    learning_rate: Hyperparam,
    decay: Hyperparam = 0.9,
    eps: Hyperparam = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `optax.rmsprop`: the rate inside the velocity.

    Args:
        learning_rate: η ≥ 0.
        decay: β in [0, 1), of the average of squared gradients.
        eps: ε ≥ 0, inside the root unless `eps_in_sqrt` is False.
        initial_scale: where s starts, ≥ 0.
        eps_in_sqrt: whether to divide by √(s + ε).
        centered: whether to divide by the standard deviation.
        momentum: μ in [0, 1); None keeps no velocity.
        nesterov: whether to look ahead along the velocity; without momentum it has no part.
        bias_correction: whether to divide the averages by 1 − βᵗ.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.optax.rmsprop"
    direction = by_power(
        rmsprop_rule(who, decay, eps, initial_scale, eps_in_sqrt, centered, bias_correction)
    )
    velocity = momentum_rules(who, momentum, nesterov=nesterov and momentum is not None)
    return lift(direction, learning_rate_rule(who, learning_rate), *velocity)


def adam(
    learning_rate: Hyperparam,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `optax.adam`, which is `optlab.adam` but for changing decay rates.

    Args:
        learning_rate: η ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, outside the root.
        eps_root: ε_root ≥ 0, inside the root, in the unit of the squared gradients.
        mu_dtype: type of m; by default the parameters', but at least float32.
        nesterov: whether to look one step ahead (NAdam).

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.optax.adam"
    return lift(
        by_power(adam_rule(who, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)),
        learning_rate_rule(who, learning_rate),
    )


def adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Hyperparam = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `optax.adamw`: λ is 1e-4 where PyTorch's and optlab's is 1e-2.

    Args:
        learning_rate: η ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, outside the root.
        eps_root: ε_root ≥ 0, inside the root, in the unit of the squared gradients.
        mu_dtype: type of m; by default the parameters', but at least float32.
        weight_decay: λ ≥ 0; each update takes the share ηλ of the weights.
        mask: which parameters are decayed, as in `optlab.adamw`.
        nesterov: whether to look one step ahead (NAdam).

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.optax.adamw"
    return lift(
        by_power(adam_rule(who, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)),
        weight_decay_rule(who, weight_decay, mask),
        learning_rate_rule(who, learning_rate),
    )


def clip_by_global_norm(max_norm: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Clip as `optax.clip_by_global_norm`: g if ‖g‖ < c, else g/‖g‖·c.

    Args:
        max_norm: c ≥ 0, a bound on √(Σ g²) over all leaves.

    Returns:
        The transformation, for the front of a chain.

    Raises:
        ValueError: the bound is negative or not finite.
    """
    return lift(global_norm_rule("dialects.optax.clip_by_global_norm", max_norm))


def clip(max_delta: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Clip every element to [−max_delta, max_delta], as `optax.clip`.

    Args:
        max_delta: ≥ 0.

    Returns:
        The transformation, for the front of a chain.

    Raises:
        ValueError: the bound is negative or not finite.
    """
    check("dialects.optax.clip", max_delta=(max_delta, _checks.NONNEGATIVE))
    return lift(value_rule("dialects.optax.clip", max_delta))


def from_state(
    tx: optax.GradientTransformation, params: Tree, state: Any, *, step: int | None = None
) -> Any:
    """Return the state of `tx` that goes on where a transformation of Optax stopped.

    Args:
        tx: the transformation to go on with, of this dialect, or `optlab`'s own where it is the
            same rule (`sgd`, `adam` with or without `amsgrad`, `adamw`, RMSProp without momentum);
            also a chain or a partition, with rules in the order they have in Optax's.
        params: the parameters to go on with.
        state: Optax's state, of the same rules. Optax keeps the same for all of Adam's relatives
            (`adamax`, `radam`, `yogi`, …), so they cannot be told apart here.
        step: updates made; needed where Optax keeps no count, as in SGD at a constant rate.

    Returns:
        The state. Hyperparameters and schedules are those of `tx`.

    Raises:
        ValueError: the state does not fit; the message names the parameter and what was expected.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.ones(2)}
        >>> theirs = optax.adamw(1e-3)
        >>> _, state = theirs.update(params, theirs.init(params), params)
        >>> ours = from_state(adamw(1e-3), params, state)
        >>> print(ours[0].count, ours[0].mu["w"])
        1 [0.1 0.1]
    """
    who = "dialects.optax.from_state"
    states = _carry.states_of(who, tx, params)
    matched = iter(_match(who, states, jax.eval_shape(tx.init, params), state))
    _check_nothing_left(who, state, _has_memory)
    step = _carry.settle_step(who, _counts(state), step, "this state keeps no count of its updates")
    source: dict[int, Any] = {}

    def slot(node: Any, field: str, like: Tree) -> Tree:
        if id(node) not in source:
            source[id(node)] = next(matched)
        other = source[id(node)]
        tree = getattr(other, _FIELDS[type(other).__name__][field])
        return _fit(who, field, tree, like, square=field in _carry.SQUARES)

    return _carry.resume(who, tx, params, step, slot)


def to_state(state: Any, tx: optax.GradientTransformation, params: Tree) -> Any:
    """Return the state of a transformation of Optax that goes on where ours stopped.

    Args:
        state: of a transformation of this dialect, or as in `from_state`.
        tx: Optax's transformation, to go on with.
        params: the parameters to go on with.

    Returns:
        The state of `tx`, in its own types. What Optax's transformation has no place for, such as
        an average of parameters, is left out.

    Raises:
        ValueError: the state does not fit; the message names the parameter and what was expected.
    """
    who = "dialects.optax.to_state"
    _checks.check_transformation(who, tx)
    states = _carry.rule_states(state)
    if not states:
        _checks.fail(who, "the state must be of an optimizer of optlab", type(state).__name__)
    counts = {f"rule {i}": count for i, (_, count) in enumerate(_carry.with_counters(state))}
    step = _carry.settle_step(who, counts, None, "")
    start = tx.init(params)
    matched = _match(who, states, state, start)
    _check_nothing_left(who, start, lambda x: jnp.issubdtype(x.dtype, jnp.inexact))
    keeping = [node for node in states if _carry.slots(node)]
    ours = {id(other): node for other, node in zip(matched, keeping, strict=True)}

    def filled(node: Any) -> Any:
        if id(node) not in ours:
            return node
        new = {}
        for field, theirs in _FIELDS[type(node).__name__].items():
            tree, like = getattr(ours[id(node)], field), getattr(node, theirs)
            new[theirs] = _fit(who, theirs, tree, like, square=False)
        return node._replace(**new)

    return _carry.with_counts(jax.tree.map(filled, start, is_leaf=_is_theirs), step)


def _is_theirs(node: Any) -> bool:
    return isinstance(node, tuple) and type(node).__name__ in _FIELDS


def _their_states(state: Any) -> list[Any]:
    return [node for node in jax.tree.leaves(state, is_leaf=_is_theirs) if _is_theirs(node)]


def _counts(state: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in leaves if _carry.is_count(path, leaf)
    }


def _match(who: str, states: list[Any], ours: Any, theirs: Any) -> list[Any]:
    """Return Optax's state for each of our rules that keeps something, in the order of ours."""
    remedy = "build both with the same options, ours with optlab.dialects.optax"
    for inside, is_rmsprop in _carry.velocities(ours):
        if inside != is_rmsprop:
            _checks.fail(
                who,
                f"the rate must stand {'inside' if is_rmsprop else 'outside'} the velocity, as in "
                "Optax",
                f"a rate {'inside' if inside else 'outside'}",
                "build ours with optlab.dialects.optax",
            )
    left, matched = _their_states(theirs), []
    kinds = ", ".join(type(node).__name__ for node in left) or "nothing of the kind"
    for node in states:
        own = set(_carry.slots(node))
        if not own:
            continue
        found = [other for other in left if set(_FIELDS[type(other).__name__]) == own]
        if not found:
            needs = f"what {node.kind} keeps, {', '.join(sorted(own))}"
            _checks.fail(who, f"Optax's state must hold {needs}", kinds, remedy)
        matched.append(found[0])
        left = [other for other in left if other is not found[0]]
    if left:
        got = f"none for {', '.join(type(node).__name__ for node in left)}"
        _checks.fail(who, "every state of Optax must have its place in ours", got, remedy)
    return matched


def _has_memory(leaf: Array) -> bool:
    """Whether a leaf says what the start of a run does not; a flag may say what it will."""
    if jnp.issubdtype(leaf.dtype, jnp.number):
        return bool((leaf != 0).any())
    return not jnp.issubdtype(leaf.dtype, jnp.bool_)  # a random key


def _check_nothing_left(who: str, state: Any, matters: Callable[[Array], bool]) -> None:
    """Require that what Optax keeps beside the rules we know is nothing that matters."""
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_theirs):
        # inject_hyperparams keeps the values it was given, which are here those of our arguments.
        is_argument = any(str(key).startswith(".hyperparams") for key in path)
        if _is_theirs(node) or is_argument or _carry.is_count(path, node):
            continue
        if matters(as_array(node)):
            _checks.fail(
                who,
                "all that Optax keeps must have its place in ours",
                f"{jax.tree_util.keystr(path)}, which has none",
                "carry the optimizer alone, at the end of a window where gradients accumulate",
            )


def _fit(who: str, key: str, tree: Tree, like: Tree, *, square: bool) -> Tree:
    """Return the arrays of `tree` in the place of those of `like`."""
    given = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    expected = [_name(path) for path, _ in paths]
    for name in sorted(set(expected) ^ set(given)):
        got = "none" if name in expected else f"one of {name}"
        required = f"{key} of {name}" if name in expected else f"no {key} of {name}"
        _checks.fail(who, f"the state must hold {required}, as the parameters do", got)
    leaves = [
        _carry.fitted(who, name, key, given[name], leaf, square=square)
        for name, (_, leaf) in zip(expected, paths, strict=True)
    ]
    return structure.unflatten(leaves)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path) or "the root"
