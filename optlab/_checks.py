"""The one form of error: who, what is required, what came, and what to do where it is not plain.

adamw: b1 must be in [0, 1), got b1=1.0
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from optlab._domains import (
    ABOVE_ONE,
    ANY,
    AT_LEAST_ONE,
    DECAY,
    FINITE,
    INSIDE,
    NONNEGATIVE,
    NONNEGATIVE_OR_INFINITE,
    POSITIVE,
    SHARE,
    UNIT,
    Domain,
    fail,
)
from optlab._types import Array, DTypeLike, Tree

__all__ = [
    "ABOVE_ONE",
    "ANY",
    "AT_LEAST_ONE",
    "DECAY",
    "FINITE",
    "INSIDE",
    "NONNEGATIVE",
    "NONNEGATIVE_OR_INFINITE",
    "POSITIVE",
    "SHARE",
    "UNIT",
    "Domain",
    "fail",
]


def check_number(
    who: str,
    name: str,
    value: Any,
    domain: Domain,
    *,
    kinds: str = "a number or a scalar array",
    dtype: DTypeLike | None = None,
) -> Any:
    """Require a real scalar in `domain`, also once it is rounded to `dtype` where that is given.

    Of a traced array only shape and type can be checked.

    Returns:
        The value as it is, but an array of shape (1,) as the scalar that it holds.
    """
    own_dtype = _number_dtype(value)
    if own_dtype is None:
        fail(who, f"{name} must be {kinds}", f"{name}={value!r}")
    if isinstance(value, jax.Array | np.ndarray) and value.shape == (1,):
        value = value.reshape(())
    if np.ndim(value):
        fail(
            who,
            f"{name} must be a scalar",
            f"shape {np.shape(value)}",
            "map over several values with jax.vmap",
        )
    if jnp.issubdtype(own_dtype, jnp.complexfloating):
        fail(who, f"{name} must be real", f"{name}={value}")
    if isinstance(value, jax.core.Tracer):
        return value
    number = np.asarray(value, np.float64)
    if not domain.contains(number):
        narrow = jnp.issubdtype(own_dtype, jnp.floating) and jnp.finfo(own_dtype).bits < 32
        fail(
            who,
            f"{name} must be {domain.description}",
            f"{name}={value}",
            f"{own_dtype} may have rounded it: pass float32 (inject_hyperparams has an option "
            "hyperparam_dtype)"
            if narrow
            else "",
        )
    if dtype is not None:
        with np.errstate(over="ignore", under="ignore"):
            rounded = number.astype(dtype)
        # XLA takes numbers below the smallest normal one for 0 on some devices.
        vanished = number != 0 and abs(rounded) < float(jnp.finfo(dtype).tiny)
        if vanished or not domain.contains(rounded):
            fail(
                who,
                f"{name} must be {domain.description} in {jnp.dtype(dtype).name}",
                f"{name}={value}",
            )
    return value


def _number_dtype(value: Any) -> np.dtype | None:
    """Return the type of a number or array of numbers; None if it is neither."""
    try:
        dtype = value.dtype if isinstance(value, jax.Array) else np.asarray(value).dtype
    except ValueError:  # a ragged list
        return None
    return dtype if jnp.issubdtype(dtype, jnp.number) else None


def check_count(who: str, name: str, value: Any, minimum: int) -> int:
    """Require a whole number, known at construction, of at least `minimum`; return it as an int.

    Its type does not matter: 50, `5.0 * 10` and `np.array(50)` are the same number of updates.
    """
    count = _whole(value)
    if count is None or count < minimum:
        remedy = "pass a Python int (inject_hyperparams: name it in static_args)"
        fail(
            who,
            f"{name} must be an integer >= {minimum}",
            f"{name}={value!r}",
            remedy if isinstance(value, (jax.Array, np.ndarray)) else "",
        )
    if count >= 2**31:
        fail(who, f"{name} must be below 2**31, where int32 ends", f"{name}={value}")
    return count


def check_integer(who: str, name: str, value: Any, minimum: int) -> None:
    """Require a Python or NumPy integer of at least `minimum`, as what indexes or counts runs."""
    if not isinstance(value, int | np.integer):
        fail(who, f"{name} must be an integer >= {minimum}", f"{name}={value!r}")
    check_count(who, name, value, minimum)


def _whole(value: Any) -> int | None:
    """Return a concrete whole number of any type as an int; None if it is none."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if isinstance(value, jax.core.Tracer):
        return None
    dtype = _number_dtype(value)
    if dtype is None or np.ndim(value) or jnp.issubdtype(dtype, jnp.complexfloating):
        return None
    if jnp.issubdtype(dtype, jnp.floating) and not float(value).is_integer():
        return None
    return int(value)


def check_flag(who: str, name: str, value: Any) -> bool:
    """Require True or False, and nothing that merely counts as one; return it as a bool."""
    if not isinstance(value, bool | np.bool_):
        fail(who, f"{name} must be True or False", f"{name}={value!r}")
    return bool(value)


def check_choice(who: str, name: str, value: Any, choices: Sequence[Any]) -> Any:
    """Require one of a few values; return it."""
    if not any(value is choice or value == choice for choice in choices):
        required = f"{name} must be one of {', '.join(map(repr, choices))}"
        fail(who, required, f"{name}={value!r}")
    return value


def check_float_dtype(who: str, name: str, dtype: DTypeLike | None) -> None:
    """Require None or a floating-point type."""
    try:
        floating = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:  # not a type at all
        floating = False
    if not floating:
        fail(who, f"{name} must be a floating-point type or None", f"{name}={dtype!r}")


def check_inexact(who: str, what: str, path: Any, leaf: Array) -> None:
    """Require a floating-point or complex leaf; an integer has no direction to move in."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        fail(
            who,
            f"{what} must be floating point or complex",
            f"{leaf.dtype} at {path_text(path)}",
            "leave this leaf out with optax.masked, optax.partition or your model library's filter "
            "(eqx.is_inexact_array)",
        )


def check_transformation(who: str, tx: Any, name: str = "tx") -> None:
    """Require a transformation as the argument of this name."""
    if not all(callable(getattr(tx, name, None)) for name in ("init", "update")):
        fail(
            who,
            f"{name} must be an optax.GradientTransformation",
            repr(tx),
            "pass optlab.adam(1e-3), say",
        )


def check_state_kind(who: str, state: Any, kind: type) -> None:
    """Require the NamedTuple that `init` returns."""
    if not isinstance(state, kind):
        fail_state(who, kind.__name__, state)


def fail_state(who: str, required: str, state: Any) -> NoReturn:
    """Say that a state is not one that `init` of this transformation returned."""
    origin = _origin(state)
    of_optax = origin.split(".")[0] == "optax"
    fail(
        who,
        f"update must be given the state that init returned, a {required}",
        f"a state of {origin}" if of_optax else type(state).__name__,
        "carry it over with optlab.dialects.optax.from_state(tx, params, state)"
        if of_optax
        else "call update(gradients, state, params)",
    )


def _origin(state: Any) -> str:
    """Return the module and the name of a state's type, of a chain those of its first state."""
    if type(state) is tuple and state:
        return _origin(state[0])
    return f"{type(state).__module__}.{type(state).__name__}".replace("optax._src", "optax")


def check_same_shape(who: str, path: Any, update: Array, other: Array, what: str) -> None:
    """Require that a gradient has the shape of the parameter or slot it belongs to."""
    if jnp.shape(update) != jnp.shape(other):
        fail(
            who,
            f"the gradient at {path_text(path)} must have the shape {jnp.shape(other)} of the "
            f"{what}",
            f"{jnp.shape(update)}",
        )


def fail_structure(who: str, what: str, updates: Tree, other: Tree, remedy: str) -> NoReturn:
    """Say where two trees that should be alike part."""
    ours, theirs = (
        {path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
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


def path_text(path: Any) -> str:
    """Return the path of a leaf as errors show it."""
    return jax.tree_util.keystr(path) or "the root"
