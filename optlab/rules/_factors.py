"""Factors on the two sides of matrices, for rules that precondition them: SOAP, Shampoo.

Of a matrix G, rows by columns, the left factor belongs to the rows and is made of G Gᵀ; the right
factor belongs to the columns and is made of Gᵀ G. A large matrix may be cut in blocks, each with
factors of its own.

All products have the highest precision: with the ten bits of TF32, say, the eigenvalues of a
statistic would be right to a thousandth of the largest one, where they differ by many decades.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._tree import compute_dtype
from optlab._types import Array
from optlab.rules._leaf import Leaf
from optlab.rules._matrices import from_matrices, matrices
from optlab.rules._patterns import sees_a_part
from optlab.rules._roles import Axes, size

Factors = Mapping[str, Array]
"""The factors of a stack of blocks by side, "left" and "right"; a side that is left out has none.

For blocks of shape (…, rows, columns) they are (…, rows, rows) and (…, columns, columns).
"""

Stored = Array | tuple[Array, ...] | None
"""The factors of one side of all stacks of blocks, as a slot holds them."""


@dataclass(frozen=True)
class Plan:
    """Which sides of a leaf's matrices have factors, and how the matrices are cut in blocks.

    Attributes:
        shape: of the leaf.
        axes: which of its axes are input, output and batch.
        block_size: the most rows and columns of a block, or None. Only sides with factors are cut.
        max_dim: a side that is longer has no factors.
        one_sided: whether only the shorter side has factors; of two equal ones the rows.
    """

    shape: tuple[int, ...]
    axes: Axes
    block_size: int | None
    max_dim: int
    one_sided: bool

    def sides(self) -> list[tuple[str, ...]]:
        """Return for each stack of `blocks` the sides that have factors."""
        return [
            _sides(self, rows, columns)
            for rows, columns in self._matrices()
            for _ in _pieces(self, rows, columns)
        ]

    def blocks(self, x: Array) -> list[Array]:
        """Return the blocks of an array: stacks of shape (batch axes …, rows, columns).

        Blocks that lie side by side and have one size are one stack, in which they count along an
        axis of their own, the last before the rows.
        """
        stacks = zip(matrices(x, self.axes), self._matrices(), strict=True)
        return [_cut(stack, *piece) for stack, sizes in stacks for piece in _pieces(self, *sizes)]

    def map(self, function: Callable[..., Array], x: Array, factors: Sequence[Factors]) -> Array:
        """Return the array of which each stack of blocks is (blocks, factors) → blocks."""
        return self.joined([function(*pair) for pair in zip(self.blocks(x), factors, strict=True)])

    def joined(self, blocks: Sequence[Array]) -> Array:
        """Return the array whose `blocks` are these."""
        rest, stacks = iter(blocks), []
        for sizes in self._matrices():
            rows: dict[int, list[Array]] = {}
            for of_rows, of_columns in _pieces(self, *sizes):
                part = _uncut(next(rest), of_rows, of_columns)
                rows.setdefault(of_rows[0], []).append(part)
            stacks.append(_concatenated([_concatenated(row, -1) for row in rows.values()], -2))
        return from_matrices(stacks, self.shape, self.axes)

    def stored(self, factors: Sequence[Factors]) -> tuple[Stored, Stored]:
        """Return the factors of the left and of the right side as two slots.

        The slot of a lone stack is an array, since Flax NNX changes other containers in an update.
        """

        def of(side: str) -> Stored:
            pairs = zip(factors, self.sides(), strict=True)
            own = tuple(of_stack[side] for of_stack, sides in pairs if side in sides)
            return own[0] if len(own) == 1 else own or None

        return of("left"), of("right")

    def factors(self, left: Stored, right: Stored) -> list[Factors]:
        """Return the factors of each stack of blocks, from the slots of both sides."""
        slots: dict[str, Any] = {"left": left, "right": right}
        rest = {side: iter(x if isinstance(x, tuple) else (x,)) for side, x in slots.items()}
        return [{side: next(rest[side]) for side in sides} for sides in self.sides()]

    def _matrices(self) -> list[tuple[int, int]]:
        """Return the rows and columns of the matrices in each stack of `matrices`."""
        rows, columns = size(self.shape, self.axes.input), size(self.shape, self.axes.output)
        split = self.axes.split or (columns,)
        return [(rows, width) for width in (split if len(set(split)) > 1 else split[:1])]


def _sides(plan: Plan, rows: int, columns: int) -> tuple[str, ...]:
    left, right = rows <= plan.max_dim, columns <= plan.max_dim
    if plan.one_sided:
        left, right = left and rows <= columns, right and columns < rows
    return ("left",) * left + ("right",) * right


_Range = tuple[int, int, int]
"""Where blocks begin along a side, how many they are, and how long each is."""


@lru_cache(maxsize=4096)
def _pieces(plan: Plan, rows: int, columns: int) -> list[tuple[_Range, _Range]]:
    """Return the rows and the columns of each stack of blocks."""
    sides = _sides(plan, rows, columns)

    def ranges(length: int, is_cut: bool) -> list[_Range]:
        if plan.block_size is None or length <= plan.block_size or not is_cut:
            return [(0, 1, length)]
        count, rest = divmod(length, plan.block_size)
        tail = [(length - rest, 1, rest)] if rest else []
        return [(0, count, plan.block_size), *tail]

    return [
        (r, c) for r in ranges(rows, "left" in sides) for c in ranges(columns, "right" in sides)
    ]


def _cut(x: Array, rows: _Range, columns: _Range) -> Array:
    (top, down, height), (left, across, width) = rows, columns
    x = x[..., top : top + down * height, left : left + across * width]
    if down * across == 1:
        return x
    batch = x.shape[:-2]
    x = jnp.swapaxes(x.reshape(*batch, down, height, across, width), -3, -2)
    return x.reshape(*batch, down * across, height, width)


def _uncut(x: Array, rows: _Range, columns: _Range) -> Array:
    (_, down, height), (_, across, width) = rows, columns
    if down * across == 1:
        return x
    batch = x.shape[:-3]
    x = jnp.swapaxes(x.reshape(*batch, down, across, height, width), -3, -2)
    return x.reshape(*batch, down * height, across * width)


def _concatenated(parts: Sequence[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def plan_of(
    who: str, block_size: int | None, max_dim: int, one_sided: bool
) -> Callable[[Leaf], Plan | None]:
    """Return a function for `Rule.static`: the plan of a linear map, None for other leaves.

    Raises:
        ValueError: a size is no integer ≥ 1, or `one_sided` neither True nor False.
    """
    if block_size is not None:
        block_size = _checks.check_count(who, "block_size", block_size, 1)
    max_dim = _checks.check_count(who, "max_precondition_dim", max_dim, 1)
    one_sided = _checks.check_flag(who, "one_sided", one_sided)

    def plan(leaf: Leaf) -> Plan | None:
        if not leaf.is_linear:
            return None
        return Plan(leaf.shape, leaf.axes, block_size, max_dim, one_sided)

    return plan


def check_any_matrix(who: str, own: Sequence[Leaf]) -> None:
    """Require that a rule on matrices touches one; a `check_leaves`, once `who` is given.

    A group of parameters may have none.
    """
    if own and not sees_a_part() and not any(leaf.is_linear for leaf in own):
        names = ", ".join(f"{leaf.path} of shape {leaf.shape}" for leaf in own[:3])
        _checks.fail(
            who,
            "there must be a matrix among the parameters",
            names + (", …" if len(own) > 3 else ""),
            "name its axes, as in axes={'w': optlab.rules.Axes((0,), (1,))}, or use optlab.adamw",
        )


def factor_slot(side: str, diagonal: float) -> Callable[[Array, Plan | None], Stored]:
    """Return a function for `Rule.slots`: the factors of one side, with a number on the diagonal.

    A leaf without matrices, whose plan is None, has none.
    """

    def start(param: Array, plan: Plan | None) -> Stored:
        if plan is None:
            return None
        dtype, axis = compute_dtype(param.dtype), -2 if side == "left" else -1
        stacks = jax.eval_shape(plan.blocks, jax.ShapeDtypeStruct(param.shape, dtype))

        def factor(x: Array) -> Array:
            n = x.shape[axis]
            return jnp.zeros((*x.shape[:-2], n, n), dtype) + diagonal * jnp.eye(n, dtype=dtype)

        left, right = plan.stored([{"left": factor(x), "right": factor(x)} for x in stacks])
        return left if side == "left" else right

    return start


def count_slot(param: Array, plan: Plan | None) -> Array | None:
    """Return a count of failures from 0, for a leaf with matrices."""
    return None if plan is None else jnp.zeros((), jnp.int32)


def bounded_for_products(g: Array) -> Array:
    """Return g bounded so that its sum of squares is finite, with NaN in place of ±Inf.

    A vector's elements are bounded by 2⁶³ (float64: 2⁵¹¹), those of a larger array by as much less
    as keeps its norm below that.
    """
    exponent = jnp.finfo(g.dtype).maxexp // 2 - 1
    if g.ndim > 1:
        exponent -= math.ceil(math.log2(max(g.size, 1)) / 2)
    bound = np.asarray(2.0**exponent, g.dtype)
    return jax.lax.clamp(-bound, g, bound) + (g - g)


def product(x: Array, y: Array) -> Array:
    """Return the matrix product x y with all digits of its type."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def transposed(x: Array) -> Array:
    """Return matrices with rows for columns."""
    return jnp.swapaxes(x, -1, -2)


def multiplied(x: Array, factors: Factors) -> Array:
    """Return L x R, where L and R are the factors of x; a side without a factor stays."""
    if "left" in factors:
        x = product(factors["left"], x)
    return product(x, factors["right"]) if "right" in factors else x


def updated_statistics(
    plan: Plan, g: Array, old: Sequence[Factors], combine: Callable[[Array, Array], Array]
) -> tuple[list[Factors], Array]:
    """Return the statistics with a gradient in them, and whether all were finite.

    Args:
        plan: of the leaf.
        g: its gradient.
        old: the statistics before, by stack of blocks; one whose successor is not finite stays.
        combine: (statistic, G Gᵀ or Gᵀ G) → the new statistic.
    """
    new, checks = [], []
    for x, before in zip(plan.blocks(g), old, strict=True):
        of_stack = {}
        for side, square in statistics(x, tuple(before)).items():
            combined = combine(before[side], square)
            of_stack[side], is_finite = finite_or_old(combined, before[side])
            checks.append(is_finite)
        new.append(of_stack)
    return new, all_of(checks)


def statistics(x: Array, sides: Sequence[str]) -> dict[str, Array]:
    """Return x xᵀ for the left and xᵀ x for the right side."""
    of_side = {
        "left": lambda: product(x, transposed(x)),
        "right": lambda: product(transposed(x), x),
    }
    return {side: of_side[side]() for side in sides}


def decomposed(function: Callable[[Array], Array], x: Array) -> Array:
    """Return what a decomposition makes of matrices, (…, n, n) → (…, n, n), without derivatives.

    A CPU takes the matrices of a stack one after the other. jaxlib decomposes a stack on the
    threads that execute programs, and several stacks, of one program or of the programs of a sweep,
    can wait for each other's threads for ever.
    """
    x = jax.lax.stop_gradient(x)
    one_by_one = jnp.vectorize(
        jax.custom_batching.sequential_vmap(function), signature="(n,n)->(n,n)"
    )

    def run(x: Array) -> Array:
        return jax.lax.platform_dependent(x, cpu=one_by_one, default=function)

    # JAX does not decompose stacks that explicit mesh axes shard; there the compiler places them.
    sharding: Any = jax.typeof(x).sharding
    if jax.sharding.AxisType.Explicit not in sharding.mesh.axis_types:
        return run(x)
    automatic: Any = jax.sharding.auto_axes(run, out_sharding=sharding)
    return automatic(x)


def finite_or_old(new: Array, old: Array) -> tuple[Array, Array]:
    """Return new matrices where they are finite and the old ones elsewhere.

    Returns:
        The matrices, and whether each new one is finite, (…, 1, 1).
    """
    is_finite = jnp.isfinite(new).all(axis=(-2, -1), keepdims=True)
    return jnp.where(is_finite, new, old), is_finite


def all_of(checks: Sequence[Array]) -> Array:
    """Return whether all elements of all arrays of booleans are true."""
    return reduce(jnp.logical_and, map(jnp.all, checks), jnp.bool_(True))


def counted(failures: Array, succeeded: Array) -> Array:
    """Return a count of failures after an update; it ends at the largest integer."""
    may_grow = ~succeeded & (failures < jnp.iinfo(failures.dtype).max)
    return jnp.where(may_grow, failures + 1, failures)


def only_where_due(is_due: Array, renew: Callable[[], Any], keep: Callable[[], Any]) -> Any:
    """Return renew() where it is due, else keep(); renew is computed only if it is due anywhere.

    Under `jax.vmap` a conditional would compute both for every lane at every step. Here it is
    computed for all lanes at the steps at which it is due for one.
    """

    def renew_some() -> Any:
        return jax.tree.map(partial(jnp.where, is_due), renew(), keep())

    return jax.lax.cond(_anywhere(is_due), renew_some, keep)


@jax.custom_batching.custom_vmap
def _anywhere(flag: Array) -> Array:
    """Return whether a flag is set in any lane of the `jax.vmap` around."""
    return flag


@_anywhere.def_vmap
def _anywhere_in_lanes(size: int, in_batched: Any, flag: Array) -> tuple[Array, bool]:
    return _anywhere(jnp.any(flag) if in_batched[0] else flag), False
