"""Which sides of a parameter grow with the width of the model, and by how much.

    input     (fixed, grows)        the first layer, an embedding
    hidden    (grows, grows)
    output    (grows, fixed)        the head
    vector    (grows)               a bias, the scale of a norm
    fixed     nothing grows         the bias of the head

A side is the input or the output of a linear map; several axes may belong to one. Axes that count
independent maps, as of stacked layers or of experts, are no sides.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from optlab import _checks
from optlab._types import Tree
from optlab.rules import Axes, AxesChoice, Leaf, meaning
from optlab.rules._leaf import AxesOf, checked_axes, path_name
from optlab.rules._patterns import axes_of, check_all_match, check_patterns, matches
from optlab.rules._roles import size, stack_of

Kind = Literal["input", "hidden", "output", "vector", "fixed"]
KINDS: tuple[Kind, ...] = ("input", "hidden", "output", "vector", "fixed")

_ENDS = {"embedding": "input", "head": "output"}
"""What a name says that only one side of it grows, and the kind that it then has."""


class Growth(NamedTuple):
    """How a parameter has grown since the base model.

    Attributes:
        leaf: its facts.
        base: its shape in the base model.
        kind: which of its sides grow.
        fan_in: how many times as large its input is; 1 where it does not grow.
        fan_out: how many times as large its output is; of a vector its size.
    """

    leaf: Leaf
    base: tuple[int, ...]
    kind: Kind
    fan_in: float
    fan_out: float


def base_arrays(who: str, base: Tree) -> dict[str, Any]:
    """Return the floating-point arrays of the base model, or their shapes, by path."""
    arrays = {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(base)
        if hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    if not arrays:
        remedy = "pass the base model, its parameters, or jax.eval_shape of what makes them"
        _checks.fail(who, "base must hold arrays, or their shapes", type(base).__name__, remedy)
    return arrays


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of arrays by path."""
    return {path: tuple(array.shape) for path, array in arrays.items()}


def growths(
    who: str,
    leaves: Sequence[Leaf],
    base: Mapping[str, tuple[int, ...]],
    axes: AxesChoice | None,
    kinds: Mapping[str, Kind] | None,
) -> list[Growth]:
    """Return how each parameter has grown.

    Args:
        who: the public name that errors begin with.
        leaves: the facts of the parameters.
        base: the shapes of the base model by path.
        axes: the axes of some parameters.
        kinds: pattern → the kind of what it matches, in place of what the shapes say.

    Raises:
        ValueError: a parameter has no counterpart in the base model or one of another rank, or it
            is not known which of its axes are its input and its output.
    """
    chosen, kinds = axes_of(who, axes), {} if kinds is None else kinds
    paths = [leaf.path for leaf in leaves]
    check_all_match(who, check_patterns(who, tuple(kinds)), paths)
    if isinstance(axes, Mapping):
        check_all_match(who, tuple(axes), paths)
    for pattern, kind in kinds.items():
        _checks.check_choice(who, f"kinds[{pattern!r}]", kind, KINDS)
    missing = [path for path in paths if path not in base]
    if missing:
        more = ", …" if len(missing) > 5 else ""
        required = "each parameter must have its counterpart in the base model"
        got = f"none for {', '.join(missing[:5])}{more}; it has {', '.join(sorted(base)[:5])}, …"
        remedy = "make both with one function that takes the width, with as many layers in both"
        _checks.fail(who, required, got, remedy)
    return [_growth(who, leaf, base[leaf.path], chosen, kinds) for leaf in leaves]


def _growth(
    who: str, leaf: Leaf, base: tuple[int, ...], chosen: AxesOf | None, kinds: Mapping[str, Kind]
) -> Growth:
    if len(base) != len(leaf.shape):
        required = f"{leaf.path} must have as many axes in the base model"
        _checks.fail(who, required, f"{base} for {leaf.shape}")
    if 0 in base or 0 in leaf.shape:
        _checks.fail(who, f"{leaf.path} must have sizes >= 1", f"{base} and {leaf.shape}")
    leaf = _with_axes(who, leaf, chosen)
    asked = _asked_kind(leaf, kinds)
    if leaf.is_linear:
        fan_in, fan_out = (
            size(leaf.shape, side) / size(base, side)
            for side in (leaf.axes.input, leaf.axes.output)
        )
        if asked is None and not leaf.asked:
            _check_axes(who, leaf, base)
    else:
        fan_in, fan_out = 1.0, _growth_of_vector(who, leaf, base, asked)
    if asked == "hidden" and not leaf.is_linear:
        required = f"{leaf.path}, which is to be hidden, must have an input and an output"
        remedy = "write axes={'" + leaf.path + "': optlab.rules.Axes(input=(0,), output=(1,))}, say"
        _checks.fail(who, required, f"the shape {leaf.shape}", remedy)
    if asked == "output" and not leaf.is_linear:
        fan_in, fan_out = fan_out, 1.0
    if asked == "vector" and leaf.is_linear:
        fan_in, fan_out = 1.0, fan_in * fan_out
    kind: Kind = asked or _kind(leaf, fan_in, fan_out)
    end = _ENDS.get(leaf.names.role)
    if asked is None and kind == "hidden" and end and not leaf.asked:
        fixed = "input" if end == "input" else "output"
        required = f"{leaf.path}, by its name {leaf.names.role}, must keep the size of its {fixed}"
        remedy = f"give both models as many tokens or classes, or write kinds={{'…': {end!r}}}"
        _checks.fail(who, required, f"{leaf.shape} after {base}", remedy)
    fan_in = 1.0 if kind in ("input", "vector", "fixed") else fan_in
    fan_out = 1.0 if kind in ("output", "fixed") else fan_out
    return Growth(leaf, base, kind, fan_in, fan_out)


def _asked_kind(leaf: Leaf, kinds: Mapping[str, Kind]) -> Kind | None:
    """Return the kind that the first pattern that matches gives, or None."""
    return next((kind for pattern, kind in kinds.items() if matches(pattern, leaf.path)), None)


def _with_axes(who: str, leaf: Leaf, chosen: AxesOf | None) -> Leaf:
    """Return a leaf with the axes that were asked for, or those of its names."""
    own = chosen(leaf.path, leaf.shape) if chosen is not None else None
    if own is not None:
        return replace(leaf, axes=checked_axes(who, leaf.path, leaf.shape, own), asked=True)
    if leaf.is_linear or leaf.names.doubt:
        return leaf
    # A map to a single number is a linear map, too, which its names do not tell from a vector.
    larger = meaning(leaf.path, tuple(max(2, n) for n in leaf.shape))
    return replace(leaf, axes=larger.axes._replace(split=()), names=larger)


def _kind(leaf: Leaf, fan_in: float, fan_out: float) -> Kind:
    if not leaf.is_linear:
        return "fixed" if fan_out == 1 else "vector"
    if fan_in != 1:
        return "output" if fan_out == 1 else "hidden"
    return "fixed" if fan_out == 1 else "input"


def _check_axes(who: str, leaf: Leaf, base: tuple[int, ...]) -> None:
    """Require names that tell the axes where several grow, or one that is taken for a stack's."""
    grown = [
        axis for axis, (new, old) in enumerate(zip(leaf.shape, base, strict=True)) if new != old
    ]
    if len(leaf.shape) < 3 or not leaf.names.doubt:
        return
    if len(grown) > 1 or {*grown} & {*leaf.axes.batch}:
        _fail_axes(who, leaf, base)


def _growth_of_vector(who: str, leaf: Leaf, base: tuple[int, ...], asked: Kind | None) -> float:
    """Return how many times as large a parameter is that is no linear map, without its layers."""
    start = 1 if stack_of(leaf.path) and len(leaf.shape) > 1 else 0
    pairs = list(zip(leaf.shape[start:], base[start:], strict=True))
    is_known = leaf.asked or asked is not None or "bias" in leaf.path.split("/")[-1]
    if sum(new != old for new, old in pairs) > 1 and not is_known:
        _fail_axes(who, leaf, base)
    return math.prod(new / old for new, old in pairs)


def _fail_axes(who: str, leaf: Leaf, base: tuple[int, ...]) -> NoReturn:
    """Say that the axes of a parameter must be named."""
    example = Axes((0,), (1,), tuple(range(2, len(leaf.shape))))
    _checks.fail(
        who,
        f"it must be known which axes of {leaf.path} are its input and its output",
        f"{leaf.shape} after {base}" + (f": {leaf.names.doubt}" if leaf.names.doubt else ""),
        f"write axes={{'{leaf.path}': {example}}}, say",
    )
