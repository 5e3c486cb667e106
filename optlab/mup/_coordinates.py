"""The coordinate check: whether activations change as much in wide models as in narrow ones."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._report import aligned, number
from optlab._types import Array, Tree
from optlab.rules._leaf import path_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_STEPS = 3
"""The fewest updates of a check: behind a head of zeros nothing changes in the first one."""

LOST = -0.5
"""A slope below this one says that a power of the width is lost, if nothing grows with it."""

Loss = Callable[[Tree, Any], tuple[Array, Any]]
"""(parameters, batch) → the loss, and the activations that are watched."""

Make = Callable[[int, Array], tuple[Tree, Loss]]
"""(width, key) → the parameters of a model of this width, and its loss."""


@dataclass(frozen=True)
class CoordinateCheck:
    """How much activations change within a few updates, over widths.

    Attributes:
        names: the activations, in the order in which the model names them.
        widths: (widths,) int.
        changes: (widths, seeds, steps, activations) float: the mean absolute difference of an
            activation to the one before the first update, after each update.
        sizes: (widths, seeds, steps + 1, activations) float: the mean absolute value of an
            activation, before the first update and after each.
        tolerance: the largest slope of an activation that passes.
    """

    names: tuple[str, ...]
    widths: np.ndarray
    changes: np.ndarray
    sizes: np.ndarray
    tolerance: float

    @property
    def slopes(self) -> dict[str, float]:
        """The power of the width with which each activation's change grows, at the last update.

        0 where the width does not matter. It is the slope of a line through the logarithms of the
        means over seeds; NaN where a change is 0 or not finite.
        """
        means = self.changes[:, :, -1].mean(axis=1)
        return dict(zip(self.names, map(self._slope, means.T), strict=True))

    def _slope(self, means: np.ndarray) -> float:
        if not (np.isfinite(means) & (means > 0)).all():
            return math.nan
        return float(np.polyfit(np.log(self.widths), np.log(means), 1)[0])

    @property
    def passed(self) -> bool:
        """Whether all slopes lie within the tolerance."""
        return not self.failures

    @property
    def failures(self) -> dict[str, str]:
        """What is wrong, by activation; it is empty where the check is passed."""
        means = self.changes[:, :, -1].mean(axis=1)
        failures = {}
        for column, (name, slope) in zip(means.T, self.slopes.items(), strict=True):
            if not np.isfinite(column).all():
                width = int(self.widths[~np.isfinite(column)][0])
                failures[name] = f"not finite at width {width}: lower the rate"
                if np.isfinite(column[0]):
                    finite = int(self.widths[0])
                    failures[name] += f", or see why it grows: at width {finite} it is finite"
            elif math.isnan(slope):
                failures[name] = "does not change: no gradient reaches what makes it"
            elif abs(slope) > self.tolerance:
                verb = "grow" if slope > 0 else "shrink"
                failures[name] = f"its changes {verb} with the width, as width^{slope:.2f}"
        return failures

    @property
    def verdict(self) -> str:
        """What the check says, in words."""
        if self.passed:
            return "passed: no activation changes more or less in a wider model"
        lines = [f"failed: {name}: {text}" for name, text in self.failures.items()]
        slopes = self.slopes.values()
        grows = any(slope > self.tolerance for slope in slopes)
        if any(slope < LOST for slope in slopes) and not grows:
            lines.append(
                "A power of the width is lost. Where the output loses the most, its 1/width often "
                "stands in two places: the model multiplies the logits, and rate and first numbers "
                "of the head are divided, too. Choose one coding, 'multiplier' or 'plain'."
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        """Return a table with the changes over widths and the slopes, and the verdict."""
        means = self.changes[:, :, -1].mean(axis=1)
        columns = {"activation": list(self.names)}
        for width, row in zip(self.widths, means, strict=True):
            columns[str(width)] = [number(value) for value in row.tolist()]
        columns["slope"] = [f"{slope:.2f}" for slope in self.slopes.values()]
        return "\n".join([*aligned(columns), self.verdict])

    def plot(self, *, label: str = "", ax: "Axes | None" = None) -> "Axes":
        """Draw the changes over widths; see `optlab.plots.plot_coordinate_check`.

        Args:
            label: the title; "" for none.
            ax: the axes to draw on; None for a new figure.
        """
        from optlab.plots import plot_coordinate_check

        return plot_coordinate_check(self, label=label, ax=ax)


def coordinate_check(
    make_model: Make,
    widths: Sequence[int],
    batch: Any,
    optimizer: optax.GradientTransformation | Callable[[Tree], optax.GradientTransformation],
    *,
    steps: int = 5,
    seeds: int = 5,
    tolerance: float = 0.1,
) -> CoordinateCheck:
    """Measure how much activations change within a few updates, in models of several widths.

    Under μP no change depends on the width. Where one grows, wide models need smaller rates; where
    one shrinks, wide models do not learn there. It sees a wrong multiplier, rate or size of first
    numbers, but neither the treatment of decay nor what happens late in training.

    Args:
        make_model: (width, key) → parameters and loss. The loss takes parameters and batch, and
            returns the loss and the activations to watch: a mapping of names to arrays, or any tree
            of arrays. It must not depend on the key.
        widths: the widths, at least two, ≥ 1; a factor of 8 or more between the ends tells slopes
            apart.
        batch: what the loss is given in each update.
        optimizer: the transformation, or (parameters) → the transformation, as `transfer` makes it.
        steps: updates, ≥ 3.
        seeds: how many keys, ≥ 1.
        tolerance: the largest slope that passes, > 0.

    Returns:
        The changes, their slopes and a verdict.

    Raises:
        ValueError: an argument is out of its range, or the loss does not return activations that
            have the same names for all widths.

    Example:
        >>> import jax, jax.numpy as jnp, optlab
        >>> def make(width, key):
        ...     params = {"in": {"kernel": jax.random.normal(key, (4, width)) / 2}}
        ...     def loss(params, x):
        ...         hidden = x @ params["in"]["kernel"]
        ...         return jnp.mean(hidden**2), {"hidden": hidden}
        ...     return params, loss
        >>> check = optlab.mup.coordinate_check(
        ...     make, [16, 64, 256], jnp.ones((2, 4)), optlab.adam(0.01), seeds=2
        ... )
        >>> print(check.verdict)
        passed: no activation changes more or less in a wider model

    Reference:
        Yang, Hu, Babuschkin et al., arXiv 2203.03466 (2022), appendix D.1.
    """
    who = "mup.coordinate_check"
    if not np.iterable(widths) or isinstance(widths, str):
        _checks.fail(who, "widths must be a sequence", repr(widths), "write [64, 512], say")
    widths = [_checks.check_count(who, "each of widths", width, 1) for width in widths]
    if len({*widths}) < 2 or len({*widths}) != len(widths):
        _checks.fail(who, "widths must hold at least two different ones", f"{widths}")
    steps = _checks.check_count(who, "steps", steps, LEAST_STEPS)
    seeds = _checks.check_count(who, "seeds", seeds, 1)
    _checks.check_number(who, "tolerance", tolerance, _checks.POSITIVE)
    if not callable(optimizer):
        _checks.check_transformation(who, optimizer, "optimizer")
    names: tuple[str, ...] | None = None
    changes, sizes = [], []
    for width in widths:
        own_names, own_changes, own_sizes = _of_width(
            who, make_model, width, batch, optimizer, steps, seeds
        )
        if names is not None and own_names != names:
            required = "all widths must have activations of the same names"
            _checks.fail(who, required, f"{', '.join(own_names)} after {', '.join(names)}")
        names = own_names
        changes.append(own_changes)
        sizes.append(own_sizes)
    assert names is not None
    order = np.argsort(widths)
    return CoordinateCheck(
        names,
        np.asarray(widths)[order],
        np.asarray(changes)[order],
        np.asarray(sizes)[order],
        float(tolerance),
    )


def _of_width(
    who: str, make_model: Make, width: int, batch: Any, optimizer: Any, steps: int, seeds: int
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return the names of the activations, their changes and their sizes, for one width."""
    keys = jax.random.split(jax.random.key(0), seeds)
    params, loss = _made(who, make_model, width, keys[0])
    tx = optimizer(params) if not hasattr(optimizer, "update") else optimizer
    _checks.check_transformation(who, tx, "optimizer")
    names: list[str] = []

    def value(params: Tree) -> tuple[Array, list[Array]]:
        result = loss(params, batch)
        if not isinstance(result, tuple) or len(result) != 2:
            required = "the loss must return the loss and the activations"
            _checks.fail(who, required, type(result).__name__, "return loss, {'hidden': hidden}")
        named = list(_named(result[1]))
        if not named:
            _checks.fail(who, "the loss must return activations", "none")
        names[:] = [name for name, _ in named]
        return result[0], [jnp.asarray(array) for _, array in named]

    def mean(arrays: Sequence[Array]) -> Array:
        return jnp.stack([jnp.abs(array.astype(jnp.float32)).mean() for array in arrays])

    @jax.jit
    def watched(params: Tree) -> tuple[Array, Array]:
        (_, first), gradients = jax.value_and_grad(value, has_aux=True)(params)

        def step(carry: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
            params, state, gradients = carry
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            (_, now), gradients = jax.value_and_grad(value, has_aux=True)(params)
            differences = [new - old for new, old in zip(now, first, strict=True)]
            return (params, state, gradients), (mean(differences), mean(now))

        carry = (params, tx.init(params), gradients)
        _, (changes, sizes) = jax.lax.scan(step, carry, None, length=steps)
        return changes, jnp.concatenate([mean(first)[None], sizes])

    results = [watched(params)]
    results += [watched(_made(who, make_model, width, key)[0]) for key in keys[1:]]
    changes, sizes = (np.asarray(part, np.float64) for part in zip(*results, strict=True))
    return tuple(names), changes, sizes


def _made(who: str, make_model: Make, width: int, key: Array) -> tuple[Tree, Loss]:
    made = make_model(width, key)
    if not isinstance(made, tuple) or len(made) != 2 or not callable(made[1]):
        required = "make_model must return the parameters and the loss"
        _checks.fail(who, required, type(made).__name__, "return params, loss")
    return made


def _named(activations: Any, above: str = "") -> Iterator[tuple[str, Array]]:
    """Yield the names and arrays of activations, in the order in which mappings hold them."""
    if isinstance(activations, Mapping):
        for name, own in activations.items():
            yield from _named(own, f"{above}/{name}" if above else str(name))
        return
    for path, array in jax.tree_util.tree_leaves_with_path(activations):
        own = path_name(path) if path else ""
        yield "/".join(filter(None, (above, own))) or "activation", array
