"""The first numbers of a wide model, by those of the base model."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, Tree
from optlab.mup._growth import Growth, Kind, base_arrays, growths, shapes_of
from optlab.mup._rules import CODINGS, Coding, init_of
from optlab.mup._transfer import facts
from optlab.rules import AxesChoice
from optlab.rules._leaf import path_name
from optlab.rules._patterns import check_all_match, check_patterns, matches


def init(
    params: Tree,
    base: Tree,
    *,
    coding: Coding = "multiplier",
    axes: AxesChoice | None = None,
    kinds: Mapping[str, Kind] | None = None,
    zero: Sequence[str] = (),
) -> Tree:
    """Scale the first numbers of a model to the sizes that μP says, against a base model's.

        ‖W‖ ← f · ‖W of the base model‖        ‖·‖ is the root of the mean square

    f is 1/√(growth of the input) for hidden matrices, and 1 for what is input, output or vector; in
    the coding "plain" it is 1/(growth of the input) for the output. So it does not matter how the
    model's initializers depend on the width, as long as their distributions have the right shape.
    Zeros stay zeros, and the ones of a norm stay ones.

    Args:
        params: the parameters as the model has drawn them.
        base: the base model, or its parameters, as it has drawn them.
        coding: as for `by_width`; it must be the same there.
        axes: as for `by_width`.
        kinds: as for `by_width`.
        zero: patterns of parameters that shall begin at 0. For the head this is often advised: at
            first a wide model then says the same as the base model.

    Returns:
        Parameters of the same structure, shapes and types.

    Raises:
        ValueError: the base model holds no numbers or does not fit, an option is out of its range,
            or a parameter is 0 throughout and not so in the base model.

    Example:
        >>> import jax.numpy as jnp, optlab
        >>> def mlp(width, size):
        ...     shapes = {"dense": (width, width), "head": (width, 3)}
        ...     return {name: {"kernel": jnp.full(shape, size)} for name, shape in shapes.items()}
        >>> params = optlab.mup.init(mlp(32, 1.0), mlp(8, 0.5))
        >>> print(params["dense"]["kernel"][0, 0], params["head"]["kernel"][0, 0])
        0.25 0.5
    """
    who = "mup.init"
    _checks.check_choice(who, "coding", coding, CODINGS)
    leaves = facts(who, params)
    check_all_match(who, check_patterns(who, zero), [leaf.path for leaf in leaves])
    arrays = base_arrays(who, base)
    grown = {own.leaf.path: own for own in growths(who, leaves, shapes_of(arrays), axes, kinds)}

    def scaled(path: jax.tree_util.KeyPath, array: Array) -> Array:
        own = grown[path_name(path)]
        if any(matches(pattern, own.leaf.path) for pattern in zero):
            return jnp.zeros_like(array)
        if own.kind == "fixed":
            return array
        return _resized(who, own, array, arrays[own.leaf.path], init_of(own, coding))

    return jax.tree_util.tree_map_with_path(scaled, params)


def _resized(who: str, own: Growth, array: Array, base: Array, factor: float) -> Array:
    """Return an array with the mean square that the base model's has, times the factor's."""
    if isinstance(base, jax.ShapeDtypeStruct) or isinstance(array, jax.ShapeDtypeStruct):
        required = "base and params must hold numbers"
        got = f"the shape alone at {own.leaf.path}"
        _checks.fail(who, required, got, "draw the parameters of the base model, too")
    size, wanted = _size(array), factor * _size(base)
    if size == wanted:
        return array
    if size == 0:
        required = f"{own.leaf.path} must not be 0 throughout, since it is not in the base model"
        _checks.fail(who, required, "zeros", "make both with one function that takes the width")
    return (array * jnp.asarray(wanted / size, jnp.finfo(array.dtype).dtype)).astype(array.dtype)


def _size(array: Array) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(np.abs(np.asarray(array, np.complex128))))))
