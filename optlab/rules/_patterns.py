"""Patterns of paths: regular expressions that match whole names on a path.

"head" matches "head/kernel" and "decoder/head/bias", but not "heads/kernel"; ".*norm.*/scale"
matches "block/layer_norm/scale". The paths are those of `optlab.describe`: the names of a Flax NNX,
Linen or Equinox model, or the keys of any tree, joined by "/".
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

import jax

from optlab import _checks
from optlab._types import Tree
from optlab.rules._leaf import AxesChoice, AxesOf, path_name, without_part
from optlab.rules._roles import Axes


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(f"(?:^|/)(?:{pattern})(?:/|$)")


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches whole names, one after the other, anywhere on a path."""
    return _compiled(pattern).search(without_part(path)) is not None


def check_patterns(who: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """Require regular expressions; return them as a tuple."""
    if isinstance(patterns, str):
        required = "patterns must be a sequence of strings"
        _checks.fail(who, required, repr(patterns), f"write [{patterns!r}]")
    for pattern in patterns:
        if not isinstance(pattern, str):
            remedy = "write paths_matching('bias', 'norm'), say"
            _checks.fail(who, "patterns must be strings", repr(pattern), remedy)
        try:
            _compiled(pattern)
        except re.error as error:
            required = "patterns must be regular expressions"
            _checks.fail(who, required, f"{pattern!r} ({error})", "put a backslash before . or (")
    return tuple(patterns)


_all_paths: ContextVar[Sequence[str] | None] = ContextVar("all paths", default=None)


@contextmanager
def part_of(paths: Sequence[str]) -> Iterator[None]:
    """Let patterns and masks be those of a larger tree, whose paths these are.

    A transformation may see only a group of the parameters, in which a pattern matches nothing.
    """
    token = _all_paths.set(paths)
    try:
        yield
    finally:
        _all_paths.reset(token)


def sees_a_part() -> bool:
    """Whether a transformation sees only some of the parameters that its patterns are meant for."""
    return _all_paths.get() is not None


def check_all_match(who: str, patterns: Sequence[str], paths: Sequence[str]) -> None:
    """Require that each pattern matches a path, so that a slip of the pen is not silent."""
    paths = _all_paths.get() or paths
    for pattern in patterns:
        if paths and not any(matches(pattern, path) for path in paths):
            names = sorted({name for path in paths for name in (path, *path.split("/"))})
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
            there = close or sorted(paths)[:5]
            _checks.fail(
                who,
                "each pattern must match whole names on some path",
                f"{pattern!r}, which matches none",
                f"{'did you mean' if close else 'there are'} {', '.join(there)}"
                f"{'?' if close else ', …' if len(paths) > 5 else ''}",
            )


def paths_matching(*patterns: str) -> Callable[[Tree], Tree]:
    """Return a mask: True for the parameters whose path one of the patterns matches.

    Args:
        *patterns: regular expressions that match whole names on a path, joined by "/".

    Returns:
        (parameters) → a tree of booleans, for every argument that takes a mask.

    Raises:
        ValueError: a pattern is no regular expression; where the mask is used, one matches nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"dense": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
        >>> paths_matching("bias")(params)
        {'dense': {'bias': True, 'kernel': False}}
    """
    return _mask("paths_matching", patterns, True)


def paths_not_matching(*patterns: str) -> Callable[[Tree], Tree]:
    """Return a mask: True for the parameters whose path none of the patterns matches.

    Args:
        *patterns: as for `paths_matching`.

    Returns:
        (parameters) → a tree of booleans, for every argument that takes a mask.

    Raises:
        ValueError: a pattern is no regular expression; where the mask is used, one matches nothing.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
        >>> tx = optlab.adamw(0.1, weight_decay=0.5, mask=paths_not_matching("bias"))
        >>> [(one.path, one.decays) for one in optlab.describe(tx, params)]
        [('bias', ()), ('kernel', (0.5,))]
    """
    return _mask("paths_not_matching", patterns, False)


def _mask(who: str, patterns: Sequence[str], of_match: bool) -> Callable[[Tree], Tree]:
    patterns = check_patterns(who, patterns)

    def mask(params: Tree) -> Tree:
        paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        check_all_match(who, patterns, paths)
        return jax.tree_util.tree_map_with_path(
            lambda path, _: of_match == any(matches(p, path_name(path)) for p in patterns), params
        )

    return mask


@dataclass(frozen=True)
class AxesByPattern:
    """Axes of the leaves whose paths patterns match; the first that matches decides.

    Attributes:
        choices: pattern → axes.
    """

    choices: Mapping[str, Axes]

    def __call__(self, path: str, shape: tuple[int, ...]) -> Axes | None:
        """Return the axes of a leaf, or None for those that its names give it."""
        own = (axes for pattern, axes in self.choices.items() if matches(pattern, path))
        return next(own, None)


def axes_of(who: str, axes: AxesChoice | None) -> AxesOf | None:
    """Return the axes of leaves as a function, from one or from a mapping by patterns."""
    if not isinstance(axes, Mapping):
        if axes is not None and not callable(axes):
            required = "axes must be a function of path and shape, or a mapping of patterns to Axes"
            _checks.fail(who, required, repr(axes), "write axes={'head': Axes((0,), (1,))}, say")
        return axes
    check_patterns(who, tuple(axes))
    return AxesByPattern(axes)
