"""The number of the layer that a parameter belongs to, by its path."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from optlab import _checks
from optlab.rules import Leaf
from optlab.rules._patterns import check_patterns, matches
from optlab.rules._roles import is_norm_path, stack_of

STEM = (
    r"(cls|class|reg|dist|mask)_?[tT]oken",
    r"\w*[eE]mbed\w*",
    "norm_pre",
    r"\w*[sS]tem\w*",
    "conv1",
    "bn1",
    "wte",
    "wpe",
)
"""Names of what comes before the first layer."""

HEAD = (r"\w*[hH]ead\w*", "fc", "fc_norm", r"\w*[cC]lassifier", r"\w*[lL]ogits", "readout")
"""Names of what comes behind the last layer."""


class Numbered(NamedTuple):
    """The places of all parameters in the order of the layers.

    Attributes:
        places: for each parameter "stem", "norm" (behind the last layer), "head", the number of its
            layer from 0, or None where its names do not tell.
        count: the number of layers.
    """

    places: list[int | str | None]
    count: int


def numbered(
    who: str,
    leaves: Sequence[Leaf],
    moves: Sequence[bool],
    layers: Sequence[str] | None,
    stem: Sequence[str],
    head: Sequence[str] | None,
) -> Numbered:
    """Return the place of each parameter.

    Args:
        who: the public name that errors begin with.
        leaves: the facts of all parameters.
        moves: whether each is trained; only these must have a place.
        layers: patterns of the layers from input to output; where a pattern has groups of digits,
            these numbers order what it matches. None for the first numbered name on a path.
        stem: patterns of what comes before the first layer, besides `STEM`.
        head: patterns of what comes behind the last one, besides `HEAD`; None for nothing.

    Raises:
        ValueError: a parameter that is trained has no place, none is the head, or names with
            numbers have several beginnings, so that their order is not known.
    """
    for patterns in (layers or (), stem, head or ()):
        check_patterns(who, patterns)
    stems, heads = (*STEM, *stem), () if head is None else (*HEAD, *head)
    keys = [_key(leaf, layers) for leaf in leaves]
    places: list[int | str | None] = []
    for leaf, key in zip(leaves, keys, strict=True):
        before = key.before if key else leaf.path
        if _any_matches(heads, before):
            places.append("head")
        elif _any_matches(stems, before):
            places.append("stem")
        elif key or (layers is None and stack_of(leaf.path)):
            places.append(0)
        elif leaf.names.role in ("embedding", "input"):
            places.append("stem")
        elif leaf.names.role == "head" and head is not None:
            places.append("head")
        else:
            places.append("norm" if is_norm_path(leaf.path) else None)
    in_layers = [i for i, place in enumerate(places) if place == 0]
    stacks = {
        (stack_of(leaves[i].path), leaves[i].shape[0])
        for i in in_layers
        if keys[i] is None and moves[i]
    }
    # Frozen layers keep their places, but not a branch that is frozen as a whole.
    families = {key.family for i in in_layers if (key := keys[i]) and moves[i]}
    own = {
        (key.family, key.numbers) for i in in_layers if (key := keys[i]) and key.family in families
    }
    if len(stacks) + len(families) > 1 and layers is None:
        texts = sorted(f"{family}0, 1, …" for family in families)
        texts += sorted(f"{path} with {size}" for path, size in stacks)
        _checks.fail(
            who,
            "the names must tell the order of the layers",
            " and ".join(texts),
            "pass layers=[…], patterns of the layers from input to output",
        )
    lost = [
        leaf.path
        for leaf, place, m in zip(leaves, places, moves, strict=True)
        if m and place is None
    ]
    if head is not None and not any(m for m, p in zip(moves, places, strict=True) if p == "head"):
        names = sorted({leaf.path.split("/")[0] for leaf in leaves})
        _checks.fail(
            who,
            "the names must tell which parameters that are trained are the head",
            f"none among {', '.join(names[:8])}{', …' if len(names) > 8 else ''}",
            "pass head=['Dense_2'], say, or head=None for a model without one",
        )
    if lost:
        _checks.fail(
            who,
            "every parameter that is trained must belong to the stem, to a layer or to the head",
            f"{', '.join(lost[:5])}{', …' if len(lost) > 5 else ''}",
            "pass layers=[…], stem=[…] or head=[…], patterns of their paths",
        )
    if stacks:
        return Numbered(places, stacks.pop()[1])
    order = {key: number for number, key in enumerate(sorted(own))}
    for i, key in enumerate(keys):
        if places[i] == 0:
            places[i] = order.get((key.family, key.numbers)) if key else None
    return Numbered(places, len(order))


class _Key(NamedTuple):
    """What tells the layer: its family, its numbers, and the path up to them."""

    family: str
    numbers: tuple[int, ...]
    before: str


def _key(leaf: Leaf, layers: Sequence[str] | None) -> _Key | None:
    """Return what tells the layer of a parameter; None if nothing does."""
    if layers is not None:
        for place, pattern in enumerate(layers):
            found = re.search(f"(?:^|/)(?:{pattern})(?:/|$)", leaf.path)
            if found:
                numbers = tuple(int(x) for x in found.groups() if x and x.isdigit())
                return _Key(f"{place:06}", numbers, "")
        return None
    names = leaf.path.split("/")[:-1]
    for place, name in enumerate(names):
        found = re.fullmatch(r"(.*?)(\d+)", name)
        if found:
            end = place + 1
            numbers = [int(found[2])]
            while end < len(names) and names[end].isdigit():
                numbers.append(int(names[end]))
                end += 1
            family = "/".join([*names[:place], found[1]])
            return _Key(family, tuple(numbers), "/".join(names[:end]))
    return None


def _any_matches(patterns: Sequence[str], path: str) -> bool:
    return any(matches(pattern, path) for pattern in patterns)
