"""What an optimizer does with each parameter, as a table."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from optlab import _checks
from optlab._tree import is_traced
from optlab._types import Tree
from optlab.rules._leaf import longest_in, path_name, path_names
from optlab.rules._recorder import Membership, Touch, recording
from optlab.rules._roles import Axes
from optlab.rules._state import RuleState

_RATE, _DECAY = "scale_by_learning_rate", "add_decayed_weights"
_BY_GROUP = "scale_by_group"


class Treatment(NamedTuple):
    """What an optimizer does with one parameter.

    Attributes:
        path: its names, joined by "/".
        shape: its shape.
        rules: the rules that touch it, in order, without decay and rate; of a transformation that
            is not lifted by optlab the type of its state.
        axes: input → output of its matrices, for a rule that works on matrices; otherwise None.
        rates: the learning rates that multiply its update, numbers or schedules.
        decays: its decoupled weight decays, numbers or schedules.
        state_bytes: the bytes of state that it has.
        group: its parameter group, of `optlab.groups.partition`; None where there are no groups, or
            for a frozen parameter.
        is_frozen: whether it is frozen.
        start: the number of updates before which it is frozen.
    """

    path: str
    shape: tuple[int, ...]
    rules: tuple[str, ...]
    axes: Axes | None
    rates: tuple[Any, ...]
    decays: tuple[Any, ...]
    state_bytes: int
    group: str | None = None
    is_frozen: bool = False
    start: int = 0


class Description(tuple[Treatment, ...]):
    """What an optimizer does with each parameter: a tuple of `Treatment`; `print` shows a table."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return the table, one line for each parameter, and the bytes in all."""
        columns = {
            "path": [one.path for one in self],
            "shape": [str(one.shape) for one in self],
            "group": [one.group or "-" for one in self],
            "rule": [" + ".join(one.rules) or "-" for one in self],
            "axes": ["-" if one.axes is None else axes_text(one.axes) for one in self],
            "rate": [" × ".join(map(_number_text, one.rates)) or "-" for one in self],
            "decay": [" + ".join(map(_number_text, one.decays)) or "-" for one in self],
            "frozen": [_frozen_text(one) for one in self],
            "state bytes": [f"{one.state_bytes:,}" for one in self],
        }
        if not any(one.group or one.is_frozen for one in self):
            del columns["group"], columns["frozen"]
        rows = [tuple(columns), *zip(*columns.values(), strict=True)]
        total = f"{sum(one.state_bytes for one in self):,}"
        rows.append(("in all", *[""] * (len(columns) - 2), total))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                [
                    *(cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=False)),
                    row[-1].rjust(widths[-1]),
                ]
            )
            for row in rows
        )


def describe(tx: optax.GradientTransformation, params: Tree) -> Description:
    """Return what a transformation does with each parameter; nothing is computed.

    The table shows the rules that touch a parameter, which of its axes a rule on matrices takes for
    input → output (and for a batch, or split), its learning rate, its weight decay and the bytes of
    its state. Of a transformation that optlab did not lift, such as one of Optax's, it shows the
    type of its state for the parameter; rate and decay are not known. Of `optlab.groups.partition`
    it also shows the groups, and which parameters are frozen; slices of one array that belong to
    different groups have lines of their own.

    Args:
        tx: any transformation: of optlab, of Optax, or a chain, a partition or a wrapper of both.
        params: the parameters, or their shapes.

    Returns:
        A tuple of `Treatment`, which prints as a table.

    Raises:
        ValueError: `tx` is no transformation, or its `init` refuses the parameters.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> params = {"dense": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
        >>> print(describe(optlab.adamw(1e-3), params))
        path          shape   rule  axes  rate   decay  state bytes
        dense/bias    (3,)    adam  -     0.001  0.01            24
        dense/kernel  (2, 3)  adam  -     0.001  0.01            48
        in all                                                   72
    """
    if not callable(getattr(tx, "init", None)):
        required = "tx must be an optax.GradientTransformation"
        _checks.fail("describe", required, type(tx).__name__)
    with recording() as record:
        # JAX does not call a function again that it has traced; this one is new each time.
        state = jax.eval_shape(lambda params: tx.init(params), params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    touches: dict[str, list[Touch]] = defaultdict(list)
    parts: dict[str, list[Membership]] = {}
    for touch in record.touches:
        touches[touch.leaf.path].append(touch)
    for plan in record.memberships:  # a partition within another one speaks later
        for array in {membership.array for membership in plan}:
            parts[array] = [own for own in plan if own.array == array]
    members: list[tuple[tuple[str, ...], Membership | None]] = []
    arrays = []
    for path, leaf in leaves:
        names = path_names(path)
        for own in parts.get(path_name(path)) or [None]:
            part = "" if own is None else own.path.removeprefix(own.array)
            members.append(((*names[:-1], *(name + part for name in names[-1:])), own))
            arrays.append(leaf)
    sizes, owners = _state_of(state, [names for names, _ in members])
    return Description(
        _treatment(
            "/".join(names) or path_name(()),
            own.shape if own else tuple(leaf.shape),
            own,
            touches["/".join(names) or path_name(())],
            owners[names],
            sizes[names],
        )
        for (names, own), leaf in zip(members, arrays, strict=True)
    )


def _treatment(
    name: str,
    shape: tuple[int, ...],
    membership: Membership | None,
    touches: Sequence[Touch],
    owners: Sequence[str],
    state_bytes: int,
) -> Treatment:
    kinds = [(touch.rule.kind or touch.rule.who, touch) for touch in touches]
    shown_elsewhere = (_RATE, _DECAY, _BY_GROUP)
    rules = [kind.removeprefix("scale_by_") for kind, _ in kinds if kind not in shown_elsewhere]
    on_matrices = [
        touch
        for _, touch in kinds
        if touch.rule.static and not touch.rule.masks and touch.leaf.is_linear
    ]
    return Treatment(
        name,
        shape,
        (*rules, *owners),
        on_matrices[-1].leaf.axes if on_matrices else None,
        (*_values(kinds, _RATE), *_factors(kinds)),
        _values(kinds, _DECAY),
        state_bytes,
        membership.group or None if membership else None,
        bool(membership and not membership.group),
        membership.start if membership else 0,
    )


def _values(kinds: Sequence[tuple[str, Touch]], kind: str) -> tuple[Any, ...]:
    """Return the value of each rule of a kind, as it was given to the constructor."""
    return tuple(
        next(iter(touch.rule.hyperparams.values())).value for own, touch in kinds if own == kind
    )


def _state_of(
    state: Any, paths: Sequence[tuple[str, ...]]
) -> tuple[dict[tuple[str, ...], int], dict[tuple[str, ...], list[str]]]:
    """Return the bytes of state of each path, and the types of foreign states that hold them."""
    sizes: dict[tuple[str, ...], int] = defaultdict(int)
    owners: dict[tuple[str, ...], list[str]] = defaultdict(list)
    known = set(paths)

    def visit(node: Any, own: bool) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(node, is_leaf=_is_named(node)):
            if _is_named(node)(leaf):
                visit(leaf, isinstance(leaf, RuleState))
                continue
            names = path_names(path)
            owner = longest_in(names, known)
            # The numbers of a rule that all parameters share do not belong to a lone array.
            if owner is None or (owner == () and leaf.ndim == 0):
                continue
            if own and names[0] == "hyperparams":
                continue
            sizes[owner] += leaf.size * leaf.dtype.itemsize
            name = type(node).__name__
            if not own and name not in owners[owner] and hasattr(node, "_fields"):
                owners[owner].append(name)

    visit(state, False)
    return sizes, owners


def _is_named(parent: Any) -> Any:
    """Return the test for a NamedTuple within a node, whose type says what it is."""
    return lambda node: node is not parent and isinstance(node, tuple) and hasattr(node, "_fields")


def axes_text(axes: Axes) -> str:
    """Return axes as text: "0→1", "batch 0: 1→2", "0→1 in 3 × 768"."""
    text = f"{_joined(axes.input)}→{_joined(axes.output)}"
    if axes.batch:
        text = f"batch {_joined(axes.batch)}: {text}"
    if axes.split:
        same = len(set(axes.split)) == 1
        sizes = f"{len(axes.split)} × {axes.split[0]}" if same else " + ".join(map(str, axes.split))
        text += f" in {sizes}"
    return text


def _joined(axes: Sequence[int]) -> str:
    return " ".join(map(str, axes)) or "-"


def _frozen_text(one: Treatment) -> str:
    if one.is_frozen:
        return "yes"
    return f"until {one.start}" if one.start else "-"


def _factors(kinds: Sequence[tuple[str, Touch]]) -> tuple[Any, ...]:
    """Return what the rates of the slices of an array are multiplied by, a factor for each."""
    factors = [
        touch.rule.static(touch.leaf)
        for kind, touch in kinds
        if kind == _BY_GROUP and touch.rule.static is not None
    ]
    return tuple(own for own in factors if own)


def _number_text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_number_text, value))})"
    if is_traced(value):
        return "traced"
    if callable(value):
        return "schedule from " + _number_text(value(0))
    return f"{value:.4g}"
