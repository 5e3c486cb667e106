"""The one form of error: who, what is required, what came, and what to do where it is not plain.

adamw: b1 must be in [0, 1), got b1=1.0
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from optlab._types import Array, DTypeLike, Tree


@dataclass(frozen=True)
class Domain:
    """The set of numbers a hyperparameter may take."""

    description: str
    contains: Callable[[np.ndarray], np.ndarray]


FINITE = Domain("finite", np.isfinite)
NONNEGATIVE = Domain("finite and >= 0", lambda x: np.isfinite(x) & (x >= 0))
POSITIVE = Domain("finite and > 0", lambda x: np.isfinite(x) & (x > 0))
DECAY = Domain("in [0, 1)", lambda x: (x >= 0) & (x < 1))
INSIDE = Domain("in (0, 1)", lambda x: (x > 0) & (x < 1))
SHARE = Domain("in (0, 1]", lambda x: (x > 0) & (x <= 1))
AT_LEAST_ONE = Domain("finite and >= 1", lambda x: np.isfinite(x) & (x >= 1))


def fail(who: str, required: str, got: str, remedy: str = "") -> NoReturn:
    """Raise the ValueError `who: required, got …; remedy`."""
    raise ValueError(f"{who}: {required}, got {got}" + (f"; {remedy}" if remedy else ""))


def check_number(who: str, name: str, value: Any, domain: Domain) -> None:
    """Require a real scalar in `domain`; of a traced array only shape and type can be checked."""
    dtype = _number_dtype(value)
    if dtype is None:
        fail(who, f"{name} must be a number, an array or a schedule", f"{name}={value!r}")
    if np.ndim(value):
        fail(
            who,
            f"{name} must be a scalar",
            f"shape {np.shape(value)}",
            "map over several values with jax.vmap",
        )
    if jnp.issubdtype(dtype, jnp.complexfloating):
        fail(who, f"{name} must be real", f"{name}={value}")
    if isinstance(value, jax.core.Tracer):
        return
    with np.errstate(invalid="ignore"):
        if not domain.contains(np.asarray(value, np.float64)):
            narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
            fail(
                who,
                f"{name} must be {domain.description}",
                f"{name}={value}",
                f"{dtype} may have rounded it: pass float32 (inject_hyperparams has an option "
                "hyperparam_dtype)"
                if narrow
                else "",
            )


def _number_dtype(value: Any) -> np.dtype | None:
    """Return the type of a number or array of numbers; None if it is neither."""
    try:
        dtype = value.dtype if isinstance(value, jax.Array) else np.asarray(value).dtype
    except ValueError:  # a ragged list
        return None
    return dtype if jnp.issubdtype(dtype, jnp.number) else None


def check_count(who: str, name: str, value: Any, minimum: int) -> None:
    """Require an integer number of updates, known at construction, of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        fail(who, f"{name} must be an integer >= {minimum}", f"{name}={value!r}")


def check_float_dtype(who: str, name: str, dtype: DTypeLike | None) -> None:
    """Require None or a floating-point type."""
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        fail(who, f"{name} must be a floating-point type or None", f"{name}={dtype!r}")


def check_inexact(who: str, what: str, path: Any, leaf: Array) -> None:
    """Require a floating-point or complex leaf; an integer has no direction to move in."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        fail(
            who,
            f"{what} must be floating point or complex",
            f"{leaf.dtype} at {_name(path)}",
            "leave this leaf out with optax.masked, optax.partition or your model library's filter "
            "(eqx.is_inexact_array)",
        )


def check_same_shape(who: str, path: Any, update: Array, other: Array, what: str) -> None:
    """Require that a gradient has the shape of the parameter or slot it belongs to."""
    if update.shape != other.shape:
        fail(
            who,
            f"the gradient at {_name(path)} must have the shape {other.shape} of the {what}",
            f"{update.shape}",
        )


def fail_structure(who: str, what: str, updates: Tree, other: Tree, remedy: str) -> NoReturn:
    """Say where two trees that should be alike part."""
    ours, theirs = (
        {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (updates, other)
    )
    only_updates, only_other = sorted(ours - theirs), sorted(theirs - ours)
    got = [f"{path} only in the gradients" for path in only_updates[:3]]
    got += [f"{path} only in the {what}" for path in only_other[:3]]
    fail(
        who,
        f"gradients and {what} must be trees of the same structure",
        ", ".join(got)
        or f"{jax.tree.structure(updates)} for the gradients and {jax.tree.structure(other)}",
        remedy,
    )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path) or "the root"
