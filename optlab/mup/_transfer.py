"""Multipliers of rate, decay and ε for each parameter, as groups and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import numpy as np
import optax

from optlab import _checks
from optlab._report import aligned, number
from optlab._tree import is_traced
from optlab._types import ArrayLike, Tree
from optlab.groups import partition
from optlab.groups._settings import Group, Modifier, Refinement
from optlab.mup._growth import KINDS, Growth, Kind, base_arrays, growths, shapes_of
from optlab.mup._rules import (
    CODINGS,
    DECAYS,
    Coding,
    Decay,
    Rule,
    decay_of,
    eps_of,
    init_of,
    rate_of,
)
from optlab.rules import AxesChoice, Leaf, meaning
from optlab.rules._leaf import checked_axes, leaf_facts
from optlab.rules._lift import Lifted
from optlab.rules._patterns import check_all_match, check_patterns, matches
from optlab.rules._roles import stack_of

_DIRECTIONS: dict[str, Rule] = {
    "scale_by_adam": "adam",
    "scale_by_lion": "lion",
    "scale_by_momentum": "sgd",
}
"""The rule table of a direction, by the name of its rule."""

_BESIDE = {"add_decayed_weights", "scale_by_learning_rate", "clip_by_global_norm", "clip_by_value"}
"""Rules that are no directions, which may stand beside one."""

_ALPHA = _checks.Domain("in [0.5, 1]", 0.5, 1)
"""Below a half the residual stream grows with the depth; above 1 there is no table."""


class Options(TypedDict, total=False):
    """The options of `by_width`, which `transfer` and `table` take, too."""

    rule: Rule | None
    decay: Decay | None
    coding: Coding
    axes: AxesChoice | None
    kinds: Mapping[str, Kind] | None
    depth_ratio: float
    alpha: float
    blocks: Sequence[str] | None
    peak_rate: ArrayLike | None
    scale_eps: bool


@dataclass(frozen=True)
class _Choices:
    """The options, checked."""

    rule: Rule | None
    decay: Decay | None
    coding: Coding
    axes: AxesChoice | None
    kinds: Mapping[str, Kind] | None
    depth_ratio: float
    alpha: float
    blocks: Sequence[str] | None
    peak_rate: ArrayLike | None
    scale_eps: bool


class Multipliers(NamedTuple):
    """What the width does to one parameter.

    Attributes:
        path: its names, joined by "/".
        base_shape: its shape in the base model.
        shape: its shape.
        kind: "input", "hidden", "output", "vector" or "fixed", by which of its sides grow.
        rule: "sgd", "adam", "lion", or "spectral" for a rule on matrices such as Muon.
        init: its first numbers, against those of the base model.
        rate: multiplies the learning rate.
        decay: multiplies λ. What the parameter shrinks by has the factor rate · decay.
        eps: multiplies ε of Adam.
    """

    path: str
    base_shape: tuple[int, ...]
    shape: tuple[int, ...]
    kind: Kind
    rule: Rule
    init: float
    rate: float
    decay: ArrayLike
    eps: float


class Table(tuple[Multipliers, ...]):
    """What the width does to each parameter: a tuple of `Multipliers`; `print` shows a table."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return the table, one line for each parameter."""
        columns = {
            "path": [one.path for one in self],
            "base": [str(one.base_shape) for one in self],
            "shape": [str(one.shape) for one in self],
            "kind": [one.kind for one in self],
            "rule": [one.rule for one in self],
        }
        for name in ("init", "rate", "decay", "eps"):
            columns[name] = [_text(getattr(one, name)) for one in self]
        return "\n".join(aligned(columns))


def _text(value: ArrayLike) -> str:
    return "traced" if is_traced(value) else number(float(np.asarray(value)))


def by_width(
    base: Tree,
    *,
    rule: Rule | None = None,
    decay: Decay | None = None,
    coding: Coding = "multiplier",
    axes: AxesChoice | None = None,
    kinds: Mapping[str, Kind] | None = None,
    depth_ratio: float = 1.0,
    alpha: float = 1.0,
    blocks: Sequence[str] | None = None,
    peak_rate: ArrayLike | None = None,
    scale_eps: bool = True,
) -> Modifier:
    """Multiply rate, decay and ε of each parameter by what μP says for its growth.

    The shapes of a base model, in which the hyperparameters were tuned, are compared with those of
    the model that is trained; where nothing has grown, rate and ε stay. The rule table is
    that of the optimizer, parameter by parameter: of SGD, Adam, AdamW, Lion, and Muon, whose
    other parameters are Adam's.

    Args:
        base: the base model, its parameters, or the shapes of them, with the structure of the
            parameters that are trained. It may have other arrays besides.
        rule: the rule table, where it cannot be seen: "adam" for a rule whose updates do not
            change when all gradients are multiplied by a number, entry by entry, such as RMSProp or
            `optax.adam`; "sgd" for one whose updates are then multiplied by it; "lion".
        decay: how decoupled weight decay grows, which must be chosen where there is some: "mup"
            (each parameter shrinks as in the base model), "nanogpt_mup" (λ stays, so that hidden
            matrices shrink less with their rates), "completep" (as "mup", but vectors do not
            decay), or "unit_scaling" (λ is the shrinking itself at the peak of the rate).
        coding: "multiplier" for a model that multiplies its logits by 1 over the growth of the
            head's input; "plain" for one that does not, whose head has a smaller rate and smaller
            first numbers. Each alone is right, and both together are wrong.
        axes: which axes of some parameters are input, output and batch, as for `optlab.muon`: a
            mapping of patterns to `optlab.rules.Axes`, or a function of path and shape.
        kinds: pattern → "input", "hidden", "output", "vector" or "fixed", where the shapes mislead.
        depth_ratio: L > 0, how many times as many layers there are as where the hyperparameters
            were tuned. The base model has the width of the tuned one and the depth of the new one.
        alpha: α in [0.5, 1]; the model multiplies each residual branch by L^(−α). 1 is CompleteP.
        blocks: patterns of the residual blocks, for depth; None for what stands in a stack of
            layers or below a name that ends in a number.
        peak_rate: the highest learning rate, for "unit_scaling" with a schedule; by default the
            learning rate.
        scale_eps: whether ε becomes smaller as the gradients do. It stays where the optimizer is
            none of optlab's own.

    Returns:
        A rule for `optlab.groups.partition`, and for `groups=` in `optlab.lab`.

    Raises:
        ValueError: an option is out of its range; at `partition`, a parameter has no counterpart in
            the base model, its axes are not known, no table is known for the optimizer, or decay is
            not chosen.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> def mlp(width):
        ...     shapes = {"stem": (4, width), "dense": (width, width), "head": (width, 3)}
        ...     return {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}
        >>> tx = optlab.groups.partition(
        ...     mlp(32), [optlab.mup.by_width(mlp(8))], optimizer=optlab.adam(0.01)
        ... )
        >>> for one in optlab.describe(tx, mlp(32)):
        ...     print(one.path, one.group, one.rates)
        dense/kernel hidden (0.0025,)
        head/kernel input_output (0.01,)
        stem/kernel input_output (0.01,)

    Reference:
        Yang, Hu, Babuschkin et al., arXiv 2203.03466 (2022).
    """
    who = "mup.by_width"
    choices = _checked(
        who,
        rule=rule,
        decay=decay,
        coding=coding,
        axes=axes,
        kinds=kinds,
        depth_ratio=depth_ratio,
        alpha=alpha,
        blocks=blocks,
        peak_rate=peak_rate,
        scale_eps=scale_eps,
    )
    shapes = shapes_of(base_arrays(who, base))

    def refine(
        leaves: Sequence[Leaf], moves: Sequence[bool], of: Sequence[tuple[Group, ...]]
    ) -> list[Refinement | None]:
        grown = growths(who, leaves, shapes, choices.axes, choices.kinds)
        rows = _rows(who, grown, of, choices)
        return _refinements(rows)

    return Modifier(refine, once="by_width")


def transfer(
    tx: optax.GradientTransformation, params: Tree, base: Tree, **options: Unpack[Options]
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer that was tuned on a base model, for a model of another width.

    This is `optlab.groups.partition` with `by_width` alone, and there the other rules of
    `optlab.groups` can stand beside it. What acts on all parameters together, such as a clip, goes
    around the result.

    Args:
        tx: the optimizer with the hyperparameters of the base model.
        params: the parameters that are trained, or their shapes.
        base: the base model, its parameters, or the shapes of them.
        **options: as for `by_width`.

    Returns:
        A transformation for these parameters.

    Raises:
        ValueError: as for `by_width`.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> base, params = ({"kernel": jnp.ones((width, width))} for width in (2, 8))
        >>> tx = optlab.mup.transfer(optlab.adam(0.4), params, base)
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> print(updates["kernel"][0, 0])
        -0.1
    """
    _checks.check_transformation("mup.transfer", tx)
    _checked("mup.transfer", **options)
    return partition(params, [by_width(base, **options)], optimizer=tx)


def table(
    tx: optax.GradientTransformation, params: Tree, base: Tree, **options: Unpack[Options]
) -> Table:
    """Return what `transfer` multiplies for each parameter; nothing is computed.

    Args:
        tx: the optimizer.
        params: the parameters that are trained, or their shapes.
        base: the base model, its parameters, or the shapes of them.
        **options: as for `by_width`.

    Returns:
        A tuple of `Multipliers`, which prints as a table.

    Raises:
        ValueError: as for `by_width`.

    Example:
        >>> import jax, jax.numpy as jnp, optlab
        >>> def mlp(width):
        ...     return {
        ...         "stem": {"kernel": jnp.zeros((64, width)), "bias": jnp.zeros(width)},
        ...         "dense": {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)},
        ...         "head": {"kernel": jnp.zeros((width, 10)), "bias": jnp.zeros(10)},
        ...     }
        >>> base, wide = (jax.eval_shape(lambda: mlp(width)) for width in (128, 4096))
        >>> print(optlab.mup.table(optlab.adamw(1e-3), wide, base, decay="mup"))
        path          base        shape         kind    rule  init   rate    decay  eps
        dense/bias    (128,)      (4096,)       vector  adam  1      1       1      0.0312
        dense/kernel  (128, 128)  (4096, 4096)  hidden  adam  0.177  0.0312  32     0.0312
        head/bias     (10,)       (10,)         fixed   adam  1      1       1      1
        head/kernel   (128, 10)   (4096, 10)    output  adam  1      1       1      0.0312
        stem/bias     (128,)      (4096,)       vector  adam  1      1       1      0.0312
        stem/kernel   (64, 128)   (64, 4096)    input   adam  1      1       1      0.0312
    """
    who = "mup.table"
    _checks.check_transformation(who, tx)
    choices = _checked(who, **(_defaults() | options))
    leaves = facts(who, params)
    shapes = shapes_of(base_arrays(who, base))
    grown = growths(who, leaves, shapes, choices.axes, choices.kinds)
    rows = _rows(who, grown, [(Group(optimizer=tx),)] * len(leaves), choices)
    return Table(row for row in rows if row is not None)


def facts(who: str, params: Tree) -> list[Leaf]:
    """Return the facts of all parameters."""
    with_paths = jax.tree_util.tree_leaves_with_path(params)
    for path, array in with_paths:
        if not hasattr(array, "shape"):
            got = f"{type(array).__name__} at {_checks.path_text(path)}"
            remedy = "pass nnx.state(model, nnx.Param) or eqx.filter(model, eqx.is_array), say"
            _checks.fail(who, "params must hold arrays, or their shapes", got, remedy)
    return [leaf_facts(who, path, array, None) for path, array in with_paths]


def _defaults() -> Options:
    return {
        "rule": None,
        "decay": None,
        "coding": "multiplier",
        "axes": None,
        "kinds": None,
        "depth_ratio": 1.0,
        "alpha": 1.0,
        "blocks": None,
        "peak_rate": None,
        "scale_eps": True,
    }


def _checked(who: str, **options: Unpack[Options]) -> _Choices:
    """Return the options, once they are known to be in their ranges."""
    if unknown := [name for name in options if name not in _defaults()]:
        required = f"the options must be among {', '.join(_defaults())}"
        _checks.fail(who, required, ", ".join(unknown))
    choices = _Choices(**(_defaults() | options))
    tables = ("sgd", "adam", "lion")
    if choices.rule not in (None, *tables):
        required = f"rule must be one of {', '.join(map(repr, tables))}, or None"
        remedy = (
            "leave it out for optlab.muon; write 'adam' for a rule whose updates do not change "
            "when all gradients are multiplied by a number, entry by entry, as RMSProp's"
        )
        _checks.fail(who, required, f"rule={choices.rule!r}", remedy)
    _checks.check_choice(who, "decay", choices.decay, (None, *DECAYS))
    _checks.check_choice(who, "coding", choices.coding, CODINGS)
    if choices.kinds is not None and not isinstance(choices.kinds, Mapping):
        required = f"kinds must be a mapping of patterns to {', '.join(KINDS)}"
        _checks.fail(who, required, repr(choices.kinds), "write kinds={'head': 'output'}, say")
    _checks.check_number(who, "depth_ratio", choices.depth_ratio, _checks.POSITIVE)
    _checks.check_number(who, "alpha", choices.alpha, _ALPHA)
    if choices.blocks is not None:
        check_patterns(who, choices.blocks)
    if choices.peak_rate is not None:
        _checks.check_number(who, "peak_rate", choices.peak_rate, _checks.POSITIVE)
    _checks.check_flag(who, "scale_eps", choices.scale_eps)
    return choices


class _Reading(NamedTuple):
    """What is seen of the optimizer of one parameter.

    Attributes:
        rule: its rule table.
        norm: for a rule on matrices, the spectral norm of its updates.
        decays: whether it has weight decay.
        rate: its learning rate; None if it cannot be seen, or is a schedule.
        has_eps: whether it has an ε that can be multiplied.
    """

    rule: Rule
    norm: Any
    decays: bool
    rate: ArrayLike | None
    has_eps: bool


def _rows(
    who: str, grown: Sequence[Growth], of: Sequence[tuple[Group, ...]], choices: _Choices
) -> list[Multipliers | None]:
    """Return the multipliers of each parameter; None for what is frozen."""
    in_blocks = _in_blocks(who, [growth.leaf for growth in grown], choices)
    rows = []
    for growth, groups, is_inside in zip(grown, of, in_blocks, strict=True):
        depth = choices.depth_ratio if is_inside else 1.0
        own = [_row(who, growth, group, choices, depth) for group in groups]
        if any(one[5:] != own[0][5:] for one in own[1:]):
            required = f"the slices of {growth.leaf.path} must have optimizers of one kind"
            _checks.fail(who, required, " and ".join(one.rule for one in own))
        rows.append(own[0] if own else None)
    return rows


def _row(who: str, growth: Growth, group: Group, choices: _Choices, depth: float) -> Multipliers:
    reading = _read(who, growth, group, choices)
    if choices.decay is None and reading.decays:
        required = "decay must be chosen where there is weight decay"
        remedy = (
            "write decay='mup' to let each parameter shrink as in the base model; 'nanogpt_mup', "
            "'completep' or 'unit_scaling' for other treatments; or set weight_decay=0.0"
        )
        _checks.fail(who, required, f"decay=None for {growth.leaf.path}", remedy)
    where = (depth, choices.alpha)
    in_multiplier = rate_of(reading.rule, growth, "multiplier", *where, reading.norm)
    rate = rate_of(reading.rule, growth, choices.coding, *where, reading.norm)
    decay = choices.decay if reading.decays else None
    peak = _peak(who, reading, choices) if decay == "unit_scaling" else None
    return Multipliers(
        growth.leaf.path,
        growth.base,
        growth.leaf.shape,
        growth.kind,
        reading.rule,
        init_of(growth, choices.coding),
        rate,
        decay_of(decay, growth, in_multiplier, rate, depth, choices.alpha, peak),
        eps_of(growth, choices.coding, *where) if reading.has_eps else 1.0,
    )


def _peak(who: str, reading: _Reading, choices: _Choices) -> ArrayLike:
    """Return the highest learning rate."""
    peak = reading.rate if choices.peak_rate is None else choices.peak_rate
    if peak is None:
        required = "peak_rate must be given for decay='unit_scaling' with a schedule"
        _checks.fail(who, required, "None", "pass the highest value of the schedule")
    return peak if is_traced(peak) else float(np.asarray(peak))


def _read(who: str, growth: Growth, group: Group, choices: _Choices) -> _Reading:
    """Return what is seen of the optimizer of one parameter."""
    tx, leaf = group.optimizer, growth.leaf
    if not isinstance(tx, Lifted):
        if choices.rule is None:
            required = "rule must be given for what is not one of optlab's own optimizers alone"
            remedy = (
                "put a chain or a wrapper around the result, as in optax.chain(clip, "
                "mup.transfer(…)), and write rule='adam' for optax.adam, say"
            )
            _checks.fail(who, required, f"rule=None for {leaf.path}", remedy)
        return _Reading(choices.rule, None, choices.decay is not None, None, False)
    touching = [rule for rule in tx.rules if _touches(rule, leaf)]
    norm = next((rule.update_norm for rule in touching if rule.update_norm), None)
    table: Rule = "spectral" if norm else _table_of(who, leaf, touching, choices.rule)
    values = {
        name: group.hyperparams.get(name, parameter.value)
        for rule in touching
        for name, parameter in rule.hyperparams.items()
    }
    decays = [value for name, value in values.items() if _ends(name, "weight_decay")]
    rates = [value for name, value in values.items() if _ends(name, "learning_rate")]
    has_decay = any(callable(value) or is_traced(value) or value != 0 for value in decays)
    if has_decay and table != "sgd":
        _check_decoupled(who, leaf, touching)
    if table == "spectral" and not leaf.is_linear:
        required = (
            f"the axes of {leaf.path}, which were named for the optimizer, must be named here"
        )
        _checks.fail(who, required, "no input and no output", "pass the same axes= to both")
    rate = None if not rates or callable(rates[-1]) else rates[-1] * group.lr_mult
    has_eps = choices.scale_eps and table == "adam" and any(_ends(name, "eps") for name in values)
    return _Reading(table, norm, has_decay, rate, has_eps)


def _table_of(who: str, leaf: Leaf, touching: Sequence[Any], asked: Rule | None) -> Rule:
    """Return the rule table of a parameter, by the rules that touch it."""
    names = [rule.kind or rule.who for rule in touching]
    known: list[Rule] = sorted({_DIRECTIONS[name] for name in names if name in _DIRECTIONS})
    others = [name for name in names if name not in {*_DIRECTIONS, *_BESIDE}]
    if asked is not None:
        if known and known != [asked]:
            required = f"rule must be that of the optimizer of {leaf.path}"
            _checks.fail(who, required, f"{asked!r} for {' and '.join(known)}", "leave it out")
        return asked
    if others or len(known) > 1:
        required = f"the rule of {leaf.path} must be SGD, Adam, AdamW, Lion or Muon"
        remedy = (
            "if its updates do not change when all gradients are multiplied by a number, entry by "
            "entry, as RMSProp's, pass rule='adam'; otherwise no table is known, so tune each width"
        )
        _checks.fail(who, required, ", ".join(others or names), remedy)
    return known[0] if known else "sgd"


def _touches(rule: Any, leaf: Leaf) -> bool:
    """Whether a rule of the optimizer touches a parameter, by the axes that the rule knows of."""
    if rule.where is None:
        return True
    names = meaning(leaf.path, leaf.shape)
    leaf = replace(leaf, axes=names.axes, names=names, asked=False)
    axes = rule.axes_of(leaf.path, leaf.shape) if rule.axes_of is not None else None
    if axes is not None:
        axes = checked_axes(rule.who, leaf.path, leaf.shape, axes)
        leaf = replace(leaf, axes=axes, asked=True)
    return rule.where(leaf)


def _ends(name: str, ending: str) -> bool:
    """Whether a hyperparameter is the one of this name, or that of a part such as Muon's Adam."""
    return name == ending or name.endswith(f"_{ending}")


def _check_decoupled(who: str, leaf: Leaf, touching: Sequence[Any]) -> None:
    """Require that decay stands behind the direction; a penalty does not shrink as gradients do."""
    for rule in touching:
        if rule.update_norm or rule.kind in _DIRECTIONS:
            return
        if rule.kind == "add_decayed_weights":
            required = f"the weight decay of {leaf.path} must stand behind the direction"
            got = "a penalty in front of it, which does not become smaller as the gradients do"
            _checks.fail(who, required, got, "use decoupled decay, as optlab.adamw has it")


def _in_blocks(who: str, leaves: Sequence[Leaf], choices: _Choices) -> list[bool]:
    """Return whether each parameter stands in a residual block; nowhere if the depth is the same.

    Raises:
        ValueError: a pattern of blocks matches nothing, or none stands in a block.
    """
    if choices.blocks is not None:
        check_all_match(who, choices.blocks, [leaf.path for leaf in leaves])
        inside = [any(matches(one, leaf.path) for one in choices.blocks) for leaf in leaves]
    else:
        inside = [
            stack_of(leaf.path) is not None
            or any(name[-1:].isdigit() for name in leaf.path.split("/")[:-1])
            for leaf in leaves
        ]
    if choices.depth_ratio == 1:
        return [False] * len(leaves)
    if not any(inside):
        required = "the names must tell which parameters stand in residual blocks"
        got = f"none among {', '.join(leaf.path for leaf in leaves[:5])}, …"
        _checks.fail(who, required, got, "pass blocks=['block.*'], say")
    return inside


def _refinements(rows: Sequence[Multipliers | None]) -> list[Refinement | None]:
    """Return the rows as refinements; those with the same multipliers share one name."""
    kinds: dict[Any, set[str]] = {}
    keys = [None if row is None else _key(row) for row in rows]
    for row, key in zip(rows, keys, strict=True):
        if row is not None and key != (1.0, 1.0, 1.0):
            kinds.setdefault(key, set()).add(row.kind)
    labels: dict[Any, str] = {}
    for key, own in kinds.items():
        name = "_".join(kind for kind in KINDS if kind in own)
        same = sum(label.rstrip("0123456789") == name for label in labels.values())
        labels[key] = f"{name}{same + 1}" if same else name
    return [
        None
        if row is None or key not in labels
        else Refinement(labels[key], rate=row.rate, decay=row.decay, eps=row.eps)
        for row, key in zip(rows, keys, strict=True)
    ]


def _key(row: Multipliers) -> tuple[Any, ...]:
    """Return what tells multipliers apart; of a traced decay, the rate on which it depends."""
    return row.rate, "traced" if is_traced(row.decay) else row.decay, row.eps
