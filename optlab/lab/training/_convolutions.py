"""Convolutions that are as fast inside XLA's loops on a CPU as outside of them.

XLA has a fast convolution for CPUs, which needs inputs and outputs (batch, …, features) and kernels
(…, inputs, outputs). In the body of a program XLA transposes the operands of every convolution to
that layout, but in the body of a loop it does not. The forward pass of a Flax layer has the layout
already. The two convolutions of the backward pass do not, and take 20 to 50 times as long in a loop
of updates, with other rounding. `with_fast_convolutions` transposes them itself, as XLA would, so
that updates in a loop are bit for bit those of one call each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

from optlab._types import Array

_CONVOLUTION = "conv_general_dilated"


def with_fast_convolutions(function: Callable) -> Callable:
    """Return the same function with the layout that XLA's fast convolution needs.

    Put it around the whole update, and outside of `jax.vmap` and `jax.grad`, because these make
    convolutions of other layouts. On other platforms than a CPU the function is returned as it is.

    Args:
        function: a function of trees of arrays that returns a tree of arrays. Under `jit` it is
            traced once, as ever.

    Example:
        >>> def update(kernel, image):
        ...     energy = lambda kernel: jnp.sum(lax.conv(image, kernel, (1, 1), "SAME") ** 2)
        ...     return kernel - 0.1 * jax.grad(energy)(kernel)
        >>> kernel, image = jnp.ones((1, 1, 3, 3)), jnp.ones((1, 1, 4, 4))
        >>> same = with_fast_convolutions(update)(kernel, image) == update(kernel, image)
        >>> bool(same.all())
        True
    """
    if jax.default_backend() != "cpu":
        return function

    def fast(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = jaxpr_as_fun(_rewritten(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return fast


def _rewritten(part: Any) -> Any:
    """Rewrite the convolutions in a program or a parameter of an operation, also in its loops.

    A part without convolutions is returned itself, because XLA is given equal parts only once.
    """
    if isinstance(part, ClosedJaxpr):
        jaxpr = _rewritten(part.jaxpr)
        return part if jaxpr is part.jaxpr else part.replace(jaxpr=jaxpr)
    if isinstance(part, Jaxpr):
        eqns = [_rewritten_operation(eqn) for eqn in part.eqns]
        return part if _are_same(eqns, part.eqns) else part.replace(eqns=eqns)
    if type(part) in (tuple, list):
        parts = type(part)(map(_rewritten, part))
        return part if _are_same(parts, part) else parts
    return part


def _are_same(some: Sequence, others: Sequence) -> bool:
    return all(one is other for one, other in zip(some, others, strict=True))


def _rewritten_operation(eqn: JaxprEqn) -> JaxprEqn:
    # An output whose sharding is given is left alone, as the sharding names the axes it has now.
    if eqn.primitive.name != _CONVOLUTION or eqn.params.get("out_sharding") is not None:
        params = {name: _rewritten(value) for name, value in eqn.params.items()}
        same = _are_same(list(params.values()), list(eqn.params.values()))
        return eqn if same else eqn.replace(params=params)

    @jax.jit  # so that the program below is one operation, which can stand in the place of this one
    def convolution(inputs: Array, kernel: Array) -> Array:
        return _convolution(inputs, kernel, **eqn.params)

    (call,) = jax.make_jaxpr(convolution)(*(operand.aval for operand in eqn.invars)).eqns
    return eqn.replace(primitive=call.primitive, params=call.params)


def _convolution(
    inputs: Array, kernel: Array, *, dimension_numbers: lax.ConvDimensionNumbers, **params: Any
) -> Array:
    """Convolve in the layout of the fast convolution, and return the output in the one asked for.

    Args:
        inputs: the array, whose axes (batch, features, …) are `dimension_numbers.lhs_spec`.
        kernel: the array, whose axes (outputs, inputs, …) are `dimension_numbers.rhs_spec`.
        dimension_numbers: the axes of the three arrays.
        params: the other arguments of `lax.conv_general_dilated`.
    """
    batch, features, *places = dimension_numbers.lhs_spec
    kernel_outputs, kernel_inputs, *kernel_places = dimension_numbers.rhs_spec
    out_batch, out_features, *out_places = dimension_numbers.out_spec
    last = inputs.ndim - 1
    spatial = range(1, last)
    fast = lax.ConvDimensionNumbers(
        lhs_spec=(0, last, *spatial),
        rhs_spec=(last, last - 1, *range(last - 1)),
        out_spec=(0, last, *spatial),
    )
    outputs = lax.conv_general_dilated(
        jnp.transpose(inputs, (batch, *places, features)),
        jnp.transpose(kernel, (*kernel_places, kernel_inputs, kernel_outputs)),
        dimension_numbers=fast,
        **params,
    )
    return jnp.moveaxis(outputs, range(last + 1), (out_batch, *out_places, out_features))
