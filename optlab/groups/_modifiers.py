"""What refines groups: no decay for some, a rate by layer, a start by stage.

    s_i = d^(L − i)        i = 0 for the embedding, 1 … n for the layers, L for the head

`layerwise_decay` multiplies the rate of layer i by s_i. The sources number the ends differently,
for n layers:

- "timm": L = n + 1, and the norm behind the last layer belongs to it;
- "mae" (also BEiT): L = n + 1, and that norm belongs to the head;
- "electra": L = n + 2, so that the last layer has d², and that norm belongs to the head.

`discriminative` gives n groups of layers the geometric rates a·(b/a)^(i/(n−1)).

Reference: Howard & Ruder, ACL (2018); Clark, Luong, Le, Manning, ICLR (2020); Bao, Dong, Piao, Wei,
ICLR (2022); He, Chen, Xie, Li, Dollár, Girshick, CVPR (2022).
"""

import re
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any, Literal

import jax.numpy as jnp

from optlab import _checks
from optlab._tree import is_traced
from optlab.groups._layers import numbered
from optlab.groups._settings import Group, Modifier, Refinement
from optlab.rules import Leaf
from optlab.rules._patterns import check_all_match, check_patterns, matches
from optlab.rules._roles import stack_of

_TOKENS = re.compile(r"\w+_?tokens?|pos(ition(al)?)?_?emb(ed|edding)?s?", re.I)
"""The names of arrays that are learned inputs, which have no decay although they have axes."""


def no_decay(*patterns: str, embeddings: bool = False) -> Modifier:
    """Take the weight decay from biases, norms and learned tokens.

    A parameter decays if it is a linear map: an array of at least two axes, without the axis that
    stacks layers, that no norm owns. So the biases of stacked layers do not decay, though they have
    two axes. Position embeddings and class tokens that are plain arrays do not, either.

    Args:
        *patterns: further parameters without decay, as for `partition`.
        embeddings: whether embeddings of tokens do not decay, either.

    Returns:
        A rule for `partition`; where it stands in the list does not matter.

    Raises:
        ValueError: at `partition`, a pattern matches nothing.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
        >>> tx = optlab.groups.partition(
        ...     params, [no_decay()], optimizer=optlab.adamw(1e-3, weight_decay=0.1)
        ... )
        >>> [(one.path, one.decays) for one in optlab.describe(tx, params)]
        [('dense/bias', (0.0,)), ('dense/kernel', (0.1,))]
    """
    who = "groups.no_decay"
    check_patterns(who, patterns)
    embeddings = _checks.check_flag(who, "embeddings", embeddings)

    def decays(leaf: Leaf) -> bool:
        is_table = leaf.names.role == "embedding" and len(leaf.shape) < 4
        is_token = _TOKENS.fullmatch(leaf.path.split("/")[-1]) is not None
        named = any(matches(pattern, leaf.path) for pattern in patterns)
        return leaf.is_linear and not (named or is_token or (embeddings and is_table))

    def refine(
        leaves: Sequence[Leaf], moves: Sequence[bool], of: Sequence[tuple[Group, ...]]
    ) -> list[Refinement | None]:
        check_all_match(who, patterns, [leaf.path for leaf in leaves])
        return [None if decays(leaf) else Refinement("no_decay", decay=0.0) for leaf in leaves]

    return Modifier(refine)


def layerwise_decay(
    decay: float,
    numbering: Literal["timm", "mae", "electra"] = "timm",
    *,
    layers: Sequence[str] | None = None,
    stem: Sequence[str] = (),
    head: Sequence[str] | None = (),
    min_rate: float = 0.0,
) -> Modifier:
    r"""Multiply each layer's rate by a power of `decay`: 1 at the head, least at the embedding.

    The names tell the layers: the first name on a path that ends in a number, or the first axis of
    scanned layers, whose slices then have rates of their own. The decoupled decay is multiplied
    with the rate.

    Args:
        decay: d in (0, 1], such as 0.75.
        numbering: which numbering of the ends: "timm", "mae" or "electra".
        layers: patterns of the layers from input to output, where the names do not tell; the digits
            that a pattern puts in a group, as in `r"block(\d+)"`, order what it matches.
        stem: patterns of what has the number 0, besides embeddings, tokens and stems.
        head: patterns of what has the number L, besides heads and classifiers; None for a model
            that has no head, where L is one less.
        min_rate: the least multiplier, in [0, 1].

    Returns:
        A rule for `partition`.

    Raises:
        ValueError: an argument is out of its range; at `partition`, the order of the layers is not
            known, or a parameter that is trained has no place among them.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> params = {name: jnp.ones((2, 2)) for name in ("embed", "block1", "block2", "head")}
        >>> params = {name: {"kernel": array} for name, array in params.items()}
        >>> tx = optlab.groups.partition(
        ...     params, [layerwise_decay(0.5)], optimizer=optlab.sgd(0.8)
        ... )
        >>> {one.path.split("/")[0]: one.rates[0] for one in optlab.describe(tx, params)}
        {'block1': 0.2, 'block2': 0.4, 'embed': 0.1, 'head': 0.8}

    Reference:
        Clark et al., ICLR (2020); Bao et al., ICLR (2022).
    """
    who = "groups.layerwise_decay"
    _checks.check_number(who, "decay", decay, _checks.SHARE)
    _checks.check_choice(who, "numbering", numbering, ("timm", "mae", "electra"))
    _checks.check_number(who, "min_rate", min_rate, _checks.UNIT)

    def refine(
        leaves: Sequence[Leaf], moves: Sequence[bool], of: Sequence[tuple[Group, ...]]
    ) -> list[Refinement | None]:
        if layers is not None:
            check_all_match(who, layers, [leaf.path for leaf in leaves])
        places, count = numbered(who, leaves, moves, layers, stem, head)
        last = count + (2 if numbering == "electra" else 1) - (head is None)
        ends = {"stem": 0, "head": last, "norm": count if numbering == "timm" else last}

        def rate(number: int) -> Any:
            power = decay ** (last - number)
            return jnp.maximum(power, min_rate) if is_traced(power) else max(power, min_rate)

        def refinement(leaf: Leaf, place: int | str | None) -> Refinement | None:
            if place is None:
                return None
            if isinstance(place, int) and stack_of(leaf.path) and layers is None:
                rates = tuple(rate(number + 1) for number in range(count))
                if any(map(is_traced, rates)):
                    required = "decay must be known outside of jit where layers are stacked"
                    remedy = "search it as Categorical(…, traced=False)"
                    _checks.fail(who, required, "a traced array", remedy)
                return Refinement(f"layers1to{count}", rate=rates)
            number = ends[place] if isinstance(place, str) else place + 1
            return Refinement(f"layer{number}", rate=rate(number))

        return [refinement(leaf, place) for leaf, place in zip(leaves, places, strict=True)]

    return Modifier(refine)


def discriminative(
    layers: Sequence[str],
    rates: slice | Sequence[float] | None = None,
    *,
    factor: float | None = None,
) -> Modifier:
    """Give groups of layers rates of their own, from input to output.

    The rates are multipliers relative to the last one, so give the optimizer the last rate, or a
    schedule with the last rate as its peak.

    Args:
        layers: patterns of the groups of layers from input to output; the first that matches
            decides.
        rates: `slice(a, b)` for geometric rates from a to b; `slice(b)` for b at the last group and
            b/10 at all others; or a rate > 0 for each group.
        factor: in place of `rates`, by how much each group's rate is smaller than the next one's,
            such as 2.6.

    Returns:
        A rule for `partition`.

    Raises:
        ValueError: the rates are not positive numbers, one for each group; at `partition`, a
            pattern matches nothing, or a parameter that is trained matches none.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> params = {name: jnp.ones(2) for name in ("a", "b", "c", "d")}
        >>> rule = discriminative(["a", "b", "c", "d"], slice(1e-5, 1e-3))
        >>> tx = optlab.groups.partition(params, [rule], optimizer=optlab.sgd(1e-3))
        >>> [f"{rate:.4g}" for one in optlab.describe(tx, params) for rate in one.rates]
        ['1e-05', '4.642e-05', '0.0002154', '0.001']

    Reference:
        Howard & Ruder, ACL (2018).
    """
    who = "groups.discriminative"
    layers = check_patterns(who, layers)
    if not layers:
        _checks.fail(who, "layers must hold patterns", "none")
    multipliers = _multipliers(who, len(layers), rates, factor)

    def refine(
        leaves: Sequence[Leaf], moves: Sequence[bool], of: Sequence[tuple[Group, ...]]
    ) -> list[Refinement | None]:
        numbers = _first_matches(who, leaves, moves, layers)
        return [
            None if number is None else Refinement(f"layer{number}", rate=multipliers[number])
            for number in numbers
        ]

    return Modifier(refine)


def _multipliers(
    who: str, count: int, rates: slice | Sequence[float] | None, factor: float | None
) -> list[float]:
    """Return the rates of the groups, relative to the last one."""
    if (rates is None) == (factor is None):
        _checks.fail(who, "either rates or factor must be given", f"{rates=}, {factor=}")
    if factor is not None:
        _checks.check_number(who, "factor", factor, _checks.POSITIVE)
        return [float(factor) ** (number - count + 1) for number in range(count)]
    if isinstance(rates, slice):
        if rates.step is not None or rates.stop is None:
            _checks.fail(who, "rates must be slice(a, b) or slice(b)", repr(rates))
        _checks.check_number(who, "the end of rates", rates.stop, _checks.POSITIVE)
        if rates.start is None:
            return [0.1] * (count - 1) + [1.0]
        _checks.check_number(who, "the start of rates", rates.start, _checks.POSITIVE)
        ratio = rates.start / rates.stop
        return [ratio ** ((count - 1 - number) / max(1, count - 1)) for number in range(count)]
    rates = tuple(rates or ())
    if len(rates) != count:
        _checks.fail(who, f"rates must hold one for each of {count} patterns", f"{len(rates)}")
    for rate in rates:
        _checks.check_number(who, "each of rates", rate, _checks.POSITIVE)
    return [rate / rates[-1] for rate in rates]


def gradual_unfreezing(
    stages: Sequence[tuple[str | EllipsisType, int]] | Mapping[str | EllipsisType, int],
) -> Modifier:
    """Freeze parameters until their stage begins, within one compiled run.

    Until then a parameter is not moved by a bit, its state does not change, and clipping around the
    groups does not see its gradient. It then starts with a count of its own, so that the bias of
    its averages is corrected rightly, while schedules go on with the count of the run. Its state
    takes memory from the beginning, and its gradient is computed; `carry_over` avoids both.

    Args:
        stages: pairs of a pattern and the number of updates before which what it matches is frozen,
            ≥ 0; the first pattern that matches decides, and `...` matches all that is left.

    Returns:
        A rule for `partition`.

    Raises:
        ValueError: a start is no whole number ≥ 0; at `partition`, a pattern matches nothing, a
            parameter that is trained matches none, or its optimizer is none of optlab's own.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> params = {"body": jnp.ones(()), "head": jnp.ones(())}
        >>> rule = gradual_unfreezing([("head", 0), (..., 1)])
        >>> tx = optlab.groups.partition(params, [rule], optimizer=optlab.sgd(0.5))
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(params, state, params)
        ...     print(updates["body"], updates["head"])
        -0.0 -0.5
        -0.5 -0.5

    Reference:
        Howard & Ruder, ACL (2018).
    """
    who = "groups.gradual_unfreezing"
    pairs = list(stages.items() if isinstance(stages, Mapping) else stages)
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        required = "stages must hold pairs of a pattern and a number of updates"
        _checks.fail(who, required, repr(stages), "write [('head', 0), (..., 100)], say")
    is_unordered = isinstance(stages, Mapping)
    starts = [_checks.check_count(who, "each start", start, 0) for _, start in pairs]
    for pattern, _ in pairs:
        if not isinstance(pattern, str | EllipsisType):
            remedy = "unfreeze slices with carry_over"
            _checks.fail(who, "a stage must begin with a pattern or ...", repr(pattern), remedy)
    patterns = [".*" if pattern is ... else pattern for pattern, _ in pairs]
    check_patterns(who, patterns)

    def refine(
        leaves: Sequence[Leaf], moves: Sequence[bool], of: Sequence[tuple[Group, ...]]
    ) -> list[Refinement | None]:
        numbers = _first_matches(who, leaves, moves, patterns, is_unordered)
        return [
            None
            if number is None or not starts[number]
            else Refinement(f"from{starts[number]}", start=starts[number])
            for number in numbers
        ]

    return Modifier(refine)


def _first_matches(
    who: str,
    leaves: Sequence[Leaf],
    moves: Sequence[bool],
    patterns: Sequence[str],
    is_unordered: bool = False,
) -> list[int | None]:
    """Return for each parameter the number of the first pattern that matches it.

    Each pattern must be the first one for some parameter, and the only one if they have no order.
    """
    check_all_match(who, patterns, [leaf.path for leaf in leaves])
    all_of = [[n for n, p in enumerate(patterns) if matches(p, leaf.path)] for leaf in leaves]
    for leaf, own in zip(leaves, all_of, strict=True):
        named = [patterns[n] for n in own if patterns[n] != ".*"]
        if is_unordered and len(named) > 1:
            required = f"one pattern of a mapping must match {leaf.path}"
            remedy = "pass a list of pairs, whose order decides"
            _checks.fail(who, required, " and ".join(map(repr, named)), remedy)
    if is_unordered:
        all_of = [sorted(own, key=lambda n: patterns[n] == ".*") for own in all_of]
    numbers = [own[0] if own else None for own in all_of]
    for n, pattern in enumerate(patterns):
        if n not in numbers and pattern != ".*":
            required = "each pattern must decide for some parameter"
            got = f"{pattern!r}, whose parameters earlier patterns take"
            _checks.fail(who, required, got, "put it in front of them")
    left = [
        leaf.path
        for leaf, number, own in zip(leaves, numbers, moves, strict=True)
        if own and number is None
    ]
    if left:
        more = f" and {len(left) - 10} more" if len(left) > 10 else ""
        required = "every parameter that is trained must match a pattern"
        _checks.fail(who, required, f"none for {', '.join(left[:10])}{more}")
    return numbers
