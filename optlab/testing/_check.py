"""What a check is, and how it refuses, compares and waits for errors."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from optlab.registry import Row

Applies = Callable[[Row], bool]


@dataclass(frozen=True)
class Check:
    """One property that a transformation must have.

    Attributes:
        name: of the property, such as "scan_equals_loop".
        function: raises an AssertionError where a row lacks the property.
        about: "rule" for what the arithmetic of one rule can break, "lift" for what belongs to the
            machinery around the arithmetic.
        applies: whether a row can be checked.
        meaning: a sentence that says what a failure means.
        remedy: what usually mends it.
    """

    name: str
    function: Callable[[Row], None]
    about: Literal["rule", "lift"]
    applies: Applies
    meaning: str
    remedy: str

    def __call__(self, row: Row) -> None:
        """Check a row."""
        self.function(row)


CHECKS: dict[str, Check] = {}
"""All checks by name."""


def check(
    about: Literal["rule", "lift"], applies: Applies = lambda row: True
) -> Callable[[Callable[[Row], None]], Callable[[Row], None]]:
    """Register a check; its docstring is the meaning of a failure, "Mend:" and the remedy."""

    def register(function: Callable[[Row], None]) -> Callable[[Row], None]:
        meaning, _, remedy = " ".join((function.__doc__ or "").split()).partition(" Mend: ")
        CHECKS[function.__name__] = Check(
            function.__name__, function, about, applies, meaning, remedy
        )
        return function

    return register


def require(condition: Any, message: str = "") -> None:
    """Raise an AssertionError unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def begins(row: Row) -> str:
    """Return what the row's errors begin with, as a regular expression.

    It is the name of the constructor where that is a public function. Around a transformation that
    is made already, and in a lambda, the name is the function's within.
    """
    constructor = row.constructor
    name = getattr(constructor, "__name__", "")
    module = sys.modules.get(getattr(constructor, "__module__", None) or "")
    is_public = getattr(module, name, None) is constructor
    return f"^{re.escape(name)}: " if is_public else r"^[\w.]+: "


@contextmanager
def refuses(message: str, what: str) -> Iterator[None]:
    """Require that the block raises a ValueError whose text matches a regular expression."""
    try:
        yield
    except ValueError as error:
        require(re.search(message, str(error)), f"{what} gave the error {error}, not {message}")
    else:
        raise AssertionError(f"{what} was accepted; an error like {message} is required")


def require_identical(a: Any, b: Any) -> None:
    """Require the same structure, types and numbers; −0 equals 0, and NaN equals NaN."""
    require(jax.tree.structure(a) == jax.tree.structure(b), "structures differ")
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        require(x.dtype == y.dtype, f"types differ: {x.dtype} and {y.dtype}")
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def require_close(a: Any, b: Any, rtol: float) -> None:
    """Require closeness relative to each leaf's largest element, where rounding errors arise."""
    require(jax.tree.structure(a) == jax.tree.structure(b), "structures differ")
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        require(x.shape == y.shape, f"shapes differ: {x.shape} and {y.shape}")
        if y.size:
            np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max())


def require_finite(tree: Any, what: str = "the update") -> None:
    """Require that a tree holds no NaN and no infinity."""
    for leaf in jax.tree.leaves(tree):
        require(bool(np.isfinite(np.asarray(leaf, complex)).all()), f"{what} is {leaf}")
