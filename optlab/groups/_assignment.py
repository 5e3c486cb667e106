"""Which parameter belongs to which group: patterns and predicates that must cover all."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import EllipsisType
from typing import Any

import jax
import numpy as np

from optlab import _checks
from optlab._types import Tree
from optlab.groups._settings import Group, Modifier, Refinement
from optlab.rules import Leaf
from optlab.rules._leaf import leaf_facts, path_name, without_part
from optlab.rules._patterns import check_patterns, matches

WHO = "groups.partition"

Predicate = Callable[[str, Any], bool]
"""(path, parameter or its description) → whether it belongs to the group."""


@dataclass(frozen=True)
class SlicesOf:
    """Some slices of the arrays that a pattern matches; made with `slices`."""

    pattern: str
    start: int
    stop: int


Matcher = str | Predicate | SlicesOf | EllipsisType
"""What says which parameters are meant; `...` means all that are left."""


Pair = tuple[Matcher, Group]
Rules = Sequence[tuple[Matcher, Any] | Modifier] | Mapping[Matcher, Any]
"""Pairs of a matcher and a group or a transformation, and modifiers."""


_ALL = Group()
"""The group of all parameters, where the rules are modifiers alone."""


@dataclass(frozen=True)
class Part:
    """A parameter, or some slices of a stacked one, and what happens to it.

    Attributes:
        path: its names, joined by "/"; slices 0 to 3 of a stack end it with "[0:4]".
        shape: its shape.
        start: its first slice; None for the whole array.
        stop: the slice behind its last; None for the whole array.
        group: what the first pair that matches says.
        refinements: what modifiers add.
    """

    path: str
    shape: tuple[int, ...]
    start: int | None
    stop: int | None
    group: Group
    refinements: tuple[Refinement, ...]


def slices(pattern: str, start: int, stop: int) -> SlicesOf:
    """Mean only the slices start … stop − 1 of stacked arrays, such as those of scanned layers.

    Args:
        pattern: as for `partition`; the arrays must have the slices on their first axis.
        start: the first slice, ≥ 0.
        stop: the slice behind the last, > start.

    Raises:
        ValueError: the numbers name no slices; at `partition`, an array has not so many, or two
            patterns name the same slice of an array.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> stack = {"layers": {"kernel": jnp.ones((4, 2, 2))}}
        >>> tx = optlab.groups.partition(
        ...     stack, [(slices("layers", 0, 3), optlab.groups.frozen()), (..., optlab.sgd(0.5))]
        ... )
        >>> updates, _ = tx.update(stack, tx.init(stack), stack)
        >>> print(updates["layers"]["kernel"][:, 0, 0])
        [-0.  -0.  -0.  -0.5]
    """
    who = "groups.slices"
    start = _checks.check_count(who, "start", start, 0)
    stop = _checks.check_count(who, "stop", stop, 1)
    if start >= stop:
        _checks.fail(who, "start must be below stop", f"start={start}, stop={stop}")
    check_patterns(who, [pattern])
    return SlicesOf(pattern, start, stop)


def assigned(params: Tree, rules: Rules, optimizer: Any) -> list[Part]:
    """Return what happens to each parameter, in the order of the tree.

    Args:
        params: the parameters, or their shapes.
        rules: pairs and modifiers.
        optimizer: that of the groups that name none.

    Raises:
        ValueError: a parameter is not covered, a pattern matches nothing or decides for nothing, or
            two match where no order decides.
    """
    pairs, modifiers = _checked(rules)
    with_paths = jax.tree_util.tree_leaves_with_path(params)
    arrays = [array for _, array in with_paths]
    for path, array in with_paths:
        if not hasattr(array, "shape"):
            required = "params must hold arrays, or their shapes"
            got = f"{type(array).__name__} at {_checks.path_text(path)}"
            remedy = "pass jax.eval_shape(init, key), or eqx.filter(model, eqx.is_array), say"
            _checks.fail(WHO, required, got, remedy)
    leaves = [leaf_facts(WHO, path, array, None) for path, array in with_paths]
    _check_names(leaves)
    if not leaves:
        _checks.fail(WHO, "params must hold parameters", "none")
    choices = _choices(pairs, leaves, arrays, isinstance(rules, Mapping))
    moves = [not pairs or any(not pairs[n][1].is_frozen for n in {*own}) for own in choices]
    if not any(moves):
        required = "at least one parameter must be trained"
        _checks.fail(WHO, required, f"{len(leaves)} that are all frozen")
    of = [_groups_of(own, pairs, optimizer) for own in choices]
    refined = [modifier.refine(leaves, moves, of) for modifier in modifiers]
    parts = []
    for number, leaf in enumerate(leaves):
        refinements = [one for own in refined if (one := own[number]) is not None]
        parts += _parts(leaf, choices[number], pairs, refinements)
    return parts


def _groups_of(choice: np.ndarray, pairs: Sequence[Pair], optimizer: Any) -> tuple[Group, ...]:
    """Return the groups, with their optimizers, in which a parameter or its slices are trained."""
    groups = [pairs[n][1] for n in sorted({*choice})] if pairs else [_ALL]
    return tuple(
        replace(group, optimizer=optimizer) if group.optimizer is None else group
        for group in groups
        if not group.is_frozen
    )


def _check_names(leaves: Sequence[Leaf]) -> None:
    """Require paths that tell parameters, and their slices, apart."""
    counts = Counter(leaf.path for leaf in leaves)
    for path, count in counts.items():
        if count > 1:
            required = "parameters must have different paths, with their names joined by /"
            _checks.fail(WHO, required, f"{path} twice")
        if without_part(path) != path:
            required = 'names must not end like those of slices, "[0:1]"'
            _checks.fail(WHO, required, path, "rename it")


def _checked(rules: Rules) -> tuple[list[Pair], list[Modifier]]:
    """Return the pairs and the modifiers among the rules."""
    if isinstance(rules, str) or not isinstance(rules, Mapping | Sequence):
        remedy = "write [('head', optlab.adamw(1e-3)), (..., groups.frozen())], say"
        _checks.fail(WHO, "rules must be a list or a mapping", repr(rules), remedy)
    pairs, modifiers = [], []
    for entry in rules.items() if isinstance(rules, Mapping) else rules:
        if isinstance(entry, Modifier):
            if entry.once is not None and any(own.once == entry.once for own in modifiers):
                _checks.fail(
                    WHO,
                    f"rules must hold {entry.once} at most once, as both would change the rate",
                    "2",
                    "take one of them out",
                )
            modifiers.append(entry)
            continue
        if not isinstance(entry, tuple) or len(entry) != 2 or isinstance(entry, Group):
            required = "each rule must be a pair (pattern, group) or a modifier"
            _checks.fail(
                WHO, required, repr(entry), "write ('head', groups.group(lr_mult=10.0)), say"
            )
        matcher, settings = entry
        if isinstance(matcher, str):
            check_patterns(WHO, [matcher])
        elif not (isinstance(matcher, SlicesOf | EllipsisType) or callable(matcher)):
            required = "a rule must begin with a pattern, a predicate, slices(…) or ..."
            _checks.fail(WHO, required, repr(matcher))
        if not isinstance(settings, Group):
            if not callable(getattr(settings, "update", None)):
                required = "a rule must end with a group or a transformation"
                remedy = "write groups.group(lr_mult=0.1), groups.frozen() or optlab.sgd(1e-2), say"
                _checks.fail(WHO, required, repr(settings), remedy)
            settings = Group(optimizer=settings)
        pairs.append((matcher, _named(matcher, settings, len(pairs))))
    return pairs, modifiers


def _named(matcher: Matcher, settings: Group, number: int) -> Group:
    """Return a group with a name, made of the pattern if it has none."""
    if settings.name:
        return settings
    if matcher is ...:
        return replace(settings, name="rest")
    if isinstance(matcher, SlicesOf):
        text = f"{matcher.pattern} {matcher.start} to {matcher.stop - 1}"
    elif isinstance(matcher, str):
        text = matcher
    else:
        text = getattr(matcher, "__name__", "").replace("<lambda>", "")
    words = re.findall(r"\w+", text)
    return replace(settings, name="_".join(words) or f"group{number}")


def _choices(
    pairs: Sequence[Pair], leaves: Sequence[Leaf], arrays: Sequence[Any], is_unordered: bool
) -> list[np.ndarray]:
    """Return for each parameter the number of the pair that decides for each of its slices."""
    if not pairs:
        return [np.zeros(_length(leaf), int) for leaf in leaves]
    matched, decides = [False] * len(pairs), [False] * len(pairs)
    choices = []
    for leaf, array in zip(leaves, arrays, strict=True):
        choice = np.full(_length(leaf), -1)
        for number, (matcher, _) in enumerate(pairs):
            if not _matches(matcher, leaf.path, array):
                continue
            matched[number] = True
            own = np.ones(len(choice), bool)
            if isinstance(matcher, SlicesOf):
                own = _slices_of(matcher, leaf)
                earlier = [n for n in {*choice[own]} if n >= 0]
                both = [n for n in earlier if isinstance(pairs[n][0], SlicesOf)]
                if both:
                    _fail_overlap(leaf, pairs[both[0]][0], matcher)
            taken = choice[own]
            if is_unordered and (taken >= 0).any():
                names = [_text(pairs[n][0]) for n in (int(taken.max()), number)]
                required = f"one pattern of a mapping must match {leaf.path}"
                remedy = "pass a list of pairs, whose order decides"
                _checks.fail(WHO, required, " and ".join(names), remedy)
            decides[number] |= bool((taken < 0).any())
            choice[own & (choice < 0)] = number
        choices.append(choice)
    _check_use(pairs, matched, decides, leaves)
    left = [leaf.path for leaf, own in zip(leaves, choices, strict=True) if (own < 0).any()]
    if left:
        more = f" and {len(left) - 10} more" if len(left) > 10 else ""
        required = "every parameter must be covered by a pattern"
        remedy = "add (..., groups.group()) or (..., groups.frozen()) at the end"
        _checks.fail(WHO, required, f"none for {', '.join(left[:10])}{more}", remedy)
    return choices


def _length(leaf: Leaf) -> int:
    """Return the number of slices of an array; 1 for one that has none."""
    return max(1, leaf.shape[0]) if leaf.shape else 1


def _matches(matcher: Matcher, path: str, array: Any) -> bool:
    if matcher is ...:
        return True
    if isinstance(matcher, SlicesOf):
        return matches(matcher.pattern, path)
    if isinstance(matcher, str):
        return matches(matcher, path)
    return bool(matcher(path, array))


def _slices_of(matcher: SlicesOf, leaf: Leaf) -> np.ndarray:
    """Return which slices of an array are meant."""
    if leaf.path == path_name(()):
        required = "slices(…) must name slices of an array in a tree"
        _checks.fail(WHO, required, "a single array", "put it into a dictionary")
    if not leaf.shape or matcher.stop > leaf.shape[0]:
        required = f"slices({matcher.pattern!r}, …) must name slices of {leaf.path}"
        got = f"{matcher.start} to {matcher.stop - 1} for the shape {leaf.shape}"
        _checks.fail(WHO, required, got)
    numbers = np.arange(leaf.shape[0])
    return (numbers >= matcher.start) & (numbers < matcher.stop)


def _fail_overlap(leaf: Leaf, first: Any, second: SlicesOf) -> None:
    required = f"slices of {leaf.path} must not overlap"
    got = f"{first.start} to {first.stop - 1} and {second.start} to {second.stop - 1}"
    _checks.fail(WHO, required, got)


def _check_use(
    pairs: Sequence[Pair], matched: Sequence[bool], decides: Sequence[bool], leaves: Sequence[Leaf]
) -> None:
    """Require that each pair decides for some parameter; `...` may be left with none."""
    for (matcher, _), any_match, decided in zip(pairs, matched, decides, strict=True):
        if matcher is ... or decided:
            continue
        if any_match:
            required = "each pattern must decide for some parameter"
            got = f"{_text(matcher)}, whose parameters earlier patterns take"
            _checks.fail(WHO, required, got, "put it in front of them")
        names = sorted({name for leaf in leaves for name in (leaf.path, *leaf.path.split("/"))})
        close = []
        if isinstance(matcher, str | SlicesOf):
            pattern = matcher if isinstance(matcher, str) else matcher.pattern
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
        there = close or sorted(leaf.path for leaf in leaves)[:5]
        dots = ", …" if not close and len(leaves) > 5 else ""
        _checks.fail(
            WHO,
            "each pattern must match whole names on some path",
            f"{_text(matcher)}, which matches none",
            f"did you mean {', '.join(there)}?" if close else f"there are {', '.join(there)}{dots}",
        )


def _text(matcher: Matcher) -> str:
    """Return a matcher as errors show it."""
    if isinstance(matcher, SlicesOf):
        return f"slices({matcher.pattern!r}, {matcher.start}, {matcher.stop})"
    if matcher is ...:
        return "..."
    return repr(matcher) if isinstance(matcher, str) else f"the predicate {matcher!r}"


def _parts(
    leaf: Leaf, choice: np.ndarray, pairs: Sequence[Pair], refinements: Sequence[Refinement]
) -> list[Part]:
    """Return the parts of a parameter: runs of slices for which one pair decides."""
    groups = [own for _, own in pairs] or [_ALL]
    bounds = [0, *(np.flatnonzero(np.diff(choice)) + 1).tolist(), len(choice)]
    if len(bounds) == 2:
        return [Part(leaf.path, leaf.shape, None, None, groups[choice[0]], tuple(refinements))]
    parts = []
    for start, stop in pairwise(bounds):
        own = [
            one._replace(rate=one.rate[start:stop]) if isinstance(one.rate, tuple) else one
            for one in refinements
        ]
        path, shape = f"{leaf.path}[{start}:{stop}]", (stop - start, *leaf.shape[1:])
        parts.append(Part(path, shape, start, stop, groups[choice[start]], tuple(own)))
    return parts
