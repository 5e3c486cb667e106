"""Early stopping as a pure object: it takes a value at each check and says when to stop.

    improved    v < best − min_delta  (mode "min"),  v > best + min_delta  (mode "max");
                the first finite value always, and one that reaches the target
    stop        after `patience` checks in a row that did not improve; at a value that is as good as
                `target`, worse than `divergence`, or not finite

v is the value of this check; best is the value of the last check that improved. Checks before
`start` updates count for nothing, unless their value is not finite.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, keystr

from optlab import _checks
from optlab._types import Array, ArrayLike, Tree

_WHO = "EarlyStopping"
_STATIC = ("patience", "min_delta", "mode", "stop_on_nonfinite", "start", "target", "divergence")
_DYNAMIC = (
    "should_stop",
    "improved",
    "last_value",
    "best_value",
    "best_check",
    "num_checks",
    "num_bad",
    "best_params",
)


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, init=False, eq=False)
class EarlyStopping:
    """When to stop training, and the best parameters so far.

    The object is immutable: `update` returns a new one. It is a pytree whose structure and types
    never change, so that it can be passed through `jit`, carried by `lax.scan`, and run in lanes
    under `vmap`. Once it has stopped it no longer changes, while other lanes may continue.

    Args:
        patience: stop after this many checks in a row without improvement, ≥ 1.
        min_delta: by how much a value must be better to count as an improvement, ≥ 0; in the unit
            of the value.
        mode: "min" if lower values are better, as for a loss; "max" if higher ones are.
        best_params: initial parameters, in the structure and types of the later ones; the object
            then stores a copy of the parameters of the best check, and these until there is one.
            None to store no parameters.
        stop_on_nonfinite: whether to stop at once at NaN or an infinity; if not, such a check
            counts as one without improvement.
        start: updates done before the first check that counts, ≥ 0; if above 0, `update` must be
            told the updates done.
        target: a value that is good enough to stop at; None for none.
        divergence: a value so bad that training stops if the value of a check is worse; None for
            none.

    Attributes:
        should_stop: () bool; whether to stop.
        improved: () bool; whether the last check improved.
        last_value: () float; the value of the last check, 0 before the first.
        best_value: () float; the value of the best check; until there is one, ∞ in mode "min" and
            −∞ in mode "max".
        best_check: () int32; the number of the best check, from 1; 0 before there is one.
        num_checks: () int32; the number of checks until it stopped.
        num_bad: () int32; the number of checks in a row without improvement.
        best_params: the parameters of the best check.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> stopper = EarlyStopping(patience=2, min_delta=0.01, best_params={"w": 0.0})
        >>> for epoch, loss in enumerate([0.9, 0.5, 0.6, 0.495, 0.3]):
        ...     stopper = stopper.update(loss, {"w": float(epoch)})
        ...     if stopper.should_stop:
        ...         break
        >>> epoch, stopper.reason
        (3, 'no improvement of more than 0.01 in 2 checks since check 2 (best 0.5)')
        >>> print(stopper.best_params["w"])
        1.0
    """

    patience: int
    min_delta: float
    mode: str
    stop_on_nonfinite: bool
    start: int
    target: float | None
    divergence: float | None
    should_stop: Array
    improved: Array
    last_value: Array
    best_value: Array
    best_check: Array
    num_checks: Array
    num_bad: Array
    best_params: Tree = field(repr=False)

    def __init__(
        self,
        patience: int = 3,
        *,
        min_delta: float = 0.0,
        mode: str = "min",
        best_params: Tree | None = None,
        stop_on_nonfinite: bool = True,
        start: int = 0,
        target: float | None = None,
        divergence: float | None = None,
    ):
        patience = _checks.check_count(_WHO, "patience", patience, 1)
        if not _is_number(min_delta) or not 0 <= min_delta < math.inf:
            _checks.fail(_WHO, "min_delta must be a number >= 0", f"min_delta={min_delta!r}")
        if mode not in ("min", "max"):
            _checks.fail(_WHO, "mode must be 'min' or 'max'", f"mode={mode!r}")
        stop_on_nonfinite = _checks.check_flag(_WHO, "stop_on_nonfinite", stop_on_nonfinite)
        start = _checks.check_count(_WHO, "start", start, 0)
        target, divergence = _checked_limits(mode, target, divergence)
        self._set(
            patience=patience,
            min_delta=float(min_delta),
            mode=mode,
            stop_on_nonfinite=stop_on_nonfinite,
            start=start,
            target=target,
            divergence=divergence,
            should_stop=jnp.zeros((), bool),
            improved=jnp.zeros((), bool),
            last_value=jnp.zeros((), float),
            best_value=jnp.full((), jnp.inf if mode == "min" else -jnp.inf, float),
            best_check=jnp.zeros((), jnp.int32),
            num_checks=jnp.zeros((), jnp.int32),
            num_bad=jnp.zeros((), jnp.int32),
            best_params=_copied(best_params),
        )

    def update(
        self, value: ArrayLike, params: Tree | None = None, *, step: ArrayLike | None = None
    ) -> "EarlyStopping":
        """Return the stopper after one more check; the same stopper if it has stopped already.

        Args:
            value: () real; compared in float32 (float64 where x64 is enabled).
            params: the parameters that gave the value, in the structure and shapes of
                `best_params`; they are stored in the types of `best_params`. Ignored if the object
                stores no parameters.
            step: () int, the updates done; needed if `start` is above 0.

        Raises:
            ValueError: the value is not a real scalar, the object stores parameters and `params` is
                missing or has another structure or shape, or `step` is missing.
        """
        value = _checked_value(value)
        if self.start and step is None:
            remedy = "call update(value, step=updates_done)"
            required = f"update must be given the updates done if start={self.start}"
            _checks.fail(_WHO, required, "step=None", remedy)
        if self.best_params is not None:
            _check_params(params, self.best_params)
        finite = jnp.isfinite(value)
        if self.mode == "min":
            better = value < self.best_value - self.min_delta
        else:
            better = value > self.best_value + self.min_delta
        counts = ~self.should_stop
        if self.start:
            counts &= (jnp.asarray(step) >= self.start) | (self.stop_on_nonfinite & ~finite)
        reaches = self._reaches_target(value)
        improved = counts & finite & (better | reaches)
        num_checks = self.num_checks + counts
        num_bad = jnp.where(improved, 0, self.num_bad + counts)
        stop = (num_bad >= self.patience) | reaches | self._is_divergent(value)
        if self.stop_on_nonfinite:
            stop |= ~finite
        return self._with(
            should_stop=self.should_stop | (counts & stop),
            improved=jnp.where(counts, improved, self.improved),
            last_value=jnp.where(counts, value, self.last_value),
            best_value=jnp.where(improved, value, self.best_value),
            best_check=jnp.where(improved, num_checks, self.best_check),
            num_checks=num_checks,
            num_bad=num_bad,
            best_params=jax.tree.map(
                lambda best, p: jnp.where(improved, jnp.asarray(p, best.dtype), best),
                self.best_params,
                None if self.best_params is None else params,
            ),
        )

    def keeping(self, params: Tree) -> "EarlyStopping":
        """Return a copy that stores the best parameters, starting with `params`.

        Args:
            params: a tree of arrays, which are copied.
        """
        return self._with(best_params=_copied(params))

    @property
    def cause(self) -> str | None:
        """Why it stopped, in a word; None if it has not stopped.

        It is "patience", "target", "divergence", for a value worse than that, or "not finite".

        Raises:
            ValueError: the stopper is traced, or holds several lanes.
        """
        self._check_readable("cause")
        if not self.should_stop:
            return None
        if self.stop_on_nonfinite and not np.isfinite(self.last_value):
            return "not finite"
        if self._reaches_target(self.last_value):
            return "target"
        return "divergence" if self._is_divergent(self.last_value) else "patience"

    @property
    def reason(self) -> str | None:
        """Why it stopped, as a sentence; None if it has not stopped.

        Raises:
            ValueError: the stopper is traced, or holds several lanes.
        """
        self._check_readable("reason")
        value = f"{self.last_value:.6g}"
        match self.cause:
            case None:
                return None
            case "not finite":
                return f"the value was not finite ({self.last_value}) at check {self.num_checks}"
            case "target":
                word, limit = "reached the target", self.target
            case "divergence":
                word, limit = "was worse than", self.divergence
            case _:
                return self._reason_of_patience()
        return f"the value {word} {limit:g} at check {self.num_checks} ({value})"

    def _reason_of_patience(self) -> str:
        checks = "1 check" if self.patience == 1 else f"{self.patience} checks"
        if self.best_check == 0:
            return f"no finite value in {checks}"
        by = f" of more than {self.min_delta:g}" if self.min_delta else ""
        return (
            f"no improvement{by} in {checks} since check {self.best_check} "
            f"(best {self.best_value:.6g})"
        )

    def _check_readable(self, what: str) -> None:
        if isinstance(self.should_stop, jax.core.Tracer):
            required = f"{what} must be read outside of jit, scan and vmap"
            _checks.fail(_WHO, required, "a traced stopper")
        if np.ndim(self.should_stop):
            _checks.fail(
                _WHO,
                f"{what} must be that of one stopper",
                f"lanes of shape {np.shape(self.should_stop)}",
                "take one with jax.tree.map(lambda x: x[0], stopper)",
            )

    def _reaches_target(self, value: Array) -> Array:
        """Return whether a value is as good as the target, a () bool."""
        if self.target is None:
            return jnp.zeros((), bool)
        return value <= self.target if self.mode == "min" else value >= self.target

    def _is_divergent(self, value: Array) -> Array:
        """Return whether a value is worse than that of divergence, a () bool."""
        if self.divergence is None:
            return jnp.zeros((), bool)
        return value > self.divergence if self.mode == "min" else value < self.divergence

    def _with(self, **changes: Any) -> "EarlyStopping":
        new = object.__new__(type(self))
        new._set(**{**vars(self), **changes})
        return new

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def tree_flatten_with_keys(self) -> tuple[Sequence[tuple[Any, Any]], tuple[Any, ...]]:
        """Return the arrays with their names, and the static values, for JAX."""
        children = [(GetAttrKey(name), getattr(self, name)) for name in _DYNAMIC]
        return children, tuple(getattr(self, name) for name in _STATIC)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], children: Sequence[Any]) -> "EarlyStopping":
        """Undo `tree_flatten_with_keys`; JAX may pass other objects in place of the arrays."""
        new = object.__new__(cls)
        new._set(**dict(zip(_STATIC, static, strict=True)))
        new._set(**dict(zip(_DYNAMIC, children, strict=True)))
        return new


def _copied(params: Tree) -> Tree:
    return jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p)), params)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _checked_limits(
    mode: str, target: float | None, divergence: float | None
) -> tuple[float | None, float | None]:
    limits = {"target": target, "divergence": divergence}
    for name, limit in limits.items():
        if limit is not None:
            _checks.check_number(_WHO, name, limit, _checks.FINITE, kinds="a number or None")
            limits[name] = float(limit)
    target, divergence = limits.values()
    if target is None or divergence is None:
        return target, divergence
    if not (target < divergence if mode == "min" else target > divergence):
        better = "below" if mode == "min" else "above"
        required = f"target must be {better} divergence={divergence:g}, as mode={mode!r}"
        _checks.fail(_WHO, required, f"target={target:g}")
    return target, divergence


def _checked_value(value: ArrayLike) -> Array:
    dtype = value.dtype if isinstance(value, jax.Array) else np.asarray(value).dtype
    shape = np.shape(value)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)) or shape:
        _checks.fail(
            _WHO,
            "value must be a real scalar",
            f"shape {shape}" if shape else repr(value),
            "map over lanes with jax.vmap" if shape else "",
        )
    return jnp.asarray(value, float)


def _check_params(params: Tree, best_params: Tree) -> None:
    if params is None:
        _checks.fail(
            _WHO,
            "update must be given the parameters if best_params is set",
            "params=None",
            "call update(value, params), or leave best_params out at construction",
        )
    if jax.tree.structure(params) != jax.tree.structure(best_params):
        _checks.fail(
            _WHO,
            f"params must have the structure of best_params, {jax.tree.structure(best_params)}",
            str(jax.tree.structure(params)),
        )
    leaves = jax.tree_util.tree_leaves_with_path(best_params)
    for (path, best), p in zip(leaves, jax.tree.leaves(params), strict=True):
        if jnp.shape(p) != best.shape:
            _checks.fail(
                _WHO,
                f"params{keystr(path)} must have the shape {best.shape} of best_params",
                f"{jnp.shape(p)}",
            )
